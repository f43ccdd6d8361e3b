//! Every datagram is delivered, dropped for a cause, or on its way; and the NATs' model keeps its own rules.

use core::time::Duration;

use control::coordinator::Command;
use mesh_core::{ip::packet::protocol, node::BackendState, time::Instant};

use crate::{
    check::{CheckId, PathCheck, Wants, network},
    host::{Host, NodeEvent, NodeOrder, RelayChange, message::SERVER_PORT},
    scenario::{Fault, LinkChange, NodeSpec, Scenario, TrafficKind, TrafficSpec},
};

use super::{Event, Simulation};

impl Simulation<'_> {
    /// What the network owes those who use it, where they can be reached.
    pub(super) fn check_network(&mut self) {
        let is_static = self.scenario.relays.is_empty();
        let mut disturbed: Vec<_> = self
            .scenario
            .events
            .iter()
            .map(|event| {
                let length = length_of(&event.fault, self.scenario.relays.len());
                (event.at, length.map_or(self.end, |length| event.at + length))
            })
            .collect();
        disturbed.extend(self.scenario.nodes.iter().map(|node| (node.start, node.start)));
        disturbed.sort_unstable();
        let is_denied = |traffic: &&TrafficSpec| {
            if is_static {
                return !self.has_static_way(traffic);
            }
            let wants = match traffic.kind {
                TrafficKind::Ping => Wants::Echo,
                TrafficKind::Request => Wants::Port(protocol::UDP, SERVER_PORT),
            };
            self.policy.as_ref().is_some_and(|check| !check.always_allows(traffic.from, traffic.to, wants))
        };
        let denied: Vec<_> = self
            .scenario
            .traffic
            .iter()
            .filter(is_denied)
            .map(|traffic| [traffic.from.min(traffic.to), traffic.from.max(traffic.to)])
            .collect();
        let mut tally = core::mem::take(&mut self.tally);
        let since = self.met();
        let probes = self.paths.as_ref().map_or(&[][..], PathCheck::probes);
        let (end, flows, events) = (self.now, &self.flows, self.node_events.as_slice());
        // Ways are found, and taken back, where nodes find each other.
        let is_found = self.scenario.peers.is_empty();
        let changes = if is_found { self.changes() } else { Vec::new() };
        let best = &|pair| self.best(pair).filter(|_| is_found);
        let since = since.as_slice();
        let ended = network::Ended { end, flows, events, probes, disturbed, denied, since, changes, best, is_static };
        network::check(&ended, &mut tally);
        self.tally = tally;
    }

    /// Nodes that have nothing to say fall silent.
    pub(super) fn check_quiet(&mut self) {
        for node in self.hosts.iter().filter_map(Host::node).filter(|node| node.is_awake()) {
            self.quiet.check(self.scenario, node.id(), self.now, &mut self.tally);
        }
    }

    /// From when on each node takes part: from its start, or from when control has let it in.
    fn met(&self) -> Vec<Instant> {
        let began = |(spec, number): (&NodeSpec, u32)| {
            if self.scenario.control.is_none() {
                return spec.start;
            }
            let runs = |event: &NodeEvent| matches!(event, NodeEvent::State(BackendState::Running));
            let mut events = self.node_events.iter();
            events.find(|(_, host, event)| host.0 == number && runs(event)).map_or(Instant::FAR_FUTURE, |(at, ..)| *at)
        };
        self.scenario.nodes.iter().zip(0..).map(began).collect()
    }

    /// Counts what is on its way anew, from the agenda.
    pub(super) fn check_conservation(&mut self) {
        let hops = || {
            self.agenda.iter().filter_map(|event| match event {
                Event::Packet { hop, .. } => Some(*hop),
                Event::Wake { .. }
                | Event::Ask { .. }
                | Event::Fault { .. }
                | Event::Heal(_)
                | Event::Start { .. }
                | Event::Report { .. }
                | Event::HandOut { .. } => None,
            })
        };
        let mut wrong = None;
        for (net, far_end, link) in self.network.links() {
            let counts = link.counts();
            let in_flight = hops().filter(|hop| *hop == far_end).count() as u64;
            if counts.offered + counts.duplicated != counts.delivered + counts.dropped.total() + in_flight {
                wrong = Some(format!("a link of net {} has {counts:?} and {in_flight} in flight", net.0));
            }
        }
        let counts = self.network.counts();
        let in_flight = hops().count() as u64;
        if counts.sent != self.sent
            || counts.sent + counts.copied != counts.delivered + counts.dropped.total() + in_flight
        {
            wrong = Some(format!("the network has {counts:?} of {} and {in_flight} in flight", self.sent));
        }
        self.tally.note(CheckId::Conservation, self.now, wrong);

        let shared: u64 = self.network.nats().map(|(_, nat)| nat.counts().shared_tuples).sum();
        let strays = counts.strays;
        for _ in self.network.nats() {
            let wrong = (shared + strays > 0).then(|| format!("{shared} shared reply tuples, {strays} strays"));
            self.tally.note(CheckId::Nat, self.now, wrong);
        }
    }
}

/// When the last thing is over that a scenario does; never, when that lasts.
pub(super) fn over(scenario: &Scenario) -> Instant {
    let events = scenario.events.iter().map(|event| match &event.fault {
        // What was told is told; what comes of it is said at once.
        Fault::Admin(_) | Fault::Order { .. } => event.at,
        fault => match length_of(fault, scenario.relays.len()) {
            Some(length) => event.at + length,
            None => Instant::FAR_FUTURE,
        },
    });
    let starts = scenario.nodes.iter().map(|node| node.start);
    events.chain(starts).max().unwrap_or(Instant::ZERO)
}

/// How long what an event does lasts; `None` when it does not end by itself and may keep two nodes apart.
pub(super) fn length_of(fault: &Fault, relays: usize) -> Option<Duration> {
    match fault {
        Fault::Link { change: LinkChange::Down(length), .. } => *length,
        Fault::Relay { length, change, .. } => match change {
            // There is another.
            RelayChange::Kill | RelayChange::BlackHole if relays > 1 => Some(length.unwrap_or_default()),
            RelayChange::Kill | RelayChange::BlackHole => *length,
            _ => Some(Duration::ZERO),
        },
        Fault::Restart { off: length, .. }
        | Fault::Reboot { down: length, .. }
        | Fault::Move { gap: length, .. }
        | Fault::Suspend { length, .. } => Some(*length),
        Fault::Link { change: LinkChange::Up, .. } | Fault::Nat { .. } | Fault::Firewall { .. } => Some(Duration::ZERO),
        Fault::Link { change: LinkChange::Set(_), .. } | Fault::Resolver(_) => Some(Duration::ZERO),
        // Nodes that know each other do without control.
        Fault::Control { .. } | Fault::Replay { .. } | Fault::Order { order: NodeOrder::Up { .. }, .. } => {
            Some(Duration::ZERO)
        }
        // Only those are looked at whom all policies let speak.
        Fault::Policy { .. } => Some(Duration::ZERO),
        Fault::Admin(command) => match **command {
            Command::SetPolicy { .. } | Command::RenameNode { .. } => Some(Duration::ZERO),
            _ => None,
        },
        Fault::Order { .. } => None,
    }
}
