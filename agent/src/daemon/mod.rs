//! The daemon: start and clean end.
//!
//! Start goes from what cannot hurt to what changes the host: read the file, claim the socket, create the TUN, bind
//! ports, set addresses and routes. Whatever fails, what was done before is undone by drops: nothing is left behind.

pub mod basic;
pub mod config;
pub(crate) mod peers;
mod signals;

use std::path::PathBuf;

use mesh_core::{
    dataplane::DropCounts,
    node::{HostConfig, Node, NodeConfig, Status},
    time::Instant,
};
use tokio::sync::mpsc;
use tracing::{info, warn};
use transports::{
    clock::Clock,
    entropy,
    host::{HostError, HostLink},
    notify,
    tun::{LinuxTun, OpenError},
    udp::SendCounts,
};

use crate::{
    failure::{Exit, Failure},
    local_api::server::LocalApi,
};

use basic::{Basic, TunCounts};
use config::Config;

/// MTU of the TUN when the file does not say: what fits a 1,500-byte IPv6 underlay.
const MTU_BYTES: usize = 1420;

/// Requests that wait for the driver. At the bound whoever asks waits.
const REQUESTS: usize = 64;

/// A node and its driver at one point in time.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When.
    pub now: Instant,
    /// The node.
    pub status: Status,
    /// Packets that ended, by reason: node and fast path together.
    pub drops: DropCounts,
    /// The UDP port.
    pub port: u16,
    /// Peers with traffic in the last minutes.
    pub tunnels: usize,
    /// What was sent.
    pub udp: SendCounts,
    /// What went through the TUN.
    pub tun: TunCounts,
}

/// Takes back what was done to the host, however the program ends short of being killed.
#[derive(Debug)]
pub struct HostGuard(HostLink);

impl HostGuard {
    /// Makes the host look as `config` says.
    ///
    /// # Errors
    /// When the kernel refuses something.
    pub fn apply(&mut self, config: &HostConfig) -> Result<(), HostError> {
        self.0.apply(config)
    }
}

impl Drop for HostGuard {
    fn drop(&mut self) {
        if let Err(error) = self.0.remove() {
            warn!(%error, "not everything could be taken back");
        }
    }
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// When it cannot start, or cannot go on.
pub async fn run(config: Config) -> Result<(), Failure> {
    let path = what_to_run(&config)?;
    let file = peers::load(&path)?;
    let reload = peers::Reload { path: path.clone(), fixed: peers::Fixed::of(&file) };
    let peers = peers::resolve(file.peers).await?;
    let mtu_bytes = file.mtu_bytes.unwrap_or(MTU_BYTES);

    let clock = Clock::new();
    let bug = |error| Failure::new(Exit::Refused, "entropy", format!("the system has no randomness: {error}"));
    let node = NodeConfig {
        key: file.private_key,
        addresses: file.addresses,
        mtu_bytes,
        listen_port: file.listen_port.unwrap_or(config.port),
        peers,
        seed: entropy::seed().map_err(bug)?,
        epoch: clock.anchor(),
    };
    let node = Node::new(node, clock.now())
        .map_err(|error| Failure::new(Exit::Usage, "bad-static-file", format!("{}: {error}", path.display())))?;

    let (sender, mut requests) = mpsc::channel(REQUESTS);
    let api = LocalApi::bind(&config.socket).await?;
    let tun = LinuxTun::open(&config.tun).map_err(tun_failure)?;
    let host = |error: HostError| {
        let permitted = error.source.kind() != std::io::ErrorKind::PermissionDenied;
        Failure::new(if permitted { Exit::Refused } else { Exit::NotPermitted }, "host", error)
    };
    let index = tun.index().map_err(|source| host(HostError { what: "find the TUN device".into(), source }))?;
    let mut link = HostLink::new(index).map_err(host)?;
    link.repair().map_err(host)?;
    let mut driver = Basic::start(node, clock, tun, Some(HostGuard(link)), mtu_bytes)?;

    let server = tokio::spawn(api.serve(sender.clone(), reload.clone()));
    let signals = signals::listen(sender, reload)?;
    announce(&config, driver.port());
    let result = driver.run(&mut requests).await;
    notify::stopping();
    signals.abort();
    server.abort();
    // The socket's file goes with the task that serves it.
    let _ = server.await;
    info!("stopped");
    result
}

/// The file of the one mode that this build has.
fn what_to_run(config: &Config) -> Result<PathBuf, Failure> {
    if config.map.is_some() {
        return Err(Failure::new(Exit::Usage, "not-built", "--map is not available in this build")
            .hint("use --static FILE with keys, addresses and peers"));
    }
    config.static_file.clone().ok_or_else(|| {
        Failure::new(Exit::Usage, "not-built", "this build cannot use a control server yet")
            .hint("use --static FILE with keys, addresses and peers")
    })
}

fn tun_failure(error: OpenError) -> Failure {
    match error {
        OpenError::Name(_) => Failure::new(Exit::Usage, "bad-interface-name", error),
        OpenError::Taken(_) => Failure::new(Exit::Refused, "interface-taken", error),
        OpenError::NotPermitted(_) => Failure::new(Exit::NotPermitted, "not-permitted", error),
        OpenError::Unsupported | OpenError::Io { .. } => Failure::new(Exit::Refused, "tun", error),
    }
}

/// Says on stdout and to systemd that packets are carried now.
fn announce(config: &Config, port: u16) {
    #[expect(clippy::print_stdout, reason = "the line that whoever started this waits for")]
    {
        println!("ready tun={} udp={port} socket={}", config.tun, config.socket.display());
    }
    notify::ready();
    info!(tun = config.tun, port, "ready");
}
