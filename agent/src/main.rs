//! `meshd`, the daemon.

use std::{panic::AssertUnwindSafe, process::ExitCode};

use clap::{CommandFactory, Parser};
use mesh_agent::{
    daemon::{
        self,
        config::{Arguments, Config, Verb},
    },
    failure::{Exit, Failure},
    logging,
};

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return Failure::of_arguments(&error, "meshd").map_or(ExitCode::SUCCESS, |failure| end(&failure)),
    };
    if let Some(Verb::Completion { shell }) = arguments.command {
        clap_complete::generate(shell, &mut Arguments::command(), "meshd", &mut std::io::stdout());
        return ExitCode::SUCCESS;
    }
    // Unwinding lets drops take back what was done to the host.
    match std::panic::catch_unwind(AssertUnwindSafe(|| run(arguments))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => end(&failure),
        Err(_) => ExitCode::from(Exit::Bug as u8),
    }
}

fn end(failure: &Failure) -> ExitCode {
    #[expect(clippy::print_stderr, reason = "the one sentence that a failed start owes")]
    {
        eprintln!("meshd: {failure}");
    }
    ExitCode::from(failure)
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let config = Config::new(arguments)?;
    logging::init(&config.log, config.log_format)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Bug, "runtime", format!("cannot start: {error}")))?;
    let result = runtime.block_on(daemon::run(config));
    // A name look-up may still hold a thread; it is not worth waiting for.
    runtime.shutdown_background();
    result
}
