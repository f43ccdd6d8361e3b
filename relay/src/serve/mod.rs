//! The shell: what touches the operating system. Not part of the pure half, so the bans on clocks, sockets and the
//! environment do not hold here.
//!
//! One thread for each core, each with its own listener on the same port and its own single-threaded runtime: a
//! connection stays where it was accepted. Threads meet only in the [`Hub`].
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

mod config;
pub mod embedded;
mod http;
mod identity;
mod link;
mod listen;
mod stream;
mod verify;

use std::{
    net::IpAddr,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, RwLock},
};

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use tokio::sync::watch;
use tracing::{info, warn};
use transports::{
    net::{Net, TcpListener},
    program::{self, Exit, Failure, log, open_files, print, wants_json},
};

use crate::{
    admission::Policy,
    hub::{self, Hub},
};
use config::{Admit, Config, Settings, Tls};
use identity::Certificate;
use listen::Shop;
pub use verify::Ask;
use verify::{Asker, Verifier};

const NAME: &str = "mesh-relay";

/// Runs the program with the arguments of the process.
#[must_use]
pub fn run() -> ExitCode {
    program::run(NAME, wants_json(), || act(Arguments::try_parse()).map_err(|failure| failure.or_see_help(NAME)))
}

fn act(arguments: Result<Arguments, clap::Error>) -> Result<(), Failure> {
    match arguments {
        Ok(Arguments { verb: Verb::Serve(flags), .. }) => serve(&flags),
        Ok(Arguments { verb: Verb::DerpMap(flags), .. }) => derp_map(&flags.config()?),
        Ok(Arguments { verb: Verb::Completion { shell }, .. }) => {
            clap_complete::generate(shell, &mut Arguments::command(), NAME, &mut std::io::stdout());
            Ok(())
        }
        Err(error) => Failure::of_arguments(&error).map_or(Ok(()), Err),
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
#[command(
    after_help = "Each setting can be given in the environment too, as MESH_RELAY_LISTEN for --listen (MESH_LOG for \
                        --log), and in the file of --config, as listen = \"ADDR\". Flags win over the environment, and the \
                        environment over the file."
)]
struct Flags {
    /// TOML file with these settings
    #[arg(long, value_name = "FILE", env = "MESH_RELAY_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

impl Flags {
    fn config(&self) -> Result<Config, Failure> {
        Config::gather(&self.settings, self.config.as_deref())
    }
}

impl Config {
    fn certificate(&self) -> Result<Option<Certificate>, Failure> {
        match &self.tls {
            Tls::Files { chain, key } => Certificate::read(chain, key, &self.host).map(Some),
            Tls::None => Ok(None),
            Tls::SelfSigned => Certificate::load_or_make(&self.state_dir, &self.host).map(Some),
        }
    }

    /// `sha256-raw:` and a hash, when clients are to pin the certificate. Those of others are checked by their name, as
    /// any other of the web.
    fn pin(&self) -> Result<Option<String>, Failure> {
        match &self.tls {
            Tls::SelfSigned => Ok(self.certificate()?.map(|certificate| certificate.pin())),
            Tls::Files { .. } | Tls::None => Ok(None),
        }
    }
}

fn serve(flags: &Flags) -> Result<(), Failure> {
    let config = flags.config()?;
    let asker = match &config.admit {
        Some(Admit::Asked(url)) => Some(Asker::Url(Verifier::new(url)?)),
        Some(Admit::Everybody) => None,
        None => {
            return Err(Failure::new(Exit::Usage, "no-policy", "who may connect is not said")
                .hint("give --verify-url URL to ask a control server, or --open to let everybody connect"));
        }
    };
    log(&config.log, config.log_format, "relay::conn=debug")?;
    if let Err(error) = transports::private::keep_memory() {
        warn!(%error, "a core dump would hold the key");
    }
    let key = identity::load_or_make_key(&config.state_dir)?;
    let seed = transports::entropy::seed()
        .map_err(|error| Failure::new(Exit::Bug, "entropy", format!("the system has no randomness: {error}")))?;
    let policy = if asker.is_some() { Policy::Ask } else { Policy::Open };
    let hub = Arc::new(Hub::new(hub::Config { key, policy, rate: config.client_rate, seed }));
    let tls = config.certificate()?.map(|certificate| certificate.into_config(&hub.public)).transpose()?;
    // Each client is an open file, and so is what else a relay does.
    hub.set_room(open_files() / 2);
    let addresses = listen::Addresses { derp: config.listen, stun: config.stun_listen, metrics: config.metrics_listen };
    let shop = Shop { net: Net::Host, hub, tls: RwLock::new(tls), asker };
    listen::serve(&addresses, &Arc::new(shop), |shop| match reload(flags, &config, shop) {
        Ok(()) => info!("configuration read again"),
        Err(failure) => {
            warn!(error = failure.message(), "configuration not read again; everything stays as it is");
        }
    })
}

/// One core's share of a relay without TLS: serves the clients of one listener until `closing` becomes true. For whoever
/// brings a network of their own.
pub async fn serve_clients(listener: TcpListener, net: Net, hub: Arc<Hub>, closing: watch::Receiver<bool>) {
    let shop = Shop { net, hub, tls: RwLock::new(None), asker: None };
    listen::accept(listener, Arc::new(shop), Arc::default(), closing).await;
}

/// Reads the configuration again and takes over what can change under way: the certificate, when others take care of it,
/// and how fast clients may send.
fn reload(flags: &Flags, old: &Config, shop: &Shop) -> Result<(), Failure> {
    let new = flags.config()?;
    for name in old.fixed_changes(&new) {
        warn!("{name}: the change counts from the next start");
    }
    if let Tls::Files { .. } = old.tls {
        let tls = old.certificate()?.map(|certificate| certificate.into_config(&shop.hub.public)).transpose()?;
        shop.set_tls(tls);
    }
    shop.hub.set_rate(new.client_rate);
    Ok(())
}

fn derp_map(config: &Config) -> Result<(), Failure> {
    let region = Region {
        id: config.region_id,
        code: &config.region_code,
        host: &config.host,
        derp_port: config.listen.port(),
        stun_port: config.stun_listen.port(),
        pin: config.pin()?,
        is_plain: config.tls == Tls::None,
    };
    print(&region.to_json().to_string());
    Ok(())
}

/// What clients are told of a relay.
struct Region<'a> {
    id: u16,
    code: &'a str,
    host: &'a str,
    derp_port: u16,
    stun_port: u16,
    /// `sha256-raw:` and a hash, when they are to pin the certificate.
    pin: Option<String>,
    /// There is no TLS.
    is_plain: bool,
}

impl Region<'_> {
    /// The region of a DERP map.
    fn to_json(&self) -> serde_json::Value {
        let mut node = serde_json::json!({
            "Name": format!("{}a", self.id),
            "RegionID": self.id,
            "HostName": self.host,
        });
        if let Some(pin) = &self.pin {
            node["CertName"] = pin.as_str().into();
        }
        for ip in addresses_of(self.host) {
            let field = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            if node[field].is_null() {
                node[field] = ip.to_string().into();
            }
        }
        if self.derp_port != 443 {
            node["DERPPort"] = self.derp_port.into();
        }
        if self.stun_port != 3478 {
            node["STUNPort"] = self.stun_port.into();
        }
        if self.is_plain {
            node["InsecureForTests"] = true.into();
        }
        serde_json::json!({
            "RegionID": self.id,
            "RegionCode": self.code,
            "RegionName": self.code,
            "Nodes": [node],
        })
    }
}

/// The host's addresses when it is one or resolves now; a map without them is good too, clients resolve themselves.
fn addresses_of(host: &str) -> Vec<IpAddr> {
    use std::net::ToSocketAddrs;
    (host, 0).to_socket_addrs().map(|found| found.map(|address| address.ip()).collect()).unwrap_or_default()
}
