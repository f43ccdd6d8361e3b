//! Relay links of nodes against the served relay, on a simulated network that drops, parts and restarts by a seed.
//!
//! Only the asynchronous shells are looked at here: that nothing hangs, that what is broken is said, and that a link
//! which is made anew carries packets again. What to do about a broken link is the node's to decide; in its place stands
//! an [`End`] that dials again at once.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

use core::{future::poll_fn, time::Duration};
use std::{cell::RefCell, net::Ipv4Addr, rc::Rc, sync::Arc};

use mesh_core::{
    derp::{DerpNode, RegionId},
    key::{NodePrivate, NodePublic},
    node::{RelayCommand, RelayEvent},
    rng::Seed,
};
use relay::{Config, Hub, admission::Policy};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use transports::{
    derp::{Arrival, Dialer, Plain, RelayLinks, Trust},
    net::{Net, TcpListener},
};
use turmoil::{Builder, Sim};

const PORT: u16 = 443;
/// Simulated time for all of a run. A link that nobody answers on is given up after two minutes.
const PATIENCE: Duration = Duration::from_secs(1_200);
/// How long the network is in trouble: longer than a link takes to notice, because turmoil's streams do not repeat what
/// was lost, and one that lost something while nobody noticed would stand still for ever.
const TROUBLE: Duration = Duration::from_secs(150);
/// How many answers are wanted, before the trouble and after it.
const WANTED: u32 = 5;

/// What is wrong with the network for a while.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// Nothing comes through.
    Partition,
    /// What alice says arrives, and nothing that the relay says.
    HalfOpen,
    /// The relay dies, and comes back with the same key.
    Restart,
    /// Messages get lost now and then, and TCP repeats them: they come late, and all at once.
    Drops,
}

/// What alice saw, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Story {
    answers: u32,
    links: u32,
    failures: Vec<String>,
    ended_at: Duration,
}

#[test]
fn packets_come_through_again_after_every_trouble() {
    for trouble in [Trouble::Partition, Trouble::HalfOpen, Trouble::Restart, Trouble::Drops] {
        for seed in 0..5 {
            let story = run(seed, trouble);
            assert_eq!(story.answers, 2 * WANTED, "{trouble:?}, seed {seed}: {story:?}");
            assert!(story.links > 1 || matches!(trouble, Trouble::Drops), "{trouble:?}, seed {seed}: {story:?}");
            if seed == 0 {
                assert_eq!(run(seed, trouble), story, "{trouble:?}: the same seed told another story");
            }
        }
    }
}

fn run(seed: u64, trouble: Trouble) -> Story {
    let mut builder = Builder::new();
    builder.rng_seed(seed).simulation_duration(2 * PATIENCE).tick_duration(Duration::from_millis(10));
    builder.min_message_latency(Duration::from_millis(1)).max_message_latency(Duration::from_millis(50));
    let mut sim = builder.build();
    sim.host("relay", || async {
        let listener = turmoil::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
        let config = Config { key: key(0), policy: Policy::Open, rate: None, seed: Seed::from_number(7) };
        let (_open, closing) = watch::channel(false);
        relay::serve::serve_clients(TcpListener::Turmoil(listener), Net::Turmoil, Arc::new(Hub::new(config)), closing)
            .await;
        Ok(())
    });
    let relay = sim.lookup("relay");
    // Bob sends back what comes.
    sim.host("bob", move || async move {
        let mut end = End::new(2, seed, relay.to_string());
        loop {
            if let Some((from, packet)) = end.next().await {
                end.links.send(region(), from, packet);
            }
        }
    });
    let story = Rc::new(RefCell::new(Story::default()));
    let phase = Rc::new(RefCell::new(0_u32));
    let (told, now) = (Rc::clone(&story), Rc::clone(&phase));
    sim.client("alice", async move {
        let mut end = End::new(1, seed, relay.to_string());
        let bob = key(2).public();
        let mut asked = 0_u32;
        while told.borrow().answers < 2 * WANTED {
            asked += 1;
            end.links.send(region(), bob, asked.to_be_bytes().to_vec());
            // Late answers to earlier questions may come first.
            let answer = timeout(Duration::from_secs(1), async {
                loop {
                    if end.next().await.is_some_and(|(_, packet)| packet == asked.to_be_bytes()) {
                        return;
                    }
                }
            });
            let is_answered = answer.await.is_ok();
            {
                let mut story = told.borrow_mut();
                (story.links, story.failures) = (end.made, end.failures.clone());
                // What comes during the trouble does not count.
                if is_answered && story.answers < WANTED * (*now.borrow() + 1) {
                    story.answers += 1;
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
        told.borrow_mut().ended_at = turmoil::sim_elapsed().unwrap_or_default();
        Ok(())
    });
    while story.borrow().answers < WANTED {
        assert!(!sim.step().unwrap(), "ended too early: {:?}", story.borrow());
    }
    begin(&mut sim, trouble);
    let began = sim.elapsed();
    while sim.elapsed() < began + TROUBLE {
        sim.step().unwrap();
        if let Trouble::Drops = trouble {
            let is_held = (sim.elapsed() - began).as_millis() / 700 % 2 == 0;
            if is_held { sim.hold("alice", "relay") } else { sim.release("alice", "relay") }
        }
    }
    end(&mut sim, trouble);
    *phase.borrow_mut() = 1;
    while story.borrow().answers < 2 * WANTED {
        assert!(sim.elapsed() < PATIENCE, "{trouble:?}, seed {seed}: {:?}", story.borrow());
        sim.step().unwrap();
    }
    sim.run().unwrap();
    story.take()
}

fn begin(sim: &mut Sim<'_>, trouble: Trouble) {
    match trouble {
        Trouble::Partition => sim.partition("alice", "relay"),
        Trouble::HalfOpen => sim.partition_oneway("relay", "alice"),
        Trouble::Restart => sim.crash("relay"),
        Trouble::Drops => sim.hold("alice", "relay"),
    }
}

fn end(sim: &mut Sim<'_>, trouble: Trouble) {
    match trouble {
        Trouble::Partition => sim.repair("alice", "relay"),
        Trouble::HalfOpen => sim.repair_oneway("relay", "alice"),
        Trouble::Restart => sim.bounce("relay"),
        Trouble::Drops => sim.release("alice", "relay"),
    }
}

/// A node's links to the relay, dialled again whenever they break.
struct End {
    links: RelayLinks,
    relay: String,
    made: u32,
    failures: Vec<String>,
    is_broken: bool,
}

impl End {
    fn new(number: u8, seed: u64, relay: String) -> Self {
        let dialer = Dialer { net: Net::Turmoil, trust: Trust::of(Vec::new()), plain: Plain::WhereInsecure };
        let links = RelayLinks::new(key(number), Seed::from_number(seed).child("end", number.into()), dialer);
        let mut end = Self { links, relay, made: 0, failures: Vec::new(), is_broken: false };
        end.connect();
        end
    }

    fn connect(&mut self) {
        let node = DerpNode {
            name: "900a".into(),
            host_name: self.relay.clone(),
            ipv4: self.relay.clone(),
            ipv6: "none".into(),
            derp_port: PORT.into(),
            insecure_for_tests: true,
            ..DerpNode::default()
        };
        self.links.handle_command(RelayCommand::Connect { region: region(), nodes: vec![node] });
    }

    /// The next packet; `None` when something else came.
    async fn next(&mut self) -> Option<(NodePublic, Vec<u8>)> {
        if self.is_broken {
            sleep(Duration::from_millis(200)).await;
            self.is_broken = false;
            self.connect();
        }
        poll_fn(|cx| self.links.poll_ready(cx)).await;
        match self.links.try_recv()? {
            Arrival::Packet { from, packet, .. } => Some((from, packet)),
            Arrival::Event(RelayEvent::Connected { .. }) => {
                self.made += 1;
                None
            }
            Arrival::Event(RelayEvent::Failed { reason, .. }) => {
                self.failures.push(reason);
                self.is_broken = true;
                None
            }
            Arrival::Event(_) => None,
        }
    }
}

fn key(number: u8) -> NodePrivate {
    NodePrivate::from_bytes([number + 1; 32])
}

fn region() -> RegionId {
    RegionId::new(900).unwrap()
}
