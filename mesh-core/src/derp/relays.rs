//! [`Relays`]: which regions to be connected to.
//!
//! The home region is where peers find us, so its connection is held for ever. Any other is opened when a packet is to
//! go over it and closed when none did for a minute. A connection that breaks while it is wanted is made again: at once
//! the first time, then after ever longer pauses with jitter, so that the clients of a relay that restarts do not come
//! back as one. The pauses begin anew when a connection has lasted.
//!
//! It speaks of regions and knows neither addresses nor streams. Regions that the relay map does not have are not
//! connected to, and while the network is down none is.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tracing::debug;

use crate::{
    machine::Deadline,
    rng::Rng,
    time::{Instant, earliest},
};

use super::RegionId;

/// Stock nodes: 60 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause after the second failure; doubled with each more.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// Stock nodes: 5 s.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// The first reconnection is spread over this.
const FIRST_RETRY_WITHIN: Duration = Duration::from_millis(100);
/// A connection that lasted this long was a good one.
const LASTED: Duration = Duration::from_secs(10);
/// A relay that says it is away for longer is asked earlier.
const RESTART_MAX: Duration = Duration::from_secs(30);

/// What is to be done with connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Connect to a relay of the region, and say how it ended.
    Connect(RegionId),
    /// Close the connection, or give up making it. Nothing is to be said about it.
    Close(RegionId),
    /// Tell the relay whether it is our home.
    TellHome {
        /// Which.
        region: RegionId,
        /// Whether it is.
        home: Home,
    },
    /// Ask whether the relay is there.
    Ask(RegionId),
}

/// Whether a region is our home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// It is.
    Here,
    /// It is not, any more.
    Elsewhere,
}

/// Whether there is a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// There is.
    Up,
    /// There is none.
    Down,
}

/// What has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelaysStats {
    /// Connections begun.
    pub connects: u64,
    /// Connections that became ready.
    pub connected: u64,
    /// Connections that broke or could not be made.
    pub failures: u64,
    /// Connections closed because nothing went over them.
    pub idle_closes: u64,
    /// Packets for regions that the map does not have.
    pub unknown_regions: u64,
}

/// Which regions to be connected to.
#[derive(Debug)]
pub struct Relays {
    rng: Rng,
    now: Instant,
    network: Network,
    known: BTreeSet<RegionId>,
    home: Option<RegionId>,
    links: BTreeMap<RegionId, Link>,
    outputs: VecDeque<Output>,
    stats: RelaysStats,
}

/// One region that is wanted.
#[derive(Debug)]
struct Link {
    state: State,
    used_at: Instant,
    /// Failures since a connection lasted.
    failures: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Connected { since: Instant },
    Waiting { until: Instant },
}

impl Relays {
    /// With no map and no home; the network is up.
    #[must_use]
    pub fn new(rng: Rng) -> Self {
        Self {
            rng,
            now: Instant::ZERO,
            network: Network::Up,
            known: BTreeSet::new(),
            home: None,
            links: BTreeMap::new(),
            outputs: VecDeque::new(),
            stats: RelaysStats::default(),
        }
    }

    /// Replaces the regions of the relay map; `changed` are those whose relays are others now.
    pub fn set_regions(&mut self, regions: BTreeSet<RegionId>, changed: &BTreeSet<RegionId>, now: Instant) {
        self.tick(now);
        self.known = regions;
        let gone: Vec<_> = self.links.keys().filter(|region| !self.known.contains(region)).copied().collect();
        for region in gone {
            self.close(region);
        }
        for region in changed {
            if self.links.contains_key(region) {
                self.close(*region);
                self.want(*region);
            }
        }
        self.hold_home();
    }

    /// Replaces our home region.
    pub fn set_home(&mut self, home: Option<RegionId>, now: Instant) {
        self.tick(now);
        let before = core::mem::replace(&mut self.home, home);
        if before == home {
            return;
        }
        if let Some(region) = before
            && let Some(link) = self.links.get_mut(&region)
        {
            // Peers may not know yet: as good as just used.
            link.used_at = self.now;
            self.tell_home(region, Home::Elsewhere);
        }
        if let Some(region) = home {
            self.tell_home(region, Home::Here);
        }
        self.hold_home();
    }

    /// Says whether there is a network. Without one all connections are closed.
    pub fn set_network(&mut self, network: Network, now: Instant) {
        self.tick(now);
        self.network = network;
        match network {
            Network::Up => self.hold_home(),
            Network::Down => {
                let open: Vec<_> = self.links.keys().copied().collect();
                for region in open {
                    self.close(region);
                }
            }
        }
    }

    /// A packet is to go over a region.
    pub fn note_use(&mut self, region: RegionId, now: Instant) {
        self.tick(now);
        if !self.known.contains(&region) {
            self.stats.unknown_regions += 1;
            return;
        }
        self.want(region);
    }

    /// What was sent over a region is not answered. Answers come over our home: if that is another one, its connection may
    /// be dead without a word, as behind a router that has forgotten it.
    pub fn note_silence(&mut self, region: RegionId, now: Instant) {
        self.tick(now);
        if let Some(home) = self.home.filter(|home| *home != region && self.is_connected(*home)) {
            self.outputs.push_back(Output::Ask(home));
        }
    }

    /// The relay took us in.
    pub fn handle_connected(&mut self, region: RegionId, now: Instant) {
        self.tick(now);
        let Some(link) = self.links.get_mut(&region) else { return };
        if link.state != State::Connecting {
            return;
        }
        link.state = State::Connected { since: self.now };
        self.stats.connected += 1;
        if self.home == Some(region) {
            self.tell_home(region, Home::Here);
        }
    }

    /// A connection broke or could not be made.
    pub fn handle_failed(&mut self, region: RegionId, now: Instant) {
        self.tick(now);
        let Some(link) = self.links.get_mut(&region) else { return };
        match link.state {
            State::Connected { since } if self.now.since(since) >= LASTED => link.failures = 0,
            State::Connected { .. } | State::Connecting => {}
            State::Waiting { .. } => return,
        }
        let pause = pause(link.failures, &mut self.rng);
        debug!(%region, failures = link.failures, ?pause, "relay connection failed");
        link.failures = link.failures.saturating_add(1);
        link.state = State::Waiting { until: self.now + pause };
        self.stats.failures += 1;
    }

    /// The relay said that it restarts: its connection will break, and be made again not before `reconnect_in`.
    pub fn handle_restarting(&mut self, region: RegionId, reconnect_in: Duration, now: Instant) {
        self.tick(now);
        let Some(link) = self.links.get_mut(&region) else { return };
        match link.state {
            State::Connecting | State::Connected { .. } => {}
            // The connection that said so has ended since.
            State::Waiting { .. } => return,
        }
        let jitter = self.rng.duration_below(FIRST_RETRY_WITHIN);
        link.state = State::Waiting { until: self.now + reconnect_in.min(RESTART_MAX) + jitter };
        self.outputs.push_back(Output::Close(region));
    }

    /// Lets due timers act.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.tick(now);
        let regions: Vec<_> = self.links.keys().copied().collect();
        for region in regions {
            let Some(link) = self.links.get(&region) else { continue };
            if self.idle_at(region, link).is_some_and(|at| at <= self.now) {
                self.stats.idle_closes += 1;
                self.close(region);
                continue;
            }
            match link.state {
                State::Waiting { until } if until <= self.now => self.reconnect(region),
                State::Waiting { .. } | State::Connecting | State::Connected { .. } => {}
            }
        }
    }

    /// The next thing to do.
    #[must_use]
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is wanted next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let of_link = |(region, link): (&RegionId, &Link)| {
            let retry = match link.state {
                State::Waiting { until } => Some(Deadline::new(until, "relay reconnection")),
                State::Connecting | State::Connected { .. } => None,
            };
            let idle = self.idle_at(*region, link).map(|at| Deadline::new(at, "relay idle"));
            earliest(retry, idle)
        };
        self.links.iter().map(of_link).fold(None, earliest)
    }

    /// Whether packets can go over a region now.
    #[must_use]
    pub fn is_connected(&self, region: RegionId) -> bool {
        self.connected_since(region).is_some()
    }

    /// Since when a region is connected to; `None` while it is not.
    #[must_use]
    pub fn connected_since(&self, region: RegionId) -> Option<Instant> {
        match self.links.get(&region)?.state {
            State::Connected { since } => Some(since),
            State::Waiting { .. } | State::Connecting => None,
        }
    }

    /// Our home region.
    #[must_use]
    pub fn home(&self) -> Option<RegionId> {
        self.home
    }

    /// What has happened.
    #[must_use]
    pub fn stats(&self) -> RelaysStats {
        self.stats
    }

    fn tick(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    fn hold_home(&mut self) {
        if let Some(home) = self.home.filter(|home| self.known.contains(home)) {
            self.want(home);
        }
    }

    /// Notes that a region is wanted now, and connects to it.
    fn want(&mut self, region: RegionId) {
        match self.network {
            Network::Up => {}
            Network::Down => return,
        }
        if let Some(link) = self.links.get_mut(&region) {
            link.used_at = self.now;
            return;
        }
        self.links.insert(region, Link { state: State::Connecting, used_at: self.now, failures: 0 });
        self.connect(region);
    }

    fn reconnect(&mut self, region: RegionId) {
        if let Some(link) = self.links.get_mut(&region) {
            link.state = State::Connecting;
            self.connect(region);
        }
    }

    fn connect(&mut self, region: RegionId) {
        self.stats.connects += 1;
        self.outputs.push_back(Output::Connect(region));
    }

    fn close(&mut self, region: RegionId) {
        let Some(link) = self.links.remove(&region) else { return };
        match link.state {
            State::Connecting | State::Connected { .. } => self.outputs.push_back(Output::Close(region)),
            State::Waiting { .. } => {}
        }
    }

    /// Only those that are connected are told; others are when they are.
    fn tell_home(&mut self, region: RegionId, home: Home) {
        if self.is_connected(region) {
            self.outputs.push_back(Output::TellHome { region, home });
        }
    }

    /// When a connection counts as idle; the home never does.
    fn idle_at(&self, region: RegionId, link: &Link) -> Option<Instant> {
        (self.home != Some(region)).then(|| link.used_at + IDLE_TIMEOUT)
    }
}

/// How long to wait after so many failures before this one.
fn pause(failures: u32, rng: &mut Rng) -> Duration {
    if failures == 0 {
        return rng.duration_below(FIRST_RETRY_WITHIN);
    }
    let whole = (BACKOFF_MIN * 2u32.pow((failures - 1).min(10))).min(BACKOFF_MAX);
    whole / 2 + rng.duration_below(whole / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Seed;

    #[test]
    fn the_home_is_held_and_told() {
        let mut relays = relays();
        relays.set_home(region(1), secs(1));
        assert_eq!(drain(&mut relays), [Output::Connect(id(1))]);
        relays.handle_connected(id(1), secs(2));
        assert_eq!(drain(&mut relays), [Output::TellHome { region: id(1), home: Home::Here }]);
        assert!(relays.is_connected(id(1)));
        assert_eq!(relays.poll_timeout(), None, "however idle");
    }

    #[test]
    fn a_new_home_is_told_to_both_and_the_old_one_closes_when_idle() {
        let mut relays = relays();
        relays.set_home(region(1), secs(1));
        relays.handle_connected(id(1), secs(1));
        relays.note_use(id(2), secs(2));
        relays.handle_connected(id(2), secs(2));
        drain(&mut relays);
        relays.set_home(region(2), secs(100));
        let told = [(1, Home::Elsewhere), (2, Home::Here)].map(|(r, home)| Output::TellHome { region: id(r), home });
        assert_eq!(drain(&mut relays), told);
        assert_eq!(relays.poll_timeout(), Some(Deadline::new(secs(160), "relay idle")));
        relays.handle_timeout(secs(160));
        assert_eq!(drain(&mut relays), [Output::Close(id(1))]);
        assert_eq!((relays.poll_timeout(), relays.stats().idle_closes), (None, 1));
    }

    #[test]
    fn a_home_that_is_connected_to_is_asked_when_answers_to_other_regions_do_not_come() {
        let mut relays = relays();
        relays.note_silence(id(2), secs(1));
        relays.set_home(region(1), secs(1));
        relays.note_silence(id(2), secs(1));
        assert_eq!(drain(&mut relays), [Output::Connect(id(1))]);
        relays.handle_connected(id(1), secs(2));
        drain(&mut relays);
        // What is sent over home is asked about there.
        relays.note_silence(id(1), secs(3));
        assert_eq!(drain(&mut relays), []);
        relays.note_silence(id(2), secs(3));
        assert_eq!(drain(&mut relays), [Output::Ask(id(1))]);
    }

    #[test]
    fn use_opens_a_connection_and_keeps_it() {
        let mut relays = relays();
        relays.note_use(id(3), secs(1));
        relays.note_use(id(3), secs(1));
        assert_eq!(drain(&mut relays), [Output::Connect(id(3))]);
        relays.handle_connected(id(3), secs(1));
        relays.note_use(id(3), secs(50));
        relays.handle_timeout(secs(109));
        assert_eq!(drain(&mut relays), []);
        relays.handle_timeout(secs(110));
        assert_eq!(drain(&mut relays), [Output::Close(id(3))]);
    }

    #[test]
    fn regions_that_the_map_does_not_have_are_left_alone_and_closed() {
        let mut relays = relays();
        relays.note_use(id(9), secs(1));
        relays.set_home(region(9), secs(1));
        assert_eq!((drain(&mut relays), relays.stats().unknown_regions), (vec![], 1));
        relays.note_use(id(1), secs(1));
        relays.set_regions([id(9)].into(), &BTreeSet::new(), secs(2));
        assert_eq!(drain(&mut relays), [Output::Connect(id(1)), Output::Close(id(1)), Output::Connect(id(9))]);
    }

    #[test]
    fn a_region_with_other_relays_is_connected_to_anew() {
        let mut relays = relays();
        relays.note_use(id(1), secs(1));
        drain(&mut relays);
        relays.set_regions([id(1)].into(), &[id(1), id(2)].into(), secs(2));
        assert_eq!(drain(&mut relays), [Output::Close(id(1)), Output::Connect(id(1))]);
    }

    #[test]
    fn failures_wait_longer_and_longer_up_to_five_seconds() {
        let mut relays = relays();
        relays.set_home(region(1), secs(1));
        let (mut now, mut pauses) = (secs(1), Vec::new());
        for _ in 0..12 {
            assert_eq!(drain(&mut relays), [Output::Connect(id(1))]);
            relays.handle_failed(id(1), now);
            relays.handle_failed(id(1), now);
            let at = relays.poll_timeout().unwrap().at;
            pauses.push(at.since(now));
            now = at;
            relays.handle_timeout(now);
        }
        assert!(pauses[0] < FIRST_RETRY_WITHIN);
        for (pause, whole) in pauses[1..].iter().zip([200, 400, 800, 1600, 3200, 5000, 5000]) {
            let whole = Duration::from_millis(whole);
            assert!((whole / 2..whole).contains(pause), "{pauses:?}");
        }
        assert_eq!(relays.stats().failures, 12);
    }

    #[test]
    fn a_connection_that_lasted_begins_the_pauses_anew() {
        let check = |lasted: u64, expected_max: Duration| {
            let mut relays = relays();
            relays.set_home(region(1), secs(1));
            for _ in 0..5 {
                relays.handle_failed(id(1), secs(1));
                relays.handle_timeout(relays.poll_timeout().unwrap().at);
            }
            let now = secs(60);
            relays.handle_connected(id(1), now);
            let end = now + Duration::from_secs(lasted);
            relays.handle_failed(id(1), end);
            let pause = relays.poll_timeout().unwrap().at.since(end);
            assert!(pause <= expected_max && pause > expected_max / 20, "{lasted}: {pause:?}");
        };
        check(10, FIRST_RETRY_WITHIN);
        check(9, Duration::from_millis(3_200));
    }

    #[test]
    fn what_is_not_used_any_more_is_not_connected_to_again() {
        let mut relays = relays();
        relays.note_use(id(1), secs(1));
        relays.handle_connected(id(1), secs(1));
        relays.handle_failed(id(1), secs(61));
        drain(&mut relays);
        relays.handle_timeout(secs(61));
        assert_eq!((drain(&mut relays), relays.poll_timeout()), (vec![], None));
    }

    #[test]
    fn a_restarting_relay_is_given_its_time() {
        let mut relays = relays();
        relays.set_home(region(1), secs(1));
        relays.handle_connected(id(1), secs(1));
        drain(&mut relays);
        relays.handle_restarting(id(1), Duration::from_secs(3), secs(10));
        assert_eq!(drain(&mut relays), [Output::Close(id(1))]);
        let at = relays.poll_timeout().unwrap().at;
        assert!((secs(13)..secs(14)).contains(&at));
        relays.handle_timeout(at);
        assert_eq!(drain(&mut relays), [Output::Connect(id(1))]);
        relays.handle_restarting(id(1), Duration::MAX, secs(20));
        assert!(relays.poll_timeout().unwrap().at < secs(51));
    }

    #[test]
    fn a_restart_of_a_relay_whose_connection_has_ended_changes_nothing() {
        let mut relays = relays();
        relays.set_home(region(1), secs(1));
        relays.handle_connected(id(1), secs(1));
        drain(&mut relays);
        relays.handle_failed(id(1), secs(10));
        let again = relays.poll_timeout();
        relays.handle_restarting(id(1), Duration::from_secs(30), secs(10));
        assert_eq!((drain(&mut relays), relays.poll_timeout()), (vec![], again));
    }

    #[test]
    fn without_a_network_nothing_is_connected_to() {
        let mut relays = relays();
        relays.set_home(region(1), secs(1));
        relays.note_use(id(2), secs(1));
        drain(&mut relays);
        relays.set_network(Network::Down, secs(2));
        relays.note_use(id(3), secs(3));
        assert_eq!(drain(&mut relays), [Output::Close(id(1)), Output::Close(id(2))]);
        assert_eq!(relays.poll_timeout(), None);
        relays.set_network(Network::Up, secs(4));
        assert_eq!(drain(&mut relays), [Output::Connect(id(1))]);
    }

    /// A map of regions 1, 2 and 3.
    fn relays() -> Relays {
        let mut relays = Relays::new(Seed::from_number(1).stream("relays", 0));
        relays.set_regions([id(1), id(2), id(3)].into(), &BTreeSet::new(), secs(0));
        relays
    }

    fn drain(relays: &mut Relays) -> Vec<Output> {
        core::iter::from_fn(|| relays.poll_output()).collect()
    }

    fn region(number: u16) -> Option<RegionId> {
        RegionId::new(number)
    }

    fn id(number: u16) -> RegionId {
        RegionId::new(number).unwrap()
    }

    fn secs(secs: u64) -> Instant {
        Instant::from_secs(secs)
    }
}
