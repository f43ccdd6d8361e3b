//! Which rule lets a packet through, or how near the others come.
//!
//! Judged by the text, rule by rule: whether an address is of the tailnet at all, or somebody routes it, is not asked,
//! except where a rule goes by owner (`autogroup:self`) or through routers (`via`).

use core::{fmt, net::IpAddr};
use std::collections::BTreeSet;

use mesh_core::control::types::PortRange;

use super::{
    check::{Origin, Rule, Term},
    ipset::{IpSet, Span},
    plan::{Gives, Step, StepId},
    ports::{Protocol, SCTP, TCP, UDP},
    problem::Position,
    rulebook::Rulebook,
    selector::Selector,
    tailnet::Node,
};

/// What is asked about: packets from some addresses to one, first of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// From where; all of it has to be let through.
    pub src: Span,
    /// To where.
    pub dst: IpAddr,
    /// Of which protocol, by its number.
    pub protocol: u8,
    /// To which port; not looked at for protocols without ports.
    pub port: u16,
}

/// A rule that lets a flow through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// The entry.
    pub origin: Origin,
    /// Its source that names the flow's, and where it stands.
    pub src: (Position, String),
    /// Its destination that names the flow's, and where it stands.
    pub dst: (Position, String),
}

/// Why a rule whose source and destination fit does not let a flow through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Short {
    /// It is for other protocols.
    Protocol,
    /// It is for other ports.
    Port,
    /// It goes through routers with certain tags, and none of them routes the destination.
    Via,
    /// It gives capabilities alone.
    CapabilitiesOnly,
}

/// A rule that comes near.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Near {
    /// The entry.
    pub origin: Origin,
    /// Its destination that fits, and where it stands.
    pub dst: (Position, String),
    /// What it lacks.
    pub short: Short,
}

/// Why nothing lets a flow through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Denied {
    /// Rules whose source and destination fit.
    pub near: Vec<Near>,
    /// How many rules name the source.
    pub with_source: usize,
    /// How many rules name the destination.
    pub with_destination: usize,
    /// How many rules there are.
    pub rules: usize,
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, src, dst } = self;
        write!(f, "allowed by {} entry {} ({}): ", origin.section.name(), origin.index + 1, origin.at)?;
        write!(f, "{} ({}) may reach {} ({})", src.1, src.0, dst.1, dst.0)
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "denied: of {} rules {} name the source, ", self.rules, self.with_source)?;
        write!(f, "{} the destination, and none lets this through", self.with_destination)?;
        for Near { origin, dst, short } in &self.near {
            let why = match short {
                Short::Protocol => "is for other protocols",
                Short::Port => "is for other ports",
                Short::Via => "goes through routers with certain tags, and none of them routes there",
                Short::CapabilitiesOnly => "gives capabilities and lets no packets through",
            };
            write!(f, "\n{} entry {} ({}) ", origin.section.name(), origin.index + 1, origin.at)?;
            write!(f, "names both, {} ({}) too, but {why}", dst.1, dst.0)?;
        }
        Ok(())
    }
}

impl Rulebook {
    /// Which rule lets a flow through; the first in the policy's order.
    ///
    /// # Errors
    /// None does, and what the others lack.
    pub fn explain(&self, flow: Flow) -> Result<Allowed, Denied> {
        let mut denied = Denied { rules: self.policy.rules().len(), ..Denied::default() };
        let (mut with_source, mut with_destination) = (BTreeSet::new(), BTreeSet::new());
        for (id, step) in self.plan.steps.iter().enumerate() {
            let rule = &self.policy.rules()[step.rule];
            // Companions go the other way and let nothing through.
            if matches!(step.gives, Gives::Capabilities(_)) && step.sources != step.own_sources {
                continue;
            }
            let is_source = self.is_source(step, flow.src);
            let dst = rule.dst.iter().find(|term| self.is_destination(term, flow));
            if is_source {
                with_source.insert(step.rule);
            }
            let Some(dst) = dst else { continue };
            with_destination.insert(step.rule);
            if !is_source {
                continue;
            }
            let dst = (dst.at, dst.text.clone());
            match self.what_is_short(id, flow) {
                None => return Ok(Allowed { origin: rule.origin, src: self.source_of(rule, flow.src), dst }),
                Some(short) => denied.near.push(Near { origin: rule.origin, dst, short }),
            }
        }
        denied.with_source = with_source.len();
        denied.with_destination = with_destination.len();
        Err(denied)
    }

    fn is_source(&self, step: &Step, src: Span) -> bool {
        let set = self.source_set(step.sources);
        set.is_any || set.addresses.covers(src)
    }

    /// The term of a rule that names a source that the rule has; the first with a part of it, should it be several.
    fn source_of(&self, rule: &Rule, src: Span) -> (Position, String) {
        let names = |term: &&Term| match &term.selector {
            Selector::AnySource | Selector::All => true,
            Selector::Address(prefix) => Span::from(*prefix).overlaps(&src),
            selector => self.set_of(selector).is_some_and(|set| set.overlaps(src)),
        };
        rule.src.iter().find(names).map_or((rule.origin.at, String::new()), |term| (term.at, term.text.clone()))
    }

    fn is_destination(&self, term: &Term, flow: Flow) -> bool {
        match &term.selector {
            Selector::All => true,
            Selector::AnySource => false,
            Selector::Internet => self.internet().covers(flow.dst),
            Selector::Address(prefix) => prefix.contains(flow.dst),
            Selector::Own => {
                let owner = self.holders.get(&flow.dst).and_then(|id| self.node(*id)).and_then(Node::owner);
                let nodes = owner.and_then(|owner| self.owned.get(&owner)).into_iter().flatten();
                let own: IpSet =
                    nodes.filter_map(|id| self.node(*id)).flat_map(|node| &node.addresses).copied().collect();
                own.covers(flow.src)
            }
            selector => self.set_of(selector).is_some_and(|set| set.covers(flow.dst)),
        }
    }

    /// The addresses of the nodes that a selector of a rule names by what they are.
    fn set_of(&self, selector: &Selector) -> Option<&IpSet> {
        self.plan.index.fixed.get(selector).map(|id| self.named(*id))
    }

    fn what_is_short(&self, id: StepId, flow: Flow) -> Option<Short> {
        let step = &self.plan.steps[id];
        let Gives::Packets(packets) = &step.gives else { return Some(Short::CapabilitiesOnly) };
        let mut of_protocol = packets.iter().filter(|(protocol, _)| protocol.admits(flow.protocol)).peekable();
        if of_protocol.peek().is_none() {
            return Some(Short::Protocol);
        }
        if !of_protocol.flat_map(|(_, ranges)| ranges).any(|range| has_port(*range, flow.protocol, flow.port)) {
            return Some(Short::Port);
        }
        if step.via.is_empty() || self.is_routed_through(id, flow.dst) { None } else { Some(Short::Via) }
    }

    /// Whether a router that a rule goes through routes an address.
    fn is_routed_through(&self, step: StepId, dst: IpAddr) -> bool {
        let classes = self.step_classes(step).iter().filter_map(|class| self.classes.get(class));
        let mut routers = classes.flat_map(|class| &class.nodes).filter_map(|id| self.node(*id));
        routers.any(|node| {
            let leaves = node.is_exit() && self.internet().covers(dst);
            leaves || node.subnets.iter().any(|subnet| subnet.contains(dst))
        })
    }
}

/// Whether a range of a rule admits a packet; protocols without ports need all.
pub(super) fn has_port(range: PortRange, protocol: u8, port: u16) -> bool {
    if matches!(protocol, TCP | UDP | SCTP) && Protocol(Some(protocol)).has_ports() {
        (range.first..=range.last).contains(&port)
    } else {
        range == PortRange::ALL
    }
}

#[cfg(test)]
mod tests {
    use super::{super::support, *};

    const TEXT: &str = r#"{"tagOwners": {"tag:web": [], "tag:router": []},
"grants": [{"src": ["tag:web"], "dst": ["10.0.0.0/8"], "ip": ["tcp:5432"], "via": ["tag:router"]},
 {"src": ["bob@example.com"], "dst": ["tag:web"], "app": {"example.com/x": [{}]}}],
"acls": [
 {"action": "accept", "src": ["alice@example.com", "autogroup:auditor"], "dst": ["tag:web:80,443"]},
 {"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]},
 {"action": "accept", "src": ["alice@example.com"], "dst": ["tag:web:*"], "proto": "icmp"}]}"#;

    fn asked(src: &str, dst: &str, protocol: u8, port: u16) -> Result<Allowed, Denied> {
        let nodes = ["1 alice", "2 alice", "3 bob", "4 tag:web", "5 carol", "6 tag:router 10.1.0.0/16"];
        let rulebook = support::rulebook(TEXT, &nodes);
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        rulebook.explain(Flow { src: address(src).into(), dst: address(dst), protocol, port })
    }

    #[test]
    fn the_rule_that_allows_is_named_with_its_places() {
        let allowed = asked("100.64.0.5", "100.64.0.4", TCP, 443).unwrap();
        assert_eq!(
            allowed.to_string(),
            "allowed by acls entry 1 (line 5, column 2): autogroup:auditor (line 5, column 52) may reach tag:web \
             (line 5, column 82)"
        );
        let own = asked("100.64.0.1", "fd7a:115c:a1e0::2", UDP, 5).unwrap();
        assert_eq!((own.origin.index, own.dst.1.as_str()), (1, "autogroup:self"));
        let ping = asked("100.64.0.1", "100.64.0.4", 1, 0).unwrap();
        assert_eq!(ping.origin.index, 2);
        assert!(asked("100.64.0.4", "10.1.2.3", TCP, 5432).is_ok());
    }

    #[test]
    fn what_denies_is_told_by_how_near_the_rules_come() {
        let short = |src: &str, dst: &str, protocol, port| {
            asked(src, dst, protocol, port).unwrap_err().near.iter().map(|near| near.short).collect::<Vec<_>>()
        };
        assert_eq!(short("100.64.0.1", "100.64.0.4", TCP, 22), [Short::Port, Short::Protocol]);
        assert_eq!(short("100.64.0.4", "10.2.0.1", TCP, 5432), [Short::Via]);
        assert_eq!(short("100.64.0.3", "100.64.0.4", TCP, 80), [Short::CapabilitiesOnly]);
        assert_eq!(short("100.64.0.1", "100.64.0.3", TCP, 80), []);
        let denied = asked("100.64.0.1", "100.64.0.4", UDP, 22).unwrap_err();
        assert_eq!((denied.with_source, denied.with_destination, denied.rules), (3, 3, 5));
        assert!(denied.to_string().starts_with("denied: of 5 rules 3 name the source, 3 the destination"));
    }
}
