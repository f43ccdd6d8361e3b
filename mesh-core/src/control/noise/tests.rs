use super::*;
use crate::rng::Seed;

struct Pair {
    to_server: Sealer,
    at_server: Opener,
    to_node: Sealer,
    at_node: Opener,
}

fn keys() -> (MachinePrivate, MachinePrivate, Rng) {
    let mut rng = Seed::from_number(7).stream("noise", 0);
    (MachinePrivate::generate(&mut rng), MachinePrivate::generate(&mut rng), rng)
}

fn pair() -> Pair {
    let (node, server, mut rng) = keys();
    let (initiator, initiation) = Initiator::start(119, &node, &server.public(), &mut rng).unwrap();
    let (response, to_node, at_server) = Initiation::open(&initiation, &server).unwrap().respond(&mut rng).unwrap();
    match initiator.read(&response).unwrap() {
        Progress::Done { sealer, opener, .. } => Pair { to_server: sealer, at_server, to_node, at_node: opener },
        Progress::Waiting(_) => panic!("the response is whole"),
    }
}

#[test]
fn both_ends_speak_to_each_other() {
    let mut pair = pair();
    for (sealer, opener) in [(&mut pair.to_server, &mut pair.at_server), (&mut pair.to_node, &mut pair.at_node)] {
        let mut heard = Vec::new();
        for said in [vec![1; 10], Vec::new(), vec![2; 3 * RECORD_BYTES]] {
            let mut wire = Vec::new();
            sealer.seal(&said, &mut wire).unwrap();
            heard.clear();
            opener.open(&wire, &mut heard).unwrap();
            assert_eq!(heard, said);
        }
        assert!(!opener.is_within_record());
    }
}

#[test]
fn a_record_has_at_most_4096_bytes() {
    let mut pair = pair();
    let mut wire = Vec::new();
    pair.to_server.seal(&[0; PLAINTEXT_BYTES], &mut wire).unwrap();
    assert_eq!((PLAINTEXT_BYTES, wire.len()), (4_077, RECORD_BYTES));
    wire.clear();
    pair.to_server.seal(&[0; PLAINTEXT_BYTES + 1], &mut wire).unwrap();
    assert_eq!(wire.len(), RECORD_BYTES + HEADER + TAG + 1);
}

#[test]
fn records_may_arrive_byte_by_byte() {
    let mut pair = pair();
    let mut wire = Vec::new();
    for text in ["one", "", "three"] {
        pair.to_node.seal(text.as_bytes(), &mut wire).unwrap();
    }
    let mut heard = Vec::new();
    for byte in wire {
        pair.at_node.open(&[byte], &mut heard).unwrap();
    }
    assert_eq!(heard, b"onethree");
}

#[test]
fn a_record_without_plaintext_says_nothing() {
    let mut pair = pair();
    let mut wire = vec![TYPE_RECORD, 0, 16];
    wire.resize(HEADER + TAG, 0);
    pair.to_node.key_for_tests().seal(crate::crypto::aead::nonce_be(0), &[], &mut wire[HEADER..]);
    let mut heard = Vec::new();
    pair.at_node.open(&wire, &mut heard).unwrap();
    assert_eq!(heard, b"");
}

#[test]
fn a_changed_record_ends_the_connection_for_good() {
    let mut pair = pair();
    let (mut wire, mut heard) = (Vec::new(), Vec::new());
    pair.to_node.seal(b"first", &mut wire).unwrap();
    let first = wire.len();
    pair.to_node.seal(b"second", &mut wire).unwrap();
    wire[first + HEADER] ^= 1;
    assert_eq!(pair.at_node.open(&wire, &mut heard), Err(NoiseError::Forged));
    assert_eq!(heard, b"first");
    wire.clear();
    pair.to_node.seal(b"third", &mut wire).unwrap();
    assert_eq!(pair.at_node.open(&wire, &mut heard), Err(NoiseError::Forged));
}

#[test]
fn a_repeated_record_is_forged() {
    let mut pair = pair();
    let (mut wire, mut heard) = (Vec::new(), Vec::new());
    pair.to_node.seal(b"once", &mut wire).unwrap();
    pair.at_node.open(&wire, &mut heard).unwrap();
    assert_eq!(pair.at_node.open(&wire, &mut heard), Err(NoiseError::Forged));
}

#[test]
fn other_frames_and_lengths_are_refused_before_their_bytes_come() {
    for (header, error) in [
        ([TYPE_RESPONSE, 0, 48], NoiseError::Type { expected: TYPE_RECORD, got: TYPE_RESPONSE }),
        ([TYPE_RECORD, 0, 15], NoiseError::Length { kind: TYPE_RECORD, bytes: 15 }),
        ([TYPE_RECORD, 0x0f, 0xfe], NoiseError::Length { kind: TYPE_RECORD, bytes: 4_094 }),
    ] {
        assert_eq!(pair().at_node.open(&header, &mut Vec::new()), Err(error));
    }
}

#[test]
fn the_answer_may_come_in_pieces_and_with_records_behind_it() {
    let (node, server, mut rng) = keys();
    let (mut initiator, initiation) = Initiator::start(119, &node, &server.public(), &mut rng).unwrap();
    let (response, mut to_node, _) = Initiation::open(&initiation, &server).unwrap().respond(&mut rng).unwrap();
    let mut stream = response.to_vec();
    to_node.seal(b"settings", &mut stream).unwrap();
    for length in 0..RESPONSE_BYTES {
        initiator = match initiator.read(&stream[..length]).unwrap() {
            Progress::Waiting(initiator) => initiator,
            Progress::Done { .. } => panic!("{length} bytes are no answer"),
        };
    }
    let Progress::Done { mut opener, used, .. } = initiator.read(&stream).unwrap() else { panic!("it is whole") };
    let mut heard = Vec::new();
    opener.open(&stream[used..], &mut heard).unwrap();
    assert_eq!(heard, b"settings");
}

#[test]
fn a_server_with_another_key_is_found_out() {
    let (node, server, mut rng) = keys();
    let other = MachinePrivate::generate(&mut rng);
    let (_, initiation) = Initiator::start(119, &node, &other.public(), &mut rng).unwrap();
    assert_eq!(Initiation::open(&initiation, &server).unwrap_err(), NoiseError::Forged);

    // It answers a handshake that was made for itself, to a node that waits for the answer to another one.
    let (_, to_other) = Initiator::start(119, &node, &other.public(), &mut rng).unwrap();
    let (initiator, _) = Initiator::start(119, &node, &server.public(), &mut rng).unwrap();
    let (response, ..) = Initiation::open(&to_other, &other).unwrap().respond(&mut rng).unwrap();
    assert_eq!(initiator.read(&response).unwrap_err(), NoiseError::Forged);
}

#[test]
fn the_version_is_bound_by_the_handshake() {
    let (node, server, mut rng) = keys();
    let (_, mut initiation) = Initiator::start(119, &node, &server.public(), &mut rng).unwrap();
    initiation[1] += 1;
    assert_eq!(Initiation::open(&initiation, &server).unwrap_err(), NoiseError::Forged);
}

#[test]
fn what_is_no_initiation_is_told_from_what_is_forged() {
    let (node, server, mut rng) = keys();
    let (_, initiation) = Initiator::start(119, &node, &server.public(), &mut rng).unwrap();
    let length = |bytes| NoiseError::Length { kind: TYPE_INITIATION, bytes };
    assert_eq!(Initiation::open(&initiation[..4], &server).unwrap_err(), length(4));
    assert_eq!(Initiation::open(&initiation[..100], &server).unwrap_err(), length(96));
    assert_eq!(Initiation::open(&[&initiation[..], &[0]].concat(), &server).unwrap_err(), length(96));
    let mut other = initiation;
    other[2] = TYPE_RECORD;
    let error = NoiseError::Type { expected: TYPE_INITIATION, got: TYPE_RECORD };
    assert_eq!(Initiation::open(&other, &server).unwrap_err(), error);
}

#[test]
fn a_key_of_low_order_makes_no_handshake() {
    let (node, server, mut rng) = keys();
    let weak = MachinePublic::from_bytes([0; 32]);
    assert_eq!(Initiator::start(119, &node, &weak, &mut rng).unwrap_err(), NoiseError::WeakKey);
    let (_, mut initiation) = Initiator::start(119, &node, &server.public(), &mut rng).unwrap();
    initiation[5..37].fill(0);
    assert_eq!(Initiation::open(&initiation, &server).unwrap_err(), NoiseError::WeakKey);
}

#[test]
fn the_servers_words_reach_the_user() {
    let (node, server, mut rng) = keys();
    let start = |rng: &mut Rng| Initiator::start(119, &node, &server.public(), rng).unwrap().0;
    let frame = error_frame("too old");
    assert!(matches!(start(&mut rng).read(&frame[..5]), Ok(Progress::Waiting(_))));
    assert_eq!(start(&mut rng).read(&frame).unwrap_err(), NoiseError::Refused("too old".to_owned()));
    let long = error_frame(&"x".repeat(2_000));
    assert_eq!(long.len(), HEADER + ERROR_TEXT_BYTES);
    assert_eq!(start(&mut rng).read(&long).unwrap_err(), NoiseError::Refused("x".repeat(512)));
    // Anybody on the way can say it.
    let forged = error_frame("\x1b[2J");
    assert_eq!(start(&mut rng).read(&forged).unwrap_err(), NoiseError::Refused("\\u{1b}[2J".to_owned()));
}

#[test]
fn an_early_payload_is_taken_off_in_pieces() {
    let payload = EarlyNoise { node_key_challenge: "chalpub:00".to_owned() };
    let bytes = [payload.to_bytes().as_slice(), b"PRI"].concat();
    assert_eq!(&bytes[..5], [0xff, 0xff, 0xff, b'T', b'S']);
    let mut reader = EarlyReader::new();
    let (last, before) = bytes.split_last().unwrap();
    let end = before.len() - 2;
    for byte in &before[..end - 1] {
        assert_eq!(reader.receive(&[*byte]).unwrap(), None);
    }
    let rest = [&before[end - 1..], &[*last]].concat();
    assert_eq!(reader.receive(&rest).unwrap(), Some((Early::Present(payload), b"PRI".to_vec())));
}

#[test]
fn no_early_payload_is_http2_at_once() {
    let mut reader = EarlyReader::new();
    assert_eq!(reader.receive(&[0xff]).unwrap(), None);
    assert_eq!(reader.receive(&[0, 18]).unwrap(), Some((Early::Absent, vec![0xff, 0, 18])));
}

#[test]
fn an_early_payload_beyond_all_measure_is_refused() {
    let header = [0xff, 0xff, 0xff, b'T', b'S', 0, 1, 0, 1];
    assert_eq!(EarlyReader::new().receive(&header), Err(NoiseError::EarlyLength(65_537)));
    let empty = [0xff, 0xff, 0xff, b'T', b'S', 0, 0, 0, 0];
    assert!(matches!(EarlyReader::new().receive(&empty), Err(NoiseError::Early(_))));
}
