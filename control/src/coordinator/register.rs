//! Registration: a node shows a key, asks to sign in, comes again, changes its key, or logs out.
//!
//! Whatever a node shows, its node key is that of one machine: another machine that comes with it is refused. A node that
//! is known, with the key that it has, is let in as it is, whatever else it brings; a container comes with the same auth
//! key at every start.

use std::{collections::BTreeSet, sync::Arc};

use mesh_core::{
    control::types::{Hostinfo, NodeId, RegisterRequest, RegisterResponse, UserId, is_tag},
    crypto::hash::blake2s,
    key::MachinePublic,
    time::WallTime,
};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;

use super::{
    Caller, Coordinator,
    hostinfo::{bound, cut, merged},
    later,
    map::too_old,
    output::{Refusal, Response},
    timers::Timer,
};
use crate::{
    limits, names,
    policy::Assigner,
    render,
    store::{
        KeyRow, NodeRow, Principal, Sequence,
        node::{Live, Member},
    },
};

/// What the text of an auth key begins with.
pub(super) const KEY_PREFIX: &str = "tskey-auth-";

/// Why a registration fails, in words for the user of the node.
#[derive(Debug)]
pub(super) struct Problem(pub(super) String);

impl From<&str> for Problem {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// Whose a node is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    User(UserId),
    Tags(BTreeSet<String>),
}

impl Owner {
    fn of(row: &NodeRow) -> Self {
        row.user.map_or_else(|| Self::Tags(row.tags.clone()), Self::User)
    }

    /// Whether a node of `row` may be this owner's again: its user's, or anyone's with tags.
    fn is_kind_of(&self, row: &NodeRow) -> bool {
        match self {
            Self::User(user) => row.user == Some(*user),
            Self::Tags(_) => row.user.is_none(),
        }
    }
}

/// A node that is let in.
pub(super) struct Admission {
    pub(super) machine: MachinePublic,
    pub(super) request: RegisterRequest,
    pub(super) owner: Owner,
    pub(super) ephemeral: bool,
    pub(super) auth_key: Option<String>,
}

impl Coordinator {
    pub(super) fn register(&mut self, caller: Caller, mut request: RegisterRequest) {
        if let Some(hostinfo) = &mut request.hostinfo {
            bound(hostinfo);
        }
        cut(&mut request.nl_key);
        match self.registered(caller, &request) {
            Ok(Some(response)) => {
                self.counters.registrations_refused_total += u64::from(!response.error.is_empty());
                self.respond(caller, Response::Register(Box::new(response)));
            }
            Ok(None) => self.sign_in(caller, request),
            Err(refusal) => {
                self.counters.registrations_refused_total += 1;
                self.respond(caller, Response::Refused(refusal));
            }
        }
    }

    /// What a node is told at once; `None` when somebody has to sign in for it.
    fn registered(&mut self, caller: Caller, request: &RegisterRequest) -> Result<Option<RegisterResponse>, Refusal> {
        if request.version < limits::MIN_CAPABILITY_VERSION {
            return Err(too_old(request.version));
        }
        if request.node_key.is_zero() {
            return Err(Refusal::new(400, "the request has no node key"));
        }
        let known = self.state.by_key(&request.node_key).cloned();
        let old = request.old_node_key.and_then(|key| self.state.by_key(&key)).cloned();
        for member in known.iter().chain(&old) {
            if member.row.machine != caller.machine {
                return Err(Refusal::new(401, "the node key is that of another machine"));
            }
        }
        let member = known.as_ref().or(old.as_ref()).or_else(|| self.state.by_machine(&caller.machine).next());
        let now = self.wall();
        let signs_out = request.expiry.is_some_and(|expiry| expiry <= now);
        let auth_key = request.auth.as_ref().map(|auth| auth.auth_key.trim()).filter(|key| !key.is_empty());
        // A sign-out is heard whatever was before: there is one for each registration, and that has its price. So has not what
        // waits for a person: sign-ins have bounds of their own.
        let is_first_sign_out = signs_out && known.as_ref().is_some_and(|known| !known.row.is_expired(now));
        let rotates = old.as_ref().is_some_and(|old| !old.row.is_expired(now)) && request.followup.is_empty();
        let is_sign_in = !signs_out && auth_key.is_none() && known.is_none() && !rotates;
        let payer = member.map(|member| member.id()).filter(|_| !is_first_sign_out && !is_sign_in);
        if let Some(id) = payer {
            self.may_register(id)?;
        }
        if self.state.was_of_another(&request.node_key, &caller.machine) {
            // It makes another.
            return Ok(Some(RegisterResponse { node_key_expired: true, ..RegisterResponse::default() }));
        }
        if let Some(key) = auth_key.filter(|_| !signs_out) {
            return Ok(Some(match self.admit_by_key(caller.machine, request, key, known) {
                Ok(node) => {
                    self.note_cost(node);
                    self.welcome(node)
                }
                // Who mistypes a key is not made to wait for it.
                Err(Problem(error)) => RegisterResponse { error, ..RegisterResponse::default() },
            }));
        }
        if let Some(id) = payer {
            self.note_cost(id);
        }
        if signs_out {
            return Ok(Some(self.log_out(known)));
        }
        if let Some(known) = known {
            return Ok(Some(self.come_again(&known, request, now)));
        }
        match old.filter(|_| rotates) {
            Some(old) => Ok(Some(self.rotate(&old, request, now))),
            None => Ok(None),
        }
    }

    /// A node that is known comes with the key that it has. Nothing changes but what it asks for.
    fn come_again(&mut self, known: &Member, request: &RegisterRequest, now: WallTime) -> RegisterResponse {
        if known.row.is_expired(now) {
            return RegisterResponse { node_key_expired: true, machine_authorized: false, ..self.welcome(known.id()) };
        }
        if let Some(wanted) = request.expiry {
            if known.row.key_expiry.is_some_and(|expiry| wanted > expiry) {
                let error = "extending key is not allowed: sign in again".to_owned();
                return RegisterResponse { error, ..RegisterResponse::default() };
            }
            let row = NodeRow { key_expiry: Some(wanted), ..(*known.row).clone() };
            self.put(row, known.live.clone());
        }
        self.welcome(known.id())
    }

    /// A node changes its key before it expires: the key is renewed and the sign-in is not.
    fn rotate(&mut self, old: &Member, request: &RegisterRequest, now: WallTime) -> RegisterResponse {
        let owner = Owner::of(&old.row);
        let expiry = shorter(old.row.key_expiry, request.expiry.filter(|expiry| *expiry > now));
        let row = NodeRow { key_expiry: expiry, ..self.renewed(&old.row, request, owner) };
        let actor = Principal::Node(old.row.stable_id.clone());
        let (before, after) = (self.seen(&old.row), self.seen(&row));
        self.audit(actor, "node.rotate", &old.row.stable_id, before, after);
        self.rekey(old, row);
        self.welcome(old.id())
    }

    fn log_out(&mut self, known: Option<Arc<Member>>) -> RegisterResponse {
        let told = RegisterResponse { node_key_expired: true, ..RegisterResponse::default() };
        let Some(known) = known else { return told };
        let told = RegisterResponse { node_key_expired: true, machine_authorized: false, ..self.welcome(known.id()) };
        let actor = Principal::Node(known.row.stable_id.clone());
        let before = self.seen(&known.row);
        self.audit(actor, "node.logout", &known.row.stable_id, before, Value::Null);
        if let Some(stream) = self.streams.of_node(known.id()) {
            self.drop_stream(stream);
        }
        if known.row.ephemeral {
            self.forget(known.id());
            return told;
        }
        let now = self.wall();
        let key_expiry = shorter(known.row.key_expiry, Some(now));
        let row = NodeRow { key_expiry, last_seen: Some(now), ..(*known.row).clone() };
        let live = Live { online: false, ..known.live.clone() };
        self.timers.clear(Timer::Offline(known.id()));
        self.put(row, live);
        told
    }

    /// A node shows an auth key.
    fn admit_by_key(
        &mut self,
        machine: MachinePublic,
        request: &RegisterRequest,
        text: &str,
        known: Option<Arc<Member>>,
    ) -> Result<NodeId, Problem> {
        let key = self.find_key(text);
        let now = self.wall();
        if let Some(known) = known.filter(|known| !known.row.is_expired(now)) {
            let turns_over = key.as_ref().is_some_and(|key| match known.row.user {
                Some(user) => !key.tags.is_empty() || key.user != user,
                None => false,
            });
            if !turns_over {
                return Ok(known.id());
            }
        }
        let mut key = key.ok_or("invalid authkey")?;
        if key.revoked.is_some() {
            return Err("authkey revoked".into());
        }
        if key.expires <= now {
            return Err("authkey expired".into());
        }
        if !key.reusable && key.uses > 0 {
            return Err("authkey already used".into());
        }
        if !self.state.users().contains_key(&key.user) {
            return Err("invalid authkey".into());
        }
        let wanted = wanted_tags(request)?;
        let owner = if key.tags.is_empty() {
            self.check_tags(Assigner::User(key.user), &wanted)?;
            if wanted.is_empty() { Owner::User(key.user) } else { Owner::Tags(wanted) }
        } else {
            self.check_tags(Assigner::Tags(&key.tags), &(&wanted - &key.tags))?;
            Owner::Tags(&key.tags | &wanted)
        };
        let ephemeral = key.ephemeral || request.ephemeral;
        let auth_key = Some(key.id.clone());
        let node = self.admit(Admission { machine, request: request.clone(), owner, ephemeral, auth_key })?;
        key.uses += 1;
        self.state.put_key(key);
        Ok(node)
    }

    /// The auth key of a text. The secret is compared in a time that says nothing of it.
    fn find_key(&self, text: &str) -> Option<KeyRow> {
        // A key signed under tailnet lock brings its signature along.
        let text = text.split_once("--TL").map_or(text, |(key, _)| key);
        let (id, secret) = text.strip_prefix(KEY_PREFIX)?.split_once('-')?;
        let row = self.state.keys().get(id)?;
        let is_right: bool = row.hash.ct_eq(&blake2s(&[secret.as_bytes()])).into();
        is_right.then(|| row.clone())
    }

    /// Refuses tags that someone may not give.
    pub(super) fn check_tags(&self, who: Assigner<'_>, tags: &BTreeSet<String>) -> Result<(), Problem> {
        let wrong: Vec<_> =
            tags.iter().filter(|tag| !self.state.rulebook().may_assign(who, tag)).map(String::as_str).collect();
        if wrong.is_empty() { Ok(()) } else { Err(not_permitted(&wrong)) }
    }

    /// Lets a node in: the one that the machine has for this owner, or had for one of another kind, or a new one.
    pub(super) fn admit(&mut self, admission: Admission) -> Result<NodeId, Problem> {
        let Admission { machine, request, owner, ephemeral, auth_key } = admission;
        let known = self.state.by_key(&request.node_key).cloned();
        // Somebody who signs in takes a while: meanwhile another machine may have registered the key.
        if known.as_ref().is_some_and(|known| known.row.machine != machine) {
            return Err("the node key is that of another machine".into());
        }
        if self.state.was_of_another(&request.node_key, &machine) {
            return Err("the node key was that of another machine: let the node sign in anew".into());
        }
        if let Some(known) = &known
            && let (Owner::User(new), Some(user)) = (&owner, known.row.user)
            && *new != user
        {
            return Err("the node key is registered for another user: log out first".into());
        }
        let old = request.old_node_key.and_then(|key| self.state.by_key(&key)).cloned();
        let old = old.filter(|old| old.row.machine == machine && may_turn(&old.row, &owner));
        let now = self.wall();
        let before = known
            .or(old)
            .or_else(|| self.state.by_machine(&machine).find(|member| owner.is_kind_of(&member.row)).cloned())
            .or_else(|| self.signed_out(machine, &owner, now));
        let expiry = match owner {
            Owner::User(_) => {
                shorter(Some(later(now, limits::NODE_KEY_LIFE)), request.expiry.filter(|expiry| *expiry > now))
            }
            Owner::Tags(_) => None,
        };
        let Some(before) = before else {
            let mut row = self.new_row(machine, &request, &owner)?;
            (row.key_expiry, row.ephemeral, row.auth_key) = (expiry, ephemeral, auth_key);
            self.counters.joins_total += 1;
            let actor = Principal::Node(row.stable_id.clone());
            let after = self.seen(&row);
            self.audit(actor, "node.create", &row.stable_id, Value::Null, after);
            let id = row.id;
            let approved = self.state.approved_by_policy(&row);
            row.approved_routes.extend(approved);
            self.put(row, Live::default());
            self.note_admitted(id);
            return Ok(id);
        };
        // Tags that an operator gave since are kept when a node comes with the key that it came with before.
        let comes_again = auth_key.is_some() && auth_key == before.row.auth_key && before.row.user.is_none();
        let owner = if comes_again { Owner::of(&before.row) } else { owner };
        let mut row = self.renewed(&before.row, &request, owner);
        (row.key_expiry, row.ephemeral) = (expiry, ephemeral);
        row.auth_key = auth_key.or(row.auth_key);
        let actor = Principal::Node(row.stable_id.clone());
        let (was, is) = (self.seen(&before.row), self.seen(&row));
        self.audit(actor, "node.reauthenticate", &row.stable_id, was, is);
        self.rekey(&before, row);
        Ok(before.id())
    }

    /// The node of a machine that was signed out and may turn over to an owner of another kind. Where several may, none
    /// does.
    fn signed_out(&self, machine: MachinePublic, owner: &Owner, now: WallTime) -> Option<Arc<Member>> {
        let may = |member: &&Arc<Member>| member.row.is_expired(now) && may_turn(&member.row, owner);
        let mut found = self.state.by_machine(&machine).filter(may);
        found.next().filter(|_| found.next().is_none()).cloned()
    }

    /// A node as it is once it has registered again.
    fn renewed(&mut self, row: &NodeRow, request: &RegisterRequest, owner: Owner) -> NodeRow {
        let (user, tags) = match owner {
            Owner::User(user) => (Some(user), BTreeSet::new()),
            Owner::Tags(tags) => (None, tags),
        };
        let said = request.hostinfo.as_deref().cloned().unwrap_or_else(|| (*row.hostinfo).clone());
        let mut renewed = NodeRow {
            key: request.node_key,
            nl_key: request.nl_key.clone(),
            user,
            tags,
            hostinfo: Box::new(merged(said, &row.hostinfo)),
            cap: request.version,
            ..row.clone()
        };
        let said = renewed.hostinfo.clone();
        self.note_name(&mut renewed, &said, &row.hostinfo);
        self.note_routes(&mut renewed, &row.hostinfo);
        renewed
    }

    /// A node has another key, or the same for longer. A stream that was opened with another key ends: the node opens one
    /// with the key that it has.
    fn rekey(&mut self, before: &Member, row: NodeRow) {
        let id = row.id;
        if row.key != before.row.key
            && let Some(stream) = self.streams.of_node(id)
        {
            self.close_stream(stream);
        }
        self.put(row, before.live.clone());
        self.note_admitted(id);
    }

    fn new_row(
        &mut self,
        machine: MachinePublic,
        request: &RegisterRequest,
        owner: &Owner,
    ) -> Result<NodeRow, Problem> {
        if self.state.members().len() >= limits::NODES {
            return Err("the network is full: delete nodes that are no longer used".into());
        }
        let (ipv4, ipv6) = self.state.pool.allocate().ok_or("there are no addresses left")?;
        let id = NodeId(self.state.number(Sequence::Nodes));
        let hostinfo: Hostinfo = request.hostinfo.as_deref().cloned().unwrap_or_default();
        let name = self.state.names.like(&names::label(&hostinfo.hostname), id, None);
        let (user, tags) = match owner {
            Owner::User(user) => (Some(*user), BTreeSet::new()),
            Owner::Tags(tags) => (None, tags.clone()),
        };
        Ok(NodeRow {
            id,
            stable_id: self.stable_id('n'),
            machine,
            key: request.node_key,
            nl_key: request.nl_key.clone(),
            disco: None,
            user,
            tags,
            name,
            name_is_fixed: false,
            ipv4,
            ipv6,
            created: self.wall(),
            key_expiry: None,
            ephemeral: false,
            auth_key: None,
            approved_routes: BTreeSet::new(),
            hostinfo: Box::new(hostinfo),
            cap: request.version,
            last_seen: None,
            announced: false,
        })
    }

    /// A node as the audit record shows it.
    pub(super) fn seen(&self, row: &NodeRow) -> Value {
        let user = row.user.and_then(|user| self.state.users().get(&user));
        json!({
            "name": row.name,
            "key": row.key,
            "user": row.user,
            "login": user.map(|user| &user.login),
            "tags": row.tags,
            "auth_key": row.auth_key,
            "expires": row.key_expiry.map(WallTime::as_unix_nanos),
            "routes": row.approved_routes,
        })
    }

    /// What a node is told that is in.
    pub(super) fn welcome(&self, id: NodeId) -> RegisterResponse {
        let member = self.state.member(id);
        let user = member.and_then(|member| member.row.user).and_then(|user| self.state.users().get(&user));
        let user = user.map(|row| &**row);
        RegisterResponse {
            user: render::user(user),
            login: render::login(user),
            machine_authorized: member.is_some(),
            ..RegisterResponse::default()
        }
    }
}

/// The tags that a request asks for.
pub(super) fn wanted_tags(request: &RegisterRequest) -> Result<BTreeSet<String>, Problem> {
    let wanted: BTreeSet<_> = request.hostinfo.iter().flat_map(|info| &info.request_tags).cloned().collect();
    let wrong: Vec<_> = wanted.iter().filter(|tag| !is_tag(tag)).map(String::as_str).collect();
    if wrong.is_empty() { Ok(wanted) } else { Err(not_permitted(&wrong)) }
}

fn not_permitted(tags: &[&str]) -> Problem {
    Problem(format!("requested tags [{}] are invalid or not permitted", tags.join(" ")))
}

/// Whether the node with the key before may become an owner's: its own user's again, tags in place of its user or of
/// tags, or its user's in place of tags.
fn may_turn(row: &NodeRow, owner: &Owner) -> bool {
    match (row.user, owner) {
        (Some(user), Owner::User(new)) => user == *new,
        (None, _) | (Some(_), Owner::Tags(_)) => true,
    }
}

/// The earlier of two points in time, where none is never.
fn shorter(a: Option<WallTime>, b: Option<WallTime>) -> Option<WallTime> {
    mesh_core::time::earliest(a, b)
}
