//! The story with real TUN devices, sockets and kernel NATs: two homes, their routers and a relay in network namespaces.
//!
//! In every world both agents start anew, with keys and maps from before: of each other they know the key, and an address
//! that works at home alone. The first ping is asked for as soon as the relay has taken in both. From that moment on time
//! runs, by the agents' own logs: `direct_ms` therefore has in it the start of the program that asks.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    Story, heard, is_stopped,
    netns::{
        homes::{Homes, Nat, RELAY, Way, overlay},
        lab::{self, Node, Process},
    },
    worlds::{Figures, World},
};

const ALICE: usize = 0;
const BOB: usize = 1;
/// Longest wait for anything in the story.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often logs are looked at. What is read there has times of its own.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// A direct path is to be there this long after the relay's links, and four round trips over it.
const DIRECT_WITHIN_MS: f64 = 100.0;

/// Why this half cannot be told here, if it cannot.
pub(crate) fn why_not() -> Option<String> {
    lab::missing().or_else(|| lab::find("conntrack").is_none().then(|| "needs the program conntrack".to_owned()))
}

/// Tells it. Whatever happens, the lab and everything in it is gone when this returns.
pub(crate) fn tell(story: &Story, seconds: u64) -> Result<Vec<Figures>> {
    let mut homes = Homes::new(&[Nat::Easy, Nat::Easy])?;
    story.say(
        "kernel",
        "alice — router 203.0.113.18 — segment — router 203.0.113.34 — bob; there is a relay on the segment",
    );
    homes.prepare()?;
    (0..homes.members.len()).try_for_each(|place| homes.write_map(place))?;
    story.say("agents", "have keys, and maps: the relay, and of the other its key and its address at home");
    let mut all = Vec::new();
    for world in World::ALL {
        all.push(Telling { story, world }.tell(&mut homes, seconds)?);
        for member in &mut homes.members {
            stop_here()?;
            member.stop()?;
        }
    }
    Ok(all)
}

struct Telling<'s> {
    story: &'s Story,
    world: World,
}

impl Telling<'_> {
    fn tell(&self, homes: &mut Homes, seconds: u64) -> Result<Figures> {
        let (nats, change) = match self.world {
            World::EasyEasy => ([Nat::Easy, Nat::Easy], "both routers masquerade, as most do in homes"),
            World::EasyHard => {
                ([Nat::Easy, Nat::Hard], "bob's router masquerades fully-random: another port for every destination")
            }
            World::UdpBlocked => {
                ([Nat::UdpBlocked, Nat::Easy], "bob's router is as it was at first; alice's drops all UDP")
            }
        };
        self.story.say(self.world.name(), change);
        for (home, nat) in nats.into_iter().enumerate() {
            homes.set_nat(home, nat)?;
        }
        let began = Instant::now();
        homes.members.iter_mut().try_for_each(|member| member.launch())?;
        let homes = &*homes;
        let (alice, bob) = (homes.member(ALICE), homes.member(BOB));
        let links =
            until(
                "the relay takes in both",
                || Ok(heard::relay_link(&alice.log()).zip(heard::relay_link(&bob.log()))),
            )?;
        let linked = links.0.later(links.1);
        let (way, first_ping_ms) = lab::until("a pong", PATIENCE, || {
            stop_here()?;
            alice.ping(BOB)
        })?;
        let started = began.elapsed().as_secs_f64() * 1e3;
        self.story
            .say("agents", &format!("started, in the relay, and the first ping answered: {started:.0} ms in all"));
        self.story.say("alice", &format!("pong from bob via {} in {first_ping_ms:.2} ms", text(&way)));

        let direct_ms = match self.world.path() {
            "direct" => Some(self.go_direct(homes, linked, first_ping_ms)?),
            _ => None,
        };
        let technique = self.explain(homes)?;
        if self.world == World::UdpBlocked {
            self.look_at_the_wire(homes)?;
        }
        let mbit = transfer(&alice.node, &bob.node, seconds)?;
        self.story.say("alice", &format!("{seconds} s of TCP to bob: {mbit:.0} Mbit/s"));

        let ways = [alice.way(BOB)?, bob.way(ALICE)?];
        let path = if ways.iter().all(|way| matches!(way, Way::Direct(_))) { "direct" } else { "relay" };
        self.story.say("both", &format!("packets go to {} and {}", text(&ways[0]), text(&ways[1])));
        ensure!(path == self.world.path(), "in {} packets are to go {}", self.world.name(), self.world.path());
        Ok(Figures {
            world: self.world,
            first_ping_via: name(&way),
            first_ping_ms,
            direct_ms,
            technique,
            path,
            tcp_mbit: Some(mbit),
        })
    }

    /// Waits until both send directly; the milliseconds from `linked` to then.
    fn go_direct(&self, homes: &Homes, linked: heard::Moment, first_ping_ms: f64) -> Result<f64> {
        let (alice, bob) = (homes.member(ALICE), homes.member(BOB));
        let (to_bob, to_alice) =
            until("both send directly", || Ok(heard::direct(&alice.log()).zip(heard::direct(&bob.log()))))?;
        let direct_ms = to_bob.0.later(to_alice.0).millis_since(linked);
        let goal = DIRECT_WITHIN_MS + 4.0 * first_ping_ms;
        self.story.say(
            "both",
            &format!("direct, {direct_ms:.1} ms after the relay's links were up; the goal is {goal:.1} ms"),
        );
        Ok(direct_ms)
    }

    /// Says what came of every address, and what made the direct path possible if there is one.
    fn explain(&self, homes: &Homes) -> Result<Option<&'static str>> {
        let (alice, bob) = (homes.member(ALICE), homes.member(BOB));
        let paths: Value = serde_json::from_str(&alice.mesh(&["--json", "debug", "paths", &overlay(BOB)])?)?;
        for candidate in paths["Candidates"].as_array().context("no candidates in mesh debug paths")? {
            let known: Vec<_> =
                candidate["KnownFrom"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let word =
                |field: &str| candidate[field].as_str().map(str::to_owned).with_context(|| format!("no {field}"));
            let line = format!("bob at {} (from {}): {}", word("Address")?, known.join(", "), word("Verdict")?);
            self.story.say("alice", &line);
        }
        let ends = heard::Whereabouts::ask(alice, bob)?.zip(heard::Whereabouts::ask(bob, alice)?);
        let Some((a, b)) = ends else { return Ok(None) };
        let ends = [a, b];
        let technique = heard::technique(&ends);
        let seen = ends.map(|end| end.seen.map_or_else(|| "nowhere".to_owned(), |seen: SocketAddr| seen.to_string()));
        self.story.say("both", &format!("STUN sees them at {} and {}: {technique}", seen[0], seen[1]));
        Ok(Some(technique))
    }

    /// Says what alice's router lets through.
    fn look_at_the_wire(&self, homes: &Homes) -> Result<()> {
        let flows = homes.routers[ALICE].run(&["conntrack", "-L"])?;
        let has = |line: &str, word: &str| line.split_whitespace().any(|found| found == word);
        let relay = format!("dst={RELAY}");
        let (tcp, others): (Vec<_>, Vec<_>) =
            flows.lines().partition(|line| line.starts_with("tcp") && has(line, &relay) && has(line, "dport=443"));
        ensure!(!tcp.is_empty(), "alice's router has no flow to the relay's port 443: {flows}");
        ensure!(!others.iter().any(|line| line.starts_with("udp")), "alice's router lets UDP through: {flows}");
        self.story.say("router", &format!("alice's has flows to TCP {RELAY}:443, and none of UDP"));
        Ok(())
    }
}

/// A TCP transfer through both agents; Mbit/s.
fn transfer(alice: &Node, bob: &Node, seconds: u64) -> Result<f64> {
    let demo = std::env::current_exe()?;
    let demo = demo.to_str().context("the demo's path is not UTF-8")?;
    let listen = format!("{}:5001", overlay(BOB));
    let sink: Process = bob.spawn(&[demo, "sink", &listen])?;
    sink.wait_for("listening", PATIENCE)?;
    let source = alice.spawn(&[demo, "source", &listen, &seconds.to_string()])?;
    lab::until("the transfer did not end", PATIENCE + Duration::from_secs(seconds), || {
        stop_here()?;
        Ok(source.output().lines().find_map(|line| line.parse().ok()))
    })
    .with_context(|| format!("the sender says: {}", source.output()))
}

/// Looks again and again, more often than a test does.
fn until<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let began = Instant::now();
    loop {
        stop_here()?;
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::sleep(LOOK_EVERY);
    }
}

fn name(way: &Way) -> &'static str {
    match way {
        Way::Relay => "relay",
        Way::Direct(_) => "direct",
    }
}

fn text(way: &Way) -> &str {
    match way {
        Way::Relay => "DERP(mesh)",
        Way::Direct(address) => address,
    }
}

fn stop_here() -> Result<()> {
    if is_stopped() {
        bail!("interrupted; everything is taken down");
    }
    Ok(())
}
