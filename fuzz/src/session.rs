//! A node's conversation with a control server that does what it likes.

use std::{collections::BTreeSet, time::Duration};

use mesh_core::{
    control::{
        AuthKey, ControlEvent, ControlRequest, ControlUrl, Failure, FailureKind, MapResponse, RequestId, Session,
        session::{Goal, Output, SessionConfig, SignIn},
        types::{Hostinfo, NetInfo, RegisterResponse},
    },
    key::{DiscoPublic, MachinePrivate, MachinePublic, NodePrivate, NodePublic},
    rng::Seed,
    time::{Instant, WallTime},
};

use crate::script::Script;

/// A script of answers to what is under way and to what is not, wishes of the user, changes of the host, and time. At most
/// one request of a kind is under way, none of them without a connection; a key is kept before control hears of it; pages
/// are shown only if they may be; nothing spins, and a server that fails is asked ever more rarely. When the server is well
/// at last, the node is signed in and has its map.
///
/// # Panics
/// When that is not so.
pub fn control_session(data: &[u8]) {
    let mut script = Script::new(data);
    let mut rng = Seed::from_number(1).stream("test", 0);
    let config = SessionConfig {
        machine_key: MachinePrivate::generate(&mut rng),
        node_key: NodePrivate::generate(&mut rng),
        next_node_key: None,
        registration: None,
        disco_key: DiscoPublic::from_bytes([3; 32]),
        seed: Seed::from_number(1),
    };
    let session = Session::new(config);
    let mut world = World {
        kept: BTreeSet::from([session.node_key().public()]),
        session,
        now: BEGIN,
        under_way: Vec::new(),
        registered: BTreeSet::new(),
        is_connected: false,
        requests: 0,
    };
    for _ in 0..250 {
        if script.is_done() {
            break;
        }
        world.step(&mut script);
        world.drain();
    }
    world.recover();
}

const BEGIN: Instant = Instant::from_secs(1_000);
const WALL: WallTime = WallTime::from_unix_secs(1_800_000_000);

struct World {
    session: Session,
    now: Instant,
    under_way: Vec<ControlRequest>,
    /// Keys that were kept on disk, and those that control took.
    kept: BTreeSet<NodePublic>,
    registered: BTreeSet<NodePublic>,
    is_connected: bool,
    requests: u64,
}

impl World {
    fn wall(&self) -> WallTime {
        WallTime::from_unix_nanos(WALL.as_unix_nanos() + self.now.as_nanos())
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let what = script.byte();
        match what % 16 {
            0..=5 => {
                let (pick, answer) = (usize::from(script.byte()), script.byte());
                let Some(at) = pick.checked_rem(self.under_way.len()) else { return };
                let request = self.under_way.remove(at);
                self.answer(request, answer, script);
            }
            6 => {
                // Of something that is over, or never was.
                let id = RequestId(u64::from(script.byte()));
                if self.under_way.iter().all(|request| request.id() != Some(id)) {
                    let event = event(id, script.byte(), script);
                    self.session.handle_event(event, self.now);
                }
            }
            7 => {
                let flags = script.byte();
                let sign_in = match flags & 3 {
                    0 => None,
                    1 => Some(SignIn { auth_key: Some(AuthKey("k".to_owned())), force: flags & 4 > 0 }),
                    _ => Some(SignIn { auth_key: None, force: flags & 4 > 0 }),
                };
                let server =
                    [Some(server(0)), Some(server(1)), None, Some(server(0))][usize::from(flags >> 3) % 4].clone();
                let hostinfo = Hostinfo { hostname: format!("host{}", flags >> 5), ..Hostinfo::default() };
                let goal = Goal { server, want_running: flags & 0x40 == 0, ephemeral: flags & 0x80 > 0, hostinfo };
                self.session.set_goal(goal, sign_in, self.now);
            }
            8 => self.session.log_out(self.now),
            9 => {
                let expiry = self.wall().as_unix_nanos() + u64::from(script.short()) * 10_000_000_000;
                let expiry = (what & 16 == 0).then(|| WallTime::from_unix_nanos(expiry));
                self.session.set_key_expiry(expiry, self.wall(), self.now);
            }
            10 => self.session.set_endpoints([(([192, 0, 2, script.byte()], 7).into(), 2)], self.now),
            11 => {
                let info = NetInfo { preferred_derp: i64::from(script.byte()), ..NetInfo::default() };
                self.session.set_net_info(info, self.now);
            }
            12 => self.session.note_network_change(self.now),
            13 => self.session.note_map_refused("it makes no sense", self.now),
            14 => self.pass(Duration::from_millis(u64::from(script.byte()) * 20)),
            _ => self.pass(Duration::from_secs(u64::from(script.byte()) * 4)),
        }
    }

    /// One answer, as control may give it to this request.
    fn answer(&mut self, request: ControlRequest, answer: u8, script: &mut Script<'_>) {
        let Some(id) = request.id() else { return };
        if answer & 3 == 0 {
            self.session.handle_event(failed(id, script.byte()), self.now);
            return;
        }
        match &request {
            ControlRequest::FetchKey { .. } => {
                let key = MachinePublic::from_bytes([answer >> 6; 32]);
                self.session.handle_event(ControlEvent::Key { id, key }, self.now);
            }
            ControlRequest::Register { request, .. } => {
                let response = registered(answer >> 2);
                if response.error.is_empty() && response.auth_url.is_empty() && !response.node_key_expired {
                    self.registered.insert(request.node_key);
                }
                self.session.handle_event(ControlEvent::Registered { id, response: Box::new(response) }, self.now);
            }
            ControlRequest::Update { .. } => self.session.handle_event(ControlEvent::Updated { id }, self.now),
            ControlRequest::StreamMap { .. } => {
                let event = match answer >> 6 {
                    0 => ControlEvent::Opened { id },
                    1 => ControlEvent::Closed { id },
                    _ => ControlEvent::Map { id, response: Box::default() },
                };
                let is_over = matches!(event, ControlEvent::Closed { .. });
                self.session.handle_event(event, self.now);
                if !is_over {
                    // It goes on, unless what was heard made the session give it up.
                    self.under_way.insert(0, request);
                    self.drain();
                }
            }
            ControlRequest::Connect(_)
            | ControlRequest::Disconnect
            | ControlRequest::Cancel { .. }
            | ControlRequest::Answer(_) => {}
        }
    }

    fn pass(&mut self, time: Duration) {
        self.drain();
        let (until, before, mut timers) = (self.now + time, self.requests, 0);
        loop {
            let wall_due = self.session.poll_wall_timeout().filter(|wall| *wall <= self.wall());
            if wall_due.is_some() {
                self.session.handle_timeout(self.wall(), self.now);
                self.drain();
                let still = self.session.poll_wall_timeout().filter(|wall| *wall <= self.wall());
                assert!(still.is_none() || still != wall_due, "the calendar spins at {still:?}");
            }
            let Some(deadline) = self.session.poll_timeout().filter(|deadline| deadline.at <= until) else { break };
            timers += 1;
            assert!(timers < 5_000, "spins: {deadline:?}");
            self.now = self.now.max(deadline.at);
            self.session.handle_timeout(self.wall(), self.now);
            self.drain();
            let deadline = self.session.poll_timeout();
            assert!(deadline.is_none_or(|deadline| deadline.at > self.now), "{deadline:?} at {}", self.now);
        }
        self.now = until;
        // While nobody answers, each kind is tried once and again when it was given up, at 30 s the earliest.
        let requests = self.requests - before;
        assert!(requests <= 12 + 8 * (time.as_secs() / 30 + 1), "{requests} requests in {time:?}");
    }

    fn drain(&mut self) {
        let mut outputs = 0;
        while let Some(output) = self.session.poll_output() {
            outputs += 1;
            assert!(outputs < 50, "it does not come to an end");
            match output {
                Output::Request(request) => self.take(request),
                Output::Save => {
                    self.kept.insert(self.session.node_key().public());
                    self.kept.extend(self.session.next_node_key().map(NodePrivate::public));
                }
                Output::KeyChanged(key) => assert_eq!(key.public(), self.session.node_key().public()),
                Output::LoginUrl(url) => assert!(url.starts_with("https://"), "{url} is shown"),
                Output::Problem(problem) => assert!(!problem.is_empty()),
                Output::Forgotten
                | Output::Map { .. }
                | Output::Registered
                | Output::Refused(_)
                | Output::LoggedOut(_) => {}
            }
        }
    }

    fn take(&mut self, request: ControlRequest) {
        match &request {
            ControlRequest::Connect(_) | ControlRequest::Disconnect => {
                self.under_way.retain(|request| matches!(request, ControlRequest::FetchKey { .. }));
                self.is_connected = matches!(request, ControlRequest::Connect(_));
                return;
            }
            ControlRequest::Cancel { id } => {
                self.under_way.retain(|request| request.id() != Some(*id));
                return;
            }
            ControlRequest::Answer(_) => panic!("nothing was asked"),
            ControlRequest::FetchKey { .. } => {}
            ControlRequest::Register { request, .. } => {
                assert!(self.is_connected);
                assert!(self.kept.contains(&request.node_key), "control hears of a key that is not kept");
            }
            ControlRequest::StreamMap { request, .. } | ControlRequest::Update { request, .. } => {
                assert!(self.is_connected);
                assert!(self.registered.contains(&request.node_key), "a node that control does not know");
            }
        }
        self.requests += 1;
        let kind = core::mem::discriminant(&request);
        let twin = self.under_way.iter().find(|other| core::mem::discriminant(*other) == kind);
        assert!(twin.is_none(), "two of a kind: {request:?} and {twin:?}");
        self.under_way.push(request);
    }

    /// The server is well, the user wants in.
    fn recover(&mut self) {
        let goal = Goal { server: Some(server(0)), want_running: true, ..Goal::default() };
        // A sign-out that is under way ends first.
        self.pass(Duration::from_secs(60));
        self.session.set_goal(goal, Some(SignIn { auth_key: Some(AuthKey("k".to_owned())), force: false }), self.now);
        self.drain();
        for _ in 0..400 {
            if self.session.is_known() && self.session.is_streaming() {
                return;
            }
            let due = core::mem::take(&mut self.under_way);
            for request in due {
                // It may have been given up meanwhile.
                let Some(id) = request.id() else { continue };
                match request {
                    ControlRequest::FetchKey { .. } => {
                        let key = MachinePublic::from_bytes([9; 32]);
                        self.session.handle_event(ControlEvent::Key { id, key }, self.now);
                    }
                    ControlRequest::Register { request, .. } => {
                        self.registered.insert(request.node_key);
                        let response = Box::new(registered(63));
                        self.session.handle_event(ControlEvent::Registered { id, response }, self.now);
                    }
                    ControlRequest::Update { .. } => self.session.handle_event(ControlEvent::Updated { id }, self.now),
                    ControlRequest::StreamMap { .. } => {
                        let response = Box::<MapResponse>::default();
                        self.session.handle_event(ControlEvent::Map { id, response }, self.now);
                    }
                    _ => {}
                }
                self.drain();
            }
            self.pass(Duration::from_secs(1));
        }
        panic!("the server is well, and this is not: {:#?}", self.session);
    }
}

fn server(number: u8) -> ControlUrl {
    format!("https://control{number}.example.com").parse().expect("an address")
}

fn event(id: RequestId, kind: u8, script: &mut Script<'_>) -> ControlEvent {
    match kind % 6 {
        0 => ControlEvent::Key { id, key: MachinePublic::from_bytes([script.byte(); 32]) },
        1 => ControlEvent::Registered { id, response: Box::new(registered(script.byte())) },
        2 => ControlEvent::Opened { id },
        3 => ControlEvent::Map { id, response: Box::default() },
        4 => ControlEvent::Closed { id },
        _ => failed(id, script.byte()),
    }
}

fn failed(id: RequestId, kind: u8) -> ControlEvent {
    let retry_after = (kind & 64 > 0).then(|| Duration::from_secs(u64::from(kind & 63)));
    let status = |code| FailureKind::Status { code, retry_after };
    let kinds = [
        FailureKind::Unreachable,
        FailureKind::Untrusted,
        FailureKind::Malformed,
        status(500),
        status(404),
        status(429),
        status(401),
        status(403),
    ];
    let failure = Failure { kind: kinds[usize::from(kind) % kinds.len()], text: "no".to_owned() };
    ControlEvent::Failed { id, failure }
}

fn registered(kind: u8) -> RegisterResponse {
    let base = RegisterResponse { machine_authorized: true, ..RegisterResponse::default() };
    match kind {
        0..8 => RegisterResponse { node_key_expired: true, ..base },
        8..14 => RegisterResponse { auth_url: format!("https://h/{kind}"), ..base },
        14 => RegisterResponse { auth_url: "file:///etc/passwd".to_owned(), ..base },
        15 => RegisterResponse { auth_url: "http://h/".to_owned(), ..base },
        16..20 => RegisterResponse { error: "no".to_owned(), ..base },
        _ => base,
    }
}
