//! The demo tells its whole story with the programs of this build, and its JSON holds what it measured.

use std::{path::Path, process::Command};

use benches::lab;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

fn main() {
    let arguments = Arguments::from_args();
    let missing = lab::missing();
    let kind = missing.clone().unwrap_or_default();
    let whole = Trial::test("the_demo_tells_its_story_on_the_kernel", the_whole_story)
        .with_kind(kind)
        .with_ignored_flag(missing.is_some());
    let simulated = Trial::test("without_root_the_demo_says_so_and_simulates", the_simulated_half)
        .with_kind(if missing.is_some() { "" } else { "as an ordinary user" });
    libtest_mimic::run(&arguments, vec![whole, simulated]).exit();
}

fn the_whole_story() -> Result<(), Failed> {
    let (story, result) = tell(&mut demo()?)?;
    for field in ["first_ping_ms", "tcp_mbit", "recovery_ms"] {
        check(result[field].as_f64().is_some_and(|figure| figure > 0.0), &format!("{field} in {result}"))?;
    }
    check(result["mode"] == "kernel", "the story was told on the kernel")?;
    check(result["digest"].as_str().is_some_and(|digest| digest.len() == 32), "there is a digest")?;
    check(story.contains("addresses, routes, rules, nft, sysctls and /etc are as they were"), &story)
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
    check(result.get("tcp_mbit").is_none() && result.get("recovery_ms").is_none(), "nothing is made up")?;
    check(result["first_ping_ms"].as_f64().is_some_and(|figure| figure > 0.0), "there is a first ping")
}

fn demo() -> Result<Command, Failed> {
    let program = Path::new(env!("CARGO_BIN_EXE_demo"));
    let programs = program.parent().ok_or("the demo is in no folder")?;
    for name in ["meshd", "mesh", "mesh-sim"] {
        let built = programs.join(name).is_file();
        check(built, &format!("{name} is not built; run: cargo build -p agent -p sim"))?;
    }
    let mut command = Command::new(program);
    command.arg("--programs").arg(programs).args(["--json", "--transfer-seconds", "2"]);
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
