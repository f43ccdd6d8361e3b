//! What made a direct path possible, from the NATs and firewalls before its ends and from the addresses that they use.

use core::net::{IpAddr, SocketAddr};

use crate::net::{
    NetId, Network,
    firewall::Inbound,
    nat::{EarlyInbound, Filter, Mapping},
};

/// What made a direct path possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Technique {
    /// One end can be reached by anybody, or both are neighbours.
    Ordinary,
    /// Both ends are behind NATs or firewalls and sent to each other.
    Punch,
    /// One end's address is another for every remote; the other end answered where its packets came from.
    Reflexive,
    /// Both sent to each other before either NAT could take the other's packet for one of its own.
    Crossing,
    /// Over IPv6.
    Ipv6,
    /// Both are behind one NAT, and it turned their packets round.
    Hairpin,
}

impl Technique {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Ordinary, Self::Punch, Self::Reflexive, Self::Crossing, Self::Ipv6, Self::Hairpin];

    /// The name in scenarios and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ordinary => "ordinary",
            Self::Punch => "punch",
            Self::Reflexive => "reflexive",
            Self::Crossing => "crossing",
            Self::Ipv6 => "ipv6",
            Self::Hairpin => "hairpin",
        }
    }
}

/// What is between a host and the core.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    net: NetId,
    addresses: Vec<IpAddr>,
    /// The nets with a NAT from the host to the core.
    nats: Vec<NetId>,
    /// Whether one of them shows every remote another port.
    is_hard: bool,
    /// What the strictest lets in; `None` lets in everybody.
    filter: Option<Filter>,
    /// Whether one of them can be made to give away a mapping by an early packet.
    can_clash: bool,
}

impl Surroundings {
    /// Those of a host with these addresses in a net.
    pub(crate) fn new(network: &Network, net: NetId, addresses: &[IpAddr]) -> Self {
        let mut found = Self {
            net,
            addresses: addresses.to_vec(),
            nats: Vec::new(),
            is_hard: false,
            filter: None,
            can_clash: false,
        };
        for wall in network.walls(net) {
            if let Some(nat) = wall.nat {
                found.nats.push(wall.net);
                found.is_hard |= nat.mapping != Mapping::EndpointIndependent;
                found.can_clash |= nat.early_inbound == EarlyInbound::Clash;
                found.filter = found.filter.max(Some(nat.filter));
            }
            if wall.firewall.is_some_and(|firewall| firewall.inbound != Inbound::Open) {
                found.filter = Some(Filter::AddressAndPortDependent);
            }
        }
        found
    }

    fn is_open(&self) -> bool {
        matches!(self.filter, None | Some(Filter::EndpointIndependent))
    }
}

/// What made a direct path between two hosts possible, one of which sends to `to[0]` and the other to `to[1]`.
pub(crate) fn technique(ends: [&Surroundings; 2], to: [Option<SocketAddr>; 2]) -> Technique {
    let [a, b] = ends;
    if to.iter().flatten().any(SocketAddr::is_ipv6) {
        return Technique::Ipv6;
    }
    let is_inner = |to: Option<SocketAddr>, of: &Surroundings| to.is_none_or(|to| of.addresses.contains(&to.ip()));
    if a.net == b.net && (is_inner(to[0], b) || is_inner(to[1], a)) {
        return Technique::Ordinary;
    }
    if a.nats.iter().any(|nat| b.nats.contains(nat)) {
        return Technique::Hairpin;
    }
    let adf = Some(Filter::AddressDependent);
    if a.is_hard || b.is_hard {
        let is_public = a.filter.is_none() || b.filter.is_none();
        return if is_public { Technique::Ordinary } else { Technique::Reflexive };
    }
    if a.is_open() || b.is_open() {
        return Technique::Ordinary;
    }
    match a.can_clash || b.can_clash {
        true if a.filter == adf || b.filter == adf => Technique::Reflexive,
        true => Technique::Crossing,
        false => Technique::Punch,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        NatParams,
        host::HostId,
        kernel::dice::Dice,
        net::{Ipv6, NetSetup, firewall::FirewallParams},
    };

    #[test]
    fn it_follows_from_what_is_between_the_ends() {
        let nat = |params| NetSetup { nat: Some(params), ..NetSetup::PUBLIC };
        let fw = NetSetup { firewall: Some(FirewallParams::HOST), ..NetSetup::PUBLIC };
        let (easy, random) = (nat(NatParams::LINUX_FILTERED), nat(NatParams::LINUX_RANDOM));
        for (one, other, expected) in [
            (NetSetup::PUBLIC, NetSetup::PUBLIC, Technique::Ordinary),
            (NetSetup::PUBLIC, random, Technique::Ordinary),
            (nat(NatParams::LINUX_FULLCONE), easy, Technique::Ordinary),
            (nat(NatParams::LINUX_FULLCONE), random, Technique::Reflexive),
            (nat(NatParams::EASY_AF), random, Technique::Reflexive),
            (nat(NatParams::EASY_AF), easy, Technique::Punch),
            (easy, easy, Technique::Punch),
            (fw, easy, Technique::Punch),
            (nat(NatParams::LINUX_OPEN), easy, Technique::Crossing),
            (nat(NatParams::LINUX_OPEN), nat(NatParams::EASY_AF), Technique::Reflexive),
        ] {
            let (found, back) = (between(one, other), between(other, one));
            assert_eq!((found, back), (expected, expected), "{one:?} and {other:?}");
        }
    }

    #[test]
    fn addresses_show_ipv6_neighbours_and_hairpins() {
        let mut network = Network::new();
        let setup = NetSetup { nat: Some(NatParams::LINUX_FILTERED), ipv6: Ipv6::Guarded, ..NetSetup::PUBLIC };
        let net = network.add_net(setup, &Dice::new(1));
        let at = [0, 1].map(|number| {
            network.attach(net, HostId(number));
            Surroundings::new(&network, net, &network.addresses(net, HostId(number)))
        });
        let inner = |number: usize| Some(SocketAddr::new(at[number].addresses[0], 1));
        let outer = Some("198.18.0.1:1".parse().unwrap());
        let v6 = Some("[2001:db8::1]:1".parse().unwrap());
        let of = |to| technique([&at[0], &at[1]], to);
        assert_eq!(of([inner(1), inner(0)]), Technique::Ordinary);
        assert_eq!(of([outer, outer]), Technique::Hairpin);
        assert_eq!(of([v6, v6]), Technique::Ipv6);
    }

    fn between(one: NetSetup, other: NetSetup) -> Technique {
        let mut network = Network::new();
        let dice = Dice::new(1);
        let ends = [one, other].map(|setup| network.add_net(setup, &dice));
        let at = ends.map(|net| Surroundings::new(&network, net, &[]));
        let to = Some("198.18.0.1:1".parse().unwrap());
        technique([&at[0], &at[1]], [to, to])
    }
}
