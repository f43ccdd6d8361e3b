//! The shell: what touches the operating system. Not part of the pure half, so the bans on clocks, sockets and the
//! environment do not hold here.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::process::ExitCode;

use clap::Parser;

/// Usage or configuration is wrong, or names something that this build does not have.
const EXIT_USAGE: u8 = 2;

/// Runs the program with the arguments of the process.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let message = format!(
        "this build of mesh-control cannot run \"{}\" yet: it has no coordination server",
        arguments.command.join(" ")
    );
    report(
        &message,
        "static peers need no coordination server: give each node a file with meshd --static",
        arguments.json,
    );
    ExitCode::from(EXIT_USAGE)
}

/// The coordination server of a mesh VPN. This build holds its shape alone.
#[derive(Debug, Parser)]
#[command(name = "mesh-control", version = env!("MESH_VERSION"))]
struct Arguments {
    /// Print errors as JSON on standard output as well.
    #[arg(long, global = true)]
    json: bool,
    /// A verb and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[expect(clippy::print_stderr, clippy::print_stdout, reason = "this is what the program has to say")]
fn report(message: &str, hint: &str, json: bool) {
    eprintln!("mesh-control: {message}; {hint}");
    if json {
        let error = serde_json::json!({ "error": { "code": "not_available", "message": message, "hint": hint } });
        println!("{error}");
    }
}
