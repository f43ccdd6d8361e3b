//! What happens to a node.

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::{
    control::{AuthKey, ControlEvent, types::MapResponse},
    dataplane::{Notice, Punt},
    derp::RegionId,
    endpoints::LocalPorts,
    key::NodePublic,
    netcheck::{FetchFailed, FetchId, Fetched, ResolveFailed},
    rng::Seed,
    time::WallAnchor,
};

use super::{PeerConfig, Prefs};

/// One thing that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A packet that the data plane could not handle.
    Punt(Punt),
    /// An edge that the data plane saw.
    Notice(Notice),
    /// Something at a relay.
    Relay(RelayEvent),
    /// Something was heard of control.
    Control(ControlEvent),
    /// The answer to [`Output::Fetch`](super::Output::Fetch).
    Fetched(FetchId, Result<Fetched, FetchFailed>),
    /// The answer to [`Output::Resolve`](super::Output::Resolve).
    Resolved {
        /// The name that was asked for.
        host: String,
        /// Its addresses of both families.
        result: Result<Vec<IpAddr>, ResolveFailed>,
    },
    /// Something at the host.
    Host(HostEvent),
    /// A user or operator wants something; answered by [`Output::Reply`](super::Output::Reply) with the same id.
    Command(CommandId, Command),
}

/// Something at a relay. Packets are not among them: they go to the data plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayEvent {
    /// The relay took us in: packets can go over the region.
    Connected {
        /// Which.
        region: RegionId,
    },
    /// The connection broke or could not be made.
    Failed {
        /// Which.
        region: RegionId,
        /// Why, for people.
        reason: String,
    },
    /// The relay will be away.
    Restarting {
        /// Which.
        region: RegionId,
        /// Wait this long before connecting again.
        reconnect_in: Duration,
    },
    /// A peer cannot be reached over the region.
    PeerGone {
        /// Which.
        region: RegionId,
        /// Who.
        peer: NodePublic,
    },
    /// What is wrong with the connection, in the relay's words; `None` when it is well again.
    Health {
        /// Which.
        region: RegionId,
        /// What.
        problem: Option<String>,
    },
}

/// Something at the host.
#[derive(Clone, Debug)]
pub enum HostEvent {
    /// The host slept for `slept`, which the monotonic clock has counted.
    Resumed {
        /// How long.
        slept: Duration,
        /// What the operating system gives out by now, where it can be had: a virtual machine may have been copied.
        entropy: Option<Seed>,
    },
    /// The wall clock was stepped.
    ClockStepped(WallAnchor),
    /// Addresses or routes of the underlay are these now. Said once at the start, and whenever they are others.
    Links(LinkState),
    /// The sockets are open at these ports.
    SocketsOpen(LocalPorts),
    /// The operating system refused to send to an address: it has no route, or forbids it.
    SendFailed {
        /// Where to.
        to: SocketAddr,
    },
}

/// What the underlay looks like: interfaces other than our own TUN.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    /// The host's addresses, sorted.
    pub addresses: Vec<IpAddr>,
    /// Whether IPv4 packets have a default route.
    pub has_default_v4: bool,
    /// Whether IPv6 packets have a default route.
    pub has_default_v6: bool,
}

impl LinkState {
    /// Whether anything can be reached.
    #[must_use]
    pub fn has_network(&self) -> bool {
        self.has_default_v4 || self.has_default_v6 || !self.addresses.is_empty()
    }
}

/// Names a command until its reply. Chosen by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CommandId(pub u64);

/// What a user or operator wants.
#[derive(Clone, Debug)]
pub enum Command {
    /// Asks a peer for a sign of life.
    Ping {
        /// To whom.
        target: PingTarget,
        /// How.
        kind: PingKind,
        /// How long to wait for the answer.
        timeout: Duration,
    },
    /// These are the peers from now on. Peers that stay the same keep their sessions.
    SetPeers(Vec<PeerConfig>),
    /// A full report about the network; answered when it is complete.
    Netcheck,
    /// This is the whole network map from now on. What stays the same is left alone.
    ReplaceMap(Box<MapResponse>),
    /// Be connected; sign in if need be. Answered by [`Reply::Up`](super::Reply::Up) once the node runs, or waits for an
    /// administrator, and with an error when control refuses. While somebody has to sign in, or control cannot be
    /// reached, there is no answer: [`Event::LoginUrl`](super::Event::LoginUrl) and the status say what is waited for.
    Up(Box<Up>),
    /// Be disconnected, and stay signed in.
    Down,
    /// Sign out: this node is no more. Answered when control has heard it, or could not be reached.
    Logout,
    /// These are the preferences from now on. Another control server: the node signs out of nothing and is new there.
    SetPrefs(Box<Prefs>),
}

/// How to be connected.
#[derive(Clone, Debug, Default)]
pub struct Up {
    /// These are the preferences from now on, with `want_running`.
    pub prefs: Prefs,
    /// A key to register with, where registering is needed.
    pub auth_key: Option<AuthKey>,
    /// Sign in anew, with a new node key, even where that is not needed.
    pub force_reauth: bool,
}

/// What a ping is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PingKind {
    /// A disco ping over the path in use, which shows the path. With peers that are not found by disco: an echo.
    Disco,
    /// An ICMP echo inside the tunnel, answered by the peer's host.
    Icmp,
    /// A TSMP ping inside the tunnel, answered by the peer itself.
    Tsmp,
}

/// How a ping names its peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PingTarget {
    /// By an overlay address.
    Address(IpAddr),
    /// By key; the first of its allowed addresses is pinged.
    Key(NodePublic),
    /// By its name in the tailnet, whole or only the first label.
    Name(String),
}
