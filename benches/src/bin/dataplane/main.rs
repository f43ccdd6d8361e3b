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
use benches::lab;
use clap::Parser;

use drivers::Driver;
use measure::{Figures, measure};

/// Compare our agent with other user-space WireGuard data planes.
#[derive(Debug, Parser)]
#[command(name = "dataplane")]
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

#[expect(clippy::print_stderr, reason = "this is what the program has to say")]
fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dataplane: {error:#}");
            ExitCode::FAILURE
        }
    }
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
        note(&format!("{} is left out: no {} (--install builds it)", driver.name, driver.program.display()));
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
            note(&format!("round {round}: {}", driver.name));
            figures.push(measure(driver, arguments.seconds)?);
        }
        rounds.push(figures);
    }
    print_table(&chosen, &rounds);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "this is what the program has to say")]
fn print_table(drivers: &[Driver], rounds: &[Vec<Figures>]) {
    let columns = Figures::COLUMNS;
    println!("| driver | {} |", columns.map(|(name, _)| name).join(" | "));
    println!("|---|{}", "---|".repeat(columns.len()));
    for (index, driver) in drivers.iter().enumerate() {
        let cells = columns.map(|(_, get)| format_figure(median(rounds.iter().map(|round| get(&round[index])))));
        println!("| {} | {} |", driver.name, cells.join(" | "));
    }
    println!();
    println!("Ratios to {} inside a round, median:", drivers[0].name);
    println!();
    println!("| driver | {} |", columns.map(|(name, _)| name).join(" | "));
    println!("|---|{}", "---|".repeat(columns.len()));
    for (index, driver) in drivers.iter().enumerate().skip(1) {
        let cells = columns.map(|(_, get)| {
            let ratios = rounds.iter().map(|round| get(&round[index]) / get(&round[0]));
            format!("{:.2}x", median(ratios))
        });
        println!("| {} | {} |", driver.name, cells.join(" | "));
    }
}

fn format_figure(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

#[expect(clippy::print_stderr, reason = "progress")]
fn note(line: &str) {
    eprintln!("dataplane: {line}");
}
