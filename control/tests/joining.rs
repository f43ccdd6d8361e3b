//! Nodes join, see each other, change, and leave: the walk-through of the control protocol.
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

mod support;

use core::time::Duration;

use control::coordinator::{Command, Reply};
use support::World;

#[test]
fn two_nodes_join_with_a_key_and_see_each_other() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let (web, laptop) = (world.join(1, &key), world.join(2, &key));
    world.settle();

    let first = &world.clients[&web].messages[0];
    let own = first.node.as_ref().unwrap();
    assert_eq!((own.name.as_str(), own.machine_authorized), ("host1.mesh.internal.", true));
    assert_eq!(
        own.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["100.64.0.1/32", "fd7a:115c:a1e0::1/128"]
    );
    assert!(first.derp_map.is_some() && first.dns_config.is_some() && first.packet_filters.is_some());
    assert!(first.ssh_policy.is_some() && first.control_time.is_some() && first.collect_services == Some(false));
    assert_eq!(first.user_profiles[0].login_name, "alice@example.com");

    for (viewer, peer) in [(web, laptop), (laptop, web)] {
        let seen = world.peer(viewer, peer).unwrap();
        assert_eq!((seen.online, seen.home_derp, seen.cap), (Some(true), 900, support::VERSION));
        assert_eq!(seen.disco_key, world.clients[&peer].disco);
        assert_eq!(seen.endpoints.len(), 1);
        let hostinfo = seen.hostinfo.as_ref().unwrap();
        assert!(hostinfo.net_info.is_none() && hostinfo.backend_log_id.is_empty());
        assert_eq!(world.clients[&viewer].map.filters()["base"].len(), 1);
    }
    // One message told the first of the second.
    assert_eq!(world.clients[&web].messages.len(), 2, "{:#?}", world.clients[&web].messages);
}

#[test]
fn without_a_policy_nobody_sees_anybody() {
    let mut world = World::new();
    world.admin(Command::CreateUser { login: "alice@example.com".into() }).unwrap();
    let key = world.key(true, false, &[]);
    let (a, b) = (world.join(1, &key), world.join(2, &key));
    world.settle();
    assert!(world.peer(a, b).is_none() && world.peer(b, a).is_none());
    assert_eq!(world.clients[&a].map.filters()["base"], []);
    assert_eq!(world.clients[&a].map.health().len(), 1);

    world.admin(Command::SetPolicy { text: support::ALL.into() }).unwrap();
    world.settle();
    assert!(world.peer(a, b).is_some() && world.peer(b, a).is_some());
    assert_eq!(world.clients[&a].map.filters()["base"].len(), 1);
    assert_eq!(world.clients[&a].map.health(), [] as [String; 0]);
    // And back: what was allowed is taken away by the same message that says whom.
    world.admin(Command::SetPolicy { text: r#"{"acls": []}"#.into() }).unwrap();
    world.settle();
    let told = world.clients[&a].last();
    assert_eq!(
        (told.peers_removed.len(), told.packet_filters.as_ref().unwrap()["base"].as_ref().unwrap().len()),
        (1, 0)
    );
}

#[test]
fn a_node_that_leaves_is_offline_after_a_moment_and_comes_back() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let (a, b) = (world.join(1, &key), world.join(2, &key));
    world.settle();
    world.hang_up(b);
    world.advance(Duration::from_secs(9));
    assert_eq!(world.peer(a, b).unwrap().online, Some(true));
    world.advance(Duration::from_secs(2));
    let seen = world.peer(a, b).unwrap();
    assert_eq!(seen.online, Some(false));
    assert!(seen.last_seen.is_some());
    world.stream(b);
    world.settle();
    let seen = world.peer(a, b).unwrap();
    assert_eq!((seen.online, seen.last_seen), (Some(true), None));
}

#[test]
fn somebody_signs_in_for_a_node_that_waits() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let first = world.join(1, &key);
    let node = world.client(2);
    let response = world.register(node, None);
    let code = response.auth_url.strip_prefix("https://ctl.example.net/register/").unwrap().to_owned();
    assert_eq!(code.len(), 24);

    let mut follow_up = world.clients[&node].registration(None);
    follow_up.followup = response.auth_url;
    let request = control::coordinator::Request::Register(Box::new(follow_up));
    let waits = world.begin(node, request);
    assert!(world.answer(node, waits).is_none());
    let wrong = world.admin(Command::RegisterNode { code: "nonsense".into(), user: "alice@example.com".into() });
    assert_eq!(wrong.unwrap_err().code(), "not_found");
    let reply = world.admin(Command::RegisterNode { code, user: "alice@example.com".into() }).unwrap();
    assert!(matches!(reply, Reply::Node(_)));
    let Some(control::coordinator::Response::Register(response)) = world.answer(node, waits) else { panic!() };
    assert_eq!((response.auth_url.as_str(), response.login.login_name.as_str()), ("", "alice@example.com"));
    world.stream(node);
    world.update(node, &[]);
    world.settle();
    assert!(world.peer(first, node).is_some());
}
