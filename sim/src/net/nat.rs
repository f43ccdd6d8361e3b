//! A stateful NAT for UDP over IPv4: the packet algorithm over a record of parameters.
//!
//! What decides outcomes is modelled after Linux netfilter: a NAT does not have "a mapping type", it has sessions
//! with reply tuples that must not collide. That a host shows one port to everybody is a statement about no
//! collision; where two hosts want one tuple, the second gets another port for that remote, and reuses its
//! newest port from then on. A session lives 30 s, or 120 s once it has been answered and is older than 2 s.
//!
//! The behaviours are data (`nat_params`); profiles are in `nat_presets`. Which port a flow gets is decided in
//! `nat_ports`; sessions and their expiry are in `nat_table`.

use core::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use mesh_core::{rng::Rng, time::Instant};

use super::{
    nat_ports::Ports,
    nat_table::{Flow, NatTable, NewSession, Owner, SessionId, Side},
};

pub use super::nat_params::{
    Alloc, Assignment, Collision, EarlyInbound, Filter, FilterScope, FullPolicy, Hairpin, Mapping, NatParams, Pairing,
    Pool, PortBlock, PortRange, Refresh, Ttl,
};

/// How long a session lasts after its stream was reset (Linux: `nf_conntrack_tcp_timeout_close`).
pub(super) const RESET: Duration = Duration::from_secs(10);

/// One NAT.
#[derive(Debug)]
pub struct Nat {
    params: NatParams,
    ports: Ports,
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
    /// Sessions that ended because another needed their room.
    pub evicted: u64,
    /// Sessions that lived at once, at most.
    pub most: usize,
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
    /// It is for the NAT's own outer address, from inside, and the NAT has no use for that.
    Hairpin,
    /// It is for the NAT's own outer address, from inside, and goes back in.
    Hairpinned {
        /// What it says that it comes from.
        source: SocketAddrV4,
        /// The internal endpoint that it is for.
        destination: SocketAddrV4,
    },
    /// It is for the NAT itself.
    Local,
    /// There is no session or mapping that lets it in, and its sender is told.
    Rejected,
}

impl Nat {
    /// A NAT that shows the addresses `outers`, of which there is at least one.
    #[must_use]
    pub fn new(params: NatParams, outers: &[Ipv4Addr], rng: Rng) -> Self {
        let ports = Ports::new(outers);
        Self { params, ports, table: NatTable::new(), rng, counts: NatCounts::default() }
    }

    /// A packet from inside. Decrements `ttl` as the parameters say.
    pub fn handle_outbound(&mut self, from: SocketAddrV4, to: SocketAddrV4, ttl: &mut u8, now: Instant) -> Translated {
        self.table.expire(now);
        let is_hairpin = self.ports.outers().contains(to.ip());
        // To the router itself: nothing that it sends outside, so nothing that would be translated.
        if is_hairpin && self.params.hairpin == Hairpin::Off {
            return Translated::Hairpin;
        }
        let flow = Flow { internal: from, remote: to };
        let session = match self.table.by_flow(flow) {
            Some(session) => {
                self.note_packet(session, Side::Inside, now);
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
        if !is_hairpin {
            return Translated::To(mapped);
        }
        let source = if self.params.hairpin == Hairpin::InternalSource { from } else { mapped };
        match self.accept(mapped, to, now) {
            Ok(destination) => Translated::Hairpinned { source, destination },
            Err(refused) => refused,
        }
    }

    /// A packet from outside. Decrements `ttl` as the parameters say.
    pub fn handle_inbound(&mut self, from: SocketAddrV4, to: SocketAddrV4, ttl: &mut u8, now: Instant) -> Translated {
        self.table.expire(now);
        match self.accept(from, to, now) {
            Ok(internal) if self.pass(ttl) => Translated::To(internal),
            Ok(_) => Translated::TtlExpired,
            Err(refused) => refused,
        }
    }

    /// Forgets everything, as a router does that lost its power, and shows the addresses `outers` from then on.
    pub fn reboot(&mut self, outers: &[Ipv4Addr]) {
        self.table.clear();
        self.ports = Ports::new(outers);
    }

    /// Behaves otherwise from now on. Sessions go on as they are, and so do the addresses that it shows.
    pub fn set_params(&mut self, params: NatParams) {
        self.params = params;
    }

    /// The first address that it shows.
    #[must_use]
    pub fn outer(&self) -> Ipv4Addr {
        self.ports.outers()[0]
    }

    /// The addresses that it shows.
    #[must_use]
    pub fn outers(&self) -> &[Ipv4Addr] {
        self.ports.outers()
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

    /// Whose a packet from outside is; otherwise what becomes of it.
    fn accept(&mut self, from: SocketAddrV4, to: SocketAddrV4, now: Instant) -> Result<SocketAddrV4, Translated> {
        let exact = self.table.by_reply(to, from);
        if let Some(session) = exact
            && self.table.owner(session) == Owner::Router
        {
            self.note_packet(session, Side::Outside, now);
            return Err(Translated::Local);
        }
        let session = match exact.filter(|session| self.table.admits(*session, now)) {
            Some(session) => session,
            None => {
                let Some(internal) = self.let_in(from, to, now) else { return Err(self.early(from, to, now)) };
                match exact.or_else(|| self.table.by_flow(Flow { internal, remote: from })) {
                    Some(session) => session,
                    None => return self.open_from_outside(from, to, internal, now),
                }
            }
        };
        self.note_packet(session, Side::Outside, now);
        match self.table.owner(session) {
            Owner::Inside(internal) => Ok(internal),
            Owner::Router => Err(Translated::Local),
        }
    }

    /// Whose mapping lets a packet in that belongs to no session, or whose session is closed to its remote.
    fn let_in(&self, from: SocketAddrV4, to: SocketAddrV4, now: Instant) -> Option<SocketAddrV4> {
        let NatParams { filter, filter_scope, .. } = self.params;
        if filter == Filter::AddressAndPortDependent && filter_scope == FilterScope::Mapping {
            return None;
        }
        let is_open = |id: SessionId| match filter {
            Filter::EndpointIndependent => true,
            Filter::AddressDependent => self.table.remote(id).ip() == from.ip() && self.table.admits(id, now),
            Filter::AddressAndPortDependent => self.table.remote(id) == from && self.table.admits(id, now),
        };
        let mut owners = self.table.of_mapped(to).rev().filter_map(|id| match self.table.owner(id) {
            Owner::Inside(internal) => Some(internal),
            Owner::Router => None,
        });
        owners.find(|internal| match filter_scope {
            FilterScope::Mapping => {
                self.table.of_mapped(to).any(|id| self.table.owner(id) == Owner::Inside(*internal) && is_open(id))
            }
            FilterScope::InternalEndpoint => self.table.of_internal(*internal).any(is_open),
        })
    }

    fn open_from_outside(
        &mut self,
        from: SocketAddrV4,
        to: SocketAddrV4,
        internal: SocketAddrV4,
        now: Instant,
    ) -> Result<SocketAddrV4, Translated> {
        if !self.has_room(*internal.ip()) {
            self.counts.exhausted += 1;
            return Err(Translated::Exhausted);
        }
        self.record(Flow { internal, remote: from }, to, Owner::Inside(internal), Side::Outside, now);
        Ok(internal)
    }

    fn early(&mut self, from: SocketAddrV4, to: SocketAddrV4, now: Instant) -> Translated {
        match self.params.early_inbound {
            EarlyInbound::Ignore => Translated::Filtered,
            EarlyInbound::AnswerIcmp => Translated::Rejected,
            EarlyInbound::Clash => {
                // A tuple that is taken belongs to a host that does not let this remote in any more.
                if self.table.len() < self.params.table_max && self.table.by_reply(to, from).is_none() {
                    let flow = Flow { internal: to, remote: from };
                    self.record(flow, to, Owner::Router, Side::Outside, now);
                }
                Translated::Local
            }
        }
    }

    /// A segment that went through ended its stream: the session lasts a little longer.
    pub fn handle_reset(&mut self, internal: SocketAddrV4, remote: SocketAddrV4, now: Instant) {
        if let Some(session) = self.table.by_flow(Flow { internal, remote }) {
            self.table.set_deadline(session, now + RESET);
        }
    }

    /// A session for a new flow; `None` when there is no port or no room.
    fn admit(&mut self, flow: Flow, now: Instant) -> Option<SessionId> {
        if !self.has_room(*flow.internal.ip()) {
            return None;
        }
        let mapped = self.ports.choose(flow, &self.params, &self.table, &mut self.rng)?;
        self.counts.remapped += u64::from(mapped.port() != flow.internal.port());
        Some(self.record(flow, mapped, Owner::Inside(flow.internal), Side::Inside, now))
    }

    /// Whether a host may have one more session. May end another.
    fn has_room(&mut self, host: Ipv4Addr) -> bool {
        if self.params.per_host_limit.is_some_and(|limit| self.table.of_host(host) >= limit) {
            return false;
        }
        if self.table.len() < self.params.table_max {
            return true;
        }
        let victim = match self.params.full_policy {
            FullPolicy::DropNew => None,
            FullPolicy::EvictLru => self.table.ids().min_by_key(|id| (self.table.used(*id), *id)),
            FullPolicy::EvictUnreplied => self.table.ids().find(|id| !self.table.is_replied(*id)),
            FullPolicy::EvictRandom => {
                let number = self.rng.below(self.table.len() as u64) as usize;
                self.table.ids().nth(number)
            }
        };
        let Some(victim) = victim else { return false };
        self.table.remove(victim);
        self.counts.evicted += 1;
        true
    }

    fn record(&mut self, flow: Flow, mapped: SocketAddrV4, owner: Owner, opened: Side, now: Instant) -> SessionId {
        self.counts.sessions += 1;
        self.counts.shared_tuples += u64::from(self.table.by_reply(mapped, flow.remote).is_some());
        let deadline = now + self.params.timeout_unreplied;
        let session = self.table.insert(NewSession { flow, mapped, owner, opened, now, deadline });
        self.counts.most = self.counts.most.max(self.table.len());
        session
    }

    fn note_packet(&mut self, session: SessionId, from: Side, now: Instant) {
        self.table.note_packet(session, from, now);
        let refreshes = match from {
            Side::Inside => self.params.refresh_out,
            Side::Outside => self.params.refresh_in,
        };
        if refreshes == Refresh::No {
            return;
        }
        let timeout = match self.table.replied_for(session, now) {
            Some(age) if age > self.params.stream_after => self.params.timeout_stream,
            Some(_) => self.params.timeout_replied,
            None => self.params.timeout_unreplied,
        };
        self.table.set_deadline(session, now + timeout);
        if from == Side::Inside || self.params.filter_refresh_in == Refresh::Yes {
            self.table.set_admits(session, now + timeout);
        }
    }

    fn pass(&self, ttl: &mut u8) -> bool {
        if self.params.ttl == Ttl::Decrement {
            *ttl = ttl.saturating_sub(1);
        }
        *ttl > 0
    }
}
