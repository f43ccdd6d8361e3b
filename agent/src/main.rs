//! `meshd`, the daemon.

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use mesh_agent::daemon::{
    self,
    config::{Arguments, Config, Verb},
};
use transports::program::{self, Failure, log, runtime};

const NAME: &str = "meshd";

fn main() -> ExitCode {
    program::run(NAME, false, || match Arguments::try_parse() {
        Ok(Arguments { command: Some(Verb::Completion { shell }), .. }) => {
            clap_complete::generate(shell, &mut Arguments::command(), NAME, &mut std::io::stdout());
            Ok(())
        }
        Ok(arguments) => run(arguments),
        Err(error) => Failure::of_arguments(&error).map_or(Ok(()), |failure| Err(failure.or_see_help(NAME))),
    })
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let config = Config::new(arguments)?;
    log(&config.log, config.log_format, "mesh_core::node=debug")?;
    let runtime = runtime()?;
    let result = runtime.block_on(daemon::run(config));
    // A name look-up may still hold a thread; it is not worth waiting for.
    runtime.shutdown_background();
    result
}
