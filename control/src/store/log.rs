//! The log of what changed: a ring of entries, each with a version.
//!
//! An entry says which node is other than before and in what, and what that did to the rights of others. It holds no
//! values: whoever is told is told how things are by then, once, however many entries there are.

use std::{
    collections::VecDeque,
    ops::{BitOr, BitOrAssign},
    sync::Arc,
};

use mesh_core::control::types::NodeId;

use crate::{
    limits,
    policy::{Affected, Change, Rulebook},
};

/// Counts changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u64);

/// Parts of a node in which it is other than before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Parts(u16);

impl Parts {
    /// Its WireGuard key.
    pub const KEY: Self = Self(1);
    /// When that expires.
    pub const EXPIRY: Self = Self(1 << 1);
    /// Its disco key.
    pub const DISCO: Self = Self(1 << 2);
    /// Where it may be reached.
    pub const ENDPOINTS: Self = Self(1 << 3);
    /// Its home region.
    pub const HOME: Self = Self(1 << 4);
    /// Whether it is connected.
    pub const ONLINE: Self = Self(1 << 5);
    /// The capability version of its program.
    pub const CAP: Self = Self(1 << 6);
    /// Something that no patch can say.
    pub const WHOLE: Self = Self(1 << 7);
    /// Something that it is told of itself.
    pub const OWN: Self = Self(1 << 8);

    /// Whether nothing is other.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Whether it has one of these parts.
    #[must_use]
    pub fn has(self, parts: Self) -> bool {
        self.0 & parts.0 != 0
    }

    /// These parts without others.
    #[must_use]
    pub fn without(self, parts: Self) -> Self {
        Self(self.0 & !parts.0)
    }
}

impl BitOr for Parts {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Parts {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// One change.
#[derive(Debug)]
pub struct Entry {
    /// Which.
    pub version: Version,
    /// What.
    pub what: What,
}

/// What changed.
#[derive(Debug)]
pub enum What {
    /// A node: what of it, and what that did to the rights of others.
    Node(NodeId, Parts, Change),
    /// The policy.
    Policy(Box<PolicyChange>),
    /// The relays.
    Relays,
}

/// A change of the policy: who is concerned, and both rulebooks, to tell from what each is.
#[derive(Debug)]
pub struct PolicyChange {
    /// Whom it concerns.
    pub affected: Affected,
    /// What held.
    pub before: Arc<Rulebook>,
    /// What held then.
    pub after: Arc<Rulebook>,
}

/// The newest changes.
#[derive(Debug, Default)]
pub struct ChangeLog {
    entries: VecDeque<Arc<Entry>>,
    version: Version,
    policies: usize,
}

impl ChangeLog {
    /// The newest version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Adds a change and gives its version. The oldest may be forgotten for it.
    pub fn add(&mut self, what: What) -> Version {
        self.version.0 += 1;
        self.policies += usize::from(matches!(what, What::Policy(_)));
        self.entries.push_back(Arc::new(Entry { version: self.version, what }));
        while self.entries.len() > limits::LOG_ENTRIES || self.policies > limits::LOG_POLICIES {
            if let Some(entry) = self.entries.pop_front() {
                self.policies -= usize::from(matches!(entry.what, What::Policy(_)));
            }
        }
        self.version
    }

    /// Forgets the changes up to a version: nobody asks for them any more.
    pub fn forget(&mut self, told: Version) {
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.version <= told) {
            self.policies -= usize::from(matches!(entry.what, What::Policy(_)));
        }
    }

    /// The changes after a version; `None` when some of them are forgotten.
    #[must_use]
    pub fn since(&self, version: Version) -> Option<Arc<[Arc<Entry>]>> {
        let missing = usize::try_from(self.version.0.saturating_sub(version.0)).ok()?;
        let skip = self.entries.len().checked_sub(missing)?;
        Some(self.entries.iter().skip(skip).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_tells_all_since_a_version_or_that_it_cannot() {
        let mut log = ChangeLog::default();
        assert_eq!(log.since(Version(0)).unwrap().len(), 0);
        let versions: Vec<_> = (0..limits::LOG_ENTRIES).map(|_| log.add(What::Relays)).collect();
        assert_eq!((versions[0], log.version()), (Version(1), *versions.last().unwrap()));
        assert_eq!(log.since(Version(0)).unwrap().len(), limits::LOG_ENTRIES);
        let last = log.add(What::Relays);
        assert!(log.since(Version(0)).is_none());
        let told: Vec<_> = log.since(Version(last.0 - 2)).unwrap().iter().map(|entry| entry.version.0).collect();
        assert_eq!(told, [last.0 - 1, last.0]);
    }

    #[test]
    fn what_all_were_told_is_forgotten_and_what_came_after_is_not() {
        let mut log = ChangeLog::default();
        let versions = [(); 3].map(|()| log.add(What::Relays));
        log.forget(versions[1]);
        assert!(log.since(versions[0]).is_none());
        assert_eq!(log.since(versions[1]).unwrap().len(), 1);
        log.forget(versions[2]);
        assert_eq!(log.since(versions[2]).unwrap().len(), 0);
        let next = log.add(What::Relays);
        assert_eq!(log.since(versions[2]).unwrap()[0].version, next);
    }

    #[test]
    fn few_policies_are_kept() {
        let mut log = ChangeLog::default();
        let book = Arc::new(Rulebook::new(Arc::default(), [], []));
        for _ in 0..=limits::LOG_POLICIES {
            let change = PolicyChange { affected: Affected::default(), before: book.clone(), after: book.clone() };
            log.add(What::Relays);
            log.add(What::Policy(Box::new(change)));
        }
        assert!(log.since(Version(1)).is_none());
        assert_eq!(log.since(Version(2)).unwrap().len(), 2 * limits::LOG_POLICIES);
    }

    #[test]
    fn parts_are_joined_and_taken_away() {
        let parts = Parts::KEY | Parts::ONLINE;
        assert!(parts.has(Parts::KEY) && !parts.has(Parts::HOME) && parts.has(Parts::HOME | Parts::ONLINE));
        assert!(parts.without(Parts::KEY).without(Parts::ONLINE).is_empty());
    }
}
