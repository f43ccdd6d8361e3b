//! `mesh`, the command line.

use std::process::ExitCode;

use mesh_agent::cli;
use transports::program::{self, Failure, runtime, wants_json};

fn main() -> ExitCode {
    program::run("mesh", wants_json(), run)
}

fn run() -> Result<(), Failure> {
    let Some(arguments) = cli::arguments()? else { return Ok(()) };
    runtime()?.block_on(cli::run(arguments))
}
