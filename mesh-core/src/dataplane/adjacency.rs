//! One peer as the fast path sees it.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use crate::{
    filter::FlowTable,
    path::SendPath,
    published::Published,
    wireguard::{Sealer, timers::Activity},
};

/// A peer of this node. Small, dense, and not used again while the node lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(u32);

impl PeerId {
    /// The id of this number.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// What is needed to send to a peer now. Replaced as a whole.
#[derive(Clone, Debug, Default)]
pub struct TxState {
    /// Seals for the newest confirmed session; `None` while there is none.
    pub sealer: Option<Arc<Sealer>>,
    /// Where datagrams go; `None` while no address is known.
    pub path: Option<SendPath>,
}

/// What decides where a peer's datagrams go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Addressing {
    /// It is answered where its last authenticated packet came from.
    Roaming,
    /// Paths are found by disco.
    Discovered,
}

/// One peer as the fast path sees it. Shared by routes and receivers; outlives any single [`Fib`](super::Fib).
#[derive(Debug)]
pub struct Adjacency {
    peer: PeerId,
    addressing: Addressing,
    tx: Published<TxState>,
    activity: Arc<Activity>,
    counters: PeerCounters,
    flows: FlowTable,
}

impl Adjacency {
    /// A peer without session, reachable at `path`.
    #[must_use]
    pub fn new(peer: PeerId, addressing: Addressing, path: Option<SendPath>) -> Self {
        Self {
            peer,
            addressing,
            tx: Published::new(TxState { sealer: None, path }),
            activity: Arc::default(),
            counters: PeerCounters::default(),
            flows: FlowTable::default(),
        }
    }

    /// Who it is.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// What decides where its datagrams go.
    #[must_use]
    pub fn addressing(&self) -> Addressing {
        self.addressing
    }

    /// What is needed to send now.
    #[must_use]
    pub fn tx(&self) -> Arc<TxState> {
        self.tx.load()
    }

    /// Replaces what is needed to send. For the owner only.
    pub fn publish(&self, tx: TxState) {
        self.tx.publish(tx);
    }

    /// Stamps and edges.
    #[must_use]
    pub fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// Bytes and packets.
    #[must_use]
    pub fn counters(&self) -> &PeerCounters {
        &self.counters
    }

    /// What was sent to the peer and may be replied to.
    #[must_use]
    pub fn flows(&self) -> &FlowTable {
        &self.flows
    }
}

/// What was exchanged with a peer. Bytes are those of datagrams, without UDP and IP headers, handshakes included.
#[derive(Debug, Default)]
pub struct PeerCounters {
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    sent_packets: AtomicU64,
    received_packets: AtomicU64,
}

impl PeerCounters {
    /// Adds datagrams that were sent.
    pub fn add_sent(&self, packets: u64, bytes: u64) {
        self.sent_packets.fetch_add(packets, Ordering::Relaxed);
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Adds authenticated datagrams that were received.
    pub fn add_received(&self, packets: u64, bytes: u64) {
        self.received_packets.fetch_add(packets, Ordering::Relaxed);
        self.received_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of datagrams sent.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of authenticated datagrams received.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    /// Datagrams sent.
    #[must_use]
    pub fn sent_packets(&self) -> u64 {
        self.sent_packets.load(Ordering::Relaxed)
    }

    /// Authenticated datagrams received.
    #[must_use]
    pub fn received_packets(&self) -> u64 {
        self.received_packets.load(Ordering::Relaxed)
    }
}
