//! Connections to relays: the driver's half of [`RelayCommand`] and [`RelayEvent`].
//!
//! [`RelayLinks`] has a task for each region that the node wants to be connected to. The task dials the region's
//! relays in order until one takes us in, and then moves packets between its stream and two bounded queues. Outgoing,
//! an outbox a region drops its oldest when it is full, and disco goes first. Incoming, one queue for all regions: a
//! link whose packets do not fit stops reading its stream, so the relay's own queues are what fills.
//!
//! A link is made once and never again by itself: when it breaks it says so and is gone. Whether and when to connect
//! anew is the node's to say.

mod dial;
mod link;
mod outbox;

use core::task::{Context, Poll};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    vec,
};

use tokio::sync::mpsc;

use mesh_core::{
    derp::RegionId,
    key::{NodePrivate, NodePublic},
    node::{RelayCommand, RelayEvent},
    rng::Seed,
};

pub use crate::stream::tls::{TlsError, Trust};
pub use dial::{DialError, Dialer, Plain, Stage};
pub(crate) use dial::{Head, host_header, read_head};

use crate::task::Task;
use link::Link;
use outbox::Outbox;

/// Reads that wait for the driver, each of up to 64 KiB. At the bound links do not read.
const READS: usize = 16;

/// What came from a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// A packet, for the data plane.
    Packet {
        /// Over which region.
        region: RegionId,
        /// From whom; the relay vouches for it.
        from: NodePublic,
        /// The packet.
        packet: Vec<u8>,
    },
    /// Something for the node.
    Event(RelayEvent),
}

/// What went over relays since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelayCounts {
    /// Packets handed to relays.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Packets that came.
    pub received_packets: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Packets lost because newer ones needed their room.
    pub dropped_full: u64,
    /// Packets lost because there is no connection to their region, nor one being made.
    pub dropped_no_link: u64,
    /// Packets lost because the relay asked for fewer.
    pub dropped_over_rate: u64,
    /// Packets lost because no relay takes one so large.
    pub dropped_too_large: u64,
}

/// [`RelayCounts`] as they are counted.
#[derive(Debug, Default)]
struct Counters {
    sent_packets: AtomicU64,
    sent_bytes: AtomicU64,
    received_packets: AtomicU64,
    received_bytes: AtomicU64,
    dropped_full: AtomicU64,
    dropped_no_link: AtomicU64,
    dropped_over_rate: AtomicU64,
    dropped_too_large: AtomicU64,
}

/// What all links share.
#[derive(Debug)]
struct Shared {
    seed: Seed,
    dialer: Dialer,
    counters: Counters,
    reports: mpsc::Sender<Report>,
}

/// What one read of a link brought.
#[derive(Debug)]
struct Report {
    region: RegionId,
    link: u64,
    arrivals: Vec<Arrival>,
}

/// Connections to relays, one a region.
#[derive(Debug)]
pub struct RelayLinks {
    key: NodePrivate,
    shared: Arc<Shared>,
    links: BTreeMap<RegionId, Handle>,
    reports: mpsc::Receiver<Report>,
    /// The report that is being handed out, and of which link it is.
    current: Option<(RegionId, u64, vec::IntoIter<Arrival>)>,
    last_link: u64,
}

/// A link's other end. Ends the link when dropped.
#[derive(Debug)]
struct Handle {
    link: u64,
    outbox: Arc<Outbox>,
    _task: Task,
}

impl RelayLinks {
    /// No links yet. `key` is who we are to relays at first; `seed` feeds what is random in links, and must be used for nothing
    /// else.
    #[must_use]
    pub fn new(key: NodePrivate, seed: Seed, dialer: Dialer) -> Self {
        let (sender, reports) = mpsc::channel(READS);
        let shared = Shared { seed, dialer, counters: Counters::default(), reports: sender };
        Self { key, shared: Arc::new(shared), links: BTreeMap::new(), reports, current: None, last_link: 0 }
    }

    /// How relays are reached, for [`fetch`](crate::fetch).
    #[must_use]
    pub fn dialer(&self) -> &Dialer {
        &self.shared.dialer
    }

    /// Does what the node says. Needs a tokio runtime with I/O and time.
    pub fn handle_command(&mut self, command: RelayCommand) {
        match command {
            RelayCommand::SetKey(key) => self.key = key,
            RelayCommand::Connect { region, nodes } => {
                self.last_link += 1;
                let outbox = Arc::new(Outbox::default());
                let (shared, own) = (Arc::clone(&self.shared), Arc::clone(&outbox));
                let link = Link::new(region, self.last_link, self.key.clone(), shared, own);
                let task = Task::spawn(link.run(nodes));
                self.links.insert(region, Handle { link: self.last_link, outbox, _task: task });
            }
            RelayCommand::Close { region } => {
                self.links.remove(&region);
            }
            RelayCommand::SetHome { region, home } => {
                if let Some(handle) = self.links.get(&region) {
                    handle.outbox.set_home(home);
                }
            }
            RelayCommand::Ask { region } => {
                if let Some(handle) = self.links.get(&region) {
                    handle.outbox.ask();
                }
            }
        }
    }

    /// Sends a packet over a region's relay. It waits while the connection is being made; it is lost, and counted, when
    /// there is none.
    pub fn send(&mut self, region: RegionId, to: NodePublic, packet: Vec<u8>) {
        let counters = &self.shared.counters;
        match self.links.get(&region) {
            Some(handle) => counters.dropped_full.fetch_add(handle.outbox.push(to, packet), Relaxed),
            None => counters.dropped_no_link.fetch_add(1, Relaxed),
        };
    }

    /// What came next, in order for each region. Costs nothing when nothing has.
    pub fn try_recv(&mut self) -> Option<Arrival> {
        loop {
            if let Some((region, link, arrivals)) = &mut self.current {
                // Nothing is to be said about links that were closed, or are others by now.
                let is_current = self.links.get(region).is_some_and(|handle| handle.link == *link);
                if let Some(arrival) = arrivals.next().filter(|_| is_current) {
                    if matches!(arrival, Arrival::Event(RelayEvent::Failed { .. })) {
                        self.links.remove(region);
                    }
                    return Some(arrival);
                }
            }
            self.current = None;
            let report = self.reports.try_recv().ok()?;
            self.take(report);
        }
    }

    /// Whether something came: then call [`Self::try_recv`] until it has nothing more.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.current.is_some() {
            return Poll::Ready(());
        }
        match self.reports.poll_recv(cx) {
            Poll::Ready(Some(report)) => {
                self.take(report);
                Poll::Ready(())
            }
            // We hold a sender ourselves.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// What went over relays since the start.
    #[must_use]
    pub fn counts(&self) -> RelayCounts {
        let counters = &self.shared.counters;
        RelayCounts {
            sent_packets: counters.sent_packets.load(Relaxed),
            sent_bytes: counters.sent_bytes.load(Relaxed),
            received_packets: counters.received_packets.load(Relaxed),
            received_bytes: counters.received_bytes.load(Relaxed),
            dropped_full: counters.dropped_full.load(Relaxed),
            dropped_no_link: counters.dropped_no_link.load(Relaxed),
            dropped_over_rate: counters.dropped_over_rate.load(Relaxed),
            dropped_too_large: counters.dropped_too_large.load(Relaxed),
        }
    }

    fn take(&mut self, report: Report) {
        self.current = Some((report.region, report.link, report.arrivals.into_iter()));
    }
}
