//! The coordination server: who is a member of the network, who may reach whom, and what every node is told.
//!
//! The crate has two halves. This one is pure: a `Coordinator` machine, policies, network maps; values in,
//! values out, time and randomness as arguments, so that the simulator runs the same server as a daemon does.
//! The other half, behind the feature `serve`, is the shell: listeners, the Noise connection, storage, and the
//! program `mesh-control`.
//!
//! In the pure half: the [`coordinator`], which owns what is known and answers; the [`store`], rows and state and the log of
//! changes; [`policy`]; [`render`], which makes messages of views; [`ipam`] and [`names`], which give addresses and labels;
//! [`limits`], every bound.

pub mod coordinator;
pub mod ipam;
pub mod limits;
pub mod names;
pub mod policy;
pub mod render;
#[cfg(feature = "serve")]
pub mod serve;
pub mod store;
