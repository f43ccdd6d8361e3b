//! Relay links of nodes against the served relay, on a simulated network that drops, parts and restarts by a seed.
//!
//! Only the asynchronous shells are looked at here: that nothing hangs, that what is broken is said, and that a link
//! which is made anew carries packets again.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use core::{future::poll_fn, time::Duration};
use std::sync::{Arc, Mutex};

use mesh_core::{
    derp::{DerpNode, RegionId},
    key::{NodePrivate, NodePublic},
    node::{RelayCommand, RelayEvent},
    rng::Seed,
};
use relay::{Config, Hub, admission::Policy};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use transports::{
    derp::{Arrival, Dialer, Plain, RelayLinks, Trust},
    net::{Net, TcpListener},
};
use turmoil::{Builder, Sim, lookup};

/// More than a link takes to notice that nobody is there, and to come back.
const PATIENCE: Duration = Duration::from_secs(240);
const PORT: u16 = 443;

/// What went wrong with the network, in this order, for a while each.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// Connections cannot be made, and nothing comes through.
    Partition,
    /// What one end says arrives; what the other says does not.
    HalfOpen,
    /// The relay dies and comes back with the same key, and nobody is told.
    Crash,
    /// Messages are lost now and then: a stream that loses one stands still.
    Drops,
}

#[test]
fn packets_come_through_after_every_trouble() {
    for seed in 0..8 {
        for trouble in [Trouble::Partition, Trouble::HalfOpen, Trouble::Crash, Trouble::Drops] {
            let first = run(seed, trouble);
            assert!(first.received >= 10, "seed {seed}, {trouble:?}: {first:?}");
            if seed == 0 {
                assert_eq!(run(seed, trouble), first, "seed {seed}, {trouble:?}: the same seed, another story");
            }
        }
    }
}

/// What one end saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Story {
    /// Packets that came after the trouble was over.
    received: u32,
    /// Links that were made.
    links: u32,
}

fn run(seed: u64, trouble: Trouble) -> Story {
    let mut builder = Builder::new();
    builder.rng_seed(seed).simulation_duration(Duration::from_secs(900)).tick_duration(Duration::from_millis(5));
    builder.min_message_latency(Duration::from_millis(1)).max_message_latency(Duration::from_millis(40));
    let mut sim = builder.build();
    sim.host("relay", || async {
        let listener = turmoil::net::TcpListener::bind(("0.0.0.0", PORT)).await?;
        let config = Config { key: key(0), policy: Policy::Open, rate: None, seed: Seed::from_number(7) };
        // Dropped when the relay crashes.
        let (_close, closing) = watch::channel(false);
        let hub = Arc::new(Hub::new(config));
        relay::serve::serve_clients(TcpListener::Turmoil(listener), Net::Turmoil, hub, closing).await;
        Ok(())
    });
    let over = Arc::new(Mutex::new(None));
    let stories = Arc::new(Mutex::new(Story::default()));
    let (seen, told) = (Arc::clone(&over), Arc::clone(&stories));
    sim.client("alice", async move {
        let mut end = End::new(1, seed);
        while told.lock().unwrap().received < 10 {
            end.step(&key(2).public()).await;
            let is_over = seen.lock().unwrap().is_some_and(|over| Instant::now() > over);
            let mut story = told.lock().unwrap();
            story.links = end.links_made;
            story.received = if is_over { story.received + end.take() } else { end.take() * 0 };
        }
        Ok(())
    });
    sim.host("bob", move || async move {
        let mut end = End::new(2, seed);
        loop {
            end.step(&key(1).public()).await;
        }
    });
    happen(&mut sim, trouble, &over);
    sim.run().unwrap();
    let story = stories.lock().unwrap();
    story.clone()
}
