//! What applications put into the tunnel: real IP packets that can be told apart, and recognised where they must
//! not be.
//!
//! A message is an ICMP echo or a UDP datagram. Its payload says which traffic it belongs to, which message it is
//! and how long an answer is wanted; the rest is a pattern of two bytes that are the run's own. Whoever sees a
//! few bytes of that pattern on a link has seen plaintext.

use core::net::{IpAddr, Ipv4Addr};

use mesh_core::{
    ip::{
        checksum,
        icmp::{Echo, EchoKind},
        packet::{IpPacket, protocol},
    },
    rng::Rng,
};

/// Bytes of a message that are not pattern.
const HEAD_BYTES: usize = 12;

/// Smallest message: enough pattern that it shows in eight bytes at any alignment.
pub const MIN_BYTES: usize = HEAD_BYTES + 20;

/// Largest message: what fits into the smallest IPv6 MTU with IPv4 and UDP or ICMP headers.
pub const MAX_BYTES: usize = 1280 - IP_BYTES - 8;

const IP_BYTES: usize = 20;

/// The port that answers requests.
pub(crate) const SERVER_PORT: u16 = 7000;

/// Ports that ask are these plus the number of the traffic.
const CLIENT_PORTS: u16 = 20_000;

/// A message of an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Which traffic it belongs to.
    pub flow: u32,
    /// Which message of that traffic.
    pub sequence: u32,
    /// Question or answer.
    pub role: Role,
    /// How it travels.
    pub carrier: Carrier,
    /// Bytes of payload.
    pub bytes: usize,
    /// Bytes of payload that the answer has.
    pub answer_bytes: usize,
}

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// From who started it.
    Question,
    /// Back.
    Answer,
}

/// How a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// ICMP echo with this identifier.
    Echo {
        /// The identifier.
        id: u16,
    },
    /// UDP.
    Udp,
}

/// The two bytes that fill messages of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker([u8; 2]);

impl Marker {
    /// Two bytes that differ.
    #[must_use]
    pub fn new(rng: &mut Rng) -> Self {
        let first = rng.u32() as u8;
        let second = first.wrapping_add(1 + rng.below(255) as u8);
        Self([first, second])
    }

    /// Whether a piece of the pattern is in `bytes`. Any 15 bytes of it are found.
    #[must_use]
    pub fn is_in(self, bytes: &[u8]) -> bool {
        let [a, b] = self.0;
        let pattern = u64::from_le_bytes([a, b, a, b, a, b, a, b]);
        let other = pattern.rotate_left(8);
        let mut found = false;
        for chunk in bytes.as_chunks::<8>().0 {
            let word = u64::from_le_bytes(*chunk);
            found |= word == pattern || word == other;
        }
        found
    }

    fn fill(self, bytes: &mut [u8]) {
        let (pairs, rest) = bytes.as_chunks_mut::<2>();
        pairs.fill(self.0);
        rest.fill(self.0[0]);
    }

    fn fills(self, bytes: &[u8]) -> bool {
        // Every byte is the one two before it, which is compared many bytes at a time.
        match bytes {
            [] => true,
            [first] => *first == self.0[0],
            [first, second, rest @ ..] => [*first, *second] == self.0 && *rest == bytes[..rest.len()],
        }
    }
}

impl Message {
    /// The IP packet of the message.
    ///
    /// # Panics
    /// When the message is shorter than [`MIN_BYTES`] or longer than [`MAX_BYTES`].
    #[must_use]
    pub fn packet(&self, from: Ipv4Addr, to: Ipv4Addr, marker: Marker) -> Vec<u8> {
        let mut payload = vec![0; self.bytes];
        payload[..4].copy_from_slice(&self.flow.to_be_bytes());
        payload[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        payload[8..12].copy_from_slice(&(self.answer_bytes as u32).to_be_bytes());
        marker.fill(&mut payload[HEAD_BYTES..]);
        match self.carrier {
            Carrier::Echo { id } => {
                let kind = match self.role {
                    Role::Question => EchoKind::Request,
                    Role::Answer => EchoKind::Reply,
                };
                let echo = Echo { kind, id, sequence: self.sequence as u16, payload: &payload };
                echo.packet(IpAddr::V4(from), IpAddr::V4(to)).expect("both addresses are IPv4 and the payload is short")
            }
            Carrier::Udp => {
                let client = CLIENT_PORTS.wrapping_add(self.flow as u16);
                let ports = match self.role {
                    Role::Question => (client, SERVER_PORT),
                    Role::Answer => (SERVER_PORT, client),
                };
                udp_packet(from, to, ports, &payload)
            }
        }
    }

    /// The message in `packet`; `None` when it is none of this run's, or damaged.
    #[must_use]
    pub fn parse(packet: &IpPacket<'_>, marker: Marker) -> Option<Self> {
        let (role, carrier, payload) = match packet.protocol() {
            protocol::ICMP => {
                let echo = Echo::parse(packet)?;
                let role = match echo.kind {
                    EchoKind::Request => Role::Question,
                    EchoKind::Reply => Role::Answer,
                };
                (role, Carrier::Echo { id: echo.id }, echo.payload)
            }
            protocol::UDP => {
                let [_, _, d0, d1, _, _, _, _, payload @ ..] = packet.payload() else { return None };
                let to_server = u16::from_be_bytes([*d0, *d1]) == SERVER_PORT;
                (if to_server { Role::Question } else { Role::Answer }, Carrier::Udp, payload)
            }
            _ => return None,
        };
        let ([f0, f1, f2, f3, s0, s1, s2, s3, a0, a1, a2, a3], pattern) = payload.split_first_chunk::<HEAD_BYTES>()?;
        marker.fills(pattern).then_some(Self {
            flow: u32::from_be_bytes([*f0, *f1, *f2, *f3]),
            sequence: u32::from_be_bytes([*s0, *s1, *s2, *s3]),
            role,
            carrier,
            bytes: payload.len(),
            answer_bytes: u32::from_be_bytes([*a0, *a1, *a2, *a3]) as usize,
        })
    }

    /// What a host answers to a question; `None` to an answer.
    #[must_use]
    pub fn answer(&self) -> Option<Self> {
        let bytes = self.answer_bytes.clamp(MIN_BYTES, MAX_BYTES);
        match self.role {
            Role::Question => Some(Self { role: Role::Answer, bytes, ..*self }),
            Role::Answer => None,
        }
    }
}

fn udp_packet(from: Ipv4Addr, to: Ipv4Addr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let udp_bytes = 8 + payload.len();
    let mut bytes = vec![0; IP_BYTES + udp_bytes];
    let (ip, udp) = bytes.split_at_mut(IP_BYTES);
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&((IP_BYTES + udp_bytes) as u16).to_be_bytes());
    ip[8] = 64;
    ip[9] = protocol::UDP;
    ip[12..16].copy_from_slice(&from.octets());
    ip[16..20].copy_from_slice(&to.octets());
    let sum = checksum::checksum(ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());

    udp[..2].copy_from_slice(&ports.0.to_be_bytes());
    udp[2..4].copy_from_slice(&ports.1.to_be_bytes());
    udp[4..6].copy_from_slice(&(udp_bytes as u16).to_be_bytes());
    udp[8..].copy_from_slice(payload);
    // RFC 768: the pseudo-header is addresses, protocol and length; a sum of zero is sent as ones.
    let pseudo = checksum::add(0, &ip[12..20]) + u64::from(protocol::UDP) + udp_bytes as u64;
    let sum = match checksum::finish(checksum::add(pseudo, udp)) {
        0 => u16::MAX,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::dice::Dice;

    const A: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
    const B: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);

    #[test]
    fn what_is_built_is_parsed() {
        for carrier in [Carrier::Udp, Carrier::Echo { id: 9 }] {
            for role in [Role::Question, Role::Answer] {
                let message = Message { flow: 3, sequence: 70_000, role, carrier, bytes: 101, answer_bytes: 32 };
                let bytes = message.packet(A, B, marker());
                let packet = IpPacket::parse(&bytes).unwrap();
                assert_eq!(Message::parse(&packet, marker()), Some(message));
                assert_eq!(checksum::checksum(&bytes[..20]), 0);
            }
        }
    }

    #[test]
    fn any_piece_of_a_message_shows_the_marker() {
        let message =
            Message { flow: 0, sequence: 0, role: Role::Question, carrier: Carrier::Udp, bytes: 64, answer_bytes: 64 };
        let bytes = message.packet(A, B, marker());
        let pattern = bytes.len() - 52;
        for start in pattern..bytes.len() - 15 {
            assert!(marker().is_in(&bytes[start..start + 15]));
        }
        assert!(!marker().is_in(&bytes[..pattern]));
    }

    #[test]
    fn a_damaged_message_is_none() {
        let message =
            Message { flow: 0, sequence: 0, role: Role::Question, carrier: Carrier::Udp, bytes: 64, answer_bytes: 64 };
        let mut bytes = message.packet(A, B, marker());
        *bytes.last_mut().unwrap() ^= 1;
        assert_eq!(Message::parse(&IpPacket::parse(&bytes).unwrap(), marker()), None);
    }

    fn marker() -> Marker {
        Marker::new(&mut Dice::new(1).stream("marker", 0))
    }
}
