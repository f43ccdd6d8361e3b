//! Nodes that know each other only by key: over the relay first, then directly.

#![cfg(test)]

mod support;

use std::time::Duration;

use mesh_core::{
    dataplane::{DropReason, Punt},
    derp::relays::Home,
    node::{Command, CommandId, Event, Input, PingKind, PingTarget, RelayCommand, RelayEvent, Reply},
    path::{PathAddr, Selection},
    time::Instant,
};

use support::tailnet::{DIRECT, TO_RELAY, Tailnet, key, overlay, region, underlay};

const START: Instant = Instant::from_secs(100);

#[test]
fn the_first_packet_goes_over_the_relay_and_the_rest_directly() {
    let mut net = joined();
    net.send(1, 2, 7);
    // Initiation, response, data.
    net.run_for(TO_RELAY * 2 * 3);
    assert_eq!(net.tags(2), [7]);
    net.run_for(Duration::from_millis(200));
    assert_eq!(net.selection(1, 2), Selection::Direct(underlay(2)));
    assert_eq!(net.selection(2, 1), Selection::Direct(underlay(1)));
    let relayed = net.member(1).relayed_sent;
    net.send(1, 2, 8);
    net.run_for(DIRECT);
    assert_eq!((net.tags(2), net.member(1).relayed_sent), (vec![7, 8], relayed));
}

#[test]
fn home_is_held_and_told_and_a_map_of_one_region_needs_no_measurement() {
    let mut net = Tailnet::new(1, START);
    net.hand_out_maps();
    net.run_for(TO_RELAY * 4);
    let commands: Vec<_> = net.member(1).commands.iter().map(|(_, command)| command.clone()).collect();
    let [RelayCommand::Connect { region: r, nodes }, home] = commands.as_slice() else { panic!("{commands:?}") };
    assert_eq!((*r, nodes[0].host_name.as_str()), (region(900), "relay.test"));
    assert_eq!(*home, RelayCommand::SetHome { region: region(900), home: Home::Here });
}

#[test]
fn without_udp_packets_stay_on_the_relay() {
    let mut net = joined();
    net.is_udp_open = false;
    for tag in 0..100 {
        net.send(1, 2, tag);
        net.run_for(Duration::from_millis(100));
    }
    assert_eq!(net.tags(2), (0..100).collect::<Vec<_>>());
    assert_eq!(net.selection(1, 2), Selection::Relay(region(900)));
}

#[test]
fn a_path_that_dies_under_traffic_is_left_within_three_seconds() {
    let mut net = joined();
    talk(&mut net, 20);
    assert_eq!(net.selection(1, 2), Selection::Direct(underlay(2)));
    net.is_udp_open = false;
    let cut_at = net.now;
    let mut first = None;
    for tag in 0..60 {
        net.send(1, 2, 1_000 + tag);
        net.run_for(Duration::from_millis(50));
        let last = net.member(2).delivered.last().map(|(at, _)| *at);
        first = first.or(last.filter(|at| *at > cut_at + DIRECT));
    }
    let silent = first.expect("delivered again").since(cut_at);
    assert!(silent < Duration::from_secs(3), "{silent:?}");
    net.is_udp_open = true;
    talk(&mut net, 100);
    assert_eq!(net.selection(1, 2), Selection::Direct(underlay(2)), "and back when it works again");
}

#[test]
fn an_idle_pair_sends_nothing() {
    let mut net = joined();
    talk(&mut net, 20);
    net.run_for(Duration::from_secs(60));
    let sent = [1, 2].map(|number| (net.member(number).udp_sent, net.member(number).relayed_sent));
    net.run_for(Duration::from_secs(600));
    let later = [1, 2].map(|number| (net.member(number).udp_sent, net.member(number).relayed_sent));
    assert_eq!(sent, later);
    net.send(1, 2, 77);
    net.run_for(Duration::from_millis(200));
    assert_eq!(net.tags(2).last(), Some(&77), "and it works again at once");
}

#[test]
fn a_peer_that_is_not_at_the_relay_yet_is_reached_soon_after_it_is() {
    let mut net = Tailnet::new(2, START);
    net.hand_out_map(1);
    net.run_for(Duration::from_millis(100));
    net.is_udp_open = false;
    net.send(1, 2, 7);
    net.run_for(Duration::from_secs(3));
    net.hand_out_map(2);
    net.run_for(TO_RELAY * 4 + Duration::from_millis(2_100));
    assert_eq!(net.tags(2), [7], "not after WireGuard's five seconds");
}

#[test]
fn a_handshake_from_before_the_peer_knew_us_is_tried_again_when_the_peer_speaks() {
    for (is_udp_open, longest) in [(true, 450), (false, 650)] {
        let mut net = Tailnet::new(2, START);
        net.is_udp_open = is_udp_open;
        net.hand_out_map(1);
        net.hand_out_map_of(2, &[]);
        net.run_for(TO_RELAY * 4);
        let begun_at = net.now;
        net.send(1, 2, 7);
        net.run_for(Duration::from_millis(100));
        let now = net.now;
        assert_eq!(net.member(2).node.status(now).drops.get(DropReason::UnknownPeer), 1);
        net.hand_out_map(2);
        net.run_until(begun_at + Duration::from_millis(longest));
        assert_eq!(net.tags(2), [7], "not after WireGuard's five seconds");
        let established = net.member(1).events.iter().filter(|(_, e)| matches!(e, Event::SessionEstablished { .. }));
        assert_eq!(established.count(), 1);
    }
}

/// Stock nodes: about as many as the bounds, with one packet of data a second.
#[test]
fn a_peer_that_is_away_is_not_probed_more_than_stock_nodes_would() {
    let mut net = Tailnet::new(2, START);
    net.hand_out_map(1);
    let mut talk_a_minute = |tags: core::ops::Range<u16>| {
        let before = (net.member(1).udp_sent, net.member(1).relayed_sent);
        for tag in tags {
            net.send(1, 2, tag);
            net.run_for(Duration::from_secs(1));
        }
        (net.member(1).udp_sent - before.0, net.member(1).relayed_sent - before.1)
    };
    let (first, later) = (talk_a_minute(0..60), talk_a_minute(60..120));
    assert!(first.0 <= 12 && first.1 <= 36, "{first:?}");
    assert!(later.0 <= 4 && later.1 <= 18, "{later:?}");
    net.hand_out_map(2);
    net.run_for(Duration::from_secs(7));
    assert!(!net.tags(2).is_empty());
    net.run_for(Duration::from_secs(1));
    assert_eq!(net.selection(1, 2), Selection::Direct(underlay(2)), "directly as soon as it has come");
}

#[test]
fn a_peer_that_restarted_is_talked_to_at_once() {
    let mut net = joined();
    talk(&mut net, 20);
    net.restart(2);
    net.run_for(Duration::from_millis(100));
    net.hand_out_map(1);
    net.run_for(Duration::from_millis(300));
    net.member(2).delivered.clear();
    net.send(1, 2, 99);
    net.run_for(Duration::from_millis(20));
    assert_eq!(net.tags(2), [99], "not into a dead session");
}

#[test]
fn a_restarted_node_offers_a_session_to_whoever_goes_on_with_the_one_before() {
    for is_udp_open in [true, false] {
        let mut net = joined();
        net.is_udp_open = is_udp_open;
        talk(&mut net, 20);
        // Control is away: the peer does not hear of it.
        net.restart(2);
        net.run_for(TO_RELAY * 4);
        net.member(2).delivered.clear();
        let mut answered_at = None;
        for tag in 0..10 {
            net.send(1, 2, tag);
            net.run_for(Duration::from_millis(100));
            answered_at = answered_at.or((!net.tags(2).is_empty()).then_some(tag));
        }
        assert!(answered_at.is_some_and(|tag| tag <= 2), "{answered_at:?}");
    }
}

#[test]
fn strays_of_strangers_are_not_answered_and_those_of_a_peer_that_is_away_seldom() {
    let mut net = joined();
    let stray = |net: &mut Tailnet, source| net.input(2, Input::Punt(Punt::Stray { source }));
    let sent = |net: &mut Tailnet| (net.member(2).udp_sent, net.member(2).relayed_sent);
    let before = sent(&mut net);
    for source in [PathAddr::Udp(underlay(9)), PathAddr::Relay { region: region(900), peer: key(9).public() }] {
        stray(&mut net, source);
        net.run_for(Duration::from_secs(1));
    }
    assert_eq!(sent(&mut net), before);
    // Only what comes from it is heard, nothing that is for it.
    net.is_udp_open = false;
    net.is_relay_up = false;
    let source = PathAddr::Udp(underlay(1));
    for _ in 0..600 {
        stray(&mut net, source);
        net.run_for(Duration::from_millis(100));
    }
    let after = sent(&mut net);
    assert!((2..=30).contains(&(after.1 - before.1)), "handshakes and calls: {before:?} {after:?}");
    assert!(after.0 - before.0 <= 12, "pings: {before:?} {after:?}");
}

#[test]
fn a_peer_without_traffic_of_its_own_says_where_it_is_when_it_is_called() {
    let mut net = joined();
    let ping = |kind| Command::Ping { target: PingTarget::Address(overlay(2)), kind, timeout: Duration::from_secs(1) };
    net.is_udp_open = false;
    let relayed = net.member(2).relayed_sent;
    net.input(1, Input::Command(CommandId(1), ping(PingKind::Disco)));
    net.run_for(TO_RELAY * 2);
    assert_eq!(net.member(2).relayed_sent, relayed + 2, "a pong and a call");
}

#[test]
fn pings_show_the_way_they_went() {
    let mut net = joined();
    let ping = |net: &mut Tailnet, id| {
        let command = Command::Ping {
            target: PingTarget::Address(overlay(2)),
            kind: PingKind::Disco,
            timeout: Duration::from_secs(1),
        };
        net.input(1, Input::Command(CommandId(id), command));
        net.run_for(Duration::from_secs(1));
        net.member(1).replies.pop()
    };
    let pong = |round_trip, via| {
        Ok(Reply::Pong {
            peer: key(2).public(),
            address: overlay(2),
            round_trip,
            kind: PingKind::Disco,
            via: Some(via),
        })
    };
    let relay = PathAddr::Relay { region: region(900), peer: key(2).public() };
    assert_eq!(ping(&mut net, 1), Some((CommandId(1), pong(TO_RELAY * 4, relay))));
    assert_eq!(ping(&mut net, 2), Some((CommandId(2), pong(DIRECT * 2, PathAddr::Udp(underlay(2))))));
}

#[test]
fn a_relay_that_comes_back_is_used_again() {
    let mut net = joined();
    net.is_udp_open = false;
    talk(&mut net, 5);
    net.kill_relay();
    net.run_for(Duration::from_secs(2));
    net.is_relay_up = true;
    net.run_for(Duration::from_secs(2));
    net.send(1, 2, 55);
    net.run_for(Duration::from_secs(1));
    assert_eq!(net.tags(2).last(), Some(&55));
    let problems = |net: &mut Tailnet| {
        let now = net.now;
        net.member(1).node.status(now).relays[0].problem.clone()
    };
    assert_eq!(problems(&mut net), None);
    net.input(1, Input::Relay(RelayEvent::Failed { region: region(900), reason: "its certificate is another".into() }));
    assert_eq!(problems(&mut net).as_deref(), Some("its certificate is another"));
}

#[test]
fn changes_of_the_way_are_said() {
    let mut net = joined();
    talk(&mut net, 5);
    let said: Vec<_> = net.member(1).events.iter().map(|(_, event)| event.clone()).collect();
    let direct = Event::PathChanged { peer: key(2).public(), path: Selection::Direct(underlay(2)) };
    assert_eq!(said.iter().filter(|event| **event == direct).count(), 1);
}

/// Two nodes that are connected to the relay and have their maps.
fn joined() -> Tailnet {
    let mut net = Tailnet::new(2, START);
    net.hand_out_maps();
    net.run_for(TO_RELAY * 4);
    net
}

/// Both say something to each other, ten times a second.
fn talk(net: &mut Tailnet, times: u16) {
    for tag in 0..times {
        net.send(1, 2, tag);
        net.send(2, 1, tag);
        net.run_for(Duration::from_millis(100));
    }
}
