//! Control links of nodes against the served control server, on a simulated network that drops, parts and restarts by a
//! seed.
//!
//! Only the asynchronous shells are looked at here: that nothing hangs, and that what one node says reaches the other
//! again after every trouble. What to do about a broken connection is the [`Session`]'s to decide, as in a daemon.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

mod support;

use core::{future::poll_fn, net::SocketAddr, time::Duration};
use std::{
    cell::RefCell,
    net::Ipv4Addr,
    rc::Rc,
    sync::{Arc, Mutex},
};

use control::serve::simulated::Simulated;
use mesh_core::{
    control::{
        AuthKey, NetMap, Session,
        session::{Goal, Output, SessionConfig, SignIn},
        types::Hostinfo,
    },
    key::{DiscoPrivate, MachinePrivate, NodePrivate},
    rng::Seed,
    time::WallAnchor,
};
use support::World;
use tokio::time::sleep;
use transports::{
    clock::Clock,
    control::{ControlDialer, ControlLink},
    derp::Trust,
    net::{Net, TcpListener},
};
use turmoil::{Builder, Sim};

const PORT: u16 = 8080;
/// Simulated time for all of a run.
const PATIENCE: Duration = Duration::from_secs(3_000);
/// How long the network is in trouble: longer than a node takes to notice, because turmoil's streams do not repeat what
/// was lost, and one that lost something while nobody noticed would stand still for ever.
const TROUBLE: Duration = Duration::from_secs(200);
/// How often the nodes look at what the test wants of them.
const LOOK: Duration = Duration::from_millis(200);

/// What is wrong with the network for a while.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// Nothing comes through.
    Partition,
    /// What the nodes say arrives, and nothing that control says.
    HalfOpen,
    /// Control dies, and comes back with what it had stored.
    Restart,
    /// Messages get lost now and then, and TCP repeats them: they come late, and all at once.
    Drops,
}

#[test]
fn what_a_node_says_reaches_the_other_after_every_trouble() {
    for trouble in [Trouble::Partition, Trouble::HalfOpen, Trouble::Restart, Trouble::Drops] {
        for seed in 0..3 {
            run(seed, trouble);
        }
    }
}

/// What the test wants of bob, and what alice heard of him.
#[derive(Debug, Default)]
struct Story {
    /// The port that bob says he listens at.
    wanted: u16,
    /// The port that alice's map has.
    heard: Option<u16>,
    problems: Vec<String>,
}

fn run(seed: u64, trouble: Trouble) {
    let mut builder = Builder::new();
    builder.rng_seed(seed).simulation_duration(PATIENCE).tick_duration(Duration::from_millis(10));
    builder.min_message_latency(Duration::from_millis(1)).max_message_latency(Duration::from_millis(50));
    let mut sim = builder.build();

    // A user, a policy that allows everything, and a key to join with.
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let rows = Arc::new(Mutex::new(world.rows.clone()));
    sim.host("control", move || {
        let simulated = Simulated {
            net: Net::Turmoil,
            config: support::config(),
            key: MachinePrivate::from_bytes([5; 32]),
            seed: Seed::from_number(7),
            rows: Arc::clone(&rows),
        };
        async move {
            let listener = turmoil::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
            Ok(simulated.serve(TcpListener::Turmoil(listener)).await?)
        }
    });
    let server = format!("http://{}:{PORT}", sim.lookup("control"));
    let story = Rc::new(RefCell::new(Story { wanted: 1, ..Story::default() }));
    for (number, name) in [(1, "alice"), (2, "bob")] {
        let node = Node { number, name, seed, server: server.clone(), key: key.clone(), story: Rc::clone(&story) };
        sim.client(name, async move {
            node.run().await;
            Ok(())
        });
    }

    let until_heard = |sim: &mut Sim<'_>, port| {
        story.borrow_mut().wanted = port;
        while story.borrow().heard != Some(port) {
            assert!(sim.elapsed() < PATIENCE - LOOK, "{trouble:?}, seed {seed}: {:?}", story.borrow());
            sim.step().unwrap();
        }
    };
    until_heard(&mut sim, 1001);
    begin(&mut sim, trouble);
    let began = sim.elapsed();
    story.borrow_mut().wanted = 1002;
    while sim.elapsed() < began + TROUBLE {
        sim.step().unwrap();
        if let Trouble::Drops = trouble {
            let is_held = (sim.elapsed() - began).as_millis() / 700 % 2 == 0;
            for node in ["alice", "bob"] {
                if is_held { sim.hold(node, "control") } else { sim.release(node, "control") }
            }
        }
    }
    let during = story.borrow().heard;
    assert_eq!(during == Some(1001), !matches!(trouble, Trouble::Drops), "{trouble:?}, seed {seed}: {during:?}");
    end(&mut sim, trouble);
    until_heard(&mut sim, 1003);
}

fn begin(sim: &mut Sim<'_>, trouble: Trouble) {
    for node in ["alice", "bob"] {
        match trouble {
            Trouble::Partition => sim.partition(node, "control"),
            Trouble::HalfOpen => sim.partition_oneway("control", node),
            Trouble::Drops => sim.hold(node, "control"),
            Trouble::Restart => {}
        }
    }
    if let Trouble::Restart = trouble {
        sim.crash("control");
    }
}

fn end(sim: &mut Sim<'_>, trouble: Trouble) {
    for node in ["alice", "bob"] {
        match trouble {
            Trouble::Partition => sim.repair(node, "control"),
            Trouble::HalfOpen => sim.repair_oneway("control", node),
            Trouble::Drops => sim.release(node, "control"),
            Trouble::Restart => {}
        }
    }
    if let Trouble::Restart = trouble {
        sim.bounce("control");
    }
}

/// A node as far as its control server knows it.
struct Node {
    number: u8,
    name: &'static str,
    seed: u64,
    server: String,
    key: String,
    story: Rc<RefCell<Story>>,
}

impl Node {
    async fn run(self) {
        let clock = Net::Turmoil.clock();
        let seed = Seed::from_number(self.seed).child(self.name, 0);
        let dialer = ControlDialer { net: Net::Turmoil, trust: Trust::of(Vec::new()) };
        let mut link = ControlLink::new(&seed.child("link", 0), dialer);
        let mut session = self.session(&seed, &clock);
        let mut map = NetMap::new();
        let mut port = 0;
        loop {
            while let Some(event) = link.try_recv() {
                session.handle_event(event, clock.now());
            }
            let wanted = self.story.borrow().wanted;
            if self.name == "bob" && port != wanted {
                port = wanted;
                session.set_endpoints([(SocketAddr::from(([192, 0, 2, 1], port)), 1)], clock.now());
            }
            session.handle_timeout(wall(&clock), clock.now());
            while let Some(output) = session.poll_output() {
                match output {
                    Output::Request(request) => link.handle_request(request),
                    Output::Map { is_first, response } => {
                        if is_first {
                            map.begin_stream();
                        }
                        map.apply(*response, wall(&clock)).unwrap();
                    }
                    Output::Problem(problem) => {
                        self.story.borrow_mut().problems.push(format!("{}: {problem}", self.name))
                    }
                    Output::Refused(reason) => panic!("{}: {reason}", self.name),
                    Output::LoginUrl(page) => panic!("{}: {page}", self.name),
                    Output::Save
                    | Output::KeyChanged(_)
                    | Output::Forgotten
                    | Output::Registered
                    | Output::LoggedOut(_) => {}
                }
            }
            if self.name == "alice" {
                let peer = map.peers().values().next();
                self.story.borrow_mut().heard = peer.and_then(|peer| Some(peer.endpoints.first()?.port()));
            }
            let wait = session.poll_timeout().map_or(LOOK, |deadline| deadline.at.since(clock.now()).min(LOOK));
            tokio::select! {
                () = poll_fn(|cx| link.poll_ready(cx)) => {}
                // One that is due now has been looked at: a tick at least.
                () = sleep(wait.max(Duration::from_millis(1))) => {}
            }
        }
    }

    fn session(&self, seed: &Seed, clock: &Clock) -> Session {
        let mut session = Session::new(SessionConfig {
            machine_key: MachinePrivate::from_bytes([self.number; 32]),
            node_key: NodePrivate::from_bytes([self.number + 100; 32]),
            next_node_key: None,
            registration: None,
            disco_key: DiscoPrivate::from_bytes([self.number + 50; 32]).public(),
            seed: seed.child("session", 0),
        });
        let goal = Goal {
            server: self.server.parse().ok(),
            want_running: true,
            ephemeral: false,
            hostinfo: Hostinfo { hostname: self.name.to_owned(), os: "linux".to_owned(), ..Hostinfo::default() },
        };
        let sign_in = SignIn { auth_key: Some(AuthKey(self.key.clone())), force: false };
        session.set_goal(goal, Some(sign_in), clock.now());
        session
    }
}

fn wall(clock: &Clock) -> mesh_core::time::WallTime {
    let anchor: WallAnchor = clock.anchor();
    anchor.wall_at(clock.now())
}
