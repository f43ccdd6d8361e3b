//! The relay: a DERP server and STUN responder, for nodes that cannot reach each other directly.
//!
//! The crate has two halves. This one is pure: a `Relay` machine, connections, mailboxes; values in, values out,
//! time and randomness as arguments, so that the simulator runs the same relay as a daemon does. The other half,
//! behind the feature `serve`, is the shell: listeners, TLS, and the program `mesh-relay`.
//!
//! Neither half holds more than its shape yet: nodes reach each other over UDP alone, and the program says so.

#[cfg(feature = "serve")]
pub mod serve;
