//! The work of a change is what changed: a node that joins costs the same evaluations among 100 nodes as among 10,000.
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

use std::{collections::BTreeSet, sync::Arc};

use control::policy::{Change, Node, Policy, Role, Rulebook, User};
use mesh_core::{
    control::types::{NodeId, UserId},
    time::WallTime,
};

/// Ten nodes of `tag:db` are seen by the joiner whatever the size; a hundred rules name others.
fn policy() -> Policy {
    let mut acls = vec![
        r#"{"action": "accept", "src": ["tag:app", "alice@example.com"], "dst": ["tag:db:5432"]}"#.to_owned(),
        r#"{"action": "accept", "src": ["group:ops"], "dst": ["tag:app:22"]}"#.to_owned(),
        r#"{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}"#.to_owned(),
    ];
    let mut tags = vec!["\"tag:app\": [], \"tag:db\": []".to_owned()];
    for number in 0..100 {
        tags.push(format!("\"tag:t{number}\": []"));
        acls.push(format!(
            "{{\"action\": \"accept\", \"src\": [\"user{number}@example.com\"], \"dst\": [\"tag:t{number}:22\", \"10.{number}.0.0/16:80\"]}}"
        ));
    }
    let (tags, acls) = (tags.join(","), acls.join(","));
    let text = format!(
        "{{\"groups\": {{\"group:ops\": [\"alice@example.com\"]}}, \"tagOwners\": {{{tags}}}, \"acls\": [{acls}]}}"
    );
    Policy::parse(&text).expect("it is well-formed")
}

fn node(id: u16, owner: Option<i64>, tags: &[&str]) -> Node {
    let [high, low] = id.to_be_bytes();
    Node {
        id: NodeId(id.into()),
        user: owner.map(UserId),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        addresses: vec![[100, 64, high, low].into(), [0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, id].into()],
        subnets: BTreeSet::new(),
        exit_routes: BTreeSet::new(),
        created: WallTime::from_unix_secs(id.into()),
    }
}

/// Ten nodes of the database, one of alice, the others of a thousand users.
fn rulebook(size: u16) -> Rulebook {
    let user = |id: i64| User {
        id: UserId(id),
        login: if id == 0 { "alice@example.com".into() } else { format!("user{id}@example.com") },
        email: None,
        role: Role::Member,
    };
    let nodes = (1..=size).map(|id| match id {
        1..=10 => node(id, None, &["tag:db"]),
        11 => node(id, Some(0), &[]),
        _ => node(id, Some(1 + i64::from(id) % 1000), &[]),
    });
    Rulebook::new(Arc::new(policy()), (0..=1000).map(user), nodes)
}

#[test]
fn a_join_costs_the_same_at_every_size() {
    println!("{:>7} {:>20} {:>7} {:>8} {:>8}", "nodes", "selector evaluations", "seen by", "filters", "classes");
    let mut all = BTreeSet::new();
    for size in [100, 1_000, 10_000] {
        let mut rulebook = rulebook(size);
        let before = rulebook.counters().selector_evaluations;
        let joiner = node(20_000, None, &["tag:app"]);
        let Change { appeared, vanished, filters, routes } = rulebook.set_node(joiner.clone());
        let evaluations = rulebook.counters().selector_evaluations - before;
        let seen_by = appeared[&joiner.id].len();
        println!("{size:>7} {evaluations:>20} {seen_by:>7} {:>8} {:>8}", filters.len(), rulebook.class_count());
        // The databases and alice's node see it; the filters of the databases list it, and it has one itself.
        assert_eq!((seen_by, filters.len(), vanished.len()), (11, 11, 0));
        assert_eq!(routes, [joiner.id].into());
        // Two rules name its tag.
        assert!((1..=4 * 2).contains(&evaluations), "{evaluations}");
        all.insert((evaluations, rulebook.class_count() > 3));

        // A copy is of its time.
        let snapshot = rulebook.clone();
        let left = rulebook.remove_node(joiner.id);
        assert_eq!(left.vanished[&joiner.id], appeared[&joiner.id]);
        assert_eq!((snapshot.peers(joiner.id).len(), rulebook.peers(joiner.id).len()), (11, 0));
        assert!(snapshot.sees(joiner.id, NodeId(1)) && !rulebook.sees(joiner.id, NodeId(1)));
    }
    assert_eq!(all.len(), 1, "the same at every size: {all:?}");
}
