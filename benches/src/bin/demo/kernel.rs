//! The story with real TUN devices, sockets and kernel NATs: a control server and a relay on a public segment, two homes
//! behind masquerading routers, all in network namespaces.
//!
//! The agents know nothing but a URL and a key. Ways and moments are read from their own logs: `direct_ms` runs from the
//! moment that the relay has taken in both, and has in it the start of the program that asks for the first ping.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    Story,
    figures::Figures,
    heard, is_stopped,
    netns::{
        homes::{Nat, RELAY, Way},
        joined::{ALLOW, Agent, DENY, Joined},
        lab::{self, Process},
    },
};

/// Longest wait for anything in the story.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often logs are looked at. What is read there has times of its own.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// A direct path is to be there this long after the relay's links, and four round trips over it.
const DIRECT_WITHIN_MS: f64 = 100.0;
/// Between the pings while the policy changes: what its figures are good to.
const PING_EVERY: &str = "0.01";
/// Without an answer for this long, there is none any more.
const SILENT: Duration = Duration::from_millis(500);

/// Why this half cannot be told here, if it cannot.
pub(crate) fn why_not() -> Option<String> {
    lab::missing()
}

/// Tells it. Whatever happens, the lab and everything in it is gone when this returns.
pub(crate) fn tell(story: &Story, seconds: u64) -> Result<Figures> {
    let mut joined = Joined::new(&[Nat::Easy, Nat::Easy])?;
    let url = joined.control.url();
    joined.homes.relay.ask(format!("{url}/verify"))?;
    story.say("kernel", "alice — router 203.0.113.18 — segment — router 203.0.113.34 — bob; both routers masquerade");
    story.say("segment", &format!("control at {url}; a relay at {RELAY}, which asks control who may connect"));
    joined.control.set_policy(ALLOW)?;
    let key = joined.control.key(&["--reusable"])?;
    let told = Telling { story, joined: &joined }.tell(&key, seconds)?;

    let address = joined.agents[1].address()?;
    joined.control.kill();
    let pings = joined.agents[0].node.run(&["ping", "-n", "-i", "0.02", "-c", "25", "-W", "1", &address])?;
    ensure!(pings.contains(" 0% packet loss"), "packets were lost while control was away: {pings}");
    story.say("control", "stopped; 25 of 25 pings through the tunnel are answered");
    stop_here()?;
    joined.control.start()?;
    for agent in &joined.agents {
        until("the agents hear of control again", || Ok((agent.status()?["Self"]["Online"] == true).then_some(())))?;
    }
    story.say("control", "started again; both agents are back");
    Ok(told)
}

struct Telling<'s> {
    story: &'s Story,
    joined: &'s Joined,
}

impl Telling<'_> {
    fn tell(&self, key: &str, seconds: u64) -> Result<Figures> {
        let [alice, bob] = self.joined.agents.as_slice() else { bail!("two agents") };
        let mut up_ms = 0.0;
        for agent in [alice, bob] {
            stop_here()?;
            let took = millis(agent.up(&self.joined.control, key)?);
            self.story
                .say(agent.node.name(), &format!("mesh up --auth-key …: {} after {took:.0} ms", agent.address()?));
            up_ms = f64::max(up_ms, took);
        }
        let links = until("the relay takes in both", || {
            Ok(heard::relay_link(&alice.output()).zip(heard::relay_link(&bob.output())))
        })?;
        let linked = links.0.later(links.1);
        let (way, first_ping_ms) = until("a pong", || ping(alice, "bob"))?;
        self.story.say("alice", &format!("mesh ping bob: pong via {} in {first_ping_ms:.2} ms", text(&way)));
        let direct_ms = self.go_direct(linked, first_ping_ms)?;
        let technique = self.explain()?;
        let tcp_mbit = self.transfer(seconds)?;
        self.story.say("alice", &format!("{seconds} s of TCP to bob: {tcp_mbit:.0} Mbit/s"));
        let (deny_ms, allow_ms) = self.policy()?;
        Ok(Figures {
            joined: self.joined.agents.len(),
            up_ms: Some(up_ms),
            first_ping_via: name(&way),
            first_ping_ms,
            direct_ms: Some(direct_ms),
            technique: Some(technique),
            tcp_mbit: Some(tcp_mbit),
            deny_ms: Some(deny_ms),
            allow_ms: Some(allow_ms),
        })
    }

    /// Waits until both send directly; the milliseconds from `linked` to then.
    fn go_direct(&self, linked: heard::Moment, first_ping_ms: f64) -> Result<f64> {
        let [alice, bob] = self.joined.agents.as_slice() else { bail!("two agents") };
        let (to_bob, to_alice) =
            until("both send directly", || Ok(heard::direct(&alice.output()).zip(heard::direct(&bob.output()))))?;
        let direct_ms = to_bob.0.later(to_alice.0).millis_since(linked);
        let goal = DIRECT_WITHIN_MS + 4.0 * first_ping_ms;
        self.story.say(
            "both",
            &format!("direct, {direct_ms:.1} ms after the relay's links were up; the goal is {goal:.1} ms"),
        );
        Ok(direct_ms)
    }

    /// Says what came of every address, and what made the direct path possible.
    fn explain(&self) -> Result<&'static str> {
        let [alice, bob] = self.joined.agents.as_slice() else { bail!("two agents") };
        let paths: Value = serde_json::from_str(&alice.mesh(&["--json", "debug", "paths", "bob"])?)?;
        for candidate in paths["Candidates"].as_array().context("no candidates in mesh debug paths")? {
            let known: Vec<_> =
                candidate["KnownFrom"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let word =
                |field: &str| candidate[field].as_str().map(str::to_owned).with_context(|| format!("no {field}"));
            let line = format!("bob at {} (from {}): {}", word("Address")?, known.join(", "), word("Verdict")?);
            self.story.say("alice", &line);
        }
        let ends = heard::Whereabouts::ask(alice, bob)?.zip(heard::Whereabouts::ask(bob, alice)?);
        let (a, b) = ends.context("a direct path was lost again")?;
        let ends = [a, b];
        let technique = heard::technique(&ends);
        let seen = ends.map(|end| end.seen.map_or_else(|| "nowhere".to_owned(), |seen: SocketAddr| seen.to_string()));
        self.story.say("both", &format!("STUN sees them at {} and {}: {technique}", seen[0], seen[1]));
        Ok(technique)
    }

    /// A TCP transfer through both agents; Mbit/s.
    fn transfer(&self, seconds: u64) -> Result<f64> {
        let [alice, bob] = self.joined.agents.as_slice() else { bail!("two agents") };
        let demo = std::env::current_exe()?;
        let demo = demo.to_str().context("the demo's path is not UTF-8")?;
        let listen = format!("{}:5001", bob.address()?);
        let sink: Process = bob.node.spawn(&[demo, "sink", &listen])?;
        sink.wait_for("listening", PATIENCE)?;
        let source = alice.node.spawn(&[demo, "source", &listen, &seconds.to_string()])?;
        lab::until("the transfer did not end", PATIENCE + Duration::from_secs(seconds), || {
            stop_here()?;
            Ok(source.output().lines().find_map(|line| line.parse().ok()))
        })
        .with_context(|| format!("the sender says: {}", source.output()))
    }

    /// Denies and allows again, under pings; the milliseconds to the last answer, and to the first.
    fn policy(&self) -> Result<(f64, f64)> {
        let [alice, bob] = self.joined.agents.as_slice() else { bail!("two agents") };
        let pings = alice.node.spawn(&["ping", "-n", "-D", "-i", PING_EVERY, &bob.address()?])?;
        until("an answer", || Ok(last_answer(&pings)))?;

        let began = clock()?;
        self.joined.control.set_policy(DENY)?;
        let last = until("no answer any more", || {
            let last = last_answer(&pings).context("answers")?;
            Ok((clock()? > last.max(began) + SILENT).then_some(last))
        })?;
        let deny_ms = millis(last.saturating_sub(began));
        self.story
            .say("control", &format!("policy set: nothing is allowed; the last answer came {deny_ms:.0} ms after"));

        let began = clock()?;
        self.joined.control.set_policy(ALLOW)?;
        let first = until("an answer again", || {
            let output = pings.output();
            Ok(output.lines().filter_map(answer).find(|at| *at > began))
        })?;
        let allow_ms = millis(first - began);
        self.story.say("control", &format!("policy set: everything is allowed; answers again {allow_ms:.0} ms after"));
        Ok((deny_ms, allow_ms))
    }
}

/// One disco ping; which way the pong came and its milliseconds.
fn ping(agent: &Agent, peer: &str) -> Result<Option<(Way, f64)>> {
    let words = ["--json", "ping", "-c", "1", "--until-direct=false", "--timeout", "2s", peer];
    Way::of_pong(&agent.try_mesh(&words)?)
}

/// When the newest answer came.
fn last_answer(pings: &Process) -> Option<Duration> {
    pings.output().lines().rev().find_map(answer)
}

/// When the answer came that a line of `ping -D` tells of: `[1767225599.999999] 64 bytes from …`, since 1970.
fn answer(line: &str) -> Option<Duration> {
    let (at, rest) = line.strip_prefix('[')?.split_once("] ")?;
    rest.contains(" bytes from ").then(|| Duration::try_from_secs_f64(at.parse().ok()?).ok())?
}

/// The clock that `ping -D` reads.
fn clock() -> Result<Duration> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?)
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

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_a_time_and_other_lines_have_none() {
        let line = "[1767225599.500000] 64 bytes from 100.64.0.2: icmp_seq=1 ttl=64 time=0.5 ms";
        assert_eq!(answer(line), Some(Duration::from_millis(1_767_225_599_500)));
        assert_eq!(answer("PING 100.64.0.2 (100.64.0.2) 56(84) bytes of data."), None);
        assert_eq!(answer("[1767225599.500000] no answer yet for icmp_seq=2"), None);
    }
}
