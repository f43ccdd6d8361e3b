//! The daemon and its peers, with the names of `tailscale status --json`. What is not known is left out.

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use std::collections::BTreeMap;

use mesh_core::{
    control::types::{NodeId, PeerNode, UserId, UserProfile},
    ip::prefix::Prefix,
    key::NodePublic,
    node::{BackendState, PeerStatus, RelayStatus},
    time::{Instant, WallTime},
};
use serde::{Deserialize, Serialize};

use super::types::{code, millis, rfc3339};
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
    /// `Running`, `Stopped`, `NeedsLogin`, …; `Running` where there is no control server.
    pub backend_state: String,
    /// Whether there is a node key that control knows, or needs not to know.
    pub have_node_key: bool,
    /// Where to sign in; empty when there is nothing to do, and for those who may not change the daemon: whoever has it can
    /// sign the node in as theirs.
    #[serde(rename = "AuthURL")]
    pub auth_url: String,
    /// Our overlay addresses.
    #[serde(rename = "TailscaleIPs")]
    pub tailscale_ips: Vec<IpAddr>,
    /// This node.
    #[serde(rename = "Self")]
    pub own: Member,
    /// What is wrong; empty when nothing is known to be.
    pub health: Vec<String>,
    /// What all MagicDNS names end in.
    #[serde(rename = "MagicDNSSuffix", default)]
    pub magic_dns_suffix: String,
    /// The control server; left out where there is none. Not in stock objects.
    #[serde(rename = "ControlURL", default, skip_serializing_if = "String::is_empty")]
    pub control_url: String,
    /// Why control does not answer as it should. Not in stock objects.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub control_problem: String,
    /// The others, by node key.
    pub peer: BTreeMap<String, Member>,
    /// Whose they are.
    #[serde(default)]
    pub user: BTreeMap<UserId, UserProfile>,
}

/// A node of the network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Member {
    /// A name that never changes.
    #[serde(rename = "ID", default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Its number on its server.
    #[serde(rename = "NodeID", default, skip_serializing_if = "is_default")]
    pub node_id: NodeId,
    /// The node key.
    pub public_key: NodePublic,
    /// The name that it gives itself; otherwise the first label of its MagicDNS name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host_name: String,
    /// Its MagicDNS name; left out where no network map says one.
    #[serde(rename = "DNSName", default, skip_serializing_if = "String::is_empty")]
    pub dns_name: String,
    /// Its operating system.
    #[serde(rename = "OS", default, skip_serializing_if = "String::is_empty")]
    pub os: String,
    /// Whose it is.
    #[serde(rename = "UserID", default, skip_serializing_if = "is_default")]
    pub user_id: UserId,
    /// Its overlay addresses: of peers the allowed IPs that are single addresses.
    #[serde(rename = "TailscaleIPs")]
    pub tailscale_ips: Vec<IpAddr>,
    /// What is sent to it and accepted from it.
    #[serde(rename = "AllowedIPs", default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_ips: Vec<Prefix>,
    /// Its tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Subnets that it and no other routes at present.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub primary_routes: Vec<Prefix>,
    /// Addresses at which it may be reached: our own, or as the network map says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addrs: Vec<SocketAddr>,
    /// Where its datagrams go; empty when they go over a relay, or nowhere.
    #[serde(default)]
    pub cur_addr: String,
    /// The short name of its home relay's region.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub relay: String,
    /// Round trip of the direct path in use, in milliseconds. Not in stock objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    /// UDP port of the underlay, of this node. Not in stock objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Bytes of authenticated datagrams received; our own: from all peers.
    pub rx_bytes: u64,
    /// Bytes of datagrams sent; our own: to all peers.
    pub tx_bytes: u64,
    /// Since when it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// When it was last connected, of those that are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<String>,
    /// When the newest session began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handshake: Option<String>,
    /// When its key expires; left out when it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_expiry: Option<String>,
    /// Its key has expired.
    #[serde(default, skip_serializing_if = "is_default")]
    pub expired: bool,
    /// Whether control says that it is there; where control does not say, whether there is a session now.
    pub online: bool,
    /// Whether it is the exit node in use.
    pub exit_node: bool,
    /// Whether it can be an exit node.
    pub exit_node_option: bool,
    /// Whether packets went either way in the last two minutes.
    #[serde(default)]
    pub active: bool,
    /// Whether the network map has it.
    #[serde(default)]
    pub in_network_map: bool,
}

impl Status {
    /// What a snapshot says.
    #[must_use]
    pub fn new(snapshot: &Snapshot) -> Self {
        let status = &snapshot.status;
        let control = status.control.as_ref();
        let state = match status.state {
            // Peers come from a file: they are there.
            BackendState::NoState => BackendState::Running,
            state => state,
        };
        let peers = status.peers.iter().map(|peer| Member::of_peer(peer, &status.relays, snapshot.now));
        let relays = status.relays.iter().filter_map(|relay| {
            let problem = relay.problem.as_ref()?;
            Some(format!("relay {}: {problem}", code(&status.relays, Some(relay.region))))
        });
        let unkept = snapshot.unkept.iter().map(|why| format!("what changes is lost at the next start: {why}"));
        Self {
            version: crate::VERSION.to_owned(),
            tun: true,
            backend_state: state.to_string(),
            have_node_key: state != BackendState::NeedsLogin,
            auth_url: control.map(|control| control.auth_url.clone()).unwrap_or_default(),
            tailscale_ips: status.addresses.clone(),
            own: Member::own(snapshot),
            health: status.health.iter().cloned().chain(relays).chain(unkept).collect(),
            magic_dns_suffix: status.magic_dns_suffix.clone(),
            control_url: control.and_then(|control| Some(control.server.as_ref()?.to_string())).unwrap_or_default(),
            control_problem: control.and_then(|control| control.problem.clone()).unwrap_or_default(),
            peer: peers.map(|peer| (peer.public_key.to_string(), peer)).collect(),
            user: status.users.clone(),
        }
    }

    /// What a user may see who may change the daemon, or may not.
    #[must_use]
    pub fn shown_to(mut self, may_change: bool) -> Self {
        if !may_change {
            self.auth_url.clear();
        }
        self
    }
}

impl Member {
    fn own(snapshot: &Snapshot) -> Self {
        let status = &snapshot.status;
        let peers = status.peers.iter();
        Self {
            public_key: status.key,
            tailscale_ips: status.addresses.clone(),
            addrs: status.endpoints.iter().map(|endpoint| endpoint.address).collect(),
            relay: code(&status.relays, status.home),
            port: Some(snapshot.port),
            rx_bytes: peers.clone().map(|peer| peer.received_bytes).sum(),
            tx_bytes: peers.map(|peer| peer.sent_bytes).sum(),
            // Not every control server tells a node of itself.
            os: std::env::consts::OS.to_owned(),
            online: status.control.as_ref().is_none_or(|control| control.is_streaming),
            ..Self::of_node(status.node.as_deref())
        }
    }

    fn of_peer(peer: &PeerStatus, relays: &[RelayStatus], now: Instant) -> Self {
        let is_recent = |at: Option<Instant>| at.is_some_and(|at| now.since(at) < ACTIVE_FOR);
        let node = peer.node.as_deref();
        Self {
            public_key: peer.key,
            tailscale_ips: peer.allowed_ips.iter().filter(|p| p.is_host()).map(Prefix::address).collect(),
            allowed_ips: peer.allowed_ips.clone(),
            addrs: node.map(|node| node.endpoints.clone()).unwrap_or_default(),
            cur_addr: peer.path.direct().map(|address| address.to_string()).unwrap_or_default(),
            relay: code(relays, peer.relay),
            latency_ms: peer.latency.map(millis),
            rx_bytes: peer.received_bytes,
            tx_bytes: peer.sent_bytes,
            last_handshake: peer.last_handshake.map(rfc3339),
            online: node.and_then(|node| node.online).unwrap_or(peer.has_session),
            active: is_recent(peer.last_sent) || is_recent(peer.last_received),
            ..Self::of_node(node)
        }
    }

    /// What the network map says.
    fn of_node(node: Option<&PeerNode>) -> Self {
        let Some(node) = node else { return Self::default() };
        let hostinfo = node.hostinfo.as_deref();
        let time = |time: Option<WallTime>| time.map(rfc3339);
        Self {
            id: node.stable_id.clone(),
            node_id: node.id,
            host_name: hostinfo
                .map(|info| info.hostname.clone())
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| first_label(node)),
            dns_name: node.name.clone(),
            os: hostinfo.map(|info| info.os.clone()).unwrap_or_default(),
            user_id: node.user,
            allowed_ips: node.allowed_ips().to_vec(),
            tags: node.tags.clone(),
            primary_routes: node.primary_routes.clone(),
            created: time(node.created),
            last_seen: time(node.last_seen),
            key_expiry: time(node.key_expiry),
            expired: node.expired,
            exit_node_option: node.allowed_ips().iter().any(|prefix| prefix.length() == 0),
            in_network_map: true,
            ..Self::default()
        }
    }

    /// The name by which people know it: the first label of its MagicDNS name, otherwise the name it gives itself.
    #[must_use]
    pub fn short_name(&self) -> &str {
        let first = self.dns_name.split('.').next().unwrap_or_default();
        if first.is_empty() { &self.host_name } else { first }
    }
}

/// The first label of a node's MagicDNS name; empty without one.
pub(super) fn first_label(node: &PeerNode) -> String {
    node.name.split('.').next().unwrap_or_default().to_owned()
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mesh_core::path::Selection;

    use super::*;

    #[test]
    fn names_are_those_of_stock_clients() {
        let json = serde_json::to_value(Member::of_peer(&peer(None), &[], Instant::from_secs(10))).unwrap();
        let expected = serde_json::json!({
            "PublicKey": NodePublic::from_bytes([7; 32]).to_string(),
            "TailscaleIPs": ["10.0.0.2"], "AllowedIPs": ["10.0.0.2/32", "10.1.0.0/16"],
            "CurAddr": "192.0.2.1:5", "RxBytes": 2, "TxBytes": 1,
            "LastHandshake": "1970-01-01T00:00:00.000000000Z", "Online": true, "Active": true,
            "ExitNode": false, "ExitNodeOption": false, "InNetworkMap": false,
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn the_network_map_says_who_a_peer_is_and_whether_it_is_there() {
        let node: PeerNode = serde_json::from_str(
            r#"{"ID":2,"StableID":"n2CNTRL","Name":"bob.tail.lab.","User":1,"Online":false,"KeyExpiry":"2027-01-01T00:00:00Z",
                "AllowedIPs":["10.0.0.2/32","0.0.0.0/0"],"Hostinfo":{"Hostname":"Bob's","OS":"linux"},"Tags":["tag:a"]}"#,
        )
        .unwrap();
        let peer = Member::of_peer(&peer(Some(Arc::new(node))), &[], Instant::from_secs(10));
        assert_eq!((peer.short_name(), peer.host_name.as_str(), peer.os.as_str()), ("bob", "Bob's", "linux"));
        assert_eq!((peer.id.as_str(), peer.node_id, peer.user_id), ("n2CNTRL", NodeId(2), UserId(1)));
        assert_eq!((peer.online, peer.exit_node_option, peer.in_network_map), (false, true, true));
        assert_eq!(peer.key_expiry.as_deref(), Some("2027-01-01T00:00:00.000000000Z"));
        assert_eq!(peer.tags, ["tag:a"]);
    }

    fn peer(node: Option<Arc<PeerNode>>) -> PeerStatus {
        PeerStatus {
            key: NodePublic::from_bytes([7; 32]),
            allowed_ips: vec!["10.0.0.2/32".parse().unwrap(), "10.1.0.0/16".parse().unwrap()],
            path: Selection::Direct("192.0.2.1:5".parse().unwrap()),
            node,
            relay: None,
            latency: None,
            has_session: true,
            last_handshake: Some(WallTime::from_unix_secs(0)),
            last_sent: Some(Instant::from_secs(9)),
            last_received: None,
            sent_bytes: 1,
            received_bytes: 2,
        }
    }
}
