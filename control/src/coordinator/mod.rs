//! The coordinator: the one owner of what the server knows.

pub mod command;
pub mod counters;
pub mod input;
pub mod output;

use std::{collections::VecDeque, sync::Arc};

use mesh_core::{
    derp::DerpMap,
    machine::{Deadline, Machine},
    rng::Seed,
    time::{Instant, WallAnchor},
};

pub use command::{AdminError, Command, KeyView, NodeView, Reply, Secret};
pub use counters::{Counters, Status};
pub use input::{AdminId, ConnId, Endpoint, Input, Request, RequestId, StreamId};
pub use output::{Output, Refusal, Response};

use crate::store::Rows;

/// How a server is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where nodes reach the server, without a slash at the end: sign-in URLs begin with it.
    pub server_url: String,
    /// What the names of nodes end in, such as `mesh.internal`.
    pub base_domain: String,
    /// The relays; at least one region that can be a home.
    pub derp_map: Arc<DerpMap>,
}

/// Why a server cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not a domain, or too long for names of nodes before it.
    #[error("the base domain {0:?} is not a domain name of at most 189 letters")]
    BaseDomain(String),
    /// There is nowhere to meet.
    #[error("the DERP map has no region with a relay: nodes would wait for one for ever")]
    NoRelays,
    /// The stored policy cannot be read.
    #[error("the stored policy is not good: {0}")]
    Policy(String),
}

/// The coordinator.
#[derive(Debug)]
pub struct Coordinator {
    outputs: VecDeque<Output>,
}

impl Coordinator {
    /// A server with what was stored. Nobody is connected.
    ///
    /// # Errors
    /// When the configuration or the stored policy is not good.
    pub fn restore(
        _config: Config,
        _rows: Rows,
        _seed: &Seed,
        _clock: WallAnchor,
        _now: Instant,
    ) -> Result<Self, ConfigError> {
        Ok(Self { outputs: VecDeque::new() })
    }
}

impl Machine for Coordinator {
    type Input<'a> = Input;
    type Output = Output;

    fn handle_input(&mut self, _input: Input, _now: Instant) {}

    fn handle_timeout(&mut self, _now: Instant) {}

    fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn poll_timeout(&self) -> Option<Deadline> {
        None
    }
}
