//! ICMP echo for both families (RFC 792, RFC 4443), as `mesh ping` uses it inside the tunnel.

use core::net::IpAddr;

use super::{
    build, checksum,
    packet::{IpPacket, protocol},
};

/// An echo request or reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo<'p> {
    /// Request or reply.
    pub kind: EchoKind,
    /// Identifier: which program asks.
    pub id: u16,
    /// Sequence number.
    pub sequence: u16,
    /// What is sent back unchanged.
    pub payload: &'p [u8],
}

/// Which way an echo goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EchoKind {
    /// The question.
    Request,
    /// The answer.
    Reply,
}

impl<'p> Echo<'p> {
    /// The echo in `packet`, if it holds one. The checksum is not looked at: inside a tunnel the tag vouches.
    #[must_use]
    pub fn parse(packet: &IpPacket<'p>) -> Option<Self> {
        let [kind, 0, _, _, i0, i1, s0, s1, payload @ ..] = packet.payload() else { return None };
        let kind = match (packet.protocol(), kind) {
            (protocol::ICMP, 8) | (protocol::ICMPV6, 128) => EchoKind::Request,
            (protocol::ICMP, 0) | (protocol::ICMPV6, 129) => EchoKind::Reply,
            _ => return None,
        };
        if packet.is_later_fragment() {
            return None;
        }
        let (id, sequence) = (u16::from_be_bytes([*i0, *i1]), u16::from_be_bytes([*s0, *s1]));
        Some(Self { kind, id, sequence, payload })
    }

    /// A whole packet from `source` to `destination`; `None` when they are of two families.
    #[must_use]
    pub fn packet(&self, source: IpAddr, destination: IpAddr) -> Option<Vec<u8>> {
        let mut icmp = vec![0; 8 + self.payload.len()];
        icmp[4..6].copy_from_slice(&self.id.to_be_bytes());
        icmp[6..8].copy_from_slice(&self.sequence.to_be_bytes());
        icmp[8..].copy_from_slice(self.payload);
        let (protocol, pseudo) = match (source, destination) {
            (IpAddr::V4(_), IpAddr::V4(_)) => {
                icmp[0] = if self.kind == EchoKind::Request { 8 } else { 0 };
                (protocol::ICMP, 0)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                icmp[0] = if self.kind == EchoKind::Request { 128 } else { 129 };
                // RFC 4443 §2.3: the pseudo-header is addresses, length and next header.
                let addresses = checksum::add(checksum::add(0, &source.octets()), &destination.octets());
                let length = u64::try_from(icmp.len()).ok()?;
                (protocol::ICMPV6, addresses + length + u64::from(protocol::ICMPV6))
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
        };
        let sum = checksum::finish(checksum::add(pseudo, &icmp));
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        build::packet(protocol, source, destination, &icmp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_parsed_in_both_families() {
        let echo = Echo { kind: EchoKind::Request, id: 7, sequence: 9, payload: b"payload" };
        for (source, destination) in [("10.0.0.1", "10.0.0.2"), ("fd7a::1", "fd7a::2")] {
            let bytes = echo.packet(source.parse().unwrap(), destination.parse().unwrap()).unwrap();
            let packet = IpPacket::parse(&bytes).unwrap();
            assert_eq!(Echo::parse(&packet), Some(echo));
            assert_eq!(packet.destination(), destination.parse::<IpAddr>().unwrap());
        }
        assert_eq!(echo.packet("10.0.0.1".parse().unwrap(), "fd7a::2".parse().unwrap()), None);
    }

    #[test]
    fn checksums_are_right() {
        let echo = Echo { kind: EchoKind::Reply, id: 1, sequence: 2, payload: b"odd" };
        let bytes = echo.packet("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()).unwrap();
        assert_eq!((checksum::checksum(&bytes[..20]), checksum::checksum(&bytes[20..])), (0, 0));
    }
}
