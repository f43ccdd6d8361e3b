//! The connections of a node to relays: what the daemon's relay links are to a real one.
//!
//! The node says to which regions it wants to be connected, and to which of their relays in which order. Here each is
//! dialled, spoken to with the real DERP client, and told of. Packets that are sent while a connection is being made
//! wait, as many as the bound allows; when a stream takes nothing more, packets are dropped rather than piled up.

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use std::collections::{BTreeMap, VecDeque};

use mesh_core::{
    derp::{
        Client, DerpNode, RegionId,
        client::{Command, Event, Output, Start},
        map::HostAddr,
        relays::Home,
    },
    key::{NodePrivate, NodePublic},
    limits,
    machine::Deadline,
    node::{RelayCommand, RelayEvent},
    rng::Seed,
    time::{Instant, earliest},
};

use super::{
    http::{self, Head, Read, Request},
    names::{Lookup, Names},
    relay::frames_in,
    stack::{Stack, StackOutput, StreamId},
};

/// For one address of a relay to answer.
const DIAL: Duration = Duration::from_secs(3);

/// Bytes that wait because a stream takes nothing more. At the bound a new packet is dropped, counted: what is older is
/// on its way in pieces already.
const UNSENT: usize = 64 << 10;

/// Bytes that a stream takes before it has sent the last ones: as the agent's.
const STREAM_UNSENT: usize = 128 << 10;

/// What is to be told of connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinksOutput {
    /// Tell the node.
    Event(RelayEvent),
    /// A packet for the data plane.
    Packet {
        /// Over which region.
        region: RegionId,
        /// From whom; the relay vouches for it.
        from: NodePublic,
        /// The packet.
        packet: Vec<u8>,
    },
}

/// The connections of a node to relays.
#[derive(Debug)]
pub struct Links {
    key: NodePrivate,
    seed: Seed,
    /// What relays' certificates name, by host name: with these neither side waits for the other.
    certificates: BTreeMap<String, NodePublic>,
    links: BTreeMap<RegionId, Link>,
    made: u64,
    outputs: VecDeque<LinksOutput>,
    dropped: u64,
    frames: u64,
}

#[derive(Debug)]
struct Link {
    /// Where it can still be tried.
    untried: VecDeque<DerpNode>,
    /// The relay that is tried now, or taken.
    host_name: String,
    addresses: VecDeque<SocketAddr>,
    start: Start,
    state: State,
    home: Home,
    waiting: VecDeque<(NodePublic, Vec<u8>)>,
}

#[derive(Debug)]
enum State {
    New,
    Resolving { lookup: Lookup, port: u16 },
    Dialling { stream: StreamId, until: Instant },
    Open { stream: StreamId, client: Box<Client>, unsent: Vec<u8>, answer: Option<Head> },
}

impl Links {
    /// No connections.
    #[must_use]
    pub fn new(key: NodePrivate, certificates: BTreeMap<String, NodePublic>, seed: Seed) -> Self {
        Self {
            key,
            seed,
            certificates,
            links: BTreeMap::new(),
            made: 0,
            outputs: VecDeque::new(),
            dropped: 0,
            frames: 0,
        }
    }

    /// The node wants something done.
    pub fn handle_command(&mut self, command: RelayCommand, host: &mut Net<'_>, now: Instant) {
        match command {
            RelayCommand::SetKey(key) => self.key = key,
            RelayCommand::Connect { region, nodes } => {
                self.close(region, host, now);
                let link = Link {
                    untried: nodes.into(),
                    host_name: String::new(),
                    addresses: VecDeque::new(),
                    start: Start::Slow,
                    state: State::New,
                    home: Home::Elsewhere,
                    waiting: VecDeque::new(),
                };
                self.links.insert(region, link);
                self.dial(region, "no relay of the region has an address", host, now);
            }
            RelayCommand::Close { region } => self.close(region, host, now),
            RelayCommand::SetHome { region, home } => {
                let Some(link) = self.links.get_mut(&region) else { return };
                link.home = home;
                if let State::Open { client, .. } = &mut link.state {
                    client.handle_command(Command::SetHome(home == Home::Here), now);
                    self.settle(region, host, now);
                }
            }
            RelayCommand::Ask { region } => {
                if let Some(Link { state: State::Open { client, .. }, .. }) = self.links.get_mut(&region) {
                    client.handle_command(Command::Ask, now);
                }
            }
        }
    }

    /// Sends a packet over a region. Dropped, counted, when there is no connection to it.
    pub fn send(&mut self, region: RegionId, to: NodePublic, packet: Vec<u8>, host: &mut Net<'_>, now: Instant) {
        let Some(link) = self.links.get_mut(&region) else {
            self.dropped += 1;
            return;
        };
        match &mut link.state {
            State::Open { unsent, .. } if unsent.len() >= UNSENT => self.dropped += 1,
            State::Open { client, .. } => {
                client.handle_command(Command::Send { to, packet }, now);
                self.settle(region, host, now);
            }
            State::New | State::Resolving { .. } | State::Dialling { .. } => {
                if link.waiting.len() >= limits::RELAY_MAILBOX {
                    link.waiting.pop_front();
                    self.dropped += 1;
                }
                link.waiting.push_back((to, packet));
            }
        }
    }

    /// Something happened to a stream. `false` when it is none of ours.
    pub fn handle_stack(&mut self, output: &StackOutput, host: &mut Net<'_>, now: Instant) -> bool {
        let Some(of) = output.own() else { return false };
        let Some((region, link)) = self.links.iter_mut().find(|(_, link)| link.state.stream() == Some(of)) else {
            return false;
        };
        let region = *region;
        match (output, &mut link.state) {
            (StackOutput::Connected(stream), _) => {
                let rng = self.seed.stream("client", self.made);
                self.made += 1;
                let mut client = Client::new(self.key.clone(), link.start, rng, now);
                client.handle_command(Command::SetHome(link.home == Home::Here), now);
                for (to, packet) in link.waiting.drain(..) {
                    client.handle_command(Command::Send { to, packet }, now);
                }
                let (request, answer) = match link.start {
                    Start::Fast(_) => (Request::FastStart, None),
                    Start::Slow => (Request::Upgrade, Some(Head::default())),
                };
                let unsent = request.emit(&link.host_name);
                link.state = State::Open { stream: *stream, client: Box::new(client), unsent, answer };
            }
            (StackOutput::Received { bytes, .. }, State::Open { client, answer: None, .. }) => {
                client.handle_bytes(bytes, now);
            }
            (StackOutput::Received { bytes, stream }, State::Open { client, answer, .. }) => {
                match answer.as_mut().map_or(Read::Nonsense, |head| head.read(bytes)) {
                    Read::Part => {}
                    Read::Whole(head, rest) if http::is_good(&head) => {
                        *answer = None;
                        client.handle_bytes(&rest, now);
                    }
                    Read::Whole(..) | Read::Nonsense => {
                        host.stack.close(*stream, now);
                        self.links.remove(&region);
                        self.fail(region, "the relay does not speak DERP");
                        return true;
                    }
                }
            }
            (StackOutput::Ended { end, .. }, State::Open { .. }) => {
                self.links.remove(&region);
                self.fail(region, end.text());
                return true;
            }
            (StackOutput::Ended { end, .. }, _) => {
                let why = end.text();
                self.dial(region, why, host, now);
                return true;
            }
            _ => {}
        }
        self.settle(region, host, now);
        true
    }

    /// A name was looked up, or that failed.
    pub fn handle_names(&mut self, host: &mut Net<'_>, now: Instant) {
        let done: Vec<_> = self
            .links
            .iter()
            .filter_map(|(region, link)| match &link.state {
                State::Resolving { lookup, port } => Some((*region, host.names.answer(*lookup)?, *port)),
                State::New | State::Dialling { .. } | State::Open { .. } => None,
            })
            .collect();
        for (region, addresses, port) in done {
            if let Some(link) = self.links.get_mut(&region) {
                link.addresses = host.usable(addresses, port);
            }
            self.dial(region, "its name has no address", host, now);
        }
    }

    /// Lets due timers act.
    pub fn handle_timeout(&mut self, host: &mut Net<'_>, now: Instant) {
        for region in self.links.keys().copied().collect::<Vec<_>>() {
            let Some(link) = self.links.get_mut(&region) else { continue };
            match &mut link.state {
                State::Dialling { stream, until } if *until <= now => {
                    host.stack.close(*stream, now);
                    self.dial(region, "the relay does not answer", host, now);
                }
                State::Open { client, .. } => {
                    client.handle_timeout(now);
                    self.settle(region, host, now);
                }
                State::New | State::Dialling { .. } | State::Resolving { .. } => {}
            }
        }
    }

    /// When [`Self::handle_timeout`] is wanted next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let of = |link: &Link| match &link.state {
            State::New | State::Resolving { .. } => None,
            State::Dialling { until, .. } => Some(Deadline::new(*until, "relay dial")),
            State::Open { client, .. } => client.poll_timeout(),
        };
        self.links.values().fold(None, |first, link| earliest(first, of(link)))
    }

    /// The next thing to tell.
    pub fn poll_output(&mut self) -> Option<LinksOutput> {
        self.outputs.pop_front()
    }

    /// Whether there is nothing to do, now or later.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.links.is_empty() && self.outputs.is_empty()
    }

    /// Packets that ended here.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Frames that were written since this was asked last.
    pub fn take_frames(&mut self) -> u64 {
        core::mem::take(&mut self.frames)
    }

    /// Tries the next address.
    fn dial(&mut self, region: RegionId, why: &str, host: &mut Net<'_>, now: Instant) {
        loop {
            let Some(link) = self.links.get_mut(&region) else { return };
            if let Some(address) = link.addresses.pop_front() {
                // The host may have lost its address of this family since.
                let Some(own) = host.source(address.ip()) else { continue };
                let stream = host.stack.connect(own, address, now);
                host.stack.set_unsent_max(stream, STREAM_UNSENT);
                link.state = State::Dialling { stream, until: now + DIAL };
                return;
            }
            let Some(node) = link.untried.pop_front() else {
                self.links.remove(&region);
                self.fail(region, why);
                return;
            };
            let Some(port) = node.derp_port() else { continue };
            link.start = self.certificates.get(&node.host_name).map_or(Start::Slow, |key| Start::Fast(*key));
            link.host_name.clone_from(&node.host_name);
            link.addresses = host.addresses_of(&node, port);
            if link.addresses.is_empty()
                && let Some(lookup) = host.look_up(&node, now)
            {
                link.state = State::Resolving { lookup, port };
                return;
            }
        }
    }

    /// Carries out what a client has to say.
    fn settle(&mut self, region: RegionId, host: &mut Net<'_>, now: Instant) {
        let Some(Link { state: State::Open { stream, client, unsent, .. }, .. }) = self.links.get_mut(&region) else {
            return;
        };
        let mut closed = None;
        while let Some(output) = client.poll_output() {
            match output {
                Output::Write(bytes) => {
                    self.frames += frames_in(&bytes);
                    unsent.extend(bytes);
                }
                Output::Event(Event::Ready { .. }) => {
                    self.outputs.push_back(LinksOutput::Event(RelayEvent::Connected { region }));
                }
                Output::Event(Event::Received { from, packet }) => {
                    self.outputs.push_back(LinksOutput::Packet { region, from, packet });
                }
                Output::Event(Event::PeerGone { peer, .. }) => {
                    self.outputs.push_back(LinksOutput::Event(RelayEvent::PeerGone { region, peer }));
                }
                Output::Event(Event::Health(problem)) => {
                    self.outputs.push_back(LinksOutput::Event(RelayEvent::Health { region, problem }));
                }
                Output::Event(Event::Restarting { reconnect_in, .. }) => {
                    self.outputs.push_back(LinksOutput::Event(RelayEvent::Restarting { region, reconnect_in }));
                }
                Output::Close(reason) => closed = Some(reason.to_string()),
            }
        }
        let taken = host.stack.write(*stream, unsent, now);
        unsent.drain(..taken);
        if let Some(reason) = closed {
            host.stack.close(*stream, now);
            self.links.remove(&region);
            self.fail(region, &reason);
        }
    }

    fn close(&mut self, region: RegionId, host: &mut Net<'_>, now: Instant) {
        if let Some(stream) = self.links.remove(&region).and_then(|link| link.state.stream()) {
            host.stack.close(stream, now);
        }
    }

    fn fail(&mut self, region: RegionId, why: &str) {
        self.outputs.push_back(LinksOutput::Event(RelayEvent::Failed { region, reason: why.to_owned() }));
    }
}

/// What connections need of their host.
#[derive(Debug)]
pub struct Net<'h> {
    /// Its addresses.
    pub addresses: &'h [IpAddr],
    /// Its streams.
    pub stack: &'h mut Stack,
    /// What it knows of names.
    pub names: &'h mut Names,
}

impl Net<'_> {
    /// The host's own address for sending there.
    pub(super) fn source(&self, to: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().find(|own| own.is_ipv4() == to.is_ipv4()).copied()
    }

    /// Those that the host can send to.
    pub(super) fn usable(&self, addresses: Vec<IpAddr>, port: u16) -> VecDeque<SocketAddr> {
        let usable = addresses.into_iter().filter(|address| self.source(*address).is_some());
        usable.map(|address| SocketAddr::new(address, port)).collect()
    }

    /// Where a relay is, as far as the map says it.
    pub(super) fn addresses_of(&self, node: &DerpNode, port: u16) -> VecDeque<SocketAddr> {
        self.usable([literal(node.v4()), literal(node.v6())].into_iter().flatten().collect(), port)
    }

    /// Asks for a relay's name, if the map says to.
    pub(super) fn look_up(&mut self, node: &DerpNode, now: Instant) -> Option<Lookup> {
        let is_named = node.v4() == HostAddr::Dns || node.v6() == HostAddr::Dns;
        if is_named { self.names.ask(&node.host_name, now) } else { None }
    }
}

impl State {
    fn stream(&self) -> Option<StreamId> {
        match self {
            Self::New | Self::Resolving { .. } => None,
            Self::Dialling { stream, .. } | Self::Open { stream, .. } => Some(*stream),
        }
    }
}

fn literal<T: Into<IpAddr>>(address: HostAddr<T>) -> Option<IpAddr> {
    match address {
        HostAddr::Literal(address) => Some(address.into()),
        HostAddr::Dns | HostAddr::Disabled => None,
    }
}
