//! A node with a network map lets in what the map says, from the moment that it is told.

mod support;

use std::{sync::Arc, time::Duration};

use mesh_core::{
    control::types::{CapGrant, CapMap, FilterRule, MapResponse, NetPortRange, PortRange},
    dataplane::{DropReason, Inbound, ReportBuffer},
    filter::{Content, Explanation, Headers, Ports, Refusal},
    ip::packet::protocol,
    node::{Command, CommandId, Input, Reply},
    path::PathAddr,
    time::Instant,
};
use support::{
    packet,
    tailnet::{Tailnet, derp_map, overlay, underlay},
};

/// Tags of packets, which all go to port 7.
const PORT: u16 = 7;

#[test]
fn a_map_without_rules_lets_nothing_in_and_answers_come() {
    let mut net = Tailnet::new(2, Instant::from_secs(1));
    hand_out(&mut net, 1, Some(vec![FilterRule::allow_all()]));
    hand_out(&mut net, 2, None);
    net.send(1, 2, 1);
    net.run_for(Duration::from_secs(3));
    assert!(net.tags(2).is_empty());
    assert_eq!(net.drops(2, DropReason::FilterDenied), 1);

    // From port 7 to port 7: what comes back is of the same flow.
    net.send(2, 1, 2);
    net.run_for(Duration::from_secs(3));
    net.send(1, 2, 3);
    net.run_for(Duration::from_secs(3));
    assert_eq!((net.tags(1), net.tags(2)), (vec![2], vec![3]));
}

#[test]
fn a_rule_counts_from_the_map_that_has_it_to_the_map_that_has_it_not() {
    let mut net = Tailnet::new(2, Instant::from_secs(1));
    let rule = FilterRule {
        src_ips: vec!["cap:x".to_owned()],
        dst_ports: vec![NetPortRange { ip: "*".to_owned(), bits: None, ports: PortRange { first: PORT, last: PORT } }],
        ..FilterRule::default()
    };
    net.hand_out_map(1);
    for (rules, tag, arrives) in [(vec![], 1, false), (vec![rule], 2, true), (vec![], 3, false)] {
        hand_out(&mut net, 2, Some(rules));
        net.member(2).delivered.clear();
        net.send(1, 2, tag);
        net.run_for(Duration::from_secs(3));
        assert_eq!(net.tags(2), if arrives { vec![tag] } else { vec![] });
    }
    let ports = Ports { source: PORT, destination: PORT };
    let (source, destination) = (overlay(1), overlay(2));
    let headers = Headers { source, destination, protocol: protocol::UDP, content: Content::Datagram(ports) };
    let now = net.now;
    let explained = net.member(2).node.explain_filter(&headers, now);
    assert_eq!(explained, Some(Explanation::Refused(Refusal::Denied)));
}

#[test]
fn grants_open_nothing_and_say_what_a_peer_may_do() {
    let mut net = Tailnet::new(2, Instant::from_secs(1));
    let grant = CapGrant {
        dsts: vec!["10.0.0.2/32".parse().expect("a prefix")],
        cap_map: CapMap([("x.org/cap".to_owned(), vec![])].into()),
        ..CapGrant::default()
    };
    let rule = FilterRule { src_ips: vec!["10.0.0.1".to_owned()], cap_grant: vec![grant], ..FilterRule::default() };
    net.hand_out_map(1);
    hand_out(&mut net, 2, Some(vec![rule]));
    net.send(1, 2, 1);
    net.run_for(Duration::from_secs(3));
    assert!(net.tags(2).is_empty());
    assert!(net.member(2).node.capabilities_of(overlay(1)).has("x.org/cap"));
    assert!(net.member(2).node.capabilities_of(overlay(3)).is_empty());
}

#[test]
fn packets_that_come_together_are_judged_each_by_its_own_flow() {
    let mut net = Tailnet::new(2, Instant::from_secs(1));
    let ports = PortRange { first: PORT, last: PORT };
    let rule = FilterRule {
        src_ips: vec!["*".to_owned()],
        dst_ports: vec![NetPortRange { ip: "*".to_owned(), bits: None, ports }],
        ..FilterRule::default()
    };
    hand_out(&mut net, 1, Some(vec![]));
    hand_out(&mut net, 2, Some(vec![rule]));
    net.send(1, 2, 1);
    net.run_for(Duration::from_secs(3));
    assert_eq!(net.tags(2), [1], "there is a session");

    // A run of one flow that a rule lets in, and one that none does.
    let sent = [(50, PORT), (50, PORT + 1), (50, PORT)].map(|(from, to)| datagram(1, 2, from, to));
    assert_eq!(carry(&mut net, 1, 2, &sent), [true, false, true]);
    // What answers the two flows of one run comes in, both.
    let sent = [(60, PORT), (61, PORT)].map(|(from, to)| datagram(1, 2, from, to));
    assert_eq!(carry(&mut net, 1, 2, &sent), [true, true]);
    let answers = [(PORT, 61), (PORT, 60), (PORT, 62)].map(|(from, to)| datagram(2, 1, from, to));
    assert_eq!(carry(&mut net, 2, 1, &answers), [true, true, false]);
}

fn datagram(from: u8, to: u8, source: u16, destination: u16) -> Vec<u8> {
    let [s, d] = [source, destination].map(u16::to_be_bytes);
    packet(from, to, &[s[0], s[1], d[0], d[1], 0, 8, 0, 0])
}

/// Carries packets in one run, and says which reached the host.
fn carry(net: &mut Tailnet, from: u8, to: u8, packets: &[Vec<u8>]) -> Vec<bool> {
    let (now, mut sealed, mut reports) = (net.now, Vec::new(), ReportBuffer::default());
    let packets = packets.iter().map(Vec::as_slice);
    net.member(from).plane.fib().outbound(packets, now, &mut sealed, &mut reports);
    let fib = net.member(to).plane.fib();
    let mut run = fib.inbound(now);
    let source = PathAddr::Udp(underlay(from));
    let is_in = |(_, mut datagram): (_, Vec<u8>)| {
        matches!(run.handle(&mut datagram, source, &mut reports), Inbound::Deliver { .. })
    };
    sealed.into_iter().map(is_in).collect()
}

/// Hands a node a map of both with these rules. The other has the capability `x`.
fn hand_out(net: &mut Tailnet, number: u8, rules: Option<Vec<FilterRule>>) {
    let [own, other] = [number, 3 - number].map(|number| net.member(number).describe());
    let mut peer = other;
    peer.cap_map = CapMap([("x".to_owned(), vec![])].into());
    let map = MapResponse {
        node: Some(Arc::new(own)),
        peers: vec![Arc::new(peer)],
        derp_map: Some(derp_map()),
        packet_filter: rules,
        ..MapResponse::default()
    };
    net.input(number, Input::Command(CommandId(0), Command::ReplaceMap(Box::new(map))));
    assert_eq!(net.member(number).replies.pop(), Some((CommandId(0), Ok(Reply::MapApplied))));
}
