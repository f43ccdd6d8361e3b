//! What a node costs its host while nobody uses it: memory, wake-ups, CPU time and packets.
//!
//! Two hosts behind masquerading routers, our control and relay. The nodes have talked directly and have been silent
//! since; after `--settle` seconds one node and its interface are looked at, and again after `--window` seconds. Ours
//! runs with one peer and with a hundred (99 of them speak to control alone), and where `MESH_INTEROP_TAILSCALED` and
//! `MESH_INTEROP_TAILSCALE` name stock programs, they run in the same lab afterwards.
//!
//! ```text
//! cargo run --release --package benches --bin idle [-- --settle 120 --window 120]
//! ```
//!
//! Needs root, and Go for the hundred. The programs must be built in the same profile:
//! `cargo build --release -p agent -p control -p relay`.

#![allow(clippy::print_stdout, reason = "it prints a table")]

#[path = "../../netns.rs"]
mod netns;

use std::{
    env, fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use netns::{
    homes::{Homes, Nat},
    joined::{ALLOW, Control, Joined, PATIENCE},
    lab::{self, Node, Process, peers, until},
};

/// What a node costs its host while nobody uses it.
#[derive(Debug, Parser)]
#[command(name = "idle")]
struct Arguments {
    /// Seconds of silence before the first look.
    #[arg(long, default_value_t = 120)]
    settle: u64,
    /// Seconds between the looks.
    #[arg(long, default_value_t = 120)]
    window: u64,
}

/// Nodes of the fleet beside alice and bob: a hundred peers for alice.
const FLEET: usize = 99;
const HOMES: [Nat; 2] = [Nat::Easy, Nat::Easy];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(reason) = lab::missing() {
        anyhow::bail!("no namespaces here: {reason}");
    }
    println!(
        "{:<24} {:>8} {:>8} {:>10} {:>8} {:>6} {:>6} {:>8} {:>8}",
        "a minute, but for memory", "RSS MiB", "heap MiB", "switches", "CPU ms", "sent", "recvd", "B sent", "B recvd"
    );
    ours(&arguments, "mesh, one peer", 0)?;
    ours(&arguments, "mesh, 100 peers", FLEET)?;
    match (env::var("MESH_INTEROP_TAILSCALED"), env::var("MESH_INTEROP_TAILSCALE")) {
        (Ok(daemon), Ok(command)) => stock(&arguments, &daemon, &command),
        _ => {
            println!("{:<24} not measured: MESH_INTEROP_TAILSCALED and MESH_INTEROP_TAILSCALE are not set", "stock");
            Ok(())
        }
    }
}

fn ours(arguments: &Arguments, name: &str, fleet: usize) -> Result<()> {
    let joined = Joined::up(&HOMES)?;
    let _fleet = (fleet > 0).then(|| join_fleet(&joined.control, fleet)).transpose()?;
    let [alice, bob] = joined.agents.as_slice() else { unreachable!("two homes") };
    until("all peers are known", PATIENCE, || Ok((alice.peers()?.len() == fleet + 1).then_some(())))?;
    let address = bob.address()?;
    alice.reach(&address)?;
    until("direct", PATIENCE, || {
        alice.echo(&address)?;
        let peer = alice.peer("bob")?.context("no bob")?;
        Ok(peer["CurAddr"].as_str().is_some_and(|addr| !addr.is_empty()).then_some(()))
    })?;
    let process = alice.process.as_ref().context("alice does not run")?.id();
    look(arguments, name, &alice.node, process)
}

/// Nodes that speak to control alone; they end with the process.
fn join_fleet(control: &Control, nodes: usize) -> Result<Process> {
    let (program, key) = (peers::program()?, control.key(&["--reusable"])?);
    let program = program.to_str().context("a path that is not text")?;
    // The fleet ends with its standard input, and a lab's programs have none.
    let line =
        format!("sleep 86400 | {program} fleet --control {} --key {key} --nodes {nodes} --peers 0", control.url());
    let process = control.node.spawn(&["sh", "-c", &line])?;
    until("the fleet has joined", PATIENCE, || Ok(process.output().contains("all-see-all").then_some(())))?;
    Ok(process)
}

fn stock(arguments: &Arguments, daemon: &str, command: &str) -> Result<()> {
    let mut homes = Homes::new(&HOMES)?;
    let control = Control::new(&mut homes, 0)?;
    control.set_policy(ALLOW)?;
    let key = control.key(&["--reusable"])?;
    let (mut daemons, mut addresses) = (Vec::new(), Vec::new());
    for member in &homes.members {
        let (state, socket) = (member.node.path("tailscaled.state"), member.node.path("tailscaled.sock"));
        let socket = format!("--socket={}", socket.display());
        // Nothing here is the network that it would report to.
        let state = format!("--state={}", state.display());
        daemons.push(member.node.spawn(&[daemon, "--no-logs-no-support", &state, &socket])?);
        let up = |words: &[&str]| member.node.try_run(&[&[command, &*socket], words].concat());
        until("it is up", PATIENCE, || {
            let words = ["up", "--login-server", &control.url(), "--auth-key", &key, "--timeout", "30s"];
            Ok(up(&words)?.status.success().then_some(()))
        })?;
        addresses.push(String::from_utf8(up(&["ip", "-4"])?.stdout)?.trim().to_owned());
    }
    let (alice, socket) = (&homes.members[0].node, homes.members[0].node.path("tailscaled.sock"));
    let ping =
        [command, &format!("--socket={}", socket.display()), "ping", "--until-direct", "-c", "60", &addresses[1]];
    ensure!(alice.try_run(&ping)?.status.success(), "no direct path");
    look(arguments, "tailscaled, one peer", alice, daemons[0].id())
}

/// What the kernel counted for a process and for its host's interface.
struct Counted {
    switches: u64,
    cpu: Duration,
    packets: [u64; 2],
    bytes: [u64; 2],
}

fn look(arguments: &Arguments, name: &str, node: &Node, process: u32) -> Result<()> {
    thread::sleep(Duration::from_secs(arguments.settle));
    let (began, before) = (Instant::now(), Counted::read(node, process)?);
    thread::sleep(Duration::from_secs(arguments.window));
    let after = Counted::read(node, process)?;
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let rate = |after: u64, before: u64| (after - before) as f64 / minutes;
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    println!(
        "{name:<24} {:>8.1} {:>8.1} {:>10.0} {:>8.1} {:>6.1} {:>6.1} {:>8.0} {:>8.0}",
        field(&status, "VmRSS:")? / 1024.0,
        field(&status, "RssAnon:")? / 1024.0,
        rate(after.switches, before.switches),
        (after.cpu - before.cpu).as_secs_f64() * 1e3 / minutes,
        rate(after.packets[0], before.packets[0]),
        rate(after.packets[1], before.packets[1]),
        rate(after.bytes[0], before.bytes[0]),
        rate(after.bytes[1], before.bytes[1]),
    );
    Ok(())
}

impl Counted {
    fn read(node: &Node, process: u32) -> Result<Self> {
        let (mut switches, mut nanoseconds) = (0, 0);
        for thread in fs::read_dir(format!("/proc/{process}/task"))? {
            let thread = thread?.path();
            let status = fs::read_to_string(thread.join("status"))?;
            for name in ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"] {
                switches += line(&status, name)?.parse::<u64>()?;
            }
            nanoseconds += on_cpu(&thread)?;
        }
        let files = ["tx_packets", "rx_packets", "tx_bytes", "rx_bytes"];
        let files = files.map(|file| format!("/sys/class/net/eth0/statistics/{file}"));
        let output = node.run(&[&["cat"], &files.each_ref().map(String::as_str)[..]].concat())?;
        let counters = output.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        let [sent, received, bytes_sent, bytes_received] = counters[..] else {
            anyhow::bail!("four counters: {output}")
        };
        Ok(Self {
            switches,
            cpu: Duration::from_nanos(nanoseconds),
            packets: [sent, received],
            bytes: [bytes_sent, bytes_received],
        })
    }
}

/// Nanoseconds that a thread has run.
fn on_cpu(thread: &Path) -> Result<u64> {
    let text = fs::read_to_string(thread.join("schedstat"))?;
    Ok(text.split_whitespace().next().context("no time in schedstat")?.parse()?)
}

/// A figure of /proc/PID/status in KiB.
fn field(status: &str, name: &str) -> Result<f64> {
    Ok(line(status, name)?.trim_end_matches("kB").trim().parse()?)
}

fn line<'a>(status: &'a str, name: &str) -> Result<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).with_context(|| format!("no {name}"))
}
