//! Messages of the control protocol.

use std::sync::Arc;

use mesh_core::{
    control::{Interner, NetMap, PacketFilter, netmap},
    filter::{Filter, FlowPool},
    ip::set::IpSet,
    rng::Seed,
    time::WallTime,
};

/// A map message is read, or refused with a line that it has. What is read is written and read again, and is the same;
/// with an interner too. Applied as the first message of a stream, told again, it changes nothing; applied to another
/// map it leaves one in which every peer can be found by its number and by its key.
///
/// # Panics
/// When that is not so.
pub fn map_response(data: &[u8]) {
    let response = match netmap::decode(data, None) {
        Ok(response) => response,
        Err(netmap::DecodeError::Malformed { line, .. }) => {
            let lines = data.iter().filter(|byte| **byte == b'\n').count() + 1;
            assert!(line <= lines, "line {line} of {lines}");
            return;
        }
        Err(error @ netmap::DecodeError::TooLong(_)) => panic!("{error}"),
    };
    let text = serde_json::to_vec(&response).expect("what was read can be written");
    assert_eq!(netmap::decode(&text, None).as_ref(), Ok(&response));
    let shared = netmap::decode(data, Some(&mut Interner::new()));
    assert_eq!(shared.as_ref(), Ok(&response));

    let now = WallTime::from_unix_secs(1_800_000_000);
    let mut map = NetMap::new();
    if map.apply(response.clone(), now).is_ok() {
        check(&map);
        map.begin_stream();
        let again = map.apply(response.clone(), now).expect("it made a map before");
        assert!(again.is_empty(), "{again:?}");
    }
    let mut map = NetMap::new();
    map.apply(netmap::decode(KNOWN, None).expect("it is well-formed"), now).expect("it makes a map");
    let before = format!("{map:?}");
    match map.apply(response, now) {
        Ok(change) => {
            assert!(change.peers.removed.iter().all(|id| map.peer(*id).is_none()));
            assert!(change.peers.added.iter().chain(&change.peers.changed).all(|id| map.peer(*id).is_some()));
        }
        Err(_) => assert_eq!(format!("{map:?}").replace("refused: 1", "refused: 0"), before),
    }
    check(&map);
}

/// A map with two peers that the corpus speaks of.
const KNOWN: &[u8] =
    br#"{"Node":{"ID":1,"Key":"nodekey:0101010101010101010101010101010101010101010101010101010101010101"},"Peers":[
{"ID":2,"Key":"nodekey:0202020202020202020202020202020202020202020202020202020202020202","Online":true},
{"ID":3,"Key":"nodekey:0303030303030303030303030303030303030303030303030303030303030303"}]}"#;

fn check(map: &NetMap) {
    let read = PacketFilter::of(map);
    let rules = map.filters().values().map(Vec::len).sum::<usize>();
    assert!(read.rules.len() <= rules, "a rule of the map is one rule at most");
    assert!(read.rules.iter().all(|rule| map.filters().contains_key(&*rule.name.filter)));
    let pool = Arc::new(FlowPool::new(&mut Seed::from_number(1).stream("flows", 0)));
    let filter = Filter::new(read.rules, IpSet::default(), pool);
    assert_eq!(filter.left_out(), 0, "no small message is past the bound");
    let Some(node) = map.self_node() else {
        assert!(map.peers().is_empty(), "only keep-alives came");
        return;
    };
    for (id, peer) in map.peers() {
        assert!(id.0 > 0 && peer.id == *id && !peer.key.is_zero());
        assert!(peer.id != node.id && peer.key != node.key);
        assert_eq!(map.peer_by_key(&peer.key).map(|peer| peer.id), Some(*id));
    }
    assert!(map.regions().all(|(id, region)| i64::from(id.number()) == region.region_id));
}
