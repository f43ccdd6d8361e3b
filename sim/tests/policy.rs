//! Policies that a control server hands out: refused and allowed, and when.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

mod support;

use sim::{RunReport, Verdict};
use support::scenario_text;

#[test]
fn without_a_policy_nothing_is_allowed() {
    let report = run("control-easy-easy", |text| {
        let lines = text.lines().filter(|line| !line.starts_with("policy ="));
        lines.map(|line| format!("{line}\n")).collect()
    });
    assert_eq!(report.verdict, Verdict::Fail);
    assert!(report.failed.iter().any(|failed| failed.contains("none was delivered")), "{:?}", report.failed);
    assert!(!report.failed.iter().any(|failed| failed.contains("state running")), "{:?}", report.failed);
}

#[test]
fn a_rule_that_is_not_withdrawn_goes_on_letting_through() {
    let report = run("acl-revoke-in-flight", |text| {
        let (before, event) = text.split_once("[[event]]").unwrap();
        let (_, after) = event.split_once("[[event]]").unwrap();
        format!("{before}[[event]]{after}")
    });
    assert_eq!(report.verdict, Verdict::Fail);
    assert!(report.failed.iter().any(|failed| failed.contains("acl alice to server denied")), "{:?}", report.failed);
}

#[test]
fn what_is_withdrawn_is_refused_by_the_text_too() {
    let report = run("acl-revoke-in-flight", |text| text);
    assert_eq!(report.verdict, Verdict::Pass, "{:?}", report.failed);
    assert!(
        report.drops.keys().any(|reason| reason.contains("filter") || reason.contains("no_")),
        "{:?}",
        report.drops
    );
}

fn run(name: &str, change: impl Fn(String) -> String) -> RunReport {
    sim::run(&sim::scenario::parse(&change(scenario_text(name))).unwrap(), 1)
}
