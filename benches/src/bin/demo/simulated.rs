//! The same story in the simulator: twice, in two processes, to show that a seed repeats.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use crate::Story;

const STORY: &str = include_str!("story.toml");

pub(crate) fn tell(story: &Story, programs: &Path, results: &mut Map<String, Value>) -> Result<()> {
    let file = std::env::temp_dir().join(format!("mesh-demo-{}.toml", std::process::id()));
    std::fs::write(&file, STORY).context("cannot write the scenario")?;
    let told = tell_file(story, programs, &file, results);
    std::fs::remove_file(&file).context("cannot remove the scenario")?;
    told
}

fn tell_file(story: &Story, programs: &Path, file: &Path, results: &mut Map<String, Value>) -> Result<()> {
    story.say("simulator", "the same homes, NAT and reboot; seed 1, 60 simulated seconds, real cryptography");
    let first = run(programs, file)?;
    let second = run(programs, file)?;
    ensure!(first["verdict"] == "pass", "the simulated story failed: {}", first["failed"]);

    let digest = first["digest"].as_str().context("the run has no digest")?;
    let number = |value: &Value| value.as_u64().context("the run lacks a figure");
    story.say(
        "simulator",
        &format!(
            "{} handshake messages, {} data packets, {} events, every expectation held",
            number(&first["packets"]["wireguard_handshake"])?,
            number(&first["packets"]["wireguard_data"])?,
            number(&first["events"])?
        ),
    );
    ensure!(first["digest"] == second["digest"], "two runs of one seed differ: {digest} and {}", second["digest"]);
    story.say("simulator", &format!("digest {digest}, the same in both runs"));
    results.insert("digest".into(), digest.into());
    if !results.contains_key("first_ping_ms") {
        // The first request leaves one simulated second after the start.
        let at = first["pairs"][0]["first_delivery_ms"].as_f64().context("nothing was delivered")?;
        results.insert("first_ping_ms".into(), (at - 1000.0).into());
    }
    Ok(())
}

/// One run of the scenario, in a process of its own.
fn run(programs: &Path, file: &Path) -> Result<Value> {
    let program = programs.join("mesh-sim");
    let output = Command::new(&program).arg("run").arg(file).args(["--seeds", "1..2", "--json"]).output();
    let output = output.with_context(|| format!("cannot start {}", program.display()))?;
    let result: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("mesh-sim answered no JSON: {}", String::from_utf8_lossy(&output.stderr)))?;
    match &result["runs"][0] {
        Value::Null => bail!("mesh-sim answered no run: {result}"),
        run => Ok(run.clone()),
    }
}
