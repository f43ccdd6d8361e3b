//! The relay: a DERP server and STUN responder, for nodes that cannot reach each other directly.
//!
//! The crate has two halves. This one is pure: values in, values out, time and randomness as arguments, so that the
//! simulator runs the same relay as a daemon does. The other half, behind the feature `serve`, is the shell and the
//! program `mesh-relay`.
//!
//! * [`conn::Conn`] is one client's stream: greeting, admission, frames in and out, keepalives, its rate.
//! * [`directory::Directory`] says where letters for a key go; [`membership`] keeps it when clients come and go.
//! * [`mailbox::Mailbox`] is what waits for one client, bounded by packets, bytes and age.
//! * [`gate::Gate`] bounds how many there are, and how many of them from one source.
//! * [`hub::Hub`] is what all connections share, on however many cores.
//! * [`relay::Relay`] drives all of them as one machine.
//!
//! Relays of one region do not forward to each other yet: a frame that only another relay may send closes the connection.

pub mod admission;
pub mod bucket;
pub mod conn;
pub mod directory;
pub mod gate;
pub mod greeting;
pub mod hub;
pub mod limits;
pub mod mailbox;
pub mod membership;
pub mod relay;
#[cfg(feature = "serve")]
pub mod serve;
pub mod stats;
pub mod stun;

pub use directory::ConnId;
pub use hub::{Config, Hub, Rate};
pub use relay::{Input, Output, Relay};
