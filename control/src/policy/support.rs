//! Small tailnets for the tests of this room.

use std::sync::Arc;

use mesh_core::{
    control::types::{NodeId, UserId},
    time::WallTime,
};

use super::{Node, Policy, Role, Rulebook, User};

/// Users of every small tailnet: alice owns it, bob is a member, carol is an auditor at another domain.
pub(super) fn users() -> Vec<User> {
    let user = |id, login: &str, role| User { id: UserId(id), login: login.to_owned(), email: None, role };
    vec![
        user(1, "alice@example.com", Role::Owner),
        user(2, "bob@example.com", Role::Member),
        user(3, "carol@example.org", Role::Auditor),
    ]
}

/// A node from `id owner-or-tag [route…]`; its addresses are 100.64.0.id and fd7a:115c:a1e0::id.
pub(super) fn node(text: &str) -> Node {
    let mut words = text.split(' ');
    let id: u8 = words.next().unwrap().parse().unwrap();
    let owner = words.next().unwrap();
    let user = users().into_iter().find(|user| user.login.split('@').next() == Some(owner)).map(|user| user.id);
    let routes: Vec<_> = words.map(|word| word.parse().unwrap()).collect();
    let mut node = Node {
        id: NodeId(id.into()),
        user,
        tags: owner.starts_with("tag:").then(|| owner.to_owned()).into_iter().collect(),
        addresses: vec![[100, 64, 0, id].into(), [0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, id.into()].into()],
        subnets: Default::default(),
        exit_routes: Default::default(),
        created: WallTime::from_unix_secs(id.into()),
    };
    node.set_routes(&routes, &routes);
    node
}

/// A policy applied to [`users`] and nodes.
pub(super) fn rulebook(policy: &str, nodes: &[&str]) -> Rulebook {
    let policy = Policy::parse(policy).unwrap_or_else(|problems| panic!("{problems}"));
    Rulebook::new(Arc::new(policy), users(), nodes.iter().map(|text| node(text)))
}

/// The same users and nodes under another policy.
pub(super) fn with_policy(rulebook: &Rulebook, policy: Policy) -> Rulebook {
    Rulebook::new(Arc::new(policy), users(), rulebook.nodes().cloned())
}
