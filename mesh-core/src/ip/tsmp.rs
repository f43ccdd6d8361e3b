//! TSMP, IP protocol 99: what nodes say to each other inside the tunnel, without their hosts.
//!
//! Of its messages a ping and its answer are built here; others are known by name. It never comes from a host and is
//! never given to one. `dataplane.md` §7.
#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation)]

use core::net::IpAddr;

use super::{
    build,
    packet::{IpPacket, protocol},
};

/// What a ping is known by.
pub const PING_DATA: usize = 8;

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tsmp {
    /// Are you there?
    Ping {
        /// Sent back unchanged.
        data: [u8; PING_DATA],
    },
    /// Yes.
    Pong {
        /// Of the ping.
        data: [u8; PING_DATA],
        /// The TCP port of the peer's own API; 0 when it has none.
        peer_api_port: u16,
    },
    /// Something else: a packet was rejected, a disco key, or what later versions say.
    Other,
}

impl Tsmp {
    /// The message in `packet`, if it holds one.
    #[must_use]
    pub fn parse(packet: &IpPacket<'_>) -> Option<Self> {
        if packet.protocol() != protocol::TSMP || packet.is_later_fragment() {
            return None;
        }
        let (kind, rest) = packet.payload().split_first()?;
        Some(match (kind, rest.split_first_chunk()) {
            (b'p', Some((data, _))) => Self::Ping { data: *data },
            (b'o', Some((data, rest))) => {
                let port = rest.first_chunk().map_or(0, |port| u16::from_be_bytes(*port));
                Self::Pong { data: *data, peer_api_port: port }
            }
            _ => Self::Other,
        })
    }

    /// A whole packet from `source` to `destination`; `None` when they are of two families, or there is nothing to say.
    #[must_use]
    pub fn packet(&self, source: IpAddr, destination: IpAddr) -> Option<Vec<u8>> {
        let payload = match self {
            Self::Ping { data } => [b"p".as_slice(), data].concat(),
            Self::Pong { data, peer_api_port } => [b"o".as_slice(), data, &peer_api_port.to_be_bytes()].concat(),
            Self::Other => return None,
        };
        build::packet(protocol::TSMP, source, destination, &payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_parsed_in_both_families() {
        let (ping, pong) = (Tsmp::Ping { data: [7; 8] }, Tsmp::Pong { data: [7; 8], peer_api_port: 58_436 });
        for (source, destination) in [("100.64.0.1", "100.64.0.2"), ("fd7a::1", "fd7a::2")] {
            for message in [ping, pong] {
                let bytes = message.packet(source.parse().unwrap(), destination.parse().unwrap()).unwrap();
                let packet = IpPacket::parse(&bytes).unwrap();
                assert_eq!(Tsmp::parse(&packet), Some(message));
            }
        }
        assert_eq!(ping.packet("100.64.0.1".parse().unwrap(), "fd7a::2".parse().unwrap()), None);
    }

    #[test]
    fn a_pong_without_a_port_is_one_and_the_rest_is_known_as_such() {
        let parse = |payload: &[u8], protocol| {
            let bytes = build::packet(protocol, [100, 64, 0, 1].into(), [100, 64, 0, 2].into(), payload).unwrap();
            Tsmp::parse(&IpPacket::parse(&bytes).unwrap())
        };
        assert_eq!(parse(b"o12345678", protocol::TSMP), Some(Tsmp::Pong { data: *b"12345678", peer_api_port: 0 }));
        for other in [&b"p1234567"[..], b"o", b"!\x06A\xc3\x50\x00\x16", b"a", b"?"] {
            assert_eq!(parse(other, protocol::TSMP), Some(Tsmp::Other), "{other:?}");
        }
        assert_eq!(parse(b"", protocol::TSMP), None);
        assert_eq!(parse(b"p12345678", 17), None);
    }
}
