//! What time a host believes it is.
//!
//! No two hosts share an epoch: a node that compared its own stamps with a stranger's would pass unnoticed if
//! they did. Both clocks of a host run at the speed of the world.

use core::time::Duration;

use mesh_core::{
    rng::Rng,
    time::{Instant, WallAnchor, WallTime},
};

/// 2026-01-01 00:00 UTC, when every world begins.
const WORLD_BEGINS: u64 = 1_767_225_600;

/// The clocks of one host.
#[derive(Clone, Copy, Debug)]
pub struct HostClock {
    /// What the monotonic clock showed when the world began.
    uptime: Duration,
    anchor: WallAnchor,
}

impl HostClock {
    /// A host that has been up for less than a day, with a calendar that is right to two seconds.
    #[must_use]
    pub fn new(rng: &mut Rng) -> Self {
        let uptime = rng.duration_below(Duration::from_secs(86_400));
        let error = rng.duration_below(Duration::from_secs(4));
        let wall = WallTime::from_unix_nanos((WORLD_BEGINS - 2) * 1_000_000_000 + error.as_nanos() as u64);
        Self { uptime, anchor: WallAnchor { at: Instant::ZERO + uptime, wall } }
    }

    /// What the host's monotonic clock shows at `world`.
    #[must_use]
    pub fn at(&self, world: Instant) -> Instant {
        world + self.uptime
    }

    /// When in the world the host's monotonic clock shows `host`.
    #[must_use]
    pub fn world(&self, host: Instant) -> Instant {
        host - self.uptime
    }

    /// The pair of the host's clocks.
    #[must_use]
    pub fn anchor(&self) -> WallAnchor {
        self.anchor
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::dice::Dice;

    #[test]
    fn host_time_and_world_time_convert_both_ways() {
        let clock = HostClock::new(&mut Dice::new(1).stream("clock", 0));
        let world = Instant::from_secs(5);
        assert_eq!(clock.world(clock.at(world)), world);
        let wall = clock.anchor().wall_at(clock.at(world)).as_unix_nanos() / 1_000_000_000;
        assert!((WORLD_BEGINS + 2..WORLD_BEGINS + 8).contains(&wall), "{wall}");
    }
}
