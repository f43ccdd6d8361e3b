//! A host that runs a control server: the real coordinator behind simulated streams.
//!
//! The handshake and the records of the channel are the real ones; see [`wire`] for what is inside. What the coordinator
//! wants stored survives a crash once it is stored, and nothing else does.

pub mod link;
pub mod wire;

mod dial;
mod server;
mod talk;

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use control::{
    coordinator::{AdminId, Command, Config, ConnId, Coordinator, Input, RequestId, StreamId as MapStreamId},
    store::{Principal, Rows},
};
use mesh_core::{
    control::{ControlUrl, Interner, NetMap, netmap::decode, types::NodeId},
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
    http::Head,
    stack::{Stack, StackOutput, StreamId},
};
use server::{Crashed, Server};
use wire::{CONTROL_PORT, Channel};

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
    /// Where the node is.
    from: IpAddr,
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
            match server.next_output(&mut self.rows, now) {
                Ok(Some(output)) => self.carry_out(output, now, effects),
                Err(Crashed) => {
                    self.stop(effects);
                    self.start_at = Some(now + self.off);
                }
                Ok(None) => return,
            }
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
