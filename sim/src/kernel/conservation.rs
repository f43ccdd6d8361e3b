//! Every datagram is delivered, dropped for a cause, or on its way; and the NATs' model keeps its own rules.

use core::time::Duration;

use mesh_core::time::Instant;

use crate::{
    check::{CheckId, Expectation, PathCheck, Ruling, network},
    host::{NodeOrder, RelayChange},
    scenario::{Fault, LinkChange},
};

use super::{Event, Simulation};

impl Simulation<'_> {
    /// What the network owes those who use it, in worlds in which everybody can be reached.
    pub(super) fn check_network(&mut self) {
        if self.scenario.relays.is_empty() {
            return;
        }
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
        if self.scenario.policy.is_some() {
            // Not everybody can be reached.
            disturbed.push((Instant::ZERO, self.end));
        }
        disturbed.sort_unstable();
        let denied: Vec<_> = self
            .scenario
            .expects
            .iter()
            .filter_map(|spec| match spec.expectation {
                Expectation::Acl { from, to, is: Ruling::Denied, .. } => Some([from.min(to), from.max(to)]),
                _ => None,
            })
            .collect();
        let probes = self.paths.as_ref().map_or(&[][..], PathCheck::probes);
        let (end, flows, events) = (self.now, &self.flows, self.node_events.as_slice());
        let ended = network::Ended { end, flows, events, probes, disturbed, denied };
        network::check(&ended, &mut self.tally);
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

/// How long what an event does lasts; `None` when it does not end by itself and may keep two nodes apart.
fn length_of(fault: &Fault, relays: usize) -> Option<Duration> {
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
        Fault::Control { .. } | Fault::Order { order: NodeOrder::Up { .. }, .. } => Some(Duration::ZERO),
        Fault::Admin(_) | Fault::Order { .. } => None,
        // It decides who may speak from then on.
        Fault::Policy { .. } => None,
    }
}
