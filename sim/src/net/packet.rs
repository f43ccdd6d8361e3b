//! A datagram of the underlay.

use core::net::SocketAddr;

use mesh_core::{disco, stun, wireguard::Kind};

use super::segment::Segment;
use crate::{host::HostId, kernel::trace::digest_of};

/// Bytes of IPv4 and UDP header in front of a payload.
pub const HEADER_BYTES: usize = 28;

/// By how much a header of IPv6 is longer.
const V6_BYTES: usize = 20;

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proto {
    /// A UDP datagram.
    Udp,
    /// A [segment](super::segment::Segment) of a stream.
    Tcp,
}

/// A packet on its way.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Its number in this run; a copy keeps the number.
    pub number: u64,
    /// The host that sent it. The network forwards by addresses alone; this is for the checks.
    pub origin: HostId,
    /// What it carries.
    pub proto: Proto,
    /// Where it says that it comes from; NATs rewrite it.
    pub source: SocketAddr,
    /// Where it goes; NATs rewrite it.
    pub destination: SocketAddr,
    /// Routers that it may still pass.
    pub ttl: u8,
    /// The UDP payload, or the segment.
    pub payload: Vec<u8>,
    /// Digest of the payload, kept right by whoever changes the payload.
    pub digest: u128,
}

impl Packet {
    /// Bytes of the IP packet.
    #[must_use]
    pub fn ip_bytes(&self) -> usize {
        self.payload.len() + HEADER_BYTES + if self.source.is_ipv6() { V6_BYTES } else { 0 }
    }

    /// Whether it says that its stream is no more.
    pub(super) fn is_reset(&self) -> bool {
        self.proto == Proto::Tcp && Segment::is_reset(&self.payload)
    }

    /// One router more.
    pub(super) fn pass_router(&mut self) -> Result<(), DropCause> {
        self.ttl = self.ttl.saturating_sub(1);
        if self.ttl == 0 { Err(DropCause::TtlExpired) } else { Ok(()) }
    }

    /// Flips one bit of the payload; `bit` is taken modulo the payload's length.
    pub fn flip(&mut self, bit: u64) {
        let bits = self.payload.len() as u64 * 8;
        if bits > 0 {
            let bit = bit % bits;
            self.payload[(bit / 8) as usize] ^= 1 << (bit % 8);
            self.digest = digest_of(&self.payload);
        }
    }
}

/// What a packet is, datagrams by their first bytes: what is counted under `packets`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PacketKind {
    /// Handshake initiation, response or cookie reply.
    WireguardHandshake,
    /// Transport data, keepalives among it.
    WireguardData,
    /// Disco messages.
    Disco,
    /// STUN requests and responses.
    Stun,
    /// Segments of streams.
    Stream,
    /// Anything else.
    Other,
}

impl PacketKind {
    /// All kinds, in order.
    pub const ALL: [Self; 6] =
        [Self::WireguardHandshake, Self::WireguardData, Self::Disco, Self::Stun, Self::Stream, Self::Other];

    /// What this is.
    #[must_use]
    pub fn of(proto: Proto, payload: &[u8]) -> Self {
        if proto == Proto::Tcp {
            return Self::Stream;
        }
        match Kind::of(payload) {
            Some(Kind::Initiation | Kind::Response { .. } | Kind::CookieReply { .. }) => Self::WireguardHandshake,
            Some(Kind::Transport { .. }) => Self::WireguardData,
            None if payload.starts_with(&disco::MAGIC) => Self::Disco,
            None if stun::is_binding(payload) => Self::Stun,
            None => Self::Other,
        }
    }

    /// The name in reports and scenarios.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::WireguardHandshake => "wireguard_handshake",
            Self::WireguardData => "wireguard_data",
            Self::Disco => "disco",
            Self::Stun => "stun",
            Self::Stream => "stream",
            Self::Other => "other",
        }
    }
}

macro_rules! drop_causes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why the network ended a datagram. Also an index into [`CauseCounts`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum DropCause {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl DropCause {
            /// All causes, in order of their index.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name in reports.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

drop_causes! {
    /// A link lost it.
    Loss = "link_loss",
    /// A link was down.
    LinkDown = "link_down",
    /// A link's queue was full.
    QueueFull = "link_queue_full",
    /// Larger than a link's MTU.
    TooBig = "link_too_big",
    /// It had passed too many routers.
    TtlExpired = "ttl_expired",
    /// Nobody has the destination address.
    NoHost = "no_host",
    /// The destination host has no socket on the port.
    PortClosed = "port_closed",
    /// The destination host was down.
    HostDown = "host_down",
    /// A NAT had no session or mapping that lets it in.
    NatFiltered = "nat_filtered",
    /// A NAT had no port or no room left.
    NatExhausted = "nat_exhausted",
    /// Sent from inside to the NAT's own outer address.
    NatHairpin = "nat_hairpin",
    /// Meant for the NAT itself.
    NatLocal = "nat_local",
    /// A NAT had no session or mapping that lets it in, and its sender was told.
    NatRejected = "nat_rejected",
    /// A firewall does not let this kind pass.
    FirewallBlocked = "firewall_blocked",
    /// A firewall had seen nothing that it answers.
    FirewallUnsolicited = "firewall_unsolicited",
}

/// How often datagrams ended, by cause.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CauseCounts([u64; DropCause::ALL.len()]);

impl CauseCounts {
    /// One more.
    pub fn add(&mut self, cause: DropCause) {
        self.0[cause as usize] += 1;
    }

    /// Every cause with its count, in order.
    pub fn iter(&self) -> impl Iterator<Item = (DropCause, u64)> + '_ {
        DropCause::ALL.iter().copied().zip(self.0)
    }

    /// How often, for whatever cause.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_changes_the_digest_and_flips_back() {
        let payload = vec![4, 0, 0, 0, 9];
        let address = SocketAddr::from(([198, 19, 0, 1], 1));
        let mut packet = Packet {
            number: 0,
            origin: HostId(0),
            proto: Proto::Udp,
            source: address,
            destination: address,
            ttl: 64,
            digest: digest_of(&payload),
            payload: payload.clone(),
        };
        let before = packet.digest;
        packet.flip(1003);
        assert_ne!((packet.digest, &packet.payload), (before, &payload));
        packet.flip(1003);
        assert_eq!((packet.digest, packet.payload), (before, payload));
    }

    #[test]
    fn kinds_go_by_the_first_bytes_and_the_size() {
        let mut initiation = vec![0; 148];
        initiation[0] = 1;
        assert_eq!(PacketKind::of(Proto::Udp, &initiation), PacketKind::WireguardHandshake);
        initiation[0] = 4;
        assert_eq!(PacketKind::of(Proto::Udp, &initiation), PacketKind::WireguardData);
        assert_eq!(PacketKind::of(Proto::Udp, b"hello"), PacketKind::Other);
        assert_eq!(PacketKind::of(Proto::Udp, &disco::MAGIC), PacketKind::Disco);
        assert_eq!(PacketKind::of(Proto::Udp, &stun::request(stun::TxId([1; 12]))), PacketKind::Stun);
        assert_eq!(PacketKind::of(Proto::Tcp, &initiation), PacketKind::Stream);
    }
}
