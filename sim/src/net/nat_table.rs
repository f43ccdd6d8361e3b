//! The sessions of a NAT: found by flow, by reply tuple and by age.
//!
//! A session is scheduled for expiry once; a refresh moves its deadline and leaves the schedule alone unless the
//! deadline came nearer. What turns up too early in the schedule is put back. So a packet costs lookups, not
//! an ordered set's removal and insertion.

use core::{net::SocketAddrV4, time::Duration};
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

#[derive(Debug)]
struct Session {
    flow: Flow,
    mapped: SocketAddrV4,
    owner: Owner,
    created: Instant,
    replied: bool,
    deadline: Instant,
    scheduled: Instant,
}

/// All sessions of a NAT.
#[derive(Debug, Default)]
pub(super) struct NatTable {
    sessions: BTreeMap<SessionId, Session>,
    by_flow: BTreeMap<Flow, SessionId>,
    by_reply: BTreeMap<(SocketAddrV4, SocketAddrV4), SessionId>,
    by_internal: BTreeSet<(SocketAddrV4, SessionId)>,
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

    pub(super) fn insert(
        &mut self,
        flow: Flow,
        mapped: SocketAddrV4,
        owner: Owner,
        now: Instant,
        deadline: Instant,
    ) -> SessionId {
        let id = SessionId(self.inserted);
        self.inserted += 1;
        let session = Session { flow, mapped, owner, created: now, replied: false, deadline, scheduled: deadline };
        self.sessions.insert(id, session);
        self.by_flow.insert(flow, id);
        self.by_reply.insert((mapped, flow.remote), id);
        self.by_internal.insert((flow.internal, id));
        self.schedule.insert((deadline, id));
        id
    }

    pub(super) fn by_flow(&self, flow: Flow) -> Option<SessionId> {
        self.by_flow.get(&flow).copied()
    }

    pub(super) fn by_reply(&self, mapped: SocketAddrV4, remote: SocketAddrV4) -> Option<SessionId> {
        self.by_reply.get(&(mapped, remote)).copied()
    }

    /// The mapped endpoint of the newest session of an internal endpoint.
    pub(super) fn newest_mapped(&self, internal: SocketAddrV4) -> Option<SocketAddrV4> {
        let range = (internal, SessionId(0))..=(internal, SessionId(u64::MAX));
        let (_, id) = self.by_internal.range(range).next_back()?;
        Some(self.mapped(*id))
    }

    pub(super) fn mapped(&self, id: SessionId) -> SocketAddrV4 {
        self.sessions[&id].mapped
    }

    pub(super) fn owner(&self, id: SessionId) -> Owner {
        self.sessions[&id].owner
    }

    pub(super) fn note_replied(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.replied = true;
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

    fn remove(&mut self, id: SessionId) {
        let Some(session) = self.sessions.remove(&id) else { return };
        self.by_flow.remove(&session.flow);
        self.by_reply.remove(&(session.mapped, session.flow.remote));
        self.by_internal.remove(&(session.flow.internal, id));
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
        let one = table.insert(flow(1), endpoint(1), Owner::Inside(endpoint(1)), secs(0), secs(30));
        let two = table.insert(flow(2), endpoint(2), Owner::Inside(endpoint(2)), secs(0), secs(30));
        table.set_deadline(one, secs(120));
        table.set_deadline(two, secs(10));
        table.expire(secs(10));
        assert_eq!((table.by_flow(flow(1)), table.by_flow(flow(2))), (Some(one), None));
        table.expire(secs(119));
        assert_eq!(table.len(), 1);
        table.expire(secs(120));
        assert_eq!((table.len(), table.by_reply.len(), table.by_internal.len(), table.schedule.len()), (0, 0, 0, 0));
    }

    fn endpoint(port: u16) -> SocketAddrV4 {
        SocketAddrV4::new([192, 168, 1, 2].into(), port)
    }
}
