//! What the coordinator is told.

use core::net::IpAddr;
use std::sync::Arc;

use mesh_core::{
    control::types::{MapRequest, RegisterRequest},
    derp::DerpMap,
    key::{MachinePublic, NodePublic},
    time::WallAnchor,
};

use super::command::Command;
use crate::store::Principal;

/// A Noise connection; the driver numbers them and uses no number again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// A request of a connection; unique in it. The stream number of HTTP/2 is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// An open map; the coordinator numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// A command; the driver numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdminId(pub u64);

/// One thing that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A node asks something. It is answered once by [`Output::Respond`](super::Output::Respond), perhaps much later, or
    /// not at all when [`Self::Aborted`] or [`Self::Closed`] comes before.
    Request {
        /// On which connection.
        conn: ConnId,
        /// Its peer's key, which Noise vouches for.
        machine: MachinePublic,
        /// Where it comes from: of a proxy, the proxy.
        from: IpAddr,
        /// Which request.
        id: RequestId,
        /// What it asks.
        request: Request,
    },
    /// The last message of a stream has been written and there is room for another.
    Writable {
        /// Which.
        stream: StreamId,
    },
    /// A request, or the stream that it opened, was given up by the node (a reset of HTTP/2), the connection stays.
    Aborted {
        /// On which connection.
        conn: ConnId,
        /// Which.
        id: RequestId,
    },
    /// A connection ended, and all of its requests and streams.
    Closed {
        /// Which.
        conn: ConnId,
    },
    /// Somebody who runs the server wants something.
    Admin {
        /// Which command; the answer has the same number.
        id: AdminId,
        /// Who.
        by: Principal,
        /// What.
        command: Command,
    },
    /// The relays are others than before. A map without a usable region is not taken.
    Relays(Arc<DerpMap>),
    /// The host's calendar was set.
    ClockStepped(WallAnchor),
}

/// What a node asks. The paths are those of the control protocol, inside Noise.
#[derive(Clone, Debug)]
pub enum Request {
    /// `/machine/register`.
    Register(Box<RegisterRequest>),
    /// `/machine/map`.
    Map(Box<MapRequest>),
    /// One of the small ones.
    Other {
        /// Which.
        endpoint: Endpoint,
        /// The node that it says it is.
        node_key: NodePublic,
    },
}

/// Small requests that say a node key in their body. What needs none is the shell's to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/machine/set-dns`.
    SetDns,
    /// `/machine/id-token`.
    IdToken,
    /// `/machine/feature/query`.
    FeatureQuery,
    /// `/machine/set-device-attr`.
    SetDeviceAttributes,
    /// `/machine/audit-log`.
    AuditLog,
    /// `/machine/update-health`.
    UpdateHealth,
}
