//! What the coordination server costs: `cargo run --release -p benches --bin control-bench`.
//!
//! Fleets of nodes join over the loopback, many at once: each registers with a reusable key, opens its map stream, and
//! sends one update. The fleet is the stock client's own library in a Go program, which runs on the same cores; what it
//! costs to decode everybody's peers is in the seconds, not in the server's CPU. Each size begins with an empty database.
//! Then many sessions of which each sees a few others only, where the counters show what one change costs. What comes out
//! is Markdown, as it stands in the README beside.
//!
//! Needs the release build of mesh-control (`cargo build --release -p control`), and Go.

mod fleet;
mod server;

use std::{
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use benches::report;
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

/// Changes in the large fleet over which CPU time is counted, in ticks of 10 ms.
const CHANGES: u32 = 100;

/// For how long the large fleet is left alone, to know what its keepalives cost.
const IDLE: Duration = Duration::from_secs(20);

const HEAD: &str = "\
| nodes | joined, s | all see all, s | CPU, s | failed | ended | KiB a session | above the idle server | one change to the \
last, ms | late joiner, ms | opened again, s | CPU, s |
|---|---|---|---|---|---|---|---|---|---|---|---|";

fn main() -> ExitCode {
    report::run("control-bench", || run(&Arguments::parse()))
}

#[expect(clippy::print_stdout, reason = "it prints a table")]
fn run(arguments: &Arguments) -> Result<()> {
    // Both ends of every connection are open files of this machine, one of each in server and fleet.
    rlimit::increase_nofile_limit(u64::MAX)?;
    println!("{HEAD}");
    for nodes in &arguments.nodes {
        let everybody = json!({"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]});
        println!("{}", everybody_sees_everybody(*nodes, arguments, &everybody)?);
    }
    if arguments.sessions > 0 {
        println!("{}", groups(arguments)?);
    }
    Ok(())
}

/// A line of the table.
fn everybody_sees_everybody(nodes: u32, arguments: &Arguments, policy: &Value) -> Result<String> {
    let server = Server::start(policy)?;
    let key = server.key(&[])?;
    let idle = server.resident_kib()?;
    let mut fleet = Fleet::start(&server, &[key], nodes, arguments.at_once, None)?;
    line(&mut fleet, nodes, idle, arguments)
}

/// A line of the table, of a fleet that was just started.
fn line(fleet: &mut Fleet, nodes: u32, idle: f64, arguments: &Arguments) -> Result<String> {
    let joined = fleet.event("joined")?;
    let settled = fleet.event("all-see-all")?;
    ensure!(settled["complete"] == true, "not everybody saw all others: {settled}");
    let resident = number(&settled, "rss_kib")?;
    let streams = number(&settled, "streams")?;
    let change = median_change(fleet, arguments.changes)?;
    let late = fleet.ask("late")?;
    let reopened = fleet.ask("reopen")?;
    Ok(format!(
        "| {nodes} | {:.1} | {:.1} | {:.1} | {} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {:.1} | {:.1} |",
        number(&joined, "seconds")?,
        number(&settled, "seconds")?,
        number(&settled, "cpu_s")?,
        number(&reopened, "failed")?,
        number(&settled, "ended")?,
        resident / streams,
        (resident - idle) / streams,
        number(&change, "last_ms")?,
        number(&late, "last_ms")?,
        number(&reopened, "seconds")?,
        number(&reopened, "cpu_s")?,
    ))
}

/// Many sessions in groups that do not see each other: their line, and what one change costs.
fn groups(arguments: &Arguments) -> Result<String> {
    let count = arguments.sessions.div_ceil(GROUP);
    let tags: Vec<_> = (0..count).map(|group| format!("tag:group{group}")).collect();
    let owners: serde_json::Map<_, _> = tags.iter().map(|tag| (tag.clone(), json!([]))).collect();
    let rules: Vec<_> =
        tags.iter().map(|tag| json!({"action": "accept", "src": [tag], "dst": [format!("{tag}:*")]})).collect();
    let server = Server::start(&json!({"tagOwners": owners, "acls": rules}))?;
    let keys = tags.iter().map(|tag| server.key(&["--tags", tag])).collect::<Result<Vec<_>>>()?;
    let idle = server.resident_kib()?;
    let mut fleet = Fleet::start(&server, &keys, arguments.sessions, arguments.at_once, Some(GROUP - 1))?;
    let table = line(&mut fleet, arguments.sessions, idle, arguments)?;

    let before = server.counters()?;
    let change = fleet.ask("change")?;
    let after = server.counters()?;
    let more = |name: &str| -> Result<u64> {
        let of =
            |counters: &server::Counters| counters.get(name).copied().with_context(|| format!("no counter {name}"));
        Ok(of(&after)? - of(&before)?)
    };
    // What goes on in any case does not count.
    let (start, began) = (server.cpu_seconds()?, Instant::now());
    sleep(IDLE);
    let at_rest = (server.cpu_seconds()? - start) / began.elapsed().as_secs_f64();
    let (start, began) = (server.cpu_seconds()?, Instant::now());
    median_change(&mut fleet, CHANGES)?;
    let cost = server.cpu_seconds()? - start - at_rest * began.elapsed().as_secs_f64();
    Ok(format!(
        "{table}\n\nThe last in groups of {GROUP} that do not see each other. There one change reaches the last of {} viewers \
         after {:.0} ms and costs {:.2} ms of CPU (mean of {CHANGES}, beyond {:.1} % of a core at rest); \
         peer_serializations_total +{}, sessions_woken_total +{}, selector_evaluations_total +{}.",
        number(&change, "viewers")?,
        number(&change, "last_ms")?,
        cost * 1e3 / f64::from(CHANGES),
        at_rest * 100.0,
        more("peer_serializations_total")?,
        more("sessions_woken_total")?,
        more("selector_evaluations_total")?,
    ))
}

/// The change of middle duration among several.
fn median_change(fleet: &mut Fleet, changes: u32) -> Result<Value> {
    let mut events = (0..changes).map(|_| fleet.ask("change")).collect::<Result<Vec<_>>>()?;
    events.iter().try_for_each(|event| {
        ensure!(event["complete"] == true, "a change did not reach everybody: {event}");
        Ok(())
    })?;
    events.sort_by(|a, b| a["last_ms"].as_f64().unwrap_or(0.0).total_cmp(&b["last_ms"].as_f64().unwrap_or(0.0)));
    Ok(events.swap_remove(events.len() / 2))
}

fn number(event: &Value, field: &str) -> Result<f64> {
    event[field].as_f64().with_context(|| format!("no {field} in {event}"))
}
