//! Map requests, and the messages of a map stream.

use core::net::{IpAddr, SocketAddr};
use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    capability::CapMap,
    dns::DnsConfig,
    filter_rule::FilterRule,
    hostinfo::Hostinfo,
    json::{address, bytes, endpoints, is_zero, key, key_or_zeros, or_zero, some_endpoints, time},
    node::{Expiry, NodeId, PeerNode},
    user::UserProfile,
};
use crate::{
    derp::DerpMap,
    key::{DiscoPublic, NodePublic},
    time::WallTime,
};

/// Asks for a map, or tells what has changed in the node, or both.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct MapRequest {
    /// Capability version of the node.
    #[serde(deserialize_with = "or_zero")]
    pub version: i64,
    /// `zstd`, or empty for messages as they are.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub compress: String,
    /// Send something every minute.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub keep_alive: bool,
    /// Who asks.
    #[serde(deserialize_with = "or_zero")]
    pub node_key: NodePublic,
    /// The node's disco key.
    #[serde(with = "key_or_zeros")]
    pub disco_key: Option<DiscoPublic>,
    /// Keep sending.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub stream: bool,
    /// What the node says of itself. One client calls it `HostInfo`.
    #[serde(alias = "HostInfo")]
    pub hostinfo: Option<Box<Hostinfo>>,
    /// UDP addresses at which the node may be.
    #[serde(deserialize_with = "endpoints", skip_serializing_if = "is_zero")]
    pub endpoints: Vec<SocketAddr>,
    /// How each endpoint was found: 0 not known, 1 local, 2 STUN, 3 mapped, 4 STUN's address with the local port, 5
    /// configured. May be shorter than `endpoints`.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub endpoint_types: Vec<i64>,
    /// Leave the peers out.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub omit_peers: bool,
    /// Change nothing on the server.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub read_only: bool,
    /// How far the node's tailnet lock has come.
    #[serde(rename = "TKAHead", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub tka_head: String,
    /// What is unusual about the node.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub debug_flags: Vec<String>,
    /// Asks for an earlier session to go on.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub map_session_handle: String,
    /// The last message seen in that session.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub map_session_seq: i64,
}

/// One message of a map stream. What is absent has not changed; what is empty see at each.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct MapResponse {
    /// Names the session in its first message.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub map_session_handle: String,
    /// Counts messages of a session that has a handle.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub seq: i64,
    /// Only to show that the stream lives: all but `ping_request`, `pop_browser_url`, `client_version`, `control_time`
    /// and `control_dial_plan` is void.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub keep_alive: bool,
    /// Something to answer.
    #[serde(skip_serializing_if = "is_zero")]
    pub ping_request: Option<PingRequest>,
    /// A page to be shown to the user.
    #[serde(rename = "PopBrowserURL", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub pop_browser_url: String,
    /// The node itself, whole.
    #[serde(skip_serializing_if = "is_zero")]
    pub node: Option<Arc<PeerNode>>,
    /// Relays; see [`crate::control::netmap`] for what its parts mean when they are absent.
    #[serde(rename = "DERPMap", skip_serializing_if = "is_zero")]
    pub derp_map: Option<DerpMap>,
    /// All peers. Empty is the same as absent, because Go cannot tell them apart.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub peers: Vec<Arc<PeerNode>>,
    /// Peers that are new or other than before, each whole. Void when `peers` is there, as all lists of peers are.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub peers_changed: Vec<Arc<PeerNode>>,
    /// Peers that are no more.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub peers_removed: Vec<NodeId>,
    /// Peers of which a few things changed.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub peers_changed_patch: Vec<PeerChange>,
    /// True: last seen now. False: last seen is no longer known.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub peer_seen_change: BTreeMap<NodeId, bool>,
    /// Whether they are connected to the server.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub online_change: BTreeMap<NodeId, bool>,
    /// How names are resolved, whole.
    #[serde(rename = "DNSConfig", skip_serializing_if = "is_zero")]
    pub dns_config: Option<DnsConfig>,
    /// The tailnet's name for people.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub domain: String,
    /// Whether the node should look for services on its host.
    #[serde(skip_serializing_if = "is_zero")]
    pub collect_services: Option<bool>,
    /// The rules named `base`. Empty admits nothing.
    #[serde(skip_serializing_if = "is_zero")]
    pub packet_filter: Option<Vec<FilterRule>>,
    /// Rules by name. A name with null takes it out; `*` with null takes all out, before the other names count.
    #[serde(skip_serializing_if = "is_zero")]
    pub packet_filters: Option<BTreeMap<String, Option<Vec<FilterRule>>>>,
    /// Users that are new or other than before. They stay for the session.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub user_profiles: Vec<UserProfile>,
    /// What is wrong, in words. Superseded by `display_messages`.
    #[serde(skip_serializing_if = "is_zero")]
    pub health: Option<Vec<String>>,
    /// What is to be shown to the user, by name. A name with null takes it out; `*` with null takes all out, before the
    /// other names count.
    #[serde(skip_serializing_if = "is_zero")]
    pub display_messages: Option<BTreeMap<String, Option<DisplayMessage>>>,
    /// Who may sign in by SSH, whole, as it was sent.
    #[serde(rename = "SSHPolicy", skip_serializing_if = "is_zero")]
    pub ssh_policy: Option<Value>,
    /// The server's clock.
    #[serde(with = "time", skip_serializing_if = "is_zero")]
    pub control_time: Option<WallTime>,
    /// State of tailnet lock.
    #[serde(rename = "TKAInfo", skip_serializing_if = "is_zero")]
    pub tka_info: Option<TkaInfo>,
    /// The tailnet's name under which flows are logged.
    #[serde(rename = "DomainDataPlaneAuditLogID", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub domain_data_plane_audit_log_id: String,
    /// Orders for the program.
    #[serde(skip_serializing_if = "is_zero")]
    pub debug: Option<Debug>,
    /// Where the server can be reached too.
    #[serde(skip_serializing_if = "is_zero")]
    pub control_dial_plan: Option<ControlDialPlan>,
    /// Whether there is a newer program.
    #[serde(skip_serializing_if = "is_zero")]
    pub client_version: Option<ClientVersion>,
    /// Superseded by a capability.
    #[serde(skip_serializing_if = "is_zero")]
    pub default_auto_update: Option<bool>,
}

/// What changed in one peer. What is absent has not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PeerChange {
    /// Which.
    #[serde(rename = "NodeID", deserialize_with = "or_zero")]
    pub node_id: NodeId,
    /// Its home region's number. 0 is the same as absent.
    #[serde(rename = "DERPRegion", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub derp_region: i64,
    /// Its capability version. 0 is the same as absent.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub cap: i64,
    /// All its capabilities.
    #[serde(skip_serializing_if = "is_zero")]
    pub cap_map: Option<CapMap>,
    /// All its endpoints.
    #[serde(deserialize_with = "some_endpoints", skip_serializing_if = "is_zero")]
    pub endpoints: Option<Vec<SocketAddr>>,
    /// Its key.
    #[serde(deserialize_with = "key", skip_serializing_if = "is_zero")]
    pub key: Option<NodePublic>,
    /// Signature of its key.
    #[serde(with = "bytes", skip_serializing_if = "is_zero")]
    pub key_signature: Vec<u8>,
    /// Its disco key.
    #[serde(deserialize_with = "key", skip_serializing_if = "is_zero")]
    pub disco_key: Option<DiscoPublic>,
    /// Whether it is connected to the server.
    #[serde(skip_serializing_if = "is_zero")]
    pub online: Option<bool>,
    /// When it last was.
    #[serde(with = "time", skip_serializing_if = "is_zero")]
    pub last_seen: Option<WallTime>,
    /// When its key expires.
    #[serde(skip_serializing_if = "is_zero")]
    pub key_expiry: Option<Expiry>,
}

/// Something to answer: a ping, or a request to the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PingRequest {
    /// Where the answer goes. One that is the same as before is void.
    #[serde(rename = "URL", deserialize_with = "or_zero")]
    pub url: String,
    /// The answer goes through Noise.
    #[serde(rename = "URLIsNoise", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub url_is_noise: bool,
    /// To be logged.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub log: bool,
    /// Empty, `c2n`, or kinds of pings with commas between.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub types: String,
    /// Whom to ping.
    #[serde(rename = "IP", deserialize_with = "address", skip_serializing_if = "is_zero")]
    pub ip: Option<IpAddr>,
    /// An HTTP request to the node.
    #[serde(with = "bytes", skip_serializing_if = "is_zero")]
    pub payload: Vec<u8>,
}

/// Something to be shown to the user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DisplayMessage {
    /// In a few words.
    #[serde(deserialize_with = "or_zero")]
    pub title: String,
    /// In sentences.
    #[serde(deserialize_with = "or_zero")]
    pub text: String,
    /// `high`, `medium` or `low`.
    #[serde(deserialize_with = "or_zero")]
    pub severity: String,
    /// The node may be cut off by it.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub impacts_connectivity: bool,
    /// What the user can do.
    #[serde(skip_serializing_if = "is_zero")]
    pub primary_action: Option<DisplayMessageAction>,
}

/// What the user can do about a [`DisplayMessage`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DisplayMessageAction {
    /// Go there.
    #[serde(rename = "URL", deserialize_with = "or_zero")]
    pub url: String,
    /// What the button says.
    #[serde(deserialize_with = "or_zero")]
    pub label: String,
}

/// State of tailnet lock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TkaInfo {
    /// How far the tailnet's log has come.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub head: String,
    /// It has been turned off.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub disabled: bool,
}

/// Orders for the program, each for once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Debug {
    /// Wait before the next message is read; five minutes at most.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub sleep_seconds: f64,
    /// Send no logs any more.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub disable_log_tail: bool,
    /// End with this status.
    #[serde(skip_serializing_if = "is_zero")]
    pub exit: Option<i64>,
}

/// Where the server can be reached too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ControlDialPlan {
    /// Tried beside each other. Empty: as if there had been no plan.
    #[serde(deserialize_with = "or_zero")]
    pub candidates: Vec<ControlIpCandidate>,
}

/// A place to reach the server at.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ControlIpCandidate {
    /// Its address.
    #[serde(rename = "IP", deserialize_with = "address", skip_serializing_if = "is_zero")]
    pub ip: Option<IpAddr>,
    /// A proxy through which it is reached instead.
    #[serde(rename = "ACEHost", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub ace_host: String,
    /// Seconds to wait before it is tried.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub dial_start_delay_sec: f64,
    /// Seconds until it is given up.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub dial_timeout_sec: f64,
    /// Of those that answer, the highest is taken.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub priority: i64,
}

/// Whether there is a newer program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ClientVersion {
    /// There is none.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub running_latest: bool,
    /// The newest.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub latest_version: String,
    /// It should be taken soon.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub urgent_security_update: bool,
    /// The user should be told.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub notify: bool,
    /// Where to read on.
    #[serde(rename = "NotifyURL", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub notify_url: String,
    /// What to tell.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub notify_text: String,
}
