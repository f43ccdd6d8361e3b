//! A plain snapshot for the local API, the simulator and tests.

use crate::{
    dataplane::DropCounts,
    ip::prefix::Prefix,
    key::NodePublic,
    path::PathAddr,
    time::{Instant, WallTime},
};

use core::net::IpAddr;

/// A node at one point in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Who we are.
    pub key: NodePublic,
    /// Our overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// All peers, in the order of their keys.
    pub peers: Vec<PeerStatus>,
    /// Packets that ended in the node, by reason. The driver has counts of its own for the fast path.
    pub drops: DropCounts,
}

/// A peer at one point in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Who.
    pub key: NodePublic,
    /// Overlay addresses that are sent to it.
    pub allowed_ips: Vec<Prefix>,
    /// Where its datagrams go.
    pub path: Option<PathAddr>,
    /// Whether there is a session that can be sent on now.
    pub has_session: bool,
    /// When the newest session began, by the calendar.
    pub last_handshake: Option<WallTime>,
    /// When something was last sent.
    pub last_sent: Option<Instant>,
    /// When something authenticated was last received.
    pub last_received: Option<Instant>,
    /// Bytes of datagrams sent.
    pub sent_bytes: u64,
    /// Bytes of authenticated datagrams received.
    pub received_bytes: u64,
}
