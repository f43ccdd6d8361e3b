//! Receiver index → session: what the fast path needs to open a datagram.

use std::sync::{Arc, PoisonError, RwLock};

use crate::{lookup::Lookup, rng::Rng, wireguard::Opener};

use super::Adjacency;

/// Shards, so that a new session does not make every reader wait. A power of two.
const SHARDS: usize = 16;

/// A session that datagrams may arrive on.
#[derive(Debug)]
pub struct ReceiveSession {
    /// The index that datagrams carry.
    pub index: u32,
    /// Whose session it is.
    pub adjacency: Arc<Adjacency>,
    /// Opens its datagrams.
    pub opener: Arc<Opener>,
}

/// What a receiver index stands for.
#[derive(Debug)]
enum Entry {
    /// A handshake of ours that is not answered yet.
    Awaited,
    /// A session.
    Session(Arc<ReceiveSession>),
}

/// All sessions that datagrams may arrive on, and the handshakes that answers may arrive for. Changed by the owner
/// alone; outlives any single [`Fib`](super::Fib).
#[derive(Debug)]
pub struct Receivers {
    shards: [RwLock<Lookup<u32, Entry>>; SHARDS],
}

impl Receivers {
    /// No sessions.
    #[must_use]
    pub fn new(rng: &mut Rng) -> Self {
        Self { shards: core::array::from_fn(|_| RwLock::new(Lookup::new(rng))) }
    }

    /// The session of this index.
    #[inline]
    #[must_use]
    pub fn get(&self, index: u32) -> Option<Arc<ReceiveSession>> {
        match self.shard(index).read().unwrap_or_else(PoisonError::into_inner).get(&index) {
            Some(Entry::Session(session)) => Some(Arc::clone(session)),
            Some(Entry::Awaited) | None => None,
        }
    }

    /// Whether a response or cookie reply with this index may answer something of ours. A cookie reply may be for a
    /// response, whose index is that of a session.
    #[inline]
    #[must_use]
    pub fn is_known(&self, index: u32) -> bool {
        self.shard(index).read().unwrap_or_else(PoisonError::into_inner).contains(&index)
    }

    /// Notes that an answer is awaited.
    pub fn expect(&self, index: u32) {
        self.shard(index).write().unwrap_or_else(PoisonError::into_inner).insert(index, Entry::Awaited);
    }

    /// Adds a session; its handshake is no longer awaited.
    pub fn insert(&self, session: ReceiveSession) {
        let index = session.index;
        self.shard(index)
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(index, Entry::Session(Arc::new(session)));
    }

    /// Removes an index. A reader in the middle of a run may still use it.
    pub fn remove(&self, index: u32) {
        self.shard(index).write().unwrap_or_else(PoisonError::into_inner).remove(&index);
    }

    /// How many indices there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    /// Whether there are no indices.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, index: u32) -> &RwLock<Lookup<u32, Entry>> {
        &self.shards[index as usize % SHARDS]
    }
}
