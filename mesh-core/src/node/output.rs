//! What a node wants done.

use core::{net::IpAddr, time::Duration};
use std::sync::Arc;

use crate::{
    control::{
        ControlRequest,
        netmap::{NetMapError, Skipped},
    },
    derp::{DerpNode, RegionId, relays::Home},
    key::{NodePrivate, NodePublic},
    netcheck::{FetchId, Report},
    path::{PathAddr, Selection},
};

use super::{BackendState, CommandId, ConfigError, HostConfig, PingKind, SavedState, SocketPlan};

/// One thing that the driver should do. An output may fail later; failure is not reported back for datagrams.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// A datagram of the owner's own: handshake, keepalive, packets that had waited for a session.
    Transmit(Transmit),
    /// A packet of the owner's own for the host.
    TunWrite(Vec<u8>),
    /// What to do with the connection to a relay.
    Relay(RelayCommand),
    /// What to do about control.
    Control(ControlRequest),
    /// Keep this for the next run, whole and instead of what was kept before. It is to be on disk before outputs after
    /// it are carried out: a key that control knows must not be lost.
    Save(Box<SavedState>),
    /// A small exchange over HTTPS, answered by [`Input::Fetched`](super::Input::Fetched).
    Fetch(FetchId, FetchRequest),
    /// Ask DNS for the addresses of a name, of both families; answered by [`Input::Resolved`](super::Input::Resolved).
    Resolve {
        /// The name.
        host: String,
    },
    /// Which UDP sockets should be open now.
    Sockets(SocketPlan),
    /// Addresses and routes as they should be now.
    Configure(HostConfig),
    /// The answer to a command.
    Reply(CommandId, Result<Reply, CommandError>),
    /// For the log and for whoever watches.
    Event(Event),
}

/// A datagram of the owner's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: PathAddr,
    /// Routers that the datagram may pass, where that is not for the host to say.
    pub ttl: Option<u8>,
    /// The datagram.
    pub payload: Vec<u8>,
}

/// What to ask over HTTPS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchRequest {
    /// `GET /derp/latency-check` of a relay, with its certificate checked as for a relay connection.
    LatencyCheck {
        /// Which.
        node: DerpNode,
    },
}

/// What to do with the connection to a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayCommand {
    /// Connections that are made from now on are made as this node. In the beginning that is who the node was made as.
    SetKey(NodePrivate),
    /// Connect to the first of these relays that takes us in, and say how it ended: [`RelayEvent::Connected`] or
    /// [`RelayEvent::Failed`]. After `Connected` there is a `Failed` when the connection breaks. Packets that are sent
    /// meanwhile wait, as many as the driver's bound allows.
    ///
    /// [`RelayEvent::Connected`]: super::RelayEvent::Connected
    /// [`RelayEvent::Failed`]: super::RelayEvent::Failed
    Connect {
        /// The region that they are of.
        region: RegionId,
        /// In order of priority.
        nodes: Vec<DerpNode>,
    },
    /// Close the connection, or give up making it. Nothing is to be said about it.
    Close {
        /// Of which region.
        region: RegionId,
    },
    /// Tell the relay whether it is our home.
    SetHome {
        /// Which.
        region: RegionId,
        /// Whether it is.
        home: Home,
    },
    /// Something should have come from the relay and did not: if nothing does, ask whether it is there.
    Ask {
        /// Of which region.
        region: RegionId,
    },
}

/// A command that was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A ping was answered.
    Pong {
        /// By whom.
        peer: NodePublic,
        /// The overlay address that was pinged.
        address: IpAddr,
        /// From request to answer.
        round_trip: Duration,
        /// What the ping was made of.
        kind: PingKind,
        /// Where a disco pong came from; of an echo, where the peer's datagrams go.
        via: Option<PathAddr>,
    },
    /// The peers are as wanted.
    PeersSet,
    /// The network map is the one that was handed in.
    MapApplied,
    /// What the network is like.
    Report(Arc<Report>),
    /// The node is connected, or waits for an administrator.
    Up(BackendState),
    /// The node is disconnected.
    Down,
    /// The node is signed out.
    LoggedOut,
    /// The preferences are as wanted.
    PrefsSet,
}

/// A command that was not done, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No peer has this address.
    #[error("no peer has the address {0} among its allowed IPs")]
    NoRoute(IpAddr),
    /// No peer has this key.
    #[error("no peer has the key {0}")]
    UnknownPeer(NodePublic),
    /// The peer has this name, and its key has expired.
    #[error("the key of {0} has expired: it has to sign in again, with mesh up there")]
    PeerExpired(String),
    /// The peer has no allowed IPs that are addresses of its own.
    #[error("peer {0} has no single address among its allowed IPs; ping an address instead")]
    NoAddress(NodePublic),
    /// We have no address of the family that is pinged.
    #[error("this node has no address of the family of {0}")]
    NoSource(IpAddr),
    /// No way to the peer is known, not even a relay.
    #[error("no way to peer {0} is known: it has no relay, and none of its addresses has answered")]
    NoWay(NodePublic),
    /// Too many pings under way.
    #[error("{limit} pings are under way already; wait for them", limit = crate::limits::PINGS)]
    TooManyPings,
    /// Too many wait for a report.
    #[error("{limit} wait for a report about the network already", limit = crate::limits::REPORTS_WANTED)]
    TooManyReports,
    /// No answer in time.
    #[error("no answer from {address} within {} ms", waited.as_millis())]
    TimedOut {
        /// The overlay address that was pinged.
        address: IpAddr,
        /// How long it was waited for.
        waited: Duration,
    },
    /// No peer has the name.
    #[error("no peer is called {0:?}")]
    UnknownName(String),
    /// The name is the first label of several peers.
    #[error("{name:?} is the name of several peers: {}", names.join(", "))]
    AmbiguousName {
        /// What was asked for.
        name: String,
        /// Whole names.
        names: Vec<String>,
    },
    /// The node was made without a control server.
    #[error("this node gets its peers from a file; it cannot join a control server")]
    NoControl,
    /// No control server was ever named.
    #[error("which control server? Name it with --login-server")]
    NoServer,
    /// Control said no; its own words.
    #[error("{0}")]
    Refused(String),
    /// Something else was wanted meanwhile.
    #[error("given up: {0}")]
    Superseded(&'static str),
    /// Control could not be told; the node has forgotten its sign-in all the same.
    #[error("signed out here, but control could not be told: {0}")]
    LogoutUntold(String),
    /// It is done, and not on disk. For drivers: a node does not know.
    #[error("done, but not kept: {0}; it is written as soon as it can be, and a start before that undoes it")]
    NotKept(String),
    /// Too many wait for the node to be signed out.
    #[error("{limit} wait for the node to be signed out already", limit = crate::limits::LOGOUTS_WAITING)]
    TooManyLogouts,
    /// The configuration is not usable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The network map is not usable.
    #[error(transparent)]
    Map(#[from] NetMapError),
}

/// For the log and for whoever watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A session with a peer is ready for use.
    SessionEstablished {
        /// With whom.
        peer: NodePublic,
    },
    /// Packets for a peer go another way now.
    PathChanged {
        /// Who.
        peer: NodePublic,
        /// Which.
        path: Selection,
    },
    /// Our home relay is in this region now.
    HomeChanged(RegionId),
    /// What the node is doing is this now.
    State(BackendState),
    /// Somebody has to go to this page to sign in. Also in the status as long as it holds.
    LoginUrl(String),
    /// Control wants this page to be shown to the user.
    Browse(String),
    /// Control cannot be reached or refuses, for people; it is tried again.
    ControlProblem(String),
    /// Our own node key is this one now.
    KeyChanged(NodePublic),
    /// A part of a network map was left out; the rest counts.
    MapPartSkipped(Skipped),
    /// A peer did not answer any initiation of an attempt.
    HandshakeGivenUp {
        /// Who.
        peer: NodePublic,
    },
}
