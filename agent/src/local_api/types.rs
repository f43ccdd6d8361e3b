//! The objects of the local API, with the names that stock clients use. What is not known is left out.

use std::collections::BTreeMap;

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use mesh_core::{
    derp::RegionId,
    key::NodePublic,
    netcheck::{Family, Report},
    node::{PathsStatus, PingKind, RelayStatus, Reply, Status as NodeStatus},
    path::{CandidateReport, PathAddr},
    stun::Mapping,
    time::{Instant, WallTime},
};
use serde::{Deserialize, Serialize};

use super::status::first_label;

/// How a ping went; the names are those of `tailscale ping`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PingResult {
    /// The overlay address that was pinged.
    #[serde(rename = "NodeIP")]
    pub node_ip: IpAddr,
    /// Who answered: without names, the short form of the key.
    pub node_name: String,
    /// From request to answer.
    pub latency_seconds: f64,
    /// Where the answer came from, unless it came over a relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// It was a TSMP ping, answered by the peer itself inside the tunnel. Not in stock objects.
    #[serde(rename = "IsTSMP", default, skip_serializing_if = "core::ops::Not::not")]
    pub is_tsmp: bool,
    /// It was a disco ping, which shows the way of all packets. Not in stock objects.
    #[serde(default)]
    pub is_disco: bool,
    /// The region of the relay that the answer came over.
    #[serde(rename = "DERPRegionID", default, skip_serializing_if = "Option::is_none")]
    pub derp_region_id: Option<u16>,
    /// The short name of that region.
    #[serde(rename = "DERPRegionCode", default, skip_serializing_if = "Option::is_none")]
    pub derp_region_code: Option<String>,
}

/// How a peer is reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PeerPaths {
    /// The node key.
    pub public_key: NodePublic,
    /// How its packets go now: an address, `DERP(region)`, both, or `nowhere`.
    pub path: String,
    /// Where its datagrams go, unless they go over a relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cur_addr: Option<String>,
    /// The short name of its home relay's region.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub relay: String,
    /// Round trip of the direct path in use, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    /// Addresses at which it may be, what each showed, and why it is used or not.
    pub candidates: Vec<Candidate>,
    /// Whether there is a session now.
    pub session: bool,
    /// When the newest session began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handshake: Option<String>,
    /// How long ago something was sent, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sent_ms_ago: Option<u64>,
    /// How long ago something authenticated was received, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_received_ms_ago: Option<u64>,
}

/// An address at which a peer may be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Candidate {
    /// Where.
    pub address: SocketAddr,
    /// Who says so: `netmap`, `call-me-maybe`, `ping`.
    pub known_from: Vec<String>,
    /// How long ago something last came from there, or it became known, in milliseconds.
    pub heard_ms_ago: u64,
    /// How long ago it last answered a ping of ours, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pong_ms_ago: Option<u64>,
    /// Its round trip, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    /// Why it is used or not.
    pub verdict: String,
}

/// What the network is like; the names are those of `tailscale netcheck --format json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetcheckReport {
    /// A STUN server answered over UDP.
    #[serde(rename = "UDP")]
    pub udp: bool,
    /// Something answered over IPv4.
    #[serde(rename = "IPv4")]
    pub ipv4: bool,
    /// Something answered over IPv6.
    #[serde(rename = "IPv6")]
    pub ipv6: bool,
    /// Datagrams could be sent over IPv4.
    #[serde(rename = "IPv4CanSend")]
    pub ipv4_can_send: bool,
    /// Datagrams could be sent over IPv6.
    #[serde(rename = "IPv6CanSend")]
    pub ipv6_can_send: bool,
    /// The host has IPv6.
    #[serde(rename = "OSHasIPv6")]
    pub os_has_ipv6: bool,
    /// Whether the NAT gives us another address for each destination; null when that is not known.
    #[serde(rename = "MappingVariesByDestIP")]
    pub mapping_varies_by_dest_ip: Option<bool>,
    /// Our address, as servers see it; empty when none did.
    pub global_v4: String,
    /// Our address, as servers see it; empty when none did.
    pub global_v6: String,
    /// The region of the relay that is home, or is to be; 0 when none is.
    #[serde(rename = "PreferredDERP")]
    pub preferred_derp: u16,
    /// Round trips in nanoseconds by region.
    pub region_latency: BTreeMap<u16, u64>,
    /// The same, over IPv4.
    pub region_v4_latency: BTreeMap<u16, u64>,
    /// The same, over IPv6.
    pub region_v6_latency: BTreeMap<u16, u64>,
    /// Short names of the regions. Not in stock objects.
    pub region_codes: BTreeMap<u16, String>,
}

impl PeerPaths {
    /// What the node says of a peer at `now`.
    #[must_use]
    pub fn new(paths: &PathsStatus, relays: &[RelayStatus], now: Instant) -> Self {
        let peer = &paths.peer;
        let ago = |at: Option<Instant>| at.map(|at| whole_millis(now.since(at)));
        Self {
            public_key: peer.key,
            path: peer.path.to_string(),
            cur_addr: peer.path.direct().map(|address| address.to_string()),
            relay: code(relays, peer.relay),
            latency_ms: peer.latency.map(millis),
            candidates: paths.candidates.iter().map(Candidate::new).collect(),
            session: peer.has_session,
            last_handshake: peer.last_handshake.map(rfc3339),
            last_sent_ms_ago: ago(peer.last_sent),
            last_received_ms_ago: ago(peer.last_received),
        }
    }
}

impl Candidate {
    fn new(candidate: &CandidateReport) -> Self {
        let sources = [("netmap", candidate.in_netmap), ("call-me-maybe", candidate.in_call)];
        let listed: Vec<_> = sources.iter().filter(|(_, is)| *is).map(|(name, _)| (*name).to_owned()).collect();
        Self {
            address: candidate.address,
            known_from: if listed.is_empty() { vec!["ping".to_owned()] } else { listed },
            heard_ms_ago: whole_millis(candidate.heard_ago),
            pong_ms_ago: candidate.pong.map(|(ago, _)| whole_millis(ago)),
            latency_ms: candidate.pong.map(|(_, latency)| millis(latency)),
            verdict: candidate.verdict.text().to_owned(),
        }
    }
}

impl PingResult {
    /// What a pong says; `None` for other replies. `status` knows names.
    #[must_use]
    pub fn new(reply: &Reply, status: &NodeStatus) -> Option<Self> {
        let Reply::Pong { peer, address, round_trip, kind, via } = reply else { return None };
        let name = status.peers.iter().find(|known| known.key == *peer).and_then(|known| known.node.as_deref());
        let name = name.map(first_label);
        let region = match via {
            Some(PathAddr::Relay { region, .. }) => Some(*region),
            Some(PathAddr::Udp(_)) | None => None,
        };
        Some(Self {
            node_ip: *address,
            node_name: name.filter(|name| !name.is_empty()).unwrap_or_else(|| format!("{peer:?}")),
            latency_seconds: round_trip.as_secs_f64(),
            endpoint: via.filter(|_| region.is_none()).map(|via| via.to_string()),
            is_tsmp: *kind == PingKind::Tsmp,
            is_disco: *kind == PingKind::Disco,
            derp_region_id: region.map(RegionId::number),
            derp_region_code: region.map(|region| code(&status.relays, Some(region))),
        })
    }
}

impl NetcheckReport {
    /// What a report says. `status` knows names and the home.
    #[must_use]
    pub fn new(report: &Report, status: &NodeStatus) -> Self {
        let nanos = |latency: Duration| u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let by_family = |family: Family| {
            let measured = report.regions.iter().filter_map(|(region, latency)| Some((region, latency.of(family)?)));
            measured.map(|(region, latency)| (region.number(), nanos(latency))).collect()
        };
        let text = |address: Option<SocketAddr>| address.map(|address| address.to_string()).unwrap_or_default();
        let best =
            report.regions.iter().filter_map(|(region, latency)| Some((region.number(), nanos(latency.best()?))));
        Self {
            udp: report.udp,
            ipv4: report.ipv4,
            ipv6: report.ipv6,
            ipv4_can_send: report.ipv4_can_send,
            ipv6_can_send: report.ipv6_can_send,
            os_has_ipv6: report.os_has_ipv6,
            mapping_varies_by_dest_ip: match report.mapping {
                Mapping::Unknown => None,
                Mapping::Same => Some(false),
                Mapping::Varies => Some(true),
            },
            global_v4: text(report.global_v4),
            global_v6: text(report.global_v6),
            preferred_derp: status.home.or(report.preferred).map_or(0, RegionId::number),
            region_latency: best.collect(),
            region_v4_latency: by_family(Family::V4),
            region_v6_latency: by_family(Family::V6),
            region_codes: status.relays.iter().map(|relay| (relay.region.number(), relay.code.clone())).collect(),
        }
    }
}

/// The short name of a region, or its number.
pub(super) fn code(relays: &[RelayStatus], region: Option<RegionId>) -> String {
    let Some(region) = region else { return String::new() };
    let known = relays.iter().find(|relay| relay.region == region).map(|relay| relay.code.clone());
    known.filter(|code| !code.is_empty()).unwrap_or_else(|| region.to_string())
}

pub(super) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn whole_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A calendar time as stock objects have it: RFC 3339, UTC, nanoseconds.
#[must_use]
pub fn rfc3339(time: WallTime) -> String {
    let nanos = time.as_unix_nanos();
    let (seconds, fraction) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Days to date in the calendar whose years begin in March (Howard Hinnant, "chrono-compatible low-level date
    // algorithms"). Times before 1970 do not occur.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calendar_times_are_right_at_the_edges() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000000Z"),
            (4_102_444_800, "2100-01-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(rfc3339(WallTime::from_unix_secs(seconds)), text);
        }
    }
}
