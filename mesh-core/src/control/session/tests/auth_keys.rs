//! Keys that let a node in: refused, or given while control could not say whether it knows the node.

use super::*;

#[test]
fn a_refused_key_is_not_tried_again_by_itself() {
    let mut session = Session::new(config(None));
    session.set_goal(goal(), with_key("spent"), now(0));
    session.handle_event(ControlEvent::Key { id: RequestId(1), key: server_key() }, now(0));
    let (id, _) = registering(&requests(&mut session));
    let response = RegisterResponse { error: "authkey already used".to_owned(), ..RegisterResponse::default() };
    session.handle_event(ControlEvent::Registered { id, response: Box::new(response) }, now(0));
    let said = outputs(&mut session);
    assert_eq!(said[0], Output::Refused("authkey already used".to_owned()));
    assert!(!session.is_known() && session.poll_timeout().is_none(), "{said:?}");

    session.set_goal(goal(), with_key("good"), now(1_000));
    let (_, request) = registering(&requests(&mut session));
    assert_eq!(request.auth.unwrap().auth_key, "good");
}

#[test]
fn a_key_that_was_given_while_control_was_away_is_used_when_it_does_not_know_us() {
    let forgotten = || {
        let auth_url = format!("{SERVER}/a/1");
        Box::new(RegisterResponse { auth_url, ..RegisterResponse::default() })
    };
    let expired = || Box::new(RegisterResponse { node_key_expired: true, ..RegisterResponse::default() });
    for response in [forgotten(), expired()] {
        let mut session = Session::new(config(Some(registration())));
        session.set_goal(goal(), None, now(0));
        let (id, _) = registering(&requests(&mut session));
        session.handle_event(ControlEvent::Failed { id, failure: failure(FailureKind::Unreachable) }, now(10));
        outputs(&mut session);
        // What the node was before may still be good. The next try is due 5 ms after the failure at the earliest.
        session.set_goal(goal(), with_key("tskey-auth-1"), now(14));
        assert_eq!(outputs(&mut session), []);
        session.handle_timeout(WALL, now(60_000));
        let (id, request) = registering(&requests(&mut session));
        assert_eq!(request.auth, None);
        session.handle_event(ControlEvent::Registered { id, response }, now(60_010));
        let said = requests(&mut session);
        let (id, request) = registering(&said);
        assert_eq!(request.auth.unwrap().auth_key, "tskey-auth-1");
        session.handle_event(ControlEvent::Registered { id, response: welcome() }, now(60_020));
        assert!(session.is_known() && session.auth_url().is_none());
    }
}

#[test]
fn a_key_that_was_given_for_a_node_that_control_knows_is_forgotten() {
    let (mut session, stream, _) = running();
    session.handle_event(ControlEvent::Closed { id: stream }, now(10));
    session.set_goal(goal(), with_key("tskey-auth-1"), now(20));
    outputs(&mut session);
    let (mut reopened, mut at) = (None, 20);
    while reopened.is_none() {
        at += 1_000;
        session.handle_timeout(WALL, now(at));
        reopened = streaming(&requests(&mut session)).map(|(id, _)| id);
    }
    session.handle_event(ControlEvent::Map { id: reopened.unwrap(), response: first_map() }, now(at));
    session.note_first_map(false, now(at));
    outputs(&mut session);
    session.note_first_map(true, now(at + 10));
    assert_eq!(outputs(&mut session), []);
    // One whose key has expired by then uses it.
    let (mut session, stream, _) = running();
    session.handle_event(ControlEvent::Closed { id: stream }, now(10));
    session.set_goal(goal(), with_key("tskey-auth-2"), now(20));
    session.note_first_map(true, now(30));
    let (_, request) = registering(&requests(&mut session));
    assert_eq!(request.auth.unwrap().auth_key, "tskey-auth-2");
    assert!(request.old_node_key.is_some());
}

#[test]
fn a_key_that_control_has_not_heard_outlives_another_try_without_one() {
    let mut session = Session::new(config(Some(registration())));
    session.set_goal(goal(), None, now(0));
    let again =
        |auth_key: Option<&str>| Some(SignIn { auth_key: auth_key.map(|key| AuthKey(key.to_owned())), force: true });
    session.set_goal(goal(), again(Some("tskey-auth-1")), now(10));
    outputs(&mut session);
    session.set_goal(goal(), again(None), now(20));
    let (_, request) = registering(&requests(&mut session));
    assert_eq!(request.auth.unwrap().auth_key, "tskey-auth-1");
    // Another one takes its place.
    session.set_goal(goal(), again(Some("tskey-auth-2")), now(30));
    let (_, request) = registering(&requests(&mut session));
    assert_eq!(request.auth.unwrap().auth_key, "tskey-auth-2");
}
