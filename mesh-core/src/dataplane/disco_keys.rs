//! Whose disco packets are looked at.

use std::{
    collections::BTreeSet,
    sync::{PoisonError, RwLock},
};

use crate::key::DiscoPublic;

/// The disco keys of all peers. A packet of any other key costs no more than this lookup. Changed by the owner alone;
/// outlives any single [`Fib`](super::Fib).
#[derive(Debug, Default)]
pub struct DiscoKeys {
    known: RwLock<BTreeSet<DiscoPublic>>,
}

impl DiscoKeys {
    /// Whether a peer has this key.
    #[must_use]
    pub fn is_known(&self, key: &DiscoPublic) -> bool {
        self.known.read().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    /// A peer has this key now. For the owner only.
    pub fn insert(&self, key: DiscoPublic) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(key);
    }

    /// No peer has this key any more. For the owner only.
    pub fn remove(&self, key: &DiscoPublic) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}
