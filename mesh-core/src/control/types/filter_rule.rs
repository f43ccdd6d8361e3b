//! Rules of the packet filter as they travel.
//!
//! A rule admits packets (`dst_ports`) or grants capabilities to its sources (`cap_grant`), not both. Addresses are
//! texts, because they may be `*`, an address, a prefix, a range `a-b`, or for sources a capability `cap:<name>`.

use serde::{Deserialize, Serialize};

use super::{
    capability::CapMap,
    json::{is_zero, or_zero, prefixes},
};
use crate::ip::prefix::Prefix;

/// One rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct FilterRule {
    /// Whom it is for.
    #[serde(rename = "SrcIPs", deserialize_with = "or_zero")]
    pub src_ips: Vec<String>,
    /// Obsolete. When there are any, the whole filter is void.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub src_bits: Vec<i64>,
    /// What they may reach.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub dst_ports: Vec<NetPortRange>,
    /// By which protocols; empty means TCP, UDP and both ICMP.
    #[serde(rename = "IPProto", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub ip_proto: Vec<i64>,
    /// What else they may do.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub cap_grant: Vec<CapGrant>,
}

impl FilterRule {
    /// Everybody may open everything of the usual protocols.
    #[must_use]
    pub fn allow_all() -> Self {
        let everything = NetPortRange { ip: "*".to_owned(), bits: None, ports: PortRange::ALL };
        Self { src_ips: vec!["*".to_owned()], dst_ports: vec![everything], ..Self::default() }
    }
}

/// Destinations and their ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NetPortRange {
    /// The destinations.
    #[serde(rename = "IP", deserialize_with = "or_zero")]
    pub ip: String,
    /// Obsolete. When there, the whole filter is void.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<i64>,
    /// Their ports.
    #[serde(deserialize_with = "or_zero")]
    pub ports: PortRange,
}

/// Ports from one to another, both included. 0 to 65535 is all, and the only range for protocols without ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PortRange {
    /// The lowest.
    #[serde(deserialize_with = "or_zero")]
    pub first: u16,
    /// The highest.
    #[serde(deserialize_with = "or_zero")]
    pub last: u16,
}

impl PortRange {
    /// All ports.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };
}

/// Capabilities that sources hold at some destinations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CapGrant {
    /// The destinations.
    #[serde(deserialize_with = "prefixes")]
    pub dsts: Vec<Prefix>,
    /// Obsolete form of those without values.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub caps: Vec<String>,
    /// The capabilities.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub cap_map: CapMap,
}
