//! A plain snapshot for the local API, the simulator and tests.

use crate::{
    control::{
        ControlUrl,
        types::{PeerNode, UserId, UserProfile},
    },
    dataplane::DropCounts,
    derp::RegionId,
    endpoints::Endpoint,
    ip::prefix::Prefix,
    key::{DiscoPublic, NodePublic},
    path::{CandidateReport, PathsStats, Selection},
    time::{Instant, WallTime},
};

use core::{net::IpAddr, time::Duration};
use std::{collections::BTreeMap, sync::Arc};

use super::{BackendState, CommandError, PingTarget, Prefs, wire_control::named};

/// A node at one point in time.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Who we are.
    pub key: NodePublic,
    /// What the network map says of us.
    pub node: Option<Arc<PeerNode>>,
    /// What our disco messages are sealed with.
    pub disco_key: DiscoPublic,
    /// Our own candidate addresses.
    pub endpoints: Vec<Endpoint>,
    /// The region of our home relay.
    pub home: Option<RegionId>,
    /// All regions of the relay map, in order.
    pub relays: Vec<RelayStatus>,
    /// Our overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// All peers, in the order of their keys.
    pub peers: Vec<PeerStatus>,
    /// What the node is doing.
    pub state: BackendState,
    /// What the user wants.
    pub prefs: Prefs,
    /// How the conversation with control stands; `None` without one.
    pub control: Option<ControlStatus>,
    /// What is wrong, for people; empty when all is well.
    pub health: Vec<String>,
    /// Whose the nodes are.
    pub users: BTreeMap<UserId, UserProfile>,
    /// What the names of all nodes end in, without dots at its ends; empty when that is not known.
    pub magic_dns_suffix: String,
    /// Packets that ended in the node, by reason. The driver has counts of its own for the fast path.
    pub drops: DropCounts,
}

/// The conversation with control at one point in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlStatus {
    /// With whom.
    pub server: Option<ControlUrl>,
    /// Where somebody has to go to sign in; empty is nowhere.
    pub auth_url: String,
    /// Whether the map is being streamed.
    pub is_streaming: bool,
    /// Why control does not answer as it should, for people.
    pub problem: Option<String>,
    /// The sign-in name that the node is registered with.
    pub login_name: Option<String>,
}

/// A region of the relay map at one point in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayStatus {
    /// Which.
    pub region: RegionId,
    /// Its short name.
    pub code: String,
    /// Whether packets can go over it now.
    pub is_connected: bool,
    /// What is wrong with it, for people.
    pub problem: Option<String>,
}

/// A peer at one point in time.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerStatus {
    /// Who.
    pub key: NodePublic,
    /// What the network map says of it.
    pub node: Option<Arc<PeerNode>>,
    /// Overlay addresses that are sent to it.
    pub allowed_ips: Vec<Prefix>,
    /// How its packets are sent now.
    pub path: Selection,
    /// The region of its home relay, where the network map says one.
    pub relay: Option<RegionId>,
    /// Smoothed round trip of the direct address in use, where disco measures it.
    pub latency: Option<Duration>,
    /// Whether there is a session that can be sent on now.
    pub has_session: bool,
    /// When the newest session began, by the calendar.
    pub last_handshake: Option<WallTime>,
    /// When something was last sent.
    pub last_sent: Option<Instant>,
    /// When something authenticated was last received.
    pub last_received: Option<Instant>,
    /// Bytes of datagrams sent.
    pub sent_bytes: u64,
    /// Bytes of authenticated datagrams received.
    pub received_bytes: u64,
}

impl PeerStatus {
    /// A peer that is not talked to.
    pub(super) fn unreachable(node: &Arc<PeerNode>) -> Self {
        Self {
            key: node.key,
            node: Some(Arc::clone(node)),
            allowed_ips: Vec::new(),
            path: Selection::Nowhere,
            relay: node.home(),
            latency: None,
            has_session: false,
            last_handshake: None,
            last_sent: None,
            last_received: None,
            sent_bytes: 0,
            received_bytes: 0,
        }
    }
}

/// How one peer is reached, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct PathsStatus {
    /// The peer.
    pub peer: PeerStatus,
    /// Addresses at which it may be, and what they showed. None of a peer that nothing was sent to lately.
    pub candidates: Vec<CandidateReport>,
    /// What has happened since the paths were made.
    pub stats: PathsStats,
}

impl Status {
    /// The peer that is meant: by its name, by its key, or by an address that is sent to it.
    ///
    /// # Errors
    /// When nobody is meant, or several peers are.
    pub fn peer(&self, target: &PingTarget) -> Result<&PeerStatus, CommandError> {
        let by_key = |key: &NodePublic| self.peers.iter().find(|peer| peer.key == *key);
        match target {
            PingTarget::Key(key) => by_key(key).ok_or(CommandError::UnknownPeer(*key)),
            PingTarget::Name(name) => {
                let node = named(self.peers.iter().filter_map(|peer| peer.node.as_deref()), name)?;
                by_key(&node.key).ok_or(CommandError::UnknownPeer(node.key))
            }
            PingTarget::Address(address) => {
                let length = |peer: &&PeerStatus| {
                    let prefixes = peer.allowed_ips.iter().filter(|prefix| prefix.contains(*address));
                    prefixes.map(|prefix| prefix.length()).max()
                };
                let having = self.peers.iter().filter(|peer| length(peer).is_some());
                having.max_by_key(length).ok_or(CommandError::NoRoute(*address))
            }
        }
    }

    /// This node as control would show it to peers: what the map says of us, with what we know better.
    #[must_use]
    pub fn self_node(&self) -> PeerNode {
        let known = self.node.as_deref().cloned().unwrap_or_default();
        PeerNode {
            key: self.key,
            disco_key: Some(self.disco_key),
            endpoints: self.endpoints.iter().map(|endpoint| endpoint.address).collect(),
            home_derp: self.home.map_or(0, |region| region.number().into()),
            legacy_derp: self.home.map(|region| format!("127.3.3.40:{region}")).unwrap_or_default(),
            ..known
        }
    }
}
