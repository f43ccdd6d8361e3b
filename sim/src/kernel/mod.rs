//! The loop: take what happens next, let it happen, look at it.
//!
//! One thread, one agenda, virtual time. The kernel owns the network, the hosts, the dice and the checks; hosts
//! say what they want done and the kernel carries it out, in order, at the same instant. Nothing else moves time
//! but the agenda, so what is quiet costs nothing.

pub mod agenda;
mod build;
pub mod clock;
mod conservation;
mod control;
pub mod dice;
mod fault;
mod maps;
mod owed;
mod policy;
pub mod trace;
mod watch;

use core::time::Duration;
use std::panic::{AssertUnwindSafe, catch_unwind};

use mesh_core::{dataplane::DropCounts, time::Instant};

use crate::{
    check::{CheckId, Flows, ForgedCheck, GoneCheck, PathCheck, PolicyCheck, QuietCheck, Tally, WireCheck},
    host::{
        Effects, Host, HostId, NodeEvent, NodeHost, Outgoing,
        message::{Carrier, Marker, Message, Role},
    },
    net::{Forwarded, Hop, Network, Packet, PacketKind, Proto},
    scenario::{Scenario, TrafficKind},
};

use self::control::ControlWatch;
use agenda::{Agenda, Class};
use dice::Dice;
use fault::Healing;
use maps::MapSource;
use trace::{Names, Observer, Record, Trace, What, digest_of};

/// The hop limit that hosts send with.
const TTL: u8 = 64;

/// Events in one run unless another bound is given. A run that needs more does not end.
pub const EVENTS_MAX: u64 = 1_000_000_000;

/// A world under way.
pub struct Simulation<'s> {
    scenario: &'s Scenario,
    seed: u64,
    now: Instant,
    end: Instant,
    agenda: Agenda<Event>,
    handled: u64,
    events_max: u64,
    trace: Trace,
    names: Names,
    observer: Option<Box<Observer<'s>>>,
    network: Network,
    hosts: Vec<Host>,
    /// Who hands out network maps, where they are handed out.
    maps: Option<MapSource>,
    control: ControlWatch,
    /// When each host is to be woken next.
    armed: Vec<Option<Instant>>,
    flows: Flows,
    wire: WireCheck,
    /// Where nodes find each other by disco.
    paths: Option<PathCheck>,
    /// Where a policy says who may reach whom.
    policy: Option<PolicyCheck>,
    /// Where nodes can be removed.
    gone: Option<GoneCheck>,
    /// Where somebody replays datagrams.
    forged: Option<ForgedCheck>,
    quiet: QuietCheck,
    tally: Tally,
    effects: Effects,
    /// Datagrams sent so far.
    sent: u64,
    /// DERP frames written so far.
    derp_frames: u64,
    /// Messages said and heard inside control channels so far.
    control_messages: u64,
    /// By host, by kind.
    packets: Vec<[u64; PacketKind::ALL.len()]>,
    node_events: Vec<(Instant, HostId, NodeEvent)>,
    refused: DropCounts,
    faults: u64,
    /// The host that is being called: whose panic it is.
    inside: Option<HostId>,
    /// Whether it is called because its timer is due.
    is_woken: bool,
}

#[derive(Debug)]
enum Event {
    Packet {
        hop: Hop,
        packet: Box<Packet>,
    },
    Wake {
        host: HostId,
    },
    Ask {
        flow: u32,
    },
    Fault {
        event: u32,
    },
    Heal(Healing),
    Start {
        host: HostId,
    },
    /// A node tells who hands out maps what it knows of itself.
    Report {
        host: HostId,
    },
    /// A node is handed the newest map.
    HandOut {
        host: HostId,
    },
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its time was up.
    InTime,
    /// A host panicked; that is S12.
    Panicked,
    /// The simulator panicked.
    Fault(String),
    /// There was no end to the events.
    TooManyEvents,
}

impl<'s> Simulation<'s> {
    /// The world of a scenario and a seed, at its beginning.
    #[must_use]
    pub fn new(scenario: &'s Scenario, seed: u64) -> Self {
        let dice = Dice::new(seed);
        let mut network = Network::new();
        for net in &scenario.nets {
            network.add_net(net.setup, &dice);
        }
        for (one, other, latency) in &scenario.latencies {
            network.set_latency(*one, *other, *latency);
        }
        let marker = Marker::new(&mut dice.stream("marker", 0));
        let hosts = build::hosts(scenario, &mut network, &dice, marker);
        let has_control = scenario.control.is_some();
        let maps = MapSource::new(scenario, &hosts, &dice);
        let mut about = seed.to_le_bytes().to_vec();
        about.extend(scenario.canonical());
        let mut simulation = Self {
            scenario,
            seed,
            now: Instant::ZERO,
            end: Instant::ZERO + scenario.duration,
            agenda: Agenda::new(),
            handled: 0,
            events_max: EVENTS_MAX,
            trace: Trace::new(&about),
            names: scenario.names(),
            observer: None,
            network,
            armed: vec![None; hosts.len()],
            flows: Flows::new(&scenario.traffic),
            wire: WireCheck::new(
                marker,
                hosts.iter().filter_map(Host::node).filter_map(|node| Some((node.id(), node.overlay()?))),
                hosts.len(),
            ),
            paths: (maps.is_some() || has_control).then(|| build::path_check(&hosts, &dice)),
            policy: policy::check(scenario, &hosts),
            gone: has_control.then(GoneCheck::default),
            forged: watch::has_forgers(scenario).then(ForgedCheck::default),
            quiet: QuietCheck::new(scenario, hosts.len(), conservation::over(scenario)),
            tally: Tally::default(),
            effects: Effects::default(),
            sent: 0,
            derp_frames: 0,
            control_messages: 0,
            packets: vec![[0; PacketKind::ALL.len()]; hosts.len()],
            maps,
            control: ControlWatch::default(),
            hosts,
            node_events: Vec::new(),
            refused: DropCounts::default(),
            faults: 0,
            inside: None,
            is_woken: false,
        };
        simulation.plan();
        simulation
    }

    /// Shows every record to `observer` as it is made.
    #[must_use]
    pub fn observed(mut self, observer: Box<Observer<'s>>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Gives up after so many events.
    #[must_use]
    pub fn with_events_max(mut self, events: u64) -> Self {
        self.events_max = events;
        self
    }

    /// Runs to the end. A panic ends the run and is reported, not passed on.
    pub fn run(&mut self) -> Ended {
        let caught = catch_unwind(AssertUnwindSafe(|| self.run_until(self.end)));
        let ended = match caught {
            Ok(ended) => ended,
            Err(panic) => {
                let message = panic.downcast_ref::<String>().cloned();
                let message = message.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                let message = message.unwrap_or_else(|| "a panic without a message".to_owned());
                match self.inside {
                    Some(host) => {
                        let who = self.names.hosts.get(host.index()).cloned().unwrap_or_default();
                        self.tally.note(CheckId::S12, self.now, Some(format!("{who} panicked: {message}")));
                        Ended::Panicked
                    }
                    None => Ended::Fault(message),
                }
            }
        };
        if ended == Ended::InTime {
            self.check_conservation();
            self.check_network();
            self.check_harm();
            self.check_quiet();
            self.check_idle();
            self.check_maps();
            self.check_control();
        }
        ended
    }

    /// Runs up to and including `until`. For those who look in between: benches.
    pub fn run_until(&mut self, until: Instant) -> Ended {
        while self.agenda.next_at().is_some_and(|at| at <= until) {
            if self.handled >= self.events_max {
                return Ended::TooManyEvents;
            }
            self.step();
        }
        self.now = self.now.max(until);
        Ended::InTime
    }

    /// Events taken from the agenda so far.
    #[must_use]
    pub fn handled(&self) -> u64 {
        self.handled
    }

    /// The world's time.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.now
    }

    /// What happened.
    #[must_use]
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// What the invariants saw.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// What became of the traffic.
    #[must_use]
    pub fn flows(&self) -> &Flows {
        &self.flows
    }

    /// The network.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The hosts, by number.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// What numbers are called.
    #[must_use]
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// The seed.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Datagrams that hosts sent, by themselves or over relays, by host and kind.
    #[must_use]
    pub fn packets(&self) -> &[[u64; PacketKind::ALL.len()]] {
        &self.packets
    }

    /// DERP frames that hosts wrote.
    #[must_use]
    pub fn derp_frames(&self) -> u64 {
        self.derp_frames
    }

    /// Messages that were said and heard inside control channels.
    #[must_use]
    pub fn control_messages(&self) -> u64 {
        self.control_messages
    }

    /// What nodes said, and when.
    #[must_use]
    pub fn node_events(&self) -> &[(Instant, HostId, NodeEvent)] {
        &self.node_events
    }

    /// Packets that ended in the nodes' fast paths and owners.
    #[must_use]
    pub fn refused(&self) -> DropCounts {
        let mut drops = self.refused.clone();
        for status in self.hosts.iter().filter_map(|host| host.node()?.status(self.now)) {
            drops.merge(&status.drops);
        }
        drops
    }

    /// Events of the scenario that were carried out.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.faults
    }

    fn plan(&mut self) {
        for (number, event) in self.scenario.events.iter().enumerate() {
            self.agenda.insert(event.at, Class::Fault, Event::Fault { event: number as u32 });
        }
        for host in 0..self.hosts.len() {
            let at = self.scenario.nodes.get(host).map_or(Instant::ZERO, |node| node.start);
            self.agenda.insert(at, Class::Fault, Event::Start { host: HostId(host as u32) });
        }
        for (number, traffic) in self.scenario.traffic.iter().enumerate() {
            self.agenda.insert(traffic.start, Class::App, Event::Ask { flow: number as u32 });
        }
    }

    fn step(&mut self) {
        let Some((at, event)) = self.agenda.pop() else { return };
        self.now = at;
        self.handled += 1;
        match event {
            Event::Packet { hop, packet } => self.forward(hop, packet),
            Event::Wake { host } => self.wake(host),
            Event::Ask { flow } => self.ask(flow),
            Event::Fault { event } => self.fault(event),
            Event::Heal(healing) => self.heal(healing),
            Event::Start { host } => self.start(host),
            Event::Report { host } => self.report(host),
            Event::HandOut { host } => self.hand_out(host),
        }
    }

    fn start(&mut self, id: HostId) {
        if let Some(paths) = &mut self.paths {
            paths.handle_start(id);
        }
        self.call(id, |host, now, effects| host.start(now, effects));
        self.note_known(id);
        self.hand_map(id);
    }

    fn forward(&mut self, hop: Hop, mut packet: Box<Packet>) {
        match self.network.forward(hop, &mut packet, self.now) {
            Forwarded::Dropped(cause) => {
                self.record(None, What::Dropped { packet: packet.number, cause }, packet.digest);
            }
            Forwarded::Travels { to, at, again_at } => {
                if let Hop::Core(net) = hop {
                    self.record(None, What::Crossed { packet: packet.number, net }, packet.digest);
                }
                if let Some(again_at) = again_at {
                    let packet = packet.clone();
                    self.agenda.insert(again_at, Class::Packet, Event::Packet { hop: to, packet });
                }
                self.agenda.insert(at, Class::Packet, Event::Packet { hop: to, packet });
            }
            Forwarded::Delivered(host) => self.receive(host, *packet),
        }
    }

    fn receive(&mut self, id: HostId, packet: Packet) {
        if let Some(cause) = self.hosts[id.index()].refuses(&packet) {
            self.network.note_undelivered(cause);
            self.record(Some(id), What::Dropped { packet: packet.number, cause }, packet.digest);
            return;
        }
        if let Some(paths) = &mut self.paths {
            paths.handle_received(id, packet.origin, packet.number, &packet.payload);
        }
        if let Some(forged) = &mut self.forged {
            forged.handle_received(id, &packet);
        }
        if packet.proto == Proto::Udp {
            self.tempt(id, packet.origin);
        }
        self.hand_over(id, packet);
    }

    fn wake(&mut self, id: HostId) {
        // A timer that moved leaves its old entry in the agenda; only the newest counts.
        if self.armed[id.index()] != Some(self.now) {
            return;
        }
        self.armed[id.index()] = None;
        match self.hosts[id.index()].poll_timeout() {
            Some(deadline) if deadline.at <= self.now => {
                self.record(Some(id), What::Woken(deadline.why), 0);
                self.quiet.handle_woken(id, self.now);
                self.is_woken = true;
                self.call(id, |host, now, effects| host.handle_timeout(now, effects));
                self.is_woken = false;
                self.check_sizes(id);
            }
            Some(_) | None => self.arm(id),
        }
    }

    fn ask(&mut self, flow: u32) {
        let spec = &self.scenario.traffic[flow as usize];
        let next = self.now + spec.every;
        if spec.stop.is_none_or(|stop| next < stop) {
            self.agenda.insert(next, Class::App, Event::Ask { flow });
        }
        // A host that sleeps has no application that asks.
        if self.hosts[spec.from.index()].node().is_none_or(|node| node.is_asleep()) {
            return;
        }
        let sequence = self.flows.note_sent(flow, self.now);
        self.record(Some(spec.from), What::Asked { flow, sequence }, 0);
        let carrier = match spec.kind {
            TrafficKind::Ping => Carrier::Echo { id: flow as u16 },
            TrafficKind::Request => Carrier::Udp,
        };
        self.tempt(spec.from, spec.to);
        let (bytes, answer_bytes) = (spec.bytes, spec.answer_bytes);
        let message = Message { flow, sequence, role: Role::Question, carrier, bytes, answer_bytes };
        // Whom control has not given an address nobody knows how to ask.
        let Some(to) = self.hosts[spec.to.index()].node().and_then(NodeHost::overlay) else { return };
        self.call(spec.from, |host, now, effects| {
            if let Host::Node(node) = host {
                node.handle_message(message, to, now, effects);
            }
        });
    }

    /// Calls a host, carries out what it wants done, and arms its timer.
    fn call(&mut self, id: HostId, act: impl FnOnce(&mut Host, Instant, &mut Effects)) {
        self.inside = Some(id);
        act(&mut self.hosts[id.index()], self.now, &mut self.effects);
        self.inside = None;
        self.tally.note_held(CheckId::S12);

        let mut effects = core::mem::take(&mut self.effects);
        if effects.drops.total() > 0 {
            let drops = core::mem::take(&mut effects.drops);
            self.note_refused(id, &drops);
        }
        for event in effects.events.drain(..) {
            self.node_events.push((self.now, id, event));
            self.record(Some(id), What::Node(event), 0);
        }
        for delivery in effects.delivered.drain(..) {
            self.check_delivery(id, &delivery);
        }
        for relayed in effects.relayed.drain(..) {
            let kind = PacketKind::of(Proto::Udp, &relayed.payload);
            self.packets[id.index()][kind as usize] += 1;
            self.quiet.handle_sent(id, kind, self.now);
            self.wire.handle_relayed(id, &relayed.payload, relayed.is_copy, self.now, &mut self.tally);
            if let Some(paths) = &mut self.paths {
                paths.handle_relayed(id, &relayed.payload);
            }
            self.check_gone(id, kind, &relayed.payload);
        }
        self.derp_frames += core::mem::take(&mut effects.derp_frames);
        self.control_messages += core::mem::take(&mut effects.control_messages);
        if let Some(overlay) = effects.overlay.take() {
            self.wire.note_overlay(id, overlay);
            self.note_address(id);
        }
        let was_told = core::mem::take(&mut effects.told);
        if let Some(key) = effects.new_key.take() {
            for node in self.hosts.iter_mut().filter_map(Host::node_mut) {
                node.note_key(key, id);
            }
            if let Some(paths) = &mut self.paths {
                paths.note_key(&key, id);
            }
        }
        for violation in effects.stored.drain(..) {
            self.tally.note(CheckId::Stored, self.now, violation);
        }
        for packet in effects.packets.drain(..) {
            self.send(id, packet);
        }
        self.effects = effects;
        self.arm(id);
        self.note_told(id);
        self.note_control(id);
        if was_told {
            self.note_known(id);
            self.note_rules(id);
        }
    }

    fn note_refused(&mut self, id: HostId, drops: &DropCounts) {
        self.refused.merge(drops);
        for (reason, count) in drops.iter() {
            for _ in 0..count {
                self.record(Some(id), What::Refused(reason), 0);
            }
        }
    }

    fn send(&mut self, id: HostId, packet: Outgoing) {
        let host = &self.hosts[id.index()];
        let Outgoing { proto, from: source, to, ttl, payload } = packet;
        // From an address that the host does not have any more nothing is sent.
        let Some(net) = host.net().filter(|_| host.addresses().contains(&source.ip())) else { return };
        let kind = PacketKind::of(proto, &payload);
        self.packets[id.index()][kind as usize] += 1;
        self.quiet.handle_sent(id, kind, self.now);
        self.wire.handle_sent(id, proto, &payload, self.now, &mut self.tally);
        self.wire.handle_way(id, to, self.now, &mut self.tally);
        self.check_gone(id, kind, &payload);
        if let Some(forged) = &mut self.forged {
            forged.handle_sent(id, to, &payload, self.now, &mut self.tally);
        }
        let (number, digest) = (self.sent, digest_of(&payload));
        if let Some(paths) = &mut self.paths {
            paths.handle_sent(id, (number, kind), to, &payload, self.now, &mut self.tally);
        }
        self.sent += 1;
        let bytes = payload.len() as u32;
        self.record(Some(id), What::Sent { packet: number, to, kind, bytes }, digest);
        let ttl = ttl.unwrap_or(TTL);
        let packet = Packet { number, origin: id, proto, source, destination: to, ttl, payload, digest };
        self.forward(Hop::Sent(net), Box::new(packet));
    }

    fn arm(&mut self, id: HostId) {
        let deadline = self.hosts[id.index()].poll_timeout();
        let Some(deadline) = deadline else { return };
        // A packet that needs no decision leaves a timer alone that is due at the same instant: it is next.
        let is_due = deadline.at == self.now && !self.is_woken;
        let late = deadline.at <= self.now && !is_due;
        let late = late.then(|| format!("host {} wants to be woken at {} for {}", id.0, deadline.at, deadline.why));
        let is_late = late.is_some();
        self.tally.note(CheckId::S11, self.now, late);
        // A nanosecond later at the soonest: a machine that spins is reported, and the world goes on.
        let at = if is_late { self.now + Duration::from_nanos(1) } else { deadline.at };
        let armed = &mut self.armed[id.index()];
        if armed.is_none_or(|armed| at < armed) {
            *armed = Some(at);
            self.agenda.insert(at, Class::Timer, Event::Wake { host: id });
        }
    }

    fn record(&mut self, host: Option<HostId>, what: What, payload: u128) {
        let record = Record { at: self.now, host, what };
        self.trace.record(record, payload);
        if let Some(observer) = &mut self.observer {
            observer(&record, &self.names);
        }
    }
}

#[cfg(test)]
mod relay_tests;
