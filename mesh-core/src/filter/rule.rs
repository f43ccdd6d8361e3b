//! Rules: who may open what.

use core::{fmt, ops::RangeInclusive};
use std::sync::Arc;

use crate::ip::{
    packet::protocol,
    set::{IpSet, Span},
};

use super::matcher::{Ask, What};

/// Protocol numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Protocols([u64; 4]);

impl Protocols {
    /// What a rule that names none means: TCP, UDP and ICMP of both families.
    #[must_use]
    pub fn usual() -> Self {
        [protocol::TCP, protocol::UDP, protocol::ICMP, protocol::ICMPV6].into_iter().collect()
    }

    /// Whether a protocol is among them.
    #[inline]
    #[must_use]
    pub fn contains(&self, protocol: u8) -> bool {
        self.0[usize::from(protocol / 64)] >> (protocol % 64) & 1 != 0
    }
}

impl FromIterator<u8> for Protocols {
    fn from_iter<I: IntoIterator<Item = u8>>(numbers: I) -> Self {
        let mut set = Self::default();
        for number in numbers {
            set.0[usize::from(number / 64)] |= 1 << (number % 64);
        }
        set
    }
}

/// Which rule, for people: the name of the filter it stands in, and its place there from 0.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleName {
    /// The filter's name.
    pub filter: Arc<str>,
    /// The rule's place in it.
    pub index: usize,
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.filter, self.index)
    }
}

/// Some ports of some addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The addresses.
    pub addresses: Span,
    /// Their ports; none allow nothing. Protocols without ports need all of them.
    pub ports: RangeInclusive<u16>,
}

impl Destination {
    /// Whether these are all ports.
    #[must_use]
    pub fn has_all_ports(&self) -> bool {
        self.ports == (0..=u16::MAX)
    }
}

/// One rule: the sources may open what is named. Rules only ever allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which.
    pub name: RuleName,
    /// Who may.
    pub sources: IpSet,
    /// What.
    pub destinations: Vec<Destination>,
    /// By which protocols.
    pub protocols: Protocols,
}

impl Rule {
    /// Whether the rule allows this. For explanations: it looks at everything.
    pub(super) fn allows(&self, ask: &Ask) -> bool {
        let reaches = |to: &Destination| {
            to.addresses.covers(&Span::from(ask.destination))
                && match ask.what {
                    What::Port { port, .. } => to.ports.contains(&port),
                    What::Protocol(_) => to.has_all_ports(),
                    What::Address => !to.ports.is_empty(),
                }
        };
        let names_protocol = match ask.what {
            What::Port { protocol, .. } | What::Protocol(protocol) => self.protocols.contains(protocol),
            What::Address => true,
        };
        names_protocol && self.sources.covers(ask.source) && self.destinations.iter().any(reaches)
    }
}
