//! [`State`]: the rows, what is true for the moment, and what is looked up in them.
//!
//! A node changes by [`State::put_node`] alone: it is told how the node is to be, finds out in what that differs from how
//! it was, and notes what follows: the row to be stored, the entry in the log, whom it concerns. Nothing follows from
//! what is as it was.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use mesh_core::{
    control::types::{Hostinfo, NodeId, UserId},
    derp::DerpMap,
    ip::prefix::Prefix,
    key::{MachinePublic, NodePublic},
    time::WallTime,
};

use super::{
    Mutation, Rows, Sequence,
    log::{ChangeLog, Parts, PolicyChange, Version, What},
    node::{Live, Member},
    rows::{KeyRow, NodeRow, PolicyRow, UserRow},
    snapshot::Snapshot,
};
use crate::{
    ipam::Pool,
    limits,
    names::Names,
    policy::{self, Change, Policy, Rulebook},
    render::{self, RenderCounters},
};

/// Everything that the server knows.
#[derive(Debug)]
pub struct State {
    members: Arc<BTreeMap<NodeId, Arc<Member>>>,
    users: Arc<BTreeMap<UserId, Arc<UserRow>>>,
    keys: BTreeMap<String, KeyRow>,
    policy: Option<PolicyRow>,
    rulebook: Arc<Rulebook>,
    /// What rulebooks before this one counted.
    evaluations_before: u64,
    routers: Arc<BTreeSet<NodeId>>,
    derp_map: Arc<DerpMap>,
    base_domain: Arc<str>,
    by_key: BTreeMap<NodePublic, NodeId>,
    by_machine: BTreeMap<MachinePublic, BTreeSet<NodeId>>,
    /// Keys that nodes gave up for others, oldest first, and whose they were: as many as the log may tell of.
    given_up: VecDeque<(NodePublic, MachinePublic)>,
    /// Names of nodes.
    pub names: Names,
    /// Overlay addresses.
    pub pool: Pool,
    next: BTreeMap<Sequence, i64>,
    log: ChangeLog,
    /// Nodes whose packet filters list a node that nobody was told of yet.
    withheld: BTreeMap<NodeId, BTreeSet<NodeId>>,
    counters: Arc<RenderCounters>,
    snapshot: Option<Arc<Snapshot>>,
    mutations: Vec<Mutation>,
    concerned: Vec<Concern>,
}

/// Whom a change concerns.
#[derive(Debug)]
pub struct Concern {
    /// The version before it.
    pub before: Version,
    /// Nodes that have to be told.
    pub viewers: BTreeSet<NodeId>,
}

impl State {
    /// What was stored, and nobody connected.
    #[must_use]
    pub fn new(rows: Rows, policy: Policy, derp_map: Arc<DerpMap>, base_domain: &str, now: WallTime) -> Self {
        let users: BTreeMap<_, _> = rows.users.into_iter().map(|(id, row)| (id, Arc::new(row))).collect();
        let mut state = Self {
            members: Arc::default(),
            rulebook: Arc::new(Rulebook::new(Arc::new(policy), users.values().map(|row| policy_user(row)), [])),
            users: Arc::new(users),
            keys: rows.keys,
            policy: rows.policy,
            evaluations_before: 0,
            routers: Arc::default(),
            derp_map,
            base_domain: base_domain.into(),
            by_key: BTreeMap::new(),
            by_machine: BTreeMap::new(),
            given_up: VecDeque::new(),
            names: Names::default(),
            pool: Pool::default(),
            next: rows.next,
            log: ChangeLog::default(),
            withheld: BTreeMap::new(),
            counters: Arc::default(),
            snapshot: None,
            mutations: Vec::new(),
            concerned: Vec::new(),
        };
        let members: BTreeMap<_, _> = rows
            .nodes
            .into_iter()
            .map(|(id, row)| {
                state.names.take(row.name.clone(), id);
                state.pool.take(row.ipv4);
                state.by_key.insert(row.key, id);
                state.by_machine.entry(row.machine).or_default().insert(id);
                let live = Live { expired: row.is_expired(now), ..Live::default() };
                (id, Arc::new(Member::new(Arc::new(row), live)))
            })
            .collect();
        let is_router = |member: &&Arc<Member>| member.row.served_routes().next().is_some();
        state.routers = Arc::new(members.values().filter(is_router).map(|member| member.id()).collect());
        let users = state.users.values().map(|row| policy_user(row));
        let nodes = members.values().map(|member| policy_node(&member.row));
        state.rulebook = Arc::new(Rulebook::new(Arc::clone(state.rulebook.policy()), users, nodes));
        state.members = Arc::new(members);
        state
    }

    /// The nodes.
    #[must_use]
    pub fn members(&self) -> &BTreeMap<NodeId, Arc<Member>> {
        &self.members
    }

    /// A node.
    #[must_use]
    pub fn member(&self, id: NodeId) -> Option<&Arc<Member>> {
        self.members.get(&id)
    }

    /// The node with a key.
    #[must_use]
    pub fn by_key(&self, key: &NodePublic) -> Option<&Arc<Member>> {
        self.members.get(self.by_key.get(key)?)
    }

    /// The nodes of an installation.
    pub fn by_machine(&self, machine: &MachinePublic) -> impl Iterator<Item = &Arc<Member>> {
        self.by_machine.get(machine).into_iter().flatten().filter_map(|id| self.members.get(id))
    }

    /// Whether another machine's node had a key until lately. Whoever hears in one message that the one gave it up and that
    /// the other has it takes the two for one.
    #[must_use]
    pub fn was_of_another(&self, key: &NodePublic, machine: &MachinePublic) -> bool {
        self.given_up.iter().any(|(given_up, by)| given_up == key && by != machine)
    }

    /// The users.
    #[must_use]
    pub fn users(&self) -> &BTreeMap<UserId, Arc<UserRow>> {
        &self.users
    }

    /// The auth keys.
    #[must_use]
    pub fn keys(&self) -> &BTreeMap<String, KeyRow> {
        &self.keys
    }

    /// The policy as it was written.
    #[must_use]
    pub fn policy(&self) -> Option<&PolicyRow> {
        self.policy.as_ref()
    }

    /// The policy, applied.
    #[must_use]
    pub fn rulebook(&self) -> &Rulebook {
        &self.rulebook
    }

    /// The newest changes.
    #[must_use]
    pub fn log(&self) -> &ChangeLog {
        &self.log
    }

    /// All who listen were told of the changes up to a version.
    pub fn forget_changes(&mut self, told: Version) {
        self.log.forget(told);
    }

    /// What names end in.
    #[must_use]
    pub fn base_domain(&self) -> &str {
        &self.base_domain
    }

    /// What rendering counted.
    #[must_use]
    pub fn render_counters(&self) -> &RenderCounters {
        &self.counters
    }

    /// How often a selector was found to name a node.
    #[must_use]
    pub fn selector_evaluations(&self) -> u64 {
        self.evaluations_before + self.rulebook.counters().selector_evaluations
    }

    /// How things are now. The same view as before when nothing changed since; the second value is whether it is new.
    pub fn snapshot(&mut self) -> (Arc<Snapshot>, bool) {
        if let Some(snapshot) = &self.snapshot {
            return (Arc::clone(snapshot), false);
        }
        let snapshot = Arc::new(Snapshot {
            version: self.log.version(),
            members: Arc::clone(&self.members),
            users: Arc::clone(&self.users),
            rulebook: Arc::clone(&self.rulebook),
            routers: Arc::clone(&self.routers),
            has_policy: self.policy.is_some(),
            derp_map: Arc::clone(&self.derp_map),
            base_domain: Arc::clone(&self.base_domain),
            counters: Arc::clone(&self.counters),
        });
        self.snapshot = Some(Arc::clone(&snapshot));
        (snapshot, true)
    }

    /// What has to be stored since the last call.
    pub fn take_mutations(&mut self) -> Vec<Mutation> {
        core::mem::take(&mut self.mutations)
    }

    /// Whether something has to be stored.
    #[must_use]
    pub fn has_mutations(&self) -> bool {
        !self.mutations.is_empty()
    }

    /// Who has to be told since the last call.
    pub fn take_concerned(&mut self) -> Vec<Concern> {
        core::mem::take(&mut self.concerned)
    }

    /// Something more to be stored.
    pub fn note(&mut self, mutation: Mutation) {
        self.mutations.push(mutation);
    }

    /// A number that no row of a table has or had.
    pub fn number(&mut self, of: Sequence) -> i64 {
        let next = self.next.entry(of).or_insert(1);
        let number = *next;
        *next += 1;
        self.mutations.push(Mutation::PutNext(of, *next));
        number
    }

    /// A user is there, or is other than before.
    pub fn put_user(&mut self, row: UserRow) {
        self.snapshot = None;
        // A user who is new has no nodes, so nobody is concerned.
        drop(Arc::make_mut(&mut self.rulebook).set_user(policy_user(&row)));
        self.mutations.push(Mutation::PutUser(row.clone()));
        Arc::make_mut(&mut self.users).insert(row.id, Arc::new(row));
    }

    /// A user who has no nodes is no more, nor are their auth keys.
    pub fn remove_user(&mut self, id: UserId) {
        self.snapshot = None;
        Arc::make_mut(&mut self.users).remove(&id);
        let keys: Vec<_> = self.keys.values().filter(|key| key.user == id).map(|key| key.id.clone()).collect();
        for key in keys {
            self.keys.remove(&key);
            self.mutations.push(Mutation::DeleteKey(key));
        }
        self.mutations.push(Mutation::DeleteUser(id));
    }

    /// An auth key is there, or is other than before.
    pub fn put_key(&mut self, row: KeyRow) {
        self.mutations.push(Mutation::PutKey(row.clone()));
        self.keys.insert(row.id.clone(), row);
    }

    /// An auth key is forgotten.
    pub fn remove_key(&mut self, id: &str) {
        if self.keys.remove(id).is_some() {
            self.mutations.push(Mutation::DeleteKey(id.to_owned()));
        }
    }

    /// A node is to be so.
    pub fn put_node(&mut self, row: NodeRow, live: Live) {
        let id = row.id;
        let before = self.members.get(&id).cloned();
        if let Some(before) = &before
            && *before.row == row
            && before.live == live
        {
            return;
        }
        self.snapshot = None;
        self.index(before.as_deref().map(|member| &*member.row), Some(&row));
        if before.as_ref().is_none_or(|before| !is_stored_alike(&before.row, &row)) {
            self.mutations.push(Mutation::PutNode(Box::new(row.clone())));
        }
        let same_row = before.as_ref().filter(|before| *before.row == row).map(|before| Arc::clone(&before.row));
        let row = same_row.unwrap_or_else(|| Arc::new(row));
        let parts = before.as_ref().map_or(Parts::WHOLE | Parts::OWN, |before| differences(before, &row, &live));
        let is_announced = row.announced;
        let is_news = is_announced && before.as_ref().is_none_or(|before| !before.row.announced);
        let concerns_policy = before
            .as_ref()
            .is_none_or(|before| parts.has(Parts::WHOLE) && policy_node(&before.row) != policy_node(&row));
        let mut change = if concerns_policy {
            Arc::make_mut(&mut self.rulebook).set_node(policy_node(&row))
        } else {
            Change::default()
        };
        if row.served_routes().next().is_some() != self.routers.contains(&id) {
            let routers = Arc::make_mut(&mut self.routers);
            if !routers.remove(&id) {
                routers.insert(id);
            }
        }
        Arc::make_mut(&mut self.members).insert(id, Arc::new(Member::new(row, live)));
        if !is_announced && concerns_only(&change, id) {
            self.withheld.entry(id).or_default().extend(change.filters.iter().filter(|other| **other != id));
        }
        if is_news {
            change.filters.extend(self.withheld.remove(&id).unwrap_or_default());
            let peers = self.rulebook.peers(id);
            if !peers.is_empty() {
                change.appeared.insert(id, peers);
            }
        }
        self.enter(id, parts, change);
    }

    /// A node is no more.
    pub fn remove_node(&mut self, id: NodeId) {
        let Some(member) = Arc::make_mut(&mut self.members).remove(&id) else { return };
        self.snapshot = None;
        self.index(Some(&member.row), None);
        self.withheld.remove(&id);
        for filters in self.withheld.values_mut() {
            filters.remove(&id);
        }
        Arc::make_mut(&mut self.routers).remove(&id);
        self.mutations.push(Mutation::DeleteNode(id));
        let change = Arc::make_mut(&mut self.rulebook).remove_node(id);
        if member.row.announced {
            self.enter(id, Parts::default(), change);
        }
    }

    /// A policy is in force.
    pub fn put_policy(&mut self, row: PolicyRow, rulebook: Rulebook) {
        self.snapshot = None;
        let after = Arc::new(rulebook);
        let affected = after.affected_since(&self.rulebook);
        self.evaluations_before += self.rulebook.counters().selector_evaluations;
        let before = core::mem::replace(&mut self.rulebook, Arc::clone(&after));
        let mut viewers = &affected.peers | &affected.filters;
        viewers.extend(&affected.routes);
        // Whether there is a policy at all is a matter of health for everybody.
        if self.policy.is_none() {
            viewers.extend(self.members.keys());
        }
        self.mutations.push(Mutation::PutPolicy(row.clone()));
        self.policy = Some(row);
        let version = self.log.add(What::Policy(Box::new(PolicyChange { affected, before, after })));
        self.concerned.push(Concern { before: Version(version.0 - 1), viewers });
    }

    /// The policy applied to the users and nodes of now.
    #[must_use]
    pub fn applied(&self, policy: Policy) -> Rulebook {
        let users = self.users.values().map(|row| policy_user(row));
        let nodes = self.members.values().map(|member| policy_node(&member.row));
        let mut rulebook = Rulebook::new(Arc::new(policy), users, nodes);
        // Routers that took the place of others keep it.
        for subnet in self.routers.iter().flat_map(|router| self.served_subnets(*router)) {
            if let Some(primary) =
                self.rulebook.primary(subnet).filter(|primary| rulebook.primary(subnet) != Some(*primary))
            {
                rulebook.set_primary(subnet, primary);
            }
        }
        rulebook
    }

    /// A node is other than before, and served these subnets then: of those, and of the subnets that it serves now, each
    /// whose primary router is away, and not about to come back, gets another that is not. A router whose key expired is
    /// away: nobody talks to it.
    pub fn elect(&mut self, id: NodeId, served: BTreeSet<Prefix>, comes_back: impl Fn(NodeId) -> bool) {
        let live = |router: NodeId| self.members.get(&router).map(|member| &member.live).filter(|live| !live.expired);
        let is_there = |router: &NodeId| live(*router).is_some_and(|live| live.online);
        let is_away = |router: &NodeId| !is_there(router) && (live(*router).is_none() || !comes_back(*router));
        let subnets: BTreeSet<_> = served.into_iter().chain(self.served_subnets(id)).collect();
        let others = subnets.into_iter().filter_map(|subnet| {
            self.rulebook.primary(subnet).filter(is_away)?;
            Some((subnet, self.rulebook.servers(subnet).find(is_there)?))
        });
        let others = others.collect();
        self.set_primaries(id, others);
    }

    /// The subnets that a node serves.
    pub fn served_subnets(&self, id: NodeId) -> impl Iterator<Item = Prefix> {
        let routes = self.members.get(&id).into_iter().flat_map(|member| member.row.served_routes());
        routes.filter(|route| route.length() > 0)
    }

    fn set_primaries(&mut self, id: NodeId, primaries: Vec<(Prefix, NodeId)>) {
        let mut change = Change::default();
        for (subnet, router) in primaries {
            self.snapshot = None;
            change.routes.extend(Arc::make_mut(&mut self.rulebook).set_primary(subnet, router));
        }
        if !change.routes.is_empty() {
            let viewers = change.routes.clone();
            let version = self.log.add(What::Node(id, Parts::default(), change));
            self.concerned.push(Concern { before: Version(version.0 - 1), viewers });
        }
    }

    /// The relays are others.
    pub fn set_relays(&mut self, derp_map: Arc<DerpMap>) {
        if *derp_map == *self.derp_map {
            return;
        }
        self.snapshot = None;
        self.derp_map = derp_map;
        let version = self.log.add(What::Relays);
        self.concerned
            .push(Concern { before: Version(version.0 - 1), viewers: self.members.keys().copied().collect() });
    }

    /// The routes that the policy lets a node serve without asking.
    #[must_use]
    pub fn approved_by_policy(&self, row: &NodeRow) -> Vec<Prefix> {
        self.rulebook.approved_by_policy(&policy_node(row), &row.hostinfo.routable_ips)
    }

    /// Writes a change of a node into the log and says whom it concerns.
    fn enter(&mut self, id: NodeId, parts: Parts, change: Change) {
        let is_announced = self.members.get(&id).is_none_or(|member| member.row.announced);
        let mut viewers = BTreeSet::new();
        if parts.has(Parts::OWN) {
            viewers.insert(id);
        }
        // Of a node that nobody was told of only what it does to pairs of others is told.
        let is_told = |node: NodeId| is_announced || node != id;
        for (node, others) in change.appeared.iter().chain(&change.vanished) {
            viewers.insert(*node);
            if is_told(*node) {
                viewers.append(&mut others.clone());
            }
        }
        viewers.extend(&change.routes);
        if is_announced || !concerns_only(&change, id) {
            viewers.extend(&change.filters);
        }
        if is_announced && !parts.without(Parts::OWN).is_empty() {
            viewers.append(&mut self.rulebook.peers(id));
        }
        if viewers.is_empty() {
            return;
        }
        let version = self.log.add(What::Node(id, parts, change));
        self.concerned.push(Concern { before: Version(version.0 - 1), viewers });
    }

    fn index(&mut self, before: Option<&NodeRow>, after: Option<&NodeRow>) {
        if let Some(before) = before {
            self.by_key.remove(&before.key);
            if after.is_some_and(|after| after.key != before.key) {
                self.given_up.push_back((before.key, before.machine));
                if self.given_up.len() > limits::LOG_ENTRIES {
                    self.given_up.pop_front();
                }
            }
            if let Some(nodes) = self.by_machine.get_mut(&before.machine) {
                nodes.remove(&before.id);
                if nodes.is_empty() {
                    self.by_machine.remove(&before.machine);
                }
            }
            self.names.free(&before.name);
            self.pool.free(before.ipv4);
        }
        if let Some(after) = after {
            self.by_key.insert(after.key, after.id);
            self.by_machine.entry(after.machine).or_default().insert(after.id);
            self.names.take(after.name.clone(), after.id);
            self.pool.take(after.ipv4);
        }
    }
}

/// Whether a change only makes a node seen or unseen, and no pair of others.
fn concerns_only(change: &Change, id: NodeId) -> bool {
    change.appeared.keys().chain(change.vanished.keys()).all(|node| *node == id)
}

/// In what a node differs from how it was.
fn differences(before: &Member, row: &NodeRow, live: &Live) -> Parts {
    let old = &*before.row;
    let mut parts = Parts::default();
    let mut add = |differs: bool, part: Parts| {
        if differs {
            parts |= part;
        }
    };
    add(old.key != row.key, Parts::KEY | Parts::OWN);
    add(old.key_expiry != row.key_expiry, Parts::EXPIRY | Parts::OWN);
    add(old.disco != row.disco, Parts::DISCO);
    add(old.home() != row.home(), Parts::HOME);
    add(old.cap != row.cap, Parts::CAP);
    add(before.live.online != live.online, Parts::ONLINE);
    let endpoints =
        |live: &Live| live.endpoints.iter().copied().zip(live.endpoint_kinds.iter().copied()).collect::<Vec<_>>();
    add(render::adds_endpoint(&endpoints(&before.live), &endpoints(live)), Parts::ENDPOINTS);
    add(before.live.expired != live.expired, Parts::WHOLE | Parts::OWN);
    add(before.live.cloned != live.cloned, Parts::OWN);
    let is_other = old.name != row.name || old.user != row.user || old.tags != row.tags;
    add(is_other, Parts::WHOLE | Parts::OWN);
    let routes = |row: &NodeRow| row.served_routes().collect::<BTreeSet<_>>();
    add(routes(old) != routes(row), Parts::WHOLE | Parts::OWN);
    add(render::shown(&old.hostinfo) != render::shown(&row.hostinfo), Parts::WHOLE);
    parts
}

/// Whether two rows need not be told apart in the store: what a node measures of its network is true for the moment.
fn is_stored_alike(a: &NodeRow, b: &NodeRow) -> bool {
    let kept = |row: &NodeRow| {
        let hostinfo = Hostinfo { net_info: None, ..row.hostinfo.as_ref().clone() };
        (row.home(), NodeRow { hostinfo: Box::new(hostinfo), ..row.clone() })
    };
    a == b || kept(a) == kept(b)
}

/// A node as the policy sees it.
fn policy_node(row: &NodeRow) -> policy::Node {
    let mut node = policy::Node {
        id: row.id,
        user: row.user,
        tags: row.tags.clone(),
        addresses: row.addresses().to_vec(),
        subnets: BTreeSet::new(),
        exit_routes: BTreeSet::new(),
        created: row.created,
    };
    let approved: Vec<_> = row.approved_routes.iter().copied().collect();
    node.set_routes(&row.hostinfo.routable_ips, &approved);
    node
}

/// A user as the policy sees them.
fn policy_user(row: &UserRow) -> policy::User {
    policy::User { id: row.id, login: row.login.clone(), email: None, role: row.role }
}
