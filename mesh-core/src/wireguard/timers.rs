//! The paper's constants, and what the fast path tells the timers.
//!
//! Packets do not touch timers. They leave stamps in an [`Activity`] and, when something happens for the
//! first time since the owner last looked, raise an [`Edge`]: that one is reported. When the matching timer
//! runs, the owner lowers the edge *first* and reads the stamps *then*; the other order could lose one.

use core::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use crate::time::Instant;

/// WireGuard paper §6.1: the sender asks for a new session after this many messages.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// WireGuard paper §6.1: no message at or past this counter is sent or accepted.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// WireGuard paper §6.1: an initiator that sends asks for a new session at this age.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// WireGuard paper §6.1: no session is used past this age.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// WireGuard paper §6.1: give up on a handshake after this time. Counted in attempts, see [`REKEY_ATTEMPTS`].
pub const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// WireGuard paper §6.1: an initiation is repeated after this time, plus jitter, and never sooner.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// WireGuard paper §6.1: data was received and nothing sent for this long: send a keepalive.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Upper bound of the jitter on repeated initiations. wireguard-go: 334 ms.
pub const REKEY_TIMEOUT_JITTER: Duration = Duration::from_millis(334);
/// Initiations of one attempt, as wireguard-go counts [`REKEY_ATTEMPT_TIME`]: the first and 19 repeats.
pub const REKEY_ATTEMPTS: u32 = 20;
/// Data was sent and nothing authenticated received for this long: start over. WireGuard paper §6.5.
pub const NO_ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// An initiator that receives asks for a new session at this age, once: 180 s − 10 s − 5 s. WireGuard paper §6.2.
pub const REKEY_AFTER_TIME_RECEIVING: Duration = Duration::from_secs(165);
/// All keys are wiped this long after the newest session began. WireGuard paper §6.3: three times 180 s.
pub const ERASE_AFTER_TIME: Duration = Duration::from_secs(540);
/// Initiations of one peer closer together than this are dropped. wireguard-go: `HandshakeInitationRate`.
pub const INITIATION_SPACING: Duration = Duration::from_millis(20);
/// A cookie, and the secret that it is made with, is good for this long. WireGuard paper §5.4.7.
pub const COOKIE_LIFETIME: Duration = Duration::from_secs(120);

/// Something that happened for the first time since the owner last looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Edge {
    /// Data was sent; an answer is awaited.
    DataSent,
    /// Data was received; something is to be sent back.
    DataReceived,
    /// The first packet on a session that we answered arrived: it may be sealed with now.
    Confirmed,
    /// The session is due for a successor.
    Rekey,
    /// An authenticated packet came from another address than we send to.
    Moved,
    /// Data was sent while no answer to earlier data was awaited: whoever finds paths looks whether one comes.
    Unanswered,
}

impl Edge {
    const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// What the fast path notes about one peer: stamps and edges, all atomic.
#[derive(Debug)]
pub struct Activity {
    last_sent: AtomicU64,
    last_received: AtomicU64,
    /// When the first data was sent that nothing authenticated has been received since.
    unanswered_since: AtomicU64,
    /// When the first data was received that nothing has been sent since.
    unacknowledged_since: AtomicU64,
    raised: AtomicU32,
}

/// Stands for "no such time" in the atomics.
const NONE: u64 = u64::MAX;

impl Activity {
    /// Nothing has happened.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            last_sent: AtomicU64::new(NONE),
            last_received: AtomicU64::new(NONE),
            unanswered_since: AtomicU64::new(NONE),
            unacknowledged_since: AtomicU64::new(NONE),
            raised: AtomicU32::new(0),
        }
    }

    /// A packet without data, a keepalive, was sent.
    #[inline]
    pub fn note_sent(&self, now: Instant) {
        self.last_sent.store(now.as_nanos(), Ordering::Relaxed);
        clear(&self.unacknowledged_since);
    }

    /// Data was sent. True when [`Edge::DataSent`] is to be reported.
    #[inline]
    #[must_use]
    pub fn note_data_sent(&self, now: Instant) -> bool {
        self.note_sent(now);
        set_if_none(&self.unanswered_since, now);
        self.raise(Edge::DataSent)
    }

    /// An authenticated packet was received.
    #[inline]
    pub fn note_received(&self, now: Instant) {
        self.last_received.store(now.as_nanos(), Ordering::Relaxed);
        clear(&self.unanswered_since);
    }

    /// Authenticated data was received. True when [`Edge::DataReceived`] is to be reported.
    #[inline]
    #[must_use]
    pub fn note_data_received(&self, now: Instant) -> bool {
        self.note_received(now);
        set_if_none(&self.unacknowledged_since, now);
        self.raise(Edge::DataReceived)
    }

    /// Raises an edge; true when it was not raised before, so that it is to be reported.
    #[inline]
    #[must_use]
    pub fn raise(&self, edge: Edge) -> bool {
        self.raised.load(Ordering::SeqCst) & edge.bit() == 0
            && self.raised.fetch_or(edge.bit(), Ordering::SeqCst) & edge.bit() == 0
    }

    /// Lowers an edge: from now on it is reported again. Read the stamps after this, not before.
    pub fn lower(&self, edge: Edge) {
        self.raised.fetch_and(!edge.bit(), Ordering::SeqCst);
    }

    /// When something was last sent.
    #[must_use]
    pub fn last_sent(&self) -> Option<Instant> {
        read(&self.last_sent)
    }

    /// When something authenticated was last received.
    #[must_use]
    pub fn last_received(&self) -> Option<Instant> {
        read(&self.last_received)
    }

    /// Since when an answer to data is awaited.
    #[must_use]
    pub fn unanswered_since(&self) -> Option<Instant> {
        read(&self.unanswered_since)
    }

    /// Since when data received waits for something to be sent back.
    #[must_use]
    pub fn unacknowledged_since(&self) -> Option<Instant> {
        read(&self.unacknowledged_since)
    }

    /// Stops waiting for an answer: the no-answer timer has acted.
    pub fn reset_unanswered(&self) {
        clear(&self.unanswered_since);
    }
}

impl Default for Activity {
    fn default() -> Self {
        Self::new()
    }
}

#[inline]
fn set_if_none(stamp: &AtomicU64, now: Instant) {
    if stamp.load(Ordering::SeqCst) == NONE {
        stamp.store(now.as_nanos(), Ordering::SeqCst);
    }
}

#[inline]
fn clear(stamp: &AtomicU64) {
    if stamp.load(Ordering::SeqCst) != NONE {
        stamp.store(NONE, Ordering::SeqCst);
    }
}

fn read(stamp: &AtomicU64) -> Option<Instant> {
    let nanos = stamp.load(Ordering::SeqCst);
    (nanos != NONE).then(|| Instant::from_nanos(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_is_reported_once_until_lowered() {
        let activity = Activity::new();
        assert!(activity.note_data_sent(Instant::ZERO));
        assert!(!activity.note_data_sent(Instant::from_secs(1)));
        activity.lower(Edge::DataSent);
        assert!(activity.note_data_sent(Instant::from_secs(2)));
    }

    #[test]
    fn waiting_starts_with_the_first_unanswered_packet() {
        let activity = Activity::new();
        let _ = activity.note_data_sent(Instant::from_secs(1));
        let _ = activity.note_data_sent(Instant::from_secs(2));
        assert_eq!(activity.unanswered_since(), Some(Instant::from_secs(1)));
        activity.note_received(Instant::from_secs(3));
        assert_eq!(activity.unanswered_since(), None);
        let _ = activity.note_data_sent(Instant::from_secs(4));
        assert_eq!(activity.unanswered_since(), Some(Instant::from_secs(4)));
    }

    #[test]
    fn anything_sent_acknowledges() {
        let activity = Activity::new();
        let _ = activity.note_data_received(Instant::from_secs(1));
        assert_eq!(activity.unacknowledged_since(), Some(Instant::from_secs(1)));
        activity.note_sent(Instant::from_secs(2));
        assert_eq!(activity.unacknowledged_since(), None);
    }
}
