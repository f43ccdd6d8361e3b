//! What the coordination server costs: `cargo run --release -p benches --bin control-bench`.
//!
//! Fleets of nodes join over the loopback, many at once: each registers with a reusable key, opens its map stream, and
//! sends one update. The fleet is the stock client's own library in a Go program, which runs on the same cores; what it
//! costs to decode everybody's peers is in the seconds, not in the server's CPU. Each size begins with an empty database.
//! Then many sessions of which each sees a few others only, where the counters show what one change costs.
//!
//! Needs the release build of mesh-control, and Go.

mod fleet;
mod server;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::{Value, json};

use fleet::Fleet;
use server::Server;

/// What the coordination server costs.
#[derive(Debug, Parser)]
#[command(name = "control-bench")]
struct Arguments {
    /// Nodes of each fleet in which everybody sees everybody.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 300, 500, 1000])]
    nodes: Vec<u32>,
    /// Nodes that join at the same time.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1000))]
    at_once: u32,
    /// How often one change is measured; the median is printed.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    changes: u32,
    /// Sessions of the fleet in which each sees nine others; 0 leaves it out.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(0..=9000))]
    sessions: u32,
}

/// Members of a group in the large fleet; each sees the others of its group.
const GROUP: u32 = 10;

#[expect(clippy::print_stderr, reason = "this is what the program has to say")]
fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("control-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "it prints a table")]
fn run(arguments: &Arguments) -> Result<()> {
    // Both ends of every connection are open files of this machine, one of each in server and fleet.
    rlimit::increase_nofile_limit(u64::MAX)?;
    println!(
        "{:>6} | {:>8} {:>9} {:>7} | {:>6} {:>5} | {:>8} {:>9} {:>9} {:>8} | {:>8}",
        "nodes",
        "joined s",
        "all see s",
        "CPU s",
        "failed",
        "ended",
        "KiB/node",
        "change ms",
        "CPU ms",
        "late ms",
        "reopen s"
    );
    for nodes in &arguments.nodes {
        let everybody = json!({"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]});
        println!("{}", everybody_sees_everybody(*nodes, arguments, &everybody)?);
    }
    if arguments.sessions > 0 {
        for line in groups(arguments)? {
            println!("{line}");
        }
    }
    Ok(())
}

/// A line of the table.
fn everybody_sees_everybody(nodes: u32, arguments: &Arguments, policy: &Value) -> Result<String> {
    let server = Server::start(policy)?;
    let key = server.key(&[])?;
    let mut fleet = Fleet::start(&server, &[key], nodes, arguments.at_once, None)?;
    let joined = fleet.event("joined")?;
    let settled = fleet.event("all-see-all")?;
    let change = median_change(&mut fleet, arguments.changes)?;
    let late = fleet.ask("late")?;
    let reopened = fleet.ask("reopen")?;
    Ok(format!(
        "{nodes:>6} | {:>8.1} {:>9.1} {:>7.1} | {:>6} {:>5} | {:>8} {:>9.0} {:>9.1} {:>8.0} | {:>8.1}",
        number(&joined, "seconds")?,
        number(&settled, "seconds")?,
        number(&settled, "cpu_s")?,
        number(&reopened, "failed")?,
        number(&settled, "ended")?,
        number(&settled, "rss_kib_per_stream")?,
        number(&change, "last_ms")?,
        number(&change, "cpu_ms")?,
        number(&late, "last_ms")?,
        number(&reopened, "seconds")?,
    ))
}

/// Many sessions in groups that do not see each other: what one change costs.
fn groups(arguments: &Arguments) -> Result<Vec<String>> {
    let count = arguments.sessions.div_ceil(GROUP);
    let tags: Vec<_> = (0..count).map(|group| format!("tag:group{group}")).collect();
    let owners: serde_json::Map<_, _> = tags.iter().map(|tag| (tag.clone(), json!([]))).collect();
    let rules: Vec<_> =
        tags.iter().map(|tag| json!({"action": "accept", "src": [tag], "dst": [format!("{tag}:*")]})).collect();
    let server = Server::start(&json!({"tagOwners": owners, "acls": rules}))?;
    let keys = tags.iter().map(|tag| server.key(&["--tags", tag])).collect::<Result<Vec<_>>>()?;
    let mut fleet = Fleet::start(&server, &keys, arguments.sessions, arguments.at_once, Some(GROUP - 1))?;
    let joined = fleet.event("joined")?;
    let settled = fleet.event("all-see-all")?;
    ensure!(settled["complete"] == true, "not everybody saw its group: {settled}");
    let before = server.counters()?;
    let change = fleet.ask("change")?;
    let after = server.counters()?;
    let more = |name: &str| -> Result<u64> {
        let of =
            |counters: &server::Counters| counters.get(name).copied().with_context(|| format!("no counter {name}"));
        Ok(of(&after)? - of(&before)?)
    };
    let reopened = fleet.ask("reopen")?;
    Ok(vec![
        String::new(),
        format!(
            "{} sessions in groups of {GROUP}: joined {:.1} s, {:.1} CPU s; {} failed, {} ended; {} KiB a session",
            arguments.sessions,
            number(&joined, "seconds")?,
            number(&settled, "cpu_s")?,
            number(&settled, "failed")?,
            number(&settled, "ended")?,
            number(&settled, "rss_kib_per_stream")?,
        ),
        format!(
            "one change: last of {} viewers after {:.0} ms; peer_serializations_total +{}, sessions_woken_total +{}, \
             selector_evaluations_total +{}",
            number(&change, "viewers")?,
            number(&change, "last_ms")?,
            more("peer_serializations_total")?,
            more("sessions_woken_total")?,
            more("selector_evaluations_total")?,
        ),
        format!(
            "{} changes: {:.2} ms of CPU each",
            arguments.changes,
            number(&median_change(&mut fleet, arguments.changes)?, "cpu_ms")?
        ),
        format!(
            "all sessions opened again: {:.1} s, {:.1} CPU s",
            number(&reopened, "seconds")?,
            number(&reopened, "cpu_s")?
        ),
    ])
}

/// The change of middle duration among several; its CPU time is the mean, for one is less than a clock tick.
fn median_change(fleet: &mut Fleet, changes: u32) -> Result<Value> {
    let mut events = (0..changes).map(|_| fleet.ask("change")).collect::<Result<Vec<_>>>()?;
    events.iter().try_for_each(|event| {
        ensure!(event["complete"] == true, "a change did not reach everybody: {event}");
        Ok(())
    })?;
    let total = events.iter().map(|event| number(event, "cpu_ms")).sum::<Result<f64>>()?;
    events.sort_by(|a, b| a["last_ms"].as_f64().unwrap_or(0.0).total_cmp(&b["last_ms"].as_f64().unwrap_or(0.0)));
    let mut middle = events.swap_remove(events.len() / 2);
    middle["cpu_ms"] = json!(total / f64::from(changes));
    Ok(middle)
}

fn number(event: &Value, field: &str) -> Result<f64> {
    event[field].as_f64().with_context(|| format!("no {field} in {event}"))
}
