//! Receiver indices: random, unique on this node, each owned by one peer.

use crate::{lookup::Lookup, rng::Rng};

/// Which peer owns which receiver index.
#[derive(Debug)]
pub struct IndexTable {
    owners: Lookup<u32, u32>,
    rng: Rng,
}

impl IndexTable {
    /// An empty table.
    #[must_use]
    pub fn new(mut rng: Rng) -> Self {
        Self { owners: Lookup::new(&mut rng), rng }
    }

    /// A new index for `owner`.
    #[must_use]
    pub fn allocate(&mut self, owner: u32) -> u32 {
        loop {
            let index = self.rng.u32();
            if !self.owners.contains(&index) {
                self.owners.insert(index, owner);
                return index;
            }
        }
    }

    /// Whose index this is.
    #[must_use]
    pub fn owner(&self, index: u32) -> Option<u32> {
        self.owners.get(&index).copied()
    }

    /// Gives an index back.
    pub fn release(&mut self, index: u32) {
        self.owners.remove(&index);
    }

    /// How many indices are in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.owners.len()
    }

    /// Whether no index is in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }
}
