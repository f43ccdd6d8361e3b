//! The command line `mesh`.
//!
//! Verbs and their output are those of the stock client. A verb that this build does not have says so rather than
//! being unknown, so that scripts see the difference between "not yet" and a typo.

mod debug;
mod netcheck;
mod ping;
mod status;

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};
use mesh_core::key::NodePublic;

use crate::{
    failure::{Exit, Failure},
    local_api::{
        SOCKET,
        client::Client,
        types::{Peer, Status},
    },
};

/// Talks to meshd.
#[derive(Debug, Parser)]
#[command(name = "mesh", version = crate::VERSION, about = "Member of a mesh VPN: the command line")]
pub struct Arguments {
    /// Unix socket of meshd
    #[arg(long, global = true, value_name = "PATH", env = "MESH_SOCKET", default_value = SOCKET)]
    pub socket: PathBuf,
    /// Print objects instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// What can be asked for.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show this node and its peers
    Status,
    /// Show overlay addresses of this node, or of a peer
    Ip {
        /// Only IPv4
        #[arg(short = '4', conflicts_with = "six")]
        four: bool,
        /// Only IPv6
        #[arg(short = '6')]
        six: bool,
        /// Name, overlay address or public key of a peer
        peer: Option<String>,
    },
    /// Ask a peer for a sign of life, and see which way it came
    Ping(ping::Arguments),
    /// Look inside
    Debug {
        /// At what
        #[command(subcommand)]
        what: debug::What,
    },
    /// Show the version
    Version,
    /// Print a completion script
    Completion {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Sign in to a control server (not available in this build)
    Up(Anything),
    /// Change preferences (not available in this build)
    Set(Anything),
    /// Disconnect (not available in this build)
    Down(Anything),
    /// Sign out (not available in this build)
    Logout(Anything),
    /// Look at the network around this host: NAT, addresses, relays
    Netcheck(netcheck::Arguments),
    /// Say who has an overlay address (not available in this build)
    Whois(Anything),
}

/// Arguments that are not looked at.
#[derive(Debug, Args)]
pub struct Anything {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    ignored: Vec<String>,
}

/// Reads the arguments; help and version are printed at once.
///
/// # Errors
/// When they are wrong.
pub fn arguments() -> Result<Option<Arguments>, Failure> {
    match Arguments::try_parse() {
        Ok(arguments) => Ok(Some(arguments)),
        Err(error) => Failure::of_arguments(&error, "mesh").map_or(Ok(None), Err),
    }
}

/// Does what is asked for.
///
/// # Errors
/// When the answer is no, or there is none.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let client = Client::new(&arguments.socket);
    let json = arguments.json;
    match arguments.verb {
        Verb::Status => status::run(&client, json).await,
        Verb::Ip { four, six, peer } => ip(&client, json, [!six, !four], peer.as_deref()).await,
        Verb::Ping(ping) => ping::run(&client, json, &ping).await,
        Verb::Debug { what } => debug::run(&client, json, &what).await,
        Verb::Version => {
            if json {
                print(serde_json::json!({"short": env!("CARGO_PKG_VERSION"), "long": crate::VERSION}));
            } else {
                print(crate::VERSION);
            }
            Ok(())
        }
        Verb::Completion { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "mesh", &mut std::io::stdout());
            Ok(())
        }
        Verb::Up(_) => Err(not_built("up")),
        Verb::Set(_) => Err(not_built("set")),
        Verb::Down(_) => Err(not_built("down")),
        Verb::Logout(_) => Err(not_built("logout")),
        Verb::Netcheck(netcheck) => netcheck::run(&client, json, &netcheck).await,
        Verb::Whois(_) => Err(not_built("whois")),
    }
}

/// For verbs that later builds have.
fn not_built(verb: &str) -> Failure {
    Failure::new(Exit::Usage, "not-built", format!("\"mesh {verb}\" is not available in this build"))
        .hint("this build runs without a control server: meshd --static FILE or meshd --map FILE")
}

async fn ip(client: &Client, json: bool, [four, six]: [bool; 2], peer: Option<&str>) -> Result<(), Failure> {
    let status: Status = client.get("status").await?;
    let mut addresses = match peer {
        None => status.tailscale_ips,
        Some(name) => find(&status, name)?.tailscale_ips.clone(),
    };
    addresses.retain(|address| if address.is_ipv4() { four } else { six });
    if addresses.is_empty() {
        return Err(Failure::new(Exit::Refused, "no-address", "there is no such address"));
    }
    if json {
        print(serde_json::json!(addresses));
    } else {
        addresses.iter().for_each(print);
    }
    Ok(())
}

/// The peer that `name` names: a MagicDNS name or its first label, an overlay address, or a public key.
fn find<'s>(status: &'s Status, name: &str) -> Result<&'s Peer, Failure> {
    let address = name.parse().ok();
    let key = key(name);
    let is_named = |peer: &Peer| {
        let full = peer.dns_name.trim_end_matches('.');
        !full.is_empty()
            && (peer.host_name.eq_ignore_ascii_case(name) || full.eq_ignore_ascii_case(name.trim_end_matches('.')))
    };
    let mut found = status.peer.values().filter(|peer| {
        Some(peer.public_key) == key
            || address.is_some_and(|address| peer.allowed_ips.iter().any(|prefix| prefix.contains(address)))
            || is_named(peer)
    });
    match (found.next(), found.next()) {
        (Some(peer), None) => Ok(peer),
        (Some(one), Some(other)) => {
            let message = format!("{name} may be {} or {}", one.dns_name, other.dns_name);
            Err(Failure::new(Exit::Refused, "ambiguous", message).hint("say the whole name"))
        }
        (None, _) => {
            Err(Failure::new(Exit::Refused, "no-peer", format!("no peer has the name, address or key {name}"))
                .hint("mesh status lists all peers"))
        }
    }
}

/// A public key in either of its text forms.
fn key(text: &str) -> Option<NodePublic> {
    text.parse().ok().or_else(|| NodePublic::from_base64(text).ok())
}

/// The parameter that names a peer to the daemon. Names are looked up among the peers.
async fn peer_parameter(client: &Client, name: &str) -> Result<String, Failure> {
    if let Ok(address) = name.parse::<core::net::IpAddr>() {
        return Ok(format!("ip={address}"));
    }
    if let Some(key) = key(name) {
        return Ok(format!("peer={key}"));
    }
    let status: Status = client.get("status").await?;
    Ok(format!("peer={}", find(&status, name)?.public_key))
}

/// One line on stdout. A reader that is gone ends the program quietly, as it does with other tools.
fn print(line: impl core::fmt::Display) {
    use std::io::Write;
    if writeln!(std::io::stdout().lock(), "{line}").is_err() {
        std::process::exit(0);
    }
}
