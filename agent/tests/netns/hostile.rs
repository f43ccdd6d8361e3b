//! Strangers who do too much of something, while two honest nodes go on talking.
//!
//! Each test says what programs took of memory and how an honest ping fared; it fails when memory has no bound, when
//! nobody is served, when the log fills, or when things do not come right again. How long a flood lasts is short here;
//! MESH_FLOODS_LONG in the environment asks for as much as the tables in `benches/README.md` tell of.

use anyhow::{Context, Result, ensure};

use super::{
    agents::answers_all,
    homes::{Nat, RELAY},
    joined::{Agent, Joined, Log, PATIENCE},
    lab::{Node, Process, until},
    measured::{Pings, Watch, long_or},
    strangers,
};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("flood: handshakes of nobody, from one address and from thousands", handshakes),
    ("flood: disco packets that are forged", forged_disco),
    ("flood: connections to the relay that say next to nothing", slow_relay),
    ("flood: connections to control that say next to nothing", slow_control),
    ("flood: many relay clients that do nothing", idle_clients),
    ("flood: packets over the relay to clients that never read", derp_flood),
    ("flood: machines that nobody knows ask control to be let in", sign_ins),
    ("flood: more connections than there are files", files),
];

/// Where alice is to be found: her router hands on what nobody asked for.
const ALICE: &str = "203.0.113.18:41641";

/// Two that have joined, and a host of strangers.
struct Victims {
    joined: Joined,
    guest: Node,
    /// Bob's address.
    bob: String,
    seconds: u64,
}

impl Victims {
    fn new(nats: [Nat; 2]) -> Result<Self> {
        let mut joined = Joined::up_that_logs(Log::Usual, &nats)?;
        let guest = strangers::host(&mut joined.homes, 0)?;
        let bob = joined.agents[1].address()?;
        joined.agents[0].reach(&bob)?;
        Ok(Self { joined, guest, bob, seconds: long_or(30, 3) })
    }

    fn pings(&self, seconds: u64) -> Result<Pings> {
        Pings::start(&self.joined.agents[0].node, &self.bob, seconds)
    }

    fn agent(&self, number: usize) -> Result<&Process> {
        self.joined.agents[number].process.as_ref().context("no agent")
    }

    fn relay(&self) -> Result<&Process> {
        self.joined.homes.relay.process.as_ref().context("no relay")
    }

    fn control(&self) -> Result<&Process> {
        self.joined.control.process.as_ref().context("no control")
    }

    /// One more node joins, and reaches bob. Everything that it needs has to be open to it: control and the relay.
    fn newcomer(&mut self) -> Result<Agent> {
        let node = strangers::host(&mut self.joined.homes, 1)?;
        let agent = Agent::new(&node, &self.joined.control)?;
        let key = self.joined.control.key(&["--reusable"])?;
        until("a newcomer joins", PATIENCE, || Ok(agent.up(&self.joined.control, &key).ok()))?;
        agent.reach(&self.bob)?;
        until("a newcomer is at the relay", PATIENCE, || {
            let metrics = agent.mesh(&["debug", "metrics"])?;
            Ok(metrics.lines().any(|line| line == "mesh_relay_connected{region=\"900\"} 1").then_some(()))
        })?;
        Ok(agent)
    }

    /// Everything is as before.
    fn recovers(&self) -> Result<()> {
        for agent in &self.joined.agents {
            agent.wait_for_control()?;
        }
        self.joined.agents[0].reach(&self.bob)?;
        answers_all(&self.joined.agents[0].node, &self.bob, 20, 56)
    }
}

fn handshakes() -> Result<()> {
    let victims = Victims::new([Nat::Cone, Nat::Easy])?;
    let key = victims.joined.agents[0].status()?["Self"]["PublicKey"].as_str().context("no key")?.to_owned();
    let count = (10_000 * victims.seconds).to_string();
    for sources in ["0", "5000"] {
        let demanded = || metric(&victims.joined.agents[0], "cookie_demanded");
        let before = demanded()?;
        let watch = Watch::start("alice", victims.agent(0)?)?;
        let flood = strangers::start(&victims.guest, &["handshakes", ALICE, &key, "10000", &count, sources])?;
        let pings = victims.pings(victims.seconds)?;
        strangers::said(&flood, "sent")?;
        pings.end()?;
        until("cookies are asked for", PATIENCE, || Ok((demanded()? - before > 100).then_some(())))?;
        watch.end(16)?;
    }
    victims.recovers()
}

fn forged_disco() -> Result<()> {
    let victims = Victims::new([Nat::Cone, Nat::Easy])?;
    let bob: serde_json::Value = serde_json::from_str(&victims.joined.agents[1].mesh(&["debug", "self", "--json"])?)?;
    let bob = bob["DiscoKey"].as_str().context("no disco key")?;
    // Those of bob cost the opening of a box each.
    let count = (50_000 * victims.seconds).to_string();
    for key in ["anybody", bob] {
        let watch = Watch::start("alice", victims.agent(0)?)?;
        let flood = strangers::start(&victims.guest, &["disco", ALICE, key, "50000", &count, "5000"])?;
        let pings = victims.pings(victims.seconds)?;
        strangers::said(&flood, "sent")?;
        pings.end()?;
        watch.end(16)?;
    }
    victims.recovers()
}

fn slow_relay() -> Result<()> {
    let mut victims = Victims::new([Nat::Hard, Nat::Hard])?;
    let relay = format!("{RELAY}:443");
    // The second fill all places there are for those who have not said who they are.
    for words in [["half", &relay, "300", "2"].as_slice(), &["hold", "tls", &relay, "5000", "40"]] {
        let watch = Watch::start("relay", victims.relay()?)?;
        let flood = strangers::start(&victims.guest, words)?;
        strangers::said(&flood, "held")?;
        victims.pings(victims.seconds)?.end()?;
        watch.end(256)?;
        if words[0] == "hold" {
            drop(victims.newcomer()?);
        }
        drop(flood);
    }
    victims.recovers()
}

fn slow_control() -> Result<()> {
    let mut victims = Victims::new([Nat::Easy, Nat::Easy])?;
    let control = victims.joined.control.address.clone() + ":8080";
    for how in ["silent", "http", "noise"] {
        let watch = Watch::start("control", victims.control()?)?;
        let flood = strangers::start(&victims.guest, &["hold", how, &control, "5000", "40"])?;
        strangers::said(&flood, "held")?;
        victims.pings(victims.seconds)?.end()?;
        watch.end(512)?;
        if how == "noise" {
            drop(victims.newcomer()?);
        }
        drop(flood);
    }
    victims.recovers()
}

fn idle_clients() -> Result<()> {
    let mut victims = Victims::new([Nat::Hard, Nat::Hard])?;
    let count: u64 = long_or(5_000, 500);
    let watch = Watch::start("relay", victims.relay()?)?;
    let relay = format!("{RELAY}:443");
    let clients = strangers::start(&victims.guest, &["derp-idle", &relay, &count.to_string()])?;
    ensure!(strangers::said(&clients, "begun")? == count);
    victims.pings(victims.seconds)?.end()?;
    // What a client may cost, and what the program takes anyway.
    watch.end(count * 48 / 1024 + 8)?;
    drop(victims.newcomer()?);
    drop(clients);
    victims.recovers()
}

/// Sixteen keys send full packets, and then the largest that there are, to two hundred. What waits for those is bounded:
/// 64 packets or a mebibyte each, and the buffers they keep; all that was sent is far more.
fn derp_flood() -> Result<()> {
    let mut victims = Victims::new([Nat::Hard, Nat::Hard])?;
    let relay = format!("{RELAY}:443");
    for (bytes, count) in [("1400", long_or("2000000", "200000")), ("65536", long_or("200000", "20000"))] {
        let watch = Watch::start("relay", victims.relay()?)?;
        let flood = strangers::start(&victims.guest, &["derp-flood", &relay, "16", "200", bytes, count])?;
        let pings = victims.pings(victims.seconds)?;
        strangers::said(&flood, "sent")?;
        let (answered, lost) = pings.end()?;
        // None is lost but where the machine is so busy that one waits for two seconds.
        ensure!(lost < answered, "{lost} honest packets were lost, and {answered} not");
        watch.end(320)?;
        if bytes == "65536" {
            drop(victims.newcomer()?);
        }
        drop(flood);
    }
    victims.recovers()
}

fn sign_ins() -> Result<()> {
    let mut victims = Victims::new([Nat::Easy, Nat::Easy])?;
    let count = long_or("5000", "300");
    let flood = strangers::start(&victims.guest, &["sign-in", &victims.joined.control.url(), count])?;
    let newcomer = victims.newcomer()?;
    let watch = Watch::start("control", victims.control()?)?;
    let pings = victims.pings(victims.seconds)?;
    let asked = strangers::said(&flood, "asked")?;
    pings.end()?;
    watch.end(64)?;
    drop(newcomer);
    ensure!(asked > 0, "nobody was asked to sign in: {}", flood.output());
    victims.recovers()
}

/// With far fewer files than connections are allowed: honest nodes find a place, and the log is not filled.
fn files() -> Result<()> {
    let mut victims = Victims::new([Nat::Hard, Nat::Hard])?;
    victims.joined.homes.relay.kill();
    victims.joined.homes.relay.prefix = vec!["prlimit".to_owned(), "--nofile=400:400".to_owned()];
    victims.joined.homes.relay.start()?;
    victims.joined.agents[0].reach(&victims.bob)?;
    let relay = format!("{RELAY}:443");
    let watch = Watch::start("relay", victims.relay()?)?;
    let flood = strangers::start(&victims.guest, &["hold", "tls", &relay, "600", "4"])?;
    strangers::said(&flood, "held")?;
    victims.pings(victims.seconds)?.end()?;
    watch.end(64)?;
    drop(victims.newcomer()?);
    drop(flood);
    victims.recovers()
}

fn metric(agent: &Agent, reason: &str) -> Result<u64> {
    let metrics = agent.mesh(&["debug", "metrics"])?;
    let name = format!("mesh_dropped_packets_total{{reason=\"{reason}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&name));
    Ok(value.with_context(|| format!("no {name}"))?.parse()?)
}
