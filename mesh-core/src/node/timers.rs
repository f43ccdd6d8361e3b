//! One ordered set of deadlines for all peers.

use std::collections::{BTreeMap, BTreeSet};

use crate::{dataplane::PeerId, machine::Deadline, time::Instant};

/// When anything of each peer wants to be looked at next: its tunnel, its paths, what it is watched for.
#[derive(Debug, Default)]
pub(super) struct TimerQueue {
    order: BTreeSet<(Deadline, PeerId)>,
    armed: BTreeMap<PeerId, Deadline>,
}

impl TimerQueue {
    /// Replaces a peer's deadline.
    pub(super) fn set(&mut self, peer: PeerId, deadline: Option<Deadline>) {
        let before = match deadline {
            Some(deadline) => self.armed.insert(peer, deadline),
            None => self.armed.remove(&peer),
        };
        if before == deadline {
            return;
        }
        if let Some(before) = before {
            self.order.remove(&(before, peer));
        }
        if let Some(deadline) = deadline {
            self.order.insert((deadline, peer));
        }
    }

    /// Takes a peer out whose deadline has come.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<PeerId> {
        let (deadline, peer) = *self.order.first()?;
        if deadline.at > now {
            return None;
        }
        self.set(peer, None);
        Some(peer)
    }

    /// How many peers have one.
    pub(super) fn len(&self) -> usize {
        self.armed.len()
    }

    /// The earliest deadline.
    pub(super) fn next(&self) -> Option<Deadline> {
        self.order.first().map(|(deadline, _)| *deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_come_out_in_order_of_their_deadlines() {
        let mut timers = TimerQueue::default();
        let at = |secs| Some(Deadline::new(Instant::from_secs(secs), "test"));
        timers.set(PeerId::new(1), at(5));
        timers.set(PeerId::new(2), at(3));
        timers.set(PeerId::new(1), at(4));
        timers.set(PeerId::new(3), at(1));
        timers.set(PeerId::new(3), None);
        assert_eq!(timers.next(), at(3));
        assert_eq!(timers.pop_due(Instant::from_secs(4)), Some(PeerId::new(2)));
        assert_eq!(timers.pop_due(Instant::from_secs(4)), Some(PeerId::new(1)));
        assert_eq!(timers.pop_due(Instant::from_secs(9)), None);
    }
}
