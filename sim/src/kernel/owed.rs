//! What a world owes those who live in it, found from its links, routers and events: which ways there are, how long they
//! take at best, and what each change may cost.

use core::time::Duration;

use mesh_core::time::Instant;

use crate::{
    check::{Best, Change, PathCheck, best, harm},
    host::{HostId, NodeHost, RelayChange},
    net::{Hop, NetId, firewall::Inbound, link::LinkParams},
    scenario::{Endpoint, EventSpec, Fault, LinkChange, PeerSpec, RelaySpec, TrafficSpec},
};

use super::{Simulation, conservation::length_of};

/// What a change may cost. A host that moves, wakes or starts is told of it, and its relay's connection is made anew; a
/// router that forgot, a link that was down and a relay that is gone have to be found out.
const TOLD: Duration = Duration::from_secs(10);
const FOUND_OUT: Duration = Duration::from_secs(15);

/// Bytes around a message on the wire: IP, UDP and WireGuard, inside IP and UDP, inside Ethernet.
const AROUND: usize = 28 + 32 + 28 + 18;

impl Simulation<'_> {
    /// What may be felt of each event of the scenario, and by whom.
    pub(super) fn changes(&self) -> Vec<Change> {
        let relays = self.scenario.relays.len();
        let change = |event: &EventSpec| {
            let (hosts, budget) = match &event.fault {
                Fault::Restart { node, .. } | Fault::Move { node, .. } | Fault::Suspend { node, .. } => {
                    (vec![*node], TOLD)
                }
                Fault::Reboot { net, .. } | Fault::Link { net, change: LinkChange::Down(_), .. } => {
                    (self.hosts_within(*net, event.at), FOUND_OUT)
                }
                Fault::Relay { change, .. } if *change != RelayChange::Start && *change != RelayChange::Answer => {
                    (Vec::new(), FOUND_OUT)
                }
                _ => return None,
            };
            let over = event.at + length_of(&event.fault, relays)?;
            let (cuts, what) = (budget == FOUND_OUT, event.fault.text(&self.names));
            (over < self.end).then_some(Change { begin: event.at, over, hosts, budget, cuts, what })
        };
        self.scenario.events.iter().filter_map(change).collect()
    }

    /// Nodes that were in a net at an instant, or in one behind it.
    fn hosts_within(&self, net: NetId, at: Instant) -> Vec<HostId> {
        let ids = (0..self.scenario.nodes.len() as u32).map(HostId);
        let net_of = |id: &HostId| {
            let moves = self.scenario.events.iter().rev().filter(|event| event.at <= at);
            let mut moved = moves.filter_map(|event| match &event.fault {
                Fault::Move { node, to, .. } if node == id => Some(*to),
                _ => None,
            });
            moved.next().unwrap_or(self.scenario.nodes[id.index()].net)
        };
        ids.filter(|id| self.network.walls(net_of(id)).iter().any(|wall| wall.net == net)).collect()
    }

    /// What a round trip between two nodes takes at best, as the world is now.
    pub(super) fn best(&self, pair: [HostId; 2]) -> Option<Best> {
        let net = |id: HostId| self.hosts[id.index()].node().and_then(NodeHost::net);
        let [a, b] = [net(pair[0])?, net(pair[1])?];
        let way = |from, to| self.network.passage(from, to);
        let is_there = |event: &EventSpec| match &event.fault {
            Fault::Relay { change: RelayChange::Kill | RelayChange::BlackHole, length, .. } => length.is_some(),
            _ => true,
        };
        let relays: Vec<&RelaySpec> = self.scenario.relays.iter().filter(|relay| relay.derp).collect();
        let round_trip = |net: NetId, relay: NetId| way(net, relay) + way(relay, net);
        let homes = |net: NetId| {
            let nearest = relays.iter().map(|relay| round_trip(net, relay.net)).min();
            let is_fine = move |at: &NetId| nearest.is_some_and(|nearest| best::is_near(round_trip(net, *at), nearest));
            relays.iter().map(|relay| relay.net).filter(is_fine)
        };
        // Packets for a node go to its home. Each of two may be any that is near enough.
        let both = homes(a).flat_map(|of_a| homes(b).map(move |of_b| (of_a, of_b)));
        let relayed = both.map(|(of_a, of_b)| way(a, of_b) + way(of_b, b) + way(b, of_a) + way(of_a, a)).max();
        let relayed = relayed.filter(|_| self.scenario.events.iter().all(is_there));
        Some(Best { direct: way(a, b) + way(b, a), relayed })
    }

    /// Whether two nodes that know each other from the beginning have a way: one can be reached by everybody, stays where
    /// it is, and the other was told where that is and asks.
    pub(super) fn has_static_way(&self, traffic: &TrafficSpec) -> bool {
        let is_open = |net: NetId| {
            let walls = self.network.walls(net);
            walls
                .iter()
                .all(|wall| wall.nat.is_none() && wall.firewall.is_none_or(|wall| wall.inbound == Inbound::Open))
        };
        let net = self.scenario.nodes[traffic.to.index()].net;
        let stays = |event: &EventSpec| match &event.fault {
            Fault::Move { node, .. } => *node != traffic.to,
            Fault::Firewall { .. } | Fault::Nat { .. } => false,
            _ => true,
        };
        let is_told = |peer: &PeerSpec| (peer.of, peer.is, peer.endpoint) == (traffic.from, traffic.to, Endpoint::Told);
        is_open(net) && self.scenario.events.iter().all(stays) && self.scenario.peers.iter().any(is_told)
    }

    /// N7 and N9: what looking for ways cost others, and what it cost those who look.
    pub(super) fn check_harm(&mut self) {
        let nodes = self.scenario.nodes.len();
        for (host, sent) in (0..).map(HostId).zip(self.paths.as_ref().map_or(&[][..], PathCheck::probes)) {
            harm::check_probes(host, sent, nodes.saturating_sub(1), &mut self.tally);
        }
        for (net, nat) in self.network.datagram_nats() {
            let stays = (0..nodes as u32).map(HostId).flat_map(|id| self.nets_of(id));
            let behind = stays.filter(|at| self.is_behind(*at, net)).count();
            harm::check_table(net, nat.counts(), behind, self.now, &mut self.tally);
        }
        for (net, far_end, link) in self.network.links() {
            if far_end == Hop::Core(net) && self.keeps_its_rate(net) && self.is_roomy(net, link.params()) {
                harm::check_waits(net, link.probe_waits(), self.now, &mut self.tally);
            }
        }
    }

    /// The nets that a node is in in the course of a run, one after the other.
    fn nets_of(&self, id: HostId) -> impl Iterator<Item = NetId> {
        let moves = self.scenario.events.iter().filter_map(move |event| match &event.fault {
            Fault::Move { node, to, .. } if *node == id => Some(*to),
            _ => None,
        });
        core::iter::once(self.scenario.nodes[id.index()].net).chain(moves)
    }

    /// Whether what is sent from one net to the world goes through the link of another.
    fn is_behind(&self, at: NetId, net: NetId) -> bool {
        self.network.walls(at).iter().any(|wall| wall.net == net)
    }

    /// Whether a net's link always carries as much as in the beginning, and lets as much wait.
    fn keeps_its_rate(&self, net: NetId) -> bool {
        let of = |link: &LinkParams| (link.rate, link.queue_bytes);
        let first = of(&self.scenario.nets[net.index()].setup.link);
        self.scenario.events.iter().all(|event| match &event.fault {
            Fault::Link { net: at, change: LinkChange::Set(link), .. } => *at != net || of(link) == first,
            _ => true,
        })
    }

    /// Whether what applications say through a net's link fills it to four fifths at most, also when all are there at once
    /// that ever are.
    fn is_roomy(&self, net: NetId, link: &LinkParams) -> bool {
        let Some(rate) = link.rate else { return false };
        let is_inside = |id: HostId| self.nets_of(id).any(|at| self.is_behind(at, net));
        let bits = |bytes: usize, every: Duration| (bytes + AROUND) as u128 * 8_000_000_000 / every.as_nanos().max(1);
        let said = self.scenario.traffic.iter().map(|traffic| {
            let question = if is_inside(traffic.from) { bits(traffic.bytes, traffic.every) } else { 0 };
            let answer = if is_inside(traffic.to) { bits(traffic.answer_bytes, traffic.every) } else { 0 };
            question + answer
        });
        said.sum::<u128>() * 5 <= u128::from(rate) * 4
    }
}
