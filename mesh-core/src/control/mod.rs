//! The client side of the control protocol: the JSON objects that a node and its coordination server exchange, and
//! the network map that a node makes of them.
//!
//! * [`noise`]: the handshake and the records of the control connection, both ends
//! * [`types`]: the objects, for both directions; the server encodes with what the node decodes with
//! * [`netmap`]: [`NetMap`], the merged view, and what a message changed in it

pub mod netmap;
pub mod noise;
pub mod types;

pub use netmap::{Change, Interner, NetMap};
pub use types::{MapRequest, MapResponse, NodeId, PeerNode};
