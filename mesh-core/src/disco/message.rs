//! What is inside a disco box: type, version, body. Integers are big-endian.
//!
//! Bytes behind what a message needs are ignored, as stock nodes do, so that messages can grow.

#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation)]

use core::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::{key::NodePublic, rng::Rng};

const TYPE_PING: u8 = 1;
const TYPE_PONG: u8 = 2;
const TYPE_CALL_ME_MAYBE: u8 = 3;
const TYPE_BIND: u8 = 4;
const TYPE_BIND_CHALLENGE: u8 = 5;
const TYPE_BIND_ANSWER: u8 = 6;
const TYPE_CALL_ME_MAYBE_VIA: u8 = 7;
const TYPE_ALLOCATE_REQUEST: u8 = 8;
const TYPE_ALLOCATE_RESPONSE: u8 = 9;
const VERSION: u8 = 0;
/// Address and port, IPv4 as IPv4-mapped.
const ENDPOINT: usize = 18;

/// Names a ping until its pong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxId(pub [u8; 12]);

impl TxId {
    /// A fresh one.
    #[must_use]
    pub fn random(rng: &mut Rng) -> Self {
        Self(rng.bytes())
    }
}

/// A disco message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Are you there?
    Ping(Ping),
    /// I am, and this is where you seem to be.
    Pong(Pong),
    /// Here I may be reached; ping me. Over a relay only. Stock reads an empty or unknown list as "none".
    CallMeMaybe(Vec<SocketAddr>),
    /// A message about relaying through another node. Decoded as far as its kind: this node takes no part in it.
    PeerRelay(PeerRelayKind),
}

/// Are you there?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    /// Comes back in the pong.
    pub tx: TxId,
    /// Who says to ask. A hint: several nodes may share a disco key.
    pub node: Option<NodePublic>,
    /// Zero bytes at the end, to try a packet size.
    pub padding_bytes: usize,
}

/// I am, and this is where you seem to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pong {
    /// Of the ping.
    pub tx: TxId,
    /// Where the ping came from; over a relay `127.3.3.40` and the region as port.
    pub observed: SocketAddr,
}

/// Which message of the peer-relay protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerRelayKind {
    /// Type 4.
    Bind,
    /// Type 5.
    BindChallenge,
    /// Type 6.
    BindAnswer,
    /// Type 7.
    CallMeMaybeVia,
    /// Type 8.
    AllocateRequest,
    /// Type 9.
    AllocateResponse,
}

impl PeerRelayKind {
    /// Bytes that a body of this kind has at least.
    const fn body_bytes_min(self) -> usize {
        match self {
            Self::Bind | Self::BindChallenge | Self::BindAnswer => 72,
            Self::AllocateRequest => 68,
            Self::CallMeMaybeVia => 124,
            Self::AllocateResponse => 128,
        }
    }
}

/// Why an opened box holds no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Shorter than its type needs.
    #[error("the message is cut off")]
    Short,
    /// A type that is not known.
    #[error("message type {0} is not known")]
    Type(u8),
}

impl Message {
    /// Reads the content of a box.
    ///
    /// # Errors
    /// When it is no message that is known.
    pub fn parse(plaintext: &[u8]) -> Result<Self, ParseError> {
        let [kind, version, body @ ..] = plaintext else { return Err(ParseError::Short) };
        let peer_relay = |kind: PeerRelayKind| {
            // Of another version these are empty messages (observed from stock clients), so their length says nothing.
            if *version == VERSION && body.len() < kind.body_bytes_min() {
                return Err(ParseError::Short);
            }
            Ok(Self::PeerRelay(kind))
        };
        match *kind {
            TYPE_PING => Ping::parse(body).map(Self::Ping).ok_or(ParseError::Short),
            TYPE_PONG => Pong::parse(body).map(Self::Pong).ok_or(ParseError::Short),
            TYPE_CALL_ME_MAYBE => {
                let is_list = *version == VERSION && body.len() % ENDPOINT == 0;
                let chunks = if is_list { body } else { &[] };
                Ok(Self::CallMeMaybe(chunks.chunks_exact(ENDPOINT).filter_map(parse_endpoint).collect()))
            }
            TYPE_BIND => peer_relay(PeerRelayKind::Bind),
            TYPE_BIND_CHALLENGE => peer_relay(PeerRelayKind::BindChallenge),
            TYPE_BIND_ANSWER => peer_relay(PeerRelayKind::BindAnswer),
            TYPE_CALL_ME_MAYBE_VIA => peer_relay(PeerRelayKind::CallMeMaybeVia),
            TYPE_ALLOCATE_REQUEST => peer_relay(PeerRelayKind::AllocateRequest),
            TYPE_ALLOCATE_RESPONSE => peer_relay(PeerRelayKind::AllocateResponse),
            other => Err(ParseError::Type(other)),
        }
    }

    /// What goes into a box; `None` for messages that this node never sends.
    #[must_use]
    pub fn emit(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        match self {
            Self::Ping(ping) => {
                bytes.extend([TYPE_PING, VERSION]);
                bytes.extend(ping.tx.0);
                if let Some(node) = ping.node {
                    bytes.extend(node.as_bytes());
                    bytes.resize(bytes.len() + ping.padding_bytes, 0);
                }
            }
            Self::Pong(pong) => {
                bytes.extend([TYPE_PONG, VERSION]);
                bytes.extend(pong.tx.0);
                emit_endpoint(pong.observed, &mut bytes);
            }
            Self::CallMeMaybe(endpoints) => {
                bytes.extend([TYPE_CALL_ME_MAYBE, VERSION]);
                for endpoint in endpoints {
                    emit_endpoint(*endpoint, &mut bytes);
                }
            }
            Self::PeerRelay(_) => return None,
        }
        Some(bytes)
    }
}

impl Ping {
    fn parse(body: &[u8]) -> Option<Self> {
        let (tx, rest) = body.split_first_chunk::<12>()?;
        let (node, padding_bytes) = match rest.split_first_chunk::<32>() {
            Some((key, padding)) if *key != [0; 32] => (Some(NodePublic::from_bytes(*key)), padding.len()),
            Some((_, padding)) => (None, padding.len()),
            None => (None, rest.len()),
        };
        Some(Self { tx: TxId(*tx), node, padding_bytes })
    }
}

impl Pong {
    fn parse(body: &[u8]) -> Option<Self> {
        let (tx, rest) = body.split_first_chunk::<12>()?;
        Some(Self { tx: TxId(*tx), observed: parse_endpoint(rest.get(..ENDPOINT)?)? })
    }
}

fn parse_endpoint(bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = bytes.split_first_chunk::<16>()?;
    let port = u16::from_be_bytes(*port.first_chunk()?);
    Some(SocketAddr::new(IpAddr::V6(Ipv6Addr::from(*ip)).to_canonical(), port))
}

fn emit_endpoint(endpoint: SocketAddr, bytes: &mut Vec<u8>) {
    let ip = match endpoint.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    bytes.extend(ip.octets());
    bytes.extend(endpoint.port().to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const TX: TxId = TxId([9; 12]);

    #[test]
    fn messages_come_back() {
        let node = Some(NodePublic::from_bytes([1; 32]));
        let endpoints = vec!["192.0.2.1:41641".parse().unwrap(), "[2001:db8::1]:7".parse().unwrap()];
        for message in [
            Message::Ping(Ping { tx: TX, node: None, padding_bytes: 0 }),
            Message::Ping(Ping { tx: TX, node, padding_bytes: 0 }),
            Message::Ping(Ping { tx: TX, node, padding_bytes: 100 }),
            Message::Pong(Pong { tx: TX, observed: endpoints[0] }),
            Message::CallMeMaybe(vec![]),
            Message::CallMeMaybe(endpoints),
        ] {
            let mut bytes = message.emit().unwrap();
            assert_eq!(Message::parse(&bytes), Ok(message.clone()));
            if !matches!(message, Message::CallMeMaybe(_) | Message::Ping(_)) {
                bytes.push(1);
                assert_eq!(Message::parse(&bytes), Ok(message), "what is behind is ignored");
            }
        }
    }

    #[test]
    fn lists_that_are_none_are_empty() {
        for body in [&[0; 17][..], &[0; 19]] {
            let bytes = [&[TYPE_CALL_ME_MAYBE, 0][..], body].concat();
            assert_eq!(Message::parse(&bytes), Ok(Message::CallMeMaybe(vec![])));
        }
        let other_version = [&[TYPE_CALL_ME_MAYBE, 1][..], &[0; 18]].concat();
        assert_eq!(Message::parse(&other_version), Ok(Message::CallMeMaybe(vec![])));
    }

    #[test]
    fn short_and_unknown_messages_are_errors() {
        assert_eq!(Message::parse(&[]), Err(ParseError::Short));
        assert_eq!(Message::parse(&[TYPE_PING, 0, 1]), Err(ParseError::Short));
        assert_eq!(Message::parse(&[&[TYPE_PONG, 0][..], &[0; 29]].concat()), Err(ParseError::Short));
        assert_eq!(Message::parse(&[77, 0]), Err(ParseError::Type(77)));
        assert_eq!(Message::parse(&[&[TYPE_BIND, 0][..], &[0; 71]].concat()), Err(ParseError::Short));
    }
}
