//! Named links, version 1 (`links@1`): starting points from several projects' ladders. One way.
//!
//! A change to a number is a new version, so that recorded digests stay good. Sources: iroh's degradation
//! ladder, str0m's `netem`, patchbay's presets.

use core::time::Duration;

use crate::kernel::dice::Probability;

use super::link::{LinkParams, Loss};

impl LinkParams {
    /// The link of this name.
    #[must_use]
    pub fn preset(name: &str) -> Option<Self> {
        PRESETS.iter().find(|(preset, _)| *preset == name).map(|(_, params)| *params)
    }

    /// The names of all presets.
    pub fn presets() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|(name, _)| *name)
    }

    /// A gigabit Ethernet.
    pub const LAN: Self = preset(1_000_000, (200, 200), 50, (0, 1), 1_000_000);
    /// A good wireless network.
    pub const WIFI_GOOD: Self = preset(100_000, (4_000, 8_000), 2_000, (10, 2), 200_000);
}

const PRESETS: &[(&str, LinkParams)] = &[
    ("perfect", LinkParams::PERFECT),
    ("lan", LinkParams::LAN),
    ("wifi-good", LinkParams::WIFI_GOOD),
    ("wifi-busy", preset(25_000, (20_000, 20_000), 12_000, (100, 6), 100_000)),
    ("wifi-bad", preset(20_000, (40_000, 40_000), 15_000, (350, 4), 100_000)),
    ("lte", preset(30_000, (25_000, 50_000), 11_000, (100, 2), 300_000)),
    ("lte-edge", preset(8_000, (45_000, 45_000), 15_000, (200, 8), 500_000)),
    // One and two seconds deep at their rates.
    ("3g", preset(2_500, (100_000, 100_000), 30_000, (250, 10), 312_500)),
    ("cell-congested", preset(1_500, (150_000, 150_000), 40_000, (500, 12), 375_000)),
    ("cell-terrible", preset(650, (225_000, 225_000), 70_000, (1_000, 22), 162_500)),
    ("leo", preset(15_000, (20_000, 40_000), 7_000, (100, 6), 200_000)),
    ("geo", preset(3_000, (300_000, 300_000), 30_000, (225, 4), 225_000)),
    ("dsl-bloat", preset(2_000, (10_000, 10_000), 1_000, (0, 1), 250_000)),
    ("absurd", preset(256, (400_000, 400_000), 150_000, (2_500, 40), 64_000)),
];

/// kbit/s, µs, µs, (hundredths of a percent, packets), bytes.
const fn preset(rate: u64, delay: (u64, u64), jitter: u64, (loss, burst): (u32, u32), queue_bytes: u64) -> LinkParams {
    LinkParams {
        delay: (Duration::from_micros(delay.0), Duration::from_micros(delay.1)),
        jitter: Duration::from_micros(jitter),
        loss: Loss::Bursts { mean: Probability::from_basis_points(loss), burst },
        rate: Some(rate * 1000),
        queue_bytes,
        ..LinkParams::PERFECT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_found_by_name() {
        assert_eq!(LinkParams::preset("lan"), Some(LinkParams::LAN));
        assert_eq!(LinkParams::preset("no-such-link"), None);
        assert_eq!(LinkParams::presets().count(), PRESETS.len());
    }
}
