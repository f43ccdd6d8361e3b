//! A relay inside another program: its own threads and sockets, admission by that program.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    fmt,
    net::SocketAddr,
    path::Path,
    sync::{Arc, RwLock},
};

use mesh_core::{derp::DerpRegion, rng::Seed};
use transports::{
    net::Net,
    program::{Exit, Failure, open_files},
};

use super::{
    Region,
    identity::{self, Certificate},
    listen::{self, Addresses, Running, Shop},
    verify::{Ask, Asker},
};
use crate::{
    admission::Policy,
    hub::{self, Hub},
};

/// Its number and its short name among the regions.
const REGION: (u16, &str) = (900, "mesh");

/// How a relay is set up.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Where its key and its certificate are kept; made when there are none.
    pub state_dir: &'a Path,
    /// Name or address under which clients find it.
    pub host: &'a str,
    /// For clients.
    pub listen: SocketAddr,
    /// For STUN.
    pub stun_listen: SocketAddr,
}

/// A relay that runs.
pub struct Embedded {
    hub: Arc<Hub>,
    running: Running,
    region: DerpRegion,
}

impl Embedded {
    /// Opens the sockets; clients are served from now on, as far as `ask` lets them in.
    ///
    /// # Errors
    /// When its files or sockets cannot be used.
    pub fn start(place: &Place<'_>, ask: Arc<dyn Ask>, seed: Seed) -> Result<Self, Failure> {
        let key = identity::load_or_make_key(place.state_dir)?;
        let certificate = Certificate::load_or_make(place.state_dir, place.host)?;
        let pin = certificate.pin();
        let hub = Arc::new(Hub::new(hub::Config { key, policy: Policy::Ask, rate: None, seed }));
        // The program around it has connections of its own.
        hub.set_room(open_files() / 4);
        let tls = certificate.into_config(&hub.public)?;
        let shop = Shop {
            net: Net::Host,
            hub: Arc::clone(&hub),
            tls: RwLock::new(Some(tls)),
            asker: Some(Asker::Program(ask)),
        };
        let addresses = Addresses { derp: place.listen, stun: place.stun_listen, metrics: None };
        let running = Running::start(&addresses, &Arc::new(shop))?;
        let region = Region {
            id: REGION.0,
            code: REGION.1,
            host: place.host,
            derp_port: running.derp.port(),
            stun_port: running.stun.port(),
            pin: Some(pin),
            is_plain: false,
        };
        let region = serde_json::from_value(region.to_json())
            .map_err(|error| Failure::new(Exit::Bug, "region", format!("the relay's region is malformed: {error}")))?;
        Ok(Self { hub, running, region })
    }

    /// What clients are told of it.
    #[must_use]
    pub fn region(&self) -> &DerpRegion {
        &self.region
    }

    /// Where it listens: for clients, and for STUN.
    #[must_use]
    pub fn addresses(&self) -> (SocketAddr, SocketAddr) {
        (self.running.derp, self.running.stun)
    }

    /// What it counted, for Prometheus.
    #[must_use]
    pub fn metrics(&self) -> String {
        listen::metrics(&self.hub)
    }

    /// Waits until a thread has ended by itself, which is a bug.
    pub async fn lost(&self) -> Failure {
        self.running.lost().await
    }

    /// Says last words to all clients and ends; blocks for a second at most.
    ///
    /// # Errors
    /// When a thread had panicked.
    pub fn stop(self) -> Result<(), Failure> {
        self.running.stop()
    }
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Embedded({:?})", self.running.derp)
    }
}
