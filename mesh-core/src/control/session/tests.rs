//! One story at a time; `auth_keys.rs` tells those of keys that let a node in, and `model.rs` lets
//! everything happen at random.

mod auth_keys;
mod model;

use super::*;
use crate::{
    control::types::{MapRequest, RegisterRequest, RegisterResponse},
    rng::Seed,
};

const SERVER: &str = "https://control.example.com";
const WALL: WallTime = WallTime::from_unix_secs(1_800_000_000);

fn now(millis: u64) -> Instant {
    Instant::from_millis(1_000_000 + millis)
}

fn server_key() -> MachinePublic {
    MachinePublic::from_bytes([9; 32])
}

fn config(registration: Option<Registration>) -> SessionConfig {
    let mut rng = Seed::from_number(1).stream("test", 0);
    SessionConfig {
        machine_key: MachinePrivate::generate(&mut rng),
        node_key: NodePrivate::generate(&mut rng),
        next_node_key: None,
        registration,
        disco_key: DiscoPublic::from_bytes([3; 32]),
        seed: Seed::from_number(1),
    }
}

fn registration() -> Registration {
    let server = SERVER.parse().unwrap();
    Registration { server, server_key: server_key(), user: User::default(), login: SignedIn::default() }
}

fn goal() -> Goal {
    Goal { server: SERVER.parse().ok(), want_running: true, ..Goal::default() }
}

fn with_key(key: &str) -> Option<SignIn> {
    Some(SignIn { auth_key: Some(AuthKey(key.to_owned())), force: false })
}

fn outputs(session: &mut Session) -> Vec<Output> {
    core::iter::from_fn(|| session.poll_output()).collect()
}

fn requests(session: &mut Session) -> Vec<ControlRequest> {
    let is_request = |output| match output {
        Output::Request(request) => Some(request),
        _ => None,
    };
    outputs(session).into_iter().filter_map(is_request).collect()
}

/// The one registration among the requests.
fn registering(requests: &[ControlRequest]) -> (RequestId, RegisterRequest) {
    let found: Vec<_> = requests.iter().filter_map(as_register).collect();
    assert_eq!(found.len(), 1, "{requests:#?}");
    found[0].clone()
}

fn as_register(request: &ControlRequest) -> Option<(RequestId, RegisterRequest)> {
    match request {
        ControlRequest::Register { id, request } => Some((*id, (**request).clone())),
        _ => None,
    }
}

fn streaming(requests: &[ControlRequest]) -> Option<(RequestId, MapRequest)> {
    requests.iter().find_map(|request| match request {
        ControlRequest::StreamMap { id, request } => Some((*id, (**request).clone())),
        _ => None,
    })
}

fn updating(requests: &[ControlRequest]) -> Option<(RequestId, MapRequest)> {
    requests.iter().find_map(|request| match request {
        ControlRequest::Update { id, request } => Some((*id, (**request).clone())),
        _ => None,
    })
}

fn welcome() -> Box<RegisterResponse> {
    Box::new(RegisterResponse { machine_authorized: true, ..RegisterResponse::default() })
}

fn failure(kind: FailureKind) -> Failure {
    Failure { kind, text: "no".to_owned() }
}

fn first_map() -> Box<MapResponse> {
    Box::new(MapResponse { node: Some(std::sync::Arc::default()), ..MapResponse::default() })
}

/// A session that was registered by an earlier run, was refreshed, and streams. With the ids of stream and update.
fn running() -> (Session, RequestId, RequestId) {
    let mut session = Session::new(config(Some(registration())));
    session.set_goal(goal(), None, now(0));
    let (id, request) = registering(&requests(&mut session));
    assert_eq!((request.auth, request.old_node_key, request.expiry), (None, None, None));
    session.handle_event(ControlEvent::Registered { id, response: welcome() }, now(0));
    let said = requests(&mut session);
    let (stream, update) = (streaming(&said).unwrap().0, updating(&said).unwrap().0);
    session.handle_event(ControlEvent::Map { id: stream, response: first_map() }, now(0));
    session.handle_event(ControlEvent::Updated { id: update }, now(0));
    outputs(&mut session);
    (session, stream, update)
}

#[test]
fn a_node_joins_with_a_key_and_streams_and_updates_at_once() {
    let mut session = Session::new(config(None));
    session.set_endpoints([("192.0.2.1:41641".parse().unwrap(), 1)], now(0));
    session.set_goal(goal(), with_key("tskey-auth-1"), now(0));
    let said = requests(&mut session);
    let [ControlRequest::FetchKey { id, server }] = &said[..] else { panic!("{said:?}") };
    assert_eq!(server.to_string(), SERVER);

    session.handle_event(ControlEvent::Key { id: *id, key: server_key() }, now(10));
    let said = requests(&mut session);
    let ControlRequest::Connect(server) = &said[0] else { panic!("{said:?}") };
    assert_eq!(server.key, server_key());
    let (id, request) = registering(&said);
    assert_eq!(request.auth.unwrap().auth_key, "tskey-auth-1");
    assert_eq!((request.version, request.node_key), (119, session.node_key().public()));

    session.handle_event(ControlEvent::Registered { id, response: welcome() }, now(20));
    let said = outputs(&mut session);
    assert!(matches!(&said[..2], [Output::Save, Output::Registered]), "{said:?}");
    let said: Vec<_> =
        said.into_iter().filter_map(|o| if let Output::Request(r) = o { Some(r) } else { None }).collect();
    let (_, stream) = streaming(&said).unwrap();
    assert!(stream.stream && stream.keep_alive && !stream.omit_peers && stream.compress == "zstd");
    let (_, update) = updating(&said).unwrap();
    assert!(!update.stream && update.omit_peers);
    for request in [stream, update] {
        assert_eq!((request.endpoints.len(), request.endpoint_types), (1, vec![1]));
        assert_eq!(request.disco_key, Some(DiscoPublic::from_bytes([3; 32])));
        assert!(request.hostinfo.is_some());
    }
}

#[test]
fn a_page_has_to_be_visited_and_the_answer_is_waited_for() {
    let mut session = Session::new(config(None));
    session.set_goal(goal(), Some(SignIn::default()), now(0));
    session.handle_event(ControlEvent::Key { id: RequestId(1), key: server_key() }, now(0));
    let (id, _) = registering(&requests(&mut session));
    let url = "https://control.example.com/register/abc".to_owned();
    let answer = |url: &String| Box::new(RegisterResponse { auth_url: url.clone(), ..RegisterResponse::default() });
    session.handle_event(ControlEvent::Registered { id, response: answer(&url) }, now(0));
    let said = outputs(&mut session);
    assert_eq!(said[0], Output::LoginUrl(url.clone()));
    assert_eq!(session.auth_url(), Some(url.as_str()));
    let Output::Request(ControlRequest::Register { id, request }) = &said[1] else { panic!("{said:?}") };
    assert_eq!(request.followup, url);

    // The same answer again is not asked for in a circle.
    session.handle_event(ControlEvent::Registered { id: *id, response: answer(&url) }, now(1));
    assert_eq!(outputs(&mut session), []);
    session.handle_timeout(WALL, now(100));
    let (id, request) = registering(&requests(&mut session));
    assert_eq!(request.followup, url);
    session.handle_event(ControlEvent::Registered { id, response: welcome() }, now(200));
    assert!(session.is_known() && session.auth_url().is_none());
    assert!(streaming(&requests(&mut session)).is_some());
}

#[test]
fn a_question_that_broke_is_asked_again_and_a_page_that_is_gone_is_asked_for_anew() {
    let mut session = Session::new(config(None));
    session.set_goal(goal(), Some(SignIn::default()), now(0));
    session.handle_event(ControlEvent::Key { id: RequestId(1), key: server_key() }, now(0));
    let (id, _) = registering(&requests(&mut session));
    let response = RegisterResponse { auth_url: "https://h/1".to_owned(), ..RegisterResponse::default() };
    session.handle_event(ControlEvent::Registered { id, response: Box::new(response) }, now(0));
    let (id, _) = registering(&requests(&mut session));
    session.handle_event(ControlEvent::Failed { id, failure: failure(FailureKind::Unreachable) }, now(10));
    session.handle_timeout(WALL, now(100));
    let (id, request) = registering(&requests(&mut session));
    assert_eq!(request.followup, "https://h/1");
    let gone = FailureKind::Status { code: 404, retry_after: None };
    session.handle_event(ControlEvent::Failed { id, failure: failure(gone) }, now(110));
    session.handle_timeout(WALL, now(400));
    assert_eq!(registering(&requests(&mut session)).1.followup, "");
}

#[test]
fn a_page_in_clear_is_not_shown() {
    let mut session = Session::new(config(None));
    session.set_goal(goal(), Some(SignIn::default()), now(0));
    session.handle_event(ControlEvent::Key { id: RequestId(1), key: server_key() }, now(0));
    let (id, _) = registering(&requests(&mut session));
    let response = RegisterResponse { auth_url: "http://h/1".to_owned(), ..RegisterResponse::default() };
    session.handle_event(ControlEvent::Registered { id, response: Box::new(response) }, now(0));
    assert!(matches!(&outputs(&mut session)[0], Output::Refused(why) if why.contains("not https")));
}

#[test]
fn a_key_that_has_expired_is_replaced_once() {
    let mut session = Session::new(config(Some(registration())));
    let old = session.node_key().public();
    session.set_goal(goal(), None, now(0));
    let (id, _) = registering(&requests(&mut session));
    let expired = || Box::new(RegisterResponse { node_key_expired: true, ..RegisterResponse::default() });
    session.handle_event(ControlEvent::Registered { id, response: expired() }, now(0));
    assert!(!session.is_known());
    let said = outputs(&mut session);
    assert_eq!(said[0], Output::Save, "a new key is kept before control hears of it");
    let next = session.next_node_key().unwrap().public();
    let Output::Request(request) = &said[1] else { panic!("{said:?}") };
    let (id, request) = as_register(request).unwrap();
    assert_eq!((request.node_key, request.old_node_key), (next, Some(old)));
    session.handle_event(ControlEvent::Registered { id, response: expired() }, now(0));
    assert!(outputs(&mut session).iter().any(|output| matches!(output, Output::Refused(_))));
}

#[test]
fn a_refresh_that_ends_in_a_page_stops_the_node() {
    let mut session = Session::new(config(Some(registration())));
    session.set_goal(goal(), None, now(0));
    let (id, _) = registering(&requests(&mut session));
    let response = RegisterResponse { auth_url: "https://h/1".to_owned(), ..RegisterResponse::default() };
    session.handle_event(ControlEvent::Registered { id, response: Box::new(response) }, now(0));
    assert!(!session.is_known());
    assert!(streaming(&requests(&mut session)).is_none());
}

#[test]
fn what_changes_while_an_update_is_under_way_goes_with_the_next() {
    let (mut session, ..) = running();
    let endpoint = |port| (SocketAddr::from(([192, 0, 2, 1], port)), 2);
    session.set_endpoints([endpoint(1)], now(100));
    let (id, _) = updating(&requests(&mut session)).unwrap();
    for port in 2..10 {
        session.set_endpoints([endpoint(port)], now(100 + u64::from(port)));
    }
    assert_eq!(requests(&mut session), []);
    session.handle_event(ControlEvent::Updated { id }, now(200));
    let (id, request) = updating(&requests(&mut session)).unwrap();
    assert_eq!(request.endpoints, [endpoint(9).0]);
    session.handle_event(ControlEvent::Updated { id }, now(300));
    session.set_endpoints([endpoint(9)], now(400));
    session.set_net_info(NetInfo::default(), now(500));
    let (id, _) = updating(&requests(&mut session)).unwrap();
    session.handle_event(ControlEvent::Updated { id }, now(600));
    let info = NetInfo { derp_latency: [("1-v4".to_owned(), 0.5)].into(), ..NetInfo::default() };
    session.set_net_info(info, now(700));
    assert_eq!(requests(&mut session), [], "latencies alone are no reason");
}

#[test]
fn an_update_that_failed_is_repeated() {
    let (mut session, ..) = running();
    session.set_net_info(NetInfo { preferred_derp: 1, ..NetInfo::default() }, now(100));
    let (id, _) = updating(&requests(&mut session)).unwrap();
    let broken = failure(FailureKind::Status { code: 500, retry_after: None });
    session.handle_event(ControlEvent::Failed { id, failure: broken }, now(110));
    assert!(updating(&requests(&mut session)).is_none());
    let at = session.poll_timeout().unwrap();
    assert_eq!(at.why, "tell control what changed");
    session.handle_timeout(WALL, at.at);
    assert_eq!(updating(&requests(&mut session)).unwrap().1.hostinfo.unwrap().net_info.unwrap().preferred_derp, 1);
}

#[test]
fn a_problem_is_over_when_what_failed_works_again() {
    let (mut session, ..) = running();
    session.set_net_info(NetInfo { preferred_derp: 1, ..NetInfo::default() }, now(100));
    let (id, _) = updating(&requests(&mut session)).unwrap();
    session.handle_event(ControlEvent::Failed { id, failure: failure(FailureKind::Malformed) }, now(110));
    assert!(session.problem().unwrap().contains("what we tell of us"));
    let at = session.poll_timeout().unwrap().at;
    session.handle_timeout(WALL, at);
    let (id, _) = updating(&requests(&mut session)).unwrap();
    session.handle_event(ControlEvent::Updated { id }, at);
    assert_eq!(session.problem(), None);

    // What else does not work is not mended by that.
    session.set_key_expiry(Some(WallTime::from_unix_secs(1_800_000_100)), WALL, at);
    session.handle_timeout(WallTime::from_unix_secs(1_800_000_060), now(60_000));
    let (id, _) = registering(&requests(&mut session));
    let response = Box::new(RegisterResponse { error: "no".to_owned(), ..RegisterResponse::default() });
    session.handle_event(ControlEvent::Registered { id, response }, now(60_100));
    session.set_net_info(NetInfo { preferred_derp: 2, ..NetInfo::default() }, now(60_200));
    let (id, _) = updating(&requests(&mut session)).unwrap();
    session.handle_event(ControlEvent::Updated { id }, now(60_300));
    assert!(session.problem().unwrap().contains("a new key"));
}

#[test]
fn the_servers_key_that_is_had_at_last_ends_its_problem() {
    let mut session = Session::new(config(None));
    session.set_goal(goal(), with_key("k"), now(0));
    let Some(ControlRequest::FetchKey { id, .. }) = requests(&mut session).pop() else { panic!("no key is asked for") };
    session.handle_event(ControlEvent::Failed { id, failure: failure(FailureKind::Unreachable) }, now(10));
    assert!(session.problem().is_some());
    session.handle_timeout(WALL, session.poll_timeout().unwrap().at);
    let Some(ControlRequest::FetchKey { id, .. }) = requests(&mut session).pop() else { panic!("it is asked once") };
    session.handle_event(ControlEvent::Key { id, key: server_key() }, now(100));
    assert_eq!(session.problem(), None);
}

#[test]
fn nothing_is_wrong_with_a_control_server_that_is_not_wanted() {
    let (mut session, stream, _) = running();
    session.handle_event(ControlEvent::Closed { id: stream }, now(10));
    assert!(session.problem().is_some());
    session.set_goal(Goal { want_running: false, ..goal() }, None, now(20));
    assert_eq!(session.problem(), None);
}

#[test]
fn a_silent_stream_is_dead_after_two_minutes() {
    let (mut session, stream, _) = running();
    let keep_alive = || Box::new(MapResponse { keep_alive: true, ..MapResponse::default() });
    session.handle_event(ControlEvent::Map { id: stream, response: keep_alive() }, now(60_000));
    session.handle_timeout(WALL, now(179_999));
    assert!(session.is_streaming());
    outputs(&mut session);
    session.handle_timeout(WALL, now(180_000));
    let said = requests(&mut session);
    assert_eq!(said[..2], [ControlRequest::Cancel { id: stream }, ControlRequest::Disconnect]);
    assert!(matches!(said[2..], [ControlRequest::Connect(_)]), "{said:?}");
    let at = session.poll_timeout().unwrap().at;
    assert!(at <= now(180_500));
    session.handle_timeout(WALL, at);
    let said = requests(&mut session);
    assert!(streaming(&said).is_some() && updating(&said).is_none(), "control knows all that there is to know");
}

#[test]
fn a_session_that_another_replaces_comes_back_more_and_more_slowly() {
    let (mut session, mut stream, _) = running();
    let mut at = now(10);
    let mut pauses = Vec::new();
    for _ in 0..20 {
        session.handle_event(ControlEvent::Closed { id: stream }, at);
        outputs(&mut session);
        let next = session.poll_timeout().unwrap().at;
        pauses.push(next.since(at));
        at = next;
        session.handle_timeout(WALL, at);
        stream = streaming(&requests(&mut session)).unwrap().0;
        session.handle_event(ControlEvent::Map { id: stream, response: first_map() }, at);
        outputs(&mut session);
    }
    assert!(pauses[19] > Duration::from_secs(1) && pauses[0] < Duration::from_millis(20), "{pauses:?}");
}

#[test]
fn a_stream_of_a_node_that_control_does_not_know_is_followed_by_a_refresh() {
    let (mut session, stream, _) = running();
    let unknown = failure(FailureKind::Status { code: 404, retry_after: None });
    session.handle_event(ControlEvent::Failed { id: stream, failure: unknown }, now(10));
    let (id, request) = registering(&requests(&mut session));
    assert_eq!(request.node_key, session.node_key().public());
    session.handle_timeout(WALL, now(1_000));
    assert!(streaming(&requests(&mut session)).is_none(), "the map waits for the answer");
    session.handle_event(ControlEvent::Registered { id, response: welcome() }, now(1_100));
    assert!(streaming(&requests(&mut session)).is_some());
}

#[test]
fn a_key_is_rotated_before_it_expires_while_the_stream_goes_on() {
    let (mut session, stream, _) = running();
    let old = session.node_key().public();
    let expiry = WallTime::from_unix_secs(1_800_000_100);
    session.set_key_expiry(Some(expiry), WALL, now(0));
    let at = session.poll_wall_timeout().unwrap();
    assert_eq!(at, WallTime::from_unix_secs(1_800_000_050), "half of what was left");
    session.handle_timeout(at, now(50_000));
    let said = outputs(&mut session);
    assert_eq!(said[0], Output::Save);
    let Output::Request(request) = &said[1] else { panic!("{said:?}") };
    let (id, request) = as_register(request).unwrap();
    assert_eq!((request.old_node_key, request.auth), (Some(old), None));
    assert_eq!(session.node_key().public(), old, "until control has taken the new one");
    assert!(session.is_streaming());

    session.handle_event(ControlEvent::Registered { id, response: welcome() }, now(50_100));
    let said = outputs(&mut session);
    let new = session.node_key().clone();
    assert_eq!(new.public(), request.node_key);
    assert_eq!(
        said[..4],
        [
            Output::Request(ControlRequest::Cancel { id: stream }),
            Output::Save,
            Output::KeyChanged(new.clone()),
            Output::Registered
        ]
    );
    let opened = said.iter().find_map(|output| match output {
        Output::Request(ControlRequest::StreamMap { request, .. }) => Some(request.node_key),
        _ => None,
    });
    assert_eq!((opened, session.next_node_key()), (Some(new.public()), None));

    // Control kept the expiry: it is not done over and over.
    session.set_key_expiry(Some(expiry), at, now(51_000));
    assert_eq!(session.poll_wall_timeout(), None);
    session.set_key_expiry(Some(WallTime::from_unix_secs(1_900_000_000)), at, now(52_000));
    assert_eq!(session.poll_wall_timeout(), None, "not before the new stream has begun");
}

#[test]
fn a_rotation_that_needs_a_person_is_not_made() {
    let (mut session, ..) = running();
    let old = session.node_key().clone();
    session.set_key_expiry(Some(WallTime::from_unix_secs(1_800_000_100)), WALL, now(0));
    session.handle_timeout(WallTime::from_unix_secs(1_800_000_060), now(60_000));
    let (id, _) = registering(&requests(&mut session));
    let response = RegisterResponse { auth_url: "https://h/1".to_owned(), ..RegisterResponse::default() };
    session.handle_event(ControlEvent::Registered { id, response: Box::new(response) }, now(60_100));
    let said = outputs(&mut session);
    assert!(!said.iter().any(|output| matches!(output, Output::LoginUrl(_))), "{said:?}");
    assert!(session.is_known() && session.is_streaming() && session.node_key() == &old);
    assert_eq!(session.next_node_key(), None);
}

#[test]
fn a_rotation_that_a_crash_cut_off_is_finished_by_the_next_run() {
    let mut rng = Seed::from_number(5).stream("test", 0);
    let next = NodePrivate::generate(&mut rng);
    let config = SessionConfig { next_node_key: Some(next.clone()), ..config(Some(registration())) };
    let old = config.node_key.public();
    let mut session = Session::new(config);
    session.set_goal(goal(), None, now(0));
    let (id, request) = registering(&requests(&mut session));
    assert_eq!((request.node_key, request.old_node_key), (next.public(), Some(old)));
    session.handle_event(ControlEvent::Registered { id, response: welcome() }, now(0));
    assert_eq!(session.node_key(), &next);
    assert!(outputs(&mut session).contains(&Output::KeyChanged(next)));
}

#[test]
fn signing_out_tells_control_and_leaves_a_new_key() {
    let (mut session, ..) = running();
    let old = session.node_key().public();
    session.log_out(now(100));
    let said = requests(&mut session);
    let (id, request) = registering(&said);
    assert_eq!((request.node_key, request.expiry), (old, Some(WallTime::from_unix_secs(123))));
    session.handle_event(ControlEvent::Registered { id, response: welcome() }, now(150));
    let said = outputs(&mut session);
    assert_eq!(said.last(), Some(&Output::LoggedOut(None)));
    assert!(said.contains(&Output::Request(ControlRequest::Disconnect)));
    assert!(session.registration().is_none() && session.node_key().public() != old);
    assert_eq!(session.poll_timeout(), None);
}

#[test]
fn signing_out_ends_also_when_control_is_away() {
    let (mut session, ..) = running();
    session.log_out(now(100));
    session.handle_timeout(WALL, now(5_100));
    assert!(outputs(&mut session).iter().any(|output| matches!(output, Output::LoggedOut(Some(_)))));

    let (mut session, ..) = running();
    session.log_out(now(100));
    let (id, _) = registering(&requests(&mut session));
    let broken = failure(FailureKind::Status { code: 500, retry_after: None });
    session.handle_event(ControlEvent::Failed { id, failure: broken }, now(200));
    assert!(matches!(outputs(&mut session).last(), Some(Output::LoggedOut(Some(_)))));
}

#[test]
fn signing_out_is_tried_again_when_the_connection_was_dead() {
    let (mut session, ..) = running();
    session.log_out(now(100));
    let (id, first) = registering(&requests(&mut session));
    session.handle_event(ControlEvent::Failed { id, failure: failure(FailureKind::Unreachable) }, now(200));
    session.handle_timeout(WALL, now(250));
    let (id, again) = registering(&requests(&mut session));
    assert_eq!(again, first);
    session.handle_event(ControlEvent::Registered { id, response: welcome() }, now(260));
    assert_eq!(outputs(&mut session).last(), Some(&Output::LoggedOut(None)));

    // And no longer than the user waits.
    let (mut session, ..) = running();
    let mut at = now(100);
    session.log_out(at);
    let reason = loop {
        if let Some(Output::LoggedOut(reason)) = outputs(&mut session).pop() {
            break reason;
        }
        let id = session.login.as_ref().and_then(Login::pending).unwrap().id;
        session.handle_event(ControlEvent::Failed { id, failure: failure(FailureKind::Unreachable) }, at);
        at = session.poll_timeout().unwrap().at;
        session.handle_timeout(WALL, at);
    };
    assert_eq!((at, reason), (now(5_100), Some("no".to_owned())));
}

#[test]
fn on_another_server_the_node_is_new_and_the_machine_is_the_same() {
    let (mut session, ..) = running();
    let old = session.node_key().public();
    let other = Goal { server: "https://other.example.com".parse().ok(), ..goal() };
    session.set_goal(other, with_key("k"), now(100));
    let said = outputs(&mut session);
    assert!(said.contains(&Output::Request(ControlRequest::Disconnect)), "{said:?}");
    assert!(session.registration().is_none() && session.node_key().public() != old);
    let fetch = said.iter().find_map(|output| match output {
        Output::Request(ControlRequest::FetchKey { id, server }) => Some((*id, server.host().to_owned())),
        _ => None,
    });
    let (id, host) = fetch.unwrap();
    assert_eq!(host, "other.example.com");
    session.handle_event(ControlEvent::Key { id, key: server_key() }, now(200));
    let said = requests(&mut session);
    let ControlRequest::Connect(server) = &said[0] else { panic!("{said:?}") };
    assert_eq!(server.machine, config(None).machine_key);
    assert_eq!(registering(&said).1.old_node_key, None);
}

#[test]
fn a_server_with_another_key_is_asked_for_it() {
    let (mut session, stream, _) = running();
    session.handle_event(ControlEvent::Failed { id: stream, failure: failure(FailureKind::Untrusted) }, now(10));
    session.handle_timeout(WALL, now(100));
    let said = requests(&mut session);
    let Some(ControlRequest::FetchKey { id, .. }) = said.last() else { panic!("{said:?}") };
    let other = MachinePublic::from_bytes([8; 32]);
    session.handle_event(ControlEvent::Key { id: *id, key: other }, now(200));
    assert_eq!(session.registration().unwrap().server_key, other);
    let said = outputs(&mut session);
    assert!(said.contains(&Output::Save));
    assert!(said.iter().any(|o| matches!(o, Output::Request(ControlRequest::Connect(server)) if server.key == other)));
}

#[test]
fn a_busy_server_is_left_alone_as_long_as_it_says() {
    let mut session = Session::new(config(Some(registration())));
    session.set_goal(goal(), None, now(0));
    let (id, _) = registering(&requests(&mut session));
    let busy = FailureKind::Status { code: 429, retry_after: Some(Duration::from_secs(40)) };
    session.handle_event(ControlEvent::Failed { id, failure: failure(busy) }, now(0));
    assert_eq!(session.poll_timeout().unwrap().at, now(40_000));
}

#[test]
fn a_node_that_is_not_wanted_to_run_says_nothing() {
    let (mut session, ..) = running();
    session.set_goal(Goal { want_running: false, ..goal() }, None, now(10));
    assert_eq!(requests(&mut session), [ControlRequest::Disconnect]);
    assert_eq!(session.poll_timeout(), None);
    session.set_goal(goal(), None, now(20));
    let said = requests(&mut session);
    assert!(matches!(said[0], ControlRequest::Connect(_)) && streaming(&said).is_some(), "{said:?}");
}

#[test]
fn another_network_means_another_connection_at_once() {
    let (mut session, ..) = running();
    session.note_network_change(now(10));
    let said = requests(&mut session);
    assert_eq!(said[0], ControlRequest::Disconnect);
    assert!(matches!(said[1], ControlRequest::Connect(_)) && streaming(&said).is_some(), "{said:?}");
}

#[test]
fn answers_to_what_was_not_asked_change_nothing() {
    let (mut session, ..) = running();
    let id = RequestId(999);
    for event in [
        ControlEvent::Key { id, key: server_key() },
        ControlEvent::Registered { id, response: welcome() },
        ControlEvent::Opened { id },
        ControlEvent::Map { id, response: first_map() },
        ControlEvent::Closed { id },
        ControlEvent::Updated { id },
        ControlEvent::Failed { id, failure: failure(FailureKind::Untrusted) },
    ] {
        session.handle_event(event, now(10));
        assert_eq!(outputs(&mut session), []);
    }
}
