//! Named NAT profiles (`nat-simulation` §5): the home router, and others as differences from it.

use core::time::Duration;

use super::nat_params::{
    Alloc, Assignment, Collision, EarlyInbound, Filter, FilterScope, FullPolicy, Hairpin, Mapping, NatParams, Pairing,
    Pool, PortBlock, PortRange, Refresh, Ttl,
};

impl NatParams {
    /// The home router: Linux masquerading with WAN input dropped (measured on Linux 6.18).
    pub const LINUX_FILTERED: Self = Self {
        profile: "linux-filtered",
        mapping: Mapping::EndpointIndependent,
        filter: Filter::AddressAndPortDependent,
        filter_scope: FilterScope::Mapping,
        alloc: Alloc::PreserveOrRandom,
        port_range: PortRange::LinuxClasses,
        collision: Collision::RemapFlow,
        reuse_newest: true,
        pool: Pool::SINGLE,
        port_block: None,
        per_host_limit: None,
        table_max: 65_536,
        full_policy: FullPolicy::DropNew,
        timeout_unreplied: Duration::from_secs(30),
        timeout_replied: Duration::from_secs(30),
        timeout_stream: Duration::from_secs(120),
        stream_after: Duration::from_secs(2),
        refresh_out: Refresh::Yes,
        refresh_in: Refresh::Yes,
        filter_refresh_in: Refresh::Yes,
        expiry_keeps_port: true,
        early_inbound: EarlyInbound::Ignore,
        hairpin: Hairpin::Off,
        ttl: Ttl::Decrement,
        // OpenWrt's, and the least that RFC 5382 allows; Linux alone waits for five days.
        timeout_tcp: Duration::from_secs(7440),
    };

    /// Linux masquerading with WAN input rejected: the default zone of OpenWrt.
    pub const LINUX_REJECT: Self =
        Self { profile: "linux-reject", early_inbound: EarlyInbound::AnswerIcmp, ..Self::LINUX_FILTERED };

    /// Linux masquerading with WAN input accepted: an early packet from outside takes the mapping away.
    pub const LINUX_OPEN: Self =
        Self { profile: "linux-open", early_inbound: EarlyInbound::Clash, ..Self::LINUX_FILTERED };

    /// Linux with `masquerade random`: another port for every remote.
    pub const LINUX_RANDOM: Self = Self {
        profile: "linux-random",
        mapping: Mapping::AddressAndPortDependent,
        alloc: Alloc::Random,
        ..Self::LINUX_FILTERED
    };

    /// Linux with a map from ports to hosts, so that everybody may send to a mapped port.
    pub const LINUX_FULLCONE: Self = Self {
        profile: "linux-fullcone",
        filter: Filter::EndpointIndependent,
        alloc: Alloc::Preserve,
        ..idle(Self::LINUX_FILTERED, 300, 300)
    };

    /// A home modem that lets in whoever has the address of somebody who was sent to.
    pub const EASY_AF: Self = Self {
        profile: "easy-af",
        filter: Filter::AddressDependent,
        alloc: Alloc::Preserve,
        ..idle(Self::LINUX_FILTERED, 30, 300)
    };

    /// pfSense, OPNsense and FreeBSD as they come.
    pub const PF_DEFAULT: Self = Self { profile: "pf-default", ..HARD };

    /// The same told to keep ports.
    pub const PF_STATIC_PORT: Self =
        Self { profile: "pf-static-port", alloc: Alloc::Preserve, ..idle(Self::LINUX_FILTERED, 60, 60) };

    /// The gateway of Amazon's cloud.
    pub const AWS_NATGW: Self =
        Self { profile: "aws-natgw", timeout_tcp: Duration::from_secs(350), ..idle(HARD, 350, 350) };

    /// The gateway of Microsoft's cloud: one port serves many remotes.
    pub const AZURE_NATGW: Self = Self {
        profile: "azure-natgw",
        collision: Collision::Overload,
        timeout_tcp: Duration::from_secs(240),
        ..idle(HARD, 240, 240)
    };

    /// The gateway of Google's cloud as it comes: 64 ports for each machine.
    pub const GCP_NAT_DEFAULT: Self =
        Self { profile: "gcp-nat-default", port_block: Some(GCP_BLOCK), timeout_tcp: GCP_TCP, ..idle(HARD, 30, 30) };

    /// The same with endpoint-independent mapping, which needs static blocks.
    pub const GCP_NAT_EIM: Self = Self {
        profile: "gcp-nat-eim",
        mapping: Mapping::EndpointIndependent,
        collision: Collision::RemapEndpoint,
        port_block: Some(PortBlock { assignment: Assignment::Static, ..GCP_BLOCK }),
        timeout_tcp: GCP_TCP,
        ..idle(HARD, 30, 30)
    };

    /// The firewall of a company.
    pub const CORP_PAT: Self = Self { profile: "corp-pat", ..idle(HARD, 120, 120) };

    /// A carrier's NAT as RFC 6888 wants it.
    pub const CGN_GOOD: Self = Self {
        profile: "cgn-good",
        filter: Filter::EndpointIndependent,
        alloc: Alloc::Random,
        collision: Collision::RemapEndpoint,
        pool: Pool { addresses: 4, pairing: Pairing::Paired },
        port_block: Some(PortBlock { size: 1024, max_blocks: 2, assignment: Assignment::Dynamic }),
        hairpin: Hairpin::ExternalSource,
        ..idle(Self::LINUX_FILTERED, 60, 300)
    };

    /// A mobile carrier's, of the worse third.
    pub const CGN_CELLULAR: Self = Self { profile: "cgn-cellular", ..idle(HARD, 30, 65) };

    /// A carrier's that shows one host under several addresses.
    pub const CGN_ARBITRARY_POOL: Self =
        Self { profile: "cgn-arbitrary-pool", pool: Pool { addresses: 4, pairing: Pairing::Arbitrary }, ..HARD };

    /// A port set of 240 ports, shared by the household.
    pub const MAP_E: Self = Self {
        profile: "map-e",
        alloc: Alloc::Random,
        port_range: PortRange::Within(10_000, 10_239),
        ..idle(Self::LINUX_FILTERED, 120, 120)
    };

    /// Every new flow gets the next port: it can be predicted.
    pub const SEQ_EASY: Self = Self { profile: "seq-easy", alloc: Alloc::Sequential { delta: 1, jitter: 0 }, ..HARD };

    /// An old router with little room.
    pub const TINY_TABLE: Self = Self {
        profile: "tiny-table",
        alloc: Alloc::Preserve,
        table_max: 1024,
        full_policy: FullPolicy::EvictLru,
        ..idle(Self::LINUX_FILTERED, 30, 60)
    };

    /// Keepalives every 25 s are too slow here.
    pub const SHORT_LIVED: Self =
        Self { profile: "short-lived", alloc: Alloc::Preserve, ..idle(Self::LINUX_FILTERED, 10, 20) };

    /// What comes from outside keeps nothing alive.
    pub const NO_INBOUND_REFRESH: Self = Self {
        profile: "no-inbound-refresh",
        alloc: Alloc::Preserve,
        refresh_in: Refresh::No,
        ..idle(Self::LINUX_FILTERED, 30, 30)
    };

    /// A load balancer over two lines: every flow takes either.
    pub const DUAL_WAN: Self = Self {
        profile: "dual-wan",
        reuse_newest: false,
        pool: Pool { addresses: 2, pairing: Pairing::Arbitrary },
        ..Self::LINUX_FILTERED
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

    /// Two NATs in series that have one name: the one at the hosts, and the one that it is behind.
    #[must_use]
    pub fn series(name: &str) -> Option<[Self; 2]> {
        (name == PHONE_HOTSPOT).then_some([Self::LINUX_FILTERED, Self::CGN_CELLULAR])
    }
}

/// A telephone that lends its connection.
pub const PHONE_HOTSPOT: &str = "phone-hotspot";

/// Names of the catalogue for which this build has no model.
pub const NOT_BUILT: &[&str] = &["one2one", "windows-ics", "hotel", "starlink", "vpn-over-vpn"];

/// Another random port for every remote, for 60 s.
const HARD: NatParams = NatParams {
    mapping: Mapping::AddressAndPortDependent,
    alloc: Alloc::Random,
    ..idle(NatParams::LINUX_FILTERED, 60, 60)
};

/// Google's gateway forgets TCP sessions after so long.
const GCP_TCP: Duration = Duration::from_secs(1200);

const GCP_BLOCK: PortBlock = PortBlock { size: 64, max_blocks: 1, assignment: Assignment::Dynamic };

/// Seconds without and with an answer. Where the two differ, an answer counts after 2 s.
const fn idle(params: NatParams, unreplied: u64, stream: u64) -> NatParams {
    NatParams {
        timeout_unreplied: Duration::from_secs(unreplied),
        timeout_replied: Duration::from_secs(unreplied),
        timeout_stream: Duration::from_secs(stream),
        ..params
    }
}

const PRESETS: &[NatParams] = &[
    NatParams::LINUX_FILTERED,
    NatParams::LINUX_REJECT,
    NatParams::LINUX_OPEN,
    NatParams::LINUX_RANDOM,
    NatParams::LINUX_FULLCONE,
    NatParams::EASY_AF,
    NatParams::PF_DEFAULT,
    NatParams::PF_STATIC_PORT,
    NatParams::AWS_NATGW,
    NatParams::AZURE_NATGW,
    NatParams::GCP_NAT_DEFAULT,
    NatParams::GCP_NAT_EIM,
    NatParams::CORP_PAT,
    NatParams::CGN_GOOD,
    NatParams::CGN_CELLULAR,
    NatParams::CGN_ARBITRARY_POOL,
    NatParams::MAP_E,
    NatParams::SEQ_EASY,
    NatParams::TINY_TABLE,
    NatParams::SHORT_LIVED,
    NatParams::NO_INBOUND_REFRESH,
    NatParams::DUAL_WAN,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_is_found_by_its_own_name_and_no_other() {
        for name in NatParams::presets() {
            assert_eq!(NatParams::preset(name).map(|params| params.profile), Some(name));
            assert!(!NOT_BUILT.contains(&name) && NatParams::series(name).is_none());
        }
        assert_eq!(NatParams::preset(PHONE_HOTSPOT), None);
        assert!(NatParams::series(PHONE_HOTSPOT).is_some());
    }
}
