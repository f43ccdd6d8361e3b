//! A session against a server that fails, is slow, forgets, and answers in any order.
//!
//! Whatever happens, what holds at all times is checked at every step; and once the server is well, the session gets
//! where it wants to be.

use std::collections::BTreeSet;

use super::*;

/// A server as a session sees it. It draws what it does.
struct Model {
    rng: Rng,
    /// Requests under way and when they are answered.
    under_way: Vec<(Instant, ControlRequest)>,
    /// Keys that a registration has taken.
    known: BTreeSet<crate::key::NodePublic>,
    /// Keys that were kept on disk.
    kept: BTreeSet<crate::key::NodePublic>,
    is_connected: bool,
    told: Option<MapRequest>,
    is_well: bool,
}

impl Model {
    /// After every call, as a node does.
    fn drain(&mut self, session: &mut Session, now: Instant) {
        while let Some(output) = session.poll_output() {
            self.take(output, session, now);
        }
    }

    fn take(&mut self, output: Output, session: &Session, now: Instant) {
        match output {
            Output::Save => {
                self.kept.insert(session.node_key().public());
                self.kept.extend(session.next_node_key().map(NodePrivate::public));
            }
            Output::Request(request) => self.take_request(request, now),
            Output::KeyChanged(_)
            | Output::Forgotten
            | Output::Map { .. }
            | Output::Registered
            | Output::LoginUrl(_)
            | Output::Refused(_)
            | Output::LoggedOut(_)
            | Output::Problem(_) => {}
        }
    }

    fn take_request(&mut self, request: ControlRequest, now: Instant) {
        let count = |kind: fn(&ControlRequest) -> bool, all: &[(Instant, ControlRequest)]| {
            all.iter().filter(|(_, request)| kind(request)).count()
        };
        match &request {
            ControlRequest::Connect(_) | ControlRequest::Disconnect => {
                self.under_way.retain(|(_, request)| matches!(request, ControlRequest::FetchKey { .. }));
                self.is_connected = matches!(request, ControlRequest::Connect(_));
                return;
            }
            ControlRequest::Cancel { id } => {
                self.under_way.retain(|(_, request)| request.id() != Some(*id));
                return;
            }
            ControlRequest::Answer(_) => return,
            ControlRequest::FetchKey { .. } => {}
            ControlRequest::Register { request, .. } => {
                assert!(self.is_connected);
                assert!(self.kept.contains(&request.node_key), "control hears of a key that is not kept");
            }
            ControlRequest::StreamMap { .. } | ControlRequest::Update { .. } => assert!(self.is_connected),
        }
        let bound = if self.is_well { Duration::from_millis(200) } else { Duration::from_secs(60) };
        self.under_way.push((now + self.rng.duration_below(bound), request));
        for kind in [
            |r: &ControlRequest| matches!(r, ControlRequest::FetchKey { .. }),
            |r: &ControlRequest| matches!(r, ControlRequest::Register { .. }),
            |r: &ControlRequest| matches!(r, ControlRequest::StreamMap { .. }),
            |r: &ControlRequest| matches!(r, ControlRequest::Update { .. }),
        ] {
            assert!(count(kind, &self.under_way) <= 1, "two of a kind: {:#?}", self.under_way);
        }
    }

    /// What the server says at `now`, in no order.
    fn answers(&mut self, now: Instant) -> Vec<ControlEvent> {
        let (due, later) = core::mem::take(&mut self.under_way).into_iter().partition(|(at, _)| *at <= now);
        self.under_way = later;
        let due: Vec<(Instant, ControlRequest)> = due;
        due.into_iter().filter_map(|(_, request)| self.answer(request, now)).collect()
    }

    fn answer(&mut self, request: ControlRequest, now: Instant) -> Option<ControlEvent> {
        let id = request.id()?;
        let dice = if self.is_well { 99 } else { self.rng.below(100) };
        if dice < 40 {
            let kinds = [
                FailureKind::Unreachable,
                FailureKind::Untrusted,
                FailureKind::Malformed,
                FailureKind::Status { code: 500, retry_after: None },
                FailureKind::Status { code: 404, retry_after: None },
                FailureKind::Status { code: 429, retry_after: Some(Duration::from_secs(3)) },
            ];
            let kind = kinds[self.rng.below(kinds.len() as u64) as usize];
            return Some(ControlEvent::Failed { id, failure: failure(kind) });
        }
        match request {
            ControlRequest::FetchKey { .. } => Some(ControlEvent::Key { id, key: server_key() }),
            ControlRequest::Register { request, .. } => Some(self.register(id, &request, dice)),
            ControlRequest::Update { request, .. } => {
                assert!(self.known.contains(&request.node_key), "an update of a node that is not registered");
                self.told = Some(*request);
                Some(ControlEvent::Updated { id })
            }
            ControlRequest::StreamMap { .. } => {
                let again = now
                    + if self.is_well {
                        Duration::from_secs(50)
                    } else {
                        self.rng.duration_below(Duration::from_secs(90))
                    };
                if dice < 60 {
                    return Some(ControlEvent::Closed { id });
                }
                self.under_way.push((again, request));
                Some(ControlEvent::Map { id, response: first_map() })
            }
            ControlRequest::Connect(_)
            | ControlRequest::Disconnect
            | ControlRequest::Cancel { .. }
            | ControlRequest::Answer(_) => None,
        }
    }

    fn register(&mut self, id: RequestId, request: &RegisterRequest, dice: u64) -> ControlEvent {
        let response = match dice {
            40..50 => RegisterResponse { node_key_expired: true, ..RegisterResponse::default() },
            50..60 => {
                RegisterResponse { auth_url: format!("https://h/{}", self.rng.below(3)), ..RegisterResponse::default() }
            }
            60..65 => RegisterResponse { error: "no".to_owned(), ..RegisterResponse::default() },
            _ => {
                self.known.insert(request.node_key);
                *welcome()
            }
        };
        ControlEvent::Registered { id, response: Box::new(response) }
    }
}

#[test]
fn whatever_a_server_does_the_session_gets_where_it_wants_to_be() {
    for seed in 0..300 {
        run(seed);
    }
}

fn run(seed: u64) {
    let seed = Seed::from_number(seed);
    let mut rng = seed.stream("run", 0);
    let mut session = Session::new(SessionConfig { seed: seed.child("session", 0), ..config(None) });
    let mut model = Model {
        rng: seed.stream("model", 0),
        under_way: Vec::new(),
        known: BTreeSet::new(),
        kept: BTreeSet::from([session.node_key().public()]),
        is_connected: false,
        told: None,
        is_well: false,
    };
    session.set_goal(goal(), with_key("k"), now(0));
    let mut at = now(0);
    let wall = |at: Instant| WallTime::from_unix_nanos(WALL.as_unix_nanos() + at.as_nanos());
    let well_from = at + Duration::from_secs(600);
    let end = well_from + Duration::from_secs(300);
    let mut steps = 0u32;
    while at < end {
        if !model.is_well && at >= well_from {
            model.is_well = true;
            model.under_way.clear();
            // Whoever was refused signs in again.
            session.set_goal(goal(), with_key("k"), at);
            model.drain(&mut session, at);
        }
        for event in model.answers(at) {
            session.handle_event(event, at);
            model.drain(&mut session, at);
        }
        if !model.is_well && rng.below(20) == 0 {
            disturb(&mut session, &mut rng, wall(at), at);
            model.drain(&mut session, at);
        }
        session.handle_timeout(wall(at), at);
        model.drain(&mut session, at);
        let deadline = session.poll_timeout();
        assert!(deadline.is_none_or(|deadline| deadline.at > at), "{deadline:?} at {at}");
        let next = model.under_way.iter().map(|(at, _)| *at).chain(deadline.map(|deadline| deadline.at)).min();
        // A look every now and then, for what disturbs.
        at = next.unwrap_or(end).min(at + Duration::from_secs(5)).max(at + Duration::from_nanos(1));
        steps += 1;
        assert!(steps < 20_000, "it spins");
    }
    assert!(session.is_known() && session.is_streaming(), "{session:#?}");
    // A forced sign-in may still wait for its page.
    assert!(session.next_node_key().is_none() || session.login.is_some(), "{session:#?}");
    assert!(model.known.contains(&session.node_key().public()) && model.kept.contains(&session.node_key().public()));
    let told = model.told.expect("control was told");
    assert_eq!(told.endpoints, session.facts.endpoints.keys().copied().collect::<Vec<_>>());
    assert_eq!(told.node_key, session.node_key().public());
}

fn disturb(session: &mut Session, rng: &mut Rng, wall: WallTime, now: Instant) {
    match rng.below(7) {
        0 => session.set_endpoints([(SocketAddr::from(([192, 0, 2, 1], rng.u32() as u16)), 2)], now),
        1 => session.note_network_change(now),
        2 => session.set_goal(Goal { want_running: rng.below(2) == 0, ..goal() }, None, now),
        3 => session.set_goal(goal(), with_key("k"), now),
        4 => session.set_goal(goal(), Some(SignIn { auth_key: None, force: true }), now),
        5 => {
            let expiry = WallTime::from_unix_nanos(wall.as_unix_nanos() + rng.below(1 << 37));
            session.set_key_expiry(Some(expiry), wall, now);
        }
        _ => session.log_out(now),
    }
}
