//! Messages of the control protocol.

use std::sync::Arc;

use mesh_core::{
    control::{
        Interner, NetMap, PacketFilter,
        codec::{MapReader, frame},
        netmap,
        noise::{Early, EarlyReader, Initiation, Initiator, Opener, Progress, Sealer},
    },
    filter::{Filter, FlowPool},
    ip::set::IpSet,
    key::MachinePrivate,
    limits,
    rng::Seed,
    time::WallTime,
};

/// A map stream says the same whether it arrives at once or in pieces, keeps no more than has come, and what it says is
/// framed alike again. The first byte is the size of the pieces.
///
/// # Panics
/// When that is not so.
pub fn map_frames(data: &[u8]) {
    let Some((size, data)) = data.split_first() else { return };
    let (mut whole, mut pieces) = (MapReader::new(), MapReader::new());
    let ended = whole.receive(data);
    let ended_too = data.chunks(usize::from(*size).max(1)).try_for_each(|piece| pieces.receive(piece));
    assert_eq!(ended, ended_too);
    let mut again = Vec::new();
    while let Some(message) = whole.pop() {
        assert!((1..=limits::MAP_MESSAGE_BYTES).contains(&message.len()));
        again.extend(frame(&message).expect("it was one"));
        assert_eq!(pieces.pop(), Some(message));
    }
    assert_eq!(pieces.pop(), None);
    assert!(data.starts_with(&again));
    assert_eq!(whole.is_within_message() || ended.is_err(), again.len() < data.len());
}

/// Nobody who lacks the keys gets anything through a control connection: neither an answer to an initiation, nor a
/// record, nor an initiation itself; and what both ends say is heard as it was said, whatever was in the way of it. The
/// early payload ends where it says. Wrong bytes end a connection and nothing else.
///
/// # Panics
/// When that is not so.
pub fn noise_records(data: &[u8]) {
    let mut rng = Seed::from_number(1).stream("noise", 0);
    let (node, server) = (MachinePrivate::generate(&mut rng), MachinePrivate::generate(&mut rng));
    assert!(Initiation::open(data, &server).is_err());
    let start = || Initiator::start(119, &node, &server.public(), &mut Seed::from_number(1).stream("node", 0));
    let (initiator, initiation) = start().expect("the keys are good");
    assert!(!matches!(start().expect("the keys are good").0.read(data), Ok(Progress::Done { .. })));

    let opened = Initiation::open(&initiation, &server).expect("it was made for this server");
    let (response, mut sealer, _) = opened.respond(&mut rng).expect("the keys are good");
    let Ok(Progress::Done { mut opener, .. }) = initiator.read(&response) else { panic!("it is the answer") };
    hear(&mut sealer, &mut opener, data);
    let mut heard = Vec::new();
    // Nothing but the beginning of a record can go unnoticed.
    if opener.open(data, &mut heard).is_ok() {
        assert!(data.len() < 4096 && opener.is_within_record() != data.is_empty());
    }
    assert!(heard.is_empty());

    match EarlyReader::new().receive(data) {
        Ok(Some((Early::Present(_), rest))) => assert!(data.ends_with(&rest)),
        Ok(Some((Early::Absent, rest))) => assert_eq!(rest, data),
        Ok(None) | Err(_) => {}
    }
}

fn hear(sealer: &mut Sealer, opener: &mut Opener, said: &[u8]) {
    let (mut wire, mut heard) = (Vec::new(), Vec::new());
    sealer.seal(said, &mut wire).expect("there are counters left");
    for piece in wire.chunks(said.first().map_or(1, |byte| usize::from(*byte) + 1)) {
        opener.open(piece, &mut heard).expect("nobody changed it");
    }
    assert_eq!(heard, said);
}

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
