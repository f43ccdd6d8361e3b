//! Nodes that join a control server: what the scenarios with control are about, and that they can fail.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

mod support;

use sim::{RunReport, Verdict};
use support::scenario_text;

#[test]
fn the_named_scenarios_with_control_exist() {
    for name in [
        "control-easy-easy",
        "control-gone-24h",
        "control-flaps",
        "control-crash",
        "control-lossy-frozen",
        "acl-revoke-in-flight",
        "expired-key",
        "single-use-key-race",
        "join-100",
    ] {
        assert!(sim::scenario::parse(&scenario_text(name)).unwrap().control.is_some(), "{name}");
    }
}

#[test]
fn a_run_with_control_is_the_same_every_time() {
    let digests = [run("control-easy-easy", |text| text), run("control-easy-easy", |text| text)].map(|run| run.digest);
    assert_eq!(digests[0], digests[1]);
    let other = sim::run(&sim::scenario::parse(&scenario_text("control-easy-easy")).unwrap(), 2);
    assert_ne!(other.digest, digests[0]);
}

/// Both ends count what they say and hear: a key, a registration, a map, updates, keepalives.
#[test]
fn joining_takes_messages_inside_the_channel() {
    let report = run("control-easy-easy", |text| text);
    assert_eq!(report.verdict, Verdict::Pass, "{:?}", report.failed);
    assert!(report.packets["control_messages"] > 20, "{:?}", report.packets);
}

#[test]
fn a_key_that_is_good_for_many_lets_all_eight_in() {
    let reusable = |text: String| text.replace("name = \"once\"", "name = \"once\"\nreusable = true");
    let report = run("single-use-key-race", reusable);
    assert_eq!(report.verdict, Verdict::Fail);
    assert!(
        report.failed.iter().any(|failed| failed.contains("8 nodes were running, expected 1")),
        "{:?}",
        report.failed
    );
}

#[test]
fn a_key_that_has_not_expired_lets_carol_in() {
    let report = run("expired-key", |text| text.replace("expiry = \"30s\"", "expiry = \"1h\""));
    assert_eq!(report.verdict, Verdict::Fail);
    assert!(report.failed.iter().any(|failed| failed.contains("state needs_login carol")), "{:?}", report.failed);
}

#[test]
fn without_control_nobody_joins() {
    let kill = "[[event]]\nat = \"1ms\"\ndo = \"control\"\nstate = \"killed\"\n\n[[expect]]";
    let report = run("control-easy-easy", |text| text.replacen("[[expect]]", kill, 1));
    assert_eq!(report.verdict, Verdict::Fail);
    assert!(report.failed.iter().any(|failed| failed.contains("0 of 2 nodes were running")), "{:?}", report.failed);
}

fn run(name: &str, change: impl Fn(String) -> String) -> RunReport {
    sim::run(&sim::scenario::parse(&change(scenario_text(name))).unwrap(), 1)
}
