//! A plain snapshot for the local API, the simulator and tests.

use crate::{
    dataplane::DropCounts,
    derp::RegionId,
    endpoints::Endpoint,
    ip::prefix::Prefix,
    key::{DiscoPublic, NodePublic},
    path::Selection,
    time::{Instant, WallTime},
};

use core::{net::IpAddr, time::Duration};

/// A node at one point in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Who we are.
    pub key: NodePublic,
    /// What our disco messages are sealed with.
    pub disco_key: DiscoPublic,
    /// Our own candidate addresses.
    pub endpoints: Vec<Endpoint>,
    /// The region of our home relay.
    pub home: Option<RegionId>,
    /// All regions of the relay map, in order.
    pub relays: Vec<RelayStatus>,
    /// Our overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// All peers, in the order of their keys.
    pub peers: Vec<PeerStatus>,
    /// Packets that ended in the node, by reason. The driver has counts of its own for the fast path.
    pub drops: DropCounts,
}

/// A region of the relay map at one point in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayStatus {
    /// Which.
    pub region: RegionId,
    /// Its short name.
    pub code: String,
    /// Whether packets can go over it now.
    pub is_connected: bool,
    /// What is wrong with it, for people.
    pub problem: Option<String>,
}

/// A peer at one point in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Who.
    pub key: NodePublic,
    /// Overlay addresses that are sent to it.
    pub allowed_ips: Vec<Prefix>,
    /// How its packets are sent now.
    pub path: Selection,
    /// The region of its home relay, where the network map says one.
    pub relay: Option<RegionId>,
    /// Smoothed round trip of the direct address in use, where disco measures it.
    pub latency: Option<Duration>,
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
