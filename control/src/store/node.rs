//! [`Member`]: a node at one version, and the texts that it was written as for its peers.

use core::net::SocketAddr;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use mesh_core::{
    control::types::{NetInfo, NodeId},
    ip::prefix::Prefix,
};

use super::{log::Parts, rows::NodeRow};

/// What is true of a node for the moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Live {
    /// Where peers may reach it.
    pub endpoints: Vec<SocketAddr>,
    /// How each endpoint was found, as in a map request; as long as `endpoints`.
    pub endpoint_kinds: Vec<i64>,
    /// It has an open stream, or had one a moment ago.
    pub online: bool,
    /// Its key has expired.
    pub expired: bool,
    /// Another machine has its keys.
    pub cloned: bool,
}

/// A node at one version: immutable, shared by all views of that time.
#[derive(Debug)]
pub struct Member {
    /// What is stored of it. Shared by versions that differ in [`Self::live`] alone.
    pub row: Arc<NodeRow>,
    /// What is true for the moment.
    pub live: Live,
    fragments: Fragments,
}

/// JSON of a node or a patch, shared by all messages that carry it.
pub type Fragment = Arc<str>;

#[derive(Debug, Default)]
struct Fragments {
    /// As most see it: no routes but its own addresses.
    plain: OnceLock<Fragment>,
    /// With the routes that some are shown.
    routed: Mutex<BTreeMap<BTreeSet<Prefix>, Fragment>>,
    /// Patches, by what they are about.
    patches: Mutex<BTreeMap<Parts, Fragment>>,
}

impl Member {
    /// A new version of a node.
    #[must_use]
    pub fn new(row: Arc<NodeRow>, live: Live) -> Self {
        Self { row, live, fragments: Fragments::default() }
    }

    /// Which.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.row.id
    }

    /// The network it is in, as far as it said.
    #[must_use]
    pub fn net_info(&self) -> Option<&NetInfo> {
        self.row.hostinfo.net_info.as_ref()
    }

    /// The text of the node for those who are shown `routes`; written by `write` if nobody needed it before.
    pub fn whole(&self, routes: BTreeSet<Prefix>, write: impl FnOnce(&BTreeSet<Prefix>) -> String) -> Fragment {
        if routes.is_empty() {
            return Arc::clone(self.fragments.plain.get_or_init(|| write(&routes).into()));
        }
        let mut routed = self.fragments.routed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fragment) = routed.get(&routes) {
            return Arc::clone(fragment);
        }
        let fragment: Fragment = write(&routes).into();
        routed.insert(routes, Arc::clone(&fragment));
        fragment
    }

    /// The text of a patch; written by `write` if nobody needed it before.
    pub fn patch(&self, parts: Parts, write: impl FnOnce() -> String) -> Fragment {
        let mut patches = self.fragments.patches.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(patches.entry(parts).or_insert_with(|| write().into()))
    }
}
