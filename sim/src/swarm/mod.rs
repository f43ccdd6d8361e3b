//! Generated worlds: thousands of small ones that nobody thought of, each with everything that is always checked.
//!
//! A seed is a string of bytes, and the bytes are a [`Scenario`]: the topology, NATs, firewalls and links, who joins when,
//! a policy, what goes wrong, and what has to be true in the end ([`generate()`]). A run goes through five phases:
//!
//! * *boot*: nodes join, or are handed their maps
//! * *chaos*: faults of all kinds, while traffic flows; only what must never happen is looked at
//! * *heal*: all faults are undone
//! * *liveness*: whoever the policy lets speak is heard again, nobody else is, and everybody holds the newest map
//! * *quiet*: nobody has anything to say, and nodes fall silent
//!
//! What has to be true is written into the scenario as expectations, so a world that fails is an ordinary scenario file
//! and fails as one: [`shrink()`] makes it smaller for as long as the same thing is wrong, and what is left is worth
//! committing.

pub mod bytes;
mod chaos;
mod edit;
mod generate;
mod oracle;
mod policies;
mod shrink;

use std::collections::BTreeMap;

use crate::{
    check::{CheckId, Expectation, Ruling},
    report::{RunReport, Verdict},
    scenario::Scenario,
};

pub use generate::{generate, generate_with};
pub use oracle::{Oracle, by_the_text};
pub use shrink::{Shrunk, shrink, shrink_scenario};

/// Events of one generated run at most; the largest take a hundredth of that.
pub const EVENTS_MAX: u64 = 20_000_000;

/// How the complaint of an expectation begins that had nothing to look at.
const NEVER: &str = "never evaluated";

/// The world of a seed.
#[must_use]
pub fn of_seed(seed: u64) -> Scenario {
    generate(&bytes::of_seed(seed), seed)
}

/// What went wrong, as far as it says whether two runs failed in the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// An invariant.
    Invariant(CheckId),
    /// An expectation of this kind.
    Expectation(&'static str),
    /// Something was expected and there was nothing to look at.
    Unlooked,
    /// The simulator itself, or a run without an end.
    Simulator,
}

impl Failure {
    /// What went wrong in a run, if anything did.
    #[must_use]
    pub fn of(scenario: &Scenario, run: &RunReport) -> Option<Self> {
        match run.verdict {
            Verdict::Pass => None,
            Verdict::Error => Some(Self::Simulator),
            Verdict::Fail => Some(match run.violated {
                Some(id) => Self::Invariant(id),
                None => {
                    let failed = scenario.expects.iter().zip(&run.complaints);
                    let mut failed = failed.filter_map(|(spec, complaint)| Some((spec, complaint.as_ref()?)));
                    // What was never looked at is not what was looked at and wrong.
                    match failed.clone().find(|(_, complaint)| !complaint.starts_with(NEVER)).or_else(|| failed.next())
                    {
                        Some((spec, complaint)) if !complaint.starts_with(NEVER) => {
                            Self::Expectation(name_of(&spec.expectation))
                        }
                        Some(_) | None => Self::Unlooked,
                    }
                }
            }),
        }
    }

    /// The name in reports.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Invariant(id) => id.name(),
            Self::Expectation(kind) => kind,
            Self::Unlooked => "never-evaluated",
            Self::Simulator => "simulator",
        }
    }
}

/// What many runs came to.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Worlds that were run.
    pub worlds: u64,
    /// Worlds in which something was wrong.
    pub violations: u64,
    /// Events of the scenarios that were carried out.
    pub faults: u64,
    /// Events of the agenda.
    pub events: u64,
    /// One number for all digests, in order.
    pub digest: u128,
    /// How often each check had something to look at, by its name: invariants, then expectations.
    pub checked: BTreeMap<(bool, &'static str), u64>,
}

impl Totals {
    /// Counts a run.
    pub fn add(&mut self, scenario: &Scenario, run: &RunReport) {
        self.worlds += 1;
        self.violations += u64::from(run.verdict != Verdict::Pass);
        self.faults += run.faults;
        self.events += run.events;
        self.digest = self.digest.rotate_left(1) ^ run.digest;
        // One that never had anything to look at is told as well.
        for id in CheckId::ALL {
            let _ = self.checked.entry((false, id.name())).or_default();
        }
        for (id, checked) in &run.invariants {
            *self.checked.entry((false, id.name())).or_default() += checked;
        }
        for (spec, _) in scenario.expects.iter().zip(&run.complaints) {
            if !matches!(spec.expectation, Expectation::Invariants { .. }) {
                *self.checked.entry((true, name_of(&spec.expectation))).or_default() += 1;
            }
        }
    }
}

/// What an expectation is about: rulings are two, because breaking one is not like breaking the other.
const fn name_of(expectation: &Expectation) -> &'static str {
    match expectation {
        Expectation::Acl { is: Ruling::Denied, .. } => "acl-denied",
        Expectation::Acl { is: Ruling::Allowed, .. } => "acl-allowed",
        other => other.kind(),
    }
}
