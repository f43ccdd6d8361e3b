//! What one policy allows and another does not, between the nodes of a tailnet.

use core::fmt;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_core::control::types::{NodeId, PortRange};

use super::{
    check::{Origin, Rule},
    compile::{Given, Reduced},
    ipset::{IpSet, Span},
    ports::Protocol,
    rulebook::Rulebook,
    tailnet::Node,
};

/// Ports of a protocol, sorted, without overlap.
pub type Ports = BTreeMap<Protocol, Vec<PortRange>>;

/// How two policies differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Pairs of nodes between which other packets may go, by receiver and sender.
    pub pairs: Vec<Pair>,
    /// There are more pairs than were asked for.
    pub more: bool,
    /// Rules that only the later policy has.
    pub added: Vec<Origin>,
    /// Rules that only the earlier policy has.
    pub removed: Vec<Origin>,
}

/// What changes between two nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Who sends.
    pub from: NodeId,
    /// Who receives.
    pub to: NodeId,
    /// What was allowed.
    pub before: Ports,
    /// What is allowed.
    pub after: Ports,
}

impl Rulebook {
    /// How a later policy differs from this one, for the nodes of both. At most `limit` pairs are told.
    #[must_use]
    pub fn difference(&self, later: &Self, limit: usize) -> Difference {
        let mut difference = Difference {
            added: missing(later.policy.rules(), self.policy.rules()),
            removed: missing(self.policy.rules(), later.policy.rules()),
            ..Difference::default()
        };
        for to in self.nodes() {
            let (before, after) = (Inbound::new(self, to), Inbound::new(later, to));
            if before == after {
                continue;
            }
            for from in self.nodes().filter(|from| from.id != to.id) {
                let (before, after) = (before.ports(from), after.ports(from));
                if before == after {
                    continue;
                }
                if difference.pairs.len() == limit {
                    difference.more = true;
                    return difference;
                }
                difference.pairs.push(Pair { from: from.id, to: to.id, before, after });
            }
        }
        difference
    }
}

/// The entries of `rules` that say what none of `others` says.
fn missing(rules: &[Rule], others: &[Rule]) -> Vec<Origin> {
    let is_there = |rule: &Rule| others.iter().any(|other| says(rule) == says(other));
    let origins: BTreeSet<_> = rules.iter().filter(|rule| !is_there(rule)).map(|rule| rule.origin).collect();
    origins.into_iter().collect()
}

/// What a rule says, wherever it stands.
fn says(rule: &Rule) -> impl PartialEq + '_ {
    let texts = |terms: &[super::check::Term]| terms.iter().map(|term| term.selector.clone()).collect::<Vec<_>>();
    (texts(&rule.src), texts(&rule.dst), &rule.ip, &rule.app, &rule.via)
}

/// What a node's filter lets through to its own addresses.
#[derive(PartialEq)]
struct Inbound {
    rules: Vec<(Arc<[String]>, Protocol, Vec<PortRange>)>,
}

impl Inbound {
    fn new(rulebook: &Rulebook, to: &Node) -> Self {
        let is_own = |text: &str| {
            text == "*"
                || text
                    .parse::<Span>()
                    .is_ok_and(|span| to.addresses.iter().any(|address| span.covers(&Span::from(*address))))
        };
        let rules = rulebook.filter(to.id).into_iter().filter_map(|Reduced { sources, gives, .. }| {
            let Given::Packets { protocol, to } = gives else { return None };
            let ranges: Vec<_> = to.iter().filter(|to| is_own(&to.ip)).map(|to| to.ports).collect();
            (!ranges.is_empty()).then_some((sources, protocol, ranges))
        });
        Self { rules: rules.collect() }
    }

    fn ports(&self, from: &Node) -> Ports {
        let mut ports = Ports::new();
        for (sources, protocol, ranges) in &self.rules {
            let set: IpSet = sources.iter().filter_map(|text| text.parse::<Span>().ok()).collect();
            let is_any = sources.iter().any(|text| text == "*");
            if is_any || from.addresses.iter().any(|address| set.covers(*address)) {
                ports.entry(*protocol).or_default().extend(ranges);
            }
        }
        ports.values_mut().for_each(merge);
        ports
    }
}

/// Sorts ranges and joins those that overlap or touch.
fn merge(ranges: &mut Vec<PortRange>) {
    ranges.sort_by_key(|range| (range.first, range.last));
    let mut merged: Vec<PortRange> = Vec::with_capacity(ranges.len());
    for range in ranges.drain(..) {
        match merged.last_mut() {
            Some(last) if range.first <= last.last.saturating_add(1) => last.last = last.last.max(range.last),
            _ => merged.push(range),
        }
    }
    *ranges = merged;
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}: ", self.from, self.to)?;
        write_ports(f, &self.before)?;
        f.write_str(" becomes ")?;
        write_ports(f, &self.after)
    }
}

fn write_ports(f: &mut fmt::Formatter<'_>, ports: &Ports) -> fmt::Result {
    if ports.is_empty() {
        return f.write_str("nothing");
    }
    for (number, (protocol, ranges)) in ports.iter().enumerate() {
        f.write_str(if number > 0 { "; " } else { "" })?;
        match protocol.0 {
            None => f.write_str("any")?,
            Some(number) => write!(f, "protocol {number}")?,
        }
        for (number, range) in ranges.iter().enumerate() {
            f.write_str(if number > 0 { "," } else { " " })?;
            match (range.first, range.last) {
                (0, u16::MAX) => f.write_str("*")?,
                (first, last) if first == last => write!(f, "{first}")?,
                (first, last) => write!(f, "{first}-{last}")?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Policy, support};

    #[test]
    fn what_is_gained_and_lost_is_told_by_pairs_and_rules() {
        let earlier = r#"{"tagOwners": {"tag:a": [], "tag:b": []}, "acls": [
            {"action": "accept", "src": ["tag:a"], "dst": ["tag:b:22"]},
            {"action": "accept", "src": ["*"], "dst": ["tag:a:80"]}]}"#;
        let later = r#"{"tagOwners": {"tag:a": [], "tag:b": []}, "acls": [
            {"action": "accept", "src": ["*"], "dst": ["tag:a:80"]},
            {"action": "accept", "src": ["tag:a"], "dst": ["tag:b:443,444-450"], "proto": "tcp"}]}"#;
        let rulebook = |text: &str| support::rulebook(text, &["1 tag:a", "2 tag:b", "3 alice"]);
        let (earlier, later) = (rulebook(earlier), rulebook(later));
        let difference = earlier.difference(&later, 10);
        let texts: Vec<_> = difference.pairs.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["1 -> 2: any 22 becomes protocol 6 443-450"]);
        assert_eq!((difference.added[0].index, difference.removed[0].index), (1, 0));
        assert!(!difference.more && earlier.difference(&later, 0).more);
        assert_eq!(earlier.difference(&earlier, 10), super::Difference::default());
        let nothing = earlier.difference(&support::with_policy(&earlier, Policy::none()), 10);
        assert_eq!(nothing.pairs.len(), 3);
        assert_eq!(nothing.pairs[0].to_string(), "2 -> 1: any 80 becomes nothing");
    }
}
