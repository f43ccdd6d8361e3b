//! Everything that may happen to a server and seven nodes, and what holds afterwards: what a node has merged from its
//! messages is what it would be told were it told everything; no two nodes have one key, name or address; and a subnet is
//! served by a router that is there, when there is one.

use core::time::Duration;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use control::{
    coordinator::{Command, Input, NodeView, Reply, Request, RequestId},
    limits,
};
use mesh_core::{
    control::{
        NetMap,
        types::{PeerNode, RegisterRequest, RegisterResponse, Service},
    },
    ip::prefix::Prefix,
    key::{DiscoPublic, NodePublic},
    time::{Instant, WallTime},
};

use super::World;

/// Nodes, numbered from 1.
pub(crate) const CLIENTS: u32 = 7;

/// A peer without the time at which it was seen last, which alone is told to nobody.
fn timeless(peer: &Arc<PeerNode>) -> PeerNode {
    PeerNode { last_seen: None, ..PeerNode::clone(peer) }
}

/// What may happen.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Join(u32, usize),
    SignIn(u32),
    Admit(u32, usize),
    Copy(u32, u32),
    Abort(u32),
    Calendar(usize),
    Update(u32),
    Restarted(u32),
    Rename(u32, u8),
    Serve(u32, u16),
    Routes(u32, u8),
    Policy(usize),
    Tag(u32, u8),
    Name(u32, u8),
    Expire(u32),
    Delete(u32),
    HangUp(u32),
    Open(u32),
    Stall(u32),
    Rotate(u32, u8),
    LogOut(u32),
    Relays(u8),
    Wait(u64),
    Crash,
}

/// How far the calendar may be off, in days. Keys of nodes are good for 180.
pub(crate) const CALENDARS: [i64; 4] = [0, 0, 200, -1];

pub(crate) const USERS: [&str; 2] = ["alice@example.com", "bob@example.com"];

pub(crate) const POLICIES: [&str; 6] = [
    super::ALL,
    r#"{"acls": []}"#,
    r#"{"tagOwners": {"tag:a": [], "tag:b": []}, "acls": [{"action": "accept", "src": ["tag:a"], "dst": ["tag:b:22"]}]}"#,
    r#"{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]}"#,
    r#"{"tagOwners": {"tag:a": []}, "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:a", "alice@example.com"]}},
        "acls": [{"action": "accept", "src": ["alice@example.com"], "dst": ["tag:a:*", "10.1.0.0/16:80"]},
                 {"action": "accept", "src": ["10.2.0.0/16"], "dst": ["bob@example.com:22"]}]}"#,
    r#"{"tagOwners": {"tag:a": [], "tag:b": []}, "autoApprovers": {"exitNode": ["tag:b"]},
        "acls": [{"action": "accept", "src": ["bob@example.com"], "dst": ["autogroup:internet:*", "tag:b:53"]},
                 {"action": "accept", "src": ["100.64.0.2"], "dst": ["*:*"]}]}"#,
];

/// A server, its nodes, and what they were shown.
pub(crate) struct Model {
    pub(crate) world: World,
    keys: Vec<String>,
    /// Sign-ins that clients were shown: the code, the key they are for, and the request that waits there.
    sign_ins: BTreeMap<u32, (String, NodePublic, Option<RequestId>)>,
    /// When the server was started last.
    started: Instant,
    /// Counts, so that every address is new.
    next: u16,
}

impl Model {
    pub(crate) fn new() -> Self {
        let mut world = World::new();
        for login in USERS {
            world.admin(Command::CreateUser { login: login.into() }).unwrap();
        }
        let keys = vec![
            world.key(true, false, &[]),
            world.key_of("bob@example.com", true, false, Default::default()),
            world.key(true, false, &["tag:a"]),
            world.key(true, false, &["tag:a", "tag:b"]),
            world.key(true, true, &[]),
        ];
        let started = world.now;
        Self { world, keys, sign_ins: BTreeMap::new(), started, next: 0 }
    }

    fn is_in(&self, client: u32) -> bool {
        let Some(client) = self.world.clients.get(&client) else { return false };
        let is_it = |row: &control::store::NodeRow| (row.key, row.machine) == (client.key, client.machine);
        self.world.rows.nodes.values().any(is_it)
    }

    fn meet(&mut self, client: u32) {
        if !self.world.clients.contains_key(&client) {
            self.world.client(client);
        }
    }

    /// Registers. The key that it copied may be that of another, or was.
    fn register(&mut self, client: u32, request: RegisterRequest) -> Option<RegisterResponse> {
        let response = self.world.register_with(client, request).ok()?;
        if response.node_key_expired && !self.is_in(client) {
            self.world.clients.get_mut(&client)?.change_key(50);
        }
        Some(response)
    }

    fn open(&mut self, client: u32) {
        self.world.stream(client);
        self.update(client);
    }

    fn endpoint(&mut self) -> String {
        self.next += 1;
        let [high, low] = self.next.to_be_bytes();
        format!("203.0.{high}.{low}:41641")
    }

    fn update(&mut self, client: u32) {
        let endpoint = self.endpoint();
        self.world.update(client, &[&endpoint]);
    }

    fn name(&self, client: u32) -> String {
        self.world.row(client).stable_id.clone()
    }

    /// Lets it happen.
    pub(crate) fn happen(&mut self, event: Event) {
        let world = &mut self.world;
        match event {
            Event::Join(client, key) => {
                self.meet(client);
                let request = self.world.clients[&client].registration(Some(&self.keys[key]));
                if self.register(client, request).is_some_and(|response| response.machine_authorized) {
                    self.open(client);
                }
            }
            Event::SignIn(client) => {
                self.meet(client);
                let request = self.world.clients[&client].registration(None);
                let Some(response) = self.register(client, request.clone()) else { return };
                if response.auth_url.is_empty() {
                    return;
                }
                let key = request.node_key;
                let follow_up = RegisterRequest { followup: response.auth_url.clone(), ..request };
                let waiting = self.world.begin(client, Request::Register(Box::new(follow_up)));
                let code = response.auth_url.rsplit('/').next().unwrap().to_owned();
                self.sign_ins.insert(client, (code, key, Some(waiting)));
            }
            Event::Admit(client, user) => {
                let Some((code, key, _)) = self.sign_ins.get(&client).cloned() else { return };
                // It may be over, or the key that of another by now.
                if world.admin(Command::RegisterNode { code, user: USERS[user].into() }).is_ok() {
                    self.sign_ins.remove(&client);
                    // It may be another node by this than it was.
                    self.world.hang_up(client);
                    self.world.clients.get_mut(&client).unwrap().key = key;
                    self.open(client);
                }
            }
            Event::Copy(client, other) => {
                self.meet(client);
                self.meet(other);
                if !self.is_in(client) {
                    let key = self.world.clients[&other].key;
                    self.world.clients.get_mut(&client).unwrap().key = key;
                }
            }
            Event::Abort(client) => {
                let waiting = self.sign_ins.get_mut(&client).and_then(|(.., waiting)| waiting.take());
                let stream = world.clients.get(&client).and_then(|client| client.opened_by);
                if let Some(id) = waiting.or(stream) {
                    world.abort(client, id);
                }
            }
            Event::Calendar(calendar) => {
                let days = CALENDARS[calendar] * 24 * 3600 * 1_000_000_000;
                let wall = super::anchor().wall_at(world.now).as_unix_nanos();
                world.set_calendar(WallTime::from_unix_nanos(wall.saturating_add_signed(days)));
            }
            Event::Relays(region) => {
                let regions: Vec<_> = (900..=900 + i64::from(region)).collect();
                world.input(Input::Relays(Arc::new(super::derp_map(&regions))));
            }
            Event::Policy(policy) => {
                world.admin(Command::SetPolicy { text: POLICIES[policy].into() }).unwrap();
            }
            Event::Wait(millis) => world.advance(Duration::from_millis(millis)),
            Event::Crash => {
                world.crash();
                self.started = world.now;
            }
            Event::HangUp(client) if world.clients.contains_key(&client) => world.hang_up(client),
            Event::Stall(client) => {
                if let Some(client) = world.clients.get_mut(&client) {
                    client.stalled = true;
                }
            }
            Event::Open(client)
            | Event::Update(client)
            | Event::Restarted(client)
            | Event::Rename(client, _)
            | Event::Serve(client, _)
            | Event::Routes(client, _)
            | Event::Tag(client, _)
            | Event::Name(client, _)
            | Event::Expire(client)
            | Event::Delete(client)
            | Event::Rotate(client, _)
            | Event::LogOut(client)
                if self.is_in(client) =>
            {
                self.happen_to(client, event);
            }
            _ => {}
        }
    }

    fn happen_to(&mut self, client: u32, event: Event) {
        let name = self.name(client);
        let world = &mut self.world;
        let one = world.clients.get_mut(&client).unwrap();
        let command = match event {
            Event::Open(_) => return world.stream(client),
            Event::Update(_) => return self.update(client),
            Event::Restarted(_) => {
                self.next += 1;
                one.disco = Some(DiscoPublic::from_bytes(super::bytes(u32::from(self.next), 77)));
                return self.update(client);
            }
            Event::Rename(_, name) => {
                one.hostinfo.hostname = format!("name{name}");
                return self.update(client);
            }
            Event::Serve(_, port) => {
                one.hostinfo.services = vec![Service { proto: "tcp".into(), port, description: "a & b".into() }];
                return self.update(client);
            }
            Event::Routes(_, routes) => {
                let all = ["10.1.0.0/16", "10.2.0.0/16", "0.0.0.0/0", "::/0", "100.64.0.0/24"];
                let routes = all.iter().enumerate().filter(|(bit, _)| routes & (1 << bit) != 0);
                let routes: Vec<_> = routes.map(|(_, route)| route.parse().unwrap()).collect();
                one.hostinfo.routable_ips = routes.clone();
                self.update(client);
                if client.is_multiple_of(2) {
                    return;
                }
                Command::ApproveRoutes { node: name, routes: routes.into_iter().collect() }
            }
            Event::Tag(_, tags) => {
                let tags = if tags % 2 == 0 { vec!["tag:a"] } else { vec!["tag:a", "tag:b"] };
                Command::TagNode { node: name, tags: tags.into_iter().map(str::to_owned).collect() }
            }
            Event::Name(_, number) => Command::RenameNode { node: name, name: format!("name{number}") },
            Event::Expire(_) => Command::ExpireNode { node: name },
            Event::Delete(_) => Command::DeleteNode { node: name },
            Event::Rotate(_, generation) => {
                let old = one.change_key(generation);
                let request = RegisterRequest { old_node_key: Some(old), ..one.registration(None) };
                let new = one.key;
                // It signs in for the key that it has. One that it gave up would make it two nodes.
                self.sign_ins.remove(&client);
                let response = world.register_with(client, request);
                if !response.is_ok_and(|response| response.machine_authorized) {
                    let one = world.clients.get_mut(&client).unwrap();
                    if !world.rows.nodes.values().any(|row| row.key == new) {
                        one.key = old;
                    }
                }
                return;
            }
            Event::LogOut(_) => {
                let request = RegisterRequest { expiry: Some(super::BEGIN), ..one.registration(None) };
                world.ask(client, Request::Register(Box::new(request)));
                return;
            }
            _ => return,
        };
        // A name that is taken is refused.
        let _ = self.world.admin(command);
    }

    /// What always holds.
    pub(crate) fn check(&mut self) {
        self.check_maps();
        self.check_rows();
        self.check_routers();
    }

    /// All that have their map open know what they would be told.
    fn check_maps(&mut self) {
        let clients: Vec<_> = self.world.clients.keys().copied().collect();
        for client in &clients {
            self.world.unstall(*client);
        }
        self.world.settle();
        // What changed at the end of it is told in a moment.
        let changes = |world: &World| world.coordinator.counters().changes_total;
        let mut before = None;
        while before != Some(changes(&self.world)) {
            before = Some(changes(&self.world));
            self.world.advance(limits::PUSH_STORM);
        }
        for client in clients {
            if self.world.clients[&client].stream.is_none() {
                continue;
            }
            let fresh = self.world.fresh(client);
            let known = &self.world.clients[&client].map;
            assert_eq!(known.self_node(), fresh.self_node(), "client {client}");
            let is_expired = self.world.row(client).is_expired(self.world.wall());
            assert_eq!(fresh.self_node().map(|node| node.expired), Some(is_expired), "client {client}");
            let ids = |map: &NetMap| map.peers().keys().copied().collect::<Vec<_>>();
            assert_eq!(ids(known), ids(&fresh), "the peers of client {client}");
            for (id, peer) in fresh.peers() {
                assert_eq!(known.peer(*id).map(timeless), Some(timeless(peer)), "client {client}");
            }
            assert_eq!(known.filters(), fresh.filters(), "client {client}");
            assert_eq!(parts(known), parts(&fresh), "client {client}");
            let users: BTreeMap<_, _> = known.users().iter().filter(|(id, _)| fresh.user(**id).is_some()).collect();
            assert_eq!(users, fresh.users().iter().collect(), "client {client}");
        }
    }

    /// What is one node's alone is.
    fn check_rows(&self) {
        let rows = || self.world.rows.nodes.values();
        let number = rows().count();
        assert_eq!(rows().map(|row| row.key).collect::<BTreeSet<_>>().len(), number);
        assert_eq!(rows().map(|row| &row.name).collect::<BTreeSet<_>>().len(), number);
        assert_eq!(rows().map(|row| row.ipv4).collect::<BTreeSet<_>>().len(), number);
        assert_eq!(rows().map(|row| row.ipv6).collect::<BTreeSet<_>>().len(), number);
    }

    /// Each subnet has one primary router, and it is there when one of its routers is.
    fn check_routers(&mut self) {
        let Reply::Nodes { nodes, .. } = self.world.admin(Command::ListNodes).unwrap() else { panic!("nodes") };
        let mut subnets: BTreeMap<Prefix, Vec<&NodeView>> = BTreeMap::new();
        for view in &nodes {
            for route in view.enabled_routes.iter().filter(|route| route.length() > 0) {
                subnets.entry(*route).or_default().push(view);
            }
        }
        let is_there = |view: &NodeView| view.online && !view.expired;
        let has_just_started = self.world.now.since(self.started) <= limits::OFFLINE_GRACE;
        for (subnet, routers) in subnets {
            let primaries: Vec<_> = routers.iter().filter(|view| view.primary_routes.contains(&subnet)).collect();
            let [primary] = primaries.as_slice() else { panic!("{} primaries of {subnet}", primaries.len()) };
            let is_waited_for = has_just_started && !primary.expired;
            let others = routers.iter().filter(|view| is_there(view)).count();
            assert!(is_there(primary) || is_waited_for || others == 0, "{subnet}: {}", primary.node.name);
        }
    }
}

fn parts(map: &NetMap) -> impl PartialEq + core::fmt::Debug + '_ {
    (map.derp_map(), map.dns(), map.domain(), map.health(), map.ssh_policy())
}
