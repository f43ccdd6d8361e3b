//! What a node has to tell, as lines of the log.

use mesh_core::node::Event;
use tracing::{debug, info, warn};

/// Nothing here can be caused by strangers; peers have a bounded pace.
pub(super) fn log(event: &Event) {
    match event {
        Event::SessionEstablished { peer } => debug!(?peer, "session established"),
        Event::PathChanged { peer, path } => debug!(?peer, %path, "peer is answered at another address"),
        Event::HomeChanged(region) => info!(%region, "home relay"),
        Event::State(state) => info!(%state, "state"),
        Event::LoginUrl(url) => {
            info!("somebody has to sign in: mesh up and mesh status show where");
            // Whoever has it can sign this node in as theirs.
            debug!(url, "sign-in");
        }
        Event::Browse(url) => info!(url, "control has a page to show"),
        Event::ControlProblem(problem) => warn!(problem, "control"),
        Event::KeyChanged(key) => info!(?key, "node key"),
        Event::MapPartSkipped(what) => warn!(%what, "a part of the network map was left out"),
        Event::HandshakeGivenUp { peer } => debug!(?peer, "peer does not answer"),
    }
}
