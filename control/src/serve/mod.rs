//! The shell: what touches the operating system. Not part of the pure half, so the bans on clocks, sockets and the
//! environment do not hold here.
//!
//! One task owns the coordinator (`desk`); everybody else asks it. A connection is accepted (`listen`), asks for a page
//! or for the way into Noise (`pages`), and then speaks HTTP/2 inside Noise (`machine_api`). An open map is rendered
//! and written apart from the owner (`map_stream`, `render_pool`). What is decided is stored before it is told
//! (`sql`). Those who run the server talk to it through a socket (`socket`, `cli`).
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

mod cli;
mod config;
mod daemon;
mod desk;
mod identity;
mod journal;
mod limits;
mod listen;
mod machine_api;
mod map_stream;
mod metrics;
mod objects;
mod pages;
mod pass;
mod relays;
mod render_pool;
pub mod simulated;
mod socket;
mod sql;
mod table;
mod text;
mod websocket;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use transports::program::{self, Failure, runtime, wants_json};

use cli::{KeysVerb, NodesVerb, PolicyVerb, UsersVerb};
use config::{Config, Settings};

const NAME: &str = "mesh-control";

/// Runs the program with the arguments of the process.
#[must_use]
pub fn run() -> ExitCode {
    program::run(NAME, wants_json(), || act(Arguments::try_parse()).map_err(|failure| failure.or_see_help(NAME)))
}

fn act(arguments: Result<Arguments, clap::Error>) -> Result<(), Failure> {
    let Arguments { json, socket, verb } = match arguments {
        Ok(arguments) => arguments,
        Err(error) => return Failure::of_arguments(&error).map_or(Ok(()), Err),
    };
    match verb {
        Verb::Serve(flags) => daemon::serve(&flags, &socket),
        Verb::Users { verb } => wait(cli::users(verb, &socket, json)),
        Verb::Keys { verb } => wait(cli::keys(verb, &socket, json)),
        Verb::Nodes { verb } => wait(cli::nodes(verb, &socket, json)),
        Verb::Policy { verb } => wait(cli::policy(verb, &socket, json)),
        Verb::Completion { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), NAME, &mut std::io::stdout());
            Ok(())
        }
    }
}

fn wait(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    runtime()?.block_on(work)
}

/// The coordination server of a mesh VPN.
#[derive(Debug, Parser)]
#[command(name = NAME, version = env!("MESH_VERSION"))]
struct Arguments {
    /// Print answers and errors as JSON on standard output
    #[arg(long, global = true)]
    json: bool,
    /// The socket for those who run the server
    #[arg(long, global = true, value_name = "PATH", default_value = config::SOCKET, env = "MESH_CONTROL_SOCKET")]
    socket: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve until SIGTERM or SIGINT
    Serve(Box<Flags>),
    /// Users
    Users {
        #[command(subcommand)]
        verb: UsersVerb,
    },
    /// Auth keys
    Keys {
        #[command(subcommand)]
        verb: KeysVerb,
    },
    /// Nodes
    Nodes {
        #[command(subcommand)]
        verb: NodesVerb,
    },
    /// The policy
    Policy {
        #[command(subcommand)]
        verb: PolicyVerb,
    },
    /// Print a completion script
    Completion {
        /// For which shell
        shell: Shell,
    },
}

#[derive(Debug, Args)]
#[command(
    after_help = "Each setting can be given in the environment too, as MESH_CONTROL_LISTEN for --listen (MESH_LOG for \
                        --log), and in the file of --config, as listen = \"ADDR\". Flags win over the environment, and the \
                        environment over the file."
)]
struct Flags {
    /// TOML file with these settings
    #[arg(long, value_name = "FILE", env = "MESH_CONTROL_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

impl Flags {
    fn config(&self) -> Result<Config, Failure> {
        Config::gather(&self.settings, self.config.as_deref())
    }
}
