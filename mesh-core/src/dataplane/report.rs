//! What the fast path has to say besides packets.

use core::{fmt, net::SocketAddr};

use crate::{
    filter::{HeadersError, Refusal},
    limits,
    path::PathAddr,
    wireguard::timers::Edge,
};

use super::PeerId;

/// A packet that the tables cannot handle. The node owns it from here on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Punt {
    /// An IP packet for a peer without a usable session.
    Unsent {
        /// For whom.
        peer: PeerId,
        /// The packet as the host gave it.
        packet: Vec<u8>,
    },
    /// A handshake message or cookie reply. Initiations and responses have a right first MAC.
    Handshake {
        /// Where it came from.
        source: PathAddr,
        /// The whole datagram.
        datagram: Vec<u8>,
    },
    /// Transport data on a session that is not known here, as of one that ended with our last run.
    Stray {
        /// Where it came from.
        source: PathAddr,
    },
    /// A disco packet by a key that a peer has.
    Disco {
        /// Where it came from.
        source: PathAddr,
        /// The whole packet.
        datagram: Vec<u8>,
    },
    /// A STUN binding message.
    Stun {
        /// Where it came from.
        source: SocketAddr,
        /// The whole datagram.
        datagram: Vec<u8>,
    },
    /// What a node says to the other, not to its host.
    Tsmp {
        /// Who sent it.
        peer: PeerId,
        /// The IP packet.
        packet: Vec<u8>,
    },
    /// An ICMP echo reply that may belong to one of the node's own pings.
    EchoReply {
        /// Who sent it.
        peer: PeerId,
        /// The IP packet.
        packet: Vec<u8>,
    },
}

/// An edge that the fast path saw at a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    /// At which peer.
    pub peer: PeerId,
    /// What happened.
    pub edge: Edge,
    /// Where the packet that made the edge came from; `None` for outbound ones.
    pub source: Option<PathAddr>,
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a packet ended. Also an index into [`DropCounts`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl DropReason {
            /// All reasons, in order of their index.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name in metrics, reports and scenarios.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

drop_reasons! {
    /// From the host: no IPv4 or IPv6 packet, or its length is wrong.
    MalformedPacket = "malformed_packet",
    /// From the host: larger than a datagram can carry.
    TooLarge = "too_large",
    /// From the host: no peer has the destination among its allowed IPs.
    NoRoute = "no_route",
    /// From the host: the peer has a session but no known address.
    NoPath = "no_path",
    /// From the host: the batch that was to carry it had no room.
    BatchFull = "batch_full",
    /// From the host: more packets waited for the peer's session than [`limits::QUEUED_PACKETS_PER_PEER`].
    QueueFull = "queue_full",
    /// From the host: the peer did not answer the handshake, or was removed meanwhile, and the packet waited in vain.
    NoHandshake = "no_handshake",
    /// From the network: neither WireGuard nor disco nor STUN.
    NotWireguard = "not_wireguard",
    /// From the network: a disco packet by a key that no peer has.
    UnknownDiscoKey = "unknown_disco_key",
    /// From the network: a disco packet that does not open, as after a restart of either end.
    SealedDisco = "sealed_disco",
    /// From the network: a disco packet that opens and is not understood.
    MalformedDisco = "malformed_disco",
    /// From the network: a disco message of a kind that this node does not use.
    UnusedDisco = "unused_disco",
    /// From the network: a disco message whose node key, or the relay's word for it, is of another peer.
    ForeignDisco = "foreign_disco",
    /// For a peer whose relay region the relay map does not have.
    UnknownRegion = "unknown_region",
    /// From the network: transport data for a session that is not known here.
    UnknownSession = "unknown_session",
    /// From the network: transport data on a session past its age or count.
    ExpiredSession = "expired_session",
    /// From the network: transport data with a wrong tag.
    Forged = "forged",
    /// From the network: transport data that was received before, or is too far behind.
    Replayed = "replayed",
    /// From the network: well sealed, but what was inside is no IP packet.
    MalformedInner = "malformed_inner",
    /// From the network: well sealed, but the source address is not among the peer's allowed IPs.
    SourceNotAllowed = "source_not_allowed",
    /// From a peer: no rule of the packet filter allows it.
    FilterDenied = "filter_denied",
    /// From a peer: for an address that is neither ours nor routed to us.
    FilterNotLocal = "filter_not_local",
    /// From a peer or for one: for a multicast address.
    FilterMulticast = "filter_multicast",
    /// From a peer or for one: for a link-local address.
    FilterLinkLocal = "filter_link_local",
    /// From a peer or for one: a fragment that hides or could overwrite its transport header.
    FilterFragment = "filter_fragment",
    /// From a peer or for one: a header that is cut off or not understood, so that nobody can judge it.
    FilterUnknown = "filter_unknown",
    /// From the network: a handshake message whose first MAC is wrong.
    WrongMac1 = "wrong_mac1",
    /// From the network: a handshake message that could not be opened.
    MalformedHandshake = "malformed_handshake",
    /// From the network: an initiation by a key that is no peer of ours.
    UnknownPeer = "unknown_peer",
    /// From the network: an initiation whose timestamp is not newer than the last.
    ReplayedHandshake = "replayed_handshake",
    /// From the network: initiations of one peer closer together than 20 ms.
    HandshakeTooSoon = "handshake_too_soon",
    /// From the network: a response or cookie reply to nothing that we sent.
    UnexpectedResponse = "unexpected_response",
    /// From the network, while under load: no cookie yet, so a cookie reply was sent instead.
    CookieDemanded = "cookie_demanded",
    /// From the network, while under load: more handshakes from one address than allowed.
    RateLimited = "rate_limited",
    /// The peer's public key is a low-order point; no handshake with it is possible.
    WeakKey = "weak_key",
    /// The owner's queue was full.
    PuntsFull = "punts_full",
}

impl From<Refusal> for DropReason {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Headers(HeadersError::Fragment) => Self::FilterFragment,
            Refusal::Headers(HeadersError::Unknown) => Self::FilterUnknown,
            Refusal::Multicast => Self::FilterMulticast,
            Refusal::LinkLocal => Self::FilterLinkLocal,
            Refusal::NotLocal => Self::FilterNotLocal,
            Refusal::Denied => Self::FilterDenied,
        }
    }
}

/// How often packets ended, by reason.
#[derive(Clone, PartialEq, Eq)]
pub struct DropCounts([u64; DropReason::ALL.len()]);

impl Default for DropCounts {
    fn default() -> Self {
        Self([0; DropReason::ALL.len()])
    }
}

impl DropCounts {
    /// One more packet ended for `reason`.
    #[inline]
    pub fn add(&mut self, reason: DropReason) {
        self.add_many(reason, 1);
    }

    /// So many more packets ended for `reason`.
    #[inline]
    pub fn add_many(&mut self, reason: DropReason, packets: usize) {
        self.0[reason as usize] += packets as u64;
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count += more;
        }
    }

    /// How often packets ended for `reason`.
    #[must_use]
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// Every reason with its count, in order.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().copied().zip(self.0)
    }

    /// How often packets ended, for whatever reason.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl fmt::Debug for DropCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nonzero = self.iter().filter(|(_, count)| *count > 0);
        f.debug_map().entries(nonzero.map(|(reason, count)| (reason.name(), count))).finish()
    }
}

/// Takes what the fast path has to say besides packets.
pub trait Reports {
    /// A packet for the node.
    fn punt(&mut self, punt: Punt);
    /// An edge for the node.
    fn notice(&mut self, notice: Notice);
    /// A packet that ended here.
    fn dropped(&mut self, reason: DropReason);
}

/// Holds punts and notices until the driver hands them to the node, and counts drops.
///
/// Punts are bounded by [`limits::PUNTS`]; notices are bounded by the number of peers and edges.
#[derive(Debug, Default)]
pub struct ReportBuffer {
    /// In the order they came.
    pub punts: Vec<Punt>,
    /// In the order they came.
    pub notices: Vec<Notice>,
    /// Since the buffer was made, or since the driver took them.
    pub drops: DropCounts,
}

impl ReportBuffer {
    /// Whether there is nothing for the node.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.punts.is_empty() && self.notices.is_empty()
    }
}

impl Reports for ReportBuffer {
    fn punt(&mut self, punt: Punt) {
        if self.punts.len() < limits::PUNTS {
            self.punts.push(punt);
        } else {
            self.dropped(DropReason::PuntsFull);
        }
    }

    fn notice(&mut self, notice: Notice) {
        self.notices.push(notice);
    }

    fn dropped(&mut self, reason: DropReason) {
        self.drops.add(reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_indices_match() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::ALL.len());
        assert!(DropReason::ALL.iter().enumerate().all(|(index, reason)| *reason as usize == index));
    }

    #[test]
    fn punts_are_bounded() {
        let mut buffer = ReportBuffer::default();
        for _ in 0..limits::PUNTS + 3 {
            buffer.punt(Punt::Unsent { peer: PeerId::new(0), packet: vec![] });
        }
        assert_eq!(buffer.punts.len(), limits::PUNTS);
        assert_eq!(buffer.drops.get(DropReason::PuntsFull), 3);
    }
}
