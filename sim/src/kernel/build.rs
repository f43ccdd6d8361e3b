//! Hosts from a scenario: addresses, keys and peers.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::{collections::BTreeMap, sync::Arc};

use mesh_core::{
    derp::{DerpMap, DerpNode, DerpRegion},
    disco::Disco,
    key::{NodePrivate, NodePublic},
};

use crate::{
    check::PathCheck,
    host::{
        ControlHost, ControlSetup, Host, HostId, JoinSetup, NodeHost, NodeSetup, PeerSetup, RelayHost, RelaySetup,
        ResolverHost, dns::DNS_PORT, message::Marker,
    },
    net::Network,
    scenario::{CONTROL, Endpoint, PeerSpec, RelayStart, Scenario},
};

use super::dice::Dice;

/// The first overlay address that is given out.
const OVERLAY: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);

/// The hosts of a scenario, attached to the network and switched off.
pub(super) fn hosts(scenario: &Scenario, network: &mut Network, dice: &Dice, marker: Marker) -> Vec<Host> {
    let ids = || (0..scenario.nodes.len()).map(|number| HostId(number as u32));
    let seed = |id: HostId| dice.seed("node", u64::from(id.0));
    let keys: Vec<_> = ids().map(|id| NodePrivate::generate(&mut seed(id).stream("key", 0))).collect();
    let publics: Vec<NodePublic> = keys.iter().map(NodePrivate::public).collect();
    let inside: Vec<_> = ids().map(|id| network.attach(scenario.nodes[id.index()].net, id)).collect();
    let relays = relays(scenario, network, dice);
    if let Some(control) = &scenario.control {
        network.attach(control.net, scenario.control_host());
    }
    let resolver = resolver(scenario, network, &relays);
    let asked = resolver.as_ref().and_then(|resolver| resolver.addresses().first().copied());
    let derp_map = derp_map(scenario, &relays);
    let control = control(scenario, network, dice, &derp_map);
    let (control, auth_keys) = control.map_or_else(Default::default, |(control, keys)| (Some(control), keys));
    let auth_keys = Arc::new(auth_keys);
    let join = |id: HostId| {
        let spec = &scenario.nodes[id.index()];
        let (name, url, auth_key) = (spec.name.clone(), control.as_ref()?.url().clone(), spec.key.clone());
        Some(JoinSetup { name, url, auth_key, auth_keys: Arc::clone(&auth_keys) })
    };
    let certificates: BTreeMap<_, _> = scenario
        .relays
        .iter()
        .zip(&relays)
        .filter(|(spec, _)| spec.start == RelayStart::Fast)
        .map(|(spec, relay)| (spec.name.clone(), relay.public()))
        .collect();
    let by_key: BTreeMap<_, _> = publics.iter().copied().zip(ids()).collect();
    let overlay = |id: HostId| Ipv4Addr::from_bits(OVERLAY.to_bits() + id.0);
    let peer = |spec: &PeerSpec| {
        let node = &scenario.nodes[spec.is.index()];
        let inside = inside[spec.is.index()];
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
    let node = |(id, key): (HostId, NodePrivate)| {
        NodeHost::new(NodeSetup {
            id,
            net: scenario.nodes[id.index()].net,
            addresses: network.addresses(scenario.nodes[id.index()].net, id),
            derp_map: derp_map.clone(),
            resolver: asked.map(|address| SocketAddr::new(address, DNS_PORT)),
            certificates: certificates.clone(),
            by_key: by_key.clone(),
            port: scenario.nodes[id.index()].port,
            overlay: overlay(id),
            join: join(id),
            key,
            peers: scenario.peers.iter().filter(|spec| spec.of == id).map(peer).collect(),
            seed: seed(id),
            marker,
        })
    };
    let nodes: Vec<_> = ids().zip(keys).map(|node_and_key| Host::Node(Box::new(node(node_and_key)))).collect();
    let relays = relays.into_iter().map(|relay| Host::Relay(Box::new(relay)));
    let resolver = resolver.map(|resolver| Host::Resolver(Box::new(resolver)));
    let control = control.map(|control| Host::Control(Box::new(control)));
    nodes.into_iter().chain(relays).chain(resolver).chain(control).collect()
}

/// Opens what nodes say to each other about their paths.
pub(super) fn path_check(hosts: &[Host], dice: &Dice) -> PathCheck {
    let nodes = || hosts.iter().filter_map(Host::node);
    let disco = nodes().map(|node| Disco::new(node.disco_key(), dice.stream("path-check", 0)));
    let mut check = PathCheck::new(disco.collect());
    for node in nodes() {
        check.note_key(&node.public(), node.id());
    }
    check
}

fn relays(scenario: &Scenario, network: &mut Network, dice: &Dice) -> Vec<RelayHost> {
    let relay = |(number, spec): (usize, &crate::scenario::RelaySpec)| {
        let id = scenario.relay_host(number);
        network.attach(spec.net, id);
        let seed = dice.seed("relay", number as u64);
        RelayHost::new(RelaySetup {
            region: spec.region,
            net: spec.net,
            addresses: network.addresses(spec.net, id),
            stun: spec.stun,
            derp: spec.derp,
            key: NodePrivate::generate(&mut seed.stream("key", 0)),
            seed,
        })
    };
    scenario.relays.iter().enumerate().map(relay).collect()
}

fn resolver(scenario: &Scenario, network: &mut Network, relays: &[RelayHost]) -> Option<ResolverHost> {
    let spec = scenario.resolver.as_ref()?;
    let id = scenario.relay_host(scenario.relays.len());
    network.attach(spec.net, id);
    let named = scenario.relays.iter().zip(relays);
    let relays = named.map(|(spec, relay)| (spec.name.clone(), relay.addresses().to_vec()));
    let control = scenario
        .control
        .as_ref()
        .map(|spec| (CONTROL.to_owned(), network.addresses(spec.net, scenario.control_host())));
    let names = relays.chain(control).collect();
    Some(ResolverHost::new(spec.net, network.addresses(spec.net, id), names, spec.delay))
}

/// The control server, and its auth keys by name. With a resolver it is found by name, otherwise by address.
fn control(
    scenario: &Scenario,
    network: &Network,
    dice: &Dice,
    derp_map: &DerpMap,
) -> Option<(ControlHost, BTreeMap<String, String>)> {
    let spec = scenario.control.as_ref()?;
    let addresses = network.addresses(spec.net, scenario.control_host());
    let host = match (&scenario.resolver, addresses.first()) {
        (None, Some(IpAddr::V6(address))) => format!("[{address}]"),
        (None, Some(IpAddr::V4(address))) => address.to_string(),
        (Some(_), _) | (None, None) => CONTROL.to_owned(),
    };
    Some(ControlHost::new(ControlSetup {
        net: spec.net,
        addresses,
        url: format!("https://{host}").parse().expect("a name or an address"),
        derp_map: Arc::new(derp_map.clone()),
        commit: spec.commit,
        preparation: spec.preparation.clone(),
        seed: dice.seed("control", 0),
    }))
}

/// The map of a scenario's relays. With a resolver they are told by name, otherwise by address.
fn derp_map(scenario: &Scenario, relays: &[RelayHost]) -> DerpMap {
    let mut regions: BTreeMap<i64, Option<DerpRegion>> = BTreeMap::new();
    for (spec, relay) in scenario.relays.iter().zip(relays) {
        let number = i64::from(spec.region.number());
        let new = || DerpRegion {
            region_id: number,
            region_code: format!("region-{number}"),
            region_name: format!("Region {number}"),
            ..DerpRegion::default()
        };
        let region = regions.entry(number).or_insert_with(|| Some(new())).get_or_insert_with(new);
        let address = |wanted: fn(&IpAddr) -> bool| match &scenario.resolver {
            Some(_) => String::new(),
            None => relay.addresses().iter().find(|own| wanted(own)).map_or("none".to_owned(), IpAddr::to_string),
        };
        region.nodes.get_or_insert_default().push(DerpNode {
            name: spec.name.clone(),
            region_id: number,
            host_name: spec.name.clone(),
            ipv4: address(IpAddr::is_ipv4),
            ipv6: address(IpAddr::is_ipv6),
            stun_port: if spec.stun { 0 } else { -1 },
            stun_only: !spec.derp,
            ..DerpNode::default()
        });
    }
    DerpMap { regions: Some(regions), ..DerpMap::default() }
}
