//! Pitfalls of maps: p05 to p09, p14 to p16, p19, p21, p22, p24, p25, p32 to p34, p37 to p43, p46.

use core::time::Duration;
use std::sync::Arc;

use control::{
    coordinator::{Command, ConfigError, Coordinator, Input, Request, Response},
    limits,
    store::Rows,
};
use mesh_core::{
    control::types::{MapRequest, NodeId, RegisterRequest, Service},
    derp::DerpMap,
    key::{DiscoPublic, NodePublic},
    machine::Machine,
    rng::Seed,
};

use crate::support::{self, BEGIN, VERSION, World};

/// Two nodes of alice that see each other.
fn pair() -> (World, u32, u32) {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let (a, b) = (world.join(1, &key), world.join(2, &key));
    world.settle();
    (world, a, b)
}

fn filters(world: &World, client: u32) -> &[mesh_core::control::types::FilterRule] {
    &world.clients[&client].map.filters()["base"]
}

fn status(response: Option<Response>) -> u16 {
    match response {
        Some(Response::Refused(refusal)) => refusal.status,
        other => panic!("{other:?}"),
    }
}

#[test]
fn p05_a_stream_that_fails_is_refused_before_it_begins() {
    let (mut world, a, _) = pair();
    let plain = world.clients[&a].map_request();
    let stream = |request| Request::Map(Box::new(MapRequest { stream: true, ..request }));
    let unknown = MapRequest { node_key: NodePublic::from_bytes([88; 32]), ..plain.clone() };
    assert_eq!(status(world.ask(a, stream(unknown))), 404);
    let nobody = MapRequest { node_key: NodePublic::default(), ..plain.clone() };
    assert_eq!(status(world.ask(a, stream(nobody))), 404);
    let old = MapRequest { version: limits::MIN_CAPABILITY_VERSION - 1, ..plain.clone() };
    assert_eq!(status(world.ask(a, stream(old))), 400);
    let oldest = MapRequest { version: limits::MIN_CAPABILITY_VERSION, ..plain };
    assert!(matches!(world.ask(a, stream(oldest)), Some(Response::Stream(_))));
}

#[test]
fn p06_the_first_message_tells_everything_whatever_happens_beside() {
    let (mut world, a, b) = pair();
    world.hang_up(a);
    // Changes are on their way while the stream opens, and one comes before its first message.
    world.update(b, &["198.51.100.1:1"]);
    world.stream(b);
    let began = world.clients[&a].messages.len();
    world.stream(a);
    world.update(b, &["198.51.100.2:2"]);
    world.settle();
    let first = &world.clients[&a].messages[began];
    assert!(first.node.is_some() && first.derp_map.is_some() && first.packet_filters.is_some());
    assert_eq!(first.peers.len(), 1);
    assert_eq!(world.peer(a, b).unwrap().endpoints[0].to_string(), "198.51.100.2:2");
}

#[test]
fn p07_no_peers_left_is_said_by_removing_them() {
    let (mut world, a, b) = pair();
    let peer = world.id(b);
    world.admin(Command::DeleteNode { node: "host2".into() }).unwrap();
    world.settle();
    let told = world.clients[&a].last();
    assert_eq!((told.peers_removed.as_slice(), told.peers.len()), ([peer].as_slice(), 0));
    // One that was left too far behind to be told, and has none now, is closed: its next stream begins from nothing.
    let key = world.key(true, true, &[]);
    world.clients.get_mut(&a).unwrap().stalled = true;
    world.join(3, &key);
    world.settle();
    for port in 1..=limits::LOG_POLICIES + 2 {
        world.admin(Command::SetPolicy { text: support::ALL.replace("*:*", &format!("*:{port}")) }).unwrap();
    }
    world.admin(Command::DeleteNode { node: "host3".into() }).unwrap();
    world.unstall(a);
    world.settle();
    assert_eq!(world.clients[&a].stream, None);
}

#[test]
fn p08_a_peer_comes_with_its_user() {
    let (mut world, a, _) = pair();
    world.admin(Command::CreateUser { login: "bob@example.com".into() }).unwrap();
    let key = world.key_of("bob@example.com", true, false, Default::default());
    let bobs = world.join(3, &key);
    world.settle();
    let told = world.clients[&a].last();
    assert_eq!(told.peers_changed[0].id, world.id(bobs));
    assert_eq!(told.user_profiles[0].login_name, "bob@example.com");
    let tagged_key = world.key(true, false, &["tag:a"]);
    let tagged = world.join(4, &tagged_key);
    world.settle();
    let owner = world.peer(a, tagged).unwrap().user;
    assert_eq!(world.clients[&a].map.user(owner).unwrap().login_name, "tagged-devices");
}

#[test]
fn p09_a_home_that_is_not_said_is_as_it_was() {
    let (mut world, a, b) = pair();
    let mut update = world.clients[&b].update(&["192.0.2.2:41641"]);
    update.hostinfo.as_mut().unwrap().net_info = None;
    world.update_with(b, update.clone());
    update.hostinfo = None;
    world.update_with(b, update);
    world.settle();
    assert_eq!(world.peer(a, b).unwrap().home_derp, 900);
    assert_eq!(world.fresh(a).peer(world.id(b)).unwrap().home_derp, 900);
}

#[test]
fn p14_a_node_that_is_deleted_is_told_before_its_stream_ends() {
    let (mut world, a, b) = pair();
    world.clients.get_mut(&b).unwrap().stalled = true;
    world.update(a, &["198.51.100.1:1"]);
    world.settle();
    world.admin(Command::DeleteNode { node: "host2".into() }).unwrap();
    let own = world.clients[&b].last().node.clone().unwrap();
    assert!(own.expired && own.key_expiry.unwrap() <= world.wall());
    assert_eq!(world.clients[&b].stream, None);
    let request = world.clients[&b].map_request();
    assert_eq!(status(world.ask(b, Request::Map(Box::new(request)))), 404);
    world.settle();
    assert_eq!(world.clients[&a].map.peers().len(), 0);
}

#[test]
fn p15_the_end_of_an_earlier_stream_takes_nobody_offline() {
    let (mut world, a, b) = pair();
    // The network of b changes: it comes by another connection before the first is known to be dead.
    let before = world.clients[&b].conn;
    let number = world.number();
    world.reconnect(b, number);
    world.stream(b);
    assert_eq!(world.coordinator.counters().streams_replaced_total, 1);
    world.input(Input::Closed { conn: before });
    world.advance(Duration::from_secs(30));
    assert_eq!(world.peer(a, b).unwrap().online, Some(true));
    assert!(world.clients[&b].stream.is_some());
    // Back within the moment that is allowed: nobody hears of it.
    let told = world.clients[&a].messages.len();
    world.hang_up(b);
    world.advance(Duration::from_secs(5));
    world.stream(b);
    world.advance(Duration::from_secs(20));
    assert_eq!(world.clients[&a].messages.len(), told);
}

#[test]
fn p16_many_that_come_back_at_once_are_served_from_one_view() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    for number in 1..=100 {
        world.join(number, &key);
    }
    world.settle();
    world.crash();
    for number in 1..=100 {
        world.stream(number);
    }
    world.advance(limits::OPEN_GAP);
    let counters = world.coordinator.counters();
    assert_eq!((counters.full_maps_total, counters.snapshots_total), (100, 2), "{counters:?}");
}

#[test]
fn p19_a_map_of_no_relays_is_not_taken() {
    let (mut world, a, _) = pair();
    let none: DerpMap = serde_json::from_str(r#"{"Regions":{"900":null}}"#).unwrap();
    for bad in [DerpMap::default(), none.clone()] {
        world.input(Input::Relays(Arc::new(bad)));
    }
    world.settle();
    assert_eq!(world.fresh(a).regions().count(), 1);
    let config = control::coordinator::Config { derp_map: Arc::new(none), ..support::config() };
    let made = Coordinator::restore(config, Rows::default(), &Seed::from_number(1), support::anchor(), world.now);
    assert_eq!(made.unwrap_err(), ConfigError::NoRelays);
    // One with other regions is told to all, by itself.
    world.input(Input::Relays(Arc::new(support::derp_map(&[901, 902]))));
    world.settle();
    let told = world.clients[&a].last();
    assert!(told.derp_map.is_some() && told.peers_changed_patch.is_empty() && told.node.is_none());
    assert_eq!(world.clients[&a].map.regions().count(), 2);
}

/// alice's node and two routers of one subnet.
fn routers() -> (World, u32, [u32; 2]) {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let viewer = world.join(1, &key);
    let routers = [2, 3].map(|number| {
        world.client(number);
        world.clients.get_mut(&number).unwrap().hostinfo.routable_ips =
            ["10.1.0.0/16", "0.0.0.0/0"].map(|route| route.parse().unwrap()).into();
        world.register(number, Some(&key));
        world.stream(number);
        world.update(number, &[]);
        let routes = ["10.1.0.0/16".parse().unwrap()].into();
        world.admin(Command::ApproveRoutes { node: format!("host{number}"), routes }).unwrap();
        world.advance(Duration::from_secs(2));
        number
    });
    world.settle();
    (world, viewer, routers)
}

#[test]
fn p21_a_subnet_is_shown_at_one_router() {
    let (mut world, viewer, routers) = routers();
    let shown = |world: &World| {
        let routes = routers.map(|router| world.peer(viewer, router).unwrap().allowed_ips().len() - 2);
        (routes, routers.map(|router| world.peer(viewer, router).unwrap().primary_routes.len()))
    };
    assert_eq!(shown(&world), ([1, 0], [1, 0]));
    // Both know what they serve; one is primary.
    let own = |router: u32| world.clients[&router].map.self_node().unwrap();
    assert_eq!(routers.map(|router| own(router).allowed_ips().len()), [3, 3]);
    assert_eq!(routers.map(|router| own(router).primary_routes.len()), [1, 0]);
    world.admin(Command::ApproveRoutes { node: "host2".into(), routes: Default::default() }).unwrap();
    world.settle();
    assert_eq!(shown(&world), ([0, 1], [0, 1]));
    let own = |router: u32| world.clients[&router].map.self_node().unwrap();
    assert_eq!(routers.map(|router| own(router).primary_routes.len()), [0, 1]);
}

#[test]
fn p21_a_router_that_is_away_is_replaced_by_one_that_is_not() {
    let (mut world, viewer, [first, second]) = routers();
    let primary =
        |world: &World| [first, second].map(|router| world.peer(viewer, router).unwrap().primary_routes.len());
    world.hang_up(first);
    world.advance(Duration::from_secs(5));
    assert_eq!(primary(&world), [1, 0], "it may be back in a moment");
    world.advance(Duration::from_secs(10));
    assert_eq!(primary(&world), [0, 1]);
    assert_eq!(world.clients[&second].map.self_node().unwrap().primary_routes.len(), 1);
    // The one that comes back waits until it is needed.
    world.stream(first);
    world.settle();
    assert_eq!(primary(&world), [0, 1]);
    world.hang_up(second);
    world.advance(Duration::from_secs(15));
    assert_eq!(primary(&world), [1, 0]);
    // After a restart the oldest is waited for, and not for ever.
    world.crash();
    world.stream(viewer);
    world.stream(second);
    world.settle();
    assert_eq!(primary(&world), [1, 0]);
    world.advance(Duration::from_secs(15));
    assert_eq!(primary(&world), [0, 1]);
}

#[test]
fn p21_a_router_whose_key_expired_is_replaced_by_one_whose_key_did_not() {
    for is_log_out in [false, true] {
        let (mut world, viewer, [first, second]) = routers();
        let primary =
            |world: &World| [first, second].map(|router| world.peer(viewer, router).unwrap().primary_routes.len());
        assert_eq!(primary(&world), [1, 0]);
        if is_log_out {
            let request = RegisterRequest { expiry: Some(BEGIN), ..world.clients[&first].registration(None) };
            world.register_with(first, request).unwrap();
        } else {
            world.admin(Command::ExpireNode { node: "host2".into() }).unwrap();
        }
        world.settle();
        assert_eq!(primary(&world), [0, 1]);
        // When it signed in again it is there for when it is needed.
        let key = world.key(true, false, &[]);
        world.clients.get_mut(&first).unwrap().change_key(1);
        world.register(first, Some(&key));
        world.stream(first);
        world.settle();
        assert_eq!(primary(&world), [0, 1]);
        world.admin(Command::ExpireNode { node: "host3".into() }).unwrap();
        world.settle();
        assert_eq!(primary(&world), [1, 0]);
    }
}

#[test]
fn p21_a_router_that_is_away_does_not_become_primary() {
    let (mut world, viewer, [first, second]) = routers();
    let primary =
        |world: &World| [first, second].map(|router| world.peer(viewer, router).unwrap().primary_routes.len());
    let approve = |world: &mut World, routes: &[&str]| {
        let routes = routes.iter().map(|route| route.parse().unwrap()).collect();
        world.admin(Command::ApproveRoutes { node: "host2".into(), routes }).unwrap();
    };
    approve(&mut world, &[]);
    world.hang_up(first);
    world.advance(Duration::from_secs(15));
    assert_eq!(primary(&world), [0, 1]);
    // It is the older of the two, and nobody would get through.
    approve(&mut world, &["10.1.0.0/16"]);
    world.settle();
    assert_eq!(primary(&world), [0, 1]);
    // Nor does it when the one that was primary goes, and there is a third.
    let key = world.key(true, false, &[]);
    let third = world.client(4);
    world.clients.get_mut(&third).unwrap().hostinfo.routable_ips = vec!["10.1.0.0/16".parse().unwrap()];
    world.register(third, Some(&key));
    world.stream(third);
    world.update(third, &[]);
    let routes = ["10.1.0.0/16".parse().unwrap()].into();
    world.admin(Command::ApproveRoutes { node: "host4".into(), routes }).unwrap();
    world.admin(Command::DeleteNode { node: "host3".into() }).unwrap();
    world.settle();
    let primary = [first, third].map(|router| world.peer(viewer, router).unwrap().primary_routes.len());
    assert_eq!(primary, [0, 1]);
}

#[test]
fn p22_a_node_is_routed_its_own_addresses() {
    let (world, viewer, routers) = routers();
    for peer in routers {
        let seen = world.peer(viewer, peer).unwrap();
        assert_eq!(seen.allowed_ips()[..2], seen.addresses[..]);
        assert!(seen.addresses.iter().all(mesh_core::ip::prefix::Prefix::is_host));
    }
}

#[test]
fn p24_another_disco_key_alone_is_news() {
    let (mut world, a, b) = pair();
    world.clients.get_mut(&b).unwrap().disco = Some(DiscoPublic::from_bytes([7; 32]));
    world.update(b, &["192.0.2.2:41641"]);
    world.settle();
    let patch = &world.clients[&a].last().peers_changed_patch[0];
    assert_eq!((patch.disco_key, patch.online), (world.clients[&b].disco, Some(true)));
    assert_eq!((patch.last_seen, patch.endpoints.clone()), (None, None));
}

#[test]
fn p25_an_expired_node_that_is_connected_is_online() {
    let (mut world, a, b) = pair();
    world.admin(Command::ExpireNode { node: "host2".into() }).unwrap();
    world.settle();
    let seen = world.peer(a, b).unwrap();
    assert_eq!((seen.online, seen.expired), (Some(true), true));
    let own = world.clients[&b].map.self_node().unwrap();
    assert!(own.key_expiry.unwrap() <= world.wall(), "it asks its user to sign in");
    world.stream(b);
    world.advance(2 * limits::OFFLINE_GRACE);
    assert_eq!(world.peer(a, b).unwrap().online, Some(true));
    // A key that expires by itself is told likewise.
    let key = world.key(true, false, &[]);
    let c = world.join(3, &key);
    world.advance(limits::NODE_KEY_LIFE - Duration::from_secs(10));
    assert!(world.peer(c, a).unwrap().expired && !world.clients[&c].map.self_node().unwrap().expired);
}

#[test]
fn p32_a_node_that_is_online_was_not_last_seen() {
    let (mut world, a, b) = pair();
    world.hang_up(b);
    world.advance(Duration::from_secs(20));
    assert!(world.peer(a, b).unwrap().last_seen.is_some());
    world.stream(b);
    world.settle();
    assert_eq!(world.peer(a, b).unwrap().last_seen, None);
    assert_eq!(world.fresh(a).peer(world.id(b)).unwrap().last_seen, None);
}

#[test]
fn p33_nobody_is_told_of_those_that_they_do_not_see() {
    let mut world = World::open();
    let policy = r#"{"tagOwners": {"tag:a": [], "tag:b": [], "tag:c": []},
        "acls": [{"action": "accept", "src": ["tag:a"], "dst": ["tag:b:22"]}]}"#;
    world.admin(Command::SetPolicy { text: policy.into() }).unwrap();
    let keys = ["tag:a", "tag:b", "tag:c"].map(|tag| world.key(true, false, &[tag]));
    let [a, b, c] = [1, 2, 3].map(|number| world.join(number, &keys[number as usize - 1]));
    world.settle();
    world.update(b, &["198.51.100.1:1"]);
    world.hang_up(b);
    world.advance(Duration::from_secs(20));
    assert!(world.peer(a, b).is_some() && world.peer(b, a).is_some());
    let told = serde_json::to_string(&world.clients[&c].messages).unwrap();
    for other in [a, b] {
        assert!(!told.contains(&world.row(other).stable_id) && !told.contains(&world.row(other).ipv4.to_string()));
    }
    assert_eq!(world.clients[&c].messages.len(), 1, "its own map");
}

#[test]
fn p34_each_peer_has_the_capability_version_of_its_own_program() {
    let (mut world, a, b) = pair();
    let update = MapRequest { version: 120, ..world.clients[&b].update(&["192.0.2.2:41641"]) };
    world.update_with(b, update);
    world.settle();
    assert_eq!((world.peer(a, b).unwrap().cap, world.peer(b, a).unwrap().cap), (120, VERSION));
}

#[test]
fn p37_a_policy_that_names_a_stranger_holds_for_the_others() {
    let (mut world, a, b) = pair();
    let policy =
        r#"{"acls": [{"action": "accept", "src": ["ghost@example.com", "alice@example.com"], "dst": ["*:22"]}]}"#;
    world.admin(Command::SetPolicy { text: policy.into() }).unwrap();
    world.settle();
    assert!(world.peer(a, b).is_some());
    assert_eq!(filters(&world, b)[0].dst_ports[0].ports.first, 22);
}

#[test]
fn p38_a_node_is_told_of_its_own_tags() {
    let (mut world, a, b) = pair();
    world.admin(Command::TagNode { node: "host2".into(), tags: ["tag:x".to_owned()].into() }).unwrap();
    world.settle();
    let own = world.clients[&b].map.self_node().unwrap();
    assert_eq!((own.tags.as_slice(), own.key_expiry), (["tag:x".to_owned()].as_slice(), None));
    assert_eq!(world.peer(a, b).unwrap().tags, ["tag:x"]);
}

#[test]
fn p39_ping_goes_where_anything_goes() {
    let (world, a, _) = pair();
    let usual = [6, 17, 1, 58];
    for rule in filters(&world, a) {
        assert!(rule.ip_proto.is_empty() || usual.iter().all(|number| rule.ip_proto.contains(number)));
    }
    assert!(!filters(&world, a).is_empty());
}

#[test]
fn p40_rules_name_both_families() {
    let (mut world, _, b) = pair();
    let policy = r#"{"acls": [{"action": "accept", "src": ["alice@example.com"], "dst": ["autogroup:member:22"]}]}"#;
    world.admin(Command::SetPolicy { text: policy.into() }).unwrap();
    world.settle();
    let rule = &filters(&world, b)[0];
    let has = |texts: &mut dyn Iterator<Item = &String>| {
        let texts: Vec<_> = texts.collect();
        texts.iter().any(|text| text.starts_with("100.")) && texts.iter().any(|text| text.starts_with("fd7a:"))
    };
    assert!(has(&mut rule.src_ips.iter()) && has(&mut rule.dst_ports.iter().map(|range| &range.ip)));
}

#[test]
fn p41_an_exit_node_is_not_told_of_subnets_that_others_serve() {
    let mut world = World::open();
    let (key, alices) = (world.key(true, false, &["tag:exit"]), world.key(true, false, &[]));
    world.join(2, &alices);
    let exit = world.client(1);
    world.clients.get_mut(&exit).unwrap().hostinfo.routable_ips =
        ["0.0.0.0/0", "::/0"].map(|route| route.parse().unwrap()).into();
    world.register(exit, Some(&key));
    world.stream(exit);
    world.update(exit, &[]);
    let routes = ["0.0.0.0/0".parse().unwrap()].into();
    world.admin(Command::ApproveRoutes { node: "host1".into(), routes }).unwrap();
    let policy = r#"{"acls": [{"action": "accept", "src": ["alice@example.com"], "dst": ["10.0.0.0/8:*"]}]}"#;
    world.admin(Command::SetPolicy { text: policy.into() }).unwrap();
    world.settle();
    assert_eq!(filters(&world, exit), []);
    let policy = r#"{"acls": [{"action": "accept", "src": ["alice@example.com"], "dst": ["autogroup:internet:*"]}]}"#;
    world.admin(Command::SetPolicy { text: policy.into() }).unwrap();
    world.settle();
    assert_eq!(filters(&world, exit).len(), 1);
}

#[test]
fn p42_texts_are_written_without_escapes_that_they_do_not_need() {
    let (mut world, a, b) = pair();
    let service = Service { proto: "tcp".into(), port: 80, description: "a & b <c>".into() };
    world.clients.get_mut(&b).unwrap().hostinfo.services = vec![service];
    world.update(b, &["192.0.2.2:41641"]);
    let request = world.clients[&a].map_request();
    let Some(Response::Once(update)) = world.ask(a, Request::Map(Box::new(request))) else { panic!() };
    let json = String::from_utf8(update.render().to_json()).unwrap();
    assert!(json.contains("a & b <c>"), "{json}");
    // Lists that are empty are left out: some clients take no null, and an empty list of peers for none at all.
    assert!(!json.contains("null"), "{json}");
    world.admin(Command::DeleteNode { node: "host2".into() }).unwrap();
    let request = world.clients[&a].map_request();
    let Some(Response::Once(update)) = world.ask(a, Request::Map(Box::new(request))) else { panic!() };
    assert!(!String::from_utf8(update.render().to_json()).unwrap().contains("\"Peers\""));
}

#[test]
fn p43_addresses_are_of_the_ranges_that_clients_know() {
    let (world, a, _) = pair();
    let own = world.clients[&a].map.self_node().unwrap();
    let texts: Vec<_> = own.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 2, "one of each family, IPv4 first");
    assert!(texts[0].starts_with("100.64.") && texts[1].starts_with("fd7a:115c:a1e0:"));
    assert_eq!(own.id, NodeId(1));
}

#[test]
fn p46_an_update_that_says_nothing_new_is_told_to_nobody() {
    let (mut world, a, b) = pair();
    let (before, told) = (world.coordinator.counters(), world.clients[&a].messages.len());
    for _ in 0..5 {
        world.update(b, &["192.0.2.2:41641"]);
        world.stream(b);
    }
    // Nor is a port that a NAT gave anew; what is behind it finds another way.
    let mut update = world.clients[&b].update(&["192.0.2.2:41641", "198.51.100.9:1001"]);
    update.endpoint_types = vec![1, 2];
    world.update_with(b, update.clone());
    world.settle();
    let after = world.coordinator.counters();
    assert_eq!(after.changes_total, before.changes_total + 1, "an address that is new is news");
    update.endpoints[1] = "198.51.100.9:1002".parse().unwrap();
    world.update_with(b, update);
    world.settle();
    assert_eq!(world.coordinator.counters().changes_total, after.changes_total);
    assert_eq!(world.clients[&a].messages.len(), told + 1);
    // Whoever asks anew is told all.
    assert_eq!(world.fresh(a).peer(world.id(b)).unwrap().endpoints[1].port(), 1002);
}

#[test]
fn a_machine_keeps_its_promises_to_its_driver() {
    let (mut world, ..) = pair();
    world.advance(Duration::from_secs(200));
    assert!(world.coordinator.poll_output().is_none());
    assert!(world.coordinator.poll_timeout().is_some_and(|deadline| deadline.at > world.now));
    // Keepalives go to both, about once a minute, and are drawn apart.
    assert_eq!(world.clients.values().map(|client| client.keep_alives).collect::<Vec<_>>(), [3, 3]);
}

#[test]
fn two_machines_with_the_keys_of_one_node_do_not_end_each_others_streams() {
    let (mut world, a, b) = pair();
    let first = world.clients[&b].conn;
    let number = world.number();
    world.reconnect(b, number);
    world.stream(b);
    let copy = world.clients[&b].conn;
    assert_eq!(world.clients[&b].map.health(), [] as [String; 0], "a network that is another looks like this");
    // The first machine is there, and comes back on its own connection.
    let back = |world: &mut World| {
        world.clients.get_mut(&b).unwrap().conn = first;
        let request = MapRequest { stream: true, ..world.clients[&b].map_request() };
        let response = world.ask(b, Request::Map(Box::new(request)));
        world.clients.get_mut(&b).unwrap().conn = copy;
        response
    };
    // An update of it may have been under way.
    let update = world.clients[&b].update(&["192.0.2.7:7"]);
    world.clients.get_mut(&b).unwrap().conn = first;
    let Some(Response::Refused(refusal)) = world.ask(b, Request::Map(Box::new(update))) else { panic!("it is served") };
    world.clients.get_mut(&b).unwrap().conn = copy;
    assert_eq!((refusal.status, world.coordinator.counters().clones_total), (409, 0));
    for _ in 0..5 {
        let Some(Response::Refused(refusal)) = back(&mut world) else { panic!("it is served") };
        assert_eq!((refusal.status, refusal.retry_after.is_some()), (409, true));
        world.settle();
    }
    assert!(world.clients[&b].stream.is_some() && world.clients[&b].conn == copy);
    assert_eq!(world.clients[&b].map.health().len(), 1);
    assert_eq!(world.coordinator.counters().clones_total, 1);
    assert_eq!(world.rows.audit.iter().filter(|row| row.action == "node.clone").count(), 1);
    assert_eq!(world.peer(a, b).unwrap().online, Some(true));
    // One of them goes.
    world.input(Input::Closed { conn: first });
    world.settle();
    assert_eq!(world.clients[&b].map.health(), [] as [String; 0]);
}
