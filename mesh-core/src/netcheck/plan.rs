//! Which requests go to which regions, and when.
//!
//! A plan is a list of *sets*: one region in one family, and when each of its requests is due. A set ends with its first
//! answer, so all requests but the first are for packets that get lost.

use core::time::Duration;

use crate::derp::RegionId;

use super::{
    report::{Family, Kind, RegionLatency},
    servers::Servers,
};

/// Between the requests to a region of a full report. Stock nodes: 100 ms.
const FULL_GAP: Duration = Duration::from_millis(100);
/// The same when the network is known and the region is not. Stock nodes: 200 ms.
const GAP: Duration = Duration::from_millis(200);
/// Less than this is no time to wait for an answer, however near the region.
const MIN_GAP: Duration = Duration::from_millis(20);
/// By how much each request after the second waits longer. Stock nodes: 50 ms.
const GAP_GROWTH: Duration = Duration::from_millis(50);
/// Requests of a full report to a region and family. Stock nodes: 3.
const FULL_TRIES: u32 = 3;
/// Requests of an incremental report to home, and to the nearest two. Stock nodes: 4 and 2.
const HOME_TRIES: u32 = 4;
const NEAR_TRIES: u32 = 2;
/// Requests of a refresh.
const REFRESH_TRIES: u32 = 3;
/// The nearest regions of an incremental report. Stock nodes: 3.
const NEAREST: usize = 3;

/// What a run is for. A later one says more than an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Purpose {
    /// Only our own address, and that it stays ours.
    Refresh,
    /// A report.
    Report(Kind),
}

/// Requests to one region in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) region: RegionId,
    pub(super) family: Family,
    /// When each is due, since the beginning.
    pub(super) tries: Vec<Duration>,
}

/// What a plan is made from.
pub(super) struct Planner<'p> {
    pub(super) servers: &'p Servers,
    /// The families that the host has.
    pub(super) families: Vec<Family>,
    pub(super) home: Option<RegionId>,
    /// Regions that are looked for, however far they may be.
    pub(super) sought: [Option<RegionId>; 2],
    /// What was measured lately.
    pub(super) known: &'p dyn Fn(RegionId) -> RegionLatency,
    /// The families in which something answered the last time.
    pub(super) worked: Vec<Family>,
}

impl Planner<'_> {
    /// The requests of a run.
    pub(super) fn plan(&self, purpose: Purpose) -> Vec<Set> {
        match purpose {
            Purpose::Refresh => self.refresh(),
            Purpose::Report(Kind::Incremental) => self.incremental(),
            Purpose::Report(Kind::Full) => self.full(),
        }
    }

    /// Regions in the order in which they matter: home, then the nearest.
    pub(super) fn order(&self) -> Vec<RegionId> {
        let mut regions = self.by_distance();
        regions.sort_by_key(|region| Some(*region) != self.home);
        regions
    }

    /// All regions in all families at once.
    fn full(&self) -> Vec<Set> {
        let tries: Vec<_> = (0..FULL_TRIES).map(|number| FULL_GAP * number).collect();
        let sets = self.order().into_iter().flat_map(|region| self.sets(region, &self.families, &tries));
        sets.collect()
    }

    /// The nearest regions, home, and those that are looked for.
    fn incremental(&self) -> Vec<Set> {
        let is_wanted = |region: &RegionId| {
            Some(*region) == self.home || self.servers.regions.get(region).is_some_and(|region| !region.avoid)
        };
        let regions: Vec<_> = self.by_distance().into_iter().filter(is_wanted).collect();
        let mut sets = Vec::new();
        for (index, region) in regions.into_iter().enumerate() {
            if Some(region) == self.home {
                sets.extend(self.sets(region, &self.families, &self.spaced(region, HOME_TRIES)));
            } else if index + 1 < NEAREST {
                for family in &self.families {
                    // IPv6 that did not work is tried once.
                    let is_hopeless = *family == Family::V6 && !self.worked.contains(family);
                    let tries = if is_hopeless { 1 } else { NEAR_TRIES };
                    sets.extend(self.sets(region, &[*family], &self.spaced(region, tries)));
                }
            } else if index < NEAREST {
                let families: &[Family] = match self.worked.as_slice() {
                    [_, _] if index % 2 == 0 => &[Family::V4],
                    [_, _] | [Family::V6] => &[Family::V6],
                    _ => &[Family::V4],
                };
                let families: Vec<_> = families.iter().copied().filter(|it| self.families.contains(it)).collect();
                sets.extend(self.sets(region, &families, &self.spaced(region, 1)));
            } else if self.sought.contains(&Some(region)) {
                sets.extend(self.sets(region, &self.families, &self.spaced(region, NEAR_TRIES)));
            }
        }
        sets
    }

    /// One answer in each family that works: from home, or the nearest region that takes requests.
    fn refresh(&self) -> Vec<Set> {
        let of_family = |family: &Family| {
            let regions = self.order().into_iter();
            regions.flat_map(|region| self.sets(region, &[*family], &self.spaced(region, REFRESH_TRIES))).next()
        };
        let is_alive = |family: &&Family| self.worked.is_empty() || self.worked.contains(*family);
        self.families.iter().filter(is_alive).filter_map(of_family).collect()
    }

    fn by_distance(&self) -> Vec<RegionId> {
        let mut regions: Vec<_> = self.servers.regions.keys().copied().collect();
        regions.sort_by_cached_key(|region| ((self.known)(*region).best().unwrap_or(Duration::MAX), *region));
        regions
    }

    /// Requests to a region in those families in which it takes any.
    fn sets(&self, region: RegionId, families: &[Family], tries: &[Duration]) -> Vec<Set> {
        let is_there = |family: &&Family| {
            let region = self.servers.regions.get(&region);
            region.is_some_and(|region| region.reachable(**family).next().is_some())
        };
        let set = |family: &Family| Set { region, family: *family, tries: tries.to_vec() };
        families.iter().filter(is_there).map(set).collect()
    }

    /// When `count` requests to a region are due, as far apart as its answers take.
    fn spaced(&self, region: RegionId, count: u32) -> Vec<Duration> {
        let gap = (self.known)(region).best().map_or(GAP, |latency| (latency * 6 / 5).max(MIN_GAP));
        (0..count).map(|number| gap * number + if number > 1 { GAP_GROWTH * number } else { Duration::ZERO }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: &[Family] = &Family::BOTH;
    const FULL: Purpose = Purpose::Report(Kind::Full);
    const INCREMENTAL: Purpose = Purpose::Report(Kind::Incremental);

    #[test]
    fn a_full_plan_asks_all_and_home_first() {
        let sets = plan(BOTH, &[], Some(3), &[(2, 10)], FULL);
        let regions: Vec<_> = sets.iter().map(|set| set.region.number()).collect();
        assert_eq!(regions, [3, 3, 2, 2, 1, 1, 4, 4, 5, 5]);
        assert!(sets.iter().all(|set| millis(set) == [0, 100, 200]));
        assert_eq!(plan(&[Family::V6], &[], None, &[], FULL).len(), 5);
        assert_eq!(plan(&[], &[], None, &[], FULL), []);
    }

    #[test]
    fn an_incremental_plan_asks_the_nearest_and_home() {
        let known = [(1, 40), (2, 10), (3, 20), (4, 30), (5, 50)];
        let sets = plan(BOTH, BOTH, Some(5), &known, INCREMENTAL);
        let expected = [(2, Family::V4, 2), (2, Family::V6, 2), (3, Family::V4, 2), (3, Family::V6, 2)];
        let rest = [(4, Family::V4, 1), (5, Family::V4, 4), (5, Family::V6, 4)];
        assert_eq!(counts(&sets), [&expected[..], &rest].concat());
        assert_eq!(millis(&sets[0]), [0, 20]);
        assert_eq!(millis(&sets[2]), [0, 24]);
        assert_eq!(millis(&sets[5]), [0, 60, 220, 330]);
    }

    #[test]
    fn an_incremental_plan_asks_less_over_ipv6_when_it_did_not_work() {
        let sets = plan(BOTH, &[Family::V4], None, &[(1, 10)], INCREMENTAL);
        let expected = [(1, Family::V4, 2), (1, Family::V6, 1), (2, Family::V4, 2), (2, Family::V6, 1)];
        // The last, which is looked for, is not among the nearest.
        let rest = [(3, Family::V4, 1), (4, Family::V4, 2), (4, Family::V6, 2)];
        assert_eq!(counts(&sets), [&expected[..], &rest].concat());
        assert_eq!(millis(&sets[2]), [0, 200]);
        let sets = plan(&[Family::V6], &[Family::V6], None, &[(1, 10)], INCREMENTAL);
        assert_eq!(counts(&sets), [(1, Family::V6, 2), (2, Family::V6, 2), (3, Family::V6, 1), (4, Family::V6, 2)]);
    }

    #[test]
    fn a_region_to_be_avoided_is_only_asked_when_it_is_home() {
        let has_fifth = |sets: &[Set]| sets.iter().any(|set| set.region.number() == 5);
        assert!(!has_fifth(&plan(BOTH, BOTH, None, &[(5, 1)], INCREMENTAL)));
        assert!(has_fifth(&plan(BOTH, BOTH, Some(5), &[(5, 1)], INCREMENTAL)));
        assert!(has_fifth(&plan(BOTH, BOTH, None, &[(5, 1)], FULL)));
    }

    #[test]
    fn a_refresh_asks_one_region() {
        let check = |worked: &[Family], home, expected: &[(u16, Family, usize)]| {
            assert_eq!(counts(&plan(BOTH, worked, home, &[(2, 10)], Purpose::Refresh)), expected);
        };
        check(BOTH, Some(3), &[(3, Family::V4, 3), (3, Family::V6, 3)]);
        check(&[Family::V4], None, &[(2, Family::V4, 3)]);
        check(&[], Some(3), &[(3, Family::V4, 3), (3, Family::V6, 3)]);
    }

    /// A plan for five regions of one server each, of which the fifth is to be avoided.
    fn plan(
        families: &[Family],
        worked: &[Family],
        home: Option<u16>,
        known: &[(u16, u64)],
        purpose: Purpose,
    ) -> Vec<Set> {
        let region = |number: u16| {
            let avoid = number == 5;
            format!(r#""{number}": {{"RegionID": {number}, "Avoid": {avoid}, "Nodes": [{{"HostName": "r{number}"}}]}}"#)
        };
        let regions: Vec<_> = (1..=5).map(region).collect();
        let map = serde_json::from_str(&format!(r#"{{"Regions": {{{}}}}}"#, regions.join(","))).unwrap();
        let (servers, _) = Servers::read(&map);
        let known = |region: RegionId| {
            let known = known.iter().find(|(number, _)| *number == region.number());
            RegionLatency { v4: known.map(|(_, millis)| Duration::from_millis(*millis)), v6: None }
        };
        let home = home.and_then(RegionId::new);
        let (families, worked) = (families.to_vec(), worked.to_vec());
        let sought = [None, RegionId::new(4)];
        Planner { servers: &servers, families, home, sought, known: &known, worked }.plan(purpose)
    }

    fn counts(sets: &[Set]) -> Vec<(u16, Family, usize)> {
        sets.iter().map(|set| (set.region.number(), set.family, set.tries.len())).collect()
    }

    fn millis(set: &Set) -> Vec<u128> {
        set.tries.iter().map(Duration::as_millis).collect()
    }
}
