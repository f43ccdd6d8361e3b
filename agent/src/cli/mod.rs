//! The command line `mesh`.
//!
//! Verbs and their output are those of the stock client. Names of peers are looked up among those that the daemon
//! knows, here.

mod debug;
mod netcheck;
mod ping;
mod status;
mod up;
mod whois;

use core::time::Duration;
use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand};
use mesh_core::{key::NodePublic, printable};
use transports::program::{Exit, Failure};

use crate::local_api::{
    SOCKET,
    client::Client,
    status::{Member, Status},
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
    /// Connect this host to the network of a control server
    Up(up::Arguments),
    /// Change preferences; those that are not given stay
    Set(up::Flags),
    /// Disconnect, and stay signed in
    Down,
    /// Disconnect and sign out: this node is no more
    Logout,
    /// Look at the network around this host: NAT, addresses, relays
    Netcheck(netcheck::Arguments),
    /// Say who has an overlay address
    Whois {
        /// Overlay address, with or without a port
        address: String,
    },
}

/// Reads the arguments; help and version are printed at once.
///
/// # Errors
/// When they are wrong.
pub fn arguments() -> Result<Option<Arguments>, Failure> {
    match Arguments::try_parse() {
        Ok(arguments) => Ok(Some(arguments)),
        Err(error) => Failure::of_arguments(&error).map_or(Ok(None), |failure| Err(failure.or_see_help("mesh"))),
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
                let short = env!("CARGO_PKG_VERSION");
                let cap = mesh_core::control::CAPABILITY_VERSION;
                print_object(
                    serde_json::json!({"majorMinorPatch": short, "short": short, "long": crate::VERSION, "cap": cap}),
                );
            } else {
                print(crate::VERSION);
            }
            Ok(())
        }
        Verb::Completion { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "mesh", &mut std::io::stdout());
            Ok(())
        }
        Verb::Up(arguments) => up::up(&client, json, &arguments).await,
        Verb::Set(flags) => up::set(&client, &flags).await,
        Verb::Down => client.post::<serde_json::Value>("down").await.map(drop),
        Verb::Logout => client.post::<serde_json::Value>("logout").await.map(drop),
        Verb::Netcheck(netcheck) => netcheck::run(&client, json, &netcheck).await,
        Verb::Whois { address } => whois::run(&client, json, &address).await,
    }
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
        print_object(serde_json::json!(addresses));
    } else {
        addresses.iter().for_each(print);
    }
    Ok(())
}

/// The peer that `name` names: a MagicDNS name or its first label, the name that it gives itself, an overlay address, or
/// a public key.
fn find<'s>(status: &'s Status, name: &str) -> Result<&'s Member, Failure> {
    let (address, key) = (name.parse().ok(), key(name));
    let dotless = name.trim_end_matches('.');
    let by_dns = |peer: &&Member| {
        let full = peer.dns_name.trim_end_matches('.');
        !full.is_empty() && (full.eq_ignore_ascii_case(dotless) || peer.short_name().eq_ignore_ascii_case(name))
    };
    let by_number = |peer: &&Member| {
        Some(peer.public_key) == key
            || address.is_some_and(|address| peer.allowed_ips.iter().any(|prefix| prefix.contains(address)))
    };
    let peers = || status.peer.values();
    let mut found: Vec<_> = peers().filter(|peer| by_dns(peer) || by_number(peer)).collect();
    if found.is_empty() && !name.is_empty() {
        // What nodes call themselves is theirs to choose, so it counts last.
        found = peers().filter(|peer| peer.host_name.eq_ignore_ascii_case(name)).collect();
    }
    match found.as_slice() {
        [peer] => Ok(peer),
        [one, other, ..] => {
            let message = format!("{name} may be {} or {}", one.dns_name, other.dns_name);
            Err(Failure::new(Exit::Refused, "ambiguous", message).hint("say the whole name"))
        }
        [] => Err(Failure::new(Exit::Refused, "no-peer", format!("no peer has the name, address or key {name}"))
            .hint("mesh status lists all peers")),
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

/// A number with a unit: `ms`, `s`, `m`.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let unit = match unit {
        "ms" => 1,
        "s" | "" => 1_000,
        "m" => 60_000,
        _ => return Err("expected a time such as 5s, 500ms or 1m".to_owned()),
    };
    let number: u32 = digits.parse().map_err(|_| "expected a time such as 5s, 500ms or 1m".to_owned())?;
    Ok(Duration::from_millis(u64::from(number) * unit))
}

/// One line on stdout.
fn print(line: impl core::fmt::Display) {
    put(&shown(line));
}

/// A line as it is shown: much of it was said by others, so nothing in it steers the terminal.
fn shown(line: impl core::fmt::Display) -> String {
    printable::line(&line.to_string()).into_owned()
}

/// An object on stdout, on one line or on several.
fn print_object(json: impl core::fmt::Display) {
    put(&printable::json(&json.to_string()));
}

/// A reader that is gone ends the program quietly, as it does with other tools.
fn put(text: &str) {
    use std::io::Write;
    if writeln!(std::io::stdout().lock(), "{text}").is_err() {
        std::process::exit(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("2"), Ok(Duration::from_secs(2)));
        for text in ["", "s", "-1s", "1h", "1.5s", "99999999999s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
