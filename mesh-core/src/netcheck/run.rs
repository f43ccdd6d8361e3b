//! One run: the requests of one report or refresh, and what came of them.

use core::{net::SocketAddr, time::Duration};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tracing::trace;

use crate::{
    derp::RegionId,
    limits,
    machine::Deadline,
    rng::Rng,
    stun::{self, TxId},
    time::{Instant, earliest},
};

use super::{
    FETCH_TIMEOUT,
    names::{Lookup, Names},
    output::{FetchFailed, FetchId, Fetched, NetcheckStats, Output},
    plan::{Purpose, Set},
    report::{Family, Kind, Report},
    servers::{Servers, Target, is_host},
};

/// How long one waits for STUN answers at most. Stock nodes: 3 s.
const STUN_PHASE: Duration = Duration::from_secs(3);
/// How long one waits for what did not answer when something else did.
const PATIENCE: Duration = Duration::from_secs(1);
/// Silence of all servers after which relays are asked over TLS too. Stock nodes begin after 3 s.
const SILENCE: Duration = Duration::from_millis(300);
/// So many regions are enough to choose from. Stock nodes: 3.
const ENOUGH_REGIONS: usize = 3;

/// The requests of one report or refresh, and what came of them.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) purpose: Purpose,
    pub(super) began_at: Instant,
    pub(super) report: Report,
    /// Regions in the order in which they matter, as far as they may be asked over TLS; none without a network.
    relays: Vec<RegionId>,
    sets: Vec<Progress>,
    outstanding: BTreeMap<TxId, Probe>,
    sent: u32,
    /// When enough regions have answered and the others have had their time.
    enough_at: Option<Instant>,
    fetches: Option<Fetches>,
}

/// How far a set is.
#[derive(Debug)]
struct Progress {
    set: Set,
    next: usize,
    due_at: Instant,
    last_sent_at: Option<Instant>,
    is_answered: bool,
    /// For its server's name.
    is_waiting: bool,
}

/// A request that waits for its answer.
#[derive(Clone, Copy, Debug)]
struct Probe {
    to: SocketAddr,
    region: RegionId,
    family: Family,
    at: Instant,
}

/// Relays asked over TLS.
#[derive(Debug)]
struct Fetches {
    began_at: Instant,
    pending: BTreeMap<FetchId, (RegionId, usize)>,
    answered: usize,
    enough_at: Option<Instant>,
}

/// What a run works with.
pub(super) struct Context<'c> {
    pub(super) servers: &'c Servers,
    pub(super) names: &'c mut Names,
    pub(super) rng: &'c mut Rng,
    pub(super) fetch_ids: &'c mut u64,
    pub(super) outputs: &'c mut VecDeque<Output>,
    pub(super) stats: &'c mut NetcheckStats,
}

impl Run {
    pub(super) fn new(purpose: Purpose, sets: Vec<Set>, relays: Vec<RegionId>, now: Instant) -> Self {
        let kind = match purpose {
            Purpose::Refresh => Kind::Incremental,
            Purpose::Report(kind) => kind,
        };
        let progress = |set: Set| Progress {
            due_at: now + set.tries.first().copied().unwrap_or_default(),
            set,
            next: 0,
            last_sent_at: None,
            is_answered: false,
            is_waiting: false,
        };
        Self {
            purpose,
            began_at: now,
            report: Report::new(kind),
            relays,
            sets: sets.into_iter().map(progress).collect(),
            outstanding: BTreeMap::new(),
            sent: 0,
            enough_at: None,
            fetches: None,
        }
    }

    /// Sends what is due.
    pub(super) fn advance(&mut self, context: &mut Context<'_>, now: Instant) {
        let mut sets = core::mem::take(&mut self.sets);
        for progress in &mut sets {
            self.advance_set(progress, context, now);
        }
        self.sets = sets;
        let is_report = matches!(self.purpose, Purpose::Report(_));
        let is_silent = !self.report.udp && (self.began_at + SILENCE <= now || self.is_stun_over(now));
        if is_report && is_silent && self.fetches.is_none() {
            self.begin_fetches(context, now);
        }
    }

    /// Whether nothing more is waited for.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        let are_fetches_over = self.fetches.as_ref().is_none_or(|fetches| fetches.is_over(now));
        self.began_at + FETCH_TIMEOUT <= now || (self.is_stun_over(now) && (self.report.udp || are_fetches_over))
    }

    /// When something may change without an answer.
    pub(super) fn deadline(&self, now: Instant) -> Option<Deadline> {
        let of_set = |progress: &Progress| {
            if progress.is_answered || progress.is_waiting {
                None
            } else if progress.next < progress.set.tries.len() {
                Some(Deadline::new(progress.due_at, "netcheck request"))
            } else {
                Some(Deadline::new(self.patience_end(progress), "netcheck patience"))
            }
        };
        let silence = (!self.report.udp && self.fetches.is_none()).then(|| self.began_at + SILENCE);
        let fetches = self.fetches.as_ref().and_then(|fetches| fetches.enough_at);
        let phases = [
            (self.enough_at, "netcheck has enough"),
            (silence, "netcheck hears nothing"),
            (fetches, "netcheck has enough over TLS"),
            (Some(self.began_at + STUN_PHASE), "netcheck requests time out"),
            (Some(self.began_at + FETCH_TIMEOUT), "netcheck times out"),
        ];
        let phases = phases.into_iter().filter_map(|(at, why)| Some(Deadline::new(at?, why)));
        // What lies in the past has had its effect when the last handler ended.
        let coming = self.sets.iter().filter_map(of_set).chain(phases).filter(|deadline| deadline.at > now);
        coming.map(Some).fold(None, earliest)
    }

    /// A server answered. Returns the region when it did so rightly.
    pub(super) fn handle_answer(
        &mut self,
        tx: TxId,
        source: SocketAddr,
        mapped: SocketAddr,
        context: &mut Context<'_>,
        now: Instant,
    ) -> Option<RegionId> {
        let Some(probe) = self.outstanding.get(&tx).copied() else {
            context.stats.answers_unasked += 1;
            return None;
        };
        if probe.to != SocketAddr::new(source.ip().to_canonical(), source.port()) {
            context.stats.answers_from_elsewhere += 1;
            return None;
        }
        if !is_usable(mapped, probe.to) {
            context.stats.answers_unusable += 1;
            return None;
        }
        context.stats.answers += 1;
        self.outstanding.remove(&tx);
        let latency = now.since(probe.at);
        trace!(region = %probe.region, server = %probe.to, %mapped, ?latency, "STUN answer");
        let is_of_set =
            |progress: &&mut Progress| (progress.set.region, progress.set.family) == (probe.region, probe.family);
        if let Some(progress) = self.sets.iter_mut().find(is_of_set) {
            progress.is_answered = true;
        }
        let mapping_before = self.report.mapping;
        let is_worth_telling = self.report.note_mapped(probe.to, mapped);
        self.report.note_latency(probe.region, probe.family, latency);
        if is_worth_telling || self.report.mapping != mapping_before {
            let address = is_worth_telling.then_some(mapped);
            context.outputs.push_back(Output::Observed { address, mapping: self.report.mapping });
        }
        if self.enough_at.is_none() && self.report.regions.len() >= ENOUGH_REGIONS {
            let slowest = self.report.regions.values().filter_map(|latency| latency.best()).max().unwrap_or_default();
            let factor = if self.report.kind == Kind::Full { 2 } else { 1 };
            self.enough_at = Some(now + slowest * factor);
        }
        Some(probe.region)
    }

    /// A relay answered over TLS or did not. Returns the region when it did.
    pub(super) fn handle_fetched(
        &mut self,
        id: FetchId,
        result: Result<Fetched, FetchFailed>,
        context: &mut Context<'_>,
        now: Instant,
    ) -> Option<RegionId> {
        let Some(fetches) = &mut self.fetches else {
            context.stats.fetches_unasked += 1;
            return None;
        };
        let Some((region, index)) = fetches.pending.remove(&id) else {
            context.stats.fetches_unasked += 1;
            return None;
        };
        let Ok(Fetched { round_trip, family }) = result else {
            context.stats.fetches_failed += 1;
            fetches.ask(region, index + 1, context);
            return None;
        };
        fetches.answered += 1;
        if fetches.enough_at.is_none() && fetches.answered >= ENOUGH_REGIONS {
            // The slower ones get as long again.
            fetches.enough_at = Some(now + now.since(fetches.began_at));
        }
        self.report.note_latency(region, family, round_trip);
        Some(region)
    }

    /// The regions that are asked.
    pub(super) fn asked(&self) -> BTreeSet<RegionId> {
        self.sets.iter().map(|progress| progress.set.region).collect()
    }

    /// The operating system did not take what was sent there.
    pub(super) fn handle_send_failure(&mut self, to: SocketAddr) -> u64 {
        let before = self.outstanding.len();
        self.outstanding.retain(|_, probe| probe.to != to);
        let refused = before - self.outstanding.len();
        if refused > 0 {
            let family = Family::of(to.ip());
            let was_taken = self.outstanding.values().any(|probe| probe.family == family)
                || self.sets.iter().any(|progress| progress.set.family == family && progress.is_answered);
            *self.can_send(family) = was_taken;
            if !was_taken {
                // Nothing of this family is under way: no route, most likely.
                for progress in self.sets.iter_mut().filter(|progress| progress.set.family == family) {
                    progress.give_up();
                }
            }
        }
        refused as u64
    }

    fn advance_set(&mut self, progress: &mut Progress, context: &mut Context<'_>, now: Instant) {
        progress.is_waiting = false;
        let (region, family) = (progress.set.region, progress.set.family);
        while !progress.is_answered && progress.due_at <= now && progress.next < progress.set.tries.len() {
            if !self.would_help(region, family) {
                progress.give_up();
                return;
            }
            match context.look_up(region, family, progress.next, now) {
                Lookup::At(to) => {
                    self.probe(Probe { to, region, family, at: now }, context);
                    progress.last_sent_at = Some(now);
                    progress.due_at = now + progress.gap();
                }
                Lookup::Pending => {
                    progress.is_waiting = true;
                    return;
                }
                Lookup::Nowhere => {}
            }
            progress.next += 1;
        }
    }

    fn probe(&mut self, probe: Probe, context: &mut Context<'_>) {
        if self.sent as usize >= limits::NETCHECK_PROBES {
            context.stats.probes_over_budget += 1;
            return;
        }
        self.sent += 1;
        context.stats.probes += 1;
        *self.can_send(probe.family) = true;
        let tx = TxId::random(context.rng);
        self.outstanding.insert(tx, probe);
        context.outputs.push_back(Output::Probe { to: probe.to, payload: stun::request(tx) });
    }

    fn can_send(&mut self, family: Family) -> &mut bool {
        match family {
            Family::V4 => &mut self.report.ipv4_can_send,
            Family::V6 => &mut self.report.ipv6_can_send,
        }
    }

    /// Whether an answer would tell anything new.
    fn would_help(&self, region: RegionId, family: Family) -> bool {
        let is_family_open = match family {
            Family::V4 => self.report.mapping == stun::Mapping::Unknown,
            Family::V6 => !self.report.ipv6,
        };
        is_family_open || self.report.latency(region).is_none()
    }

    fn is_stun_over(&self, now: Instant) -> bool {
        let is_set_over = |progress: &Progress| {
            let is_sent = progress.next >= progress.set.tries.len();
            progress.is_answered || (is_sent && !progress.is_waiting && self.patience_end(progress) <= now)
        };
        let has_enough = self.enough_at.is_some_and(|at| at <= now);
        has_enough || self.began_at + STUN_PHASE <= now || self.sets.iter().all(is_set_over)
    }

    /// Until when an answer of a set is waited for, when all its requests are sent. A network on which nothing answers
    /// may be a slow one.
    fn patience_end(&self, progress: &Progress) -> Instant {
        match progress.last_sent_at {
            Some(at) if self.report.heard_anything() || self.purpose == Purpose::Refresh => at + PATIENCE,
            Some(_) => self.began_at + STUN_PHASE,
            None => self.began_at,
        }
    }

    fn begin_fetches(&mut self, context: &mut Context<'_>, now: Instant) {
        let mut fetches = Fetches { began_at: now, pending: BTreeMap::new(), answered: 0, enough_at: None };
        for region in &self.relays {
            if fetches.pending.len() < limits::NETCHECK_FETCHES {
                fetches.ask(*region, 0, context);
            }
        }
        self.fetches = Some(fetches);
    }
}

impl Progress {
    /// From the request that is next to the one after it.
    fn gap(&self) -> Duration {
        let at = |index| self.set.tries.get(index).copied();
        at(self.next + 1).zip(at(self.next)).map_or(Duration::ZERO, |(later, earlier)| later.saturating_sub(earlier))
    }

    /// Sends nothing more and waits for nothing.
    fn give_up(&mut self) {
        self.next = self.set.tries.len();
        self.last_sent_at = None;
        self.is_waiting = false;
    }
}

impl Fetches {
    /// Asks a relay of a region: the first that is one, from `index` on.
    fn ask(&mut self, region: RegionId, index: usize, context: &mut Context<'_>) {
        let servers = context.servers.regions.get(&region).map(|region| region.servers.as_slice()).unwrap_or_default();
        let relays = servers.iter().enumerate().skip(index).filter(|(_, server)| server.relays());
        let Some((index, server)) = relays.into_iter().next() else { return };
        let id = FetchId(*context.fetch_ids);
        *context.fetch_ids += 1;
        context.stats.fetches += 1;
        self.pending.insert(id, (region, index));
        context.outputs.push_back(Output::Fetch { id, region, node: server.node.clone() });
    }

    fn is_over(&self, now: Instant) -> bool {
        self.pending.is_empty() || self.enough_at.is_some_and(|at| at <= now)
    }
}

impl Context<'_> {
    /// Where a request goes; asks for a name that is not known.
    fn look_up(&mut self, region: RegionId, family: Family, index: usize, now: Instant) -> Lookup {
        match self.servers.target(region, family, index) {
            (Target::Nowhere, _) => Lookup::Nowhere,
            (Target::At(address), _) => Lookup::At(address),
            (Target::Named(port), host) => {
                let (lookup, is_due) = self.names.lookup(host, family, port, now);
                if is_due {
                    self.stats.resolves += 1;
                    self.outputs.push_back(Output::Resolve { host: host.to_owned() });
                }
                lookup
            }
        }
    }
}

/// Whether an address that a server told can be ours. A NAT64 makes IPv4 of our IPv6, and nothing the other way round.
fn is_usable(mapped: SocketAddr, server: SocketAddr) -> bool {
    let ip = mapped.ip();
    let is_local = match ip {
        core::net::IpAddr::V4(_) => false,
        core::net::IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let is_family_right = mapped.is_ipv4() || server.is_ipv6();
    let is_loopback_right = !ip.is_loopback() || server.ip().is_loopback();
    mapped.port() != 0 && is_host(ip) && !is_local && is_family_right && is_loopback_right
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_cannot_be_ours_are_known() {
        let check = |mapped: &str, server: &str, expected: bool| {
            assert_eq!(is_usable(mapped.parse().unwrap(), server.parse().unwrap()), expected, "{mapped} of {server}");
        };
        check("198.51.100.1:5", "192.0.2.1:3478", true);
        check("198.51.100.1:0", "192.0.2.1:3478", false);
        check("0.0.0.0:5", "192.0.2.1:3478", false);
        check("224.0.0.1:5", "192.0.2.1:3478", false);
        check("255.255.255.255:5", "192.0.2.1:3478", false);
        check("127.0.0.1:5", "192.0.2.1:3478", false);
        check("127.0.0.1:5", "127.0.0.1:3478", true);
        check("[2001:db8::1]:5", "192.0.2.1:3478", false);
        check("[2001:db8::1]:5", "[2001:db8::2]:3478", true);
        check("198.51.100.1:5", "[64:ff9b::1]:3478", true);
        check("[fe80::1]:5", "[fe80::2]:3478", false);
        check("[::]:5", "[2001:db8::2]:3478", false);
    }
}
