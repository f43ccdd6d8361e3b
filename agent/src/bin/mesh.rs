//! `mesh`, the command line.

use std::process::ExitCode;

use mesh_agent::{
    cli,
    failure::{Exit, Failure},
};

fn main() -> ExitCode {
    let json = std::env::args_os().skip(1).take_while(|argument| argument != "--").any(|argument| argument == "--json");
    match std::panic::catch_unwind(run) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => {
            #[expect(clippy::print_stdout, clippy::print_stderr, reason = "what a failure owes to people and scripts")]
            {
                if json {
                    println!("{}", failure.to_json());
                }
                eprintln!("mesh: {failure}");
            }
            ExitCode::from(&failure)
        }
        Err(_) => ExitCode::from(Exit::Bug as u8),
    }
}

fn run() -> Result<(), Failure> {
    let Some(arguments) = cli::arguments()? else { return Ok(()) };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Bug, "runtime", format!("cannot start: {error}")))?;
    runtime.block_on(cli::run(arguments))
}
