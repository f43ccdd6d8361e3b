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
    time::Instant,
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
    fn apply_map(&mut self, change: &Change, now: Instant) -> Result<(), CommandError> {
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
        let own = self.netmap.self_node().map(|node| node.addresses.iter().map(host_in_network).collect());
        let peers: Vec<_> = self.netmap.peers().values().map(|peer| config_of(peer)).collect();
        PeerTable::check(self.local.identity.public(), &peers)?;
        self.addresses = own.unwrap_or_default();
        // Before the peers: they and the rules for them are published together.
        self.apply_filter(change);
        self.set_peers(peers, now);
        Ok(())
    }
}

/// An address of ours with the length of the network it is in. Each is one of its own, as with stock nodes.
fn host_in_network(prefix: &Prefix) -> (IpAddr, u8) {
    (prefix.address(), prefix.length())
}

/// A peer as the map describes it.
fn config_of(peer: &PeerNode) -> PeerConfig {
    let is_reachable = !peer.expired;
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
        allowed_ips: if is_reachable { peer.allowed_ips().to_vec() } else { Vec::new() },
        addressing,
        persistent_keepalive: None,
    }
}
