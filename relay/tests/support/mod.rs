//! A relay with clients made of frames, all in one thread.

use core::{net::SocketAddr, time::Duration};
use std::collections::{BTreeMap, BTreeSet};

use mesh_core::{
    crypto::nacl::BoxKey,
    derp::{Frame, PeerGoneReason},
    key::{NodePrivate, NodePublic},
    machine::{Machine, settle},
    rng::Seed,
    time::Instant,
};
use relay::{Config, ConnId, Input, Output, Rate, Relay, admission::Policy, stats::CloseReason};

/// A relay and its clients. Streams deliver at once unless they are held.
pub(crate) struct Lab {
    pub(crate) relay: Relay,
    pub(crate) asked: Vec<(ConnId, NodePublic)>,
    now: Instant,
    heard: BTreeMap<ConnId, Vec<u8>>,
    held: BTreeSet<ConnId>,
    unsaid: BTreeSet<ConnId>,
    paused: BTreeSet<ConnId>,
    closed: BTreeMap<ConnId, CloseReason>,
}

/// What a client heard; keys by their number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    ServerKey,
    ServerInfo,
    Packet(u8, Vec<u8>),
    Gone(u8, PeerGoneReason),
    KeepAlive,
    Pong([u8; 8]),
    Health(String),
    Another,
}

impl Lab {
    pub(crate) fn new(policy: Policy, rate: Option<Rate>) -> Self {
        Self {
            relay: Relay::new(config(policy, rate)),
            asked: Vec::new(),
            now: Instant::from_secs(1000),
            heard: BTreeMap::new(),
            held: BTreeSet::new(),
            unsaid: BTreeSet::new(),
            paused: BTreeSet::new(),
            closed: BTreeMap::new(),
        }
    }

    pub(crate) fn open() -> Self {
        Self::new(Policy::Open, None)
    }

    /// Clients 1 to `count`, all in.
    pub(crate) fn with_clients(count: u8) -> Self {
        let mut lab = Self::open();
        for number in 1..=count {
            lab.join(number);
        }
        lab
    }

    pub(crate) fn accept(&mut self, id: u64) {
        self.input(Input::Accepted { conn: ConnId(id), from: address(1) });
    }

    pub(crate) fn join(&mut self, number: u8) {
        self.accept(u64::from(number));
        self.send(u64::from(number), &greeting(number, 0));
        assert_eq!(self.heard(u64::from(number)), [Said::ServerKey, Said::ServerInfo]);
    }

    pub(crate) fn send(&mut self, id: u64, bytes: &[u8]) {
        self.input(Input::Received { conn: ConnId(id), bytes });
    }

    pub(crate) fn send_frame(&mut self, id: u64, frame: &Frame<'_>) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.send(id, &bytes);
    }

    pub(crate) fn send_packet(&mut self, id: u64, to: u8, packet: &[u8]) {
        self.send_frame(id, &Frame::SendPacket { to: key(to), packet });
    }

    pub(crate) fn end(&mut self, id: u64) {
        self.input(Input::Closed { conn: ConnId(id) });
    }

    /// The stream takes one more write and then none.
    pub(crate) fn hold(&mut self, id: u64) {
        self.held.insert(ConnId(id));
    }

    pub(crate) fn release(&mut self, id: u64) {
        self.held.remove(&ConnId(id));
        if self.unsaid.remove(&ConnId(id)) {
            self.input(Input::Writable { conn: ConnId(id) });
        }
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.drain();
    }

    pub(crate) fn closed(&self, id: u64) -> Option<CloseReason> {
        self.closed.get(&ConnId(id)).copied()
    }

    pub(crate) fn is_paused(&self, id: u64) -> bool {
        self.paused.contains(&ConnId(id))
    }

    /// What a client heard since the last time.
    pub(crate) fn heard(&mut self, id: u64) -> Vec<Said> {
        let bytes = self.heard.remove(&ConnId(id)).unwrap_or_default();
        let mut rest = &bytes[..];
        let mut said = Vec::new();
        while let Some((frame, length)) = Frame::decode(rest).expect("the relay speaks DERP") {
            said.push(Said::of(&frame));
            rest = &rest[length..];
        }
        assert!(rest.is_empty(), "frames are whole once streams are quiet");
        said
    }

    pub(crate) fn input(&mut self, input: Input<'_>) {
        self.relay.handle_input(input, self.now);
        self.drain();
    }

    fn drain(&mut self) {
        loop {
            let outputs = settle(&mut self.relay, self.now);
            if outputs.is_empty() {
                return;
            }
            for output in outputs {
                self.carry_out(output);
            }
        }
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Write { conn, bytes } => {
                self.heard.entry(conn).or_default().extend(bytes);
                if self.held.contains(&conn) {
                    self.unsaid.insert(conn);
                } else {
                    self.relay.handle_input(Input::Writable { conn }, self.now);
                }
            }
            Output::Pause { conn } => assert!(self.paused.insert(conn), "paused twice"),
            Output::Resume { conn } => assert!(self.paused.remove(&conn), "not paused"),
            Output::Close { conn, reason } => {
                self.closed.insert(conn, reason);
            }
            Output::Transmit { .. } => {}
            Output::Admit { conn, node } => self.asked.push((conn, node)),
        }
    }
}

impl Said {
    fn of(frame: &Frame<'_>) -> Self {
        match frame {
            Frame::ServerKey(key) if *key == server().public() => Self::ServerKey,
            Frame::ServerInfo { .. } => Self::ServerInfo,
            Frame::RecvPacket { from, packet } => Self::Packet(number(from), packet.to_vec()),
            Frame::PeerGone { peer, reason } => Self::Gone(number(peer), *reason),
            Frame::KeepAlive => Self::KeepAlive,
            Frame::Pong(data) => Self::Pong(*data),
            Frame::Health(text) => Self::Health(String::from_utf8_lossy(text).into_owned()),
            _ => Self::Another,
        }
    }
}

pub(crate) fn config(policy: Policy, rate: Option<Rate>) -> Config {
    Config { key: server(), policy, rate, seed: Seed::from_number(1) }
}

/// The first frame of a client; each `nonce` makes another.
pub(crate) fn greeting(number: u8, nonce: u8) -> Vec<u8> {
    let mut nonce = [nonce; 24];
    nonce[0] = number;
    let shared = BoxKey::new(&private(number).to_bytes(), server().public().as_bytes()).expect("keys are good");
    let sealed = [&nonce[..], &shared.seal(&nonce, br#"{"version":2,"CanAckPings":true}"#)].concat();
    let mut bytes = Vec::new();
    Frame::ClientInfo { key: key(number), sealed: &sealed }.encode(&mut bytes);
    bytes
}

pub(crate) fn key(number: u8) -> NodePublic {
    private(number).public()
}

pub(crate) fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 41641))
}

fn number(public: &NodePublic) -> u8 {
    (1..=20).find(|number| key(*number) == *public).expect("a key of the lab")
}

fn private(number: u8) -> NodePrivate {
    NodePrivate::from_bytes([number; 32])
}

fn server() -> NodePrivate {
    NodePrivate::from_bytes([100; 32])
}
