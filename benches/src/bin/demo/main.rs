//! `cargo demo`: a control server, a relay and two homes behind their routers on this machine, in network namespaces with
//! real kernel NATs. Two agents join with a key, speak over the relay and then directly; the policy denies and allows
//! again; control goes away and comes back. Then the simulator tells the same, and both stand side by side.
//!
//! Needs root, nftables and /dev/net/tun for the first half; without them it says so and runs the second.
//! Leaves the host as it was, also after Ctrl-C.

mod figures;
mod heard;
mod host;
mod kernel;
#[path = "../../netns.rs"]
mod netns;
mod simulated;
mod traffic;

use std::{
    io::Write,
    net::SocketAddr,
    process::{Command, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use benches::report;
use clap::{Parser, Subcommand};

/// Set by SIGINT and SIGTERM; whoever waits looks at it.
static STOPPED: AtomicBool = AtomicBool::new(false);

/// Two homes, their routers, a relay and a control server, then the same in the simulator.
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Arguments {
    /// End with one line of JSON.
    #[arg(long)]
    json: bool,
    /// Use the programs beside this one instead of building them in release mode.
    #[arg(long)]
    no_build: bool,
    /// Seconds that the TCP transfer takes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
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
}

fn main() -> ExitCode {
    report::run("demo", || run(Arguments::parse()))
}

fn run(arguments: Arguments) -> Result<()> {
    match arguments.helper {
        Some(Helper::Sink { listen }) => return traffic::sink(listen),
        Some(Helper::Source { to, seconds }) => return traffic::source(to, Duration::from_secs(seconds)),
        None => {}
    }
    stop_on_signals();
    if !arguments.no_build {
        build()?;
    }
    let story = Story::begin();
    let kernel = match kernel::why_not() {
        None => Some(on_the_kernel(&story, arguments.transfer_seconds)?),
        Some(reason) => {
            story.say("kernel", &format!("left out: {reason}"));
            None
        }
    };
    let simulated = simulated::tell(&story)?;
    figures::table(kernel.as_ref(), &simulated).iter().for_each(|line| tell_line(line));
    tell_line("First ping: on the kernel the agents' own; in the simulator it shakes hands first.");
    if arguments.json {
        tell_line(&figures::summary(kernel.as_ref(), &simulated).to_string());
    }
    Ok(())
}

/// Tells the story on the kernel, and sees to it that the host is as before.
fn on_the_kernel(story: &Story, transfer_seconds: u64) -> Result<figures::Figures> {
    let before = host::Snapshot::take();
    let told = kernel::tell(story, transfer_seconds);
    let changed = before.differences(&host::Snapshot::take());
    if !changed.is_empty() {
        bail!("the demo changed this host, which is a bug: {}", changed.join(", "));
    }
    story.say("host", "addresses, routes, rules, nft, sysctls and /etc are as they were");
    // The programs of the lab are interrupted too, so that what failed first may be anything.
    if is_stopped() {
        bail!("interrupted; everything is taken down");
    }
    told
}

/// Builds the programs in release mode, with Cargo's own progress. They lie beside this one.
fn build() -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--package", "agent", "--package", "control", "--package", "relay", "--bins"])
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("the programs could not be built");
    }
    Ok(())
}

/// Prints what happens, with the time since the story began.
struct Story(Instant);

impl Story {
    fn begin() -> Self {
        Self(Instant::now())
    }

    fn say(&self, who: &str, what: &str) {
        tell_line(&format!("[{:7.3}s] {who:<11} {what}", self.0.elapsed().as_secs_f64()));
    }
}

/// Somebody who pipes the story into `head` has seen enough; the lab is taken down all the same.
fn tell_line(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
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
