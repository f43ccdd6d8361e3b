//! Messages for nodes, made from a snapshot.
//!
//! Rendering is pure and shares nothing that can change, so it is done on as many threads as there are, or inline. What
//! costs most, nodes as JSON, is made once for all messages that carry the same: a [`Fragment`] belongs to a version of a
//! node and to the routes that a viewer is shown, and most viewers are shown none.
//!
//! A message is a [`MapResponse`] without peers, and the fragments that belong into it. It is put together as text: no
//! fragment is ever read again.

mod delta;
mod full;
mod node;

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

use mesh_core::{
    control::types::{MapResponse, NodeId},
    time::WallTime,
};
use tracing::error;

use crate::{
    coordinator::StreamId,
    store::{
        log::{Entry, Version, What},
        node::{Fragment, Member},
        snapshot::Snapshot,
    },
};

pub use node::{TAGGED_LOGIN, TAGGED_USER};
pub(crate) use node::{adds_endpoint, full_name, login, shown, user};

/// Changes in a message that is soon rendered.
const BRIEF: usize = 16;

/// What rendering counts.
#[derive(Debug, Default)]
pub struct RenderCounters {
    peers: AtomicU64,
    peers_of_full_maps: AtomicU64,
}

impl RenderCounters {
    /// Nodes and patches written as JSON for messages that tell a change.
    #[must_use]
    pub fn peer_serializations(&self) -> u64 {
        self.peers.load(Relaxed)
    }

    /// Nodes written as JSON because a full map was the first to need them.
    #[must_use]
    pub fn full_map_serializations(&self) -> u64 {
        self.peers_of_full_maps.load(Relaxed)
    }
}

/// Everything that is needed to write one message.
#[derive(Clone, Debug)]
pub struct MapUpdate {
    stream: Option<StreamId>,
    node: NodeId,
    told: Told,
    at: Arc<Snapshot>,
    now: WallTime,
}

/// How much is told.
#[derive(Clone, Debug)]
enum Told {
    /// Everything.
    Full,
    /// What changed after a version, by these entries; earlier ones may be among them.
    Since(Version, Arc<[Arc<Entry>]>),
    /// That the node has to sign in; as it is, or was.
    Farewell(Arc<Member>),
}

/// One message: a response without peers, and the texts of the peers that belong into it.
#[derive(Clone, Debug, Default)]
pub struct Message {
    response: MapResponse,
    peers: Vec<Fragment>,
    peers_changed: Vec<Fragment>,
    patches: Vec<Fragment>,
}

impl MapUpdate {
    /// Everything, for a stream that begins or was left behind, or for a map that is asked for once.
    #[must_use]
    pub fn full(stream: Option<StreamId>, node: NodeId, at: Arc<Snapshot>, now: WallTime) -> Self {
        Self { stream, node, told: Told::Full, at, now }
    }

    /// What changed after a version, for a stream that was told everything up to it. All changes since are among
    /// `entries`.
    #[must_use]
    pub fn since(
        stream: StreamId,
        node: NodeId,
        after: Version,
        entries: Arc<[Arc<Entry>]>,
        at: Arc<Snapshot>,
        now: WallTime,
    ) -> Self {
        Self { stream: Some(stream), node, told: Told::Since(after, entries), at, now }
    }

    /// That a node is no more, or that its key has expired, for its own stream: it asks to sign in.
    #[must_use]
    pub fn farewell(stream: StreamId, member: Arc<Member>, at: Arc<Snapshot>, now: WallTime) -> Self {
        Self { stream: Some(stream), node: member.id(), told: Told::Farewell(member), at, now }
    }

    /// To which stream; `None` for a map that is asked for once.
    #[must_use]
    pub fn stream(&self) -> Option<StreamId> {
        self.stream
    }

    /// Whose map.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// How things are by then.
    #[must_use]
    pub fn version(&self) -> Version {
        self.at.version
    }

    /// Whether everything is told.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self.told, Told::Full)
    }

    /// Whether it tells of a few nodes only, so that rendering it is soon done.
    #[must_use]
    pub fn is_brief(&self) -> bool {
        match &self.told {
            Told::Full => false,
            Told::Since(_, entries) => {
                entries.len() <= BRIEF && entries.iter().all(|entry| matches!(entry.what, What::Node(..)))
            }
            Told::Farewell(_) => true,
        }
    }

    /// Whether nothing comes after it but a close.
    #[must_use]
    pub fn is_last(&self) -> bool {
        matches!(self.told, Told::Farewell(_))
    }

    /// Makes the message. The same update always gives the same.
    #[must_use]
    pub fn render(&self) -> Message {
        let mut message = match &self.told {
            Told::Full => self.at.full_map(self.node),
            Told::Since(after, entries) => {
                let told = entries.partition_point(|entry| entry.version <= *after);
                self.at.delta(self.node, entries.get(told..).unwrap_or_default())
            }
            Told::Farewell(member) => self.at.farewell(member, self.now),
        };
        message.response.control_time = Some(self.now);
        message
    }
}

impl Message {
    /// The message as JSON, neither compressed nor framed. Never empty.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = Vec::new();
        self.write_json(&mut json);
        json
    }

    /// Appends [`Self::to_json`] to what is there.
    pub fn write_json(&self, json: &mut Vec<u8>) {
        let before = json.len();
        json.extend_from_slice(to_json(&self.response).as_bytes());
        let lists =
            [("Peers", &self.peers), ("PeersChanged", &self.peers_changed), ("PeersChangedPatch", &self.patches)];
        json.reserve(
            lists.iter().flat_map(|(_, list)| list.iter()).map(|fragment| fragment.len() + 1).sum::<usize>() + 64,
        );
        for (name, fragments) in lists.into_iter().filter(|(_, fragments)| !fragments.is_empty()) {
            json.pop();
            if json.len() > before + 1 {
                json.push(b',');
            }
            json.extend_from_slice(format!("\"{name}\":[").as_bytes());
            for (number, fragment) in fragments.iter().enumerate() {
                if number > 0 {
                    json.push(b',');
                }
                json.extend_from_slice(fragment.as_bytes());
            }
            json.extend_from_slice(b"]}");
        }
    }
}

/// Texts and numbers always can be written; a time past the year 9999 cannot, and none is made.
fn to_json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|problem| {
        error!(%problem, "a value cannot be written as JSON");
        "{}".to_owned()
    })
}

impl Snapshot {
    /// The text of a peer as a viewer sees it.
    fn peer(&self, viewer: NodeId, peer: &Arc<Member>, of: Kind) -> Fragment {
        let has_routes = peer.row.served_routes().next().is_some();
        let routes = if has_routes { self.rulebook.shown(viewer, peer.id()) } else { Default::default() };
        peer.whole(routes, |routes| {
            let counter = match of {
                Kind::Full => &self.counters.peers_of_full_maps,
                Kind::Change => &self.counters.peers,
            };
            counter.fetch_add(1, Relaxed);
            to_json(&node::peer(peer, routes, &self.base_domain))
        })
    }
}

/// What a fragment is wanted for.
#[derive(Clone, Copy)]
enum Kind {
    Full,
    Change,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_put_together_of_texts() {
        let fragment = |text: &str| -> Fragment { text.into() };
        let mut message = Message::default();
        assert_eq!(message.to_json(), b"{}");
        message.patches = vec![fragment("{\"NodeID\":3}")];
        assert_eq!(message.to_json(), b"{\"PeersChangedPatch\":[{\"NodeID\":3}]}");
        message.response.domain = "mesh".to_owned();
        message.peers = vec![fragment("{\"ID\":1}"), fragment("{\"ID\":2}")];
        let json = String::from_utf8(message.to_json()).unwrap();
        assert_eq!(json, r#"{"Domain":"mesh","Peers":[{"ID":1},{"ID":2}],"PeersChangedPatch":[{"NodeID":3}]}"#);
    }

    #[test]
    fn updates_may_go_to_other_threads() {
        fn is_shared<T: Send + Sync + 'static>() {}
        is_shared::<MapUpdate>();
        is_shared::<Message>();
    }
}
