//! The underlay: nets around a core.
//!
//! A net is a site: hosts, a switch between them, perhaps a firewall and a NAT, and one access link to the core. They
//! stand between the hosts and the access link, so what the link's delay separates is NATs, not a NAT and its hosts.
//! The core has no delay of its own.
//!
//! ```text
//!  host ─┬─ firewall ── NAT ── access link ──► core ── access link ──► NAT ── firewall ─┬─ host
//!  host ─┘                                                                              └─ host
//! ```
//!
//! A net may be behind another: then its access link leads there, its NAT shows an address of that net
//! (100.96.0.0/12), and what it sends passes that net's firewall, NAT and access link as well.
//!
//! The network decides one hop at a time and never waits: it says where a packet is next and when, and whoever
//! owns the agenda comes back with it then.

pub mod firewall;
pub mod link;
mod link_presets;
pub mod nat;
mod nat_params;
mod nat_ports;
pub mod nat_presets;
mod nat_table;
mod packet;
pub mod segment;
pub mod stream;

use core::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::collections::BTreeMap;

use mesh_core::time::Instant;

use crate::{host::HostId, kernel::dice::Dice};

use firewall::{Firewall, FirewallParams, Refusal};
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
    inner_addresses: u32,
    public_addresses: u32,
    counts: NetworkCounts,
}

/// What a net is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetSetup {
    /// Both directions of the access link.
    pub link: LinkParams,
    /// Its NAT, if it has one.
    pub nat: Option<NatParams>,
    /// Its firewall, if it has one.
    pub firewall: Option<FirewallParams>,
    /// Where its access link leads to if not to the core. Only a net with a NAT may be behind another.
    pub behind: Option<NetId>,
}

#[derive(Debug)]
struct Net {
    nat: Option<Nat>,
    firewall: Option<Firewall>,
    behind: Option<NetId>,
    /// The nets behind this one, by the addresses that they show.
    within: BTreeMap<Ipv4Addr, NetId>,
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
    /// Having left this net by its access link: in the core, or in the net that this one is behind.
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
            inner_addresses: 0,
            public_addresses: 0,
            counts: NetworkCounts::default(),
        }
    }

    /// A new net.
    pub fn add_net(&mut self, setup: NetSetup, dice: &Dice) -> NetId {
        let NetSetup { link, nat, firewall, behind } = setup;
        let id = NetId(self.nets.len() as u32);
        let number = u64::from(id.0);
        let nat = nat.map(|params| {
            let outers: Vec<_> = (0..params.pool.addresses.max(1)).map(|_| self.next_outer(behind)).collect();
            self.announce(id, behind, &outers);
            Nat::new(params, &outers, dice.stream("nat", number))
        });
        self.nets.push(Net {
            nat,
            firewall: firewall.map(Firewall::new),
            behind,
            within: BTreeMap::new(),
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
                let host = net.host(packet.destination);
                self.counts.strays += u64::from(host.is_err());
                host
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
            self.routes.remove(address);
            if let Some(parent) = behind {
                self.nets[parent.index()].within.remove(address);
            }
        }
        self.announce(net, behind, &new);
        if let Some(nat) = &mut self.nets[net.index()].nat {
            nat.reboot(&new);
        }
    }

    /// A net's NAT behaves otherwise from now on.
    pub fn set_nat(&mut self, net: NetId, params: NatParams) {
        if let Some(nat) = &mut self.nets[net.index()].nat {
            nat.set_params(params);
        }
    }

    /// What a net's access link is like.
    #[must_use]
    pub fn link_params(&self, net: NetId) -> &LinkParams {
        self.nets[net.index()].out.params()
    }

    /// Whether a net has a NAT or a firewall, so that its hosts cannot simply be sent to.
    #[must_use]
    pub fn is_guarded(&self, net: NetId) -> bool {
        let net = &self.nets[net.index()];
        net.nat.is_some() || net.firewall.is_some()
    }

    /// The address under which the core knows a host that has `inside` in `net`.
    #[must_use]
    pub fn outer_address(&self, net: NetId, inside: Ipv4Addr) -> Ipv4Addr {
        let net = &self.nets[net.index()];
        let outer = net.nat.as_ref().map_or(inside, Nat::outer);
        net.behind.map_or(outer, |parent| self.outer_address(parent, outer))
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
        let (from, to) = (v4(packet.source)?, v4(packet.destination)?);
        let net = &mut self.nets[id.index()];
        if net.hosts.contains_key(to.ip()) {
            return travel(net.switch.carry(packet, now), Hop::Switched(id));
        }
        if let Some(child) = net.within.get(to.ip()).copied() {
            return self.descend(child, packet, now);
        }
        if let Some(firewall) = &mut net.firewall {
            firewall.handle_outbound(from, to, &packet.payload, now).map_err(refusal)?;
        }
        if let Some(nat) = &mut net.nat {
            match outcome(nat.handle_outbound(from, to, &mut packet.ttl, now))? {
                Rewritten::Source(mapped) => packet.source = mapped.into(),
                Rewritten::Both { source, destination } => {
                    (packet.source, packet.destination) = (source.into(), destination.into());
                    if let Some(child) = net.within.get(destination.ip()).copied() {
                        return self.descend(child, packet, now);
                    }
                    return travel(net.switch.carry(packet, now), Hop::Switched(id));
                }
            }
        }
        travel(net.out.carry(packet, now), Hop::Core(id))
    }

    fn cross(&mut self, from: NetId, packet: &mut Packet, now: Instant) -> Result<Forwarded, DropCause> {
        let net = &mut self.nets[from.index()];
        net.out.note_delivered();
        if let Some(parent) = net.behind {
            return self.leave(parent, packet, now);
        }
        packet.ttl = packet.ttl.saturating_sub(1);
        if packet.ttl == 0 {
            return Err(DropCause::TtlExpired);
        }
        let to = v4(packet.destination)?;
        let id = *self.routes.get(to.ip()).ok_or(DropCause::NoHost)?;
        self.descend(id, packet, now)
    }

    /// Down the access link of a net.
    fn descend(&mut self, id: NetId, packet: &mut Packet, now: Instant) -> Result<Forwarded, DropCause> {
        travel(self.nets[id.index()].back.carry(packet, now), Hop::Edge(id))
    }

    fn enter(&mut self, id: NetId, packet: &mut Packet, now: Instant) -> Result<Forwarded, DropCause> {
        let net = &mut self.nets[id.index()];
        net.back.note_delivered();
        let (from, to) = (v4(packet.source)?, v4(packet.destination)?);
        if let Some(nat) = &mut net.nat {
            let (Rewritten::Source(inside) | Rewritten::Both { destination: inside, .. }) =
                outcome(nat.handle_inbound(from, to, &mut packet.ttl, now))?;
            packet.destination = inside.into();
        }
        if let Some(firewall) = &mut net.firewall {
            let to = v4(packet.destination)?;
            firewall.handle_inbound(from, to, &packet.payload, now).map_err(refusal)?;
        }
        if let Some(child) = net.within.get(v4(packet.destination)?.ip()).copied() {
            return self.descend(child, packet, now);
        }
        let host = net.host(packet.destination);
        // A NAT behind this one may have got another address since.
        if host.is_err() && net.nat.is_some() && !self.nets.iter().any(|net| net.behind == Some(id)) {
            self.counts.strays += 1;
        }
        host
    }

    /// Makes addresses that a net shows known to the core, or to the net that it is behind.
    fn announce(&mut self, id: NetId, behind: Option<NetId>, outers: &[Ipv4Addr]) {
        let routes = match behind {
            Some(parent) => &mut self.nets[parent.index()].within,
            None => &mut self.routes,
        };
        routes.extend(outers.iter().map(|outer| (*outer, id)));
    }

    /// Outer addresses of NATs: 198.18.0.0/16 (RFC 2544, for tests of networks), and shared ones (RFC 6598) where a
    /// NAT is behind another.
    fn next_outer(&mut self, behind: Option<NetId>) -> Ipv4Addr {
        if behind.is_some() {
            self.inner_addresses += 1;
            return Ipv4Addr::from_bits(Ipv4Addr::new(100, 96, 0, 0).to_bits() + self.inner_addresses);
        }
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

/// What a NAT wrote into a packet that goes on. Of an inbound packet the one address is its destination.
enum Rewritten {
    Source(SocketAddrV4),
    Both { source: SocketAddrV4, destination: SocketAddrV4 },
}

fn outcome(translated: Translated) -> Result<Rewritten, DropCause> {
    match translated {
        Translated::To(address) => Ok(Rewritten::Source(address)),
        Translated::Hairpinned { source, destination } => Ok(Rewritten::Both { source, destination }),
        Translated::Filtered => Err(DropCause::NatFiltered),
        Translated::Exhausted => Err(DropCause::NatExhausted),
        Translated::TtlExpired => Err(DropCause::TtlExpired),
        Translated::Hairpin => Err(DropCause::NatHairpin),
        Translated::Local => Err(DropCause::NatLocal),
        Translated::Rejected => Err(DropCause::NatRejected),
    }
}

fn refusal(refusal: Refusal) -> DropCause {
    match refusal {
        Refusal::Blocked => DropCause::FirewallBlocked,
        Refusal::Unsolicited => DropCause::FirewallUnsolicited,
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
mod tests;
