//! The NAT model answers as Linux does: results that were measured on Linux 6.18 (`nat-simulation` §1 and §12), as
//! far as they concern a masquerading home router with its WAN input filtered.

use core::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};
use std::collections::BTreeSet;

use mesh_core::{rng::Seed, time::Instant};
use sim::net::nat::{Alloc, EarlyInbound, Mapping, Nat, NatParams, Refresh, Translated};

const WAN: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

#[test]
fn one_host_shows_its_own_port_to_four_remotes() {
    let mut nat = lab(NatParams::LINUX_FILTERED);
    for remote in 1..=4 {
        assert_eq!(nat.out(host(1, 40_000), remote, 0), Some(40_000));
    }
}

#[test]
fn a_second_host_with_the_same_port_gets_one_random_port_for_the_same_remotes() {
    let mut nat = lab(NatParams::LINUX_FILTERED);
    for remote in 1..=4 {
        nat.out(host(1, 40_000), remote, 0);
    }
    let ports: BTreeSet<_> = (1..=4).map(|remote| nat.out(host(2, 40_000), remote, 0)).collect();
    assert_eq!(ports.len(), 1);
    assert!(!ports.contains(&Some(40_000)) && !ports.contains(&None));
}

#[test]
fn a_host_shows_two_ports_at_once_when_its_own_is_taken_for_one_remote() {
    let mut nat = lab(NatParams::LINUX_FILTERED);
    nat.out(host(1, 40_000), 1, 0);
    let other = host(2, 40_000);
    assert_eq!(nat.out(other, 2, 0), Some(40_000));
    let replacement = nat.out(other, 1, 0);
    assert_ne!(replacement, Some(40_000));
    assert_eq!((nat.out(other, 3, 0), nat.out(other, 4, 0)), (replacement, replacement));
    assert_eq!(nat.out(other, 2, 0), Some(40_000));
}

#[test]
fn a_replacement_comes_from_the_class_of_the_port() {
    for (port, class) in [(100, 1..=511), (511, 1..=511), (600, 600..=1023), (1023, 600..=1023), (1024, 1024..=65_535)]
    {
        let mut nat = lab(NatParams::LINUX_FILTERED);
        nat.out(host(1, port), 1, 0);
        let replacement = nat.out(host(2, port), 1, 0).expect("there are free ports");
        assert!(class.contains(&replacement) && replacement != port, "{port} became {replacement}");
    }
}

#[test]
fn random_allocation_shows_every_remote_another_port_and_keeps_it() {
    let params =
        NatParams { mapping: Mapping::AddressAndPortDependent, alloc: Alloc::Random, ..NatParams::LINUX_FILTERED };
    let mut nat = lab(params);
    let ports: Vec<_> = (1..=4).map(|remote| nat.out(host(1, 40_000), remote, 0)).collect();
    assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 4);
    let again: Vec<_> = (1..=4).map(|remote| nat.out(host(1, 40_000), remote, 1)).collect();
    assert_eq!(ports, again);
}

#[test]
fn only_the_exact_remote_gets_in() {
    let mut nat = lab(NatParams::LINUX_FILTERED);
    nat.out(host(1, 40_000), 1, 0);
    assert_eq!(nat.back(remote(1), 40_000, 1), Translated::To(host(1, 40_000)));
    assert_eq!(nat.back(remote(2), 40_000, 1), Translated::Filtered);
    let other_port = SocketAddrV4::new(*remote(1).ip(), 9);
    assert_eq!(nat.back(other_port, 40_000, 1), Translated::Filtered);
    assert_eq!(nat.back(remote(1), 40_001, 1), Translated::Filtered);
}

#[test]
fn an_unanswered_session_lives_for_thirty_seconds_after_the_last_packet() {
    let mut nat = lab(NatParams::LINUX_FILTERED);
    nat.out(host(1, 40_000), 1, 0);
    nat.out(host(1, 40_000), 1, 20);
    assert_eq!(nat.0.sessions(Instant::from_secs(49)), 1);
    assert_eq!(nat.0.sessions(Instant::from_secs(50)), 0);
}

#[test]
fn a_session_answered_within_two_seconds_still_has_thirty() {
    let mut nat = lab(NatParams::LINUX_FILTERED);
    nat.out(host(1, 40_000), 1, 0);
    nat.back(remote(1), 40_000, 1);
    assert_eq!(nat.back(remote(1), 40_000, 32), Translated::Filtered);
}

#[test]
fn a_session_used_both_ways_for_longer_has_two_minutes() {
    for last_is_inbound in [true, false] {
        let mut nat = lab(NatParams::LINUX_FILTERED);
        nat.out(host(1, 40_000), 1, 0);
        nat.back(remote(1), 40_000, 1);
        if last_is_inbound {
            nat.back(remote(1), 40_000, 3);
        } else {
            nat.out(host(1, 40_000), 1, 3);
        }
        assert_eq!(nat.0.sessions(Instant::from_secs(122)), 1);
        assert_eq!(nat.0.sessions(Instant::from_secs(123)), 0);
    }
}

#[test]
fn both_directions_refresh_unless_told_otherwise() {
    let alive = |refresh_in| {
        let mut nat = lab(NatParams { refresh_in, ..NatParams::LINUX_FILTERED });
        nat.out(host(1, 40_000), 1, 0);
        nat.back(remote(1), 40_000, 29);
        nat.0.sessions(Instant::from_secs(31))
    };
    assert_eq!((alive(Refresh::Yes), alive(Refresh::No)), (1, 0));
}

#[test]
fn after_expiry_the_port_is_the_same_unless_another_host_took_it() {
    let mut nat = lab(NatParams::LINUX_FILTERED);
    nat.out(host(1, 40_002), 1, 0);
    assert_eq!(nat.out(host(1, 40_002), 1, 40), Some(40_002));
    assert_eq!(nat.out(host(2, 40_002), 1, 80), Some(40_002));
    let port = nat.out(host(1, 40_002), 1, 81);
    assert!(port.is_some() && port != Some(40_002));
}

#[test]
fn a_full_table_drops_new_flows_and_keeps_old_ones() {
    let mut nat = lab(NatParams { table_max: 200, ..NatParams::LINUX_FILTERED });
    let passed = (0..400).filter(|n| nat.out(host(1, 10_000 + n), 1, 0).is_some()).count();
    assert_eq!((passed, nat.0.counts().exhausted), (200, 200));
    assert_eq!(nat.back(remote(1), 10_000, 1), Translated::To(host(1, 10_000)));
    assert_eq!(nat.out(host(1, 10_000), 1, 2), Some(10_000));
}

#[test]
fn a_crowded_class_of_ports_is_exhausted_and_nobody_shares_a_tuple() {
    let mut nat = lab(NatParams::LINUX_FILTERED);
    let passed = (0..600).filter(|n| nat.out(SocketAddrV4::new(lan(*n), 100), 1, 0).is_some()).count();
    assert_eq!((passed, nat.0.counts().shared_tuples), (511, 0));
}

#[test]
fn inbound_first_changes_the_port_only_when_the_router_accepts_it() {
    let port = |early_inbound| {
        let mut nat = lab(NatParams { early_inbound, ..NatParams::LINUX_FILTERED });
        let early = nat.back(remote(1), 40_000, 0);
        (early, nat.out(host(1, 40_000), 1, 1))
    };
    assert_eq!(port(EarlyInbound::Ignore), (Translated::Filtered, Some(40_000)));
    let (early, moved) = port(EarlyInbound::Clash);
    assert!(early == Translated::Local && moved.is_some() && moved != Some(40_000));
}

#[test]
fn masquerading_alone_does_not_hairpin() {
    let mut nat = lab(NatParams::LINUX_FILTERED);
    nat.out(host(1, 40_000), 1, 0);
    let result = nat.0.handle_outbound(host(2, 5), SocketAddrV4::new(WAN, 40_000), &mut 64, Instant::ZERO);
    assert_eq!(result, Translated::Hairpin);
}

#[test]
fn a_packet_with_a_low_hop_limit_opens_the_way_and_dies() {
    let mut nat = lab(NatParams::LINUX_FILTERED);
    let result = nat.0.handle_outbound(host(1, 40_000), remote(1), &mut 1, Instant::ZERO);
    assert_eq!(result, Translated::TtlExpired);
    assert_eq!(nat.back(remote(1), 40_000, 1), Translated::To(host(1, 40_000)));
}

#[test]
fn a_reboot_forgets_everything() {
    let mut nat = lab(NatParams::LINUX_FILTERED);
    nat.out(host(1, 40_000), 1, 0);
    nat.out(host(2, 40_000), 1, 0);
    nat.0.reboot(WAN);
    assert_eq!(nat.back(remote(1), 40_000, 1), Translated::Filtered);
    assert_eq!(nat.out(host(2, 40_000), 1, 1), Some(40_000));
}

/// Random steps: whatever happens, live sessions do not share reply tuples, and what comes back reaches whom it
/// was meant for.
#[test]
fn nothing_that_hosts_do_makes_two_of_them_share_a_tuple() {
    let mut rng = Seed::from_number(1).stream("test", 0);
    let mut nat = lab(NatParams { table_max: 64, ..NatParams::LINUX_FILTERED });
    let mut now = Instant::ZERO;
    for _ in 0..20_000 {
        now += Duration::from_millis(rng.below(2_000));
        let from = host(1 + rng.below(4) as u8, 40_000 + rng.below(3) as u16);
        let to = remote(1 + rng.below(3) as u8);
        if let Translated::To(mapped) = nat.0.handle_outbound(from, to, &mut 64, now) {
            assert_eq!(nat.0.handle_inbound(to, mapped, &mut 64, now), Translated::To(from));
        }
    }
    let counts = nat.0.counts();
    assert!(counts.shared_tuples == 0 && counts.remapped > 100 && counts.exhausted == 0, "{counts:?}");
}

struct Lab(Nat);

impl Lab {
    /// The port that a remote sees.
    fn out(&mut self, from: SocketAddrV4, to: u8, secs: u64) -> Option<u16> {
        match self.0.handle_outbound(from, remote(to), &mut 64, Instant::from_secs(secs)) {
            Translated::To(mapped) => Some(mapped.port()),
            Translated::Filtered
            | Translated::Exhausted
            | Translated::TtlExpired
            | Translated::Hairpin
            | Translated::Local => None,
        }
    }

    fn back(&mut self, from: SocketAddrV4, port: u16, secs: u64) -> Translated {
        self.0.handle_inbound(from, SocketAddrV4::new(WAN, port), &mut 64, Instant::from_secs(secs))
    }
}

fn lab(params: NatParams) -> Lab {
    Lab(Nat::new(params, WAN, Seed::from_number(7).stream("nat", 0)))
}

fn host(number: u8, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, number), port)
}

fn lan(number: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(192, 168, 0, 0).to_bits() + u32::from(number))
}

fn remote(number: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(198, 19, 0, number), 3478)
}
