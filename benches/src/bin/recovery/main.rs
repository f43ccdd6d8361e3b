//! How long packets do not get through when something happens: whole programs in network namespaces.
//!
//! One host pings another through the tunnel every 20 ms, something happens, and the longest time without an answer is
//! the figure; what the routers and the kernel take is in it. Each case runs several times; printed are the median and
//! all values.
//!
//! ```text
//! cargo run --release --package benches --bin recovery [-- --runs N]
//! ```
//!
//! Needs root. The programs must be built in the same profile: `cargo build --release -p agent -p relay`.

#![allow(clippy::print_stdout, reason = "it prints a table")]

#[path = "../../../../agent/tests/netns/agents.rs"]
mod agents;
#[path = "../../../../agent/tests/netns/homes.rs"]
mod homes;
#[path = "../../../../agent/tests/netns/lab.rs"]
mod lab;

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use homes::{Homes, Nat, Way, overlay};
use lab::{Node, until};

const LONG: Duration = Duration::from_secs(30);
/// Between pings: what a figure is good to.
const INTERVAL: &str = "0.02";

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

fn main() -> Result<()> {
    if let Some(reason) = lab::missing() {
        anyhow::bail!("no namespaces here: {reason}");
    }
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let runs = match arguments.as_slice() {
        [] => 5,
        [word, count] if word == "--runs" => count.parse()?,
        _ => anyhow::bail!("usage: recovery [--runs N]"),
    };
    println!("{:<46} {:>9}   all, in ms", "what happens", "median ms");
    for (name, nats, after, happen) in CASES {
        let mut silences = (0..runs).map(|_| silence(*nats, *after, *happen)).collect::<Result<Vec<_>>>()?;
        silences.sort_unstable();
        let all: Vec<_> = silences.iter().map(|silence| silence.as_millis().to_string()).collect();
        println!("{name:<46} {:>9}   {}", silences[silences.len() / 2].as_millis(), all.join(", "));
    }
    Ok(())
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
    let mut times = Vec::new();
    for line in output.lines().filter(|line| line.contains("bytes from")) {
        let stamp = line.strip_prefix('[').and_then(|rest| rest.split(']').next()).context("no time stamp")?;
        times.push(stamp.parse::<f64>()?);
    }
    ensure!(times.len() > 40, "hardly anything was answered: {output}");
    // It has to be over: the last answer is fresh, too.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
    times.push(now.min(times.last().copied().unwrap_or_default() + 60.0));
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    Ok(Duration::from_secs_f64(gaps.fold(0.0, f64::max)))
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
