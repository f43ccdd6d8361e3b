//! The underlay: nets around a core.
//!
//! A net is a site: hosts, a switch between them, perhaps a NAT, and one access link to the core. The NAT stands
//! between the hosts and the access link, so what the link's delay separates is NATs, not a NAT and its hosts.
//! The core has no delay of its own.
//!
//! ```text
//!  host ─┬─ NAT ── access link ──► core ── access link ──► NAT ─┬─ host
//!  host ─┘                                                      └─ host
//! ```
//!
//! The network decides one hop at a time and never waits: it says where a packet is next and when, and whoever
//! owns the agenda comes back with it then.

pub mod link;
mod link_presets;
pub mod nat;
mod nat_presets;
mod nat_table;
mod packet;

use core::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::collections::BTreeMap;

use mesh_core::time::Instant;

use crate::{host::HostId, kernel::dice::Dice};

use link::{Carried, Link, LinkParams};
use nat::{Nat, NatParams, Translated};

pub use packet::{CauseCounts, DropCause, HEADER_BYTES, Packet, PacketKind};

/// Names a net: its number in the scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetId(pub u32);

impl NetId {
    /// The number as an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// All nets and the core between them.
#[derive(Debug)]
pub struct Network {
    nets: Vec<Net>,
    /// Who announces which address to the core.
    routes: BTreeMap<Ipv4Addr, NetId>,
    outer_addresses: u32,
    public_addresses: u32,
    counts: NetworkCounts,
}

#[derive(Debug)]
struct Net {
    nat: Option<Nat>,
    out: Link,
    back: Link,
    switch: Link,
    hosts: BTreeMap<Ipv4Addr, HostId>,
}

/// What the network did with datagrams. `sent + copied = delivered + dropped + in flight`, always.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkCounts {
    /// Given to the network by hosts.
    pub sent: u64,
    /// Second copies made by links.
    pub copied: u64,
    /// Given to hosts.
    pub delivered: u64,
    /// Ended in the network.
    pub dropped: CauseCounts,
    /// Translated by a NAT to an address that is not inside it. A bug of the model when it is not 0.
    pub strays: u64,
}

/// Where a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// At the host that sent it.
    Sent(NetId),
    /// Behind the switch of its own net.
    Switched(NetId),
    /// In the core, having left this net.
    Core(NetId),
    /// At the edge of the destination's net.
    Edge(NetId),
}

/// What becomes of a packet next.
#[derive(Debug)]
pub enum Forwarded {
    /// It ends.
    Dropped(DropCause),
    /// It is at `to` then; and once more, when a link duplicated it.
    Travels {
        /// Where.
        to: Hop,
        /// When.
        at: Instant,
        /// When the second copy is there.
        again_at: Option<Instant>,
    },
    /// It is at its host.
    Delivered(HostId),
}

impl Network {
    /// No nets.
    #[must_use]
    pub fn new() -> Self {
        Self {
            nets: Vec::new(),
            routes: BTreeMap::new(),
            outer_addresses: 0,
            public_addresses: 0,
            counts: NetworkCounts::default(),
        }
    }

    /// A net with its access link, and its NAT if it has one.
    pub fn add_net(&mut self, link: LinkParams, nat: Option<NatParams>, dice: &Dice) -> NetId {
        let id = NetId(self.nets.len() as u32);
        let number = u64::from(id.0);
        let nat = nat.map(|params| {
            let outer = self.next_outer();
            self.routes.insert(outer, id);
            Nat::new(params, outer, dice.stream("nat", number))
        });
        self.nets.push(Net {
            nat,
            out: Link::new(link, dice, "link-out", number),
            back: Link::new(link, dice, "link-back", number),
            switch: Link::new(LinkParams { rate: None, ..LinkParams::LAN }, dice, "switch", number),
            hosts: BTreeMap::new(),
        });
        id
    }

    /// Attaches a host and gives it an address: a private one behind a NAT (192.168.1.10 and up, in every net
    /// alike), a public one otherwise (198.19.0.0/16).
    pub fn attach(&mut self, net: NetId, host: HostId) -> Ipv4Addr {
        let address = if self.nets[net.index()].nat.is_some() {
            let number = self.nets[net.index()].hosts.len() as u32;
            Ipv4Addr::from_bits(Ipv4Addr::new(192, 168, 1, 10).to_bits() + number)
        } else {
            self.public_addresses += 1;
            let address = Ipv4Addr::from_bits(Ipv4Addr::new(198, 19, 0, 0).to_bits() + self.public_addresses);
            self.routes.insert(address, net);
            address
        };
        self.nets[net.index()].hosts.insert(address, host);
        address
    }

    /// Takes in a packet that is at `hop`. May rewrite it.
    pub fn forward(&mut self, hop: Hop, packet: &mut Packet, now: Instant) -> Forwarded {
        let result = match hop {
            Hop::Sent(net) => {
                self.counts.sent += 1;
                self.leave(net, packet, now)
            }
            Hop::Switched(net) => {
                let net = &mut self.nets[net.index()];
                net.switch.note_delivered();
                net.host(packet.destination)
            }
            Hop::Core(from) => self.cross(from, packet, now),
            Hop::Edge(net) => self.enter(net, packet, now),
        };
        match result {
            Ok(forwarded) => {
                match &forwarded {
                    Forwarded::Delivered(_) => self.counts.delivered += 1,
                    Forwarded::Travels { again_at: Some(_), .. } => self.counts.copied += 1,
                    Forwarded::Travels { again_at: None, .. } | Forwarded::Dropped(_) => {}
                }
                forwarded
            }
            Err(cause) => {
                self.counts.dropped.add(cause);
                Forwarded::Dropped(cause)
            }
        }
    }

    /// A delivered packet ended at the host after all: no socket, or nobody up.
    pub fn note_undelivered(&mut self, cause: DropCause) {
        self.counts.delivered -= 1;
        self.counts.dropped.add(cause);
    }

    /// Both directions of a net's access link behave otherwise from now on.
    pub fn set_link(&mut self, net: NetId, params: LinkParams) {
        let net = &mut self.nets[net.index()];
        net.out.set_params(params);
        net.back.set_params(params);
    }

    /// Both directions of a net's access link carry or do not.
    pub fn set_link_up(&mut self, net: NetId, up: bool) {
        let net = &mut self.nets[net.index()];
        net.out.set_up(up);
        net.back.set_up(up);
    }

    /// A net's NAT forgets everything, and shows another address afterwards when `renumber` says so.
    pub fn reboot_nat(&mut self, net: NetId, renumber: Renumber) {
        let new = match renumber {
            Renumber::Keep => None,
            Renumber::New => Some(self.next_outer()),
        };
        let Some(nat) = &mut self.nets[net.index()].nat else { return };
        let old = nat.outer();
        nat.reboot(new.unwrap_or(old));
        if let Some(new) = new {
            self.routes.remove(&old);
            self.routes.insert(new, net);
        }
    }

    /// What a net's access link is like.
    #[must_use]
    pub fn link_params(&self, net: NetId) -> &LinkParams {
        self.nets[net.index()].out.params()
    }

    /// Whether a net has a NAT.
    #[must_use]
    pub fn has_nat(&self, net: NetId) -> bool {
        self.nets[net.index()].nat.is_some()
    }

    /// The address under which the core knows a host that has `inside` in `net`.
    #[must_use]
    pub fn outer_address(&self, net: NetId, inside: Ipv4Addr) -> Ipv4Addr {
        self.nets[net.index()].nat.as_ref().map_or(inside, Nat::outer)
    }

    /// What the network did.
    #[must_use]
    pub fn counts(&self) -> &NetworkCounts {
        &self.counts
    }

    /// All links with the net that they belong to and the hop at their far end.
    pub fn links(&self) -> impl Iterator<Item = (NetId, Hop, &Link)> {
        self.nets.iter().enumerate().flat_map(|(index, net)| {
            let id = NetId(index as u32);
            [(id, Hop::Core(id), &net.out), (id, Hop::Edge(id), &net.back), (id, Hop::Switched(id), &net.switch)]
        })
    }

    /// All NATs with the net that they belong to.
    pub fn nats(&self) -> impl Iterator<Item = (NetId, &Nat)> {
        self.nets.iter().enumerate().filter_map(|(index, net)| Some((NetId(index as u32), net.nat.as_ref()?)))
    }

    fn leave(&mut self, id: NetId, packet: &mut Packet, now: Instant) -> Result<Forwarded, DropCause> {
        let net = &mut self.nets[id.index()];
        let (from, to) = (v4(packet.source)?, v4(packet.destination)?);
        if net.hosts.contains_key(to.ip()) {
            return travel(net.switch.carry(packet, now), Hop::Switched(id));
        }
        if let Some(nat) = &mut net.nat {
            let mapped = outcome(nat.handle_outbound(from, to, &mut packet.ttl, now))?;
            packet.source = mapped.into();
        }
        travel(net.out.carry(packet, now), Hop::Core(id))
    }

    fn cross(&mut self, from: NetId, packet: &mut Packet, now: Instant) -> Result<Forwarded, DropCause> {
        self.nets[from.index()].out.note_delivered();
        packet.ttl = packet.ttl.saturating_sub(1);
        if packet.ttl == 0 {
            return Err(DropCause::TtlExpired);
        }
        let to = v4(packet.destination)?;
        let id = *self.routes.get(to.ip()).ok_or(DropCause::NoHost)?;
        travel(self.nets[id.index()].back.carry(packet, now), Hop::Edge(id))
    }

    fn enter(&mut self, id: NetId, packet: &mut Packet, now: Instant) -> Result<Forwarded, DropCause> {
        let net = &mut self.nets[id.index()];
        net.back.note_delivered();
        let (from, to) = (v4(packet.source)?, v4(packet.destination)?);
        let Some(nat) = &mut net.nat else { return net.host(packet.destination) };
        let inside = outcome(nat.handle_inbound(from, to, &mut packet.ttl, now))?;
        packet.destination = inside.into();
        let host = net.host(packet.destination);
        self.counts.strays += u64::from(host.is_err());
        host
    }

    /// Outer addresses of NATs: 198.18.0.0/16 (RFC 2544, for tests of networks).
    fn next_outer(&mut self) -> Ipv4Addr {
        self.outer_addresses += 1;
        Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 0).to_bits() + self.outer_addresses)
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

impl Net {
    fn host(&self, destination: SocketAddr) -> Result<Forwarded, DropCause> {
        let host = self.hosts.get(v4(destination)?.ip()).ok_or(DropCause::NoHost)?;
        Ok(Forwarded::Delivered(*host))
    }
}

/// Whether a rebooted NAT shows another address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renumber {
    /// The same.
    Keep,
    /// Another.
    New,
}

fn travel(carried: Carried, to: Hop) -> Result<Forwarded, DropCause> {
    match carried {
        Carried::Dropped(cause) => Err(cause),
        Carried::Arrives { at, again_at } => Ok(Forwarded::Travels { to, at, again_at }),
    }
}

fn outcome(translated: Translated) -> Result<SocketAddrV4, DropCause> {
    match translated {
        Translated::To(address) => Ok(address),
        Translated::Filtered => Err(DropCause::NatFiltered),
        Translated::Exhausted => Err(DropCause::NatExhausted),
        Translated::TtlExpired => Err(DropCause::TtlExpired),
        Translated::Hairpin => Err(DropCause::NatHairpin),
        Translated::Local => Err(DropCause::NatLocal),
    }
}

/// The underlay of this build is IPv4; nobody has an IPv6 address.
fn v4(address: SocketAddr) -> Result<SocketAddrV4, DropCause> {
    match address {
        SocketAddr::V4(v4) => Ok(v4),
        SocketAddr::V6(_) => Err(DropCause::NoHost),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::trace::digest_of;

    #[test]
    fn a_packet_crosses_a_nat_and_its_answer_comes_back() {
        let dice = Dice::new(1);
        let mut network = Network::new();
        let home = network.add_net(LinkParams::PERFECT, Some(NatParams::LINUX_FILTERED), &dice);
        let server = network.add_net(LinkParams::PERFECT, None, &dice);
        let inside = network.attach(home, HostId(0));
        let outside = network.attach(server, HostId(1));

        let mut there = packet((inside, 41641), (outside, 41641));
        assert_eq!(walk(&mut network, home, &mut there), Ok(HostId(1)));
        assert_ne!(there.source.ip(), inside);
        let mut back = packet((outside, 41641), v4(there.source).map(|s| (*s.ip(), s.port())).unwrap());
        assert_eq!(walk(&mut network, server, &mut back), Ok(HostId(0)));
        assert_eq!(back.destination.ip(), inside);
        // Two routers and the core between them.
        assert_eq!(back.ttl, 62);

        let mut stranger = packet((outside, 9), (network.outer_address(home, inside), 41641));
        assert_eq!(walk(&mut network, server, &mut stranger), Err(DropCause::NatFiltered));
        let counts = network.counts();
        assert_eq!((counts.sent, counts.delivered, counts.dropped.total(), counts.strays), (3, 2, 1, 0));
    }

    #[test]
    fn neighbours_talk_through_the_switch_without_the_nat() {
        let mut network = Network::new();
        let home = network.add_net(LinkParams::PERFECT, Some(NatParams::LINUX_FILTERED), &Dice::new(1));
        let (one, two) = (network.attach(home, HostId(0)), network.attach(home, HostId(1)));
        network.set_link_up(home, false);
        let mut packet = packet((one, 1), (two, 2));
        assert_eq!(walk(&mut network, home, &mut packet), Ok(HostId(1)));
        assert_eq!(packet.source.ip(), one);
    }

    #[test]
    fn a_renumbered_nat_is_found_at_its_new_address_alone() {
        let dice = Dice::new(1);
        let mut network = Network::new();
        let home = network.add_net(LinkParams::PERFECT, Some(NatParams::LINUX_FILTERED), &dice);
        let server = network.add_net(LinkParams::PERFECT, None, &dice);
        let inside = network.attach(home, HostId(0));
        let outside = network.attach(server, HostId(1));
        let old = network.outer_address(home, inside);
        network.reboot_nat(home, Renumber::New);
        assert_ne!(network.outer_address(home, inside), old);
        assert_eq!(walk(&mut network, server, &mut packet((outside, 1), (old, 1))), Err(DropCause::NoHost));
    }

    fn walk(network: &mut Network, net: NetId, packet: &mut Packet) -> Result<HostId, DropCause> {
        let mut hop = Hop::Sent(net);
        loop {
            match network.forward(hop, packet, Instant::ZERO) {
                Forwarded::Dropped(cause) => return Err(cause),
                Forwarded::Delivered(host) => return Ok(host),
                Forwarded::Travels { to, .. } => hop = to,
            }
        }
    }

    fn packet(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Packet {
        let payload = b"payload".to_vec();
        Packet {
            number: 0,
            origin: HostId(0),
            source: from.into(),
            destination: to.into(),
            ttl: 64,
            digest: digest_of(&payload),
            payload,
        }
    }
}
