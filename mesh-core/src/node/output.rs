//! What a node wants done.

use core::{net::IpAddr, time::Duration};
use std::sync::Arc;

use crate::{
    control::netmap::{NetMapError, Skipped},
    derp::{DerpNode, RegionId, relays::Home},
    key::NodePublic,
    netcheck::{FetchId, Report},
    path::{PathAddr, Selection},
};

use super::{CommandId, ConfigError, HostConfig, PingKind, SocketPlan};

/// One thing that the driver should do. An output may fail later; failure is not reported back for datagrams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// A datagram of the owner's own: handshake, keepalive, packets that had waited for a session.
    Transmit(Transmit),
    /// A packet of the owner's own for the host.
    TunWrite(Vec<u8>),
    /// What to do with the connection to a relay.
    Relay(RelayCommand),
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
    /// A part of a network map was left out; the rest counts.
    MapPartSkipped(Skipped),
    /// A peer did not answer any initiation of an attempt.
    HandshakeGivenUp {
        /// Who.
        peer: NodePublic,
    },
}
