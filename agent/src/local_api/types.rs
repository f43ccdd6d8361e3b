//! The objects of the local API, with the names that stock clients use. What is not known is left out.

use std::collections::BTreeMap;

use core::{net::IpAddr, time::Duration};

use mesh_core::{
    ip::prefix::Prefix,
    key::NodePublic,
    node::{PeerStatus, Reply},
    path::PathAddr,
    time::{Instant, WallTime},
};
use serde::{Deserialize, Serialize};

use crate::daemon::Snapshot;

/// How long a peer without packets still counts as active.
const ACTIVE_FOR: Duration = Duration::from_secs(120);

/// The daemon and its peers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Peer {
    /// The node key.
    pub public_key: NodePublic,
    /// Its overlay addresses: the allowed IPs that are single addresses.
    #[serde(rename = "TailscaleIPs")]
    pub tailscale_ips: Vec<IpAddr>,
    /// What is sent to it and accepted from it.
    #[serde(rename = "AllowedIPs")]
    pub allowed_ips: Vec<Prefix>,
    /// Where its datagrams go; empty when that is not known.
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
    /// Where the peer's datagrams come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

/// How a peer is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PeerPaths {
    /// The node key.
    pub public_key: NodePublic,
    /// Where its datagrams go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cur_addr: Option<String>,
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
                tailscale_ips: status.addresses.clone(),
                port: snapshot.port,
                rx_bytes: peers.clone().map(|peer| peer.received_bytes).sum(),
                tx_bytes: peers.clone().map(|peer| peer.sent_bytes).sum(),
                online: true,
            },
            health: Vec::new(),
            peer: peers.map(|peer| (peer.key.to_string(), Peer::new(peer, snapshot.now))).collect(),
        }
    }
}

impl Peer {
    fn new(peer: &PeerStatus, now: Instant) -> Self {
        let is_recent = |at: Option<Instant>| at.is_some_and(|at| now.since(at) < ACTIVE_FOR);
        Self {
            public_key: peer.key,
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
    /// What a peer's status says at `now`.
    #[must_use]
    pub fn new(peer: &PeerStatus, now: Instant) -> Self {
        let ago = |at: Option<Instant>| at.map(|at| u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX));
        Self {
            public_key: peer.key,
            cur_addr: peer.path.direct().map(|address| address.to_string()),
            session: peer.has_session,
            last_handshake: peer.last_handshake.map(rfc3339),
            last_sent_ms_ago: ago(peer.last_sent),
            last_received_ms_ago: ago(peer.last_received),
        }
    }
}

impl PingResult {
    /// What a pong says; `None` for other replies.
    #[must_use]
    pub fn new(reply: &Reply) -> Option<Self> {
        match reply {
            Reply::Pong { peer, address, round_trip, via } => Some(Self {
                node_ip: *address,
                node_name: format!("{peer:?}"),
                latency_seconds: round_trip.as_secs_f64(),
                endpoint: via.as_ref().map(PathAddr::to_string),
            }),
            Reply::PeersSet | Reply::MapApplied => None,
        }
    }
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
            relay: None,
            latency: None,
            has_session: true,
            last_handshake: Some(WallTime::from_unix_secs(0)),
            last_sent: Some(Instant::from_secs(9)),
            last_received: None,
            sent_bytes: 1,
            received_bytes: 2,
        };
        let json = serde_json::to_value(Peer::new(&peer, Instant::from_secs(10))).unwrap();
        let expected = serde_json::json!({
            "PublicKey": NodePublic::from_bytes([7; 32]).to_string(),
            "TailscaleIPs": ["10.0.0.2"], "AllowedIPs": ["10.0.0.2/32", "10.1.0.0/16"],
            "CurAddr": "192.0.2.1:5", "RxBytes": 2, "TxBytes": 1,
            "LastHandshake": "1970-01-01T00:00:00.000000000Z", "Online": true, "Active": true,
        });
        assert_eq!(json, expected);
    }
}
