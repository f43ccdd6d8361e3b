//! [`Tunnel`]: one peer's handshakes, sessions and timers (WireGuard paper §6).
//!
//! Three sessions may stand at once. *Current* is sealed with. *Previous* is the one before it, so that packets on
//! their way during a rekey still open. *Next* is one that the peer began and we answered: it becomes current when
//! the first packet arrives on it, because only then do we know that our answer got through.
//!
//! A handshake that we began and one that the peer began run beside each other; neither disturbs the other. When
//! both complete, the two ends would each prefer the other's session and go on crossed, with nobody left to rekey in
//! time. So sessions whose handshakes overlapped are ranked: the one begun by the end with the larger public key is
//! current at both ends. Stock WireGuard gives up its own handshake when it answers one, so with a stock peer only one
//! of the two ever completes, and at once instead of after a timeout.

mod sessions;

use core::time::Duration;
use std::{collections::VecDeque, sync::Arc};

use crate::{
    key::NodePublic,
    limits,
    machine::Deadline,
    rng::Rng,
    time::{Instant, WallAnchor},
};

use super::{
    cookie::CookieJar,
    handshake::{Initiator, Remote, Tai64n},
    identity::{Identity, OpenedInitiation},
    index::IndexTable,
    message::{CookieReply, Response},
    session::{Opener, Sealer},
    timers::{
        Activity, ERASE_AFTER_TIME, Edge, INITIATION_SPACING, KEEPALIVE_TIMEOUT, NO_ANSWER_TIMEOUT, REJECT_AFTER_TIME,
        REKEY_ATTEMPTS, REKEY_TIMEOUT, REKEY_TIMEOUT_JITTER,
    },
};
use sessions::{Role, Session, Sessions};

/// What all tunnels of a node share, handed to each verb that may need it.
#[derive(Debug)]
pub struct Local {
    /// Who we are.
    pub identity: Arc<Identity>,
    /// Receiver indices in use.
    pub indices: IndexTable,
    /// What the calendar says.
    pub clock: WallAnchor,
}

/// What a tunnel is made of, beside the peer's keys.
#[derive(Debug)]
pub struct TunnelConfig {
    /// The number under which the tunnel's indices are kept in [`IndexTable`].
    pub owner: u32,
    /// MTU of the TUN in bytes, which padding does not exceed.
    pub mtu_bytes: usize,
    /// Send something at least this often.
    pub persistent_keepalive: Option<Duration>,
    /// What an earlier tunnel with this peer left.
    pub stamps: Stamps,
    /// Jitter and ephemeral keys.
    pub rng: Rng,
}

/// The newest handshake stamps exchanged with a peer. They outlive the tunnel: without them old initiations could
/// be replayed, or ours taken for replays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamps {
    sent: Option<Tai64n>,
    received: Option<Tai64n>,
}

/// What a tunnel has to say.
#[derive(Debug)]
pub enum Output {
    /// Send this to the peer: a handshake message, a keepalive, or a packet that had waited.
    Send(Vec<u8>),
    /// A response or cookie reply with this receiver index is awaited.
    Await {
        /// The receiver index.
        index: u32,
    },
    /// Datagrams with this receiver index are opened with this from now on.
    Receive {
        /// The receiver index.
        index: u32,
        /// Opens its datagrams.
        opener: Arc<Opener>,
    },
    /// Datagrams with this receiver index are no longer opened, and nothing is awaited for it.
    Forget {
        /// The receiver index.
        index: u32,
    },
    /// Packets are sealed with this from now on.
    Seal(Option<Arc<Sealer>>),
    /// A session is ready for use.
    Established,
    /// The peer answered none of the initiations of an attempt; so many packets had waited and were dropped.
    GaveUp {
        /// Packets dropped.
        packets: usize,
    },
    /// The tunnel was closed while so many packets waited; they were dropped.
    Discarded {
        /// Packets dropped.
        packets: usize,
    },
}

/// Why a handshake message was not taken. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Not by this peer, or not well made.
    #[error("the message could not be opened")]
    Malformed,
    /// The stamp is not newer than the last.
    #[error("the initiation is not newer than the last")]
    Replayed,
    /// Less than 20 ms after the last.
    #[error("initiations come too fast")]
    TooSoon,
    /// Not an answer to what we sent last.
    #[error("the message answers nothing that was sent")]
    Unexpected,
}

/// One peer's handshakes, sessions and timers.
#[derive(Debug)]
pub struct Tunnel {
    config: TunnelConfig,
    remote: Remote,
    activity: Arc<Activity>,
    pending: Option<Pending>,
    /// Initiations sent in this attempt.
    attempts: u32,
    last_handshake_sent: Option<Instant>,
    last_initiation_received: Option<Instant>,
    cookies: CookieJar,
    sessions: Sessions,
    queue: VecDeque<Vec<u8>>,
    timers: Timers,
    outbox: VecDeque<Output>,
}

/// An initiation of ours that waits for its response.
struct Pending {
    index: u32,
    initiator: Initiator,
    sent_at: Instant,
}

impl core::fmt::Debug for Pending {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Pending").field("index", &self.index).field("sent_at", &self.sent_at).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Timers {
    retransmit: Option<Instant>,
    keepalive: Option<Instant>,
    no_answer: Option<Instant>,
    persistent: Option<Instant>,
    erase: Option<Instant>,
}

impl Tunnel {
    /// A tunnel without session. With a persistent keepalive it wants to begin at once.
    #[must_use]
    pub fn new(config: TunnelConfig, remote: Remote, activity: Arc<Activity>, now: Instant) -> Self {
        let persistent = config.persistent_keepalive.map(|_| now);
        Self {
            config,
            remote,
            activity,
            pending: None,
            attempts: 0,
            last_handshake_sent: None,
            last_initiation_received: None,
            cookies: CookieJar::default(),
            sessions: Sessions::default(),
            queue: VecDeque::new(),
            timers: Timers { persistent, ..Timers::default() },
            outbox: VecDeque::new(),
        }
    }

    /// Takes a packet that the fast path had no session for: sends it, or keeps it and wants a session. Returns the
    /// oldest packet when there was no more room.
    pub fn enqueue(&mut self, packet: Vec<u8>, local: &mut Local, now: Instant) -> Option<Vec<u8>> {
        if self.send_data(&packet, now) {
            return None;
        }
        self.queue.push_back(packet);
        let dropped = if self.queue.len() > limits::QUEUED_PACKETS_PER_PEER { self.queue.pop_front() } else { None };
        self.initiate(local, now);
        dropped
    }

    /// Wants a new session: sends an initiation, or plans one when the last handshake message is too recent.
    pub fn initiate(&mut self, local: &mut Local, now: Instant) {
        self.attempts = 0;
        self.send_or_plan_initiation(local, now);
    }

    /// The initiation under way may be lost: sends a new one when it is at least `age` old.
    pub fn retry(&mut self, age: Duration, local: &mut Local, now: Instant) {
        let is_old = |pending: &Pending| now.since(pending.sent_at) >= age;
        if self.attempts < REKEY_ATTEMPTS && self.pending.as_ref().is_some_and(is_old) {
            self.send_initiation(local, now);
        }
    }

    /// The peer may be using a session that we do not have. Unless there is one, or one is under way, it is offered
    /// another: one initiation, repeated once, at most one in [`REKEY_TIMEOUT`].
    pub fn offer(&mut self, local: &mut Local, now: Instant) {
        let has_session = self.sessions.current().is_some_and(|current| !current.sealer.is_spent(now));
        let is_soon = self.last_handshake_sent.is_some_and(|last| now.since(last) < REKEY_TIMEOUT);
        if !has_session && !is_soon && self.pending.is_none() {
            self.attempts = REKEY_ATTEMPTS - 2;
            self.send_initiation(local, now);
        }
    }

    /// We are somebody else from now on: `remote` is the peer as `local` sees it. Sessions stay, and whoever has one gets
    /// another soon.
    pub fn set_remote(&mut self, remote: Remote, local: &mut Local, now: Instant) {
        self.remote = remote;
        self.note_restart(local, now);
    }

    /// Draws from another stream from now on.
    pub fn set_rng(&mut self, rng: Rng) {
        self.config.rng = rng;
    }

    /// The peer has restarted, so nobody opens what is sealed with the session in use: wants another at once.
    pub fn note_restart(&mut self, local: &mut Local, now: Instant) {
        if self.sessions.current().is_some() || self.pending.is_some() {
            self.attempts = 0;
            self.send_initiation(local, now);
        }
    }

    /// When the initiation was sent that waits for its response; `None` when none does.
    #[must_use]
    pub fn initiated_at(&self) -> Option<Instant> {
        self.pending.as_ref().map(|pending| pending.sent_at)
    }

    /// The peer wants a session.
    ///
    /// # Errors
    /// When the message is not a new one by this peer.
    pub fn handle_initiation(
        &mut self,
        opened: OpenedInitiation,
        local: &mut Local,
        now: Instant,
    ) -> Result<(), Rejection> {
        let verified = opened.verify(&self.remote).ok_or(Rejection::Malformed)?;
        let timestamp = verified.timestamp;
        if self.config.stamps.received.is_some_and(|last| timestamp <= last) {
            return Err(Rejection::Replayed);
        }
        if self.last_initiation_received.is_some_and(|last| now.since(last) < INITIATION_SPACING) {
            return Err(Rejection::TooSoon);
        }
        let index = local.indices.allocate(self.config.owner);
        let receiver = verified.receiver();
        let Some((response, keys)) = verified.respond(&self.remote, index, &mut self.config.rng) else {
            local.indices.release(index);
            return Err(Rejection::Malformed);
        };

        self.config.stamps.received = Some(timestamp);
        self.last_initiation_received = Some(now);
        self.activity.note_received(now);
        let session = Session::new(Role::Responder, index, receiver, &keys, now, now);
        self.outbox.push_back(Output::Receive { index, opener: Arc::clone(&session.opener) });
        let old = self.sessions.set_next(session);
        self.forget(old, local);
        self.timers.erase = Some(now + ERASE_AFTER_TIME);
        self.send_handshake(response.emit(), now);
        Ok(())
    }

    /// The peer answers an initiation.
    ///
    /// # Errors
    /// When it does not answer the newest one, or is not by this peer.
    pub fn handle_response(&mut self, response: &Response, local: &mut Local, now: Instant) -> Result<(), Rejection> {
        // Past its session's life an answer is of no use, and the repeated initiation is due long since.
        let is_awaited = |p: &&Pending| p.index == response.receiver && now.since(p.sent_at) < REJECT_AFTER_TIME;
        let pending = self.pending.as_ref().filter(is_awaited).ok_or(Rejection::Unexpected)?;
        let keys = pending.initiator.finish(&local.identity, &self.remote, response).ok_or(Rejection::Malformed)?;
        let session = Session::new(Role::Initiator, pending.index, response.sender, &keys, pending.sent_at, now);

        self.pending = None;
        self.activity.note_received(now);
        self.outbox.push_back(Output::Receive { index: session.index, opener: Arc::clone(&session.opener) });
        self.begin(session, local, now);
        // The peer may not use the session before a packet arrives on it.
        if !self.flush_queue(now) {
            self.send_keepalive(local, now);
        }
        Ok(())
    }

    /// The peer is under load and wants its cookie in the next handshake message. As the paper says (§6.6), that is
    /// sent when its time comes, not at once.
    ///
    /// # Errors
    /// When it does not answer the last handshake message.
    pub fn handle_cookie(&mut self, reply: &CookieReply, now: Instant) -> Result<(), Rejection> {
        if self.cookies.keep(&self.remote.mac_keys, reply, now) { Ok(()) } else { Err(Rejection::Unexpected) }
    }

    /// The fast path saw an edge.
    pub fn handle_edge(&mut self, edge: Edge, local: &mut Local, now: Instant) {
        match edge {
            Edge::DataSent => self.check_no_answer(local, now),
            Edge::DataReceived => self.check_keepalive(local, now),
            Edge::Confirmed => {
                self.activity.lower(Edge::Confirmed);
                if let Some(session) = self.sessions.take_confirmed() {
                    self.begin(session, local, now);
                    self.flush_queue(now);
                    if !self.queue.is_empty() {
                        // Confirmed in its last moment.
                        self.initiate(local, now);
                    }
                }
            }
            Edge::Rekey if self.sessions.current().is_some_and(|current| current.wants_rekey(now)) => {
                self.initiate(local, now);
            }
            Edge::Rekey | Edge::Moved | Edge::Unanswered => self.activity.lower(edge),
        }
    }

    /// Lets due timers act.
    pub fn handle_timeout(&mut self, local: &mut Local, now: Instant) {
        let due = |timer: &mut Option<Instant>| timer.take_if(|at| *at <= now).is_some();
        if due(&mut self.timers.erase) {
            self.erase(local);
        }
        if due(&mut self.timers.retransmit) {
            if self.attempts >= REKEY_ATTEMPTS {
                self.give_up(local, now);
            } else {
                // Planned again when we have answered an initiation meanwhile: that session may be ready in a moment.
                self.send_or_plan_initiation(local, now);
            }
        }
        if due(&mut self.timers.no_answer) {
            self.check_no_answer(local, now);
        }
        if due(&mut self.timers.keepalive) {
            self.check_keepalive(local, now);
        }
        if due(&mut self.timers.persistent) {
            self.check_persistent(local, now);
        }
    }

    /// The next thing to do.
    #[must_use]
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outbox.pop_front()
    }

    /// When `handle_timeout` is wanted next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        [
            (self.timers.retransmit, "handshake retransmit"),
            (self.timers.keepalive, "keepalive"),
            (self.timers.no_answer, "no answer to data"),
            (self.timers.persistent, "persistent keepalive"),
            (self.timers.erase, "erase keys"),
        ]
        .into_iter()
        .filter_map(|(at, why)| at.map(|at| Deadline::new(at, why)))
        .min()
    }

    /// Changes the persistent keepalive.
    pub fn set_persistent_keepalive(&mut self, interval: Option<Duration>, now: Instant) {
        self.config.persistent_keepalive = interval;
        self.timers.persistent = interval.map(|_| now);
    }

    /// Ends the tunnel: wipes all keys, drops what waited, gives all indices back.
    pub fn close(&mut self, local: &mut Local) {
        self.drop_pending(local);
        self.erase(local);
        self.timers = Timers::default();
        let packets = core::mem::take(&mut self.queue).len();
        if packets > 0 {
            self.outbox.push_back(Output::Discarded { packets });
        }
    }

    /// Whether the tunnel holds nothing but its stamps and can be dropped.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.poll_timeout().is_none() && self.outbox.is_empty()
    }

    /// How many packets wait for a session.
    #[must_use]
    pub fn queued_count(&self) -> usize {
        self.queue.len()
    }

    /// What must outlive the tunnel.
    #[must_use]
    pub fn stamps(&self) -> Stamps {
        self.config.stamps
    }

    /// The peer's key.
    #[must_use]
    pub fn peer(&self) -> NodePublic {
        self.remote.key
    }

    /// Makes a session current, unless one that overlapped with it ranks higher.
    fn begin(&mut self, session: Session, local: &mut Local, now: Instant) {
        let larger = local.identity.public() > self.remote.key;
        let rank = if larger { Role::Initiator } else { Role::Responder };
        let old = self.sessions.begin(session, rank);
        self.forget(old, local);
        self.activity.lower(Edge::Rekey);
        self.attempts = 0;
        self.timers.retransmit = None;
        self.timers.erase = Some(now + ERASE_AFTER_TIME);
        let sealer = self.sessions.current().map(|current| Arc::clone(&current.sealer));
        self.outbox.push_back(Output::Seal(sealer));
        self.outbox.push_back(Output::Established);
    }

    fn send_or_plan_initiation(&mut self, local: &mut Local, now: Instant) {
        match self.last_handshake_sent {
            Some(last) if now.since(last) < REKEY_TIMEOUT => {
                if self.timers.retransmit.is_none() {
                    self.timers.retransmit = Some(last + REKEY_TIMEOUT + self.jitter());
                }
            }
            Some(_) | None => self.send_initiation(local, now),
        }
    }

    fn send_initiation(&mut self, local: &mut Local, now: Instant) {
        self.drop_pending(local);
        let timestamp = Tai64n::after(self.config.stamps.sent, local.clock.wall_at(now));
        let index = local.indices.allocate(self.config.owner);
        let started = Initiator::start(&local.identity, &self.remote, index, timestamp, &mut self.config.rng);
        let Some((initiator, message)) = started else {
            local.indices.release(index);
            return;
        };
        self.config.stamps.sent = Some(timestamp);
        self.pending = Some(Pending { index, initiator, sent_at: now });
        self.attempts += 1;
        self.timers.retransmit = Some(now + REKEY_TIMEOUT + self.jitter());
        self.outbox.push_back(Output::Await { index });
        self.send_handshake(message.emit(), now);
    }

    fn send_handshake(&mut self, message: Vec<u8>, now: Instant) {
        let message = self.cookies.append_macs(&self.remote.mac_keys, message, now);
        self.last_handshake_sent = Some(now);
        self.activity.note_sent(now);
        self.outbox.push_back(Output::Send(message));
    }

    /// Sends a packet on the current session; false when there is none.
    fn send_data(&mut self, packet: &[u8], now: Instant) -> bool {
        let Some(current) = self.sessions.current() else { return false };
        let Some(datagram) = current.sealer.seal_to_vec(packet, self.config.mtu_bytes, now) else { return false };
        self.outbox.push_back(Output::Send(datagram));
        if packet.is_empty() {
            self.activity.note_sent(now);
        } else if self.activity.note_data_sent(now) {
            // What the fast path would have reported as a notice.
            self.arm_no_answer(now);
        }
        true
    }

    fn send_keepalive(&mut self, local: &mut Local, now: Instant) {
        let sent = self.send_data(&[], now);
        if !sent || self.sessions.current().is_some_and(|current| current.sealer.wants_rekey(now)) {
            self.initiate(local, now);
        }
    }

    /// Sends what has waited, as far as the current session allows; false when nothing was sent.
    fn flush_queue(&mut self, now: Instant) -> bool {
        let mut sent = false;
        while let Some(packet) = self.queue.pop_front() {
            if !self.send_data(&packet, now) {
                self.queue.push_front(packet);
                break;
            }
            sent = true;
        }
        sent
    }

    fn check_keepalive(&mut self, local: &mut Local, now: Instant) {
        self.activity.lower(Edge::DataReceived);
        let Some(since) = self.activity.unacknowledged_since() else { return };
        if now.since(since) >= KEEPALIVE_TIMEOUT {
            self.send_keepalive(local, now);
        } else {
            let _ = self.activity.raise(Edge::DataReceived);
            self.timers.keepalive = Some(since + KEEPALIVE_TIMEOUT);
        }
    }

    fn check_no_answer(&mut self, local: &mut Local, now: Instant) {
        self.activity.lower(Edge::DataSent);
        let Some(since) = self.activity.unanswered_since() else { return };
        if now.since(since) >= NO_ANSWER_TIMEOUT {
            self.activity.reset_unanswered();
            self.initiate(local, now);
        } else {
            let _ = self.activity.raise(Edge::DataSent);
            self.arm_no_answer(since);
        }
    }

    fn arm_no_answer(&mut self, since: Instant) {
        self.timers.no_answer = Some(since + NO_ANSWER_TIMEOUT + self.jitter());
    }

    fn check_persistent(&mut self, local: &mut Local, now: Instant) {
        let Some(interval) = self.config.persistent_keepalive else { return };
        let last = self.activity.last_sent().max(self.activity.last_received());
        let due = last.map_or(now, |last| last + interval);
        if due <= now {
            self.send_keepalive(local, now);
            self.timers.persistent = Some(now + interval);
        } else {
            self.timers.persistent = Some(due);
        }
    }

    fn give_up(&mut self, local: &mut Local, now: Instant) {
        self.drop_pending(local);
        self.attempts = 0;
        self.activity.lower(Edge::Rekey);
        self.timers.erase.get_or_insert(now + ERASE_AFTER_TIME);
        let packets = core::mem::take(&mut self.queue).len();
        self.outbox.push_back(Output::GaveUp { packets });
    }

    /// Wipes all session keys. A handshake under way goes on, it has keys of its own; one that is not repeated any more,
    /// because another session came first, is over.
    fn erase(&mut self, local: &mut Local) {
        if self.timers.retransmit.is_none() {
            self.drop_pending(local);
        }
        self.cookies = CookieJar::default();
        let old = self.sessions.clear();
        self.forget(old, local);
        self.outbox.push_back(Output::Seal(None));
    }

    fn drop_pending(&mut self, local: &mut Local) {
        if let Some(old) = self.pending.take() {
            local.indices.release(old.index);
            self.outbox.push_back(Output::Forget { index: old.index });
        }
    }

    fn forget(&mut self, sessions: impl IntoIterator<Item = Session>, local: &mut Local) {
        for session in sessions {
            local.indices.release(session.index);
            self.outbox.push_back(Output::Forget { index: session.index });
        }
    }

    fn jitter(&mut self) -> Duration {
        self.config.rng.duration_below(REKEY_TIMEOUT_JITTER)
    }
}

#[cfg(test)]
mod tests;
