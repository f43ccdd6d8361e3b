//! A connection's place; it is free again when this is dropped. The door is the relay's: the same bounds for the same
//! reasons.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    mem,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use relay::{gate::Gate, stats::CloseReason};

use super::limits;

/// The door that all listeners share.
#[derive(Clone, Default)]
pub(super) struct Door {
    gate: Arc<Mutex<Gate>>,
    told: Arc<Mutex<Told>>,
}

/// Lines of the log that strangers caused.
#[derive(Default)]
struct Told {
    /// Since when they are counted.
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Told {
    /// Whether there may be another line, and how many were left out before it.
    fn next(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.duration_since(since) >= limits::LINES_TIME) {
            (self.since, self.lines) = (Some(now), 0);
        }
        if self.lines >= limits::LINES {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(mem::take(&mut self.left_out))
    }
}

impl Door {
    /// Takes a connection in, unless there are too many.
    ///
    /// # Errors
    /// Which bound it met.
    pub(super) fn enter(&self, from: SocketAddr) -> Result<Pass, CloseReason> {
        let from = from.ip().to_canonical();
        self.gate().enter(from)?;
        Ok(Pass { door: self.clone(), from, greeted: AtomicBool::new(false), gathered: AtomicUsize::new(0) })
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

    #[test]
    fn strangers_fill_no_log() {
        let (mut told, start) = (Told::default(), Instant::now());
        let said = (0..1_000).filter(|_| told.next(start) == Some(0)).count();
        assert_eq!(said, limits::LINES as usize);
        let later = start + limits::LINES_TIME;
        assert_eq!(told.next(later), Some(1_000 - u64::from(limits::LINES)), "the next line says how many are missing");
        assert_eq!(told.next(later), Some(0));
    }
}
