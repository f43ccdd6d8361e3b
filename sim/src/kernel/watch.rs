//! What is looked at while a world runs: packets that come out of tunnels, who still speaks to whom, what nodes hold, and
//! what a stranger can make them say.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mesh_core::ip::packet::IpPacket;

use crate::{
    check::{CheckId, sizes},
    host::{Delivery, Host, HostId, NodeHost, Over, message::Role},
    net::{Packet, PacketKind},
    scenario::{Fault, Scenario},
};

use super::{
    Simulation,
    trace::{What, digest_of},
};

/// Where victims of forged datagrams are (RFC 5737, RFC 3849). Nobody has these addresses.
const VICTIM_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 0);
const VICTIM_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0);
const VICTIM_PORT: u16 = 4_242;

/// Whether somebody replays datagrams in a scenario.
pub(super) fn has_forgers(scenario: &Scenario) -> bool {
    scenario.events.iter().any(|event| matches!(event.fault, Fault::Replay { .. }))
}

impl Simulation<'_> {
    /// A packet that arrived, genuine or forged, is the host's.
    pub(super) fn hand_over(&mut self, id: HostId, packet: Packet) {
        let what = What::Received {
            packet: packet.number,
            from: packet.source,
            kind: PacketKind::of(packet.proto, &packet.payload),
            bytes: packet.payload.len() as u32,
        };
        self.record(Some(id), what, packet.digest);
        self.call(id, |host, now, effects| host.handle_packet(packet, now, effects));
    }

    pub(super) fn check_delivery(&mut self, id: HostId, delivery: &Delivery) {
        let Some(node) = self.hosts[id.index()].node() else { return };
        let packet = &delivery.packet;
        if let Some(sealed) = delivery.sealed {
            self.wire.handle_delivered(id, node.boots(), sealed.head, self.now, &mut self.tally);
            let inner = IpPacket::parse(packet).map(|ip| ip.source()).ok();
            self.wire.handle_source(id, sealed.by, inner, self.now, &mut self.tally);
            if let Some(gone) = &self.gone {
                gone.handle_delivered(id, sealed.by, self.now, &mut self.tally);
            }
        }
        self.check_policy(id, packet, delivery.message.as_ref());
        let Some(message) = &delivery.message else { return };
        self.wire.handle_inner(id, packet, self.now, &mut self.tally);
        let (flow, sequence) = (message.flow, message.sequence);
        let over = delivery.sealed.map_or(Over::Udp, |sealed| sealed.over);
        self.record(
            Some(id),
            What::Delivered { flow, sequence, answer: message.role == Role::Answer },
            digest_of(packet),
        );
        if let Err(wrong) = self.flows.note_delivered(message, id, over, self.now) {
            let text = format!("host {} was given message {sequence} of traffic {flow}: {wrong:?}", id.0);
            self.tally.note(CheckId::S4, self.now, Some(text));
        }
    }

    /// A node was told something by control, or starts with what it was told before: whom it knows now.
    pub(super) fn note_known(&mut self, id: HostId) {
        let Some(gone) = &mut self.gone else { return };
        if let Some(known) = self.hosts[id.index()].node().and_then(|node| node.known(self.now)) {
            gone.note_known(id, known, self.now);
        }
    }

    /// A host sends something of the tunnel, which says whom it is for.
    pub(super) fn check_gone(&mut self, id: HostId, kind: PacketKind, payload: &[u8]) {
        if !matches!(kind, PacketKind::WireguardData | PacketKind::WireguardHandshake) {
            return;
        }
        if let (Some(gone), Some(paths)) = (&self.gone, &self.paths)
            && let Some(other) = paths.owner(payload)
        {
            gone.handle_sent(id, other, self.now, &mut self.tally);
        }
    }

    /// There is something that a node must not heed if the other is gone.
    pub(super) fn tempt(&mut self, id: HostId, other: HostId) {
        if let Some(gone) = &self.gone {
            gone.handle_temptation(id, other, self.now, &mut self.tally);
        }
    }

    /// S9: what a node holds when its timer was due.
    pub(super) fn check_sizes(&mut self, id: HostId) {
        if let Some(node) = self.hosts[id.index()].node().and_then(NodeHost::running) {
            sizes::check_bounds(id, &node.sizes(), self.now, &mut self.tally);
        }
    }

    /// L4: what nodes hold at the end of a world that ends in silence.
    pub(super) fn check_idle(&mut self) {
        let Some(silence) = self.quiet.silence(self.now) else { return };
        for host in self.hosts.iter().filter_map(Host::node).filter(|node| node.is_awake()) {
            let Some(node) = host.running() else { continue };
            let (id, peers) = (host.id(), &self.scenario.peers);
            let kept = peers.iter().filter(|peer| peer.keepalive.is_some());
            let kept = kept.filter(|peer| peer.of == id || peer.is == id).count();
            let (held, relays) = ((&node.sizes(), host.streams()), self.scenario.relays.len());
            sizes::check_idle(id, held, silence, (kept, relays), self.now, &mut self.tally);
        }
    }

    /// Somebody sends a host again what it received last, as if it came from somebody else.
    pub(super) fn replay(&mut self, at: HostId, event: u32) {
        let last = (event % 250) as u8 + 1;
        let v4 = Ipv4Addr::from_bits(VICTIM_V4.to_bits() | u32::from(last));
        let v6 = Ipv6Addr::from_bits(VICTIM_V6.to_bits() | u128::from(last));
        for victim in [IpAddr::V4(v4), IpAddr::V6(v6)] {
            let victim = SocketAddr::new(victim, VICTIM_PORT);
            for packet in self.forged.as_ref().map(|forged| forged.forge(at, victim)).unwrap_or_default() {
                self.receive_forged(at, packet);
            }
        }
    }

    /// The attacker is beside the host: the network has no part in it.
    fn receive_forged(&mut self, id: HostId, packet: Packet) {
        let host = &self.hosts[id.index()];
        if host.refuses(&packet).is_some() || !host.addresses().contains(&packet.destination.ip()) {
            return;
        }
        if let Some(forged) = &mut self.forged {
            forged.handle_forged(id, &packet);
        }
        self.hand_over(id, packet);
        if let Some(forged) = &mut self.forged {
            forged.note_handled(&mut self.tally);
        }
    }
}
