//! The shell on a network, a clock and a store that somebody else brings, as tests of it do.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::sync::{Arc, Mutex, PoisonError, RwLock, atomic::AtomicU64};

use mesh_core::{key::MachinePrivate, rng::Seed};
use tokio::sync::watch;
use transports::net::{Net, TcpListener};

use super::{
    desk::{Owner, Store},
    listen::{self, Shop, Wire},
    pass::Door,
    render_pool::RenderPool,
    sql::StoreError,
};
use crate::{
    coordinator::{Config, ConfigError, Coordinator},
    store::{Mutation, Rows},
};

/// A server without a certificate and without files.
#[derive(Clone, Debug)]
pub struct Simulated {
    /// Whose clock counts.
    pub net: Net,
    /// What an operator decides.
    pub config: Config,
    /// The server's key.
    pub key: MachinePrivate,
    /// All its randomness.
    pub seed: Seed,
    /// What is kept from one run to the next.
    pub rows: Arc<Mutex<Rows>>,
}

impl Simulated {
    /// Serves nodes until it is dropped together with its runtime.
    ///
    /// # Errors
    /// When the configuration makes no sense.
    pub async fn serve(self, listener: TcpListener) -> Result<(), ConfigError> {
        let Self { net, config, key, seed, rows } = self;
        let clock = net.clock();
        let kept = rows.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let server_url = config.server_url.clone();
        let (anchor, now) = (clock.anchor(), clock.now());
        let coordinator = Coordinator::restore(config, kept, &seed.child("coordinator", 0), anchor, now)?;
        let (owner, desk) = Owner::new(coordinator, clock, Memory(rows));
        let (_open, closing) = watch::channel(false);
        tokio::spawn(owner.run(closing));
        let shop = Arc::new(Shop {
            public: key.public(),
            key,
            dice: Mutex::new(seed.stream("connections", 0)),
            server_url,
            desk,
            pool: RenderPool::new(),
            door: Door::default(),
            relay: None,
            tls: RwLock::new(None),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            conns: AtomicU64::new(0),
        });
        loop {
            let Ok((stream, from)) = listener.accept().await else { continue };
            if let Ok(pass) = shop.door.enter(from) {
                tokio::spawn(listen::requests(stream, Wire::Plain, Arc::clone(&shop), Arc::new(pass)));
            }
        }
    }
}

/// Rows in memory.
struct Memory(Arc<Mutex<Rows>>);

impl Store for Memory {
    async fn commit(&mut self, mutations: &[Mutation]) -> Result<(), StoreError> {
        let mut rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        mutations.iter().cloned().for_each(|mutation| rows.apply(mutation));
        Ok(())
    }
}
