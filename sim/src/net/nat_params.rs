//! What a NAT is told to be: the record of its parameters.
//!
//! The defaults are those of a Linux router that masquerades with its WAN input dropped
//! ([`NatParams::LINUX_FILTERED`]); everything else is told as a difference from that.

use core::{fmt, time::Duration};

/// How a NAT behaves. Times are simulated time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct NatParams {
    /// The profile's name, in reports.
    pub profile: &'static str,
    /// Whether flows of one internal endpoint share a mapped endpoint.
    pub mapping: Mapping,
    /// Who may send to a mapped endpoint.
    pub filter: Filter,
    /// Whose sessions the filter looks at.
    pub filter_scope: FilterScope,
    /// Which port a new mapping gets.
    pub alloc: Alloc,
    /// The ports that there are.
    pub port_range: PortRange,
    /// What happens when the port is taken.
    pub collision: Collision,
    /// Whether a new flow uses what its internal endpoint has already, as far as `mapping` lets it. Without it the
    /// allocator is asked for every flow.
    pub reuse_newest: bool,
    /// The addresses that the NAT shows.
    pub pool: Pool,
    /// Ports given out to hosts in blocks; `None` gives every host the whole range.
    pub port_block: Option<PortBlock>,
    /// Sessions of one internal address at most; a new one beyond that is dropped.
    pub per_host_limit: Option<usize>,
    /// Sessions at most.
    pub table_max: usize,
    /// What happens to a new flow when there are so many.
    pub full_policy: FullPolicy,
    /// How long a session without an answer lives.
    pub timeout_unreplied: Duration,
    /// How long an answered session lives.
    pub timeout_replied: Duration,
    /// How long a session lives that was answered and is older than `stream_after`.
    pub timeout_stream: Duration,
    /// See `timeout_stream`.
    pub stream_after: Duration,
    /// Whether a packet from inside makes the session live longer.
    pub refresh_out: Refresh,
    /// Whether a packet from outside does.
    pub refresh_in: Refresh,
    /// Whether a packet from outside that refreshes the session lets its remote in for longer, too.
    pub filter_refresh_in: Refresh,
    /// Whether an internal endpoint whose sessions have all ended is treated as a new one. Otherwise it gets a
    /// random port from then on: a port is not kept over a silence.
    pub expiry_keeps_port: bool,
    /// What happens to an inbound packet that belongs to nothing.
    pub early_inbound: EarlyInbound,
    /// What happens to a packet from inside to an address that the NAT shows.
    pub hairpin: Hairpin,
    /// Whether the NAT counts as a router for the hop limit.
    pub ttl: Ttl,
    /// How long a TCP session lives that was answered. Other parameters are those of UDP.
    pub timeout_tcp: Duration,
}

/// Whether flows of one internal endpoint share a mapped endpoint (RFC 4787 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Endpoint-independent: a new flow reuses a mapped port of its internal endpoint if that is free for it.
    EndpointIndependent,
    /// Address-dependent: flows to one remote address share.
    AddressDependent,
    /// Address- and port-dependent: every remote sees a port of its own.
    AddressAndPortDependent,
}

/// Who may send to a mapped endpoint (RFC 4787 §5), the strictest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filter {
    /// Everybody.
    EndpointIndependent,
    /// Addresses that were sent to.
    AddressDependent,
    /// Only exact remotes that were sent to. Linux has no other: what is not the reply tuple of a session is nothing.
    AddressAndPortDependent,
}

/// Whose sessions a filter looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterScope {
    /// Those of the mapped endpoint that the packet is for: what another mapping of the same host opened stays
    /// closed here.
    Mapping,
    /// Those of the internal endpoint behind it.
    InternalEndpoint,
}

/// Which port a new mapping gets (RFC 4787 §4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alloc {
    /// The internal port; when that would collide, the next free one above it.
    Preserve,
    /// The internal port; when that would collide, a random one.
    PreserveOrRandom,
    /// The port after the last one.
    Sequential {
        /// From one to the next.
        delta: u16,
        /// Up to so many ports more: others open mappings as well.
        jitter: u16,
    },
    /// A random one, always.
    Random,
    /// The lowest free one: mappings of a host lie side by side, in its block if there are blocks.
    ContiguousBlock,
    /// The internal port; when that would collide, a random one that is even or odd as it is.
    Parity,
}

/// The ports that mappings are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortRange {
    /// As Linux: an internal port is kept whatever it is, and its replacement is of its class: 1–511, 600–1023 or
    /// 1024–65535.
    LinuxClasses,
    /// From the first to the second, both included; a port outside is not kept.
    Within(u16, u16),
}

/// What happens when the port that a flow should get is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collision {
    /// Taken is a reply tuple: two hosts may have one port to different remotes. The flow gets another port, and
    /// later flows of the same internal endpoint follow its newest one. Linux.
    RemapFlow,
    /// Taken is a mapped endpoint, whoever the remotes are: the internal endpoint gets another for everybody.
    RemapEndpoint,
    /// Taken is a reply tuple; the flow gets another port and no other flow does: they stay with the oldest one.
    Overload,
    /// Taken is a reply tuple, and the flow ends there.
    Drop,
}

/// The addresses that a NAT shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// How many there are, at least 1.
    pub addresses: u16,
    /// Which of them a flow gets.
    pub pairing: Pairing,
}

/// Which address of a pool a flow gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// All flows of an internal address have the same (RFC 4787 REQ-2).
    Paired,
    /// Any, for every new mapping.
    Arbitrary,
}

/// Ports given out to hosts in blocks (RFC 6888, RFC 7422).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortBlock {
    /// Ports of a block.
    pub size: u16,
    /// Blocks of one internal address at most.
    pub max_blocks: u16,
    /// Whether a host always has the same.
    pub assignment: Assignment,
}

/// How hosts come by their blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assignment {
    /// They follow from the internal address.
    Static,
    /// They are drawn when the first or the next is needed, and given back when the host has no session.
    Dynamic,
}

/// What happens to a new flow when the table is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FullPolicy {
    /// It is dropped. Linux.
    DropNew,
    /// The session that was used the longest time ago ends.
    EvictLru,
    /// The oldest session without an answer ends; when all are answered the new flow is dropped.
    EvictUnreplied,
    /// A random session ends.
    EvictRandom,
}

/// Whether a packet makes a session live longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refresh {
    /// It does.
    Yes,
    /// It does not.
    No,
}

/// What happens to an inbound packet that belongs to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EarlyInbound {
    /// Dropped silently: WAN input is filtered.
    Ignore,
    /// Accepted by the router itself, which makes a session of it: a host inside then finds its tuple taken.
    Clash,
    /// Refused: the sender is told, and nothing is kept of it.
    AnswerIcmp,
}

/// What happens to a packet from inside to an address that the NAT shows (RFC 4787 REQ-9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hairpin {
    /// It is the router's own, which has no use for it.
    Off,
    /// It comes back in with the sender's internal address as its source.
    InternalSource,
    /// It comes back in with the sender's mapped address as its source.
    ExternalSource,
}

/// Whether the NAT counts as a router for the hop limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// One less behind it.
    Decrement,
    /// Unchanged.
    Keep,
}

/// How long a TCP session lives that was not answered: that of a connection that is being made (RFC 5382 REQ-5).
pub(super) const TCP_UNREPLIED: Duration = Duration::from_secs(240);

impl NatParams {
    /// What holds for TCP: mappings of its own (RFC 7857), made the same way, that live longer.
    #[must_use]
    pub(super) fn for_tcp(self) -> Self {
        Self {
            timeout_unreplied: TCP_UNREPLIED,
            timeout_replied: self.timeout_tcp,
            timeout_stream: self.timeout_tcp,
            ..self
        }
    }
}

impl Pool {
    /// One address.
    pub const SINGLE: Self = Self { addresses: 1, pairing: Pairing::Paired };
}

/// Part of what a run's digest is about. The parameters that came later are told where they differ from a home
/// router's, so that what was recorded before them stays good.
impl fmt::Debug for NatParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usual = &Self::LINUX_FILTERED;
        let mut out = f.debug_struct("NatParams");
        out.field("profile", &self.profile)
            .field("mapping", &self.mapping)
            .field("filter", &self.filter)
            .field("alloc", &self.alloc)
            .field("table_max", &self.table_max)
            .field("timeout_unreplied", &self.timeout_unreplied)
            .field("timeout_replied", &self.timeout_replied)
            .field("timeout_stream", &self.timeout_stream)
            .field("stream_after", &self.stream_after)
            .field("refresh_out", &self.refresh_out)
            .field("refresh_in", &self.refresh_in)
            .field("early_inbound", &self.early_inbound)
            .field("ttl", &self.ttl);
        let later: [(&str, &dyn fmt::Debug, bool); 12] = [
            ("filter_scope", &self.filter_scope, self.filter_scope == usual.filter_scope),
            ("port_range", &self.port_range, self.port_range == usual.port_range),
            ("collision", &self.collision, self.collision == usual.collision),
            ("reuse_newest", &self.reuse_newest, self.reuse_newest == usual.reuse_newest),
            ("pool", &self.pool, self.pool == usual.pool),
            ("port_block", &self.port_block, self.port_block == usual.port_block),
            ("per_host_limit", &self.per_host_limit, self.per_host_limit == usual.per_host_limit),
            ("full_policy", &self.full_policy, self.full_policy == usual.full_policy),
            ("filter_refresh_in", &self.filter_refresh_in, self.filter_refresh_in == usual.filter_refresh_in),
            ("expiry_keeps_port", &self.expiry_keeps_port, self.expiry_keeps_port == usual.expiry_keeps_port),
            ("hairpin", &self.hairpin, self.hairpin == usual.hairpin),
            ("timeout_tcp", &self.timeout_tcp, self.timeout_tcp == usual.timeout_tcp),
        ];
        for (name, value, _) in later.into_iter().filter(|(_, _, is_usual)| !is_usual) {
            out.field(name, value);
        }
        out.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_digest_is_about_does_not_move_with_new_parameters_and_does_with_their_values() {
        let text = |params: &NatParams| format!("{params:?}");
        let usual = NatParams::LINUX_FILTERED;
        assert_eq!(
            text(&usual),
            "NatParams { profile: \"linux-filtered\", mapping: EndpointIndependent, filter: AddressAndPortDependent, \
             alloc: PreserveOrRandom, table_max: 65536, timeout_unreplied: 30s, timeout_replied: 30s, \
             timeout_stream: 120s, stream_after: 2s, refresh_out: Yes, refresh_in: Yes, early_inbound: Ignore, \
             ttl: Decrement }"
        );
        let other = NatParams { hairpin: Hairpin::ExternalSource, reuse_newest: false, ..usual };
        assert!(text(&other).ends_with("ttl: Decrement, reuse_newest: false, hairpin: ExternalSource }"));
    }
}
