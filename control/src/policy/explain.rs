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
    plan::{Gives, Step},
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
        for step in &self.plan.steps {
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
            match self.what_is_short(step, flow) {
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
            Selector::AnySource => true,
            Selector::All => true,
            selector => self.addresses_of(selector).overlaps(src),
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
            selector => self.addresses_of(selector).covers(flow.dst),
        }
    }

    /// The addresses of the nodes that a rule's selector names by what they are, or those that it says itself.
    fn addresses_of(&self, selector: &Selector) -> IpSet {
        match selector {
            Selector::Address(prefix) => [*prefix].into_iter().collect(),
            selector => self.plan.index.fixed.get(selector).map_or_else(IpSet::default, |id| self.named(*id).clone()),
        }
    }

    fn what_is_short(&self, step: &Step, flow: Flow) -> Option<Short> {
        let Gives::Packets(packets) = &step.gives else { return Some(Short::CapabilitiesOnly) };
        let mut of_protocol = packets.iter().filter(|(protocol, _)| protocol.admits(flow.protocol)).peekable();
        if of_protocol.peek().is_none() {
            return Some(Short::Protocol);
        }
        if !of_protocol.flat_map(|(_, ranges)| ranges).any(|range| has_port(*range, flow.protocol, flow.port)) {
            return Some(Short::Port);
        }
        if step.via.is_empty() || self.is_routed_through(step, flow.dst) { None } else { Some(Short::Via) }
    }

    /// Whether a router that a rule goes through routes an address.
    fn is_routed_through(&self, step: &Step, dst: IpAddr) -> bool {
        let nodes = |class| self.classes.get(class).into_iter().flat_map(|class| &class.nodes);
        let id = self.plan.steps.iter().position(|other| core::ptr::eq(other, step));
        let classes = id.map(|id| self.step_classes(id)).into_iter().flatten();
        let mut routers = classes.flat_map(nodes).filter_map(|id| self.node(*id));
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
