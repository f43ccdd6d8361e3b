//! The demo tells its whole story with the programs of this build, its JSON holds what it measured, and it leaves the host
//! as it was, interrupted or not.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use benches::lab;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

const UNTOUCHED: &str = "addresses, routes, rules, nft, sysctls and /etc are as they were";

fn main() {
    let arguments = Arguments::from_args();
    let missing = lab::missing().or_else(|| lab::find("conntrack").is_none().then(|| "needs conntrack".to_owned()));
    let on_the_kernel = |name: &str, test: fn() -> Result<(), Failed>| {
        let kind = missing.clone().unwrap_or_default();
        Trial::test(name, test).with_kind(kind).with_ignored_flag(missing.is_some())
    };
    let trials = vec![
        on_the_kernel("the_demo_tells_its_story_on_the_kernel", the_whole_story),
        on_the_kernel("an_interrupted_demo_leaves_the_host_as_it_was", interrupted),
        Trial::test("without_root_the_demo_says_so_and_simulates", the_simulated_half)
            .with_kind(if missing.is_some() { "" } else { "as an ordinary user" }),
    ];
    libtest_mimic::run(&arguments, trials).exit();
}

fn the_whole_story() -> Result<(), Failed> {
    let (story, result) = tell(&mut demo()?)?;
    check(result["mode"] == "kernel", "the story was told on the kernel")?;
    check(story.contains(UNTOUCHED), &story)?;
    check_worlds(&result["worlds"], true)?;
    check_worlds(&result["simulated"], false)?;
    check(result["worlds"][0]["technique"] == "punch", &format!("how the path came about: {result}"))?;
    check_top(&result)
}

fn the_simulated_half() -> Result<(), Failed> {
    let mut command = demo()?;
    if lab::missing().is_none() {
        // The usual number of nobody.
        std::os::unix::process::CommandExt::uid(&mut command, 65_534);
    }
    let (story, result) = tell(&mut command)?;
    check(story.lines().filter(|line| line.contains("left out:")).count() == 1, &story)?;
    check(result["mode"] == "simulator", "the story was simulated")?;
    check(result.get("tcp_mbit").is_none() && result.get("simulated").is_none(), "nothing is made up")?;
    check_worlds(&result["worlds"], false)?;
    check_top(&result)
}

/// A terminal's Ctrl-C reaches the demo and whatever runs in the lab.
fn interrupted() -> Result<(), Failed> {
    let mut command = demo()?;
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    // The agents of the first world run.
    let is_running = lines.by_ref().map_while(Result::ok).any(|line| line.contains("pong from bob"));
    check(is_running, "no ping was answered")?;
    let group = format!("-{}", child.id());
    check(Command::new("kill").args(["-s", "INT", "--", &group]).status()?.success(), "it could not be interrupted")?;
    let rest: Vec<_> = lines.map_while(Result::ok).collect();
    let output = child.wait_with_output()?;
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    check(output.status.code() == Some(1) && complaint.contains("interrupted"), &complaint)?;
    check(rest.iter().any(|line| line.contains(UNTOUCHED)), &rest.join("\n"))
}

/// The fields of the first world are those of the whole.
fn check_top(result: &Value) -> Result<(), Failed> {
    let first = result["worlds"][0].as_object().ok_or("no world")?;
    let same = first.iter().filter(|(field, _)| !["name", "path"].contains(&field.as_str()));
    for (field, value) in same {
        check(result.get(field) == Some(value), &format!("{field} in {result}"))?;
    }
    Ok(())
}

fn check_worlds(worlds: &Value, moves_tcp: bool) -> Result<(), Failed> {
    let worlds = worlds.as_array().ok_or("no worlds")?;
    let all = [("easy-easy", "direct"), ("easy-hard", "relay"), ("udp-blocked", "relay")];
    check(worlds.len() == all.len(), "three worlds")?;
    for (world, (name, path)) in worlds.iter().zip(all) {
        let message = format!("{name}: {world}");
        let is_positive = |field: &str| world[field].as_f64().is_some_and(|figure| figure > 0.0);
        check(world["name"] == name && world["path"] == path && world["first_ping_via"] == "relay", &message)?;
        check(is_positive("first_ping_ms"), &message)?;
        check(if moves_tcp { is_positive("tcp_mbit") } else { world.get("tcp_mbit").is_none() }, &message)?;
        if path == "direct" {
            check(is_positive("direct_ms") && world["technique"].is_string(), &message)?;
        } else {
            check(world.get("direct_ms").is_none() && world.get("technique").is_none(), &message)?;
        }
    }
    Ok(())
}

fn demo() -> Result<Command, Failed> {
    let program = Path::new(env!("CARGO_BIN_EXE_demo"));
    let programs = program.parent().ok_or("the demo is in no folder")?;
    for name in ["meshd", "mesh", "mesh-relay"] {
        let built = programs.join(name).is_file();
        check(built, &format!("{name} is not built; run: cargo build -p agent -p relay"))?;
    }
    let mut command = Command::new(program);
    command.args(["--no-build", "--json", "--transfer-seconds", "1"]);
    Ok(command)
}

fn tell(command: &mut Command) -> Result<(String, Value), Failed> {
    let output = command.output()?;
    let story = String::from_utf8(output.stdout)?;
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    check(output.status.success(), &format!("{story}{complaint}"))?;
    let last = story.lines().last().ok_or("the demo said nothing")?;
    let result = serde_json::from_str(last)?;
    Ok((story, result))
}

fn check(holds: bool, message: &str) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(message.into()) }
}
