//! Policies: their text, and what is made of it.

use std::sync::Arc;

use control::policy::{
    Node, Policy, Problem, Role, Rulebook, User,
    hujson::{self, Kind, Value},
};
use mesh_core::{
    control::types::{FilterRule, NodeId, UserId},
    time::WallTime,
};

/// A text is understood, or refused with places that it has. What is understood means the same written as plain JSON.
/// Applied to a small tailnet, seeing goes both ways, a rule without destinations is not sent, and a node that leaves
/// and comes back changes nothing.
///
/// # Panics
/// When that is not so.
pub fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let tree = match hujson::parse(text) {
        Ok(tree) => tree,
        Err(problem) => return check_place(text, &problem),
    };
    if let Some(tree) = &tree {
        check_places(text, tree);
    }
    let policy = match Policy::parse(text) {
        Ok(policy) => policy,
        Err(problems) => {
            assert!(!problems.list().is_empty());
            return problems.list().iter().for_each(|problem| check_place(text, problem));
        }
    };
    let plain = tree.expect("a policy is a value").value.to_json().to_string();
    let plain = Policy::parse(&plain).expect("it is the same policy");
    let mut rulebook = apply(policy);
    check_same(&rulebook, &apply(plain));
    check_views(&rulebook);
    assert_eq!(rulebook.run_tests(), rulebook.run_tests());

    let node = rulebook.node(NodeId(4)).cloned().expect("it has this node");
    let gone = rulebook.remove_node(node.id);
    let back = rulebook.set_node(node.clone());
    assert_eq!(gone.vanished.get(&node.id), back.appeared.get(&node.id));
    check_views(&rulebook);
    let policy = Policy::clone(rulebook.policy());
    check_same(&rulebook, &apply(policy));
}

fn apply(policy: Policy) -> Rulebook {
    let user = |id, login: &str| User { id: UserId(id), login: login.to_owned(), email: None, role: Role::Owner };
    let node = |id: u8, user: i64, tags: &[&str], routes: &[&str]| {
        let mut node = Node {
            id: NodeId(id.into()),
            user: Some(UserId(user)),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            addresses: vec![[100, 64, 0, id].into(), [0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, id.into()].into()],
            subnets: Default::default(),
            exit_routes: Default::default(),
            created: WallTime::from_unix_secs(id.into()),
        };
        let routes: Vec<_> = routes.iter().map(|route| route.parse().expect("a prefix")).collect();
        node.set_routes(&routes, &routes);
        node
    };
    let users = [user(1, "a@b.c"), user(2, "d@e.f")];
    let nodes = [
        node(1, 1, &[], &[]),
        node(2, 1, &[], &[]),
        node(3, 2, &[], &[]),
        node(4, 2, &["tag:a"], &["10.1.0.0/16"]),
        node(5, 2, &["tag:b", "tag:a"], &["10.1.0.0/16", "0.0.0.0/0", "::/0"]),
    ];
    Rulebook::new(Arc::new(policy), users, nodes)
}

fn check_views(rulebook: &Rulebook) {
    for node in rulebook.nodes() {
        for rule in rulebook.filter(node.id).iter().map(FilterRule::from) {
            assert!(rule.dst_ports.is_empty() != rule.cap_grant.is_empty(), "{rule:?}");
            assert!(rule.src_ips.is_sorted());
        }
        for peer in rulebook.peers(node.id) {
            assert!(rulebook.peers(peer).contains(&node.id) && rulebook.sees(node.id, peer));
            let shown = rulebook.shown(node.id, peer);
            let peer = rulebook.node(peer).expect("it has its peers");
            assert!(shown.iter().all(|route| peer.subnets.contains(route) || peer.exit_routes.contains(route)));
        }
    }
}

fn check_same(one: &Rulebook, other: &Rulebook) {
    for node in one.nodes() {
        assert_eq!(one.filter(node.id), other.filter(node.id));
        assert_eq!(one.peers(node.id), other.peers(node.id));
    }
}

fn check_place(text: &str, problem: &Problem) {
    let line = text.split('\n').nth(problem.at.line as usize - 1).unwrap_or_else(|| panic!("{problem}"));
    assert!(problem.at.column as usize <= line.chars().count() + 1, "{problem}");
}

/// Where a text, a list or an object is said to begin, one does.
fn check_places(text: &str, value: &Value) {
    let line = text.split('\n').nth(value.at.line as usize - 1).expect("its line is there");
    let letter = line.chars().nth(value.at.column as usize - 1);
    let expected = match &value.value {
        Kind::String(_) => '"',
        Kind::Array(items) => {
            items.iter().for_each(|item| check_places(text, item));
            '['
        }
        Kind::Object(members) => {
            members.iter().for_each(|member| check_places(text, &member.value));
            '{'
        }
        Kind::Null | Kind::Bool(_) | Kind::Number(_) => return,
    };
    assert_eq!(letter, Some(expected));
}
