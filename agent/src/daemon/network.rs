//! What a node that is found by others needs besides UDP: links to relays, word of changes of the underlay, DNS, and
//! small requests over HTTPS. The answers come back as inputs of the node, in the order in which they came.

use core::task::{Context, Poll};
use std::net::IpAddr;

use mesh_core::{
    control::ControlRequest,
    derp::{DerpNode, RegionId},
    key::{NodePrivate, NodePublic},
    netcheck::{FETCH_TIMEOUT, Family as MeasuredFamily, FetchFailed, FetchId, Fetched, ResolveFailed},
    node::{FetchRequest, HostEvent, Input, RelayCommand},
    rng::Seed,
};
use tokio::sync::mpsc;
use tracing::{debug, warn};
use transports::{
    control::{ControlDialer, ControlLink},
    derp::{Arrival, Dialer, Plain, RelayCounts, RelayLinks, Trust},
    fetch::{self, LATENCY_CHECK},
    host::LinkMonitor,
    net::Net,
    resolve,
    task::Task,
    udp::Family,
};

/// Answers that wait for the driver. At the bound whoever answers waits.
const ANSWERS: usize = 64;

/// What a node that is found by others needs besides UDP.
#[derive(Debug)]
pub struct Network {
    relays: RelayLinks,
    control: ControlLink,
    answer: mpsc::Sender<Input>,
    answers: mpsc::Receiver<Input>,
    /// Taken from `answers` to see whether there is one.
    next: Option<Input>,
    _monitor: Task,
}

/// What the network brought.
#[derive(Debug)]
pub enum Happening {
    /// A packet over a relay.
    Packet {
        /// The relay's region.
        region: RegionId,
        /// From whom.
        from: NodePublic,
        /// The packet.
        packet: Vec<u8>,
    },
    /// Something for the node.
    Input(Input),
}

impl Network {
    /// Nothing connected yet. `key` is who we are to relays at first; `seed` must be used for nothing else; `monitor` has said what the underlay looks like, and says when it changes.
    #[must_use]
    pub fn new(key: NodePrivate, seed: Seed, mut monitor: LinkMonitor) -> Self {
        let (answer, answers) = mpsc::channel(ANSWERS);
        let first = Input::Host(HostEvent::Links(monitor.state().clone()));
        let tell = answer.clone();
        let monitor = Task::spawn(async move {
            loop {
                match monitor.changed().await {
                    Ok(state) => {
                        debug!(?state, "the underlay changed");
                        if tell.send(Input::Host(HostEvent::Links(state))).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        warn!(%error, "changes of the underlay are not seen any more");
                        return;
                    }
                }
            }
        });
        let dialer = Dialer { net: Net::Host, trust: Trust::system(), plain: Plain::Never };
        let control = ControlDialer { net: Net::Host, trust: dialer.trust.clone() };
        Self {
            relays: RelayLinks::new(key, seed.child("relay links", 0), dialer),
            control: ControlLink::new(&seed.child("control link", 0), control),
            answer,
            answers,
            next: Some(first),
            _monitor: monitor,
        }
    }

    /// Does what the node says.
    pub fn handle_relay_command(&mut self, command: RelayCommand) {
        self.relays.handle_command(command);
    }

    /// Does what the node says about control.
    pub fn handle_control_request(&mut self, request: ControlRequest) {
        self.control.handle_request(request);
    }

    /// Asks over HTTPS.
    pub fn fetch(&self, id: FetchId, request: FetchRequest) {
        let FetchRequest::LatencyCheck { node } = request;
        let (dialer, answer) = (self.relays.dialer().clone(), self.answer.clone());
        tokio::spawn(async move {
            let result = latency(&dialer, &node).await;
            let _ = answer.send(Input::Fetched(id, result)).await;
        });
    }

    /// Asks DNS.
    pub fn resolve(&self, host: String) {
        let answer = self.answer.clone();
        tokio::spawn(async move {
            let result: Result<Vec<IpAddr>, _> = resolve::addresses(&host).await.map_err(|error| {
                debug!(host, %error, "name not resolved");
                ResolveFailed
            });
            let _ = answer.send(Input::Resolved { host, result }).await;
        });
    }

    /// Hands a packet to a region's relay.
    pub fn send(&mut self, region: RegionId, to: NodePublic, packet: Vec<u8>) {
        self.relays.send(region, to, packet);
    }

    /// What came next. Costs nothing when nothing has.
    pub fn try_recv(&mut self) -> Option<Happening> {
        if let Some(input) = self.next.take().or_else(|| self.answers.try_recv().ok()) {
            return Some(Happening::Input(input));
        }
        if let Some(event) = self.control.try_recv() {
            return Some(Happening::Input(Input::Control(event)));
        }
        Some(match self.relays.try_recv()? {
            Arrival::Packet { region, from, packet } => Happening::Packet { region, from, packet },
            Arrival::Event(event) => Happening::Input(Input::Relay(event)),
        })
    }

    /// Whether something came.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.next.is_none()
            && let Poll::Ready(Some(input)) = self.answers.poll_recv(cx)
        {
            self.next = Some(input);
        }
        if self.next.is_some() || self.control.poll_ready(cx).is_ready() {
            return Poll::Ready(());
        }
        self.relays.poll_ready(cx)
    }

    /// What went over relays since the start.
    #[must_use]
    pub fn relay_counts(&self) -> RelayCounts {
        self.relays.counts()
    }
}

async fn latency(dialer: &Dialer, node: &DerpNode) -> Result<Fetched, FetchFailed> {
    let answer = fetch::get(dialer, node, LATENCY_CHECK, &[], Family::V4, FETCH_TIMEOUT).await;
    let response = answer.map_err(|error| {
        debug!(host = node.host_name, %error, "latency not measured");
        FetchFailed
    })?;
    if response.status > 299 {
        debug!(host = node.host_name, status = response.status, "latency not measured");
        return Err(FetchFailed);
    }
    let family = match response.over {
        Family::V4 => MeasuredFamily::V4,
        Family::V6 => MeasuredFamily::V6,
    };
    Ok(Fetched { round_trip: response.took, family })
}
