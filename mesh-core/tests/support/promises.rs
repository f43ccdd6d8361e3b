//! The promises of `mesh_core::machine`, for whichever machine: nodes, relays, control servers.

use core::{fmt::Debug, ops::Range, time::Duration};

use mesh_core::{
    machine::{Machine, settle},
    rng::{Rng, Seed},
    time::Instant,
};

/// Drives machines with random inputs at random times and checks that they never spin, that an older `now` is harmless,
/// and that the same inputs give the same outputs. `act` hands a machine its input; it is told how many came before.
pub(crate) fn keeps_the_promises<M>(
    seeds: Range<u64>,
    steps: u8,
    make: impl Fn(u64) -> M,
    act: impl Fn(&mut M, &mut Rng, u8, Instant),
) where
    M: Machine,
    M::Output: Debug,
{
    for seed in seeds {
        let trace = run(seed, steps, make(seed), &act, false);
        assert!(trace.len() > 10, "seed {seed} says nothing");
        assert_eq!(trace, run(seed, steps, make(seed), &act, false), "seed {seed} is not repeatable");
        assert_eq!(trace, run(seed, steps, make(seed), &act, true), "seed {seed}: an older now makes a difference");
    }
}

fn run<M>(
    seed: u64,
    steps: u8,
    mut machine: M,
    act: &impl Fn(&mut M, &mut Rng, u8, Instant),
    jumps_back: bool,
) -> Vec<String>
where
    M: Machine,
    M::Output: Debug,
{
    let mut rng = Seed::from_number(seed).stream("conformance", 0);
    let mut now = Instant::from_secs(1000);
    let mut trace = Vec::new();
    let mut drain = |machine: &mut M, now| {
        trace.extend(settle(machine, now).iter().map(|output| format!("{output:?}")));
    };
    for step in 0..steps {
        let magnitude = rng.below(16);
        now += Duration::from_millis(rng.below(1 << magnitude));
        act(&mut machine, &mut rng, step, now);
        // Outputs are drained, then the machine waits.
        drain(&mut machine, now);
        if jumps_back {
            drain(&mut machine, Instant::ZERO);
        }
        let deadline = machine.poll_timeout();
        assert!(deadline.is_none_or(|d| d.at > now), "seed {seed} spins at {now}: {deadline:?}");
        if let Some(deadline) = deadline
            && rng.below(2) == 0
        {
            now = deadline.at;
            drain(&mut machine, now);
            let again = machine.poll_timeout();
            assert!(again.is_none_or(|d| d.at > now), "seed {seed} spins at {now}: {again:?}");
        }
    }
    trace
}
