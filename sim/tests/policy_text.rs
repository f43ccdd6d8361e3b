//! Two readings of the policy language agree: what the server's half makes of a text, compiled to rules and applied by a
//! packet filter, admits what the slow evaluator of S1 finds allowed in that text, and nothing else.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use control::policy::{Node, Policy, Role, Rulebook, User};
use mesh_core::{
    control::{
        NetMap, NodeId, PacketFilter,
        types::{MapResponse, PeerNode, UserId},
    },
    filter::{Content, Filter, FlowPool, FlowTable, Headers, IcmpKind, Ports},
    ip::{packet::protocol, prefix::Prefix, set::Span},
    key::NodePublic,
    rng::{Rng, Seed},
    time::{Instant, WallTime},
};
use sim::check::{Member, PolicyText, Question, Wants};

const USERS: [&str; 3] = ["ann@x.org", "bob@y.org", "cid@x.org"];
const TAGS: [&str; 2] = ["tag:a", "tag:b"];
const SUBNET: &str = "10.9.0.0/16";
const POLICIES: u64 = 1_500;

const SOURCES: [&str; 17] = [
    "*",
    "ann@x.org",
    "bob@y.org",
    "new@x.org",
    "user:*@x.org",
    "group:some",
    "group:none",
    "tag:a",
    "tag:b",
    "autogroup:member",
    "autogroup:tagged",
    "autogroup:danger-all",
    "box",
    "net",
    "100.64.0.2",
    "100.64.0.0/30",
    "fd7a:115c:a1e0::3",
];
const DESTINATIONS: [&str; 16] = [
    "*",
    "ann@x.org",
    "cid@x.org",
    "user:*@x.org",
    "group:some",
    "tag:a",
    "tag:b",
    "autogroup:member",
    "autogroup:tagged",
    "autogroup:self",
    "autogroup:internet",
    "box",
    "net",
    "10.9.0.0/24",
    "100.64.0.0/29",
    "0.0.0.0/0",
];
const PORTS: [&str; 6] = ["*", "22", "20-25", "80,22", "53", "1024-65535"];
const PROTOCOLS: [&str; 5] = ["tcp", "udp", "47", "icmp", "sctp"];
/// Addresses that are no node's.
const STRANGERS: [&str; 4] = ["10.9.1.1", "8.8.8.8", "100.115.92.7", "2001:db8::1"];

#[test]
fn the_server_and_the_slow_evaluator_read_policies_alike() {
    let (mut read, mut allowed, mut denied) = (0, 0, 0);
    for seed in 0..POLICIES {
        let mut rng = Seed::from_number(seed).stream("policies", 0);
        let (members, text) = (members(&mut rng), policy(&mut rng));
        let Ok(policy) = Policy::parse(&text) else { continue };
        assert!(policy.unbuilt().is_empty(), "{text}");
        let slow = PolicyText::parse(&text).unwrap_or_else(|problem| panic!("{problem}: {text}"));
        read += 1;
        let rulebook = rulebook(policy, &members);
        for (receiver, member) in members.iter().enumerate() {
            let filter = filter(&rulebook, receiver, member);
            for question in questions(&members, member) {
                let admitted = filter.admit(&headers(&question), &FlowTable::default(), Instant::ZERO).is_ok();
                let expected = slow.allows(&question, &members);
                assert_eq!(admitted, expected, "seed {seed}: {question:?} at {receiver} of {members:#?}\n{text}");
                *(if expected { &mut allowed } else { &mut denied }) += 1;
            }
        }
    }
    // A generator whose policies are all refused, or allow nothing, would show nothing.
    assert!(read > POLICIES / 3, "{read} of {POLICIES} policies were read");
    assert!(allowed > 20_000 && denied > 20_000, "{allowed} allowed, {denied} denied");
}

fn pick<'l>(rng: &mut Rng, list: &[&'l str]) -> &'l str {
    list[rng.below(list.len() as u64) as usize]
}

fn members(rng: &mut Rng) -> Vec<Member> {
    (1..=6u8)
        .map(|number| Member {
            addresses: vec![
                [100, 64, 0, number].into(),
                IpAddr::V6((0xfd7a_115c_a1e0 << 80 | u128::from(number)).into()),
            ],
            user: pick(rng, &USERS).to_owned(),
            tags: TAGS.iter().filter(|_| rng.below(4) == 0).map(|tag| (*tag).to_owned()).collect(),
            subnets: if number == 6 { vec![SUBNET.parse().expect("a prefix")] } else { vec![] },
        })
        .collect()
}

fn policy(rng: &mut Rng) -> String {
    let list = |rng: &mut Rng, from: &[&str], suffix: &mut dyn FnMut(&mut Rng) -> String| {
        let items: Vec<_> =
            (0..=rng.below(2)).map(|_| format!("{:?}", format!("{}{}", pick(rng, from), suffix(rng)))).collect();
        format!("[{}]", items.join(", "))
    };
    let mut acls = Vec::new();
    for _ in 0..rng.below(4) {
        let proto = if rng.below(3) == 0 { Some(pick(rng, &PROTOCOLS)) } else { None };
        let has_ports = proto.is_none_or(|proto| matches!(proto, "tcp" | "udp" | "sctp"));
        let src = list(rng, &SOURCES, &mut |_| String::new());
        let dst = list(rng, &DESTINATIONS, &mut |rng| format!(":{}", if has_ports { pick(rng, &PORTS) } else { "*" }));
        let proto = proto.map_or(String::new(), |proto| format!(", \"proto\": {proto:?}"));
        acls.push(format!(r#"{{"action": "accept", "src": {src}, "dst": {dst}{proto}}}"#));
    }
    let mut grants = Vec::new();
    for _ in 0..rng.below(3) {
        let src = list(rng, &SOURCES, &mut |_| String::new());
        let dst = list(rng, &DESTINATIONS, &mut |_| String::new());
        let ip = if rng.below(2) == 0 { pick(rng, &PORTS).to_owned() } else { format!("tcp:{}", pick(rng, &PORTS)) };
        grants.push(format!(r#"{{"src": {src}, "dst": {dst}, "ip": [{ip:?}]}}"#));
    }
    let sections = [("acls", acls), ("grants", grants)]
        .into_iter()
        .filter(|(_, entries)| !entries.is_empty() || rng.below(8) == 0)
        .map(|(name, entries)| format!("{name:?}: [{}],\n", entries.join(",\n")));
    let sections: String = sections.collect();
    format!(
        r#"{{
            "groups": {{"group:some": ["ann@x.org", "new@x.org"], "group:none": []}},
            "hosts": {{"box": "100.64.0.3", "net": "10.9.0.0/16"}},
            "tagOwners": {{"tag:a": [], "tag:b": []}}, // and the rules
            {sections}
        }}"#
    )
}

fn rulebook(policy: Policy, members: &[Member]) -> Rulebook {
    let id = |user: &str| UserId(USERS.iter().take_while(|other| **other != user).count() as i64 + 1);
    let users = USERS.map(|login| User { id: id(login), login: login.to_owned(), email: None, role: Role::Member });
    let nodes = members.iter().zip(1..).map(|(member, number)| Node {
        id: NodeId(number),
        user: Some(id(&member.user)),
        tags: member.tags.iter().cloned().collect(),
        addresses: member.addresses.clone(),
        subnets: member.subnets.iter().copied().collect(),
        exit_routes: BTreeSet::new(),
        created: WallTime::from_unix_secs(number as u64),
    });
    Rulebook::new(Arc::new(policy), users, nodes)
}

/// The filter of a node, by way of a network map.
fn filter(rulebook: &Rulebook, receiver: usize, member: &Member) -> Filter {
    let id = NodeId(receiver as i64 + 1);
    let rules = rulebook.packet_filters(id).into_iter().map(|(name, rules)| (name, Some(rules))).collect();
    let node = PeerNode { id, key: NodePublic::from_bytes([7; 32]), ..PeerNode::default() };
    let map = MapResponse { node: Some(Arc::new(node)), packet_filters: Some(rules), ..MapResponse::default() };
    let mut netmap = NetMap::new();
    netmap.apply(map, WallTime::UNIX_EPOCH).expect("it makes a map");
    let read = PacketFilter::of(&netmap);
    assert_eq!(read.skipped, []);
    let own = member.addresses.iter().copied().map(Span::from);
    let local = own.chain(member.subnets.iter().copied().map(Span::from)).collect();
    Filter::new(read.rules, local, Arc::new(FlowPool::new(&mut Seed::from_number(1).stream("flows", 0))))
}

/// From everybody and some others, to all that the receiver has.
fn questions(members: &[Member], receiver: &Member) -> Vec<Question> {
    let strangers = STRANGERS.iter().map(|text| text.parse::<IpAddr>().expect("an address"));
    let sources: Vec<_> = members.iter().flat_map(|member| member.addresses.clone()).chain(strangers).collect();
    let behind = receiver.subnets.iter().map(Prefix::address);
    let destinations: Vec<_> = receiver.addresses.iter().copied().chain(behind).collect();
    let wants = [
        Wants::Port(protocol::TCP, 22),
        Wants::Port(protocol::TCP, 80),
        Wants::Port(protocol::UDP, 53),
        Wants::Port(protocol::UDP, 40_000),
        Wants::Port(protocol::SCTP, 22),
        Wants::Protocol(47),
        Wants::Echo,
    ];
    let pairs = sources.iter().flat_map(|source| destinations.iter().map(move |to| (*source, *to)));
    pairs
        .filter(|(source, destination)| source.is_ipv4() == destination.is_ipv4())
        .flat_map(|(source, destination)| wants.map(|wants| Question { source, destination, wants }))
        .collect()
}

fn headers(question: &Question) -> Headers {
    let Question { source, destination, wants } = *question;
    let ports = |destination| Ports { source: 50_000, destination };
    let (protocol, content) = match wants {
        Wants::Port(protocol::TCP, port) => (protocol::TCP, Content::Tcp { ports: ports(port), opens: true }),
        Wants::Port(protocol, port) => (protocol, Content::Datagram(ports(port))),
        Wants::Protocol(protocol) => (protocol, Content::Other),
        Wants::Echo if source.is_ipv4() => (protocol::ICMP, Content::Icmp(IcmpKind::Other)),
        Wants::Echo => (protocol::ICMPV6, Content::Icmp(IcmpKind::Other)),
    };
    Headers { source, destination, protocol, content }
}
