//! A host that runs a control server: the real coordinator behind simulated streams.
//!
//! The handshake and the records of the channel are the real ones; see [`wire`] for what is inside. What the coordinator
//! wants stored survives a crash once it is stored, and nothing else does.

pub mod link;
pub mod wire;

mod dial;
mod server;

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use control::{
    coordinator::{
        AdminId, Command, Config, ConnId, Coordinator, Input, Output, Request, RequestId, Response,
        StreamId as MapStreamId,
    },
    store::{Principal, Rows},
};
use mesh_core::{
    control::{
        ControlUrl, Interner, NetMap,
        netmap::decode,
        noise::{EarlyNoise, Initiation},
        types::{MapRequest, NodeId, RegisterRequest},
    },
    derp::DerpMap,
    key::{MachinePrivate, MachinePublic, NodePublic},
    machine::Deadline,
    rng::{Rng, Seed},
    time::{Instant, earliest},
};

use crate::{
    kernel::clock::HostClock,
    net::{NetId, Proto},
};

use super::{
    Effects, NodeEvent, Outgoing,
    http::{Head, Read},
    stack::{Stack, StackOutput, StreamId},
};
use link::KeyAnswer;
use server::{Server, Step};
use wire::{CONTROL_PORT, Channel, Greeting, SWITCHING, ToControl, ToNode, map_message};

/// What a control server is made of.
#[derive(Debug)]
pub struct ControlSetup {
    /// The net that it is in.
    pub net: NetId,
    /// Its addresses there.
    pub addresses: Vec<IpAddr>,
    /// Where nodes find it.
    pub url: ControlUrl,
    /// The relays that it tells of.
    pub derp_map: Arc<DerpMap>,
    /// How long its disk takes to store something.
    pub commit: Duration,
    /// What was set up before the world begins.
    pub preparation: Preparation,
    /// Where the randomness of its boots comes from.
    pub seed: Seed,
}

/// What is set up before the world begins.
#[derive(Clone, Debug, Default)]
pub struct Preparation {
    /// Users, by the names that they sign in with.
    pub users: Vec<String>,
    /// Auth keys.
    pub keys: Vec<KeySetup>,
    /// The policy; `None`: nothing is allowed.
    pub policy: Option<String>,
}

/// An auth key.
#[derive(Clone, Debug)]
pub struct KeySetup {
    /// What the scenario calls it.
    pub name: String,
    /// Whose.
    pub user: String,
    /// It is good for more than one node.
    pub reusable: bool,
    /// Its nodes are ephemeral.
    pub ephemeral: bool,
    /// Its nodes are these tags'.
    pub tags: Vec<String>,
    /// How long it is good.
    pub expiry: Option<Duration>,
}

/// What happens to a control server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlChange {
    /// Its program ends: streams are reset, and new ones refused.
    Kill,
    /// Its program starts, if it does not run.
    Start,
    /// Its program ends between two steps: one of so many next ones, drawn by lot. It starts again after a while.
    Crash {
        /// Steps at most.
        within: u64,
        /// How long it is gone.
        off: Duration,
    },
    /// Its program is stopped in the middle of what it does; its streams stay.
    Freeze,
    /// Its program goes on.
    Thaw,
    /// Nothing comes in or goes out any more.
    BlackHole,
    /// It is no black hole any more.
    Answer,
    /// All streams are reset; the program goes on.
    Reset,
}

/// A host that runs a control server.
#[derive(Debug)]
pub struct ControlHost {
    setup: ControlSetup,
    clock: HostClock,
    key: MachinePrivate,
    stack: Stack,
    /// How many policies were put in force since the world began.
    policies: usize,
    /// What is stored.
    rows: Rows,
    server: Option<Server>,
    conns: BTreeMap<ConnId, Conn>,
    by_stream: BTreeMap<StreamId, ConnId>,
    maps: BTreeMap<MapStreamId, (ConnId, RequestId)>,
    /// Nodes that wait for the answer to their registration, by request.
    registering: BTreeMap<(ConnId, RequestId), NodePublic>,
    /// Auth keys as the coordinator calls them, by name.
    key_ids: BTreeMap<String, String>,
    /// Commands that are not answered.
    commands: BTreeMap<AdminId, Command>,
    next_conn: u64,
    next_command: u64,
    boots: u64,
    dice: Rng,
    start_at: Option<Instant>,
    off: Duration,
    is_frozen: bool,
    is_black_hole: bool,
    /// What its streams said while it was frozen.
    held: VecDeque<StackOutput>,
}

#[derive(Debug)]
struct Conn {
    stream: StreamId,
    state: ConnState,
    /// What the stream had no room for.
    unsent: Vec<u8>,
    /// Maps whose last message is among that.
    owed: Vec<MapStreamId>,
}

#[derive(Debug)]
enum ConnState {
    /// Its request of HTTP/1 is not read yet.
    Greeting(Head),
    Open {
        channel: Box<Channel>,
        machine: MachinePublic,
    },
}

impl ControlHost {
    /// A server that was set up and is switched off, and its auth keys by name.
    ///
    /// # Panics
    /// When it refuses what is to be set up.
    #[must_use]
    pub fn new(setup: ControlSetup) -> (Self, BTreeMap<String, String>) {
        let clock = HostClock::new(&mut setup.seed.stream("clock", 0));
        let seed = setup.seed.child("preparation", 0);
        let now = clock.at(Instant::ZERO);
        let (rows, keys) = server::prepare(config(&setup), &setup.preparation, &seed, clock.anchor(), now);
        let host = Self {
            clock,
            key: MachinePrivate::generate(&mut setup.seed.stream("key", 0)),
            stack: Stack::new(&mut setup.seed.stream("streams", 0)),
            policies: 0,
            rows,
            server: None,
            conns: BTreeMap::new(),
            by_stream: BTreeMap::new(),
            maps: BTreeMap::new(),
            registering: BTreeMap::new(),
            // What stands between the second and the third stroke.
            key_ids: keys
                .iter()
                .filter_map(|(name, text)| Some((name.clone(), text.split('-').nth(2)?.to_owned())))
                .collect(),
            commands: BTreeMap::new(),
            next_conn: 0,
            next_command: 0,
            boots: 0,
            dice: setup.seed.stream("dice", 0),
            start_at: None,
            off: Duration::ZERO,
            is_frozen: false,
            is_black_hole: false,
            held: VecDeque::new(),
            setup,
        };
        (host, keys)
    }

    /// Something happens to it.
    pub fn change(&mut self, change: &ControlChange, world: Instant, effects: &mut Effects) {
        let now = self.clock.at(world);
        match change {
            ControlChange::Start => self.start(now, effects),
            ControlChange::Kill => self.stop(effects),
            ControlChange::Crash { within, off } => {
                let steps = self.dice.below(*within);
                self.off = *off;
                if let Some(server) = &mut self.server {
                    server.crash_after(steps);
                }
            }
            ControlChange::Freeze => self.is_frozen = true,
            ControlChange::Thaw => {
                self.is_frozen = false;
                for output in core::mem::take(&mut self.held) {
                    self.handle_stack(output, now, effects);
                }
            }
            ControlChange::BlackHole => self.is_black_hole = true,
            ControlChange::Answer => self.is_black_hole = false,
            ControlChange::Reset => self.stack.reset_all(),
        }
        self.settle(now, effects);
    }

    /// An operator wants something. It is told again to a server that ended before it had answered. Auth keys are called
    /// as in the scenario.
    pub fn handle_command(&mut self, mut command: Command, world: Instant, effects: &mut Effects) {
        let now = self.clock.at(world);
        if let Command::ExpireKey { id } = &mut command
            && let Some(known) = self.key_ids.get(id)
        {
            id.clone_from(known);
        }
        self.next_command += 1;
        let id = AdminId(self.next_command);
        self.commands.insert(id, command);
        self.tell_command(id, now);
        self.settle(now, effects);
    }

    /// A packet came.
    pub fn handle_packet(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        payload: &[u8],
        world: Instant,
        effects: &mut Effects,
    ) {
        let now = self.clock.at(world);
        self.stack.handle_segment(from, to, payload, now);
        self.settle(now, effects);
    }

    /// Lets due timers act.
    pub fn handle_timeout(&mut self, world: Instant, effects: &mut Effects) {
        let now = self.clock.at(world);
        if self.start_at.is_some_and(|at| at <= now) {
            self.start(now, effects);
        }
        self.settle(now, effects);
    }

    /// When [`Self::handle_timeout`] is wanted next, in the world's time.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let stack = self.stack.poll_timeout().filter(|_| !self.is_black_hole).map(|at| Deadline::new(at, "stream"));
        let server = self.server.as_ref().filter(|_| !self.is_frozen).and_then(Server::poll_timeout);
        let start = self.start_at.map(|at| Deadline::new(at, "start"));
        let deadline = earliest(start, earliest(stack, server))?;
        Some(Deadline { at: self.clock.world(deadline.at), why: deadline.why })
    }

    /// Whether anything comes in.
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        !self.is_black_hole
    }

    /// Whether its program runs and answers.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.server.is_some() && !self.is_frozen && !self.is_black_hole
    }

    /// The net that it is in.
    #[must_use]
    pub fn net(&self) -> NetId {
        self.setup.net
    }

    /// Its addresses.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.setup.addresses
    }

    /// Where nodes find it.
    #[must_use]
    pub fn url(&self) -> &ControlUrl {
        &self.setup.url
    }

    /// What is stored.
    #[must_use]
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// The coordinator that runs now.
    #[must_use]
    pub fn coordinator(&self) -> Option<&Coordinator> {
        self.server.as_ref().map(Server::coordinator)
    }

    /// Whether so many policies were put in force since the world began.
    #[must_use]
    pub fn has_policy(&self, number: usize) -> bool {
        self.policies >= number
    }

    /// The map of a node as the first message of a new stream would tell it now; none without a server or a node.
    pub fn map_of(&mut self, node: NodeId, interner: &mut Interner) -> Option<NetMap> {
        let update = self.server.as_mut()?.coordinator_mut().map_of(node)?;
        let response = decode(&update.render().to_json(), Some(interner)).ok()?;
        let mut map = NetMap::new();
        map.apply(response, self.clock.anchor().wall).ok()?;
        Some(map)
    }

    fn start(&mut self, now: Instant, effects: &mut Effects) {
        self.start_at = None;
        if self.server.is_some() {
            return;
        }
        let seed = self.setup.seed.child("boot", self.boots);
        self.boots += 1;
        let (config, clock) = (config(&self.setup), self.clock.anchor());
        self.server = Some(Server::new(config, &self.rows, &seed, clock, self.setup.commit, now));
        self.stack.listen(CONTROL_PORT);
        effects.events.push(NodeEvent::Started);
        for id in self.commands.keys().copied().collect::<Vec<_>>() {
            self.tell_command(id, now);
        }
    }

    fn stop(&mut self, effects: &mut Effects) {
        if self.server.take().is_some() {
            effects.events.push(NodeEvent::Stopped);
        }
        self.conns.clear();
        self.by_stream.clear();
        self.maps.clear();
        self.registering.clear();
        self.held.clear();
        self.is_frozen = false;
        self.stack.shut_down();
    }

    fn tell_command(&mut self, id: AdminId, now: Instant) {
        if let (Some(server), Some(command)) = (&mut self.server, self.commands.get(&id)) {
            let by = Principal::Operator("scenario".to_owned());
            server.handle_input(Input::Admin { id, by, command: command.clone() }, now);
        }
    }

    /// Goes on until neither the streams nor the server has anything left to say.
    fn settle(&mut self, now: Instant, effects: &mut Effects) {
        // What arrives when a timer is due does not hold it up.
        self.stack.handle_timeout(now);
        if let Some(server) = self.server.as_mut().filter(|_| !self.is_frozen) {
            server.handle_timeout(now);
        }
        loop {
            if let Some(output) = self.stack.poll_output() {
                match output {
                    StackOutput::Send { from, to, payload } => {
                        if !self.is_black_hole {
                            effects.packets.push(Outgoing { proto: Proto::Tcp, from, to, ttl: None, payload });
                        }
                    }
                    output if self.is_frozen => self.held.push_back(output),
                    output => self.handle_stack(output, now, effects),
                }
                continue;
            }
            let Some(server) = self.server.as_mut().filter(|_| !self.is_frozen) else { return };
            match server.next(&mut self.rows, now) {
                Step::Do(output) => self.carry_out(output, now, effects),
                Step::Crash => {
                    self.stop(effects);
                    self.start_at = Some(now + self.off);
                }
                Step::Wait => return,
            }
        }
    }

    fn handle_stack(&mut self, output: StackOutput, now: Instant, effects: &mut Effects) {
        match output {
            StackOutput::Accepted { stream, .. } => {
                let id = ConnId(self.next_conn);
                self.next_conn += 1;
                let state = ConnState::Greeting(Head::default());
                self.conns.insert(id, Conn { stream, state, unsent: Vec::new(), owed: Vec::new() });
                self.by_stream.insert(stream, id);
            }
            StackOutput::Received { stream, bytes } => {
                if let Some(id) = self.by_stream.get(&stream).copied() {
                    self.receive(id, &bytes, now, effects);
                }
            }
            StackOutput::Writable(stream) => {
                if let Some(id) = self.by_stream.get(&stream).copied() {
                    self.flush(id, now);
                }
            }
            StackOutput::Ended { stream, .. } => {
                if let Some(id) = self.by_stream.get(&stream).copied() {
                    self.forget(id, now);
                }
            }
            // It connects to nobody, and what is sent was sent.
            StackOutput::Connected(_) | StackOutput::Send { .. } => {}
        }
    }

    fn receive(&mut self, id: ConnId, bytes: &[u8], now: Instant, effects: &mut Effects) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        match &mut conn.state {
            ConnState::Greeting(head) => match head.read(bytes) {
                Read::Part => {}
                Read::Whole(head, rest) => match Greeting::parse(&head) {
                    Some(Greeting::Key) => {
                        let body = serde_json::to_vec(&KeyAnswer { public_key: self.key.public() });
                        let body = body.unwrap_or_default();
                        let length = body.len();
                        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
                        conn.unsent = [head.as_bytes(), &body].concat();
                        self.flush(id, now);
                        self.close(id, now);
                    }
                    Some(Greeting::Channel(initiation)) => self.open(id, &initiation, &rest, now, effects),
                    None => self.close(id, now),
                },
                Read::Nonsense => self.close(id, now),
            },
            ConnState::Open { channel, .. } => match channel.receive(bytes) {
                Ok(()) => self.hear(id, now, effects),
                Err(_) => self.close(id, now),
            },
        }
    }

    /// Answers a handshake.
    fn open(&mut self, id: ConnId, initiation: &[u8], rest: &[u8], now: Instant, effects: &mut Effects) {
        let opened = Initiation::open(initiation, &self.key);
        let mut rng = self.setup.seed.stream("handshake", id.0);
        let answered = opened.and_then(|opened| Ok((opened.machine(), opened.respond(&mut rng)?)));
        let (Ok((machine, (response, sealer, opener))), Some(conn)) = (answered, self.conns.get_mut(&id)) else {
            return self.close(id, now);
        };
        let mut channel = Box::new(Channel::new(sealer, opener));
        conn.unsent = [SWITCHING, &response].concat();
        let sealed = channel.seal(&EarlyNoise::default().to_bytes(), &mut conn.unsent);
        let received = channel.receive(rest);
        conn.state = ConnState::Open { channel, machine };
        if sealed.is_err() || received.is_err() {
            return self.close(id, now);
        }
        self.flush(id, now);
        self.hear(id, now, effects);
    }

    /// What a node said.
    fn hear(&mut self, id: ConnId, now: Instant, effects: &mut Effects) {
        loop {
            let Some(Conn { state: ConnState::Open { channel, machine }, .. }) = self.conns.get_mut(&id) else {
                return;
            };
            let machine = *machine;
            match channel.from_node() {
                Ok(None) => return,
                Ok(Some(said)) => {
                    effects.control_messages += 1;
                    self.take(id, machine, said, now, effects);
                }
                Err(_) => return self.close(id, now),
            }
        }
    }

    fn take(&mut self, conn: ConnId, machine: MachinePublic, said: ToControl, now: Instant, effects: &mut Effects) {
        match said {
            ToControl::Ping => self.say(conn, &ToNode::Pong, now, effects),
            ToControl::Cancel { id } => {
                self.registering.remove(&(conn, RequestId(id)));
                self.maps.retain(|_, of| *of != (conn, RequestId(id)));
                self.tell(Input::Aborted { conn, id: RequestId(id) }, now);
            }
            ToControl::Request { id, path, json } => {
                let request = match path.as_str() {
                    "/machine/register" => {
                        serde_json::from_slice::<RegisterRequest>(&json).map(|r| Request::Register(Box::new(r)))
                    }
                    "/machine/map" => serde_json::from_slice::<MapRequest>(&json).map(|r| Request::Map(Box::new(r))),
                    _ => return self.answer(conn, RequestId(id), 404, Vec::new(), now, effects),
                };
                let id = RequestId(id);
                match request {
                    Ok(request) => {
                        if let Request::Register(request) = &request {
                            self.registering.insert((conn, id), request.node_key);
                        }
                        self.tell(Input::Request { conn, machine, id, request }, now);
                    }
                    Err(error) => self.answer(conn, id, 400, error.to_string().into_bytes(), now, effects),
                }
            }
        }
    }

    fn carry_out(&mut self, output: Output, now: Instant, effects: &mut Effects) {
        match output {
            // The server itself stores.
            Output::Persist(_) => {}
            Output::Respond { conn, id, response } => self.respond(conn, id, response, now, effects),
            Output::Push(update) => {
                let Some(stream) = update.stream() else { return };
                let Some((conn, id)) = self.maps.get(&stream).copied() else { return };
                let bytes = map_message(&update.render().to_json());
                if let Some(conn) = self.conns.get_mut(&conn)
                    && !update.is_last()
                {
                    conn.owed.push(stream);
                }
                self.say(conn, &ToNode::Data { id: id.0, bytes }, now, effects);
            }
            Output::KeepAlive { stream } => {
                if let Some((conn, id)) = self.maps.get(&stream).copied() {
                    let bytes = map_message(br#"{"KeepAlive":true}"#);
                    self.say(conn, &ToNode::Data { id: id.0, bytes }, now, effects);
                }
            }
            Output::Close { stream } => {
                if let Some((conn, id)) = self.maps.remove(&stream) {
                    self.say(conn, &ToNode::End { id: id.0 }, now, effects);
                }
            }
            Output::Admin { id, result } => {
                let Some(command) = self.commands.remove(&id) else { return };
                if let Err(error) = result {
                    panic!("control refuses {command:?}: {error}");
                }
                if let Command::SetPolicy { text } = &command {
                    self.policies += 1;
                    let is_stored = self.rows.policy.as_ref().is_some_and(|policy| policy.text == *text);
                    effects.stored.push((!is_stored).then(|| "a policy is in force and not stored".to_owned()));
                }
            }
        }
    }

    fn respond(&mut self, conn: ConnId, id: RequestId, response: Response, now: Instant, effects: &mut Effects) {
        let registering = self.registering.remove(&(conn, id));
        match response {
            Response::Register(response) => {
                if let (Some(key), true) = (registering, response.machine_authorized && !response.node_key_expired) {
                    let is_stored = self.rows.nodes.values().any(|node| node.key == key);
                    effects.stored.push((!is_stored).then(|| format!("{key} was admitted and is not stored")));
                }
                let body = serde_json::to_vec(&*response).unwrap_or_default();
                self.answer(conn, id, 200, body, now, effects);
            }
            Response::Stream(stream) => {
                self.maps.insert(stream, (conn, id));
                self.say(conn, &ToNode::Opened { id: id.0 }, now, effects);
            }
            Response::Once(update) => {
                let bytes = map_message(&update.render().to_json());
                self.say(conn, &ToNode::Opened { id: id.0 }, now, effects);
                self.say(conn, &ToNode::Data { id: id.0, bytes }, now, effects);
                self.say(conn, &ToNode::End { id: id.0 }, now, effects);
            }
            Response::Updated => self.answer(conn, id, 200, Vec::new(), now, effects),
            Response::Done => self.answer(conn, id, 200, b"{}".to_vec(), now, effects),
            Response::Refused(refusal) => {
                let retry_after = refusal.retry_after.unwrap_or_default();
                let (status, body) = (refusal.status, refusal.text.into_bytes());
                self.say(conn, &ToNode::Answer { id: id.0, status, retry_after, body }, now, effects);
            }
        }
    }

    fn answer(&mut self, conn: ConnId, id: RequestId, status: u16, body: Vec<u8>, now: Instant, effects: &mut Effects) {
        self.say(conn, &ToNode::Answer { id: id.0, status, retry_after: Duration::ZERO, body }, now, effects);
    }

    fn say(&mut self, id: ConnId, said: &ToNode, now: Instant, effects: &mut Effects) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let ConnState::Open { channel, .. } = &mut conn.state else { return };
        effects.control_messages += 1;
        // No channel of a simulation carries 2^64 records.
        let _ = channel.say_to_node(said, &mut conn.unsent);
        self.flush(id, now);
    }

    /// Writes what is left, and says so when all of it had room.
    fn flush(&mut self, id: ConnId, now: Instant) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let taken = self.stack.write(conn.stream, &conn.unsent, now);
        conn.unsent.drain(..taken);
        if !conn.unsent.is_empty() {
            return;
        }
        for stream in core::mem::take(&mut conn.owed) {
            if self.maps.contains_key(&stream) {
                self.tell(Input::Writable { stream }, now);
            }
        }
    }

    fn close(&mut self, id: ConnId, now: Instant) {
        if let Some(conn) = self.conns.get(&id) {
            self.stack.close(conn.stream, now);
            self.forget(id, now);
        }
    }

    /// A connection is no more.
    fn forget(&mut self, id: ConnId, now: Instant) {
        let Some(conn) = self.conns.remove(&id) else { return };
        self.by_stream.remove(&conn.stream);
        self.registering.retain(|(of, _), _| *of != id);
        self.maps.retain(|_, (of, _)| *of != id);
        if matches!(conn.state, ConnState::Open { .. }) {
            self.tell(Input::Closed { conn: id }, now);
        }
    }

    fn tell(&mut self, input: Input, now: Instant) {
        if let Some(server) = &mut self.server {
            server.handle_input(input, now);
        }
    }
}

fn config(setup: &ControlSetup) -> Config {
    Config {
        server_url: setup.url.to_string(),
        base_domain: "mesh.simulated".to_owned(),
        derp_map: Arc::clone(&setup.derp_map),
    }
}
