//! IP packets and addresses, as far as a data plane looks into them.

pub mod build;
pub mod checksum;
pub mod icmp;
pub mod packet;
pub mod prefix;
pub mod set;
pub mod tsmp;

use core::net::{IpAddr, Ipv6Addr};

/// What stands for an address where strangers are counted: one IPv4 address, however it is written, or a /64 of IPv6,
/// which is what one host has to itself. Linux limits the same.
#[must_use]
pub fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
    }
}
