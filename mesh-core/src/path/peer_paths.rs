//! [`PeerPaths`]: the state machine of one peer. What it does and why is told in [`super`].

use core::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};
use std::collections::VecDeque;

use tracing::debug;

use crate::{
    derp::RegionId,
    disco::{Message, Ping, Pong, TxId},
    key::NodePublic,
    machine::Deadline,
    rng::Rng,
    time::{Budget, Instant, earliest},
};

use super::{
    CandidateReport, Opening, Output, PathsConfig, PathsStats, Reach, Selection, Via,
    candidate::{Added, Candidate, Candidates, Keep, List},
    direct::Direct,
    probe::{DISCOVERY_SPACING, Discovery, Outstanding, ROUND_GAPS, Sent},
    score::{self, Measured},
};

/// How long after the last packet for the peer its path is kept alive. Stock nodes: 45 s.
const ACTIVE_FOR: Duration = Duration::from_secs(45);
/// Stock nodes: 3 s.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// How long a pong makes an address trusted. Stock nodes: 6.5 s.
const TRUST: Duration = Duration::from_millis(6_500);
/// How long an address is still used beside the relay when trust has run out.
const STALE: Duration = Duration::from_secs(5);
/// A round trip with which one does not look for a better one. Stock nodes: 5 ms.
const GOOD_ENOUGH: Duration = Duration::from_millis(5);
/// How often one looks for a better address while one works.
const UPGRADE_INTERVAL: Duration = Duration::from_secs(60);
/// After a call-me-maybe was heeded, the second try.
const CALL_RETRY: Duration = Duration::from_millis(250);
/// A call-me-maybe is answered with another when none was sent for this long.
const CALL_BACK_SPACING: Duration = Duration::from_secs(5);
/// Pings back to one address: spacing, and how many without a pong.
const PING_BACK_SPACING: Duration = Duration::from_secs(1);
const PING_BACKS: u32 = 3;

/// Where to send for one peer. Speaks in messages, does no crypto.
#[derive(Debug)]
pub struct PeerPaths {
    config: PathsConfig,
    rng: Rng,
    now: Instant,
    relay: Option<RegionId>,
    own_endpoints: Vec<SocketAddr>,
    candidates: Candidates,
    outstanding: Outstanding,
    direct: Option<Direct>,
    active_at: Option<Instant>,
    heartbeat_at: Option<Instant>,
    discovery: Option<Discovery>,
    discovery_begun_at: Option<Instant>,
    /// When the peer was last told where we are.
    called_at: Option<Instant>,
    /// When a heeded call-me-maybe gets its second try.
    call_retry_at: Option<Instant>,
    /// Addresses still to be pinged, as the pace allows.
    queue: VecDeque<(SocketAddr, Reach)>,
    pace: Budget,
    answers: Budget,
    pings_back: Budget,
    calls_heard: Budget,
    selected: Selection,
    outputs: VecDeque<Output>,
    stats: PathsStats,
}

impl PeerPaths {
    /// Nothing known.
    #[must_use]
    pub fn new(config: PathsConfig, rng: Rng) -> Self {
        Self {
            config,
            rng,
            now: Instant::ZERO,
            relay: None,
            own_endpoints: Vec::new(),
            candidates: Candidates::default(),
            outstanding: Outstanding::default(),
            direct: None,
            active_at: None,
            heartbeat_at: None,
            discovery: None,
            discovery_begun_at: None,
            called_at: None,
            call_retry_at: None,
            queue: VecDeque::new(),
            pace: Budget::new(24, Duration::from_millis(20)),
            answers: Budget::new(32, Duration::from_millis(30)),
            pings_back: Budget::new(8, Duration::from_millis(250)),
            calls_heard: Budget::new(4, Duration::from_secs(2)),
            selected: Selection::Nowhere,
            outputs: VecDeque::new(),
            stats: PathsStats::default(),
        }
    }

    /// Replaces what the netmap says about the peer: its endpoints and its relay region.
    pub fn set_endpoints(&mut self, endpoints: &[SocketAddr], relay: Option<RegionId>, now: Instant) {
        let now = self.tick(now);
        let is_relay_new = self.relay != relay;
        self.relay = relay;
        if self.set_list(List::Netmap, endpoints, now) == Added::New || is_relay_new {
            self.rediscover(now);
        }
        self.finish(now);
    }

    /// Replaces our own endpoints, which the peer is told.
    pub fn set_own_endpoints(&mut self, endpoints: &[SocketAddr], now: Instant) {
        let now = self.tick(now);
        let is_new = endpoints.iter().any(|endpoint| !self.own_endpoints.contains(endpoint));
        self.own_endpoints = endpoints.to_vec();
        if is_new {
            self.rediscover(now);
        }
        self.finish(now);
    }

    /// Sets how our own NAT is opened from now on.
    pub fn set_opening(&mut self, opening: Opening) {
        self.config.opening = opening;
    }

    /// A packet for the peer was sent, or wants to be.
    pub fn note_activity(&mut self, now: Instant) {
        let now = self.tick(now);
        let was_active = self.is_active(now);
        self.active_at = Some(now);
        if !self.is_direct_trusted(now) && (!was_active || self.discovery.is_none()) {
            self.discover(now);
        }
        if self.direct.is_some() && self.heartbeat_at.is_none() {
            self.heartbeat_at = Some(now + HEARTBEAT);
        }
        if !was_active && self.discovery.is_none() {
            self.plan_upgrade(now);
        }
        self.finish(now);
    }

    /// Packets for the peer were sent as late as `at`. Returns whether that is later than was known.
    pub fn note_sent(&mut self, at: Instant) -> bool {
        let is_later = self.active_at.is_some_and(|active| active < at);
        if is_later {
            self.active_at = Some(at);
        }
        is_later
    }

    /// The relay that reaches the peer was connected to: a call-me-maybe of before may not have left.
    pub fn note_relay_connected(&mut self, now: Instant) {
        let now = self.tick(now);
        self.rediscover(now);
        self.finish(now);
    }

    /// Packets were sent over the path in use and none came back for a while: a reason to look now.
    pub fn note_silence(&mut self, now: Instant) {
        let now = self.tick(now);
        self.examine(now);
        self.finish(now);
    }

    /// The peer restarted: its disco key is a new one.
    pub fn note_restart(&mut self, now: Instant) {
        let now = self.tick(now);
        self.start_over(now);
        self.finish(now);
    }

    /// Our own network is another, or the host slept: nothing that was measured counts.
    pub fn note_network_change(&mut self, now: Instant) {
        self.note_restart(now);
    }

    /// Our own node key is this one from now on.
    pub fn set_node(&mut self, node: NodePublic) {
        self.config.node = node;
    }

    /// The operating system refused to send to an address.
    pub fn note_send_failure(&mut self, to: SocketAddr, now: Instant) {
        let now = self.tick(now);
        if self.direct.is_some_and(|direct| direct.address == to) {
            self.drop_direct(now);
        }
        self.finish(now);
    }

    /// An authenticated ping of the peer.
    pub fn handle_ping(&mut self, ping: &Ping, from: Via, now: Instant) {
        let now = self.tick(now);
        if !self.answers.take(now) {
            self.stats.pings_over_budget += 1;
            return;
        }
        self.stats.pings_answered += 1;
        let observed = match from {
            Via::Direct(address) => address,
            Via::Relay(region) => SocketAddr::from((RELAY_PSEUDO_ADDRESS, region.number())),
        };
        self.send(from, Message::Pong(Pong { tx: ping.tx, observed }), Reach::Peer);
        if let Via::Direct(address) = from {
            self.learn(address, now);
        }
        self.finish(now);
    }

    /// An authenticated pong of the peer. The address that was pinged counts, not where the pong came from.
    pub fn handle_pong(&mut self, pong: &Pong, from: Via, now: Instant) {
        let now = self.tick(now);
        let sent = match from {
            Via::Direct(_) => self.outstanding.take(pong.tx, now),
            Via::Relay(_) => None,
        };
        let candidate = sent.and_then(|sent| self.candidates.get_mut(sent.to).map(|candidate| (sent, candidate)));
        let Some((sent, candidate)) = candidate else {
            self.stats.unknown_pongs += 1;
            return;
        };
        self.stats.pongs += 1;
        let latency = candidate.note_pong(now.since(sent.at), now);
        self.consider(Measured { address: sent.to, latency }, now);
        self.finish(now);
    }

    /// An authenticated call-me-maybe of the peer, which came over a relay.
    pub fn handle_call_me_maybe(&mut self, endpoints: &[SocketAddr], now: Instant) {
        let now = self.tick(now);
        if !self.calls_heard.take(now) {
            self.stats.calls_over_budget += 1;
            return;
        }
        self.stats.calls_heeded += 1;
        // An empty list is what a newer form of the message looks like: no reason to forget anything.
        if !endpoints.is_empty() {
            self.set_list(List::Call, endpoints, now);
            if self.direct.is_some_and(|direct| !endpoints.contains(&direct.address)) {
                self.examine(now);
            }
        }
        self.ping_all(Reach::Peer, now);
        self.call_retry_at = Some(now + CALL_RETRY);
        // What the peer knows of us may be old. Whoever called a moment ago is not called back, so this ends.
        if !self.is_direct_trusted(now) && self.called_at.is_none_or(|at| now.since(at) >= CALL_BACK_SPACING) {
            self.flush(now);
            self.call(now);
        }
        self.finish(now);
    }

    /// Lets due timers act.
    pub fn handle_timeout(&mut self, now: Instant) {
        let now = self.tick(now);
        if self.call_retry_at.is_some_and(|at| at <= now) {
            self.call_retry_at = None;
            if !self.is_direct_trusted(now) {
                self.ping_all(Reach::Peer, now);
            }
        }
        if self.heartbeat_at.is_some_and(|at| at <= now) {
            self.heartbeat_at = None;
            self.beat(now);
        }
        if self.direct.and_then(|direct| direct.doubt_at()).is_some_and(|at| at <= now) {
            self.doubt(now);
        }
        if self.direct.is_some_and(|direct| direct.trusted_until + STALE <= now) && self.relay.is_some() {
            self.drop_direct(now);
        }
        if let Some(discovery) = self.discovery
            && discovery.at <= now
        {
            self.run_round(discovery.round, now);
        }
        self.finish(now);
    }

    /// The next thing to do.
    #[must_use]
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is wanted next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let deadline = |at: Option<Instant>, why| at.map(|at| Deadline::new(at, why));
        let pace = (!self.queue.is_empty()).then(|| self.pace.ready_at());
        let direct = self.direct.as_ref();
        let lapse = direct.map(|direct| direct.trusted_until).filter(|at| *at > self.now);
        let drop = direct.filter(|_| self.relay.is_some()).map(|direct| direct.trusted_until + STALE);
        [
            deadline(pace, "ping pacing"),
            deadline(self.call_retry_at, "second try after call-me-maybe"),
            deadline(self.heartbeat_at, "path heartbeat"),
            deadline(direct.and_then(Direct::doubt_at), "path in doubt"),
            deadline(lapse, "path trust runs out"),
            deadline(drop, "path is dropped"),
            deadline(self.discovery.map(|discovery| discovery.at), "path discovery"),
        ]
        .into_iter()
        .fold(None, earliest)
    }

    /// How packets are sent now.
    #[must_use]
    pub fn selection(&self) -> Selection {
        self.selected
    }

    /// Smoothed round trip of the direct address in use.
    #[must_use]
    pub fn latency(&self) -> Option<Duration> {
        self.direct.map(|direct| direct.latency)
    }

    /// All addresses, as people want to see them.
    #[must_use]
    pub fn candidates(&self, now: Instant) -> Vec<CandidateReport> {
        let now = self.now.max(now);
        let in_use = self.direct.map(|direct| (direct.address, direct.is_trusted(now)));
        self.candidates.report(in_use, TRUST, now)
    }

    /// How many addresses are known.
    #[must_use]
    pub fn candidate_count(&self) -> usize {
        self.candidates.len()
    }

    /// How many pings wait for their pongs, as far as they have not been cleared away.
    #[must_use]
    pub fn outstanding_count(&self) -> usize {
        self.outstanding.len()
    }

    /// What has happened.
    #[must_use]
    pub fn stats(&self) -> PathsStats {
        self.stats
    }

    fn tick(&mut self, now: Instant) -> Instant {
        self.now = self.now.max(now);
        self.now
    }

    /// Ends every handler: sends what the pace allows and says when the selection is another.
    fn finish(&mut self, now: Instant) {
        self.flush(now);
        let selection = match (self.direct, self.relay) {
            (Some(direct), Some(relay)) if !direct.is_trusted(now) => Selection::Both { direct: direct.address, relay },
            (Some(direct), Some(_) | None) => Selection::Direct(direct.address),
            (None, Some(relay)) => Selection::Relay(relay),
            (None, None) => Selection::Nowhere,
        };
        if selection != self.selected {
            debug!(from = ?self.selected, to = ?selection, "selected path");
            self.selected = selection;
            self.stats.selections += 1;
            self.outputs.push_back(Output::Selected(selection));
        }
    }

    /// Sends the pings that the pace allows.
    fn flush(&mut self, now: Instant) {
        while !self.queue.is_empty() && self.pace.take(now) {
            if let Some((address, reach)) = self.queue.pop_front() {
                self.ping(address, reach, now);
            }
        }
    }

    fn is_active(&self, now: Instant) -> bool {
        self.active_at.is_some_and(|at| now.since(at) < ACTIVE_FOR)
    }

    fn is_direct_trusted(&self, now: Instant) -> bool {
        self.direct.is_some_and(|direct| direct.is_trusted(now))
    }

    fn keep(&self) -> Keep {
        Keep(self.direct.map(|direct| direct.address))
    }

    fn set_list(&mut self, list: List, endpoints: &[SocketAddr], now: Instant) -> Added {
        let keep = self.keep();
        let (added, refused) = self.candidates.set_list(list, endpoints, keep, now);
        self.stats.addresses_refused += refused;
        added
    }

    /// A ping came from there: it may be a way back, and the peer may be elsewhere than we send.
    fn learn(&mut self, address: SocketAddr, now: Instant) {
        let keep = self.keep();
        if !self.candidates.note_ping(address, keep, now) {
            self.stats.addresses_refused += 1;
            return;
        }
        let Some(candidate) = self.candidates.get_mut(address) else { return };
        if candidate.ponged_within(TRUST, now) {
            return;
        }
        let (last, count) = candidate.pinged_back.map_or((None, 0), |(at, count)| (Some(at), count));
        let is_due = last.is_none_or(|at| now.since(at) >= PING_BACK_SPACING) && count < PING_BACKS;
        if is_due && self.pings_back.take(now) {
            candidate.pinged_back = Some((now, count + 1));
            self.stats.pings_back += 1;
            self.ping(address, Reach::Peer, now);
            if self.direct.is_some_and(|direct| direct.address != address) {
                self.examine(now);
            }
        }
    }

    /// An address answered: use it, if it is the one in use, the first, or a better one.
    fn consider(&mut self, measured: Measured, now: Instant) {
        let is_chosen = self.direct.is_none_or(|direct| {
            let current = Measured { address: direct.address, latency: direct.latency };
            direct.address == measured.address || !direct.is_trusted(now) || score::is_better(measured, current)
        });
        if is_chosen {
            self.select(measured, now + TRUST, now);
        }
    }

    fn select(&mut self, measured: Measured, trusted_until: Instant, now: Instant) {
        let was_trusted = self.is_direct_trusted(now);
        self.direct = Some(Direct::new(measured, trusted_until));
        if !was_trusted {
            self.discovery = None;
            self.plan_upgrade(now);
        }
        if self.heartbeat_at.is_none() && self.is_active(now) {
            self.heartbeat_at = Some(now + HEARTBEAT);
        }
    }

    fn plan_upgrade(&mut self, now: Instant) {
        if self.direct.is_some_and(|direct| direct.latency > GOOD_ENOUGH) && self.is_active(now) {
            self.discovery = Some(Discovery { round: 0, at: now + UPGRADE_INTERVAL });
        }
    }

    /// Pings the address in use while there is activity.
    fn beat(&mut self, now: Instant) {
        if !self.is_active(now) {
            return;
        }
        let Some(direct) = self.direct else { return };
        self.ping_direct(now);
        let is_urgent = direct.doubted_at.is_some() && now < direct.trusted_until;
        let next = if is_urgent { direct.patience() } else { HEARTBEAT };
        self.heartbeat_at = Some(now + next);
    }

    /// Looks whether the address in use still answers.
    fn examine(&mut self, now: Instant) {
        if self.direct.is_some_and(|direct| direct.waiting_since.is_none()) {
            self.ping_direct(now);
        }
    }

    fn ping_direct(&mut self, now: Instant) {
        let Some(direct) = &mut self.direct else { return };
        direct.waiting_since.get_or_insert(now);
        let address = direct.address;
        self.ping(address, Reach::Peer, now);
    }

    /// The address in use did not answer: another that does, or both ways.
    fn doubt(&mut self, now: Instant) {
        let Some(direct) = &mut self.direct else { return };
        direct.doubted_at = Some(now);
        let address = direct.address;
        self.stats.doubts += 1;
        debug!(path = %address, "path in doubt");
        // Fresher than the silence of the one in use.
        let others = self.candidates.measured(HEARTBEAT, address, now);
        if let Some(other) = others.min_by_key(|other| (other.latency, other.address)) {
            // What it showed was then, so trust does not begin anew.
            self.select(other, now + HEARTBEAT, now);
            self.examine(now);
            return;
        }
        self.heartbeat_at = None;
        self.beat(now);
        self.rediscover(now);
    }

    fn drop_direct(&mut self, now: Instant) {
        debug!(path = ?self.direct.map(|direct| direct.address), "path dropped");
        self.direct = None;
        self.heartbeat_at = None;
        self.stats.drops += 1;
        self.rediscover(now);
    }

    fn start_over(&mut self, now: Instant) {
        self.outstanding.clear();
        self.candidates.forget_measurements();
        if self.direct.is_some_and(|direct| direct.doubted_at.is_none()) {
            self.doubt(now);
        } else {
            self.rediscover(now);
        }
    }

    fn rediscover(&mut self, now: Instant) {
        if self.is_active(now) && !self.is_direct_trusted(now) {
            self.discover(now);
        }
    }

    /// Begins a discovery, or begins the one under way anew.
    fn discover(&mut self, now: Instant) {
        let earliest_at = self.discovery_begun_at.map_or(now, |at| at + DISCOVERY_SPACING);
        if earliest_at > now {
            let at = self.discovery.map_or(earliest_at, |discovery| discovery.at.min(earliest_at));
            self.discovery = Some(Discovery { round: 0, at });
        } else {
            self.run_round(0, now);
        }
    }

    fn run_round(&mut self, round: usize, now: Instant) {
        self.discovery = None;
        if !self.is_active(now) {
            return;
        }
        if self.is_direct_trusted(now) {
            self.ping_all(Reach::Peer, now);
            self.plan_upgrade(now);
            return;
        }
        let is_calling = self.relay.is_some() && !self.own_endpoints.is_empty();
        // While there is nobody to ask nothing has begun: what comes to be known is tried at once.
        if round == 0 && (is_calling || self.candidates.len() > 0) {
            self.discovery_begun_at = Some(now);
        }
        let reach = match self.config.opening {
            Opening::LowTtl if round == 0 && is_calling => Reach::Opener,
            Opening::LowTtl | Opening::Plain => Reach::Peer,
        };
        self.ping_all(reach, now);
        self.flush(now);
        self.call(now);
        let gap = ROUND_GAPS[round.min(ROUND_GAPS.len() - 1)];
        // Two ends that began together should not stay in step.
        let jitter = self.rng.duration_below(gap / 8);
        self.discovery = Some(Discovery { round: round + 1, at: now + gap + jitter });
    }

    /// Tells the peer where we are, if there is a way to tell and something to be told.
    fn call(&mut self, now: Instant) {
        let Some(relay) = self.relay.filter(|_| !self.own_endpoints.is_empty()) else { return };
        self.called_at = Some(now);
        self.stats.calls_sent += 1;
        let message = Message::CallMeMaybe(self.own_endpoints.clone());
        self.send(Via::Relay(relay), message, Reach::Peer);
    }

    /// Puts all candidates but a trusted one in use in the queue, once each.
    fn ping_all(&mut self, reach: Reach, now: Instant) {
        let keep = self.keep();
        self.candidates.prune(keep, now);
        let in_use = self.direct.filter(|direct| direct.is_trusted(now)).map(|direct| direct.address);
        self.queue.clear();
        let addresses = self.candidates.in_order().into_iter().filter(|address| Some(*address) != in_use);
        self.queue.extend(addresses.map(|address| (address, reach)));
    }

    fn ping(&mut self, to: SocketAddr, reach: Reach, now: Instant) {
        // One that was forgotten while it was in the queue has none left, either.
        if !self.candidates.get_mut(to).is_some_and(Candidate::take_credit) {
            self.stats.pings_without_credit += 1;
            return;
        }
        let tx = TxId::random(&mut self.rng);
        self.outstanding.insert(tx, Sent { to, at: now });
        self.stats.pings_sent += 1;
        let ping = Ping { tx, node: Some(self.config.node), padding_bytes: 0 };
        self.send(Via::Direct(to), Message::Ping(ping), reach);
    }

    fn send(&mut self, via: Via, message: Message, reach: Reach) {
        self.outputs.push_back(Output::Send { via, message, reach });
    }
}

/// Stands for a relay where an address is wanted; the region is the port.
const RELAY_PSEUDO_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 3, 3, 40));

#[cfg(test)]
mod tests;
