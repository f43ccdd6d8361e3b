//! The link monitor in network namespaces, where links come and go.
//!
//! Needs root; without it every test is reported as ignored, with the reason in its line.

#![expect(clippy::print_stdout, reason = "the monitor is started as a program of its own")]

#[path = "../../agent/tests/netns/lab.rs"]
mod lab;

use core::time::Duration;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};

use lab::{Lab, Node, Process};
use mesh_core::node::LinkState;
use transports::host::LinkMonitor;

/// What this program is started again with, inside a host, to be the monitor. It may be followed by the number of the
/// interface that is its own.
const WORD: &str = "monitor-links";

const LONG: Duration = Duration::from_secs(10);

type Test = (&'static str, fn() -> Result<()>);

const TESTS: &[Test] = &[
    ("links_that_come_and_go_are_said_with_all_that_goes_with_them", links_come_and_go),
    ("our_own_interface_and_its_routes_do_not_count", our_own_does_not_count),
    ("default_routes_count_while_they_lead_somewhere", default_routes_count),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, own @ ..] = arguments.as_slice()
        && word == WORD
    {
        return match monitor(own.first().and_then(|own| own.parse().ok())) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                println!("error {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let missing = lab::missing();
    let trials = TESTS.iter().map(|(name, test)| {
        let trial = Trial::test(*name, move || test().map_err(|error| Failed::from(format!("{error:#}"))));
        match &missing {
            Some(reason) => trial.with_kind(reason.clone()).with_ignored_flag(true),
            None => trial,
        }
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// Prints a line for every state, numbered.
fn monitor(own: Option<u32>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut monitor = LinkMonitor::new(own)?;
        let mut state = monitor.state().clone();
        for number in 0.. {
            println!("{number}: {}", line(&state));
            state = monitor.changed().await?;
        }
        Ok(())
    })
}

fn line(state: &LinkState) -> String {
    let addresses: Vec<_> = state.addresses.iter().map(ToString::to_string).collect();
    format!("[{}] v4={} v6={}", addresses.join(" "), state.has_default_v4, state.has_default_v6)
}

/// A monitor in a host, and what it said so far.
struct Watcher {
    process: Process,
    said: usize,
}

impl Watcher {
    fn start(host: &Node, own: &str) -> Result<Self> {
        let program = std::env::current_exe()?;
        let process = host.spawn(&[&program.to_string_lossy(), WORD, own])?;
        Ok(Self { process, said: 0 })
    }

    /// The next state must be this one.
    fn expect(&mut self, expected: &str) -> Result<()> {
        let start = format!("{}: ", self.said);
        let said = self.process.wait_for(&start, LONG)?;
        ensure!(said[start.len()..] == *expected, "{said:?} and not {expected:?}");
        self.said += 1;
        Ok(())
    }

    /// This state must come, and may have others on the way to it.
    fn reach(&mut self, expected: &str) -> Result<()> {
        loop {
            let start = format!("{}: ", self.said);
            let said = self.process.wait_for(&start, LONG)?;
            self.said += 1;
            if said[start.len()..] == *expected {
                return Ok(());
            }
        }
    }
}

const LOOPBACK: &str = "127.0.0.1 ::1";

fn links_come_and_go() -> Result<()> {
    let mut lab = Lab::new()?;
    let (host, other) = (lab.node("host")?, lab.node("other")?);
    let mut watcher = Watcher::start(&host, "")?;
    watcher.expect(&format!("[{LOOPBACK}] v4=false v6=false"))?;

    let addresses = &["198.51.100.9/24", "192.0.2.1/24", "2001:db8::1/64", "fe80::7/64"];
    lab.cable((&host, "eth0", addresses), (&other, "eth0", &[]))?;
    watcher.reach("[127.0.0.1 192.0.2.1 198.51.100.9 ::1 2001:db8::1] v4=false v6=false")?;
    host.run(&["ip", "addr", "del", "198.51.100.9/24", "dev", "eth0"])?;
    watcher.expect("[127.0.0.1 192.0.2.1 ::1 2001:db8::1] v4=false v6=false")?;

    // The cable is pulled at the far end: the address stays, and is of no use. Then it is back.
    other.run(&["ip", "link", "set", "eth0", "down"])?;
    watcher.expect(&format!("[{LOOPBACK}] v4=false v6=false"))?;
    // Routes that are none of the default ones, and links without addresses, are not said.
    host.route("blackhole 203.0.113.0/24")?;
    lab.cable((&host, "spare", &[]), (&other, "spare", &[]))?;
    other.run(&["ip", "link", "set", "eth0", "up"])?;
    watcher.expect("[127.0.0.1 192.0.2.1 ::1 2001:db8::1] v4=false v6=false")?;
    host.run(&["ip", "link", "del", "eth0"])?;
    watcher.expect(&format!("[{LOOPBACK}] v4=false v6=false"))
}

fn our_own_does_not_count() -> Result<()> {
    let mut lab = Lab::new()?;
    let (host, other) = (lab.node("host")?, lab.node("other")?);
    lab.cable((&host, "mesh0", &["100.64.0.1/32"]), (&other, "mesh0", &[]))?;
    let description = host.run(&["ip", "-o", "link", "show", "mesh0"])?;
    let (index, _) = description.split_once(':').context("no number")?;
    let mut watcher = Watcher::start(&host, index)?;
    watcher.expect(&format!("[{LOOPBACK}] v4=false v6=false"))?;
    host.run(&["ip", "addr", "add", "100.64.0.2/32", "dev", "mesh0"])?;
    host.run(&["ip", "route", "add", "default", "dev", "mesh0"])?;
    host.run(&["ip", "route", "add", "default", "dev", "mesh0", "table", "52"])?;
    // The first thing that is said is of the other one.
    lab.cable((&host, "eth0", &["192.0.2.1/24"]), (&other, "eth0", &[]))?;
    watcher.expect("[127.0.0.1 192.0.2.1 ::1] v4=false v6=false")
}

fn default_routes_count() -> Result<()> {
    let mut lab = Lab::new()?;
    let (host, other) = (lab.node("host")?, lab.node("other")?);
    lab.cable((&host, "eth0", &["192.0.2.1/24", "2001:db8::1/64"]), (&other, "eth0", &[]))?;
    let with = |v4, v6| format!("[127.0.0.1 192.0.2.1 ::1 2001:db8::1] v4={v4} v6={v6}");
    let mut watcher = Watcher::start(&host, "")?;
    watcher.expect(&with(false, false))?;
    host.route("default via 192.0.2.254")?;
    watcher.expect(&with(true, false))?;
    host.route("default via 2001:db8::ffff")?;
    watcher.expect(&with(true, true))?;
    // One that says "nowhere" and is better.
    host.run(&["ip", "-6", "route", "add", "unreachable", "default", "metric", "1"])?;
    watcher.expect(&with(true, false))?;
    host.run(&["ip", "-4", "route", "del", "default"])?;
    watcher.expect(&with(false, false))?;
    let all = watcher.process.output();
    ensure!(all.lines().count() == watcher.said, "more was said: {all}");
    Ok(())
}
