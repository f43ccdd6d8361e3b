//! A smaller world in which the same thing is wrong.
//!
//! First the bytes: pieces are left out or set to 0, and what they make is run again; so everything that follows from a
//! choice, expectations too, changes with it. Then the scenario: faults, traffic, nodes, relays and nets are left out, and
//! what is left is made plain. A candidate is taken when the same check fails in it and it is still a fair world:
//! what was undone is undone, and the policy in force at the end is the same, for those are what expectations are about.

use mesh_core::time::Instant;

use crate::{
    check::Expectation,
    kernel::dice::Probability,
    net::Ipv6,
    scenario::{DEFAULT_PORT, ExpectSpec, RelayStart, Scenario, parse, write},
};

use super::{Failure, edit, generate_with, oracle::Oracle};

/// What a search for something smaller came to.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The smallest world that was found.
    pub scenario: Scenario,
    /// How many worlds were run for it.
    pub runs: u32,
}

/// A search: what is wrong in a world, and how many more may be run.
struct Search<F> {
    failure_of: F,
    wanted: Failure,
    best: Scenario,
    runs: u32,
    runs_max: u32,
}

/// Makes the world of some bytes smaller. `failure_of` runs a world and says what is wrong in it.
pub fn shrink(
    bytes: &[u8],
    seed: u64,
    oracle: Oracle,
    wanted: &Failure,
    runs_max: u32,
    failure_of: impl FnMut(&Scenario) -> Option<Failure>,
) -> Shrunk {
    let best = generate_with(bytes, seed, oracle);
    let mut search = Search { failure_of, wanted: wanted.clone(), best, runs: 0, runs_max: runs_max / 2 };
    search.bytes(bytes, seed, oracle);
    search.runs_max = runs_max;
    search.scenario();
    Shrunk { scenario: search.best, runs: search.runs }
}

/// Makes a world smaller whose bytes are not known.
pub fn shrink_scenario(
    scenario: &Scenario,
    wanted: &Failure,
    runs_max: u32,
    failure_of: impl FnMut(&Scenario) -> Option<Failure>,
) -> Shrunk {
    let mut search = Search { failure_of, wanted: wanted.clone(), best: scenario.clone(), runs: 0, runs_max };
    search.scenario();
    Shrunk { scenario: search.best, runs: search.runs }
}

impl<F: FnMut(&Scenario) -> Option<Failure>> Search<F> {
    /// Takes a candidate if the same is wrong in it.
    fn try_one(&mut self, candidate: Scenario) -> bool {
        if self.runs >= self.runs_max {
            return false;
        }
        // What cannot be written and read cannot be committed.
        if !write(&candidate).is_ok_and(|text| parse(&text).is_ok()) {
            return false;
        }
        self.runs += 1;
        let is_same = (self.failure_of)(&candidate).as_ref() == Some(&self.wanted);
        if is_same {
            self.best = candidate;
        }
        is_same
    }

    fn bytes(&mut self, bytes: &[u8], seed: u64, oracle: Oracle) {
        let mut kept = bytes.to_vec();
        for size in [256, 64, 16, 4, 1] {
            let mut at = 0;
            while at < kept.len() && self.runs < self.runs_max {
                let end = (at + size).min(kept.len());
                let mut zeroed = kept.clone();
                zeroed[at..end].fill(0);
                let mut deleted = kept.clone();
                deleted.drain(at..end);
                if self.try_bytes(&deleted, seed, oracle) {
                    kept = deleted;
                } else if self.try_bytes(&zeroed, seed, oracle) {
                    kept = zeroed;
                    at = end;
                } else {
                    at = end;
                }
            }
        }
    }

    fn try_bytes(&mut self, bytes: &[u8], seed: u64, oracle: Oracle) -> bool {
        let candidate = generate_with(bytes, seed, oracle);
        // Bytes that nothing is made of can go without a run.
        format!("{candidate:?}") == format!("{:?}", self.best) || self.try_one(candidate)
    }

    fn scenario(&mut self) {
        self.expects();
        loop {
            let before = format!("{:?}", self.best);
            self.leave_out(|world| world.events.len(), edit::without_events);
            self.leave_out(|world| world.traffic.len(), edit::without_traffic);
            self.leave_out(|world| world.nodes.len(), edit::without_nodes);
            self.leave_out(|world| world.relays.len(), edit::without_relays);
            self.leave_out(|world| world.nets.len(), edit::without_nets);
            self.plain();
            if self.runs >= self.runs_max || format!("{:?}", self.best) == before {
                return;
            }
        }
    }

    /// One expectation is enough: the one that fails.
    fn expects(&mut self) {
        if let Failure::Invariant(id) = self.wanted {
            let all = vec![id];
            let spec =
                ExpectSpec { line: None, expectation: Expectation::Invariants { all }, min_rate: Probability::ONE };
            self.try_one(Scenario { expects: vec![spec], ..self.best.clone() });
            return;
        }
        for index in 0..self.best.expects.len() {
            let one = self.best.expects[index].clone();
            if self.try_one(Scenario { expects: vec![one], ..self.best.clone() }) {
                return;
            }
        }
    }

    /// Leaves out as many of something as can be: halves first, then one after the other, the last first.
    fn leave_out(&mut self, count: fn(&Scenario) -> usize, without: fn(&Scenario, usize, usize) -> Option<Scenario>) {
        let mut size = count(&self.best).next_power_of_two();
        while size > 0 {
            let mut end = count(&self.best);
            while end > 0 {
                let begin = end.saturating_sub(size);
                let candidate =
                    without(&self.best, begin, end).filter(|candidate| edit::is_fair(&self.best, candidate));
                if let Some(candidate) = candidate {
                    self.try_one(candidate);
                }
                end = begin.min(count(&self.best));
            }
            size /= 2;
        }
    }

    /// Makes everything plain that is left.
    fn plain(&mut self) {
        for index in 0..self.best.nets.len() {
            self.change(|world| {
                let setup = &mut world.nets[index].setup;
                setup.link = crate::LinkParams::LAN;
            });
            self.change(|world| world.nets[index].setup.firewall = None);
            self.change(|world| world.nets[index].setup.behind = None);
            self.change(|world| (world.nets[index].setup.nat, world.nets[index].setup.behind) = (None, None));
            self.change(|world| {
                let setup = &mut world.nets[index].setup;
                setup.nat = setup.nat.map(|_| crate::NatParams::LINUX_FILTERED);
            });
            self.change(|world| world.nets[index].setup.ipv6 = Ipv6::None);
            self.change(|world| world.nets[index].setup.region = 0);
        }
        for index in 0..self.best.nodes.len() {
            self.change(|world| world.nodes[index].start = Instant::ZERO);
            self.change(|world| world.nodes[index].port = DEFAULT_PORT);
        }
        for index in 0..self.best.relays.len() {
            self.change(|world| world.relays[index].start = RelayStart::Fast);
        }
        self.change(|world| world.latencies.clear());
        if self.best.resolver.is_some()
            && let Some(candidate) = edit::without_resolver(&self.best)
        {
            self.try_one(candidate);
        }
        self.change(edit::without_unused_keys);
    }

    fn change(&mut self, change: impl Fn(&mut Scenario)) {
        let mut candidate = self.best.clone();
        change(&mut candidate);
        if edit::is_fair(&self.best, &candidate) && format!("{candidate:?}") != format!("{:?}", self.best) {
            self.try_one(candidate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::CheckId,
        scenario::Fault,
        swarm::{by_the_text, bytes, of_seed},
    };

    /// Wrong wherever a node is restarted.
    fn restarts(world: &Scenario) -> Option<Failure> {
        let is_wrong = world.events.iter().any(|event| matches!(event.fault, Fault::Restart { .. }));
        is_wrong.then_some(Failure::Invariant(CheckId::S5))
    }

    #[test]
    fn what_does_not_matter_is_left_out() {
        let wanted = Failure::Invariant(CheckId::S5);
        let seed = (0..100).find(|seed| {
            let world = of_seed(*seed);
            restarts(&world).is_some() && world.peers.is_empty() && world.nodes.len() > 3
        });
        let seed = seed.expect("a hundred worlds restart somebody");
        let shrunk = shrink(&bytes::of_seed(seed), seed, by_the_text, &wanted, 2000, restarts);
        let world = &shrunk.scenario;
        let sizes = (world.nodes.len(), world.relays.len(), world.traffic.len(), world.expects.len());
        assert_eq!(sizes, (2, 1, 0, 1), "{world:?}");
        let setups = world.nets.iter().map(|net| net.setup);
        assert!(
            setups.map(|setup| (setup.nat, setup.firewall, setup.ipv6)).all(|kind| kind == (None, None, Ipv6::None))
        );
        assert!(restarts(world).is_some() && shrunk.runs <= 2000);
    }

    #[test]
    fn no_more_worlds_are_run_than_may_be() {
        let mut runs = 0;
        let failure = |_: &Scenario| {
            runs += 1;
            Some(Failure::Invariant(CheckId::S5))
        };
        let shrunk = shrink(&bytes::of_seed(1), 1, by_the_text, &Failure::Invariant(CheckId::S5), 4, failure);
        assert_eq!((runs, shrunk.runs), (4, 4));
    }

    #[test]
    fn a_world_in_which_something_else_is_wrong_is_not_taken() {
        let world = of_seed(3);
        let other = |_: &Scenario| Some(Failure::Simulator);
        let shrunk = shrink_scenario(&world, &Failure::Invariant(CheckId::S5), 50, other);
        assert_eq!(format!("{:?}", shrunk.scenario), format!("{world:?}"));
    }
}
