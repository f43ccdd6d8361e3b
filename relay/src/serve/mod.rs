//! The shell: what touches the operating system. Not part of the pure half, so the bans on clocks, sockets and the
//! environment do not hold here.
//!
//! One thread for each core, each with its own listener on the same port and its own single-threaded runtime: a
//! connection stays where it was accepted. Threads meet only in the [`Hub`].
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

mod failure;
mod http;
mod identity;
mod link;
mod listen;
mod stream;
mod verify;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::{
    admission::Policy,
    hub::{Config, Hub},
};
use failure::{Exit, Failure};
use identity::Certificate;
use verify::Verifier;

const NAME: &str = "mesh-relay";

/// Runs the program with the arguments of the process.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.verb {
        Verb::Completion { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), NAME, &mut std::io::stdout());
            Ok(())
        }
        Verb::Serve(flags) => serve(&flags),
        Verb::DerpMap(flags) => derp_map(&flags),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(arguments.json),
    }
}

/// The relay of a mesh VPN: DERP and STUN.
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
    /// Relay until SIGTERM or SIGINT.
    Serve(Flags),
    /// Print the region to put into a DERP map.
    DerpMap(Flags),
    /// Print a completion script.
    Completion {
        /// For which shell.
        shell: Shell,
    },
}

#[derive(Debug, Args)]
struct Flags {
    /// Name or address under which clients find the relay.
    #[arg(long, env = "MESH_RELAY_HOST")]
    host: String,
    /// Where keys and the certificate are kept.
    #[arg(long, env = "MESH_RELAY_STATE_DIR", default_value = "/var/lib/mesh-relay")]
    state_dir: PathBuf,
    /// Address for clients, over TLS.
    #[arg(long, env = "MESH_RELAY_LISTEN", default_value = "0.0.0.0:443")]
    listen: SocketAddr,
    /// Address for STUN.
    #[arg(long, env = "MESH_RELAY_STUN_LISTEN", default_value = "0.0.0.0:3478")]
    stun_listen: SocketAddr,
    /// A certificate chain that somebody else takes care of, in PEM; it is not pinned.
    #[arg(long, env = "MESH_RELAY_TLS_CERT", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key, in PEM.
    #[arg(long, env = "MESH_RELAY_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// No TLS: for tests.
    #[arg(long, conflicts_with_all = ["tls_cert", "tls_key"])]
    no_tls: bool,
    /// Whom to ask who may connect: http://HOST[:PORT]/PATH.
    #[arg(long, env = "MESH_RELAY_VERIFY_URL", conflicts_with = "open")]
    verify_url: Option<String>,
    /// Let everybody connect.
    #[arg(long)]
    open: bool,
    /// Number of the region in a DERP map.
    #[arg(long, env = "MESH_RELAY_REGION_ID", default_value_t = 900, value_parser = clap::value_parser!(u16).range(1..))]
    region_id: u16,
    /// Short name of the region.
    #[arg(long, env = "MESH_RELAY_REGION_CODE", default_value = "mesh")]
    region_code: String,
    /// Address for metrics, over plain HTTP at /metrics. Not for strangers.
    #[arg(long, env = "MESH_RELAY_METRICS_LISTEN")]
    metrics_listen: Option<SocketAddr>,
    /// What to log.
    #[arg(long, env = "MESH_LOG", default_value = "info")]
    log: String,
}

impl Flags {
    fn certificate(&self) -> Result<Option<Certificate>, Failure> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(chain), Some(key)) => Certificate::read(chain, key).map(Some),
            _ if self.no_tls => Ok(None),
            _ => Certificate::load_or_make(&self.state_dir, &self.host).map(Some),
        }
    }
}

fn serve(flags: &Flags) -> Result<(), Failure> {
    let verifier = match (&flags.verify_url, flags.open) {
        (Some(url), _) => Some(Verifier::new(url)?),
        (None, true) => None,
        (None, false) => {
            return Err(Failure::new(Exit::Usage, "no-policy", "who may connect is not said")
                .hint("give --verify-url URL to ask a control server, or --open to let everybody connect"));
        }
    };
    log(&flags.log)?;
    let key = identity::load_or_make_key(&flags.state_dir)?;
    let certificate = flags.certificate()?;
    let seed = transports::entropy::seed()
        .map_err(|error| Failure::new(Exit::Bug, "entropy", format!("the system has no randomness: {error}")))?;
    let policy = if verifier.is_some() { Policy::Ask } else { Policy::Open };
    let hub = Arc::new(Hub::new(Config { key, policy, rate: None, seed }));
    let tls = certificate.map(|certificate| certificate.into_config(&hub.public)).transpose()?;
    let addresses = listen::Addresses { derp: flags.listen, stun: flags.stun_listen, metrics: flags.metrics_listen };
    listen::serve(&addresses, &hub, tls, verifier)
}

fn derp_map(flags: &Flags) -> Result<(), Failure> {
    let pin = match flags.certificate()? {
        // Checked by its name, as any other certificate of the web.
        Some(_) if flags.tls_cert.is_some() => None,
        certificate => certificate.map(|certificate| certificate.pin()),
    };
    let mut node = serde_json::json!({
        "Name": format!("{}a", flags.region_id),
        "RegionID": flags.region_id,
        "HostName": flags.host,
    });
    if let Some(pin) = pin {
        node["CertName"] = pin.into();
    }
    for ip in addresses_of(&flags.host) {
        let field = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        if node[field].is_null() {
            node[field] = ip.to_string().into();
        }
    }
    if flags.listen.port() != 443 {
        node["DERPPort"] = flags.listen.port().into();
    }
    if flags.stun_listen.port() != 3478 {
        node["STUNPort"] = flags.stun_listen.port().into();
    }
    if flags.no_tls {
        node["InsecureForTests"] = true.into();
    }
    let region = serde_json::json!({
        "RegionID": flags.region_id,
        "RegionCode": flags.region_code,
        "RegionName": flags.region_code,
        "Nodes": [node],
    });
    print(&region.to_string());
    Ok(())
}

/// The host's addresses when it is one or resolves now; a map without them is good too, clients resolve themselves.
fn addresses_of(host: &str) -> Vec<IpAddr> {
    use std::net::ToSocketAddrs;
    (host, 0).to_socket_addrs().map(|found| found.map(|address| address.ip()).collect()).unwrap_or_default()
}

fn log(level: &str) -> Result<(), Failure> {
    let filter = tracing_subscriber::EnvFilter::builder().parse(level).map_err(|error| {
        Failure::new(Exit::Usage, "bad-log-level", format!("\"{level}\" is not a log level: {error}"))
            .hint("use error, warn, info, debug or trace")
    })?;
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(is_terminal).with_writer(std::io::stderr);
    builder.try_init().map_err(|error| Failure::new(Exit::Bug, "logging", format!("cannot log: {error}")))
}

#[expect(clippy::print_stdout, reason = "this is what the program has to say")]
fn print(line: &str) {
    println!("{line}");
}
