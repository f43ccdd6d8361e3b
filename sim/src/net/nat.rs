//! A stateful NAT for UDP over IPv4: a record of parameters and the packet algorithm over it.
//!
//! What decides outcomes is modelled after Linux netfilter: a NAT does not have "a mapping type", it has sessions
//! with reply tuples that must not collide. That a host shows one port to everybody is a statement about no
//! collision; where two hosts want one tuple, the second gets another port for that remote, and reuses its
//! newest port from then on. A session lives 30 s, or 120 s once it has been answered and is older than 2 s.
//!
//! The behaviours are data ([`NatParams`]); profiles are in `nat_presets`. Sessions and their expiry are in
//! `nat_table`.

use core::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use mesh_core::{rng::Rng, time::Instant};

use super::nat_table::{Flow, NatTable, Owner, SessionId};

/// Tries for a free replacement port before the NAT is exhausted for a flow. Linux scans a range as well, and
/// gives up early when it is crowded.
const PORT_TRIES: u32 = 65_536;

/// How a NAT behaves. Times are simulated time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatParams {
    /// The profile's name, in reports.
    pub profile: &'static str,
    /// Whether flows of one internal endpoint share a mapped endpoint.
    pub mapping: Mapping,
    /// Who may send to a mapped endpoint.
    pub filter: Filter,
    /// Which port a new mapping gets.
    pub alloc: Alloc,
    /// Sessions at most; a new one beyond that is dropped.
    pub table_max: usize,
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
    /// What happens to an inbound packet that belongs to nothing.
    pub early_inbound: EarlyInbound,
    /// Whether the NAT counts as a router for the hop limit.
    pub ttl: Ttl,
}

/// Whether flows of one internal endpoint share a mapped endpoint (RFC 4787 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Endpoint-independent: a new flow reuses the newest mapped port of its internal endpoint if that is free for it.
    EndpointIndependent,
    /// Address- and port-dependent: every remote sees a port of its own.
    AddressAndPortDependent,
}

/// Who may send to a mapped endpoint (RFC 4787 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Only exact remotes that were sent to. Linux has no other: what is not the reply tuple of a session is nothing.
    AddressAndPortDependent,
}

/// Which port a new mapping gets (RFC 4787 §4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alloc {
    /// The internal port; when that would collide, a random one of its Linux class (1–511, 600–1023, 1024–65535).
    PreserveOrRandom,
    /// A random one of the class, always.
    Random,
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
}

/// Whether the NAT counts as a router for the hop limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// One less behind it.
    Decrement,
    /// Unchanged.
    Keep,
}

/// One NAT.
#[derive(Debug)]
pub struct Nat {
    params: NatParams,
    outer: Ipv4Addr,
    table: NatTable,
    rng: Rng,
    counts: NatCounts,
}

/// What a NAT did, and what it must never do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatCounts {
    /// Sessions that were made.
    pub sessions: u64,
    /// Flows for which there was no port or no room.
    pub exhausted: u64,
    /// Mappings that did not keep the internal port.
    pub remapped: u64,
    /// Live sessions that shared a reply tuple with another. A bug of the model when it is not 0.
    pub shared_tuples: u64,
}

/// What becomes of a packet at a NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translated {
    /// It goes on with this source (outbound) or destination (inbound).
    To(SocketAddrV4),
    /// There is no session or mapping that lets it in.
    Filtered,
    /// There is no port or no room left.
    Exhausted,
    /// It had passed too many routers; the session was made nevertheless.
    TtlExpired,
    /// It is for the NAT's own outer address, from inside.
    Hairpin,
    /// It is for the NAT itself.
    Local,
}

impl Nat {
    /// A NAT that shows `outer`.
    #[must_use]
    pub fn new(params: NatParams, outer: Ipv4Addr, rng: Rng) -> Self {
        Self { params, outer, table: NatTable::new(), rng, counts: NatCounts::default() }
    }

    /// A packet from inside. Decrements `ttl` as the parameters say.
    pub fn handle_outbound(&mut self, from: SocketAddrV4, to: SocketAddrV4, ttl: &mut u8, now: Instant) -> Translated {
        self.table.expire(now);
        let flow = Flow { internal: from, remote: to };
        let session = match self.table.by_flow(flow) {
            Some(session) => {
                if self.params.refresh_out == Refresh::Yes {
                    self.refresh(session, now);
                }
                session
            }
            None => match self.admit(flow, now) {
                Some(session) => session,
                None => {
                    self.counts.exhausted += 1;
                    return Translated::Exhausted;
                }
            },
        };
        let mapped = self.table.mapped(session);
        // After the session: a packet with a low hop limit opens the way for the answer and dies behind the NAT.
        if !self.pass(ttl) {
            return Translated::TtlExpired;
        }
        if *to.ip() == self.outer {
            return Translated::Hairpin;
        }
        Translated::To(mapped)
    }

    /// A packet from outside. Decrements `ttl` as the parameters say.
    pub fn handle_inbound(&mut self, from: SocketAddrV4, to: SocketAddrV4, ttl: &mut u8, now: Instant) -> Translated {
        self.table.expire(now);
        let session = match self.params.filter {
            Filter::AddressAndPortDependent => self.table.by_reply(to, from),
        };
        let Some(session) = session else { return self.early(from, to, now) };
        self.table.note_replied(session);
        if self.params.refresh_in == Refresh::Yes {
            self.refresh(session, now);
        }
        match self.table.owner(session) {
            Owner::Router => Translated::Local,
            Owner::Inside(internal) => {
                if self.pass(ttl) {
                    Translated::To(internal)
                } else {
                    Translated::TtlExpired
                }
            }
        }
    }

    /// Forgets everything, as a router does that lost its power.
    pub fn reboot(&mut self, outer: Ipv4Addr) {
        self.table.clear();
        self.outer = outer;
    }

    /// The address that it shows.
    #[must_use]
    pub fn outer(&self) -> Ipv4Addr {
        self.outer
    }

    /// How it behaves.
    #[must_use]
    pub fn params(&self) -> &NatParams {
        &self.params
    }

    /// What it did.
    #[must_use]
    pub fn counts(&self) -> &NatCounts {
        &self.counts
    }

    /// Sessions that live at `now`.
    pub fn sessions(&mut self, now: Instant) -> usize {
        self.table.expire(now);
        self.table.len()
    }

    fn early(&mut self, from: SocketAddrV4, to: SocketAddrV4, now: Instant) -> Translated {
        match self.params.early_inbound {
            EarlyInbound::Ignore => Translated::Filtered,
            EarlyInbound::Clash => {
                if self.table.len() < self.params.table_max {
                    let flow = Flow { internal: to, remote: from };
                    self.record(flow, to, Owner::Router, now);
                }
                Translated::Local
            }
        }
    }

    /// A session for a new flow; `None` when there is no port or no room.
    fn admit(&mut self, flow: Flow, now: Instant) -> Option<SessionId> {
        if self.table.len() >= self.params.table_max {
            return None;
        }
        let mapped = self.choose(flow)?;
        self.counts.remapped += u64::from(mapped.port() != flow.internal.port());
        Some(self.record(flow, mapped, Owner::Inside(flow.internal), now))
    }

    fn choose(&mut self, flow: Flow) -> Option<SocketAddrV4> {
        let newest = match self.params.mapping {
            Mapping::EndpointIndependent => self.table.newest_mapped(flow.internal),
            Mapping::AddressAndPortDependent => None,
        };
        if let Some(mapped) = newest.filter(|mapped| self.is_free(*mapped, flow.remote)) {
            return Some(mapped);
        }
        let preserved = SocketAddrV4::new(self.outer, flow.internal.port());
        if self.params.alloc == Alloc::PreserveOrRandom && self.is_free(preserved, flow.remote) {
            return Some(preserved);
        }
        let (low, high) = port_class(flow.internal.port());
        let ports = u32::from(high - low) + 1;
        let start = self.rng.below(u64::from(ports)) as u32;
        (0..ports.min(PORT_TRIES))
            .map(|step| SocketAddrV4::new(self.outer, low + ((start + step) % ports) as u16))
            .find(|mapped| self.is_free(*mapped, flow.remote))
    }

    fn is_free(&self, mapped: SocketAddrV4, remote: SocketAddrV4) -> bool {
        self.table.by_reply(mapped, remote).is_none()
    }

    fn record(&mut self, flow: Flow, mapped: SocketAddrV4, owner: Owner, now: Instant) -> SessionId {
        self.counts.sessions += 1;
        self.counts.shared_tuples += u64::from(!self.is_free(mapped, flow.remote));
        self.table.insert(flow, mapped, owner, now, now + self.params.timeout_unreplied)
    }

    fn refresh(&mut self, session: SessionId, now: Instant) {
        let timeout = match self.table.replied_for(session, now) {
            Some(age) if age > self.params.stream_after => self.params.timeout_stream,
            Some(_) => self.params.timeout_replied,
            None => self.params.timeout_unreplied,
        };
        self.table.set_deadline(session, now + timeout);
    }

    fn pass(&self, ttl: &mut u8) -> bool {
        if self.params.ttl == Ttl::Decrement {
            *ttl = ttl.saturating_sub(1);
        }
        *ttl > 0
    }
}

/// The class of ports that a replacement for `port` is drawn from, both ends included (measured on Linux 6.18).
fn port_class(port: u16) -> (u16, u16) {
    match port {
        0..=511 => (1, 511),
        512..=1023 => (600, 1023),
        1024.. => (1024, 65_535),
    }
}
