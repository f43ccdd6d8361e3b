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
//! IPv6 is not translated: hosts of a net that has it have addresses of their own (2001:db8::/32), behind the stateful
//! firewall of their router. Datagrams and streams are packets alike; a NAT keeps a table for each.
//!
//! Nets may be in regions; between two of them the core takes its time.
//!
//! The network decides one hop at a time and never waits: it says where a packet is next and when, and whoever
//! owns the agenda comes back with it then.

mod addresses;
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

use core::{
    net::{IpAddr, SocketAddr, SocketAddrV4},
    time::Duration,
};
use std::collections::BTreeMap;

use mesh_core::time::Instant;

use crate::{host::HostId, kernel::dice::Dice};

use firewall::{Firewall, FirewallParams, Flow, Refusal};
use link::{Carried, Link, LinkParams};
use nat::{Nat, NatParams, Translated};

pub use addresses::Renumber;
pub use packet::{CauseCounts, DropCause, HEADER_BYTES, Packet, PacketKind, Proto};

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
    routes: BTreeMap<IpAddr, NetId>,
    /// How long the core takes between two regions, the lower first.
    latencies: BTreeMap<(u16, u16), Duration>,
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
    /// Whether its hosts have IPv6.
    pub ipv6: Ipv6,
    /// The region that it is in.
    pub region: u16,
}

impl NetSetup {
    /// Public addresses on a gigabit Ethernet.
    pub const PUBLIC: Self =
        Self { link: LinkParams::LAN, nat: None, firewall: None, behind: None, ipv6: Ipv6::None, region: 0 };
}

/// Whether hosts of a net have IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ipv6 {
    /// They have not.
    #[default]
    None,
    /// They have, behind a home router's firewall.
    Guarded,
    /// They have, and everybody may send to them.
    Open,
    /// They have addresses and a route, and nothing gets through.
    Broken,
}

/// A direction of an access link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the net.
    Out,
    /// To the net.
    Back,
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

#[derive(Debug)]
struct Net {
    nat: Option<Nat>,
    /// The same NAT's mappings of streams.
    nat_tcp: Option<Nat>,
    firewall: Option<Firewall>,
    /// What guards IPv6.
    firewall_v6: Option<Firewall>,
    ipv6: Ipv6,
    region: u16,
    behind: Option<NetId>,
    /// The nets behind this one, by the addresses that they show.
    within: BTreeMap<IpAddr, NetId>,
    out: Link,
    back: Link,
    switch: Link,
    /// Whether the access link carries IPv4, and IPv6.
    carries: [bool; 2],
    hosts: BTreeMap<IpAddr, HostId>,
    /// Addresses that were given out.
    leases: u32,
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

/// What stands between a net's hosts and its access link.
#[derive(Clone, Copy, Debug)]
pub struct Wall<'n> {
    /// The net.
    pub net: NetId,
    /// Its NAT.
    pub nat: Option<&'n NatParams>,
    /// Its firewall.
    pub firewall: Option<&'n FirewallParams>,
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
    /// Having crossed the core, in front of this net's access link.
    Crossed(NetId),
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
            latencies: BTreeMap::new(),
            outer_addresses: 0,
            inner_addresses: 0,
            public_addresses: 0,
            counts: NetworkCounts::default(),
        }
    }

    /// A new net.
    pub fn add_net(&mut self, setup: NetSetup, dice: &Dice) -> NetId {
        let NetSetup { link, nat, firewall, behind, ipv6, region } = setup;
        let id = NetId(self.nets.len() as u32);
        let number = u64::from(id.0);
        let nats = nat.map(|params| {
            let outers: Vec<_> = (0..params.pool.addresses.max(1)).map(|_| self.next_outer(behind)).collect();
            self.announce(id, behind, &outers);
            let tcp = Nat::new(params.for_tcp(), &outers, dice.stream("nat-tcp", number));
            (Nat::new(params, &outers, dice.stream("nat", number)), tcp)
        });
        let (nat, nat_tcp) = nats.unzip();
        self.nets.push(Net {
            nat,
            nat_tcp,
            firewall: firewall.map(Firewall::new),
            firewall_v6: (ipv6 == Ipv6::Guarded).then(|| Firewall::new(FirewallParams::HOME_V6)),
            ipv6,
            region,
            behind,
            within: BTreeMap::new(),
            out: Link::new(link, dice, "link-out", number),
            back: Link::new(link, dice, "link-back", number),
            switch: Link::new(LinkParams { rate: None, ..LinkParams::LAN }, dice, "switch", number),
            carries: [true, ipv6 != Ipv6::Broken],
            hosts: BTreeMap::new(),
            leases: 0,
        });
        id
    }

    /// The core takes so long between two regions, each way.
    pub fn set_latency(&mut self, one: u16, other: u16, latency: Duration) {
        self.latencies.insert((one.min(other), one.max(other)), latency);
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
                self.counts.strays += u64::from(host.is_err() && !net.has_lost_a_host());
                host
            }
            Hop::Core(from) => self.cross(from, packet, now),
            Hop::Crossed(net) => self.descend(net, packet, now),
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

    /// A net's access link behaves otherwise from now on, in the given direction or in both.
    pub fn set_link(&mut self, net: NetId, direction: Option<Direction>, params: LinkParams) {
        for link in self.nets[net.index()].access(direction) {
            link.set_params(params);
        }
    }

    /// A net's access link carries or does not, in the given direction or in both.
    pub fn set_link_up(&mut self, net: NetId, direction: Option<Direction>, up: bool) {
        for link in self.nets[net.index()].access(direction) {
            link.set_up(up);
        }
    }

    /// A net's access link carries a family of addresses or does not.
    pub fn set_family_up(&mut self, net: NetId, family: Family, up: bool) {
        self.nets[net.index()].carries[family as usize] = up;
    }

    /// A net has another firewall from now on, or none. One that had one knows what it knew.
    pub fn set_firewall(&mut self, net: NetId, params: Option<FirewallParams>) {
        let firewall = &mut self.nets[net.index()].firewall;
        match (firewall.as_mut(), params) {
            (Some(firewall), Some(params)) => firewall.set_params(params),
            (None, Some(params)) => *firewall = Some(Firewall::new(params)),
            (_, None) => *firewall = None,
        }
    }

    /// A net's NAT behaves otherwise from now on.
    pub fn set_nat(&mut self, net: NetId, params: NatParams) {
        let net = &mut self.nets[net.index()];
        if let (Some(nat), Some(nat_tcp)) = (&mut net.nat, &mut net.nat_tcp) {
            nat.set_params(params);
            nat_tcp.set_params(params.for_tcp());
        }
    }

    /// What is between a net's hosts and the core, the innermost first.
    #[must_use]
    pub fn walls(&self, net: NetId) -> Vec<Wall<'_>> {
        let behind = |id: &NetId| self.nets[id.index()].behind;
        let wall = |id: NetId| {
            let net = &self.nets[id.index()];
            Wall {
                net: id,
                nat: net.nat.as_ref().map(Nat::params),
                firewall: net.firewall.as_ref().map(Firewall::params),
            }
        };
        core::iter::successors(Some(net), behind).map(wall).collect()
    }

    /// How long a small packet takes from a host of one net to one of another, behind a full one on each link and without
    /// jitter.
    #[must_use]
    pub fn passage(&self, from: NetId, to: NetId) -> Duration {
        if from == to {
            return self.nets[from.index()].switch.passage();
        }
        let (up, down) = (self.walls(from), self.walls(to));
        // Up to the first net that both are in, or to the core, and down again.
        let is_shared = |wall: &Wall<'_>| down.iter().any(|other| other.net == wall.net);
        let is_above = |wall: &Wall<'_>| up.iter().any(|other| other.net == wall.net);
        let leaves =
            up.iter().take_while(|wall| !is_shared(wall)).map(|wall| self.nets[wall.net.index()].out.passage());
        let enters =
            down.iter().take_while(|wall| !is_above(wall)).map(|wall| self.nets[wall.net.index()].back.passage());
        let edge = |walls: &[Wall<'_>]| walls.last().map_or(0, |wall| self.nets[wall.net.index()].region);
        let (one, other) = (edge(&up), edge(&down));
        let crosses = !up.iter().any(is_shared);
        let latency = self.latencies.get(&(one.min(other), one.max(other))).filter(|_| crosses);
        leaves.chain(enters).chain(latency.copied()).sum()
    }

    /// Whether a net's access link is up, and those of all nets that it is behind.
    #[must_use]
    pub fn is_connected(&self, net: NetId) -> bool {
        let net = &self.nets[net.index()];
        let is_up = net.out.is_up() && net.back.is_up() && net.carries.contains(&true);
        is_up && net.behind.is_none_or(|parent| self.is_connected(parent))
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

    /// All NATs with the net that they belong to: for datagrams and for streams.
    pub fn nats(&self) -> impl Iterator<Item = (NetId, &Nat)> {
        self.nets.iter().enumerate().flat_map(|(index, net)| {
            [net.nat.as_ref(), net.nat_tcp.as_ref()].into_iter().flatten().map(move |nat| (NetId(index as u32), nat))
        })
    }

    /// Those for datagrams alone. A NAT knows when a stream has ended well, too, which its model does not.
    pub fn datagram_nats(&self) -> impl Iterator<Item = (NetId, &Nat)> {
        self.nets.iter().zip(0..).filter_map(|(net, number)| Some((NetId(number), net.nat.as_ref()?)))
    }

    fn leave(&mut self, id: NetId, packet: &mut Packet, now: Instant) -> Result<Forwarded, DropCause> {
        let to = packet.destination.ip();
        let net = &mut self.nets[id.index()];
        if net.hosts.contains_key(&to) {
            return travel(net.switch.carry(packet, now), Hop::Switched(id));
        }
        if let Some(child) = net.within.get(&to).copied() {
            return self.descend(child, packet, now);
        }
        let flow = Flow { proto: packet.proto, inside: packet.source, outside: packet.destination };
        if let Some(firewall) = &mut net.firewall {
            firewall.handle_outbound(flow, &packet.payload, now).map_err(refusal)?;
        }
        let SocketAddr::V4(from) = packet.source else {
            packet.pass_router()?;
            if let Some(firewall) = &mut net.firewall_v6 {
                firewall.handle_outbound(flow, &packet.payload, now).map_err(refusal)?;
            }
            return net.ascend(id, packet, now);
        };
        if let Some(nat) = net.nat_for(packet.proto) {
            let to = v4(packet.destination)?;
            let translated = nat.handle_outbound(from, to, &mut packet.ttl, now);
            if packet.is_reset() {
                nat.handle_reset(from, to, now);
            }
            match outcome(translated)? {
                Rewritten::Source(mapped) => packet.source = mapped.into(),
                Rewritten::Both { source, destination } => {
                    (packet.source, packet.destination) = (source.into(), destination.into());
                    if let Some(child) = net.within.get(&packet.destination.ip()).copied() {
                        return self.descend(child, packet, now);
                    }
                    return travel(net.switch.carry(packet, now), Hop::Switched(id));
                }
            }
        }
        net.ascend(id, packet, now)
    }

    fn cross(&mut self, from: NetId, packet: &mut Packet, now: Instant) -> Result<Forwarded, DropCause> {
        let net = &mut self.nets[from.index()];
        net.out.note_delivered();
        if let Some(parent) = net.behind {
            return self.leave(parent, packet, now);
        }
        let region = net.region;
        packet.pass_router()?;
        let id = *self.routes.get(&packet.destination.ip()).ok_or(DropCause::NoHost)?;
        let other = self.nets[id.index()].region;
        match self.latencies.get(&(region.min(other), region.max(other))) {
            Some(latency) => Ok(Forwarded::Travels { to: Hop::Crossed(id), at: now + *latency, again_at: None }),
            None => self.descend(id, packet, now),
        }
    }

    /// Down the access link of a net.
    fn descend(&mut self, id: NetId, packet: &mut Packet, now: Instant) -> Result<Forwarded, DropCause> {
        let net = &mut self.nets[id.index()];
        net.check_family(packet)?;
        travel(net.back.carry(packet, now), Hop::Edge(id))
    }

    fn enter(&mut self, id: NetId, packet: &mut Packet, now: Instant) -> Result<Forwarded, DropCause> {
        let net = &mut self.nets[id.index()];
        net.back.note_delivered();
        if packet.destination.is_ipv6() {
            packet.pass_router()?;
        } else if let Some(nat) = net.nat_for(packet.proto) {
            let (from, to) = (v4(packet.source)?, v4(packet.destination)?);
            let (Rewritten::Source(inside) | Rewritten::Both { destination: inside, .. }) =
                outcome(nat.handle_inbound(from, to, &mut packet.ttl, now))?;
            if packet.is_reset() {
                nat.handle_reset(inside, from, now);
            }
            packet.destination = inside.into();
        }
        let flow = Flow { proto: packet.proto, inside: packet.destination, outside: packet.source };
        let guard = if packet.destination.is_ipv6() { net.firewall_v6.as_mut() } else { None };
        for firewall in guard.into_iter().chain(&mut net.firewall) {
            firewall.handle_inbound(flow, &packet.payload, now).map_err(refusal)?;
        }
        if let Some(child) = net.within.get(&packet.destination.ip()).copied() {
            return self.descend(child, packet, now);
        }
        let host = net.host(packet.destination);
        if host.is_err() && net.nat.is_some() && packet.destination.is_ipv4() {
            // A NAT behind this one may have got another address since, and a host may have left.
            if !net.has_lost_a_host() && self.nets.iter().all(|net| net.behind != Some(id)) {
                self.counts.strays += 1;
            }
        }
        host
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

impl Net {
    /// Whether a host that was in it has left.
    fn has_lost_a_host(&self) -> bool {
        self.leases as usize > self.hosts.keys().filter(|address| address.is_ipv4()).count()
    }

    fn host(&self, destination: SocketAddr) -> Result<Forwarded, DropCause> {
        let host = self.hosts.get(&destination.ip()).ok_or(DropCause::NoHost)?;
        Ok(Forwarded::Delivered(*host))
    }

    fn nat_for(&mut self, proto: Proto) -> Option<&mut Nat> {
        match proto {
            Proto::Udp => self.nat.as_mut(),
            Proto::Tcp => self.nat_tcp.as_mut(),
        }
    }

    fn access(&mut self, direction: Option<Direction>) -> impl Iterator<Item = &mut Link> {
        let wanted = move |this| direction.is_none_or(|direction| direction == this);
        let ends = [(Direction::Out, &mut self.out), (Direction::Back, &mut self.back)];
        ends.into_iter().filter(move |(this, _)| wanted(*this)).map(|(_, link)| link)
    }

    /// Up the access link.
    fn ascend(&mut self, id: NetId, packet: &mut Packet, now: Instant) -> Result<Forwarded, DropCause> {
        self.check_family(packet)?;
        travel(self.out.carry(packet, now), Hop::Core(id))
    }

    fn check_family(&self, packet: &Packet) -> Result<(), DropCause> {
        let carried = self.carries[usize::from(packet.destination.is_ipv6())];
        if carried { Ok(()) } else { Err(DropCause::LinkDown) }
    }
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

/// The address, if it is of the family that NATs translate.
fn v4(address: SocketAddr) -> Result<SocketAddrV4, DropCause> {
    match address {
        SocketAddr::V4(v4) => Ok(v4),
        SocketAddr::V6(_) => Err(DropCause::NoHost),
    }
}

#[cfg(test)]
mod tests;
