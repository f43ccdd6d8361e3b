//! How names are to be resolved.

use std::collections::BTreeMap;

use core::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize};

use super::json::{is_zero, or_zero};

/// How names are to be resolved. Replaced as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DnsConfig {
    /// For all names; when there are any, they come before those of the operating system.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub resolvers: Vec<Resolver>,
    /// By suffix, without a leading dot. An empty list: answered by the node itself.
    #[serde(deserialize_with = "routes", skip_serializing_if = "is_zero")]
    pub routes: BTreeMap<String, Vec<Resolver>>,
    /// Where the operating system cannot split names and `resolvers` is empty.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub fallback_resolvers: Vec<Resolver>,
    /// Search domains, without a trailing dot.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub domains: Vec<String>,
    /// Names of peers are resolved by the node itself.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub proxied: bool,
    /// Superseded by `resolvers`.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub nameservers: Vec<IpAddr>,
    /// Names that the node may get certificates for.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub cert_domains: Vec<String>,
    /// Records beside those of the peers.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub extra_records: Vec<DnsRecord>,
    /// Suffixes that an exit node does not resolve for others.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub exit_node_filtered_set: Vec<String>,
}

/// Whom to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Resolver {
    /// An address, an address and a port, or the URL of DNS over HTTPS.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub addr: String,
    /// Where the host of a URL is. Not used by stock nodes.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub bootstrap_resolution: Vec<IpAddr>,
    /// Also asked while an exit node is in use.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub use_with_exit_node: bool,
}

/// A record of DNS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DnsRecord {
    /// A full name; a trailing dot may be there.
    #[serde(deserialize_with = "or_zero")]
    pub name: String,
    /// `A`, `AAAA`, or empty for the one that fits the value.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub r#type: String,
    /// An address.
    #[serde(deserialize_with = "or_zero")]
    pub value: String,
}

/// A list of null is an empty one.
fn routes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Vec<Resolver>>, D::Error> {
    let routes = Option::<BTreeMap<String, Option<Vec<Resolver>>>>::deserialize(deserializer)?.unwrap_or_default();
    Ok(routes.into_iter().map(|(suffix, resolvers)| (suffix, resolvers.unwrap_or_default())).collect())
}
