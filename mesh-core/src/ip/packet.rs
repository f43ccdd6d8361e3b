//! A borrowed, checked view of one IPv4 or IPv6 packet.

#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation)]

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Protocol numbers (IANA).
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// Tailscale's small messages inside the tunnel.
    pub const TSMP: u8 = 99;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// Why bytes are not an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Shorter than the smallest header of its version.
    #[error("shorter than an IP header")]
    Short,
    /// The version is neither 4 nor 6.
    #[error("neither IPv4 nor IPv6")]
    Version,
    /// The length in the header is below the header's own or beyond the bytes there are.
    #[error("the length in the header does not fit")]
    Length,
}

/// A packet whose header and length have been checked. `bytes()` ends where the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpPacket<'p> {
    bytes: &'p [u8],
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    header: usize,
}

impl<'p> IpPacket<'p> {
    /// Checks version, header and length; bytes behind the packet (padding) are left out.
    ///
    /// # Errors
    /// When the bytes are no IP packet.
    #[inline]
    pub fn parse(bytes: &'p [u8]) -> Result<Self, ParseError> {
        match bytes.first().map(|first| first >> 4) {
            Some(4) => Self::parse_v4(bytes),
            Some(6) => Self::parse_v6(bytes),
            Some(_) => Err(ParseError::Version),
            None => Err(ParseError::Short),
        }
    }

    #[inline]
    fn parse_v4(bytes: &'p [u8]) -> Result<Self, ParseError> {
        let head: &[u8; 20] = bytes.first_chunk().ok_or(ParseError::Short)?;
        let [first, _, l0, l1, _, _, _, _, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *head;
        let header = usize::from(first & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([l0, l1]));
        if header < 20 || total < header {
            return Err(ParseError::Length);
        }
        Ok(Self {
            bytes: bytes.get(..total).ok_or(ParseError::Length)?,
            source: IpAddr::V4(Ipv4Addr::new(s0, s1, s2, s3)),
            destination: IpAddr::V4(Ipv4Addr::new(d0, d1, d2, d3)),
            protocol,
            header,
        })
    }

    #[inline]
    fn parse_v6(bytes: &'p [u8]) -> Result<Self, ParseError> {
        let head: &[u8; 40] = bytes.first_chunk().ok_or(ParseError::Short)?;
        let [_, _, _, _, l0, l1, protocol, _, addresses @ ..] = *head;
        let (source, destination) = addresses.split_at(16);
        let address = |bytes: &[u8]| bytes.first_chunk::<16>().map(|b| IpAddr::V6(Ipv6Addr::from(*b)));
        let total = 40 + usize::from(u16::from_be_bytes([l0, l1]));
        Ok(Self {
            bytes: bytes.get(..total).ok_or(ParseError::Length)?,
            source: address(source).ok_or(ParseError::Short)?,
            destination: address(destination).ok_or(ParseError::Short)?,
            protocol,
            header: 40,
        })
    }

    /// The packet, without what lay behind it.
    #[must_use]
    pub fn bytes(&self) -> &'p [u8] {
        self.bytes
    }

    /// Source address.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        self.source
    }

    /// Destination address.
    #[must_use]
    pub fn destination(&self) -> IpAddr {
        self.destination
    }

    /// Protocol (IPv4) or next header (IPv6), see [`protocol`].
    #[must_use]
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// What follows the IP header; IPv6 extension headers are part of it.
    #[must_use]
    pub fn payload(&self) -> &'p [u8] {
        self.bytes.get(self.header..).unwrap_or_default()
    }

    /// Whether this is an IPv4 fragment other than the first.
    #[must_use]
    pub fn is_later_fragment(&self) -> bool {
        let offset = self.bytes.get(6..8).and_then(|b| b.first_chunk()).map_or(0, |b| u16::from_be_bytes(*b) & 0x1fff);
        self.source.is_ipv4() && offset != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_left_out() {
        let mut bytes = v4(24);
        bytes.extend([0; 8]);
        let packet = IpPacket::parse(&bytes).unwrap();
        assert_eq!((packet.bytes().len(), packet.payload().len()), (24, 4));
        assert_eq!(packet.destination(), IpAddr::from([10, 0, 0, 2]));
    }

    #[test]
    fn lies_about_lengths_are_found() {
        let check = |change: fn(&mut Vec<u8>), error| {
            let mut bytes = v4(24);
            change(&mut bytes);
            assert_eq!(IpPacket::parse(&bytes), Err(error));
        };
        check(|b| b.clear(), ParseError::Short);
        check(|b| b.truncate(19), ParseError::Short);
        check(|b| b[3] = 25, ParseError::Length);
        check(|b| b[3] = 19, ParseError::Length);
        check(|b| b[0] = 0x44, ParseError::Length);
        check(|b| b[0] = 0x4f, ParseError::Length);
        check(|b| b[0] = 0x75, ParseError::Version);
        check(|b| b[0] = 0x60, ParseError::Short);
    }

    #[test]
    fn ipv6_counts_its_header_apart() {
        let mut bytes = vec![0; 44];
        bytes[0] = 0x60;
        bytes[5] = 4;
        bytes[23] = 1;
        bytes[39] = 2;
        let packet = IpPacket::parse(&bytes).unwrap();
        assert_eq!(packet.source(), "::1".parse::<IpAddr>().unwrap());
        assert_eq!(packet.payload().len(), 4);
    }

    fn v4(total: u8) -> Vec<u8> {
        let mut bytes = vec![0; usize::from(total)];
        bytes[0] = 0x45;
        bytes[3] = total;
        bytes[9] = protocol::UDP;
        bytes[12..16].copy_from_slice(&[10, 0, 0, 1]);
        bytes[16..20].copy_from_slice(&[10, 0, 0, 2]);
        bytes
    }
}
