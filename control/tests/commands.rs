//! What those who run the server may do, and what they are told when they may not.
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

mod support;

use core::time::Duration;
use std::collections::BTreeSet;

use control::{
    coordinator::{AdminError, Command, Reply},
    limits,
    store::{Mutation, Rows},
};
use support::World;

fn refused(result: Result<Reply, AdminError>) -> String {
    let error = result.expect_err("it is refused");
    assert_eq!(error.code(), "refused", "{error}");
    error.to_string()
}

fn tags(tags: &[&str]) -> BTreeSet<String> {
    tags.iter().map(|tag| (*tag).to_owned()).collect()
}

#[test]
fn users_are_made_listed_and_deleted() {
    let mut world = World::new();
    let create = |login: &str| Command::CreateUser { login: login.into() };
    let Reply::User(owner) = world.admin(create("alice@example.com")).unwrap() else { panic!() };
    assert_eq!((owner.role, owner.stable_id.len()), (control::policy::Role::Owner, 17));
    assert!(owner.stable_id.starts_with('u') && owner.stable_id.ends_with("CNTRL"));
    let Reply::User(member) = world.admin(create("bob")).unwrap() else { panic!() };
    assert_eq!(member.role, control::policy::Role::Member);
    assert!(refused(world.admin(create("ALICE@example.com"))).contains("already"));
    for wrong in ["", "a b", "a@b@c", "7", "x\n", "a:b", "alice@", "@alice", "@", &"x".repeat(300)] {
        refused(world.admin(create(wrong)));
    }
    world.admin(Command::SetPolicy { text: support::ALL.into() }).unwrap();
    let key = world.key_of("bob@", false, false, BTreeSet::new());
    world.join(1, &key);
    let delete = |user: &str| Command::DeleteUser { user: user.into() };
    assert!(refused(world.admin(delete("bob"))).contains("host1"));
    world.admin(Command::DeleteNode { node: "host1".into() }).unwrap();
    world.admin(delete(&member.stable_id)).unwrap();
    assert_eq!((world.rows.users.len(), world.rows.keys.len()), (1, 0), "their keys go with them");
    assert_eq!(world.admin(delete("bob")).unwrap_err().code(), "not_found");
    // A number is not used again.
    let Reply::User(next) = world.admin(create("carol")).unwrap() else { panic!() };
    assert_eq!(next.id.0, 3);
}

#[test]
fn of_a_key_only_a_hash_is_stored() {
    let mut world = World::open();
    let text = world.key(true, false, &["tag:a"]);
    let mut parts = text.splitn(4, '-').skip(2);
    let (id, secret) = (parts.next().unwrap(), parts.next().unwrap());
    assert!(secret.len() >= 28 && !secret.contains('-'));
    let rows =
        format!("{:?}", world.rows) + &serde_json::to_string(&Mutation::PutKey(world.rows.keys[id].clone())).unwrap();
    assert!(rows.contains(id) && !rows.contains(secret));

    let Reply::Keys(keys) = world.admin(Command::ListKeys).unwrap() else { panic!() };
    assert_eq!((keys.len(), keys[0].invalid, keys[0].login.as_str()), (1, false, "alice@example.com"));
    world.advance(limits::KEY_LIFE);
    let Reply::Keys(keys) = world.admin(Command::ListKeys).unwrap() else { panic!() };
    assert!(keys[0].invalid);
    let create = |expiry, tag: &str| Command::CreateKey {
        user: "1".into(),
        reusable: false,
        ephemeral: false,
        tags: tags(&[tag]),
        expiry: Some(expiry),
    };
    refused(world.admin(create(limits::KEY_LIFE + Duration::from_secs(1), "tag:a")));
    refused(world.admin(create(Duration::ZERO, "tag:a")));
    for wrong in ["a", "tag:", "tag:1", "tag:a b"] {
        refused(world.admin(create(Duration::from_secs(9), wrong)));
    }
    let missing = world.admin(Command::ExpireKey { id: "kx".into() });
    assert_eq!(missing.unwrap_err().code(), "not_found");
}

#[test]
fn keys_that_nothing_can_be_done_with_make_room() {
    let mut world = World::open();
    let first = world.key(true, false, &[]);
    world.admin(Command::ExpireKey { id: first.split('-').nth(2).unwrap().into() }).unwrap();
    for _ in 1..limits::KEYS {
        world.key(true, false, &[]);
    }
    assert_eq!(world.rows.keys.len(), limits::KEYS);
    world.key(true, false, &[]);
    assert_eq!(world.rows.keys.len(), limits::KEYS);
    let more = Command::CreateKey {
        user: "alice@example.com".into(),
        reusable: false,
        ephemeral: false,
        tags: BTreeSet::new(),
        expiry: None,
    };
    assert_eq!(world.admin(more).unwrap_err().code(), "too_many");
}

#[test]
fn nodes_are_found_by_what_people_call_them() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    for number in [1, 2] {
        world.client(number);
        world.clients.get_mut(&number).unwrap().hostinfo.hostname = "Web.Lan".into();
        world.register(number, Some(&key));
    }
    let id = world.row(2).stable_id.clone();
    let show = |node: &str| Command::ShowNode { node: node.into() };
    for name in ["web-1", "web-1.mesh.internal", "web-1.mesh.internal.", &id, "2", "100.64.0.2", "fd7a:115c:a1e0::2"] {
        let Reply::Node(view) = world.admin(show(name)).unwrap() else { panic!() };
        assert_eq!((view.node.id, view.full_name.as_str()), (world.id(2), "web-1.mesh.internal"), "{name}");
    }
    let Err(AdminError::Ambiguous { candidates, .. }) = world.admin(show("web.lan")) else { panic!() };
    assert_eq!(candidates.len(), 2);
    assert_eq!(world.admin(show("nobody")).unwrap_err().code(), "not_found");

    // A host that calls itself as another is numbered is not taken for it, nor may an operator call it so.
    world.client(3);
    world.clients.get_mut(&3).unwrap().hostinfo.hostname = "2".into();
    world.register(3, Some(&key));
    assert_eq!(world.row(3).name, "node-2");
    let Reply::Node(view) = world.admin(show("2")).unwrap() else { panic!() };
    assert_eq!(view.node.id, world.id(2));

    let rename = |node: &str, name: &str| Command::RenameNode { node: node.into(), name: name.into() };
    assert!(refused(world.admin(rename("web", "web-1"))).contains(&id));
    for wrong in ["Web", "a.b", "-", "2", &"x".repeat(64)] {
        refused(world.admin(rename("web", wrong)));
    }
    world.admin(rename("web", "db")).unwrap();
    // One that an operator named keeps its name, until it is to follow its host again.
    world.clients.get_mut(&1).unwrap().hostinfo.hostname = "other".into();
    world.stream(1);
    world.update(1, &[]);
    assert_eq!(world.row(1).name, "db");
    world.admin(rename("db", "")).unwrap();
    assert_eq!(world.row(1).name, "other");
    refused(world.admin(Command::TagNode { node: "other".into(), tags: BTreeSet::new() }));
}

#[test]
fn a_policy_with_an_error_changes_nothing_and_says_where() {
    let mut world = World::open();
    let rows = world.rows.clone();
    let texts = [
        ("{\n  \"acls\": [\n    {\"action\": \"deny\"}]}", "line 3, column "),
        (
            r#"{"acls": [], "ssh": [{"action": "accept", "src": ["*"], "dst": ["*"], "users": ["root"]}]}"#,
            "\"ssh\" is something that this server does not have",
        ),
        (r#"{"acls": [], "tests": [{"src": "alice@example.com", "accept": ["100.64.0.9:22"]}]}"#, "line 1, column "),
    ];
    for (text, expected) in texts {
        for command in [Command::SetPolicy { text: text.into() }, Command::CheckPolicy { text: text.into() }] {
            let error = world.admin(command).unwrap_err();
            assert_eq!(error.code(), "bad_policy");
            assert!(error.to_string().starts_with("line ") && error.to_string().contains(expected), "{error}");
        }
    }
    assert_eq!(world.rows, rows);
    let Reply::Policy(text) = world.admin(Command::GetPolicy).unwrap() else { panic!() };
    assert_eq!(text.as_deref(), Some(support::ALL));
}

#[test]
fn packets_are_explained_and_policies_compared() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let (a, b) = (world.join(1, &key), world.join(2, &key));
    let explain = |dst: &str| Command::Explain { src: "host1".into(), dst: dst.into(), port: 22, protocol: 6 };
    let Reply::Explained { allowed, text } = world.admin(explain("host2")).unwrap() else { panic!() };
    assert!(allowed && text.contains("acls entry 1"), "{text}");
    let narrow = r#"{"acls": [{"action": "accept", "src": ["100.64.0.1"], "dst": ["100.64.0.2:80"]}]}"#;
    let Reply::Difference { lines, more } = world.admin(Command::DiffPolicy { text: narrow.into() }).unwrap() else {
        panic!()
    };
    assert!(!more && lines.iter().any(|line| line.starts_with("host2 -> host1: ")), "{lines:?}");
    world.admin(Command::SetPolicy { text: narrow.into() }).unwrap();
    let Reply::Explained { allowed, text } = world.admin(explain("100.64.0.2")).unwrap() else { panic!() };
    assert!(!allowed && text.contains("other ports"), "{text}");
    world.settle();
    assert!(world.peer(a, b).is_some());

    // A relay serves the nodes of this network while their keys are good.
    let verify = |world: &mut World, client: u32| {
        let node = world.clients[&client].key;
        matches!(world.admin(Command::Verify { node }), Ok(Reply::Verdict(true)))
    };
    assert!(verify(&mut world, a) && verify(&mut world, b));
    world.admin(Command::ExpireNode { node: "host2".into() }).unwrap();
    assert!(verify(&mut world, a) && !verify(&mut world, b));
    world.clients.get_mut(&a).unwrap().change_key(3);
    assert!(!verify(&mut world, a));
}

#[test]
fn who_changed_what_is_written_down() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    world.join(1, &key);
    world.admin(Command::RenameNode { node: "host1".into(), name: "db".into() }).unwrap();
    world.admin(Command::DeleteNode { node: "db".into() }).unwrap();
    let actions: Vec<_> = world.rows.audit.iter().map(|row| row.action.as_str()).collect();
    assert_eq!(actions, ["user.create", "policy.set", "key.create", "node.create", "node.rename", "node.delete"]);
    let rename = &world.rows.audit[4];
    assert_eq!((rename.before["name"].as_str(), rename.after["name"].as_str()), (Some("host1"), Some("db")));
    assert!(world.rows.audit[5].after.is_null());
    // What is read back is what was there.
    let again = Rows { audit: Vec::new(), ..world.rows.clone() };
    assert_eq!(World::with(again.clone()).rows, again);
}
