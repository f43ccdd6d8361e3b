//! For programs: one object a scenario, on one line. What a build cannot measure is left out.

use serde::Serialize;
use std::collections::BTreeMap;

use mesh_core::time::Instant;

use crate::{scenario::Scenario, swarm::Totals};

use super::{RunReport, Verdict};

#[derive(Serialize)]
struct File<'r> {
    schema: u32,
    scenario: &'r str,
    runs: Vec<Run<'r>>,
    /// What was expected of a share of the seeds and did not hold; there is no one run to put it into.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    failed: &'r [String],
}

#[derive(Serialize)]
struct Run<'r> {
    seed: u64,
    digest: String,
    verdict: &'static str,
    failed: &'r [String],
    pairs: Vec<Pair<'r>>,
    packets: &'r BTreeMap<&'static str, u64>,
    drops: &'r BTreeMap<&'static str, u64>,
    invariants: Vec<Invariant>,
    faults: u64,
    events: u64,
    simulated_ms: f64,
}

#[derive(Serialize)]
struct Invariant {
    id: &'static str,
    checked: u64,
}

#[derive(Serialize)]
struct Pair<'r> {
    a: &'r str,
    b: &'r str,
    path: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    technique: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_delivery_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    relay_up_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direct_ms: Option<f64>,
}

#[derive(Serialize)]
struct Swarm<'r> {
    schema: u32,
    seeds: String,
    violations: u64,
    faults: u64,
    events: u64,
    digest: String,
    invariants: Vec<Invariant>,
    expectations: Vec<Invariant>,
    failure: Option<Found<'r>>,
}

#[derive(Serialize)]
struct Found<'r> {
    seed: u64,
    replay: String,
    scenario: &'r str,
}

#[derive(Serialize)]
struct Failure<'e> {
    error: Error<'e>,
}

#[derive(Serialize)]
struct Error<'e> {
    code: &'e str,
    message: &'e str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'e str>,
}

/// The line of a scenario; `failed` is what all runs together did not reach.
///
/// # Errors
/// When JSON cannot be written, which these values do not bring about.
pub fn line(scenario: &Scenario, runs: &[RunReport], failed: &[String]) -> Result<String, serde_json::Error> {
    let runs = runs.iter().map(run).collect();
    serde_json::to_string(&File { schema: 1, scenario: &scenario.name, runs, failed })
}

/// The line of many generated worlds; `failure` is the seed of the first that failed, the command that repeats it, and the
/// text of a scenario file.
///
/// # Errors
/// When JSON cannot be written, which these values do not bring about.
pub fn swarm(
    (from, to): (u64, u64),
    totals: &Totals,
    failure: Option<(u64, String, &str)>,
) -> Result<String, serde_json::Error> {
    let of = |expected: bool| {
        let checked = totals.checked.iter().filter(|((is_expected, _), _)| *is_expected == expected);
        checked.map(|((_, id), checked)| Invariant { id, checked: *checked }).collect()
    };
    serde_json::to_string(&Swarm {
        schema: 1,
        seeds: format!("{from}..{to}"),
        violations: totals.violations,
        faults: totals.faults,
        events: totals.events,
        digest: format!("{:032x}", totals.digest),
        invariants: of(false),
        expectations: of(true),
        failure: failure.map(|(seed, replay, scenario)| Found { seed, replay, scenario }),
    })
}

/// The line of an error.
///
/// # Errors
/// When JSON cannot be written, which these values do not bring about.
pub fn error(code: &str, message: &str, hint: Option<&str>) -> Result<String, serde_json::Error> {
    serde_json::to_string(&Failure { error: Error { code, message, hint } })
}

fn run(report: &RunReport) -> Run<'_> {
    Run {
        seed: report.seed,
        digest: format!("{:032x}", report.digest),
        verdict: match report.verdict {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::Error => "error",
        },
        failed: &report.failed,
        pairs: report
            .pairs
            .iter()
            .map(|pair| Pair {
                a: &pair.a,
                b: &pair.b,
                path: pair.path.name(),
                technique: pair.technique.map(crate::check::Technique::name),
                first_delivery_ms: pair.first_delivery.map(millis),
                relay_up_ms: pair.relay_up.map(millis),
                direct_ms: pair.direct.map(millis),
            })
            .collect(),
        packets: &report.packets,
        drops: &report.drops,
        invariants: report
            .invariants
            .iter()
            .map(|(id, checked)| Invariant { id: id.name(), checked: *checked })
            .collect(),
        faults: report.faults,
        events: report.events,
        simulated_ms: millis(report.simulated),
    }
}

/// For printing alone; no decision is made with it.
fn millis(at: Instant) -> f64 {
    (at.as_nanos() / 1000) as f64 / 1000.0
}
