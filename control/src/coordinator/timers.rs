//! What is to be done later, each thing at most once.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::{control::types::NodeId, machine::Deadline, time::Instant};

use super::input::StreamId;

/// A reason to wake up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// Streams that wait are told what changed.
    Push,
    /// Streams that have just been opened get their first map.
    Open,
    /// Something is to be said on a silent stream.
    KeepAlive(StreamId),
    /// A node whose stream ended did not come back.
    Offline(NodeId),
    /// An ephemeral node has been gone long enough.
    Forget(NodeId),
    /// A node's key expires.
    Expire(NodeId),
    /// A node that says too much may say more.
    Turn(NodeId),
    /// Nobody signed in for a node.
    SignIn(u64),
    /// What a node reported was written down a while ago.
    Quiet(NodeId),
}

impl Timer {
    fn why(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Open => "first maps",
            Self::KeepAlive(_) => "keepalive",
            Self::Offline(_) => "offline",
            Self::Forget(_) => "ephemeral node",
            Self::Expire(_) => "key expiry",
            Self::Turn(_) => "a node's turn",
            Self::SignIn(_) => "sign-in",
            Self::Quiet(_) => "reports",
        }
    }
}

/// Timers by when they are due.
#[derive(Debug, Default)]
pub(super) struct Timers {
    due: BTreeSet<(Instant, Timer)>,
    at: BTreeMap<Timer, Instant>,
}

impl Timers {
    /// Sets a timer, in place of what it was set to.
    pub(super) fn set(&mut self, timer: Timer, at: Instant) {
        if let Some(before) = self.at.insert(timer, at) {
            self.due.remove(&(before, timer));
        }
        self.due.insert((at, timer));
    }

    pub(super) fn clear(&mut self, timer: Timer) {
        if let Some(at) = self.at.remove(&timer) {
            self.due.remove(&(at, timer));
        }
    }

    pub(super) fn get(&self, timer: Timer) -> Option<Instant> {
        self.at.get(&timer).copied()
    }

    /// Takes a timer that is due.
    pub(super) fn take(&mut self, now: Instant) -> Option<Timer> {
        let (at, timer) = self.due.first().copied().filter(|(at, _)| *at <= now)?;
        self.due.remove(&(at, timer));
        self.at.remove(&timer);
        Some(timer)
    }

    pub(super) fn next(&self) -> Option<Deadline> {
        self.due.first().map(|(at, timer)| Deadline::new(*at, timer.why()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_is_due_once_and_last_set_counts() {
        let mut timers = Timers::default();
        let at = Instant::from_secs;
        timers.set(Timer::Push, at(5));
        timers.set(Timer::Open, at(2));
        timers.set(Timer::Push, at(1));
        timers.set(Timer::SignIn(1), at(1));
        timers.clear(Timer::SignIn(1));
        assert_eq!((timers.next(), timers.get(Timer::Push)), (Some(Deadline::new(at(1), "push")), Some(at(1))));
        assert_eq!(timers.take(at(0)), None);
        assert_eq!(
            [timers.take(at(9)), timers.take(at(9)), timers.take(at(9))],
            [Some(Timer::Push), Some(Timer::Open), None]
        );
        assert_eq!(timers.next(), None);
    }
}
