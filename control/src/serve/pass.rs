//! A connection's place; it is free again when this is dropped. The door is the relay's: the same bounds for the same
//! reasons.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use relay::{
    gate::{Gate, Place},
    stats::CloseReason,
};
use transports::program::Told;

use super::limits;

/// The door that all listeners share.
#[derive(Clone, Default)]
pub(super) struct Door {
    gate: Arc<Mutex<Gate>>,
    told: Arc<Mutex<Told>>,
}

impl Door {
    /// One for so many connections at once, and [`relay::limits::CONNECTIONS`] at most.
    pub(super) fn new(room: usize) -> Self {
        Self { gate: Arc::new(Mutex::new(Gate::new(room))), told: Arc::default() }
    }

    /// Takes a connection in, unless there are too many.
    ///
    /// # Errors
    /// Which bound it met.
    pub(super) fn enter(&self, from: SocketAddr) -> Result<Pass, CloseReason> {
        let from = from.ip().to_canonical();
        let place = self.gate().enter(from)?;
        Ok(Pass { door: self.clone(), from, place, greeted: AtomicBool::new(false), gathered: AtomicUsize::new(0) })
    }

    /// How many had to make room for others before their node was let in.
    pub(super) fn displaced(&self) -> u64 {
        self.gate().displaced()
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
    place: Arc<Place>,
    greeted: AtomicBool,
    /// Bytes of bodies that are being read, or whose request was not answered.
    gathered: AtomicUsize,
}

impl Pass {
    /// Where the connection comes from.
    pub(super) fn from(&self) -> IpAddr {
        self.from
    }

    /// Whether the log may have a line about what was asked on it, and how many such lines were left out before.
    pub(super) fn may_tell(&self) -> Option<u64> {
        self.door.told.lock().unwrap_or_else(PoisonError::into_inner).next(Instant::now())
    }

    /// Waits until the place is needed for another: the connection is to be closed. Never, once a node was let in on it.
    pub(super) fn lost(&self) -> impl Future<Output = ()> + Send + use<> {
        self.place.lost()
    }

    /// A node was let in on it.
    pub(super) fn note_greeted(&self) {
        if !self.greeted.swap(true, Relaxed) {
            self.door.gate().note_greeted(&self.place);
        }
    }

    /// Whether a node was let in on it.
    pub(super) fn is_greeted(&self) -> bool {
        self.greeted.load(Relaxed)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.door.gate().leave(&self.place);
    }
}

/// The bytes of one body; they no longer count when this is dropped.
pub(super) struct Gathered {
    pass: Arc<Pass>,
    bytes: usize,
}

/// What would be too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TooMuch {
    /// This body.
    Body,
    /// The bodies of this connection together.
    Connection,
}

impl Gathered {
    /// Nothing of a body yet.
    pub(super) fn new(pass: &Arc<Pass>) -> Self {
        Self { pass: Arc::clone(pass), bytes: 0 }
    }

    /// Counts more bytes of the body. What is let in is bounded by body, what is not also by connection.
    ///
    /// # Errors
    /// Which bound they meet.
    pub(super) fn add(&mut self, more: usize) -> Result<(), TooMuch> {
        self.bytes += more;
        let all = self.pass.gathered.fetch_add(more, Relaxed) + more;
        let (body, connection) = if self.pass.is_greeted() {
            (limits::BODY_BYTES, usize::MAX)
        } else {
            (limits::STRANGER_BYTES, limits::STRANGER_BYTES)
        };
        match self.bytes {
            bytes if bytes > body => Err(TooMuch::Body),
            _ if all > connection => Err(TooMuch::Connection),
            _ => Ok(()),
        }
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        self.pass.gathered.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_gathers_little_however_many_requests_it_makes() {
        let pass = pass();
        let (mut one, mut other) = (Gathered::new(&pass), Gathered::new(&pass));
        assert_eq!(one.add(limits::STRANGER_BYTES), Ok(()));
        assert_eq!(other.add(1), Err(TooMuch::Connection));
        drop(one);
        assert_eq!(other.add(limits::STRANGER_BYTES - 1), Ok(()));
        assert_eq!(other.add(1), Err(TooMuch::Body));
        drop(other);
        assert_eq!(pass.gathered.load(Relaxed), 0);
    }

    #[test]
    fn who_was_let_in_is_bounded_by_body_alone() {
        let pass = pass();
        pass.note_greeted();
        let mut bodies = [Gathered::new(&pass), Gathered::new(&pass)];
        for body in &mut bodies {
            assert_eq!(body.add(limits::BODY_BYTES), Ok(()));
            assert_eq!(body.add(1), Err(TooMuch::Body));
        }
    }

    fn pass() -> Arc<Pass> {
        Arc::new(Door::default().enter("192.0.2.1:5".parse().unwrap()).unwrap())
    }
}
