//! Streams, names and relays of a host that runs a node.

use core::net::SocketAddr;

use mesh_core::{
    control::ControlEvent,
    machine::{Deadline, Machine as _},
    node::{Input, RelayCommand, RelayEvent},
    path::PathAddr,
    time::{Instant, earliest},
};

use crate::net::Proto;

#[cfg(test)]
use super::tests;
use super::{
    super::{
        Effects, NodeEvent, Outgoing, Over, Sealed,
        asks::Asks,
        links::{LinksOutput, Net},
        stack::StackOutput,
    },
    NAMES_PORT, NodeHost, Running, source,
};

impl NodeHost {
    pub(super) fn with_asks(&mut self, act: impl FnOnce(&mut Asks, &mut Net<'_>)) {
        let Some(running) = &mut self.running else { return };
        let Running { stack, names, asks, .. } = running;
        act(asks, &mut Net { addresses: &self.addresses, stack, names });
    }

    pub(super) fn command(&mut self, command: RelayCommand, now: Instant) {
        let Some(running) = &mut self.running else { return };
        let Running { stack, names, links, .. } = running;
        links.handle_command(command, &mut Net { addresses: &self.addresses, stack, names }, now);
    }

    /// Carries out what streams, names and connections to relays have to say; `false` when that is nothing.
    pub(super) fn serve_streams(&mut self, now: Instant, effects: &mut Effects) -> bool {
        let Some(running) = self.running.as_mut().filter(|running| !running.are_streams_idle()) else { return false };
        let Running { node, stack, names, links, asks, control, .. } = running;
        // What arrives when a timer is due does not hold it up.
        stack.handle_timeout(now);
        names.handle_timeout(now);
        links.handle_timeout(&mut Net { addresses: &self.addresses, stack, names }, now);
        asks.handle_timeout(&mut Net { addresses: &self.addresses, stack, names }, now);
        control.handle_timeout(&mut Net { addresses: &self.addresses, stack, names }, now);
        let mut is_busy = false;
        while let Some(output) = stack.poll_output() {
            is_busy = true;
            if let StackOutput::Send { from, to, payload } = output {
                effects.packets.push(Outgoing { proto: Proto::Tcp, from, to, ttl: None, payload });
            } else {
                let mut net = Net { addresses: &self.addresses, stack, names };
                if !links.handle_stack(&output, &mut net, now) && !control.handle_stack(&output, &mut net, now) {
                    asks.handle_stack(&output, &mut net, now);
                }
            }
        }
        links.handle_names(&mut Net { addresses: &self.addresses, stack, names }, now);
        asks.handle_names(&mut Net { addresses: &self.addresses, stack, names }, now);
        control.handle_names(&mut Net { addresses: &self.addresses, stack, names }, now);
        while let Some(answer) = asks.poll_answer() {
            is_busy = true;
            node.handle_input(answer, now);
        }
        while let Some(event) = control.poll_event(&mut effects.interner) {
            is_busy = true;
            effects.told |= matches!(event, ControlEvent::Map { .. });
            node.handle_input(Input::Control(event), now);
        }
        effects.control_messages += control.take_messages();
        while let Some((to, payload)) = names.poll_output() {
            if let Some(own) = source(&self.addresses, to.ip()) {
                let from = SocketAddr::new(own, NAMES_PORT);
                effects.packets.push(Outgoing { proto: Proto::Udp, from, to, ttl: None, payload });
            }
        }
        effects.derp_frames += links.take_frames();
        match links.poll_output() {
            None => is_busy,
            Some(LinksOutput::Event(event)) => {
                effects.events.extend(match event {
                    RelayEvent::Connected { region } => Some(NodeEvent::RelayConnected { region }),
                    RelayEvent::Failed { region, .. } => Some(NodeEvent::RelayFailed { region }),
                    RelayEvent::Restarting { .. } | RelayEvent::PeerGone { .. } | RelayEvent::Health { .. } => None,
                });
                node.handle_input(Input::Relay(event), now);
                true
            }
            #[cfg(test)]
            Some(LinksOutput::Packet { from, packet, .. }) if packet.starts_with(tests::MARK) => {
                self.heard.push((now, from, packet));
                true
            }
            // One at a time: what comes out of each is told apart by what it came in.
            Some(LinksOutput::Packet { region, from, packet }) => {
                let by = self.setup.by_key.get(&from).copied();
                let head = packet.first_chunk().copied().unwrap_or_default();
                self.opening = by.map(|by| Sealed { by, head, over: Over::Relay });
                self.open(packet, PathAddr::Relay { region, peer: from }, now);
                true
            }
        }
    }
}

impl Running {
    /// Most hosts of most worlds use neither relays nor names.
    fn are_streams_idle(&self) -> bool {
        self.stack.is_idle()
            && self.names.is_idle()
            && self.links.is_idle()
            && self.asks.is_idle()
            && self.control.is_idle()
    }

    /// When streams, names and connections to relays want to be looked at next.
    pub(super) fn poll_streams_timeout(&self) -> Option<Deadline> {
        if self.are_streams_idle() {
            return None;
        }
        let stream = self.stack.poll_timeout().map(|at| Deadline::new(at, "stream"));
        let links = earliest(self.links.poll_timeout(), self.names.poll_timeout());
        let asked = earliest(self.asks.poll_timeout(), self.control.poll_timeout());
        earliest(stream, earliest(asked, links))
    }
}
