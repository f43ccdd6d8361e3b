//! DERP: relaying by node key over a byte stream, when two nodes cannot reach each other directly.

pub mod client;
pub mod frame;
pub mod map;
pub mod relays;

use core::fmt;

pub use client::Client;
pub use frame::{Frame, FrameError, PeerGoneReason};
pub use map::{DerpMap, DerpNode, DerpRegion};
pub use relays::Relays;

/// A region of the relay map: relays that count as one. Sixteen bits, because it travels as a port in
/// `127.3.3.40:<region>`; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionId(u16);

impl RegionId {
    /// The region of this number; `None` for 0, which means "no region".
    #[must_use]
    pub const fn new(number: u16) -> Option<Self> {
        if number == 0 { None } else { Some(Self(number)) }
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
