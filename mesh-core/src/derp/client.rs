//! [`Client`]: one connection to a relay, as bytes in and bytes out.
//!
//! It begins where the stream speaks DERP: after the answer to the HTTP upgrade, or at once with a *fast start*, for
//! which the relay's key was found in its TLS certificate and neither side waits for the other. The relay says its key;
//! we say who we are in a box for that key; the relay answers with a box that only the owner of the key can make, and
//! the connection is *ready*. Then packets go both ways.
//!
//! A relay that is gone without a word is noticed by pings: while something was sent and nothing came back, one every
//! 2 s, and after two without any answer, 6 s after the first packet, the connection is closed. It does the same when the
//! node misses what should have come. Without traffic the relay's keepalives, one a minute, are expected.
//!
//! It never reconnects: when it says [`Output::Close`] it is done, and another one is made.

use core::{fmt, time::Duration};
use std::collections::VecDeque;

use serde::Deserialize;

use crate::{
    crypto::nacl::BoxKey,
    key::{NodePrivate, NodePublic},
    limits,
    machine::Deadline,
    rng::Rng,
    time::{Instant, earliest},
};

use super::frame::{Frame, FrameError, PACKET_BYTES, PeerGoneReason};

/// From the first byte to ready. Stock clients: 10 s for all of dialling.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Between pings while something was sent and nothing came.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// Pings without an answer after which the relay counts as gone.
const PINGS_UNANSWERED: u32 = 2;
/// Stock relays send a keepalive every 60 s; two may be lost.
const SILENCE_MAX: Duration = Duration::from_secs(150);

/// What is said first. No mesh key: an empty one would be refused.
const CLIENT_INFO: &[u8] = br#"{"version":2,"CanAckPings":true}"#;

/// How the connection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The relay says its key first.
    Slow,
    /// The relay's certificate named its key, which is held to it.
    Fast(NodePublic),
}

/// What to tell the relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Relay a packet.
    Send {
        /// For whom.
        to: NodePublic,
        /// The packet.
        packet: Vec<u8>,
    },
    /// Whether this relay is our home.
    SetHome(bool),
    /// Something should have come and did not: if nothing does, ask whether the relay is there.
    Ask,
}

/// What the relay told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The relay proved its key and took us in.
    Ready {
        /// Its key.
        server: NodePublic,
        /// How much it wants to be sent at most.
        rate: Option<Rate>,
    },
    /// A packet.
    Received {
        /// From whom; the relay vouches for it.
        from: NodePublic,
        /// The packet.
        packet: Vec<u8>,
    },
    /// A peer cannot be reached here.
    PeerGone {
        /// Who.
        peer: NodePublic,
        /// Why.
        reason: PeerGoneReason,
    },
    /// What is wrong with the connection; `None` when it is well again.
    Health(Option<String>),
    /// The relay will be away.
    Restarting {
        /// Wait this long before connecting again.
        reconnect_in: Duration,
        /// And try for this long.
        try_for: Duration,
    },
}

/// A token bucket that the relay asks its clients to keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Frame bytes a second.
    pub bytes_per_second: u64,
    /// Frame bytes at once.
    pub burst_bytes: u64,
}

/// What a connection has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Write these bytes to the stream.
    Write(Vec<u8>),
    /// Tell the node.
    Event(Event),
    /// Close the stream; nothing follows.
    Close(CloseReason),
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// What came is not DERP.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame that does not belong in the beginning of a connection.
    #[error("the relay does not begin as one")]
    Beginning,
    /// Another key than its certificate named, or one that is no key.
    #[error("the relay's key is another one")]
    Key,
    /// Its answer to our hello does not open, so it does not own its key.
    #[error("the relay's answer does not open")]
    Sealed,
    /// Not ready in time.
    #[error("the relay did not take us in within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Handshake,
    /// Nothing came for too long.
    #[error("the relay is silent")]
    Silent,
}

/// What has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientStats {
    /// Packets handed to the stream.
    pub packets_sent: u64,
    /// Packets that came.
    pub packets_received: u64,
    /// Packets dropped, the oldest first, because the relay's key was awaited.
    pub packets_dropped: u64,
    /// Packets larger than a relay takes.
    pub packets_too_large: u64,
    /// Frames skipped: unknown, or not meant for clients.
    pub frames_skipped: u64,
    /// Pings sent.
    pub pings_sent: u64,
}

/// One connection to a relay.
pub struct Client {
    key: NodePrivate,
    rng: Rng,
    now: Instant,
    state: State,
    is_home: bool,
    waiting: VecDeque<(NodePublic, Vec<u8>)>,
    buffer: Vec<u8>,
    opened_at: Instant,
    heard_at: Instant,
    /// When to ping next, as something was sent and nothing came since; and how many pings that makes.
    ping: Option<(Instant, u32)>,
    outputs: VecDeque<Output>,
    stats: ClientStats,
}

#[derive(Debug)]
enum State {
    /// The relay has not said its key.
    Opening,
    /// We said who we are.
    Greeted {
        server: NodePublic,
        shared: BoxKey,
    },
    Ready,
    Closed,
}

#[derive(Deserialize)]
struct ServerInfo {
    #[serde(default, rename = "TokenBucketBytesPerSecond")]
    bytes_per_second: u64,
    #[serde(default, rename = "TokenBucketBytesBurst")]
    burst_bytes: u64,
}

impl Client {
    /// A stream was opened.
    #[must_use]
    pub fn new(key: NodePrivate, start: Start, rng: Rng, now: Instant) -> Self {
        let mut client = Self {
            key,
            rng,
            now,
            state: State::Opening,
            is_home: false,
            waiting: VecDeque::new(),
            buffer: Vec::new(),
            opened_at: now,
            heard_at: now,
            ping: None,
            outputs: VecDeque::new(),
            stats: ClientStats::default(),
        };
        match start {
            Start::Slow => {}
            Start::Fast(server) => client.greet(server),
        }
        client
    }

    /// Bytes came from the stream.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Instant) {
        self.now = self.now.max(now);
        if matches!(self.state, State::Closed) {
            return;
        }
        self.heard_at = self.now;
        self.ping = None;
        let mut buffer = core::mem::take(&mut self.buffer);
        buffer.extend_from_slice(bytes);
        let mut read = 0;
        while !matches!(self.state, State::Closed) {
            match Frame::decode(&buffer[read..]) {
                Ok(Some((frame, length))) => {
                    read += length;
                    self.handle_frame(frame);
                }
                Ok(None) => break,
                Err(error) => self.close(error.into()),
            }
        }
        buffer.drain(..read);
        self.buffer = buffer;
    }

    /// Something is to be told to the relay.
    pub fn handle_command(&mut self, command: Command, now: Instant) {
        self.now = self.now.max(now);
        match (&self.state, command) {
            (State::Closed, _) | (State::Opening | State::Greeted { .. }, Command::Ask) => {}
            (State::Ready, Command::Ask) => self.expect_answer(),
            (State::Opening | State::Greeted { .. } | State::Ready, Command::Send { packet, .. })
                if packet.len() > PACKET_BYTES =>
            {
                self.stats.packets_too_large += 1;
            }
            (State::Opening, Command::Send { to, packet }) => {
                if self.waiting.len() >= limits::RELAY_MAILBOX {
                    self.waiting.pop_front();
                    self.stats.packets_dropped += 1;
                }
                self.waiting.push_back((to, packet));
            }
            (State::Opening, Command::SetHome(is_home)) => self.is_home = is_home,
            (State::Greeted { .. } | State::Ready, Command::Send { to, packet }) => self.send_packet(to, &packet),
            (State::Greeted { .. } | State::Ready, Command::SetHome(is_home)) => {
                if self.is_home != is_home {
                    self.is_home = is_home;
                    self.write(Frame::NotePreferred(is_home));
                }
            }
        }
    }

    /// Lets due timers act.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = self.now.max(now);
        match self.state {
            State::Opening | State::Greeted { .. } if self.opened_at + HANDSHAKE_TIMEOUT <= self.now => {
                self.close(CloseReason::Handshake);
            }
            State::Ready if self.heard_at + SILENCE_MAX <= self.now => self.close(CloseReason::Silent),
            State::Ready => {
                if let Some((at, count)) = self.ping.filter(|(at, _)| *at <= self.now) {
                    self.send_ping(at, count);
                }
            }
            State::Opening | State::Greeted { .. } | State::Closed => {}
        }
    }

    /// The next thing to do.
    #[must_use]
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is wanted next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        match self.state {
            State::Opening | State::Greeted { .. } => {
                Some(Deadline::new(self.opened_at + HANDSHAKE_TIMEOUT, "relay handshake"))
            }
            State::Ready => {
                let ping = self.ping.map(|(at, _)| Deadline::new(at, "relay ping"));
                earliest(ping, Some(Deadline::new(self.heard_at + SILENCE_MAX, "relay silence")))
            }
            State::Closed => None,
        }
    }

    /// What has happened.
    #[must_use]
    pub fn stats(&self) -> ClientStats {
        self.stats
    }

    fn handle_frame(&mut self, frame: Frame<'_>) {
        match frame {
            Frame::ServerKey(key) => self.handle_server_key(key),
            Frame::ServerInfo { sealed } => self.handle_server_info(sealed),
            _ if matches!(self.state, State::Opening) => self.close(CloseReason::Beginning),
            Frame::RecvPacket { from, packet } => {
                self.stats.packets_received += 1;
                self.say(Event::Received { from, packet: packet.to_vec() });
            }
            Frame::KeepAlive | Frame::Pong(_) => {}
            Frame::Ping(data) => self.write(Frame::Pong(data)),
            Frame::PeerGone { peer, reason } => self.say(Event::PeerGone { peer, reason }),
            Frame::Health(text) => {
                let text = String::from_utf8_lossy(text).into_owned();
                self.say(Event::Health(Some(text).filter(|text| !text.is_empty())));
            }
            Frame::Restarting { reconnect_in_ms, try_for_ms } => self.say(Event::Restarting {
                reconnect_in: Duration::from_millis(reconnect_in_ms.into()),
                try_for: Duration::from_millis(try_for_ms.into()),
            }),
            Frame::ClientInfo { .. }
            | Frame::SendPacket { .. }
            | Frame::NotePreferred(_)
            | Frame::PeerPresent { .. }
            | Frame::ForwardPacket { .. }
            | Frame::WatchConns
            | Frame::ClosePeer(_)
            | Frame::Unknown(_) => self.stats.frames_skipped += 1,
        }
    }

    fn handle_server_key(&mut self, key: NodePublic) {
        match &self.state {
            State::Opening => self.greet(key),
            State::Greeted { server, .. } if *server != key => self.close(CloseReason::Key),
            State::Greeted { .. } => {}
            State::Ready => self.stats.frames_skipped += 1,
            State::Closed => {}
        }
    }

    fn handle_server_info(&mut self, sealed: &[u8]) {
        let State::Greeted { server, shared } = &self.state else {
            if matches!(self.state, State::Opening) {
                self.close(CloseReason::Beginning);
            } else {
                self.stats.frames_skipped += 1;
            }
            return;
        };
        let opened = sealed.split_first_chunk().and_then(|(nonce, sealed)| shared.open(nonce, sealed).ok());
        let info: Option<ServerInfo> = opened.and_then(|json| serde_json::from_slice(&json).ok());
        let Some(ServerInfo { bytes_per_second, burst_bytes }) = info else { return self.close(CloseReason::Sealed) };
        let server = *server;
        self.state = State::Ready;
        let rate = (bytes_per_second > 0).then_some(Rate { bytes_per_second, burst_bytes });
        self.say(Event::Ready { server, rate });
        if self.stats.packets_sent > 0 {
            self.expect_answer();
        }
    }

    /// Says who we are, and what had to wait for that.
    fn greet(&mut self, server: NodePublic) {
        let Some(shared) = BoxKey::new(&self.key.to_bytes(), server.as_bytes()) else {
            return self.close(CloseReason::Key);
        };
        let nonce: [u8; 24] = self.rng.bytes();
        let sealed = [&nonce[..], &shared.seal(&nonce, CLIENT_INFO)].concat();
        self.state = State::Greeted { server, shared };
        self.write(Frame::ClientInfo { key: self.key.public(), sealed: &sealed });
        if self.is_home {
            self.write(Frame::NotePreferred(true));
        }
        while let Some((to, packet)) = self.waiting.pop_front() {
            self.send_packet(to, &packet);
        }
    }

    fn send_packet(&mut self, to: NodePublic, packet: &[u8]) {
        self.stats.packets_sent += 1;
        self.write(Frame::SendPacket { to, packet });
        self.expect_answer();
    }

    /// Something was sent: if nothing comes, ask.
    fn expect_answer(&mut self) {
        self.ping.get_or_insert((self.now + PING_INTERVAL, 0));
    }

    fn send_ping(&mut self, at: Instant, count: u32) {
        if count >= PINGS_UNANSWERED {
            return self.close(CloseReason::Silent);
        }
        self.ping = Some((at.max(self.now) + PING_INTERVAL, count + 1));
        self.stats.pings_sent += 1;
        let data = self.rng.bytes();
        self.write(Frame::Ping(data));
    }

    fn write(&mut self, frame: Frame<'_>) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.outputs.push_back(Output::Write(bytes));
    }

    fn say(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    fn close(&mut self, reason: CloseReason) {
        self.state = State::Closed;
        self.buffer = Vec::new();
        self.outputs.push_back(Output::Close(reason));
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("state", &self.state).field("stats", &self.stats).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
