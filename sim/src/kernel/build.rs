//! Hosts from a scenario: addresses, keys and peers.

use core::net::Ipv4Addr;

use mesh_core::key::{NodePrivate, NodePublic};

use crate::{
    host::{HostId, NodeHost, NodeSetup, PeerSetup, message::Marker},
    net::Network,
    scenario::{Endpoint, PeerSpec, Scenario},
};

use super::dice::Dice;

/// The first overlay address that is given out.
const OVERLAY: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);

/// The hosts of a scenario, attached to the network and switched off.
pub(super) fn hosts(scenario: &Scenario, network: &mut Network, dice: &Dice, marker: Marker) -> Vec<NodeHost> {
    let ids = || (0..scenario.nodes.len()).map(|number| HostId(number as u32));
    let seed = |id: HostId| dice.seed("node", u64::from(id.0));
    let keys: Vec<_> = ids().map(|id| NodePrivate::generate(&mut seed(id).stream("key", 0))).collect();
    let publics: Vec<NodePublic> = keys.iter().map(NodePrivate::public).collect();
    let addresses: Vec<_> = ids().map(|id| network.attach(scenario.nodes[id.index()].net, id)).collect();
    let overlay = |id: HostId| Ipv4Addr::from_bits(OVERLAY.to_bits() + id.0);
    let peer = |spec: &PeerSpec| {
        let node = &scenario.nodes[spec.is.index()];
        let inside = addresses[spec.is.index()];
        // Neighbours know each other by their inner addresses: the NAT between them is not asked.
        let neighbours = scenario.nodes[spec.of.index()].net == node.net;
        let outer = if neighbours { inside } else { network.outer_address(node.net, inside) };
        PeerSetup {
            id: spec.is,
            key: publics[spec.is.index()],
            overlay: overlay(spec.is),
            endpoint: (spec.endpoint == Endpoint::Told).then(|| (outer, node.port).into()),
            keepalive: spec.keepalive,
        }
    };
    ids()
        .zip(keys)
        .map(|(id, key)| {
            NodeHost::new(NodeSetup {
                id,
                net: scenario.nodes[id.index()].net,
                address: addresses[id.index()],
                port: scenario.nodes[id.index()].port,
                overlay: overlay(id),
                key,
                peers: scenario.peers.iter().filter(|spec| spec.of == id).map(peer).collect(),
                seed: seed(id),
                marker,
            })
        })
        .collect()
}
