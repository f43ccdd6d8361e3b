//! A server that dies between any two things it does, and starts again from what was stored: everything that it answered is
//! there, and nothing that it did by half.
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

mod support;

use core::time::Duration;

use control::coordinator::{Command, Reply, Request, Response};
use support::World;

/// What the server said it did.
#[derive(Default)]
struct Answered {
    users: Vec<String>,
    keys: Vec<String>,
    nodes: Vec<u32>,
    deleted: Vec<u32>,
    policy: bool,
    renamed: bool,
}

/// A few things one after the other, until an answer does not come.
fn story(world: &mut World, answered: &mut Answered) -> Option<()> {
    for login in ["alice@example.com", "bob@example.com"] {
        world.try_admin(Command::CreateUser { login: login.into() })?.unwrap();
        answered.users.push(login.into());
    }
    world.try_admin(Command::SetPolicy { text: support::ALL.into() })?.unwrap();
    answered.policy = true;
    for (number, reusable) in [(1, true), (2, false), (3, false)] {
        let command = Command::CreateKey {
            user: "alice@example.com".into(),
            reusable,
            ephemeral: number == 3,
            tags: Default::default(),
            expiry: None,
        };
        let Reply::NewKey { key, text } = world.try_admin(command)?.unwrap() else { panic!("a key") };
        answered.keys.push(key.key.id);
        world.client(number);
        let request = world.clients[&number].registration(Some(&text.0));
        let Response::Register(response) = world.ask(number, Request::Register(Box::new(request)))? else { panic!() };
        assert_eq!(response.error, "");
        answered.nodes.push(number);
        let request = world.clients[&number].map_request();
        let stream = mesh_core::control::types::MapRequest { stream: true, ..request };
        world.ask(number, Request::Map(Box::new(stream)))?;
        let update = world.clients[&number].update(&["192.0.2.1:1"]);
        world.ask(number, Request::Map(Box::new(update)))?;
    }
    world.advance(Duration::from_secs(1));
    world.try_admin(Command::RenameNode { node: "host1".into(), name: "db".into() })?.unwrap();
    answered.renamed = true;
    world.try_admin(Command::DeleteNode { node: "host2".into() })?.unwrap();
    answered.deleted.push(2);
    Some(())
}

fn check(world: &mut World, answered: &Answered) {
    let rows = &world.rows;
    for login in &answered.users {
        assert!(rows.users.values().any(|row| row.login == *login), "{login}");
    }
    for key in &answered.keys {
        assert!(rows.keys.contains_key(key), "{key}");
    }
    assert!(rows.policy.is_some() || !answered.policy);
    assert!(rows.nodes.values().any(|row| row.name == "db") || !answered.renamed);
    // A key is spent when there is a node for it, or was: both or neither are stored.
    let deleted = rows.audit.iter().filter(|row| row.action == "node.delete").count() as u64;
    let uses: u64 = rows.keys.values().map(|key| key.uses).sum();
    assert_eq!(uses, rows.nodes.len() as u64 + deleted);
    let created = rows.audit.iter().filter(|row| row.action == "node.create").count() as u64;
    assert_eq!(uses, created);
    for number in &answered.nodes {
        let key = world.clients[number].key;
        let is_there = world.rows.nodes.values().any(|row| row.key == key);
        assert!(is_there || (*number == 2 && deleted > 0), "node {number}");
        if is_there {
            // It comes again without its key, and gets its map.
            assert!(world.register(*number, None).machine_authorized);
            world.stream(*number);
            world.settle();
            assert!(world.clients[number].map.self_node().is_some());
        }
    }
    let ids: Vec<_> = world.rows.nodes.values().map(|row| row.ipv4).collect();
    let next = world.rows.next.get(&control::store::Sequence::Nodes).copied().unwrap_or(1);
    assert!(world.rows.nodes.keys().all(|id| id.0 < next), "numbers are not used again");
    assert_eq!(ids.len(), ids.iter().collect::<std::collections::BTreeSet<_>>().len());
}

#[test]
fn a_crash_between_any_two_outputs_loses_nothing_that_was_answered() {
    let mut whole = World::new();
    assert!(story(&mut whole, &mut Answered::default()).is_some());
    let outputs = whole.carried_out;
    assert!(outputs > 30, "{outputs}");
    for after in 0..outputs {
        let mut world = World::new();
        world.crash_after = Some(after);
        let mut answered = Answered::default();
        let _ = story(&mut world, &mut answered);
        if world.crash_after.is_some() {
            world.crash_after = None;
            world.crash();
        }
        check(&mut world, &answered);
    }
}

#[test]
fn after_a_restart_nodes_see_each_other_as_before() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let (a, b) = (world.join(1, &key), world.join(2, &key));
    world.settle();
    let before = world.peer(a, b).unwrap();
    world.crash();
    // One is back; the other is not yet.
    world.stream(a);
    world.settle();
    let seen = world.peer(a, b).unwrap();
    assert_eq!((seen.key, seen.disco_key, seen.home_derp), (before.key, before.disco_key, 900), "the tunnel goes on");
    assert_eq!((seen.online, seen.endpoints.len()), (Some(false), 0));
    let mut request = world.clients[&b].map_request();
    (request.stream, request.keep_alive) = (true, true);
    request.endpoints = vec!["192.0.2.2:41641".parse().unwrap()];
    world.ask(b, Request::Map(Box::new(request)));
    world.settle();
    let seen = world.peer(a, b).unwrap();
    assert_eq!(
        (seen.online, seen.endpoints.len()),
        (Some(true), 1),
        "what the stream says counts where nothing is known"
    );
}

#[test]
fn ephemeral_nodes_that_do_not_come_back_after_a_restart_are_forgotten() {
    let mut world = World::open();
    let key = world.key(true, true, &[]);
    let node = world.join(1, &key);
    let stays = world.join(2, &key);
    world.settle();
    world.crash();
    world.stream(stays);
    world.advance(Duration::from_secs(299));
    assert!(world.rows.nodes.contains_key(&world.id(node)));
    world.advance(Duration::from_secs(2));
    assert_eq!(world.rows.nodes.len(), 1);
    assert!(
        world.register_with(node, world.clients[&node].registration(None)).unwrap().auth_url.contains("/register/")
    );
}
