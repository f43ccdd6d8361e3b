//! The coordinator: the one owner of what the server knows.
//!
//! Nodes ask, those who run the server command, times come. Each makes a change of the state or none; the change gets a
//! version, its rows are given out to be stored, and what was asked is answered after that. Whom the change concerns and
//! has a map open learns of it by the next push: changes are gathered for a moment, then each such stream gets one
//! message that tells how things are, made of the log from where the stream was left.
//!
//! * `register`, `sign_in`, `expiry`: who is let in, and for how long
//! * `clone`: two machines with the keys of one node
//! * `map`, `pace`, `streams`, `push`: what nodes say of themselves, how often, their open maps, and when those are told what
//! * `admin`, `admin_nodes`, `admin_policy`: commands
//!
//! Nothing is known here of sockets, of HTTP or of how messages are compressed, and nothing waits.
//!
//! What the driver must see to: outputs are carried out in order, and nothing after an [`Output::Persist`] before that is
//! on disk. A server that crashed is made again by [`Coordinator::restore`] from what was persisted; nodes that were
//! connected come back by themselves.

mod admin;
mod admin_nodes;
mod admin_policy;
mod clone;
pub mod command;
pub mod counters;
mod expiry;
mod hostinfo;
pub mod input;
mod map;
pub mod output;
mod pace;
mod push;
mod register;
mod sign_in;
mod signins;
mod streams;
mod timers;

use core::{net::IpAddr, time::Duration};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use mesh_core::{
    control::types::NodeId,
    derp::DerpMap,
    key::{MachinePublic, NodePublic},
    machine::{Deadline, Machine},
    never,
    rng::{Rng, Seed},
    time::{Instant, WallAnchor, WallTime},
};
use serde_json::Value;

pub use admin_policy::check_policy_alone;
pub use command::{AdminError, Command, KeyView, NodeView, Reply, Secret, SignInView};
pub use counters::{Counters, Status};
pub use input::{AdminId, ConnId, Endpoint, Input, Request, RequestId, StreamId};
pub use output::{Output, Refusal, Response};

use crate::{
    limits, names,
    policy::Policy,
    render::MapUpdate,
    store::{AuditRow, Mutation, Principal, Rows, State, node::Member},
};
use clone::Displaced;
use pace::Pace;
use signins::SignIns;
use streams::Streams;
use timers::{Timer, Timers};

/// How a server is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where nodes reach the server, without a slash at the end: sign-in URLs begin with it.
    pub server_url: String,
    /// What the names of nodes end in, such as `mesh.internal`.
    pub base_domain: String,
    /// The relays; at least one region that can be a home.
    pub derp_map: Arc<DerpMap>,
}

/// Why a server cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not a domain, or too long for names of nodes before it.
    #[error("the base domain {0:?} is not a domain name in small letters of at most 189 of them")]
    BaseDomain(String),
    /// There is nowhere to meet.
    #[error("the DERP map has no region with a relay that can be a home: nodes would wait for one for ever")]
    NoRelays,
    /// The stored policy cannot be read.
    #[error("the stored policy is not good: {0}")]
    Policy(String),
}

/// The coordinator. Its clock and its dice are the driver's.
#[derive(Debug)]
pub struct Coordinator {
    config: Config,
    state: State,
    streams: Streams,
    sign_ins: SignIns,
    pace: Pace,
    timers: Timers,
    /// Answers and messages that follow what has to be stored first.
    pending: Vec<Output>,
    outputs: VecDeque<Output>,
    counters: Counters,
    rng: Rng,
    clock: WallAnchor,
    now: Instant,
    /// By whose stream the one before was ended.
    displaced: BTreeMap<NodeId, Displaced>,
    /// Since when changes are gathered.
    gathering: Option<Instant>,
    /// When first maps were made last.
    opened: Option<Instant>,
}

/// Who asks, and where the answer goes.
#[derive(Clone, Copy, Debug)]
struct Caller {
    conn: ConnId,
    id: RequestId,
    machine: MachinePublic,
    from: IpAddr,
}

impl Coordinator {
    /// A server with what was stored; [`Rows::default`] for a new one. Nobody is connected. The seed has to be another at
    /// each start: ids and the secrets of keys are drawn from it.
    ///
    /// # Errors
    /// When the configuration or the stored policy is not good.
    pub fn restore(
        config: Config,
        rows: Rows,
        seed: &Seed,
        clock: WallAnchor,
        now: Instant,
    ) -> Result<Self, ConfigError> {
        if !names::is_base_domain(&config.base_domain) {
            return Err(ConfigError::BaseDomain(config.base_domain));
        }
        if !has_home(&config.derp_map) {
            return Err(ConfigError::NoRelays);
        }
        let policy = match &rows.policy {
            None => Policy::none(),
            Some(row) => Policy::parse(&row.text).map_err(|problems| ConfigError::Policy(problems.to_string()))?,
        };
        let state = State::new(rows, policy, Arc::clone(&config.derp_map), &config.base_domain, clock.wall_at(now));
        let mut coordinator = Self {
            config,
            state,
            streams: Streams::default(),
            sign_ins: SignIns::default(),
            pace: Pace::default(),
            timers: Timers::default(),
            pending: Vec::new(),
            outputs: VecDeque::new(),
            counters: Counters::default(),
            rng: seed.stream("coordinator", 0),
            clock,
            now,
            displaced: BTreeMap::new(),
            gathering: None,
            opened: None,
        };
        coordinator.restore_timers();
        Ok(coordinator)
    }

    /// Whether a relay is to serve a node: its key is of this network and has not expired.
    #[must_use]
    pub fn verify(&self, node: &NodePublic) -> bool {
        self.state.by_key(node).is_some_and(|member| !member.row.is_expired(self.wall()))
    }

    /// How much was done since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let rendered = self.state.render_counters();
        Counters {
            selector_evaluations_total: self.state.selector_evaluations(),
            peer_serializations_total: rendered.peer_serializations(),
            full_map_serializations_total: rendered.full_map_serializations(),
            changes_total: self.state.log().version().0,
            ..self.counters
        }
    }

    /// How things are.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            nodes: self.state.members().len(),
            online: self.state.members().values().filter(|member| member.live.online).count(),
            streams: self.streams.len(),
            users: self.state.users().len(),
            sign_ins: self.sign_ins.len(),
            version: self.state.log().version().0,
        }
    }

    /// The whole map of a node as it would be told now; `None` where there is no such node. What streams tell has to come
    /// to the same: this is for those who check that.
    pub fn map_of(&mut self, node: NodeId) -> Option<MapUpdate> {
        self.state.member(node)?;
        let (snapshot, _) = self.state.snapshot();
        Some(MapUpdate::full(None, node, snapshot, self.wall()))
    }

    fn wall(&self) -> WallTime {
        self.clock.wall_at(self.now)
    }

    fn request(&mut self, caller: Caller, request: Request) {
        match request {
            Request::Register(request) => self.register(caller, *request),
            Request::Map(request) => self.map(caller, *request),
            Request::Other { endpoint, node_key } => self.other(caller, endpoint, node_key),
        }
    }

    /// The small ones: what a node reports is taken, what this build does not have is refused.
    fn other(&mut self, caller: Caller, endpoint: Endpoint, node_key: NodePublic) {
        let member = match self.own_node(caller.machine, &node_key) {
            Ok(member) => member,
            Err(refusal) => return self.refuse(caller, refusal),
        };
        match endpoint {
            Endpoint::UpdateHealth => self.respond(caller, Response::Done),
            Endpoint::AuditLog => {
                let quiet = Timer::Quiet(member.id());
                if self.timers.get(quiet).is_none() {
                    self.timers.set(quiet, self.after(limits::REPORT_GAP));
                    let actor = Principal::Node(member.row.stable_id.clone());
                    self.audit(actor, "node.disconnect", &member.row.stable_id, Value::Null, Value::Null);
                }
                self.respond(caller, Response::Done);
            }
            Endpoint::SetDns => self.refuse(caller, Refusal::new(501, "this server gives out no certificate names")),
            Endpoint::IdToken => self.refuse(caller, Refusal::new(501, "this server gives out no identity tokens")),
            Endpoint::FeatureQuery => self.refuse(caller, Refusal::new(501, "this server has no such feature")),
            Endpoint::SetDeviceAttributes => {
                self.refuse(caller, Refusal::new(501, "this server keeps no attributes of devices"));
            }
        }
    }

    /// The node that a machine says it is.
    fn own_node(&self, machine: MachinePublic, key: &NodePublic) -> Result<Arc<Member>, Refusal> {
        let Some(member) = self.state.by_key(key).filter(|_| !key.is_zero()) else {
            return Err(Refusal::new(404, "node not found: register first"));
        };
        if member.row.machine != machine {
            return Err(Refusal::new(401, "the node key is that of another machine"));
        }
        Ok(Arc::clone(member))
    }

    fn respond(&mut self, caller: Caller, response: Response) {
        self.pending.push(Output::Respond { conn: caller.conn, id: caller.id, response });
    }

    fn refuse(&mut self, caller: Caller, refusal: Refusal) {
        self.counters.requests_refused_total += 1;
        self.respond(caller, Response::Refused(refusal));
    }

    fn audit(&mut self, actor: Principal, action: &str, target: &str, before: Value, after: Value) {
        let row =
            AuditRow { at: self.wall(), actor, action: action.to_owned(), target: target.to_owned(), before, after };
        self.state.note(Mutation::Audit(row));
    }

    /// A name for the API that cannot be guessed: a letter, 11 letters of base58, `CNTRL`.
    fn stable_id(&mut self, letter: char) -> String {
        format!("{letter}{}CNTRL", self.base58(11))
    }

    /// Letters of base58; each carries 5.86 bits.
    fn base58(&mut self, letters: usize) -> String {
        const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
        (0..letters).map(|_| char::from(ALPHABET[self.rng.below(58) as usize])).collect()
    }

    /// After each input: what has to be stored, then the answers; whom it concerned is noted for the next push.
    fn settle(&mut self) {
        for concern in self.state.take_concerned() {
            if self.streams.note_concern(concern.before, &concern.viewers) {
                self.gather();
            }
        }
        self.open_ready();
        let mutations = self.state.take_mutations();
        if !mutations.is_empty() {
            self.outputs.push_back(Output::Persist(mutations));
        }
        self.outputs.extend(self.pending.drain(..));
    }

    fn relays(&mut self, derp_map: Arc<DerpMap>) {
        if has_home(&derp_map) {
            self.state.set_relays(derp_map);
        } else {
            tracing::warn!("a DERP map without a usable region was not taken");
        }
    }

    fn after(&self, wait: Duration) -> Instant {
        self.now + wait
    }

    /// Forgets a node: its stream is told and closed, everything about it goes.
    fn forget(&mut self, id: NodeId) {
        let Some(member) = self.state.member(id).cloned() else { return };
        if let Some(stream) = self.streams.of_node(id) {
            let (snapshot, _) = self.state.snapshot();
            let farewell = MapUpdate::farewell(stream, member, snapshot, self.wall());
            self.pending.push(Output::Push(farewell));
            self.drop_stream(stream);
        }
        for timer in [Timer::Offline(id), Timer::Forget(id), Timer::Expire(id), Timer::Quiet(id)] {
            self.timers.clear(timer);
        }
        self.displaced.remove(&id);
        let served = self.state.served_subnets(id).collect();
        self.state.remove_node(id);
        self.elect(id, served);
        self.forget_pace(id);
    }
}

impl Machine for Coordinator {
    type Input<'a> = Input;
    type Output = Output;

    fn handle_input(&mut self, input: Input, now: Instant) {
        self.now = self.now.max(now);
        match input {
            Input::Request { conn, machine, from, id, request } => {
                self.request(Caller { conn, id, machine, from }, request);
            }
            Input::Writable { stream } => self.note_written(stream),
            Input::Aborted { conn, id } => self.abort(conn, id),
            Input::Closed { conn } => self.close(conn),
            Input::Admin { id, by, command } => {
                let result = self.command(&by, command);
                never!(result.is_err() && self.state.has_mutations(), "a command that is refused changes nothing");
                self.pending.push(Output::Admin { id, result });
            }
            Input::Relays(derp_map) => self.relays(derp_map),
            Input::ClockStepped(clock) => {
                self.clock = clock;
                self.plan_expiries();
            }
        }
        self.settle();
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.now = self.now.max(now);
        while let Some(timer) = self.timers.take(self.now) {
            match timer {
                Timer::Push => {
                    self.gathering = None;
                    self.push_changes();
                }
                Timer::Open => self.push_first(),
                Timer::KeepAlive(stream) => self.keep_alive(stream),
                Timer::Offline(node) => self.note_gone(node),
                Timer::Forget(node) => self.forget_ephemeral(node),
                Timer::Expire(node) => self.expire_due(node),
                Timer::Turn(node) => self.take_turn(node),
                Timer::SignIn(number) => self.expire_sign_in(number),
                // From now on what it reports is written down again.
                Timer::Quiet(_) => {}
            }
        }
        self.settle();
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn poll_timeout(&self) -> Option<Deadline> {
        self.timers.next()
    }
}

/// Whether a region has a relay and can be a home.
fn has_home(derp_map: &DerpMap) -> bool {
    let regions = derp_map.regions.iter().flatten().filter_map(|(_, region)| region.as_ref());
    regions
        .filter(|region| !region.no_measure_no_home)
        .any(|region| region.nodes.iter().flatten().any(|node| !node.stun_only))
}

/// A time so much later.
fn later(time: WallTime, by: Duration) -> WallTime {
    let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
    WallTime::from_unix_nanos(time.as_unix_nanos().saturating_add(nanos))
}
