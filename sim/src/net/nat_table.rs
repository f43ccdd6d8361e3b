//! The sessions of a NAT: found by flow, by reply tuple and by age.
//!
//! A session is scheduled for expiry once; a refresh moves its deadline and leaves the schedule alone unless the
//! deadline came nearer. What turns up too early in the schedule is put back. So a packet costs lookups, not
//! an ordered set's removal and insertion.

use core::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};
use std::collections::{BTreeMap, BTreeSet};

use mesh_core::time::Instant;

/// Names a session; the number of its insertion, so older ones are smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SessionId(u64);

/// What makes packets from inside belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Flow {
    pub(super) internal: SocketAddrV4,
    pub(super) remote: SocketAddrV4,
}

/// Whose a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Inside(SocketAddrV4),
    Router,
}

/// Which side a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Inside,
    Outside,
}

/// A session that begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewSession {
    pub(super) flow: Flow,
    pub(super) mapped: SocketAddrV4,
    pub(super) owner: Owner,
    pub(super) opened: Side,
    pub(super) now: Instant,
    pub(super) deadline: Instant,
}

#[derive(Debug)]
struct Session {
    flow: Flow,
    mapped: SocketAddrV4,
    owner: Owner,
    opened: Side,
    created: Instant,
    used: Instant,
    replied: bool,
    deadline: Instant,
    /// Until when the remote is let in.
    admits: Instant,
    scheduled: Instant,
}

/// All sessions of a NAT.
#[derive(Debug, Default)]
pub(super) struct NatTable {
    sessions: BTreeMap<SessionId, Session>,
    by_flow: BTreeMap<Flow, SessionId>,
    by_reply: BTreeMap<(SocketAddrV4, SocketAddrV4), SessionId>,
    by_internal: BTreeSet<(SocketAddrV4, SessionId)>,
    by_mapped: BTreeSet<(SocketAddrV4, SessionId)>,
    /// How many sessions hosts inside have.
    of_hosts: BTreeMap<Ipv4Addr, usize>,
    schedule: BTreeSet<(Instant, SessionId)>,
    inserted: u64,
}

impl NatTable {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Removes sessions whose deadline is `now` or earlier, oldest deadline first.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.schedule.first() {
            if at > now {
                return;
            }
            self.schedule.pop_first();
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            if session.deadline > now {
                session.scheduled = session.deadline;
                self.schedule.insert((session.deadline, id));
            } else {
                self.remove(id);
            }
        }
    }

    pub(super) fn insert(&mut self, new: NewSession) -> SessionId {
        let id = SessionId(self.inserted);
        self.inserted += 1;
        let NewSession { flow, mapped, owner, opened, now, deadline } = new;
        let session = Session {
            flow,
            mapped,
            owner,
            opened,
            created: now,
            used: now,
            replied: false,
            deadline,
            admits: deadline,
            scheduled: deadline,
        };
        self.sessions.insert(id, session);
        self.by_flow.insert(flow, id);
        self.by_reply.insert((mapped, flow.remote), id);
        self.by_internal.insert((flow.internal, id));
        self.by_mapped.insert((mapped, id));
        if let Owner::Inside(internal) = owner {
            *self.of_hosts.entry(*internal.ip()).or_default() += 1;
        }
        self.schedule.insert((deadline, id));
        id
    }

    pub(super) fn by_flow(&self, flow: Flow) -> Option<SessionId> {
        self.by_flow.get(&flow).copied()
    }

    pub(super) fn by_reply(&self, mapped: SocketAddrV4, remote: SocketAddrV4) -> Option<SessionId> {
        self.by_reply.get(&(mapped, remote)).copied()
    }

    /// The sessions of an internal endpoint, oldest first.
    pub(super) fn of_internal(&self, internal: SocketAddrV4) -> impl DoubleEndedIterator<Item = SessionId> {
        self.by_internal.range((internal, SessionId(0))..=(internal, SessionId(u64::MAX))).map(|(_, id)| *id)
    }

    /// The sessions of a mapped endpoint, oldest first.
    pub(super) fn of_mapped(&self, mapped: SocketAddrV4) -> impl DoubleEndedIterator<Item = SessionId> {
        self.by_mapped.range((mapped, SessionId(0))..=(mapped, SessionId(u64::MAX))).map(|(_, id)| *id)
    }

    /// How many sessions a host inside has.
    pub(super) fn of_host(&self, host: Ipv4Addr) -> usize {
        self.of_hosts.get(&host).copied().unwrap_or_default()
    }

    /// All sessions, oldest first.
    pub(super) fn ids(&self) -> impl Iterator<Item = SessionId> {
        self.sessions.keys().copied()
    }

    pub(super) fn remote(&self, id: SessionId) -> SocketAddrV4 {
        self.sessions[&id].flow.remote
    }

    /// When a packet of it was seen last.
    pub(super) fn used(&self, id: SessionId) -> Instant {
        self.sessions[&id].used
    }

    pub(super) fn is_replied(&self, id: SessionId) -> bool {
        self.sessions[&id].replied
    }

    /// Whether its remote is let in.
    pub(super) fn admits(&self, id: SessionId, now: Instant) -> bool {
        self.sessions[&id].admits > now
    }

    pub(super) fn set_admits(&mut self, id: SessionId, until: Instant) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.admits = until;
        }
    }

    pub(super) fn mapped(&self, id: SessionId) -> SocketAddrV4 {
        self.sessions[&id].mapped
    }

    pub(super) fn owner(&self, id: SessionId) -> Owner {
        self.sessions[&id].owner
    }

    /// A packet was seen; one from the side that did not open the session answers it.
    pub(super) fn note_packet(&mut self, id: SessionId, from: Side, now: Instant) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.used = now;
            session.replied |= session.opened != from;
        }
    }

    /// How old a session is that has been answered; `None` while it has not.
    pub(super) fn replied_for(&self, id: SessionId, now: Instant) -> Option<Duration> {
        let session = &self.sessions[&id];
        session.replied.then(|| now.since(session.created))
    }

    pub(super) fn set_deadline(&mut self, id: SessionId, deadline: Instant) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.deadline = deadline;
        if deadline < session.scheduled {
            self.schedule.remove(&(session.scheduled, id));
            session.scheduled = deadline;
            self.schedule.insert((deadline, id));
        }
    }

    pub(super) fn clear(&mut self) {
        // Numbers go on: an id from before the reboot names nothing, not something else.
        *self = Self { inserted: self.inserted, ..Self::default() };
    }

    pub(super) fn len(&self) -> usize {
        self.sessions.len()
    }

    pub(super) fn remove(&mut self, id: SessionId) {
        let Some(session) = self.sessions.remove(&id) else { return };
        self.by_flow.remove(&session.flow);
        self.by_reply.remove(&(session.mapped, session.flow.remote));
        self.by_internal.remove(&(session.flow.internal, id));
        self.by_mapped.remove(&(session.mapped, id));
        self.schedule.remove(&(session.scheduled, id));
        if let Owner::Inside(internal) = session.owner
            && let Some(count) = self.of_hosts.get_mut(internal.ip())
        {
            *count -= 1;
            if *count == 0 {
                self.of_hosts.remove(internal.ip());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refreshed_session_outlives_its_schedule_and_a_shortened_one_does_not() {
        let mut table = NatTable::new();
        let flow = |port| Flow { internal: endpoint(port), remote: endpoint(9) };
        let secs = Instant::from_secs;
        let new = |port| NewSession {
            flow: flow(port),
            mapped: endpoint(port),
            owner: Owner::Inside(endpoint(port)),
            opened: Side::Inside,
            now: secs(0),
            deadline: secs(30),
        };
        let (one, two) = (table.insert(new(1)), table.insert(new(2)));
        table.set_deadline(one, secs(120));
        table.set_deadline(two, secs(10));
        table.expire(secs(10));
        assert_eq!((table.by_flow(flow(1)), table.by_flow(flow(2))), (Some(one), None));
        table.expire(secs(119));
        assert_eq!((table.len(), table.of_host(*endpoint(1).ip())), (1, 1));
        table.expire(secs(120));
        assert_eq!((table.len(), table.by_reply.len(), table.by_internal.len(), table.schedule.len()), (0, 0, 0, 0));
        assert_eq!((table.by_mapped.len(), table.of_hosts.len()), (0, 0));
    }

    fn endpoint(port: u16) -> SocketAddrV4 {
        SocketAddrV4::new([192, 168, 1, 2].into(), port)
    }
}
