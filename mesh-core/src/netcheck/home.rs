//! Our home region, as far as it is not the choice at the end of a report.

use tracing::debug;

use crate::derp::RegionId;

use super::{Netcheck, output::Output};

/// The home region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Home {
    pub(super) region: RegionId,
    /// Nothing was measured: there was no choice, or it was drawn by lot.
    pub(super) is_guess: bool,
}

impl Netcheck {
    /// A region answered: without a home it is the one.
    pub(super) fn note_answer(&mut self, region: RegionId) {
        if self.home.is_none_or(|home| home.is_guess) && self.servers.can_be_home(region) {
            self.go_home(Home { region, is_guess: false });
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
            Some((_, region)) => self.go_home(Home { region, is_guess: false }),
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
                self.go_home(Home { region: *region, is_guess: true });
            }
        }
    }

    pub(super) fn go_home(&mut self, home: Home) {
        let before = self.home.replace(home).map(|home| home.region);
        if before != Some(home.region) {
            debug!(from = ?before, to = %home.region, is_guess = home.is_guess, "home region");
            self.outputs.push_back(Output::Home(home.region));
        }
    }
}
