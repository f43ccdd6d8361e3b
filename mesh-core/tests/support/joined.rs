//! A node and its control server. The server is whoever writes the test: it answers what the node asks.

use std::time::Duration;

use mesh_core::{
    control::{
        AuthKey, ControlEvent, ControlRequest, RequestId,
        types::{Hostinfo, MapRequest, MapResponse, RegisterRequest, RegisterResponse},
    },
    derp::RegionId,
    key::{DiscoPrivate, MachinePublic, NodePrivate, NodePublic},
    machine::Machine,
    node::{
        BackendState, Command, CommandError, CommandId, ControlConfig, Event, HostConfig, HostEvent, Input, LinkState,
        Node, NodeConfig, Output, Prefs, RelayCommand, RelayEvent, Reply, SavedState, Up,
    },
    rng::Seed,
    time::{Instant, WallAnchor, WallTime},
};
use serde_json::{Value, json};

const EPOCH: WallTime = WallTime::from_unix_secs(1_800_000_000);
pub(super) const REGION: u16 = 900;

/// A node, and what it said last.
pub(super) struct Lab {
    pub(super) node: Node,
    pub(super) now: Instant,
    pub(super) said: Vec<Output>,
    /// What was to be kept last.
    pub(super) saved: SavedState,
    seed: u64,
}

impl Lab {
    pub(super) fn new(saved: SavedState, seed: u64) -> Self {
        Self::started(saved, seed, Instant::from_secs(1_000))
    }

    fn started(saved: SavedState, seed: u64, now: Instant) -> Self {
        let seeds = Seed::from_number(seed);
        let config = NodeConfig {
            key: NodePrivate::generate(&mut seeds.stream("unused", 0)),
            disco_key: DiscoPrivate::generate(&mut seeds.stream("disco", 0)),
            addresses: Vec::new(),
            mtu_bytes: 1280,
            listen_port: 41641,
            peers: Vec::new(),
            control: Some(ControlConfig {
                saved: saved.clone(),
                hostinfo: Hostinfo { hostname: "node".to_owned(), os: "linux".to_owned(), ..Hostinfo::default() },
            }),
            seed: seeds,
            epoch: WallAnchor { at: Instant::from_secs(1_000), wall: EPOCH },
        };
        let node = Node::new(config, now).expect("the configuration is good");
        let mut lab = Self { node, now, said: Vec::new(), saved, seed };
        lab.hear();
        lab
    }

    /// The same node after a crash: nothing survives but what was kept.
    pub(super) fn restarted(self) -> Self {
        Self::started(self.saved, self.seed + 1, self.now + Duration::from_secs(60))
    }

    pub(super) fn hear(&mut self) {
        self.said.clear();
        while let Some(output) = self.node.poll_output() {
            if let Output::Save(saved) = &output {
                self.saved = (**saved).clone();
            }
            self.said.push(output);
        }
        assert!(self.node.poll_timeout().is_none_or(|deadline| deadline.at > self.now));
    }

    pub(super) fn input(&mut self, input: Input) {
        self.node.handle_input(input, self.now);
        self.hear();
    }

    pub(super) fn event(&mut self, event: ControlEvent) {
        self.input(Input::Control(event));
    }

    pub(super) fn command(&mut self, id: u64, command: Command) {
        self.input(Input::Command(CommandId(id), command));
    }

    /// Time passes, and everything that comes due meanwhile is done. What was said is kept.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        let mut said = Vec::new();
        loop {
            let next = self.node.poll_timeout().map(|deadline| deadline.at).filter(|at| *at <= end);
            self.now = next.unwrap_or(end);
            self.node.handle_timeout(self.now);
            self.hear();
            said.append(&mut self.said);
            if next.is_none() {
                break;
            }
        }
        self.said = said;
    }

    pub(super) fn wall(&self) -> u64 {
        EPOCH.as_unix_nanos() / 1_000_000_000 + self.now.since(Instant::from_secs(1_000)).as_secs()
    }

    pub(super) fn requests(&self) -> impl Iterator<Item = &ControlRequest> {
        self.said.iter().filter_map(|output| match output {
            Output::Control(request) => Some(request),
            _ => None,
        })
    }

    pub(super) fn fetching(&self) -> RequestId {
        let mut found = self.requests().filter_map(|request| match request {
            ControlRequest::FetchKey { id, .. } => Some(*id),
            _ => None,
        });
        found.next().expect("the server's key is asked for")
    }

    pub(super) fn registering(&self) -> (RequestId, RegisterRequest) {
        let mut found = self.requests().filter_map(|request| match request {
            ControlRequest::Register { id, request } => Some((*id, (**request).clone())),
            _ => None,
        });
        found.next().expect("the node registers")
    }

    pub(super) fn streaming(&self) -> Option<(RequestId, MapRequest)> {
        self.requests().find_map(|request| match request {
            ControlRequest::StreamMap { id, request } => Some((*id, (**request).clone())),
            _ => None,
        })
    }

    pub(super) fn updating(&self) -> Option<(RequestId, MapRequest)> {
        self.requests().find_map(|request| match request {
            ControlRequest::Update { id, request } => Some((*id, (**request).clone())),
            _ => None,
        })
    }

    /// Connections to relays that are to be made or closed.
    pub(super) fn relays(&self) -> Vec<(&'static str, RegionId)> {
        let relays = self.said.iter().filter_map(|output| match output {
            Output::Relay(RelayCommand::Connect { region, .. }) => Some(("connect", *region)),
            Output::Relay(RelayCommand::Close { region }) => Some(("close", *region)),
            _ => None,
        });
        relays.collect()
    }

    pub(super) fn replies(&self) -> Vec<(u64, Result<Reply, CommandError>)> {
        let reply = |output: &Output| match output {
            Output::Reply(id, result) => Some((id.0, result.clone())),
            _ => None,
        };
        self.said.iter().filter_map(reply).collect()
    }

    pub(super) fn states(&self) -> Vec<BackendState> {
        let state = |output: &Output| match output {
            Output::Event(Event::State(state)) => Some(*state),
            _ => None,
        };
        self.said.iter().filter_map(state).collect()
    }

    pub(super) fn host(&self) -> HostConfig {
        let host = self.said.iter().rev().find_map(|output| match output {
            Output::Configure(host) => Some(host.clone()),
            _ => None,
        });
        host.expect("the host is configured")
    }

    /// With a network and a connection to its relay. What it said last is kept.
    pub(super) fn at_relay(&mut self) -> RegionId {
        let region = RegionId::new(REGION).expect("it is no 0");
        self.input(Input::Host(HostEvent::Links(links())));
        self.pass(Duration::from_secs(10));
        self.input(Input::Relay(RelayEvent::Connected { region }));
        region
    }

    pub(super) fn state(&self) -> BackendState {
        self.node.status(self.now).state
    }

    pub(super) fn own_key(&self) -> NodePublic {
        self.node.status(self.now).key
    }

    /// Registered, and the first map is here. With the id of the stream.
    pub(super) fn joined() -> (Self, RequestId) {
        Self::join(fresh(), 1)
    }

    pub(super) fn join(saved: SavedState, seed: u64) -> (Self, RequestId) {
        let mut lab = Self::new(saved, seed);
        lab.command(1, up(Some("tskey-auth-1"), Prefs::default()));
        let id = lab.fetching();
        lab.event(ControlEvent::Key { id, key: server_key() });
        let (id, _) = lab.registering();
        lab.event(ControlEvent::Registered { id, response: welcome() });
        let (stream, _) = lab.streaming().expect("the map is asked for at once");
        let (update, _) = lab.updating().expect("control is told at once");
        lab.event(ControlEvent::Updated { id: update });
        let map = first_map(lab.own_key(), lab.wall() + 90 * 24 * 3_600);
        lab.event(map_event(stream, &map));
        (lab, stream)
    }
}

pub(super) fn fresh() -> SavedState {
    SavedState::new(&mut Seed::from_number(7).stream("saved", 0))
}

pub(super) fn server_key() -> MachinePublic {
    MachinePublic::from_bytes([9; 32])
}

fn peer_key() -> NodePublic {
    NodePrivate::from_bytes([5; 32]).public()
}

pub(super) fn links() -> LinkState {
    let addresses = vec!["192.0.2.1".parse().expect("it is an address")];
    LinkState { addresses, has_default_v4: true, has_default_v6: false }
}

pub(super) fn up(auth_key: Option<&str>, prefs: Prefs) -> Command {
    let control_url = "https://control.example.com".parse().ok();
    let auth_key = auth_key.map(|key| AuthKey(key.to_owned()));
    Command::Up(Box::new(Up { prefs: Prefs { control_url, ..prefs }, auth_key, force_reauth: false }))
}

pub(super) fn welcome() -> Box<RegisterResponse> {
    Box::new(RegisterResponse { machine_authorized: true, ..RegisterResponse::default() })
}

pub(super) fn time(secs: u64) -> Value {
    // Enough for tests: days of 2027 and later, written as the types write them.
    let map = MapResponse { control_time: Some(WallTime::from_unix_secs(secs)), ..MapResponse::default() };
    serde_json::to_value(map).expect("it can be written")["ControlTime"].clone()
}

pub(super) fn peer(expiry: Option<u64>) -> Value {
    let mut peer = json!({
        "ID": 2, "StableID": "n2", "Name": "bob.mesh.internal.", "User": 1, "Key": peer_key(),
        "DiscoKey": format!("discokey:{}", "ab".repeat(32)),
        "Addresses": ["100.64.0.2/32"], "AllowedIPs": ["100.64.0.2/32", "10.9.0.0/16", "0.0.0.0/0"],
        "HomeDERP": REGION, "Online": true, "Cap": 119,
    });
    if let Some(expiry) = expiry {
        peer["KeyExpiry"] = time(expiry);
    }
    peer
}

pub(super) fn first_map(own: NodePublic, expiry: u64) -> Value {
    json!({
        "Node": {
            "ID": 1, "StableID": "n1", "Name": "node.mesh.internal.", "User": 1, "Key": own, "KeyExpiry": time(expiry),
            "Addresses": ["100.64.0.1/32"], "AllowedIPs": ["100.64.0.1/32"], "MachineAuthorized": true,
        },
        "Peers": [peer(None)],
        "DERPMap": {"Regions": {"900": {"RegionID": REGION, "RegionCode": "mesh", "RegionName": "Mesh",
            "Nodes": [{"Name": "900a", "RegionID": REGION, "HostName": "relay.example.com", "IPv4": "192.0.2.9"}]}}},
        "UserProfiles": [{"ID": 1, "LoginName": "alice@example.com", "DisplayName": "Alice"}],
        "PacketFilters": {"base": [{"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": 0, "Last": 65535}}]}]},
        "Domain": "example.com",
    })
}

pub(super) fn map_event(id: RequestId, map: &Value) -> ControlEvent {
    let text = serde_json::to_vec(map).expect("it can be written");
    let response = mesh_core::control::netmap::decode(&text, None).expect("it is a map");
    ControlEvent::Map { id, response: Box::new(response) }
}

pub(super) fn has_peer_route(lab: &Lab) -> bool {
    lab.node.data_plane().fib().routes().lookup("100.64.0.2".parse().expect("it is an address")).is_some()
}
