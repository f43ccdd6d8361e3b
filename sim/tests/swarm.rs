//! Generated worlds: a check that is wrong is found, made smaller, and fails again as a file.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

mod support;

use std::{fs, path::Path};

use sim::{
    Scenario, Verdict,
    host::HostId,
    scenario::{NodeSpec, TrafficKind, parse, write},
    swarm::{self, EVENTS_MAX, Failure, by_the_text, bytes, generate_with},
};
use support::{mesh_sim, scenario_text};

/// A wrong idea of what a policy says: who has a tag is still somebody's.
fn blind_to_tags(text: &str, nodes: &[NodeSpec], pair: (HostId, HostId), kind: TrafficKind) -> bool {
    let nodes: Vec<_> = nodes.iter().map(|node| NodeSpec { tags: Vec::new(), ..node.clone() }).collect();
    by_the_text(text, &nodes, pair, kind)
}

fn failure_of(world: &Scenario, seed: u64) -> Option<Failure> {
    Failure::of(world, &sim::run_within(world, seed, EVENTS_MAX))
}

#[test]
fn a_policy_that_is_not_what_is_enforced_is_found_made_smaller_and_fails_again_as_a_file() {
    let world = |seed| generate_with(&bytes::of_seed(seed), seed, blind_to_tags);
    let found = (0..200).find_map(|seed| Some((seed, failure_of(&world(seed), seed)?)));
    let (seed, failure) = found.expect("200 worlds are enough to meet a tag");
    assert!(matches!(failure, Failure::Expectation("acl-allowed" | "acl-denied")), "{failure:?}");
    assert_eq!(failure_of(&swarm::of_seed(seed), seed), None, "the right idea of it holds");

    let bytes = bytes::of_seed(seed);
    let shrunk = swarm::shrink(&bytes, seed, blind_to_tags, &failure, 300, |world| failure_of(world, seed));
    let text = write(&shrunk.scenario).unwrap();
    let read = parse(&text).unwrap();
    assert_eq!(failure_of(&read, seed), Some(failure), "{text}");
    let sizes = (read.nodes.len(), read.events.len(), read.traffic.len(), read.expects.len());
    assert_eq!(sizes, (2, 0, 1, 1), "{text}");

    let file = scratch("swarm-found", &text);
    let output = mesh_sim(&["run", &file]);
    assert_eq!(output.exit, 1, "{}", output.stderr);
    assert!(output.stderr.contains("acl node-"), "{}", output.stderr);
}

#[test]
fn a_swarm_counts_what_it_looked_at_and_is_the_same_in_two_processes() {
    let run = || mesh_sim(&["swarm", "--seeds", "0..60", "--json"]);
    let (one, other) = (run(), run());
    assert_eq!((one.exit, &one.stdout), (0, &other.stdout), "{}", one.stderr);
    let result: serde_json::Value = serde_json::from_str(one.stdout.lines().last().unwrap()).unwrap();
    assert_eq!((&result["schema"], &result["seeds"]), (&1.into(), &"0..60".into()));
    assert_eq!((&result["violations"], &result["failure"]), (&0.into(), &serde_json::Value::Null));
    assert!(result["faults"].as_u64().unwrap() > 10);
    let invariants = result["invariants"].as_array().unwrap();
    let never: Vec<_> = invariants.iter().filter(|check| check["checked"] == 0).map(|check| &check["id"]).collect();
    assert!(never.is_empty(), "{never:?} of {invariants:?}");
}

#[test]
fn a_generated_world_is_replayed_by_its_seed() {
    let output = mesh_sim(&["replay", "--swarm", "1"]);
    let digest = format!("digest {:032x}", sim::run_within(&swarm::of_seed(1), 1, EVENTS_MAX).digest);
    assert_eq!((output.exit, output.stdout.lines().last()), (0, Some(digest.as_str())), "{}", output.stderr);
    assert_eq!(mesh_sim(&["replay", "--swarm", "1", "--seed", "2"]).exit, 2);
    assert_eq!(mesh_sim(&["replay"]).exit, 2);
}

#[test]
fn a_failing_file_is_made_smaller_and_a_passing_one_is_not() {
    let text = scenario_text("relay-and-faults").replace("max = \"160ms\"", "max = \"1ms\"");
    let output = mesh_sim(&["shrink", &scratch("too-slow", &text), "--runs", "80"]);
    assert_eq!(output.exit, 1, "{}", output.stderr);
    let smaller = parse(&output.stdout).unwrap();
    assert_eq!((smaller.expects.len(), smaller.events.len()), (1, 0), "{}", output.stdout);
    assert_eq!(sim::run(&smaller, smaller.seeds[0]).verdict, Verdict::Fail);

    let output = mesh_sim(&["shrink", &scratch("fine", &scenario_text("static-pair")), "--seed", "3"]);
    assert_eq!(output.exit, 2);
    assert!(output.stderr.contains("passes with seed 3"), "{}", output.stderr);
}

#[test]
fn seeds_of_a_swarm_are_a_range() {
    for wrong in ["5", "5..5", "7..3", "a..b", "1,2"] {
        let output = mesh_sim(&["swarm", "--seeds", wrong]);
        assert_eq!(output.exit, 2, "{wrong}");
        assert!(output.stderr.contains("seeds are a range A..B"), "{}", output.stderr);
    }
}

fn scratch(name: &str, text: &str) -> String {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.toml"));
    fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}
