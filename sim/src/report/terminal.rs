//! For people: one line a scenario, and when something did not hold, all that is needed to look into it.

use crate::{scenario::Scenario, swarm::Totals};

use super::{RunReport, Verdict};

/// One line for all runs of a scenario.
#[must_use]
pub fn line(scenario: &Scenario, verdict: Verdict, runs: &[RunReport]) -> String {
    let word = match verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "FAIL",
        Verdict::Error => "ERROR",
    };
    let passed = runs.iter().filter(|run| run.verdict == Verdict::Pass).count();
    let events: u64 = runs.iter().map(|run| run.events).sum();
    let digest = match runs {
        [run] => format!(", digest {:032x}", run.digest),
        _ => String::new(),
    };
    format!("{word:<5} {:<28} {passed}/{} seeds, {events} events{digest}", scenario.name, runs.len())
}

/// Why a run failed. `file` makes it a command that can be pasted.
#[must_use]
pub fn failure(scenario: &Scenario, run: &RunReport, file: Option<&str>) -> String {
    let mut text = format!("{} failed with seed {}, digest {:032x}\n", scenario.name, run.seed, run.digest);
    for failed in &run.failed {
        text.push_str(&format!("  {failed}\n"));
    }
    if !run.last.is_empty() {
        text.push_str(&format!("  the last {} events that concern it:\n", run.last.len()));
        for line in &run.last {
            text.push_str(&format!("    {line}\n"));
        }
    }
    if let Some(file) = file {
        text.push_str(&format!("  repeat it: {}\n", replay(file, run.seed)));
    }
    text
}

/// The command that repeats a run.
#[must_use]
pub fn replay(file: &str, seed: u64) -> String {
    format!("mesh-sim replay {file} --seed {seed}")
}

/// What many generated worlds came to: a line, and one for each check with how often it had something to look at.
#[must_use]
pub fn swarm((from, to): (u64, u64), totals: &Totals) -> String {
    let word = if totals.violations == 0 { "pass" } else { "FAIL" };
    let Totals { worlds, violations, faults, events, digest, checked } = totals;
    let mut text = format!(
        "{word:<5} seeds {from}..{to}: {worlds} worlds, {violations} failed, {faults} faults, {events} events, digest {digest:032x}\n"
    );
    for ((_, id), checked) in checked {
        text.push_str(&format!("  {id:<14} {checked}\n"));
    }
    text
}
