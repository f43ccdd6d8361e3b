//! What a node says of itself. Peers are shown a part of it.

use serde::{Deserialize, Serialize};

use super::{
    json::{is_zero, or_zero, prefixes},
    netinfo::NetInfo,
};
use crate::ip::prefix::Prefix;

/// What a node says of itself. Of the optional truth values, `None` is "not known".
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Hostinfo {
    /// The program's version, in its long form.
    #[serde(rename = "IPNVersion", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub ipn_version: String,
    /// A number under which a user interface logs.
    #[serde(rename = "FrontendLogID", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub frontend_log_id: String,
    /// A number under which the program logs.
    #[serde(rename = "BackendLogID", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub backend_log_id: String,
    /// `linux`, `windows`, `macOS`, …
    #[serde(rename = "OS", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub os: String,
    /// Of the operating system.
    #[serde(rename = "OSVersion", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub os_version: String,
    /// It runs in a container.
    #[serde(skip_serializing_if = "is_zero")]
    pub container: Option<bool>,
    /// A short name of the kind of host it runs on.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub env: String,
    /// Of Linux.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub distro: String,
    /// Of the distribution.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub distro_version: String,
    /// Of the distribution.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub distro_code_name: String,
    /// The program that the node is a part of.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub app: String,
    /// It has a desktop.
    #[serde(skip_serializing_if = "is_zero")]
    pub desktop: Option<bool>,
    /// How it was installed.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub package: String,
    /// Of a telephone.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub device_model: String,
    /// Where to send wake-up messages to.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub push_device_token: String,
    /// What its MagicDNS name is made from.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub hostname: String,
    /// It takes nothing in. For information: it sees to that itself.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub shields_up: bool,
    /// It is a peer only because a node was shared with it.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub sharee_node: bool,
    /// It sends no logs.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub no_logs_no_support: bool,
    /// It lets the server configure it.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub remote_config: bool,
    /// It wants to be reached from the Internet.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub wire_ingress: bool,
    /// It can be reached from the Internet.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub ingress_enabled: bool,
    /// The server may have it updated.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub allows_update: bool,
    /// Kind of processor, as the kernel says.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub machine: String,
    /// Kind of processor, as Go says.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub go_arch: String,
    /// Variant of the processor, as Go says.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub go_arch_var: String,
    /// Version of Go.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub go_version: String,
    /// Subnets it offers to route; `0.0.0.0/0` and `::/0` offer an exit node.
    #[serde(rename = "RoutableIPs", deserialize_with = "prefixes", skip_serializing_if = "is_zero")]
    pub routable_ips: Vec<Prefix>,
    /// Tags it asks for.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub request_tags: Vec<String>,
    /// Addresses for waking it.
    #[serde(rename = "WoLMACs", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub wol_macs: Vec<String>,
    /// What it serves.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub services: Vec<Service>,
    /// Its network. When it is missing in an update, the one before still holds.
    #[serde(skip_serializing_if = "is_zero")]
    pub net_info: Option<NetInfo>,
    /// Its SSH host keys.
    #[serde(rename = "sshHostKeys", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub ssh_host_keys: Vec<String>,
    /// The cloud it runs in.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub cloud: String,
    /// It carries packets itself, without a TUN device.
    #[serde(skip_serializing_if = "is_zero")]
    pub userspace: Option<bool>,
    /// It routes for others itself, without the kernel.
    #[serde(skip_serializing_if = "is_zero")]
    pub userspace_router: Option<bool>,
    /// It connects names to routes for others.
    #[serde(skip_serializing_if = "is_zero")]
    pub app_connector: Option<bool>,
    /// Changes when what it offers as tailnet services changes.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub services_hash: String,
    /// It lends itself as a UDP relay.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub peer_relay: bool,
    /// The exit node it uses, by its stable id.
    #[serde(rename = "ExitNodeID", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub exit_node_id: String,
    /// Where it is.
    #[serde(skip_serializing_if = "is_zero")]
    pub location: Option<Location>,
    /// Its TPM.
    #[serde(rename = "TPM", skip_serializing_if = "is_zero")]
    pub tpm: Option<Tpm>,
    /// Its state file is encrypted.
    #[serde(skip_serializing_if = "is_zero")]
    pub state_encrypted: Option<bool>,
}

/// Whether a text is a tag, such as `tag:server`. Stock nodes: a letter, then letters, digits and `-`.
#[must_use]
pub fn is_tag(text: &str) -> bool {
    let Some(name) = text.strip_prefix("tag:") else { return false };
    name.starts_with(|letter: char| letter.is_ascii_alphabetic())
        && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '-')
}

/// Something that a node serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Service {
    /// `tcp`, `udp`, `peerapi4`, `peerapi6`, `peerapi-dns-proxy`.
    #[serde(deserialize_with = "or_zero")]
    pub proto: String,
    /// Where.
    #[serde(deserialize_with = "or_zero")]
    pub port: u16,
    /// The name of the program.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub description: String,
}

/// Where a node is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Location {
    /// Name.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub country: String,
    /// Two letters.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub country_code: String,
    /// Name.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub city: String,
    /// A short name, unique in the country.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub city_code: String,
    /// Degrees.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub latitude: f64,
    /// Degrees.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub longitude: f64,
    /// Among exit nodes: higher is better.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub priority: i64,
}

/// A TPM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Tpm {
    /// Who made it.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub manufacturer: String,
    /// Who says so.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub vendor: String,
    /// A number of its vendor's.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub model: i64,
    /// A number of its vendor's.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub firmware_version: u64,
    /// Revision of the specification.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub spec_revision: i64,
    /// Such as `2.0`.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub family_indicator: String,
}
