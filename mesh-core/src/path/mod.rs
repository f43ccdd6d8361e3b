//! Where datagrams go.
//!
//! A [`PathAddr`] is one concrete way to send to a peer; a [`SendPath`] is what the fast path uses for a
//! peer now. With static peers there is one kind of path, UDP, and it is where the peer's last
//! authenticated packet came from.
//!
//! # Finding paths
//!
//! [`PeerPaths`] decides for one peer whether packets go directly or over a relay. Each end decides for its own
//! direction; the two need not agree.
//!
//! **What it knows.** The peer's relay region, which carries everything until something better is known. A bounded set
//! of *candidates*: addresses that the netmap gave, that the peer listed in a call-me-maybe, or that a ping of the peer
//! came from. Pings that are under way. Our own endpoints, to tell the peer. It does no cryptography: what it is handed
//! was opened with the peer's disco key by the caller.
//!
//! **What makes an address good.** A pong to a ping that we sent to it, and nothing else: not being listed, not a ping
//! from there, not data from there. Where a message came from is easily forged, even when what is in it is not. A pong
//! makes the pinged address usable, measures its round trip, and is trusted for 6.5 s.
//!
//! **What moves it.**
//!
//! * *Activity.* The first packet for the peer begins a *discovery*: rounds of pings to all candidates, each followed by
//!   a call-me-maybe over the relay, at 0, 0.25, 1 and 3 s, then ever more rarely. The early repetitions are for lost
//!   packets; the late ones for networks that change without telling. 45 s after the last packet all of it stops.
//! * *A call-me-maybe* from the peer: all candidates are pinged at once, and once more a little later. It is answered
//!   with another when we sent none for 5 s, because the peer may know old addresses of us; whoever called is not
//!   called back, so two ends cannot keep each other busy.
//! * *A ping* is answered, and when we have no trusted path to where it came from, pinged back at once. The peer's ping
//!   went through its NAT and so opened it for ours; waiting for a timer here is what costs stock nodes five seconds.
//! * *A pong* from a better address than the one in use moves us there ([`score`] says what is better, and by how much).
//! * *Heartbeats*: while active, the address in use is pinged every 3 s. One that stays unanswered for about three
//!   round trips puts the path in *doubt*: packets go both ways, the address is pinged faster, and a discovery begins. A
//!   pong ends the doubt; another address that answers replaces the doubtful one without further ado. When trust runs
//!   out the path is only stale, and 5 s later it is dropped. A receiver drops the copies by WireGuard's replay window.
//! * *The peer turning up elsewhere*, its restart, a change of our own network, a send that failed: reasons to doubt
//!   earlier than the next heartbeat.
//!
//! ```text
//!             pong                    heartbeat unanswered, peer elsewhere, …
//!   relay ───────────▶ direct, trusted ───────────────▶ direct, in doubt ──▶ direct, stale ──▶ relay
//!                            ▲                            │  (both ways)      (both ways)
//!                            └────────────────────────────┘ pong
//! ```
//!
//! **What it never does.** Send data to an address without a pong. Ping faster than its budgets, whoever asks: pings and
//! pongs are paced per peer, and pings back to one address end after three without an answer, so that replayed pings
//! with forged sources draw little. Keep more than [`limits::CANDIDATES_PER_PEER`](crate::limits::CANDIDATES_PER_PEER)
//! candidates or [`limits::PATH_PINGS_PER_PEER`](crate::limits::PATH_PINGS_PER_PEER) outstanding pings. Touch an idle
//! peer: without activity there are no timers but those that let trust run out.

mod candidate;
mod direct;
mod output;
mod peer_paths;
mod probe;
pub mod score;

use core::{fmt, net::SocketAddr};

use crate::{derp::RegionId, key::NodePublic};

pub use output::{CandidateReport, Opening, Output, PathsConfig, PathsStats, Reach, Verdict};
pub use peer_paths::PeerPaths;

/// One concrete way to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathAddr {
    /// A UDP datagram to this address.
    Udp(SocketAddr),
    /// A packet that a relay of the region hands to the peer of this key.
    Relay {
        /// The region whose relay carries it.
        region: RegionId,
        /// For whom, or from whom.
        peer: NodePublic,
    },
}

impl PathAddr {
    /// The bytes that stand for the sender in a cookie: IP address and port (WireGuard paper §5.4.7), or region and
    /// key.
    #[must_use]
    pub fn cookie_bytes(&self) -> [u8; 34] {
        let mut bytes = [0; 34];
        let port = match self {
            Self::Udp(SocketAddr::V4(v4)) => {
                bytes[..4].copy_from_slice(&v4.ip().octets());
                v4.port()
            }
            Self::Udp(SocketAddr::V6(v6)) => {
                bytes[..16].copy_from_slice(&v6.ip().octets());
                v6.port()
            }
            Self::Relay { region, peer } => {
                bytes[..32].copy_from_slice(peer.as_bytes());
                region.number()
            }
        };
        bytes[32..].copy_from_slice(&port.to_be_bytes());
        bytes
    }
}

impl fmt::Display for PathAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(address) => address.fmt(f),
            Self::Relay { region, .. } => write!(f, "DERP({region})"),
        }
    }
}

/// The way in use for a peer now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendPath {
    /// Where datagrams go.
    pub to: PathAddr,
    /// Where a copy of each goes as well, while `to` is in doubt.
    pub also: Option<PathAddr>,
}

impl SendPath {
    /// One way.
    #[must_use]
    pub const fn new(to: PathAddr) -> Self {
        Self { to, also: None }
    }

    /// A path over UDP.
    #[must_use]
    pub const fn udp(to: SocketAddr) -> Self {
        Self::new(PathAddr::Udp(to))
    }
}

/// How a disco message comes from a peer or goes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Via {
    /// As a UDP datagram.
    Direct(SocketAddr),
    /// Over the relay of a region, addressed by the peer's node key.
    Relay(RegionId),
}

/// How packets for a peer are sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// No way is known.
    Nowhere,
    /// Over the relay.
    Relay(RegionId),
    /// Directly.
    Direct(SocketAddr),
    /// A copy each way: the direct one is not trusted now.
    Both {
        /// The direct way.
        direct: SocketAddr,
        /// The relay.
        relay: RegionId,
    },
}

impl Selection {
    /// Where the packets of the peer of this key go.
    #[must_use]
    pub fn send_path(self, peer: NodePublic) -> Option<SendPath> {
        let relayed = |region| PathAddr::Relay { region, peer };
        match self {
            Self::Nowhere => None,
            Self::Relay(region) => Some(SendPath::new(relayed(region))),
            Self::Direct(direct) => Some(SendPath::udp(direct)),
            Self::Both { direct, relay } => Some(SendPath { also: Some(relayed(relay)), ..SendPath::udp(direct) }),
        }
    }

    /// The direct address in it.
    #[must_use]
    pub fn direct(self) -> Option<SocketAddr> {
        match self {
            Self::Direct(direct) | Self::Both { direct, .. } => Some(direct),
            Self::Nowhere | Self::Relay(_) => None,
        }
    }

    /// The relay region in it.
    #[must_use]
    pub fn relay(self) -> Option<RegionId> {
        match self {
            Self::Relay(relay) | Self::Both { relay, .. } => Some(relay),
            Self::Nowhere | Self::Direct(_) => None,
        }
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => f.write_str("nowhere"),
            Self::Relay(region) => write!(f, "DERP({region})"),
            Self::Direct(direct) => direct.fmt(f),
            Self::Both { direct, relay } => write!(f, "{direct} and DERP({relay})"),
        }
    }
}
