//! A host that runs a relay: the real machine, real DERP bytes, a line or two of HTTP before them, no TLS.

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use std::collections::BTreeMap;

use mesh_core::{
    derp::{
        Frame, RegionId,
        map::{DERP_PORT, STUN_PORT},
    },
    key::{NodePrivate, NodePublic},
    machine::{Deadline, Machine as _},
    rng::Seed,
    time::{Instant, earliest},
};
use relay::{
    Config, ConnId, Input, Output, Relay,
    admission::{Admission, Policy},
    limits,
    stats::Stats,
};

use crate::net::{NetId, Proto};

use super::{
    Effects, Outgoing,
    http::{Head, Read, Request},
    stack::{Stack, StackOutput, StreamId},
};

/// What a relay is made of.
#[derive(Debug)]
pub struct RelaySetup {
    /// The region that it is of.
    pub region: RegionId,
    /// The net that it is in.
    pub net: NetId,
    /// Its addresses there.
    pub addresses: Vec<IpAddr>,
    /// Whether it answers STUN.
    pub stun: bool,
    /// Whether it relays.
    pub derp: bool,
    /// Its key.
    pub key: NodePrivate,
    /// Where the randomness of its boots comes from.
    pub seed: Seed,
}

/// What happens to a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayChange {
    /// Its program ends: streams are reset, and new ones refused.
    Kill,
    /// Its program starts, if it does not run.
    Start,
    /// Nothing comes in or goes out any more.
    BlackHole,
    /// It is no black hole any more.
    Answer,
    /// All streams are reset; the program goes on.
    Reset,
    /// It tells its clients that it will be away.
    Drain {
        /// They should wait this long before they connect again.
        reconnect_in: Duration,
        /// And try for this long.
        try_for: Duration,
    },
}

/// A host that runs a relay.
#[derive(Debug)]
pub struct RelayHost {
    setup: RelaySetup,
    stack: Stack,
    relay: Option<Relay>,
    conns: BTreeMap<ConnId, Conn>,
    by_stream: BTreeMap<StreamId, ConnId>,
    next_conn: u64,
    boots: u64,
    is_black_hole: bool,
}

#[derive(Debug)]
struct Conn {
    stream: StreamId,
    from: SocketAddr,
    /// The request, until it is read; then the relay knows the connection.
    request: Option<Head>,
    /// What the stream had no room for.
    unsent: Vec<u8>,
}

impl RelayHost {
    /// A relay that is switched off.
    #[must_use]
    pub fn new(setup: RelaySetup) -> Self {
        let stack = Stack::new(&mut setup.seed.stream("streams", 0));
        Self {
            setup,
            stack,
            relay: None,
            conns: BTreeMap::new(),
            by_stream: BTreeMap::new(),
            next_conn: 0,
            boots: 0,
            is_black_hole: false,
        }
    }

    /// Something happens to it.
    pub fn change(&mut self, change: RelayChange, now: Instant, effects: &mut Effects) {
        match change {
            RelayChange::Start => self.start(),
            RelayChange::Kill => {
                self.relay = None;
                self.conns.clear();
                self.by_stream.clear();
                self.stack.shut_down();
            }
            RelayChange::BlackHole => self.is_black_hole = true,
            RelayChange::Answer => self.is_black_hole = false,
            RelayChange::Reset => self.stack.reset_all(),
            RelayChange::Drain { reconnect_in, try_for } => {
                if let Some(relay) = &mut self.relay {
                    relay.handle_input(Input::Restarting { reconnect_in, try_for }, now);
                }
            }
        }
        self.settle(now, effects);
    }

    fn start(&mut self) {
        if self.relay.is_some() {
            return;
        }
        let seed = self.setup.seed.child("boot", self.boots);
        self.boots += 1;
        let config = Config { key: self.setup.key.clone(), policy: Policy::Open, rate: None, seed };
        self.relay = Some(Relay::new(config));
        if self.setup.derp {
            self.stack.listen(DERP_PORT);
        }
    }

    /// A packet came.
    pub fn handle_packet(
        &mut self,
        proto: Proto,
        from: SocketAddr,
        to: SocketAddr,
        payload: &[u8],
        now: Instant,
        effects: &mut Effects,
    ) {
        match (proto, &mut self.relay) {
            (Proto::Tcp, _) => self.stack.handle_segment(from, to, payload, now),
            (Proto::Udp, Some(relay)) => relay.handle_input(Input::Datagram { from, payload }, now),
            (Proto::Udp, None) => {}
        }
        self.settle(now, effects);
    }

    /// Lets due timers act.
    pub fn handle_timeout(&mut self, now: Instant, effects: &mut Effects) {
        self.settle(now, effects);
    }

    /// When [`Self::handle_timeout`] is wanted next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        if self.is_black_hole {
            return None;
        }
        let stack = self.stack.poll_timeout().map(|at| Deadline::new(at, "stream"));
        earliest(stack, self.relay.as_ref().and_then(Relay::poll_timeout))
    }

    /// Whether a datagram to this port would be read.
    #[must_use]
    pub fn has_socket(&self, port: u16) -> bool {
        self.setup.stun && port == STUN_PORT && self.relay.is_some()
    }

    /// Whether anything comes in.
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        !self.is_black_hole
    }

    /// The net that it is in.
    #[must_use]
    pub fn net(&self) -> NetId {
        self.setup.net
    }

    /// Its addresses.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.setup.addresses
    }

    /// The region that it is of.
    #[must_use]
    pub fn region(&self) -> RegionId {
        self.setup.region
    }

    /// The key that clients see.
    #[must_use]
    pub fn public(&self) -> NodePublic {
        self.setup.key.public()
    }

    /// What the program that runs now has counted; `None` while none does.
    #[must_use]
    pub fn stats(&self) -> Option<&Stats> {
        self.relay.as_ref().map(Relay::stats)
    }

    /// Goes on until neither the streams nor the relay has anything left to say.
    fn settle(&mut self, now: Instant, effects: &mut Effects) {
        // What arrives when a timer is due does not hold it up.
        self.stack.handle_timeout(now);
        if let Some(relay) = &mut self.relay {
            relay.handle_timeout(now);
        }
        loop {
            if let Some(output) = self.stack.poll_output() {
                self.handle_stack(output, now, effects);
            } else if let Some(output) = self.relay.as_mut().and_then(Relay::poll_output) {
                self.handle_relay(output, now, effects);
            } else {
                return;
            }
        }
    }

    fn handle_stack(&mut self, output: StackOutput, now: Instant, effects: &mut Effects) {
        match output {
            StackOutput::Send { from, to, payload } => {
                self.send(Outgoing { proto: Proto::Tcp, from, to, ttl: None, payload }, effects);
            }
            StackOutput::Accepted { stream, from } => {
                let conn = ConnId(self.next_conn);
                self.next_conn += 1;
                let request = Some(Head::default());
                self.stack.set_unsent_max(stream, limits::UNSENT_BYTES as usize);
                self.conns.insert(conn, Conn { stream, from, request, unsent: Vec::new() });
                self.by_stream.insert(stream, conn);
            }
            StackOutput::Received { stream, bytes } => {
                if let Some(conn) = self.by_stream.get(&stream).copied() {
                    self.receive(conn, &bytes, now);
                }
            }
            StackOutput::Writable(stream) => {
                if let Some(conn) = self.by_stream.get(&stream).copied() {
                    self.write(conn, &[], now);
                }
            }
            StackOutput::Ended { stream, .. } => {
                if let Some(conn) = self.by_stream.remove(&stream)
                    && self.conns.remove(&conn).is_some_and(|gone| gone.request.is_none())
                {
                    self.tell(Input::Closed { conn }, now);
                }
            }
            // It connects to nobody.
            StackOutput::Connected(_) => {}
        }
    }

    /// Bytes of a connection: those of its request are ours, the others the relay's.
    fn receive(&mut self, id: ConnId, bytes: &[u8], now: Instant) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let (from, stream) = (conn.from, conn.stream);
        let Some(head) = &mut conn.request else { return self.tell(Input::Received { conn: id, bytes }, now) };
        let (request, rest) = match head.read(bytes) {
            Read::Part => return,
            Read::Whole(head, rest) => (Request::parse(&head), rest),
            Read::Nonsense => (None, Vec::new()),
        };
        conn.request = None;
        if let Some(request) = request {
            conn.unsent.extend_from_slice(request.answer());
            let taken = self.stack.write(stream, &conn.unsent, now);
            conn.unsent.drain(..taken);
        }
        match request {
            Some(Request::FastStart | Request::Upgrade) => {
                self.tell(Input::Accepted { conn: id, from }, now);
                if !rest.is_empty() {
                    self.tell(Input::Received { conn: id, bytes: &rest }, now);
                }
            }
            Some(Request::LatencyCheck) | None => {
                self.conns.remove(&id);
                self.by_stream.remove(&stream);
                self.stack.close(stream, now);
            }
        }
    }

    fn handle_relay(&mut self, output: Output, now: Instant, effects: &mut Effects) {
        match output {
            Output::Write { conn, bytes } => {
                effects.derp_frames += frames_in(&bytes);
                self.write(conn, &bytes, now);
            }
            Output::Pause { conn } => self.set_reading(conn, false),
            Output::Resume { conn } => self.set_reading(conn, true),
            Output::Close { conn, .. } => {
                if let Some(Conn { stream, .. }) = self.conns.remove(&conn) {
                    self.by_stream.remove(&stream);
                    self.stack.close(stream, now);
                }
            }
            Output::Transmit { to, payload } => {
                let own = self.setup.addresses.iter().find(|own| own.is_ipv4() == to.is_ipv4());
                if let Some(own) = own {
                    let from = SocketAddr::new(*own, STUN_PORT);
                    self.send(Outgoing { proto: Proto::Udp, from, to, ttl: None, payload }, effects);
                }
            }
            // Its policy is to ask nobody.
            Output::Admit { conn, .. } => self.tell(Input::Admitted { conn, verdict: Admission::Unreachable }, now),
        }
    }

    /// Writes what is left and `bytes`, and says so when all of it had room.
    fn write(&mut self, id: ConnId, bytes: &[u8], now: Instant) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.unsent.extend_from_slice(bytes);
        let taken = self.stack.write(conn.stream, &conn.unsent, now);
        conn.unsent.drain(..taken);
        if conn.unsent.is_empty() {
            self.tell(Input::Writable { conn: id }, now);
        }
    }

    fn set_reading(&mut self, conn: ConnId, reading: bool) {
        if let Some(conn) = self.conns.get(&conn) {
            self.stack.set_reading(conn.stream, reading);
        }
    }

    fn tell(&mut self, input: Input<'_>, now: Instant) {
        if let Some(relay) = &mut self.relay {
            relay.handle_input(input, now);
        }
    }

    fn send(&self, packet: Outgoing, effects: &mut Effects) {
        if !self.is_black_hole {
            effects.packets.push(packet);
        }
    }
}

/// Whole DERP frames in what one side writes at once.
pub(super) fn frames_in(mut bytes: &[u8]) -> u64 {
    let mut frames = 0;
    while let Ok(Some((_, length))) = Frame::decode(bytes) {
        frames += 1;
        bytes = &bytes[length..];
    }
    frames
}
