//! [`Endpoints`]: our own candidate addresses, which control and peers are told.
//!
//! They come from the host's interfaces, from STUN (where relays see us), from a port mapping, and from the operator.
//! What STUN said is kept for a while, because it is not asked while nothing happens, and forgotten when the network
//! changes: an address of the last network only costs peers pings. The list is said anew when the *set* changes; its
//! order has no meaning to those who read it.

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use std::collections::{BTreeMap, VecDeque};

pub use crate::stun::Mapping;
use crate::{limits, machine::Deadline, time::Instant};

/// How long an address that STUN saw is told. Stock nodes: 5 min 10 s.
const STUN_LIFETIME: Duration = Duration::from_secs(310);
/// How fresh what STUN said must be for a call-me-maybe: the gateway may have got another address since. Asking is one
/// packet; the message does not wait for the answer. Stock nodes: 27 s, and they wait.
const STUN_FRESH: Duration = Duration::from_secs(1);

/// Where an endpoint is known from, in the order of preference when several say the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A port mapping of the gateway.
    PortMapped,
    /// Seen by a STUN server.
    Stun,
    /// The public address with our local port: right where the gateway forwards that port.
    StunLocalPort,
    /// Said by the operator.
    Static,
    /// An interface.
    Local,
}

impl Kind {
    /// The number in control's `EndpointTypes`.
    #[must_use]
    pub const fn wire(self) -> u8 {
        match self {
            Self::Local => 1,
            Self::Stun => 2,
            Self::PortMapped => 3,
            Self::StunLocalPort => 4,
            Self::Static => 5,
        }
    }
}

/// An address at which we may be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where.
    pub address: SocketAddr,
    /// Why.
    pub kind: Kind,
}

/// The ports of our sockets; `None` where a family has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalPorts {
    /// Of the IPv4 socket.
    pub v4: Option<u16>,
    /// Of the IPv6 socket.
    pub v6: Option<u16>,
}

/// What is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// The set is another one.
    Changed(Vec<Endpoint>),
}

/// Our own candidate addresses.
#[derive(Debug, Default)]
pub struct Endpoints {
    now: Instant,
    interfaces: Vec<IpAddr>,
    ports: LocalPorts,
    /// What STUN saw, and when last.
    seen: BTreeMap<SocketAddr, Instant>,
    varies: bool,
    mapped: Option<SocketAddr>,
    configured: Vec<SocketAddr>,
    told: BTreeMap<SocketAddr, Kind>,
    outputs: VecDeque<Output>,
}

impl Endpoints {
    /// None known.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the host's addresses and our sockets' ports.
    pub fn set_interfaces(&mut self, addresses: &[IpAddr], ports: LocalPorts, now: Instant) {
        self.interfaces = addresses.to_vec();
        self.ports = ports;
        self.finish(now);
    }

    /// Replaces the port mapping.
    pub fn set_port_mapping(&mut self, mapped: Option<SocketAddr>, now: Instant) {
        self.mapped = mapped;
        self.finish(now);
    }

    /// Replaces what the operator says.
    pub fn set_static(&mut self, addresses: &[SocketAddr], now: Instant) {
        self.configured = addresses.to_vec();
        self.finish(now);
    }

    /// STUN servers saw us at these addresses.
    pub fn handle_stun(&mut self, addresses: &[SocketAddr], mapping: Mapping, now: Instant) {
        self.now = self.now.max(now);
        for address in addresses {
            self.seen.insert(*address, self.now);
        }
        match mapping {
            Mapping::Unknown => {}
            Mapping::Same => self.varies = false,
            Mapping::Varies => self.varies = true,
        }
        while self.seen.len() > limits::STUN_ADDRESSES
            && let Some(oldest) = self.seen.iter().min_by_key(|(_, at)| **at).map(|(address, _)| *address)
        {
            self.seen.remove(&oldest);
        }
        self.finish(now);
    }

    /// Our network is another: what STUN and the gateway said is of the last one.
    pub fn note_network_change(&mut self, now: Instant) {
        self.seen.clear();
        self.varies = false;
        self.mapped = None;
        self.finish(now);
    }

    /// Lets due timers act.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.finish(now);
    }

    /// The next thing to do.
    #[must_use]
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is wanted next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        self.seen.values().min().map(|at| Deadline::new(*at + STUN_LIFETIME, "address seen by STUN is old"))
    }

    /// All, each address once.
    #[must_use]
    pub fn list(&self) -> Vec<Endpoint> {
        self.told.iter().map(|(address, kind)| Endpoint { address: *address, kind: *kind }).collect()
    }

    /// Whether STUN said something recently enough for a call-me-maybe.
    #[must_use]
    pub fn is_fresh(&self, now: Instant) -> bool {
        self.seen.values().any(|at| now.since(*at) < STUN_FRESH)
    }

    fn finish(&mut self, now: Instant) {
        self.now = self.now.max(now);
        let now = self.now;
        self.seen.retain(|_, at| now.since(*at) < STUN_LIFETIME);
        let list = self.collect();
        if list != self.told {
            self.told = list;
            self.outputs.push_back(Output::Changed(self.list()));
        }
    }

    fn collect(&self) -> BTreeMap<SocketAddr, Kind> {
        let guessed = self.seen.keys().filter(|_| self.varies).filter(|address| address.is_ipv4());
        let guessed = guessed.filter_map(|address| Some(SocketAddr::new(address.ip(), self.ports.v4?)));
        let sources: [(Kind, Vec<SocketAddr>); 5] = [
            (Kind::PortMapped, self.mapped.into_iter().collect()),
            (Kind::Stun, self.seen.keys().copied().collect()),
            (Kind::StunLocalPort, guessed.collect()),
            (Kind::Static, self.configured.clone()),
            (Kind::Local, self.local()),
        ];
        let mut list = BTreeMap::new();
        for (kind, addresses) in sources {
            for address in addresses {
                list.entry(address).or_insert(kind);
            }
        }
        list
    }

    /// Addresses of interfaces, each with the port of its family's socket; loopback when there is nothing else.
    fn local(&self) -> Vec<SocketAddr> {
        let usable = |ip: &IpAddr| match ip {
            IpAddr::V4(v4) => !(v4.is_unspecified() || v4.is_multicast()),
            // A link-local address would need to name the reader's interface.
            IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_multicast() || v6.is_unicast_link_local()),
        };
        let with_port = |ip: &IpAddr| {
            let port = if ip.is_ipv4() { self.ports.v4 } else { self.ports.v6 };
            port.map(|port| SocketAddr::new(*ip, port))
        };
        let all: Vec<_> = self.interfaces.iter().filter(|ip| usable(ip)).filter_map(with_port).collect();
        let others: Vec<_> = all.iter().filter(|address| !address.ip().is_loopback()).copied().collect();
        if others.is_empty() { all } else { others }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORTS: LocalPorts = LocalPorts { v4: Some(41_641), v6: Some(41_642) };

    #[test]
    fn interfaces_get_the_port_of_their_family() {
        let check = |interfaces: &[&str], expected: &[&str]| {
            let mut endpoints = Endpoints::new();
            let interfaces: Vec<IpAddr> = interfaces.iter().map(|text| text.parse().unwrap()).collect();
            endpoints.set_interfaces(&interfaces, PORTS, secs(1));
            let list: Vec<_> = endpoints.list().iter().map(|endpoint| endpoint.address.to_string()).collect();
            assert_eq!(list, expected);
        };
        check(&["10.0.0.1", "2001:db8::1"], &["10.0.0.1:41641", "[2001:db8::1]:41642"]);
        check(&["10.0.0.1", "127.0.0.1", "fe80::1"], &["10.0.0.1:41641"]);
        check(&["127.0.0.1", "fe80::1", "0.0.0.0"], &["127.0.0.1:41641"]);
        check(&[], &[]);
    }

    #[test]
    fn a_change_of_the_set_is_told_once() {
        let mut endpoints = Endpoints::new();
        endpoints.handle_stun(&[addr("192.0.2.1:5")], Mapping::Same, secs(1));
        let expected = vec![Endpoint { address: addr("192.0.2.1:5"), kind: Kind::Stun }];
        assert_eq!(endpoints.poll_output(), Some(Output::Changed(expected)));
        endpoints.handle_stun(&[addr("192.0.2.1:5")], Mapping::Same, secs(20));
        endpoints.set_static(&[addr("192.0.2.1:5")], secs(20));
        assert_eq!(endpoints.poll_output(), None);
    }

    #[test]
    fn what_stun_saw_is_fresh_for_a_while_and_known_for_longer() {
        let mut endpoints = Endpoints::new();
        endpoints.handle_stun(&[addr("192.0.2.1:5")], Mapping::Unknown, secs(1));
        assert!(endpoints.is_fresh(secs(1)) && !endpoints.is_fresh(secs(2)));
        let deadline = endpoints.poll_timeout().unwrap();
        assert_eq!(deadline.at, secs(311));
        endpoints.handle_timeout(secs(310));
        assert_eq!(endpoints.list().len(), 1);
        endpoints.handle_timeout(deadline.at);
        assert_eq!((endpoints.list(), endpoints.poll_timeout()), (vec![], None));
    }

    #[test]
    fn a_hard_nat_may_forward_our_port() {
        let mut endpoints = Endpoints::new();
        endpoints.set_interfaces(&[], PORTS, secs(1));
        endpoints.handle_stun(&[addr("192.0.2.1:5"), addr("192.0.2.1:6")], Mapping::Varies, secs(1));
        let guess = Endpoint { address: addr("192.0.2.1:41641"), kind: Kind::StunLocalPort };
        assert_eq!((endpoints.list().len(), endpoints.list().contains(&guess)), (3, true));
        endpoints.handle_stun(&[], Mapping::Same, secs(2));
        assert!(!endpoints.list().contains(&guess));
    }

    #[test]
    fn another_network_forgets_what_the_last_one_said() {
        let mut endpoints = Endpoints::new();
        endpoints.set_static(&[addr("192.0.2.9:9")], secs(1));
        endpoints.set_port_mapping(Some(addr("192.0.2.1:7")), secs(1));
        endpoints.handle_stun(&[addr("192.0.2.1:5")], Mapping::Varies, secs(1));
        endpoints.note_network_change(secs(2));
        assert_eq!(endpoints.list(), [Endpoint { address: addr("192.0.2.9:9"), kind: Kind::Static }]);
    }

    #[test]
    fn addresses_seen_by_stun_are_bounded() {
        let mut endpoints = Endpoints::new();
        for port in 1..100 {
            let address = SocketAddr::from(([192, 0, 2, 1], port));
            endpoints.handle_stun(&[address], Mapping::Varies, secs(u64::from(port)));
        }
        let list = endpoints.list();
        assert_eq!(list.len(), limits::STUN_ADDRESSES);
        assert_eq!(list.last().map(|endpoint| endpoint.address.port()), Some(99));
    }

    #[test]
    fn kinds_have_their_numbers() {
        let kinds = [Kind::Local, Kind::Stun, Kind::PortMapped, Kind::StunLocalPort, Kind::Static];
        assert_eq!(kinds.map(Kind::wire), [1, 2, 3, 4, 5]);
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn secs(secs: u64) -> Instant {
        Instant::from_secs(secs)
    }
}
