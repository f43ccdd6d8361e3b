//! One connection to a relay, seen from the client; and which relays a node is connected to.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use mesh_core::{
    crypto::nacl::BoxKey,
    derp::{
        Frame, RegionId,
        client::{Client, CloseReason, Command, Event, Output, Start},
        frame::PeerGoneReason,
        relays::{self, Home, Network, Relays},
    },
    key::{NodePrivate, NodePublic},
    limits,
    rng::Seed,
    time::Instant,
};

use crate::script::Script;

/// A script for a client whose relay says what it likes, in pieces of any size. What the client writes is DERP, who it is
/// comes first, nobody is believed to be a relay who has not shown the key; every packet is sent in order or counted as
/// dropped; what is said by a relay is heard once. It never spins, and one that hears nothing gives up.
///
/// # Panics
/// When that is not so.
pub fn client(data: &[u8]) {
    let mut script = Script::new(data);
    let first = script.byte();
    let start = if first & 1 == 0 { Start::Slow } else { Start::Fast(relay(0).public()) };
    let now = Instant::from_secs(100);
    let client = Client::new(node(), start, Seed::from_number(1).stream("derp", 0), now);
    let mut world = World {
        client,
        now,
        start,
        wire: VecDeque::new(),
        greeted: None,
        is_ready: false,
        proven: BTreeSet::new(),
        closed: None,
        commanded: Vec::new(),
        sent: 0,
        received: 0,
    };
    world.drain();
    for _ in 0..300 {
        if script.is_done() {
            break;
        }
        world.step(&mut script);
        world.drain();
    }
    world.rest();
}

/// Whose turn it is to be the relay.
fn relay(number: u8) -> NodePrivate {
    NodePrivate::from_bytes([100 + number % 2; 32])
}

fn node() -> NodePrivate {
    NodePrivate::from_bytes([1; 32])
}

struct World {
    client: Client,
    now: Instant,
    start: Start,
    /// What the relay has said and the client has not read.
    wire: VecDeque<u8>,
    /// With whom the client speaks.
    greeted: Option<NodePublic>,
    is_ready: bool,
    /// Relays that have shown their key on the wire.
    proven: BTreeSet<NodePublic>,
    closed: Option<CloseReason>,
    /// Numbers of packets that were to be sent, and of those the first that may still be.
    commanded: Vec<usize>,
    sent: usize,
    received: u64,
}

impl World {
    fn step(&mut self, script: &mut Script<'_>) {
        let what = script.byte();
        match what % 12 {
            0 => self.say(Frame::ServerKey(relay(script.byte() / 64).public())),
            1 => self.prove(script),
            2 => self.wire.extend(script.chunk()),
            3..=5 => self.frame(script),
            6 | 7 => {
                let length = 4 + usize::from(script.short()) * 2;
                let mut packet = vec![what; length];
                packet[..4].copy_from_slice(&(self.commanded.len() as u32).to_be_bytes());
                self.commanded.push(length);
                let before = self.client.stats();
                self.client.handle_command(Command::Send { to: relay(1).public(), packet }, self.now);
                let after = self.client.stats();
                assert!(after.packets_too_large - before.packets_too_large <= u64::from(length > 64 << 10));
            }
            8 => {
                let choice = script.byte();
                let command = if choice & 2 > 0 { Command::Ask } else { Command::SetHome(choice & 1 > 0) };
                self.client.handle_command(command, self.now);
            }
            9 => self.deliver(1 + usize::from(script.byte())),
            10 => self.deliver(usize::MAX),
            _ => self.pass(Duration::from_millis(u64::from(script.short()))),
        }
    }

    fn say(&mut self, frame: Frame<'_>) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.wire.extend(bytes);
    }

    /// The box that shows who the relay is: right, of another relay, or with something else inside.
    fn prove(&mut self, script: &mut Script<'_>) {
        let (who, json) = (script.byte(), script.byte());
        let shared = BoxKey::new(&relay(who).to_bytes(), node().public().as_bytes()).expect("keys are good");
        let text: &[u8] = match json % 4 {
            0 => br#"{"version":2}"#,
            1 => br#"{"TokenBucketBytesPerSecond":1000,"TokenBucketBytesBurst":5000}"#,
            2 => script.chunk(),
            _ => b"{}",
        };
        let nonce = [json; 24];
        let sealed = [&nonce[..], &shared.seal(&nonce, text)].concat();
        self.proven.insert(relay(who).public());
        self.say(Frame::ServerInfo { sealed: &sealed });
    }

    fn frame(&mut self, script: &mut Script<'_>) {
        let (kind, from) = (script.byte(), NodePublic::from_bytes([script.byte(); 32]));
        match kind % 10 {
            0..=2 => self.say(Frame::RecvPacket { from, packet: script.chunk() }),
            3 => self.say(Frame::KeepAlive),
            4 => self.say(Frame::Ping(script.array())),
            5 => self.say(Frame::Pong(script.array())),
            6 => self.say(Frame::PeerGone { peer: from, reason: PeerGoneReason::NotHere }),
            7 => self.say(Frame::Health(script.chunk())),
            8 => self.say(Frame::Restarting { reconnect_in_ms: u32::MAX, try_for_ms: u32::from(script.short()) }),
            _ => self.say(Frame::Unknown(script.byte())),
        }
    }

    fn deliver(&mut self, bytes: usize) {
        let bytes: Vec<_> = self.wire.drain(..bytes.min(self.wire.len())).collect();
        self.client.handle_bytes(&bytes, self.now);
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        let mut timers = 0;
        while let Some(deadline) = self.client.poll_timeout().filter(|deadline| deadline.at <= until) {
            timers += 1;
            assert!(timers < 1_000, "spins: {deadline:?}");
            self.now = self.now.max(deadline.at);
            self.client.handle_timeout(self.now);
            let deadline = self.client.poll_timeout();
            assert!(deadline.is_none_or(|deadline| deadline.at > self.now), "{deadline:?} at {}", self.now);
            self.drain();
        }
        self.now = until;
    }

    fn drain(&mut self) {
        while let Some(output) = self.client.poll_output() {
            assert_eq!(self.closed, None, "nothing follows a close, not {output:?}");
            match output {
                Output::Write(bytes) => self.read(&bytes),
                Output::Event(event) => self.hear(event),
                Output::Close(reason) => {
                    assert_eq!(self.client.poll_timeout(), None);
                    self.closed = Some(reason);
                }
            }
        }
        let stats = self.client.stats();
        assert_eq!(stats.packets_received, self.received);
        let waiting = self.commanded.len() as u64
            - (stats.packets_sent + stats.packets_dropped + stats.packets_too_large).min(self.commanded.len() as u64);
        assert!(self.closed.is_some() || waiting <= limits::RELAY_MAILBOX as u64, "{waiting} wait");
        assert!(self.greeted.is_none() || self.closed.is_some() || waiting == 0, "{waiting} are nowhere");
        assert!(stats.packets_dropped == 0 || self.start == Start::Slow);
    }

    fn read(&mut self, bytes: &[u8]) {
        let (frame, length) = Frame::decode(bytes).expect("it is DERP").expect("it is whole");
        assert_eq!(length, bytes.len(), "one frame");
        match frame {
            Frame::ClientInfo { key, .. } => {
                assert_eq!((key, self.greeted), (node().public(), None));
                self.greeted = match self.start {
                    Start::Fast(key) => Some(key),
                    // It greets whoever says a key first; which that was the bytes say.
                    Start::Slow => Some([relay(0), relay(1)].map(|relay| relay.public()))
                        .and_then(|keys| keys.into_iter().find(|key| opens(key, frame))),
                };
                // Another key may have been in raw bytes; it is nobody's.
                self.greeted = self.greeted.or(Some(NodePublic::from_bytes([0; 32])));
            }
            other => {
                assert!(self.greeted.is_some(), "{other:?} before the greeting");
                match other {
                    Frame::SendPacket { packet, .. } => {
                        let number = u32::from_be_bytes(packet[..4].try_into().expect("four bytes")) as usize;
                        assert!(number >= self.sent && self.commanded[number] == packet.len(), "out of order");
                        self.sent = number + 1;
                    }
                    Frame::Ping(_) | Frame::Pong(_) | Frame::NotePreferred(_) => {}
                    other => panic!("a relay has no use for {other:?}"),
                }
            }
        }
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Ready { server, .. } => {
                assert!(!self.is_ready && self.proven.contains(&server), "{server} has not shown its key");
                assert_eq!(Some(server), self.greeted);
                self.is_ready = true;
            }
            Event::Received { packet, .. } => {
                assert!(packet.len() <= 64 << 10);
                self.received += 1;
            }
            Event::Health(text) => assert!(text.is_none_or(|text| !text.is_empty())),
            Event::PeerGone { .. } | Event::Restarting { .. } => {}
        }
    }

    /// A relay that says nothing more is given up.
    fn rest(&mut self) {
        self.deliver(usize::MAX);
        self.drain();
        self.pass(Duration::from_secs(200));
        assert!(self.closed.is_some(), "{:?}", self.client);
        self.client.handle_bytes(&[0; 64], self.now);
        self.client.handle_command(Command::SetHome(true), self.now);
        self.client.handle_timeout(self.now);
        assert_eq!(self.client.poll_output(), None);
    }
}

/// Whether a greeting is for the relay of this key.
fn opens(key: &NodePublic, greeting: Frame<'_>) -> bool {
    let Frame::ClientInfo { sealed, .. } = greeting else { return false };
    let private = [relay(0), relay(1)].into_iter().find(|relay| relay.public() == *key).expect("one of them");
    let shared = BoxKey::new(&private.to_bytes(), node().public().as_bytes()).expect("keys are good");
    sealed.split_first_chunk().is_some_and(|(nonce, sealed)| shared.open(nonce, sealed).is_ok())
}

/// A script for the choice of relays: connections that come about, break and end, maps, homes and networks that change.
/// There is at most one connection a region, only to regions of the map and while there is a network; only what is open is
/// closed, only who is connected is told; the home is held.
///
/// # Panics
/// When that is not so.
pub fn links(data: &[u8]) {
    let mut script = Script::new(data);
    let mut links = Links {
        relays: Relays::new(Seed::from_number(1).stream("relays", 0)),
        now: Instant::from_secs(100),
        known: BTreeSet::new(),
        home: None,
        network: Network::Up,
        connecting: BTreeSet::new(),
        connected: BTreeSet::new(),
    };
    for _ in 0..300 {
        if script.is_done() {
            break;
        }
        links.step(&mut script);
        links.drain();
    }
    links.rest();
}

struct Links {
    relays: Relays,
    now: Instant,
    known: BTreeSet<RegionId>,
    home: Option<RegionId>,
    network: Network,
    connecting: BTreeSet<RegionId>,
    connected: BTreeSet<RegionId>,
}

impl Links {
    fn step(&mut self, script: &mut Script<'_>) {
        let what = script.byte();
        let region = region(script.byte());
        let now = if what & 0x80 == 0 { self.now } else { Instant::ZERO };
        match what % 10 {
            0 => {
                self.known = regions(script.byte());
                self.relays.set_regions(self.known.clone(), &regions(script.byte()), now);
            }
            1 => {
                self.home = (what & 0x40 == 0).then_some(region);
                self.relays.set_home(self.home, now);
            }
            2 => {
                self.network = if what & 0x40 == 0 { Network::Up } else { Network::Down };
                self.relays.set_network(self.network, now);
            }
            3 => self.relays.note_use(region, now),
            4 => self.relays.note_silence(region, now),
            5 => {
                // A driver says of a connection that it asked for how it ended; late ones are of before.
                if self.connecting.remove(&region) {
                    self.connected.insert(region);
                }
                self.relays.handle_connected(region, now);
            }
            6 => {
                self.connecting.remove(&region);
                self.connected.remove(&region);
                self.relays.handle_failed(region, now);
            }
            7 => self.relays.handle_restarting(region, Duration::from_millis(u64::from(script.short())), now),
            8 => self.pass(Duration::from_millis(u64::from(script.byte()) * 4)),
            _ => self.pass(Duration::from_secs(u64::from(script.byte()))),
        }
    }

    fn pass(&mut self, time: Duration) {
        self.drain();
        let until = self.now + time;
        let mut timers = 0;
        while let Some(deadline) = self.relays.poll_timeout().filter(|deadline| deadline.at <= until) {
            timers += 1;
            assert!(timers < 1_000, "spins: {deadline:?}");
            self.now = self.now.max(deadline.at);
            self.relays.handle_timeout(self.now);
            self.drain();
            let deadline = self.relays.poll_timeout();
            assert!(deadline.is_none_or(|deadline| deadline.at > self.now), "{deadline:?} at {}", self.now);
        }
        self.now = until;
    }

    fn drain(&mut self) {
        while let Some(output) = self.relays.poll_output() {
            match output {
                relays::Output::Connect(region) => {
                    assert!(self.known.contains(&region) && self.network == Network::Up, "{region} is not there");
                    assert!(!self.connected.contains(&region), "{region} is connected to");
                    assert!(self.connecting.insert(region), "{region} is being connected to");
                }
                relays::Output::Close(region) => {
                    let was_open = self.connecting.remove(&region) | self.connected.remove(&region);
                    assert!(was_open, "{region} is not open");
                }
                relays::Output::TellHome { region, home } => {
                    assert!(self.connected.contains(&region), "{region} does not hear");
                    assert_eq!(home == Home::Here, self.home == Some(region));
                }
                relays::Output::Ask(region) => {
                    assert!(self.connected.contains(&region) && self.home == Some(region), "{region} owes nothing");
                }
            }
        }
        for number in 0..=7 {
            let region = region(number);
            assert_eq!(self.relays.is_connected(region), self.connected.contains(&region), "{region}");
        }
        assert!(self.network == Network::Up || (self.connecting.is_empty() && self.connected.is_empty()));
        let stats = self.relays.stats();
        assert!(stats.connected <= stats.connects && stats.idle_closes <= stats.connects);
    }

    /// The home is connected to or being connected to before long, and nothing else for ever.
    fn rest(&mut self) {
        self.pass(Duration::from_secs(120));
        let home = self.home.filter(|home| self.known.contains(home) && self.network == Network::Up);
        let open: BTreeSet<_> = self.connecting.union(&self.connected).copied().collect();
        assert_eq!(open, home.into_iter().collect());
    }
}

fn region(byte: u8) -> RegionId {
    RegionId::new(u16::from(byte % 8) + 1).expect("not zero")
}

fn regions(bits: u8) -> BTreeSet<RegionId> {
    (0..8).filter(|bit| bits & (1 << bit) != 0).map(region).collect()
}
