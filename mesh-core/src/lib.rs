//! The protocol core of the mesh VPN, without I/O.
//!
//! Everything here is a *machine* or a part of one: values in, values out, time and randomness handed
//! in as arguments. The same code runs under the deterministic simulator (`sim`) and under real sockets
//! (`agent`). Nothing in this crate opens a socket, reads a clock, starts a thread, looks at the
//! environment or draws randomness from the operating system.
//!
//! Where to start reading:
//!
//! * [`machine`]: the contract between a machine and whoever drives it
//! * [`node`]: a member of the network; owns everything below and decides
//! * [`dataplane`]: the fast path: shared tables that the node publishes and any thread may read
//! * [`wireguard`]: handshakes, sessions and timers of one peer
//!
//! Left to the caller: moving datagrams and packets, telling the time, seeding [`rng`], and making the
//! operating system look as [`node::HostConfig`] says.
//!
//! ```
//! use mesh_core::key::NodePrivate;
//!
//! let key = NodePrivate::from_bytes([7; 32]);
//! let public = key.public();
//! assert_eq!(public, public.to_string().parse()?);
//! assert_eq!(format!("{key:?}"), "NodePrivate([private])");
//! # Ok::<(), mesh_core::key::ParseKeyError>(())
//! ```

pub mod control;
pub mod crypto;
pub mod dataplane;
pub mod derp;
pub mod disco;
pub mod endpoints;
pub mod filter;
pub mod invariant;
pub mod ip;
pub mod key;
pub mod limits;
pub mod lookup;
pub mod machine;
pub mod netcheck;
pub mod node;
pub mod path;
pub mod printable;
pub mod published;
pub mod rng;
pub mod routes;
pub mod stun;
pub mod time;
pub mod wireguard;
