//! What goes wrong in a generated world, and how it is undone.
//!
//! Everything is over when the heal phase begins: what lasts is cut short to that, and what does not end by itself (a
//! link that was set, a firewall, a NAT, a silent resolver, a node that was signed out) is set back then. What happens
//! to one node's host does not overlap.

use core::time::Duration;
use std::collections::BTreeMap;

use control::coordinator::Command;
use mesh_core::time::Instant;

use crate::{
    host::{ControlChange, HostId, Manner, NodeOrder, RelayChange},
    net::{
        Direction, Family, NetId, Renumber,
        firewall::FirewallParams,
        nat::{EarlyInbound, Filter, NatParams, Refresh},
    },
    scenario::{EventSpec, Fault, LinkChange, LinkPart, Scenario},
};

use super::{
    bytes::Bytes,
    generate::{Kind, Phases, spoil},
    policies,
};

/// Faults of one world at most.
const FAULTS: u32 = 10;

/// From the moment that all is undone until nodes that were signed out are told to be up again.
const UP_AFTER: Duration = Duration::from_secs(2);

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    LinkDown,
    LinkWorse,
    Restart,
    Reboot,
    Nat,
    Firewall,
    Move,
    Suspend,
    Relay,
    Resolver,
    Control,
    Policy,
    Operator,
    Order,
    Replay,
}

/// A world that is being disturbed.
struct Chaos<'w> {
    world: &'w mut Scenario,
    kind: Kind,
    phases: Phases,
    /// Nets where nodes are.
    sites: u32,
    /// Until when something happens to each node's host.
    busy: Vec<Instant>,
    undone: Vec<Fault>,
    /// Who is to be told to be up, and whether to sign in anew.
    up: BTreeMap<HostId, bool>,
}

/// Adds faults, and what undoes them.
pub(super) fn draw(draw: &mut Bytes<'_>, kind: Kind, phases: Phases, world: &mut Scenario) {
    let busy = world.nodes.iter().map(|node| node.start.max(phases.chaos)).collect();
    let reachable = world.nodes.iter().map(|node| node.net.0).max().map_or(1, |net| net + 1);
    let others = world.relays.iter().map(|relay| relay.net.0).min().unwrap_or(world.nets.len() as u32);
    let sites = others.max(reachable);
    let mut chaos = Chaos { world, kind, phases, sites, busy, undone: Vec::new(), up: BTreeMap::new() };
    let classes = chaos.classes(draw.chance(128));
    for _ in 0..draw.below(FAULTS + 1) {
        let class = draw.pick(&classes);
        let at = phases.chaos + draw.time(0, phases.heal.since(phases.chaos).as_secs() as u32);
        chaos.add(draw, class, at);
    }
    chaos.undo();
}

/// Adds one thing more that goes wrong and ends by itself, when everybody speaks again.
pub(super) fn draw_late(draw: &mut Bytes<'_>, kind: Kind, at: Instant, world: &mut Scenario) {
    let node = HostId(draw.below(world.nodes.len() as u32));
    let net = world.nodes[node.index()].net;
    let length = draw.time(1, 6);
    let relay = world.relay_host(draw.below(world.relays.len() as u32) as usize);
    // A router that forgets is none of them: of a silent connection that died with it nobody hears for two minutes.
    let fault = match draw.below(6) {
        0 => Fault::Suspend { node, length },
        1 => Fault::Move { node, to: net, gap: length },
        2 => Fault::Link { net, part: LinkPart::Whole, change: LinkChange::Down(Some(length)) },
        // Whoever is expected to run may not be ended, and control is to be told of it.
        3 if kind == Kind::Maps => Fault::Restart { node, off: length },
        4 => Fault::Relay { relay, change: RelayChange::Kill, length: Some(length) },
        _ => Fault::Relay { relay, change: RelayChange::Reset, length: None },
    };
    world.events.push(EventSpec { at, fault });
}

/// The policy that an event sets.
pub(super) fn policy_of(fault: &Fault) -> Option<&str> {
    match fault {
        Fault::Policy { text } => Some(text),
        Fault::Admin(command) => match &**command {
            Command::SetPolicy { text } => Some(text),
            _ => None,
        },
        _ => None,
    }
}

/// Whether a connection can die of it without a word to those at its ends.
pub(super) fn can_cut(fault: &Fault) -> bool {
    match fault {
        Fault::Link { change, .. } => !matches!(change, LinkChange::Set(_)),
        Fault::Reboot { .. }
        | Fault::Nat { .. }
        | Fault::Firewall { .. }
        | Fault::Relay { .. }
        | Fault::Control { .. } => true,
        Fault::Restart { .. }
        | Fault::Move { .. }
        | Fault::Suspend { .. }
        | Fault::Resolver(_)
        | Fault::Admin(_)
        | Fault::Order { .. }
        | Fault::Replay { .. }
        | Fault::Policy { .. } => false,
    }
}

impl Chaos<'_> {
    /// What can happen; what can cut a connection only where that is meant.
    fn classes(&self, cuts: bool) -> Vec<Class> {
        let mut classes = vec![
            Class::LinkDown,
            Class::LinkWorse,
            Class::Restart,
            Class::Reboot,
            Class::Nat,
            Class::Move,
            Class::Suspend,
            Class::Replay,
        ];
        if !cuts {
            classes.retain(|class| !matches!(class, Class::LinkDown | Class::Reboot | Class::Nat));
        } else if self.kind != Kind::Static {
            classes.extend([Class::Firewall, Class::Relay]);
        }
        if self.world.resolver.is_some() {
            classes.push(Class::Resolver);
        }
        if self.kind == Kind::Control {
            classes.extend([Class::Policy, Class::Operator, Class::Order]);
            if cuts {
                classes.extend([Class::Control, Class::Control]);
            }
        } else if self.world.policy.is_some() {
            classes.push(Class::Policy);
        }
        classes
    }

    fn add(&mut self, draw: &mut Bytes<'_>, class: Class, at: Instant) {
        let length = draw.time(1, 40).min(self.phases.heal.since(at));
        if length.is_zero() {
            return;
        }
        match class {
            Class::LinkDown | Class::LinkWorse => self.link(draw, class, at, length),
            Class::Reboot | Class::Nat => self.nat(draw, class, at, length),
            Class::Firewall => {
                let net = NetId(draw.below(self.sites));
                let name = draw.pick(&["fw-udp-blocked", "fw-https-only", "fw-host"]);
                self.event(at, Fault::Firewall { net, params: FirewallParams::preset(name) });
                self.undone.push(Fault::Firewall { net, params: self.world.nets[net.index()].setup.firewall });
            }
            Class::Restart | Class::Move | Class::Suspend => self.host(draw, class, at, length),
            Class::Relay => {
                let relay = self.world.relay_host(draw.below(self.world.relays.len() as u32) as usize);
                let drain =
                    RelayChange::Drain { reconnect_in: Duration::from_secs(2), try_for: Duration::from_secs(20) };
                let change = draw.pick(&[RelayChange::Reset, RelayChange::Kill, RelayChange::BlackHole, drain]);
                let lasts = matches!(change, RelayChange::Kill | RelayChange::BlackHole);
                self.event(at, Fault::Relay { relay, change, length: lasts.then_some(length) });
            }
            Class::Resolver => {
                let manner = draw.pick(&[Manner::Silent, Manner::Fail, Manner::Deny]);
                self.event(at, Fault::Resolver(manner));
                self.undone.push(Fault::Resolver(Manner::Answer));
            }
            Class::Control => {
                let within = u64::from(draw.between(1, 10));
                let crash = ControlChange::Crash { within, off: length };
                let changes =
                    [ControlChange::Reset, ControlChange::Kill, ControlChange::Freeze, ControlChange::BlackHole, crash];
                let change = changes[draw.below(changes.len() as u32) as usize].clone();
                let lasts = matches!(change, ControlChange::Kill | ControlChange::Freeze | ControlChange::BlackHole);
                self.event(at, Fault::Control { change, length: lasts.then_some(length) });
            }
            Class::Policy => {
                let text = policies::draw(draw);
                let fault = match self.kind {
                    Kind::Control => Fault::Admin(Box::new(Command::SetPolicy { text })),
                    Kind::Maps | Kind::Static => Fault::Policy { text },
                };
                self.event(at, fault);
            }
            Class::Operator => {
                let id = self.any(draw);
                let node = self.world.nodes[id.index()].name.clone();
                let command = match draw.below(3) {
                    0 => Command::RenameNode { node, name: format!("other-{}", id.0) },
                    1 => Command::ExpireNode { node },
                    _ => Command::DeleteNode { node },
                };
                if !matches!(command, Command::RenameNode { .. }) {
                    self.up.insert(id, true);
                }
                self.event(at, Fault::Admin(Box::new(command)));
            }
            Class::Replay => {
                let (nodes, relays) = (self.world.nodes.len(), self.world.relays.len());
                let host = HostId(draw.below((nodes + relays) as u32));
                self.event(at, Fault::Replay { at: host });
            }
            Class::Order => {
                let node = self.any(draw);
                let order = draw.pick(&[0, 1]);
                let order = if order == 0 { NodeOrder::Down } else { NodeOrder::Logout };
                self.up.insert(node, true);
                self.event(at, Fault::Order { node, order });
            }
        }
    }

    fn link(&mut self, draw: &mut Bytes<'_>, class: Class, at: Instant, length: Duration) {
        let net = NetId(draw.below(self.sites));
        let parts = [
            LinkPart::Whole,
            LinkPart::Direction(Direction::Out),
            LinkPart::Direction(Direction::Back),
            LinkPart::Family(Family::V4),
            LinkPart::Family(Family::V6),
        ];
        if class == Class::LinkDown {
            let part = draw.pick(&parts);
            return self.event(at, Fault::Link { net, part, change: LinkChange::Down(Some(length)) });
        }
        let part = draw.pick(&parts[..3]);
        let base = self.world.nets[net.index()].setup.link;
        let mut worse = base;
        spoil(draw, &mut worse);
        self.event(at, Fault::Link { net, part, change: LinkChange::Set(Box::new(worse)) });
        self.undone.push(Fault::Link { net, part: LinkPart::Whole, change: LinkChange::Set(Box::new(base)) });
    }

    fn nat(&mut self, draw: &mut Bytes<'_>, class: Class, at: Instant, length: Duration) {
        let sites = (0..self.sites).map(NetId);
        let with_nat: Vec<_> = sites.filter_map(|net| Some((net, self.world.nets[net.index()].setup.nat?))).collect();
        if with_nat.is_empty() {
            return;
        }
        let (net, base) = draw.pick(&with_nat);
        if class == Class::Reboot {
            let renumber = draw.pick(&[Renumber::Keep, Renumber::New]);
            let down = if draw.chance(128) { length } else { Duration::ZERO };
            return self.event(at, Fault::Reboot { net, renumber, down });
        }
        let idle = Duration::from_secs(u64::from(draw.between(10, 60)));
        let changed = match draw.below(4) {
            0 => NatParams { refresh_in: Refresh::No, ..base },
            1 => NatParams { timeout_replied: idle, timeout_stream: idle, ..base },
            2 => NatParams { filter: Filter::AddressAndPortDependent, ..base },
            _ => NatParams { early_inbound: EarlyInbound::Clash, ..base },
        };
        self.event(at, Fault::Nat { net, params: Box::new(changed) });
        self.undone.push(Fault::Nat { net, params: Box::new(base) });
    }

    /// What happens to a node's host, unless something does already.
    fn host(&mut self, draw: &mut Bytes<'_>, class: Class, at: Instant, length: Duration) {
        let node = self.any(draw);
        let to = NetId(draw.below(self.sites));
        let until = at + length;
        // Clients of a static server know one address of it.
        let stays = self.kind == Kind::Static && node == HostId(0) && class == Class::Move;
        if stays || self.busy[node.index()] >= at {
            return;
        }
        self.busy[node.index()] = until;
        if class == Class::Restart && self.kind == Kind::Control {
            // A node that had not joined yet has forgotten with which key it was to.
            self.up.entry(node).or_insert(false);
        }
        let fault = match class {
            Class::Restart => Fault::Restart { node, off: length },
            Class::Move => Fault::Move { node, to, gap: length.min(Duration::from_secs(5)) },
            _ => Fault::Suspend { node, length },
        };
        self.event(at, fault);
    }

    fn any(&self, draw: &mut Bytes<'_>) -> HostId {
        HostId(draw.below(self.world.nodes.len() as u32))
    }

    fn event(&mut self, at: Instant, fault: Fault) {
        self.world.events.push(EventSpec { at, fault });
    }

    /// The heal phase.
    fn undo(mut self) {
        let heal = self.phases.heal;
        for fault in core::mem::take(&mut self.undone) {
            let has = self
                .world
                .events
                .iter()
                .any(|event| event.at == heal && format!("{:?}", event.fault) == format!("{fault:?}"));
            if !has {
                self.event(heal, fault);
            }
        }
        for (node, force) in core::mem::take(&mut self.up) {
            let auth_key = self.world.nodes[node.index()].key.clone();
            self.event(heal + UP_AFTER, Fault::Order { node, order: NodeOrder::Up { auth_key, force } });
        }
        self.world.events.sort_by_key(|event| event.at);
    }
}
