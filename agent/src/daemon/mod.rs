//! The daemon: start and clean end.
//!
//! Start goes from what cannot hurt to what changes the host: read the file, claim the socket, create the TUN, bind
//! ports, set addresses and routes. Whatever fails, what was done before is undone by drops: nothing is left behind.

pub mod config;
pub mod driver;
mod events;
mod hostinfo;
pub(crate) mod map_file;
mod network;
pub(crate) mod peers;
mod signals;
pub(crate) mod source;

use mesh_core::{
    dataplane::DropCounts,
    filter::FlowCounts,
    key::DiscoPrivate,
    node::{ControlConfig, HostConfig, Node, NodeConfig, Status},
    time::Instant,
};
use tokio::sync::mpsc;
use tracing::{info, warn};
use transports::{
    clock::Clock,
    derp::RelayCounts,
    entropy,
    host::{HostError, HostLink, LinkMonitor},
    notify, private,
    program::{Exit, Failure},
    tun::{LinuxTun, OpenError},
    udp::SendCounts,
};

use crate::{
    local_api::server::LocalApi,
    state_file::{Claim, Keeper, State},
};

use config::Config;
use driver::{Driver, TunCounts};
use map_file::MapFile;
use network::Network;
use source::Source;

/// MTU of the TUN when a static file does not say: what fits a 1,500-byte IPv6 underlay.
const STATIC_MTU_BYTES: usize = 1420;

/// MTU of the TUN otherwise. Stock clients: 1,280, which passes wherever IPv6 does.
const MTU_BYTES: usize = 1280;

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
    /// Flows for which the packet filter had no room.
    pub flows: FlowCounts,
    /// What was sent.
    pub udp: SendCounts,
    /// What went over relays.
    pub relays: RelayCounts,
    /// What went through the TUN.
    pub tun: TunCounts,
    /// Why the next run would not know what this one does.
    pub unkept: Option<String>,
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
    let clock = Clock::new();
    if let Err(error) = private::keep_memory() {
        warn!(%error, "a core dump would hold the keys");
    }
    // Static peers need no state.
    let _claim = config.static_file.is_none().then(|| Claim::new(&config.state_dir)).transpose()?;
    let (node, source, state) = prepare(&config, &clock).await?;
    let mtu_bytes = node.mtu_bytes;
    // Static peers are not found over others.
    let key = state.is_some().then(|| (node.key.clone(), node.seed.child("network", 0)));
    let node = Node::new(node, clock.now()).map_err(|error| source.refuse(&error))?;

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
    let network = match key {
        Some((key, seed)) => Some(Network::new(key, seed, LinkMonitor::new(Some(index)).map_err(host)?)),
        None => None,
    };
    let state = state.map(Keeper::new).transpose()?;
    let mut driver = Driver::start(node, clock, tun, network, state, Some(HostGuard(link)), mtu_bytes)?;

    let server = tokio::spawn(api.serve(sender.clone(), source.clone()));
    let watch = match &source {
        Source::Static(_) | Source::Control => None,
        Source::Map(file) => Some(file.clone().watch(sender.clone())?),
    };
    if let Source::Map(file) = &source
        && let Some(map) = file.load()?
    {
        let (file, sender) = (file.clone(), sender.clone());
        tokio::spawn(async move {
            if let Err(failure) = file.apply(map, &sender).await {
                warn!(%failure, "map file not used");
            }
        });
    }
    let signals = signals::listen(sender, source)?;
    announce(&config, driver.port());
    let result = driver.run(&mut requests).await;
    notify::stopping();
    signals.abort();
    if let Some(watch) = watch {
        watch.abort();
    }
    server.abort();
    // The socket's file goes with the task that serves it.
    let _ = server.await;
    info!("stopped");
    result
}

/// What the node starts with, where the network comes from, and what survives a restart.
async fn prepare(config: &Config, clock: &Clock) -> Result<(NodeConfig, Source, Option<State>), Failure> {
    let entropy = |error| Failure::new(Exit::Refused, "entropy", format!("the system has no randomness: {error}"));
    let seed = entropy::seed().map_err(entropy)?;
    if let Some(path) = &config.static_file {
        let file = peers::load(path)?;
        let source = Source::Static(peers::Reload { path: path.clone(), fixed: peers::Fixed::of(&file) });
        let node = NodeConfig {
            key: file.private_key,
            // Nobody hears of it: peers of a static file are not found by disco.
            disco_key: DiscoPrivate::generate(&mut seed.stream("disco-key", 0)),
            addresses: file.addresses,
            mtu_bytes: file.mtu_bytes.unwrap_or(STATIC_MTU_BYTES),
            listen_port: file.listen_port.unwrap_or(config.port),
            peers: peers::resolve(file.peers).await?,
            control: None,
            seed,
            epoch: clock.anchor(),
        };
        return Ok((node, source, None));
    }
    let state = State::open(&config.state_dir, &seed)?;
    let (source, disco_key, control) = match &config.map {
        Some(path) => (Source::Map(MapFile { path: path.clone() }), state.disco_key.clone(), None),
        None => {
            let control = ControlConfig { saved: state.saved.clone(), hostinfo: hostinfo::hostinfo() };
            // A new one tells peers that we have started anew and know nothing of sessions.
            (Source::Control, DiscoPrivate::generate(&mut seed.stream("disco-key", 0)), Some(control))
        }
    };
    let node = NodeConfig {
        key: state.saved.node_key.clone(),
        disco_key,
        addresses: Vec::new(),
        mtu_bytes: MTU_BYTES,
        listen_port: config.port,
        peers: Vec::new(),
        control,
        seed,
        epoch: clock.anchor(),
    };
    Ok((node, source, Some(state)))
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
