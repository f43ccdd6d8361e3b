//! The client side of the control protocol: the JSON objects that a node and its coordination server exchange, and
//! the network map that a node makes of them.
//!
//! * [`types`]: the objects, for both directions; the server encodes with what the node decodes with
//! * [`netmap`]: [`NetMap`], the merged view, and what a message changed in it
//! * [`packet_filter`]: what the packet filters of a map mean

pub mod netmap;
pub mod packet_filter;
pub mod types;

pub use netmap::{Change, Interner, NetMap};
pub use packet_filter::PacketFilter;
pub use types::{MapRequest, MapResponse, NodeId, PeerNode};
