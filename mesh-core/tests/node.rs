//! Two nodes end to end: what users of WireGuard expect, by the public verbs alone.

mod support;

use std::time::Duration;

use mesh_core::{
    dataplane::{DropReason, Inbound, Punt, ReportBuffer},
    derp::RegionId,
    key::NodePublic,
    limits,
    machine::Machine,
    node::{Command, CommandError, CommandId, ConfigError, Event, Input, Node, Output, PingKind, PingTarget, Reply},
    path::PathAddr,
    time::{Instant, WallAnchor},
};
use support::{EPOCH, Pair, address, config, packet, peer, private};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_first_packet_makes_a_session_and_is_not_lost() {
    let mut pair = Pair::new();
    let ping = packet(1, 2, b"ping");
    pair.a.send(&ping, pair.now);
    pair.settle();
    assert_eq!(pair.b.delivered, [ping]);
    assert_eq!((pair.a.sessions_established(), pair.b.sessions_established()), (1, 1));
    assert_eq!((pair.carried_of_type(1), pair.carried_of_type(2), pair.carried_of_type(4)), (1, 1, 1));
}

#[test]
fn packets_keep_their_order_and_the_queue_drops_the_oldest() {
    let mut pair = Pair::new();
    let packets: Vec<_> = (0..40).map(|n| packet(1, 2, &[n])).collect();
    for packet in &packets {
        pair.a.send(packet, pair.now);
    }
    pair.settle();
    let lost = packets.len() - limits::QUEUED_PACKETS_PER_PEER;
    assert_eq!(pair.b.delivered, packets[lost..]);
    assert_eq!(pair.a.node.status(pair.now).drops.get(DropReason::QueueFull), lost as u64);
}

#[test]
fn data_that_is_not_answered_gets_a_keepalive_after_ten_seconds() {
    let mut pair = established();
    pair.a.send(&packet(1, 2, b"x"), pair.now);
    pair.run_for(9 * SECOND);
    assert_eq!(pair.carried.last().unwrap().0, pair.a.key);
    pair.run_for(2 * SECOND);
    let (from, keepalive) = pair.carried.last().unwrap();
    assert_eq!((*from, keepalive.len()), (pair.b.key, 32));
    let carried = pair.carried.len();
    pair.run_for(60 * SECOND);
    assert_eq!(pair.carried.len(), carried, "a keepalive is not answered");
}

#[test]
fn an_answer_in_time_needs_no_keepalive() {
    let mut pair = established();
    pair.carried.clear();
    pair.a.send(&packet(1, 2, b"x"), pair.now);
    pair.run_for(SECOND);
    pair.b.send(&packet(2, 1, b"y"), pair.now);
    pair.run_for(10 * SECOND);
    let keepalives = pair.carried.iter().filter(|(_, d)| d[0] == 4 && d.len() == 32).count();
    // A's, because it received data last.
    assert_eq!(keepalives, 1);
}

#[test]
fn silence_for_fifteen_seconds_starts_over() {
    let mut pair = established();
    pair.a.send(&packet(1, 2, b"x"), pair.now);
    pair.a.sent.clear();
    pair.run_for(15 * SECOND);
    assert_eq!(pair.carried_of_type(1), 1);
    pair.run_for(SECOND);
    assert_eq!(pair.carried_of_type(1), 2);
    assert_eq!(pair.a.sessions_established(), 2);
}

#[test]
fn an_initiator_rekeys_after_two_minutes_without_losing_a_packet() {
    let mut pair = established();
    for second in 0..400u32 {
        pair.a.send(&packet(1, 2, &second.to_be_bytes()), pair.now);
        pair.b.send(&packet(2, 1, &second.to_be_bytes()), pair.now);
        pair.run_for(SECOND);
    }
    assert_eq!((pair.a.delivered.len(), pair.b.delivered.len()), (400, 401));
    // At 0, 120, 240 and 360 seconds.
    assert_eq!((pair.a.sessions_established(), pair.carried_of_type(1)), (4, 4));
}

#[test]
fn who_only_receives_on_a_session_that_it_began_rekeys_at_165_seconds() {
    let mut pair = established();
    for _ in 0..170 {
        pair.b.send(&packet(2, 1, b"x"), pair.now);
        pair.run_for(SECOND);
    }
    // A's passive keepalives count as sending at 120 s; without them the 165 s rule would be needed.
    assert_eq!(pair.a.sessions_established(), 2);
}

#[test]
fn a_session_whose_response_was_long_on_its_way_is_not_sealed_with_for_longer_than_it_is_opened() {
    let mut pair = Pair::new();
    pair.a.send(&packet(1, 2, b"first"), pair.now);
    let initiation = pair.a.sent.pop_front().unwrap().1;
    pair.b.receive(initiation, pair.a.address, pair.now);
    let response = pair.b.sent.pop_front().unwrap().1;
    // A sleeps, and the response is the first thing that it sees.
    pair.now += 145 * SECOND;
    pair.a.receive(response, pair.b.address, pair.now);
    for second in 0..60u8 {
        pair.a.send(&packet(1, 2, &[second]), pair.now);
        pair.run_for(SECOND);
    }
    assert_eq!(pair.b.delivered.len(), 61);
    assert_eq!(pair.b.drops.total(), 0);
}

#[test]
fn a_response_that_comes_when_its_session_is_over_is_refused_and_the_packet_waits_on() {
    let mut pair = Pair::new();
    pair.a.send(&packet(1, 2, b"first"), pair.now);
    let initiation = pair.a.sent.pop_front().unwrap().1;
    pair.b.receive(initiation, pair.a.address, pair.now);
    let response = pair.b.sent.pop_front().unwrap().1;
    pair.now += 181 * SECOND;
    pair.a.receive(response, pair.b.address, pair.now);
    assert_eq!(pair.a.node.status(pair.now).drops.get(DropReason::UnexpectedResponse), 1);
    pair.settle();
    assert_eq!(pair.b.delivered, [packet(1, 2, b"first")]);
}

#[test]
fn both_beginning_at_once_ends_with_one_session_used_by_both() {
    let mut pair = Pair::new();
    pair.a.send(&packet(1, 2, b"a"), pair.now);
    pair.b.send(&packet(2, 1, b"b"), pair.now);
    let (to_b, to_a) = (pair.a.sent.pop_front().unwrap().1, pair.b.sent.pop_front().unwrap().1);
    pair.b.receive(to_b, pair.a.address, pair.now);
    pair.a.receive(to_a, pair.b.address, pair.now);
    pair.settle();
    assert_eq!((pair.a.delivered.len(), pair.b.delivered.len()), (1, 1));

    // From now on both seal for the session begun by the larger key, so its initiator will rekey in time.
    pair.carried.clear();
    for _ in 0..130 {
        pair.a.send(&packet(1, 2, b"a"), pair.now);
        pair.b.send(&packet(2, 1, b"b"), pair.now);
        pair.run_for(SECOND);
    }
    assert_eq!((pair.a.delivered.len(), pair.b.delivered.len()), (131, 131));
    assert_eq!(pair.carried_of_type(1), 1, "exactly one end rekeys");
    let initiator = &pair.carried.iter().find(|(_, d)| d[0] == 1).unwrap().0;
    assert_eq!(*initiator, pair.a.key.max(pair.b.key));
}

#[test]
fn a_handshake_without_answer_is_given_up_after_twenty_initiations() {
    let mut pair = Pair::new();
    pair.is_cut = true;
    pair.a.send(&packet(1, 2, b"x"), pair.now);
    pair.run_for(200 * SECOND);
    assert_eq!(pair.carried.len(), 20);
    assert!(pair.a.said.contains(&Output::Event(Event::HandshakeGivenUp { peer: pair.b.key })));
    assert_eq!(pair.a.node.status(pair.now).drops.get(DropReason::NoHandshake), 1);
    assert_eq!(pair.a.node.tunnel_count(), 1, "keys are kept until they are erased");
    pair.run_for(540 * SECOND);
    assert_eq!(pair.a.node.tunnel_count(), 0);
}

#[test]
fn a_repeated_initiation_keeps_its_distance_from_an_answer_too() {
    let mut pair = Pair::new();
    pair.a.send(&packet(1, 2, b"x"), pair.now);
    pair.a.sent.clear();
    pair.now += Duration::from_millis(4_900);
    pair.b.send(&packet(2, 1, b"y"), pair.now);
    let initiation = pair.b.sent.pop_front().unwrap().1;
    pair.a.receive(initiation, pair.b.address, pair.now);
    assert_eq!(pair.a.sent.pop_front().unwrap().1[0], 2);
    // The answer is lost. WireGuard sends its next initiation five seconds after the last message of a handshake.
    let answered = pair.now;
    pair.is_cut = true;
    pair.run_for(Duration::from_millis(4_900));
    assert_eq!(pair.carried.iter().filter(|(from, _)| *from == pair.a.key).count(), 0);
    assert!(pair.a.deadline().is_some_and(|at| at >= answered + 5 * SECOND));
    pair.run_for(SECOND);
    assert_eq!(pair.carried.iter().filter(|(from, d)| *from == pair.a.key && d[0] == 1).count(), 1);
}

#[test]
fn an_idle_peer_has_no_tunnel_and_its_keys_are_gone() {
    let mut pair = established();
    pair.run_for(541 * SECOND);
    assert_eq!((pair.a.node.tunnel_count(), pair.b.node.tunnel_count()), (0, 0));
    assert_eq!(pair.a.deadline(), None);

    pair.a.send(&packet(1, 2, b"again"), pair.now);
    pair.settle();
    assert_eq!(pair.b.delivered.len(), 2);
}

#[test]
fn a_handshake_that_the_peers_overtook_leaves_nothing_behind() {
    let mut pair = Pair::new();
    pair.a.send(&packet(1, 2, b"lost"), pair.now);
    pair.a.sent.clear();
    pair.b.send(&packet(2, 1, b"y"), pair.now);
    pair.settle();
    assert_eq!(pair.a.sessions_established(), 1);
    pair.run_for(600 * SECOND);
    assert_eq!((pair.a.node.tunnel_count(), pair.a.node.index_count()), (0, 0));
    assert!(pair.a.plane.fib().receivers().is_empty());
}

#[test]
fn an_old_initiation_is_no_use_after_the_tunnel_is_gone() {
    let mut pair = established();
    let old = pair.carried[0].1.clone();
    pair.run_for(541 * SECOND);
    pair.b.receive(old, pair.a.address, pair.now);
    assert_eq!(pair.b.sent.len(), 0);
    assert_eq!(pair.b.node.status(pair.now).drops.get(DropReason::ReplayedHandshake), 1);
}

#[test]
fn an_old_initiation_is_no_use_after_the_peer_was_removed_and_came_back() {
    let mut pair = established();
    let old = pair.carried[0].1.clone();
    for peers in [vec![], vec![peer(1)]] {
        pair.b.input(Input::Command(CommandId(1), Command::SetPeers(peers)), pair.now);
    }
    pair.b.receive(old, address(66), pair.now);
    assert_eq!(pair.b.sent.len(), 0);
    assert_eq!(pair.b.node.status(pair.now).drops.get(DropReason::ReplayedHandshake), 1);
}

#[test]
fn answers_to_nothing_end_in_the_fast_path() {
    let mut pair = established();
    for (kind, bytes) in [(2, 92), (3, 64)] {
        let mut answer = vec![0x77; bytes];
        answer[..4].copy_from_slice(&[kind, 0, 0, 0]);
        pair.b.receive(answer, address(66), pair.now);
    }
    assert_eq!(pair.b.drops.get(DropReason::UnexpectedResponse), 2);
    assert_eq!(pair.b.node.status(pair.now).drops.total(), 0, "the node did not hear of them");
}

#[test]
fn persistent_keepalives_hold_their_interval() {
    let mut pair = Pair::with(|a, _| a.peers[0].persistent_keepalive = Some(25 * SECOND));
    pair.run_for(SECOND);
    assert_eq!(pair.a.sessions_established(), 1, "a persistent keepalive begins by itself");
    pair.carried.clear();
    pair.run_for(100 * SECOND);
    assert_eq!(pair.carried.len(), 4);
}

#[test]
fn a_peer_is_answered_where_its_last_packet_came_from() {
    let mut pair = established();
    pair.a.send(&packet(1, 2, b"x"), pair.now);
    let datagram = pair.a.sent.pop_front().unwrap().1;
    let elsewhere = address(99);
    pair.b.receive(datagram.clone(), elsewhere, pair.now);
    pair.b.send(&packet(2, 1, b"y"), pair.now);
    assert_eq!(pair.b.sent.pop_front().unwrap().0, PathAddr::Udp(elsewhere));

    // A replay from somewhere else moves nothing.
    pair.b.receive(datagram, address(66), pair.now);
    pair.b.send(&packet(2, 1, b"y"), pair.now);
    assert_eq!(pair.b.sent.pop_front().unwrap().0, PathAddr::Udp(elsewhere));
    assert_eq!(pair.b.drops.get(DropReason::Replayed), 1);
}

#[test]
fn a_restarted_peer_is_back_with_its_first_packet() {
    let mut pair = established();
    pair.now = Instant::from_secs(30);
    let mut again = config(2, vec![peer(1)]);
    again.seed = mesh_core::rng::Seed::from_number(99);
    pair.b = support::End::new(2, again, pair.now);
    pair.b.send(&packet(2, 1, b"hello again"), pair.now);
    pair.settle();
    assert_eq!(pair.a.delivered.len(), 1);
    pair.a.send(&packet(1, 2, b"welcome"), pair.now);
    pair.settle();
    assert_eq!(pair.b.delivered.len(), 1);
}

#[test]
fn garbage_is_counted_and_changes_nothing() {
    let mut pair = established();
    let before = format!("{:?}", pair.b.node.status(pair.now));
    let stranger = address(66);
    for garbage in
        [vec![], vec![1], vec![0; 148], vec![4, 0, 0, 0, 9, 9, 9, 9], [&[1, 0, 0, 0], &[7; 144][..]].concat()]
    {
        pair.b.receive(garbage, stranger, pair.now);
    }
    assert_eq!(pair.b.drops.get(DropReason::NotWireguard), 4);
    assert_eq!(pair.b.drops.get(DropReason::WrongMac1), 1);
    assert_eq!(pair.b.drops.total(), 5);
    assert_eq!(before, format!("{:?}", pair.b.node.status(pair.now)));
    assert!(pair.b.sent.is_empty());
}

#[test]
fn every_bit_of_a_data_packet_counts() {
    let mut pair = established();
    pair.a.send(&packet(1, 2, b"x"), pair.now);
    let datagram = pair.a.sent.pop_front().unwrap().1;
    for bit in 0..datagram.len() * 8 {
        let mut changed = datagram.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        pair.b.receive(changed, pair.a.address, pair.now);
    }
    assert_eq!(pair.b.delivered.len(), 1);
    pair.b.receive(datagram, pair.a.address, pair.now);
    assert_eq!(pair.b.delivered.len(), 2);
}

#[test]
fn a_source_that_is_not_the_peers_is_refused() {
    let mut pair = established();
    pair.a.send(&packet(7, 2, b"spoofed"), pair.now);
    pair.settle();
    assert_eq!(pair.b.delivered.len(), 1);
    assert_eq!(pair.b.drops.get(DropReason::SourceNotAllowed), 1);
}

#[test]
fn a_peer_does_not_speak_for_another_peer() {
    let mut pair = Pair::with(|_, b| b.peers.push(peer(7)));
    pair.a.send(&packet(1, 2, b"first"), pair.now);
    pair.settle();
    pair.a.send(&packet(7, 2, b"spoofed"), pair.now);
    pair.settle();
    assert_eq!(pair.b.delivered.len(), 1);
    assert_eq!(pair.b.drops.get(DropReason::SourceNotAllowed), 1);
}

#[test]
fn a_flood_of_strangers_leaves_an_honest_peer_served() {
    let mut pair = Pair::new();
    // Initiations by keys that are no peers, with a right first MAC: ten thousand in one second.
    let mut strangers = support::End::new(9, config(9, vec![peer(2)]), Instant::ZERO);
    for n in 0..10_000u32 {
        let now = pair.now + Duration::from_micros(u64::from(n) * 100);
        if n % 1000 == 0 {
            strangers = support::End::new(9, config(9, vec![peer(2)]), now);
            strangers.send(&packet(9, 2, b"x"), now);
        }
        let initiation = strangers.sent.front().unwrap().1.clone();
        let from = std::net::SocketAddr::from(([198, 51, (n >> 8) as u8, n as u8], 1));
        pair.b.receive(initiation, from, now);
        pair.b.sent.retain(|(to, _)| *to == PathAddr::Udp(pair.a.address));
    }
    let drops = pair.b.node.status(pair.now).drops;
    assert!(drops.get(DropReason::CookieDemanded) > 9_000, "{drops:?}");
    assert!(drops.get(DropReason::UnknownPeer) < 1_000, "{drops:?}");

    // Still under load: the honest peer is asked for a cookie and is in with its second initiation.
    pair.now += SECOND;
    pair.a.send(&packet(1, 2, b"honest"), pair.now);
    pair.settle();
    assert_eq!(pair.carried_of_type(3), 1);
    let flood_goes_on = |pair: &mut Pair| {
        for _ in 0..2_000 {
            let initiation = strangers.sent.front().unwrap().1.clone();
            pair.b.receive(initiation, address(66), pair.now);
        }
        pair.b.sent.clear();
    };
    pair.now = pair.a.deadline().unwrap();
    flood_goes_on(&mut pair);
    pair.a.timeout(pair.now);
    pair.settle();
    assert_eq!(pair.b.delivered.len(), 1);
}

#[test]
fn over_a_relay_strangers_cost_no_handshake_and_nobody_speaks_for_another() {
    let mut pair = Pair::new();
    let mut stranger = support::End::new(9, config(9, vec![peer(2)]), pair.now);
    stranger.send(&packet(9, 2, b"x"), pair.now);
    let initiation = stranger.sent.pop_front().unwrap().1;
    let region = RegionId::new(900).unwrap();
    let relayed = |number| PathAddr::Relay { region, peer: private(number).public() };
    for _ in 0..10_000 {
        pair.b.receive_from(initiation.clone(), relayed(9), pair.now);
    }
    let drops = pair.b.node.status(pair.now).drops;
    assert_eq!(drops.get(DropReason::UnknownPeer), 10_000);
    assert!(pair.b.sent.is_empty(), "not even a cookie: there is no load");

    // The initiation of a peer, over the connection of another key.
    pair.a.send(&packet(1, 2, b"x"), pair.now);
    let initiation = pair.a.sent.pop_front().unwrap().1;
    let refused = |pair: &Pair| pair.b.node.status(pair.now).drops.get(DropReason::UnknownPeer);
    pair.b.receive_from(initiation.clone(), relayed(9), pair.now);
    assert_eq!(refused(&pair), 10_001);
    pair.b.receive_from(initiation.clone(), relayed(1), pair.now);
    assert_eq!(refused(&pair), 10_001, "over its own it is opened");
    pair.b.receive_from(initiation, relayed(1), pair.now);
    assert_eq!(pair.b.node.status(pair.now).drops.get(DropReason::ReplayedHandshake), 1, "and was taken");
}

#[test]
fn a_response_is_answered_with_a_cookie_under_load_too() {
    let mut pair = Pair::new();
    pair.a.send(&packet(1, 2, b"x"), pair.now);
    let initiation = pair.a.sent.pop_front().unwrap().1;
    pair.b.receive(initiation, pair.a.address, pair.now);
    let response = pair.b.sent.pop_front().unwrap().1;
    let mut stranger = support::End::new(9, config(9, vec![peer(1)]), pair.now);
    stranger.send(&packet(9, 1, b"y"), pair.now);
    let flood = stranger.sent.pop_front().unwrap().1;
    for _ in 0..1000 {
        pair.a.receive(flood.clone(), address(66), pair.now);
    }
    pair.a.sent.clear();
    pair.a.receive(response, pair.b.address, pair.now);
    let (to, cookie) = pair.a.sent.pop_front().unwrap();
    assert_eq!((to, cookie[0]), (PathAddr::Udp(pair.b.address), 3));
    pair.b.receive(cookie, pair.a.address, pair.now);
    assert_eq!(pair.b.node.status(pair.now).drops.total(), 0, "the cookie is kept");
}

#[test]
fn pings_are_answered_or_time_out() {
    let mut pair = established();
    let ping = |target, timeout| Command::Ping { target, kind: PingKind::Icmp, timeout };
    pair.a.input(Input::Command(CommandId(1), ping(PingTarget::Key(pair.b.key), SECOND)), pair.now);
    pair.settle();
    // The host at the other end answers echo requests.
    let request = pair.b.delivered.pop().unwrap();
    let view = mesh_core::ip::packet::IpPacket::parse(&request).unwrap();
    let echo = mesh_core::ip::icmp::Echo::parse(&view).unwrap();
    let reply = mesh_core::ip::icmp::Echo { kind: mesh_core::ip::icmp::EchoKind::Reply, ..echo };
    pair.now += Duration::from_millis(42);
    pair.b.send(&reply.packet(view.destination(), view.source()).unwrap(), pair.now);
    pair.settle();
    let pong = Reply::Pong {
        peer: pair.b.key,
        address: [10, 0, 0, 2].into(),
        round_trip: Duration::from_millis(42),
        kind: PingKind::Icmp,
        via: Some(PathAddr::Udp(pair.b.address)),
    };
    assert!(pair.a.said.contains(&Output::Reply(CommandId(1), Ok(pong))));
    assert!(pair.a.delivered.is_empty(), "the host does not see the answer");

    // The node itself answers what is meant for it.
    let seen = (pair.a.delivered.len(), pair.b.delivered.len());
    let target = PingTarget::Key(pair.b.key);
    let inside = Command::Ping { target, kind: PingKind::Tsmp, timeout: SECOND };
    pair.a.input(Input::Command(CommandId(4), inside), pair.now);
    pair.settle();
    let is_pong = |output: &Output| matches!(output, Output::Reply(CommandId(4), Ok(Reply::Pong { kind: PingKind::Tsmp, peer, .. })) if *peer == pair.b.key);
    assert!(pair.a.said.iter().any(is_pong));
    assert_eq!((pair.a.delivered.len(), pair.b.delivered.len()), seen, "no host sees it");

    pair.a.input(Input::Command(CommandId(2), ping(PingTarget::Address([10, 0, 0, 2].into()), SECOND)), pair.now);
    pair.run_for(2 * SECOND);
    let late = CommandError::TimedOut { address: [10, 0, 0, 2].into(), waited: SECOND };
    assert!(pair.a.said.contains(&Output::Reply(CommandId(2), Err(late))));

    pair.a.input(Input::Command(CommandId(3), ping(PingTarget::Address([9, 9, 9, 9].into()), SECOND)), pair.now);
    let nobody = CommandError::NoRoute([9, 9, 9, 9].into());
    assert_eq!(pair.a.said.last(), Some(&Output::Reply(CommandId(3), Err(nobody))));
}

#[test]
fn of_datagrams_on_no_session_the_node_hears_once_a_run() {
    let pair = established();
    let (fib, mut reports) = (pair.a.plane.fib(), ReportBuffer::default());
    let mut run = fib.inbound(pair.now);
    let source = PathAddr::Udp(address(9));
    for _ in 0..100 {
        let mut datagram = [0; 48];
        datagram[0] = 4;
        assert_eq!(run.handle(&mut datagram, source, &mut reports), Inbound::Drop(DropReason::UnknownSession));
    }
    assert_eq!(reports.punts, [Punt::Stray { source }]);
    assert_eq!(reports.drops.get(DropReason::UnknownSession), 100);
}

#[test]
fn changing_the_peers_keeps_the_sessions_of_those_that_stay() {
    let mut pair = established();
    let set = |peers| Input::Command(CommandId(1), Command::SetPeers(peers));
    pair.a.input(set(vec![peer(3), peer(2)]), pair.now);
    pair.a.send(&packet(1, 2, b"still here"), pair.now);
    assert_eq!(pair.a.sent.pop_front().unwrap().1[0], 4);

    pair.a.input(set(vec![peer(3)]), pair.now);
    pair.a.send(&packet(1, 2, b"gone"), pair.now);
    assert_eq!(pair.a.drops.get(DropReason::NoRoute), 1);
    pair.b.send(&packet(2, 1, b"gone"), pair.now);
    pair.settle();
    assert_eq!(pair.a.drops.get(DropReason::UnknownSession), 1);

    pair.a.input(set(vec![peer(3), peer(3)]), pair.now);
    let refused = CommandError::Config(ConfigError::DuplicatePeer(private(3).public()));
    assert_eq!(pair.a.said.last(), Some(&Output::Reply(CommandId(1), Err(refused))));
    assert_eq!(pair.a.node.status(pair.now).peers.len(), 1, "nothing half-applied");
}

#[test]
fn a_wall_clock_that_is_stepped_back_does_not_stop_handshakes() {
    let mut pair = established();
    let back = WallAnchor { at: pair.now, wall: mesh_core::time::WallTime::from_unix_secs(1_000) };
    assert!(back.wall < EPOCH);
    pair.a.input(Input::Host(mesh_core::node::HostEvent::ClockStepped(back)), pair.now);
    pair.run_for(541 * SECOND);
    pair.a.send(&packet(1, 2, b"later"), pair.now);
    pair.settle();
    assert_eq!(pair.b.delivered.len(), 2);
}

#[test]
fn a_weak_key_is_counted_and_does_no_harm() {
    let mut pair = Pair::with(|a, _| a.peers[0].key = NodePublic::from_bytes([0; 32]));
    pair.a.send(&packet(1, 2, b"x"), pair.now);
    assert_eq!(pair.a.node.status(pair.now).drops.get(DropReason::WeakKey), 1);
    assert!(pair.a.sent.is_empty());
}

#[test]
fn configurations_that_contradict_themselves_are_refused() {
    let check = |config, error: ConfigError| assert_eq!(Node::new(config, Instant::ZERO).err(), Some(error));
    let own = private(1).public();
    check(config(1, vec![peer(1)]), ConfigError::OwnKey(own));
    check(config(1, vec![peer(2), peer(2)]), ConfigError::DuplicatePeer(private(2).public()));
    let mut small = config(1, vec![]);
    small.mtu_bytes = 100;
    check(small, ConfigError::Mtu(100));
}

#[test]
fn a_node_without_peers_waits_for_nothing() {
    let node = Node::new(config(1, vec![]), Instant::ZERO).unwrap();
    assert_eq!(node.poll_timeout(), None);
}

/// A pair with a session that A began, and one packet delivered to B.
fn established() -> Pair {
    let mut pair = Pair::new();
    pair.a.send(&packet(1, 2, b"first"), pair.now);
    pair.settle();
    // B's passive keepalive, so that no timer waits.
    pair.run_for(11 * SECOND);
    pair
}
