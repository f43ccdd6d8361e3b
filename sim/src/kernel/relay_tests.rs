//! Hosts that speak to relays over simulated streams: the real client, the real relay, and what can go wrong between.
//! What a node would want done is done by the tests.

use core::{net::SocketAddr, time::Duration};

use mesh_core::{
    derp::{RegionId, relays::Home},
    node::RelayCommand,
    path::{PathAddr, SendPath},
    stun,
    time::Instant,
};

use super::*;
use crate::{
    LinkParams, NatParams,
    host::RelayChange,
    net::{DropCause, Ipv6, NetId, Proto, Renumber, firewall::FirewallParams},
    scenario::{Fault, LinkChange, LinkPart, Maps, RelayRef, RelayStart, World},
};

/// Alice behind a home router, Bob behind a firewall, and a relay of region 1; 10 ms between any two nets.
struct Lab {
    world: World,
    relay: RelayRef,
}

#[test]
fn packets_are_relayed_both_ways_across_a_nat_and_a_firewall() {
    let lab = Lab::new(FirewallParams::HOST);
    lab.run(secs(5), |simulation| {
        assert_eq!(events(simulation, "relay_connected").len(), 2);
        send(simulation, ALICE, 1);
        send(simulation, BOB, 2);
        simulation.run_until(secs(6));
        // Two links of 10 ms each way.
        let there = heard(simulation, BOB);
        assert_eq!(there.iter().map(|(_, number)| *number).collect::<Vec<_>>(), [1]);
        assert!(there[0].0 < secs(5) + Duration::from_millis(41), "{there:?}");
        assert_eq!(heard(simulation, ALICE).len(), 1);
        // Four of each greeting: key, client info, server info, preferred. Each packet is one frame in and one out.
        assert_eq!(simulation.derp_frames(), 2 * 4 + 2 * 2);
    });
}

#[test]
fn a_net_that_lets_out_https_alone_reaches_the_relay() {
    for (firewall, reached) in [
        (FirewallParams::UDP_BLOCKED, true),
        (FirewallParams::HTTPS_ONLY, true),
        (FirewallParams { blocked: crate::net::firewall::Blocked::Nothing, ..FirewallParams::HOST }, true),
    ] {
        let lab = Lab::new(firewall);
        lab.run(secs(5), |simulation| {
            assert_eq!(events(simulation, "relay_connected").len() == 2, reached, "{}", firewall.profile);
            send(simulation, ALICE, 1);
            simulation.run_until(secs(6));
            assert_eq!(heard(simulation, BOB).len(), 1);
        });
    }
}

#[test]
fn both_ways_to_begin_work_and_the_fast_one_is_faster() {
    let ready = [RelayStart::Fast, RelayStart::Slow].map(|start| {
        let mut lab = Lab::new(FirewallParams::HOST);
        lab.relay = lab.relay.start(start);
        let mut ready = Vec::new();
        lab.run(secs(5), |simulation| {
            ready.extend(events(simulation, "relay_connected"));
            send(simulation, ALICE, 1);
            simulation.run_until(secs(6));
            assert_eq!(heard(simulation, BOB).len(), 1);
        });
        ready[0]
    });
    // A round trip of the stream and one of the greeting; 40 ms each, 20 ms of which are waited for the relay's key.
    assert!(ready[0] >= secs(1) + Duration::from_millis(80) && ready[1] > ready[0], "{ready:?}");
}

#[test]
fn what_was_sent_before_the_connection_was_open_goes_over_it() {
    let lab = Lab::new(FirewallParams::HOST);
    lab.run(secs(5), |simulation| {
        connect_one(simulation, ALICE);
        send(simulation, ALICE, 7);
        simulation.run_until(secs(6));
        assert_eq!(heard(simulation, BOB).iter().map(|(_, number)| *number).collect::<Vec<_>>(), [7]);
    });
}

#[test]
fn a_killed_relay_resets_and_refuses_until_it_is_started() {
    let lab = Lab::new(FirewallParams::HOST);
    lab.world.at_relay(secs(5), &lab.relay, RelayChange::Kill, Some(Duration::from_secs(5)));
    lab.run(secs(4), |simulation| {
        simulation.run_until(secs(6));
        let failed = events(simulation, "relay_failed");
        assert!(failed.len() == 2 && failed[0] < secs(5) + Duration::from_millis(30), "{failed:?}");
        connect(simulation);
        simulation.run_until(secs(9));
        assert_eq!(events(simulation, "relay_failed").len(), 4, "connections are refused");
        simulation.run_until(secs(10));
        connect(simulation);
        simulation.run_until(secs(11));
        send(simulation, ALICE, 1);
        simulation.run_until(secs(12));
        assert_eq!(heard(simulation, BOB).len(), 1);
    });
}

#[test]
fn a_black_hole_is_noticed_by_pings_within_eight_seconds_under_traffic() {
    let lab = Lab::new(FirewallParams::HOST);
    lab.world.at_relay(secs(5), &lab.relay, RelayChange::BlackHole, None);
    lab.run(secs(5), |simulation| {
        for number in 0..90 {
            send(simulation, ALICE, number);
            let next = simulation.now() + Duration::from_millis(100);
            simulation.run_until(next);
        }
        let failed = events(simulation, "relay_failed");
        assert_eq!(failed.len(), 1, "who says nothing notices nothing: {failed:?}");
        assert!(failed[0] > secs(10) && failed[0] <= secs(13) + Duration::from_millis(100), "{failed:?}");
        assert!(heard(simulation, BOB).is_empty());
        connect(simulation);
        simulation.run_until(secs(20));
        assert_eq!(events(simulation, "relay_failed").len(), 3, "dials time out");
    });
}

#[test]
fn a_black_hole_that_passes_costs_a_retransmission() {
    let lab = Lab::new(FirewallParams::HOST);
    lab.world.at_relay(secs(5), &lab.relay, RelayChange::BlackHole, Some(Duration::from_millis(700)));
    lab.run(secs(5), |simulation| {
        send(simulation, ALICE, 1);
        send(simulation, ALICE, 2);
        simulation.run_until(secs(8));
        let heard = heard(simulation, BOB);
        assert_eq!(heard.iter().map(|(_, number)| *number).collect::<Vec<_>>(), [1, 2]);
        assert!(heard[0].0 > secs(5) + Duration::from_millis(700), "{heard:?}");
        assert!(events(simulation, "relay_failed").is_empty());
    });
}

#[test]
fn a_draining_relay_says_so_and_goes_on_until_it_is_gone() {
    let (reconnect_in, try_for) = (Duration::from_millis(500), Duration::from_secs(10));
    let lab = Lab::new(FirewallParams::HOST);
    lab.world.at_relay(secs(5), &lab.relay, RelayChange::Drain { reconnect_in, try_for }, None);
    lab.world.at_relay(secs(6), &lab.relay, RelayChange::Reset, None);
    lab.run(secs(5), |simulation| {
        let before = simulation.derp_frames();
        simulation.run_until(secs(5) + Duration::from_millis(1));
        assert_eq!(simulation.derp_frames(), before, "both were told before");
        send(simulation, ALICE, 1);
        simulation.run_until(secs(7));
        assert_eq!((heard(simulation, BOB).len(), events(simulation, "relay_failed").len()), (1, 2));
        connect(simulation);
        simulation.run_until(secs(8));
        assert_eq!(events(simulation, "relay_connected").len(), 4);
    });
}

#[test]
fn a_router_that_forgets_resets_nobody_and_one_with_another_address_does() {
    for (renumber, failures) in [(Renumber::Keep, 0), (Renumber::New, 1)] {
        let lab = Lab::new(FirewallParams::HOST);
        let net = NetId(0);
        lab.world.at(secs(5), Fault::Reboot { net, renumber, down: Duration::ZERO });
        lab.run(secs(5), |simulation| {
            send(simulation, ALICE, 1);
            simulation.run_until(secs(10));
            assert_eq!(events(simulation, "relay_failed").len(), failures, "{renumber:?}");
            assert_eq!(heard(simulation, BOB).len(), 1 - failures);
        });
    }
}

#[test]
fn a_host_that_moved_is_told_by_a_reset_or_not_at_all() {
    // The new net is public: packets from the old address are not sent, and nobody says a word.
    let lab = Lab::new(FirewallParams::HOST);
    let away = lab.world.net("away").link(LINK);
    lab.world.at(secs(5), Fault::Move { node: ALICE, to: away.id(), gap: Duration::from_millis(500) });
    lab.run(secs(6), |simulation| {
        send(simulation, ALICE, 1);
        simulation.run_until(secs(20));
        assert!(heard(simulation, BOB).is_empty());
        let failed = events(simulation, "relay_failed");
        assert!(failed.len() == 1 && failed[0] >= secs(12), "pings are not answered: {failed:?}");
        connect_one(simulation, ALICE);
        simulation.run_until(secs(21));
        send(simulation, ALICE, 2);
        simulation.run_until(secs(22));
        assert_eq!(heard(simulation, BOB).len(), 1);
    });
    // The new net gives the same private address, behind another router: the relay does not know the stream.
    let lab = Lab::new(FirewallParams::HOST);
    let other = lab.world.net("other").nat(NatParams::LINUX_FILTERED).link(LINK);
    lab.world.at(secs(5), Fault::Move { node: ALICE, to: other.id(), gap: Duration::from_millis(500) });
    lab.run(secs(6), |simulation| {
        send(simulation, ALICE, 1);
        simulation.run_until(secs(7));
        let failed = events(simulation, "relay_failed");
        assert!(failed.len() == 1 && failed[0] < secs(6) + Duration::from_millis(50), "{failed:?}");
    });
}

#[test]
fn a_sleeper_that_wakes_finds_its_stream_as_it_was() {
    let lab = Lab::new(FirewallParams::HOST);
    lab.world.at(secs(5), Fault::Suspend { node: ALICE, length: Duration::from_secs(20) });
    lab.run(secs(6), |simulation| {
        send(simulation, BOB, 1);
        simulation.run_until(secs(20));
        assert!(heard(simulation, ALICE).is_empty());
        simulation.run_until(secs(60));
        let heard = heard(simulation, ALICE);
        assert!(heard.len() == 1 && heard[0].0 > secs(25), "{heard:?}");
    });
}

#[test]
fn names_are_looked_up_and_a_broken_family_costs_time_and_no_more() {
    let lab = Lab::named(Ipv6::Broken);
    lab.run(secs(8), |simulation| {
        assert_eq!(events(simulation, "relay_connected").len(), 2);
        send(simulation, ALICE, 1);
        simulation.run_until(secs(9));
        assert_eq!(heard(simulation, BOB).len(), 1);
    });
    let lab = Lab::named(Ipv6::Guarded);
    lab.world.at(Instant::ZERO, Fault::Resolver(crate::host::Manner::Silent));
    lab.run(secs(8), |simulation| {
        assert_eq!(events(simulation, "relay_failed").len(), 2);
    });
}

#[test]
fn a_lossy_link_delays_the_stream_and_loses_nothing_of_it() {
    let lab = Lab::new(FirewallParams::HOST);
    let params = LinkParams {
        loss: crate::net::link::Loss::Bernoulli(dice::Probability::from_basis_points(1000)),
        corrupt: dice::Probability::from_basis_points(200),
        duplicate: dice::Probability::from_basis_points(200),
        ..LINK
    };
    let change = LinkChange::Set(Box::new(params));
    lab.world.at(secs(4), Fault::Link { net: NetId(0), part: LinkPart::Whole, change });
    lab.run(secs(5), |simulation| {
        for number in 0..200 {
            send(simulation, ALICE, number);
            let next = simulation.now() + Duration::from_millis(20);
            simulation.run_until(next);
        }
        simulation.run_until(secs(30));
        let numbers: Vec<_> = heard(simulation, BOB).iter().map(|(_, number)| *number).collect();
        assert!(numbers.is_sorted() && numbers.len() > 190, "{numbers:?}");
        simulation.check_conservation();
        assert_eq!(simulation.tally().violation(), None);
    });
}

#[test]
fn a_copy_on_both_ways_is_no_nonce_used_again() {
    let lab = Lab::new(FirewallParams::HOST);
    lab.run(secs(5), |simulation| {
        let relayed = path(simulation, BOB);
        let both = SendPath { also: Some(relayed), ..SendPath::udp("198.19.0.1:1".parse().unwrap()) };
        simulation.call(ALICE, |host, now, effects| {
            let Host::Node(node) = host else { panic!("a node") };
            node.relay_send(both, 1, now, effects);
        });
        simulation.run_until(secs(6));
        assert_eq!(heard(simulation, BOB).len(), 1);
        assert_eq!(simulation.tally().violation(), None);
    });
}

#[test]
fn the_same_seed_gives_the_same_digest_and_stream_bytes_are_in_it() {
    let digest = |number| {
        let lab = Lab::new(FirewallParams::HOST);
        let mut digest = 0;
        lab.run(secs(5), |simulation| {
            send(simulation, ALICE, number);
            simulation.run_until(secs(6));
            digest = simulation.trace().digest();
        });
        digest
    };
    assert_eq!(digest(1), digest(1));
    assert_ne!(digest(1), digest(2));
}

#[test]
fn the_relay_answers_stun_and_a_low_hop_limit_dies_behind_the_own_router() {
    let lab = Lab::new(FirewallParams::HOST);
    lab.run(secs(2), |simulation| {
        let relay = HostId(2);
        let to = SocketAddr::new(simulation.hosts()[relay.index()].addresses()[0], 3478);
        let from = SocketAddr::new(simulation.hosts()[ALICE.index()].addresses()[0], 41641);
        let request = |ttl| {
            let payload = stun::request(stun::TxId([3; 12]));
            Outgoing { proto: Proto::Udp, from, to, ttl, payload }
        };
        let answers = |simulation: &Simulation<'_>| simulation.packets()[relay.index()][PacketKind::Stun as usize];
        simulation.send(ALICE, request(Some(2)));
        simulation.run_until(secs(3));
        let died = simulation.network().counts().dropped.iter().find(|(cause, _)| *cause == DropCause::TtlExpired);
        assert_eq!((answers(simulation), died.map(|(_, count)| count)), (0, Some(1)));
        let sessions: u64 = simulation.network().nats().map(|(_, nat)| nat.counts().sessions).sum();
        assert_eq!(sessions, 2, "of the stream, and of the datagram that died");
        simulation.send(ALICE, request(None));
        simulation.run_until(secs(4));
        assert_eq!(answers(simulation), 1);
    });
}

const ALICE: HostId = HostId(0);
const BOB: HostId = HostId(1);

const LINK: LinkParams =
    LinkParams { delay: (Duration::from_millis(10), Duration::from_millis(10)), ..LinkParams::PERFECT };

impl Lab {
    fn new(of_bob: FirewallParams) -> Self {
        let world = World::new(1);
        world.maps(Maps::None);
        let home = world.net("home").nat(NatParams::LINUX_FILTERED).link(LINK);
        let office = world.net("office").firewall(of_bob).link(LINK);
        let public = world.net("public").link(LINK);
        world.node("alice", &home);
        world.node("bob", &office);
        let relay = world.relay("relay-eu", 1, &public);
        Self { world, relay }
    }

    /// With names, and IPv6 for all.
    fn named(of_alice: Ipv6) -> Self {
        let world = World::new(1);
        world.maps(Maps::None);
        let home = world.net("home").nat(NatParams::LINUX_FILTERED).link(LINK).ipv6(of_alice);
        let office = world.net("office").link(LINK).ipv6(Ipv6::Guarded);
        let public = world.net("public").link(LINK).ipv6(Ipv6::Open);
        world.node("alice", &home);
        world.node("bob", &office);
        let relay = world.relay("relay-eu", 1, &public);
        world.resolver(&public, Duration::from_millis(5));
        Self { world, relay }
    }

    /// Connects both hosts a second after the start, and goes on until then.
    fn run(&self, until: Instant, then: impl FnOnce(&mut Simulation<'_>)) {
        let scenario = self.world.scenario(secs(1000));
        let mut simulation = Simulation::new(&scenario, 1);
        simulation.run_until(secs(1));
        connect(&mut simulation);
        simulation.run_until(until);
        then(&mut simulation);
    }
}

fn connect(simulation: &mut Simulation<'_>) {
    for host in [ALICE, BOB] {
        connect_one(simulation, host);
    }
}

fn connect_one(simulation: &mut Simulation<'_>, host: HostId) {
    simulation.call(host, |host, now, effects| {
        let Host::Node(node) = host else { panic!("a node") };
        node.relay_command(node.connect(region()), now, effects);
        node.relay_command(RelayCommand::SetHome { region: region(), home: Home::Here }, now, effects);
    });
}

fn send(simulation: &mut Simulation<'_>, from: HostId, number: u32) {
    let to = path(simulation, if from == ALICE { BOB } else { ALICE });
    simulation.call(from, |host, now, effects| {
        let Host::Node(node) = host else { panic!("a node") };
        node.relay_send(SendPath::new(to), number, now, effects);
    });
}

fn path(simulation: &Simulation<'_>, peer: HostId) -> PathAddr {
    let peer = simulation.hosts()[peer.index()].node().unwrap().public();
    PathAddr::Relay { region: region(), peer }
}

fn heard(simulation: &Simulation<'_>, host: HostId) -> Vec<(Instant, u32)> {
    simulation.hosts()[host.index()].node().unwrap().heard()
}

fn events(simulation: &Simulation<'_>, name: &str) -> Vec<Instant> {
    simulation.node_events().iter().filter(|(_, _, event)| event.name() == name).map(|(at, ..)| *at).collect()
}

fn region() -> RegionId {
    RegionId::new(1).unwrap()
}

fn secs(secs: u64) -> Instant {
    Instant::from_secs(secs)
}
