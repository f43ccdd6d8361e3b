//! A member of the network: owns keys, peers, tunnels and tables, and decides.
//!
//! [`Node`] is a [`Machine`]. Data packets do not pass through it: every driver holds a [`DataPlane`] handle
//! ([`Node::data_plane`]), calls [`Fib::outbound`] and [`Fib::inbound`] with its own sink, and hands what they report
//! to the node as [`Input::Punt`] and [`Input::Notice`].
//!
//! A peer is either *roaming*, as in plain WireGuard: its first endpoint comes from the configuration, and it is
//! answered where its last authenticated packet came from. Or it is *discovered*: the network map says its home relay
//! and its candidate addresses, and [`PeerPaths`](crate::path::PeerPaths) finds the way. Tunnels and paths exist only
//! for peers with traffic; an idle peer is its entry in the table and its rows among the routes.
//!
//! `wire_*.rs` is where the parts meet: `wire_peers` tunnels and packets, `wire_retry` handshakes that are tried
//! again, `wire_paths` disco and paths, `wire_net` links, own endpoints and relays, `wire_netcheck` what the network lets
//! us do, `wire_session` the conversation with control, `wire_control` the network map, `wire_filter` its packet filter. Each has the only function that consumes a part's outputs.

mod config;
mod expiry;
mod host;
mod input;
mod output;
mod ping;
mod sizes;
mod state;
mod status;
mod table;
mod timers;
mod tsmp;
mod wire_control;
mod wire_filter;
mod wire_net;
mod wire_netcheck;
mod wire_paths;
mod wire_peers;
mod wire_retry;
mod wire_session;

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use crate::{
    control::NetMap,
    dataplane::{DataPlane, DropCounts, Fib, LocalAddrs, PeerId, Receivers},
    derp::{RegionId, Relays, relays::Network},
    disco::Disco,
    endpoints::{Endpoints, LocalPorts},
    filter::FlowCounts,
    key::NodePublic,
    limits,
    machine::{Deadline, Machine},
    netcheck::Netcheck,
    rng::{Rng, Seed},
    time::{Instant, earliest},
    wireguard::{Identity, Local, cookie::Gatekeeper, index::IndexTable},
};

pub use crate::control::{AuthKey, Registration};
pub use config::{ConfigError, ControlConfig, NodeConfig, PeerAddressing, PeerConfig, Whereabouts};
pub use host::{HostConfig, SocketPlan};
pub use input::{Command, CommandId, HostEvent, Input, LinkState, PingKind, PingTarget, RelayEvent, Up};
pub use output::{CommandError, Event, FetchRequest, Output, RelayCommand, Reply, Transmit};
pub use sizes::Sizes;
pub use state::{BackendState, Prefs, SavedState};
pub use status::{ControlStatus, PathsStatus, PeerStatus, RelayStatus, Status};

use ping::{Pings, WaitingDisco};
use table::{PeerTable, TableChange};
use timers::TimerQueue;
use wire_filter::Filtering;
use wire_net::Region;
use wire_session::Control;

/// A member of the network.
#[derive(Debug)]
pub struct Node {
    local: Local,
    addresses: Vec<(IpAddr, u8)>,
    mtu_bytes: usize,
    /// What tunnels and paths draw from: each gets a stream that is split off.
    dice: Rng,
    gate: Gatekeeper,
    peers: PeerTable,
    netmap: NetMap,
    /// The conversation with a control server, where there is one.
    control: Option<Control>,
    disco: Disco,
    links: Option<LinkState>,
    ports: LocalPorts,
    netcheck: Netcheck,
    /// Who waits for a report.
    reports_wanted: Vec<CommandId>,
    endpoints: Endpoints,
    own_endpoints: Vec<SocketAddr>,
    regions: BTreeMap<RegionId, Region>,
    relays: Relays,
    /// What is wrong with a relay, for people.
    relay_problems: BTreeMap<RegionId, String>,
    fib: Fib,
    filtering: Filtering,
    receivers: Arc<Receivers>,
    plane: DataPlane,
    pings: Pings,
    /// When it is looked up next whose address a stray datagram came from.
    strays_at: Instant,
    timers: TimerQueue,
    outbox: VecDeque<Output>,
    drops: DropCounts,
    /// The newest time seen.
    now: Instant,
}

impl Node {
    /// A node with its configuration. It wants its sockets and its addresses at once.
    ///
    /// # Errors
    /// When the configuration contradicts itself or is beyond a limit.
    pub fn new(mut config: NodeConfig, now: Instant) -> Result<Self, ConfigError> {
        let saved_map = config.control.as_mut().and_then(|control| control.saved.map.take());
        let key = config.control.as_ref().map_or(config.key, |control| control.saved.node_key.clone());
        let identity = Arc::new(Identity::new(key));
        if !(576..=limits::PACKET_BYTES).contains(&config.mtu_bytes) {
            return Err(ConfigError::Mtu(config.mtu_bytes));
        }
        PeerTable::check(identity.public(), &config.peers)?;

        let seed = config.seed;
        let (disco, session) = (config.disco_key.public(), seed.child("session", 0));
        let control = config.control.as_mut().map(|control| Control::new(control, disco, session));
        let pings = Pings::new(seed.stream("ping", 0));
        let receivers = Arc::new(Receivers::new(&mut seed.stream("receivers", 0)));
        let addresses = LocalAddrs { mtu_bytes: config.mtu_bytes, ping_id: pings.id };
        let fib = Fib::new(Arc::clone(&identity), Arc::clone(&receivers), addresses);
        let mut node = Self {
            local: Local { identity, indices: IndexTable::new(seed.stream("index", 0)), clock: config.epoch },
            addresses: config.addresses,
            mtu_bytes: config.mtu_bytes,
            gate: Gatekeeper::new(seed.stream("cookie", 0)),
            disco: Disco::new(config.disco_key, seed.stream("disco", 0)),
            netcheck: Netcheck::new(seed.stream("netcheck", 0)),
            relays: Relays::new(seed.stream("relays", 0)),
            peers: PeerTable::default(),
            netmap: NetMap::new(),
            control,
            links: None,
            ports: LocalPorts::default(),
            reports_wanted: Vec::new(),
            endpoints: Endpoints::new(),
            own_endpoints: Vec::new(),
            regions: BTreeMap::new(),
            relay_problems: BTreeMap::new(),
            plane: DataPlane::new(fib.clone()),
            filtering: Filtering::new(&seed),
            fib,
            receivers,
            pings,
            strays_at: now,
            timers: TimerQueue::default(),
            outbox: VecDeque::new(),
            drops: DropCounts::default(),
            dice: seed.stream("dice", 0),
            now,
        };
        node.outbox.push_back(Output::Sockets(SocketPlan { port: config.listen_port }));
        node.set_peers(config.peers, now);
        node.start_control(saved_map, now);
        Ok(node)
    }

    /// The fast path's tables, for drivers and workers.
    #[must_use]
    pub fn data_plane(&self) -> DataPlane {
        self.plane.clone()
    }

    /// The network map.
    #[must_use]
    pub fn netmap(&self) -> &NetMap {
        &self.netmap
    }

    /// Our own candidate addresses, as peers are told.
    #[must_use]
    pub fn own_endpoints(&self) -> &[SocketAddr] {
        &self.own_endpoints
    }

    /// The region of our home relay.
    #[must_use]
    pub fn home(&self) -> Option<RegionId> {
        self.relays.home()
    }

    /// What the node looks like at `now`.
    #[must_use]
    pub fn status(&self, now: Instant) -> Status {
        Status {
            key: self.local.identity.public(),
            node: self.netmap.self_node().cloned(),
            disco_key: self.disco.public(),
            endpoints: self.endpoints.list(),
            home: self.relays.home(),
            relays: self.regions.iter().map(|(region, known)| self.relay_status(*region, known)).collect(),
            addresses: self.addresses.iter().map(|(address, _)| *address).collect(),
            peers: self.peer_statuses(now),
            drops: self.drops.clone(),
            state: self.control.as_ref().map(|control| control.state).unwrap_or_default(),
            prefs: self.control.as_ref().map(|control| control.prefs.clone()).unwrap_or_default(),
            control: self.control.as_ref().map(Control::status),
            health: self.health(now),
            users: self.netmap.users().clone(),
            magic_dns_suffix: self.netmap.self_node().map(|node| suffix(&node.name)).unwrap_or_default(),
        }
    }

    /// How a peer is reached; `None` when nobody has the key.
    #[must_use]
    pub fn paths_status(&self, key: &NodePublic, now: Instant) -> Option<PathsStatus> {
        let peer = self.peers.get(self.peers.by_key(key)?)?;
        Some(PathsStatus {
            peer: self.peer_status(peer, now),
            candidates: peer.paths.as_ref().map(|paths| paths.candidates(now)).unwrap_or_default(),
            stats: peer.paths.as_ref().map(|paths| paths.stats()).unwrap_or_default(),
        })
    }

    /// All peers, in the order of their keys; those with expired keys only as the map knows them.
    fn peer_statuses(&self, now: Instant) -> Vec<PeerStatus> {
        let mut peers: Vec<_> = self.peers.iter().map(|peer| self.peer_status(peer, now)).collect();
        let known = self.netmap.peers().values().filter(|_| self.carries());
        peers.extend(known.filter(|peer| self.peers.by_key(&peer.key).is_none()).map(PeerStatus::unreachable));
        peers.sort_unstable_by_key(|peer| peer.key);
        peers
    }

    fn peer_status(&self, peer: &table::Peer, now: Instant) -> PeerStatus {
        let (counters, activity) = (peer.adjacency.counters(), peer.adjacency.activity());
        PeerStatus {
            key: peer.config.key,
            node: self.netmap.peer_by_key(&peer.config.key).cloned(),
            allowed_ips: peer.config.allowed_ips.clone(),
            path: peer.selection(),
            relay: peer.config.addressing.whereabouts().and_then(|whereabouts| whereabouts.home),
            latency: peer.paths.as_ref().and_then(|paths| paths.latency()),
            has_session: peer.sealer.as_ref().is_some_and(|sealer| !sealer.is_spent(now)),
            last_handshake: peer.last_handshake.map(|at| self.local.clock.wall_at(at)),
            last_sent: activity.last_sent(),
            last_received: activity.last_received(),
            sent_bytes: counters.sent_bytes(),
            received_bytes: counters.received_bytes(),
        }
    }

    /// How many peers have a tunnel: those with traffic in the last minutes.
    #[must_use]
    pub fn tunnel_count(&self) -> usize {
        self.peers.iter().filter(|peer| peer.tunnel.is_some()).count()
    }

    /// How many receiver indices are in use: those of sessions and of handshakes under way.
    #[must_use]
    pub fn index_count(&self) -> usize {
        self.local.indices.len()
    }

    /// Flows for which there was no room.
    #[must_use]
    pub fn flow_counts(&self) -> FlowCounts {
        self.filtering.flow_counts()
    }

    fn relay_status(&self, region: RegionId, known: &Region) -> RelayStatus {
        RelayStatus {
            region,
            code: known.code.clone(),
            is_connected: self.relays.is_connected(region),
            problem: self.relay_problems.get(&region).cloned(),
        }
    }

    /// The host may have been copied while it slept: keys that are made from now on are no copy's.
    fn mix(&mut self, seed: &Seed) {
        self.dice.mix(seed);
        for id in self.peers.ids() {
            if let Some(tunnel) = self.peers.get_mut(id).and_then(|peer| peer.tunnel.as_mut()) {
                tunnel.set_rng(self.dice.split());
            }
        }
        if let Some(control) = &mut self.control {
            control.session.mix(seed);
        }
    }

    fn handle_host_event(&mut self, event: HostEvent, now: Instant) {
        match event {
            // Sessions that ran out while asleep are found spent by the stamps; timers that came due act now.
            HostEvent::Resumed { entropy, .. } => {
                if let Some(seed) = entropy {
                    self.mix(&seed);
                }
                self.handle_due(now);
                if self.links.is_some() {
                    self.note_network_change(Network::Up, now);
                }
            }
            HostEvent::Links(links) => self.handle_links(links, now),
            HostEvent::SocketsOpen(ports) => {
                self.ports = ports;
                let addresses = self.links.as_ref().map(|links| links.addresses.clone()).unwrap_or_default();
                self.endpoints.set_interfaces(&addresses, ports, now);
                self.drain_endpoints(now);
                self.tell_families(now);
            }
            HostEvent::SendFailed { to } => self.handle_send_failure(to, now),
            HostEvent::ClockStepped(anchor) => self.handle_clock_step(anchor, now),
        }
    }

    fn handle_command(&mut self, id: CommandId, command: Command, now: Instant) {
        let result = match command {
            Command::Ping { target, kind, timeout } => self.start_ping(id, target, kind, timeout, now).map(|()| None),
            Command::SetPeers(peers) => match PeerTable::check(self.local.identity.public(), &peers) {
                Ok(()) => {
                    self.set_peers(peers, now);
                    Ok(Some(Reply::PeersSet))
                }
                Err(error) => Err(CommandError::Config(error)),
            },
            Command::Netcheck => return self.start_report(id, now),
            Command::ReplaceMap(map) => self.replace_map(*map, now).map(Some),
            Command::Up(up) => self.up(id, *up, now).map(|()| None),
            Command::Down => self.down(now).map(Some),
            Command::Logout => self.log_out(id, now).map(|()| None),
            Command::SetPrefs(prefs) => self.set_prefs(*prefs, now).map(Some),
        };
        // Others are answered when it is known how they ended.
        if let Some(result) = result.transpose() {
            self.outbox.push_back(Output::Reply(id, result));
        }
    }

    fn start_ping(
        &mut self,
        id: CommandId,
        target: PingTarget,
        kind: PingKind,
        timeout: Duration,
        now: Instant,
    ) -> Result<(), CommandError> {
        let address = self.address_of(target).map_err(|error| self.unless_expired(error, now))?;
        let route = self.fib.routes().lookup(address);
        let peer = route.ok_or_else(|| self.unless_expired(CommandError::NoRoute(address), now))?.peer();
        let disco_peer = self.peers.get(peer).filter(|peer| peer.disco_key().is_some()).map(|peer| peer.config.key);
        if let (PingKind::Disco, Some(key)) = (kind, disco_peer) {
            if self.pings.is_full() {
                return Err(CommandError::TooManyPings);
            }
            self.note_activity(peer, now);
            let way = self.disco_way(peer).ok_or(CommandError::NoWay(key))?;
            let tx = self.pings.start_disco(WaitingDisco { command: id, peer, address, sent_at: now, timeout });
            self.send_disco_ping(peer, tx, way, now);
            return Ok(());
        }
        let source = self.addresses.iter().find(|(own, _)| own.is_ipv4() == address.is_ipv4());
        let (source, _) = source.ok_or(CommandError::NoSource(address))?;
        if self.pings.is_full() {
            return Err(CommandError::TooManyPings);
        }
        let packet = match kind {
            PingKind::Disco | PingKind::Icmp => self.pings.start(id, *source, address, timeout, now),
            PingKind::Tsmp => self.pings.start_tsmp(id, *source, address, timeout, now),
        };
        self.send_packet(peer, packet.ok_or(CommandError::NoSource(address))?, now);
        Ok(())
    }

    fn address_of(&self, target: PingTarget) -> Result<IpAddr, CommandError> {
        let key = match target {
            PingTarget::Address(address) => return Ok(address),
            PingTarget::Name(name) => self.peer_named(&name)?,
            PingTarget::Key(key) => key,
        };
        let peer = self.peers.by_key(&key).and_then(|id| self.peers.get(id)).ok_or(CommandError::UnknownPeer(key))?;
        let host = peer.config.allowed_ips.iter().find(|prefix| prefix.is_host());
        Ok(host.ok_or(CommandError::NoAddress(key))?.address())
    }

    fn handle_echo_reply(&mut self, id: PeerId, packet: Vec<u8>, now: Instant) {
        match self.pings.finish(&packet, now) {
            Some(ended) => self.reply_pong(id, ended, PingKind::Icmp, None),
            // Another program on this host happens to use our identifier.
            None => self.outbox.push_back(Output::TunWrite(packet)),
        }
    }

    /// Makes the peers those of `configs`, which have been checked.
    fn set_peers(&mut self, configs: Vec<PeerConfig>, now: Instant) {
        let change = self.peers.apply(configs);
        self.publish_routes(&change);
        for mut peer in change.removed {
            if let Some(tunnel) = &mut peer.tunnel {
                tunnel.close(&mut self.local);
                while let Some(output) = tunnel.poll_output() {
                    if let crate::wireguard::tunnel::Output::Forget { index } = output {
                        self.receivers.remove(index);
                    }
                }
            }
            self.timers.set(peer.id, None);
        }
        for key in &change.disco_removed {
            self.fib.disco_keys().remove(key);
            self.disco.forget(key);
        }
        for key in &change.disco_added {
            self.fib.disco_keys().insert(*key);
        }
        for id in change.moved {
            let whereabouts = self.peers.get(id).and_then(|peer| peer.config.addressing.whereabouts()).cloned();
            if let Some(Whereabouts { endpoints, home, .. }) = whereabouts {
                self.with_active_paths(id, now, |paths| paths.set_endpoints(&endpoints, home, now));
            }
        }
        for id in change.restarted {
            // Its sessions went with it.
            self.with_active_paths(id, now, |paths| paths.note_restart(now));
            self.with_tunnel_if_any(id, now, |tunnel, local| tunnel.note_restart(local, now));
        }
        for id in change.rekeyed {
            if self.peers.get(id).is_some_and(|peer| peer.tunnel.is_some()) {
                self.with_tunnel(id, now, |tunnel, local| tunnel.close(local));
            }
        }
        for id in change.added.into_iter().chain(change.keepalive_changed) {
            let Some(peer) = self.peers.get(id) else { continue };
            let interval = peer.config.persistent_keepalive.filter(|interval| !interval.is_zero());
            if interval.is_some() || peer.tunnel.is_some() {
                self.with_tunnel(id, now, |tunnel, local| {
                    tunnel.set_persistent_keepalive(interval, now);
                    tunnel.handle_timeout(local, now);
                });
            }
        }
        self.outbox.push_back(Output::Configure(HostConfig {
            mtu_bytes: self.mtu_bytes,
            addresses: self.addresses.clone(),
            routes: self.peers.prefixes().collect(),
        }));
    }

    /// Publishes a new snapshot that shares all unchanged rows with the one before.
    fn publish_routes(&mut self, change: &TableChange) {
        for prefix in &change.routes_removed {
            self.fib.routes_mut().remove(*prefix);
        }
        for (prefix, id) in &change.routes_set {
            if let Some(peer) = self.peers.get(*id) {
                self.fib.routes_mut().insert(*prefix, Arc::clone(&peer.adjacency));
            }
        }
        self.plane.publish(self.fib.clone());
    }

    fn handle_due(&mut self, now: Instant) {
        while let Some(id) = self.timers.pop_due(now) {
            self.with_tunnel_if_any(id, now, |tunnel, local| tunnel.handle_timeout(local, now));
            self.handle_retries_due(id, now);
            self.handle_paths_due(id, now);
            self.rearm(id);
        }
        if self.relays.poll_timeout().is_some_and(|deadline| deadline.at <= now) {
            self.relays.handle_timeout(now);
            self.drain_relays();
        }
        if self.netcheck.poll_timeout().is_some_and(|deadline| deadline.at <= now) {
            self.with_netcheck(now, |netcheck| netcheck.handle_timeout(now));
        }
        if self.endpoints.poll_timeout().is_some_and(|deadline| deadline.at <= now) {
            self.endpoints.handle_timeout(now);
            self.drain_endpoints(now);
        }
        self.handle_control_due(now);
        while let Some(ended) = self.pings.pop_timed_out(now) {
            let error = CommandError::TimedOut { address: ended.address, waited: ended.elapsed };
            self.outbox.push_back(Output::Reply(ended.command, Err(error)));
        }
    }

    /// Time never runs backwards inside.
    fn advance(&mut self, now: Instant) -> Instant {
        self.now = self.now.max(now);
        self.now
    }
}

/// What a name in the tailnet ends in after its first label, without dots at its ends.
fn suffix(name: &str) -> String {
    name.trim_end_matches('.').split_once('.').map(|(_, suffix)| suffix.to_owned()).unwrap_or_default()
}

impl Machine for Node {
    type Input<'a> = Input;
    type Output = Output;

    fn handle_input(&mut self, input: Input, now: Instant) {
        let now = self.advance(now);
        match input {
            Input::Punt(punt) => self.handle_punt(punt, now),
            Input::Notice(notice) => self.handle_notice(notice, now),
            Input::Relay(event) => self.handle_relay(event, now),
            Input::Control(event) => self.handle_control(event, now),
            Input::Fetched(id, result) => self.handle_fetched(id, result, now),
            Input::Resolved { host, result } => self.handle_resolved(&host, result, now),
            Input::Host(event) => self.handle_host_event(event, now),
            Input::Command(id, command) => self.handle_command(id, command, now),
        }
        self.handle_due(now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        let now = self.advance(now);
        self.handle_due(now);
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.outbox.pop_front()
    }

    fn poll_timeout(&self) -> Option<Deadline> {
        let others = [
            self.pings.poll_timeout(),
            self.relays.poll_timeout(),
            self.endpoints.poll_timeout(),
            self.netcheck.poll_timeout(),
            self.control_deadline(self.now),
        ];
        others.into_iter().fold(self.timers.next(), earliest)
    }
}
