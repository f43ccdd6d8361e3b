//! Rules made fast to ask.
//!
//! Rules that name the same destination, ports and protocols are one *service*, open to the sources of all of them: a
//! node has few services, however many rules there are. The addresses of all destinations cut the address space into
//! intervals, and all addresses of one interval have the same services. The ports of those services cut the ports into
//! intervals in the same way. So a question is three binary searches (destination, port, source) and a look at a
//! short list, and costs about the same for ten rules and for a thousand.

use core::net::IpAddr;
use std::collections::BTreeMap;

use crate::{
    ip::set::{IpSet, Span},
    limits,
};

use super::rule::{Protocols, Rule};

/// Something that needs a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    /// Who wants it.
    pub(super) source: IpAddr,
    /// Of whom.
    pub(super) destination: IpAddr,
    /// What.
    pub(super) what: What,
}

/// What needs a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A port of a protocol that has ports.
    Port { protocol: u8, port: u16 },
    /// A protocol without ports: only a rule for all ports allows it.
    Protocol(u8),
    /// The address: any rule about it is enough.
    Address,
}

/// Rules made fast to ask.
#[derive(Debug)]
pub(super) struct Matcher {
    v4: Family<u32>,
    v6: Family<u128>,
}

impl Matcher {
    /// Takes all services, or half of them, a quarter and so on, in the order of the rules, until they fit into
    /// [`limits::FILTER_CELLS`]; says how many were left out. What is left out admits nothing.
    pub(super) fn compile(rules: &[Rule]) -> (Self, usize) {
        let (v4, v4_left) = Family::compile(rules);
        let (v6, v6_left) = Family::compile(rules);
        (Self { v4, v6 }, v4_left + v6_left)
    }

    /// Whether a rule allows it.
    #[inline]
    pub(super) fn allows(&self, ask: &Ask) -> bool {
        match (ask.source, ask.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                self.v4.allows(source.to_bits(), destination.to_bits(), ask.what)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                self.v6.allows(source.to_bits(), destination.to_bits(), ask.what)
            }
            // No packet has both.
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// Numbers that can be cut into intervals.
trait Key: Copy + Ord {
    /// The next number; `None` after the last.
    fn next(self) -> Option<Self>;
}

/// Addresses of one family as numbers.
trait Address: Key {
    /// The ends of a span; `None` when it is of the other family.
    fn ends(span: &Span) -> Option<(Self, Self)>;
}

macro_rules! keys {
    ($($key:ty),*) => {
        $(impl Key for $key {
            fn next(self) -> Option<Self> {
                self.checked_add(1)
            }
        })*
    };
}

keys!(u16, u32, u128);

impl Address for u32 {
    fn ends(span: &Span) -> Option<(Self, Self)> {
        match (span.first(), span.last()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => Some((first.to_bits(), last.to_bits())),
            _ => None,
        }
    }
}

impl Address for u128 {
    fn ends(span: &Span) -> Option<(Self, Self)> {
        match (span.first(), span.last()) {
            (IpAddr::V6(first), IpAddr::V6(last)) => Some((first.to_bits(), last.to_bits())),
            _ => None,
        }
    }
}

/// The rules of one address family.
#[derive(Debug)]
struct Family<A> {
    destinations: Intervals<A>,
    /// By what `destinations` says.
    places: Vec<Place>,
    services: Vec<Service>,
    /// Disjoint spans in ascending order.
    sources: Vec<Box<[(A, A)]>>,
}

/// What is open at some addresses.
#[derive(Debug)]
struct Place {
    /// All its services, of which each set of sources is named once in `sources`.
    services: Box<[u32]>,
    sources: Box<[u32]>,
    ports: Intervals<u16>,
    /// By what `ports` says.
    at_port: Vec<Box<[u32]>>,
}

/// A destination's ports and protocols, and who may open them.
#[derive(Clone, Copy, Debug)]
struct Service {
    protocols: Protocols,
    has_all_ports: bool,
    /// Which set of sources.
    sources: u32,
}

/// What makes two rules be about the same service: first and last address, first and last port, protocols.
type ServiceKey<A> = (A, A, u16, u16, Protocols);

impl<A: Address> Family<A> {
    fn compile(rules: &[Rule]) -> (Self, usize) {
        let services = collect::<A>(rules);
        let mut kept = services.len();
        loop {
            if let Some(family) = Self::build(&services[..kept]) {
                return (family, services.len() - kept);
            }
            kept /= 2;
        }
    }

    /// `None` when it would be larger than [`limits::FILTER_CELLS`].
    fn build(services: &[(ServiceKey<A>, IpSet)]) -> Option<Self> {
        let mut budget = limits::FILTER_CELLS;
        let mut sources = BTreeMap::new();
        let built: Vec<_> = services
            .iter()
            .map(|((_, _, first, last, protocols), set)| {
                let spans: Box<[_]> = set.spans().iter().filter_map(A::ends).collect();
                let next = number(sources.len());
                let sources = *sources.entry(spans).or_insert(next);
                Service { protocols: *protocols, has_all_ports: (*first, *last) == (0, u16::MAX), sources }
            })
            .collect();

        let spans = (0..).zip(services).map(|(number, ((first, last, ..), _))| (*first, *last, number));
        let (destinations, lists) = Intervals::cut(spans, &mut budget)?;
        let mut places = Vec::with_capacity(lists.len());
        for services_here in lists {
            let ports = services_here.iter().map(|number| {
                let ((_, _, first, last, _), _) = &services[*number as usize];
                (*first, *last, *number)
            });
            let (ports, at_port) = Intervals::cut(ports, &mut budget)?;
            let mut sources: Vec<_> = services_here.iter().map(|number| built[*number as usize].sources).collect();
            sources.sort_unstable();
            sources.dedup();
            places.push(Place { services: services_here, sources: sources.into(), ports, at_port });
        }
        let mut by_number: Vec<_> = sources.into_iter().collect();
        by_number.sort_unstable_by_key(|(_, number)| *number);
        let sources = by_number.into_iter().map(|(spans, _)| spans).collect();
        Some(Self { destinations, places, services: built, sources })
    }

    #[inline]
    fn allows(&self, source: A, destination: A, what: What) -> bool {
        let Some(place) = self.destinations.at(destination).and_then(|place| self.places.get(place as usize)) else {
            return false;
        };
        let service = |number: &u32| self.services.get(*number as usize);
        match what {
            What::Port { protocol, port } => {
                let here = place.ports.at(port).and_then(|list| place.at_port.get(list as usize));
                here.into_iter()
                    .flatten()
                    .filter_map(service)
                    .any(|service| service.protocols.contains(protocol) && self.holds(service.sources, source))
            }
            What::Protocol(protocol) => place.services.iter().filter_map(service).any(|service| {
                service.has_all_ports && service.protocols.contains(protocol) && self.holds(service.sources, source)
            }),
            What::Address => place.sources.iter().any(|sources| self.holds(*sources, source)),
        }
    }

    /// Whether a set of sources holds an address.
    #[inline]
    fn holds(&self, sources: u32, address: A) -> bool {
        let Some(spans) = self.sources.get(sources as usize) else { return false };
        let at = spans.partition_point(|(_, last)| *last < address);
        spans.get(at).is_some_and(|(first, _)| *first <= address)
    }
}

/// The services of the rules, in the order in which they are first named.
fn collect<A: Address>(rules: &[Rule]) -> Vec<(ServiceKey<A>, IpSet)> {
    let mut order: BTreeMap<ServiceKey<A>, usize> = BTreeMap::new();
    let mut services: Vec<(ServiceKey<A>, IpSet)> = Vec::new();
    for rule in rules {
        for to in &rule.destinations {
            let Some((first, last)) = A::ends(&to.addresses).filter(|_| !to.ports.is_empty()) else { continue };
            let key = (first, last, *to.ports.start(), *to.ports.end(), rule.protocols);
            let number = *order.entry(key).or_insert_with(|| {
                services.push((key, IpSet::default()));
                services.len() - 1
            });
            services[number].1.extend(&rule.sources);
        }
    }
    services
}

/// Numbers cut into intervals, each with a value.
#[derive(Debug)]
struct Intervals<K> {
    /// Where intervals begin, in ascending order. Each ends before the next.
    starts: Box<[K]>,
    /// One for each.
    values: Box<[u32]>,
}

impl<K: Key> Intervals<K> {
    /// The intervals that spans (first, last, number) cut, and lists: the value of an interval is the place of the list
    /// that has the numbers of all spans over it. Every entry of a list takes one from `budget`; `None` when that does
    /// not suffice.
    fn cut(spans: impl Iterator<Item = (K, K, u32)> + Clone, budget: &mut usize) -> Option<(Self, Vec<Box<[u32]>>)> {
        let mut edges: BTreeMap<K, (Vec<u32>, Vec<u32>)> = BTreeMap::new();
        for (first, last, number) in spans {
            edges.entry(first).or_default().0.push(number);
            if let Some(behind) = last.next() {
                edges.entry(behind).or_default().1.push(number);
            }
        }
        let mut here = std::collections::BTreeSet::new();
        let (mut known, mut lists) = (BTreeMap::new(), Vec::new());
        let (mut starts, mut values) = (Vec::with_capacity(edges.len()), Vec::with_capacity(edges.len()));
        for (start, (come, go)) in edges {
            go.iter().for_each(|number| {
                here.remove(number);
            });
            here.extend(come);
            *budget = budget.checked_sub(here.len() + 1)?;
            let list: Box<[u32]> = here.iter().copied().collect();
            let next = number(lists.len());
            let value = *known.entry(list).or_insert_with_key(|list| {
                lists.push(list.clone());
                next
            });
            starts.push(start);
            values.push(value);
        }
        Some((Self { starts: starts.into(), values: values.into() }, lists))
    }

    /// The value at a number; `None` before the first interval.
    #[inline]
    fn at(&self, key: K) -> Option<u32> {
        let behind = self.starts.partition_point(|start| *start <= key);
        self.values.get(behind.checked_sub(1)?).copied()
    }
}

/// A place in a list whose length [`limits::FILTER_CELLS`] bounds.
fn number(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}
