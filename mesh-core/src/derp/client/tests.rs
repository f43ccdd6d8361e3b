use super::*;
use crate::rng::Seed;

#[test]
fn a_slow_start_waits_for_the_relays_key() {
    let mut client = client(Start::Slow);
    client.handle_command(Command::SetHome(true), secs(1));
    client.handle_command(send(b"early"), secs(1));
    assert_eq!(drain(&mut client), []);
    client.handle_bytes(&server_key(), secs(1));
    let written = written(&drain(&mut client));
    let (hello, length) = Frame::decode(&written).unwrap().unwrap();
    let Frame::ClientInfo { key, sealed } = hello else { panic!("{hello:?}") };
    assert_eq!(key, ours().public());
    let (nonce, sealed) = sealed.split_first_chunk().unwrap();
    assert_eq!(shared().open(nonce, sealed).unwrap(), CLIENT_INFO);
    let mut rest = Vec::new();
    Frame::NotePreferred(true).encode(&mut rest);
    Frame::SendPacket { to: peer(), packet: b"early" }.encode(&mut rest);
    assert_eq!(written[length..], rest);

    client.handle_bytes(&server_info(br#"{"version":2}"#), secs(1));
    assert_eq!(drain(&mut client), [Output::Event(Event::Ready { server: theirs().public(), rate: None })]);
}

#[test]
fn a_fast_start_greets_at_once_and_holds_the_relay_to_its_key() {
    let check = |first: &[u8], expected: Option<CloseReason>| {
        let mut client = client(Start::Fast(theirs().public()));
        assert!(written(&drain(&mut client)).len() > 100);
        client.handle_bytes(first, secs(1));
        client.handle_bytes(&server_info(b"{}"), secs(1));
        let ready = Output::Event(Event::Ready { server: theirs().public(), rate: None });
        assert_eq!(drain(&mut client), [expected.map_or(ready, Output::Close)]);
    };
    check(&server_key(), None);
    check(b"", None);
    let mut other = Vec::new();
    Frame::ServerKey(peer()).encode(&mut other);
    check(&other, Some(CloseReason::Key));
}

#[test]
fn a_relay_without_the_key_is_not_believed() {
    let mut client = client(Start::Slow);
    client.handle_bytes(&server_key(), secs(1));
    drain(&mut client);
    let mut bytes = Vec::new();
    Frame::ServerInfo { sealed: &[7; 60] }.encode(&mut bytes);
    client.handle_bytes(&bytes, secs(1));
    assert_eq!(drain(&mut client), [Output::Close(CloseReason::Sealed)]);
    client.handle_bytes(&server_info(b"{}"), secs(1));
    client.handle_command(send(b"late"), secs(1));
    assert_eq!((drain(&mut client), client.poll_timeout()), (vec![], None));
}

#[test]
fn a_stream_that_is_no_relay_is_closed() {
    let check = |bytes: &[u8], expected: CloseReason| {
        let mut client = client(Start::Slow);
        client.handle_bytes(bytes, secs(1));
        assert_eq!(drain(&mut client), [Output::Close(expected)]);
    };
    check(&server_info(b"{}"), CloseReason::Beginning);
    check(&encode(Frame::KeepAlive), CloseReason::Beginning);
    check(&[&[1, 0, 0, 0, 40][..], &[9; 40]].concat(), CloseReason::Frame(FrameError::Malformed(1)));
    check(b"HTTP/1.1 400", CloseReason::Frame(FrameError::TooLong { kind: b'H', length: 0x5454_502f }));
}

#[test]
fn packets_and_news_come_through_in_pieces() {
    let mut client = ready();
    let mut bytes = encode(Frame::RecvPacket { from: peer(), packet: b"hello" });
    bytes.extend(encode(Frame::Unknown(0x77)));
    bytes.extend(encode(Frame::PeerGone { peer: peer(), reason: PeerGoneReason::NotHere }));
    bytes.extend(encode(Frame::Health(b"")));
    bytes.extend(encode(Frame::Restarting { reconnect_in_ms: 5, try_for_ms: 7 }));
    for byte in bytes {
        client.handle_bytes(&[byte], secs(2));
    }
    let (reconnect_in, try_for) = (Duration::from_millis(5), Duration::from_millis(7));
    let expected = [
        Event::Received { from: peer(), packet: b"hello".to_vec() },
        Event::PeerGone { peer: peer(), reason: PeerGoneReason::NotHere },
        Event::Health(None),
        Event::Restarting { reconnect_in, try_for },
    ];
    assert_eq!(drain(&mut client), expected.map(Output::Event));
    assert_eq!((client.stats().packets_received, client.stats().frames_skipped), (1, 1));
}

#[test]
fn a_ping_is_answered_and_advice_on_the_rate_passed_on() {
    let mut client = ready();
    client.handle_bytes(&encode(Frame::Ping([3; 8])), secs(2));
    assert_eq!(drain(&mut client), [Output::Write(encode(Frame::Pong([3; 8])))]);
    let mut limited = self::client(Start::Fast(theirs().public()));
    drain(&mut limited);
    limited.handle_bytes(
        &server_info(br#"{"version":2,"TokenBucketBytesPerSecond":9,"TokenBucketBytesBurst":8}"#),
        secs(1),
    );
    let rate = Some(Rate { bytes_per_second: 9, burst_bytes: 8 });
    assert_eq!(drain(&mut limited), [Output::Event(Event::Ready { server: theirs().public(), rate })]);
}

#[test]
fn a_relay_that_swallows_packets_is_left_after_six_seconds() {
    let mut client = ready();
    client.handle_command(send(b"?"), secs(10));
    client.handle_command(send(b"?"), secs(11));
    drain(&mut client);
    let mut pings = 0;
    for second in 11..=15 {
        client.handle_timeout(secs(second));
        pings += drain(&mut client).len();
    }
    assert_eq!(pings, 2);
    client.handle_timeout(secs(16));
    assert_eq!(drain(&mut client), [Output::Close(CloseReason::Silent)]);
}

#[test]
fn a_relay_from_which_nothing_comes_that_should_have_is_left_after_six_seconds() {
    let mut client = ready();
    client.handle_command(Command::Ask, secs(10));
    client.handle_command(Command::Ask, secs(11));
    assert_eq!(client.poll_timeout(), Some(Deadline::new(secs(12), "relay ping")));
    // Something came.
    client.handle_bytes(&encode(Frame::KeepAlive), secs(11));
    client.handle_command(Command::Ask, secs(20));
    for second in [22, 24] {
        client.handle_timeout(secs(second));
    }
    assert_eq!((drain(&mut client).len(), client.stats().pings_sent), (2, 2));
    client.handle_timeout(secs(26));
    assert_eq!(drain(&mut client), [Output::Close(CloseReason::Silent)]);
    client.handle_command(Command::Ask, secs(27));
    assert_eq!((drain(&mut client), client.poll_timeout()), (Vec::new(), None));
}

#[test]
fn any_byte_shows_that_the_relay_is_there() {
    let mut client = ready();
    for second in (2..100).step_by(3) {
        client.handle_command(send(b"?"), secs(second));
        client.handle_timeout(secs(second + 2));
        client.handle_bytes(&encode(Frame::Pong([0; 8])), secs(second + 2));
    }
    assert_eq!(client.stats().pings_sent, 33);
    assert_eq!(client.poll_timeout(), Some(Deadline::new(secs(100) + SILENCE_MAX, "relay silence")));
    client.handle_timeout(secs(250));
    assert_eq!(drain(&mut client).pop(), Some(Output::Close(CloseReason::Silent)));
}

#[test]
fn a_handshake_takes_ten_seconds_at_most() {
    let mut client = client(Start::Slow);
    let deadline = client.poll_timeout().unwrap();
    assert_eq!(deadline.at, secs(11));
    client.handle_timeout(deadline.at);
    assert_eq!(drain(&mut client), [Output::Close(CloseReason::Handshake)]);
}

#[test]
fn what_waits_is_bounded_and_what_is_too_large_is_dropped() {
    let mut client = client(Start::Slow);
    for _ in 0..=limits::RELAY_MAILBOX {
        client.handle_command(send(b"early"), secs(1));
    }
    client.handle_command(send(&[0; PACKET_BYTES + 1]), secs(1));
    assert_eq!((client.stats().packets_dropped, client.stats().packets_too_large), (1, 1));
}

fn client(start: Start) -> Client {
    Client::new(ours(), start, Seed::from_number(1).stream("derp", 0), secs(1))
}

fn ready() -> Client {
    let mut client = client(Start::Fast(theirs().public()));
    client.handle_bytes(&server_info(b"{}"), secs(1));
    drain(&mut client);
    client
}

fn drain(client: &mut Client) -> Vec<Output> {
    core::iter::from_fn(|| client.poll_output()).collect()
}

fn written(outputs: &[Output]) -> Vec<u8> {
    let bytes = |output: &Output| match output {
        Output::Write(bytes) => bytes.clone(),
        Output::Event(_) | Output::Close(_) => panic!("{output:?}"),
    };
    outputs.iter().flat_map(bytes).collect()
}

fn send(packet: &[u8]) -> Command {
    Command::Send { to: peer(), packet: packet.to_vec() }
}

fn server_key() -> Vec<u8> {
    encode(Frame::ServerKey(theirs().public()))
}

fn server_info(json: &[u8]) -> Vec<u8> {
    let sealed = [&[5; 24][..], &shared().seal(&[5; 24], json)].concat();
    encode(Frame::ServerInfo { sealed: &sealed })
}

fn encode(frame: Frame<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

fn shared() -> BoxKey {
    BoxKey::new(&theirs().to_bytes(), ours().public().as_bytes()).unwrap()
}

fn ours() -> NodePrivate {
    NodePrivate::from_bytes([1; 32])
}

fn theirs() -> NodePrivate {
    NodePrivate::from_bytes([2; 32])
}

fn peer() -> NodePublic {
    NodePublic::from_bytes([3; 32])
}

fn secs(secs: u64) -> Instant {
    Instant::from_secs(secs)
}
