//! From the static file to the peers of the node, at start and again on request.

use std::{
    fmt::Display,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use mesh_core::{
    key::NodePublic,
    node::{Command, PeerAddressing, PeerConfig},
};
use tokio::sync::{mpsc, oneshot};
use transports::{
    batch::canonical,
    program::{Exit, Failure},
};

use super::driver::Request;
use crate::static_file::{self, Endpoint, StaticFile, StaticPeer};

/// Largest static file that is read: many times what the largest number of peers needs.
const FILE_BYTES: u64 = 64 << 20;

/// Reads the static file again and tells the driver.
#[derive(Clone, Debug)]
pub struct Reload {
    /// The file.
    pub path: PathBuf,
    /// What cannot change while the node runs.
    pub fixed: Fixed,
}

/// The part of a static file that holds from start to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed {
    own: NodePublic,
    addresses: Vec<(IpAddr, u8)>,
    listen_port: Option<u16>,
    mtu_bytes: Option<usize>,
}

impl Fixed {
    /// That part of `file`.
    #[must_use]
    pub fn of(file: &StaticFile) -> Self {
        Self {
            own: file.private_key.public(),
            addresses: file.addresses.clone(),
            listen_port: file.listen_port,
            mtu_bytes: file.mtu_bytes,
        }
    }
}

impl Reload {
    /// Makes the peers those of the file. What is in `[Interface]` must be what it was.
    ///
    /// # Errors
    /// When the file is wrong; nothing changes then.
    pub async fn run(&self, requests: &mpsc::Sender<Request>) -> Result<(), Failure> {
        let file = load(&self.path)?;
        if Fixed::of(&file) != self.fixed {
            let message = format!("{} has another [Interface] now", self.path.display());
            return Err(Failure::new(Exit::Usage, "restart-needed", message).hint("restart meshd to use it"));
        }
        let peers = resolve(file.peers).await?;
        let gone = || Failure::new(Exit::Unreachable, "stopping", "meshd is about to end");
        let (reply, answer) = oneshot::channel();
        requests.send(Request::Command(Command::SetPeers(peers), reply)).await.map_err(|_| gone())?;
        match answer.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.refuse(&error)),
            Err(_) => Err(gone()),
        }
    }

    pub(super) fn refuse(&self, problem: &dyn Display) -> Failure {
        refuse(&self.path, problem)
    }
}

fn refuse(path: &Path, problem: &dyn Display) -> Failure {
    Failure::new(Exit::Usage, "bad-static-file", format!("{}: {problem}", path.display()))
}

/// Reads and parses.
pub(super) fn load(path: &Path) -> Result<StaticFile, Failure> {
    let length = std::fs::metadata(path).map_err(|error| refuse(path, &error))?.len();
    if length > FILE_BYTES {
        return Err(refuse(path, &"larger than any static file can be"));
    }
    let bytes = std::fs::read(path).map_err(|error| refuse(path, &error))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
        refuse(path, &format_args!("line {line}: not UTF-8 text"))
    })?;
    static_file::parse(&text).map_err(|error| refuse(path, &error))
}

/// Looks names up. One that is not found ends it: a peer without address would be silent for no visible reason.
pub(super) async fn resolve(peers: Vec<StaticPeer>) -> Result<Vec<PeerConfig>, Failure> {
    let mut resolved = Vec::with_capacity(peers.len());
    for peer in peers {
        let endpoint = match peer.endpoint {
            None => None,
            Some(Endpoint::Address(address)) => Some(canonical(address)),
            Some(Endpoint::Host { name, port, line }) => Some(look_up(&name, port, line).await?),
        };
        resolved.push(PeerConfig {
            key: peer.public_key,
            preshared_key: peer.preshared_key,
            allowed_ips: peer.allowed_ips,
            addressing: PeerAddressing::Roaming { endpoint },
            persistent_keepalive: peer.persistent_keepalive,
        });
    }
    Ok(resolved)
}

async fn look_up(name: &str, port: u16, line: usize) -> Result<SocketAddr, Failure> {
    let failure = |problem: &dyn Display| {
        let message = format!("line {line}: cannot find the address of {name}: {problem}");
        Failure::new(Exit::Refused, "no-address", message).hint("is the name right, and name resolution working?")
    };
    let mut addresses = tokio::net::lookup_host((name, port)).await.map_err(|error| failure(&error))?;
    addresses.next().map(canonical).ok_or_else(|| failure(&"it has none"))
}
