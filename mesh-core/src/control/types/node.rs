//! A node as the server describes it, to itself and to its peers.

use core::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    capability::CapMap,
    dns::Resolver,
    hostinfo::Hostinfo,
    json::{address, bytes, endpoints, is_zero, key, or_zero, prefixes, some_prefixes, time},
    user::UserId,
};
use crate::{
    derp::RegionId,
    ip::prefix::Prefix,
    key::{DiscoPublic, MachinePublic, NodePublic},
    time::WallTime,
};

/// The address that stands before a region's number in the old form of a home region.
const DERP_MAGIC: &str = "127.3.3.40:";

/// A node's number, above 0; unique on its server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub i64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A node as the server describes it, to itself and to its peers (`tailcfg.Node`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PeerNode {
    /// Which.
    #[serde(rename = "ID", deserialize_with = "or_zero")]
    pub id: NodeId,
    /// A name that never changes and is not for people.
    #[serde(rename = "StableID", deserialize_with = "or_zero")]
    pub stable_id: String,
    /// Its MagicDNS name, with a trailing dot.
    #[serde(deserialize_with = "or_zero")]
    pub name: String,
    /// Whose it is.
    #[serde(deserialize_with = "or_zero")]
    pub user: UserId,
    /// Who shared it with us; 0 when it is of our own tailnet.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub sharer: UserId,
    /// Its WireGuard key.
    #[serde(deserialize_with = "or_zero")]
    pub key: NodePublic,
    /// When its key expires; `None` never.
    #[serde(with = "time", skip_serializing_if = "is_zero")]
    pub key_expiry: Option<WallTime>,
    /// Signature of its key under tailnet lock.
    #[serde(with = "bytes", skip_serializing_if = "is_zero")]
    pub key_signature: Vec<u8>,
    /// Its machine key. Peers do not need it.
    #[serde(deserialize_with = "key", skip_serializing_if = "is_zero")]
    pub machine: Option<MachinePublic>,
    /// Its disco key; changes whenever its program starts.
    #[serde(deserialize_with = "key", skip_serializing_if = "is_zero")]
    pub disco_key: Option<DiscoPublic>,
    /// Its own addresses.
    #[serde(deserialize_with = "prefixes")]
    pub addresses: Vec<Prefix>,
    /// What is routed to it, as sent; see [`Self::allowed_ips`].
    #[serde(rename = "AllowedIPs", deserialize_with = "some_prefixes")]
    pub allowed_ips: Option<Vec<Prefix>>,
    /// UDP addresses at which it may be.
    #[serde(deserialize_with = "endpoints", skip_serializing_if = "is_zero")]
    pub endpoints: Vec<SocketAddr>,
    /// Its home region in the old form, `127.3.3.40:<region>`; see [`Self::home`].
    #[serde(rename = "DERP", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub legacy_derp: String,
    /// Its home region's number; 0 is none. See [`Self::home`].
    #[serde(rename = "HomeDERP", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub home_derp: i64,
    /// What it says of itself.
    #[serde(skip_serializing_if = "is_zero")]
    pub hostinfo: Option<Box<Hostinfo>>,
    /// Since when it is there.
    #[serde(with = "time", skip_serializing_if = "is_zero")]
    pub created: Option<WallTime>,
    /// The capability version of its program.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub cap: i64,
    /// Its tags. A node with tags has no human owner.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub tags: Vec<String>,
    /// Subnets that it and no other routes at present.
    #[serde(deserialize_with = "prefixes", skip_serializing_if = "is_zero")]
    pub primary_routes: Vec<Prefix>,
    /// When it was last connected; sent for those that are not.
    #[serde(with = "time", skip_serializing_if = "is_zero")]
    pub last_seen: Option<WallTime>,
    /// Whether it is connected to the server. `None` is mostly read as no.
    #[serde(skip_serializing_if = "is_zero")]
    pub online: Option<bool>,
    /// Whether it may take part; looked at in the node itself.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub machine_authorized: bool,
    /// Old form of `cap_map`; see [`Self::has_capability`].
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub capabilities: Vec<String>,
    /// What it may do or is told to do.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub cap_map: CapMap,
    /// Exempt from tailnet lock, and may only be asked by its peer API.
    #[serde(rename = "UnsignedPeerAPIOnly", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub unsigned_peer_api_only: bool,
    /// Its name under which flows are logged.
    #[serde(rename = "DataPlaneAuditLogID", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub data_plane_audit_log_id: String,
    /// The server says that its key has expired.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub expired: bool,
    /// Our address for this peer, when that is not our own.
    #[serde(rename = "SelfNodeV4MasqAddrForThisPeer", deserialize_with = "address", skip_serializing_if = "is_zero")]
    pub self_v4_masq_addr: Option<IpAddr>,
    /// Our address for this peer, when that is not our own.
    #[serde(rename = "SelfNodeV6MasqAddrForThisPeer", deserialize_with = "address", skip_serializing_if = "is_zero")]
    pub self_v6_masq_addr: Option<IpAddr>,
    /// A plain WireGuard peer: no disco, no relays.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub is_wire_guard_only: bool,
    /// It may not open connections to us.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub is_jailed: bool,
    /// Whom to ask for names when this is the exit node.
    #[serde(rename = "ExitNodeDNSResolvers", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub exit_node_dns_resolvers: Vec<Resolver>,
}

impl PeerNode {
    /// What is routed to it: its own addresses when the server did not say.
    #[must_use]
    pub fn allowed_ips(&self) -> &[Prefix] {
        self.allowed_ips.as_deref().unwrap_or(&self.addresses)
    }

    /// Its home region, in either form.
    #[must_use]
    pub fn home(&self) -> Option<RegionId> {
        region(self.home_derp).or_else(|| {
            let number = self.legacy_derp.strip_prefix(DERP_MAGIC)?.parse().ok()?;
            RegionId::new(number)
        })
    }

    /// Whether it has a capability, in either form.
    #[must_use]
    pub fn has_capability(&self, name: &str) -> bool {
        self.cap_map.has(name) || self.capabilities.iter().any(|capability| capability == name)
    }
}

/// When a key expires, where that can be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// It does not; travels as Go's zero time.
    Never,
    /// Then.
    At(WallTime),
}

impl Expiry {
    /// When; `None` is never.
    #[must_use]
    pub fn at(self) -> Option<WallTime> {
        match self {
            Self::Never => None,
            Self::At(at) => Some(at),
        }
    }
}

impl Serialize for Expiry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        time::serialize(&self.at(), serializer)
    }
}

impl<'de> Deserialize<'de> for Expiry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(time::deserialize(deserializer)?.map_or(Self::Never, Self::At))
    }
}

/// The region of this number; `None` when it is none of a region.
pub(super) fn region(number: i64) -> Option<RegionId> {
    u16::try_from(number).ok().and_then(RegionId::new)
}
