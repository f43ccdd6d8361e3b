//! What disco packets and paths mean for the rest of the node.
//!
//! Of peers that are found by disco, one with traffic in the last minutes has a [`PeerPaths`]. It learns here that there
//! is traffic, what the peer's disco messages say, and what our own endpoints are; what it says is sealed and sent, and
//! the way that it selects is published for the fast path.

use core::{net::SocketAddr, time::Duration};

use tracing::trace;

use crate::{
    dataplane::{DropReason, PeerId},
    disco::{Message, OpenError, Ping, Pong, TxId},
    key::{DiscoPublic, NodePublic},
    path::{Opening, Output as PathsOutput, PathAddr, PathsConfig, PeerPaths, Reach, Selection, Via},
    time::Instant,
    wireguard::timers::Edge,
};

use super::{Event, Node, Output, PeerAddressing, PingKind, Transmit, table::Peer};

/// Routers that a datagram passes which is to open our own NAT and not to reach the peer's.
const OPENER_TTL: u8 = 3;
/// Data that is unanswered for this long makes us look at the path before the next heartbeat.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Paths that were not used for this long are dropped.
const IDLE_FOR: Duration = Duration::from_secs(120);

impl Node {
    /// Runs `act` on the peer's paths, making them when there are none, and hears what they have to say. `None` for
    /// peers that are not found by disco.
    pub(super) fn with_paths<R>(
        &mut self,
        id: PeerId,
        now: Instant,
        act: impl FnOnce(&mut PeerPaths) -> R,
    ) -> Option<R> {
        let result = act(self.paths(id, now)?);
        self.drain_paths(id, now);
        Some(result)
    }

    /// Runs `act` on the peer's paths if it has any.
    pub(super) fn with_active_paths(&mut self, id: PeerId, now: Instant, act: impl FnOnce(&mut PeerPaths)) {
        if let Some(paths) = self.peers.get_mut(id).and_then(|peer| peer.paths.as_mut()) {
            act(paths);
            self.drain_paths(id, now);
        }
    }

    /// Runs `act` on the paths of all peers that have any.
    pub(super) fn with_all_paths(&mut self, now: Instant, mut act: impl FnMut(&mut PeerPaths)) {
        for id in self.peers.ids() {
            self.with_active_paths(id, now, &mut act);
        }
    }

    fn paths(&mut self, id: PeerId, now: Instant) -> Option<&mut PeerPaths> {
        let peer = self.peers.get_mut(id)?;
        let PeerAddressing::Discovered(whereabouts) = &peer.config.addressing else { return None };
        peer.watch.idle_at = Some(now + IDLE_FOR);
        if peer.paths.is_none() {
            let rng = self.dice.split();
            let config = PathsConfig { node: self.local.identity.public(), opening: Opening::Plain };
            let mut paths = Box::new(PeerPaths::new(config, rng));
            // Without a disco key no ping could be sealed: the relay is all there is.
            let endpoints = if whereabouts.disco_key.is_some() { whereabouts.endpoints.as_slice() } else { &[] };
            paths.set_endpoints(endpoints, whereabouts.home, now);
            paths.set_own_endpoints(&self.own_endpoints, now);
            peer.paths = Some(paths);
        }
        peer.paths.as_deref_mut()
    }

    fn drain_paths(&mut self, id: PeerId, now: Instant) {
        let mut selected = None;
        let mut is_calling = false;
        while let Some(peer) = self.peers.get_mut(id)
            && let Some(output) = peer.paths.as_mut().and_then(|paths| paths.poll_output())
        {
            match output {
                PathsOutput::Send { via, message, reach } => {
                    is_calling |= matches!(message, Message::CallMeMaybe(_));
                    let (key, disco_key) = (peer.config.key, peer.disco_key());
                    if let Some(disco_key) = disco_key {
                        self.send_disco(key, disco_key, via, &message, reach, now);
                    }
                }
                PathsOutput::Selected(selection) => selected = Some(selection),
            }
        }
        if let Some(selection) = selected {
            self.select(id, selection, now);
        }
        // What the peer was told may be of yesterday; when it is, it is told anew.
        if is_calling && !self.endpoints.is_fresh(now) {
            self.with_netcheck(now, |netcheck| netcheck.refresh(now));
        }
        self.rearm(id);
    }

    /// From now on the peer's packets go another way.
    fn select(&mut self, id: PeerId, selection: Selection, now: Instant) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let (key, path) = (peer.config.key, selection.send_path(peer.config.key));
        let before = core::mem::replace(&mut peer.path, path);
        if before != path {
            peer.publish();
            self.outbox.push_back(Output::Event(Event::PathChanged { peer: key, path: selection }));
        }
        let is_better = before.map(|path| path.to) != path.map(|path| path.to) && path.is_some();
        if matches!(selection, Selection::Both { .. }) && before.is_some_and(|before| before.also.is_none()) {
            // A path that is silent may mean that our own address is another one.
            self.with_netcheck(now, |netcheck| netcheck.refresh(now));
        }
        if is_better {
            self.note_better_way(id, before.is_none(), now);
        }
    }

    fn send_disco(
        &mut self,
        peer: NodePublic,
        disco_key: DiscoPublic,
        via: Via,
        message: &Message,
        reach: Reach,
        now: Instant,
    ) {
        let Some(payload) = self.disco.seal(disco_key, message) else {
            self.drops.add(DropReason::WeakKey);
            return;
        };
        trace!(?peer, ?via, ?message, "disco sent");
        match via {
            Via::Direct(address) => {
                let ttl = match reach {
                    Reach::Peer => None,
                    Reach::Opener => Some(OPENER_TTL),
                };
                self.outbox.push_back(Output::Transmit(Transmit { to: PathAddr::Udp(address), ttl, payload }));
            }
            Via::Relay(region) => self.transmit(PathAddr::Relay { region, peer }, payload, now),
        }
    }

    /// A disco packet by a key that a peer has, or had a moment ago.
    pub(super) fn handle_disco(&mut self, packet: &[u8], source: PathAddr, now: Instant) -> Result<(), DropReason> {
        let (sender, message) = self.disco.open(packet).map_err(|error| match error {
            OpenError::NotDisco | OpenError::Sealed => DropReason::SealedDisco,
            OpenError::Message(_) => DropReason::MalformedDisco,
        })?;
        trace!(?sender, ?source, ?message, "disco received");
        if let PathAddr::Relay { region, .. } = source {
            self.with_netcheck(now, |netcheck| netcheck.note_relay_heard(region, now));
        }
        let owners: Vec<_> = match source {
            PathAddr::Udp(_) => self.peers.by_disco(&sender).collect(),
            // The relay vouches for the node key.
            PathAddr::Relay { peer, .. } => {
                let id = self.peers.by_key(&peer);
                self.peers.by_disco(&sender).filter(|owner| Some(*owner) == id).collect()
            }
        };
        let via = match source {
            PathAddr::Udp(address) => Via::Direct(address),
            PathAddr::Relay { region, .. } => Via::Relay(region),
        };
        match message {
            Message::Ping(ping) => {
                let id = self.pinger(&owners, &ping).ok_or(DropReason::ForeignDisco)?;
                self.note_heard(id);
                self.with_paths(id, now, |paths| paths.handle_ping(&ping, via, now));
            }
            Message::Pong(pong) => {
                if owners.is_empty() {
                    return Err(DropReason::ForeignDisco);
                }
                self.handle_pong(&owners, &pong, source, via, now);
            }
            Message::CallMeMaybe(endpoints) => {
                let ([id], Via::Relay(_)) = (owners.as_slice(), via) else { return Err(DropReason::ForeignDisco) };
                self.note_heard(*id);
                self.with_paths(*id, now, |paths| paths.handle_call_me_maybe(&endpoints, now));
            }
            Message::PeerRelay(_) => return Err(DropReason::UnusedDisco),
        }
        Ok(())
    }

    /// Whose ping it is: the node key in it says so where several nodes share a disco key.
    fn pinger(&self, owners: &[PeerId], ping: &Ping) -> Option<PeerId> {
        match (ping.node, owners) {
            (Some(node), owners) => self.peers.by_key(&node).filter(|id| owners.contains(id)),
            (None, [id]) => Some(*id),
            (None, _) => None,
        }
    }

    fn handle_pong(&mut self, owners: &[PeerId], pong: &Pong, source: PathAddr, via: Via, now: Instant) {
        if let [id] = owners {
            self.note_heard(*id);
        }
        if let Some((peer, ended)) = self.pings.finish_disco(pong.tx, owners, now) {
            return self.reply_pong(peer, ended, PingKind::Disco, Some(source));
        }
        for id in owners {
            self.with_active_paths(*id, now, |paths| paths.handle_pong(pong, via, now));
        }
    }

    /// Packets for the peer were sent, or want to be.
    pub(super) fn note_activity(&mut self, id: PeerId, now: Instant) {
        if self.with_paths(id, now, |paths| paths.note_activity(now)).is_some() {
            self.note_relay_use(id, now);
            self.with_netcheck(now, |netcheck| netcheck.note_active(now));
        }
    }

    /// Data was sent and no answer to earlier data was awaited.
    pub(super) fn handle_unanswered(&mut self, id: PeerId, now: Instant) {
        self.note_activity(id, now);
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.watch.answer_at = Some(now + ANSWER_WITHIN);
        self.rearm(id);
    }

    /// Lets what is due at a peer's paths act.
    pub(super) fn handle_paths_due(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.watch.answer_at.take_if(|at| *at <= now).is_some() {
            self.check_answer(id, now);
        }
        let Some(peer) = self.peers.get_mut(id) else { return };
        let last_sent = peer.adjacency.activity().last_sent();
        if let Some(paths) = &mut peer.paths
            && paths.poll_timeout().is_some_and(|deadline| deadline.at <= now)
        {
            if let Some(at) = last_sent
                && paths.note_sent(at)
            {
                peer.watch.idle_at = Some(at + IDLE_FOR);
                self.note_relay_use(id, now);
                self.with_netcheck(now, |netcheck| netcheck.note_active(now));
            }
            self.with_active_paths(id, now, |paths| paths.handle_timeout(now));
        }
        self.drop_idle_paths(id, now);
    }

    /// Looks whether data was answered. The edge is lowered first, so that none is lost.
    fn check_answer(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let activity = peer.adjacency.activity();
        activity.lower(Edge::Unanswered);
        let Some(since) = activity.unanswered_since() else { return };
        let _ = activity.raise(Edge::Unanswered);
        if now.since(since) < ANSWER_WITHIN {
            peer.watch.answer_at = Some(since + ANSWER_WITHIN);
            return;
        }
        peer.watch.answer_at = Some(now + ANSWER_WITHIN);
        self.with_active_paths(id, now, |paths| paths.note_silence(now));
        if let Some(region) = self.peers.get(id).and_then(|peer| peer.selection().relay()) {
            self.with_netcheck(now, |netcheck| netcheck.note_relay_silent(region, now));
        }
        self.ask_home(id, now);
        self.note_relay_use(id, now);
    }

    /// The peer does not answer what it is sent over a relay. It may have, and our home did not bring it.
    pub(super) fn ask_home(&mut self, id: PeerId, now: Instant) {
        if let Some(region) = self.peers.get(id).and_then(|peer| peer.selection().relay()) {
            self.relays.note_silence(region, now);
            self.drain_relays();
        }
    }

    /// Drops paths that nothing was sent on for long, and that hold nothing.
    fn drop_idle_paths(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.watch.idle_at.is_none_or(|at| at > now) {
            return;
        }
        let is_idle = peer.tunnel.is_none() && peer.paths.as_ref().is_none_or(|paths| paths.poll_timeout().is_none());
        peer.watch.idle_at = (!is_idle).then(|| now + IDLE_FOR);
        if is_idle && peer.selection().direct().is_none() {
            peer.paths = None;
        }
    }

    /// When anything of the peer is due next.
    pub(super) fn rearm(&mut self, id: PeerId) {
        self.timers.set(id, self.peers.get(id).and_then(Peer::poll_timeout));
    }

    /// The way that a ping of the user's takes: what is in use now.
    pub(super) fn disco_way(&self, id: PeerId) -> Option<(DiscoPublic, Via)> {
        let peer = self.peers.get(id)?;
        let via = match peer.selection() {
            Selection::Direct(address) => Via::Direct(address),
            Selection::Relay(region) | Selection::Both { relay: region, .. } => Via::Relay(region),
            Selection::Nowhere => return None,
        };
        Some((peer.disco_key()?, via))
    }

    /// Sends a ping of the user's.
    pub(super) fn send_disco_ping(&mut self, id: PeerId, tx: TxId, (disco_key, via): (DiscoPublic, Via), now: Instant) {
        let Some(key) = self.peers.get(id).map(|peer| peer.config.key) else { return };
        let ping = Ping { tx, node: Some(self.local.identity.public()), padding_bytes: 0 };
        self.send_disco(key, disco_key, via, &Message::Ping(ping), Reach::Peer, now);
    }

    /// The operating system refused to send to an address.
    pub(super) fn handle_send_failure(&mut self, to: SocketAddr, now: Instant) {
        self.with_netcheck(now, |netcheck| netcheck.note_send_failure(to, now));
        for id in self.peers.ids() {
            if self.peers.get(id).is_some_and(|peer| peer.selection().direct() == Some(to)) {
                self.with_active_paths(id, now, |paths| paths.note_send_failure(to, now));
            }
        }
    }
}
