//! What [`PeerPaths`](super::PeerPaths) is made with, what it has to say, and what it counts.

use core::{net::SocketAddr, time::Duration};

use crate::{disco::Message, key::NodePublic};

use super::{Selection, Via};

/// What all paths of one peer are made with.
#[derive(Clone, Copy, Debug)]
pub struct PathsConfig {
    /// Our node key, named in pings.
    pub node: NodePublic,
    /// How our own NAT is opened.
    pub opening: Opening,
}

/// How our own NAT is opened for the peer's pings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// By ordinary pings.
    Plain,
    /// By pings that die on the way, and ordinary ones a quarter of a second later. A NAT that keeps state for what
    /// comes in unasked (Linux without a firewall) changes our port when the peer's NAT sees our ping before the peer's.
    LowTtl,
}

/// How far a datagram should go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All the way.
    Peer,
    /// Past our own NAT and not to the peer's: with a low TTL.
    Opener,
}

/// What a peer's paths have to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Seal this for the peer and send it.
    Send {
        /// Which way.
        via: Via,
        /// What.
        message: Message,
        /// How far.
        reach: Reach,
    },
    /// From now on packets are sent like this.
    Selected(Selection),
}

/// One address at which a peer may be, for people: what it showed, and why it is used or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CandidateReport {
    /// Where.
    pub address: SocketAddr,
    /// The network map lists it.
    pub in_netmap: bool,
    /// The peer's last call-me-maybe listed it.
    pub in_call: bool,
    /// How long ago a pong from there came, or a ping, or it became known.
    pub heard_ago: Duration,
    /// How long ago a pong to a ping of ours came, and its smoothed round trip. None: it never answered.
    pub pong: Option<(Duration, Duration)>,
    /// Why it is used or not.
    pub verdict: Verdict,
}

/// Why an address is used or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Packets go there.
    InUse,
    /// Packets go there and over the relay: it did not answer lately.
    InDoubt,
    /// It answers, and the one in use is as good or better.
    NotBetter,
    /// It answered once, and not lately.
    Stale,
    /// It never answered a ping.
    Silent,
}

impl Verdict {
    /// A few words.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::InUse => "in use",
            Self::InDoubt => "in use beside the relay: it did not answer lately",
            Self::NotBetter => "answers, and is not better than the one in use",
            Self::Stale => "answered once, and not lately",
            Self::Silent => "never answered a ping",
        }
    }
}

/// What has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathsStats {
    /// Pings sent, of whatever kind.
    pub pings_sent: u64,
    /// Of these, pings back to where a ping came from.
    pub pings_back: u64,
    /// Pings of the peer that were answered.
    pub pings_answered: u64,
    /// Pings of the peer that were not, for the budget.
    pub pings_over_budget: u64,
    /// Pongs to pings that were under way.
    pub pongs: u64,
    /// Pongs to none, to one too old or already answered, or over the relay.
    pub unknown_pongs: u64,
    /// Call-me-maybes sent.
    pub calls_sent: u64,
    /// Call-me-maybes heeded.
    pub calls_heeded: u64,
    /// Call-me-maybes that were not, for the budget.
    pub calls_over_budget: u64,
    /// Pings that were not sent to an address of which nothing but pings says that the peer is there.
    pub pings_without_credit: u64,
    /// Addresses from lists and pings that cannot be used or were too many.
    pub addresses_refused: u64,
    /// Times a path in use fell into doubt.
    pub doubts: u64,
    /// Times a path in use was dropped without another.
    pub drops: u64,
    /// Changes of how packets are sent.
    pub selections: u64,
}
