//! The relay as a machine, spoken to by clients made of frames: what it promises, what it delivers, and what hostile
//! clients can not do to others.

#[path = "../../mesh-core/tests/support/promises.rs"]
mod promises;
mod support;

use core::time::Duration;

use mesh_core::{
    derp::{Frame, PeerGoneReason, frame::PACKET_BYTES},
    disco,
    machine::Machine,
    rng::{Rng, Seed},
    stun,
    time::Instant,
};
use promises::keeps_the_promises;
use relay::{
    ConnId, Input, Output, Rate, Relay,
    admission::{Admission, Policy},
    limits,
    stats::{CloseReason, DropReason},
};
use support::{Lab, Said, address, config, greeting, key};

#[test]
fn the_server_speaks_first_and_then_says_that_the_client_is_in() {
    let mut lab = Lab::open();
    lab.accept(1);
    assert_eq!(lab.heard(1), [Said::ServerKey]);
    lab.send(1, &greeting(1, 0));
    assert_eq!(lab.heard(1), [Said::ServerInfo]);
}

#[test]
fn packets_go_from_one_to_the_other_with_the_sender_stamped_on() {
    let mut lab = Lab::with_clients(2);
    lab.send_packet(1, 2, b"hello");
    lab.send_packet(2, 1, b"");
    assert_eq!(lab.heard(2), [Said::Packet(1, b"hello".to_vec())]);
    assert_eq!(lab.heard(1), [Said::Packet(2, b"".to_vec())]);
}

#[test]
fn frames_may_be_cut_anywhere() {
    let mut lab = Lab::open();
    lab.accept(1);
    lab.join(2);
    let mut bytes = greeting(1, 0);
    Frame::SendPacket { to: key(2), packet: b"hello" }.encode(&mut bytes);
    for byte in bytes {
        lab.send(1, &[byte]);
    }
    assert_eq!(lab.heard(2), [Said::Packet(1, b"hello".to_vec())]);
}

#[test]
fn the_largest_packet_passes_and_one_byte_more_closes() {
    let mut lab = Lab::with_clients(2);
    lab.send_packet(1, 2, &vec![7; PACKET_BYTES]);
    assert_eq!(lab.heard(2), [Said::Packet(1, vec![7; PACKET_BYTES])]);
    lab.send_packet(1, 2, &vec![7; PACKET_BYTES + 1]);
    assert_eq!(lab.closed(1), Some(CloseReason::Malformed));
    assert_eq!(lab.heard(2), [Said::Gone(1, PeerGoneReason::Disconnected)]);
}

#[test]
fn pings_are_answered_and_homes_counted() {
    let mut lab = Lab::with_clients(1);
    lab.send_frame(1, &Frame::Ping(*b"12345678"));
    assert_eq!(lab.heard(1), [Said::Pong(*b"12345678")]);
    for home in [true, true, false] {
        lab.send_frame(1, &Frame::NotePreferred(home));
    }
    let stats = lab.relay.stats();
    assert_eq!((stats.home_moves_in.get(), stats.home_moves_out.get()), (1, 1));
}

#[test]
fn frames_that_are_not_known_are_skipped() {
    let mut lab = Lab::with_clients(2);
    lab.send_frame(1, &Frame::Unknown(0x77));
    lab.send(1, &greeting(1, 9));
    lab.send_packet(1, 2, b"still here");
    assert_eq!(lab.heard(2), [Said::Packet(1, b"still here".to_vec())]);
    assert_eq!(lab.relay.stats().unknown_frames.get(), 2);
}

#[test]
fn a_frame_that_never_ends_takes_little_room() {
    let mut lab = Lab::with_clients(1);
    let never = [&[0x77, 0, 0x0f, 0, 0][..], &vec![0; limits::PARTIAL_BYTES - 5]].concat();
    lab.send(1, &never);
    assert_eq!(lab.closed(1), None);
    lab.send(1, &[0]);
    assert_eq!(lab.closed(1), Some(CloseReason::Malformed));

    lab.accept(2);
    lab.send(2, &never[..=limits::GREETING_BYTES]);
    assert_eq!(lab.closed(2), Some(CloseReason::BadGreeting));
}

#[test]
fn a_first_frame_out_of_order_closes() {
    for frame in [Frame::SendPacket { to: key(2), packet: b"x" }, Frame::Ping([0; 8]), Frame::KeepAlive] {
        let mut lab = Lab::open();
        lab.accept(1);
        lab.send_frame(1, &frame);
        assert_eq!(lab.closed(1), Some(CloseReason::BadGreeting));
    }
}

#[test]
fn frames_of_other_relays_close() {
    for frame in
        [Frame::WatchConns, Frame::ClosePeer(key(2)), Frame::ForwardPacket { from: key(2), to: key(1), packet: b"x" }]
    {
        let mut lab = Lab::with_clients(2);
        lab.send_frame(1, &frame);
        assert_eq!(lab.closed(1), Some(CloseReason::NotAllowed));
        assert_eq!(lab.closed(2), None);
    }
}

#[test]
fn a_recorded_greeting_lets_nobody_in_and_moves_nothing() {
    let mut lab = Lab::with_clients(2);
    lab.accept(9);
    lab.send(9, &greeting(1, 0));
    assert_eq!(lab.closed(9), Some(CloseReason::Replayed));
    lab.send_packet(2, 1, b"to the right one");
    assert_eq!(lab.heard(1), [Said::Packet(2, b"to the right one".to_vec())]);
}

#[test]
fn who_says_nothing_is_closed() {
    let mut lab = Lab::open();
    lab.accept(1);
    lab.send(1, &greeting(1, 0)[..20]);
    lab.pass(limits::GREETING);
    assert_eq!(lab.closed(1), Some(CloseReason::GreetingTimeout));
}

#[test]
fn a_keepalive_comes_within_two_minutes_of_silence() {
    let mut lab = Lab::with_clients(1);
    lab.pass(limits::KEEPALIVE);
    assert_eq!(lab.heard(1), []);
    lab.pass(limits::KEEPALIVE_JITTER);
    assert_eq!(lab.heard(1), [Said::KeepAlive]);
}

#[test]
fn an_unknown_receiver_is_told_for_disco_alone_and_not_too_often() {
    let mut lab = Lab::with_clients(1);
    lab.send_packet(1, 5, b"data");
    assert_eq!(lab.heard(1), []);
    let ping = [&disco::MAGIC[..], &[0; 56]].concat();
    for _ in 0..10 {
        lab.send_packet(1, 5, &ping);
    }
    assert_eq!(lab.heard(1), vec![Said::Gone(5, PeerGoneReason::NotHere); 3]);
    lab.pass(Duration::from_secs(1));
    lab.send_packet(1, 5, &ping);
    assert_eq!(lab.heard(1).len(), 1);
    assert_eq!(lab.relay.stats().drops(DropReason::UnknownDest), 12);
}

#[test]
fn of_two_connections_with_one_key_the_last_to_speak_gets_the_packets() {
    let mut lab = Lab::with_clients(2);
    lab.accept(11);
    lab.send(11, &greeting(1, 1));
    lab.heard(11);
    lab.send_packet(2, 1, b"newest");
    assert_eq!(lab.heard(11), [Said::Packet(2, b"newest".to_vec())]);
    lab.send_frame(1, &Frame::NotePreferred(true));
    lab.send_packet(2, 1, b"speaker");
    assert_eq!(lab.heard(1), [Said::Packet(2, b"speaker".to_vec())]);
    lab.end(1);
    lab.send_packet(2, 1, b"the one left");
    assert_eq!(lab.heard(11), [Said::Packet(2, b"the one left".to_vec())]);
    assert_eq!(lab.heard(2), []);
}

#[test]
fn a_slow_reader_loses_its_oldest_packets_and_delays_nobody() {
    let mut lab = Lab::with_clients(3);
    lab.hold(2);
    for number in 0..100u8 {
        lab.send_packet(1, 2, &[number; 1000]);
        lab.send_packet(1, 3, &[number]);
    }
    assert_eq!(lab.heard(3).len(), 100);
    lab.release(2);
    let heard = lab.heard(2);
    // One was written before the stream was full.
    assert_eq!(heard.len(), 1 + limits::MAIL_PACKETS);
    assert_eq!(heard.last(), Some(&Said::Packet(1, vec![99; 1000])));
    let lost = 99 - limits::MAIL_PACKETS as u64;
    assert_eq!(lab.relay.stats().drops(DropReason::QueueHead), lost);
}

#[test]
fn who_never_reads_is_closed_and_the_others_are_told() {
    let mut lab = Lab::with_clients(2);
    lab.send_packet(2, 1, b"x");
    lab.heard(1);
    lab.hold(2);
    lab.send_packet(1, 2, b"y");
    lab.pass(limits::WRITE_STALL);
    assert_eq!(lab.closed(2), Some(CloseReason::Stalled));
    assert_eq!(lab.heard(1), [Said::Gone(2, PeerGoneReason::Disconnected)]);
}

#[test]
fn who_reads_slowly_stays_and_who_stops_is_closed() {
    let mut lab = Lab::with_clients(2);
    lab.hold(2);
    lab.send_packet(1, 2, b"y");
    for _ in 0..10 {
        lab.pass(limits::WRITE_STALL - Duration::from_secs(1));
        lab.input(Input::Progress { conn: ConnId(2) });
    }
    assert_eq!(lab.closed(2), None);
    lab.pass(limits::WRITE_STALL - Duration::from_secs(1));
    assert_eq!(lab.closed(2), None);
    lab.pass(Duration::from_secs(1));
    assert_eq!(lab.closed(2), Some(CloseReason::Stalled));
}

#[test]
fn two_nodes_with_one_key_hear_of_it() {
    let mut lab = Lab::with_clients(1);
    lab.accept(11);
    lab.send(11, &greeting(1, 1));
    assert_eq!(lab.heard(11), [Said::ServerKey, Said::ServerInfo]);
    for _ in 0..limits::CLONE_TURNS {
        lab.send_frame(1, &Frame::NotePreferred(true));
        lab.send_frame(11, &Frame::NotePreferred(true));
    }
    let told = |heard: Vec<Said>| matches!(&heard[..], [Said::Health(text)] if text.contains("same node key"));
    assert!(told(lab.heard(1)) && told(lab.heard(11)));
    lab.end(1);
    assert_eq!(lab.heard(11), [Said::Health(String::new())]);
}

#[test]
fn one_source_cannot_fill_the_door() {
    let mut lab = Lab::open();
    let full = limits::UNGREETED_OF_SOURCE as u64;
    for id in 0..=full {
        lab.accept(1000 + id);
    }
    assert_eq!(lab.closed(1000 + full), Some(CloseReason::SourceFull));
    assert_eq!(lab.closed(1000), None);
    lab.input(Input::Accepted { conn: ConnId(2), from: address(2) });
    lab.send(2, &greeting(2, 0));
    assert_eq!(lab.heard(2), [Said::ServerKey, Said::ServerInfo]);
    lab.end(1000);
    lab.accept(3000);
    assert_eq!(lab.closed(3000), None);
}

#[test]
fn a_flood_is_slowed_down_and_the_others_are_served() {
    let mut lab = Lab::new(Policy::Open, Some(Rate { bytes_per_second: 100_000, burst_bytes: 0 }));
    for client in 1..=3 {
        lab.join(client);
    }
    for _ in 0..500 {
        lab.send_packet(1, 2, &[0; 1000]);
    }
    assert!(lab.is_paused(1));
    let through = lab.heard(2).len();
    assert!((60..70).contains(&through), "{through} of 500 at once");
    lab.send_packet(3, 2, b"me too");
    assert_eq!(lab.heard(2), [Said::Packet(3, b"me too".to_vec())]);
    for _ in 0..100 {
        lab.pass(Duration::from_millis(100));
    }
    assert!(!lab.is_paused(1));
    assert_eq!(lab.heard(2).iter().filter(|said| matches!(said, Said::Packet(1, _))).count(), 500 - through);
}

#[test]
fn a_flood_past_the_back_pressure_closes() {
    let mut lab = Lab::new(Policy::Open, Some(Rate { bytes_per_second: 1, burst_bytes: 0 }));
    lab.join(1);
    for _ in 0..100 {
        lab.send_packet(1, 2, &[0; 60_000]);
    }
    assert_eq!(lab.closed(1), Some(CloseReason::Flooded));
}

#[test]
fn a_node_waits_for_its_verdict() {
    let mut lab = Lab::new(Policy::Ask, None);
    lab.accept(1);
    lab.send(1, &greeting(1, 0));
    assert_eq!(lab.asked.pop(), Some((ConnId(1), key(1))));
    assert_eq!(lab.heard(1), [Said::ServerKey]);
    lab.input(Input::Admitted { conn: ConnId(1), verdict: Admission::Allowed });
    assert_eq!(lab.heard(1), [Said::ServerInfo]);

    lab.accept(2);
    lab.send(2, &greeting(2, 0));
    lab.input(Input::Admitted { conn: ConnId(2), verdict: Admission::Refused });
    assert_eq!(lab.closed(2), Some(CloseReason::Refused));

    lab.accept(3);
    lab.send(3, &greeting(3, 0));
    lab.pass(limits::ADMISSION);
    assert_eq!(lab.closed(3), Some(CloseReason::Refused));
}

#[test]
fn what_is_no_greeting_closes_and_nobody_notices() {
    let mut lab = Lab::with_clients(2);
    let mut rng = Seed::from_number(1).stream("noise", 0);
    for id in 10..200 {
        lab.accept(id);
        let noise = rng.bytes::<64>();
        lab.send(id, &noise);
        lab.end(id);
    }
    lab.send_packet(1, 2, b"x");
    assert_eq!(lab.heard(2), [Said::Packet(1, b"x".to_vec())]);
}

#[test]
fn stun_is_answered() {
    let mut relay = Relay::new(config(Policy::Open, None));
    let tx = stun::TxId([1; 12]);
    relay.handle_input(Input::Datagram { from: address(9), payload: &stun::request(tx) }, Instant::ZERO);
    let Some(Output::Transmit { to, payload }) = relay.poll_output() else { panic!("no answer") };
    assert_eq!((to, stun::parse_response(&payload)), (address(9), Ok((tx, address(9)))));
}

#[test]
fn the_relay_keeps_the_promises_of_a_machine() {
    let make = |seed: u64| {
        let policy = if seed.is_multiple_of(2) { Policy::Open } else { Policy::Ask };
        Relay::new(config(policy, Some(Rate { bytes_per_second: 1000, burst_bytes: 0 })))
    };
    keeps_the_promises(0..40, 250, make, random_input);
}

fn random_input(relay: &mut Relay, rng: &mut Rng, step: u8, now: Instant) {
    let number = 1 + rng.below(6) as u8;
    let conn = ConnId(u64::from(number));
    let mut bytes = Vec::new();
    match rng.below(12) {
        0 | 1 => return relay.handle_input(Input::Accepted { conn, from: address(number) }, now),
        2 => bytes = greeting(number, step),
        3 => {
            let verdict = [Admission::Allowed, Admission::Refused, Admission::Unreachable][rng.below(3) as usize];
            return relay.handle_input(Input::Admitted { conn, verdict }, now);
        }
        4 if rng.below(4) == 0 => return relay.handle_input(Input::Closed { conn }, now),
        4..=6 => return relay.handle_input(Input::Writable { conn }, now),
        7 => Frame::Ping(rng.bytes()).encode(&mut bytes),
        8 if rng.below(4) == 0 => bytes = rng.bytes::<40>().to_vec(),
        _ => {
            let packet = vec![step; rng.below(2000) as usize];
            Frame::SendPacket { to: key(1 + rng.below(7) as u8), packet: &packet }.encode(&mut bytes);
        }
    }
    relay.handle_input(Input::Received { conn, bytes: &bytes }, now);
}
