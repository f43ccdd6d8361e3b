//! What goes wrong, and what is changed: the scenario's events carried out.

use core::time::Duration;

use crate::{
    net::NetId,
    scenario::{Fault, LinkChange},
};

use super::{Event, Simulation, agenda::Class, trace::What};

impl Simulation<'_> {
    pub(super) fn fault(&mut self, event: u32) {
        self.faults += 1;
        self.record(None, What::Fault { event }, 0);
        match &self.scenario.events[event as usize].fault {
            Fault::Link { net, change: LinkChange::Set(params) } => self.network.set_link(*net, None, **params),
            Fault::Link { net, change: LinkChange::Up } => self.network.set_link_up(*net, None, true),
            Fault::Link { net, change: LinkChange::Down(down) } => self.link_down(*net, *down),
            Fault::Reboot { net, renumber, down } => {
                self.network.reboot_nat(*net, *renumber);
                if !down.is_zero() {
                    self.link_down(*net, Some(*down));
                }
            }
            Fault::Nat { net, params } => self.network.set_nat(*net, **params),
            Fault::Restart { node, off } => {
                if let Some(status) = self.hosts[node.index()].status(self.now) {
                    self.refused.merge(&status.drops);
                }
                self.call(*node, None, |host, _, effects| host.stop(effects));
                self.agenda.insert(self.now + *off, Class::Fault, Event::Start { host: *node });
            }
        }
    }

    fn link_down(&mut self, net: NetId, down: Option<Duration>) {
        self.network.set_link_up(net, None, false);
        if let Some(down) = down {
            self.agenda.insert(self.now + down, Class::Fault, Event::LinkUp { net });
        }
    }
}
