//! What a node starts with.

use core::{net::SocketAddr, time::Duration};

use crate::{
    ip::prefix::Prefix,
    key::{NodePrivate, NodePublic, PresharedKey},
    rng::Seed,
    time::WallAnchor,
};

/// What a node starts with.
#[derive(Debug)]
pub struct NodeConfig {
    /// Who we are.
    pub key: NodePrivate,
    /// Our overlay addresses, with the length of the network they are in.
    pub addresses: Vec<(core::net::IpAddr, u8)>,
    /// MTU of the TUN in bytes.
    pub mtu_bytes: usize,
    /// UDP port to listen on; 0 lets the host choose.
    pub listen_port: u16,
    /// The other nodes.
    pub peers: Vec<PeerConfig>,
    /// The root of the node's randomness.
    pub seed: Seed,
    /// What the calendar says when the node starts.
    pub epoch: WallAnchor,
}

/// A static peer.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// Who it is.
    pub key: NodePublic,
    /// A secret shared with it beforehand.
    pub preshared_key: Option<PresharedKey>,
    /// Overlay addresses that are sent to it and accepted from it. The last peer to name a prefix has it.
    pub allowed_ips: Vec<Prefix>,
    /// Where to begin; later it is answered where its last authenticated packet came from.
    pub endpoint: Option<SocketAddr>,
    /// Send something at least this often, to keep a NAT's mapping open.
    pub persistent_keepalive: Option<Duration>,
}

/// Why a configuration is refused. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Two peers with one key.
    #[error("peer {0} is listed twice")]
    DuplicatePeer(NodePublic),
    /// A peer with our own key.
    #[error("peer {0} is this node itself")]
    OwnKey(NodePublic),
    /// More than [`limits::PEERS`](crate::limits::PEERS).
    #[error("{0} peers are more than this node can have, which is {limit}", limit = crate::limits::PEERS)]
    TooManyPeers(usize),
    /// More than [`limits::ROUTES_PER_PEER`](crate::limits::ROUTES_PER_PEER).
    #[error("peer {0} has more allowed IPs than {limit}", limit = crate::limits::ROUTES_PER_PEER)]
    TooManyRoutes(NodePublic),
    /// Outside 576 bytes (RFC 791) to what a datagram can carry.
    #[error("an MTU of {0} bytes is not between 576 and {limit}", limit = crate::limits::PACKET_BYTES)]
    Mtu(usize),
}
