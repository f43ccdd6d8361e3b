//! A deterministic network simulator: whole overlays with links, NATs and faults in one thread.
//!
//! Nodes are the real ones ([`mesh_core::node::Node`]), with real cryptography; what moves on the simulated wires
//! is the bytes that would move on real ones. Time is virtual, randomness is a tree of streams grown from a seed,
//! and the same scenario with the same seed gives the same digest in every process.
//!
//! Where to start reading:
//!
//! * [`kernel`]: the loop, the agenda, the dice, the trace
//! * [`net`]: links, NATs, firewalls, and the core between nets
//! * [`host`]: simulated computers that run nodes and applications
//! * [`scenario`]: what is simulated: files, and worlds written in Rust
//! * [`check`]: invariants that always hold, and what a scenario expects
//! * [`swarm`]: generated worlds, and failing ones made smaller
//! * [`report`]: what is told of a run
//!
//! Relays and the coordination server take part through the pure halves of their crates. In worlds with control nodes join
//! it and hear of each other from it; in worlds with relays alone the kernel hands out network maps in its stead. There
//! nodes know each other only by key, find each other over a relay, and directly where their NATs allow it. In worlds
//! without relays peers are static.
//!
//! ```
//! use core::time::Duration;
//! use mesh_core::time::Instant;
//! use sim::net::nat::NatParams;
//!
//! sim::seeds(0..3, |w| {
//!     let home = w.net("home").nat(NatParams::LINUX_FILTERED);
//!     let office = w.net("office");
//!     let (a, b) = (w.node("a", &home), w.node("b", &office));
//!     w.befriend(a, b);
//!     w.ping(a, b, Duration::from_millis(200)).start(Instant::from_secs(1));
//!     w.expect_delivery(a, b).within(Duration::from_secs(2));
//!     w.run_until(Instant::from_secs(5));
//! });
//! ```

pub mod check;
pub mod host;
pub mod kernel;
pub mod net;
pub mod report;
pub mod scenario;
pub mod swarm;

use core::ops::Range;

pub use check::Expectation;
pub use kernel::{Ended, Simulation};
pub use net::{link::LinkParams, nat::NatParams};
pub use report::{RunReport, Verdict};
pub use scenario::{Scenario, ScenarioError, World, star};

/// Describes and runs a world once for every seed.
///
/// # Panics
/// When `test` does, which [`World::run_until`] does when something did not hold.
pub fn seeds(range: Range<u64>, test: impl Fn(&World)) {
    for seed in range {
        test(&World::new(seed));
    }
}

/// Runs a scenario with a seed.
#[must_use]
pub fn run(scenario: &Scenario, seed: u64) -> RunReport {
    run_within(scenario, seed, kernel::EVENTS_MAX)
}

/// Runs a scenario with a seed and gives up after so many events.
///
/// A run that failed is run again up to the moment at which that was clear: what came last before it explains
/// more than what came last of all.
#[must_use]
pub fn run_within(scenario: &Scenario, seed: u64, events_max: u64) -> RunReport {
    let mut simulation = Simulation::new(scenario, seed).with_events_max(events_max);
    let ended = simulation.run();
    let mut report = RunReport::new(scenario, &simulation, &ended);
    let before_the_end = report.failed_at.filter(|at| ended == Ended::InTime && *at < report.simulated);
    if let Some(at) = before_the_end {
        let mut again = Simulation::new(scenario, seed).with_events_max(events_max);
        again.run_until(at);
        report.last = report::last_events(&again, &report.about);
    }
    report
}
