//! Two sides that send to each other through their routers: when that works, and when never (`nat-simulation` §1).

use core::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use mesh_core::{rng::Seed, time::Instant};
use sim::net::nat::{Nat, NatParams, Translated};

/// From router to router.
const DELAY_MS: u64 = 50;
/// From packet to packet of a side.
const EVERY_MS: u64 = 100;
/// When it is given up.
const END_MS: u64 = 2_000;
/// How much later the second side starts, in milliseconds.
const SKEWS: [u64; 6] = [0, 20, 40, 60, 100, 200];

const FILTERED: NatParams = NatParams::LINUX_FILTERED;
const OPEN: NatParams = NatParams::LINUX_OPEN;

/// Measured on Linux 6.18: 50, 70, 92, 152, 151, 251 ms and so on.
#[test]
fn the_crossing_window_is_the_one_that_was_measured() {
    let late = [Some(50), Some(70), Some(90), Some(150), Some(150), Some(250)];
    let crossing_only = [Some(50), Some(70), Some(90), None, None, None];
    assert_eq!(SKEWS.map(|skew| punch([FILTERED, FILTERED], skew, Opener::None)), late);
    assert_eq!(SKEWS.map(|skew| punch([FILTERED, OPEN], skew, Opener::None)), crossing_only);
    assert_eq!(SKEWS.map(|skew| punch([OPEN, OPEN], skew, Opener::None)), crossing_only);
    assert_eq!(SKEWS.map(|skew| punch([OPEN, FILTERED], skew, Opener::None)), late);
}

/// A router that rejects keeps nothing of what it rejects.
#[test]
fn a_router_that_rejects_is_punched_like_one_that_drops() {
    let met = SKEWS.map(|skew| punch([FILTERED, NatParams::LINUX_REJECT], skew, Opener::None).is_some());
    assert_eq!(met, [true; 6]);
}

/// The first packet opens the own router and dies before the other's.
#[test]
fn an_opener_with_a_low_hop_limit_makes_every_pair_of_preserving_routers_meet() {
    for pair in [[FILTERED, OPEN], [OPEN, OPEN], [OPEN, FILTERED], [FILTERED, FILTERED]] {
        assert!(SKEWS.iter().all(|skew| punch(pair, *skew, Opener::LowHopLimit).is_some()));
    }
}

#[test]
fn a_random_port_is_met_only_by_a_side_that_lets_in_whoever_comes() {
    let hard = NatParams::LINUX_RANDOM;
    let met = |other| punch([hard, other], 0, Opener::None).is_some();
    assert_eq!([FILTERED, OPEN, hard, NatParams::LINUX_FULLCONE].map(met), [false, false, false, true]);
    // One packet to its address is enough where the filter looks at addresses alone.
    assert!(met(NatParams::EASY_AF));
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Opener {
    None,
    /// A packet that dies in the core, 300 ms before the others.
    LowHopLimit,
}

/// When both sides have received something, in milliseconds; each sends to where the other says it is.
fn punch(routers: [NatParams; 2], skew_ms: u64, opener: Opener) -> Option<u64> {
    let mut sides = [0, 1].map(|number| Side {
        nat: Nat::new(routers[number], &[wan(number)], Seed::from_number(7).stream("nat", number as u64)),
        host: SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 10), 40_000),
        sends_to: SocketAddrV4::new(wan(1 - number), 40_000),
        received: None,
    });
    let head_start = if opener == Opener::LowHopLimit { 300 } else { 0 };
    // Arrival, to which side, from, to.
    let mut flying: Vec<(u64, usize, SocketAddrV4, SocketAddrV4)> = Vec::new();
    for now in 0..END_MS {
        let at = Instant::ZERO + Duration::from_millis(now);
        for (_, to_side, from, to) in flying.extract_if(.., |(arrives, ..)| *arrives == now) {
            let side = &mut sides[to_side];
            if let Translated::To(host) = side.nat.handle_inbound(from, to, &mut 62, at) {
                assert_eq!(host, side.host);
                side.received.get_or_insert(now);
                // Who answers, answers what was seen.
                side.sends_to = from;
            }
        }
        for number in [0, 1] {
            let start = if number == 1 { skew_ms } else { 0 };
            let Some(since) = now.checked_sub(start) else { continue };
            let is_opener = since == 0 && opener == Opener::LowHopLimit;
            let is_due = since >= head_start && (since - head_start).is_multiple_of(EVERY_MS);
            if !is_opener && !is_due {
                continue;
            }
            let side = &mut sides[number];
            let mut ttl = if is_opener { 2 } else { 64 };
            let sent = side.nat.handle_outbound(side.host, side.sends_to, &mut ttl, at);
            if let Translated::To(mapped) = sent
                && ttl > 1
            {
                flying.push((now + DELAY_MS, 1 - number, mapped, side.sends_to));
            }
        }
        if let [Some(one), Some(other)] = [sides[0].received, sides[1].received] {
            return Some(one.max(other));
        }
    }
    None
}

struct Side {
    nat: Nat,
    host: SocketAddrV4,
    sends_to: SocketAddrV4,
    received: Option<u64>,
}

fn wan(side: usize) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 0, 1 + side as u8)
}
