//! The three sessions of a tunnel and how they follow each other.

use std::sync::Arc;

use crate::{
    time::Instant,
    wireguard::{
        handshake::TransportKeys,
        session::{Opener, Sealer},
        timers::{REJECT_AFTER_TIME, REKEY_AFTER_TIME, REKEY_AFTER_TIME_RECEIVING},
    },
};

/// Who began a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// We did, and we are the one to rekey by time.
    Initiator,
    /// The peer did.
    Responder,
}

/// Both directions of a session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) index: u32,
    pub(super) sealer: Arc<Sealer>,
    pub(super) opener: Arc<Opener>,
    role: Role,
    /// When its initiation was sent or received.
    began: Instant,
    pub(super) established: Instant,
}

impl Session {
    pub(super) fn new(
        role: Role,
        index: u32,
        receiver: u32,
        keys: &TransportKeys,
        began: Instant,
        established: Instant,
    ) -> Self {
        // The responder's half began somewhere between our initiation and its response, which may have been long on its
        // way. So we seal for no longer than the responder surely opens, and open for as long as it may seal.
        let (sealed_until, opened_until) = (began + REJECT_AFTER_TIME, established + REJECT_AFTER_TIME);
        let (rekey_at, rekey_receiving_at) = match role {
            Role::Initiator => (began + REKEY_AFTER_TIME, began + REKEY_AFTER_TIME_RECEIVING),
            Role::Responder => (Instant::FAR_FUTURE, Instant::FAR_FUTURE),
        };
        let confirmed = role == Role::Initiator;
        Self {
            index,
            sealer: Arc::new(Sealer::new(&keys.send, receiver, rekey_at, sealed_until)),
            opener: Arc::new(Opener::new(&keys.receive, rekey_receiving_at, opened_until, confirmed)),
            role,
            began,
            established,
        }
    }

    pub(super) fn wants_rekey(&self, now: Instant) -> bool {
        self.sealer.wants_rekey(now) || self.opener.wants_rekey(now)
    }

    /// Whether the two handshakes were under way at the same time.
    fn overlaps(&self, other: &Self) -> bool {
        self.began <= other.established && other.began <= self.established
    }
}

/// Previous, current and next.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    previous: Option<Session>,
    current: Option<Session>,
    next: Option<Session>,
}

impl Sessions {
    /// The session to seal with.
    pub(super) fn current(&self) -> Option<&Session> {
        self.current.as_ref()
    }

    /// A session that we answered. Returns the one it replaces.
    pub(super) fn set_next(&mut self, session: Session) -> Option<Session> {
        self.next.replace(session)
    }

    /// The session that we answered, once a packet has arrived on it.
    pub(super) fn take_confirmed(&mut self) -> Option<Session> {
        self.next.take_if(|next| next.opener.is_confirmed())
    }

    /// Takes a session into use. It becomes current, unless the current one overlapped with it and has the role of
    /// `rank`: then it is kept to receive on. Returns a session that is no longer needed.
    pub(super) fn begin(&mut self, session: Session, rank: Role) -> Option<Session> {
        let keeps = |current: &Session| current.overlaps(&session) && current.role == rank && session.role != rank;
        if self.current.as_ref().is_some_and(keeps) {
            self.previous.replace(session)
        } else {
            let before = self.current.replace(session);
            core::mem::replace(&mut self.previous, before)
        }
    }

    /// Takes all sessions out.
    pub(super) fn clear(&mut self) -> impl Iterator<Item = Session> + use<> {
        [self.previous.take(), self.current.take(), self.next.take()].into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;

    /// The responder's half may have begun as early as the initiation was sent.
    #[test]
    fn the_time_to_seal_counts_from_the_initiation() {
        let keys = TransportKeys { send: [1; 32], receive: [2; 32] };
        let (began, established) = (Instant::from_secs(10), Instant::from_secs(14));
        let session = Session::new(Role::Initiator, 1, 2, &keys, began, established);
        let nearly = Duration::from_nanos(1);
        assert!(!session.sealer.is_spent(began + REJECT_AFTER_TIME - nearly));
        assert!(session.sealer.is_spent(began + REJECT_AFTER_TIME));
    }
}
