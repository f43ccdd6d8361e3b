//! Pitfalls of registration: p01 to p04, p10 to p13, p23, p30, p31, p36.

use core::time::Duration;
use std::collections::BTreeSet;

use control::{
    coordinator::{Command, Endpoint, Refusal, Request, Response},
    limits,
};
use mesh_core::{
    control::types::{MapRequest, NetInfo, RegisterAuth, RegisterRequest},
    key::NodePublic,
    time::WallTime,
};

use crate::support::{ALL, World};

const HALF_A_YEAR: u64 = 180 * 24 * 3600;

#[test]
fn p01_every_host_gets_a_name_that_dns_can_carry() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let hostile = ["", "..", "a..b", "-x-", "UPPER case", &"long".repeat(80), "ümläut", "x\n\0y", "host1"];
    for (number, hostname) in (1..).zip(hostile) {
        world.client(number);
        world.clients.get_mut(&number).unwrap().hostinfo.hostname = hostname.into();
        world.register(number, Some(&key));
        world.stream(number);
        world.update(number, &[]);
    }
    world.settle();
    let map = &world.clients[&1].map;
    assert_eq!(map.peers().len(), hostile.len() - 1);
    let names: BTreeSet<_> = map.peers().values().map(|peer| peer.name.clone()).collect();
    assert_eq!(names.len(), map.peers().len(), "no two have one name");
    for name in names {
        let name = name.strip_suffix('.').expect("a dot at the end");
        assert!(name.len() <= 253 && name.split('.').all(control::names::is_label), "{name}");
    }
}

#[test]
fn p02_no_expiry_is_none_at_both_borders() {
    let mut world = World::open();
    let (user_key, tag_key) = (world.key(true, false, &[]), world.key(true, false, &["tag:a"]));
    let zero = r#"{"Version":145,"Expiry":"0001-01-01T00:00:00Z"}"#;
    let parsed: RegisterRequest = serde_json::from_str(zero).unwrap();
    assert_eq!(parsed.expiry, None);
    let (alice, tagged) = (world.join(1, &user_key), world.join(2, &tag_key));
    world.settle();
    let expected = world.row(alice).created.as_unix_nanos() + HALF_A_YEAR * 1_000_000_000;
    assert_eq!(world.row(alice).key_expiry, Some(WallTime::from_unix_nanos(expected)));
    assert_eq!(world.row(tagged).key_expiry, None);
    assert_eq!(world.peer(alice, tagged).unwrap().key_expiry, None);
    assert!(!world.clients[&tagged].map.self_node().unwrap().expired);
}

#[test]
fn p03_a_logout_is_stored_as_of_now() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let (a, b) = (world.join(1, &key), world.join(2, &key));
    world.settle();
    let long_ago = WallTime::from_unix_secs(123);
    let request = RegisterRequest { expiry: Some(long_ago), ..world.clients[&b].registration(Some(&key)) };
    let response = world.register_with(b, request).unwrap();
    assert!(response.node_key_expired && !response.machine_authorized);
    let now = world.wall();
    assert_eq!(world.row(b).key_expiry, Some(now));
    assert_eq!(world.clients[&b].stream, None, "its stream is closed");
    world.settle();
    let seen = world.peer(a, b).unwrap();
    assert_eq!((seen.key_expiry, seen.online, seen.expired), (Some(now), Some(false), true));
    // Later it comes with a new key and is the node that it was.
    let id = world.id(b);
    world.clients.get_mut(&b).unwrap().change_key(1);
    world.register(b, Some(&key));
    assert_eq!((world.id(b), world.row(b).key_expiry > Some(now)), (id, true));
}

#[test]
fn p04_coming_again_changes_nothing() {
    let mut world = World::open();
    let key = world.key(true, false, &["tag:a"]);
    let node = world.join(1, &key);
    world.settle();
    world.admin(Command::TagNode { node: "host1".into(), tags: ["tag:b".to_owned()].into() }).unwrap();
    let (row, changes) = (world.row(node).clone(), world.coordinator.counters().changes_total);
    world.advance(Duration::from_secs(1000));
    for auth_key in [None, Some(key.as_str())] {
        assert!(world.register(node, auth_key).machine_authorized);
    }
    assert_eq!((world.row(node), world.coordinator.counters().changes_total), (&row, changes));
}

#[test]
fn p10_registering_again_keeps_what_only_updates_say() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let (a, b) = (world.join(1, &key), world.join(2, &key));
    world.settle();
    let client = world.clients.get_mut(&b).unwrap();
    let old = client.change_key(1);
    let request = RegisterRequest { old_node_key: Some(old), ..client.registration(Some(&key)) };
    world.register_with(b, request).unwrap();
    world.settle();
    let seen = world.peer(a, b).unwrap();
    assert_eq!((seen.home_derp, seen.endpoints.len(), seen.key), (900, 1, world.clients[&b].key));
    assert!(world.row(b).hostinfo.net_info.is_some());
}

#[test]
fn p11_a_node_key_of_another_machine_is_refused_everywhere() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let victim = world.join(1, &key);
    let thief = world.client(2);
    let victim_key = world.clients[&victim].key;
    let before = world.row(victim).clone();
    world.clients.get_mut(&thief).unwrap().key = victim_key;
    let map = |stream, omit_peers| {
        let request = MapRequest { stream, omit_peers, ..world.clients[&thief].map_request() };
        Request::Map(Box::new(request))
    };
    let register = |request| Request::Register(Box::new(request));
    let plain = world.clients[&thief].registration(None);
    let mut requests = vec![
        register(plain.clone()),
        register(world.clients[&thief].registration(Some(&key))),
        register(RegisterRequest { expiry: Some(WallTime::UNIX_EPOCH), ..plain.clone() }),
        register(RegisterRequest { followup: "https://ctl.example.net/register/x".into(), ..plain.clone() }),
        map(true, false),
        map(false, true),
        map(false, false),
    ];
    let mut rotated = plain;
    rotated.old_node_key = Some(core::mem::replace(&mut rotated.node_key, world.clients[&victim].key));
    rotated.node_key = NodePublic::from_bytes([99; 32]);
    requests.push(register(rotated));
    let all = [
        Endpoint::SetDns,
        Endpoint::IdToken,
        Endpoint::FeatureQuery,
        Endpoint::SetDeviceAttributes,
        Endpoint::AuditLog,
        Endpoint::UpdateHealth,
    ];
    requests.extend(all.map(|endpoint| Request::Other { endpoint, node_key: victim_key }));
    for request in requests {
        let text = format!("{request:?}");
        let Some(Response::Refused(Refusal { status, .. })) = world.ask(thief, request) else { panic!("{text}") };
        assert_eq!(status, 401, "{text}");
    }
    assert_eq!(world.row(victim), &before);
    assert!(world.clients[&victim].stream.is_some());
}

#[test]
fn p12_a_container_comes_with_the_same_spent_key_at_every_start() {
    let mut world = World::open();
    let key = world.key(false, false, &[]);
    let node = world.join(1, &key);
    assert_eq!(world.register(node, Some(&key)).error, "");
    let other = world.client(2);
    assert_eq!(world.register(other, Some(&key)).error, "authkey already used");
    world.advance(limits::KEY_LIFE + Duration::from_secs(1));
    assert_eq!(world.register(node, Some(&key)).error, "");
    assert_eq!(world.register(other, Some(&key)).error, "authkey expired");
    // With another node key the auth key counts again.
    world.clients.get_mut(&node).unwrap().change_key(1);
    assert_eq!(world.register(node, Some(&key)).error, "authkey expired");

    // One that was ended by hand has expired, in stock servers' words too.
    let ended = world.key(true, false, &[]);
    let id = ended.split('-').nth(2).unwrap().to_owned();
    world.admin(Command::ExpireKey { id }).unwrap();
    assert_eq!(world.register(other, Some(&ended)).error, "authkey expired");
    let wrong = format!("{}x", &ended[..ended.len() - 1]);
    for wrong in [wrong.as_str(), "tskey-auth-x-y", "nonsense", "tskey-auth-"] {
        assert_eq!(world.register(other, Some(wrong)).error, "invalid authkey", "{wrong}");
    }
}

#[test]
fn p13_a_machine_that_registers_many_times_at_once_is_one_node() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let node = world.client(1);
    for generation in 0..8 {
        world.clients.get_mut(&node).unwrap().change_key(generation);
        assert_eq!(world.register(node, Some(&key)).error, "");
    }
    assert_eq!(world.rows.nodes.len(), 1);
    // And of many machines that race for a key for one, one wins.
    let single = world.key(false, false, &[]);
    let mut won = 0;
    for number in 2..10 {
        world.client(number);
        match world.register(number, Some(&single)).error.as_str() {
            "" => won += 1,
            error => assert_eq!(error, "authkey already used"),
        }
    }
    assert_eq!((won, world.rows.nodes.len()), (1, 2));
}

#[test]
fn p23_peers_hear_of_another_key_at_once_and_the_sign_in_is_not_renewed() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let (a, b) = (world.join(1, &key), world.join(2, &key));
    world.settle();
    world.advance(Duration::from_secs(3600));
    let expiry = world.row(b).key_expiry;
    let client = world.clients.get_mut(&b).unwrap();
    let old = client.change_key(1);
    let request = RegisterRequest { old_node_key: Some(old), ..client.registration(None) };
    let response = world.register_with(b, request).unwrap();
    assert!(response.machine_authorized && response.auth_url.is_empty());
    world.advance(Duration::from_millis(60));
    let told = world.clients[&a].last();
    assert_eq!(told.peers_changed_patch[0].key, Some(world.clients[&b].key));
    assert_eq!(world.row(b).key_expiry, expiry);
    // The key before it is nobody's now.
    let request = MapRequest { node_key: old, ..world.clients[&b].map_request() };
    let Some(Response::Refused(refusal)) = world.ask(b, Request::Map(Box::new(request))) else { panic!() };
    assert_eq!(refusal.status, 404);
    // One that has expired does not vouch for another.
    world.admin(Command::ExpireNode { node: "host2".into() }).unwrap();
    let expired = world.register(b, None);
    assert!(expired.node_key_expired && expired.auth_url.is_empty());
    let client = world.clients.get_mut(&b).unwrap();
    let old = client.change_key(2);
    let request = RegisterRequest { old_node_key: Some(old), ..client.registration(None) };
    assert!(world.register_with(b, request).unwrap().auth_url.contains("/register/"));
}

#[test]
fn p30_who_follows_up_is_answered_when_it_is_decided() {
    let mut world = World::open();
    let node = world.client(1);
    let url = world.register(node, None).auth_url;
    assert_eq!(world.register(node, None).auth_url, url, "the same while it is good");
    let follow_up = RegisterRequest { followup: url.clone(), ..world.clients[&node].registration(None) };
    let follow_up = || Request::Register(Box::new(follow_up.clone()));
    let first = world.begin(node, follow_up());
    assert!(world.answer(node, first).is_none());
    let second = world.begin(node, follow_up());
    assert!(matches!(world.answer(node, first), Some(Response::Refused(_))), "one waits at a time");
    // In the end it gets another URL.
    world.advance(limits::SIGN_IN_LIFE);
    let Some(Response::Register(response)) = world.answer(node, second) else { panic!("it is answered") };
    assert!(response.auth_url.starts_with("https://ctl.example.net/register/") && response.auth_url != url);
    // And after a restart as well.
    world.crash();
    let third = world.begin(node, follow_up());
    let Some(Response::Register(response)) = world.answer(node, third) else { panic!("it is answered") };
    assert!(response.auth_url != url && !response.auth_url.is_empty());
}

#[test]
fn p31_sign_ins_are_bounded_and_bound_to_their_machine() {
    let mut world = World::open();
    let first = world.client(1);
    let url = world.register(first, None).auth_url;
    for number in 2..=1 + u32::try_from(limits::SIGN_INS).unwrap() {
        world.client(number);
        assert!(!world.register(number, None).auth_url.is_empty());
    }
    assert_eq!(world.coordinator.status().sign_ins, limits::SIGN_INS);
    assert_eq!(world.coordinator.counters().sign_ins_evicted_total, 1);
    let code = url.rsplit('/').next().unwrap().to_owned();
    assert!(code.len() >= 22, "22 letters of base58 are 128 bits");
    let gone = world.admin(Command::RegisterNode { code, user: "alice@example.com".into() });
    assert_eq!(gone.unwrap_err().code(), "not_found");
    // Another machine does not get in by a URL that it saw.
    let seen = world.register(5, None).auth_url;
    let follow_up = RegisterRequest { followup: seen.clone(), ..world.clients[&6].registration(None) };
    let other = world.register_with(6, follow_up).unwrap().auth_url;
    assert!(!other.is_empty() && other != seen);
}

#[test]
fn who_floods_sign_ins_pushes_out_their_own() {
    let mut world = World::open();
    let honest = world.client(1);
    world.clients.get_mut(&honest).unwrap().from = "2001:db8:0:1::7".parse().unwrap();
    let code = world.code(honest);
    let places = u32::try_from(limits::SIGN_INS).unwrap();
    // One customer has a /64; all of it is one source.
    let stranger = |world: &mut World, number: u32| {
        world.client(number);
        world.clients.get_mut(&number).unwrap().from = format!("2001:db8:0:2::{number:x}").parse().unwrap();
        world.register(number, None).auth_url
    };
    for number in 2..=3 * places {
        assert!(!stranger(&mut world, number).is_empty());
    }
    assert_eq!(world.coordinator.status().sign_ins, limits::SIGN_INS);
    assert_eq!(world.coordinator.counters().sign_ins_evicted_total, u64::from(2 * places));
    // Requests that wait at all of theirs keep nobody else out.
    let waits: Vec<_> = (2 * places + 2..=3 * places)
        .map(|number| {
            let followup = world.register(number, None).auth_url;
            let request = RegisterRequest { followup, ..world.clients[&number].registration(None) };
            (number, world.begin(number, Request::Register(Box::new(request))))
        })
        .collect();
    let other = world.client(1_000_000);
    world.clients.get_mut(&other).unwrap().from = "192.0.2.9".parse().unwrap();
    let other = world.code(other);
    let told: Vec<_> = waits.iter().filter_map(|(number, id)| world.answer(*number, *id)).collect();
    assert!(matches!(&told[..], [Response::Refused(refusal)] if refusal.status == 503), "{told:?}");
    // The next place is that one's own: nobody is pushed out for it, and who waits is told when to come again.
    let refused = world.client(1_000_001);
    world.clients.get_mut(&refused).unwrap().from = "2001:db8:0:2::ffff".parse().unwrap();
    let request = world.clients[&refused].registration(None);
    let refusal = world.register_with(refused, request).unwrap_err();
    assert_eq!((refusal.status, refusal.retry_after), (429, Some(limits::SIGN_IN_RETRY)));
    for code in [code, other] {
        world.admin(Command::RegisterNode { code, user: "alice@example.com".into() }).unwrap();
    }
}

#[test]
fn who_has_registered_too_often_still_signs_out() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let (node, viewer) = (world.join(1, &key), world.join(2, &key));
    world.settle();
    let is_refused = |world: &mut World, request: RegisterRequest| {
        let answer = world.ask(node, Request::Register(Box::new(request)));
        matches!(answer, Some(Response::Refused(refusal)) if refusal.status == 429)
    };
    let again = world.clients[&node].registration(Some(&key));
    assert!((0..=limits::CHANGES).any(|_| is_refused(&mut world, again.clone())));
    let out = RegisterRequest { expiry: Some(WallTime::UNIX_EPOCH), ..world.clients[&node].registration(None) };
    assert!(!is_refused(&mut world, out.clone()));
    assert!(world.row(node).key_expiry.is_some_and(|expiry| expiry <= world.wall()));
    // Once for each registration: those have their price.
    assert!(is_refused(&mut world, out));
    world.settle();
    assert!(world.peer(viewer, node).is_none_or(|peer| peer.expired));
}

#[test]
fn who_has_registered_too_often_still_signs_in_and_mistypes_keys() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let node = world.join(1, &key);
    world.settle();
    // A wrong key costs nothing, however often it is tried.
    let wrong = RegisterRequest {
        node_key: NodePublic::from_bytes([71; 32]),
        ..world.clients[&node].registration(Some("tskey-auth-x-y"))
    };
    for _ in 0..3 * limits::CHANGES {
        let told = world.ask(node, Request::Register(Box::new(wrong.clone())));
        assert!(matches!(&told, Some(Response::Register(told)) if told.error == "invalid authkey"), "{told:?}");
    }
    let again = world.clients[&node].registration(Some(&key));
    let is_refused = |world: &mut World| {
        let answer = world.ask(node, Request::Register(Box::new(again.clone())));
        matches!(answer, Some(Response::Refused(refusal)) if refusal.status == 429)
    };
    assert!((0..=limits::CHANGES).any(|_| is_refused(&mut world)));
    // With the budget spent it still gets a page, waits at it, and is let in.
    let request =
        RegisterRequest { node_key: NodePublic::from_bytes([72; 32]), ..world.clients[&node].registration(None) };
    let followup = world.register_with(node, request.clone()).unwrap().auth_url;
    let request = RegisterRequest { followup: followup.clone(), ..request };
    let waiting = world.begin(node, Request::Register(Box::new(request)));
    assert!(!followup.is_empty() && world.answer(node, waiting).is_none());
    let code = followup.rsplit('/').next().unwrap().to_owned();
    world.admin(Command::RegisterNode { code, user: "alice@example.com".into() }).unwrap();
    let told = world.answer(node, waiting);
    assert!(matches!(&told, Some(Response::Register(told)) if told.machine_authorized), "{told:?}");
}

#[test]
fn who_changes_itself_without_end_waits_and_others_do_not() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let (hostile, honest) = (world.join(1, &key), world.join(2, &key));
    world.settle();
    let began = world.now;
    let told = |world: &World| world.clients[&honest].messages.len();
    let (before, mut asked, mut answered) = (told(&world), 0, 0);
    while world.now.since(began) < Duration::from_secs(60) {
        let mut update = world.clients[&hostile].update(&["192.0.2.1:41641"]);
        update.hostinfo.as_mut().unwrap().os = format!("os {asked}");
        let id = world.begin(hostile, Request::Map(Box::new(update)));
        answered += u32::from(matches!(world.answer(hostile, id), Some(Response::Updated)));
        asked += 1;
        // Another key, or the same again, is no way around it.
        if asked % 100 == 0 {
            let request = Request::Register(Box::new(world.clients[&hostile].registration(Some(&key))));
            let refused = world.ask(hostile, request);
            assert!(matches!(refused, Some(Response::Refused(refusal)) if refusal.status == 429));
        }
        world.advance(Duration::from_millis(20));
    }
    assert!(asked > 2_000 && answered <= limits::CHANGES, "{asked} {answered}");
    let told = told(&world) - before;
    assert!((20..=55).contains(&told), "the burst by four a second, then one each two seconds: {told}");
    assert!(world.coordinator.counters().requests_delayed_total > 1_900);
    // Meanwhile the other is answered at once, and the last word of the first counts in the end.
    world.update(honest, &["198.51.100.1:1"]);
    world.advance(2 * limits::CHANGES_EVERY);
    assert_eq!(world.row(hostile).hostinfo.os, format!("os {}", asked - 1));
    world.settle();
    assert_eq!(world.peer(honest, hostile).unwrap().hostinfo.as_ref().unwrap().os, format!("os {}", asked - 1));
    // Requests that are given up are not carried out, nor are those of a node that is gone.
    let os = world.row(hostile).hostinfo.os.clone();
    let ask = |world: &mut World, number: u32| {
        let mut update = world.clients[&hostile].update(&["192.0.2.1:41641"]);
        update.hostinfo.as_mut().unwrap().os = format!("late {number}");
        let id = world.begin(hostile, Request::Map(Box::new(update)));
        (id, world.answer(hostile, id))
    };
    let taken = (0..).take_while(|number| ask(&mut world, *number).1.is_some()).count();
    let (last, None) = ask(&mut world, 99) else { panic!("it has to wait") };
    world.abort(hostile, last);
    world.advance(Duration::from_secs(10));
    let expected = if taken == 0 { os } else { format!("late {}", taken - 1) };
    assert_eq!(world.row(hostile).hostinfo.os, expected);
    assert!((100..200).any(|number| ask(&mut world, number).1.is_none()));
    world.hang_up(hostile);
    world.admin(Command::DeleteNode { node: "host1".into() }).unwrap();
    world.advance(Duration::from_secs(60));
    assert!(world.clients[&honest].map.peers().is_empty());
}

#[test]
fn who_has_to_sign_in_again_is_told_of_nobody_until_then() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let (a, b) = (world.join(1, &key), world.join(2, &key));
    world.settle();
    world.admin(Command::ExpireNode { node: "host2".into() }).unwrap();
    world.settle();
    assert!(world.clients[&b].map.self_node().unwrap().expired && world.clients[&b].stream.is_none());
    // Whichever way it asks, and whatever happens to others.
    world.stream(b);
    world.settle();
    let began = world.clients[&b].messages.len() - 1;
    assert!(world.clients[&b].map.self_node().unwrap().expired);
    world.update(a, &["198.51.100.1:1"]);
    world.join(3, &key);
    world.admin(Command::SetPolicy { text: ALL.replace("*:*", "*:22") }).unwrap();
    world.admin(Command::DeleteNode { node: "host3".into() }).unwrap();
    world.settle();
    let fresh = world.fresh(b);
    for map in [&world.clients[&b].map, &fresh] {
        assert_eq!((map.peers().len(), map.filters()["base"].len()), (0, 0));
    }
    let told = serde_json::to_string(&world.clients[&b].messages[began..]).unwrap();
    let row = world.row(a).clone();
    for of_a in [row.key.to_string(), row.ipv4.to_string(), "198.51.100.1".to_owned(), row.stable_id] {
        assert!(!told.contains(&of_a), "{of_a}: {told}");
    }
    // What it says of itself does not change what others see, but where it is.
    let mut update = world.clients[&b].update(&["192.0.2.77:1"]);
    update.hostinfo.as_mut().unwrap().hostname = "other".into();
    update.hostinfo.as_mut().unwrap().routable_ips = vec!["10.0.0.0/8".parse().unwrap()];
    world.update_with(b, update);
    assert_eq!((world.row(b).name.as_str(), world.row(b).hostinfo.routable_ips.len()), ("host2", 0));
    // Once it has signed in, with the key that it has or another, it is told everything again.
    world.clients.get_mut(&b).unwrap().hostinfo.hostname = "other".into();
    assert!(world.register(b, Some(&key)).machine_authorized);
    world.settle();
    assert!(!world.clients[&b].map.self_node().unwrap().expired);
    assert_eq!(world.clients[&b].map.peers().len(), 1);
    assert_eq!(world.clients[&b].map.filters()["base"][0].dst_ports[0].ports.first, 22);
    assert_eq!((world.row(b).name.as_str(), world.peer(a, b).unwrap().endpoints[0].port()), ("other", 1));
    assert_eq!(world.peer(a, b).unwrap().name, "other.mesh.internal.");
}

#[test]
fn p36_no_signature_is_ever_asked_for() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    world.client(1);
    let fields = serde_json::to_value(world.register(1, Some(&key))).unwrap();
    assert!(fields["NodeKeySignature"].is_null());
    let all = ["User", "Login", "NodeKeyExpired", "MachineAuthorized", "AuthURL", "NodeKeySignature", "Error"];
    assert!(all.iter().all(|field| fields.get(field).is_some()), "some clients have no defaults: {fields}");
}

#[test]
fn a_node_says_its_network_when_it_knows_it() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let node = world.join(1, &key);
    let rows = world.rows.nodes.clone();
    // Latencies come and go with every measurement: they are not stored.
    let mut update = world.clients[&node].update(&["192.0.2.1:41641"]);
    let latency = [("900-v4".to_owned(), 0.25)].into();
    let net_info = NetInfo { preferred_derp: 900, derp_latency: latency, ..NetInfo::default() };
    update.hostinfo.as_mut().unwrap().net_info = Some(net_info);
    world.update_with(node, update);
    assert_eq!(world.rows.nodes, rows);
}

#[test]
fn keys_have_expired_or_have_not_by_the_calendar_of_now() {
    let mut world = World::open();
    let keys = [world.key(true, false, &["tag:a"]), world.key(true, false, &[])];
    let (a, b) = (world.join(1, &keys[0]), world.join(2, &keys[1]));
    world.settle();
    let began = world.wall();
    let later = WallTime::from_unix_nanos(began.as_unix_nanos() + (HALF_A_YEAR + 60) * 1_000_000_000);
    let expired = |world: &World| {
        let own = world.clients[&b].map.self_node().unwrap().expired;
        (own, world.peer(a, b).unwrap().expired)
    };
    for (calendar, is_expired) in [(later, true), (began, false), (later, true)] {
        world.set_calendar(calendar);
        world.settle();
        assert_eq!(expired(&world), (is_expired, is_expired));
        // Where it is told that its key has expired the stream ends, and it opens another.
        assert_eq!(world.clients[&b].stream.is_none(), is_expired);
        world.stream(b);
        world.settle();
        assert_eq!(
            (expired(&world), world.clients[&b].map.peers().len()),
            ((is_expired, is_expired), usize::from(!is_expired))
        );
    }
    // And by the calendar that is set right, keys still expire when it is time.
    world.set_calendar(began);
    world.advance(Duration::from_secs(HALF_A_YEAR + 60));
    assert_eq!(expired(&world), (true, true));
}

#[test]
fn a_sign_in_gives_no_machine_the_node_key_that_another_has_by_then() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let (waits, other) = (world.client(1), world.client(2));
    let code = world.code(waits);
    world.clients.get_mut(&other).unwrap().key = world.clients[&waits].key;
    assert!(world.register(other, Some(&key)).machine_authorized);
    let rows = world.rows.clone();
    let refused = world.admin(Command::RegisterNode { code, user: "alice@example.com".into() });
    assert!(refused.unwrap_err().to_string().contains("the node key is that of another machine"));
    assert_eq!(world.rows, rows);
}

#[test]
fn a_key_that_a_node_gave_up_becomes_no_other_machines() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let (a, b) = (world.join(1, &key), world.client(2));
    let [waits, other] = [3, 4].map(|number| {
        world.client(number);
        world.clients.get_mut(&number).unwrap().key = world.clients[&b].key;
        number
    });
    let code = world.code(waits);
    world.join(b, &key);
    world.settle();
    // Whoever heard of both at once would take the two for one.
    world.clients.get_mut(&a).unwrap().stalled = true;
    let client = world.clients.get_mut(&b).unwrap();
    let old = client.change_key(1);
    let request = RegisterRequest { old_node_key: Some(old), ..client.registration(None) };
    assert!(world.register_with(b, request).unwrap().machine_authorized);
    let told = world.register(other, Some(&key));
    assert_eq!((told.node_key_expired, told.machine_authorized), (true, false), "it makes a new one");
    assert!(world.admin(Command::RegisterNode { code, user: "alice@example.com".into() }).is_err());
    world.clients.get_mut(&other).unwrap().change_key(1);
    assert!(world.register(other, Some(&key)).machine_authorized);
    world.unstall(a);
    world.settle();
    assert!(world.peer(a, b).is_some());
}

#[test]
fn a_node_that_becomes_ephemeral_while_it_is_away_is_forgotten() {
    let mut world = World::open();
    let (key, ephemeral) = (world.key(true, false, &[]), world.key(true, true, &[]));
    let node = world.join(1, &key);
    world.hang_up(node);
    world.advance(Duration::from_secs(3600));
    world.clients.get_mut(&node).unwrap().change_key(1);
    world.register(node, Some(&ephemeral));
    world.advance(limits::EPHEMERAL_LIFE - Duration::from_secs(1));
    assert_eq!(world.rows.nodes.len(), 1);
    world.advance(Duration::from_secs(1));
    assert_eq!(world.rows.nodes.len(), 0);
}

#[test]
fn what_a_node_says_of_its_network_is_bounded() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let node = world.join(1, &key);
    let mut update = world.clients[&node].update(&["192.0.2.1:41641"]);
    let long = "9".repeat(4_000);
    let latency = [("900-v4".to_owned(), 0.25), (long, 0.5)].into();
    let net_info = NetInfo { preferred_derp: 901, derp_latency: latency, ..NetInfo::default() };
    update.hostinfo.as_mut().unwrap().net_info = Some(net_info);
    world.update_with(node, update);
    let kept = world.row(node).hostinfo.net_info.clone().unwrap();
    assert_eq!(kept.derp_latency.into_keys().collect::<Vec<_>>(), ["900-v4"]);
}

#[test]
fn what_a_node_reports_is_written_down_once_a_minute() {
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    let node = world.join(1, &key);
    let reports = |world: &World| world.rows.audit.iter().filter(|row| row.action == "node.disconnect").count();
    for _ in 0..1000 {
        let report = Request::Other { endpoint: Endpoint::AuditLog, node_key: world.clients[&node].key };
        assert!(matches!(world.ask(node, report), Some(Response::Done)));
    }
    assert_eq!(reports(&world), 1);
    world.advance(limits::REPORT_GAP);
    let report = Request::Other { endpoint: Endpoint::AuditLog, node_key: world.clients[&node].key };
    world.ask(node, report);
    assert_eq!(reports(&world), 2);
}

#[test]
fn a_sign_in_keeps_what_it_needs_and_no_more() {
    const LONG: usize = 1 << 20;
    let mut world = World::open();
    let node = world.client(1);
    let before = format!("{:?}", world.coordinator).len();
    let text = "x".repeat(LONG);
    let request = RegisterRequest {
        tailnet: text.clone(),
        followup: text.clone(),
        nl_key: text,
        auth: Some(RegisterAuth { auth_key: " ".repeat(LONG) }),
        node_key_signature: vec![1; LONG],
        device_cert: vec![1; LONG],
        signature: vec![1; LONG],
        signature_type: Some(vec![0; LONG].into()),
        ..world.clients[&node].registration(None)
    };
    assert!(!world.register_with(node, request.clone()).unwrap().auth_url.is_empty());
    let kept = format!("{:?}", world.coordinator).len() - before;
    assert!(kept < 16 * 1024, "{kept}");
    // One that says more of itself than any node does is told so.
    let mut talker = request;
    talker.hostinfo.as_mut().unwrap().request_tags = vec!["x".repeat(limits::HOSTINFO_TEXT); limits::HOSTINFO_LIST];
    assert_eq!(world.register_with(node, talker).unwrap_err().status, 413);
}
