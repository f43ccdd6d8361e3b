//! Messages for nodes, made from a snapshot.
//!
//! Rendering is pure and shares nothing that can change, so it is done on as many threads as there are, or inline. What
//! costs most, nodes as JSON, is made once for all messages that carry the same ([`Fragment`]).

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

use mesh_core::control::types::{MapResponse, NodeId};

use crate::{
    coordinator::StreamId,
    store::{
        log::{Entry, Version},
        node::{Fragment, Member},
        snapshot::Snapshot,
    },
};

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
    /// To which stream; `None` for a map that is asked for once.
    pub stream: Option<StreamId>,
    /// Whose map.
    pub node: NodeId,
    what: Told,
    at: Arc<Snapshot>,
}

/// How much is told.
#[derive(Clone, Debug)]
enum Told {
    /// Everything.
    Full,
    /// Everything but the peers.
    Own,
    /// What changed after this version.
    Since(Version, Arc<[Arc<Entry>]>),
    /// That the node is no more; as it was.
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
    /// Whether nothing comes after it but a close.
    #[must_use]
    pub fn is_last(&self) -> bool {
        matches!(self.what, Told::Farewell(_))
    }

    /// Makes the message. The same update always gives the same.
    #[must_use]
    pub fn render(&self) -> Message {
        Message::default()
    }
}

impl Message {
    /// The message as JSON, neither compressed nor framed.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        Vec::new()
    }
}
