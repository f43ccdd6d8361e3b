//! What goes wrong, and what is changed: the scenario's events carried out.

use core::time::Duration;

use control::coordinator::Command;

use crate::{
    host::{ControlChange, Host, HostId, RelayChange},
    net::NetId,
    scenario::{Fault, LinkChange, LinkPart},
};

use super::{Event, Simulation, agenda::Class, trace::What};

/// How something ends that an event began.
#[derive(Clone, Copy, Debug)]
pub(super) enum Healing {
    /// A link carries again.
    Link { net: NetId, part: LinkPart },
    /// A host arrives in another net.
    Arrival { host: HostId, net: NetId },
    /// A host wakes up.
    Waking { host: HostId },
    /// A relay is there again.
    Relay { relay: HostId, change: RelayChange },
    /// Control is there again.
    Control(&'static ControlChange),
}

impl Simulation<'_> {
    pub(super) fn fault(&mut self, event: u32) {
        self.faults += 1;
        self.record(None, What::Fault { event }, 0);
        match &self.scenario.events[event as usize].fault {
            Fault::Link { net, part, change: LinkChange::Set(params) } => {
                let direction = if let LinkPart::Direction(direction) = part { Some(*direction) } else { None };
                self.network.set_link(*net, direction, **params);
            }
            Fault::Link { net, part, change: LinkChange::Up } => self.set_link_up(*net, *part, true),
            Fault::Link { net, part, change: LinkChange::Down(down) } => self.link_down(*net, *part, *down),
            Fault::Reboot { net, renumber, down } => {
                self.network.reboot_nat(*net, *renumber);
                if !down.is_zero() {
                    self.link_down(*net, LinkPart::Whole, Some(*down));
                }
            }
            Fault::Nat { net, params } => self.network.set_nat(*net, **params),
            Fault::Firewall { net, params } => self.network.set_firewall(*net, *params),
            Fault::Restart { node, off } => {
                let now = self.now;
                if let Some(status) = self.hosts[node.index()].node().and_then(|node| node.status(now)) {
                    self.refused.merge(&status.drops);
                }
                if let Some(check) = &mut self.policy {
                    check.note_restarted(*node, now);
                }
                self.call(*node, |host, _, effects| {
                    if let Host::Node(node) = host {
                        node.stop(effects);
                    }
                });
                self.agenda.insert(self.now + *off, Class::Fault, Event::Start { host: *node });
            }
            Fault::Move { node, to, gap } => {
                if let Some(net) = self.hosts[node.index()].net() {
                    self.network.detach(net, *node);
                }
                self.call(*node, |host, now, effects| {
                    if let Host::Node(node) = host {
                        node.set_net(None, Vec::new(), now, effects);
                    }
                });
                self.heal_after(Some(*gap), Healing::Arrival { host: *node, net: *to });
            }
            Fault::Suspend { node, length } => {
                self.call(*node, |host, now, _| {
                    if let Host::Node(node) = host {
                        node.sleep(now);
                    }
                });
                self.heal_after(Some(*length), Healing::Waking { host: *node });
            }
            Fault::Relay { relay, change, length } => {
                self.change_relay(*relay, *change);
                let back = match change {
                    RelayChange::Kill => RelayChange::Start,
                    RelayChange::BlackHole => RelayChange::Answer,
                    RelayChange::Start | RelayChange::Answer | RelayChange::Reset | RelayChange::Drain { .. } => return,
                };
                self.heal_after(*length, Healing::Relay { relay: *relay, change: back });
            }
            Fault::Control { change, length } => {
                self.change_control(change);
                let back = match change {
                    ControlChange::Kill => &ControlChange::Start,
                    ControlChange::Freeze => &ControlChange::Thaw,
                    ControlChange::BlackHole => &ControlChange::Answer,
                    ControlChange::Start
                    | ControlChange::Crash { .. }
                    | ControlChange::Thaw
                    | ControlChange::Answer
                    | ControlChange::Reset => return,
                };
                self.heal_after(*length, Healing::Control(back));
            }
            Fault::Admin(command) => {
                let id = self.scenario.control_host();
                if let Command::SetPolicy { text } = &**command {
                    self.note_policy(text);
                }
                self.call(id, |host, now, effects| {
                    if let Host::Control(control) = host {
                        control.handle_command((**command).clone(), now, effects);
                    }
                });
            }
            Fault::Order { node, order } => self.call(*node, |host, now, effects| {
                if let Host::Node(node) = host {
                    node.handle_order(order, now, effects);
                }
            }),
            Fault::Policy { text } => self.set_policy(text),
            Fault::Replay { at } => self.replay(*at, event),
            Fault::Resolver(manner) => {
                for host in &mut self.hosts {
                    if let Host::Resolver(resolver) = host {
                        resolver.set_manner(*manner);
                    }
                }
            }
        }
    }

    pub(super) fn heal(&mut self, healing: Healing) {
        match healing {
            Healing::Link { net, part } => self.set_link_up(net, part, true),
            Healing::Arrival { host, net } => {
                self.network.attach(net, host);
                let addresses = self.network.addresses(net, host);
                self.call(host, |host, now, effects| {
                    if let Host::Node(node) = host {
                        node.set_net(Some(net), addresses, now, effects);
                    }
                });
            }
            Healing::Waking { host } => self.call(host, |host, now, effects| {
                if let Host::Node(node) = host {
                    node.wake(now, effects);
                }
            }),
            Healing::Relay { relay, change } => self.change_relay(relay, change),
            Healing::Control(change) => self.change_control(change),
        }
    }

    fn change_control(&mut self, change: &ControlChange) {
        self.call(self.scenario.control_host(), |host, now, effects| {
            if let Host::Control(control) = host {
                control.change(change, now, effects);
            }
        });
    }

    fn change_relay(&mut self, relay: HostId, change: RelayChange) {
        self.call(relay, |host, now, effects| {
            if let Host::Relay(relay) = host {
                relay.change(change, now, effects);
            }
        });
    }

    fn link_down(&mut self, net: NetId, part: LinkPart, down: Option<Duration>) {
        self.set_link_up(net, part, false);
        self.heal_after(down, Healing::Link { net, part });
    }

    fn set_link_up(&mut self, net: NetId, part: LinkPart, up: bool) {
        match part {
            LinkPart::Whole => self.network.set_link_up(net, None, up),
            LinkPart::Direction(direction) => self.network.set_link_up(net, Some(direction), up),
            LinkPart::Family(family) => self.network.set_family_up(net, family, up),
        }
    }

    fn heal_after(&mut self, length: Option<Duration>, healing: Healing) {
        if let Some(length) = length {
            self.agenda.insert(self.now + length, Class::Fault, Event::Heal(healing));
        }
    }
}
