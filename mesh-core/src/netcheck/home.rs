//! Our home region, as far as it is not the choice at the end of a report.

use core::time::Duration;
use std::collections::BTreeSet;

use tracing::debug;

use crate::{derp::RegionId, time::Instant};

use super::{FULL_INTERVAL, Netcheck, REFRESH_MIN, output::Output, plan::Purpose, report::Kind};

/// A relay that could not be connected to for so long is not waited for any more, whatever its STUN server says.
const DEAD_AFTER: Duration = Duration::from_secs(10);
/// How long that is held against it.
const DEAD_FOR: Duration = Duration::from_secs(1800);
/// Reports because of a lost connection to home begin at most this often: a relay may take connections and drop them.
const LOST_SPACING: Duration = Duration::from_secs(5);

/// The home region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Home {
    pub(super) region: RegionId,
    /// Nothing was measured: there was no choice, or it was drawn by lot.
    pub(super) is_guess: bool,
    /// The connection to its relay failed, and nothing was heard of the region since.
    pub(super) is_lost: bool,
}

impl Home {
    /// One that answered.
    pub(super) const fn known(region: RegionId) -> Self {
        Self { region, is_guess: false, is_lost: false }
    }
}

/// A relay that cannot be connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failing {
    since: Instant,
    /// Another home has been looked for.
    is_heeded: bool,
}

/// A region that could not be asked, because DNS does not say where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nameless {
    pub(super) region: RegionId,
    /// When it was looked for last, and how often while others answered.
    looked_at: Instant,
    looks: u32,
}

impl Nameless {
    /// It is looked for again then: ever more rarely, for its name may be wrong.
    fn due_at(self) -> Instant {
        self.looked_at + (REFRESH_MIN * 2u32.pow(self.looks.min(4))).min(FULL_INTERVAL)
    }
}

impl Netcheck {
    /// The connection to a relay could not be made or broke. When it was home's, the nearest regions are asked at once, and
    /// the first to answer is home. A home that answers and stays like this for 10 s is left, too: stock nodes stay as long
    /// as its STUN server does. Where there is no other, it is asked where it sees us: our address may be another one.
    /// While nothing at all answers it says nothing of the relay.
    pub fn note_relay_failed(&mut self, region: RegionId, now: Instant) {
        self.tick(now);
        let was_heard = self.heard.remove(&region).is_some();
        let is_home = self.home() == Some(region);
        let has_choice = self.servers.homes().nth(1).is_some();
        let is_due = self.lost_at.is_none_or(|at| self.now.since(at) >= LOST_SPACING);
        if is_home && is_due {
            self.lost_at = Some(self.now);
            if has_choice {
                self.home = self.home.map(|home| Home { is_lost: true, ..home });
                self.want(Purpose::Report(Kind::Incremental));
            } else if was_heard && self.run.is_none() {
                self.want(Purpose::Refresh);
            }
        }
        if self.servers.can_be_home(region) && self.failures == 0 {
            let failing = self.failing.entry(region).or_insert(Failing { since: self.now, is_heeded: false });
            let is_dead = self.now.since(failing.since) >= DEAD_AFTER;
            if is_home && is_dead && has_choice && !failing.is_heeded {
                failing.is_heeded = true;
                self.want(Purpose::Report(Kind::Incremental));
            }
        }
        self.finish();
    }

    /// Relays that are not waited for any more.
    pub(super) fn dead(&self) -> BTreeSet<RegionId> {
        let is_dead = |failing: &Failing| (DEAD_AFTER..DEAD_FOR).contains(&self.now.since(failing.since));
        self.failing.iter().filter(|(_, failing)| is_dead(failing)).map(|(region, _)| *region).collect()
    }

    /// Whether a region is looked for, and the last report is old enough for another.
    pub(super) fn is_sought(&self) -> bool {
        let is_old = self.history.last().is_none_or(|last| self.now.since(last.ended_at) >= REFRESH_MIN);
        is_old && (self.left.is_some() || self.nameless.is_some_and(|nameless| nameless.due_at() <= self.now))
    }

    /// A region answered: without a home it is the one, and with one that was lost, too, unless that answers first.
    pub(super) fn note_answer(&mut self, region: RegionId) {
        if self.home.is_none_or(|home| home.is_guess || home.is_lost) && self.servers.can_be_home(region) {
            self.go_home(Home::known(region));
        }
    }

    /// Without a home: the nearest of before, or the only one.
    pub(super) fn adopt_home(&mut self) {
        if self.home.is_some() {
            return;
        }
        let latency = |region: &RegionId| self.history.latency(*region, self.now).best();
        let known = self.servers.homes().filter_map(|region| Some((latency(&region)?, region))).min();
        match known {
            Some((_, region)) => self.go_home(Home::known(region)),
            None if self.servers.homes().count() == 1 => self.draw_home(),
            None => {}
        }
    }

    /// Without a measured home: any region.
    pub(super) fn draw_home(&mut self) {
        if self.home.is_none_or(|home| home.is_guess) {
            let homes: Vec<_> = self.servers.homes().collect();
            let index = self.rng.below(homes.len() as u64);
            if let Some(region) = homes.get(index as usize) {
                self.go_home(Home { is_guess: true, ..Home::known(*region) });
            }
        }
    }

    /// A report is over in which these regions were asked. Whether those that did not answer can be connected to is open
    /// again when they do. A home that was lost and answers is looked for no more: it is home again, or need not be. A
    /// region that could not be asked may be the nearest, and is asked again soon.
    pub(super) fn note_reported(&mut self, asked: &BTreeSet<RegionId>) {
        let Some(report) = self.history.last() else { return };
        let answers = |region: &RegionId| report.latency(*region).is_some();
        self.failing.retain(|region, _| answers(region) || !asked.contains(region));
        let dead = self.dead();
        self.left = self.left.filter(|region| !answers(region) || dead.contains(region));
        let is_nameless = |region: &RegionId| self.servers.needs_name(*region, &self.families, &self.names);
        let nameless: BTreeSet<_> = self.servers.homes().filter(is_nameless).collect();
        // While nothing at all answers it says nothing of this one.
        let before = self.nameless.filter(|_| report.heard_anything());
        let is_due = before.is_some_and(|before| before.due_at() <= self.now);
        self.nameless = match before.filter(|before| !is_due && nameless.contains(&before.region)) {
            Some(before) => Some(before),
            None => {
                let later = nameless.iter().find(|region| before.is_some_and(|before| **region > before.region));
                let looks = before.map_or(0, |before| before.looks + u32::from(is_due));
                later.or(nameless.first()).map(|region| Nameless { region: *region, looked_at: self.now, looks })
            }
        };
    }

    pub(super) fn go_home(&mut self, home: Home) {
        let before = self.home.replace(home);
        if let Some(before) = before.filter(|before| before.region != home.region && !before.is_guess)
            && (before.is_lost || self.failing.contains_key(&before.region))
        {
            self.left.get_or_insert(before.region);
        }
        let before = before.map(|home| home.region);
        if before != Some(home.region) {
            debug!(from = ?before, to = %home.region, is_guess = home.is_guess, "home region");
            self.outputs.push_back(Output::Home(home.region));
        }
    }
}
