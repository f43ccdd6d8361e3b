//! The connection of a node to its control server: what the daemon's control link is to a real one.
//!
//! The node names a server and asks; here a channel is made when the first question comes, and anew when one comes and it
//! is gone. A request is tried once: when it fails the node is told so. A channel on which the server keeps a request
//! waiting for too long is dead.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use mesh_core::{
    control::{
        CAPABILITY_VERSION, ControlEvent, ControlRequest, ControlUrl, Failure, FailureKind, Interner, RequestId, Route,
        Server,
        codec::MapReader,
        netmap::decode,
        noise::{EarlyReader, Initiator, Progress},
        session::ANSWER_WITHIN,
    },
    key::MachinePublic,
    machine::Deadline,
    rng::Seed,
    time::{Instant, earliest},
};
use serde::{Deserialize, Serialize};

use super::{
    super::{
        http::{Head, Read, is_good},
        links::Net,
        stack::{StackOutput, StreamId},
    },
    dial::{DIAL, Dial},
    wire::{Channel, Greeting, ToControl, ToNode},
};

/// For a request, until its answer begins. The daemon has the same.
const ANSWER: Duration = Duration::from_secs(15);
// The node must not lose patience first: it would ask again over the same dead channel.
const _: () = assert!(DIAL.as_secs() + ANSWER.as_secs() < ANSWER_WITHIN.as_secs());
/// How often a quiet server with a request under way is asked whether it is there, and how long it may take to say so.
const PING_EVERY: Duration = Duration::from_secs(60);
const PONG: Duration = Duration::from_secs(20);

/// What `/key` says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct KeyAnswer {
    /// The server's key.
    pub(super) public_key: MachinePublic,
}

/// The connection of a node to its control server.
#[derive(Debug)]
pub struct ControlLink {
    seed: Seed,
    made: u64,
    server: Option<Server>,
    channel: State,
    requests: BTreeMap<RequestId, Request>,
    fetches: BTreeMap<RequestId, Fetch>,
    events: VecDeque<Heard>,
    messages: u64,
    ignored: u64,
}

#[derive(Debug)]
enum State {
    Closed,
    Dialling(Dial),
    Shaking { stream: StreamId, until: Instant, initiator: Option<Box<Initiator>>, head: Option<Head>, bytes: Vec<u8> },
    Open(Box<Open>),
}

#[derive(Debug)]
struct Open {
    stream: StreamId,
    channel: Channel,
    /// Until it is known what the server begins with.
    early: Option<EarlyReader>,
    unsent: Vec<u8>,
    /// When the server was heard last.
    heard: Instant,
    /// When it was asked whether it is there, since then.
    pinged: Option<Instant>,
}

#[derive(Debug)]
struct Request {
    kind: Kind,
    said: ToControl,
    progress: Sent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Register { is_patient: bool },
    Stream,
    Update,
}

#[derive(Debug)]
enum Sent {
    /// There is no channel yet.
    Not,
    /// The answer is waited for.
    Until(Option<Instant>),
    /// It goes on.
    Opened(MapReader),
}

/// The server's key is being asked for.
#[derive(Debug)]
struct Fetch {
    host: String,
    state: FetchState,
}

#[derive(Debug)]
enum FetchState {
    Dialling(Dial),
    Asked { stream: StreamId, until: Instant, bytes: Vec<u8> },
}

/// What is to be told: a map is read when it is taken.
#[derive(Debug)]
enum Heard {
    Event(ControlEvent),
    Map { id: RequestId, json: Vec<u8> },
}

impl ControlLink {
    /// No server, no channel.
    #[must_use]
    pub fn new(seed: Seed) -> Self {
        Self {
            seed,
            made: 0,
            server: None,
            channel: State::Closed,
            requests: BTreeMap::new(),
            fetches: BTreeMap::new(),
            events: VecDeque::new(),
            messages: 0,
            ignored: 0,
        }
    }

    /// The node wants something done.
    pub fn handle_request(&mut self, request: ControlRequest, host: &mut Net<'_>, now: Instant) {
        match request {
            ControlRequest::FetchKey { id, server } => self.fetch_key(id, &server, host, now),
            ControlRequest::Connect(server) => {
                self.disconnect(host, now);
                self.server = Some(server);
            }
            ControlRequest::Disconnect => self.disconnect(host, now),
            ControlRequest::Register { id, request } => {
                let kind = Kind::Register { is_patient: !request.followup.is_empty() };
                self.ask(id, kind, "/machine/register", &*request, host, now);
            }
            ControlRequest::StreamMap { id, request } => {
                self.ask(id, Kind::Stream, "/machine/map", &*request, host, now);
            }
            ControlRequest::Update { id, request } => {
                self.ask(id, Kind::Update, "/machine/map", &*request, host, now);
            }
            ControlRequest::Cancel { id } => self.cancel(id, host, now),
            ControlRequest::Answer(answer) => match (&mut self.channel, answer.route) {
                (State::Open(open), Route::Noise) => {
                    let path = answer.url.splitn(4, '/').nth(3).unwrap_or_default();
                    let json = answer.body.unwrap_or_default();
                    // Nobody waits for what comes back.
                    let said = ToControl::Request { id: u64::MAX, path: format!("/{path}"), json };
                    self.messages += 1;
                    open.say(&said, host, now);
                }
                (_, Route::Noise | Route::Web) => self.ignored += 1,
            },
        }
    }

    /// Something happened to a stream. `false` when it is none of ours.
    pub fn handle_stack(&mut self, output: &StackOutput, host: &mut Net<'_>, now: Instant) -> bool {
        let Some(of) = output.own() else { return false };
        if self.channel.stream() == Some(of) {
            self.handle_channel(output, host, now);
            return true;
        }
        let Some(id) = self.fetches.iter().find(|(_, fetch)| fetch.state.stream() == Some(of)).map(|(id, _)| *id)
        else {
            return false;
        };
        self.handle_fetch(id, output, host, now);
        true
    }

    /// A name was looked up, or that failed.
    pub fn handle_names(&mut self, host: &mut Net<'_>, now: Instant) {
        if let State::Dialling(dial) = &mut self.channel
            && !dial.handle_names(host, now)
        {
            self.give_up("its name has no address that answers", host, now);
        }
        for id in self.fetches.keys().copied().collect::<Vec<_>>() {
            if let Some(Fetch { state: FetchState::Dialling(dial), .. }) = self.fetches.get_mut(&id)
                && !dial.handle_names(host, now)
            {
                self.fail_fetch(id, "its name has no address that answers");
            }
        }
    }

    /// Lets due timers act.
    pub fn handle_timeout(&mut self, host: &mut Net<'_>, now: Instant) {
        match &mut self.channel {
            State::Dialling(dial) => {
                if !dial.handle_timeout(host, now) {
                    self.give_up("the server does not answer", host, now);
                }
            }
            State::Shaking { until, .. } if *until <= now => {
                self.give_up("the server does not answer", host, now);
            }
            State::Open(open) => {
                let is_late = |request: &Request| matches!(request.progress, Sent::Until(Some(at)) if at <= now);
                if open.pinged.is_some_and(|at| at + PONG <= now) {
                    self.give_up("the server does not say that it is there", host, now);
                } else if self.requests.values().any(is_late) {
                    self.give_up("the server keeps a request waiting", host, now);
                } else if !self.requests.is_empty() && open.pinged.is_none() && open.heard + PING_EVERY <= now {
                    open.pinged = Some(now);
                    open.say(&ToControl::Ping, host, now);
                }
            }
            State::Closed | State::Shaking { .. } => {}
        }
        for id in self.fetches.keys().copied().collect::<Vec<_>>() {
            let Some(fetch) = self.fetches.get_mut(&id) else { continue };
            let is_over = match &mut fetch.state {
                FetchState::Dialling(dial) => !dial.handle_timeout(host, now),
                FetchState::Asked { stream, until, .. } if *until <= now => {
                    host.stack.close(*stream, now);
                    true
                }
                FetchState::Asked { .. } => false,
            };
            if is_over {
                self.fail_fetch(id, "the server does not answer");
            }
        }
    }

    /// When [`Self::handle_timeout`] is wanted next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let channel = match &self.channel {
            State::Closed => None,
            State::Dialling(dial) => Some(dial.poll_timeout()),
            State::Shaking { until, .. } => Some(*until),
            State::Open(open) => {
                let requests = self.requests.values().filter_map(|request| match request.progress {
                    Sent::Until(until) => until,
                    Sent::Not | Sent::Opened(_) => None,
                });
                let ping = open.pinged.map_or(open.heard + PING_EVERY, |at| at + PONG);
                earliest(requests.min(), Some(ping).filter(|_| open.pinged.is_some() || !self.requests.is_empty()))
            }
        };
        let fetches = self.fetches.values().map(|fetch| match &fetch.state {
            FetchState::Dialling(dial) => dial.poll_timeout(),
            FetchState::Asked { until, .. } => *until,
        });
        earliest(channel, fetches.min()).map(|at| Deadline::new(at, "control"))
    }

    /// The next thing to tell. Peers that are written alike are shared by all who are told with this interner.
    pub fn poll_event(&mut self, interner: &mut Interner) -> Option<ControlEvent> {
        match self.events.pop_front()? {
            Heard::Event(event) => Some(event),
            Heard::Map { id, json } => Some(match decode(&json, Some(interner)) {
                Ok(response) => ControlEvent::Map { id, response: Box::new(response) },
                Err(error) => {
                    self.requests.remove(&id);
                    failed(id, FailureKind::Malformed, error.to_string())
                }
            }),
        }
    }

    /// Whether there is nothing to do, now or later.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(self.channel, State::Closed) && self.fetches.is_empty() && self.events.is_empty()
    }

    /// Messages said and heard inside the channel since this was asked last.
    pub fn take_messages(&mut self) -> u64 {
        core::mem::take(&mut self.messages)
    }

    /// Answers that would have gone outside the channel: there is no web here.
    #[must_use]
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    fn fetch_key(&mut self, id: RequestId, server: &ControlUrl, host: &mut Net<'_>, now: Instant) {
        match Dial::start(server, host, now) {
            Some(dial) => {
                let fetch = Fetch { host: server.host().to_owned(), state: FetchState::Dialling(dial) };
                self.fetches.insert(id, fetch);
            }
            None => self.fail(id, "there is no way to the server"),
        }
    }

    fn ask(&mut self, id: RequestId, kind: Kind, path: &str, body: &impl Serialize, host: &mut Net<'_>, now: Instant) {
        let Ok(json) = serde_json::to_vec(body) else { return self.fail(id, "the request cannot be written") };
        let said = ToControl::Request { id: id.0, path: path.to_owned(), json };
        self.requests.insert(id, Request { kind, said, progress: Sent::Not });
        match (&mut self.channel, &self.server) {
            (State::Open(_), _) => self.send_waiting(host, now),
            (State::Dialling(_) | State::Shaking { .. }, _) => {}
            (State::Closed, Some(server)) => match Dial::start(&server.url, host, now) {
                Some(dial) => self.channel = State::Dialling(dial),
                None => self.give_up("there is no way to the server", host, now),
            },
            (State::Closed, None) => self.give_up("no server was named", host, now),
        }
    }

    fn cancel(&mut self, id: RequestId, host: &mut Net<'_>, now: Instant) {
        if let Some(fetch) = self.fetches.remove(&id) {
            fetch.state.close(host, now);
        }
        if let Some(request) = self.requests.remove(&id)
            && !matches!(request.progress, Sent::Not)
            && let State::Open(open) = &mut self.channel
        {
            open.say(&ToControl::Cancel { id: id.0 }, host, now);
        }
        self.events.retain(|heard| heard.id() != id);
    }

    fn disconnect(&mut self, host: &mut Net<'_>, now: Instant) {
        self.close_channel(host, now);
        for fetch in core::mem::take(&mut self.fetches).into_values() {
            fetch.state.close(host, now);
        }
        self.requests.clear();
        self.events.clear();
        self.server = None;
    }

    fn close_channel(&mut self, host: &mut Net<'_>, now: Instant) {
        match core::mem::replace(&mut self.channel, State::Closed) {
            State::Closed => {}
            State::Dialling(dial) => dial.close(host, now),
            State::Shaking { stream, .. } => host.stack.close(stream, now),
            State::Open(open) => host.stack.close(open.stream, now),
        }
    }

    /// The channel is no more, or was not made.
    fn give_up(&mut self, why: &str, host: &mut Net<'_>, now: Instant) {
        self.give_up_as(FailureKind::Unreachable, why, host, now);
    }

    fn give_up_as(&mut self, kind: FailureKind, why: &str, host: &mut Net<'_>, now: Instant) {
        self.close_channel(host, now);
        for id in core::mem::take(&mut self.requests).into_keys() {
            let failure = Failure { kind, text: why.to_owned() };
            self.events.push_back(Heard::Event(ControlEvent::Failed { id, failure }));
        }
    }

    fn fail(&mut self, id: RequestId, why: &str) {
        let failure = Failure { kind: FailureKind::Unreachable, text: why.to_owned() };
        self.events.push_back(Heard::Event(ControlEvent::Failed { id, failure }));
    }

    fn fail_fetch(&mut self, id: RequestId, why: &str) {
        self.fetches.remove(&id);
        self.fail(id, why);
    }

    fn handle_fetch(&mut self, id: RequestId, output: &StackOutput, host: &mut Net<'_>, now: Instant) {
        let Some(fetch) = self.fetches.get_mut(&id) else { return };
        match (output, &mut fetch.state) {
            (StackOutput::Connected(stream), FetchState::Dialling(dial)) => {
                // A fresh stream has room for a request.
                host.stack.write(*stream, &Greeting::Key.emit(&fetch.host), now);
                fetch.state = FetchState::Asked { stream: *stream, until: dial.until(), bytes: Vec::new() };
            }
            (StackOutput::Received { bytes: more, stream }, FetchState::Asked { bytes, .. }) => {
                bytes.extend_from_slice(more);
                let Some(answer) = body(bytes) else { return };
                host.stack.close(*stream, now);
                match answer.and_then(|body| serde_json::from_slice::<KeyAnswer>(body).ok()) {
                    Some(KeyAnswer { public_key }) => {
                        self.fetches.remove(&id);
                        self.events.push_back(Heard::Event(ControlEvent::Key { id, key: public_key }));
                    }
                    None => self.fail_fetch(id, "the server does not say its key"),
                }
            }
            (StackOutput::Ended { end, .. }, FetchState::Asked { .. }) => self.fail_fetch(id, end.text()),
            (StackOutput::Ended { end, .. }, FetchState::Dialling(dial)) => {
                let has_another = dial.handle_end(host, now);
                if !has_another {
                    self.fail_fetch(id, end.text());
                }
            }
            _ => {}
        }
    }

    fn handle_channel(&mut self, output: &StackOutput, host: &mut Net<'_>, now: Instant) {
        match (output, &mut self.channel) {
            (StackOutput::Ended { end, .. }, State::Dialling(dial)) => {
                let has_another = dial.handle_end(host, now);
                if !has_another {
                    self.give_up(end.text(), host, now);
                }
            }
            (StackOutput::Ended { end, .. }, _) => self.give_up(end.text(), host, now),
            (StackOutput::Connected(stream), State::Dialling(dial)) => {
                let (stream, until) = (*stream, dial.until());
                self.greet(stream, until, host, now);
            }
            (StackOutput::Received { bytes, .. }, State::Shaking { .. }) => self.shake(bytes, host, now),
            (StackOutput::Received { bytes, .. }, State::Open(open)) => {
                (open.heard, open.pinged) = (now, None);
                match open.channel.receive(bytes) {
                    Ok(()) => self.hear(host, now),
                    Err(error) => self.give_up(&error.to_string(), host, now),
                }
            }
            (StackOutput::Writable(_), State::Open(open)) => open.flush(host, now),
            _ => {}
        }
    }

    /// Begins the handshake on a fresh stream.
    fn greet(&mut self, stream: StreamId, until: Instant, host: &mut Net<'_>, now: Instant) {
        let Some(server) = &self.server else { return self.give_up("no server was named", host, now) };
        let mut rng = self.seed.stream("channel", self.made);
        self.made += 1;
        match Initiator::start(CAPABILITY_VERSION, &server.machine, &server.key, &mut rng) {
            Ok((initiator, initiation)) => {
                host.stack.write(stream, &Greeting::Channel(initiation).emit(server.url.host()), now);
                let (initiator, head) = (Some(Box::new(initiator)), Some(Head::default()));
                self.channel = State::Shaking { stream, until, initiator, head, bytes: Vec::new() };
            }
            Err(error) => self.give_up_as(FailureKind::Untrusted, &error.to_string(), host, now),
        }
    }

    fn shake(&mut self, more: &[u8], host: &mut Net<'_>, now: Instant) {
        let State::Shaking { stream, initiator, head, bytes, .. } = &mut self.channel else { return };
        match head.as_mut().map(|head| head.read(more)) {
            None => bytes.extend_from_slice(more),
            Some(Read::Part) => return,
            Some(Read::Whole(answer, rest)) if is_good(&answer) => {
                *head = None;
                *bytes = rest;
            }
            Some(Read::Whole(..) | Read::Nonsense) => {
                return self.give_up("the server does not speak the control protocol", host, now);
            }
        }
        let Some(waiting) = initiator.take() else { return };
        match waiting.read(bytes) {
            Ok(Progress::Waiting(waiting)) => *initiator = Some(Box::new(waiting)),
            Ok(Progress::Done { sealer, opener, used }) => {
                let mut channel = Channel::new(sealer, opener);
                let rest = bytes.split_off(used);
                let received = channel.receive(&rest);
                let early = Some(EarlyReader::new());
                let open = Open { stream: *stream, channel, early, unsent: Vec::new(), heard: now, pinged: None };
                self.channel = State::Open(Box::new(open));
                match received {
                    Ok(()) => self.hear(host, now),
                    Err(error) => return self.give_up(&error.to_string(), host, now),
                }
                self.send_waiting(host, now);
            }
            Err(error) => self.give_up_as(FailureKind::Untrusted, &error.to_string(), host, now),
        }
    }

    /// Says what waited for the channel.
    fn send_waiting(&mut self, host: &mut Net<'_>, now: Instant) {
        let State::Open(open) = &mut self.channel else { return };
        for request in self.requests.values_mut().filter(|request| matches!(request.progress, Sent::Not)) {
            let is_patient = request.kind == Kind::Register { is_patient: true };
            request.progress = Sent::Until((!is_patient).then(|| now + ANSWER));
            self.messages += 1;
            open.say(&request.said, host, now);
        }
    }

    /// What the server said.
    fn hear(&mut self, host: &mut Net<'_>, now: Instant) {
        loop {
            let State::Open(open) = &mut self.channel else { return };
            if let Some(early) = &mut open.early {
                match early.receive(&open.channel.take_plaintext()) {
                    Ok(None) => return,
                    Ok(Some((_, rest))) => {
                        open.early = None;
                        open.channel.put_back(rest);
                    }
                    Err(error) => return self.give_up(&error.to_string(), host, now),
                }
            }
            match open.channel.next_from_control() {
                Ok(None) => return,
                Ok(Some(said)) => {
                    self.messages += 1;
                    self.take(said);
                }
                Err(_) => return self.give_up("the server says what is no message", host, now),
            }
        }
    }

    fn take(&mut self, said: ToNode) {
        let id = match &said {
            ToNode::Answer { id, .. } | ToNode::Opened { id } | ToNode::Data { id, .. } | ToNode::End { id } => {
                RequestId(*id)
            }
            ToNode::Pong => return,
        };
        // What was cancelled may still be answered.
        let Some(request) = self.requests.get_mut(&id) else { return };
        let event = match (said, &mut request.progress) {
            (ToNode::Opened { .. }, progress @ Sent::Until(_)) => {
                *progress = Sent::Opened(MapReader::new());
                ControlEvent::Opened { id }
            }
            (ToNode::Data { bytes, .. }, Sent::Opened(reader)) => {
                let received = reader.receive(&bytes);
                while let Some(json) = reader.pop() {
                    self.events.push_back(Heard::Map { id, json });
                }
                match received {
                    Ok(()) => return,
                    Err(error) => failed(id, FailureKind::Malformed, error.to_string()),
                }
            }
            (ToNode::End { .. }, Sent::Opened(_)) => ControlEvent::Closed { id },
            (ToNode::Answer { status: 200, body, .. }, _) => match request.kind {
                Kind::Register { .. } => match serde_json::from_slice(&body) {
                    Ok(response) => ControlEvent::Registered { id, response: Box::new(response) },
                    Err(error) => failed(id, FailureKind::Malformed, error.to_string()),
                },
                Kind::Update => ControlEvent::Updated { id },
                Kind::Stream => failed(id, FailureKind::Malformed, "an answer that ends at once".to_owned()),
            },
            (ToNode::Answer { status, retry_after, body, .. }, _) => {
                let retry_after = Some(retry_after).filter(|after| !after.is_zero());
                let text = String::from_utf8_lossy(&body).into_owned();
                failed(id, FailureKind::Status { code: status, retry_after }, text)
            }
            (ToNode::Opened { .. } | ToNode::Data { .. } | ToNode::End { .. } | ToNode::Pong, _) => {
                failed(id, FailureKind::Malformed, "an answer that makes no sense".to_owned())
            }
        };
        if !matches!(event, ControlEvent::Opened { .. }) {
            self.requests.remove(&id);
        }
        self.events.push_back(Heard::Event(event));
    }
}

impl Open {
    fn say(&mut self, said: &ToControl, host: &mut Net<'_>, now: Instant) {
        // No channel of a simulation carries 2^64 records.
        let _ = self.channel.say_to_control(said, &mut self.unsent);
        self.flush(host, now);
    }

    fn flush(&mut self, host: &mut Net<'_>, now: Instant) {
        let taken = host.stack.write(self.stream, &self.unsent, now);
        self.unsent.drain(..taken);
    }
}

impl State {
    fn stream(&self) -> Option<StreamId> {
        match self {
            Self::Closed => None,
            Self::Dialling(dial) => dial.stream(),
            Self::Shaking { stream, .. } => Some(*stream),
            Self::Open(open) => Some(open.stream),
        }
    }
}

impl FetchState {
    fn stream(&self) -> Option<StreamId> {
        match self {
            Self::Dialling(dial) => dial.stream(),
            Self::Asked { stream, .. } => Some(*stream),
        }
    }

    fn close(&self, host: &mut Net<'_>, now: Instant) {
        match self {
            Self::Dialling(dial) => dial.close(host, now),
            Self::Asked { stream, .. } => host.stack.close(*stream, now),
        }
    }
}

impl Heard {
    fn id(&self) -> RequestId {
        match self {
            Self::Map { id, .. } => *id,
            Self::Event(
                ControlEvent::Key { id, .. }
                | ControlEvent::Registered { id, .. }
                | ControlEvent::Opened { id }
                | ControlEvent::Map { id, .. }
                | ControlEvent::Closed { id }
                | ControlEvent::Updated { id }
                | ControlEvent::Failed { id, .. },
            ) => *id,
        }
    }
}

fn failed(id: RequestId, kind: FailureKind, text: String) -> ControlEvent {
    ControlEvent::Failed { id, failure: Failure { kind, text } }
}

/// The body of a whole answer; `None` while it is not whole, and `Some(None)` when it is not a good one.
fn body(bytes: &[u8]) -> Option<Option<&[u8]>> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let (head, body) = bytes.split_at(end);
    let Ok(head) = core::str::from_utf8(head) else { return Some(None) };
    let length = head.split("\r\n").find_map(|line| line.strip_prefix("Content-Length: "));
    let Some(length) = length.and_then(|length| length.parse::<usize>().ok()).filter(|_| is_good(head)) else {
        return Some(None);
    };
    body.get(..length).map(Some)
}
