//! The reports of the last minutes, and which region is to be home.
//!
//! A region is as good as its shortest round trip of the last minutes: what is longer was a queue somewhere. The home
//! changes only for a clear gain, because each change is a connection to be made and a message to every peer.

use core::time::Duration;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use crate::{
    derp::RegionId,
    limits,
    time::{Instant, earliest},
};

use super::{
    report::{Family, RegionLatency, Report},
    servers::Servers,
};

/// How long a report counts. Stock nodes: a full interval and 5 s.
const RETENTION: Duration = Duration::from_secs(305);
/// A home that is better by less is none. Stock nodes: 10 ms, and a third.
const MIN_GAIN: Duration = Duration::from_millis(10);
/// A home that sent a frame so recently is there, whether it answers or not. Stock nodes: 8 s.
const FRAME_GRACE: Duration = Duration::from_secs(8);
/// The same when no region answered: twice the relay's keep-alive. Stock nodes: 120 s.
const KEEP_ALIVE_GRACE: Duration = Duration::from_secs(120);

/// Reports of the last minutes, the newest last.
#[derive(Debug, Default)]
pub(super) struct History(VecDeque<Arc<Report>>);

/// What the choice of a home depends on, beside the past.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice<'c> {
    pub(super) servers: &'c Servers,
    pub(super) current: &'c Report,
    /// When the current report was begun.
    pub(super) began_at: Instant,
    pub(super) home: Option<RegionId>,
    /// When each relay was heard last.
    pub(super) heard: &'c BTreeMap<RegionId, Instant>,
    /// Relays that cannot be connected to; home only when all are like this.
    pub(super) dead: &'c BTreeSet<RegionId>,
    pub(super) now: Instant,
}

impl History {
    /// Keeps a report.
    pub(super) fn add(&mut self, report: Arc<Report>) {
        self.prune(report.ended_at);
        if self.0.len() >= limits::NETCHECK_HISTORY {
            self.0.pop_front();
        }
        self.0.push_back(report);
    }

    /// The newest report, however old.
    pub(super) fn last(&self) -> Option<&Arc<Report>> {
        self.0.back()
    }

    /// Forgets all: what was measured on another network means nothing.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Shortest round trips to a region.
    pub(super) fn latency(&self, region: RegionId, now: Instant) -> RegionLatency {
        let mut shortest = RegionLatency::default();
        let recent = self.0.iter().filter(|report| now.since(report.ended_at) < RETENTION);
        for latency in recent.filter_map(|report| report.regions.get(&region)) {
            for family in Family::BOTH {
                if let Some(latency) = latency.of(family) {
                    shortest.note(family, latency);
                }
            }
        }
        shortest
    }

    /// Which region is to be home; `None` when nothing speaks for any.
    pub(super) fn choose(&self, choice: Choice<'_>) -> Option<RegionId> {
        let Choice { servers, current, began_at, home, heard, dead, now } = choice;
        let best = |region: RegionId| {
            let best = earliest(self.latency(region, now).best(), current.latency(region));
            servers.weigh(region, best.unwrap_or(Duration::MAX))
        };
        let heard_within =
            |region: RegionId, grace| heard.get(&region).is_some_and(|at| *at >= began_at || now.since(*at) < grace);
        let answered = current.regions.keys().copied().filter(|region| servers.can_be_home(*region));
        let Some(candidate) = answered.min_by_key(|region| (dead.contains(region), best(*region), *region)) else {
            return home.filter(|home| heard_within(*home, KEEP_ALIVE_GRACE));
        };
        let Some(home) = home.filter(|home| *home != candidate) else { return Some(candidate) };
        let old = current.latency(home).map(|latency| servers.weigh(home, latency));
        let is_worse = dead.contains(&home) && !dead.contains(&candidate);
        if is_worse || (old.is_none() && !heard_within(home, FRAME_GRACE)) {
            return Some(candidate);
        }
        let (old, new) = (old.unwrap_or_default(), best(candidate));
        let is_clear = old.saturating_sub(new) >= MIN_GAIN && new <= old / 3 * 2;
        Some(if is_clear { candidate } else { home })
    }

    fn prune(&mut self, now: Instant) {
        self.0.retain(|report| now.since(report.ended_at) < RETENTION);
    }
}

impl Servers {
    /// A latency as it counts when homes are compared.
    fn weigh(&self, region: RegionId, latency: Duration) -> Duration {
        let score = self.scores.get(&region).copied().unwrap_or(1.0);
        Duration::try_from_secs_f64(latency.as_secs_f64() * score).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netcheck::report::Kind;

    const NOW: Instant = Instant::from_secs(1000);

    #[test]
    fn the_nearest_is_home_and_the_lower_number_when_equal() {
        assert_eq!(choose(&[], &[(1, 30), (2, 20), (3, 20)], None, &[]), id(2));
        assert_eq!(choose(&[], &[], None, &[]), None);
        assert_eq!(choose(&[], &[(9, 1)], None, &[]), None);
    }

    #[test]
    fn a_home_changes_only_for_a_clear_gain() {
        let check = |home, other, expected| assert_eq!(choose(&[], &[(1, home), (2, other)], id(1), &[]), id(expected));
        check(29, 20, 1);
        check(30, 20, 2);
        check(30, 21, 1);
        check(12, 3, 1);
        check(13, 3, 2);
        check(300, 201, 1);
        check(300, 200, 2);
    }

    #[test]
    fn the_past_counts_for_the_candidate_and_not_for_the_home() {
        let past = [(990, 2, 10)];
        assert_eq!(choose(&past, &[(1, 40), (2, 40)], id(1), &[]), id(2));
        assert_eq!(choose(&past, &[(1, 40)], id(1), &[]), id(1));
        let old = [(695, 2, 10)];
        assert_eq!(choose(&old, &[(1, 40), (2, 40)], id(1), &[]), id(1));
    }

    #[test]
    fn a_silent_home_stays_while_its_relay_is_heard() {
        let silent = [(2, 1)];
        assert_eq!(choose(&[], &silent, id(1), &[]), id(2));
        assert_eq!(choose(&[], &silent, id(1), &[(1, 993)]), id(1));
        assert_eq!(choose(&[], &silent, id(1), &[(1, 992)]), id(2));
        assert_eq!(choose(&[], &[], id(1), &[(1, 881)]), id(1));
        assert_eq!(choose(&[], &[], id(1), &[(1, 880)]), None);
    }

    #[test]
    fn scores_weigh() {
        assert_eq!(choose(&[], &[(3, 30), (1, 20)], None, &[]), id(1));
        let servers = Servers { scores: [(region(3), 0.5), (region(1), f64::MAX)].into(), ..servers() };
        assert_eq!(servers.weigh(region(1), Duration::from_secs(1)), Duration::MAX);
        let current = report(&[(3, 30), (2, 20), (1, 1)], NOW);
        let choice = Choice {
            servers: &servers,
            current: &current,
            began_at: NOW,
            home: None,
            heard: &BTreeMap::new(),
            dead: &BTreeSet::new(),
            now: NOW,
        };
        assert_eq!(History::default().choose(choice), id(3));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut history = History::default();
        for second in 0..100 {
            history.add(Arc::new(report(&[(1, second)], Instant::from_secs(second))));
        }
        assert_eq!(history.0.len(), limits::NETCHECK_HISTORY);
        assert_eq!(history.latency(region(1), Instant::from_secs(99)).v4, Some(Duration::from_millis(68)));
        history.add(Arc::new(report(&[], Instant::from_secs(404))));
        assert_eq!(history.0.len(), 1);
    }

    /// Past reports as (second, region, ms), the current one as (region, ms), and frames as (region, second).
    fn choose(
        past: &[(u64, u16, u64)],
        current: &[(u16, u64)],
        home: Option<RegionId>,
        heard: &[(u16, u64)],
    ) -> Option<RegionId> {
        let mut history = History::default();
        for (second, number, millis) in past {
            history.add(Arc::new(report(&[(*number, *millis)], Instant::from_secs(*second))));
        }
        let heard = heard.iter().map(|(number, second)| (region(*number), Instant::from_secs(*second))).collect();
        let (servers, current) = (servers(), report(current, NOW));
        let choice = Choice {
            servers: &servers,
            current: &current,
            began_at: NOW,
            home,
            heard: &heard,
            dead: &BTreeSet::new(),
            now: NOW,
        };
        history.choose(choice)
    }

    fn report(regions: &[(u16, u64)], ended_at: Instant) -> Report {
        let mut report = Report::new(Kind::Full);
        report.ended_at = ended_at;
        for (number, millis) in regions {
            report.note_latency(region(*number), Family::V4, Duration::from_millis(*millis));
        }
        report
    }

    fn servers() -> Servers {
        let region = |number: u16| format!(r#""{number}": {{"Nodes": [{{"HostName": "r{number}"}}]}}"#);
        let map = format!(r#"{{"Regions": {{{}}}}}"#, [1, 2, 3].map(region).join(","));
        Servers::read(&serde_json::from_str(&map).unwrap()).0
    }

    fn region(number: u16) -> RegionId {
        RegionId::new(number).unwrap()
    }

    fn id(number: u16) -> Option<RegionId> {
        RegionId::new(number)
    }
}
