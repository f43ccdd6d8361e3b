//! Everything that touches the operating system: the TUN device, UDP sockets, addresses and routes, the
//! clock.
//!
//! This crate translates and moves; it decides nothing. Retry, choice and timeouts that matter to a protocol
//! live in the machines of `mesh-core`. What plugs in where:
//!
//! * [`local`]: the unix socket of a daemon
//! * [`net`]: where TCP connections lead: the host's network, or a simulated one
//! * [`clock`]: the monotonic clock that counts sleep, and a timer on it, for `now` arguments and deadlines
//! * [`batch`]: [`batch::SendBatch`], where the fast path seals into, and [`batch::RecvBatch`], which it opens in place
//! * [`udp`]: sockets of both families behind one port; sends a `SendBatch`, fills a `RecvBatch`
//! * [`derp`]: [`derp::RelayLinks`], connections to relays
//! * [`control`]: [`control::ControlLink`], the connection to the control server
//! * [`MaybeTls`]: what both ends of a stream with or without TLS write through
//! * [`fetch`]: small requests over HTTPS, to probe relays
//! * [`resolve`]: host names to addresses
//! * [`roots`]: the certificates that this host trusts
//! * [`task`]: [`task::Task`], which ends with whoever started it
//! * [`tun`]: IP packets from and to the host
//! * [`private`]: files that nobody else may read, and the memory of a daemon
//! * [`entropy`]: the seed of everything random
//! * [`host`]: makes addresses, routes and rules look as [`mesh_core::node::HostConfig`] says, and watches the underlay
//! * `program` (a feature): what all programs have in common: exit codes, settings, logs, signals
//! * [`notify`]: tells systemd when a daemon is ready and when it ends
//!
//! Left to the caller: threads, loops, budgets, and what to do about errors. Unsafe code lives here only, each
//! piece in the smallest function that can hold it. Linux only in this form.

pub mod batch;
pub mod clock;
pub mod control;
pub mod derp;
pub mod entropy;
pub mod fetch;
pub mod host;
pub mod local;
pub mod net;
pub mod notify;
pub mod private;
#[cfg(feature = "program")]
pub mod program;
pub mod resolve;
pub mod roots;
mod stream;
pub mod task;
pub mod tun;
pub mod udp;
mod watched;

pub use stream::MaybeTls;
