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
    let missing = lab::missing();
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
    check_figures(&result, true)?;
    check_figures(&result["simulated"], false)?;
    check(result["technique"] == "punch", &format!("how the path came about: {result}"))
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
    check_figures(&result, false)
}

/// A terminal's Ctrl-C reaches the demo and whatever runs in the lab.
fn interrupted() -> Result<(), Failed> {
    let mut command = demo()?;
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    // Everything runs.
    let is_running = lines.by_ref().map_while(Result::ok).any(|line| line.contains("mesh ping bob: pong"));
    check(is_running, "no ping was answered")?;
    let group = format!("-{}", child.id());
    check(Command::new("kill").args(["-s", "INT", "--", &group]).status()?.success(), "it could not be interrupted")?;
    let rest: Vec<_> = lines.map_while(Result::ok).collect();
    let output = child.wait_with_output()?;
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    check(output.status.code() == Some(1) && complaint.contains("interrupted"), &complaint)?;
    check(rest.iter().any(|line| line.contains(UNTOUCHED)), &rest.join("\n"))
}

fn check_figures(figures: &Value, is_kernel: bool) -> Result<(), Failed> {
    let message = figures.to_string();
    let is_figure = |field: &str| figures[field].as_f64().is_some_and(|figure| figure >= 0.0);
    check(
        figures["joined"] == 2 && figures["first_ping_via"] == "relay" && figures["technique"].is_string(),
        &message,
    )?;
    for field in ["first_ping_ms", "direct_ms"] {
        check(is_figure(field), &message)?;
    }
    for field in ["up_ms", "tcp_mbit", "deny_ms", "allow_ms"] {
        check(if is_kernel { is_figure(field) } else { figures.get(field).is_none() }, &message)?;
    }
    Ok(())
}

fn demo() -> Result<Command, Failed> {
    let program = Path::new(env!("CARGO_BIN_EXE_demo"));
    let programs = program.parent().ok_or("the demo is in no folder")?;
    for name in ["meshd", "mesh", "mesh-relay", "mesh-control"] {
        let built = programs.join(name).is_file();
        check(built, &format!("{name} is not built; run: cargo build -p agent -p control -p relay"))?;
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
