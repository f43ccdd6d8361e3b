//! A server and its nodes in one thread: outputs are carried out as they come, rows are kept, messages are decoded as
//! nodes decode them.
#![allow(dead_code, reason = "each of the tests that share this uses a part of it")]
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

pub(crate) mod model;

use core::{net::IpAddr, time::Duration};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use control::{
    coordinator::{
        AdminError, AdminId, Command, Config, ConnId, Coordinator, Input, Output, Refusal, Reply, Request, RequestId,
        Response, StreamId,
    },
    limits,
    store::{Principal, Rows},
};
use mesh_core::{
    control::{
        NetMap, netmap,
        types::{
            Hostinfo, MapRequest, MapResponse, NetInfo, NodeId, PeerNode, RegisterAuth, RegisterRequest,
            RegisterResponse,
        },
    },
    derp::DerpMap,
    key::{DiscoPublic, MachinePublic, NodePublic},
    machine::Machine,
    rng::Seed,
    time::{Instant, WallAnchor, WallTime},
};

/// What a node says the capability version of its program is.
pub(crate) const VERSION: i64 = 145;
/// When the world begins.
pub(crate) const BEGIN: WallTime = WallTime::from_unix_secs(1_800_000_000);

/// A policy that allows everything.
pub(crate) const ALL: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;

/// A server and its nodes.
pub(crate) struct World {
    pub(crate) coordinator: Coordinator,
    pub(crate) rows: Rows,
    pub(crate) now: Instant,
    /// The calendar of the server's host.
    pub(crate) clock: WallAnchor,
    pub(crate) clients: BTreeMap<u32, Client>,
    /// Outputs that were carried out, oldest first, in short.
    pub(crate) carried_out: u64,
    /// After how many outputs the server crashes.
    pub(crate) crash_after: Option<u64>,
    conns: BTreeMap<ConnId, u32>,
    streams: BTreeMap<StreamId, u32>,
    responses: BTreeMap<(ConnId, RequestId), Response>,
    replies: BTreeMap<AdminId, Result<Reply, AdminError>>,
    next: u64,
    restarts: u64,
}

/// One node.
pub(crate) struct Client {
    pub(crate) number: u32,
    pub(crate) machine: MachinePublic,
    pub(crate) key: NodePublic,
    pub(crate) disco: Option<DiscoPublic>,
    pub(crate) conn: ConnId,
    /// Where it is.
    pub(crate) from: IpAddr,
    pub(crate) hostinfo: Hostinfo,
    pub(crate) stream: Option<StreamId>,
    /// The request that opened the stream.
    pub(crate) opened_by: Option<RequestId>,
    pub(crate) map: NetMap,
    /// Messages of all its streams, but keepalives.
    pub(crate) messages: Vec<MapResponse>,
    pub(crate) keep_alives: u64,
    /// It does not read.
    pub(crate) stalled: bool,
    /// A message is being written to it.
    pub(crate) unread: u64,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Rows::default())
    }

    pub(crate) fn with(rows: Rows) -> Self {
        let now = Instant::from_secs(1);
        let coordinator = restored(rows.clone(), 0, anchor(), now).unwrap();
        Self {
            coordinator,
            rows,
            now,
            clock: anchor(),
            clients: BTreeMap::new(),
            carried_out: 0,
            crash_after: None,
            conns: BTreeMap::new(),
            streams: BTreeMap::new(),
            responses: BTreeMap::new(),
            replies: BTreeMap::new(),
            next: 0,
            restarts: 0,
        }
    }

    /// With a user alice, and everything allowed.
    pub(crate) fn open() -> Self {
        let mut world = Self::new();
        world.admin(Command::CreateUser { login: "alice@example.com".into() }).unwrap();
        world.admin(Command::SetPolicy { text: ALL.into() }).unwrap();
        world
    }

    pub(crate) fn input(&mut self, input: Input) {
        self.coordinator.handle_input(input, self.now);
        self.drain();
    }

    /// Carries out what the server says.
    pub(crate) fn drain(&mut self) {
        while let Some(output) = self.coordinator.poll_output() {
            if self.crash_after.is_some_and(|after| self.carried_out >= after) {
                self.crash_after = None;
                self.crash();
                return;
            }
            self.carried_out += 1;
            match output {
                Output::Persist(mutations) => mutations.into_iter().for_each(|mutation| self.rows.apply(mutation)),
                Output::Respond { conn, id, response } => self.note_response(conn, id, response),
                Output::Push(update) => {
                    let stream = update.stream().unwrap();
                    let json = update.render().to_json();
                    let client = self.client_of(stream).expect("a push is to an open stream");
                    client.read(&json);
                    let (stalled, unread) = (client.stalled, client.unread);
                    client.unread += u64::from(stalled);
                    assert!(unread == 0 || update.is_last(), "one message at a time");
                    if !stalled && !update.is_last() {
                        self.coordinator.handle_input(Input::Writable { stream }, self.now);
                    }
                }
                Output::KeepAlive { stream } => self.client_of(stream).unwrap().keep_alives += 1,
                Output::Admin { id, result } => drop(self.replies.insert(id, result)),
                Output::Close { stream } => {
                    // Of a stream that was replaced the client has another by now.
                    if let Some(client) = self.client_of(stream) {
                        client.stream = None;
                        client.unread = 0;
                    }
                    self.streams.remove(&stream);
                }
            }
        }
    }

    fn note_response(&mut self, conn: ConnId, id: RequestId, response: Response) {
        if let Response::Stream(stream) = &response {
            let number = self.conns[&conn];
            self.streams.insert(*stream, number);
            let client = self.clients.get_mut(&number).unwrap();
            (client.stream, client.opened_by) = (Some(*stream), Some(id));
            client.map.begin_stream();
        }
        self.responses.insert((conn, id), response);
    }

    fn client_of(&mut self, stream: StreamId) -> Option<&mut Client> {
        self.clients.get_mut(self.streams.get(&stream)?).filter(|client| client.stream == Some(stream))
    }

    /// The server dies and comes back with what was stored. All connections end; what it answered before was heard.
    pub(crate) fn crash(&mut self) {
        self.restarts += 1;
        self.coordinator = restored(self.rows.clone(), self.restarts, self.clock, self.now).unwrap();
        self.streams.clear();
        for client in self.clients.values_mut() {
            client.stream = None;
            client.unread = 0;
        }
    }

    /// Lets time pass, waking the server when it wants.
    pub(crate) fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        while let Some(deadline) = self.coordinator.poll_timeout().filter(|deadline| deadline.at <= end) {
            assert!(deadline.at > self.now, "{deadline:?} is not later than {}", self.now);
            self.now = deadline.at;
            self.coordinator.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }

    /// Long enough for everybody to be told.
    pub(crate) fn settle(&mut self) {
        self.advance(Duration::from_millis(600));
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn admin(&mut self, command: Command) -> Result<Reply, AdminError> {
        self.try_admin(command).expect("a command is answered at once")
    }

    /// `None` when the server crashed before it answered.
    pub(crate) fn try_admin(&mut self, command: Command) -> Option<Result<Reply, AdminError>> {
        let id = AdminId(self.number());
        self.input(Input::Admin { id, by: Principal::Operator("root".into()), command });
        self.replies.remove(&id)
    }

    /// Says what it is with a request made by hand.
    pub(crate) fn update_with(&mut self, client: u32, request: MapRequest) {
        let response = self.ask_in_turn(client, Request::Map(Box::new(request)));
        assert!(matches!(response, Some(Response::Updated)), "{response:?}");
    }

    /// Asks as a client; one that asks too often waits for its turn.
    fn ask_in_turn(&mut self, client: u32, request: Request) -> Option<Response> {
        let id = self.begin(client, request);
        self.answer(client, id).or_else(|| {
            self.advance(limits::CHANGES_EVERY);
            self.answer(client, id)
        })
    }

    /// An auth key of alice.
    pub(crate) fn key(&mut self, reusable: bool, ephemeral: bool, tags: &[&str]) -> String {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        self.key_of("alice@example.com", reusable, ephemeral, tags)
    }

    pub(crate) fn key_of(&mut self, user: &str, reusable: bool, ephemeral: bool, tags: BTreeSet<String>) -> String {
        let command = Command::CreateKey { user: user.into(), reusable, ephemeral, tags, expiry: None };
        match self.admin(command).unwrap() {
            Reply::NewKey { text, .. } => text.0,
            other => panic!("{other:?}"),
        }
    }

    /// A machine that nobody knows yet.
    pub(crate) fn client(&mut self, number: u32) -> u32 {
        let conn = ConnId(self.number());
        self.conns.insert(conn, number);
        self.clients.insert(number, Client::new(number, conn));
        number
    }

    /// Asks as a client; `None` when it is to wait.
    pub(crate) fn ask(&mut self, client: u32, request: Request) -> Option<Response> {
        let id = self.begin(client, request);
        self.answer(client, id)
    }

    pub(crate) fn begin(&mut self, client: u32, request: Request) -> RequestId {
        let id = RequestId(self.number());
        let Client { conn, machine, from, .. } = self.clients[&client];
        self.input(Input::Request { conn, machine, from, id, request });
        id
    }

    pub(crate) fn answer(&mut self, client: u32, id: RequestId) -> Option<Response> {
        self.responses.remove(&(self.clients[&client].conn, id))
    }

    pub(crate) fn register(&mut self, client: u32, auth_key: Option<&str>) -> RegisterResponse {
        let request = self.clients[&client].registration(auth_key);
        self.register_with(client, request).expect("it is not refused")
    }

    pub(crate) fn register_with(&mut self, client: u32, request: RegisterRequest) -> Result<RegisterResponse, Refusal> {
        match self.ask(client, Request::Register(Box::new(request.clone()))).expect("it is answered at once") {
            Response::Register(response) => Ok(*response),
            Response::Refused(refusal) if refusal.retry_after == Some(limits::CHANGES_EVERY) => {
                self.advance(limits::CHANGES_EVERY);
                self.register_with(client, request)
            }
            Response::Refused(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    /// Asks to sign in; gives the code that ends the URL.
    pub(crate) fn code(&mut self, client: u32) -> String {
        let url = self.register(client, None).auth_url;
        url.rsplit('/').next().filter(|code| !code.is_empty()).expect("a sign-in page").to_owned()
    }

    /// Opens the map.
    pub(crate) fn stream(&mut self, client: u32) {
        let request = MapRequest { stream: true, keep_alive: true, ..self.clients[&client].map_request() };
        let response = self.ask_in_turn(client, Request::Map(Box::new(request)));
        assert!(matches!(response, Some(Response::Stream(_))), "{response:?}");
    }

    /// Says what it is.
    pub(crate) fn update(&mut self, client: u32, endpoints: &[&str]) {
        let request = self.clients[&client].update(endpoints);
        self.update_with(client, request);
    }

    /// A client comes by another connection; the one before is not known to be dead.
    pub(crate) fn reconnect(&mut self, client: u32, conn: u64) {
        self.conns.insert(ConnId(conn), client);
        self.clients.get_mut(&client).unwrap().conn = ConnId(conn);
    }

    /// The connection of a client ends.
    pub(crate) fn hang_up(&mut self, client: u32) {
        let conn = ConnId(self.number());
        let client = self.clients.get_mut(&client).unwrap();
        let before = core::mem::replace(&mut client.conn, conn);
        self.conns.insert(conn, client.number);
        client.stream = None;
        client.unread = 0;
        self.input(Input::Closed { conn: before });
    }

    /// A client gives up a request, or the stream that it opened. The connection stays.
    pub(crate) fn abort(&mut self, client: u32, id: RequestId) {
        let client = self.clients.get_mut(&client).unwrap();
        let conn = client.conn;
        if client.opened_by == Some(id) {
            client.stream = None;
            client.unread = 0;
        }
        self.input(Input::Aborted { conn, id });
    }

    /// Registers with a key, opens the map, says where it is.
    pub(crate) fn join(&mut self, number: u32, auth_key: &str) -> u32 {
        self.client(number);
        let response = self.register(number, Some(auth_key));
        assert_eq!(response.error, "");
        self.stream(number);
        self.update(number, &[&format!("192.0.2.{}:41641", number % 250)]);
        number
    }

    /// A client reads again.
    pub(crate) fn unstall(&mut self, client: u32) {
        let client = self.clients.get_mut(&client).unwrap();
        client.stalled = false;
        let (unread, stream) = (core::mem::take(&mut client.unread), client.stream);
        if let Some(stream) = stream.filter(|_| unread > 0) {
            self.input(Input::Writable { stream });
        }
    }

    pub(crate) fn id(&self, client: u32) -> NodeId {
        let key = self.clients[&client].key;
        self.rows.nodes.values().find(|row| row.key == key).expect("it is registered").id
    }

    pub(crate) fn row(&self, client: u32) -> &control::store::NodeRow {
        &self.rows.nodes[&self.id(client)]
    }

    /// How one client sees another.
    pub(crate) fn peer(&self, viewer: u32, peer: u32) -> Option<Arc<PeerNode>> {
        self.clients[&viewer].map.peer(self.id(peer)).cloned()
    }

    /// The map of a client as a fresh request would have it.
    pub(crate) fn fresh(&mut self, client: u32) -> NetMap {
        let id = self.id(client);
        let update = self.coordinator.map_of(id).expect("it is registered");
        let mut map = NetMap::new();
        map.apply(netmap::decode(&update.render().to_json(), None).unwrap(), BEGIN).unwrap();
        map
    }

    pub(crate) fn wall(&self) -> WallTime {
        self.clock.wall_at(self.now)
    }

    /// Somebody sets the calendar of the server's host.
    pub(crate) fn set_calendar(&mut self, wall: WallTime) {
        self.clock = WallAnchor { at: self.now, wall };
        self.input(Input::ClockStepped(self.clock));
    }
}

impl Client {
    fn new(number: u32, conn: ConnId) -> Self {
        let hostinfo = Hostinfo {
            os: "linux".into(),
            hostname: format!("host{number}"),
            backend_log_id: "ab".into(),
            ..Hostinfo::default()
        };
        Self {
            number,
            machine: MachinePublic::from_bytes(bytes(number, 1)),
            key: NodePublic::from_bytes(bytes(number, 2)),
            disco: Some(DiscoPublic::from_bytes(bytes(number, 3))),
            conn,
            from: [192, 0, 2, 1].into(),
            hostinfo,
            stream: None,
            opened_by: None,
            map: NetMap::new(),
            messages: Vec::new(),
            keep_alives: 0,
            stalled: false,
            unread: 0,
        }
    }

    fn read(&mut self, json: &[u8]) {
        let response = netmap::decode(json, None).unwrap_or_else(|error| {
            panic!("{error}: {}", String::from_utf8_lossy(json));
        });
        self.messages.push(response.clone());
        let change = self.map.apply(response, BEGIN).unwrap();
        assert_eq!(change.skipped, [], "a message makes sense whole");
    }

    /// Another key of its own.
    pub(crate) fn change_key(&mut self, generation: u8) -> NodePublic {
        core::mem::replace(&mut self.key, NodePublic::from_bytes(bytes(self.number, 10 + generation)))
    }

    pub(crate) fn registration(&self, auth_key: Option<&str>) -> RegisterRequest {
        RegisterRequest {
            version: VERSION,
            node_key: self.key,
            auth: auth_key.map(|key| RegisterAuth { auth_key: key.into() }),
            hostinfo: Some(Box::new(self.hostinfo.clone())),
            ..RegisterRequest::default()
        }
    }

    pub(crate) fn map_request(&self) -> MapRequest {
        MapRequest {
            version: VERSION,
            node_key: self.key,
            disco_key: self.disco,
            hostinfo: Some(Box::new(self.hostinfo.clone())),
            ..MapRequest::default()
        }
    }

    pub(crate) fn update(&self, endpoints: &[&str]) -> MapRequest {
        let net_info = NetInfo { preferred_derp: 900, ..NetInfo::default() };
        let mut hostinfo = self.hostinfo.clone();
        hostinfo.net_info.get_or_insert(net_info);
        MapRequest {
            omit_peers: true,
            hostinfo: Some(Box::new(hostinfo)),
            endpoints: endpoints.iter().map(|text| text.parse().unwrap()).collect(),
            endpoint_types: vec![1; endpoints.len()],
            ..self.map_request()
        }
    }

    /// The newest message.
    pub(crate) fn last(&self) -> &MapResponse {
        self.messages.last().expect("a message")
    }
}

pub(crate) fn bytes(number: u32, kind: u8) -> [u8; 32] {
    let mut bytes = [kind; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    bytes
}

pub(crate) fn anchor() -> WallAnchor {
    WallAnchor { at: Instant::ZERO, wall: BEGIN }
}

pub(crate) fn config() -> Config {
    Config {
        server_url: "https://ctl.example.net".into(),
        base_domain: "mesh.internal".into(),
        derp_map: Arc::new(derp_map(&[900])),
    }
}

pub(crate) fn derp_map(regions: &[i64]) -> DerpMap {
    let region = |id: i64| {
        serde_json::json!({
            "RegionID": id, "RegionCode": "own", "RegionName": "Own",
            "Nodes": [{"Name": format!("{id}a"), "RegionID": id, "HostName": "relay.example.net", "IPv4": "192.0.2.1"}],
        })
    };
    let regions: BTreeMap<String, _> = regions.iter().map(|id| (id.to_string(), region(*id))).collect();
    serde_json::from_value(serde_json::json!({ "Regions": regions })).unwrap()
}

fn restored(
    rows: Rows,
    restart: u64,
    clock: WallAnchor,
    now: Instant,
) -> Result<Coordinator, control::coordinator::ConfigError> {
    Coordinator::restore(config(), rows, &Seed::from_number(7).child("world", restart), clock, now)
}
