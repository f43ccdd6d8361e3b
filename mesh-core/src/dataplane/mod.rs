//! The fast path: IP packets to sealed datagrams and back, over tables that the node publishes.
//!
//! The node programs a forwarding table, [`Fib`]; any thread reads it. What the table cannot handle (a
//! handshake message, a packet for a peer without a session) is *punted* to the node as a [`Punt`]. What the
//! node should know about packets that were handled (the first data after a quiet time, a session due for
//! a successor) is a [`Notice`]: an edge, reported once until the node has looked.
//!
//! There is one packet path for everybody. The simulator, tests and a one-thread daemon hand punts and
//! notices to the node at once; workers on other threads send them through a bounded queue.
//!
//! Nothing here waits for the owner, holds a lock for longer than a table lookup, or allocates per packet.
//! Only the owner changes tables.
//!
//! The pieces: [`Fib::outbound`] and [`Fib::inbound`] carry; [`TransmitSink`] lends room for datagrams;
//! [`Reports`] takes punts, notices and drops.

mod adjacency;
mod disco_keys;
mod fib;
mod inbound;
mod outbound;
mod receivers;
mod report;
mod sink;

pub use adjacency::{Addressing, Adjacency, PeerCounters, PeerId, TxState};
pub use disco_keys::DiscoKeys;
pub use fib::{DataPlane, Fib, LocalAddrs};
pub use inbound::{Inbound, InboundRun};
pub use receivers::{ReceiveSession, Receivers};
pub use report::{DropCounts, DropReason, Notice, Punt, ReportBuffer, Reports};
pub use sink::TransmitSink;
