//! A connection's place; it is free again when this is dropped. The door is the relay's: the same bounds for the same
//! reasons.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use relay::{gate::Gate, stats::CloseReason};

/// The door that all listeners share.
#[derive(Clone, Default)]
pub(super) struct Door {
    gate: Arc<Mutex<Gate>>,
}

impl Door {
    /// Takes a connection in, unless there are too many.
    ///
    /// # Errors
    /// Which bound it met.
    pub(super) fn enter(&self, from: SocketAddr) -> Result<Pass, CloseReason> {
        let from = from.ip().to_canonical();
        self.gate().enter(from)?;
        Ok(Pass { door: self.clone(), from, greeted: AtomicBool::new(false) })
    }

    /// Connections, and those of them whose node was not let in.
    pub(super) fn counts(&self) -> (usize, usize) {
        self.gate().counts()
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        // Each change is one step; a panic leaves nothing half done.
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place.
pub(super) struct Pass {
    door: Door,
    from: IpAddr,
    greeted: AtomicBool,
}

impl Pass {
    /// Where the connection comes from.
    pub(super) fn from(&self) -> IpAddr {
        self.from
    }

    /// A node was let in on it.
    pub(super) fn note_greeted(&self) {
        if !self.greeted.swap(true, Relaxed) {
            self.door.gate().note_greeted(self.from);
        }
    }

    /// Whether a node was let in on it.
    pub(super) fn is_greeted(&self) -> bool {
        self.greeted.load(Relaxed)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.door.gate().leave(self.from, self.is_greeted());
    }
}
