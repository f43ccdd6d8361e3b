//! What a node wants done, carried out in order.

use core::net::SocketAddr;
use std::collections::BTreeMap;

use mesh_core::{
    endpoints::LocalPorts,
    key::NodePublic,
    machine::Machine as _,
    node::{Event, HostEvent, Input, Output, SocketPlan, Transmit},
    path::PathAddr,
    time::Instant,
};

use crate::net::Proto;

use super::{
    super::{Effects, HostId, NodeEvent, Outgoing, Relayed, links::Net},
    NodeHost, Running,
    join::MAP,
    source,
};

impl NodeHost {
    /// Sends a datagram of the node, over UDP or a relay.
    pub(super) fn transmit(
        &mut self,
        to: PathAddr,
        ttl: Option<u8>,
        payload: Vec<u8>,
        is_copy: bool,
        now: Instant,
        effects: &mut Effects,
    ) {
        let Some(running) = &mut self.running else { return };
        match to {
            PathAddr::Udp(to) => match source(&self.addresses, to.ip()) {
                Some(own) => {
                    let from = SocketAddr::new(own, running.port);
                    effects.packets.push(Outgoing { proto: Proto::Udp, from, to, ttl, payload });
                }
                None => running.node.handle_input(Input::Host(HostEvent::SendFailed { to }), now),
            },
            PathAddr::Relay { region, peer } => {
                effects.relayed.push(Relayed { payload: payload.clone(), is_copy });
                let Running { stack, names, links, .. } = running;
                links.send(region, peer, payload, &mut Net { addresses: &self.addresses, stack, names }, now);
            }
        }
    }

    /// Goes on until neither the node nor the host's stack has anything left to do.
    pub(super) fn settle(&mut self, now: Instant, effects: &mut Effects) {
        loop {
            self.report(now);
            self.carry_out(now, effects);
            let is_busy = self.serve_streams(now, effects);
            if self.tun.is_empty() {
                if self.reports.is_empty() && !is_busy {
                    break;
                }
                continue;
            }
            for packet in core::mem::take(&mut self.tun) {
                self.deliver(packet, now, effects);
            }
        }
        if self.reports.drops.total() > 0 {
            effects.drops.merge(&core::mem::take(&mut self.reports.drops));
        }
    }

    fn report(&mut self, now: Instant) {
        let Some(running) = &mut self.running else { return };
        for notice in self.reports.notices.drain(..) {
            running.node.handle_input(Input::Notice(notice), now);
        }
        for punt in self.reports.punts.drain(..) {
            running.node.handle_input(Input::Punt(punt), now);
        }
    }

    fn carry_out(&mut self, now: Instant, effects: &mut Effects) {
        // What the node sends on two ways at once it says twice in a row, the copy first.
        let mut held: Option<Transmit> = None;
        loop {
            let output = self.running.as_mut().and_then(|running| running.node.poll_output());
            let is_over = output.is_none() && held.is_none();
            if let Some(Transmit { to, ttl, payload }) = held.take() {
                let is_copy = matches!(&output, Some(Output::Transmit(next)) if next.payload == payload);
                self.transmit(to, ttl, payload, is_copy, now, effects);
            }
            match output {
                None if is_over => return,
                None => {}
                Some(Output::Transmit(transmit)) => held = Some(transmit),
                Some(output) => self.carry_out_other(output, now, effects),
            }
        }
    }

    fn carry_out_other(&mut self, output: Output, now: Instant, effects: &mut Effects) {
        match output {
            Output::Transmit(Transmit { to, ttl, payload }) => self.transmit(to, ttl, payload, false, now, effects),
            Output::Relay(command) => self.command(command, now),
            Output::Control(request) => self.ask_control(request, now),
            Output::Save(saved) => self.saved = Some(*saved),
            Output::Fetch(id, request) => {
                self.with_asks(|asks, net| asks.fetch(id, request, net, now));
            }
            Output::Resolve { host } => self.with_asks(|asks, net| asks.resolve(host, net, now)),
            Output::TunWrite(packet) => self.tun.push(packet),
            Output::Sockets(SocketPlan { port: 0 }) => {
                let port = 32_768 + self.ports.below(28_232) as u16;
                self.open_sockets(port, now);
            }
            Output::Sockets(SocketPlan { port }) => self.open_sockets(port, now),
            Output::Configure(config) => self.configure(&config, effects),
            Output::Reply(MAP, reply) => assert!(reply.is_ok(), "a map that the world made is refused: {reply:?}"),
            Output::Reply(_, Ok(_)) => {}
            Output::Reply(_, Err(_)) => effects.events.push(NodeEvent::OrderRefused),
            Output::Event(Event::State(state)) => self.note_state(state, effects),
            Output::Event(Event::KeyChanged(key)) => {
                self.note_key(key, self.setup.id);
                effects.new_key = Some(key);
            }
            Output::Event(event) => {
                let event = node_event(event, &self.setup.by_key);
                if let Some(NodeEvent::PathChanged { peer, to }) = event {
                    self.ways.insert(peer, to);
                }
                effects.events.extend(event);
            }
        }
    }

    fn open_sockets(&mut self, port: u16, now: Instant) {
        let Some(running) = &mut self.running else { return };
        running.port = port;
        let ports = LocalPorts { v4: Some(port), v6: Some(port) };
        running.node.handle_input(Input::Host(HostEvent::SocketsOpen(ports)), now);
    }
}

fn node_event(event: Event, peers: &BTreeMap<NodePublic, HostId>) -> Option<NodeEvent> {
    let id = |key| peers.get(&key).copied();
    Some(match event {
        Event::SessionEstablished { peer } => NodeEvent::SessionEstablished { peer: id(peer)? },
        Event::PathChanged { peer, path } => NodeEvent::PathChanged { peer: id(peer)?, to: path },
        Event::HandshakeGivenUp { peer } => NodeEvent::HandshakeGivenUp { peer: id(peer)? },
        Event::HomeChanged(region) => NodeEvent::HomeChanged { region },
        Event::LoginUrl(_) => NodeEvent::LoginUrl,
        Event::ControlProblem(_) => NodeEvent::ControlProblem,
        // Maps of worlds make sense; states and keys are told of apart.
        Event::MapPartSkipped(_) | Event::State(_) | Event::Browse(_) | Event::KeyChanged(_) => return None,
    })
}
