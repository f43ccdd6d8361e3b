//! The desk: one task owns the [`Coordinator`]. Everybody else tells it what happened, and it carries out what the
//! coordinator says.
//!
//! Outputs are carried out in their order. At a `Persist` they stop until it is on disk; meanwhile the coordinator goes on
//! taking things in, and what it says gathers. The next commit takes all mutations that gathered. So nothing overtakes
//! what it depends on, and a commit is paid for once by all who wait for it.
//!
//! A commit that fails, as on a full disk, is tried again until it is done: what was decided cannot be taken back. Those
//! who wait for it are told so at once. Until it is done changes and all that nodes ask are refused before they are decided,
//! so that what waits does not grow; questions of operators are answered, streams that have nothing to learn are kept alive,
//! and nodes hear nothing new.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    collections::{BTreeMap, VecDeque},
    future::{Future, pending},
    mem,
    net::IpAddr,
    pin::Pin,
    time::Duration,
};

use mesh_core::{control::types::RegisterResponse, key::MachinePublic, machine::Machine, node::HostEvent};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};
use transports::clock::Clock;

use super::{
    journal, limits,
    sql::{SqlStore, StoreError},
};
use crate::{
    coordinator::{
        AdminError, AdminId, Command, ConnId, Coordinator, Counters, Input, Output, Refusal, Reply, Request, RequestId,
        Response, Status, StreamId,
    },
    render::MapUpdate,
    store::{Mutation, Principal},
};

/// A machine, and where it is.
type Who = (MachinePublic, IpAddr);

/// What the owner is told.
enum Event {
    Request { conn: ConnId, who: Who, id: RequestId, request: Request, answer: oneshot::Sender<Answer> },
    Input(Input),
    Admin { by: Principal, command: Command, answer: oneshot::Sender<Result<Reply, No>> },
    Look(oneshot::Sender<Look>),
}

/// How things are.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub(super) counters: Counters,
    pub(super) status: Status,
    /// Commits, and how many of them failed.
    pub(super) commits: u64,
    pub(super) failed_commits: u64,
    /// Mutations in them.
    pub(super) mutations: u64,
    /// Whether the last commit failed and is being tried again.
    pub(super) stuck: bool,
}

/// What a node's request comes to.
pub(super) enum Answer {
    Register(Box<RegisterResponse>),
    Stream(Orders),
    Once(Box<MapUpdate>),
    Updated,
    Done,
    Refused(Refusal),
}

/// What is to be done on an open map.
pub(super) enum Order {
    Push(Box<MapUpdate>),
    KeepAlive,
}

/// An open map's orders. It is to be closed where they end.
pub(super) struct Orders {
    pub(super) stream: StreamId,
    pub(super) orders: mpsc::Receiver<Order>,
}

/// The server ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server is about to end")]
pub(super) struct Ending;

/// Why a command comes to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum No {
    /// The coordinator says no.
    #[error(transparent)]
    Refused(#[from] AdminError),
    /// It is decided, and stored as soon as that can be.
    #[error("the change is not stored yet: {0}")]
    NotYet(String),
    /// Nothing was done.
    #[error("nothing is changed, for changes cannot be stored: {0}")]
    NotNow(String),
    /// Nobody decides any more.
    #[error(transparent)]
    Ending(#[from] Ending),
}

/// The way to the owner.
#[derive(Clone)]
pub(super) struct Desk {
    events: mpsc::Sender<Event>,
}

impl Desk {
    /// Asks for a node.
    pub(super) async fn ask(&self, conn: ConnId, who: Who, id: RequestId, request: Request) -> Result<Answer, Ending> {
        let (answer, answered) = oneshot::channel();
        self.events.send(Event::Request { conn, who, id, request, answer }).await.map_err(|_| Ending)?;
        answered.await.map_err(|_| Ending)
    }

    /// Tells what happened.
    pub(super) async fn tell(&self, input: Input) {
        // At the end nobody needs to know.
        let _ = self.events.send(Event::Input(input)).await;
    }

    /// Tells what happened, where nobody can wait.
    pub(super) fn tell_at_once(&self, input: Input) {
        if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(Event::Input(input)) {
            let events = self.events.clone();
            tokio::spawn(async move { events.send(event).await });
        }
    }

    /// A way that leads to nobody.
    #[cfg(test)]
    pub(super) fn nobody() -> Self {
        Self { events: mpsc::channel(1).0 }
    }

    /// Has a command carried out.
    pub(super) async fn command(&self, by: Principal, command: Command) -> Result<Reply, No> {
        let (answer, answered) = oneshot::channel();
        self.events.send(Event::Admin { by, command, answer }).await.map_err(|_| Ending)?;
        answered.await.map_err(|_| Ending)?
    }

    /// How things are.
    pub(super) async fn look(&self) -> Result<Look, Ending> {
        let (answer, answered) = oneshot::channel();
        self.events.send(Event::Look(answer)).await.map_err(|_| Ending)?;
        answered.await.map_err(|_| Ending)
    }
}

/// Where rows are kept.
pub(super) trait Store: Send + 'static {
    /// Carries out mutations: all of them are kept when this returns, or none is.
    fn commit(&mut self, mutations: &[Mutation]) -> impl Future<Output = Result<(), StoreError>> + Send;
}

impl Store for SqlStore {
    async fn commit(&mut self, mutations: &[Mutation]) -> Result<(), StoreError> {
        Self::commit(self, mutations).await
    }
}

/// A commit under way.
type Commit<S> = Pin<Box<dyn Future<Output = Committed<S>> + Send>>;

/// How a commit ended.
struct Committed<S> {
    store: S,
    mutations: Vec<Mutation>,
    result: Result<(), StoreError>,
}

/// A commit that has failed.
struct Stuck {
    /// Why.
    problem: String,
    /// How often.
    tries: u64,
}

/// The owner.
pub(super) struct Owner<S = SqlStore> {
    coordinator: Coordinator,
    clock: Clock,
    events: mpsc::Receiver<Event>,
    /// Here unless a commit is under way.
    store: Option<S>,
    commit: Option<Commit<S>>,
    /// The commit under way has failed before.
    stuck: Option<Stuck>,
    /// To be carried out when the commit is done.
    held: Vec<Output>,
    /// Said since it began.
    said: VecDeque<Output>,
    requests: BTreeMap<(ConnId, RequestId), Open>,
    streams: BTreeMap<StreamId, Stream>,
    commands: BTreeMap<AdminId, Waiting>,
    next_command: u64,
    commits: u64,
    failed_commits: u64,
    mutations: u64,
}

/// A request that was not answered, or whose answer goes on.
enum Open {
    Asked(oneshot::Sender<Answer>),
    Stream(StreamId),
}

/// A command that was not answered.
struct Waiting {
    is_change: bool,
    answer: oneshot::Sender<Result<Reply, No>>,
}

struct Stream {
    request: (ConnId, RequestId),
    orders: mpsc::Sender<Order>,
}

impl<S: Store> Owner<S> {
    /// An owner that was told nothing yet, and the way to it.
    pub(super) fn new(coordinator: Coordinator, clock: Clock, store: S) -> (Self, Desk) {
        let (sender, events) = mpsc::channel(limits::EVENTS);
        let owner = Self {
            coordinator,
            clock,
            events,
            store: Some(store),
            commit: None,
            stuck: None,
            held: Vec::new(),
            said: VecDeque::new(),
            requests: BTreeMap::new(),
            streams: BTreeMap::new(),
            commands: BTreeMap::new(),
            next_command: 0,
            commits: 0,
            failed_commits: 0,
            mutations: 0,
        };
        (owner, Desk { events: sender })
    }

    /// Works until `closing` becomes true; then the store, with everything in it.
    pub(super) async fn run(mut self, mut closing: watch::Receiver<bool>) -> Option<S> {
        let mut open = true;
        loop {
            for event in self.clock.observe().into_iter().flatten() {
                if let HostEvent::ClockStepped(anchor) = event {
                    self.coordinator.handle_input(Input::ClockStepped(anchor), self.clock.now());
                    self.listen();
                }
            }
            self.advance();
            if !open && self.commit.is_none() {
                return self.store;
            }
            let wait = self.coordinator.poll_timeout().map(|deadline| deadline.at.since(self.clock.now()));
            let has_room = self.said.len() + self.held.len() < limits::OUTPUTS;
            tokio::select! {
                event = self.events.recv(), if open && has_room => match event {
                    Some(event) => self.handle_events(event),
                    None => open = false,
                },
                _ = closing.wait_for(|closing| *closing), if open => open = false,
                ended = committed(&mut self.commit) => self.handle_committed(ended),
                () = sleep(wait) => {
                    self.coordinator.handle_timeout(self.clock.now());
                    self.listen();
                }
            }
        }
    }

    fn handle_events(&mut self, first: Event) {
        self.handle_event(first);
        for _ in 1..limits::BATCH {
            let Ok(event) = self.events.try_recv() else { return };
            self.handle_event(event);
        }
    }

    fn handle_event(&mut self, event: Event) {
        let now = self.clock.now();
        let input = match event {
            // What comes of it could not be told: a map says what changed too, and an open one learns nothing.
            Event::Request { answer, .. } if self.stuck.is_some() => {
                let _ = answer.send(Answer::Refused(not_stored()));
                return;
            }
            Event::Request { conn, who: (machine, from), id, request, answer } => {
                self.requests.insert((conn, id), Open::Asked(answer));
                Input::Request { conn, machine, from, id, request }
            }
            Event::Input(input) => {
                match &input {
                    Input::Aborted { conn, id } => self.forget((*conn, *id)),
                    Input::Closed { conn } => {
                        let all = (*conn, RequestId(0))..=(*conn, RequestId(u64::MAX));
                        let gone: Vec<_> = self.requests.range(all).map(|(key, _)| *key).collect();
                        gone.into_iter().for_each(|key| self.forget(key));
                    }
                    Input::Request { .. }
                    | Input::Writable { .. }
                    | Input::Admin { .. }
                    | Input::Relays(_)
                    | Input::ClockStepped(_) => {}
                }
                input
            }
            Event::Admin { by, command, answer } => {
                if let Some(stuck) = self.stuck.as_ref().filter(|_| command.is_change()) {
                    let _ = answer.send(Err(No::NotNow(stuck.problem.clone())));
                    return;
                }
                let id = AdminId(self.next_command);
                self.next_command += 1;
                self.commands.insert(id, Waiting { is_change: command.is_change(), answer });
                Input::Admin { id, by, command }
            }
            Event::Look(answer) => {
                // Whoever asked may have gone.
                let _ = answer.send(self.look());
                return;
            }
        };
        self.coordinator.handle_input(input, now);
        self.listen();
    }

    fn handle_committed(&mut self, ended: Committed<S>) {
        let Committed { store, mutations, result } = ended;
        let Err(problem) = result else {
            if let Some(stuck) = self.stuck.take() {
                info!(tries = stuck.tries, "changes are stored again");
            }
            journal::tell(&mutations);
            self.commit = None;
            self.store = Some(store);
            self.commits += 1;
            for output in mem::take(&mut self.held) {
                self.carry_out(output);
            }
            return;
        };
        self.failed_commits += 1;
        let tries = self.stuck.as_ref().map_or(0, |stuck| stuck.tries) + 1;
        if tries % limits::COMMITS_UNTOLD == 1 {
            error!(%problem, tries, "cannot store changes: none is made until this one is stored");
        }
        self.stuck = Some(Stuck { problem: problem.to_string(), tries });
        let mutations = self.give_up_waiting(mutations);
        self.commit = Some(Box::pin(commit(store, mutations, limits::COMMIT_AGAIN)));
    }

    /// A commit failed: what was decided since becomes part of it, and those who wait for it are told how it is.
    fn give_up_waiting(&mut self, mut mutations: Vec<Mutation>) -> Vec<Mutation> {
        let problem = self.stuck.as_ref().map(|stuck| stuck.problem.clone()).unwrap_or_default();
        for output in mem::take(&mut self.held).into_iter().chain(mem::take(&mut self.said)) {
            match output {
                Output::Persist(more) => {
                    self.mutations += more.len() as u64;
                    mutations.extend(more);
                }
                Output::Admin { id, result: Ok(_) }
                    if self.commands.get(&id).is_some_and(|waiting| waiting.is_change) =>
                {
                    if let Some(waiting) = self.commands.remove(&id) {
                        // Whoever asked may have gone.
                        let _ = waiting.answer.send(Err(No::NotYet(problem.clone())));
                    }
                }
                // What is refused or only looked at waits for no disk.
                Output::Admin { .. } | Output::KeepAlive { .. } => self.carry_out(output),
                // What a stream would tell waits for the disk, and so does the stream.
                Output::Respond { response: Response::Stream(_), .. } | Output::Push(_) | Output::Close { .. } => {
                    self.held.push(output);
                }
                Output::Respond { conn, id, .. } => self.respond((conn, id), Response::Refused(not_stored())),
            }
        }
        mutations
    }

    /// Gathers what the coordinator says.
    fn listen(&mut self) {
        while let Some(output) = self.coordinator.poll_output() {
            match output {
                // While nothing can be stored these are answers to questions, and signs of life.
                Output::Admin { .. } | Output::KeepAlive { .. } if self.stuck.is_some() => self.carry_out(output),
                output => self.said.push_back(output),
            }
        }
    }

    /// Carries out what can be, and begins a commit where it cannot.
    fn advance(&mut self) {
        if self.commit.is_some() {
            return;
        }
        let last = self.said.iter().rposition(|output| matches!(output, Output::Persist(_)));
        let Some(last) = last else {
            while let Some(output) = self.said.pop_front() {
                self.carry_out(output);
            }
            return;
        };
        let Some(store) = self.store.take() else { return };
        let mut mutations = Vec::new();
        for output in self.said.drain(..=last).collect::<Vec<_>>() {
            match output {
                Output::Persist(more) => mutations.extend(more),
                // What came before all mutations waits for nothing.
                output if mutations.is_empty() => self.carry_out(output),
                output => self.held.push(output),
            }
        }
        self.mutations += mutations.len() as u64;
        self.commit = Some(Box::pin(commit(store, mutations, Duration::ZERO)));
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Persist(_) => error!("a mutation was about to be forgotten"),
            Output::Respond { conn, id, response } => self.respond((conn, id), response),
            Output::Push(update) => {
                let Some(stream) = update.stream() else { return error!("a message for no stream") };
                self.order(stream, Order::Push(Box::new(update)));
            }
            Output::KeepAlive { stream } => {
                // Left out where there is more to say.
                let _ = self.streams.get(&stream).is_some_and(|open| open.orders.try_send(Order::KeepAlive).is_ok());
            }
            Output::Admin { id, result } => {
                if let Some(waiting) = self.commands.remove(&id) {
                    // Whoever asked may have gone.
                    let _ = waiting.answer.send(result.map_err(No::Refused));
                }
            }
            Output::Close { stream } => {
                if let Some(closed) = self.streams.remove(&stream) {
                    self.requests.remove(&closed.request);
                }
            }
        }
    }

    fn respond(&mut self, request: (ConnId, RequestId), response: Response) {
        let Some(Open::Asked(waiting)) = self.requests.remove(&request) else { return };
        let answer = match response {
            Response::Register(response) => Answer::Register(response),
            Response::Stream(stream) => {
                let (orders, taken) = mpsc::channel(limits::ORDERS);
                self.streams.insert(stream, Stream { request, orders });
                self.requests.insert(request, Open::Stream(stream));
                Answer::Stream(Orders { stream, orders: taken })
            }
            Response::Once(update) => Answer::Once(update),
            Response::Updated => Answer::Updated,
            Response::Done => Answer::Done,
            Response::Refused(refusal) => Answer::Refused(refusal),
        };
        // One who has gone has said so, or will.
        let _ = waiting.send(answer);
    }

    fn order(&mut self, stream: StreamId, order: Order) {
        let Some(open) = self.streams.get(&stream) else { return };
        if let Err(mpsc::error::TrySendError::Full(_)) = open.orders.try_send(order) {
            warn!(stream = stream.0, "a stream has too many orders and is closed");
            let Stream { request: (conn, id), .. } = *open;
            self.forget((conn, id));
            self.coordinator.handle_input(Input::Aborted { conn, id }, self.clock.now());
            self.listen();
        }
    }

    fn forget(&mut self, request: (ConnId, RequestId)) {
        if let Some(Open::Stream(stream)) = self.requests.remove(&request) {
            self.streams.remove(&stream);
        }
    }

    fn look(&self) -> Look {
        Look {
            counters: self.coordinator.counters(),
            status: self.coordinator.status(),
            commits: self.commits,
            failed_commits: self.failed_commits,
            mutations: self.mutations,
            stuck: self.stuck.is_some(),
        }
    }
}

/// What a node is told that asked for what cannot be stored.
fn not_stored() -> Refusal {
    let text = "the server cannot store changes at present; whoever runs it finds the reason in its log";
    Refusal { retry_after: Some(limits::STORED_BY), ..Refusal::new(503, text) }
}

/// Commits, after `wait`.
async fn commit<S: Store>(mut store: S, mutations: Vec<Mutation>, wait: Duration) -> Committed<S> {
    if !wait.is_zero() {
        tokio::time::sleep(wait).await;
    }
    let result = store.commit(&mutations).await;
    Committed { store, mutations, result }
}

async fn committed<S>(commit: &mut Option<Commit<S>>) -> Committed<S> {
    match commit {
        Some(commit) => commit.as_mut().await,
        None => pending().await,
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests;
