//! The driver with everything on one thread: node, TUN and UDP in one loop.
//!
//! A round takes what the sockets have, then what the TUN has, each with a budget, and lets the node act on what the
//! fast path reported. The loop sleeps only after a round that found nothing. Both sides are drained before the
//! reactor is asked again, so at full rate there is one such question per round, not per packet.
//!
//! When a socket's buffer is full the TUN is not read until there is room: the queue that fills is then the host's,
//! which knows whose packets to drop.

use core::{
    future::poll_fn,
    task::{Context, Poll},
};
use std::{collections::BTreeMap, io};

use mesh_core::{
    control::types::MapResponse,
    dataplane::{DataPlane, DropCounts, DropReason, Inbound, ReportBuffer, Reports, TransmitSink},
    endpoints::LocalPorts,
    key::NodePublic,
    machine::Machine,
    node::{Command, CommandError, CommandId, HostEvent, Input, Node, Output, PathsStatus, Reply},
    path::{PathAddr, SendPath},
    time::Instant,
};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error, info, trace};
use transports::{
    batch::{RecvBatch, SendBatch},
    clock::{Clock, Timer},
    program::{Exit, Failure},
    tun::{AsyncTun, PacketBatch, Tun},
    udp::{Family, UdpSockets},
};

use super::{
    HostGuard, Snapshot, events,
    network::{Happening, Network},
};
use crate::state_file::Keeper;

/// Packets taken from the TUN in one round: one train of full-sized packets and a half.
const TUN_BUDGET: usize = 64;

/// Packets and events taken from relays in one round.
const RELAY_BUDGET: usize = 64;

/// Receive calls per family in one round. One call brings up to eight trains.
const UDP_BUDGET: usize = 1;

/// What can happen to the driver besides packets and time.
#[derive(Debug)]
pub enum Request {
    /// Somebody wants to know how the node is.
    Status(oneshot::Sender<Snapshot>),
    /// Somebody wants to know how a peer is reached; `None` when nobody has the key.
    Paths(NodePublic, oneshot::Sender<Option<PathsStatus>>),
    /// Somebody wants the network map; `None` while there is none.
    Map(oneshot::Sender<Option<MapResponse>>),
    /// Somebody wants something of the node.
    Command(Command, oneshot::Sender<Result<Reply, CommandError>>),
    /// The end.
    Stop,
}

/// What the driver counts besides the drops of the fast path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunCounts {
    /// Packets taken from the host.
    pub read: u64,
    /// Packets given to the host.
    pub written: u64,
    /// Packets that the host did not take: the device was down, or its queue full.
    pub write_failed: u64,
}

/// A node with its TUN and sockets.
#[derive(Debug)]
pub struct Driver<T: Tun> {
    node: Node,
    plane: DataPlane,
    clock: Clock,
    timer: Timer,
    tun: AsyncTun<T>,
    udp: UdpSockets,
    /// Relays and all else that static peers do without.
    network: Option<Network>,
    /// What survives a restart.
    state: Option<Keeper>,
    host: Option<HostGuard>,
    reports: ReportBuffer,
    packets: PacketBatch,
    received: RecvBatch,
    outgoing: SendBatch,
    tun_counts: TunCounts,
    waiting: BTreeMap<CommandId, oneshot::Sender<Result<Reply, CommandError>>>,
    last_command: CommandId,
}

impl<T: Tun> Driver<T> {
    /// A driver for a fresh `node`, whose first outputs are carried out: sockets are bound and the host is configured.
    /// Without `host` the host stays as it is.
    ///
    /// # Errors
    /// When the port is taken, or the host does not take its configuration.
    pub fn start(
        mut node: Node,
        clock: Clock,
        tun: T,
        network: Option<Network>,
        state: Option<Keeper>,
        host: Option<HostGuard>,
        mtu_bytes: usize,
    ) -> Result<Self, Failure> {
        let io = |error: io::Error| Failure::new(Exit::Refused, "io", format!("cannot start: {error}"));
        let mut first = Vec::new();
        let mut udp = None;
        while let Some(output) = node.poll_output() {
            match output {
                Output::Sockets(plan) => {
                    let sockets = UdpSockets::bind(plan.port);
                    udp = Some(sockets.map_err(|error| Failure::new(Exit::Refused, "udp", error))?);
                }
                output => first.push(output),
            }
        }
        let udp = udp.ok_or_else(|| Failure::new(Exit::Bug, "no-sockets", "the node asked for no sockets"))?;
        let mut driver = Self {
            plane: node.data_plane(),
            node,
            clock,
            timer: Timer::new().map_err(io)?,
            tun: AsyncTun::new(tun).map_err(io)?,
            udp,
            network,
            state,
            host,
            reports: ReportBuffer::default(),
            packets: PacketBatch::new(TUN_BUDGET, mtu_bytes),
            received: RecvBatch::new(),
            outgoing: SendBatch::new(),
            tun_counts: TunCounts::default(),
            waiting: BTreeMap::new(),
            last_command: CommandId(0),
        };
        for output in first {
            match output {
                Output::Configure(config) => {
                    if let Some(host) = &mut driver.host {
                        host.apply(&config).map_err(|error| Failure::new(Exit::Refused, "host", error))?;
                    }
                }
                output => driver.dispatch(output),
            }
        }
        driver.tell_ports();
        driver.drain();
        driver.flush();
        Ok(driver)
    }

    /// The UDP port, on all families.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.udp.port()
    }

    /// Carries packets and requests until it is told to stop.
    ///
    /// # Errors
    /// When the TUN device fails, as when somebody deleted it.
    pub async fn run(&mut self, requests: &mut mpsc::Receiver<Request>) -> Result<(), Failure> {
        loop {
            // Everything that is there already, before packets: there is little of it, and somebody waits.
            while let Ok(request) = requests.try_recv() {
                if !self.handle_request(request) {
                    return Ok(());
                }
            }
            if self.round()? {
                // The reactor looks at sockets, and other tasks get their turn.
                tokio::task::yield_now().await;
                continue;
            }
            let deadline = self.node.poll_timeout().map(|deadline| deadline.at);
            let Self { tun, udp, network, outgoing, timer, .. } = self;
            tokio::select! {
                biased;
                request = requests.recv() => match request {
                    Some(request) => {
                        if !self.handle_request(request) {
                            return Ok(());
                        }
                    }
                    None => return Ok(()),
                },
                () = poll_fn(|cx| poll_ready(tun, udp, network.as_mut(), outgoing, cx)) => {}
                fired = timer.sleep_until(deadline) => {
                    fired.map_err(|error| Failure::new(Exit::Bug, "timer", format!("the timer failed: {error}")))?;
                }
            }
            self.observe_clocks();
        }
    }

    /// One turn of everything; returns whether a packet moved.
    fn round(&mut self) -> Result<bool, Failure> {
        let now = self.clock.now();
        let received = self.receive(now) | self.receive_relayed(now);
        self.settle(now);
        let sent = self.transmit(now)?;
        self.settle(now);
        Ok(received || sent)
    }

    /// Datagrams to packets.
    fn receive(&mut self, now: Instant) -> bool {
        let mut moved = false;
        for family in [Family::V4, Family::V6] {
            for _ in 0..UDP_BUDGET {
                match self.udp.recv(family, &mut self.received) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) => {
                        debug!(%error, "receive failed");
                        break;
                    }
                }
                moved = true;
                let fib = self.plane.fib();
                let mut run = fib.inbound(now);
                for (from, datagram) in self.received.datagrams() {
                    let inbound = run.handle(datagram, PathAddr::Udp(from), &mut self.reports);
                    deliver(inbound, &mut self.tun, &mut self.tun_counts);
                }
            }
        }
        moved
    }

    /// What relays and the rest of the network brought.
    fn receive_relayed(&mut self, now: Instant) -> bool {
        let Some(network) = &mut self.network else { return false };
        let mut moved = false;
        for _ in 0..RELAY_BUDGET {
            let Some(happening) = network.try_recv() else { break };
            moved = true;
            match happening {
                Happening::Packet { region, from, mut packet } => {
                    let fib = self.plane.fib();
                    let source = PathAddr::Relay { region, peer: from };
                    let inbound = fib.inbound(now).handle(&mut packet, source, &mut self.reports);
                    deliver(inbound, &mut self.tun, &mut self.tun_counts);
                }
                Happening::Input(input) => self.node.handle_input(input, now),
            }
        }
        moved
    }

    /// Packets to datagrams.
    fn transmit(&mut self, now: Instant) -> Result<bool, Failure> {
        if !self.flush() {
            return Ok(false);
        }
        let count = self.tun.recv(&mut self.packets).map_err(|error| {
            Failure::new(Exit::Refused, "tun", format!("the TUN device failed: {error}")).hint("was it deleted?")
        })?;
        if count == 0 {
            return Ok(false);
        }
        self.tun_counts.read += count as u64;
        self.plane.fib().outbound(self.packets.packets(), now, &mut self.outgoing, &mut self.reports);
        // What the node hears first: a link to a relay that packets are for may have to be opened.
        self.settle(now);
        self.flush();
        Ok(true)
    }

    /// Hands the node what the fast path reported, lets due timers act, and does what the node says.
    fn settle(&mut self, now: Instant) {
        for notice in self.reports.notices.drain(..) {
            self.node.handle_input(Input::Notice(notice), now);
        }
        for punt in self.reports.punts.drain(..) {
            self.node.handle_input(Input::Punt(punt), now);
        }
        self.tell_refused(now);
        if self.node.poll_timeout().is_some_and(|deadline| deadline.at <= now) {
            self.node.handle_timeout(now);
        }
        self.drain();
    }

    fn drain(&mut self) {
        let mut any = false;
        while let Some(output) = self.node.poll_output() {
            self.dispatch(output);
            any = true;
        }
        if any {
            self.flush();
        }
    }

    fn dispatch(&mut self, output: Output) {
        match output {
            Output::Transmit(transmit) => {
                if let (PathAddr::Udp(to), Some(_)) = (transmit.to, transmit.ttl) {
                    self.udp.send_datagram(to, transmit.ttl, &transmit.payload);
                    return;
                }
                trace!(to = %transmit.to, bytes = transmit.payload.len(), "own datagram");
                // Behind what is waiting, so that datagrams stay in order.
                let kept = self.outgoing.datagram(&SendPath::new(transmit.to), transmit.payload.len(), |room| {
                    room.copy_from_slice(&transmit.payload);
                    true
                });
                if !kept {
                    self.reports.dropped(DropReason::BatchFull);
                }
            }
            Output::TunWrite(packet) => write(&packet, &mut self.tun, &mut self.tun_counts),
            Output::Relay(command) => {
                if let Some(network) = &mut self.network {
                    network.handle_relay_command(command);
                }
            }
            Output::Control(request) => match self.state.as_mut().and_then(|state| state.hold_back(&request)) {
                Some(failed) => self.node.handle_input(Input::Control(failed), self.clock.now()),
                None => {
                    if let Some(network) = &mut self.network {
                        network.handle_control_request(request);
                    }
                }
            },
            // Before anything that follows is done: a key that control knows must not be lost.
            Output::Save(saved) => {
                if let Some(state) = &mut self.state {
                    // What could not be kept it remembers, says, and tries again.
                    let _ = state.keep(*saved);
                }
            }
            Output::Fetch(id, request) => {
                if let Some(network) = &self.network {
                    network.fetch(id, request);
                }
            }
            Output::Resolve { host } => {
                if let Some(network) = &self.network {
                    network.resolve(host);
                }
            }
            Output::Sockets(plan) => match UdpSockets::bind(plan.port) {
                Ok(sockets) => {
                    self.udp = sockets;
                    self.tell_ports();
                }
                Err(error) => error!(%error, "sockets stay as they were"),
            },
            Output::Configure(config) => {
                if let Some(Err(error)) = self.host.as_mut().map(|host| host.apply(&config)) {
                    error!(%error, "host is not configured as it should be");
                }
            }
            Output::Reply(id, result) => {
                let result = result.and_then(|done| self.unless_lost(done));
                if let Some(reply) = self.waiting.remove(&id) {
                    // Whoever asked may have gone.
                    let _ = reply.send(result);
                }
            }
            Output::Event(event) => events::log(&event),
        }
    }

    /// What a restart would undo is not done.
    fn unless_lost(&mut self, done: Reply) -> Result<Reply, CommandError> {
        let lasts = matches!(done, Reply::Up(_) | Reply::Down | Reply::PrefsSet | Reply::LoggedOut);
        let lost = self.state.as_mut().filter(|_| lasts).and_then(Keeper::lost);
        lost.map_or(Ok(done), |failure| Err(CommandError::NotKept(failure.to_string())))
    }

    /// Sends what is waiting; false when a socket has no room for all of it.
    fn flush(&mut self) -> bool {
        for relayed in self.outgoing.take_relayed() {
            match &mut self.network {
                Some(network) => network.send(relayed.region, relayed.peer, relayed.packet),
                None => self.reports.dropped(DropReason::UnknownRegion),
            }
        }
        self.outgoing.is_empty() || self.udp.send(&mut self.outgoing)
    }

    /// Tells a node that others find where it listens, and where it may not send.
    fn tell_ports(&mut self) {
        if self.network.is_none() {
            return;
        }
        let port = |family| self.udp.families().any(|open| open == family).then(|| self.udp.port());
        let ports = LocalPorts { v4: port(Family::V4), v6: port(Family::V6) };
        self.node.handle_input(Input::Host(HostEvent::SocketsOpen(ports)), self.clock.now());
    }

    fn tell_refused(&mut self, now: Instant) {
        while let Some(to) = self.udp.take_refused() {
            debug!(%to, "the host refuses to send there");
            self.node.handle_input(Input::Host(HostEvent::SendFailed { to }), now);
        }
    }

    /// Does what is asked; false for the end.
    fn handle_request(&mut self, request: Request) -> bool {
        let now = self.clock.now();
        match request {
            Request::Stop => {
                let map = self.node.netmap().snapshot();
                if let Some(state) = &mut self.state {
                    // It has said so where it could not.
                    let _ = state.keep_map(map);
                }
                return false;
            }
            Request::Status(reply) => {
                let _ = reply.send(self.snapshot(now));
            }
            Request::Paths(key, reply) => {
                let _ = reply.send(self.node.paths_status(&key, now));
            }
            Request::Map(reply) => {
                let _ = reply.send(self.node.netmap().snapshot());
            }
            Request::Command(command, reply) => self.command(command, reply, now),
        }
        true
    }

    fn command(&mut self, command: Command, reply: oneshot::Sender<Result<Reply, CommandError>>, now: Instant) {
        self.last_command.0 += 1;
        self.waiting.insert(self.last_command, reply);
        self.node.handle_input(Input::Command(self.last_command, command), now);
        self.drain();
    }

    fn observe_clocks(&mut self) {
        for event in self.clock.observe().into_iter().flatten() {
            info!(?event, "clock");
            let now = self.clock.now();
            self.node.handle_input(Input::Host(event), now);
            self.drain();
        }
    }

    fn snapshot(&self, now: Instant) -> Snapshot {
        let status = self.node.status(now);
        let mut drops = DropCounts::default();
        drops.merge(&status.drops);
        drops.merge(&self.reports.drops);
        Snapshot {
            now,
            drops,
            port: self.udp.port(),
            tunnels: self.node.tunnel_count(),
            flows: self.node.flow_counts(),
            udp: *self.udp.counts(),
            relays: self.network.as_ref().map(Network::relay_counts).unwrap_or_default(),
            tun: self.tun_counts,
            unkept: self.state.as_ref().and_then(Keeper::problem).map(|failure| failure.to_string()),
            status,
        }
    }
}

fn deliver<T: Tun>(inbound: Inbound<'_>, tun: &mut AsyncTun<T>, counts: &mut TunCounts) {
    match inbound {
        Inbound::Deliver { packet, .. } => write(packet, tun, counts),
        Inbound::Consumed | Inbound::Drop(_) => {}
    }
}

fn write<T: Tun>(packet: &[u8], tun: &mut AsyncTun<T>, counts: &mut TunCounts) {
    match tun.send(packet) {
        Ok(()) => counts.written += 1,
        Err(_) => counts.write_failed += 1,
    }
}

/// Whether there is something to do: a packet from either side, or room for what waits.
fn poll_ready<T: Tun>(
    tun: &AsyncTun<T>,
    udp: &UdpSockets,
    network: Option<&mut Network>,
    outgoing: &SendBatch,
    cx: &mut Context<'_>,
) -> Poll<()> {
    let sockets = udp.poll_readable(cx).is_ready() | network.is_some_and(|network| network.poll_ready(cx).is_ready());
    let other = if outgoing.is_empty() { tun.poll_readable(cx) } else { udp.poll_writable(outgoing, cx) };
    if sockets || other.is_ready() { Poll::Ready(()) } else { Poll::Pending }
}

#[cfg(test)]
mod tests;
