//! How long packets do not get through when something happens: whole programs in network namespaces.
//!
//! One host pings another through the tunnel every 20 ms and something happens. Printed is the longest time without an
//! answer or, of what begins or ends, the time until the first or the last answer; what routers and kernel take is in
//! it. Each case runs several times, with the median and all values.
//!
//! ```text
//! cargo run --release --package benches --bin recovery [-- --runs N] [--only WORD]
//! ```
//!
//! Needs root. The programs must be built in the same profile: `cargo build --release -p agent -p control -p relay`.

#![allow(clippy::print_stdout, reason = "it prints a table")]

#[path = "../../netns.rs"]
mod netns;

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use netns::{
    homes::{Homes, Nat, Way, overlay},
    joined::{ALLOW, Agent, DENY, Joined},
    lab::{self, Node, Process, until},
};

/// How long packets do not get through when something happens.
#[derive(Debug, Parser)]
#[command(name = "recovery")]
struct Arguments {
    /// How often every case is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=50))]
    runs: u32,
    /// Measure these alone: what has the word in its line.
    #[arg(long)]
    only: Option<String>,
}

const LONG: Duration = Duration::from_secs(30);
/// Between pings: what a figure is good to.
const INTERVAL: &str = "0.02";

/// What happens among agents that join a control server, once, and how long it took.
type JoinedCase = (&'static str, fn() -> Result<Duration>);

/// What happens, and to whom.
type Case = (&'static str, [Nat; 2], Duration, fn(&mut Homes) -> Result<()>);

const CASES: &[Case] = &[
    ("roaming to another network, direct", [Nat::Easy, Nat::Easy], Duration::from_secs(8), roam),
    ("roaming to another network, relayed", [Nat::Hard, Nat::Hard], Duration::from_secs(8), roam),
    ("another address in the same LAN, direct", [Nat::Easy, Nat::Easy], Duration::from_secs(8), renumber),
    ("router reboot with another address, direct", [Nat::Easy, Nat::Easy], Duration::from_secs(8), reboot_router),
    ("UDP dies silently under traffic, direct", [Nat::Easy, Nat::Easy], Duration::from_secs(8), block_udp),
    ("relay restarted at once, relayed", [Nat::Hard, Nat::Hard], Duration::from_secs(8), restart_relay),
    ("relay black-holed for 9 s, relayed", [Nat::Hard, Nat::Hard], Duration::from_secs(20), black_hole),
];

const JOINED: &[JoinedCase] = &[
    ("mesh up with a key", || join(|_, up, _| up)),
    ("from the start of mesh up to the first answer", || join(|began, _, answered| answered - began)),
    ("from the end of mesh up to the first answer", || join(|began, up, answered| answered - began - up)),
    ("policy denies: from policy set to the last answer", || policy(ALLOW, DENY)),
    ("policy allows: from policy set to the first answer", || policy(DENY, ALLOW)),
    ("restart: from the start to the first answer from outside", || restart(true)),
    ("restart while control is away: the same", || restart(false)),
];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(reason) = lab::missing() {
        anyhow::bail!("no namespaces here: {reason}");
    }
    let wanted = |name: &str| arguments.only.as_ref().is_none_or(|word| name.contains(word));
    println!("{:<58} {:>9}   all, in ms", "what happens", "median ms");
    for (name, nats, after, happen) in CASES.iter().filter(|case| wanted(case.0)) {
        measure(name, arguments.runs, || silence(*nats, *after, *happen))?;
    }
    for (name, take) in JOINED.iter().filter(|case| wanted(case.0)) {
        measure(name, arguments.runs, take)?;
    }
    Ok(())
}

fn measure(name: &str, runs: u32, take: impl Fn() -> Result<Duration>) -> Result<()> {
    let mut taken = (0..runs).map(|_| take()).collect::<Result<Vec<_>>>()?;
    taken.sort_unstable();
    let all: Vec<_> = taken.iter().map(|time| time.as_millis().to_string()).collect();
    println!("{name:<58} {:>9}   {}", taken[taken.len() / 2].as_millis(), all.join(", "));
    Ok(())
}

/// A second node joins, and pings the first from before it does: what `figure` makes of when `mesh up` began, how long
/// it took, and when the first answer came.
fn join(figure: fn(Duration, Duration, Duration) -> Duration) -> Result<Duration> {
    let joined = Joined::new(&[Nat::Easy, Nat::Easy])?;
    joined.control.set_policy(ALLOW)?;
    let key = joined.control.key(&["--reusable"])?;
    let [alice, bob] = joined.agents.as_slice() else { unreachable!("two homes") };
    alice.up(&joined.control, &key)?;
    let pings = ping(bob, &alice.address()?)?;
    let began = wall()?;
    let up = bob.up(&joined.control, &key)?;
    let answered = wait_for_answer(&pings, began)?;
    Ok(figure(began, up, answered))
}

/// From the change of the policy to the last answer where it denies, to the first where it allows.
fn policy(before: &str, after: &str) -> Result<Duration> {
    let joined = Joined::up(&[Nat::Easy, Nat::Easy])?;
    let [alice, bob] = joined.agents.as_slice() else { unreachable!("two homes") };
    let address = bob.address()?;
    alice.reach(&address)?;
    joined.control.set_policy(before)?;
    let pings = ping(alice, &address)?;
    thread::sleep(Duration::from_secs(2));
    let began = wall()?;
    joined.control.set_policy(after)?;
    if after == ALLOW {
        return Ok(wait_for_answer(&pings, began)? - began);
    }
    thread::sleep(Duration::from_secs(3));
    let last = *answers(&pings.output())?.last().context("nothing was answered")?;
    ensure!(wall()? - last > Duration::from_secs(2), "it is still answered");
    Ok(last.saturating_sub(began))
}

/// From the start of a daemon that was killed to the first answer it gives to a peer that goes on pinging.
fn restart(has_control: bool) -> Result<Duration> {
    let mut joined = Joined::up(&[Nat::Easy, Nat::Easy])?;
    let address = joined.agents[0].address()?;
    joined.agents[1].reach(&address)?;
    joined.agents[0].wait_for_kept_map()?;
    if !has_control {
        joined.control.kill();
    }
    let pings = ping(&joined.agents[1], &address)?;
    thread::sleep(Duration::from_secs(2));
    joined.agents[0].kill();
    thread::sleep(Duration::from_secs(1));
    let began = wall()?;
    joined.agents[0].start()?;
    Ok(wait_for_answer(&pings, began)? - began)
}

fn ping(agent: &Agent, address: &str) -> Result<Process> {
    agent.node.spawn(&["ping", "-n", "-D", "-i", INTERVAL, address])
}

fn wall() -> Result<Duration> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?)
}

/// When the first answer after `began` came.
fn wait_for_answer(pings: &Process, began: Duration) -> Result<Duration> {
    until("an answer", Duration::from_secs(60), || {
        Ok(answers(&pings.output())?.into_iter().find(|answer| *answer > began))
    })
}

/// When answers came.
fn answers(output: &str) -> Result<Vec<Duration>> {
    let lines = output.lines().filter(|line| line.contains("bytes from"));
    let stamp = |line: &str| -> Result<Duration> {
        let stamp = line.strip_prefix('[').and_then(|rest| rest.split(']').next()).context("no time stamp")?;
        Ok(Duration::try_from_secs_f64(stamp.parse()?)?)
    };
    lines.map(stamp).collect()
}

/// The longest time without an answer when something happens.
fn silence(nats: [Nat; 2], after: Duration, happen: fn(&mut Homes) -> Result<()>) -> Result<Duration> {
    let mut homes = Homes::new(&nats)?;
    let other = homes.router(nats[0])?;
    let alice = homes.member(0).node.clone();
    homes.lab.cable((&other, "lan", &["192.168.9.1/24"]), (&alice, "eth1", &["192.168.9.2/24"]))?;
    alice.run(&["ip", "link", "set", "eth1", "down"])?;
    homes.start()?;
    homes.members.iter().try_for_each(|member| member.wait_for_relay(LONG))?;
    homes.member(0).reach(1, LONG)?;
    if nats == [Nat::Easy, Nat::Easy] {
        until("direct", LONG, || Ok(matches!(homes.member(0).way(1)?, Way::Direct(_)).then_some(())))?;
        until("direct", LONG, || Ok(matches!(homes.member(1).way(0)?, Way::Direct(_)).then_some(())))?;
    }
    let pings = alice.spawn(&["ping", "-n", "-D", "-i", INTERVAL, &overlay(1)])?;
    thread::sleep(Duration::from_secs(1));
    happen(&mut homes)?;
    let began = Instant::now();
    while began.elapsed() < after {
        thread::sleep(Duration::from_millis(100));
    }
    let output = pings.output();
    let mut times = answers(&output)?;
    ensure!(times.len() > 40, "hardly anything was answered: {output}");
    // It has to be over: the last answer is fresh, too.
    times.push(wall()?.min(times.last().copied().unwrap_or_default() + Duration::from_secs(60)));
    let gaps = times.windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
    Ok(gaps.max().unwrap_or_default())
}

fn roam(homes: &mut Homes) -> Result<()> {
    let alice = homes.member(0).node.clone();
    alice.run(&["ip", "link", "set", "eth0", "down"])?;
    alice.run(&["ip", "link", "set", "eth1", "up"])?;
    alice.route("default via 192.168.9.1")
}

fn renumber(homes: &mut Homes) -> Result<()> {
    let alice = homes.member(0).node.clone();
    let router = &homes.routers[0];
    router.run(&["ip", "route", "add", "192.168.1.77/32", "dev", "lan0"])?;
    alice.run(&["ip", "addr", "del", "192.168.1.2/24", "dev", "eth0"])?;
    alice.run(&["ip", "addr", "add", "192.168.1.77/24", "dev", "eth0"])?;
    alice.run(&["ip", "route", "replace", "default", "via", "192.168.1.100", "dev", "eth0", "onlink"]).map(drop)
}

fn reboot_router(homes: &mut Homes) -> Result<()> {
    let (segment, router) = (&homes.segment, &homes.routers[0]);
    for (node, words) in [
        (router, "addr del 203.0.113.18/30 dev wan"),
        (segment, "addr del 203.0.113.17/30 dev home1"),
        (segment, "addr add 203.0.113.21/30 dev home1"),
        (router, "addr add 203.0.113.22/30 dev wan"),
        (router, "route add default via 203.0.113.21"),
    ] {
        ip(node, words)?;
    }
    router.run(&["conntrack", "-F"]).map(drop)
}

fn block_udp(homes: &mut Homes) -> Result<()> {
    homes
        .segment
        .nft("table inet hole {\nchain forward {\ntype filter hook forward priority -5\nmeta l4proto udp drop\n}\n}\n")
}

fn restart_relay(homes: &mut Homes) -> Result<()> {
    homes.relay.kill();
    homes.relay.start()
}

fn black_hole(homes: &mut Homes) -> Result<()> {
    homes.segment.nft(
        "table inet hole {\nchain forward {\ntype filter hook forward priority -5\n\
         ip daddr 203.0.113.10 drop\nip saddr 203.0.113.10 drop\n}\n}\n",
    )?;
    // Nothing of before may come through afterwards: only a new connection counts.
    thread::sleep(Duration::from_secs(9));
    homes.segment.run(&["nft", "delete", "table", "inet", "hole"]).map(drop)
}

fn ip(node: &Node, words: &str) -> Result<()> {
    let mut line = vec!["ip"];
    line.extend(words.split(' '));
    node.run(&line).map(drop)
}
