use super::*;
use crate::control::types::UserId;

const NOW: WallTime = WallTime::from_unix_secs(1_800_000_000);

#[test]
fn a_full_map_is_there_and_a_second_stream_says_only_what_differs() {
    let mut map = NetMap::new();
    let change = apply(&mut map, FULL);
    assert!(change.self_node && change.derp_map && change.filters && change.dns && change.other);
    assert_eq!(change.peers.added, ids(&[2, 3]));
    assert_eq!(change.derp_regions.iter().map(|id| id.number()).collect::<Vec<_>>(), [900]);
    assert_eq!(map.user(UserId(1)).unwrap().login_name, "alice");
    assert_eq!((map.domain(), map.filters().len(), map.dns().proxied), ("example.net", 1, true));

    map.begin_stream();
    assert!(apply(&mut map, FULL).is_empty());

    map.begin_stream();
    let change = apply(&mut map, &format!(r#"{{"Node":{NODE},"Peers":[{}]}}"#, peer(3, "")));
    assert_eq!(change.peers, PeersChange { removed: ids(&[2]), ..PeersChange::default() });
    assert!(change.derp_map && change.filters && change.dns && change.other && !change.self_node);
    assert_eq!(change.users.len(), 1);
    assert!(map.filters().is_empty() && map.derp_map().regions.is_none() && map.users().is_empty());
}

#[test]
fn deltas_add_change_and_remove_peers() {
    let mut map = full();
    let (second, third) = (map.peer(NodeId(2)).unwrap().clone(), map.peer(NodeId(3)).unwrap().clone());
    let delta = format!(r#"{{"PeersRemoved":[3,77],"PeersChanged":[{},{}]}}"#, peer(2, ""), peer(4, ""));
    let change = apply(&mut map, &delta);
    assert_eq!((change.peers.added, change.peers.removed), (ids(&[4]), ids(&[3])));
    assert!(change.peers.changed.is_empty(), "the second was told again and is the same");
    assert!(map.peer_by_key(&third.key).is_none());

    let change = apply(&mut map, &format!(r#"{{"PeersChanged":[{}]}}"#, peer(2, r#","Name":"other.""#)));
    assert_eq!(change.peers.changed, ids(&[2]));
    assert_eq!((second.name.as_str(), map.peer(NodeId(2)).unwrap().name.as_str()), ("", "other."));
}

#[test]
fn a_patch_changes_what_it_says_and_nothing_else() {
    let mut map = full();
    let before = map.peer(NodeId(2)).unwrap().clone();
    let key = key_text("nodekey", 99);
    let disco = key_text("discokey", 98);
    let patch = format!(
        r#"{{"PeersChangedPatch":[{{"NodeID":2,"DERPRegion":7,"Cap":120,"CapMap":{{"x":null}},"Endpoints":["192.0.2.9:1"],
            "Key":"{key}","DiscoKey":"{disco}","Online":true,"LastSeen":"2026-01-01T00:00:00Z",
            "KeyExpiry":"2027-01-01T00:00:00Z","KeySignature":"AQI="}}]}}"#
    );
    let change = apply(&mut map, &patch);
    assert_eq!(change.peers.changed, ids(&[2]));
    let peer = map.peer(NodeId(2)).unwrap();
    assert_eq!((peer.home().unwrap().number(), peer.cap, peer.key.to_string()), (7, 120, key));
    assert!(peer.has_capability("x") && peer.online == Some(true) && peer.last_seen.is_some());
    assert_eq!((peer.disco_key.unwrap().to_string(), peer.key_signature.as_slice()), (disco, &[1, 2][..]));
    assert_eq!((&peer.endpoints, &peer.addresses), (&vec!["192.0.2.9:1".parse().unwrap()], &before.addresses));
    assert_eq!(map.peer_by_key(&before.key), None);
    assert_eq!(map.peer_by_key(&peer.key), Some(peer));

    let again = peer.clone();
    apply(&mut map, r#"{"PeersChangedPatch":[{"NodeID":2,"KeyExpiry":"0001-01-01T00:00:00Z"}]}"#);
    let peer = map.peer(NodeId(2)).unwrap();
    assert_eq!((again.key_expiry.is_some(), peer.key_expiry), (true, None), "the zero time clears");
    assert_eq!(**peer, PeerNode { key_expiry: None, ..PeerNode::clone(&again) });
}

#[test]
fn a_patch_for_a_stranger_is_left_out() {
    let mut map = full();
    let change = apply(&mut map, r#"{"PeersChangedPatch":[{"NodeID":7,"Online":true}],"OnlineChange":{"8":true}}"#);
    assert!(change.is_empty());
    assert_eq!(change.skipped, [Skipped::UnknownPeer(NodeId(8)), Skipped::UnknownPeer(NodeId(7))]);
    assert_eq!(map.stats().skipped, 2);
}

#[test]
fn online_and_seen_are_changed_by_number() {
    let mut map = full();
    apply(&mut map, r#"{"OnlineChange":{"2":true,"3":false},"PeerSeenChange":{"3":true}}"#);
    let [second, third] = [2, 3].map(|id| map.peer(NodeId(id)).unwrap().clone());
    assert_eq!((second.online, third.online, third.last_seen), (Some(true), Some(false), Some(NOW)));
    apply(&mut map, r#"{"PeerSeenChange":{"3":false}}"#);
    assert_eq!(map.peer(NodeId(3)).unwrap().last_seen, None);
}

/// Spec: DiscoKey with Online false and a LastSeen that is not newer is dropped whole.
#[test]
fn an_old_disco_key_of_an_offline_peer_is_not_taken() {
    let mut map = full();
    let disco = |seed| key_text("discokey", seed);
    let patch = |seed: u8, seen: &str| {
        let disco = disco(seed);
        format!(r#"{{"PeersChangedPatch":[{{"NodeID":2,"DiscoKey":"{disco}","Online":false,"LastSeen":"{seen}"}}]}}"#)
    };
    let key = |map: &NetMap| map.peer(NodeId(2)).unwrap().disco_key.unwrap().to_string();
    apply(&mut map, &patch(60, "2026-01-02T00:00:00Z"));
    assert_eq!(key(&map), disco(60), "nothing was known before");
    let change = apply(&mut map, &patch(61, "2026-01-02T00:00:00Z"));
    assert_eq!((change.skipped, key(&map)), (vec![Skipped::Stale(NodeId(2))], disco(60)));
    apply(&mut map, &patch(62, "2026-01-03T00:00:00Z"));
    assert_eq!(key(&map), disco(62));

    let offline = format!(r#","Online":false,"DiscoKey":"{}","Name":"x.""#, disco(63));
    apply(&mut map, &format!(r#"{{"Peers":[{}]}}"#, peer(2, &offline)));
    assert_eq!((key(&map), map.peer(NodeId(2)).unwrap().name.as_str()), (disco(62), "x."), "the rest is taken");
    map.begin_stream();
    apply(&mut map, &format!(r#"{{"Node":{NODE},"Peers":[{}]}}"#, peer(2, &offline)));
    assert_eq!(key(&map), disco(63), "a new stream starts from nothing");
}

#[test]
fn filters_are_set_and_deleted_by_name() {
    let mut map = full();
    let names = |map: &NetMap| map.filters().keys().cloned().collect::<Vec<_>>();
    let rule = r#"[{"SrcIPs":["*"],"DstPorts":[{"IP":"*","Ports":{"First":0,"Last":65535}}]}]"#;
    apply(&mut map, &format!(r#"{{"PacketFilters":{{"b":{rule},"a":[]}}}}"#));
    assert_eq!(names(&map), ["a", "b", "base"]);
    let change = apply(&mut map, r#"{"PacketFilters":{"b":null,"unknown":null}}"#);
    assert_eq!((change.filters, names(&map)), (true, vec!["a".to_owned(), "base".to_owned()]));
    let change = apply(&mut map, r#"{"PacketFilters":{},"PacketFilter":null}"#);
    assert!(change.is_empty(), "absent is unchanged");
    apply(&mut map, &format!(r#"{{"PacketFilter":[],"PacketFilters":{{"*":null,"c":{rule}}}}}"#));
    assert_eq!(names(&map), ["c"], "PacketFilter counts first, then * clears, then the names");
    apply(&mut map, r#"{"PacketFilter":[]}"#);
    assert_eq!((names(&map).len(), map.filters()["base"].len()), (2, 0));
    apply(&mut map, r#"{"PacketFilters":{"base":null,"c":[]}}"#);
    assert_eq!(names(&map), ["c"]);
}

#[test]
fn regions_stay_when_an_update_has_only_weights() {
    let mut map = full();
    let score = |map: &NetMap| map.derp_map().home_params.clone().unwrap().region_score;
    let change = apply(&mut map, r#"{"DERPMap":{"Regions":null,"HomeParams":{"RegionScore":{"900":0.5}}}}"#);
    assert!(change.derp_map && change.derp_regions.is_empty());
    assert_eq!((map.regions().count(), score(&map).unwrap()[&900]), (1, 0.5));
    assert!(apply(&mut map, r#"{"DERPMap":{"HomeParams":{}}}"#).is_empty(), "absent keeps the weights");
    apply(&mut map, r#"{"DERPMap":{"HomeParams":{"RegionScore":{}}}}"#);
    assert_eq!(score(&map), Some(BTreeMap::new()), "empty clears them");
}

#[test]
fn new_regions_replace_all_and_nonsense_is_left_out() {
    let mut map = full();
    let regions = r#"{"0":{"RegionID":0},"70000":{"RegionID":70000},"-1":{},"5":null,"6":{"RegionID":7},
        "901":{"RegionID":901,"Nodes":[{"Name":"a","HostName":"h"}]},"902":{"RegionCode":"x","Nodes":null}}"#;
    let change = apply(&mut map, &format!(r#"{{"DERPMap":{{"Regions":{regions}}}}}"#));
    let numbers = |ids: BTreeSet<RegionId>| ids.into_iter().map(RegionId::number).collect::<Vec<_>>();
    assert_eq!(numbers(change.derp_regions), [900, 901, 902]);
    assert_eq!(change.skipped, [-1, 0, 5, 6, 70_000].map(Skipped::Region));
    assert_eq!(
        map.regions().map(|(id, region)| (id.number(), region.region_id)).collect::<Vec<_>>(),
        [(901, 901), (902, 902)]
    );

    let renamed = r#"{"DERPMap":{"Regions":{"901":{"RegionName":"new","Nodes":[{"Name":"a","HostName":"h"}]},
        "902":{"RegionCode":"x","Nodes":[{"Name":"b"}]}}}}"#;
    assert_eq!(numbers(apply(&mut map, renamed).derp_regions), [902], "a name is no other relay");
    assert_eq!(numbers(apply(&mut map, r#"{"DERPMap":{"Regions":{}}}"#).derp_regions), [901, 902]);
}

#[test]
fn what_makes_no_map_changes_nothing() {
    let mut map = NetMap::new();
    assert_eq!(refused(&mut map, &format!(r#"{{"Peers":[{}]}}"#, peer(2, ""))), NetMapError::NoNode);
    let mut map = full();
    let before = map.view.clone();
    let rest = format!(r#""Peers":[{}],"Domain":"other""#, peer(9, ""));
    let no_id = format!(r#"{{"Node":{{"ID":0,"Key":"{}"}},{rest}}}"#, key_text("nodekey", 1));
    assert_eq!(refused(&mut map, &no_id), NetMapError::NodeWithoutId(NodeId(0)));
    assert_eq!(refused(&mut map, &format!(r#"{{"Node":{{"ID":1}},{rest}}}"#)), NetMapError::NodeWithoutKey);
    let nobody = Arc::new(PeerNode::default());
    let crowd = vec![nobody; limits::PEERS + 1];
    let response = MapResponse { peers: crowd, domain: "other".into(), ..MapResponse::default() };
    assert_eq!(map.apply(response, NOW), Err(NetMapError::TooManyPeers(limits::PEERS + 1)));
    assert_eq!(map.view, before);
    assert_eq!(map.stats().refused, 3);
}

#[test]
fn the_bound_of_peers_counts_those_that_go() {
    let node = |id: i64| {
        let mut key = [1; 32];
        key[..8].copy_from_slice(&id.to_be_bytes());
        Arc::new(PeerNode { id: NodeId(id), key: NodePublic::from_bytes(key), ..PeerNode::default() })
    };
    let mut map = full();
    let peers = (2..).take(limits::PEERS).map(node).collect();
    map.apply(MapResponse { peers, ..MapResponse::default() }, NOW).unwrap();
    assert_eq!(map.peers().len(), limits::PEERS);
    let one_more = MapResponse { peers_changed: vec![node(100_000)], ..MapResponse::default() };
    assert_eq!(map.apply(one_more.clone(), NOW), Err(NetMapError::TooManyPeers(limits::PEERS + 1)));
    let one_for_one = MapResponse { peers_removed: vec![NodeId(2)], ..one_more };
    let change = map.apply(one_for_one, NOW).unwrap();
    assert_eq!((change.peers.added, change.peers.removed), (ids(&[100_000]), ids(&[2])));
}

#[test]
fn peers_that_cannot_be_are_left_out_and_the_others_count() {
    let mut map = full();
    let zero = format!("nodekey:{}", "0".repeat(64));
    let own = key_text("nodekey", 1);
    let list = [
        peer(0, ""),
        format!(r#"{{"ID":10,"Key":"{zero}"}}"#),
        r#"{"ID":11}"#.to_owned(),
        peer(1, ""),
        format!(r#"{{"ID":12,"Key":"{own}"}}"#),
        peer(4, r#","Name":"first.""#),
        peer(4, r#","Name":"last.""#),
        format!(r#"{{"ID":13,"Key":"{}"}}"#, key_text("nodekey", 4)),
        peer(5, ""),
    ];
    let change = apply(&mut map, &format!(r#"{{"PeersChanged":[{}]}}"#, list.join(",")));
    assert_eq!(change.peers.added, ids(&[4, 5]));
    assert_eq!(map.peer(NodeId(4)).unwrap().name, "last.");
    let [zero, ten, eleven, one, twelve, four, thirteen] = [0, 10, 11, 1, 12, 4, 13].map(NodeId);
    assert_eq!(
        change.skipped,
        [
            Skipped::NoId(zero),
            Skipped::NoKey(ten),
            Skipped::NoKey(eleven),
            Skipped::Own(one),
            Skipped::Own(twelve),
            Skipped::Repeated(four),
            Skipped::SameKey(thirteen, four),
        ]
    );
    assert!(change.skipped.iter().all(|skipped| !skipped.to_string().contains('\n')));
}

#[test]
fn a_key_goes_to_the_peer_that_was_said_to_have_it_last() {
    let mut map = full();
    let heir = format!(r#"{{"PeersChanged":[{{"ID":4,"Key":"{}"}}]}}"#, key_text("nodekey", 2));
    let change = apply(&mut map, &heir);
    assert_eq!((change.peers.added, change.peers.removed), (ids(&[4]), ids(&[2])));
    assert_eq!(change.skipped, [Skipped::SameKey(NodeId(2), NodeId(4))]);
    assert!(apply(&mut map, r#"{"PeersRemoved":[2]}"#).is_empty(), "the server says so too, later");
    let patch = format!(r#"{{"PeersChangedPatch":[{{"NodeID":3,"Key":"{}"}}]}}"#, key_text("nodekey", 2));
    let change = apply(&mut map, &patch);
    assert_eq!((change.peers.changed, change.peers.removed), (ids(&[3]), ids(&[4])));
    let own = format!(r#"{{"PeersChangedPatch":[{{"NodeID":3,"Key":"{}"}}]}}"#, key_text("nodekey", 1));
    assert_eq!(apply(&mut map, &own).skipped, [Skipped::Own(NodeId(3))]);
}

#[test]
fn a_peer_whose_key_the_node_itself_takes_is_none_any_more() {
    let mut map = full();
    let node = format!(r#"{{"Node":{{"ID":1,"Key":"{}"}}}}"#, key_text("nodekey", 2));
    let change = apply(&mut map, &node);
    assert!(change.self_node);
    assert_eq!((change.peers.removed, change.skipped), (ids(&[2]), vec![Skipped::Own(NodeId(2))]));
}

#[test]
fn a_keep_alive_is_no_message_of_the_map() {
    let mut map = NetMap::new();
    let text = r#"{"KeepAlive":true,"Domain":"x","Debug":{"Exit":1},"ControlTime":"2026-01-01T00:00:00Z","PopBrowserURL":"u"}"#;
    let change = apply(&mut map, text);
    assert!(change.is_empty() && change.orders.debug.is_none());
    assert_eq!((change.orders.control_time.is_some(), change.orders.browser_url.as_str()), (true, "u"));
    assert_eq!((map.domain(), map.stats().keep_alives, map.stats().applied), ("", 1, 0));
    assert_eq!(refused(&mut map, "{}"), NetMapError::NoNode, "the first message is still to come");
}

#[test]
fn messages_to_the_user_are_set_and_deleted_by_name() {
    let mut map = full();
    let names = |map: &NetMap| map.display_messages().keys().cloned().collect::<Vec<_>>();
    apply(&mut map, r#"{"DisplayMessages":{"a":{"Title":"A"},"b":{"Title":"B"}},"Health":["bad"]}"#);
    assert_eq!((names(&map).len(), map.health()), (2, &["bad".to_owned()][..]));
    assert!(apply(&mut map, r#"{"Health":null}"#).is_empty());
    assert!(apply(&mut map, r#"{"DisplayMessages":{"a":null}}"#).other);
    assert_eq!(names(&map), ["b"]);
    apply(&mut map, r#"{"DisplayMessages":{"*":null,"c":{}},"Health":[]}"#);
    assert_eq!((names(&map), map.health()), (vec!["c".to_owned()], &[][..]));
}

#[test]
fn names_and_users_are_bounded() {
    let mut map = full();
    let names: Vec<_> = (0..=limits::NETMAP_NAMES).map(|n| format!(r#""n{n:05}":{{}}"#)).collect();
    let change = apply(&mut map, &format!(r#"{{"DisplayMessages":{{{}}}}}"#, names.join(",")));
    assert_eq!(change.skipped, [Skipped::Name(format!("n{:05}", limits::NETMAP_NAMES))]);
    let users: Vec<_> = (2..).take(limits::USER_PROFILES).map(|n| format!(r#"{{"ID":{n}}}"#)).collect();
    let change = apply(&mut map, &format!(r#"{{"UserProfiles":[{}]}}"#, users.join(",")));
    assert_eq!((change.users.len(), change.skipped.len()), (limits::USER_PROFILES - 1, 1));
}

/// The node of [`FULL`], whose key is of seed 1.
const NODE: &str = r#"{"ID":1,"Key":"nodekey:0101010101010101010101010101010101010101010101010101010101010101","Addresses":["100.64.0.1/32"]}"#;

/// A first message with the peers 2 and 3, whose keys are of their numbers.
const FULL: &str = r#"{"Node":{"ID":1,"Key":"nodekey:0101010101010101010101010101010101010101010101010101010101010101","Addresses":["100.64.0.1/32"]},
    "Domain":"example.net","DNSConfig":{"Proxied":true},"PacketFilters":{"base":[{"SrcIPs":["*"]}]},
    "DERPMap":{"Regions":{"900":{"RegionID":900,"RegionCode":"m","RegionName":"M","Nodes":[{"Name":"900a","RegionID":900,"HostName":"h"}]}}},
    "UserProfiles":[{"ID":1,"LoginName":"alice","DisplayName":"Alice"}],
    "Peers":[{"ID":2,"Key":"nodekey:0202020202020202020202020202020202020202020202020202020202020202"},
        {"ID":3,"Key":"nodekey:0303030303030303030303030303030303030303030303030303030303030303"}]}"#;

fn full() -> NetMap {
    let mut map = NetMap::new();
    assert!(!apply(&mut map, FULL).is_empty());
    map
}

/// A peer whose key is of its number.
fn peer(id: u8, more: &str) -> String {
    format!(r#"{{"ID":{id},"Key":"{}"{more}}}"#, key_text("nodekey", id))
}

fn key_text(kind: &str, seed: u8) -> String {
    format!("{kind}:{}", format!("{seed:02x}").repeat(32))
}

fn ids(ids: &[i64]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

fn apply(map: &mut NetMap, text: &str) -> Change {
    map.apply(decode(text.as_bytes(), None).unwrap(), NOW).unwrap()
}

fn refused(map: &mut NetMap, text: &str) -> NetMapError {
    map.apply(decode(text.as_bytes(), None).unwrap(), NOW).unwrap_err()
}
