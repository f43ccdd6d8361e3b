//! DERP frames: one byte of type, four of length, payload. Integers are big-endian.
//!
//! A [`Frame`] borrows from the buffer it was read from; payloads are not copied.

#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation)]

use core::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::key::NodePublic;

/// Bytes before a frame's payload.
pub const HEADER_BYTES: usize = 5;
/// Largest packet that is relayed.
pub const PACKET_BYTES: usize = 64 << 10;
/// Largest frame that is taken, known or not. Stock clients close at this; stock servers have no bound for unknown
/// frames.
pub const FRAME_BYTES: usize = 1 << 20;
/// Protocol version.
pub const VERSION: u8 = 2;

/// First bytes of a server's key frame: "DERP" and a key.
const MAGIC: [u8; 8] = [0x44, 0x45, 0x52, 0x50, 0xf0, 0x9f, 0x94, 0x91];

const SERVER_KEY: u8 = 0x01;
const CLIENT_INFO: u8 = 0x02;
const SERVER_INFO: u8 = 0x03;
const SEND_PACKET: u8 = 0x04;
const RECV_PACKET: u8 = 0x05;
const KEEP_ALIVE: u8 = 0x06;
const NOTE_PREFERRED: u8 = 0x07;
const PEER_GONE: u8 = 0x08;
const PEER_PRESENT: u8 = 0x09;
const FORWARD_PACKET: u8 = 0x0a;
const WATCH_CONNS: u8 = 0x10;
const CLOSE_PEER: u8 = 0x11;
const PING: u8 = 0x12;
const PONG: u8 = 0x13;
const HEALTH: u8 = 0x14;
const RESTARTING: u8 = 0x15;

/// One frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'b> {
    /// The server's public key: always its first frame.
    ServerKey(NodePublic),
    /// Who the client is; the client's first frame.
    ClientInfo {
        /// The client's key.
        key: NodePublic,
        /// Nonce and box with JSON.
        sealed: &'b [u8],
    },
    /// The client is in. Nonce and box with JSON.
    ServerInfo {
        /// Nonce and box.
        sealed: &'b [u8],
    },
    /// Client to server: a packet for somebody.
    SendPacket {
        /// For whom.
        to: NodePublic,
        /// The packet.
        packet: &'b [u8],
    },
    /// Server to client: a packet from somebody.
    RecvPacket {
        /// From whom; the relay vouches for it.
        from: NodePublic,
        /// The packet.
        packet: &'b [u8],
    },
    /// Nothing to say, still here.
    KeepAlive,
    /// Whether this relay is the client's home.
    NotePreferred(bool),
    /// A peer cannot be reached here.
    PeerGone {
        /// Who.
        peer: NodePublic,
        /// Why.
        reason: PeerGoneReason,
    },
    /// To a relay of the same region: a client is here.
    PeerPresent {
        /// Who.
        peer: NodePublic,
        /// Where it connects from, when said.
        address: Option<SocketAddr>,
        /// What kind of client; 0 from older servers.
        flags: u8,
    },
    /// From a relay of the same region: a packet between two others.
    ForwardPacket {
        /// From whom.
        from: NodePublic,
        /// For whom.
        to: NodePublic,
        /// The packet.
        packet: &'b [u8],
    },
    /// From a relay of the same region: tell me who comes and goes.
    WatchConns,
    /// From a relay of the same region: close this client's connections.
    ClosePeer(NodePublic),
    /// Answer with the same eight bytes.
    Ping([u8; 8]),
    /// The answer.
    Pong([u8; 8]),
    /// What is wrong with the connection; empty when it is well again.
    Health(&'b [u8]),
    /// The server will be away.
    Restarting {
        /// Wait this long before connecting again.
        reconnect_in_ms: u32,
        /// And try for this long.
        try_for_ms: u32,
    },
    /// A type that is not known: to be skipped.
    Unknown(u8),
}

/// Why a peer cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerGoneReason {
    /// It was here and left.
    Disconnected,
    /// It is not here.
    NotHere,
    /// Another value.
    Other(u8),
}

impl PeerGoneReason {
    fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::Disconnected,
            1 => Self::NotHere,
            other => Self::Other(other),
        }
    }

    fn to_byte(self) -> u8 {
        match self {
            Self::Disconnected => 0,
            Self::NotHere => 1,
            Self::Other(other) => other,
        }
    }
}

/// Why a stream is not DERP any more. There is no way on but to close it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than a frame may be.
    #[error("a frame of type {kind:#04x} with {length} bytes is too long")]
    TooLong {
        /// The frame's type.
        kind: u8,
        /// Its length in bytes.
        length: usize,
    },
    /// The payload does not have the form of its type.
    #[error("a frame of type {0:#04x} is not well made")]
    Malformed(u8),
}

impl<'b> Frame<'b> {
    /// The first frame in `buffer` and how many bytes it takes; `None` when there is no whole one yet.
    ///
    /// # Errors
    /// When what is there can be no frame. Noticed from the header alone where that is possible, so that nobody
    /// waits for, or makes room for, a frame that is too long.
    pub fn decode(buffer: &'b [u8]) -> Result<Option<(Self, usize)>, FrameError> {
        let Some(([kind, l0, l1, l2, l3], rest)) = buffer.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes([*l0, *l1, *l2, *l3])).unwrap_or(usize::MAX);
        if length > longest(*kind) {
            return Err(FrameError::TooLong { kind: *kind, length });
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let frame = Self::parse(*kind, payload).ok_or(FrameError::Malformed(*kind))?;
        Ok(Some((frame, HEADER_BYTES + length)))
    }

    fn parse(kind: u8, payload: &'b [u8]) -> Option<Self> {
        let key = || payload.split_first_chunk::<32>().map(|(key, rest)| (NodePublic::from_bytes(*key), rest));
        Some(match kind {
            SERVER_KEY => {
                let key = payload.strip_prefix(&MAGIC)?.first_chunk()?;
                Self::ServerKey(NodePublic::from_bytes(*key))
            }
            CLIENT_INFO => key().map(|(key, sealed)| Self::ClientInfo { key, sealed })?,
            SERVER_INFO => Self::ServerInfo { sealed: payload },
            SEND_PACKET => key().map(|(to, packet)| Self::SendPacket { to, packet })?,
            RECV_PACKET => key().map(|(from, packet)| Self::RecvPacket { from, packet })?,
            KEEP_ALIVE => Self::KeepAlive,
            NOTE_PREFERRED => match payload {
                [home] => Self::NotePreferred(*home != 0),
                _ => return None,
            },
            PEER_GONE => {
                let (peer, rest) = key()?;
                Self::PeerGone { peer, reason: PeerGoneReason::from_byte(rest.first().copied().unwrap_or(0)) }
            }
            PEER_PRESENT => {
                let (peer, rest) = key()?;
                let address = rest.first_chunk::<18>().map(socket_address);
                Self::PeerPresent { peer, address, flags: rest.get(18).copied().unwrap_or(0) }
            }
            FORWARD_PACKET => {
                let (from, rest) = key()?;
                let (to, packet) = rest.split_first_chunk::<32>()?;
                Self::ForwardPacket { from, to: NodePublic::from_bytes(*to), packet }
            }
            WATCH_CONNS if payload.is_empty() => Self::WatchConns,
            WATCH_CONNS => return None,
            CLOSE_PEER => Self::ClosePeer(key()?.0),
            PING => Self::Ping(*payload.first_chunk()?),
            PONG => Self::Pong(*payload.first_chunk()?),
            HEALTH => Self::Health(payload),
            RESTARTING => {
                let (reconnect, rest) = payload.split_first_chunk::<4>()?;
                Self::Restarting {
                    reconnect_in_ms: u32::from_be_bytes(*reconnect),
                    try_for_ms: u32::from_be_bytes(*rest.first_chunk()?),
                }
            }
            other => Self::Unknown(other),
        })
    }

    /// Appends the frame to `out`. [`Frame::Unknown`] becomes an empty frame of its type.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::ServerKey(key) => put(out, SERVER_KEY, &[&MAGIC, key.as_bytes()]),
            Self::ClientInfo { key, sealed } => put(out, CLIENT_INFO, &[key.as_bytes(), sealed]),
            Self::ServerInfo { sealed } => put(out, SERVER_INFO, &[sealed]),
            Self::SendPacket { to, packet } => put(out, SEND_PACKET, &[to.as_bytes(), packet]),
            Self::RecvPacket { from, packet } => put(out, RECV_PACKET, &[from.as_bytes(), packet]),
            Self::KeepAlive => put(out, KEEP_ALIVE, &[]),
            Self::NotePreferred(home) => put(out, NOTE_PREFERRED, &[&[u8::from(*home)]]),
            Self::PeerGone { peer, reason } => put(out, PEER_GONE, &[peer.as_bytes(), &[reason.to_byte()]]),
            Self::PeerPresent { peer, address, flags } => match address {
                Some(address) => {
                    let ip = match address.ip() {
                        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                        IpAddr::V6(v6) => v6,
                    };
                    let port = address.port().to_be_bytes();
                    put(out, PEER_PRESENT, &[peer.as_bytes(), &ip.octets(), &port, &[*flags]]);
                }
                None => put(out, PEER_PRESENT, &[peer.as_bytes()]),
            },
            Self::ForwardPacket { from, to, packet } => {
                put(out, FORWARD_PACKET, &[from.as_bytes(), to.as_bytes(), packet]);
            }
            Self::WatchConns => put(out, WATCH_CONNS, &[]),
            Self::ClosePeer(peer) => put(out, CLOSE_PEER, &[peer.as_bytes()]),
            Self::Ping(data) => put(out, PING, &[data]),
            Self::Pong(data) => put(out, PONG, &[data]),
            Self::Health(text) => put(out, HEALTH, &[text]),
            Self::Restarting { reconnect_in_ms, try_for_ms } => {
                put(out, RESTARTING, &[&reconnect_in_ms.to_be_bytes(), &try_for_ms.to_be_bytes()]);
            }
            Self::Unknown(kind) => put(out, *kind, &[]),
        }
    }
}

/// The longest payload that a frame of this type may have.
const fn longest(kind: u8) -> usize {
    match kind {
        SEND_PACKET | RECV_PACKET => 32 + PACKET_BYTES,
        FORWARD_PACKET => 64 + PACKET_BYTES,
        CLIENT_INFO => 256 << 10,
        SERVER_KEY => 1024,
        PING | PONG => 1000,
        _ => FRAME_BYTES,
    }
}

fn put(out: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.reserve(HEADER_BYTES + length);
    out.push(kind);
    // Every payload we build is far below 4 GiB: packets are bounded by PACKET_BYTES.
    out.extend(u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

fn socket_address(bytes: &[u8; 18]) -> SocketAddr {
    let [ip @ .., p0, p1] = *bytes;
    SocketAddr::new(IpAddr::V6(Ipv6Addr::from(ip)).to_canonical(), u16::from_be_bytes([p0, p1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_and_every_cut_waits_for_more() {
        let (a, b) = (NodePublic::from_bytes([1; 32]), NodePublic::from_bytes([2; 32]));
        for frame in [
            Frame::ServerKey(a),
            Frame::ClientInfo { key: a, sealed: b"sealed" },
            Frame::ServerInfo { sealed: b"sealed" },
            Frame::SendPacket { to: a, packet: b"packet" },
            Frame::RecvPacket { from: a, packet: b"" },
            Frame::KeepAlive,
            Frame::NotePreferred(true),
            Frame::PeerGone { peer: a, reason: PeerGoneReason::NotHere },
            Frame::PeerPresent { peer: a, address: Some("192.0.2.1:7".parse().unwrap()), flags: 1 },
            Frame::PeerPresent { peer: a, address: None, flags: 0 },
            Frame::ForwardPacket { from: a, to: b, packet: b"packet" },
            Frame::WatchConns,
            Frame::ClosePeer(b),
            Frame::Ping([3; 8]),
            Frame::Pong([4; 8]),
            Frame::Health(b"unwell"),
            Frame::Restarting { reconnect_in_ms: 5, try_for_ms: 6 },
            Frame::Unknown(0x77),
        ] {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            for cut in 0..bytes.len() {
                assert_eq!(Frame::decode(&bytes[..cut]), Ok(None), "{frame:?} cut at {cut}");
            }
            let length = bytes.len();
            bytes.extend(b"next");
            assert_eq!(Frame::decode(&bytes), Ok(Some((frame, length))));
        }
    }

    #[test]
    fn too_long_is_seen_from_the_header() {
        let check = |kind: u8, length: u32| {
            let header = [&[kind][..], &length.to_be_bytes()].concat();
            Frame::decode(&header).map(|frame| frame.is_some())
        };
        assert_eq!(check(SEND_PACKET, 32 + 65_536), Ok(false));
        assert_eq!(check(SEND_PACKET, 33 + 65_536), Err(FrameError::TooLong { kind: SEND_PACKET, length: 65_569 }));
        assert_eq!(check(0x77, 1 << 20), Ok(false));
        assert!(check(0x77, (1 << 20) + 1).is_err());
    }

    #[test]
    fn payloads_of_the_wrong_form_are_refused() {
        for (kind, payload) in [
            (SERVER_KEY, vec![0; 40]),
            (CLIENT_INFO, vec![0; 31]),
            (SEND_PACKET, vec![0; 31]),
            (NOTE_PREFERRED, vec![]),
            (NOTE_PREFERRED, vec![0; 2]),
            (PEER_GONE, vec![0; 31]),
            (FORWARD_PACKET, vec![0; 63]),
            (WATCH_CONNS, vec![0]),
            (PING, vec![0; 7]),
            (RESTARTING, vec![0; 7]),
        ] {
            let mut bytes = Vec::new();
            put(&mut bytes, kind, &[&payload]);
            assert_eq!(Frame::decode(&bytes), Err(FrameError::Malformed(kind)));
        }
    }

    #[test]
    fn an_old_peer_gone_has_no_reason() {
        let mut bytes = Vec::new();
        put(&mut bytes, PEER_GONE, &[&[1; 32]]);
        let gone = Frame::PeerGone { peer: NodePublic::from_bytes([1; 32]), reason: PeerGoneReason::Disconnected };
        assert_eq!(Frame::decode(&bytes), Ok(Some((gone, 37))));
    }
}
