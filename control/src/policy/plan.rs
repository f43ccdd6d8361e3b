//! A policy arranged for applying it: every selector once, every list of sources once, and indexes from what a node is
//! to the selectors that name it.
//!
//! It follows from the policy alone and never changes.

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};

use mesh_core::{
    control::types::{CapMap, PortRange},
    ip::prefix::Prefix,
};

use super::{
    Policy,
    check::{Rule, Term},
    ipset::{IpSet, Span},
    ports::Protocol,
    selector::{Role, Selector},
};

/// Which selector of the plan.
pub(super) type SelectorId = usize;
/// Which list of sources.
pub(super) type SourceId = usize;
/// Which step.
pub(super) type StepId = usize;

/// Capabilities that bring another one in the other direction.
const COMPANIONS: &[(&str, &str)] = &[
    ("tailscale.com/cap/drive", "tailscale.com/cap/drive-sharer"),
    ("tailscale.com/cap/relay", "tailscale.com/cap/relay-target"),
];

/// A list of sources, as several rules may share it.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    pub selectors: Vec<SelectorId>,
    pub steps: Vec<StepId>,
    /// `*` is among them.
    pub has_all: bool,
    /// `autogroup:danger-all` is among them.
    pub is_any: bool,
}

/// What a step gives.
#[derive(Clone, Debug)]
pub(super) enum Gives {
    /// Packets: ports for each protocol.
    Packets(Vec<(Protocol, Vec<PortRange>)>),
    /// Capabilities.
    Capabilities(CapMap),
}

/// One thing that a rule gives, in the order in which filters list them. A rule has up to four: packets, capabilities,
/// and two that go the other way.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// Which rule of the policy.
    pub rule: usize,
    pub sources: SourceId,
    /// Without `autogroup:self`.
    pub dst: Vec<SelectorId>,
    /// How often `autogroup:self` is a destination, and the sources that go with it. These are users or all, so that
    /// of a user's own nodes either all are sources or none is, and both directions are the same.
    pub own: usize,
    pub own_sources: SourceId,
    /// Tags of the routers that it is limited to; empty is no limit.
    pub via: Vec<SelectorId>,
    pub gives: Gives,
}

/// The plan of a policy.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    pub selectors: Vec<Selector>,
    pub sources: Vec<Sources>,
    pub steps: Vec<Step>,
    /// Steps with `autogroup:self` as a destination.
    pub own: Vec<StepId>,
    /// For each selector, the lists of sources it is in.
    pub as_source: Vec<Vec<SourceId>>,
    /// For each selector, the steps without `via` it is a destination of.
    pub as_destination: Vec<Vec<StepId>>,
    /// For each selector, the steps whose `via` it is in.
    pub as_via: Vec<Vec<StepId>>,
    pub index: Index,
}

/// From what a node is to the selectors that name it.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    pub fixed: BTreeMap<Selector, SelectorId>,
    /// By login; `*@domain` is everyone of a domain.
    pub logins: BTreeMap<String, Vec<SelectorId>>,
    pub roles: Vec<(Role, SelectorId)>,
    pub prefixes: BTreeMap<Prefix, SelectorId>,
    /// Lists of sources by their selectors.
    lists: BTreeMap<Vec<SelectorId>, SourceId>,
    /// The lengths that occur among `prefixes`, for both families.
    lengths: BTreeSet<u8>,
}

impl Plan {
    pub(super) fn new(policy: &Policy) -> Self {
        let mut plan = Self::default();
        for (number, rule) in policy.rules.iter().enumerate() {
            plan.add(policy, number, rule);
        }
        for (id, sources) in plan.sources.iter().enumerate() {
            for selector in &sources.selectors {
                plan.as_source[*selector].push(id);
            }
        }
        for (id, step) in plan.steps.iter().enumerate() {
            plan.sources[step.sources].steps.push(id);
            if step.own > 0 {
                plan.own.push(id);
            }
            let by = if step.via.is_empty() { &mut plan.as_destination } else { &mut plan.as_via };
            let selectors = if step.via.is_empty() { &step.dst } else { &step.via };
            for selector in selectors {
                if by[*selector].last() != Some(&id) {
                    by[*selector].push(id);
                }
            }
        }
        plan
    }

    fn add(&mut self, policy: &Policy, number: usize, rule: &Rule) {
        let mut src = self.terms(policy, &rule.src);
        src.sort_unstable();
        src.dedup();
        let is_own = |term: &&Term| term.selector == Selector::Own;
        let own = if rule.via.is_empty() { rule.dst.iter().filter(is_own).count() } else { 0 };
        let dst = self.terms(policy, rule.dst.iter().filter(|term| !is_own(term)));
        let via: Vec<_> = rule.via.iter().map(|tag| self.selector(policy, &Selector::Tag(tag.clone()))).collect();
        let sources = self.sources(src.clone());
        let step =
            Step { rule: number, sources, dst, own, own_sources: sources, via, gives: Gives::Packets(Vec::new()) };
        if !rule.ip.is_empty() {
            let mut packets: Vec<(Protocol, Vec<PortRange>)> = Vec::new();
            for (protocol, range) in &rule.ip {
                match packets.iter_mut().find(|(other, _)| other == protocol) {
                    Some((_, ranges)) => ranges.push(*range),
                    None => packets.push((*protocol, vec![*range])),
                }
            }
            self.steps.push(Step { gives: Gives::Packets(packets), ..step.clone() });
        }
        // Stock control gives no capabilities through `via`.
        if rule.app.is_empty() || !step.via.is_empty() {
            return;
        }
        self.steps.push(Step { gives: Gives::Capabilities(CapMap(rule.app.clone())), ..step.clone() });
        let mut back = step.dst.clone();
        back.sort_unstable();
        back.dedup();
        for (_, companion) in COMPANIONS.iter().filter(|(name, _)| rule.app.contains_key(*name)) {
            let gives = Gives::Capabilities(CapMap([((*companion).to_owned(), Vec::new())].into()));
            let sources = self.sources(back.clone());
            self.steps.push(Step { sources, dst: src.clone(), gives, ..step.clone() });
        }
    }

    fn terms<'a>(&mut self, policy: &Policy, terms: impl IntoIterator<Item = &'a Term>) -> Vec<SelectorId> {
        terms.into_iter().map(|term| self.selector(policy, &term.selector)).collect()
    }

    fn selector(&mut self, policy: &Policy, selector: &Selector) -> SelectorId {
        if let Some(id) = self.index.fixed.get(selector) {
            return *id;
        }
        let id = self.selectors.len();
        self.selectors.push(selector.clone());
        self.as_source.push(Vec::new());
        self.as_destination.push(Vec::new());
        self.as_via.push(Vec::new());
        self.index.fixed.insert(selector.clone(), id);
        let index = &mut self.index;
        match selector {
            Selector::User(login) => index.logins.entry(login.clone()).or_default().push(id),
            Selector::UsersOf(domain) => index.logins.entry(format!("*@{domain}")).or_default().push(id),
            Selector::Group(name) => {
                let users: BTreeSet<_> = policy.groups.get(name).into_iter().flatten().collect();
                for user in users {
                    index.group_member(user, id);
                }
            }
            Selector::Role(role) => index.roles.push((*role, id)),
            Selector::Address(prefix) => {
                index.prefixes.insert(*prefix, id);
                index.lengths.insert(prefix.length());
            }
            _ => {}
        }
        id
    }

    fn sources(&mut self, selectors: Vec<SelectorId>) -> SourceId {
        if let Some(id) = self.index.lists.get(&selectors) {
            return *id;
        }
        let has = |selector: &Selector| selectors.iter().any(|id| self.selectors[*id] == *selector);
        let (has_all, is_any) = (has(&Selector::All), has(&Selector::AnySource));
        let id = self.sources.len();
        self.index.lists.insert(selectors.clone(), id);
        self.sources.push(Sources { selectors, steps: Vec::new(), has_all, is_any });
        id
    }
}

impl Index {
    /// A member is a login, or everyone of a domain.
    fn group_member(&mut self, user: &str, group: SelectorId) {
        let key = user.strip_prefix("user:").unwrap_or(user);
        self.logins.entry(key.to_owned()).or_default().push(group);
    }

    /// The prefixes that overlap a span that is a prefix: those around it, and those inside it.
    pub(super) fn prefixes_at(&self, of: Prefix) -> impl Iterator<Item = SelectorId> + '_ {
        let around = self.lengths.range(..of.length()).filter_map(move |length| Prefix::new(of.address(), *length));
        around.filter_map(|prefix| self.prefixes.get(&prefix)).copied().chain(self.inside(of))
    }

    fn inside(&self, of: Prefix) -> impl Iterator<Item = SelectorId> + '_ {
        let last = Span::from(of).last();
        let until = Prefix::host(last);
        self.prefixes.range(of..=until).map(|(_, id)| *id)
    }
}

/// The addresses that `*` as a source stands for beside the routed subnets: those of nodes, less the two that ChromeOS
/// uses inside itself.
pub(super) fn tailnet() -> IpSet {
    let mut set: IpSet = [prefix([100, 64, 0, 0], 10)].into_iter().collect();
    set.remove(prefix([100, 115, 92, 0], 23));
    set.extend(&Prefix::new(IpAddr::from([0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0]), 48).into_iter().collect());
    set
}

/// The public addresses: IPv4 less the private, link-local and tailnet ranges, and global IPv6.
pub(super) fn internet() -> IpSet {
    let mut set: IpSet = [prefix([0, 0, 0, 0], 0)].into_iter().collect();
    let private = [
        ([10, 0, 0, 0], 8),
        ([172, 16, 0, 0], 12),
        ([192, 168, 0, 0], 16),
        ([100, 64, 0, 0], 10),
        ([169, 254, 0, 0], 16),
    ];
    for (address, length) in private {
        set.remove(prefix(address, length));
    }
    set.extend(&Prefix::new(IpAddr::from([0x2000, 0, 0, 0, 0, 0, 0, 0]), 3).into_iter().collect());
    set
}

fn prefix(address: [u8; 4], length: u8) -> Span {
    Prefix::new(address.into(), length).map_or_else(|| Span::from(IpAddr::from(address)), Span::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(set: &IpSet) -> Vec<String> {
        set.spans().iter().map(|span| format!("{}-{}", span.first(), span.last())).collect()
    }

    #[test]
    fn the_constant_sets_are_those_of_the_stock_service() {
        assert_eq!(
            texts(&tailnet()),
            [
                "100.64.0.0-100.115.91.255",
                "100.115.94.0-100.127.255.255",
                "fd7a:115c:a1e0::-fd7a:115c:a1e0:ffff:ffff:ffff:ffff:ffff"
            ]
        );
        assert_eq!(
            texts(&internet()),
            [
                "0.0.0.0-9.255.255.255",
                "11.0.0.0-100.63.255.255",
                "100.128.0.0-169.253.255.255",
                "169.255.0.0-172.15.255.255",
                "172.32.0.0-192.167.255.255",
                "192.169.0.0-255.255.255.255",
                "2000::-3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
            ]
        );
    }

    #[test]
    fn prefixes_are_found_around_and_inside() {
        let text = r#"{"acls": [{"action": "accept", "src": ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "11.0.0.0/8", "::/0"],
            "dst": ["*:*"]}]}"#;
        let plan = Plan::new(&Policy::parse(text).unwrap());
        let found = |text: &str| {
            let ids = plan.index.prefixes_at(text.parse().unwrap());
            ids.map(|id| format!("{:?}", plan.selectors[id])).collect::<BTreeSet<_>>().len()
        };
        assert_eq!((found("10.1.2.3/32"), found("10.1.2.4/32"), found("10.2.0.0/16")), (3, 2, 1));
        assert_eq!((found("10.0.0.0/7"), found("fd00::1/128"), found("12.0.0.0/8")), (4, 1, 0));
    }
}
