//! Firewalls that do not translate: what they block, and whom they let in.
//!
//! A firewall stands between the hosts of a net and what leads out of it, inside of the NAT if there is one, so it
//! sees the hosts' own addresses. What hosts of the net send to each other does not pass it.

use core::{net::SocketAddr, time::Duration};
use std::collections::BTreeMap;

use mesh_core::{time::Instant, wireguard::Kind};

use super::packet::Proto;

/// How a firewall behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirewallParams {
    /// The profile's name.
    pub profile: &'static str,
    /// What does not pass, in whatever direction.
    pub blocked: Blocked,
    /// What passes inwards of the rest.
    pub inbound: Inbound,
}

/// What does not pass a firewall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// Everything passes.
    Nothing,
    /// Everything but TCP to the ports of the web, 443 and 80.
    AllButWeb,
    /// All UDP but that of one port outside.
    UdpBut(u16),
    /// UDP of one port outside.
    UdpPort(u16),
    /// What begins like a WireGuard initiation and is as long.
    WireguardInitiations,
}

/// What passes a firewall inwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// Everything.
    Open,
    /// What answers: packets from a remote that was sent to, port for port, not too long ago.
    Answers {
        /// How long before the first answer, and until `stream` counts.
        idle: Duration,
        /// How long once it has been answered for 2 s.
        stream: Duration,
    },
}

/// Why a packet does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is of a blocked kind.
    Blocked,
    /// Nobody asked for it.
    Unsolicited,
}

/// When an answered flow counts as a stream: as Linux has it.
const STREAM_AFTER: Duration = Duration::from_secs(2);

/// How long a TCP flow is remembered that was answered, and one that was not (RFC 6092, RFC 5382 REQ-5).
const TCP_IDLE: (Duration, Duration) = (Duration::from_secs(7440), Duration::from_secs(240));

/// Flows that are held before those that are over are looked for.
const SWEEP: usize = 1024;

/// One firewall.
#[derive(Debug)]
pub struct Firewall {
    params: FirewallParams,
    flows: BTreeMap<Flow, Seen>,
    sweep_at: usize,
}

/// What makes packets belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// Datagrams or streams.
    pub proto: Proto,
    /// The address inside.
    pub inside: SocketAddr,
    /// The address outside.
    pub outside: SocketAddr,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    since: Instant,
    answered: bool,
    until: Instant,
}

impl Firewall {
    /// A firewall without state.
    #[must_use]
    pub fn new(params: FirewallParams) -> Self {
        Self { params, flows: BTreeMap::new(), sweep_at: SWEEP }
    }

    /// Has other rules from now on. What it has seen it still knows.
    pub fn set_params(&mut self, params: FirewallParams) {
        self.params = params;
    }

    /// How it behaves.
    #[must_use]
    pub fn params(&self) -> &FirewallParams {
        &self.params
    }

    /// A packet from inside.
    ///
    /// # Errors
    /// When it does not pass.
    pub fn handle_outbound(&mut self, flow: Flow, payload: &[u8], now: Instant) -> Result<(), Refusal> {
        if self.params.blocked.hits(flow, payload) {
            return Err(Refusal::Blocked);
        }
        if self.params.inbound == Inbound::Open {
            return Ok(());
        }
        if self.flows.len() >= self.sweep_at {
            self.flows.retain(|_, seen| seen.until > now);
            self.sweep_at = SWEEP.max(self.flows.len() * 2);
        }
        let new = Seen { since: now, answered: false, until: now };
        let mut seen = self.flows.get(&flow).copied().filter(|seen| seen.until > now).unwrap_or(new);
        seen.until = now + self.idle(flow.proto, seen, now);
        self.flows.insert(flow, seen);
        Ok(())
    }

    /// A packet from outside.
    ///
    /// # Errors
    /// When it does not pass.
    pub fn handle_inbound(&mut self, flow: Flow, payload: &[u8], now: Instant) -> Result<(), Refusal> {
        if self.params.blocked.hits(flow, payload) {
            return Err(Refusal::Blocked);
        }
        if self.params.inbound == Inbound::Open {
            return Ok(());
        }
        let known = self.flows.get(&flow).copied().filter(|seen| seen.until > now);
        let mut seen = known.ok_or(Refusal::Unsolicited)?;
        seen.answered = true;
        seen.until = now + self.idle(flow.proto, seen, now);
        self.flows.insert(flow, seen);
        Ok(())
    }

    fn idle(&self, proto: Proto, seen: Seen, now: Instant) -> Duration {
        let Inbound::Answers { idle, stream } = self.params.inbound else { return Duration::ZERO };
        match proto {
            Proto::Tcp if seen.answered => TCP_IDLE.0,
            Proto::Tcp => TCP_IDLE.1,
            Proto::Udp if seen.answered && now.since(seen.since) > STREAM_AFTER => stream,
            Proto::Udp => idle,
        }
    }
}

impl Blocked {
    fn hits(self, flow: Flow, payload: &[u8]) -> bool {
        let (port, is_udp) = (flow.outside.port(), flow.proto == Proto::Udp);
        match self {
            Self::Nothing => false,
            Self::AllButWeb => is_udp || !matches!(port, 80 | 443),
            Self::UdpBut(open) => is_udp && port != open,
            Self::UdpPort(closed) => is_udp && port == closed,
            Self::WireguardInitiations => is_udp && matches!(Kind::of(payload), Some(Kind::Initiation)),
        }
    }
}

impl FirewallParams {
    /// The firewall of a host.
    pub const HOST: Self = Self {
        profile: "fw-host",
        blocked: Blocked::Nothing,
        inbound: Inbound::Answers { idle: Duration::from_secs(30), stream: Duration::from_secs(120) },
    };

    /// A cloud's security group.
    pub const CLOUD: Self = Self {
        profile: "fw-cloud",
        blocked: Blocked::Nothing,
        inbound: Inbound::Answers { idle: Duration::from_secs(350), stream: Duration::from_secs(350) },
    };

    /// UDP is for names alone.
    pub const UDP_BLOCKED: Self =
        Self { profile: "fw-udp-blocked", blocked: Blocked::UdpBut(53), inbound: Self::HOST.inbound };

    /// TCP to a few ports is all that there is.
    pub const HTTPS_ONLY: Self =
        Self { profile: "fw-https-only", blocked: Blocked::AllButWeb, inbound: Self::HOST.inbound };

    /// A home router's for IPv6 (RFC 6092): hosts have their own addresses, and nobody gets in unasked.
    pub const HOME_V6: Self = Self {
        profile: "fw6-home",
        blocked: Blocked::Nothing,
        inbound: Inbound::Answers { idle: Duration::from_secs(120), stream: Duration::from_secs(120) },
    };

    /// QUIC is not wanted.
    pub const QUIC_BLOCKED: Self =
        Self { profile: "fw-quic-blocked", blocked: Blocked::UdpPort(443), inbound: Self::HOST.inbound };

    /// WireGuard is not wanted.
    pub const DPI_WG: Self =
        Self { profile: "fw-dpi-wg", blocked: Blocked::WireguardInitiations, inbound: Self::HOST.inbound };

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

const PRESETS: &[FirewallParams] = &[
    FirewallParams::HOST,
    FirewallParams::CLOUD,
    FirewallParams::UDP_BLOCKED,
    FirewallParams::HTTPS_ONLY,
    FirewallParams::QUIC_BLOCKED,
    FirewallParams::DPI_WG,
    FirewallParams::HOME_V6,
];

/// Names of the catalogue whose effect is on something that the simulated underlay does not carry, and what that is.
pub const NOT_BUILT: &[(&str, &str)] =
    &[("fw-proxy", "HTTP"), ("fw-captive", "HTTP"), ("fw-land", "what closes a NAT's sessions from outside of it")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_passes_and_a_stranger_does_not() {
        let mut firewall = Firewall::new(FirewallParams::HOST);
        let asked = flow(Proto::Udp, endpoint(9, 41641));
        assert_eq!(firewall.handle_inbound(asked, b"", secs(0)), Err(Refusal::Unsolicited));
        assert_eq!(firewall.handle_outbound(asked, b"", secs(0)), Ok(()));
        assert_eq!(firewall.handle_inbound(asked, b"", secs(1)), Ok(()));
        for stranger in [
            flow(Proto::Udp, endpoint(9, 1)),
            flow(Proto::Udp, endpoint(8, 41641)),
            flow(Proto::Tcp, endpoint(9, 41641)),
            flow(Proto::Udp, "[2001:db8::9]:41641".parse().unwrap()),
        ] {
            assert_eq!(firewall.handle_inbound(stranger, b"", secs(1)), Err(Refusal::Unsolicited));
        }
    }

    #[test]
    fn silence_closes_it_and_a_stream_may_be_silent_for_longer() {
        let mut firewall = Firewall::new(FirewallParams::HOST);
        let asked = flow(Proto::Udp, endpoint(9, 1));
        let _ = firewall.handle_outbound(asked, b"", secs(0));
        assert_eq!(firewall.handle_inbound(asked, b"", secs(30)), Err(Refusal::Unsolicited));
        let _ = firewall.handle_outbound(asked, b"", secs(40));
        assert_eq!(firewall.handle_inbound(asked, b"", secs(43)), Ok(()));
        assert_eq!(firewall.handle_inbound(asked, b"", secs(162)), Ok(()));

        let stream = flow(Proto::Tcp, endpoint(9, 1));
        let _ = firewall.handle_outbound(stream, b"", secs(0));
        assert_eq!(firewall.handle_inbound(stream, b"", secs(200)), Ok(()));
        assert_eq!(firewall.handle_inbound(stream, b"", secs(7000)), Ok(()));
    }

    #[test]
    fn flows_that_are_over_do_not_stay() {
        let mut firewall = Firewall::new(FirewallParams::HOST);
        for number in 0..10 * SWEEP as u64 {
            let to = endpoint((number / 1000) as u8, (number % 1000) as u16);
            let _ = firewall.handle_outbound(flow(Proto::Udp, to), b"", secs(number));
        }
        assert!(firewall.flows.len() <= SWEEP, "{}", firewall.flows.len());
    }

    #[test]
    fn each_profile_blocks_what_it_says() {
        let mut initiation = vec![0; 148];
        initiation[0] = 1;
        let passes = |params, proto, port, payload: &[u8]| {
            Firewall::new(params).handle_outbound(flow(proto, endpoint(9, port)), payload, secs(0)).is_ok()
        };
        let passed = |params| {
            let udp = |port, payload| passes(params, Proto::Udp, port, payload);
            let tcp = |port| passes(params, Proto::Tcp, port, b"x");
            [udp(53, b"x"), udp(443, b"x"), udp(53, &initiation), tcp(443), tcp(8443)]
        };
        assert_eq!(passed(FirewallParams::CLOUD), [true, true, true, true, true]);
        assert_eq!(passed(FirewallParams::UDP_BLOCKED), [true, false, true, true, true]);
        assert_eq!(passed(FirewallParams::HTTPS_ONLY), [false, false, false, true, false]);
        assert_eq!(passed(FirewallParams::QUIC_BLOCKED), [true, false, true, true, true]);
        assert_eq!(passed(FirewallParams::DPI_WG), [true, true, false, true, true]);
    }

    #[test]
    fn profiles_are_found_by_name() {
        for name in FirewallParams::presets() {
            assert_eq!(FirewallParams::preset(name).map(|params| params.profile), Some(name));
        }
        assert_eq!(FirewallParams::preset("fw-captive"), None);
    }

    fn flow(proto: Proto, outside: SocketAddr) -> Flow {
        Flow { proto, inside: endpoint(1, 41641), outside }
    }

    fn endpoint(host: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([198, 19, 0, host], port))
    }

    fn secs(secs: u64) -> Instant {
        Instant::from_secs(secs)
    }
}
