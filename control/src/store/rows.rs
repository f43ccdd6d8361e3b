//! The rows of each table, as plain values.
//!
//! Times are written as nanoseconds since 1970, keys and addresses as their usual texts.

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};
use std::collections::BTreeSet;

use mesh_core::{
    control::types::{Hostinfo, NodeId, UserId},
    derp::RegionId,
    ip::prefix::Prefix,
    key::{DiscoPublic, MachinePublic, NodePublic},
    time::WallTime,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::policy::Role;

/// A user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRow {
    /// Which; never used again.
    pub id: UserId,
    /// Its name in the API: `u`, 11 letters, `CNTRL`.
    pub stable_id: String,
    /// The name they sign in with. No other user has it.
    pub login: String,
    /// A name for people.
    pub display_name: String,
    /// What they may do.
    #[serde(with = "role")]
    pub role: Role,
    /// Since when.
    #[serde(with = "stamp")]
    pub created: WallTime,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Which; never used again.
    pub id: NodeId,
    /// Its name in the API and to its peers: `n`, 11 letters, `CNTRL`.
    pub stable_id: String,
    /// The installation that it is.
    pub machine: MachinePublic,
    /// Its WireGuard key. No other node has it.
    pub key: NodePublic,
    /// Its key for tailnet lock as it was told; empty is none.
    pub nl_key: String,
    /// Its disco key as last heard of.
    pub disco: Option<DiscoPublic>,
    /// Whose it is; `None` where it is its tags'.
    pub user: Option<UserId>,
    /// Its tags, `tag:` included. It has a user or tags, never both.
    pub tags: BTreeSet<String>,
    /// Its name: a DNS label that no other node has.
    pub name: String,
    /// An operator named it: it does not follow its host's name any more.
    pub name_is_fixed: bool,
    /// Its overlay address.
    pub ipv4: Ipv4Addr,
    /// Its overlay address.
    pub ipv6: Ipv6Addr,
    /// Since when it is there.
    #[serde(with = "stamp")]
    pub created: WallTime,
    /// When its key expires; `None` never.
    #[serde(with = "stamp::optional")]
    pub key_expiry: Option<WallTime>,
    /// It is deleted soon after it is gone.
    pub ephemeral: bool,
    /// The auth key that it last registered with, by id.
    pub auth_key: Option<String>,
    /// Routes that an operator or the policy allows it to serve; those that it advertises too are served.
    pub approved_routes: BTreeSet<Prefix>,
    /// What it last said of itself.
    pub hostinfo: Box<Hostinfo>,
    /// The capability version of its program.
    pub cap: i64,
    /// When it was last seen to leave; `None` before the first time.
    #[serde(with = "stamp::optional")]
    pub last_seen: Option<WallTime>,
    /// Others have been told of it. That waits for its first map and its first disco key: before, it is of no use to them.
    pub announced: bool,
}

impl NodeRow {
    /// Its overlay addresses: IPv4 before IPv6.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.ipv4.into(), self.ipv6.into()]
    }

    /// Its home region.
    #[must_use]
    pub fn home(&self) -> Option<RegionId> {
        self.hostinfo.net_info.as_ref()?.home()
    }

    /// Whether its key has expired at a time.
    #[must_use]
    pub fn is_expired(&self, now: WallTime) -> bool {
        self.key_expiry.is_some_and(|expiry| expiry <= now)
    }

    /// The routes that it advertises and that are approved.
    pub fn served_routes(&self) -> impl Iterator<Item = Prefix> {
        self.hostinfo.routable_ips.iter().filter(|route| self.approved_routes.contains(route)).copied()
    }
}

/// An auth key. Of its secret there is a hash only.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRow {
    /// Which, and the middle of its text: `k`, 11 letters, `CNTRL`.
    pub id: String,
    /// BLAKE2s-256 of the secret.
    #[serde(with = "hash")]
    pub hash: [u8; 32],
    /// Whose nodes it makes, and who made it.
    pub user: UserId,
    /// It is good for more than one node.
    pub reusable: bool,
    /// Its nodes are ephemeral.
    pub ephemeral: bool,
    /// The tags that it gives; with some, its nodes are theirs and not the user's.
    pub tags: BTreeSet<String>,
    /// Since when.
    #[serde(with = "stamp")]
    pub created: WallTime,
    /// Until when.
    #[serde(with = "stamp")]
    pub expires: WallTime,
    /// When it was taken back; one that an operator ends has expired, as with headscale.
    #[serde(with = "stamp::optional")]
    pub revoked: Option<WallTime>,
    /// How many nodes it made or let in again.
    pub uses: u64,
}

impl fmt::Debug for KeyRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRow").field("id", &self.id).field("uses", &self.uses).finish_non_exhaustive()
    }
}

/// The policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRow {
    /// As it was written.
    pub text: String,
    /// When it was stored.
    #[serde(with = "stamp")]
    pub stored: WallTime,
}

/// Who changed what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditRow {
    /// When.
    #[serde(with = "stamp")]
    pub at: WallTime,
    /// Who.
    pub actor: Principal,
    /// What was done, such as `node.expire`.
    pub action: String,
    /// To what: a stable id, or `policy`.
    pub target: String,
    /// How it was; null when it was not there.
    pub before: Value,
    /// How it is; null when it is no more.
    pub after: Value,
}

/// Who does something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Principal {
    /// Somebody who may use the server's socket; by the name that the shell knows them by.
    Operator(String),
    /// A node, by its stable id.
    Node(String),
    /// The server itself, when a time has come.
    Server,
}

/// Times as nanoseconds since 1970.
pub(crate) mod stamp {
    use mesh_core::time::WallTime;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(time: &WallTime, serializer: S) -> Result<S::Ok, S::Error> {
        time.as_unix_nanos().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<WallTime, D::Error> {
        u64::deserialize(deserializer).map(WallTime::from_unix_nanos)
    }

    /// Where there may be none.
    pub(crate) mod optional {
        use mesh_core::time::WallTime;
        use serde::{Deserialize, Deserializer, Serialize, Serializer};

        pub(crate) fn serialize<S: Serializer>(time: &Option<WallTime>, serializer: S) -> Result<S::Ok, S::Error> {
            time.map(WallTime::as_unix_nanos).serialize(serializer)
        }

        pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<WallTime>, D::Error> {
            Ok(Option::<u64>::deserialize(deserializer)?.map(WallTime::from_unix_nanos))
        }
    }
}

/// Roles and their names in the API.
const ROLES: [(Role, &str); 7] = [
    (Role::Member, "member"),
    (Role::Owner, "owner"),
    (Role::Admin, "admin"),
    (Role::ItAdmin, "it-admin"),
    (Role::NetworkAdmin, "network-admin"),
    (Role::BillingAdmin, "billing-admin"),
    (Role::Auditor, "auditor"),
];

/// The name of a role in the API.
#[must_use]
pub fn role_name(role: Role) -> &'static str {
    ROLES.iter().find(|(known, _)| *known == role).map_or("member", |(_, name)| name)
}

mod role {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    use super::{ROLES, Role, role_name};

    pub(super) fn serialize<S: Serializer>(role: &Role, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(role_name(*role))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Role, D::Error> {
        let text = String::deserialize(deserializer)?;
        let found = ROLES.iter().find(|(_, name)| *name == text);
        found.map(|(role, _)| *role).ok_or_else(|| D::Error::custom(format!("{text:?} is no role")))
    }
}

/// 32 bytes in hex digits.
mod hash {
    use data_encoding::HEXLOWER;
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(hash: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&HEXLOWER.encode(hash))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = HEXLOWER.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.ok_or_else(|| D::Error::custom("expected 64 hex digits"))
    }
}
