//! What the network around us means for the rest of the node: links, our own endpoints, relays.

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};

use crate::{
    dataplane::{DropReason, PeerId},
    derp::{
        DerpMap, DerpNode, RegionId,
        relays::{Network, Output as RelaysOutput},
    },
    endpoints::Output as EndpointsOutput,
    path::PathAddr,
    time::Instant,
};

use super::{LinkState, Node, Output, RelayCommand, RelayEvent, Transmit};

/// What is known of a region.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Region {
    pub(super) code: String,
    pub(super) nodes: Vec<DerpNode>,
}

/// The regions of a relay map that can be used: numbers that fit, with at least one relay.
pub(super) fn regions(map: &DerpMap) -> BTreeMap<RegionId, Region> {
    let regions = map.regions.iter().flatten();
    regions
        .filter_map(|(number, region)| {
            let (id, region) = (RegionId::new(u16::try_from(*number).ok()?)?, region.as_ref()?);
            let nodes = region.nodes.iter().flatten().filter(|node| node.derp_port().is_some());
            let nodes: Vec<_> = nodes.cloned().collect();
            let region = Region { code: region.region_code.clone(), nodes };
            (!region.nodes.is_empty()).then_some((id, region))
        })
        .collect()
}

impl Node {
    /// Sends a datagram of our own one way.
    pub(super) fn transmit(&mut self, to: PathAddr, payload: Vec<u8>, now: Instant) {
        if let PathAddr::Relay { region, .. } = to {
            if !self.regions.contains_key(&region) {
                self.drops.add(DropReason::UnknownRegion);
                return;
            }
            self.relays.note_use(region, now);
            self.drain_relays();
        }
        self.outbox.push_back(Output::Transmit(Transmit { to, ttl: None, payload }));
    }

    /// The fast path sends over the relay that a peer's packets go over now.
    pub(super) fn note_relay_use(&mut self, id: PeerId, now: Instant) {
        if let Some(region) = self.peers.get(id).and_then(|peer| peer.selection().relay()) {
            self.relays.note_use(region, now);
            self.drain_relays();
        }
    }

    /// Replaces the regions.
    pub(super) fn set_derp_map(&mut self, map: &DerpMap, now: Instant) {
        let regions = regions(map);
        let changed: BTreeSet<_> = regions
            .iter()
            .filter(|(id, region)| self.regions.get(id).is_some_and(|before| before.nodes != region.nodes))
            .map(|(id, _)| *id)
            .collect();
        self.regions = regions;
        self.relay_problems.retain(|region, _| self.regions.contains_key(region));
        self.relays.set_regions(self.regions.keys().copied().collect(), &changed, now);
        self.drain_relays();
        self.with_netcheck(now, |netcheck| netcheck.set_map(map, now));
    }

    pub(super) fn handle_relay(&mut self, event: RelayEvent, now: Instant) {
        match event {
            RelayEvent::Connected { region } => {
                self.relay_problems.remove(&region);
                self.relays.handle_connected(region, now);
                self.with_netcheck(now, |netcheck| netcheck.note_relay_heard(region, now));
                self.with_all_paths(now, |paths| {
                    if paths.selection().relay() == Some(region) {
                        paths.note_relay_connected(now);
                    }
                });
            }
            RelayEvent::Failed { region, reason } => {
                self.relay_problems.insert(region, reason);
                self.relays.handle_failed(region, now);
                self.with_netcheck(now, |netcheck| netcheck.note_relay_failed(region, now));
            }
            RelayEvent::Restarting { region, reconnect_in } => {
                self.relays.handle_restarting(region, reconnect_in, now);
            }
            RelayEvent::PeerGone { region, peer } => {
                // It may be about to connect.
                let id = self.peers.by_key(&peer);
                let is_asked_there =
                    |id: &PeerId| self.peers.get(*id).and_then(|p| p.selection().relay()) == Some(region);
                if let Some(id) = id.filter(is_asked_there) {
                    self.plan_retry(id, now);
                }
            }
            RelayEvent::Health { region, problem } => match problem {
                Some(problem) => {
                    self.relay_problems.insert(region, problem);
                }
                None => {
                    self.relay_problems.remove(&region);
                }
            },
        }
        self.drain_relays();
    }

    pub(super) fn drain_relays(&mut self) {
        while let Some(output) = self.relays.poll_output() {
            let command = match output {
                RelaysOutput::Connect(region) => {
                    let nodes = self.regions.get(&region).map(|region| region.nodes.clone()).unwrap_or_default();
                    RelayCommand::Connect { region, nodes }
                }
                RelaysOutput::Close(region) => RelayCommand::Close { region },
                RelaysOutput::TellHome { region, home } => RelayCommand::SetHome { region, home },
                RelaysOutput::Ask(region) => RelayCommand::Ask { region },
            };
            self.outbox.push_back(Output::Relay(command));
        }
    }

    /// The underlay is another one.
    pub(super) fn handle_links(&mut self, links: LinkState, now: Instant) {
        if self.links.as_ref() == Some(&links) {
            return;
        }
        let before = self.links.replace(links);
        let links = self.links.clone().unwrap_or_default();
        let has_network = links.has_network();
        self.endpoints.set_interfaces(&links.addresses, self.ports, now);
        self.drain_endpoints(now);
        self.tell_families(now);
        let is_lost = |before: &LinkState| {
            before.addresses.iter().any(|address| !links.addresses.contains(address))
                || before.has_default_v4 && !links.has_default_v4
                || before.has_default_v6 && !links.has_default_v6
        };
        if before.as_ref().is_some_and(is_lost) || !has_network {
            self.note_network_change(if has_network { Network::Up } else { Network::Down }, now);
        } else {
            self.relays.set_network(Network::Up, now);
            self.drain_relays();
        }
    }

    /// Nothing that was measured on the network counts any more.
    pub(super) fn note_network_change(&mut self, network: Network, now: Instant) {
        self.endpoints.note_network_change(now);
        self.drain_endpoints(now);
        // Connections made from an address that is gone only hang.
        self.relays.set_network(Network::Down, now);
        self.relays.set_network(network, now);
        self.drain_relays();
        self.with_all_paths(now, |paths| paths.note_network_change(now));
        self.with_netcheck(now, |netcheck| netcheck.note_network_change(now));
        self.with_session(now, |session| session.note_network_change(now));
    }

    /// Which families there are: an address, and a socket that is open.
    pub(super) fn tell_families(&mut self, now: Instant) {
        let addresses = self.links.as_ref().map(|links| links.addresses.as_slice()).unwrap_or_default();
        let v4 = self.ports.v4.is_some() && addresses.iter().any(IpAddr::is_ipv4);
        let v6 = self.ports.v6.is_some() && addresses.iter().any(is_global_v6);
        self.with_netcheck(now, |netcheck| netcheck.set_families(v4, v6, now));
    }

    pub(super) fn drain_endpoints(&mut self, now: Instant) {
        while let Some(EndpointsOutput::Changed(endpoints)) = self.endpoints.poll_output() {
            self.own_endpoints = endpoints.iter().map(|endpoint| endpoint.address).collect();
            let own = self.own_endpoints.clone();
            self.with_all_paths(now, |paths| paths.set_own_endpoints(&own, now));
            self.tell_endpoints(now);
        }
    }
}

/// Whether an IPv6 address may reach beyond its link.
fn is_global_v6(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if !v6.is_loopback() && !v6.is_unicast_link_local())
}
