//! DERP: relaying by node key over a byte stream, when two nodes cannot reach each other directly.

pub mod frame;

pub use frame::{Frame, FrameError, PeerGoneReason};
