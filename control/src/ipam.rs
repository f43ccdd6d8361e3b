//! Overlay addresses: an offset gives a node one of 100.64.0.0/10 and the same one of fd7a:115c:a1e0::/48.
//!
//! Offsets are given in order and come around, so that the address of a node that left is not soon another's. Those
//! of services, and those that hosts of some kind use themselves, are left out.

use core::net::{Ipv4Addr, Ipv6Addr};
use std::collections::BTreeSet;

/// The first address of 100.64.0.0/10.
const V4_BASE: u32 = 0x6440_0000;
/// fd7a:115c:a1e0::
const V6_BASE: u128 = 0xfd7a_115c_a1e0_0000_0000_0000_0000_0000;
/// How many offsets 100.64.0.0/10 has, less the last.
const OFFSETS: u32 = (1 << 22) - 1;
/// fd7a:115c:a1e0::53 is MagicDNS.
const MAGIC_DNS_V6: u32 = 0x53;

/// Which offsets are given.
#[derive(Debug)]
pub struct Pool {
    taken: BTreeSet<u32>,
    next: u32,
}

impl Default for Pool {
    fn default() -> Self {
        Self { taken: BTreeSet::new(), next: 1 }
    }
}

impl Pool {
    /// Addresses that no node has; `None` when all four million are given.
    pub fn allocate(&mut self) -> Option<(Ipv4Addr, Ipv6Addr)> {
        let candidates = (self.next..OFFSETS).chain(1..self.next);
        let offset = candidates.into_iter().find(|offset| is_usable(*offset) && !self.taken.contains(offset))?;
        self.taken.insert(offset);
        self.next = offset + 1;
        Some((Ipv4Addr::from(V4_BASE + offset), Ipv6Addr::from(V6_BASE + u128::from(offset))))
    }

    /// Notes that a node has an address.
    pub fn take(&mut self, address: Ipv4Addr) {
        let Some(offset) = offset(address) else { return };
        self.taken.insert(offset);
        self.next = self.next.max(offset + 1);
    }

    /// An address is free again.
    pub fn free(&mut self, address: Ipv4Addr) {
        if let Some(offset) = offset(address) {
            self.taken.remove(&offset);
        }
    }
}

fn offset(address: Ipv4Addr) -> Option<u32> {
    u32::from(address).checked_sub(V4_BASE).filter(|offset| *offset < OFFSETS)
}

/// 100.100.0.0/24, 100.100.100.0/24 and 100.115.92.0/23 are services of stock clients and of ChromeOS.
fn is_usable(offset: u32) -> bool {
    let [_, b, c, _] = Ipv4Addr::from(V4_BASE + offset).octets();
    let is_service = matches!((b, c), (100, 0 | 100) | (115, 92 | 93));
    !is_service && offset != MAGIC_DNS_V6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_in_order_and_are_not_soon_given_again() {
        let mut pool = Pool::default();
        let first = pool.allocate().unwrap();
        assert_eq!((first.0.to_string(), first.1.to_string()), ("100.64.0.1".into(), "fd7a:115c:a1e0::1".into()));
        pool.free(first.0);
        assert_eq!(pool.allocate().unwrap().0, Ipv4Addr::new(100, 64, 0, 2));

        let mut restored = Pool::default();
        restored.take(Ipv4Addr::new(100, 64, 0, 9));
        assert_eq!(restored.allocate().unwrap().0, Ipv4Addr::new(100, 64, 0, 10));
    }

    #[test]
    fn services_are_left_out_and_the_pool_comes_around() {
        let mut pool = Pool::default();
        pool.take(Ipv4Addr::new(100, 64, 0, 0x52));
        assert_eq!(pool.allocate().unwrap().0, Ipv4Addr::new(100, 64, 0, 0x54));
        pool.take(Ipv4Addr::new(100, 100, 99, 255));
        assert_eq!(pool.allocate().unwrap().0, Ipv4Addr::new(100, 100, 101, 0));
        pool.take(Ipv4Addr::new(100, 115, 91, 255));
        assert_eq!(pool.allocate().unwrap().0, Ipv4Addr::new(100, 115, 94, 0));
        pool.take(Ipv4Addr::new(100, 127, 255, 254));
        assert_eq!(pool.allocate().unwrap().0, Ipv4Addr::new(100, 64, 0, 1));
        pool.free(Ipv4Addr::new(10, 0, 0, 1));
    }
}
