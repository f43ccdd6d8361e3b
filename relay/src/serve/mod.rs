//! The shell: what touches the operating system. Not part of the pure half, so the bans on clocks, sockets and the
//! environment do not hold here.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

const HINT: &str = "nodes with static peers reach each other over UDP: give at least one of each pair an address that the other can reach";

const NAME: &str = "mesh-relay";

/// Usage or configuration is wrong, or names something that this build does not have.
const EXIT_USAGE: u8 = 2;

/// Runs the program with the arguments of the process.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.verb {
        Verb::Completion { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), NAME, &mut std::io::stdout());
            ExitCode::SUCCESS
        }
        Verb::Other(words) => {
            let message = format!("this build cannot run \"{}\" yet: it has no listeners", words.join(" "));
            report(&message, arguments.json);
            ExitCode::from(EXIT_USAGE)
        }
    }
}

/// The relay of a mesh VPN. This build holds its pure half alone.
#[derive(Debug, Parser)]
#[command(name = NAME, version = env!("MESH_VERSION"))]
struct Arguments {
    /// Print errors as JSON on standard output as well.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print a completion script.
    Completion {
        /// For which shell.
        shell: Shell,
    },
    /// Anything else, to be named in the refusal.
    #[command(external_subcommand)]
    Other(Vec<String>),
}

#[expect(clippy::print_stderr, clippy::print_stdout, reason = "this is what the program has to say")]
fn report(message: &str, json: bool) {
    eprintln!("{NAME}: {message}; {HINT}");
    if json {
        let error = serde_json::json!({ "error": { "code": "not_available", "message": message, "hint": HINT } });
        println!("{error}");
    }
}
