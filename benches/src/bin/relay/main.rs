//! Compares our relay with the published one, in one run: `cargo run --release -p benches --bin relay-bench`.
//!
//! Clients in pairs send paced packets through a relay over the loopback, from little to far more than it carries; then
//! many idle clients are held. Rounds are interleaved: each relay once, then again. Figures are medians over the rounds.
//! The generator runs on the same cores as the relay, so a peak is that of both together, and CPU seconds are the relay's
//! alone. Needs the release build of mesh-relay, and Go for the published one.

mod client;
mod load;
mod server;

use std::process::ExitCode;

use anyhow::Result;
use benches::report::{self, figure, median, note};
use clap::Parser;

use load::{Carried, Idle};
use server::Server;

const NAME: &str = "relay-bench";

/// Compare our relay with the published one.
#[derive(Debug, Parser)]
#[command(name = NAME)]
struct Arguments {
    /// How often every relay is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Seconds of each load.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Pairs of clients.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=50))]
    pairs: u32,
    /// Bytes of a packet.
    #[arg(long, default_value_t = 1400, value_parser = clap::value_parser!(u32).range(64..=16_000))]
    bytes: u32,
    /// Mbit/s offered by all pairs together.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 300, 600, 1000, 1500, 3000])]
    offered: Vec<u32>,
    /// Idle clients; 0 leaves them out.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(0..=9000))]
    idle: u32,
    /// Measure this one alone.
    #[arg(long)]
    only: Option<String>,
}

/// What one relay did in one round.
struct Figures {
    carried: Vec<Carried>,
    idle: Option<Idle>,
}

fn main() -> ExitCode {
    report::run(NAME, || run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    // Both ends of the idle clients are open files of this machine, one of each here.
    rlimit::increase_nofile_limit(u64::MAX)?;
    let mut kinds = server::kinds()?;
    kinds.retain(|kind| arguments.only.as_ref().is_none_or(|only| only == kind.name));
    anyhow::ensure!(!kinds.is_empty(), "nothing to measure");
    let mut rounds: Vec<Vec<Figures>> = kinds.iter().map(|_| Vec::new()).collect();
    for round in 1..=arguments.rounds {
        for (kind, figures) in kinds.iter().zip(&mut rounds) {
            let mut carried = Vec::new();
            for offered in &arguments.offered {
                let server = Server::start(kind)?;
                let load = load::Load {
                    pairs: arguments.pairs,
                    bytes: arguments.bytes as usize,
                    mbit: *offered,
                    seconds: arguments.seconds,
                };
                carried.push(load::carry(&server, &load)?);
                note(NAME, &format!("round {round}: {} at {offered}: {:?}", kind.name, carried.last()));
            }
            let idle = match arguments.idle {
                0 => None,
                clients => Some(load::hold(&Server::start(kind)?, clients)?),
            };
            note(NAME, &format!("round {round}: {} idle: {idle:?}", kind.name));
            figures.push(Figures { carried, idle });
        }
    }
    for (kind, figures) in kinds.iter().zip(&rounds) {
        print_table(kind.name, arguments, figures);
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "this is what the program has to say")]
fn print_table(name: &str, arguments: &Arguments, rounds: &[Figures]) {
    println!(
        "{name}: {} pairs, {} B, {} s, {} rounds",
        arguments.pairs,
        arguments.bytes,
        arguments.seconds,
        rounds.len()
    );
    let offered = arguments.offered.iter().map(u32::to_string);
    let columns: Vec<_> = core::iter::once("to offer Mbit/s".to_owned()).chain(offered).collect();
    println!("{}", report::head(&columns.iter().map(String::as_str).collect::<Vec<_>>()));
    for (row, get) in Carried::ROWS {
        let of_load = |index: usize| median(rounds.iter().map(|figures| get(&figures.carried[index])));
        let cells: Vec<_> = (0..arguments.offered.len()).map(|index| figure(of_load(index))).collect();
        println!("| {row} | {} |", cells.join(" | "));
    }
    if rounds.iter().all(|figures| figures.idle.is_some()) {
        let of_idle =
            |get: fn(&Idle) -> f64| median(rounds.iter().filter_map(|figures| figures.idle.as_ref()).map(get));
        println!(
            "{} idle clients: {} KiB each, {} connections/s",
            arguments.idle,
            figure(of_idle(|idle| idle.kib_each)),
            figure(of_idle(|idle| idle.connections_per_second)),
        );
    }
    println!();
}
