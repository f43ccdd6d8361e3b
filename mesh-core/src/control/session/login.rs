//! Registration: refresh, sign-in, rotation of the key, signing out.
//!
//! One of them is under way at a time. A key that is new is kept before control hears of it, and becomes the node's key
//! when control has taken it. `control-protocol.md` §4.3 and §4.4.

use core::time::Duration;

use crate::{
    key::{NodePrivate, NodePublic},
    time::{Instant, WallTime},
};

use super::{
    super::{
        CAPABILITY_VERSION,
        link::{ControlRequest, Failure, FailureKind, RequestId},
        types::{RegisterAuth, RegisterRequest, RegisterResponse},
    },
    ANSWER_WITHIN, Activity, AuthKey, Output, Pending, Registration, Session, SignIn,
};

/// A question that waits for a person is asked anew after this, in case the connection has died unseen.
const FOLLOW_UP_WITHIN: Duration = Duration::from_secs(600);
/// Signing out takes at most this long: the user waits.
const LOG_OUT_WITHIN: Duration = Duration::from_secs(5);
/// A key is rotated this long before it expires, or after half of what was left when that is less.
const ROTATE_BEFORE: Duration = Duration::from_secs(7 * 24 * 3_600);
/// How stock nodes say that they sign out.
const LONG_AGO: WallTime = WallTime::from_unix_secs(123);

/// A registration under way.
#[derive(Debug)]
pub(super) struct Login {
    purpose: Purpose,
    key: NodePrivate,
    /// The key that `key` takes the place of.
    old: Option<NodePublic>,
    auth_key: Option<AuthKey>,
    /// The page that somebody has to visit.
    followup: Option<String>,
    /// Whether the key is new because control said that the one before has expired.
    is_second_key: bool,
    /// When the user is not to wait any longer.
    give_up_at: Option<Instant>,
    /// Why control could not be told so far that we sign out.
    untold: Option<String>,
    /// What the user wanted after signing out.
    then: SignIn,
    pending: Option<Pending>,
}

/// What a registration is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// Control should know us; this says so.
    Refresh,
    /// Somebody lets us in, or a key does.
    SignIn,
    /// A new key takes the place of one that is still good.
    Rotate,
    /// We are no more.
    LogOut,
}

impl Login {
    fn new(purpose: Purpose, key: NodePrivate, old: Option<NodePublic>) -> Self {
        Self {
            purpose,
            key,
            old,
            auth_key: None,
            followup: None,
            is_second_key: false,
            give_up_at: None,
            untold: None,
            then: SignIn::default(),
            pending: None,
        }
    }

    pub(super) fn pending(&self) -> Option<Pending> {
        self.pending
    }

    pub(super) fn is_sign_in(&self) -> bool {
        self.purpose == Purpose::SignIn
    }

    pub(super) fn followup(&self) -> Option<&str> {
        self.followup.as_deref()
    }

    pub(super) fn overdue(&self, now: Instant) -> Option<RequestId> {
        self.pending.filter(|pending| pending.until <= now).map(|pending| pending.id)
    }

    pub(super) fn give_up_at(&self) -> Option<Instant> {
        self.give_up_at
    }

    pub(super) fn is_given_up(&self, now: Instant) -> bool {
        self.give_up_at.is_some_and(|at| at <= now)
    }

    pub(super) fn untold(&self) -> String {
        self.untold.clone().unwrap_or_else(|| "control could not be reached in time".to_owned())
    }

    pub(super) fn interrupt(&mut self) {
        self.pending = None;
    }
}

/// When the key is to be rotated.
#[derive(Debug, Default)]
pub(super) struct Rotation {
    planned: Option<Plan>,
}

/// When to rotate for an expiry.
#[derive(Clone, Copy, Debug)]
struct Plan {
    expiry: WallTime,
    at: When,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    At(WallTime),
    /// By the clock of then the key had expired. That clock may have been wrong.
    Late,
    /// It was tried, and control may keep the expiry.
    Tried,
}

impl Rotation {
    pub(super) fn due(&self) -> Option<WallTime> {
        self.planned.and_then(|plan| if let When::At(at) = plan.at { Some(at) } else { None })
    }

    fn plan(&mut self, expiry: Option<WallTime>, wall: WallTime) {
        let is_known = |plan: &Plan| Some(plan.expiry) == expiry && (plan.at != When::Late || plan.expiry <= wall);
        if self.planned.as_ref().is_some_and(is_known) {
            return;
        }
        self.planned = expiry.map(|expiry| {
            let left = Duration::from_nanos(expiry.as_unix_nanos().saturating_sub(wall.as_unix_nanos()));
            let lead = ROTATE_BEFORE.min(left / 2);
            let lead_nanos = u64::try_from(lead.as_nanos()).unwrap_or(u64::MAX);
            let at = WallTime::from_unix_nanos(expiry.as_unix_nanos().saturating_sub(lead_nanos));
            Plan { expiry, at: if expiry > wall { When::At(at) } else { When::Late } }
        });
    }
}

impl Session {
    /// Signs in, where that is needed or asked for.
    pub(super) fn begin_sign_in(&mut self, sign_in: SignIn) {
        if let Some(login) = self.login.as_mut().filter(|login| login.purpose == Purpose::LogOut) {
            login.then = sign_in;
            return;
        }
        let SignIn { mut auth_key, force } = sign_in;
        let is_under_way = self.login.as_ref().is_some_and(|login| login.purpose == Purpose::SignIn);
        let is_needed = force || !self.is_known() && (auth_key.is_some() || !is_under_way);
        if !is_needed {
            // Whether control knows us is not certain while it does not answer.
            if auth_key.is_some() && !self.stream.has_begun() {
                self.spare_key = auth_key;
            }
            return;
        }
        if auth_key.is_none() {
            // The one that was given before and that control has not heard yet.
            let unheard = self.login.as_mut().filter(|login| login.followup.is_none());
            auth_key = unheard.and_then(|login| login.auth_key.take()).or(self.spare_key.take());
        }
        self.cancel_login();
        self.login_backoff.reset();
        // A key that control has seen is not used for another sign-in.
        let (key, old) = match &self.registration {
            Some(_) => (self.new_key(), Some(self.node_key.public())),
            None => (self.node_key.clone(), None),
        };
        self.login = Some(Login { auth_key, ..Login::new(Purpose::SignIn, key, old) });
    }

    /// Signs out. Ends with [`Output::LoggedOut`] in any case; then the node has a new key, and is not registered.
    pub fn log_out(&mut self, now: Instant) {
        self.goal.want_running = false;
        if self.is_logging_out() {
            return;
        }
        if self.registration.is_none() {
            self.finish_log_out(None);
            return;
        }
        self.cancel_login();
        self.login_backoff.reset();
        // The time runs from now, also while there is no connection.
        let give_up_at = Some(now + LOG_OUT_WITHIN);
        self.login = Some(Login { give_up_at, ..Login::new(Purpose::LogOut, self.node_key.clone(), None) });
        self.advance(now);
    }

    /// When our key expires, as the map says it; `None` is never. Said again when it is known better what time it is.
    pub fn set_key_expiry(&mut self, expiry: Option<WallTime>, wall: WallTime, now: Instant) {
        self.rotation.plan(expiry, wall);
        self.rotate_if_due(wall);
        self.advance(now);
    }

    /// Whether the node is about to be no more.
    pub(super) fn is_logging_out(&self) -> bool {
        self.login.as_ref().is_some_and(|login| login.purpose == Purpose::LogOut)
    }

    /// Whether control was asked if it still knows us: the map waits for that.
    pub(super) fn is_refreshing(&self) -> bool {
        self.login.as_ref().is_some_and(|login| login.purpose == Purpose::Refresh)
    }

    pub(super) fn may_rotate(&self) -> bool {
        self.goal.want_running && self.login.is_none() && self.is_known() && self.stream.has_begun()
    }

    pub(super) fn rotate_if_due(&mut self, wall: WallTime) {
        let Some(Plan { expiry, at: When::At(at) }) = self.rotation.planned else { return };
        if at > wall || !self.may_rotate() {
            return;
        }
        let at = if expiry > wall { When::Tried } else { When::Late };
        self.rotation.planned = Some(Plan { expiry, at });
        if expiry > wall {
            let key = self.new_key();
            self.login = Some(Login::new(Purpose::Rotate, key, Some(self.node_key.public())));
        }
    }

    /// What a session begins with: a node that was registered is refreshed, another one signs in.
    pub(super) fn begin_first_login(&mut self) {
        self.login = Some(match (&self.registration, self.next_node_key.clone()) {
            // The last run ended before it heard whether control took the key.
            (Some(_), Some(next)) => Login::new(Purpose::Rotate, next, Some(self.node_key.public())),
            (Some(_), None) => Login::new(Purpose::Refresh, self.node_key.clone(), None),
            (None, _) => Login::new(Purpose::SignIn, self.node_key.clone(), None),
        });
    }

    /// Asks control whether it knows us.
    pub(super) fn begin_refresh(&mut self) {
        if self.login.is_none() {
            self.login = Some(Login::new(Purpose::Refresh, self.node_key.clone(), None));
        }
    }

    pub(super) fn advance_login(&mut self, now: Instant) {
        let Some(login) = &self.login else { return };
        if login.pending.is_some() || !self.login_backoff.is_due(now) {
            return;
        }
        let within = match (&login.followup, login.purpose) {
            (Some(_), _) => FOLLOW_UP_WITHIN,
            (None, Purpose::LogOut) => LOG_OUT_WITHIN,
            (None, Purpose::Refresh | Purpose::SignIn | Purpose::Rotate) => ANSWER_WITHIN,
        };
        let auth_key = login.auth_key.clone().filter(|_| login.followup.is_none());
        let request = RegisterRequest {
            version: CAPABILITY_VERSION.into(),
            node_key: login.key.public(),
            old_node_key: login.old,
            auth: auth_key.map(|AuthKey(auth_key)| RegisterAuth { auth_key }),
            expiry: (login.purpose == Purpose::LogOut).then_some(LONG_AGO),
            followup: login.followup.clone().unwrap_or_default(),
            hostinfo: Some(self.facts.hostinfo()),
            ephemeral: self.goal.ephemeral,
            ..RegisterRequest::default()
        };
        let id = self.next_id();
        if let Some(login) = &mut self.login {
            login.pending = Some(Pending { id, until: now + within });
        }
        self.request(ControlRequest::Register { id, request: Box::new(request) });
    }

    pub(super) fn handle_registered(&mut self, id: RequestId, response: RegisterResponse, now: Instant) {
        let Some(mut login) = self.login.take_if(|login| login.pending.is_some_and(|pending| pending.id == id)) else {
            return;
        };
        login.pending = None;
        if login.purpose == Purpose::LogOut {
            // Whatever it says: it has heard it.
            self.login = Some(login);
            self.finish_log_out(Some(response.error).filter(|error| !error.is_empty()));
        } else if !response.error.is_empty() {
            self.handle_refusal(login, response.error, now);
        } else if !response.node_key_signature.is_empty() {
            self.handle_refusal(login, "control wants tailnet lock, which this node does not have".to_owned(), now);
        } else if response.node_key_expired {
            self.handle_expired(login, now);
        } else if !response.auth_url.is_empty() {
            self.handle_auth_url(login, response.auth_url, now);
        } else {
            self.finish_login(login, response);
        }
    }

    pub(super) fn handle_login_failed(&mut self, failure: &Failure, now: Instant) {
        let Some(login) = &mut self.login else { return };
        login.pending = None;
        let is_final = matches!(failure.kind, FailureKind::Status { code: 400..=407 | 410..=428, retry_after: None });
        match login.purpose {
            // A connection that has died unseen says so when it is used: another one may be good.
            Purpose::LogOut if failure.kind == FailureKind::Unreachable && !login.is_given_up(now) => {
                login.untold = Some(failure.to_string());
                return self.login_backoff.fail_with(failure, &mut self.jitter, now);
            }
            Purpose::LogOut => return self.finish_log_out(Some(failure.to_string())),
            // The page may be gone with the server's memory: from the start.
            Purpose::Refresh | Purpose::SignIn | Purpose::Rotate if is_final && login.followup.is_some() => {
                login.followup = None;
            }
            Purpose::SignIn if is_final => {
                self.login = None;
                self.forget_next_key();
                self.outputs.push_back(Output::Refused(failure.to_string()));
                return;
            }
            Purpose::Rotate if is_final => self.give_up_rotation(),
            Purpose::Refresh | Purpose::SignIn | Purpose::Rotate => {}
        }
        self.login_backoff.fail_with(failure, &mut self.jitter, now);
        self.note_problem(Activity::Login, format!("control does not register this node: {failure}"));
    }

    /// Control says no, in words for the user.
    fn handle_refusal(&mut self, login: Login, words: String, now: Instant) {
        match login.purpose {
            Purpose::SignIn | Purpose::LogOut => {
                self.forget_next_key();
                self.outputs.push_back(Output::Refused(words));
            }
            Purpose::Rotate => {
                self.give_up_rotation();
                self.note_problem(Activity::Login, format!("control does not take a new key: {words}"));
            }
            Purpose::Refresh => {
                self.login = Some(login);
                self.login_backoff.fail(&mut self.jitter, now);
                self.note_problem(Activity::Login, format!("control does not register this node: {words}"));
            }
        }
    }

    /// The key that was shown has expired: another one, once.
    fn handle_expired(&mut self, login: Login, now: Instant) {
        match login.purpose {
            Purpose::Rotate => self.give_up_rotation(),
            Purpose::Refresh | Purpose::SignIn if !login.is_second_key => {
                self.is_rejected |= login.purpose == Purpose::Refresh;
                let old = login.key.public();
                let key = self.new_key();
                let auth_key = login.auth_key.or(self.spare_key.take());
                let next = Login { auth_key, is_second_key: true, ..Login::new(Purpose::SignIn, key, Some(old)) };
                self.login = Some(next);
            }
            Purpose::Refresh | Purpose::SignIn | Purpose::LogOut => {
                self.handle_refusal(login, "control says that a key which is new has expired".to_owned(), now);
            }
        }
    }

    /// Somebody has to visit a page.
    fn handle_auth_url(&mut self, login: Login, url: String, now: Instant) {
        if login.purpose == Purpose::Rotate {
            self.give_up_rotation();
            return;
        }
        if login.purpose == Purpose::Refresh && self.spare_key.is_some() {
            self.is_rejected = true;
            let auth_key = self.spare_key.take();
            self.login = Some(Login { auth_key, ..Login::new(Purpose::SignIn, login.key, login.old) });
            return;
        }
        let may_show = self.goal.server.as_ref().is_some_and(|server| server.may_show(&url));
        if !may_show {
            let words = format!("control wants a page visited that is not shown, because it is not https: {url:?}");
            return self.handle_refusal(login, words, now);
        }
        // A refresh that ends so: control has forgotten us. Otherwise the node goes on until its own key expires.
        self.is_rejected |= login.purpose == Purpose::Refresh;
        if login.followup.as_ref() == Some(&url) {
            self.login_backoff.fail(&mut self.jitter, now);
        } else {
            self.login_backoff.reset();
            self.outputs.push_back(Output::LoginUrl(url.clone()));
        }
        self.login = Some(Login { purpose: Purpose::SignIn, followup: Some(url), ..login });
    }

    fn finish_login(&mut self, login: Login, response: RegisterResponse) {
        let (Some(server), Some(server_key)) = (self.goal.server.clone(), self.server_key) else { return };
        self.login_backoff.reset();
        self.stream_backoff.reset();
        self.is_rejected = false;
        self.spare_key = None;
        self.problem = None;
        let (user, account) = (response.user, response.login);
        let registration = Registration { server, server_key, user, login: account };
        let is_new = self.registration.as_ref() != Some(&registration) || self.next_node_key.is_some();
        let is_other_key = login.key != self.node_key;
        self.registration = Some(registration);
        self.next_node_key = None;
        if is_other_key {
            self.cancel_stream();
            self.forget_update();
            self.node_key = login.key.clone();
        }
        if is_new || is_other_key {
            self.outputs.push_back(Output::Save);
        }
        if is_other_key {
            self.outputs.push_back(Output::KeyChanged(login.key));
        }
        self.outputs.push_back(Output::Registered);
    }

    pub(super) fn finish_log_out(&mut self, untold: Option<String>) {
        let then = self.login.take().map(|login| login.then).unwrap_or_default();
        self.forget();
        self.disconnect();
        self.outputs.push_back(Output::LoggedOut(untold));
        if self.goal.want_running {
            self.begin_sign_in(then);
        }
    }

    /// The node is new: nobody knows its key.
    pub(super) fn forget(&mut self) {
        self.cancel_login();
        self.cancel_stream();
        self.registration = None;
        self.spare_key = None;
        self.is_rejected = false;
        self.rotation = Rotation::default();
        self.forget_update();
        self.problem = None;
        self.node_key = NodePrivate::generate(&mut self.keys);
        self.next_node_key = None;
        self.outputs.push_back(Output::Forgotten);
        self.outputs.push_back(Output::KeyChanged(self.node_key.clone()));
        self.outputs.push_back(Output::Save);
    }

    fn cancel_login(&mut self) {
        if let Some(pending) = self.login.take().and_then(|login| login.pending) {
            self.request(ControlRequest::Cancel { id: pending.id });
        }
        self.forget_next_key();
    }

    fn give_up_rotation(&mut self) {
        self.forget_next_key();
        // A rotation that an earlier run had begun: whether the old key is good is not known yet.
        let is_unsure = self.stream.id().is_none();
        self.login = is_unsure.then(|| Login::new(Purpose::Refresh, self.node_key.clone(), None));
    }

    fn forget_next_key(&mut self) {
        if self.next_node_key.take().is_some() {
            self.outputs.push_back(Output::Save);
        }
    }

    /// A key that is kept before control hears of it.
    fn new_key(&mut self) -> NodePrivate {
        let key = NodePrivate::generate(&mut self.keys);
        self.next_node_key = Some(key.clone());
        self.outputs.push_back(Output::Save);
        key
    }
}
