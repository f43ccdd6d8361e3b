//! What the network map means for the rest of the node.
//!
//! [`NetMap`](crate::control::netmap::NetMap) merges; here its changes become peers, routes, relays and addresses.

use core::net::IpAddr;

use crate::{
    control::{
        netmap::Change,
        types::{MapResponse, PeerNode},
    },
    ip::prefix::Prefix,
    key::NodePublic,
    time::{Instant, WallTime},
};

use super::{CommandError, Event, Node, Output, PeerAddressing, PeerConfig, Reply, Whereabouts, table::PeerTable};

impl Node {
    /// The map is this one, whatever was before.
    pub(super) fn replace_map(&mut self, map: MapResponse, now: Instant) -> Result<Reply, CommandError> {
        self.netmap.begin_stream();
        let change = self.netmap.apply(map, self.local.clock.wall_at(now))?;
        self.apply_map(&change, now)?;
        Ok(Reply::MapApplied)
    }

    /// Makes the node what the map says now.
    pub(super) fn apply_map(&mut self, change: &Change, now: Instant) -> Result<(), CommandError> {
        for skipped in &change.skipped {
            self.outbox.push_back(Output::Event(Event::MapPartSkipped(skipped.clone())));
        }
        if change.derp_map {
            let map = self.netmap.derp_map().clone();
            self.set_derp_map(&map, now);
        }
        if !change.self_node && change.peers.is_empty() {
            if self.apply_filter(change) {
                self.plane.publish(self.fib.clone());
            }
            return Ok(());
        }
        // Before the peers: they and the rules for them are published together.
        self.apply_filter(change);
        self.apply_peers(now)
    }

    /// The same map means other peers now: time has passed, or the node is wanted to run or not.
    pub(super) fn apply_peers_of_map(&mut self, now: Instant) {
        if let Err(error) = self.apply_peers(now) {
            self.outbox.push_back(Output::Event(Event::ControlProblem(error.to_string())));
        }
    }

    /// Makes peers, addresses and routes those of the map; none while the node does not run.
    fn apply_peers(&mut self, now: Instant) -> Result<(), CommandError> {
        let (mut own, mut peers) = (Vec::new(), Vec::new());
        if let Some(node) = self.netmap.self_node().filter(|_| self.carries()) {
            // Single ones: for a network the kernel would make a route of its own.
            let addresses = node.addresses.iter().filter(|prefix| prefix.is_host());
            own.extend(addresses.map(|prefix| (prefix.address(), prefix.length())));
            let (wall, routes) = (self.control_wall(now), self.routes_taken());
            // Nobody is talked to whose key has expired, and nobody heard: neither tunnel nor way is left of before.
            let valid = self.netmap.peers().values().filter(|peer| is_valid(peer, wall));
            peers.extend(valid.map(|peer| config_of(peer, routes)));
        }
        PeerTable::check(self.local.identity.public(), &peers)?;
        self.addresses = own;
        self.set_peers(peers, now);
        self.plan_expiry(now);
        Ok(())
    }

    fn routes_taken(&self) -> Routes {
        match &self.control {
            None => Routes::All,
            Some(control) if control.prefs.accept_routes => Routes::Subnets,
            Some(_) => Routes::Addresses,
        }
    }

    /// The peer that a name means.
    pub(super) fn peer_named(&self, name: &str) -> Result<NodePublic, CommandError> {
        named(self.netmap.peers().values().map(|peer| &**peer), name).map(|peer| peer.key)
    }

    /// Why a peer is not found: a better reason where the map has it and its key has expired.
    pub(super) fn unless_expired(&self, error: CommandError, now: Instant) -> CommandError {
        let is_meant = |peer: &PeerNode| match error {
            CommandError::NoRoute(address) => peer.addresses.contains(&Prefix::host(address)),
            CommandError::UnknownPeer(key) => peer.key == key,
            _ => false,
        };
        let wall = self.control_wall(now);
        let expired = self.netmap.peers().values().find(|peer| is_meant(peer) && !is_valid(peer, wall));
        expired.map_or(error.clone(), |peer| CommandError::PeerExpired(peer.name.trim_end_matches('.').to_owned()))
    }
}

/// Which of the prefixes that the map gives a peer are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Routes {
    /// All: whoever made the map has said what it wants.
    All,
    /// All but default routes.
    Subnets,
    /// Single addresses only, which are the peer's own or of the networks that overlays use.
    Addresses,
}

impl Routes {
    fn takes(self, prefix: &Prefix, peer: &PeerNode) -> bool {
        match self {
            Self::All => true,
            Self::Subnets => prefix.length() > 0,
            Self::Addresses => prefix.is_host() && (peer.addresses.contains(prefix) || is_of_an_overlay(prefix)),
        }
    }
}

/// Whether an address is of the networks that Tailscale-compatible overlays use: 100.64.0.0/10 (RFC 6598) and
/// fd7a:115c:a1e0::/48.
fn is_of_an_overlay(prefix: &Prefix) -> bool {
    match prefix.address() {
        IpAddr::V4(v4) => v4.to_bits() >> 22 == 0x6440_0000 >> 22,
        IpAddr::V6(v6) => v6.segments()[..3] == [0xfd7a, 0x115c, 0xa1e0],
    }
}

/// The node that a name means: the whole name, with or without the dot at its end, or only its first label.
pub(super) fn named<'n>(
    nodes: impl Iterator<Item = &'n PeerNode> + Clone,
    name: &str,
) -> Result<&'n PeerNode, CommandError> {
    let wanted = name.trim_end_matches('.').to_ascii_lowercase();
    let whole = |node: &PeerNode| node.name.trim_end_matches('.').to_ascii_lowercase();
    if let Some(node) = nodes.clone().find(|node| !wanted.is_empty() && whole(node) == wanted) {
        return Ok(node);
    }
    let is_first_label = |node: &&PeerNode| whole(node).split('.').next() == Some(&wanted) && !wanted.is_empty();
    let found: Vec<_> = nodes.filter(is_first_label).collect();
    match found[..] {
        [] => Err(CommandError::UnknownName(name.to_owned())),
        [node] => Ok(node),
        [..] => {
            let names = found.into_iter().map(whole).collect();
            Err(CommandError::AmbiguousName { name: name.to_owned(), names })
        }
    }
}

/// Whether a peer's key has not expired.
fn is_valid(peer: &PeerNode, wall: WallTime) -> bool {
    !peer.expired && peer.key_expiry.is_none_or(|expiry| expiry > wall)
}

/// A peer as the map describes it.
fn config_of(peer: &PeerNode, routes: Routes) -> PeerConfig {
    let allowed_ips = peer.allowed_ips().iter().filter(|prefix| routes.takes(prefix, peer));
    let addressing = if peer.is_wire_guard_only {
        PeerAddressing::Roaming { endpoint: peer.endpoints.first().copied() }
    } else {
        PeerAddressing::Discovered(Whereabouts {
            disco_key: peer.disco_key,
            endpoints: peer.endpoints.clone(),
            home: peer.home(),
        })
    };
    PeerConfig {
        key: peer.key,
        preshared_key: None,
        allowed_ips: allowed_ips.copied().collect(),
        addressing,
        persistent_keepalive: None,
    }
}
