//! [`Interner`]: peers that are written alike are held once.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use serde_json::value::RawValue;

use crate::{control::types::PeerNode, crypto::hash::blake2s};

/// Entries before the first look for those that nobody holds any more.
const FIRST_SWEEP: usize = 1_024;

/// From the text of a peer in a map message to the one [`PeerNode`] that all share who were sent this text.
///
/// For a process with many nodes, such as the simulator: there a tailnet is held once and not once for each node. It
/// holds nothing itself: a peer goes when the last map that has it does. What it remembers of those is swept out when
/// it has doubled since the last time, so it stays within twice of what is in use.
#[derive(Debug)]
pub struct Interner {
    peers: BTreeMap<[u8; 32], Weak<PeerNode>>,
    sweep_at: usize,
}

impl Interner {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self { peers: BTreeMap::new(), sweep_at: FIRST_SWEEP }
    }

    /// How many different peers somebody holds.
    #[must_use]
    pub fn live(&self) -> usize {
        self.peers.values().filter(|peer| peer.strong_count() > 0).count()
    }

    /// The peer that a text says.
    ///
    /// # Errors
    /// When it says none.
    pub(super) fn read(&mut self, text: &RawValue) -> Result<Arc<PeerNode>, serde_json::Error> {
        let hash = blake2s(&[text.get().as_bytes()]);
        if let Some(peer) = self.peers.get(&hash).and_then(Weak::upgrade) {
            return Ok(peer);
        }
        let peer: Arc<PeerNode> = serde_json::from_str(text.get())?;
        if self.peers.len() >= self.sweep_at {
            self.peers.retain(|_, peer| peer.strong_count() > 0);
            self.sweep_at = FIRST_SWEEP.max(self.peers.len() * 2);
        }
        self.peers.insert(hash, Arc::downgrade(&peer));
        Ok(peer)
    }
}

impl Default for Interner {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::netmap::decode;

    #[test]
    fn two_maps_share_the_peers_that_they_were_told_alike() {
        let mut interner = Interner::new();
        let a = decode(br#"{"Peers":[{"ID":2,"Name":"b."},{"ID":3}]}"#, Some(&mut interner)).unwrap();
        let b = decode(br#"{"PeersChanged":[{"ID":2,"Name":"b."}]}"#, Some(&mut interner)).unwrap();
        assert!(Arc::ptr_eq(&a.peers[0], &b.peers_changed[0]));
        assert_eq!(interner.live(), 2);
        drop(a);
        assert_eq!(interner.live(), 1);
    }

    #[test]
    fn it_forgets_what_nobody_holds() {
        let mut interner = Interner::new();
        for id in 0..10 * FIRST_SWEEP {
            decode(format!(r#"{{"Peers":[{{"ID":{id}}}]}}"#).as_bytes(), Some(&mut interner)).unwrap();
        }
        assert!(interner.peers.len() <= FIRST_SWEEP);
    }
}
