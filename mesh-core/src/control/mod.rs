//! The control protocol: what a node does of it, and what it shares with its coordination server: the handshake, the
//! framing and the JSON objects that they exchange.
//!
//! * [`c2n`]: what control asks of a node
//! * [`codec`]: framing of the map stream
//! * [`link`]: what passes between a node and whoever owns its control connection
//! * [`noise`]: the handshake and the records of the control connection, both ends
//! * [`session`]: [`Session`], a node's conversation with its server
//! * [`types`]: the objects, for both directions; the server encodes with what the node decodes with
//! * [`netmap`]: [`NetMap`], the merged view, and what a message changed in it
//! * [`packet_filter`]: what the packet filters of a map mean

pub mod c2n;
pub mod codec;
pub mod link;
pub mod netmap;
pub mod noise;
pub mod packet_filter;
pub mod session;
pub mod types;

pub use link::{
    Answer, ControlEvent, ControlRequest, ControlUrl, Failure, FailureKind, RequestId, Route, Scheme, Server,
};
pub use netmap::{Change, Interner, NetMap};
pub use packet_filter::PacketFilter;
pub use session::{AuthKey, Registration, Session};
pub use types::{MapRequest, MapResponse, NodeId, PeerNode};

/// The capability version that we announce, in the Noise handshake and in every request: what control may expect of us.
/// 119 is the last before peer relays.
pub const CAPABILITY_VERSION: u16 = 119;
