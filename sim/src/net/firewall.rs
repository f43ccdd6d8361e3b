//! Firewalls that do not translate: what they block, and whom they let in.
//!
//! A firewall stands between the hosts of a net and what leads out of it, inside of the NAT if there is one, so it
//! sees the hosts' own addresses. What hosts of the net send to each other does not pass it.

use core::{net::SocketAddrV4, time::Duration};

use mesh_core::{time::Instant, wireguard::Kind};

use super::nat_table::{Flow, NatTable, NewSession, Owner, Side};

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
    /// All UDP.
    Udp,
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

/// One firewall.
#[derive(Debug)]
pub struct Firewall {
    params: FirewallParams,
    table: NatTable,
}

impl Firewall {
    /// A firewall without state.
    #[must_use]
    pub fn new(params: FirewallParams) -> Self {
        Self { params, table: NatTable::new() }
    }

    /// A packet from inside.
    ///
    /// # Errors
    /// When it does not pass.
    pub fn handle_outbound(
        &mut self,
        from: SocketAddrV4,
        to: SocketAddrV4,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), Refusal> {
        if self.params.blocked.hits(to.port(), payload) {
            return Err(Refusal::Blocked);
        }
        let Inbound::Answers { idle, .. } = self.params.inbound else { return Ok(()) };
        self.table.expire(now);
        let flow = Flow { internal: from, remote: to };
        match self.table.by_flow(flow) {
            Some(_) => self.note_packet(flow, Side::Inside, now),
            None => {
                let (mapped, owner) = (from, Owner::Inside(from));
                self.table.insert(NewSession { flow, mapped, owner, opened: Side::Inside, now, deadline: now + idle });
            }
        }
        Ok(())
    }

    /// A packet from outside.
    ///
    /// # Errors
    /// When it does not pass.
    pub fn handle_inbound(
        &mut self,
        from: SocketAddrV4,
        to: SocketAddrV4,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), Refusal> {
        if self.params.blocked.hits(from.port(), payload) {
            return Err(Refusal::Blocked);
        }
        if self.params.inbound == Inbound::Open {
            return Ok(());
        }
        self.table.expire(now);
        let flow = Flow { internal: to, remote: from };
        if self.table.by_flow(flow).is_none() {
            return Err(Refusal::Unsolicited);
        }
        self.note_packet(flow, Side::Outside, now);
        Ok(())
    }

    fn note_packet(&mut self, flow: Flow, from: Side, now: Instant) {
        let Inbound::Answers { idle, stream } = self.params.inbound else { return };
        let Some(session) = self.table.by_flow(flow) else { return };
        self.table.note_packet(session, from, now);
        let is_stream = self.table.replied_for(session, now).is_some_and(|age| age > STREAM_AFTER);
        self.table.set_deadline(session, now + if is_stream { stream } else { idle });
    }
}

impl Blocked {
    fn hits(self, port_outside: u16, payload: &[u8]) -> bool {
        match self {
            Self::Nothing => false,
            Self::Udp => true,
            Self::UdpBut(port) => port_outside != port,
            Self::UdpPort(port) => port_outside == port,
            Self::WireguardInitiations => matches!(Kind::of(payload), Some(Kind::Initiation)),
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
    pub const HTTPS_ONLY: Self = Self { profile: "fw-https-only", blocked: Blocked::Udp, inbound: Self::HOST.inbound };

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
];

/// Names of the catalogue whose effect is on something that the simulated underlay does not carry, and what that is.
pub const NOT_BUILT: &[(&str, &str)] = &[
    ("fw6-home", "IPv6"),
    ("fw-proxy", "HTTP"),
    ("fw-captive", "HTTP"),
    ("fw-land", "what closes a NAT's sessions from outside of it"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_passes_and_a_stranger_does_not() {
        let mut firewall = Firewall::new(FirewallParams::HOST);
        let (host, remote) = (endpoint(1, 41641), endpoint(9, 41641));
        assert_eq!(firewall.handle_inbound(remote, host, b"", secs(0)), Err(Refusal::Unsolicited));
        assert_eq!(firewall.handle_outbound(host, remote, b"", secs(0)), Ok(()));
        assert_eq!(firewall.handle_inbound(remote, host, b"", secs(1)), Ok(()));
        assert_eq!(firewall.handle_inbound(endpoint(9, 1), host, b"", secs(1)), Err(Refusal::Unsolicited));
        assert_eq!(firewall.handle_inbound(endpoint(8, 41641), host, b"", secs(1)), Err(Refusal::Unsolicited));
    }

    #[test]
    fn silence_closes_it_and_a_stream_may_be_silent_for_longer() {
        let mut firewall = Firewall::new(FirewallParams::HOST);
        let (host, remote) = (endpoint(1, 1), endpoint(9, 1));
        let _ = firewall.handle_outbound(host, remote, b"", secs(0));
        assert_eq!(firewall.handle_inbound(remote, host, b"", secs(30)), Err(Refusal::Unsolicited));
        let _ = firewall.handle_outbound(host, remote, b"", secs(40));
        assert_eq!(firewall.handle_inbound(remote, host, b"", secs(43)), Ok(()));
        assert_eq!(firewall.handle_inbound(remote, host, b"", secs(162)), Ok(()));
    }

    #[test]
    fn each_profile_blocks_what_it_says() {
        let mut initiation = vec![0; 148];
        initiation[0] = 1;
        let passes = |params, port, payload: &[u8]| {
            Firewall::new(params).handle_outbound(endpoint(1, 1), endpoint(9, port), payload, secs(0)).is_ok()
        };
        let passed = |params| [passes(params, 53, b"x"), passes(params, 443, b"x"), passes(params, 53, &initiation)];
        assert_eq!(passed(FirewallParams::CLOUD), [true, true, true]);
        assert_eq!(passed(FirewallParams::UDP_BLOCKED), [true, false, true]);
        assert_eq!(passed(FirewallParams::HTTPS_ONLY), [false, false, false]);
        assert_eq!(passed(FirewallParams::QUIC_BLOCKED), [true, false, true]);
        assert_eq!(passed(FirewallParams::DPI_WG), [true, true, false]);
    }

    #[test]
    fn profiles_are_found_by_name() {
        for name in FirewallParams::presets() {
            assert_eq!(FirewallParams::preset(name).map(|params| params.profile), Some(name));
        }
        assert_eq!(FirewallParams::preset("fw-captive"), None);
    }

    fn endpoint(host: u8, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new([198, 19, 0, host].into(), port)
    }

    fn secs(secs: u64) -> Instant {
        Instant::from_secs(secs)
    }
}
