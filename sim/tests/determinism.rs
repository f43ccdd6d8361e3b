//! The same scenario and seed give the same digest in another process; another seed gives another one.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

mod support;

use support::{mesh_sim, run_json, scenario_files};

#[test]
fn every_scenario_has_the_same_digest_in_two_processes() {
    for file in scenario_files() {
        let (one, two) = (run_json(&file, "0..2"), run_json(&file, "0..2"));
        assert_eq!(one, two, "{file}");
        let digests: Vec<_> = one["runs"].as_array().unwrap().iter().map(|run| run["digest"].clone()).collect();
        assert!(digests.len() == 2 && digests[0] != digests[1], "{file}: {digests:?}");
    }
}

#[test]
fn every_scenario_passes_the_programs_own_check() {
    for file in scenario_files() {
        let output = mesh_sim(&["run", &file, "--seeds", "5..6", "--check-determinism"]);
        assert_eq!(output.exit, 0, "{}", output.stderr);
    }
}

#[test]
fn a_replay_ends_with_the_digest_of_the_run() {
    let file = scenario_files().into_iter().find(|file| file.ends_with("static-pair.toml")).unwrap();
    let digest = run_json(&file, "3..4")["runs"][0]["digest"].as_str().unwrap().to_owned();
    let replay = mesh_sim(&["replay", &file, "--seed", "3"]);
    assert_eq!(replay.exit, 0, "{}", replay.stderr);
    assert_eq!(replay.stdout.lines().last(), Some(format!("digest {digest}").as_str()));
    assert!(replay.stdout.lines().count() > 1000);
}

#[test]
fn names_and_expectations_do_not_move_the_digest_and_links_do() {
    let file = scenario_files().into_iter().find(|file| file.ends_with("static-pair.toml")).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let digest = |text: &str| sim::run(&sim::scenario::parse(text).unwrap(), 1).digest;
    let renamed = text.replace("alice", "carol").replace("max = \"25ms\"", "max = \"26ms\"");
    assert_eq!(digest(&text), digest(&renamed));
    assert_ne!(digest(&text), digest(&text.replace("\"wifi-good\"", "\"wifi-busy\"")));
}
