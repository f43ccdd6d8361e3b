//! How the programs that compare and measure end, and say what they found.

use std::process::ExitCode;

use anyhow::Result;

/// Runs a program; what went wrong is its last line.
#[expect(clippy::print_stderr, reason = "this is what the program has to say")]
pub fn run(program: &str, work: impl FnOnce() -> Result<()>) -> ExitCode {
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Says how far a program is.
#[expect(clippy::print_stderr, reason = "progress")]
pub fn note(program: &str, line: &str) {
    eprintln!("{program}: {line}");
}

/// The first two lines of a table in Markdown.
#[must_use]
pub fn head(columns: &[&str]) -> String {
    format!("| {} |\n|{}", columns.join(" | "), "---|".repeat(columns.len()))
}

/// A figure with as many digits as mean something.
#[must_use]
pub fn figure(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// The middle one, or the mean of the two in the middle.
///
/// # Panics
/// Without values.
#[must_use]
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}
