//! One client's connection: greeting, admission, then frames in and frames out.
//!
//! A [`Conn`] knows its own stream and nothing about others; a packet for another client is left at that one's
//! [`Desk`], whose owner writes it when it can. The driver hands in what it read in a buffer of its own and asks for the
//! next write when the last one is through; what waits in between waits in the mailbox, where it is bounded and grows old.

#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation)]

use core::{
    task::{Context, Poll},
    time::Duration,
};
use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::{Buf, Bytes, BytesMut};
use tracing::{debug, trace};

use mesh_core::{
    crypto::nacl::BoxKey,
    derp::{
        Frame, FrameError, PeerGoneReason,
        frame::{HEADER_BYTES, PACKET_BYTES},
    },
    key::NodePublic,
    machine::Deadline,
    rng::Rng,
    time::Instant,
};

use crate::{
    admission::{Admission, Verdict},
    bucket::Bucket,
    directory::{ConnId, Desk},
    gate::Pass,
    greeting::{self, GreetingError},
    hub::{Hub, Rate},
    limits,
    mailbox::{Letter, Wake, kind_of},
    stats::{CloseReason, DropReason, Kind},
};

/// What a connection wants of its driver, besides writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnOutput {
    /// Another connection has mail. Its desk's waker, where one is set, has been woken already.
    Wake(ConnId),
    /// Ask whether this node may connect, and say so to [`Conn::handle_admission`].
    Admit(NodePublic),
    /// Close the stream; nothing more comes.
    Close(CloseReason),
}

/// One client's connection.
pub struct Conn {
    id: ConnId,
    pass: Pass,
    hub: Arc<Hub>,
    rng: Rng,
    phase: Phase,
    outputs: VecDeque<ConnOutput>,
    /// Frames of the relay itself that are not written yet.
    pending: Vec<u8>,
    /// Since when a write is under way of which nothing more has gone.
    writing_since: Option<Instant>,
    /// The newest time seen: it never runs backwards.
    now: Instant,
}

enum Phase {
    Greeting { until: Instant },
    Asking { client: NodePublic, key: Box<BoxKey>, until: Instant },
    Open(Box<Open>),
    Closed,
}

struct Open {
    desk: Arc<Desk>,
    /// Desks that got a packet from here and will be told when this client leaves.
    reached: BTreeSet<ConnId>,
    not_here: Bucket,
    rate: Bucket,
    paused_until: Option<Instant>,
    keepalive_every: Duration,
    keepalive_at: Instant,
    /// One answer at a time, so that pings cannot pile up answers.
    pong: Option<[u8; 8]>,
    home: bool,
}

/// What a frame asks for, without what it borrows.
enum Step {
    ClientInfo(NodePublic),
    Send(NodePublic),
    Ping([u8; 8]),
    Preferred(bool),
    OfRelays,
    Skip,
}

impl Conn {
    /// A connection that was just taken in. The relay speaks first.
    #[must_use]
    pub fn new(id: ConnId, pass: Pass, now: Instant) -> Self {
        let hub = Arc::clone(pass.hub());
        hub.stats.accepts.add_one();
        let rng = hub.seed.stream("conn", id.0);
        let mut pending = Vec::new();
        Frame::ServerKey(hub.public).encode(&mut pending);
        let phase = Phase::Greeting { until: now + limits::GREETING };
        Self { id, pass, hub, rng, phase, outputs: VecDeque::new(), pending, writing_since: None, now }
    }

    /// Takes whole frames off the front of `buffer`; what is left there is the beginning of the next one, or waits
    /// because the connection [is not reading](Self::is_reading).
    pub fn handle_buffer(&mut self, buffer: &mut BytesMut, now: Instant) {
        let now = self.advance(now);
        while self.is_reading() {
            let (step, length) = match Frame::decode(buffer) {
                Ok(Some((frame, length))) => (Step::of(&frame), length),
                Ok(None) => {
                    self.bound_partial(buffer.len());
                    break;
                }
                Err(error) => {
                    self.close_malformed(error);
                    break;
                }
            };
            let frame = take_frame(buffer, length);
            self.handle_frame(step, frame, now);
        }
    }

    /// Takes in whether the client may connect. Harmless when nobody asked.
    pub fn handle_admission(&mut self, admission: Admission, now: Instant) {
        let now = self.advance(now);
        let Phase::Asking { client, .. } = &self.phase else { return };
        if !self.hub.handle_admission(*client, admission, now) {
            self.close(CloseReason::Refused);
            return;
        }
        if let Phase::Asking { client, key, .. } = core::mem::replace(&mut self.phase, Phase::Closed) {
            self.open(client, &key, now);
        }
    }

    /// The stream took some of the last write and has not taken all.
    pub fn handle_progress(&mut self, now: Instant) {
        let now = self.advance(now);
        if let Some(since) = &mut self.writing_since {
            *since = now;
        }
    }

    /// The last write is through.
    pub fn handle_written(&mut self, now: Instant) {
        self.advance(now);
        self.writing_since = None;
    }

    /// The stream ended. Outputs still have to be carried out: others may have to be woken.
    pub fn handle_closed(&mut self) {
        self.leave();
    }

    /// Lets due timers act.
    pub fn handle_timeout(&mut self, now: Instant) {
        let now = self.advance(now);
        if self.writing_since.is_some_and(|since| now >= since + limits::WRITE_STALL) {
            self.close(CloseReason::Stalled);
        }
        match &mut self.phase {
            Phase::Greeting { until } if now >= *until => self.close(CloseReason::GreetingTimeout),
            Phase::Asking { until, .. } if now >= *until => self.handle_admission(Admission::Unreachable, now),
            Phase::Open(open) => {
                if open.paused_until.is_some_and(|until| now >= until) {
                    open.paused_until = None;
                }
                if now >= open.keepalive_at {
                    open.keepalive_at = now + open.keepalive_every;
                    self.hub.stats.keepalives.add_one();
                    Frame::KeepAlive.encode(&mut self.pending);
                }
            }
            Phase::Greeting { .. } | Phase::Asking { .. } | Phase::Closed => {}
        }
    }

    /// The next thing to do. Call until `None`.
    #[must_use]
    pub fn poll_output(&mut self) -> Option<ConnOutput> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] is wanted next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let stall = self.writing_since.map(|since| Deadline::new(since + limits::WRITE_STALL, "write stall"));
        let phase = match &self.phase {
            Phase::Greeting { until } => Some(Deadline::new(*until, "greeting")),
            Phase::Asking { until, .. } => Some(Deadline::new(*until, "admission")),
            Phase::Open(open) => {
                let keepalive = Deadline::new(open.keepalive_at, "keepalive");
                let resume = open.paused_until.map(|at| Deadline::new(at, "resume reading"));
                resume.into_iter().chain([keepalive]).min()
            }
            Phase::Closed => return None,
        };
        stall.into_iter().chain(phase).min()
    }

    /// Waits for mail; ready at once when there is some. Never ready before the client is in.
    pub fn poll_mail(&self, context: &mut Context<'_>) -> Poll<()> {
        match &self.phase {
            Phase::Open(open) => open.desk.poll_mail(context),
            Phase::Greeting { .. } | Phase::Asking { .. } | Phase::Closed => Poll::Pending,
        }
    }

    /// Appends the next write to `out`, at most one TLS record unless one frame is longer. Nothing when there is nothing
    /// to write. After it, [`Self::handle_written`] is owed.
    ///
    /// This copies each packet once, from where it was read: several packets in one record and one system call save
    /// far more than the copy costs.
    pub fn take_write(&mut self, out: &mut Vec<u8>, now: Instant) {
        let now = self.advance(now);
        out.append(&mut self.pending);
        if let Phase::Open(open) = &mut self.phase {
            if let Some(data) = open.pong.take() {
                self.hub.stats.sent_pong.add_one();
                Frame::Pong(data).encode(out);
            }
            open.desk.take(out, now, &self.hub.stats);
            if !out.is_empty() {
                open.keepalive_at = now + open.keepalive_every;
            }
        }
        if !out.is_empty() {
            self.writing_since = Some(now);
        }
    }

    /// Whether [`Self::take_write`] may have something.
    #[must_use]
    pub fn has_writes(&self) -> bool {
        let open = match &self.phase {
            Phase::Open(open) => open.pong.is_some() || open.desk.has_mail(),
            Phase::Greeting { .. } | Phase::Asking { .. } => false,
            Phase::Closed => return false,
        };
        open || !self.pending.is_empty()
    }

    /// Whether frames are taken now. Not while the client is asked about, and not while it is over its rate; a driver
    /// that then stops reading passes that on to the client.
    #[must_use]
    pub fn is_reading(&self) -> bool {
        match &self.phase {
            Phase::Greeting { .. } => true,
            Phase::Open(open) => open.paused_until.is_none(),
            Phase::Asking { .. } | Phase::Closed => false,
        }
    }

    /// Whether the relay is through with it.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    /// Who it is, once that is proven and allowed.
    #[must_use]
    pub fn client(&self) -> Option<NodePublic> {
        match &self.phase {
            Phase::Open(open) => Some(open.desk.key),
            Phase::Greeting { .. } | Phase::Asking { .. } | Phase::Closed => None,
        }
    }

    /// Closes for a reason that the driver found.
    pub fn close(&mut self, reason: CloseReason) {
        if self.is_closed() {
            return;
        }
        debug!(conn = self.id.0, reason = reason.label(), "closed");
        self.hub.stats.note_close(reason);
        self.leave();
        self.outputs.push_back(ConnOutput::Close(reason));
    }

    /// Tells the client that the relay will be away. No effect before it is in.
    pub fn say_restarting(&mut self, reconnect_in: Duration, try_for: Duration) {
        let millis = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
        if let Phase::Open(_) = &self.phase {
            let frame = Frame::Restarting { reconnect_in_ms: millis(reconnect_in), try_for_ms: millis(try_for) };
            frame.encode(&mut self.pending);
        }
    }

    fn handle_frame(&mut self, step: Step, frame: Bytes, now: Instant) {
        if let Phase::Greeting { .. } = self.phase {
            let Step::ClientInfo(client) = step else { return self.close(CloseReason::BadGreeting) };
            return self.greet(client, frame, now);
        }
        let Phase::Open(open) = &mut self.phase else { return };
        if open.desk.is_passed_over() {
            let wakes = self.hub.directory.note_speaking(&open.desk, &self.hub.stats);
            self.outputs.extend(wakes.into_iter().map(ConnOutput::Wake));
        }
        if let Some(rate) = self.hub.rate() {
            let charged = frame.len().saturating_sub(HEADER_BYTES).min(PACKET_BYTES + 32);
            open.paused_until = open.rate.charge(rate.time_for(charged as u64), depth(rate), now);
            if open.paused_until.is_some() {
                self.hub.stats.pauses.add_one();
            }
        }
        match step {
            Step::Send(to) => {
                let mut packet = frame;
                packet.advance(HEADER_BYTES + 32);
                self.relay(to, packet, now);
            }
            Step::Ping(data) => {
                self.hub.stats.got_ping.add_one();
                open.pong.get_or_insert(data);
            }
            Step::Preferred(home) => {
                let stats = &self.hub.stats;
                match (open.home, home) {
                    (false, true) => stats.home_moves_in.add_one(),
                    (true, false) => stats.home_moves_out.add_one(),
                    (true, true) | (false, false) => {}
                }
                open.home = home;
            }
            Step::OfRelays => self.close(CloseReason::NotAllowed),
            Step::ClientInfo(_) | Step::Skip => self.hub.stats.unknown_frames.add_one(),
        }
    }

    fn greet(&mut self, client: NodePublic, mut frame: Bytes, now: Instant) {
        frame.advance(HEADER_BYTES + 32);
        let opened = greeting::open(&self.hub.key, &client, &frame, &mut self.hub.seen());
        let key = match opened {
            Ok((_, key)) => key,
            Err(GreetingError::Malformed) => return self.close(CloseReason::BadGreeting),
            Err(GreetingError::Replayed) => return self.close(CloseReason::Replayed),
        };
        match self.hub.verdict(&client, now) {
            Verdict::Allow => self.open(client, &key, now),
            Verdict::Refuse => self.close(CloseReason::Refused),
            Verdict::Ask => {
                self.phase = Phase::Asking { client, key: Box::new(key), until: now + limits::ADMISSION };
                self.outputs.push_back(ConnOutput::Admit(client));
            }
        }
    }

    fn open(&mut self, client: NodePublic, key: &BoxKey, now: Instant) {
        debug!(conn = self.id.0, from = %self.pass.from(), ?client, "client is in");
        // Its answer goes before anything that others send it from now on: mail is written after what is pending.
        greeting::answer(key, &mut self.rng, &mut self.pending);
        self.pass.note_greeted();
        let desk = Arc::new(Desk::new(self.id, client));
        self.hub.directory.join(&desk, &self.hub.stats);
        let keepalive_every = limits::KEEPALIVE + self.rng.duration_below(limits::KEEPALIVE_JITTER);
        self.phase = Phase::Open(Box::new(Open {
            desk,
            reached: BTreeSet::new(),
            not_here: Bucket::FULL,
            rate: Bucket::FULL,
            paused_until: None,
            keepalive_every,
            keepalive_at: now + keepalive_every,
            pong: None,
            home: false,
        }));
    }

    fn relay(&mut self, to: NodePublic, packet: Bytes, now: Instant) {
        let Phase::Open(open) = &mut self.phase else { return };
        let (stats, directory) = (&self.hub.stats, &self.hub.directory);
        let (kind, length) = (kind_of(&packet), packet.len());
        if let Some(counter) = stats.packets_received.get(kind as usize) {
            counter.add_one();
        }
        stats.bytes_received.add(length);
        let Some(desk) = directory.find(&to) else {
            stats.note_drop(DropReason::UnknownDest, kind, length);
            trace!(conn = self.id.0, ?to, "nobody there");
            // Path discovery can use the news; others would find out in any case.
            if kind == Kind::Disco {
                if open.not_here.take(limits::NOT_HERE_EVERY, limits::NOT_HERE_EVERY * limits::NOT_HERE_BURST, now) {
                    stats.peer_gone_not_here.add_one();
                    open.desk.post_notice(to, PeerGoneReason::NotHere, stats);
                } else {
                    stats.notices_left_out.add_one();
                }
            }
            return;
        };
        if !open.reached.contains(&desk.id) {
            if open.reached.len() >= limits::REACHED {
                // The directory has its own bound; forgetting here costs only asking it again.
                open.reached.clear();
            }
            open.reached.insert(desk.id);
            directory.note_reached(&open.desk.key, &desk, stats);
        }
        let letter = Letter { from: open.desk.key, packet, arrived: now };
        if desk.post(letter, stats) == Wake::Needed {
            self.outputs.push_back(ConnOutput::Wake(desk.id));
        }
    }

    fn leave(&mut self) {
        if let Phase::Open(open) = core::mem::replace(&mut self.phase, Phase::Closed) {
            let wakes = self.hub.directory.leave(&open.desk, &self.hub.stats);
            self.outputs.extend(wakes.into_iter().map(ConnOutput::Wake));
        }
    }

    /// A frame that is not whole yet takes memory for as long as its sender likes.
    fn bound_partial(&mut self, bytes: usize) {
        match self.phase {
            Phase::Greeting { .. } if bytes > limits::GREETING_BYTES => self.close(CloseReason::BadGreeting),
            Phase::Open(_) if bytes > limits::PARTIAL_BYTES => self.close(CloseReason::Malformed),
            Phase::Greeting { .. } | Phase::Asking { .. } | Phase::Open(_) | Phase::Closed => {}
        }
    }

    fn close_malformed(&mut self, error: FrameError) {
        debug!(conn = self.id.0, %error, "malformed");
        self.close(CloseReason::Malformed);
    }

    fn advance(&mut self, now: Instant) -> Instant {
        self.now = self.now.max(now);
        self.now
    }
}

/// Takes a frame off the front, without the room that a long one had made for itself.
fn take_frame(buffer: &mut BytesMut, length: usize) -> Bytes {
    let frame = buffer.split_to(length).freeze();
    if length <= limits::FRAME_IN_PLACE {
        return frame;
    }
    *buffer = BytesMut::from(buffer.as_ref());
    Bytes::copy_from_slice(&frame)
}

/// What a burst is worth in time. One that no whole packet fits in would stop a client for ever.
fn depth(rate: Rate) -> Duration {
    rate.time_for(rate.burst_bytes.max((PACKET_BYTES + 32) as u64))
}

/// A driver that forgets a connection must not leave its desk behind.
impl Drop for Conn {
    fn drop(&mut self) {
        self.leave();
    }
}

impl core::fmt::Debug for Conn {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Conn({}, {:?})", self.id.0, self.client())
    }
}

impl Step {
    fn of(frame: &Frame<'_>) -> Self {
        match frame {
            Frame::ClientInfo { key, .. } => Self::ClientInfo(*key),
            Frame::SendPacket { to, .. } => Self::Send(*to),
            Frame::Ping(data) => Self::Ping(*data),
            Frame::NotePreferred(home) => Self::Preferred(*home),
            Frame::ForwardPacket { .. } | Frame::WatchConns | Frame::ClosePeer(_) => Self::OfRelays,
            Frame::ServerKey(_)
            | Frame::ServerInfo { .. }
            | Frame::RecvPacket { .. }
            | Frame::KeepAlive
            | Frame::PeerGone { .. }
            | Frame::PeerPresent { .. }
            | Frame::Pong(_)
            | Frame::Health(_)
            | Frame::Restarting { .. }
            | Frame::Unknown(_) => Self::Skip,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_keeps_no_buffer_that_grew_for_a_long_frame() {
        const ROOM: usize = limits::PARTIAL_BYTES;
        for length in [1, limits::FRAME_IN_PLACE, limits::FRAME_IN_PLACE + 1, HEADER_BYTES + 32 + PACKET_BYTES] {
            let mut buffer = BytesMut::with_capacity(ROOM);
            buffer.resize(length, 1);
            buffer.resize(length + 10, 2);
            let room = buffer.as_ptr() as usize..buffer.as_ptr() as usize + ROOM;
            let frame = take_frame(&mut buffer, length);
            assert_eq!((frame.as_ref(), buffer.as_ref()), (vec![1; length].as_slice(), [2; 10].as_slice()));
            for kept in [frame.as_ptr(), buffer.as_ptr()] {
                assert_eq!(room.contains(&(kept as usize)), length <= limits::FRAME_IN_PLACE, "{length} bytes");
            }
        }
    }
}
