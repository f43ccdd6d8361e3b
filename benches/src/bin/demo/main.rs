//! `cargo demo`: two homes and a NAT router on this machine, in network namespaces with a real kernel NAT; then the same
//! story in the simulator, twice, to show that a seed repeats.
//!
//! Needs root, nftables and /dev/net/tun for the first half; without them it says so and runs the second. Leaves the host
//! as it was, also after Ctrl-C.

mod host;
mod kernel;
mod simulated;
mod traffic;

use std::{
    io::Write,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use serde_json::{Map, Value};

/// Set by SIGINT and SIGTERM; whoever waits looks at it.
static STOPPED: AtomicBool = AtomicBool::new(false);

/// Two homes and a NAT router, then the same in the simulator.
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Arguments {
    /// End with one line of JSON.
    #[arg(long)]
    json: bool,
    /// Use the programs in this folder instead of building them in release mode.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Seconds that the TCP transfer takes.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    transfer_seconds: u64,
    #[command(subcommand)]
    helper: Option<Helper>,
}

/// What the demo starts inside the namespaces.
#[derive(Debug, Subcommand)]
enum Helper {
    /// Take a TCP transfer.
    #[command(hide = true)]
    Sink { listen: SocketAddr },
    /// Send a TCP transfer.
    #[command(hide = true)]
    Source { to: SocketAddr, seconds: u64 },
    /// Send UDP datagrams back.
    #[command(hide = true)]
    Echo { listen: SocketAddr },
    /// Send a probe every 20 ms and print the answers.
    #[command(hide = true)]
    Probe { to: SocketAddr },
}

#[expect(clippy::print_stderr, reason = "this is what the program has to say")]
fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    match arguments.helper {
        Some(Helper::Sink { listen }) => return traffic::sink(listen),
        Some(Helper::Source { to, seconds }) => return traffic::source(to, Duration::from_secs(seconds)),
        Some(Helper::Echo { listen }) => return traffic::echo(listen),
        Some(Helper::Probe { to }) => return traffic::probe(to),
        None => {}
    }
    stop_on_signals();
    let programs = match arguments.programs {
        Some(folder) => folder.canonicalize().with_context(|| format!("no folder {}", folder.display()))?,
        None => build()?,
    };
    let story = Story::begin();
    let mut results = Map::new();

    match kernel::why_not() {
        None => {
            let before = host::Snapshot::take();
            let told = kernel::tell(&story, &programs, arguments.transfer_seconds, &mut results);
            let changed = before.differences(&host::Snapshot::take());
            if !changed.is_empty() {
                bail!("the demo changed this host, which is a bug: {}", changed.join(", "));
            }
            told?;
            story.say("host", "addresses, routes, rules, nft, sysctls and /etc are as they were");
            results.insert("mode".into(), "kernel".into());
        }
        Some(reason) => {
            story.say("kernel", &format!("left out: {reason}"));
            results.insert("mode".into(), "simulator".into());
        }
    }
    simulated::tell(&story, &programs, &mut results)?;
    if arguments.json {
        print_json(&results);
    }
    Ok(())
}

/// Builds the programs in release mode, with Cargo's own progress, and says where they are.
fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--package", "agent", "--package", "sim", "--bins"])
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("the programs could not be built");
    }
    let own = std::env::current_exe().context("cannot find the demo's own program")?;
    own.parent().map(PathBuf::from).context("the demo's program is in no folder")
}

/// Prints what happens, with the time since the story began.
struct Story(Instant);

impl Story {
    fn begin() -> Self {
        Self(Instant::now())
    }

    fn say(&self, who: &str, what: &str) {
        // Somebody who pipes the story into `head` has seen enough; the lab is taken down all the same.
        let _ = writeln!(std::io::stdout(), "[{:7.3}s] {who:<9} {what}", self.0.elapsed().as_secs_f64());
    }
}

#[expect(clippy::print_stdout, reason = "this is what the program has to say")]
fn print_json(results: &Map<String, Value>) {
    println!("{}", Value::Object(results.clone()));
}

fn is_stopped() -> bool {
    STOPPED.load(Ordering::SeqCst)
}

/// On the first SIGINT or SIGTERM the story ends at its next step and everything is taken down.
#[expect(unsafe_code, reason = "std has no signal handlers")]
fn stop_on_signals() {
    extern "C" fn stop(_signal: libc::c_int) {
        STOPPED.store(true, Ordering::SeqCst);
    }
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { libc::signal(signal, stop as *const () as libc::sighandler_t) };
    }
}
