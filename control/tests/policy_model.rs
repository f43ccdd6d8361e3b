//! Random small policies over random small tailnets: what nodes are handed against a direct reading of the text, and
//! what a rulebook keeps as nodes come and go against one that is made anew.
//!
//! The reader here goes through the plain JSON for every packet and knows nothing of selectors, classes or sets.
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use control::policy::{Affected, Change, Node, Policy, Role, Rulebook, User, ipset::Span};
use mesh_core::{
    control::types::{FilterRule, NodeId, UserId},
    ip::prefix::Prefix,
    rng::{Rng, Seed},
    time::WallTime,
};
use serde_json::{Value, json};

const SEEDS: u64 = 600;
const LOGINS: [&str; 3] = ["alice@example.com", "bob@example.com", "carol@example.org"];
const TAGS: [&str; 3] = ["tag:a", "tag:b", "tag:c"];
const SUBNETS: [&str; 5] = ["10.0.0.0/8", "10.1.0.0/16", "192.168.1.0/24", "8.8.8.0/24", "100.64.0.0/30"];

#[test]
fn filters_admit_what_the_text_allows() {
    let (mut admitted, mut refused) = (0, 0);
    for seed in 0..SEEDS {
        let mut rng = Seed::from_number(seed).stream("policy", 0);
        let world = World::random(&mut rng);
        let rulebook = world.rulebook();
        for receiver in &world.nodes {
            let wire: Vec<FilterRule> = rulebook.filter(receiver.id).iter().map(FilterRule::from).collect();
            for dst in world.destinations(receiver) {
                for src in world.sources() {
                    for (protocol, port) in [(6, 22), (6, 80), (17, 53), (1, 0), (132, 22), (47, 0)] {
                        let found = admits(&wire, src, dst, protocol, port);
                        let expected = world.allows(receiver, src, dst, protocol, port);
                        assert_eq!(
                            found, expected,
                            "seed {seed}: {src} to {dst} at node {}, protocol {protocol} port {port}\n{}\n{:#?}\n{wire:#?}",
                            receiver.id, world.policy, world.nodes
                        );
                        if found { admitted += 1 } else { refused += 1 }
                    }
                }
            }
        }
    }
    assert!(admitted > 10_000 && refused > 10_000, "{admitted} admitted, {refused} refused");
}

#[test]
fn nodes_see_each_other_when_one_filter_admits_the_other() {
    for seed in 0..SEEDS {
        let mut rng = Seed::from_number(seed).stream("policy", 1);
        let world = World::random(&mut rng);
        let rulebook = world.rulebook();
        let sources: BTreeMap<_, _> = world.nodes.iter().map(|node| (node.id, listed(&rulebook, node.id))).collect();
        let admits = |a: &Node, b: &Node| {
            let spans = b.addresses.iter().copied().map(Span::from).chain(b.subnets.iter().copied().map(Span::from));
            let spans: Vec<_> = spans.collect();
            sources[&a.id].iter().any(|text| text == "*" || overlaps(text, &spans))
        };
        for a in &world.nodes {
            let expected: BTreeSet<_> =
                world.nodes.iter().filter(|b| a.id != b.id && (admits(a, b) || admits(b, a))).map(|b| b.id).collect();
            assert_eq!(rulebook.peers(a.id), expected, "seed {seed}: peers of {}\n{}", a.id, world.policy);
            for b in &world.nodes {
                assert_eq!(rulebook.sees(a.id, b.id), expected.contains(&b.id), "seed {seed}: {} and {}", a.id, b.id);
            }
        }
    }
}

#[test]
fn a_rulebook_that_follows_changes_is_one_made_anew() {
    let mut changes = 0;
    for seed in 0..SEEDS {
        let mut rng = Seed::from_number(seed).stream("policy", 2);
        let mut world = World::random(&mut rng);
        let mut rulebook = world.rulebook();
        for _ in 0..8 {
            let before = Seen::of(&rulebook);
            let change = world.random_change(&mut rng, &mut rulebook);
            let after = Seen::of(&rulebook);
            assert_eq!(after, Seen::of(&world.rulebook()), "seed {seed}\n{}\n{:#?}", world.policy, world.nodes);
            let context = format!("seed {seed}\n{}\n{:#?}\n{change:?}", world.policy, world.nodes);
            check_change(&change, &before, &after, &context);
            changes += usize::from(before != after);
        }
    }
    assert!(changes > 1000, "{changes} changes changed something");
}

#[test]
fn whom_another_policy_concerns_is_found_exactly() {
    let mut concerned = 0;
    for seed in 0..SEEDS {
        let mut rng = Seed::from_number(seed).stream("policy", 3);
        let mut world = World::random(&mut rng);
        let earlier = world.rulebook();
        world.policy = random_policy(&mut rng);
        let later = world.rulebook();
        let (before, after) = (Seen::of(&earlier), Seen::of(&later));
        let other = |what: &dyn Fn(NodeId) -> bool| -> BTreeSet<NodeId> {
            world.nodes.iter().map(|node| node.id).filter(|id| what(*id)).collect()
        };
        let routes = |id: NodeId| {
            let common = before.peers[&id].intersection(&after.peers[&id]);
            common.into_iter().any(|peer| before.routes[&(id, *peer)] != after.routes[&(id, *peer)])
        };
        let expected = Affected {
            peers: other(&|id| before.peers[&id] != after.peers[&id]),
            filters: other(&|id| before.filters[&id] != after.filters[&id]),
            routes: other(&routes),
        };
        assert_eq!(later.affected_since(&earlier), expected, "seed {seed}\n{}", world.policy);
        concerned += expected.peers.len() + expected.routes.len();
    }
    assert!(concerned > 500, "{concerned}");
}

/// What a change says is what changed: pairs exactly, filters and routes at least.
fn check_change(change: &Change, before: &Seen, after: &Seen, context: &str) {
    let pairs = |map: &BTreeMap<NodeId, BTreeSet<NodeId>>| -> BTreeSet<(NodeId, NodeId)> {
        map.iter().flat_map(|(a, peers)| peers.iter().flat_map(|b| [(*a, *b), (*b, *a)])).collect()
    };
    let (old, new) = (pairs(&before.peers), pairs(&after.peers));
    let (came, went) = (&new - &old, &old - &new);
    let (appeared, vanished) = (pairs(&change.appeared), pairs(&change.vanished));
    assert!(came.is_subset(&appeared) && went.is_subset(&vanished), "{context}");
    // A pair that came and went within one change of a user is in both.
    assert!(appeared.difference(&came).all(|pair| vanished.contains(pair)), "{context}");
    for (id, filter) in &after.filters {
        assert!(before.filters.get(id) == Some(filter) || change.filters.contains(id), "filter of {id}: {context}");
    }
    for ((viewer, peer), routes) in &after.routes {
        let is_known = old.contains(&(*viewer, *peer)) && new.contains(&(*viewer, *peer));
        let same = before.routes.get(&(*viewer, *peer)) == Some(routes);
        assert!(
            !is_known || same || change.routes.contains(viewer),
            "{viewer}'s routes to {peer}: {routes:?}: {context}"
        );
    }
}

#[derive(Debug, PartialEq)]
struct Seen {
    filters: BTreeMap<NodeId, Vec<FilterRule>>,
    peers: BTreeMap<NodeId, BTreeSet<NodeId>>,
    routes: BTreeMap<(NodeId, NodeId), BTreeSet<Prefix>>,
}

impl Seen {
    fn of(rulebook: &Rulebook) -> Self {
        let ids: Vec<_> = rulebook.nodes().map(|node| node.id).collect();
        let pairs = ids.iter().flat_map(|a| ids.iter().map(|b| (*a, *b)));
        Self {
            filters: ids.iter().map(|id| (*id, rulebook.filter(*id).iter().map(FilterRule::from).collect())).collect(),
            peers: ids.iter().map(|id| (*id, rulebook.peers(*id))).collect(),
            routes: pairs.map(|(a, b)| ((a, b), rulebook.shown(a, b))).collect(),
        }
    }
}

/// The sources of a node's filter.
fn listed(rulebook: &Rulebook, id: NodeId) -> BTreeSet<String> {
    rulebook.filter(id).iter().flat_map(|rule| rule.sources.to_vec()).collect()
}

fn overlaps(text: &str, spans: &[Span]) -> bool {
    let span: Span = text.parse().expect("it is well-formed");
    spans.iter().any(|other| other.overlaps(&span))
}

/// A filter as a stock client judges it.
fn admits(rules: &[FilterRule], src: IpAddr, dst: IpAddr, protocol: i64, port: u16) -> bool {
    let holds = |text: &str, address: IpAddr| {
        text == "*" || text.parse::<Span>().expect("it is well-formed").covers(&Span::from(address))
    };
    rules.iter().any(|rule| {
        let protocols = if rule.ip_proto.is_empty() { vec![6, 17, 1, 58] } else { rule.ip_proto.clone() };
        protocols.contains(&protocol)
            && rule.src_ips.iter().any(|text| holds(text, src))
            && rule.dst_ports.iter().any(|to| {
                let ports = to.ports.first..=to.ports.last;
                let fits = if [6, 17, 132].contains(&protocol) { ports.contains(&port) } else { ports == (0..=65535) };
                fits && holds(&to.ip, dst)
            })
    })
}

struct World {
    users: Vec<User>,
    nodes: Vec<Node>,
    policy: Value,
}

impl World {
    fn random(rng: &mut Rng) -> Self {
        let roles = [Role::Owner, Role::Member, Role::Admin];
        let users = LOGINS.iter().zip(roles).enumerate().map(|(number, (login, role))| User {
            id: UserId(number as i64 + 1),
            login: (*login).to_owned(),
            email: None,
            role,
        });
        let policy = random_policy(rng);
        let mut world = Self { users: users.collect(), nodes: Vec::new(), policy };
        for id in 1..=2 + rng.below(5) {
            let node = world.random_node(rng, id as u8);
            world.nodes.push(node);
        }
        world
    }

    fn rulebook(&self) -> Rulebook {
        let policy = Policy::parse(&self.policy.to_string()).unwrap_or_else(|why| panic!("{why}\n{}", self.policy));
        Rulebook::new(Arc::new(policy), self.users.clone(), self.nodes.clone())
    }

    fn random_node(&self, rng: &mut Rng, id: u8) -> Node {
        let tags = if rng.below(2) == 0 { rng.below(3) } else { 0 };
        let mut node = Node {
            id: NodeId(id.into()),
            user: Some(UserId(1 + rng.below(3) as i64)),
            tags: (0..tags).map(|_| pick(rng, &TAGS).to_owned()).collect(),
            addresses: vec![[100, 64, 0, id].into(), [0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, id.into()].into()],
            subnets: BTreeSet::new(),
            exit_routes: BTreeSet::new(),
            created: WallTime::from_unix_secs(rng.below(3)),
        };
        // `autogroup:self` goes by owner, whoever routes the addresses: no router of nodes beside it.
        let has_own = self.policy.to_string().contains("autogroup:self");
        let subnets = if has_own { &SUBNETS[..4] } else { &SUBNETS };
        let mut routes: Vec<Prefix> = Vec::new();
        if rng.below(3) == 0 {
            routes.extend(
                (0..1 + rng.below(2)).map(|_| pick(rng, subnets).parse::<Prefix>().expect("it is well-formed")),
            );
        }
        if rng.below(5) == 0 {
            routes.extend(["0.0.0.0/0", "::/0"].map(|text| text.parse::<Prefix>().expect("it is well-formed")));
        }
        node.set_routes(&routes, &routes);
        node
    }

    fn random_change(&mut self, rng: &mut Rng, rulebook: &mut Rulebook) -> Change {
        match rng.below(8) {
            0 => {
                let role = [Role::Owner, Role::Admin, Role::Member, Role::Auditor][rng.below(4) as usize];
                let at = rng.below(3) as usize;
                self.users[at].role = role;
                rulebook.set_user(self.users[at].clone())
            }
            1 | 2 if self.nodes.len() > 1 => {
                let node = self.nodes.remove(rng.below(self.nodes.len() as u64) as usize);
                rulebook.remove_node(node.id)
            }
            _ => {
                let id = 1 + rng.below(8) as u8;
                let node = self.random_node(rng, id);
                self.nodes.retain(|other| other.id != node.id);
                self.nodes.push(node.clone());
                rulebook.set_node(node)
            }
        }
    }

    /// What may be sent to a node: its addresses, some of its subnets, and the internet when it is an exit node.
    fn destinations(&self, node: &Node) -> Vec<IpAddr> {
        let mut all = node.addresses.clone();
        all.extend(node.subnets.iter().map(Prefix::address));
        all.extend(node.subnets.iter().map(|subnet| Span::from(*subnet).last()));
        if node.is_exit() {
            all.extend(["1.1.1.1", "2606::1"].map(|text| text.parse::<IpAddr>().expect("it is well-formed")));
        }
        all
    }

    fn sources(&self) -> Vec<IpAddr> {
        let mut all: Vec<_> = self.nodes.iter().flat_map(|node| node.addresses.clone()).collect();
        all.extend(
            ["10.1.2.3", "10.9.9.9", "192.168.1.7", "203.0.113.5", "100.115.92.9"]
                .map(|a| a.parse::<IpAddr>().expect("it is well-formed")),
        );
        all
    }

    /// The text read for one packet.
    fn allows(&self, receiver: &Node, src: IpAddr, dst: IpAddr, protocol: i64, port: u16) -> bool {
        let none = Vec::new();
        let list = |value: &Value| value.as_array().unwrap_or(&none).clone();
        let acls = list(&self.policy["acls"]).into_iter().flat_map(|acl| {
            let dsts = list(&acl["dst"]);
            dsts.into_iter().map(move |dst| {
                let (name, ports) =
                    dst.as_str().expect("it is well-formed").rsplit_once(':').expect("it is well-formed");
                let proto = acl["proto"].as_str().unwrap_or("").to_owned();
                (acl["src"].clone(), json!([name]), vec![(proto, ports.to_owned())], Value::Null)
            })
        });
        let grants = list(&self.policy["grants"]).into_iter().map(|grant| {
            let ip = list(&grant["ip"]).into_iter().map(|entry| {
                let entry = entry.as_str().expect("it is well-formed");
                let (proto, ports) = entry.split_once(':').unwrap_or(("", entry));
                (proto.to_owned(), ports.to_owned())
            });
            (grant["src"].clone(), grant["dst"].clone(), ip.collect(), grant["via"].clone())
        });
        acls.chain(grants).any(|(srcs, dsts, ip, via)| {
            let via = list(&via);
            let is_router = |dst: IpAddr| {
                let leaves = receiver.is_exit() && is_public(dst);
                leaves || receiver.subnets.iter().any(|subnet| subnet.contains(dst))
            };
            let is_tagged = via.iter().any(|tag| receiver.tags.contains(tag.as_str().expect("it is well-formed")));
            // A prefix is let through whole by a router of some of it.
            let goes_through = |text: &str| {
                let text = self.policy["hosts"][text].as_str().unwrap_or(text);
                let leads = |span: Span| receiver.subnets.iter().any(|subnet| Span::from(*subnet).overlaps(&span));
                via.is_empty() || (is_tagged && text.parse().map_or_else(|_| is_router(dst), leads))
            };
            let from = |src: IpAddr| {
                list(&srcs).iter().any(|text| self.is_source(text.as_str().expect("it is well-formed"), src))
            };
            let to = |text: &Value| match text.as_str().expect("it is well-formed") {
                text if !goes_through(text) => false,
                "*" => true,
                "autogroup:self" => via.is_empty() && self.are_of_one_user(receiver, src, dst),
                "autogroup:internet" => is_public(dst),
                text => self.is_named(text, dst),
            };
            ip.iter().any(|(proto, ports)| fits(proto, ports, protocol, port))
                && from(src)
                && list(&dsts).iter().any(to)
        })
    }

    fn is_source(&self, text: &str, src: IpAddr) -> bool {
        let inside = |text: &str| text.parse::<Prefix>().expect("it is well-formed").contains(src);
        match text {
            "autogroup:danger-all" => true,
            "*" => {
                let tailnet = (inside("100.64.0.0/10") && !inside("100.115.92.0/23")) || inside("fd7a:115c:a1e0::/48");
                tailnet || self.nodes.iter().flat_map(|node| &node.subnets).any(|subnet| subnet.contains(src))
            }
            text => self.is_named(text, src),
        }
    }

    fn are_of_one_user(&self, receiver: &Node, src: IpAddr, dst: IpAddr) -> bool {
        let is_own = |node: &&Node| node.tags.is_empty() && node.user == receiver.user;
        let has = |address: IpAddr| self.nodes.iter().filter(is_own).any(|node| node.addresses.contains(&address));
        receiver.tags.is_empty() && receiver.addresses.contains(&dst) && has(src)
    }

    /// Whether a text names the holder of an address, or the address.
    fn is_named(&self, text: &str, address: IpAddr) -> bool {
        if let Ok(prefix) = text.parse::<Prefix>() {
            return prefix.contains(address);
        }
        if let Some(value) = self.policy["hosts"][text].as_str() {
            return self.is_named(value, address);
        }
        let Some(node) = self.nodes.iter().find(|node| node.addresses.contains(&address)) else { return false };
        if !node.tags.is_empty() {
            return text == "autogroup:tagged" || node.tags.contains(text);
        }
        let user = self.users.iter().find(|user| Some(user.id) == node.user).expect("it is well-formed");
        match text {
            "autogroup:member" => true,
            "autogroup:admin" => matches!(user.role, Role::Admin | Role::Owner),
            text if text.starts_with("group:") => self.policy["groups"][text]
                .as_array()
                .expect("it is well-formed")
                .iter()
                .any(|login| *login == user.login.as_str()),
            text => match text.strip_prefix("user:*@") {
                Some(domain) => user.login.ends_with(&format!("@{domain}")),
                None => text == user.login,
            },
        }
    }
}

fn fits(proto: &str, ports: &str, protocol: i64, port: u16) -> bool {
    let of_protocol = match proto {
        "" => [6, 17, 1, 58].contains(&protocol),
        "tcp" => protocol == 6,
        "udp" => protocol == 17,
        "sctp" => protocol == 132,
        "icmp" => protocol == 1,
        number => number.parse() == Ok(protocol),
    };
    let has_ports = [6, 17, 132].contains(&protocol);
    let of_port = ports.split(',').any(|range| match range.split_once('-') {
        _ if range == "*" => true,
        Some((first, last)) => {
            has_ports
                && (first.parse().expect("it is well-formed")..=last.parse().expect("it is well-formed"))
                    .contains(&port)
        }
        None => has_ports && range.parse() == Ok(port),
    });
    of_protocol && of_port
}

fn is_public(address: IpAddr) -> bool {
    let inside = |text: &str| text.parse::<Prefix>().expect("it is well-formed").contains(address);
    let private = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16"];
    if address.is_ipv4() { !private.iter().any(|text| inside(text)) } else { inside("2000::/3") }
}

fn pick<'a>(rng: &mut Rng, from: &[&'a str]) -> &'a str {
    from[rng.below(from.len() as u64) as usize]
}

fn some(rng: &mut Rng, from: &[&str]) -> Vec<String> {
    (0..1 + rng.below(3)).map(|_| pick(rng, from).to_owned()).collect()
}

fn random_policy(rng: &mut Rng) -> Value {
    let users = [LOGINS[0], LOGINS[1], "group:g", "autogroup:member", "autogroup:admin", "user:*@example.com"];
    let others = ["tag:a", "tag:b", "autogroup:tagged", "100.64.0.2", "10.1.0.0/16", "lan", "fd7a:115c:a1e0::3"];
    let named = [&users[..], &others[..]].concat();
    let sources = [&named[..], &["*", "autogroup:danger-all"]].concat();
    let destinations = [&named[..], &["*", "autogroup:internet", "8.8.8.8", "100.64.0.0/24"]].concat();
    let ports = ["*", "22", "80-443", "22,53", "1-65535"];
    let acls: Vec<_> = (0..rng.below(4))
        .map(|_| {
            let proto = pick(rng, &["", "", "", "tcp", "udp", "icmp", "sctp", "47"]);
            let ports = if ["icmp", "47"].contains(&proto) { &["*"][..] } else { &ports[..] };
            let own = rng.below(5) == 0;
            let src = if own { some(rng, &[&users[..], &["*"]].concat()) } else { some(rng, &sources) };
            let mut dst = some(rng, &destinations);
            if own {
                dst.push("autogroup:self".into());
            }
            let dst: Vec<_> = dst.iter().map(|dst| format!("{dst}:{}", pick(rng, ports))).collect();
            json!({"action": "accept", "src": src, "dst": dst, "proto": proto})
        })
        .collect();
    let grants: Vec<_> = (0..rng.below(3))
        .map(|_| {
            let own = rng.below(5) == 0;
            let src = if own { some(rng, &users) } else { some(rng, &sources) };
            let mut dst = some(rng, &destinations);
            if own {
                dst.push("autogroup:self".into());
            }
            let ip = some(rng, &["*", "22", "tcp:80-443", "udp:53", "icmp:*", "47:*"]);
            let via = if rng.below(4) == 0 { some(rng, &TAGS) } else { Vec::new() };
            json!({"src": src, "dst": dst, "ip": ip, "via": via})
        })
        .collect();
    json!({
        "groups": {"group:g": [LOGINS[rng.below(3) as usize], LOGINS[2]]},
        "hosts": {"lan": "192.168.1.0/24"},
        "tagOwners": {"tag:a": [], "tag:b": [], "tag:c": []},
        "acls": acls,
        "grants": grants,
    })
}
