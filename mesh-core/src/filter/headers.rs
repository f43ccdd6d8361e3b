//! What the filter looks at in a packet.
//!
//! A packet is judged by its first bytes, so whatever hides them is refused here: a first fragment too short for its
//! transport header, a later one that begins where it could overwrite that header, a header cut off, an IPv6 header
//! chain that does not end or that names another destination than the packet does. What is left has one meaning.

#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation)]

use core::net::IpAddr;

use crate::ip::packet::{IpPacket, protocol};

/// Later fragments begin at least this far into a packet, in blocks of 8 bytes: behind the largest IPv4 header and a TCP
/// header. Stock nodes: 80 bytes.
const MIN_FRAGMENT_OFFSET: u16 = 10;
/// IPv6 extension headers that are walked. RFC 8200 §4.1 lists six in their order, of which one may stand twice.
const MAX_EXTENSIONS: usize = 7;

/// IPv6 extension headers (IANA).
mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const DESTINATION: u8 = 60;
}

/// "Reserved" (IANA); stock nodes give it another meaning inside, so they refuse it too.
const PROTOCOL_RESERVED: u8 = 255;

/// What the filter looks at in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol: for IPv6 that of the first header that is no extension.
    pub protocol: u8,
    /// What that protocol says.
    pub content: Content,
}

/// What a packet's protocol says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A TCP segment.
    Tcp {
        /// Source and destination port.
        ports: Ports,
        /// Whether it opens a connection: SYN without ACK.
        opens: bool,
    },
    /// UDP or SCTP.
    Datagram(Ports),
    /// ICMP of the packet's own family.
    Icmp(IcmpKind),
    /// Tailscale's small messages inside the tunnel.
    Tsmp,
    /// A fragment other than the first.
    LaterFragment,
    /// Any other protocol.
    Other,
}

/// The ports of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// Source.
    pub source: u16,
    /// Destination.
    pub destination: u16,
}

/// What an ICMP message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpKind {
    /// An answer to an echo request.
    EchoReply,
    /// An error about something that was sent.
    Error,
    /// Anything else, echo requests among it.
    Other,
}

/// A packet whose headers do not say what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadersError {
    /// A fragment that hides or could overwrite the transport header.
    #[error("a fragment that hides or could overwrite the transport header")]
    Fragment,
    /// A header that is cut off, or one that is not understood.
    #[error("a header that is cut off or not understood")]
    Unknown,
}

/// Where a packet stands among the fragments of a larger one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole,
    First,
    Later,
}

impl Headers {
    /// The headers of a packet. Checksums are not looked at: inside a tunnel the tag vouches.
    ///
    /// # Errors
    /// When they do not say what the packet is.
    #[inline]
    pub fn of(packet: &IpPacket<'_>) -> Result<Self, HeadersError> {
        let (protocol, part, payload) = match packet.source() {
            IpAddr::V4(_) => (packet.protocol(), v4_part(packet)?, packet.payload()),
            IpAddr::V6(_) => walk_v6(packet.protocol(), packet.payload())?,
        };
        if part != Part::Whole && protocol == protocol::TSMP {
            return Err(HeadersError::Fragment);
        }
        let content = match part {
            Part::Later => Content::LaterFragment,
            Part::First => content(protocol, packet.source(), payload).map_err(|_| HeadersError::Fragment)?,
            Part::Whole => content(protocol, packet.source(), payload)?,
        };
        Ok(Self { source: packet.source(), destination: packet.destination(), protocol, content })
    }
}

#[inline]
fn v4_part(packet: &IpPacket<'_>) -> Result<Part, HeadersError> {
    let field = packet.bytes().get(6..8).and_then(|bytes| bytes.first_chunk()).ok_or(HeadersError::Unknown)?;
    let field = u16::from_be_bytes(*field);
    part(field & 0x1fff, field & 0x2000 != 0)
}

#[inline]
fn part(offset: u16, is_followed: bool) -> Result<Part, HeadersError> {
    match offset {
        0 if is_followed => Ok(Part::First),
        0 => Ok(Part::Whole),
        1..MIN_FRAGMENT_OFFSET => Err(HeadersError::Fragment),
        _ => Ok(Part::Later),
    }
}

/// Follows the chain of extension headers (RFC 8200 §4) to the protocol.
#[inline]
fn walk_v6(first: u8, mut rest: &[u8]) -> Result<(u8, Part, &[u8]), HeadersError> {
    let (mut next, mut seen) = (first, Part::Whole);
    for _ in 0..=MAX_EXTENSIONS {
        let length = match next {
            extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION => {
                let [_, length, _, segments_left, ..] = *rest else { return Err(HeadersError::Unknown) };
                // RFC 5095: whoever is named there is where it goes, and not who is judged.
                if next == extension::ROUTING && segments_left > 0 {
                    return Err(HeadersError::Unknown);
                }
                8 * (usize::from(length) + 1)
            }
            extension::FRAGMENT => {
                let [_, _, o0, o1, _, _, _, _, ..] = *rest else { return Err(HeadersError::Unknown) };
                // A fragment inside a fragment.
                if seen != Part::Whole {
                    return Err(HeadersError::Fragment);
                }
                seen = part(u16::from_be_bytes([o0, o1]) >> 3, o1 & 1 != 0)?;
                8
            }
            _ => return Ok((next, seen, rest)),
        };
        next = rest.first().copied().ok_or(HeadersError::Unknown)?;
        rest = rest.get(length..).ok_or(HeadersError::Unknown)?;
        // What follows is of the middle of the packet, no header.
        if seen == Part::Later {
            return Ok((next, seen, rest));
        }
    }
    Err(HeadersError::Unknown)
}

#[inline]
fn content(protocol: u8, source: IpAddr, payload: &[u8]) -> Result<Content, HeadersError> {
    let ports =
        |s0, s1, d0, d1| Ports { source: u16::from_be_bytes([s0, s1]), destination: u16::from_be_bytes([d0, d1]) };
    match (protocol, source) {
        (protocol::TCP, _) => {
            let head: &[u8; 20] = payload.first_chunk().ok_or(HeadersError::Unknown)?;
            let [s0, s1, d0, d1, _, _, _, _, _, _, _, _, _, flags, ..] = *head;
            const SYN: u8 = 0x02;
            const ACK: u8 = 0x10;
            Ok(Content::Tcp { ports: ports(s0, s1, d0, d1), opens: flags & (SYN | ACK) == SYN })
        }
        (protocol::UDP, _) => {
            let [s0, s1, d0, d1, _, _, _, _] = *payload.first_chunk().ok_or(HeadersError::Unknown)?;
            Ok(Content::Datagram(ports(s0, s1, d0, d1)))
        }
        (protocol::SCTP, _) => {
            let head: &[u8; 12] = payload.first_chunk().ok_or(HeadersError::Unknown)?;
            let [s0, s1, d0, d1, ..] = *head;
            Ok(Content::Datagram(ports(s0, s1, d0, d1)))
        }
        (protocol::ICMP, IpAddr::V4(_)) => {
            let [kind, code, _, _] = *payload.first_chunk().ok_or(HeadersError::Unknown)?;
            Ok(Content::Icmp(match (kind, code) {
                (0, 0) => IcmpKind::EchoReply,
                // Unreachable, time exceeded, parameter problem (RFC 792).
                (3 | 11 | 12, _) => IcmpKind::Error,
                _ => IcmpKind::Other,
            }))
        }
        (protocol::ICMPV6, IpAddr::V6(_)) => {
            let [kind, code, _, _] = *payload.first_chunk().ok_or(HeadersError::Unknown)?;
            Ok(Content::Icmp(match (kind, code) {
                (129, 0) => IcmpKind::EchoReply,
                // Unreachable, too big, time exceeded, parameter problem (RFC 4443 §3).
                (1..=4, _) => IcmpKind::Error,
                _ => IcmpKind::Other,
            }))
        }
        (protocol::TSMP, _) => Ok(Content::Tsmp),
        (PROTOCOL_RESERVED, _) => Err(HeadersError::Unknown),
        _ => Ok(Content::Other),
    }
}
