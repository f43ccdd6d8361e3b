//! Who is here: node keys and the mailboxes of their connections.
//!
//! Read for every packet, written when somebody comes or goes ([`crate::membership`]). Connections on several cores share
//! one directory; a delivery takes a read lock to find the mailbox and then that mailbox's own lock.

use core::{
    fmt,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    task::{Context, Poll},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak},
};

use mesh_core::{derp::PeerGoneReason, key::NodePublic, lookup::Lookup, rng::Rng, time::Instant};

use crate::{
    mailbox::{Health, Letter, Mailbox, Wake},
    stats::Stats,
};

/// Names a connection; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// Where letters for one connection are left.
pub struct Desk {
    /// Whose.
    pub id: ConnId,
    /// The key that the connection proved to hold.
    pub key: NodePublic,
    mailbox: Mutex<Mailbox>,
    /// Another connection of the key gets its letters, until this one says something.
    pub(crate) passed_over: AtomicBool,
}

/// What is known about a key while it has a connection.
pub(crate) struct Presence {
    /// Gets the letters: the connection that came last, or said something last.
    pub(crate) active: Arc<Desk>,
    /// Other connections of the same key, the newest last.
    pub(crate) others: Vec<Arc<Desk>>,
    /// How often the word went from one of them to another, up to [`crate::limits::CLONE_TURNS`]: they are two nodes then, and
    /// have been told.
    pub(crate) turns: u32,
    /// Who got a packet from this key and is told when it is gone.
    pub(crate) reached: BTreeMap<ConnId, Weak<Desk>>,
}

/// Node key → [`Desk`].
pub struct Directory {
    keys: RwLock<Lookup<NodePublic, Presence>>,
}

impl Desk {
    /// A desk with an empty mailbox.
    #[must_use]
    pub fn new(id: ConnId, key: NodePublic) -> Self {
        Self { id, key, mailbox: Mutex::default(), passed_over: AtomicBool::new(false) }
    }

    /// Leaves a letter and wakes whoever waits in [`Self::poll_mail`].
    pub fn post(&self, letter: Letter, stats: &Stats) -> Wake {
        self.with_waking(|mailbox| mailbox.put(letter, stats))
    }

    /// Leaves a notice, likewise.
    pub fn post_notice(&self, peer: NodePublic, reason: PeerGoneReason, stats: &Stats) -> Wake {
        self.with_waking(|mailbox| mailbox.put_notice(peer, reason, stats))
    }

    /// Leaves how the connection is, likewise.
    pub fn post_health(&self, health: Health) -> Wake {
        self.with_waking(|mailbox| mailbox.put_health(health))
    }

    /// Appends what waits to `out`, as frames, as much as one write holds.
    pub fn take(&self, out: &mut Vec<u8>, now: Instant, stats: &Stats) {
        self.mailbox().take(out, now, stats);
    }

    /// Whether something waits.
    #[must_use]
    pub fn has_mail(&self) -> bool {
        !self.mailbox().is_empty()
    }

    /// Waits for mail.
    pub fn poll_mail(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut mailbox = self.mailbox();
        if !mailbox.is_empty() {
            return Poll::Ready(());
        }
        mailbox.set_waker(context.waker());
        Poll::Pending
    }

    /// Drops what waits: nobody will read it.
    pub(crate) fn clear(&self, stats: &Stats) {
        self.mailbox().clear(stats);
    }

    /// Whether its connection should say that it spoke ([`Directory::note_speaking`]).
    #[must_use]
    pub fn is_passed_over(&self) -> bool {
        self.passed_over.load(Relaxed)
    }

    fn with_waking(&self, put: impl FnOnce(&mut Mailbox) -> Wake) -> Wake {
        let (wake, waker) = {
            let mut mailbox = self.mailbox();
            (put(&mut mailbox), mailbox.take_waker())
        };
        // Woken without the lock: its owner wants it next.
        if let Some(waker) = waker {
            waker.wake();
        }
        wake
    }

    fn mailbox(&self) -> MutexGuard<'_, Mailbox> {
        // A panic while the lock is held leaves at worst a wrong sum of bytes.
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Directory {
    /// An empty one.
    #[must_use]
    pub fn new(rng: &mut Rng) -> Self {
        Self { keys: RwLock::new(Lookup::new(rng)) }
    }

    /// Where letters for `key` go.
    #[must_use]
    pub fn find(&self, key: &NodePublic) -> Option<Arc<Desk>> {
        self.read().get(key).map(|presence| Arc::clone(&presence.active))
    }

    /// How many keys have a connection.
    #[must_use]
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Whether nobody is here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Lookup<NodePublic, Presence>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Lookup<NodePublic, Presence>> {
        self.keys.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Desk({}, {:?})", self.id.0, self.key)
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Directory({} keys)", self.len())
    }
}
