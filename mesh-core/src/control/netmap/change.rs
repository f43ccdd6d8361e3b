//! [`Change`]: what a message changed in a netmap.

use core::fmt;
use std::collections::BTreeSet;

use super::super::types::{ClientVersion, ControlDialPlan, Debug, NodeId, PingRequest, UserId};
use crate::{derp::RegionId, filter::RuleName, time::WallTime};

/// What a message changed in a [`NetMap`](super::NetMap), and what it said besides. Numbers are in ascending order.
///
/// A part counts as changed when it is not equal to what it was; servers like to repeat themselves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// The node itself.
    pub self_node: bool,
    /// The peers.
    pub peers: PeersChange,
    /// Anything in the relay map.
    pub derp_map: bool,
    /// The regions that came, went, or have other relays now. Others changed in name or weight at most.
    pub derp_regions: BTreeSet<RegionId>,
    /// The packet filter.
    pub filters: bool,
    /// How names are resolved.
    pub dns: bool,
    /// Who may sign in by SSH.
    pub ssh_policy: bool,
    /// The tailnet's name, what is wrong or to be shown, the state of tailnet lock, and other small things.
    pub other: bool,
    /// Users that are new or other than before, and those that a new stream no longer told of.
    pub users: BTreeSet<UserId>,
    /// What is for once and not kept in the map.
    pub orders: Orders,
    /// What was left out, in the order in which it was met.
    pub skipped: Vec<Skipped>,
}

/// What changed in the peers, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeersChange {
    /// They are there now.
    pub added: Vec<NodeId>,
    /// They are other than before.
    pub changed: Vec<NodeId>,
    /// They are no more.
    pub removed: Vec<NodeId>,
}

impl PeersChange {
    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Change {
    /// Whether the map is as it was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let rest = Self { orders: Orders::default(), skipped: Vec::new(), ..self.clone() };
        rest == Self::default()
    }
}

/// What a message says for once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Orders {
    /// Something to answer.
    pub ping: Option<PingRequest>,
    /// A page to be shown to the user; empty is none.
    pub browser_url: String,
    /// The server's clock.
    pub control_time: Option<WallTime>,
    /// For the program.
    pub debug: Option<Debug>,
    /// Whether there is a newer program.
    pub client_version: Option<ClientVersion>,
    /// Where the server can be reached too.
    pub dial_plan: Option<ControlDialPlan>,
}

/// A part of a message that was left out, and why. The rest of the message counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Skipped {
    /// A peer whose number is not above 0.
    NoId(NodeId),
    /// A peer without a key, or with one of zeros.
    NoKey(NodeId),
    /// A peer with the number or the key of the node itself.
    Own(NodeId),
    /// An earlier entry of the same list for this peer.
    Repeated(NodeId),
    /// The first of the two: it has the key of the second. Of one message the first entry counts, of two the later.
    SameKey(NodeId, NodeId),
    /// So many routes of a peer, past [`crate::limits::ROUTES_PER_PEER`].
    Routes(NodeId, usize),
    /// A change of a peer that is not there.
    UnknownPeer(NodeId),
    /// A change of an offline peer that is older than what is known of it.
    Stale(NodeId),
    /// A region of the relay map that is null, whose number is none, or that says another number inside.
    Region(i64),
    /// A user past [`crate::limits::USER_PROFILES`].
    User(UserId),
    /// A name of a filter or a message past [`crate::limits::NETMAP_NAMES`].
    Name(String),
    /// Sources or destinations of a rule of the packet filter that are no addresses.
    FilterAddress(RuleName, String),
    /// The whole packet filter, for the obsolete fields of this rule.
    Filters(RuleName),
    /// So many destinations of the packet filter, past [`crate::limits::FILTER_CELLS`].
    Destinations(usize),
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoId(id) => write!(f, "a peer has the ID {id}: it must be above 0"),
            Self::NoKey(id) => write!(f, "peer {id} has no Key"),
            Self::Own(id) => write!(f, "peer {id} has the ID or the Key of the node itself"),
            Self::Repeated(id) => write!(f, "peer {id} is listed more than once: the last one counts"),
            Self::SameKey(id, other) => write!(f, "peer {id} has the Key of peer {other}"),
            Self::Routes(id, count) => write!(f, "peer {id} has too many routes: {count} are left out"),
            Self::UnknownPeer(id) => write!(f, "peer {id} is to be changed and is not there"),
            Self::Stale(id) => write!(f, "what is said of peer {id} is older than what is known"),
            Self::Region(number) => write!(f, "region {number} of the DERPMap is null or has no usable number"),
            Self::User(id) => write!(f, "user {} is one too many", id.0),
            Self::Name(name) => write!(f, "the name {name:?} is one too many"),
            Self::FilterAddress(rule, text) => {
                write!(f, "rule {rule} of the packet filter has {text:?}, which is no address")
            }
            Self::Filters(rule) => {
                write!(f, "rule {rule} has an obsolete field, so the packet filter admits nothing")
            }
            Self::Destinations(count) => {
                write!(f, "the packet filter is too large: {count} destinations with their ports are left out")
            }
        }
    }
}
