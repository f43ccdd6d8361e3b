//! The work of a change is what changed, on the way to the nodes too: a join costs the same among 100 nodes as among
//! 10,000, and so does a change that ten of them see.
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

mod support;

use std::collections::BTreeSet;

use control::{
    coordinator::{Command, Counters},
    store::{NodeRow, PolicyRow, Rows, Sequence, UserRow},
};
use mesh_core::{
    control::types::{Hostinfo, NetInfo, NodeId, UserId},
    key::{DiscoPublic, MachinePublic, NodePublic},
};
use support::{BEGIN, World};

/// How many see who joins.
const VIEWERS: u32 = 10;
/// Rules that name the joiner's tag.
const NAMING: u64 = 2;

/// Rows of a network: ten databases, and nodes of a hundred other tags that a hundred rules name.
fn rows(size: u32) -> Rows {
    let mut acls = vec![
        r#"{"action": "accept", "src": ["tag:app"], "dst": ["tag:db:5432"]}"#.to_owned(),
        r#"{"action": "accept", "src": ["tag:db"], "dst": ["tag:app:22"]}"#.to_owned(),
    ];
    let mut tags = vec!["\"tag:app\": [], \"tag:db\": []".to_owned()];
    for number in 0..100 {
        tags.push(format!("\"tag:t{number}\": []"));
        acls.push(format!(
            "{{\"action\": \"accept\", \"src\": [\"bob@example.com\"], \"dst\": [\"tag:t{number}:22\"]}}"
        ));
    }
    let text = format!("{{\"tagOwners\": {{{}}}, \"acls\": [{}]}}", tags.join(","), acls.join(","));
    let user = UserRow {
        id: UserId(1),
        stable_id: "uAAAAAAAAAAACNTRL".into(),
        login: "alice@example.com".into(),
        display_name: "alice".into(),
        role: control::policy::Role::Owner,
        created: BEGIN,
    };
    let nodes = (1..=size).map(|number| (NodeId(number.into()), row(number)));
    Rows {
        users: [(user.id, user)].into(),
        nodes: nodes.collect(),
        policy: Some(PolicyRow { text, stored: BEGIN }),
        next: [(Sequence::Users, 2), (Sequence::Nodes, i64::from(size) + 1)].into(),
        ..Rows::default()
    }
}

fn row(number: u32) -> NodeRow {
    let tag = if number <= VIEWERS { "tag:db".to_owned() } else { format!("tag:t{}", number % 100) };
    let key = |kind: u8| support::bytes(number, kind);
    let net_info = Some(NetInfo { preferred_derp: 900, ..NetInfo::default() });
    NodeRow {
        id: NodeId(number.into()),
        stable_id: format!("n{number:011}CNTRL"),
        machine: MachinePublic::from_bytes(key(1)),
        key: NodePublic::from_bytes(key(2)),
        nl_key: String::new(),
        disco: Some(DiscoPublic::from_bytes(key(3))),
        user: None,
        tags: [tag].into(),
        name: format!("host{number}"),
        name_is_fixed: false,
        ipv4: (0x6440_0000 + 256 + number).into(),
        ipv6: (0xfd7a_115c_a1e0_0000_0000_0000_0000_0100 + u128::from(number)).into(),
        created: BEGIN,
        key_expiry: None,
        ephemeral: false,
        auth_key: None,
        approved_routes: BTreeSet::new(),
        hostinfo: Box::new(Hostinfo { hostname: format!("host{number}"), net_info, ..Hostinfo::default() }),
        cap: support::VERSION,
        last_seen: None,
        announced: true,
    }
}

/// A network where everybody has their map open.
fn connected(size: u32) -> World {
    let mut world = World::with(rows(size));
    for number in 1..=size {
        world.client(number);
        world.stream(number);
    }
    world.settle();
    world.settle();
    assert_eq!(world.coordinator.status().online, size as usize);
    world
}

/// What was counted since.
fn since(world: &World, before: Counters) -> (u64, u64, u64, u64) {
    let now = world.coordinator.counters();
    (
        now.selector_evaluations_total - before.selector_evaluations_total,
        now.peer_serializations_total - before.peer_serializations_total,
        now.sessions_woken_total - before.sessions_woken_total,
        now.full_maps_total - before.full_maps_total,
    )
}

#[test]
fn a_join_and_a_change_cost_the_same_at_every_size() {
    println!(
        "{:>7} {:<8} {:>20} {:>19} {:>14} {:>9} {:>24}",
        "nodes",
        "what",
        "selector evaluations",
        "peer serializations",
        "sessions woken",
        "full maps",
        "serialized for full map"
    );
    let mut all = BTreeSet::new();
    for size in [100, 1_000, 10_000] {
        let mut world = connected(size);
        let key = world.key(false, false, &["tag:app"]);
        let before = world.coordinator.counters();
        let joiner = world.join(20_000, &key);
        world.settle();
        let join = since(&world, before);
        let for_full =
            world.coordinator.counters().full_map_serializations_total - before.full_map_serializations_total;
        let (evaluations, serializations, woken, full) = join;
        println!("{size:>7} {:<8} {evaluations:>20} {serializations:>19} {woken:>14} {full:>9} {for_full:>24}", "join");
        assert_eq!(woken, u64::from(VIEWERS), "each viewer is woken once");
        assert_eq!(serializations, 1, "there is one variant of routes: none");
        assert!((1..=4 * NAMING).contains(&evaluations), "{evaluations}");
        assert_eq!(full, 1, "the joiner's own");
        assert!((1..=VIEWERS).all(|viewer| world.peer(viewer, joiner).is_some()));
        assert!(world.peer(VIEWERS + 1, joiner).is_none());

        let before = world.coordinator.counters();
        world.update(joiner, &["198.51.100.7:41641"]);
        world.settle();
        let change = since(&world, before);
        println!(
            "{size:>7} {:<8} {:>20} {:>19} {:>14} {:>9} {:>24}",
            "change", change.0, change.1, change.2, change.3, 0
        );
        assert_eq!(change, (0, 1, u64::from(VIEWERS), 0));
        assert!((1..=VIEWERS).all(|viewer| world.peer(viewer, joiner).unwrap().endpoints.len() == 1));

        // What nobody needs to know is told to nobody.
        let before = world.coordinator.counters();
        world.update(joiner, &["198.51.100.7:41641"]);
        world.settle();
        assert_eq!(since(&world, before), (0, 0, 0, 0));
        all.insert((join, change, for_full));
    }
    assert_eq!(all.len(), 1, "the same at every size: {all:?}");
}

#[test]
fn a_node_that_is_shown_differently_is_written_once_for_each_way() {
    let mut world = World::new();
    world.admin(Command::CreateUser { login: "alice@example.com".into() }).unwrap();
    let policy = r#"{"tagOwners": {"tag:a": [], "tag:b": [], "tag:r": []}, "acls": [
        {"action": "accept", "src": ["tag:a"], "dst": ["tag:r:*", "10.0.0.0/8:*"]},
        {"action": "accept", "src": ["tag:b"], "dst": ["tag:r:*"]}],
        "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:r"]}}}"#;
    world.admin(Command::SetPolicy { text: policy.into() }).unwrap();
    let keys = ["tag:a", "tag:b", "tag:r"].map(|tag| world.key(true, false, &[tag]));
    for number in 1..=6 {
        world.join(number, &keys[usize::from(number > 3)]);
    }
    world.settle();
    let before = world.coordinator.counters();
    let router = world.client(9);
    world.clients.get_mut(&router).unwrap().hostinfo.routable_ips = vec!["10.1.0.0/16".parse().unwrap()];
    world.register(router, Some(&keys[2]));
    world.stream(router);
    world.update(router, &["192.0.2.9:1"]);
    world.settle();
    let (_, serializations, woken, full) = since(&world, before);
    assert_eq!((serializations, woken, full), (2, 6, 1), "with its route and without");
    assert_eq!(world.peer(1, router).unwrap().allowed_ips().len(), 3);
    assert_eq!(world.peer(6, router).unwrap().allowed_ips().len(), 2);
}

#[test]
fn many_that_come_at_once_share_views_and_texts() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    for number in 1..=60 {
        world.join(number, &key);
    }
    world.settle();
    world.crash();
    for number in 1..=60 {
        world.stream(number);
    }
    world.settle();
    let counters = world.coordinator.counters();
    assert_eq!(counters.full_maps_total, 60);
    assert!(counters.snapshots_total <= 4, "{counters:?}");
    // The first few were told before the others came, so some nodes are written offline and online.
    assert!(counters.full_map_serializations_total + counters.peer_serializations_total <= 3 * 60, "{counters:?}");
    assert!((2..=60).all(|peer| world.peer(1, peer).unwrap().online == Some(true)));
}
