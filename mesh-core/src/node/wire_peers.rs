//! Where tunnels meet the rest of the node: punts and edges go in, and [`Node::drain_tunnel`] is the only place
//! where what they say is heard.
//!
//! | a tunnel says | heard by |
//! |---|---|
//! | `Send` | outbox, to where the peer is answered |
//! | `Await`, `Receive`, `Forget` | the data plane's receivers |
//! | `Seal` | the peer's adjacency |
//! | `Established`, `GaveUp` | outbox, as events |
//! | `Discarded` | the counters |

use crate::{
    dataplane::{Addressing, DropReason, Notice, PeerId, Punt, ReceiveSession, TxState},
    path::{PathAddr, Selection, SendPath},
    time::Instant,
    wireguard::{
        Kind, Tunnel, TunnelConfig,
        cookie::Admission,
        handshake::Remote,
        message::{CookieReply, Initiation, Response},
        timers::Edge,
        tunnel::{self, Rejection},
    },
};

use super::{Event, Node, Output};

impl Node {
    pub(super) fn handle_punt(&mut self, punt: Punt, now: Instant) {
        match punt {
            Punt::Unsent { peer, packet } => self.send_packet(peer, packet, now),
            Punt::Handshake { source, datagram } => {
                if let Err(reason) = self.handle_handshake(&datagram, source, now) {
                    self.drops.add(reason);
                }
            }
            Punt::Stray { source } => self.handle_stray(source, now),
            Punt::Disco { source, datagram } => {
                if let Err(reason) = self.handle_disco(&datagram, source, now) {
                    self.drops.add(reason);
                }
            }
            Punt::Stun { source, datagram } => self.handle_stun(source, &datagram, now),
            Punt::Tsmp { peer, packet } => self.handle_tsmp(peer, &packet, now),
            Punt::EchoReply { peer, packet } => self.handle_echo_reply(peer, packet, now),
        }
    }

    pub(super) fn handle_notice(&mut self, notice: Notice, now: Instant) {
        if notice.edge == Edge::Moved {
            // Lowered first: a packet from a third address must be able to raise it again.
            if let Some(peer) = self.peers.get(notice.peer) {
                peer.adjacency.activity().lower(Edge::Moved);
            }
            if let Some(source) = notice.source {
                self.set_path(notice.peer, source);
            }
            return;
        }
        if notice.edge == Edge::Unanswered {
            self.handle_unanswered(notice.peer, now);
            return;
        }
        self.with_tunnel(notice.peer, now, |tunnel, local| tunnel.handle_edge(notice.edge, local, now));
    }

    /// Hands a packet to the peer's tunnel, which sends it or keeps it until there is a session.
    pub(super) fn send_packet(&mut self, peer: PeerId, packet: Vec<u8>, now: Instant) {
        // Before the handshake: it wants to know its way.
        self.note_activity(peer, now);
        let dropped = self.with_tunnel(peer, now, |tunnel, local| tunnel.enqueue(packet, local, now));
        if let Some(Some(_)) = dropped {
            self.drops.add(DropReason::QueueFull);
        }
    }

    /// Runs `act` on the peer's tunnel, making one when there is none, and hears what the tunnel has to say.
    pub(super) fn with_tunnel<R>(
        &mut self,
        id: PeerId,
        now: Instant,
        act: impl FnOnce(&mut Tunnel, &mut tunnel::Local) -> R,
    ) -> Option<R> {
        let (tunnel, local) = self.tunnel(id, now)?;
        let result = act(tunnel, local);
        self.drain_tunnel(id, None, now);
        Some(result)
    }

    /// Runs `act` on the peer's tunnel if it has one.
    pub(super) fn with_tunnel_if_any(
        &mut self,
        id: PeerId,
        now: Instant,
        act: impl FnOnce(&mut Tunnel, &mut tunnel::Local),
    ) {
        if self.peers.get(id).is_some_and(|peer| peer.tunnel.is_some()) {
            self.with_tunnel(id, now, act);
        }
    }

    /// The peer's tunnel, made when there is none. Whoever uses it drains it.
    fn tunnel(&mut self, id: PeerId, now: Instant) -> Option<(&mut Tunnel, &mut tunnel::Local)> {
        let peer = self.peers.get_mut(id)?;
        if peer.tunnel.is_none() {
            let preshared_key = peer.config.preshared_key.clone().unwrap_or_default();
            let Some(remote) = Remote::new(&self.local.identity, peer.config.key, preshared_key) else {
                self.drops.add(DropReason::WeakKey);
                return None;
            };
            let config = TunnelConfig {
                owner: id.number(),
                mtu_bytes: self.mtu_bytes,
                persistent_keepalive: peer.config.persistent_keepalive.filter(|interval| !interval.is_zero()),
                stamps: peer.stamps,
                rng: self.dice.split(),
            };
            let activity = peer.adjacency.activity().clone();
            peer.tunnel = Some(Box::new(Tunnel::new(config, remote, activity, now)));
        }
        Some((peer.tunnel.as_mut()?, &mut self.local))
    }

    /// Hears what a tunnel has to say, plans its next timeout, and drops it when nothing is left in it.
    fn drain_tunnel(&mut self, id: PeerId, answer_to: Option<PathAddr>, now: Instant) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Some(tunnel) = &mut peer.tunnel else { return };
        let mut payloads = Vec::new();
        let mut has_come = false;
        while let Some(output) = tunnel.poll_output() {
            match output {
                tunnel::Output::Send(payload) => payloads.push(payload),
                tunnel::Output::Await { index } => self.receivers.expect(index),
                tunnel::Output::Receive { index, opener } => {
                    let adjacency = peer.adjacency.clone();
                    self.receivers.insert(ReceiveSession { index, adjacency, opener });
                }
                tunnel::Output::Forget { index } => self.receivers.remove(index),
                tunnel::Output::Seal(sealer) => {
                    peer.sealer = sealer;
                    peer.adjacency.publish(TxState { sealer: peer.sealer.clone(), path: peer.path });
                }
                tunnel::Output::Established => {
                    peer.last_handshake = Some(now);
                    has_come |= core::mem::take(&mut peer.watch.retries) > 0;
                    (peer.watch.is_rekeyed, peer.watch.losses, peer.watch.lost_at) = (false, 0, None);
                    self.outbox.push_back(Output::Event(Event::SessionEstablished { peer: peer.config.key }));
                }
                tunnel::Output::GaveUp { packets } => {
                    peer.watch.losses = 0;
                    self.drops.add_many(DropReason::NoHandshake, packets);
                    self.outbox.push_back(Output::Event(Event::HandshakeGivenUp { peer: peer.config.key }));
                }
                tunnel::Output::Discarded { packets } => self.drops.add_many(DropReason::NoHandshake, packets),
            }
        }
        let before = core::mem::replace(&mut peer.watch.initiated_at, tunnel.initiated_at());
        let is_unanswered = before.is_some_and(|before| peer.watch.initiated_at.is_some_and(|at| at != before));
        peer.stamps = tunnel.stamps();
        if tunnel.is_idle() {
            peer.tunnel = None;
        }
        self.rearm(id);
        if has_come {
            // Its relay did not have it: it has not heard where we are.
            self.with_active_paths(id, now, |paths| paths.note_relay_connected(now));
        }
        if !payloads.is_empty() {
            self.send_payloads(id, payloads, answer_to, now);
        }
        if is_unanswered {
            self.ask_home(id, now);
        }
    }

    /// Sends what a tunnel made: the way that the peer's packets go now, and while none is known, to where it just spoke
    /// from.
    fn send_payloads(&mut self, id: PeerId, payloads: Vec<Vec<u8>>, answer_to: Option<PathAddr>, now: Instant) {
        self.note_activity(id, now);
        let Some(peer) = self.peers.get(id) else { return };
        let Some(path) = peer.path.or(answer_to.map(SendPath::new)) else {
            self.drops.add_many(DropReason::NoPath, payloads.len());
            return;
        };
        let bytes: usize = payloads.iter().map(Vec::len).sum();
        peer.adjacency.counters().add_sent(payloads.len() as u64, bytes as u64);
        for payload in payloads {
            if let Some(also) = path.also {
                self.transmit(also, payload.clone(), now);
            }
            self.transmit(path.to, payload, now);
        }
    }

    fn handle_handshake(&mut self, datagram: &[u8], source: PathAddr, now: Instant) -> Result<(), DropReason> {
        match Kind::of(datagram) {
            Some(Kind::Initiation) => {
                let message = Initiation::parse(datagram).ok_or(DropReason::MalformedHandshake)?;
                // A relay says whose it is: what a stranger sends costs a look-up and no Diffie-Hellman.
                let vouched = match source {
                    PathAddr::Relay { peer, .. } => Some(peer),
                    PathAddr::Udp(_) => None,
                };
                if vouched.is_some_and(|key| self.peers.by_key(&key).is_none()) {
                    return Err(DropReason::UnknownPeer);
                }
                self.admit(datagram, message.sender, source, now)?;
                let opened = self.local.identity.open_initiation(&message).ok_or(DropReason::MalformedHandshake)?;
                if vouched.is_some_and(|key| key != opened.peer) {
                    return Err(DropReason::UnknownPeer);
                }
                let peer = self.peers.by_key(&opened.peer).ok_or(DropReason::UnknownPeer)?;
                self.handle_authentic(peer, datagram.len(), source, now, |tunnel, local| {
                    tunnel.handle_initiation(opened, local, now)
                })
            }
            Some(Kind::Response { .. }) => {
                let message = Response::parse(datagram).ok_or(DropReason::MalformedHandshake)?;
                let peer = self.index_owner(message.receiver)?;
                self.admit(datagram, message.sender, source, now)?;
                self.handle_authentic(peer, datagram.len(), source, now, |tunnel, local| {
                    tunnel.handle_response(&message, local, now)
                })
            }
            Some(Kind::CookieReply { .. }) => {
                let message = CookieReply::parse(datagram).ok_or(DropReason::MalformedHandshake)?;
                let peer = self.index_owner(message.receiver)?;
                let tunnel = self.peers.get_mut(peer).and_then(|peer| peer.tunnel.as_mut());
                let tunnel = tunnel.ok_or(DropReason::UnexpectedResponse)?;
                tunnel.handle_cookie(&message, now).map_err(|_| DropReason::UnexpectedResponse)
            }
            Some(Kind::Transport { .. }) | None => Err(DropReason::NotWireguard),
        }
    }

    /// Hands a handshake message to a tunnel. If it is taken, it was authentic, so the peer is where it came from.
    fn handle_authentic(
        &mut self,
        id: PeerId,
        bytes: usize,
        source: PathAddr,
        now: Instant,
        act: impl FnOnce(&mut Tunnel, &mut tunnel::Local) -> Result<(), Rejection>,
    ) -> Result<(), DropReason> {
        let (tunnel, local) = self.tunnel(id, now).ok_or(DropReason::WeakKey)?;
        let result = act(tunnel, local);
        if result.is_ok() {
            // Before the tunnel is heard, because its answer goes there.
            self.set_path(id, source);
            if let Some(peer) = self.peers.get(id) {
                peer.adjacency.counters().add_received(1, bytes as u64);
            }
        }
        self.drain_tunnel(id, result.is_ok().then_some(source), now);
        result.map_err(|rejection| match rejection {
            Rejection::Malformed => DropReason::MalformedHandshake,
            Rejection::Replayed => DropReason::ReplayedHandshake,
            Rejection::TooSoon => DropReason::HandshakeTooSoon,
            Rejection::Unexpected => DropReason::UnexpectedResponse,
        })
    }

    /// Whether a handshake message is to be opened, which costs a Diffie-Hellman.
    fn admit(&mut self, message: &[u8], sender: u32, source: PathAddr, now: Instant) -> Result<(), DropReason> {
        match self.gate.admit(self.local.identity.mac_keys(), message, sender, source, now) {
            Admission::Open => Ok(()),
            Admission::RateLimited => Err(DropReason::RateLimited),
            Admission::Demand(payload) => {
                self.transmit(source, payload, now);
                Err(DropReason::CookieDemanded)
            }
        }
    }

    fn index_owner(&self, index: u32) -> Result<PeerId, DropReason> {
        self.local.indices.owner(index).map(PeerId::new).ok_or(DropReason::UnexpectedResponse)
    }

    /// The peer's last authenticated packet came from `source`.
    fn set_path(&mut self, id: PeerId, source: PathAddr) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let path = Some(SendPath::new(source));
        if peer.adjacency.addressing() == Addressing::Roaming && peer.path != path {
            peer.path = path;
            peer.publish();
            if let PathAddr::Udp(address) = source {
                let path = Selection::Direct(address);
                self.outbox.push_back(Output::Event(Event::PathChanged { peer: peer.config.key, path }));
            }
        }
    }
}
