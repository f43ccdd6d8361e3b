//! The published forwarding snapshot.

use std::sync::Arc;

use crate::{filter::Filter, published::Published, routes::RouteTable, wireguard::Identity};

use super::{Adjacency, DiscoKeys, Receivers};

/// What the fast path must know about ourselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAddrs {
    /// MTU of the TUN, which padding does not exceed.
    pub mtu_bytes: usize,
    /// The ICMP identifier of the node's own pings; replies to it are punted.
    pub ping_id: u16,
}

/// What the fast path forwards by. Replaced as a whole when routes, filter or the set of peers change; clones share
/// their tables.
#[derive(Clone, Debug)]
pub struct Fib {
    pub(super) routes: RouteTable<Arc<Adjacency>>,
    pub(super) receivers: Arc<Receivers>,
    pub(super) disco_keys: Arc<DiscoKeys>,
    pub(super) identity: Arc<Identity>,
    pub(super) local: LocalAddrs,
    pub(super) filter: Option<Arc<Filter>>,
}

impl Fib {
    /// A snapshot without routes and without filter.
    #[must_use]
    pub fn new(identity: Arc<Identity>, receivers: Arc<Receivers>, local: LocalAddrs) -> Self {
        Self { routes: RouteTable::new(), receivers, disco_keys: Arc::default(), identity, local, filter: None }
    }

    /// Overlay prefix → peer.
    #[must_use]
    pub fn routes(&self) -> &RouteTable<Arc<Adjacency>> {
        &self.routes
    }

    /// Overlay prefix → peer, to be changed before publishing.
    pub fn routes_mut(&mut self) -> &mut RouteTable<Arc<Adjacency>> {
        &mut self.routes
    }

    /// Receiver index → session.
    #[must_use]
    pub fn receivers(&self) -> &Arc<Receivers> {
        &self.receivers
    }

    /// We are somebody else from now on.
    pub fn set_identity(&mut self, identity: Arc<Identity>) {
        self.identity = identity;
    }

    /// Whose disco packets are looked at.
    #[must_use]
    pub fn disco_keys(&self) -> &Arc<DiscoKeys> {
        &self.disco_keys
    }

    /// What the fast path knows about ourselves.
    #[must_use]
    pub fn local(&self) -> &LocalAddrs {
        &self.local
    }

    /// What peers may open; `None` is everything: nobody made rules for this node.
    #[must_use]
    pub fn filter(&self) -> Option<&Arc<Filter>> {
        self.filter.as_ref()
    }

    /// Sets what peers may open, before publishing.
    pub fn set_filter(&mut self, filter: Arc<Filter>) {
        self.filter = Some(filter);
    }
}

/// A handle on the newest [`Fib`], for drivers and workers.
#[derive(Clone, Debug)]
pub struct DataPlane {
    fib: Arc<Published<Fib>>,
}

impl DataPlane {
    /// A handle that starts with `fib`.
    #[must_use]
    pub fn new(fib: Fib) -> Self {
        Self { fib: Arc::new(Published::new(fib)) }
    }

    /// The newest snapshot. Load it once a batch.
    #[must_use]
    pub fn fib(&self) -> Arc<Fib> {
        self.fib.load()
    }

    /// Replaces the snapshot. For the owner only.
    pub fn publish(&self, fib: Fib) {
        self.fib.publish(fib);
    }
}
