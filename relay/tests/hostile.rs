//! The program on real sockets, over TLS with the pinned certificate: what clients are promised, and what hostile ones
//! can not do to them. Nothing here depends on how fast the machine is.
#![cfg(feature = "serve")]
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]
#![allow(clippy::unwrap_used, clippy::unwrap_in_result, reason = "helpers of tests too")]

#[path = "support/program.rs"]
mod support;

use std::{
    io::{self, Read, Write},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
};

use mesh_core::{
    derp::{Frame, frame::PACKET_BYTES},
    rng::Seed,
};
use support::{Client, Dial, PATIENCE, Running, encoded, greeting, key, read_past_head, until, upgrade};

#[test]
fn packets_pass_over_tls_with_the_pin_and_both_starts() {
    let relay = Running::start("starts", &["--open"]);
    let pin = relay.pin();
    for (alice, bob) in [(false, false), (true, true), (false, true)] {
        let start = |fast, number| Dial { pin: Some(&pin), fast, ..relay.dial() }.connect(number).unwrap();
        let (mut alice, mut bob) = (start(alice, 1), start(bob, 2));
        exchange(&mut alice, &mut bob, b"hello");
        exchange(&mut bob, &mut alice, &vec![7; PACKET_BYTES]);
        bob.send(&Frame::Ping(*b"12345678")).unwrap();
        assert_eq!(bob.next().unwrap(), Frame::Pong(*b"12345678"));
        let gone = alice.key();
        drop(alice);
        assert!(matches!(bob.next().unwrap(), Frame::PeerGone { peer, .. } if peer == gone));
        drop(bob);
        until("both have left", || (relay.metric("clients ") == 0).then_some(()));
    }
}

#[test]
fn a_swapped_certificate_is_not_the_pinned_one() {
    let first = Running::start("swapped", &["--open"]);
    let (state, pin) = (first.state.clone(), first.pin());
    drop(first);
    for file in ["relay.crt", "relay.pem"] {
        std::fs::remove_file(state.join(file)).unwrap();
    }
    let second = Running::start_in(&state, &["--open"]);
    let error = Dial { pin: Some(&pin), ..second.dial() }.connect(1).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("not the pinned one"), "{error}");
    let new = second.pin();
    assert_ne!(new, pin);
    Dial { pin: Some(&new), fast: true, ..second.dial() }.connect(1).unwrap();
}

#[test]
fn what_a_hostile_client_says_closes_its_own_connection_alone() {
    let relay = Running::start("hostile", &["--open"]);
    let pin = relay.pin();
    let dial = Dial { pin: Some(&pin), ..relay.dial() };
    let (mut alice, mut bob) = (dial.connect(1).unwrap(), dial.connect(2).unwrap());
    let server = alice.server.unwrap();
    let frame = |kind: u8, length: u32, payload: &[u8]| [&[kind][..], &length.to_be_bytes(), payload].concat();
    let recorded = greeting(5, &server);

    let mut forged = greeting(5, &server);
    *forged.last_mut().unwrap() ^= 1;
    let someone_elses = {
        // The box of one client under the key of another.
        let mut bytes = greeting(5, &server);
        bytes[5..37].copy_from_slice(key(6).as_bytes());
        bytes
    };
    let before = [
        ("a packet first", encoded(&Frame::SendPacket { to: key(1), packet: b"x" }), "bad_greeting"),
        ("a ping first", encoded(&Frame::Ping([0; 8])), "bad_greeting"),
        ("a forged box", forged, "bad_greeting"),
        ("a box of another", someone_elses, "bad_greeting"),
        ("a key and no box", frame(0x02, 32, key(5).as_bytes()), "bad_greeting"),
        ("no whole key", frame(0x02, 3, b"abc"), "malformed"),
        ("an endless greeting", frame(0x02, 0xffff_ffff, b""), "malformed"),
        ("a greeting that never ends", frame(0x02, 200_000, &[0; 100_000]), "bad_greeting"),
        ("a recorded greeting", recorded.clone(), "replayed"),
    ];
    {
        // Lets its client in once.
        let (mut stream, _) = dial.stream().unwrap();
        stream.write_all(&[&upgrade(true)[..], &recorded].concat()).unwrap();
        stream.read_exact(&mut [0; 45 + 5]).unwrap();
    }
    for (what, bytes, reason) in before {
        let counted = relay.closes(reason);
        let (mut stream, _) = dial.stream().unwrap();
        // It may be closed before it has said all.
        let _ = stream.write_all(&[&upgrade(true)[..], &bytes].concat());
        assert!(is_closed_after(&mut stream, 45), "{what}");
        assert_eq!(relay.closes(reason), counted + 1, "{what}");
        exchange(&mut alice, &mut bob, what.as_bytes());
    }

    let after = [
        ("a packet too long", frame(0x04, 32 + PACKET_BYTES as u32 + 1, b""), "malformed"),
        ("no whole receiver", frame(0x04, 31, &[0; 31]), "malformed"),
        ("an endless unknown frame", frame(0x77, u32::MAX, b""), "malformed"),
        ("an unknown frame that never ends", frame(0x77, 1_000_000, &[0; 200_000]), "malformed"),
        ("two homes", frame(0x07, 2, b"\x01\x01"), "malformed"),
        ("a short ping", frame(0x12, 7, &[0; 7]), "malformed"),
        ("a wish to watch", encoded(&Frame::WatchConns), "not_allowed"),
        ("a wish to close", encoded(&Frame::ClosePeer(key(1))), "not_allowed"),
        (
            "a lie about the sender",
            encoded(&Frame::ForwardPacket { from: key(1), to: key(2), packet: b"x" }),
            "not_allowed",
        ),
    ];
    for (what, bytes, reason) in after {
        let counted = relay.closes(reason);
        let mut client = dial.connect(5).unwrap();
        let _ = client.wire.write_all(&bytes);
        assert!(client.is_closed(), "{what}");
        assert_eq!(relay.closes(reason), counted + 1, "{what}");
        exchange(&mut alice, &mut bob, what.as_bytes());
    }

    // Cut off in the middle of a frame: nothing of it arrives anywhere.
    let mut client = dial.connect(5).unwrap();
    let packet = encoded(&Frame::SendPacket { to: key(1), packet: &[0; 1000] });
    client.wire.write_all(&packet[..500]).unwrap();
    drop(client);
    // What is not TLS at all.
    let mut noise = relay.dial().tcp().unwrap();
    noise.write_all(&[0x55; 4096]).unwrap();
    assert!(is_closed_after(&mut noise, 64));
    exchange(&mut alice, &mut bob, b"and after all that");
}

#[test]
fn who_only_knocks_fills_his_own_part_of_the_door() {
    let relay = Running::start("knocking", &["--no-tls", "--open"]);
    let share = relay::limits::UNGREETED_OF_SOURCE;
    let knocking: Vec<_> = (0..share).map(|_| relay.dial().from(2).tcp().unwrap()).collect();
    until("all are in the door", || (relay.metric("ungreeted ") == share as u64).then_some(()));
    let mut one_more = relay.dial().from(2).tcp().unwrap();
    assert!(is_closed_after(&mut one_more, 0));
    assert_eq!(relay.closes("source_full"), 1);
    let (mut alice, mut bob) = (relay.dial().from(3).connect(1).unwrap(), relay.dial().from(4).connect(2).unwrap());
    exchange(&mut alice, &mut bob, b"through the same door");
    drop(knocking);
    until("the door is free", || (relay.metric("ungreeted ") == 0).then_some(()));
    relay.dial().from(2).connect(3).unwrap();
}

#[test]
fn half_open_connections_end_by_themselves() {
    let relay = Running::start("half", &["--open"]);
    let pin = relay.pin();
    // Nothing of TLS; TLS and no request; a request and no greeting.
    let mut silent = relay.dial().tcp().unwrap();
    let (mut handshaken, _) = Dial { pin: Some(&pin), ..relay.dial() }.stream().unwrap();
    let (mut upgraded, _) = Dial { pin: Some(&pin), ..relay.dial() }.stream().unwrap();
    upgraded.write_all(&upgrade(false)).unwrap();
    read_past_head(&mut upgraded).unwrap();
    assert!(is_closed_after(&mut silent, 0));
    assert!(is_closed_after(&mut handshaken, 0));
    assert!(is_closed_after(&mut upgraded, 45));
    assert_eq!(relay.closes("greeting_timeout"), 3);
    until("nobody is left", || (relay.metric("connections ") == 0).then_some(()));
}

#[test]
fn who_does_not_read_is_closed_and_delays_nobody() {
    let relay = Running::start("slow", &["--open"]);
    let pin = relay.pin();
    let dial = Dial { pin: Some(&pin), ..relay.dial() };
    let deaf = dial.connect(9).unwrap();
    let (mut alice, mut bob) = (dial.connect(1).unwrap(), dial.connect(2).unwrap());
    // Far more than sockets and mailbox hold; it is dropped there, and alice is not held up.
    let closed = || relay.closes("stalled") == 1;
    until("the deaf one is closed", || {
        for _ in 0..50 {
            alice.send(&Frame::SendPacket { to: key(9), packet: &[1; 30_000] }).unwrap();
        }
        alice.send(&Frame::SendPacket { to: key(2), packet: b"meanwhile" }).unwrap();
        assert_eq!(bob.next().unwrap(), Frame::RecvPacket { from: key(1), packet: b"meanwhile" });
        closed().then_some(())
    });
    assert!(relay.metric("dropped_packets_total{reason=\"queue_head\",kind=\"other\"}") > 0);
    drop(deaf);
}

/// One client in ten does its worst: floods honest ones, says nonsense, knocks and leaves. The honest ones exchange all
/// their packets all the same.
#[test]
fn one_hostile_client_in_ten_keeps_nobody_from_talking() {
    const PAIRS: u16 = 18;
    const HOSTILE: u16 = 4;
    const ROUNDS: u32 = 100;
    let relay = Running::start("tenth", &["--open"]);
    let pin = relay.pin();
    let dial = Dial { pin: Some(&pin), ..relay.dial() };
    let (done, attacks) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for number in 0..HOSTILE {
            let (done, attacks) = (&done, &attacks);
            scope.spawn(move || {
                let mut seed = Seed::from_number(number.into()).stream("hostile", 0);
                while !done.load(Relaxed) {
                    let target = key(100 + seed.below(u64::from(2 * PAIRS)) as u16);
                    // Closed again and again: that is what it is for.
                    let _ = attack(&dial.from(2), 900 + number, seed.below(5), &target);
                    attacks.fetch_add(1, Relaxed);
                }
            });
        }
        let honest: Vec<_> =
            (0..PAIRS).map(|pair| scope.spawn(move || talk(&dial.from(3), 100 + 2 * pair, ROUNDS))).collect();
        let exchanged: Vec<_> = honest.into_iter().map(|pair| pair.join()).collect();
        done.store(true, Relaxed);
        for rounds in exchanged {
            assert_eq!(rounds.unwrap(), ROUNDS);
        }
    });
    assert!(attacks.load(Relaxed) > u64::from(HOSTILE), "the hostile ones did something");
    for reason in ["malformed", "bad_greeting"] {
        assert!(relay.closes(reason) > 0, "{reason}");
    }
}

/// Two clients, `rounds` packets each way. Returns how many went both ways.
fn talk(dial: &Dial<'_>, number: u16, rounds: u32) -> u32 {
    let (mut alice, mut bob) = (dial.connect(number).unwrap(), dial.connect(number + 1).unwrap());
    for round in 0..rounds {
        exchange(&mut alice, &mut bob, &round.to_be_bytes());
        exchange(&mut bob, &mut alice, &round.to_be_bytes());
    }
    rounds
}

fn attack(dial: &Dial<'_>, number: u16, kind: u64, target: &mesh_core::key::NodePublic) -> io::Result<()> {
    match kind {
        // A flood at an honest client.
        0 | 1 => {
            let mut client = dial.connect(number)?;
            let packet = encoded(&Frame::SendPacket { to: *target, packet: &[0; 1400] });
            client.wire.write_all(&packet.repeat(500))
        }
        // Noise after the greeting.
        2 => {
            let mut client = dial.connect(number)?;
            client.wire.write_all(&[0x04; 100_000])
        }
        // Another frame instead of it.
        3 => {
            let (mut stream, _) = dial.stream()?;
            stream.write_all(&[&upgrade(true)[..], &encoded(&Frame::KeepAlive)].concat())?;
            is_closed_after(&mut stream, 64 << 10);
            Ok(())
        }
        // A knock.
        _ => dial.tcp().map(drop),
    }
}

/// One packet from one to the other. What others send comes in between.
fn exchange(from: &mut Client, to: &mut Client, packet: &[u8]) {
    from.send(&Frame::SendPacket { to: to.key(), packet }).unwrap();
    let sender = from.key();
    let began = std::time::Instant::now();
    while to.next().unwrap() != (Frame::RecvPacket { from: sender, packet }) {
        assert!(began.elapsed() < PATIENCE, "{} bytes did not come", packet.len());
    }
}

/// Whether the stream ends after at most `bytes` more bytes.
fn is_closed_after(wire: &mut dyn support::Wire, bytes: usize) -> bool {
    let mut rest = Vec::new();
    match wire.take(bytes as u64 + 1).read_to_end(&mut rest) {
        Ok(_) => rest.len() <= bytes,
        Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
    }
}
