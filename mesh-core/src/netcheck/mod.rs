//! What the network lets us do: where we are seen from outside, how far the relays are, and which is to be home.
//!
//! [`Netcheck`] asks STUN servers (the relays of the map) where they see us, one report at a time. What it finds goes three
//! ways: our address to the endpoints, the home region to the relays, and the whole [`Report`] to control and the user.
//!
//! # A run
//!
//! A *full* run asks every region in both families at once, three times 100 ms apart until each answers. An *incremental*
//! one asks the nearest three, home and what is looked for, with what was measured before as the time to wait. Requests
//! leave from the socket that carries data, because the mapping of that socket is what peers need. An answer counts when
//! it names a request under way *and* comes from where that went; stock clients look at the name only.
//!
//! A run ends when everything answered, or when three regions did and the others had as long again as the slowest of the
//! three (twice that when full), or when what is silent was silent for a second while something else answered, or after
//! 3 s. Names are asked of DNS once in 5 minutes; an old answer is used meanwhile.
//!
//! # The first round trip
//!
//! A node without a home cannot be reached, so the home is not left for the end of the report, as stock nodes do:
//!
//! * A map with one region has no choice in it: home is said with the map.
//! * Else, the first answer says it. All regions are asked in the same moment, so the first to answer is the nearest,
//!   unless a packet got lost; the report at its end corrects that, by the rule for changing a home.
//! * The same answer says our address ([`Output::Observed`]). Relay connection, endpoints and call-me-maybe begin one
//!   round trip after the start.
//! * When no server answers for 300 ms, the relays are asked over TLS as well, beside further requests over UDP. The
//!   first that answers is home. Stock nodes wait 3 s for UDP first. UDP that is only slow still counts when it comes.
//! * When nothing at all answers, a region drawn by lot is home, another one after each such report, and reports are
//!   repeated after ever longer pauses, from 4 s to 5 minutes, or when a relay is heard.
//!
//! # Which home
//!
//! The region of the current report with the shortest round trip in the last five minutes, weighed by the map's scores.
//! It replaces a home that is still there only when it is better by 10 ms *and* by a third. A home that does not answer
//! but sent a frame in the last 8 s is still there; one whose relay could not be connected to for 10 s is not, whatever
//! its STUN server says, unless nothing at all answered at the time. When nothing answers the home stays.
//!
//! A lost home, and a region whose name DNS did not tell, are looked for: until they answer, a refresh is an incremental
//! report, every 20 s at most, and for a name ever more rarely.
//!
//! # While sessions are in use, and while not
//!
//! Each [`note_active`](Netcheck::note_active) says that a session is in use; it counts for 45 s. Meanwhile there is a
//! *refresh* every 20 to 26 s: one request in each family to home, so that NATs keep the mapping and endpoints stay
//! fresh enough for a call-me-maybe. Stock nodes make an incremental report each time. Only when home is silent, UDP comes
//! back, or our address is another, an incremental or full report follows. A full report is made every 5 minutes. Without
//! activity nothing is sent; what is overdue when activity begins is made up for at once.
//!
//! ```text
//!  map, network, change of either ──▶ full ──▶ Report, Home
//!                                      ▲ 5 min, or UDP is back
//!                       active ──▶ refresh ──▶ Observed
//!                                      ▼ silent, or another address
//!                                 incremental ──▶ Report, Home
//! ```
//!
//! # What it never does
//!
//! Send more than [`NETCHECK_PROBES`](limits::NETCHECK_PROBES) requests in a run, or begin more than
//! [`NETCHECK_RUNS`](limits::NETCHECK_RUNS) runs in 4 s, however the network flaps. Believe an address that no host has,
//! an answer nobody asked for, or a map with nonsense in it: counted in [`NetcheckStats`].

mod history;
mod home;
mod names;
mod output;
mod plan;
mod report;
mod run;
mod servers;

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use tracing::debug;

use crate::{
    derp::{DerpMap, RegionId},
    limits,
    machine::Deadline,
    rng::Rng,
    stun,
    time::{Instant, earliest},
};

pub use output::{FETCH_TIMEOUT, FetchFailed, FetchId, Fetched, NetcheckStats, Output, ResolveFailed};
pub use report::{Family, Kind, NetInfo, RegionLatency, Report};

use history::{Choice, History};
use home::{Failing, Home, Nameless};
use names::{Answer, Names};
use plan::{Planner, Purpose};
use run::{Context, Run};
use servers::Servers;

/// How long a session counts as in use. Stock nodes: 45 s.
const ACTIVE_FOR: Duration = Duration::from_secs(45);
/// From the end of one run to the next refresh: this, and up to [`REFRESH_SPREAD`] more. Stock nodes: 20 to 26 s.
const REFRESH_MIN: Duration = Duration::from_secs(20);
const REFRESH_SPREAD: Duration = Duration::from_secs(6);
/// Stock nodes: 5 min.
const FULL_INTERVAL: Duration = Duration::from_secs(300);
/// After a report without any answer; doubled with each more.
const RETRY_MIN: Duration = Duration::from_secs(4);
const RETRY_MAX: Duration = Duration::from_secs(300);
/// Home is asked because of a peer's silence at most this often: the periodic refresh does it about as often.
const SILENT_SPACING: Duration = Duration::from_secs(20);
/// In which [`limits::NETCHECK_RUNS`] may begin.
const RUNS_WITHIN: Duration = Duration::from_secs(4);

/// What the network lets us do. See the module's documentation.
#[derive(Debug)]
pub struct Netcheck {
    rng: Rng,
    now: Instant,
    servers: Servers,
    names: Names,
    /// Families that the host has now.
    families: Vec<Family>,
    history: History,
    last_full_at: Option<Instant>,
    home: Option<Home>,
    /// When each relay was heard last.
    heard: BTreeMap<RegionId, Instant>,
    /// Relays that cannot be connected to.
    failing: BTreeMap<RegionId, Failing>,
    /// The home that was left because it could not be connected to, until it answers.
    left: Option<RegionId>,
    /// A region that the last report left out because DNS did not say where it is.
    nameless: Option<Nameless>,
    /// When a report was begun because the connection to home was lost.
    lost_at: Option<Instant>,
    /// When home was asked because a peer was silent.
    asked_home_at: Option<Instant>,
    active_until: Instant,
    refresh_at: Option<Instant>,
    retry_at: Option<Instant>,
    /// Reports without any answer, in a row.
    failures: u32,
    run: Option<Run>,
    /// What is to be run next.
    wanted: Option<Purpose>,
    /// When the last few runs began.
    began: VecDeque<Instant>,
    fetch_ids: u64,
    outputs: VecDeque<Output>,
    stats: NetcheckStats,
}

impl Netcheck {
    /// Without a map and without a network.
    #[must_use]
    pub fn new(rng: Rng) -> Self {
        Self {
            rng,
            now: Instant::ZERO,
            servers: Servers::default(),
            names: Names::default(),
            families: Vec::new(),
            history: History::default(),
            last_full_at: None,
            home: None,
            heard: BTreeMap::new(),
            failing: BTreeMap::new(),
            left: None,
            nameless: None,
            lost_at: None,
            asked_home_at: None,
            active_until: Instant::ZERO,
            refresh_at: None,
            retry_at: None,
            failures: 0,
            run: None,
            wanted: None,
            began: VecDeque::new(),
            fetch_ids: 0,
            outputs: VecDeque::new(),
            stats: NetcheckStats::default(),
        }
    }

    /// Replaces the relay map, merged with the maps before it. Begins a full report when the relays are others.
    pub fn set_map(&mut self, map: &DerpMap, now: Instant) {
        self.tick(now);
        let (servers, refused) = Servers::read(map);
        self.stats.regions_refused += refused.regions;
        self.stats.nodes_refused += refused.nodes;
        let before = core::mem::replace(&mut self.servers, servers);
        self.home = self.home.filter(|home| self.servers.can_be_home(home.region));
        if before.regions != self.servers.regions {
            self.names.retain(&self.servers);
            self.heard.retain(|region, _| self.servers.regions.contains_key(region));
            self.failing.clear();
            self.left = self.left.filter(|region| self.servers.can_be_home(*region));
            self.abort();
            self.adopt_home();
            self.want(Purpose::Report(Kind::Full));
        } else if before.scores != self.servers.scores {
            self.want(Purpose::Report(Kind::Incremental));
        }
        self.finish();
    }

    /// Says which families the host has addresses of; none means no network. Begins a full report when there are others.
    pub fn set_families(&mut self, v4: bool, v6: bool, now: Instant) {
        self.tick(now);
        let has = |family: &Family| match family {
            Family::V4 => v4,
            Family::V6 => v6,
        };
        let families: Vec<_> = Family::BOTH.into_iter().filter(has).collect();
        if families != self.families {
            self.families = families;
            self.names.set_families(&self.families);
            self.abort();
            self.want(Purpose::Report(Kind::Full));
        }
        self.finish();
    }

    /// Says which home is in use, when it is not the one that was said: one of before a restart, or one of the operator.
    /// A region that is not measured or has no relay is no home.
    pub fn set_home(&mut self, home: Option<RegionId>, now: Instant) {
        self.tick(now);
        let home = home.filter(|home| self.servers.regions.is_empty() || self.servers.can_be_home(*home));
        if self.home() != home {
            self.home = home.map(Home::known);
            self.adopt_home();
        }
        self.finish();
    }

    /// Our network is another: what was measured on the last one says nothing about it. Begins a full report.
    pub fn note_network_change(&mut self, now: Instant) {
        self.tick(now);
        self.history.clear();
        self.names.clear();
        self.heard.clear();
        self.failing.clear();
        (self.left, self.nameless) = (None, None);
        self.failures = 0;
        self.abort();
        self.want(Purpose::Report(Kind::Full));
        self.finish();
    }

    /// A session is in use: endpoints are to be kept fresh.
    pub fn note_active(&mut self, now: Instant) {
        self.tick(now);
        self.active_until = self.now + ACTIVE_FOR;
        self.finish();
    }

    /// A relay took us in, or a frame came from it.
    pub fn note_relay_heard(&mut self, region: RegionId, now: Instant) {
        self.tick(now);
        if self.servers.regions.contains_key(&region) {
            self.heard.insert(region, self.now);
            self.failing.remove(&region);
            if let Some(home) = self.home.as_mut().filter(|home| home.region == region) {
                *home = Home::known(region);
            }
            if self.retry_at.is_some() {
                // The network works after all.
                self.retry_at = Some(self.now);
            }
        }
        self.finish();
    }

    /// What was sent over a relay is not answered, which may be the peer's doing: if home is silent as well, another
    /// region is to be home soon.
    pub fn note_relay_silent(&mut self, region: RegionId, now: Instant) {
        self.tick(now);
        let is_due = self.asked_home_at.is_none_or(|at| self.now.since(at) >= SILENT_SPACING);
        if is_due && self.home() == Some(region) && self.servers.regions.len() > 1 && self.run.is_none() {
            self.asked_home_at = Some(self.now);
            self.want(Purpose::Refresh);
        }
        self.finish();
    }

    /// The operating system refused to send to an address.
    pub fn note_send_failure(&mut self, to: SocketAddr, now: Instant) {
        self.tick(now);
        if let Some(run) = &mut self.run {
            self.stats.probes_refused += run.handle_send_failure(to);
        }
        self.finish();
    }

    /// Asks for a report. One comes in any case: the next after the one under way, and an empty one without a network.
    pub fn start(&mut self, kind: Kind, now: Instant) {
        self.tick(now);
        self.wanted = self.wanted.max(Some(Purpose::Report(kind)));
        if self.run.as_ref().is_some_and(|run| run.purpose == Purpose::Refresh) {
            self.abort();
        }
        self.finish();
    }

    /// Asks home where it sees us, for a call-me-maybe with stale endpoints. Nothing when a run is under way.
    pub fn refresh(&mut self, now: Instant) {
        self.tick(now);
        if self.run.is_none() {
            self.want(Purpose::Refresh);
        }
        self.finish();
    }

    /// A datagram that looks like a STUN response came to the data's socket.
    pub fn handle_stun(&mut self, source: SocketAddr, datagram: &[u8], now: Instant) {
        self.tick(now);
        match stun::parse_response(datagram) {
            Ok((tx, mapped)) => {
                let heard = self.with_run(|run, context, now| run.handle_answer(tx, source, mapped, context, now));
                match heard {
                    Some(Some(region)) => self.note_answer(region),
                    Some(None) => {}
                    None => self.stats.answers_unasked += 1,
                }
            }
            Err(_) => self.stats.answers_unreadable += 1,
        }
        self.finish();
    }

    /// DNS answered, or did not. No address of a family that the host has is a failure.
    pub fn handle_resolved(&mut self, host: &str, result: Result<&[IpAddr], ResolveFailed>, now: Instant) {
        self.tick(now);
        match self.names.answer(host, result.unwrap_or_default(), self.now) {
            Answer::Unasked => self.stats.resolves_unasked += 1,
            Answer::Nothing => self.stats.resolves_failed += 1,
            Answer::Known => {}
        }
        self.finish();
    }

    /// A relay answered over TLS, or did not.
    pub fn handle_fetched(&mut self, id: FetchId, result: Result<Fetched, FetchFailed>, now: Instant) {
        self.tick(now);
        match self.with_run(|run, context, now| run.handle_fetched(id, result, context, now)) {
            Some(Some(region)) => self.note_answer(region),
            Some(None) => {}
            None => self.stats.fetches_unasked += 1,
        }
        self.finish();
    }

    /// Lets due timers act.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.tick(now);
        self.finish();
    }

    /// The next thing to do.
    #[must_use]
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is wanted next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        if let Some(run) = &self.run {
            return run.deadline(self.now);
        }
        let deadline = |at: Option<Instant>, why| at.map(|at| Deadline::new(at, why));
        if self.wanted.is_some() {
            return deadline(self.paced_until(), "netcheck is paced");
        }
        // What is due has begun when the last handler ended, unless there was no reason to.
        let coming = |at: Option<Instant>| at.filter(|at| *at > self.now && self.can_ask());
        let refresh = coming(self.refresh_at).filter(|at| *at < self.active_until);
        earliest(deadline(refresh, "netcheck refresh"), deadline(coming(self.retry_at), "netcheck retry"))
    }

    /// The home region.
    #[must_use]
    pub fn home(&self) -> Option<RegionId> {
        self.home.map(|home| home.region)
    }

    /// Whether a run is under way.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.run.is_some()
    }

    /// What has happened.
    #[must_use]
    pub fn stats(&self) -> NetcheckStats {
        self.stats
    }

    fn tick(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    /// Ends every handler: sends what is due, ends what is over, and begins what is next.
    fn finish(&mut self) {
        loop {
            let is_over = self.with_run(|run, context, now| {
                run.advance(context, now);
                run.is_over(now)
            });
            match is_over {
                Some(false) => return,
                Some(true) => self.end_run(),
                None => {}
            }
            self.want_what_is_due();
            if !self.begin_wanted() {
                return;
            }
        }
    }

    /// Whether there is anybody to ask, and a way there.
    fn can_ask(&self) -> bool {
        !self.servers.regions.is_empty() && !self.families.is_empty()
    }

    fn want(&mut self, purpose: Purpose) {
        if self.can_ask() {
            self.wanted = self.wanted.max(Some(purpose));
        }
    }

    fn want_what_is_due(&mut self) {
        let now = self.now;
        if self.retry_at.is_some_and(|at| at <= now) {
            self.want(Purpose::Report(Kind::Full));
        }
        if self.refresh_at.is_some_and(|at| at <= now) && now < self.active_until {
            let is_stale = self.last_full_at.is_none_or(|at| now.since(at) >= FULL_INTERVAL);
            self.want(if is_stale { Purpose::Report(Kind::Full) } else { Purpose::Refresh });
        }
    }

    /// Until when no run may begin; `None` when one may now.
    fn paced_until(&self) -> Option<Instant> {
        let first = self.began.front().filter(|_| self.began.len() >= limits::NETCHECK_RUNS)?;
        Some(*first + RUNS_WITHIN).filter(|at| *at > self.now)
    }

    /// Begins what is wanted, if it may. Says whether it did.
    fn begin_wanted(&mut self) -> bool {
        if self.paced_until().is_some() {
            return false;
        }
        let Some(wanted) = self.wanted.take() else { return false };
        let now = self.now;
        let is_stale = self.last_full_at.is_none_or(|at| now.since(at) >= FULL_INTERVAL);
        let wanted = match wanted {
            Purpose::Refresh if self.is_sought() => Purpose::Report(Kind::Incremental),
            other => other,
        };
        let purpose = match wanted {
            Purpose::Report(Kind::Incremental) if is_stale || self.history.last().is_none() => {
                Purpose::Report(Kind::Full)
            }
            other => other,
        };
        if self.began.len() >= limits::NETCHECK_RUNS {
            self.began.pop_front();
        }
        self.began.push_back(now);
        (self.refresh_at, self.retry_at) = (None, None);

        let worked = self.history.last().map_or_else(Vec::new, |last| {
            let has_worked = |family: &Family| match family {
                Family::V4 => last.ipv4,
                Family::V6 => last.ipv6,
            };
            Family::BOTH.into_iter().filter(has_worked).collect()
        });
        let known = |region| self.history.latency(region, now);
        let planner = Planner {
            servers: &self.servers,
            families: self.families.clone(),
            home: self.home(),
            sought: [self.left, self.nameless.map(|nameless| nameless.region)],
            known: &known,
            worked,
        };
        let sets = planner.plan(purpose);
        let may_be_asked = |region: &RegionId| self.servers.regions.get(region).is_some_and(|region| !region.avoid);
        let relays = if self.families.is_empty() { Vec::new() } else { planner.order() };
        let relays = relays.into_iter().filter(may_be_asked).collect();
        match purpose {
            Purpose::Report(Kind::Full) => {
                self.stats.full_reports += 1;
                self.last_full_at = Some(now);
            }
            Purpose::Report(Kind::Incremental) => self.stats.incremental_reports += 1,
            Purpose::Refresh => self.stats.refreshes += 1,
        }
        debug!(?purpose, sets = sets.len(), "netcheck begins");
        self.run = Some(Run::new(purpose, sets, relays, now));
        true
    }

    /// Gives up what is under way: its answers would be of another map or network.
    fn abort(&mut self) {
        let Some(run) = self.run.take() else { return };
        self.stats.aborted += 1;
        if let Purpose::Report(kind) = run.purpose {
            // Somebody may wait for it.
            self.wanted = self.wanted.max(Some(Purpose::Report(kind)));
        }
    }

    fn end_run(&mut self) {
        let Some(run) = self.run.take() else { return };
        self.refresh_at = Some(self.now + REFRESH_MIN + self.rng.duration_below(REFRESH_SPREAD));
        match run.purpose {
            Purpose::Refresh => self.end_refresh(&run.report),
            Purpose::Report(_) => {
                let asked = run.asked();
                self.end_report(run.report, run.began_at);
                self.note_reported(&asked);
            }
        }
    }

    /// Looks whether the last report still holds.
    fn end_refresh(&mut self, found: &Report) {
        let Some(last) = self.history.last() else {
            self.want(Purpose::Report(Kind::Full));
            return;
        };
        let is_elsewhere = found.mapped.keys().any(|address| !last.mapped.contains_key(address));
        match (last.udp, found.udp) {
            (false, true) => self.want(Purpose::Report(Kind::Full)),
            (true, false) => self.want(Purpose::Report(Kind::Incremental)),
            (true, true) if is_elsewhere => self.want(Purpose::Report(Kind::Incremental)),
            (true, true) | (false, false) => {}
        }
    }

    fn end_report(&mut self, mut report: Report, began_at: Instant) {
        let now = self.now;
        report.ended_at = now;
        report.took = now.since(began_at);
        report.os_has_ipv6 = self.families.contains(&Family::V6);
        let choice = Choice {
            servers: &self.servers,
            current: &report,
            began_at,
            home: self.home.filter(|home| !home.is_guess).map(|home| home.region),
            heard: &self.heard,
            dead: &self.dead(),
            now,
        };
        report.preferred = self.history.choose(choice);
        debug!(kind = ?report.kind, udp = report.udp, regions = report.regions.len(), preferred = ?report.preferred,
            took = ?report.took, "netcheck report");

        if report.heard_anything() {
            self.failures = 0;
        } else if self.can_ask() {
            let pause = RETRY_MIN * 2u32.pow(self.failures.min(10));
            self.retry_at = Some(now + pause.min(RETRY_MAX));
            self.failures = self.failures.saturating_add(1);
        }
        match report.preferred {
            Some(region) => self.go_home(Home::known(region)),
            None if self.can_ask() => self.draw_home(),
            None => {}
        }
        let report = Arc::new(report);
        self.history.add(Arc::clone(&report));
        self.outputs.push_back(Output::Report(report));
    }

    /// Lends the run what it works with.
    fn with_run<T>(&mut self, act: impl FnOnce(&mut Run, &mut Context<'_>, Instant) -> T) -> Option<T> {
        let run = self.run.as_mut()?;
        let mut context = Context {
            servers: &self.servers,
            names: &mut self.names,
            rng: &mut self.rng,
            fetch_ids: &mut self.fetch_ids,
            outputs: &mut self.outputs,
            stats: &mut self.stats,
        };
        Some(act(run, &mut context, self.now))
    }
}

#[cfg(test)]
mod tests;
