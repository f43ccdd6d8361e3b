//! Comparison of measured addresses.
//!
//! Points as in stock nodes: the faster of two gets the percentage by which it is faster, and kinds of addresses get a
//! bonus, because a network of one's own is likelier to stay and to be cheap. A new address must lead by
//! [`LEAD`] points to replace the one in use, so that noise does not move traffic about; on equal round trips IPv6 leads
//! IPv4 by just that much.

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// Points by which an address must lead the one in use.
pub const LEAD: u32 = 10;

/// Round trips closer than this are taken as equal: schedulers make more noise.
const NOISE: Duration = Duration::from_micros(500);

/// An address and its round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Where.
    pub address: SocketAddr,
    /// Smoothed round trip.
    pub latency: Duration,
}

/// Whether `new` should replace `current`, which still works.
#[must_use]
pub fn is_better(new: Measured, current: Measured) -> bool {
    if new.address == current.address {
        return false;
    }
    points(new, current) >= points(current, new) + LEAD
}

/// Points of one against the other.
fn points(one: Measured, other: Measured) -> u32 {
    let faster = if one.latency + NOISE < other.latency {
        // Percent of a ratio below one: fits.
        let ratio = 100 * one.latency.as_nanos() / other.latency.as_nanos();
        100 - u32::try_from(ratio).unwrap_or(100)
    } else {
        0
    };
    faster + bonus(one.address)
}

fn bonus(address: SocketAddr) -> u32 {
    let ip = address.ip();
    let family = if ip.is_ipv6() { 10 } else { 0 };
    let near = match ip {
        IpAddr::V4(v4) if v4.is_loopback() => 50,
        IpAddr::V4(v4) if v4.is_link_local() => 30,
        IpAddr::V4(v4) if v4.is_private() => 20,
        IpAddr::V6(v6) if v6.is_loopback() => 50,
        IpAddr::V6(v6) if v6.is_unicast_link_local() => 30,
        IpAddr::V6(v6) if v6.is_unique_local() => 20,
        IpAddr::V4(_) | IpAddr::V6(_) => 0,
    };
    family + near
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_replaces_what() {
        let check = |new: (&str, u64), current: (&str, u64), expected: bool| {
            let measured = |(address, millis): (&str, u64)| Measured {
                address: address.parse().unwrap(),
                latency: Duration::from_millis(millis),
            };
            assert_eq!(is_better(measured(new), measured(current)), expected, "{new:?} against {current:?}");
        };
        let (v4, other_v4) = ("192.0.2.1:1", "192.0.2.2:1");
        let (v6, private) = ("[2001:db8::1]:1", "10.0.0.1:1");
        check((v4, 1), (v4, 100), false);
        check((other_v4, 20), (v4, 20), false);
        check((other_v4, 19), (v4, 20), false);
        check((other_v4, 10), (v4, 20), true);
        check((other_v4, 20), (v4, 10), false);
        check((v6, 20), (v4, 20), true);
        check((v4, 20), (v6, 20), false);
        check((v6, 22), (v4, 20), false);
        check((v4, 15), (v6, 20), true);
        check((private, 20), (v4, 20), true);
        check((v4, 20), (private, 25), false);
        check((v4, 10), (private, 25), true);
        check((v4, 0), (other_v4, 0), false);
    }

    #[test]
    fn no_two_replace_each_other() {
        let addresses = ["192.0.2.1:1", "192.0.2.2:1", "[2001:db8::1]:1", "10.0.0.1:1", "[fd00::1]:1", "127.0.0.1:1"];
        let all: Vec<_> = addresses
            .iter()
            .flat_map(|address| (0..40).map(|millis| (address.parse().unwrap(), Duration::from_millis(millis))))
            .map(|(address, latency)| Measured { address, latency })
            .collect();
        for a in &all {
            assert!(all.iter().all(|b| !(is_better(*a, *b) && is_better(*b, *a))), "{a:?}");
        }
    }
}
