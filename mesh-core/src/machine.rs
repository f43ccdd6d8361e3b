//! The contract between a machine and its driver.
//!
//! A machine is a protocol participant without I/O. Its driver is the simulator, a test, or a daemon's
//! loop over real sockets. Five promises hold for every implementor (`tests/conformance.rs`):
//!
//! 1. Handle, drain, then wait: each input is finished before the handler returns.
//! 2. Outputs are carried out in order.
//! 3. Time never runs backwards inside: an older `now` is taken as the newest seen.
//! 4. When drained, the deadline is later than `now`, or there is none. Nothing spins.
//! 5. Same seed and same inputs at the same times give the same outputs.
//!
//! Parts of a machine do not implement [`Machine`]; they use the same verbs with their own nouns.

use crate::time::Instant;

/// A protocol participant without I/O: values in, values out, time as an argument.
pub trait Machine {
    /// One thing that happened.
    type Input<'a>;
    /// One thing that the driver should do.
    type Output;

    /// Takes in one thing that happened. Does not block and does not fail: what is wrong with an
    /// input is counted, traced and dropped.
    fn handle_input(&mut self, input: Self::Input<'_>, now: Instant);

    /// Lets due timers act. Harmless when called early or twice.
    fn handle_timeout(&mut self, now: Instant);

    /// The next thing the driver should do. Call until `None`; carry out in this order.
    #[must_use]
    fn poll_output(&mut self) -> Option<Self::Output>;

    /// When `handle_timeout` is wanted next, and by whom.
    #[must_use]
    fn poll_timeout(&self) -> Option<Deadline>;
}

/// A point in time and the reason for it: the reason is what one looks for when a loop spins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline {
    /// When.
    pub at: Instant,
    /// Which timer, in a few words.
    pub why: &'static str,
}

impl Deadline {
    /// A deadline at `at` because of `why`.
    #[must_use]
    pub const fn new(at: Instant, why: &'static str) -> Self {
        Self { at, why }
    }
}

/// Lets due timers act and collects everything the machine has to say: for tests and simple drivers.
pub fn settle<M: Machine>(machine: &mut M, now: Instant) -> Vec<M::Output> {
    machine.handle_timeout(now);
    core::iter::from_fn(|| machine.poll_output()).collect()
}
