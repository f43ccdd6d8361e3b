//! What happens to a node.

use core::{net::IpAddr, time::Duration};

use crate::{
    dataplane::{Notice, Punt},
    key::NodePublic,
    time::WallAnchor,
};

use super::PeerConfig;

/// One thing that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A packet that the data plane could not handle.
    Punt(Punt),
    /// An edge that the data plane saw.
    Notice(Notice),
    /// Something at the host.
    Host(HostEvent),
    /// A user or operator wants something; answered by [`Output::Reply`](super::Output::Reply) with the same id.
    Command(CommandId, Command),
}

/// Something at the host.
#[derive(Clone, Debug)]
pub enum HostEvent {
    /// The host slept for `slept`, which the monotonic clock has counted.
    Resumed {
        /// How long.
        slept: Duration,
    },
    /// The wall clock was stepped.
    ClockStepped(WallAnchor),
    /// Addresses or routes of the underlay changed: paths may be better or gone.
    LinkChanged,
}

/// Names a command until its reply. Chosen by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CommandId(pub u64);

/// What a user or operator wants.
#[derive(Clone, Debug)]
pub enum Command {
    /// One ICMP echo inside the tunnel.
    Ping {
        /// To whom.
        target: PingTarget,
        /// How long to wait for the answer.
        timeout: Duration,
    },
    /// These are the peers from now on. Peers that stay the same keep their sessions.
    SetPeers(Vec<PeerConfig>),
}

/// How a ping names its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PingTarget {
    /// By an overlay address.
    Address(IpAddr),
    /// By key; the first of its allowed addresses is pinged.
    Key(NodePublic),
}
