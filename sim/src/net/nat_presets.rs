//! Named NAT profiles. Others than the home router's are data of the same kind, and not in this build yet.

use core::time::Duration;

use super::nat::{Alloc, EarlyInbound, Filter, Mapping, NatParams, Refresh, Ttl};

impl NatParams {
    /// The home router: Linux masquerading with WAN input dropped (measured on Linux 6.18).
    pub const LINUX_FILTERED: Self = Self {
        profile: "linux-filtered",
        mapping: Mapping::EndpointIndependent,
        filter: Filter::AddressAndPortDependent,
        alloc: Alloc::PreserveOrRandom,
        table_max: 65_536,
        timeout_unreplied: Duration::from_secs(30),
        timeout_replied: Duration::from_secs(30),
        timeout_stream: Duration::from_secs(120),
        stream_after: Duration::from_secs(2),
        refresh_out: Refresh::Yes,
        refresh_in: Refresh::Yes,
        early_inbound: EarlyInbound::Ignore,
        ttl: Ttl::Decrement,
    };

    /// The profile of this name.
    #[must_use]
    pub fn preset(name: &str) -> Option<Self> {
        PRESETS.iter().find(|preset| preset.profile == name).copied()
    }

    /// The names of all profiles.
    pub fn presets() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|preset| preset.profile)
    }
}

const PRESETS: &[NatParams] = &[NatParams::LINUX_FILTERED];
