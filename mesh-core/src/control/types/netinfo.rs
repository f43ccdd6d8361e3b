//! What a node found out about its network.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::json::{is_zero, or_zero};
use crate::derp::RegionId;

/// What a node found out about its network. Of the truth values, `None` is "not known".
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NetInfo {
    /// The NAT gives a socket another address for each destination.
    #[serde(rename = "MappingVariesByDestIP", skip_serializing_if = "is_zero")]
    pub mapping_varies_by_dest_ip: Option<bool>,
    /// IPv6 reaches the Internet.
    #[serde(rename = "WorkingIPv6", skip_serializing_if = "is_zero")]
    pub working_ipv6: Option<bool>,
    /// The operating system has IPv6.
    #[serde(rename = "OSHasIPv6", skip_serializing_if = "is_zero")]
    pub os_has_ipv6: Option<bool>,
    /// UDP reaches the Internet.
    #[serde(rename = "WorkingUDP", skip_serializing_if = "is_zero")]
    pub working_udp: Option<bool>,
    /// ICMP reaches the Internet.
    #[serde(rename = "WorkingICMPv4", skip_serializing_if = "is_zero")]
    pub working_icmpv4: Option<bool>,
    /// There is a port mapping now.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub have_port_map: bool,
    /// The gateway speaks UPnP.
    #[serde(rename = "UPnP", skip_serializing_if = "is_zero")]
    pub upnp: Option<bool>,
    /// The gateway speaks NAT-PMP.
    #[serde(rename = "PMP", skip_serializing_if = "is_zero")]
    pub pmp: Option<bool>,
    /// The gateway speaks PCP.
    #[serde(rename = "PCP", skip_serializing_if = "is_zero")]
    pub pcp: Option<bool>,
    /// The home region; 0 is none.
    #[serde(rename = "PreferredDERP", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub preferred_derp: i64,
    /// `wired`, `wifi`, `mobile`, or not known.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub link_type: String,
    /// Seconds to relays, under names such as `1-v4`.
    #[serde(rename = "DERPLatency", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub derp_latency: BTreeMap<String, f64>,
    /// How the host's firewall is handled.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub firewall_mode: String,
}

impl NetInfo {
    /// The home region.
    #[must_use]
    pub fn home(&self) -> Option<RegionId> {
        super::node::region(self.preferred_derp)
    }
}
