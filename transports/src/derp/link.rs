//! One region's connection: dials, then moves bytes between the stream and the [`Client`] machine.

use core::{future::pending, time::Duration};
use std::{io, sync::Arc, sync::atomic::Ordering::Relaxed};

use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::{Instant as TokioInstant, timeout},
};
use tracing::debug;

use mesh_core::{
    derp::{
        Client, DerpNode, RegionId,
        client::{Command, Event, Output, Rate},
        frame::{HEADER_BYTES, PACKET_BYTES},
        relays::Home,
    },
    key::NodePrivate,
    node::RelayEvent,
    time::Instant,
};

use crate::{
    clock::{Clock, Timer},
    stream::Stream,
    udp::Family,
};

use super::{Arrival, Report, Shared, outbox::Outbox};

/// For all of dialling, from DNS until a relay took us in. Stock nodes: 10 s.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that go into one write: four TLS records.
const WRITE_BYTES: usize = 64 << 10;
/// Bytes of a frame around its packet: header and key.
const AROUND: usize = HEADER_BYTES + 32;

/// A link that is not dialled yet.
#[derive(Debug)]
pub(super) struct Link {
    region: RegionId,
    link: u64,
    key: NodePrivate,
    shared: Arc<Shared>,
    outbox: Arc<Outbox>,
}

impl Link {
    pub(super) fn new(region: RegionId, link: u64, key: NodePrivate, shared: Arc<Shared>, outbox: Arc<Outbox>) -> Self {
        Self { region, link, key, shared, outbox }
    }

    /// Connects to the first relay that takes us in, serves until the connection breaks, and says so.
    pub(super) async fn run(self, nodes: Vec<DerpNode>) {
        let (mut last, reason) = match self.dial(&nodes).await {
            Ok(mut connection) => match connection.pump(Until::Broken).await {
                Ok(()) => return,
                // What came before the end is not lost.
                Err(reason) => (core::mem::take(&mut connection.arrivals), reason),
            },
            Err(reason) => (Vec::new(), reason),
        };
        debug!(region = %self.region, reason, "relay link ended");
        last.push(Arrival::Event(RelayEvent::Failed { region: self.region, reason }));
        // Nobody listens when the driver is gone.
        let _ = self.shared.reports.send(self.report(last)).await;
    }

    /// Tries the relays in order. Each has an even share of the time that is left, so that one which hangs does not take
    /// the time of the next.
    async fn dial(&self, nodes: &[DerpNode]) -> Result<Connection<'_>, String> {
        let deadline = TokioInstant::now() + DIAL_TIMEOUT;
        let nodes: Vec<_> = nodes.iter().filter(|node| !node.stun_only).collect();
        let ideal = nodes.first().map(|node| node.name.as_str());
        let mut reasons = Vec::new();
        for (index, node) in nodes.iter().enumerate() {
            let left = deadline.saturating_duration_since(TokioInstant::now());
            let share = left / u32::try_from(nodes.len() - index).unwrap_or(u32::MAX);
            let ideal = ideal.filter(|_| index > 0);
            let reason = match timeout(share, self.begin(node, ideal, index)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(reason)) => reason,
                Err(_) => format!("{} did not take us in within {} ms", node.host_name, share.as_millis()),
            };
            debug!(region = %self.region, node = node.name, reason, "relay not connected");
            reasons.push(reason);
        }
        if reasons.is_empty() { Err("the region has no relays".to_owned()) } else { Err(reasons.join("; ")) }
    }

    /// Connects to one relay, until it took us in.
    async fn begin(&self, node: &DerpNode, ideal: Option<&str>, index: usize) -> Result<Connection<'_>, String> {
        let dialer = &self.shared.dialer;
        let stream = dialer.open(node, Family::V4).await.map_err(|error| error.to_string())?;
        let opened = dialer.upgrade(stream, node, ideal).await.map_err(|error| error.to_string())?;
        let clock = dialer.net.clock();
        let timer = dialer.net.timer().map_err(|error| format!("this host has no timer left: {error}"))?;
        // Every connection has randomness of its own.
        let rng = self.shared.seed.child("relay link", self.link).stream("node", index as u64);
        let mut client = Client::new(self.key.clone(), opened.start, rng, clock.now());
        client.handle_bytes(&opened.rest, clock.now());
        let mut connection = Connection {
            link: self,
            host: node.host_name.clone(),
            stream: opened.stream,
            client,
            clock,
            timer,
            armed: None,
            is_ready: false,
            rate: None,
            home: None,
            write: Vec::new(),
            arrivals: Vec::new(),
        };
        connection.pump(Until::Ready).await?;
        Ok(connection)
    }

    fn report(&self, arrivals: Vec<Arrival>) -> Report {
        Report { region: self.region, link: self.link, arrivals }
    }
}

/// When to stop pumping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// The relay took us in.
    Ready,
    /// The connection broke, or the driver is gone.
    Broken,
}

/// A connection to one relay.
#[derive(Debug)]
struct Connection<'l> {
    link: &'l Link,
    host: String,
    stream: Stream,
    client: Client,
    clock: Clock,
    timer: Timer,
    /// What the timer is set to; earlier than needed at times, never later.
    armed: Option<Instant>,
    is_ready: bool,
    rate: Option<Bucket>,
    home: Option<Home>,
    /// What goes into the next write.
    write: Vec<u8>,
    /// What came and is not handed to the driver yet. While the driver takes nothing, nothing is read.
    arrivals: Vec<Arrival>,
}

impl Connection<'_> {
    /// Moves bytes and packets. `Ok` when what was waited for is there, or nobody listens any more.
    async fn pump(&mut self, until: Until) -> Result<(), String> {
        let reports = self.link.shared.reports.clone();
        // What came together with the end of the handshake is not announced by the socket again.
        let mut ended = self.read();
        loop {
            self.drain()?;
            ended.map_err(|error| self.broken(&error))?;
            ended = Ok(());
            if self.is_ready && until == Until::Ready {
                return Ok(());
            }
            if self.is_ready && !self.hand_over(&reports) {
                return Ok(());
            }
            self.fill().map_err(|error| self.broken(&error))?;
            let has_unsent = self.stream.has_unsent();
            if !has_unsent && self.is_ready && !self.link.outbox.is_empty() {
                // Others on this thread first.
                tokio::task::yield_now().await;
                continue;
            }
            let is_held = !self.arrivals.is_empty();
            let deadline = self.client.poll_timeout().map(|deadline| deadline.at);
            // A deadline that moved on costs one early look rather than a system call for every packet.
            self.armed = match (self.armed, deadline) {
                (Some(armed), Some(deadline)) if armed <= deadline => Some(armed),
                (_, deadline) => deadline,
            };
            let Self { stream, timer, .. } = self;
            tokio::select! {
                ready = stream.socket.readable(), if !is_held => {
                    ended = ready.and_then(|()| self.read());
                }
                ready = stream.socket.writable(), if has_unsent => ended = ready,
                () = self.link.outbox.added(), if !has_unsent && self.is_ready => {}
                () = room(&reports), if is_held && self.is_ready => {}
                fired = timer.sleep_until(self.armed) => {
                    fired.map_err(|error| format!("the timer failed: {error}"))?;
                    self.armed = None;
                    self.client.handle_timeout(self.clock.now());
                }
            }
        }
    }

    fn read(&mut self) -> io::Result<()> {
        let now = self.clock.now();
        let client = &mut self.client;
        self.stream.read(|bytes| client.handle_bytes(bytes, now))
    }

    /// Does what the client says.
    fn drain(&mut self) -> Result<(), String> {
        let region = self.link.region;
        let counters = &self.link.shared.counters;
        while let Some(output) = self.client.poll_output() {
            let event = match output {
                Output::Write(bytes) => {
                    if self.write.is_empty() {
                        self.write = bytes;
                    } else {
                        self.write.extend_from_slice(&bytes);
                    }
                    continue;
                }
                Output::Close(reason) => return Err(format!("{}: {reason}", self.host)),
                Output::Event(event) => event,
            };
            if !self.is_ready && !matches!(event, Event::Ready { .. }) {
                // Who has not proven its key yet has nothing to tell.
                continue;
            }
            self.arrivals.push(match event {
                Event::Ready { server, rate } => {
                    debug!(%region, host = self.host, ?server, ?rate, "relay took us in");
                    self.is_ready = true;
                    self.rate = rate.map(|rate| Bucket::new(rate, self.clock.now()));
                    Arrival::Event(RelayEvent::Connected { region })
                }
                Event::Received { from, packet } => {
                    counters.received_packets.fetch_add(1, Relaxed);
                    counters.received_bytes.fetch_add(packet.len() as u64, Relaxed);
                    Arrival::Packet { region, from, packet }
                }
                Event::PeerGone { peer, .. } => Arrival::Event(RelayEvent::PeerGone { region, peer }),
                Event::Health(problem) => Arrival::Event(RelayEvent::Health { region, problem }),
                Event::Restarting { reconnect_in, .. } => {
                    Arrival::Event(RelayEvent::Restarting { region, reconnect_in })
                }
            });
        }
        Ok(())
    }

    /// Hands what came to the driver, as far as it has room; false when the driver is gone.
    fn hand_over(&mut self, reports: &mpsc::Sender<Report>) -> bool {
        if self.arrivals.is_empty() {
            return true;
        }
        match reports.try_send(self.link.report(core::mem::take(&mut self.arrivals))) {
            Ok(()) => true,
            Err(TrySendError::Full(report)) => {
                self.arrivals = report.arrivals;
                true
            }
            Err(TrySendError::Closed(_)) => false,
        }
    }

    /// Writes what the client said, and packets from the outbox behind it: as much as goes into one write, and only when
    /// the last one is out.
    fn fill(&mut self) -> io::Result<()> {
        if !self.stream.has_unsent() && self.is_ready {
            self.tell_home();
            if self.link.outbox.take_asked() {
                self.client.handle_command(Command::Ask, self.clock.now());
            }
            self.take_packets();
        }
        if !self.write.is_empty() {
            self.stream.push(&self.write)?;
            self.write.clear();
        }
        self.stream.flush().map(drop)
    }

    fn tell_home(&mut self) {
        let home = self.link.outbox.home();
        if self.home != home
            && let Some(home) = home
        {
            self.client.handle_command(Command::SetHome(home == Home::Here), self.clock.now());
            self.home = Some(home);
            self.collect_writes();
        }
    }

    fn take_packets(&mut self) {
        let counters = &self.link.shared.counters;
        let now = self.clock.now();
        while self.write.len() < WRITE_BYTES
            && let Some((to, packet)) = self.link.outbox.pop()
        {
            let bytes = packet.len();
            if bytes > PACKET_BYTES {
                counters.dropped_too_large.fetch_add(1, Relaxed);
                continue;
            }
            if let Some(bucket) = &mut self.rate
                && !bucket.take(bytes + AROUND, now)
            {
                counters.dropped_over_rate.fetch_add(1, Relaxed);
                continue;
            }
            counters.sent_packets.fetch_add(1, Relaxed);
            counters.sent_bytes.fetch_add(bytes as u64, Relaxed);
            self.client.handle_command(Command::Send { to, packet }, now);
            self.collect_writes();
        }
    }

    /// Takes the bytes of a command that was just given: a client in this state answers with those alone.
    fn collect_writes(&mut self) {
        while let Some(output) = self.client.poll_output() {
            if let Output::Write(bytes) = output {
                self.write.extend_from_slice(&bytes);
            }
        }
    }

    fn broken(&self, error: &io::Error) -> String {
        match error.kind() {
            io::ErrorKind::UnexpectedEof if self.is_ready => format!("{} closed the connection", self.host),
            io::ErrorKind::UnexpectedEof => format!("{} closed the connection and did not take us in", self.host),
            _ => format!("connection to {} broke: {error}", self.host),
        }
    }
}

/// Waits until the driver has room.
async fn room(reports: &mpsc::Sender<Report>) {
    if reports.reserve().await.is_err() {
        // The driver is gone: what is tried next will tell.
        pending::<()>().await;
    }
}

/// The token bucket that a relay asks for.
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    bytes: u64,
    filled_at: Instant,
}

impl Bucket {
    fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, bytes: rate.burst_bytes, filled_at: now }
    }

    fn take(&mut self, bytes: usize, now: Instant) -> bool {
        let elapsed = now.since(self.filled_at);
        let earned = elapsed.as_nanos().saturating_mul(self.rate.bytes_per_second.into()) / 1_000_000_000;
        if earned > 0 {
            let earned = u64::try_from(earned).unwrap_or(u64::MAX);
            self.bytes = self.bytes.saturating_add(earned).min(self.rate.burst_bytes);
            self.filled_at = now;
        }
        let bytes = bytes as u64;
        let is_enough = self.bytes >= bytes;
        if is_enough {
            self.bytes -= bytes;
        }
        is_enough
    }
}
