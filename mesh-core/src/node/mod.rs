//! A member of the network: owns keys, peers, tunnels and tables, and decides.
//!
//! [`Node`] is a [`Machine`](crate::machine::Machine). Data packets do not pass through it: every driver
//! holds a [`DataPlane`](crate::dataplane::DataPlane) handle ([`Node::data_plane`]), calls
//! [`Fib::outbound`](crate::dataplane::Fib::outbound) and [`Fib::inbound`](crate::dataplane::Fib::inbound)
//! with its own sink, and hands what they report to the node as [`Input::Punt`] and [`Input::Notice`].
//!
//! Peers are static in this form: keys, allowed addresses and a first endpoint come from the configuration,
//! and a peer is answered where its last authenticated packet came from. A tunnel exists only for peers with
//! traffic; an idle peer is its entry in the table and its rows among the routes.

mod config;
mod host;
mod input;
mod output;

mod status;

pub use config::{ConfigError, NodeConfig, PeerConfig};
pub use host::{HostConfig, SocketPlan};
pub use input::{Command, CommandId, HostEvent, Input, PingTarget};
pub use output::{CommandError, Event, Output, Reply, Transmit};
pub use status::{PeerStatus, Status};
