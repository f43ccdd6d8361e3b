//! Nodes join, see each other, change, and leave: the walk-through of the control protocol.
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

mod support;

use core::time::Duration;

use control::coordinator::{Command, Reply};
use mesh_core::control::types::RegisterRequest;
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
    let profiles: Vec<_> = first.user_profiles.iter().map(|profile| profile.login_name.as_str()).collect();
    // Stock clients read from full maps alone whose a tagged peer is that comes later.
    assert_eq!(profiles, ["alice@example.com", "tagged-devices"]);

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

#[test]
fn ephemeral_nodes_are_forgotten_when_they_are_gone() {
    let mut world = World::open();
    let (key, ephemeral) = (world.key(true, false, &[]), world.key(true, true, &[]));
    let watcher = world.join(1, &key);
    let (a, b) = (world.join(2, &ephemeral), world.join(3, &ephemeral));
    world.settle();
    let ids = [world.id(a), world.id(b)];
    // One logs out, the other just goes.
    let out = RegisterRequest { expiry: Some(support::BEGIN), ..world.clients[&a].registration(None) };
    assert!(world.register_with(a, out).unwrap().node_key_expired);
    world.settle();
    assert!(world.clients[&watcher].map.peer(ids[0]).is_none());
    world.hang_up(b);
    world.advance(Duration::from_secs(299));
    assert!(world.clients[&watcher].map.peer(ids[1]).is_some());
    world.advance(Duration::from_secs(2));
    assert!(world.clients[&watcher].map.peer(ids[1]).is_none());
    assert_eq!(world.rows.nodes.len(), 1);
    // One that registers and never opens its map goes too.
    world.client(4);
    world.register(4, Some(&ephemeral));
    world.advance(Duration::from_secs(301));
    assert_eq!(world.rows.nodes.len(), 1);
}

const TAGS: &str = r#"{"tagOwners": {"tag:a": ["bob@example.com"], "tag:b": ["tag:a"], "tag:c": []},
    "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;

/// With bob, who may give tag:a.
fn tagged_world() -> World {
    let mut world = World::open();
    world.admin(Command::CreateUser { login: "bob@example.com".into() }).unwrap();
    world.admin(Command::SetPolicy { text: TAGS.into() }).unwrap();
    world
}

/// A node, its auth key, the tags that it asks for, and those that it gets or the error.
type Case<'a> = (u32, &'a str, &'a [&'a str], Result<&'a [&'a str], &'a str>);

fn ask_for(world: &mut World, client: u32, tags: &[&str]) {
    let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
    world.clients.get_mut(&client).unwrap().hostinfo.request_tags = tags;
}

#[test]
fn tags_come_with_a_key_or_are_asked_for_by_those_who_may_give_them() {
    let mut world = tagged_world();
    let with_tags = world.key(true, false, &["tag:a"]);
    let bobs = world.key_of("bob@example.com", true, false, Default::default());
    let not_permitted = "requested tags [tag:c] are invalid or not permitted";
    let cases: [Case<'_>; 7] = [
        (1, &with_tags, &[], Ok(&["tag:a"])),
        (2, &with_tags, &["tag:b"], Ok(&["tag:a", "tag:b"])),
        (3, &with_tags, &["tag:c"], Err(not_permitted)),
        (4, &bobs, &["tag:a"], Ok(&["tag:a"])),
        (5, &bobs, &["tag:a", "tag:c"], Err(not_permitted)),
        (6, &bobs, &["nonsense"], Err("requested tags [nonsense] are invalid or not permitted")),
        (7, &bobs, &[], Ok(&[])),
    ];
    for (number, key, asked, expected) in cases {
        world.client(number);
        ask_for(&mut world, number, asked);
        let response = world.register(number, Some(key));
        match expected {
            Ok(tags) => {
                assert_eq!(response.error, "");
                let row = world.row(number);
                assert_eq!(row.tags.iter().map(String::as_str).collect::<Vec<_>>(), tags);
                assert_eq!((row.user.is_none(), row.key_expiry.is_none()), (!tags.is_empty(), !tags.is_empty()));
                let login = if tags.is_empty() { "bob@example.com" } else { "tagged-devices" };
                assert_eq!(response.login.login_name, login);
            }
            Err(error) => assert_eq!(response.error, error),
        }
    }
    assert_eq!(world.rows.nodes.len(), 4);
}

#[test]
fn a_node_may_ask_for_other_tags_later() {
    let mut world = tagged_world();
    let bobs = world.key_of("bob@example.com", true, false, Default::default());
    let (a, b) = (world.join(1, &bobs), world.join(2, &bobs));
    world.settle();
    ask_for(&mut world, a, &["tag:a"]);
    world.update(a, &["192.0.2.1:41641"]);
    ask_for(&mut world, b, &["tag:c"]);
    world.update(b, &["192.0.2.2:41641"]);
    world.settle();
    assert_eq!((world.row(a).tags.len(), world.row(a).user), (1, None));
    assert_eq!(world.clients[&a].map.self_node().unwrap().tags, ["tag:a"]);
    // One that asks for what it may not have has to sign in again.
    assert!(world.row(b).tags.is_empty() && world.row(b).is_expired(world.wall()));
    // Asking again does not get it in by itself.
    ask_for(&mut world, b, &["tag:a"]);
    world.update(b, &["192.0.2.2:41641"]);
    assert!(world.row(b).tags.is_empty() && world.row(b).is_expired(world.wall()));
}

#[test]
fn another_user_on_the_same_machine_has_another_node() {
    let mut world = tagged_world();
    let (alices, bobs) =
        (world.key(true, false, &[]), world.key_of("bob@example.com", true, false, Default::default()));
    let machine = world.client(1);
    world.register(machine, Some(&alices));
    let first = world.id(machine);
    assert!(world.register(machine, Some(&bobs)).error.contains("another user"));
    world.clients.get_mut(&machine).unwrap().change_key(1);
    world.register(machine, Some(&bobs));
    let second = world.id(machine);
    world.clients.get_mut(&machine).unwrap().change_key(2);
    world.register(machine, Some(&alices));
    assert_eq!((world.id(machine), world.rows.nodes.len()), (first, 2));
    assert_ne!(first, second);
    // With a key that gives tags a node turns over to them, and keeps what it is otherwise.
    let tagged = world.key(true, false, &["tag:a"]);
    assert_eq!(world.register(machine, Some(&tagged)).login.login_name, "tagged-devices");
    assert_eq!((world.id(machine), world.row(machine).key_expiry), (first, None));
}

#[test]
fn a_node_that_was_signed_out_and_comes_back_with_tags_is_the_same_node() {
    let mut world = tagged_world();
    let (alices, tagged) = (world.key(true, false, &[]), world.key(true, false, &["tag:a"]));
    let node = world.client(1);
    world.register(node, Some(&alices));
    let before = world.row(node).clone();
    let another_key = |world: &mut World, generation, auth_key: &str| {
        // A client that was logged out forgets its old key.
        world.clients.get_mut(&node).unwrap().change_key(generation);
        let mut request = world.clients[&node].registration(Some(auth_key));
        request.old_node_key = None;
        assert_eq!(world.register_with(node, request).unwrap().error, "");
    };
    // While it is signed in, another sign-in of the machine is another node: clients switch between the two.
    another_key(&mut world, 1, &tagged);
    assert_eq!(world.rows.nodes.len(), 2);
    let second = world.row(node).stable_id.clone();
    world.admin(Command::DeleteNode { node: second }).unwrap();

    world.admin(Command::ExpireNode { node: before.stable_id.clone() }).unwrap();
    another_key(&mut world, 2, &tagged);
    let row = world.row(node).clone();
    assert_eq!((row.id, &row.name, row.ipv4), (before.id, &before.name, before.ipv4));
    assert_eq!((row.user, row.tags.len(), row.key_expiry), (None, 1, None));
    // And back, to whichever user it is that signs in.
    world.admin(Command::ExpireNode { node: before.stable_id.clone() }).unwrap();
    let bobs = world.key_of("bob@example.com", true, false, Default::default());
    another_key(&mut world, 3, &bobs);
    let row = world.row(node).clone();
    assert_eq!((row.id, row.tags.len(), world.rows.nodes.len()), (before.id, 0, 1));
    assert!(row.user.is_some() && row.key_expiry.is_some());
    // From user to user nothing is handed on.
    world.admin(Command::ExpireNode { node: before.stable_id }).unwrap();
    another_key(&mut world, 4, &alices);
    assert_eq!(world.rows.nodes.len(), 2);
}

#[test]
fn a_client_that_does_not_read_costs_a_number_and_gets_one_message() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let (a, b) = (world.join(1, &key), world.join(2, &key));
    world.settle();
    world.clients.get_mut(&a).unwrap().stalled = true;
    world.update(b, &["198.51.100.1:1"]);
    world.settle();
    let told = world.clients[&a].messages.len();
    for port in 2..50 {
        world.update(b, &[&format!("198.51.100.1:{port}")]);
        world.settle();
    }
    assert_eq!(world.clients[&a].messages.len(), told, "nothing is said while it does not read");
    world.unstall(a);
    world.settle();
    assert_eq!(world.clients[&a].messages.len(), told + 1);
    assert_eq!(world.peer(a, b).unwrap().endpoints[0].port(), 49);
    // One that never reads again is given up.
    world.clients.get_mut(&a).unwrap().stalled = true;
    world.update(b, &["198.51.100.2:1"]);
    world.advance(Duration::from_secs(240));
    assert_eq!(world.clients[&a].stream, None);
    assert_eq!(world.peer(b, a).unwrap().online, Some(false));
}

#[test]
fn only_the_machine_that_began_a_sign_in_waits_for_it() {
    let mut world = World::open();
    world.client(1);
    let code = world.code(1);
    world.client(2);
    world.clients.get_mut(&2).unwrap().key = world.clients[&1].key;
    let followup = format!("https://ctl.example.net/register/{code}");
    let request = RegisterRequest { followup, ..world.clients[&2].registration(None) };
    let response = world.register_with(2, request).unwrap();
    assert!(!response.auth_url.is_empty() && !response.auth_url.ends_with(&code), "a page of its own");
}

#[test]
fn a_rotation_of_keys_is_audited() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let node = world.join(1, &key);
    let stable_id = world.row(node).stable_id.clone();
    let one = world.clients.get_mut(&node).unwrap();
    let old = one.change_key(1);
    let request = RegisterRequest { old_node_key: Some(old), ..one.registration(None) };
    assert!(world.register_with(node, request).unwrap().machine_authorized);
    let audited = world.rows.audit.last().unwrap();
    assert_eq!((audited.action.as_str(), &audited.target), ("node.rotate", &stable_id));
    assert_eq!(audited.before["key"], serde_json::json!(old));
}

#[test]
fn a_name_that_was_given_up_is_free() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let first = world.join(1, &key);
    world.admin(Command::RenameNode { node: "host1".into(), name: "db".into() }).unwrap();
    world.client(2);
    world.clients.get_mut(&2).unwrap().hostinfo.hostname = "host1".into();
    assert_eq!(world.register(2, Some(&key)).error, "");
    assert_eq!((world.row(first).name.as_str(), world.row(2).name.as_str()), ("db", "host1"));
}

#[test]
fn who_reads_slowly_is_told_what_changed_and_not_everything() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let (slow, other, quick) = (world.join(1, &key), world.join(2, &key), world.join(3, &key));
    world.settle();
    world.clients.get_mut(&slow).unwrap().stalled = true;
    for number in 1..5 {
        world.update(other, &[&format!("198.51.100.{number}:1")]);
        world.settle();
    }
    let full_maps = world.coordinator.counters().full_maps_total;
    world.unstall(slow);
    world.settle();
    assert_eq!(world.coordinator.counters().full_maps_total, full_maps);
    for viewer in [slow, quick] {
        assert_eq!(world.peer(viewer, other).unwrap().endpoints[0].to_string(), "198.51.100.4:1");
    }
}
