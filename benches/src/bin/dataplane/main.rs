//! Compares our agent with other user-space WireGuard data planes, all in one run: `cargo run --release -p benches --bin
//! dataplane`.
//!
//! Each driver carries a tunnel between two network namespaces joined by one veth pair (GRO on). Rounds are
//! interleaved: every driver once, then again. Figures are medians over the rounds, ratios are taken inside a round.
//! Needs root, iperf3, wg, and ping; `--install` builds the other programs from their registries into `target/peers`.

mod drivers;
mod measure;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use benches::{
    lab,
    report::{self, figure, median, note},
};
use clap::Parser;

use drivers::Driver;
use measure::{Figures, measure};

const NAME: &str = "dataplane";

/// Compare our agent with other user-space WireGuard data planes.
#[derive(Debug, Parser)]
#[command(name = NAME)]
struct Arguments {
    /// How often every driver is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Seconds of each transfer.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Build the other programs first, from crates.io and the Go module proxy.
    #[arg(long)]
    install: bool,
    /// Measure these alone, by name.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

fn main() -> ExitCode {
    report::run(NAME, || run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    if let Some(reason) = lab::missing() {
        anyhow::bail!("{reason}");
    }
    for program in ["iperf3", "wg", "ethtool"] {
        ensure!(lab::find(program).is_some(), "needs the program {program}");
    }
    if arguments.install {
        drivers::install()?;
    }
    let (present, absent): (Vec<_>, Vec<_>) = Driver::all()?.into_iter().partition(Driver::is_present);
    for driver in absent {
        note(NAME, &format!("{} is left out: no {} (--install builds it)", driver.name, driver.program.display()));
    }
    let chosen: Vec<_> = present
        .into_iter()
        .filter(|driver| arguments.only.is_empty() || arguments.only.iter().any(|name| name == driver.name))
        .collect();
    ensure!(!chosen.is_empty(), "nothing to measure");

    let mut rounds: Vec<Vec<Figures>> = Vec::new();
    for round in 1..=arguments.rounds {
        let mut figures = Vec::new();
        for driver in &chosen {
            note(NAME, &format!("round {round}: {}", driver.name));
            let measured = measure(driver, arguments.seconds)?;
            note(NAME, &format!("{measured:?}"));
            figures.push(measured);
        }
        rounds.push(figures);
    }
    print_table(&chosen, &rounds);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "this is what the program has to say")]
fn print_table(drivers: &[Driver], rounds: &[Vec<Figures>]) {
    let columns = Figures::COLUMNS;
    let names = columns.map(|(name, _)| name);
    let head = report::head(&[["driver"].as_slice(), &names].concat());
    println!("{head}");
    for (index, driver) in drivers.iter().enumerate() {
        let cells = columns.map(|(_, get)| figure(median(rounds.iter().map(|round| get(&round[index])))));
        println!("| {} | {} |", driver.name, cells.join(" | "));
    }
    println!();
    println!("Ratios to {} inside a round, median:", drivers[0].name);
    println!();
    println!("{head}");
    for (index, driver) in drivers.iter().enumerate().skip(1) {
        let cells = columns.map(|(_, get)| {
            let ratios = rounds.iter().map(|round| get(&round[index]) / get(&round[0]));
            format!("{:.2}x", median(ratios))
        });
        println!("| {} | {} |", driver.name, cells.join(" | "));
    }
}
