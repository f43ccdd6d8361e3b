//! S1: what comes out of a tunnel is allowed by the policy's text.
//!
//! Every packet that a host is handed is held against the text that was in force at that host, by an evaluator that
//! shares nothing with what made and applied the rules ([`PolicyText`]). What needs no rule is not judged: TCP that
//! opens nothing, ICMP answers and errors, TSMP, later fragments, and replies, of which the kernel says whether the host
//! had asked.
//!
//! A policy is in force at a host from when the host is handed it until it is handed another. Where nobody can say when
//! that is, a bound counts: an old policy is in force so long after the new one was set, and no longer.

use core::{net::IpAddr, time::Duration};

use mesh_core::{
    ip::packet::{IpPacket, protocol},
    time::Instant,
};

use crate::host::HostId;

use super::{
    CheckId, Tally,
    policy_text::{Member, PolicyText, Question, Wants},
};

/// A node keeps new rules for its next run at once, or so long after the last ones that it kept.
const KEPT_WITHIN: Duration = Duration::from_secs(5);

/// When an old policy is no longer in force at a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// From when [`PolicyCheck::note_handed`] says that it has a newer one.
    Told,
    /// The same, and until then any newer one is in force as well: the host has perhaps just been handed it.
    ToldAtLatest,
    /// So long after the newer one was set.
    Within(Duration),
}

/// Whether a packet answers what its receiver sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Reply,
    /// It does not.
    Unasked,
}

/// Watches what comes out of tunnels.
#[derive(Debug)]
pub struct PolicyCheck {
    members: Vec<Member>,
    propagation: Propagation,
    /// All that were ever set, with the time, oldest first.
    versions: Vec<(Instant, PolicyText)>,
    /// By host: which versions it was handed, and when, the newest last.
    handed: Vec<Vec<(Instant, usize)>>,
}

impl PolicyCheck {
    /// Hosts with these members, by number, and the policy from the beginning.
    #[must_use]
    pub fn new(policy: PolicyText, members: Vec<Member>, propagation: Propagation) -> Self {
        let handed = vec![Vec::new(); members.len()];
        Self { members, propagation, versions: vec![(Instant::ZERO, policy)], handed }
    }

    /// The policy is another.
    pub fn set_policy(&mut self, policy: PolicyText, now: Instant) {
        self.versions.push((now, policy));
    }

    /// A node is another than it was: its user, its tags, its addresses or its routes. Who it was before counts no more.
    pub fn set_member(&mut self, host: HostId, member: Member) {
        if let Some(known) = self.members.get_mut(host.index()) {
            *known = member;
        }
    }

    /// A host has rules by the newest policy.
    pub fn note_handed(&mut self, host: HostId, now: Instant) {
        let newest = self.versions.len() - 1;
        if let Some(handed) =
            self.handed.get_mut(host.index()).filter(|handed| handed.last().is_none_or(|last| last.1 != newest))
        {
            handed.push((now, newest));
        }
    }

    /// A host starts again with what it kept: the rules of five seconds before, or newer ones.
    pub fn note_restarted(&mut self, host: HostId, now: Instant) {
        if let Some(handed) = self.handed.get_mut(host.index()) {
            handed.retain(|(at, _)| *at + KEPT_WITHIN <= now);
        }
    }

    fn handed(&self, host: HostId) -> Option<usize> {
        self.handed.get(host.index()).and_then(|handed| handed.last()).map(|(_, version)| *version)
    }

    /// How many policies there were before the newest.
    #[must_use]
    pub fn newest(&self) -> usize {
        self.versions.len() - 1
    }

    /// Whether every policy so far allows a host to ask another for something. Nobody is allowed anything who has no
    /// address yet.
    #[must_use]
    pub fn always_allows(&self, from: HostId, to: HostId, wants: Wants) -> bool {
        let address =
            |host: HostId| self.members.get(host.index()).and_then(|member| member.addresses.first().copied());
        let (Some(source), Some(destination)) = (address(from), address(to)) else { return false };
        let question = Question { source, destination, wants };
        self.versions.iter().all(|(_, policy)| policy.allows(&question, &self.members))
    }

    /// Whether a host is not known to have rules by the newest policy.
    #[must_use]
    pub fn is_behind(&self, host: HostId) -> bool {
        host.index() < self.handed.len() && self.handed(host) != Some(self.versions.len() - 1)
    }

    /// A host is handed a packet of a peer.
    pub fn handle_delivered(&self, host: HostId, packet: &[u8], standing: Standing, now: Instant, tally: &mut Tally) {
        let question = match wanted(packet, standing) {
            Ok(Some(question)) => question,
            Ok(None) => return,
            Err(what) => {
                let text = format!("host {} was handed {what}, which no policy can allow", host.0);
                return tally.note(CheckId::S1, now, Some(text));
            }
        };
        let is_allowed = self.in_force(host, now).iter().any(|(_, policy)| policy.allows(&question, &self.members));
        let Question { source, destination, wants } = question;
        let leak = (!is_allowed)
            .then(|| format!("host {} was handed {wants:?} from {source} to {destination}, which is denied", host.0));
        tally.note(CheckId::S1, now, leak);
    }

    fn in_force(&self, host: HostId, now: Instant) -> &[(Instant, PolicyText)] {
        match self.propagation {
            Propagation::Told => match self.handed(host) {
                Some(version) => &self.versions[version..=version],
                None => &[],
            },
            Propagation::ToldAtLatest => &self.versions[self.handed(host).unwrap_or(0)..],
            Propagation::Within(time) => {
                let replaced = self.versions.iter().skip(1).take_while(|(at, _)| *at + time < now).count();
                &self.versions[replaced..]
            }
        }
    }
}

/// What a packet needs a rule for; `None` when it needs none.
fn wanted(packet: &[u8], standing: Standing) -> Result<Option<Question>, &'static str> {
    let Ok(ip) = IpPacket::parse(packet) else { return Err("what is no packet") };
    let (source, destination, rest) = (ip.source(), ip.destination(), ip.payload());
    if ip.is_later_fragment() {
        return Ok(None);
    }
    let port = || rest.get(2..4).map(|port| u16::from_be_bytes([port[0], port[1]])).ok_or("a packet without ports");
    let first = || rest.first().copied().ok_or("an empty packet");
    let wants = match (ip.protocol(), source) {
        (protocol::TCP, _) => {
            let flags = rest.get(13).ok_or("TCP without flags")?;
            if flags & 0x12 != 0x02 {
                return Ok(None);
            }
            Wants::Port(protocol::TCP, port()?)
        }
        (protocol::UDP | protocol::SCTP, _) if standing == Standing::Reply => return Ok(None),
        (number @ (protocol::UDP | protocol::SCTP), _) => Wants::Port(number, port()?),
        (protocol::ICMP, IpAddr::V4(_)) if matches!(first()?, 0 | 3 | 11 | 12) => return Ok(None),
        (protocol::ICMPV6, IpAddr::V6(_)) if matches!(first()?, 1..=4 | 129) => return Ok(None),
        (protocol::ICMP, IpAddr::V4(_)) | (protocol::ICMPV6, IpAddr::V6(_)) => Wants::Echo,
        (protocol::TSMP, _) => return Ok(None),
        // Hop-by-hop, routing, fragment and destination options: nothing in a simulation sends them.
        (0 | 43 | 44 | 60, IpAddr::V6(_)) => return Err("an IPv6 header that is not understood here"),
        (number, _) => Wants::Protocol(number),
    };
    Ok(Some(Question { source, destination, wants }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        host::message::{Carrier, Marker, Message, Role},
        kernel::dice::Dice,
    };

    const ALLOW: &str = r#"{"acls": [{"action": "accept", "src": ["ann@x"], "proto": "udp", "dst": ["bob@x:7000"]}]}"#;
    const DENY: &str = r#"{"acls": []}"#;

    #[test]
    fn what_the_text_allows_passes_and_the_rest_is_a_violation() {
        let check = check(ALLOW, Propagation::Within(Duration::ZERO));
        assert!(!leaks(&check, 1, &packet(Carrier::Udp, Role::Question), Standing::Unasked, Instant::ZERO));
        assert!(leaks(&check, 0, &packet(Carrier::Udp, Role::Answer), Standing::Unasked, Instant::ZERO));
        assert!(!leaks(&check, 0, &packet(Carrier::Udp, Role::Answer), Standing::Reply, Instant::ZERO));
        assert!(!leaks(&check, 1, &packet(Carrier::Echo { id: 1 }, Role::Question), Standing::Unasked, Instant::ZERO));
        assert!(leaks(&check, 0, &swapped(Carrier::Echo { id: 1 }, Role::Question), Standing::Unasked, Instant::ZERO));
        assert!(!leaks(&check, 0, &packet(Carrier::Echo { id: 1 }, Role::Answer), Standing::Unasked, Instant::ZERO));
        assert!(leaks(&check, 0, b"nothing", Standing::Reply, Instant::ZERO));
    }

    #[test]
    fn an_old_policy_is_in_force_until_a_host_has_the_new_one() {
        let mut check = check(ALLOW, Propagation::Told);
        let question = packet(Carrier::Udp, Role::Question);
        let leaks = |check: &PolicyCheck| leaks(check, 1, &question, Standing::Unasked, Instant::from_secs(9));
        assert!(leaks(&check), "nobody has been handed anything");
        check.note_handed(HostId(1), Instant::ZERO);
        assert!(!leaks(&check));
        check.set_policy(PolicyText::parse(DENY).unwrap(), Instant::from_secs(1));
        assert!(!leaks(&check), "it does not know yet");
        check.note_handed(HostId(0), Instant::from_secs(1));
        assert!(!leaks(&check), "another does");
        check.note_handed(HostId(1), Instant::from_secs(2));
        assert!(leaks(&check));
        check.note_restarted(HostId(1), Instant::from_secs(7));
        assert!(leaks(&check), "it kept what it was handed five seconds ago");
        check.note_restarted(HostId(1), Instant::from_secs(6));
        assert!(!leaks(&check), "it may have the rules of before, until it is handed others");
        check.note_handed(HostId(1), Instant::from_secs(8));
        assert!(leaks(&check));
    }

    #[test]
    fn without_word_of_it_a_bound_counts() {
        let mut check = check(ALLOW, Propagation::Within(Duration::from_secs(1)));
        let question = packet(Carrier::Udp, Role::Question);
        let leaks = |check: &PolicyCheck, at| leaks(check, 1, &question, Standing::Unasked, Instant::from_millis(at));
        check.set_policy(PolicyText::parse(DENY).unwrap(), Instant::from_secs(5));
        assert!(!leaks(&check, 4_000) && !leaks(&check, 6_000));
        assert!(leaks(&check, 6_001));
        check.set_policy(PolicyText::parse(ALLOW).unwrap(), Instant::from_secs(7));
        assert!(!leaks(&check, 7_000) && !leaks(&check, 9_000));
    }

    #[test]
    fn who_a_node_is_counts_from_when_it_is_said() {
        let mut check = check(ALLOW, Propagation::Within(Duration::ZERO));
        let question = packet(Carrier::Udp, Role::Question);
        let tagged = Member { tags: vec!["tag:x".to_owned()], ..check.members[0].clone() };
        check.set_member(HostId(0), tagged);
        assert!(leaks(&check, 1, &question, Standing::Unasked, Instant::ZERO));
    }

    fn check(policy: &str, propagation: Propagation) -> PolicyCheck {
        let member = |number: u8, user: &str| Member {
            addresses: vec![[100, 64, 0, number].into()],
            user: user.to_owned(),
            ..Member::default()
        };
        let members = vec![member(1, "ann@x"), member(2, "bob@x")];
        PolicyCheck::new(PolicyText::parse(policy).unwrap(), members, propagation)
    }

    fn leaks(check: &PolicyCheck, host: u32, packet: &[u8], standing: Standing, now: Instant) -> bool {
        let mut tally = Tally::default();
        check.handle_delivered(HostId(host), packet, standing, now, &mut tally);
        tally.violations() > 0
    }

    /// From the first host to the second, and its answer back.
    fn packet(carrier: Carrier, role: Role) -> Vec<u8> {
        let (from, to) = if role == Role::Question { (1, 2) } else { (2, 1) };
        between(from, to, carrier, role)
    }

    fn swapped(carrier: Carrier, role: Role) -> Vec<u8> {
        between(2, 1, carrier, role)
    }

    fn between(from: u8, to: u8, carrier: Carrier, role: Role) -> Vec<u8> {
        let message = Message { flow: 0, sequence: 0, role, carrier, bytes: 56, answer_bytes: 56 };
        let marker = Marker::new(&mut Dice::new(1).stream("marker", 0));
        message.packet([100, 64, 0, from].into(), [100, 64, 0, to].into(), marker)
    }
}
