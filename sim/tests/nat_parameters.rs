//! Each parameter of the NAT model does what it says, and the profiles are what the catalogue says.

use core::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};
use std::collections::BTreeSet;

use mesh_core::{rng::Seed, time::Instant};
use sim::net::nat::{
    Alloc, Assignment, Collision, Filter, FilterScope, FullPolicy, Hairpin, Mapping, Nat, NatParams, Pairing, Pool,
    PortBlock, PortRange, Refresh, Translated,
};

const USUAL: NatParams = NatParams::LINUX_FILTERED;
const WAN: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

#[test]
fn filters_let_in_strangers_neighbours_or_nobody() {
    let let_in = |filter| {
        let mut nat = lab(NatParams { filter, ..USUAL });
        nat.out(host(1, 40_000), remote(1), 0);
        let other_port = SocketAddrV4::new(*remote(1).ip(), 9);
        [remote(1), other_port, remote(2)].map(|from| nat.back(from, 40_000, 1) == Translated::To(host(1, 40_000)))
    };
    assert_eq!(let_in(Filter::EndpointIndependent), [true, true, true]);
    assert_eq!(let_in(Filter::AddressDependent), [true, true, false]);
    assert_eq!(let_in(Filter::AddressAndPortDependent), [true, false, false]);
}

/// With a hard mapping the hole belongs to the mapping that made it, unless the filter looks at the host's port.
#[test]
fn a_hole_belongs_to_the_mapping_or_to_the_internal_endpoint() {
    let let_in = |filter_scope| {
        let mut nat = lab(NatParams { filter: Filter::AddressDependent, filter_scope, ..NatParams::LINUX_RANDOM });
        let stun = nat.out(host(1, 40_000), remote(1), 0).unwrap();
        nat.out(host(1, 40_000), remote(2), 0);
        nat.back(remote(2), stun.port(), 1)
    };
    assert_eq!(let_in(FilterScope::Mapping), Translated::Filtered);
    assert_eq!(let_in(FilterScope::InternalEndpoint), Translated::To(host(1, 40_000)));
}

#[test]
fn an_answer_to_somebody_who_was_let_in_comes_from_the_mapped_port() {
    let mut nat = lab(NatParams { filter: Filter::EndpointIndependent, ..NatParams::LINUX_RANDOM });
    let mapped = nat.out(host(1, 40_000), remote(1), 0).unwrap();
    assert_eq!(nat.back(remote(2), mapped.port(), 1), Translated::To(host(1, 40_000)));
    assert_eq!(nat.out(host(1, 40_000), remote(2), 2), Some(mapped));
}

#[test]
fn address_dependent_mapping_shows_one_port_to_one_address() {
    let mut nat = lab(NatParams { mapping: Mapping::AddressDependent, ..NatParams::LINUX_RANDOM });
    let one = nat.out(host(1, 40_000), remote(1), 0);
    assert_eq!(nat.out(host(1, 40_000), SocketAddrV4::new(*remote(1).ip(), 9), 0), one);
    assert_ne!(nat.out(host(1, 40_000), remote(2), 0), one);
}

#[test]
fn allocators_give_the_ports_that_they_are_named_after() {
    let second = |alloc| {
        let mut nat = lab(NatParams { alloc, ..USUAL });
        let ports = [1, 2, 3].map(|n| nat.out(host(n, 40_000), remote(1), 0).unwrap().port());
        (ports[0], ports[1], ports[2])
    };
    assert_eq!(second(Alloc::Preserve), (40_000, 40_001, 40_002));
    let (first, next, last) = second(Alloc::PreserveOrRandom);
    assert!(first == 40_000 && next.abs_diff(first) > 2 && last != next);
    let (first, next, last) = second(Alloc::Parity);
    assert!(first == 40_000 && next % 2 == 0 && last % 2 == 0 && next != first);
    let (first, next, last) = second(Alloc::Sequential { delta: 2, jitter: 0 });
    assert!(first != 40_000 && next == first + 2 && last == next + 2);
    assert_eq!(second(Alloc::ContiguousBlock), (1024, 1025, 1026));
    let (first, next, last) = second(Alloc::Sequential { delta: 1, jitter: 5 });
    assert!((1..=6).contains(&(next - first)) && (1..=6).contains(&(last - next)));
}

#[test]
fn a_port_outside_the_range_is_not_kept() {
    let mut nat = lab(NatParams { port_range: PortRange::Within(5000, 5009), ..USUAL });
    assert_eq!(nat.out(host(1, 5003), remote(1), 0).unwrap().port(), 5003);
    for n in 0..9 {
        let port = nat.out(host(2, 40_000 + n), remote(1), 0).unwrap().port();
        assert!((5000..=5009).contains(&port) && port != 5003);
    }
    assert_eq!(nat.out(host(2, 50_000), remote(1), 0), None);
}

#[test]
fn a_collision_moves_the_flow_or_the_endpoint_or_nothing_or_ends_it() {
    let seen = |collision| {
        let mut nat = lab(NatParams { collision, ..USUAL });
        nat.out(host(1, 40_000), remote(1), 0);
        // A free remote, the taken one, and a new one.
        [2, 1, 3].map(|n| nat.out(host(2, 40_000), remote(n), 0).map(|mapped| mapped.port()))
    };
    let [free, taken, new] = seen(Collision::RemapFlow);
    assert!(free == Some(40_000) && taken != free && new == taken);
    let [free, taken, new] = seen(Collision::RemapEndpoint);
    assert!(free != Some(40_000) && taken == free && new == free);
    let [free, taken, new] = seen(Collision::Overload);
    assert!(free == Some(40_000) && taken != free && new == free);
    assert_eq!(seen(Collision::Drop), [Some(40_000), None, Some(40_000)]);
}

#[test]
fn without_reuse_every_flow_asks_the_allocator() {
    let mut nat = lab(NatParams { reuse_newest: false, ..USUAL });
    nat.out(host(1, 40_000), remote(1), 0);
    assert_ne!(nat.out(host(2, 40_000), remote(1), 0).unwrap().port(), 40_000);
    assert_eq!(nat.out(host(2, 40_000), remote(2), 0).unwrap().port(), 40_000);
}

#[test]
fn a_pool_is_paired_or_arbitrary() {
    let outers: Vec<_> = (1..=4).map(|n| Ipv4Addr::new(198, 18, 0, n)).collect();
    let addresses = |pairing| {
        let pool = Pool { addresses: 4, pairing };
        let params = NatParams { pool, ..NatParams::LINUX_RANDOM };
        let mut nat = Lab(Nat::new(params, &outers, Seed::from_number(7).stream("nat", 0)));
        let of = |nat: &mut Lab, n| -> BTreeSet<_> {
            (1..=20).map(|r| *nat.out(host(n, 40_000), remote(r), 0).unwrap().ip()).collect()
        };
        [of(&mut nat, 1), of(&mut nat, 2)]
    };
    let [one, two] = addresses(Pairing::Paired);
    assert!(one.len() == 1 && two.len() == 1 && one != two);
    let [one, _] = addresses(Pairing::Arbitrary);
    assert_eq!(one.len(), 4);
}

#[test]
fn a_host_stays_in_its_blocks_and_a_probe_costs_a_port() {
    for assignment in [Assignment::Static, Assignment::Dynamic] {
        let block = PortBlock { size: 64, max_blocks: 2, assignment };
        let params =
            NatParams { port_block: Some(block), collision: Collision::RemapEndpoint, ..NatParams::LINUX_RANDOM };
        let mut nat = lab(params);
        let ports = |nat: &mut Lab, n| -> BTreeSet<u16> {
            (1..=200).filter_map(|r| nat.out(host(n, 40_000), remote(r), 0)).map(|mapped| mapped.port()).collect()
        };
        let (one, two) = (ports(&mut nat, 1), ports(&mut nat, 2));
        assert!(one.len() == 128 && two.len() == 128 && one.is_disjoint(&two));
        let blocks: BTreeSet<_> = one.iter().map(|port| (port - 1024) / 64).collect();
        assert_eq!(blocks.len(), 2);
    }
}

#[test]
fn blocks_of_hosts_that_left_are_given_to_others() {
    let block = PortBlock { size: 16_128, max_blocks: 1, assignment: Assignment::Dynamic };
    let mut nat = lab(NatParams { port_block: Some(block), ..NatParams::LINUX_RANDOM });
    // There are four.
    assert!((1..=4).all(|n| nat.out(host(n, 1), remote(1), 0).is_some()));
    assert_eq!(nat.out(host(5, 1), remote(1), 0), None);
    assert!(nat.out(host(5, 1), remote(1), 30).is_some());
}

#[test]
fn a_host_has_so_many_sessions_and_no_more() {
    let mut nat = lab(NatParams { per_host_limit: Some(3), ..USUAL });
    let passed = |nat: &mut Lab, n| (1..=9).filter(|r| nat.out(host(n, 40_000), remote(*r), 0).is_some()).count();
    assert_eq!((passed(&mut nat, 1), passed(&mut nat, 2)), (3, 3));
}

#[test]
fn a_full_table_ends_somebody_or_refuses_the_newcomer() {
    let alive = |full_policy| {
        let mut nat = lab(NatParams { table_max: 3, full_policy, ..USUAL });
        for n in 1..=3 {
            nat.out(host(n, 40_000), remote(n), 0);
        }
        // The first is answered, the second is used last.
        nat.back(remote(1), 40_000, 1);
        nat.out(host(3, 40_000), remote(3), 2);
        nat.out(host(2, 40_000), remote(2), 3);
        let newcomer = nat.out(host(4, 40_000), remote(4), 4).is_some();
        let old = [1, 2, 3].map(|n| nat.back(remote(n), 40_000, 5) == Translated::To(host(n, 40_000)));
        (old, newcomer)
    };
    assert_eq!(alive(FullPolicy::DropNew), ([true, true, true], false));
    assert_eq!(alive(FullPolicy::EvictLru), ([false, true, true], true));
    assert_eq!(alive(FullPolicy::EvictUnreplied), ([true, false, true], true));
    let (old, newcomer) = alive(FullPolicy::EvictRandom);
    assert!(newcomer && old.iter().filter(|is_alive| **is_alive).count() == 2);
}

#[test]
fn a_pinhole_may_close_while_the_mapping_lives() {
    let mut nat = lab(NatParams { filter_refresh_in: Refresh::No, ..USUAL });
    nat.out(host(1, 40_000), remote(1), 0);
    assert_eq!(nat.back(remote(1), 40_000, 20), Translated::To(host(1, 40_000)));
    assert_eq!(nat.back(remote(1), 40_000, 31), Translated::Filtered);
    assert_eq!(nat.0.sessions(Instant::from_secs(31)), 1);
    nat.out(host(1, 40_000), remote(1), 32);
    assert_eq!(nat.back(remote(1), 40_000, 33), Translated::To(host(1, 40_000)));
}

#[test]
fn a_port_may_be_lost_with_the_mapping() {
    for (expiry_keeps_port, is_kept) in [(true, true), (false, false)] {
        let mut nat = lab(NatParams { expiry_keeps_port, ..USUAL });
        assert_eq!(nat.out(host(1, 40_000), remote(1), 0).unwrap().port(), 40_000);
        assert_eq!(nat.out(host(1, 40_000), remote(2), 20).unwrap().port(), 40_000);
        assert_eq!(nat.out(host(1, 40_000), remote(1), 60).unwrap().port() == 40_000, is_kept);
    }
}

#[test]
fn a_hairpin_turns_back_with_either_source() {
    let turned = |hairpin| {
        let mut nat = lab(NatParams { hairpin, filter: Filter::EndpointIndependent, ..USUAL });
        nat.out(host(1, 40_000), remote(1), 0);
        nat.0.handle_outbound(host(2, 5000), SocketAddrV4::new(WAN, 40_000), &mut 64, Instant::ZERO)
    };
    let destination = host(1, 40_000);
    assert_eq!(turned(Hairpin::Off), Translated::Hairpin);
    assert_eq!(turned(Hairpin::InternalSource), Translated::Hairpinned { source: host(2, 5000), destination });
    let source = SocketAddrV4::new(WAN, 5000);
    assert_eq!(turned(Hairpin::ExternalSource), Translated::Hairpinned { source, destination });
}

#[test]
fn a_hairpin_is_filtered_as_what_comes_from_outside_is() {
    let mut nat = lab(NatParams { hairpin: Hairpin::ExternalSource, ..USUAL });
    let mapped = [1, 2].map(|n| nat.out(host(n, 40_000 + u16::from(n)), remote(1), 0).unwrap());
    let mut turn = |from, to| nat.0.handle_outbound(from, to, &mut 64, Instant::ZERO);
    assert_eq!(turn(host(1, 40_001), mapped[1]), Translated::Filtered);
    let opened = Translated::Hairpinned { source: mapped[1], destination: host(1, 40_001) };
    assert_eq!(turn(host(2, 40_002), mapped[0]), opened);
    let answered = Translated::Hairpinned { source: mapped[0], destination: host(2, 40_002) };
    assert_eq!(turn(host(1, 40_001), mapped[1]), answered);
}

#[test]
fn a_change_of_behaviour_leaves_sessions_as_they_are() {
    let mut nat = lab(USUAL);
    let before = nat.out(host(1, 40_000), remote(1), 0);
    nat.0.set_params(NatParams::LINUX_RANDOM);
    assert_eq!(nat.out(host(1, 40_000), remote(1), 1), before);
    assert_ne!(nat.out(host(1, 40_000), remote(2), 1), before);
}

/// Whatever the parameters, live sessions do not share reply tuples, and an answer reaches whom it is for.
#[test]
fn no_profile_lets_two_sessions_share_a_tuple() {
    for name in NatParams::presets() {
        let params = NatParams::preset(name).unwrap();
        let outers: Vec<_> = (1..=params.pool.addresses).map(|n| Ipv4Addr::new(198, 18, 0, n as u8)).collect();
        let mut rng = Seed::from_number(1).stream("test", 0);
        let mut nat = Nat::new(params, &outers, rng_of(name));
        let mut now = Instant::ZERO;
        let mut passed = 0;
        for _ in 0..3_000 {
            now += Duration::from_millis(rng.below(2_000));
            let from = host(1 + rng.below(4) as u8, 40_000 + rng.below(3) as u16);
            let to = remote(1 + rng.below(3) as u8);
            let stranger = remote(1 + rng.below(5) as u8);
            let _ = nat.handle_inbound(stranger, SocketAddrV4::new(outers[0], from.port()), &mut 64, now);
            if let Translated::To(mapped) = nat.handle_outbound(from, to, &mut 64, now) {
                passed += 1;
                assert_eq!(nat.handle_inbound(to, mapped, &mut 64, now), Translated::To(from), "{name}");
            }
        }
        assert_eq!(nat.counts().shared_tuples, 0, "{name}");
        assert!(passed > 2_900, "{name} let {passed} pass");
    }
}

fn rng_of(name: &str) -> mesh_core::rng::Rng {
    Seed::from_number(7).stream(name, 0)
}

struct Lab(Nat);

impl Lab {
    /// Where a remote sees the packet come from.
    fn out(&mut self, from: SocketAddrV4, to: SocketAddrV4, secs: u64) -> Option<SocketAddrV4> {
        match self.0.handle_outbound(from, to, &mut 64, Instant::from_secs(secs)) {
            Translated::To(mapped) => Some(mapped),
            Translated::Exhausted => None,
            other => panic!("{other:?}"),
        }
    }

    fn back(&mut self, from: SocketAddrV4, port: u16, secs: u64) -> Translated {
        self.0.handle_inbound(from, SocketAddrV4::new(WAN, port), &mut 64, Instant::from_secs(secs))
    }
}

fn lab(params: NatParams) -> Lab {
    Lab(Nat::new(params, &[WAN], Seed::from_number(7).stream("nat", 0)))
}

fn host(number: u8, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, number), port)
}

fn remote(number: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(198, 19, 0, number), 3478)
}
