//! [`Session`]: a node's conversation with its control server.
//!
//! It knows with whom to speak ([`Goal`]), who the node is (keys, and the [`Registration`] if there is one), and what
//! is to be told of it (facts). From these it works out what is to be done next, and does it:
//!
//! * the server's Noise key is fetched once, and again when the server turns out to have another
//! * the node is *registered*: refreshed when it starts, signed in when it is not known, rotated before its key expires.
//!   That may take a page to be visited, and meanwhile the rest goes on
//! * a registered node streams its *map*. A stream that says nothing for two minutes is dead; one that broke is opened
//!   again. What arrived last stays in force meanwhile
//! * control is *updated* when something changed that peers must know: at most one update is under way, and what changes
//!   meanwhile goes with the next
//!
//! Every failure has its pause (`Backoff`), by activity: a server that refuses updates is not asked for maps less
//! often. The session never gives up what it was told to want, but for two things: a refused sign-in waits for the user,
//! and signing out ends after a few seconds, whether control has heard it or not.
//!
//! What it does not know: peers, time zones of expiry, the operating system. The map's content passes through.
//! `control-protocol.md` §4.3, §5.3.

mod backoff;
mod facts;
mod login;
mod stream;
#[cfg(test)]
mod tests;

use core::{fmt, net::SocketAddr, time::Duration};
use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::{
    link::{ControlEvent, ControlRequest, ControlUrl, Failure, FailureKind, RequestId, Server},
    types::{Hostinfo, Login as SignedIn, MapResponse, NetInfo, User},
};
use crate::{
    key::{DiscoPublic, MachinePrivate, MachinePublic, NodePrivate},
    machine::Deadline,
    rng::{Rng, Seed},
    time::{Instant, WallTime, earliest},
};

use backoff::Backoff;
use facts::{Facts, Pace};
use login::{Login, Rotation};
use stream::{Stream, Update};

/// For an answer that does not wait for a person. Whoever owns the connection gives it up before that.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What a session starts with.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Who the host is.
    pub machine_key: MachinePrivate,
    /// Who the node is.
    pub node_key: NodePrivate,
    /// A key that was being registered when the last run ended.
    pub next_node_key: Option<NodePrivate>,
    /// With whom `node_key` is registered.
    pub registration: Option<Registration>,
    /// What our disco messages are sealed with.
    pub disco_key: DiscoPublic,
    /// The root of the session's randomness.
    pub seed: Seed,
}

/// A registration that succeeded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Registration {
    /// With whom.
    pub server: ControlUrl,
    /// The server's Noise key.
    pub server_key: MachinePublic,
    /// Whose the node is.
    #[serde(default)]
    pub user: User,
    /// How they signed in.
    #[serde(default)]
    pub login: SignedIn,
}

/// What is wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Goal {
    /// With whom to speak.
    pub server: Option<ControlUrl>,
    /// Whether to be connected.
    pub want_running: bool,
    /// Ask to be forgotten soon after the node is gone.
    pub ephemeral: bool,
    /// What is said of the host, without what was measured of its network.
    pub hostinfo: Hostinfo,
}

/// How to sign in. A key is kept in memory until control has let the node in or refused it, however long it is away, and is
/// written nowhere, as with stock nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SignIn {
    /// A key that lets the node in; without one a page has to be visited.
    pub auth_key: Option<AuthKey>,
    /// Also when the node is known, and with a new key.
    pub force: bool,
}

/// A key that a user was given for registering nodes. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthKey(pub String);

impl fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthKey([private])")
    }
}

/// What a session has to say.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// To be done by the owner of the connection.
    Request(ControlRequest),
    /// Keys or registration are to be kept, before what comes after this.
    Save,
    /// The node's key is this one from now on.
    KeyChanged(NodePrivate),
    /// The node is new: what was known of its tailnet counts no more.
    Forgotten,
    /// A message of the map. With `is_first` it tells everything.
    Map {
        /// Whether it is the first of a stream.
        is_first: bool,
        /// The message.
        response: Box<MapResponse>,
    },
    /// The node is registered.
    Registered,
    /// Somebody has to go to this page.
    LoginUrl(String),
    /// A sign-in was refused, for this reason; nothing more is tried.
    Refused(String),
    /// The node is signed out. With the reason why control could not be told, if it could not.
    LoggedOut(Option<String>),
    /// Something does not work, and is tried again.
    Problem(String),
}

/// A node's conversation with its control server.
#[derive(Debug)]
pub struct Session {
    machine_key: MachinePrivate,
    node_key: NodePrivate,
    next_node_key: Option<NodePrivate>,
    registration: Option<Registration>,
    goal: Goal,
    facts: Facts,
    server_key: Option<MachinePublic>,
    key_fetch: Option<Pending>,
    key_backoff: Backoff,
    /// Whether the owner of the connection was told with whom to speak.
    is_connected: bool,
    login: Option<Login>,
    login_backoff: Backoff,
    /// Control does not know us (any more): somebody has to sign in.
    is_rejected: bool,
    /// A key that the user gave while control could not say whether it knows us: for the case that it does not.
    spare_key: Option<AuthKey>,
    rotation: Rotation,
    stream: Stream,
    stream_backoff: Backoff,
    update: Update,
    update_backoff: Backoff,
    pace: Pace,
    /// What does not work, and is tried again.
    problem: Option<(Activity, String)>,
    last_id: RequestId,
    keys: Rng,
    jitter: Rng,
    outputs: VecDeque<Output>,
}

/// What a session does, each with its pauses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activity {
    /// Asking for the server's key.
    Key,
    /// Registering, or signing out.
    Login,
    /// Streaming the map.
    Stream,
    /// Telling control what changed.
    Update,
}

/// A request that is under way, and until when it is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pending {
    id: RequestId,
    until: Instant,
}

impl Session {
    /// A session that wants nothing yet.
    #[must_use]
    pub fn new(config: SessionConfig) -> Self {
        let mut session = Self {
            machine_key: config.machine_key,
            node_key: config.node_key,
            next_node_key: config.next_node_key,
            server_key: config.registration.as_ref().map(|registration| registration.server_key),
            registration: config.registration,
            goal: Goal::default(),
            facts: Facts {
                disco_key: config.disco_key,
                hostinfo: Hostinfo::default(),
                net_info: None,
                endpoints: BTreeMap::new(),
            },
            key_fetch: None,
            key_backoff: Backoff::default(),
            is_connected: false,
            login: None,
            login_backoff: Backoff::default(),
            is_rejected: false,
            spare_key: None,
            rotation: Rotation::default(),
            stream: Stream::default(),
            stream_backoff: Backoff::default(),
            update: Update::default(),
            update_backoff: Backoff::default(),
            pace: Pace::default(),
            problem: None,
            last_id: RequestId(0),
            keys: config.seed.stream("node keys", 0),
            jitter: config.seed.stream("jitter", 0),
            outputs: VecDeque::new(),
        };
        session.goal.server = session.registration.as_ref().map(|registration| registration.server.clone());
        session.begin_first_login();
        session
    }

    /// This is wanted from now on. With another server than before the node is new there: it has a new key, and the
    /// server of before is not told; signing out there ends with that. A node that is not known signs in when it is to
    /// run; `sign_in` says how, and whether even a known one should.
    pub fn set_goal(&mut self, goal: Goal, sign_in: Option<SignIn>, now: Instant) {
        if self.goal.server != goal.server && self.is_logging_out() {
            self.finish_log_out(Some("another server is wanted".to_owned()));
        }
        let registered_with = self.registration.as_ref().map(|registration| &registration.server);
        let is_elsewhere = registered_with.is_some_and(|server| Some(server) != goal.server.as_ref());
        if self.goal.server != goal.server {
            self.disconnect();
            self.login = None;
            self.server_key = None;
            self.spare_key = None;
            self.key_backoff.reset();
            self.login_backoff.reset();
        }
        if is_elsewhere {
            self.forget();
        }
        let begins = goal.want_running && (!self.goal.want_running || goal.server != self.goal.server);
        self.facts.hostinfo = goal.hostinfo.clone();
        self.goal = goal;
        match sign_in {
            Some(sign_in) => self.begin_sign_in(sign_in),
            None if begins && self.login.is_none() && !self.is_known() => self.begin_first_login(),
            None => {}
        }
        self.advance(now);
    }

    /// Peers may reach us at these addresses; with control's number for why.
    pub fn set_endpoints(&mut self, endpoints: impl IntoIterator<Item = (SocketAddr, i64)>, now: Instant) {
        self.facts.endpoints = endpoints.into_iter().collect();
        self.advance(now);
    }

    /// What was measured of our network.
    pub fn set_net_info(&mut self, info: NetInfo, now: Instant) {
        self.facts.net_info = Some(info);
        self.advance(now);
    }

    /// The network is another one: connections made from an address that is gone only hang.
    pub fn note_network_change(&mut self, now: Instant) {
        self.disconnect();
        for backoff in
            [&mut self.key_backoff, &mut self.login_backoff, &mut self.stream_backoff, &mut self.update_backoff]
        {
            backoff.reset();
        }
        self.advance(now);
    }

    /// The first message of a stream was taken in, and says whether our key has expired. Control knows us: a key that was
    /// given for the case that it does not is forgotten, or used where somebody has to sign in after all.
    pub fn note_first_map(&mut self, is_expired: bool, now: Instant) {
        let auth_key = self.spare_key.take();
        if is_expired && auth_key.is_some() {
            self.begin_sign_in(SignIn { auth_key, force: true });
            self.advance(now);
        }
    }

    /// A message of the map makes no sense: the stream is opened anew.
    pub fn note_map_refused(&mut self, reason: &str, now: Instant) {
        self.end_stream(&Failure { kind: FailureKind::Malformed, text: reason.to_owned() }, now);
        self.advance(now);
    }

    /// Keys that are made from now on hang on `seed`, too.
    pub fn mix(&mut self, seed: &Seed) {
        self.keys.mix(seed);
    }

    /// Takes in what was heard.
    pub fn handle_event(&mut self, event: ControlEvent, now: Instant) {
        match event {
            ControlEvent::Key { id, key } => self.handle_key(id, key, now),
            ControlEvent::Registered { id, response } => self.handle_registered(id, *response, now),
            ControlEvent::Opened { id } => self.handle_opened(id, now),
            ControlEvent::Map { id, response } => self.handle_map(id, response, now),
            ControlEvent::Closed { id } => self.handle_closed(id, now),
            ControlEvent::Updated { id } => self.handle_updated(id),
            ControlEvent::Failed { id, failure } => self.handle_failed(id, &failure, now),
        }
        self.advance(now);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, wall: WallTime, now: Instant) {
        let late = |what| Failure { kind: FailureKind::Unreachable, text: format!("no answer to {what} in time") };
        if let Some(id) = self.key_fetch.filter(|pending| pending.until <= now).map(|pending| pending.id) {
            self.request(ControlRequest::Cancel { id });
            self.handle_failed(id, &late("the question for the server's key"), now);
        }
        if let Some(untold) = self.login.as_ref().filter(|login| login.is_given_up(now)).map(Login::untold) {
            self.finish_log_out(Some(untold));
        }
        if let Some(id) = self.login.as_ref().and_then(|login| login.overdue(now)) {
            self.request(ControlRequest::Cancel { id });
            self.handle_failed(id, &late("the registration"), now);
        }
        if let Some(id) = self.update.overdue(now) {
            self.request(ControlRequest::Cancel { id });
            self.handle_failed(id, &late("an update"), now);
        }
        if self.stream.is_silent(now) {
            self.end_stream(&late("the map"), now);
            // What is silent that long is mostly a dead connection.
            self.disconnect();
        }
        self.rotate_if_due(wall);
        self.advance(now);
    }

    /// The next thing to be done.
    #[must_use]
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] is wanted next, apart from [`Self::poll_wall_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        if !self.wants_connection() {
            return None;
        }
        let deadline = |at: Instant, why| Some(Deadline::new(at, why));
        let pending = |pending: Option<Pending>, why| pending.and_then(|pending| deadline(pending.until, why));
        let give_up = self.login.as_ref().and_then(|login| deadline(login.give_up_at()?, "sign out without control"));
        if self.server_key.is_none() {
            let key = match self.key_fetch {
                Some(_) => pending(self.key_fetch, "answer with the control server's key"),
                None => deadline(self.key_backoff.until(), "ask for the control server's key again"),
            };
            return earliest(key, give_up);
        }
        let login = self.login.as_ref().and_then(|login| match login.pending() {
            Some(_) => pending(login.pending(), "answer to the registration"),
            None => deadline(self.login_backoff.until(), "register again"),
        });
        let stream = match self.stream.deadline() {
            Some(at) => deadline(at, "next message of the map"),
            None if self.wants_stream() => deadline(self.stream_backoff.until(), "open the map stream again"),
            None => None,
        };
        let update = match self.update.pending() {
            Some(_) => pending(self.update.pending(), "answer to the update"),
            None if self.wants_update() => {
                deadline(self.update_backoff.until().max(self.pace.earliest()), "tell control what changed")
            }
            None => None,
        };
        [give_up, login, stream, update].into_iter().fold(None, earliest)
    }

    /// When [`Self::handle_timeout`] is wanted next by the calendar.
    #[must_use]
    pub fn poll_wall_timeout(&self) -> Option<WallTime> {
        self.rotation.due().filter(|_| self.may_rotate())
    }

    /// Who the node is.
    #[must_use]
    pub fn node_key(&self) -> &NodePrivate {
        &self.node_key
    }

    /// Who it is about to be: to be kept, because control may know it already.
    #[must_use]
    pub fn next_node_key(&self) -> Option<&NodePrivate> {
        self.next_node_key.as_ref()
    }

    /// With whom the node is registered.
    #[must_use]
    pub fn registration(&self) -> Option<&Registration> {
        self.registration.as_ref()
    }

    /// Whether the node is registered and control has not said otherwise.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.registration.is_some() && !self.is_rejected
    }

    /// Whether a sign-in is under way that needs nobody.
    #[must_use]
    pub fn is_signing_in(&self) -> bool {
        self.login.as_ref().is_some_and(|login| login.followup().is_none())
    }

    /// Whether a sign-in is under way that the user asked for.
    #[must_use]
    pub fn awaits_sign_in(&self) -> bool {
        self.login.as_ref().is_some_and(Login::is_sign_in)
    }

    /// Where somebody has to go.
    #[must_use]
    pub fn auth_url(&self) -> Option<&str> {
        self.login.as_ref().and_then(Login::followup)
    }

    /// Whether the map is being streamed.
    #[must_use]
    pub fn is_streaming(&self) -> bool {
        self.stream.has_begun()
    }

    /// Why control does not answer as it should.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_ref().map(|(_, problem)| problem.as_str())
    }

    fn wants_connection(&self) -> bool {
        self.goal.server.is_some() && (self.goal.want_running && !self.is_idle() || self.is_logging_out())
    }

    /// Nothing is to be done until the user acts.
    fn is_idle(&self) -> bool {
        self.login.is_none() && !self.is_known()
    }

    /// Begins whatever is wanted, possible and due.
    fn advance(&mut self, now: Instant) {
        if !self.wants_connection() {
            self.disconnect();
            self.problem = None;
            return;
        }
        let Some(url) = self.goal.server.clone() else { return };
        let Some(key) = self.server_key else {
            if self.key_fetch.is_none() && self.key_backoff.is_due(now) {
                let id = self.next_id();
                self.key_fetch = Some(Pending { id, until: now + ANSWER_WITHIN });
                self.request(ControlRequest::FetchKey { id, server: url });
            }
            return;
        };
        if !self.is_connected {
            self.is_connected = true;
            self.request(ControlRequest::Connect(Server { url, key, machine: self.machine_key.clone() }));
        }
        self.advance_login(now);
        self.advance_stream(now);
        self.advance_update(now);
    }

    /// Closes the connection; what was under way on it is begun again when it is wanted.
    fn disconnect(&mut self) {
        if let Some(pending) = self.key_fetch.take() {
            self.request(ControlRequest::Cancel { id: pending.id });
        }
        if let Some(login) = &mut self.login {
            login.interrupt();
        }
        self.stream.end();
        self.update.interrupt();
        if core::mem::take(&mut self.is_connected) {
            self.request(ControlRequest::Disconnect);
        }
    }

    fn handle_key(&mut self, id: RequestId, key: MachinePublic, now: Instant) {
        if self.key_fetch.is_none_or(|pending| pending.id != id) {
            return;
        }
        self.key_fetch = None;
        if key.is_zero() {
            self.key_backoff.fail(&mut self.jitter, now);
            let problem = "the control server has no key for Noise: it is too old".to_owned();
            self.note_problem(Activity::Key, problem);
            return;
        }
        self.key_backoff.reset();
        self.note_success(Activity::Key);
        self.server_key = Some(key);
        if let Some(registration) = self.registration.as_mut().filter(|registration| registration.server_key != key) {
            registration.server_key = key;
            self.outputs.push_back(Output::Save);
        }
    }

    fn handle_failed(&mut self, id: RequestId, failure: &Failure, now: Instant) {
        if self.key_fetch.is_some_and(|pending| pending.id == id) {
            self.key_fetch = None;
            self.key_backoff.fail_with(failure, &mut self.jitter, now);
            self.note_problem(Activity::Key, format!("the control server's key cannot be had: {failure}"));
        } else if self.login.as_ref().and_then(Login::pending).is_some_and(|pending| pending.id == id) {
            self.handle_login_failed(failure, now);
        } else if self.stream.id() == Some(id) {
            self.end_stream(failure, now);
        } else if self.update.pending().is_some_and(|pending| pending.id == id) {
            self.update.interrupt();
            self.update_backoff.fail_with(failure, &mut self.jitter, now);
            self.note_problem(Activity::Update, format!("control does not take what we tell of us: {failure}"));
        } else {
            return;
        }
        if failure.kind == FailureKind::Untrusted && self.server_key.take().is_some() {
            // It may have another key now; TLS says which.
            self.disconnect();
            self.key_backoff.fail(&mut self.jitter, now);
        }
    }

    fn note_problem(&mut self, activity: Activity, problem: String) {
        if self.problem() != Some(&problem) {
            self.outputs.push_back(Output::Problem(problem.clone()));
        }
        self.problem = Some((activity, problem));
    }

    fn note_success(&mut self, activity: Activity) {
        self.problem.take_if(|(failed, _)| *failed == activity);
    }

    fn request(&mut self, request: ControlRequest) {
        self.outputs.push_back(Output::Request(request));
    }

    fn next_id(&mut self) -> RequestId {
        self.last_id = RequestId(self.last_id.0 + 1);
        self.last_id
    }
}
