//! The daemon `meshd` and the command line `mesh`.
//!
//! The daemon drives a [`mesh_core::node::Node`] with what `transports` offers; the command line asks the daemon over
//! a unix socket. Nothing here decides about protocols: a driver that compares times or remembers peers has grown a
//! mind of its own.
//!
//! * [`static_file`]: the format of wg-quick, read strictly
//! * [`state_file`]: what survives a restart
//! * [`daemon`]: start, the loop, clean end
//! * [`local_api`]: what the command line may ask
//! * [`cli`]: the command line
//!
//! Left to the programs: nothing but their arguments and exit codes.

pub mod cli;
pub mod daemon;
pub mod local_api;
pub mod state_file;
pub mod static_file;

/// Version and commit, as `--version` shows them.
pub const VERSION: &str = env!("MESH_VERSION");
