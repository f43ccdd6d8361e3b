//! What is measured of a driver: throughput, its price in CPU time and memory, and latency idle and under load.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use benches::{
    keys::KeyPair,
    lab::{self, Lab, Process},
};
use serde_json::Value;

use crate::drivers::{Driver, End};

const PATIENCE: Duration = Duration::from_secs(30);
/// Clock ticks a second in /proc (USER_HZ, 100 on every Linux).
const TICKS: f64 = 100.0;
/// UDP payload of a full packet inside the tunnel: 1,420 less 28 and 20 to spare, as the figures of others have it.
const UDP_FULL: u32 = 1372;
const UDP_SMALL: u32 = 64;
/// A rate counts as carried when at most this part of its packets is lost.
const LOSS: f64 = 0.01;

/// Figures of one driver in one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    tcp_forth_gbit: f64,
    tcp_back_gbit: f64,
    cpu_seconds_per_gb: f64,
    full_kpps: f64,
    small_kpps: f64,
    idle_p50_ms: f64,
    idle_p99_ms: f64,
    loaded_p50_ms: f64,
    rss_mib: f64,
}

/// A column of the table: its head, and how it is read.
type Column = (&'static str, fn(&Figures) -> f64);

impl Figures {
    /// Columns of the table.
    pub(crate) const COLUMNS: [Column; 9] = [
        ("TCP a→b Gbit/s", |f| f.tcp_forth_gbit),
        ("TCP b→a Gbit/s", |f| f.tcp_back_gbit),
        ("CPU s/GB, both ends", |f| f.cpu_seconds_per_gb),
        ("1372 B kpps at ≤1 % loss", |f| f.full_kpps),
        ("64 B kpps at ≤1 % loss", |f| f.small_kpps),
        ("ping p50 ms", |f| f.idle_p50_ms),
        ("ping p99 ms", |f| f.idle_p99_ms),
        ("ping p50 ms under TCP", |f| f.loaded_p50_ms),
        ("RSS MiB, larger end", |f| f.rss_mib),
    ];
}

/// Measures a driver in a lab of its own.
pub(crate) fn measure(driver: &Driver, seconds: u32) -> Result<Figures> {
    let mut lab = Lab::new()?;
    let (node_a, node_b) = (lab.node("a")?, lab.node("b")?);
    lab.cable((&node_a, "eth0", &["192.0.2.1/24"]), (&node_b, "eth0", &["192.0.2.2/24"]))?;
    let a = End { node: node_a, keys: KeyPair::generate()?, underlay: "192.0.2.1", overlay: "10.9.0.1" };
    let b = End { node: node_b, keys: KeyPair::generate()?, underlay: "192.0.2.2", overlay: "10.9.0.2" };
    let drivers = [driver.start(&a, &b)?, driver.start(&b, &a)?];
    lab::until("the tunnel does not carry", PATIENCE, || {
        Ok(a.node.try_run(&["ping", "-c1", "-W1", b.overlay])?.status.success().then_some(()))
    })?;

    let idle = ping(&a, &b, 300)?;
    let server = b.node.spawn(&["iperf3", "-s", "-B", b.overlay, "--forceflush"])?;
    server.wait_for("Server listening", PATIENCE)?;

    let before = cpu_seconds(&drivers)?;
    let forth = iperf(&a, &b, &["-t", &seconds.to_string()])?;
    let used = cpu_seconds(&drivers)? - before;
    let back = iperf(&a, &b, &["-R", "-t", &seconds.to_string()])?;

    let load = a.node.spawn(&["iperf3", "-c", b.overlay, "-t", "4", "-J"])?;
    lab::until("the load does not begin", PATIENCE, || Ok((cpu_seconds(&drivers)? > before + used).then_some(())))?;
    let loaded = ping(&a, &b, 200)?;
    drop(load);

    let figures = Figures {
        tcp_forth_gbit: rate(&forth)? / 1e9,
        tcp_back_gbit: rate(&back)? / 1e9,
        cpu_seconds_per_gb: used / (bytes(&forth)? / 1e9),
        full_kpps: lossless(&a, &b, UDP_FULL)?,
        small_kpps: lossless(&a, &b, UDP_SMALL)?,
        idle_p50_ms: percentile(&idle, 50),
        idle_p99_ms: percentile(&idle, 99),
        loaded_p50_ms: percentile(&loaded, 50),
        rss_mib: drivers.iter().map(rss_mib).collect::<Result<Vec<_>>>()?.into_iter().fold(0.0, f64::max),
    };
    Ok(figures)
}

fn iperf(from: &End, to: &End, arguments: &[&str]) -> Result<Value> {
    let mut line = vec!["iperf3", "-J", "-c", to.overlay];
    line.extend(arguments);
    // The server takes one client at a time, and notices a client's end a little later than the client.
    let result = lab::until("iperf3 stays busy", PATIENCE, || {
        let output = from.node.try_run(&line)?;
        let result: Value = serde_json::from_slice(&output.stdout).context("iperf3 answered no JSON")?;
        let is_busy = result["error"].as_str().is_some_and(|error| error.contains("busy"));
        Ok((!is_busy).then_some(result))
    })?;
    ensure!(result["error"].is_null(), "iperf3: {}", result["error"]);
    Ok(result)
}

fn rate(result: &Value) -> Result<f64> {
    result["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3 measured no rate")
}

fn bytes(result: &Value) -> Result<f64> {
    result["end"]["sum_received"]["bytes"].as_f64().context("iperf3 counted no bytes")
}

/// The highest rate of UDP packets, in thousands a second, that arrives with at most [`LOSS`] lost: seven steps of a
/// binary search, one second each.
fn lossless(from: &End, to: &End, payload: u32) -> Result<f64> {
    let (mut low, mut high) = (0.0, 400.0);
    for _ in 0..7 {
        let middle = (low + high) / 2.0;
        let bits = format!("{:.0}", middle * 1e3 * f64::from(payload) * 8.0);
        let length = payload.to_string();
        let result =
            iperf(from, to, &["-u", "-b", &bits, "-l", &length, "-t", "1", "-w", "4M", "--pacing-timer", "100"])?;
        let sum = &result["end"]["sum"];
        let sent = sum["packets"].as_f64().context("iperf3 counted no packets")?;
        let lost = sum["lost_packets"].as_f64().context("iperf3 counted no losses")?;
        // A generator that cannot offer the rate says nothing about the tunnel beyond what it did offer.
        if lost <= sent * LOSS && sent >= middle * 1e3 * 0.95 {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// Round-trip times in milliseconds, sorted, of pings 10 ms apart.
fn ping(from: &End, to: &End, count: u32) -> Result<Vec<f64>> {
    let output = from.node.run(&["ping", "-i", "0.01", "-c", &count.to_string(), to.overlay])?;
    let mut times: Vec<f64> =
        output.lines().filter_map(|line| line.split("time=").nth(1)?.split(' ').next()?.parse().ok()).collect();
    ensure!(times.len() * 10 >= count as usize * 9, "{} of {count} pings were answered", times.len());
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() - 1) * percent / 100]
}

/// User and system time of all processes so far.
fn cpu_seconds(processes: &[Process]) -> Result<f64> {
    let mut ticks = 0.0;
    for process in processes {
        let stat = fs::read_to_string(format!("/proc/{}/stat", process.id()))?;
        // The name may contain spaces; fields are counted from behind its parenthesis (proc(5)).
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        for field in fields.get(11..13).context("a process has no times")? {
            ticks += field.parse::<f64>()?;
        }
    }
    Ok(ticks / TICKS)
}

/// The most memory that a process has had resident.
fn rss_mib(process: &Process) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("a process has no memory")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}
