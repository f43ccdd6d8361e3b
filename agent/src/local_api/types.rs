//! The objects of the local API, with the names that stock clients use. What is not known is left out.

use std::collections::BTreeMap;

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use mesh_core::{
    control::types::PeerNode,
    derp::RegionId,
    ip::prefix::Prefix,
    key::NodePublic,
    netcheck::{Family, Report},
    node::{PathsStatus, PeerStatus, PingKind, RelayStatus, Reply, Status as NodeStatus},
    path::{CandidateReport, PathAddr},
    stun::Mapping,
    time::{Instant, WallTime},
};
use serde::{Deserialize, Serialize};

use crate::daemon::Snapshot;

/// How long a peer without packets still counts as active.
const ACTIVE_FOR: Duration = Duration::from_secs(120);

/// The daemon and its peers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Status {
    /// Version and commit of the daemon.
    pub version: String,
    /// Whether packets come from a TUN device. Always so in this form.
    #[serde(rename = "TUN")]
    pub tun: bool,
    /// `Running`.
    pub backend_state: String,
    /// Whether there is a node key.
    pub have_node_key: bool,
    /// Where to sign in; empty when there is nothing to do.
    #[serde(rename = "AuthURL")]
    pub auth_url: String,
    /// Our overlay addresses.
    #[serde(rename = "TailscaleIPs")]
    pub tailscale_ips: Vec<IpAddr>,
    /// This node.
    #[serde(rename = "Self")]
    pub own: OwnStatus,
    /// What is wrong; empty when nothing is known to be.
    pub health: Vec<String>,
    /// The others, by node key.
    pub peer: BTreeMap<String, Peer>,
}

/// This node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct OwnStatus {
    /// The node key.
    pub public_key: NodePublic,
    /// Its MagicDNS name; left out where no network map says one.
    #[serde(rename = "DNSName", default, skip_serializing_if = "String::is_empty")]
    pub dns_name: String,
    /// The first label of that name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host_name: String,
    /// The short name of our home relay's region.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub relay: String,
    /// Addresses at which we may be reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addrs: Vec<SocketAddr>,
    /// Our overlay addresses.
    #[serde(rename = "TailscaleIPs")]
    pub tailscale_ips: Vec<IpAddr>,
    /// UDP port of the underlay. Not in stock objects.
    pub port: u16,
    /// Bytes of datagrams received from all peers.
    pub rx_bytes: u64,
    /// Bytes of datagrams sent to all peers.
    pub tx_bytes: u64,
    /// Always so: packets are carried.
    pub online: bool,
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Peer {
    /// The node key.
    pub public_key: NodePublic,
    /// Its MagicDNS name; left out where no network map says one.
    #[serde(rename = "DNSName", default, skip_serializing_if = "String::is_empty")]
    pub dns_name: String,
    /// The first label of that name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host_name: String,
    /// The short name of its home relay's region.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub relay: String,
    /// Addresses at which it may be reached, as the network map says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addrs: Vec<SocketAddr>,
    /// Round trip of the direct path in use, in milliseconds. Not in stock objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    /// Its overlay addresses: the allowed IPs that are single addresses.
    #[serde(rename = "TailscaleIPs")]
    pub tailscale_ips: Vec<IpAddr>,
    /// What is sent to it and accepted from it.
    #[serde(rename = "AllowedIPs")]
    pub allowed_ips: Vec<Prefix>,
    /// Where its datagrams go; empty when they go over a relay, or nowhere.
    pub cur_addr: String,
    /// Bytes of authenticated datagrams received.
    pub rx_bytes: u64,
    /// Bytes of datagrams sent.
    pub tx_bytes: u64,
    /// When the newest session began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handshake: Option<String>,
    /// Whether there is a session now.
    pub online: bool,
    /// Whether packets went either way in the last two minutes.
    pub active: bool,
}

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

/// What a request that failed is answered with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The failure.
    pub error: ErrorText,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorText {
    /// A stable word for scripts.
    pub code: String,
    /// One sentence.
    pub message: String,
    /// What to do; may be empty.
    pub hint: String,
}

impl Status {
    /// What a snapshot says.
    #[must_use]
    pub fn new(snapshot: &Snapshot) -> Self {
        let status = &snapshot.status;
        let peers = status.peers.iter();
        Self {
            version: crate::VERSION.to_owned(),
            tun: true,
            backend_state: "Running".to_owned(),
            have_node_key: true,
            auth_url: String::new(),
            tailscale_ips: status.addresses.clone(),
            own: OwnStatus {
                public_key: status.key,
                dns_name: status.node.as_deref().map(|node| node.name.clone()).unwrap_or_default(),
                host_name: host_name(status.node.as_deref()),
                relay: code(&status.relays, status.home),
                addrs: status.endpoints.iter().map(|endpoint| endpoint.address).collect(),
                tailscale_ips: status.addresses.clone(),
                port: snapshot.port,
                rx_bytes: peers.clone().map(|peer| peer.received_bytes).sum(),
                tx_bytes: peers.clone().map(|peer| peer.sent_bytes).sum(),
                online: true,
            },
            health: health(status),
            peer: peers.map(|peer| (peer.key.to_string(), Peer::new(peer, &status.relays, snapshot.now))).collect(),
        }
    }
}

impl Peer {
    fn new(peer: &PeerStatus, relays: &[RelayStatus], now: Instant) -> Self {
        let is_recent = |at: Option<Instant>| at.is_some_and(|at| now.since(at) < ACTIVE_FOR);
        Self {
            public_key: peer.key,
            dns_name: peer.node.as_deref().map(|node| node.name.clone()).unwrap_or_default(),
            host_name: host_name(peer.node.as_deref()),
            relay: code(relays, peer.relay),
            addrs: peer.node.as_deref().map(|node| node.endpoints.clone()).unwrap_or_default(),
            latency_ms: peer.latency.map(millis),
            tailscale_ips: peer.allowed_ips.iter().filter(|p| p.is_host()).map(Prefix::address).collect(),
            allowed_ips: peer.allowed_ips.clone(),
            cur_addr: peer.path.direct().map(|address| address.to_string()).unwrap_or_default(),
            rx_bytes: peer.received_bytes,
            tx_bytes: peer.sent_bytes,
            last_handshake: peer.last_handshake.map(rfc3339),
            online: peer.has_session,
            active: is_recent(peer.last_sent) || is_recent(peer.last_received),
        }
    }
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
        let name = status.peers.iter().find(|known| known.key == *peer).map(|known| host_name(known.node.as_deref()));
        let region = match via {
            Some(PathAddr::Relay { region, .. }) => Some(*region),
            Some(PathAddr::Udp(_)) | None => None,
        };
        Some(Self {
            node_ip: *address,
            node_name: name.filter(|name| !name.is_empty()).unwrap_or_else(|| format!("{peer:?}")),
            latency_seconds: round_trip.as_secs_f64(),
            endpoint: via.filter(|_| region.is_none()).map(|via| via.to_string()),
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

/// The first label of a node's MagicDNS name; empty without one.
fn host_name(node: Option<&PeerNode>) -> String {
    node.and_then(|node| node.name.split('.').next()).unwrap_or_default().to_owned()
}

/// The short name of a region, or its number.
fn code(relays: &[RelayStatus], region: Option<RegionId>) -> String {
    let Some(region) = region else { return String::new() };
    let known = relays.iter().find(|relay| relay.region == region).map(|relay| relay.code.clone());
    known.filter(|code| !code.is_empty()).unwrap_or_else(|| region.to_string())
}

/// What is wrong, a sentence each.
fn health(status: &NodeStatus) -> Vec<String> {
    let told = status.relays.iter().filter_map(|relay| {
        let problem = relay.problem.as_ref()?;
        Some(format!("relay {}: {problem}", code(&status.relays, Some(relay.region))))
    });
    told.collect()
}

fn millis(time: Duration) -> f64 {
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

    #[test]
    fn names_are_those_of_stock_clients() {
        let peer = PeerStatus {
            key: NodePublic::from_bytes([7; 32]),
            allowed_ips: vec!["10.0.0.2/32".parse().unwrap(), "10.1.0.0/16".parse().unwrap()],
            path: mesh_core::path::Selection::Direct("192.0.2.1:5".parse().unwrap()),
            node: None,
            relay: None,
            latency: None,
            has_session: true,
            last_handshake: Some(WallTime::from_unix_secs(0)),
            last_sent: Some(Instant::from_secs(9)),
            last_received: None,
            sent_bytes: 1,
            received_bytes: 2,
        };
        let json = serde_json::to_value(Peer::new(&peer, &[], Instant::from_secs(10))).unwrap();
        let expected = serde_json::json!({
            "PublicKey": NodePublic::from_bytes([7; 32]).to_string(),
            "TailscaleIPs": ["10.0.0.2"], "AllowedIPs": ["10.0.0.2/32", "10.1.0.0/16"],
            "CurAddr": "192.0.2.1:5", "RxBytes": 2, "TxBytes": 1,
            "LastHandshake": "1970-01-01T00:00:00.000000000Z", "Online": true, "Active": true,
        });
        assert_eq!(json, expected);
    }
}
