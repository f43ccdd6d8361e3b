//! Who has which address.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::host::HostId;

use super::{Ipv6, NetId, Network};

/// Where IPv6 addresses are from (RFC 3849).
const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0);

/// Whether a rebooted NAT shows another address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renumber {
    /// The same.
    Keep,
    /// Another.
    New,
}

impl Network {
    /// Attaches a host and gives it an address: a private one behind a NAT (192.168.1.10 and up, in every net
    /// alike), a public one otherwise (198.19.0.0/16). Where the net has IPv6, it gets one of that family too.
    pub fn attach(&mut self, net: NetId, host: HostId) -> Ipv4Addr {
        let at = &mut self.nets[net.index()];
        let lease = at.leases;
        at.leases += 1;
        let address = if at.nat.is_some() {
            Ipv4Addr::from_bits(Ipv4Addr::new(192, 168, 1, 10).to_bits() + lease)
        } else {
            self.public_addresses += 1;
            let address = Ipv4Addr::from_bits(Ipv4Addr::new(198, 19, 0, 0).to_bits() + self.public_addresses);
            self.routes.insert(address.into(), net);
            address
        };
        self.nets[net.index()].hosts.insert(address.into(), host);
        if self.nets[net.index()].ipv6 != Ipv6::None {
            let bits = V6.to_bits() | u128::from(net.0) << 64 | u128::from(0x10 + lease);
            let address = IpAddr::from(Ipv6Addr::from_bits(bits));
            self.nets[net.index()].hosts.insert(address, host);
            self.announce_from(net, address);
        }
        address
    }

    /// The addresses that a host has in a net, IPv4 first.
    #[must_use]
    pub fn addresses(&self, net: NetId, host: HostId) -> Vec<IpAddr> {
        self.nets[net.index()].hosts.iter().filter(|(_, owner)| **owner == host).map(|(address, _)| *address).collect()
    }

    /// A host leaves a net. What is sent to its addresses there ends.
    pub fn detach(&mut self, net: NetId, host: HostId) {
        for address in self.addresses(net, host) {
            self.nets[net.index()].hosts.remove(&address);
            if self.routes.get(&address) == Some(&net) {
                self.routes.remove(&address);
            }
        }
    }

    /// The address under which the core knows a host that has `inside` in `net`.
    #[must_use]
    pub fn outer_address(&self, net: NetId, inside: Ipv4Addr) -> Ipv4Addr {
        let net = &self.nets[net.index()];
        let outer = net.nat.as_ref().map_or(inside, super::Nat::outer);
        net.behind.map_or(outer, |parent| self.outer_address(parent, outer))
    }

    /// A net's NAT forgets everything, and shows other addresses afterwards when `renumber` says so.
    pub fn reboot_nat(&mut self, net: NetId, renumber: Renumber) {
        let behind = self.nets[net.index()].behind;
        let Some(nat) = &self.nets[net.index()].nat else { return };
        let old = nat.outers().to_vec();
        let new: Vec<_> = match renumber {
            Renumber::Keep => old.clone(),
            Renumber::New => old.iter().map(|_| self.next_outer(behind)).collect(),
        };
        for address in &old {
            self.routes.remove(&IpAddr::from(*address));
            if let Some(parent) = behind {
                self.nets[parent.index()].within.remove(&IpAddr::from(*address));
            }
        }
        self.announce(net, behind, &new);
        let net = &mut self.nets[net.index()];
        for nat in [&mut net.nat, &mut net.nat_tcp].into_iter().flatten() {
            nat.reboot(&new);
        }
    }

    /// Makes addresses that a net shows known to the core, or to the net that it is behind.
    pub(super) fn announce(&mut self, id: NetId, behind: Option<NetId>, outers: &[Ipv4Addr]) {
        let routes = match behind {
            Some(parent) => &mut self.nets[parent.index()].within,
            None => &mut self.routes,
        };
        routes.extend(outers.iter().map(|outer| (IpAddr::from(*outer), id)));
    }

    /// Makes an address of a host known all the way up.
    fn announce_from(&mut self, net: NetId, address: IpAddr) {
        let mut id = net;
        while let Some(parent) = self.nets[id.index()].behind {
            self.nets[parent.index()].within.insert(address, id);
            id = parent;
        }
        self.routes.insert(address, id);
    }

    /// Outer addresses of NATs: 198.18.0.0/16 (RFC 2544, for tests of networks), and shared ones (RFC 6598) where a
    /// NAT is behind another.
    pub(super) fn next_outer(&mut self, behind: Option<NetId>) -> Ipv4Addr {
        if behind.is_some() {
            self.inner_addresses += 1;
            return Ipv4Addr::from_bits(Ipv4Addr::new(100, 96, 0, 0).to_bits() + self.inner_addresses);
        }
        self.outer_addresses += 1;
        Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 0).to_bits() + self.outer_addresses)
    }
}
