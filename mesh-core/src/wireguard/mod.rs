//! WireGuard, complete and without I/O: handshakes, sessions and timers of one peer at a time.
//!
//! What of the paper (Donenfeld, "WireGuard: Next Generation Kernel Network Tunnel", 2020) lives where:
//!
//! * [`message`]: §5.4, the four messages
//! * [`handshake`]: §5.4.2 and §5.4.3, initiator and responder as typed states
//! * [`identity`]: §5.4.4, static keys, the two MACs, opening of initiations
//! * [`cookie`]: §5.3 and §5.4.7, cookies under load, rate limit per source
//! * [`session`]: §5.4.6, transport messages, one direction each, usable from any thread
//! * [`replay`]: §5.4.6, the sliding window
//! * [`timers`]: §6, constants, and what the fast path tells the timers
//! * [`tunnel`]: §6, [`Tunnel`]: all of one peer
//! * [`index`]: receiver indices
//!
//! A [`Tunnel`] knows its peer's keys and sessions and what is due when. Messages from the peer, edges from the
//! fast path and time move it. It never sees data packets once a session stands: those go through
//! [`Sealer`] and [`Opener`]. It never knows addresses: where a message goes is the node's business, and so
//! are cryptokey routing and trimming of padding (`dataplane`).

pub mod cookie;
pub mod handshake;
pub mod identity;
pub mod index;
pub mod message;
pub mod replay;
pub mod session;
pub mod timers;
pub mod tunnel;

pub use identity::{Identity, OpenedInitiation};
pub use message::Kind;
pub use session::{OpenError, Opener, Sealer};
pub use tunnel::{Local, Tunnel, TunnelConfig};
