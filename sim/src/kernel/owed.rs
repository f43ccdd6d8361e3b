//! What a world owes those who live in it, found from its links, routers and events: which ways there are, how long they
//! take at best, and what each change may cost.

use core::time::Duration;

use mesh_core::time::Instant;

use crate::{
    check::{Best, Change, PathCheck, harm},
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
            let what = event.fault.text(&self.names);
            (over < self.end).then_some(Change { begin: event.at, over, hosts, budget, what })
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
        let nearest = |net: NetId| relays.iter().map(|relay| relay.net).min_by_key(|at| way(net, *at) + way(*at, net));
        let homes = nearest(a).zip(nearest(b)).filter(|_| self.scenario.events.iter().all(is_there));
        let relayed = homes.map(|(of_a, of_b)| way(a, of_b) + way(of_b, b) + way(b, of_a) + way(of_a, a));
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
            let is_behind = |id: NetId| self.network.walls(id).iter().any(|wall| wall.net == net);
            let starts = self.scenario.nodes.iter().filter(|node| is_behind(node.net)).count();
            let moves = |event: &&EventSpec| matches!(event.fault, Fault::Move { to, .. } if is_behind(to));
            let moved = self.scenario.events.iter().filter(moves).count();
            harm::check_table(net, nat.counts(), starts + moved, self.now, &mut self.tally);
        }
        for (net, far_end, link) in self.network.links() {
            if far_end == Hop::Core(net) && self.is_roomy(net, link.params()) {
                harm::check_waits(net, link.probe_waits(), self.now, &mut self.tally);
            }
        }
    }

    /// Whether what applications say through a net's link fills it to four fifths at most.
    fn is_roomy(&self, net: NetId, link: &LinkParams) -> bool {
        let Some(rate) = link.rate else { return false };
        let is_inside = |id: HostId| {
            let node = self.hosts[id.index()].node();
            node.and_then(NodeHost::net).is_some_and(|at| self.network.walls(at).iter().any(|wall| wall.net == net))
        };
        let bits = |bytes: usize, every: Duration| (bytes + AROUND) as u128 * 8_000_000_000 / every.as_nanos().max(1);
        let said = self.scenario.traffic.iter().map(|traffic| {
            let question = if is_inside(traffic.from) { bits(traffic.bytes, traffic.every) } else { 0 };
            let answer = if is_inside(traffic.to) { bits(traffic.answer_bytes, traffic.every) } else { 0 };
            question + answer
        });
        said.sum::<u128>() * 5 <= u128::from(rate) * 4
    }
}
