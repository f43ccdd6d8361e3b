//! Where the network map meets the packet filter.
//!
//! A node without a map has no filter: whoever configured its peers by hand has said whom it trusts. A node with a map
//! always has one, and a map without rules admits nothing.

use core::net::IpAddr;
use std::sync::Arc;

use crate::{
    control::{
        PacketFilter,
        netmap::{Change, Skipped},
        packet_filter::Grant,
        types::{CapMap, PeerNode},
    },
    filter::{Explanation, Filter, FlowCounts, FlowPool, Headers},
    ip::set::{IpSet, Span},
    rng::Seed,
    time::Instant,
};

use super::{Event, Node, Output};

/// What the node keeps of the map's packet filter, beside the [`Filter`] that it publishes.
#[derive(Debug)]
pub(super) struct Filtering {
    /// One for all filters that come and go.
    pool: Arc<FlowPool>,
    grants: Vec<Grant>,
    /// Whether the rules change with the peers.
    names_capabilities: bool,
}

impl Filtering {
    pub(super) fn new(seed: &Seed) -> Self {
        let pool = Arc::new(FlowPool::new(&mut seed.stream("flows", 0)));
        Self { pool, grants: Vec::new(), names_capabilities: false }
    }

    pub(super) fn flow_counts(&self) -> FlowCounts {
        self.pool.counts()
    }
}

impl Node {
    /// Makes the filter that of the map, if `change` means another one; whether it does. It counts when the tables are
    /// published next.
    pub(super) fn apply_filter(&mut self, change: &Change) -> bool {
        let with_peers = self.filtering.names_capabilities && !change.peers.is_empty();
        if self.fib.filter().is_some() && !change.filters && !change.self_node && !with_peers {
            return false;
        }
        let read = PacketFilter::of(&self.netmap);
        let local = self.netmap.self_node().map(|node| local_addresses(node)).unwrap_or_default();
        let filter = Filter::new(read.rules, local, Arc::clone(&self.filtering.pool));
        let left_out = Some(filter.left_out()).filter(|count| *count > 0).map(Skipped::Destinations);
        for skipped in read.skipped.into_iter().chain(left_out) {
            self.outbox.push_back(Output::Event(Event::MapPartSkipped(skipped)));
        }
        self.filtering.grants = read.grants;
        self.filtering.names_capabilities = read.names_capabilities;
        self.fib.set_filter(Arc::new(filter));
        true
    }

    /// What the peer with the address `source` may do at this node besides opening ports, by the map's grants. As with
    /// stock nodes, what counts is the node's first address of the same family. For services of the node itself, of which
    /// there is none yet.
    #[must_use]
    pub fn capabilities_of(&self, source: IpAddr) -> CapMap {
        let own = self.addresses.iter().map(|(address, _)| *address).find(|own| own.is_ipv4() == source.is_ipv4());
        own.map(|own| PacketFilter::capabilities(&self.filtering.grants, source, own)).unwrap_or_default()
    }

    /// What would become of a packet with these headers, and why; `None` while there is no filter. Replies count for the
    /// peer that has the source address. For tests, and for whoever wants to know why.
    #[must_use]
    pub fn explain_filter(&self, headers: &Headers, now: Instant) -> Option<Explanation> {
        let flows = self.fib.routes().lookup(headers.source).map(|adjacency| adjacency.flows());
        let filter = self.fib.filter()?;
        Some(match flows {
            Some(flows) => filter.explain(headers, flows, now),
            None => filter.explain(headers, &Default::default(), now),
        })
    }
}

/// The node's own addresses and what is routed to it. Default routes are left out: this node is nobody's way to the
/// internet, whatever a map says.
fn local_addresses(node: &PeerNode) -> IpSet {
    let prefixes = node.addresses.iter().chain(node.allowed_ips());
    prefixes.filter(|prefix| prefix.length() > 0).copied().map(Span::from).collect()
}
