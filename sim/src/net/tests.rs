//! Packets walked through nets.

use core::net::Ipv4Addr;

use super::*;
use super::{nat::Pool, segment::Segment};
use crate::kernel::trace::digest_of;

const OPEN: NetSetup = NetSetup { link: LinkParams::PERFECT, ..NetSetup::PUBLIC };
const HOME: NetSetup = NetSetup { nat: Some(NatParams::LINUX_FILTERED), ..OPEN };

#[test]
fn a_packet_crosses_a_nat_and_its_answer_comes_back() {
    let dice = Dice::new(1);
    let mut network = Network::new();
    let home = network.add_net(HOME, &dice);
    let server = network.add_net(OPEN, &dice);
    let inside = network.attach(home, HostId(0));
    let outside = network.attach(server, HostId(1));

    let mut there = packet((inside, 41641), (outside, 41641));
    assert_eq!(walk(&mut network, home, &mut there), Ok(HostId(1)));
    assert_ne!(there.source.ip(), inside);
    let mut back = packet((outside, 41641), v4(there.source).map(|s| (*s.ip(), s.port())).unwrap());
    assert_eq!(walk(&mut network, server, &mut back), Ok(HostId(0)));
    assert_eq!(back.destination.ip(), inside);
    // Two routers and the core between them.
    assert_eq!(back.ttl, 62);

    let mut stranger = packet((outside, 9), (network.outer_address(home, inside), 41641));
    assert_eq!(walk(&mut network, server, &mut stranger), Err(DropCause::NatFiltered));
    let counts = network.counts();
    assert_eq!((counts.sent, counts.delivered, counts.dropped.total(), counts.strays), (3, 2, 1, 0));
}

#[test]
fn a_stream_that_was_reset_gives_its_port_back() {
    let mut network = Network::new();
    let one_port = NatParams { table_max: 1, ..NatParams::LINUX_FILTERED };
    let home = network.add_net(NetSetup { nat: Some(one_port), ..HOME }, &Dice::new(1));
    let server = network.add_net(OPEN, &Dice::new(1));
    let (inside, outside) = (network.attach(home, HostId(0)), network.attach(server, HostId(1)));
    let segment = |from, to, segment: Segment| {
        let payload = segment.emit();
        Packet { proto: Proto::Tcp, digest: digest_of(&payload), payload, ..packet(from, to) }
    };
    let opening = Segment { syn: true, ..Segment::EMPTY };
    let ended = Segment { rst: true, ..Segment::EMPTY };
    for from_inside in [false, true] {
        let start = Instant::from_secs(if from_inside { 1_000 } else { 0 });
        let mut first = segment((inside, 1_000), (outside, 443), opening.clone());
        assert_eq!(walk_at(&mut network, home, &mut first, start), Ok(HostId(1)));
        let mut second = segment((inside, 1_001), (outside, 443), opening.clone());
        assert_eq!(walk_at(&mut network, home, &mut second, start), Err(DropCause::NatExhausted));
        let (from, mapped) = (v4(first.source).unwrap(), (outside, 443));
        let (at, mut reset) = if from_inside {
            (home, segment((inside, 1_000), mapped, ended.clone()))
        } else {
            (server, segment(mapped, (*from.ip(), from.port()), ended.clone()))
        };
        walk_at(&mut network, at, &mut reset, start).unwrap();
        let mut third = segment((inside, 1_002), (outside, 443), opening.clone());
        let again = start + nat::RESET;
        let just_before = again - Duration::from_nanos(1);
        assert_eq!(walk_at(&mut network, home, &mut third.clone(), just_before), Err(DropCause::NatExhausted));
        assert_eq!(walk_at(&mut network, home, &mut third, again), Ok(HostId(1)));
        let mut reset = segment((inside, 1_002), (outside, 443), ended.clone());
        walk_at(&mut network, home, &mut reset, again).unwrap();
    }
}

#[test]
fn neighbours_talk_through_the_switch_without_the_nat() {
    let mut network = Network::new();
    let home = network.add_net(HOME, &Dice::new(1));
    let (one, two) = (network.attach(home, HostId(0)), network.attach(home, HostId(1)));
    network.set_link_up(home, None, false);
    let mut packet = packet((one, 1), (two, 2));
    assert_eq!(walk(&mut network, home, &mut packet), Ok(HostId(1)));
    assert_eq!(packet.source.ip(), one);
}

#[test]
fn a_renumbered_nat_is_found_at_its_new_address_alone() {
    let dice = Dice::new(1);
    let mut network = Network::new();
    let home = network.add_net(HOME, &dice);
    let server = network.add_net(OPEN, &dice);
    let inside = network.attach(home, HostId(0));
    let outside = network.attach(server, HostId(1));
    let old = network.outer_address(home, inside);
    network.reboot_nat(home, Renumber::New);
    assert_ne!(network.outer_address(home, inside), old);
    assert_eq!(walk(&mut network, server, &mut packet((outside, 1), (old, 1))), Err(DropCause::NoHost));
}

#[test]
fn a_net_behind_a_net_is_translated_twice_each_way() {
    let dice = Dice::new(1);
    let mut network = Network::new();
    let carrier = network.add_net(HOME, &dice);
    let home = network.add_net(NetSetup { behind: Some(carrier), ..HOME }, &dice);
    let server = network.add_net(OPEN, &dice);
    let inside = network.attach(home, HostId(0));
    let outside = network.attach(server, HostId(1));
    let shown = network.outer_address(home, inside);
    assert_eq!(shown, network.outer_address(carrier, inside));

    let mut there = packet((inside, 41641), (outside, 41641));
    assert_eq!(walk(&mut network, home, &mut there), Ok(HostId(1)));
    assert_eq!(there.source, (shown, 41641).into());
    let mut back = packet((outside, 41641), (shown, 41641));
    assert_eq!(walk(&mut network, server, &mut back), Ok(HostId(0)));
    // The core and two routers.
    assert_eq!((back.destination, back.ttl), ((inside, 41641).into(), 61));

    // The way is closed where it is forgotten, whichever of the two it is.
    network.reboot_nat(home, Renumber::New);
    assert_eq!(walk(&mut network, server, &mut packet((outside, 41641), (shown, 41641))), Err(DropCause::NoHost));
    assert_eq!(network.counts().strays, 0);
}

#[test]
fn two_homes_of_one_carrier_meet_by_its_hairpin_alone() {
    for (profile, met) in [("cgn-good", Ok(HostId(1))), ("cgn-cellular", Err(DropCause::NatHairpin))] {
        let dice = Dice::new(1);
        let mut network = Network::new();
        let nat = NatParams { pool: Pool::SINGLE, ..NatParams::preset(profile).unwrap() };
        let carrier = network.add_net(NetSetup { nat: Some(nat), ..OPEN }, &dice);
        let homes = [(); 2].map(|()| network.add_net(NetSetup { behind: Some(carrier), ..HOME }, &dice));
        let server = network.add_net(OPEN, &dice);
        let inside = [0, 1].map(|n| network.attach(homes[n], HostId(n as u32)));
        let outside = network.attach(server, HostId(2));
        // Each learns from the server where it is seen.
        let seen = [0, 1].map(|n| {
            let mut there = packet((inside[n], 41641), (outside, 3478));
            assert_eq!(walk(&mut network, homes[n], &mut there), Ok(HostId(2)));
            v4(there.source).map(|seen| (*seen.ip(), seen.port())).unwrap()
        });
        // The other home's own NAT wants it to have sent something as well.
        let _ = walk(&mut network, homes[1], &mut packet((inside[1], 41641), seen[0]));
        assert_eq!(walk(&mut network, homes[0], &mut packet((inside[0], 41641), seen[1])), met, "{profile}");
    }
}

#[test]
fn a_firewall_lets_answers_in_and_is_told_apart_from_a_nat() {
    let dice = Dice::new(1);
    let mut network = Network::new();
    let office = network.add_net(NetSetup { firewall: Some(FirewallParams::HOST), ..OPEN }, &dice);
    let server = network.add_net(OPEN, &dice);
    let (inside, outside) = (network.attach(office, HostId(0)), network.attach(server, HostId(1)));
    let (mut there, mut back) = (packet((inside, 7), (outside, 7)), packet((outside, 7), (inside, 7)));
    assert_eq!(walk(&mut network, server, &mut back), Err(DropCause::FirewallUnsolicited));
    assert_eq!(walk(&mut network, office, &mut there), Ok(HostId(1)));
    assert_eq!(walk(&mut network, server, &mut back), Ok(HostId(0)));
}

fn walk(network: &mut Network, net: NetId, packet: &mut Packet) -> Result<HostId, DropCause> {
    walk_at(network, net, packet, Instant::ZERO)
}

fn walk_at(network: &mut Network, net: NetId, packet: &mut Packet, now: Instant) -> Result<HostId, DropCause> {
    let mut hop = Hop::Sent(net);
    loop {
        match network.forward(hop, packet, now) {
            Forwarded::Dropped(cause) => return Err(cause),
            Forwarded::Delivered(host) => return Ok(host),
            Forwarded::Travels { to, .. } => hop = to,
        }
    }
}

fn packet(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Packet {
    let payload = b"payload".to_vec();
    Packet {
        number: 0,
        origin: HostId(0),
        proto: Proto::Udp,
        source: from.into(),
        destination: to.into(),
        ttl: 64,
        digest: digest_of(&payload),
        payload,
    }
}

#[test]
fn ipv6_is_not_translated_and_lets_in_what_answers() {
    let dice = Dice::new(1);
    let mut network = Network::new();
    let home = network.add_net(NetSetup { ipv6: Ipv6::Guarded, ..HOME }, &dice);
    let server = network.add_net(NetSetup { ipv6: Ipv6::Open, ..OPEN }, &dice);
    let _ = (network.attach(home, HostId(0)), network.attach(server, HostId(1)));
    let address = |network: &Network, net, host| network.addresses(net, HostId(host))[1];
    let (inside, outside) = (address(&network, home, 0), address(&network, server, 1));
    assert!(inside.is_ipv6() && outside.is_ipv6());
    let between = |from: IpAddr, to: IpAddr| {
        let (source, destination) = (SocketAddr::new(from, 7), SocketAddr::new(to, 7));
        Packet { source, destination, ..packet((Ipv4Addr::LOCALHOST, 1), (Ipv4Addr::LOCALHOST, 1)) }
    };
    let refused = walk(&mut network, server, &mut between(outside, inside));
    assert_eq!(refused, Err(DropCause::FirewallUnsolicited));
    assert_eq!(walk(&mut network, home, &mut between(inside, outside)), Ok(HostId(1)));
    assert_eq!(walk(&mut network, server, &mut between(outside, inside)), Ok(HostId(0)));

    network.set_family_up(home, Family::V6, false);
    assert_eq!(walk(&mut network, home, &mut between(inside, outside)), Err(DropCause::LinkDown));
    let inside = network.addresses(home, HostId(0))[0];
    let outside = network.addresses(server, HostId(1))[0];
    assert_eq!(walk(&mut network, home, &mut between(inside, outside)), Ok(HostId(1)));
}

#[test]
fn datagrams_and_streams_have_mappings_of_their_own() {
    let dice = Dice::new(1);
    let mut network = Network::new();
    let home = network.add_net(HOME, &dice);
    let server = network.add_net(OPEN, &dice);
    let (inside, outside) = (network.attach(home, HostId(0)), network.attach(server, HostId(1)));
    let mut there = packet((inside, 7), (outside, 443));
    assert_eq!(walk(&mut network, home, &mut there), Ok(HostId(1)));
    let (source, destination) = (there.destination, there.source);
    let mut back = Packet { source, destination, proto: Proto::Tcp, ..there.clone() };
    assert_eq!(walk(&mut network, server, &mut back), Err(DropCause::NatFiltered));
    let mut back = Packet { source, destination, ..there };
    assert_eq!(walk(&mut network, server, &mut back), Ok(HostId(0)));
}

#[test]
fn regions_are_apart_and_who_left_is_not_found() {
    let dice = Dice::new(1);
    let mut network = Network::new();
    let near = network.add_net(OPEN, &dice);
    let far = network.add_net(NetSetup { region: 1, ..OPEN }, &dice);
    let (a, b) = (network.attach(near, HostId(0)), network.attach(far, HostId(1)));
    network.set_latency(1, 0, Duration::from_millis(45));
    let mut there = packet((a, 7), (b, 7));
    let _ = network.forward(Hop::Sent(near), &mut there, Instant::ZERO);
    let crossed = network.forward(Hop::Core(near), &mut there, Instant::ZERO);
    let Forwarded::Travels { to: Hop::Crossed(net), at, .. } = crossed else { panic!("{crossed:?}") };
    assert_eq!((net, at), (far, Instant::from_millis(45)));
    network.detach(far, HostId(1));
    assert_eq!(walk(&mut network, near, &mut packet((a, 7), (b, 7))), Err(DropCause::NoHost));
    assert!(network.addresses(far, HostId(1)).is_empty());
}

#[test]
fn a_link_may_carry_one_way_alone() {
    let dice = Dice::new(1);
    let mut network = Network::new();
    let (one, other) = (network.add_net(OPEN, &dice), network.add_net(OPEN, &dice));
    let (a, b) = (network.attach(one, HostId(0)), network.attach(other, HostId(1)));
    network.set_link_up(one, Some(Direction::Back), false);
    assert_eq!(walk(&mut network, one, &mut packet((a, 7), (b, 7))), Ok(HostId(1)));
    assert_eq!(walk(&mut network, other, &mut packet((b, 7), (a, 7))), Err(DropCause::LinkDown));
}
