//! Our node against boringtun, another implementation of WireGuard, in both roles.
//!
//! Ours is a [`support::End`], that is, a whole node with its data plane; theirs is a `Tunn` in a thin harness. The
//! clock of boringtun is a mock that the lab moves together with ours; its handshake stamps begin at the host's
//! calendar, which does no harm because each end only compares the stamps of the other with each other.

mod support;

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use boringtun::{
    noise::{Tunn, TunnResult, errors::WireGuardError, rate_limiter::RateLimiter},
    x25519,
};
use mock_instant::MockClock;

use mesh_core::{
    dataplane::DropReason,
    key::PresharedKey,
    machine::Machine,
    node::{Event, NodeConfig, Output},
    path::PathAddr,
    rng::{Rng, Seed},
    time::Instant,
    wireguard::identity::MacKeys,
};
use support::{End, MTU, address, config, packet, peer, private};

const SECOND: Duration = Duration::from_secs(1);
const PSK: [u8; 32] = [77; 32];

#[test]
fn boringtun_responds_to_our_handshake_and_the_first_packet_is_not_lost() {
    let mut lab = Lab::new();
    let hello = packet(1, 2, b"hello");
    lab.ours.send(&hello, lab.now);
    lab.settle();
    assert_eq!(lab.theirs.delivered, [hello]);
    assert_eq!(lab.kinds(), [(Side::Ours, 1), (Side::Theirs, 2), (Side::Ours, 4)]);

    let answer = packet(2, 1, b"answer");
    lab.theirs.send(&answer);
    lab.settle();
    assert_eq!(lab.ours.delivered, [answer]);
    lab.assert_clean();
}

#[test]
fn boringtun_initiates_a_handshake_and_its_first_packet_is_not_lost() {
    let mut lab = Lab::new();
    let hello = packet(2, 1, b"hello");
    lab.theirs.send(&hello);
    lab.settle();
    assert_eq!(lab.ours.delivered, [hello]);
    // A keepalive of its own confirms the session before the packet that had waited.
    assert_eq!(lab.kinds(), [(Side::Theirs, 1), (Side::Ours, 2), (Side::Theirs, 4), (Side::Theirs, 4)]);
    assert_eq!(lab.carried[2].1.len(), 32);

    let answer = packet(1, 2, b"answer");
    lab.ours.send(&answer, lab.now);
    lab.settle();
    assert_eq!(lab.theirs.delivered, [answer]);
    lab.assert_clean();
}

#[test]
fn packets_of_all_sizes_pass_both_ways() {
    let mut lab = Lab::with(|ours| ours.peers[0].allowed_ips.push("fd00::2/128".parse().unwrap()), Some(PSK));
    lab.ours.send(&packet(1, 2, b"first"), lab.now);
    lab.settle();
    let mut rng = Seed::from_number(4).stream("sizes", 0);
    for payload in 0..=MTU - 20 {
        let content: Vec<u8> = (0..payload).map(|_| rng.u32() as u8).collect();
        lab.carried.clear();
        let (there, back) = if payload % 7 == 0 && payload <= MTU - 40 {
            (packet_v6(1, 2, &content), packet_v6(2, 1, &content))
        } else {
            (packet(1, 2, &content), packet(2, 1, &content))
        };
        lab.ours.send(&there, lab.now);
        lab.theirs.send(&back);
        lab.settle();
        assert_eq!(lab.theirs.delivered.pop().as_ref(), Some(&there), "{payload} bytes to boringtun");
        assert_eq!(lab.ours.delivered.pop().as_ref(), Some(&back), "{payload} bytes from boringtun");

        // We pad to sixteen, but not beyond the MTU; boringtun does not pad at all.
        let [(Side::Ours, to_them), (Side::Theirs, to_us)] = &lab.carried[..] else { panic!("{:?}", lab.kinds()) };
        assert_eq!(to_them.len() - 32, there.len().next_multiple_of(16).min(MTU));
        assert_eq!(to_us.len() - 32, back.len());
    }
    lab.assert_clean();
}

#[test]
fn boringtun_responds_when_we_rekey_and_no_packet_is_lost() {
    let mut lab = Lab::new();
    lab.ours.send(&packet(1, 2, b"begin"), lab.now);
    lab.settle();
    lab.talk_for(400);
    assert_eq!((lab.theirs.delivered.len(), lab.ours.delivered.len()), (401, 400));
    // At 0, 120, 240 and 360 seconds, all by us.
    assert_eq!((lab.count(Side::Ours, 1), lab.count(Side::Theirs, 1)), (4, 0));
    lab.assert_clean();
}

#[test]
fn boringtun_initiates_the_rekeys_of_a_session_that_it_began_and_no_packet_is_lost() {
    let mut lab = Lab::new();
    lab.theirs.send(&packet(2, 1, b"begin"));
    lab.settle();
    lab.talk_for(400);
    assert_eq!((lab.theirs.delivered.len(), lab.ours.delivered.len()), (400, 401));
    assert_eq!((lab.count(Side::Ours, 1), lab.count(Side::Theirs, 1)), (0, 4));
    lab.assert_clean();
}

#[test]
fn boringtun_initiates_at_165_seconds_when_it_only_receives() {
    let mut lab = Lab::new();
    lab.theirs.send(&packet(2, 1, b"begin"));
    lab.settle();
    for second in 0..175u32 {
        lab.ours.send(&packet(1, 2, &second.to_be_bytes()), lab.now);
        lab.run_for(SECOND);
    }
    assert_eq!(lab.theirs.delivered.len(), 175);
    assert_eq!((lab.count(Side::Ours, 1), lab.count(Side::Theirs, 1)), (0, 2));
    lab.assert_clean();
}

#[test]
fn boringtun_initiates_while_we_do_and_both_go_on() {
    let mut lab = Lab::new();
    lab.ours.send(&packet(1, 2, b"a"), lab.now);
    lab.theirs.send(&packet(2, 1, b"b"));
    let to_them = lab.ours.sent.pop_front().unwrap().1;
    let to_us = lab.theirs.sent.pop_front().unwrap();
    lab.deliver(Side::Ours, to_them);
    lab.deliver(Side::Theirs, to_us);
    // boringtun forgets its own handshake and begins another at once, which comes too soon after the first for us.
    lab.run_for(7 * SECOND);
    assert_eq!((lab.theirs.delivered.len(), lab.ours.delivered.len()), (1, 1));
    lab.talk_for(300);
    assert_eq!((lab.theirs.delivered.len(), lab.ours.delivered.len()), (301, 301));
    assert!(lab.count(Side::Ours, 1) + lab.count(Side::Theirs, 1) <= 8, "{:?}", lab.kinds());
}

#[test]
fn boringtun_initiates_again_after_a_restart() {
    let mut lab = Lab::new();
    lab.ours.send(&packet(1, 2, b"before"), lab.now);
    lab.run_for(30 * SECOND);
    lab.theirs = Theirs::new(Some(PSK), None, None);
    lab.theirs.send(&packet(2, 1, b"after"));
    lab.settle();
    assert_eq!(lab.ours.delivered, [packet(2, 1, b"after")]);
    lab.ours.send(&packet(1, 2, b"welcome"), lab.now);
    lab.settle();
    assert_eq!(lab.theirs.delivered, [packet(1, 2, b"welcome")]);
}

#[test]
fn boringtun_responds_again_after_our_restart() {
    let mut lab = Lab::new();
    lab.theirs.send(&packet(2, 1, b"before"));
    lab.run_for(30 * SECOND);
    let mut again = config(1, vec![peer(2)]);
    again.seed = Seed::from_number(99);
    lab.ours = End::new(1, again, lab.now);
    lab.ours.send(&packet(1, 2, b"after"), lab.now);
    lab.settle();
    assert_eq!(lab.theirs.delivered, [packet(1, 2, b"after")]);
    lab.theirs.send(&packet(2, 1, b"welcome"));
    lab.settle();
    assert_eq!(lab.ours.delivered, [packet(2, 1, b"welcome")]);
}

#[test]
fn lost_handshake_messages_are_repeated_by_either_end() {
    // What is lost: ours, theirs. Each of the first messages in turn.
    for lost in 0..4 {
        for begins in [Side::Ours, Side::Theirs] {
            let mut lab = Lab::new();
            lab.lose = vec![lost];
            lab.send(begins, b"first");
            lab.run_for(16 * SECOND);
            lab.send(begins, b"second");
            lab.send(begins.other(), b"back");
            lab.run_for(SECOND);
            let (to, back) = match begins {
                Side::Ours => (&lab.theirs.delivered, &lab.ours.delivered),
                Side::Theirs => (&lab.ours.delivered, &lab.theirs.delivered),
            };
            assert!(to.iter().any(|p| p.ends_with(b"second")), "{begins:?} begins, {lost} is lost: {:?}", lab.kinds());
            assert!(back.iter().any(|p| p.ends_with(b"back")), "{begins:?} begins, {lost} is lost: {:?}", lab.kinds());
            // A lost handshake message costs no data; a lost data message is lost.
            assert_eq!(to.len(), if lab.lost_data > 0 { 1 } else { 2 }, "{begins:?} begins, {lost} is lost");
        }
    }
}

#[test]
fn boringtun_demands_a_cookie_from_us_and_gets_it() {
    let mut lab = Lab::new();
    // A limit of nothing: always under load.
    let limiter = Arc::new(RateLimiter::new(&public(2), 0));
    lab.theirs = Theirs::new(Some(PSK), None, Some(limiter));
    lab.ours.send(&packet(1, 2, b"first"), lab.now);
    lab.settle();
    assert_eq!(lab.kinds(), [(Side::Ours, 1), (Side::Theirs, 3)]);
    lab.run_for(4 * SECOND);
    assert_eq!(lab.carried.len(), 2, "the cookie waits for the next initiation, which is not sent early");
    lab.run_for(2 * SECOND);
    assert_eq!(lab.theirs.delivered, [packet(1, 2, b"first")]);
    assert_eq!(lab.kinds()[2..], [(Side::Ours, 1), (Side::Theirs, 2), (Side::Ours, 4)]);
    let second_mac = |at: usize| &lab.carried[at].1[132..];
    assert_eq!(second_mac(0), [0; 16]);
    assert_ne!(second_mac(2), [0; 16]);

    // The cookie is good for one rekey and then too old; either way sessions follow each other.
    lab.talk_for(400);
    assert_eq!((lab.theirs.delivered.len(), lab.ours.delivered.len()), (401, 400));
}

#[test]
fn boringtun_initiates_and_gives_us_the_cookie_that_we_demand_under_load() {
    let mut lab = Lab::new();
    lab.flood();
    lab.theirs.send(&packet(2, 1, b"first"));
    lab.settle();
    assert_eq!(lab.kinds(), [(Side::Theirs, 1), (Side::Ours, 3)]);
    assert!(lab.theirs.errors.is_empty(), "{:?}", lab.theirs.errors);
    for _ in 0..6 {
        lab.run_for(SECOND);
        lab.flood();
    }
    assert_eq!(lab.ours.delivered, [packet(2, 1, b"first")]);
    let initiations: Vec<_> = lab.carried.iter().filter(|(_, d)| d[0] == 1).collect();
    assert_ne!(initiations[1].1[132..], [0; 16]);
}

#[test]
fn boringtun_responds_with_the_cookie_that_we_demand_under_load() {
    let mut lab = Lab::new();
    lab.ours.send(&packet(1, 2, b"first"), lab.now);
    let initiation = lab.ours.sent.pop_front().unwrap().1;
    lab.deliver(Side::Ours, initiation);
    lab.flood();
    lab.settle();
    assert_eq!(lab.kinds(), [(Side::Ours, 1), (Side::Theirs, 2), (Side::Ours, 3)]);
    for _ in 0..6 {
        lab.run_for(SECOND);
        lab.flood();
    }
    assert_eq!(lab.theirs.delivered, [packet(1, 2, b"first")]);
    let response = &lab.carried.iter().filter(|(_, d)| d[0] == 2).nth(1).unwrap().1;
    assert_ne!(response[76..], [0; 16]);
}

#[test]
fn without_a_preshared_key_it_works_too_and_with_another_it_does_not() {
    let without = |ours: &mut NodeConfig| ours.peers[0].preshared_key = None;
    let mut lab = Lab::with(without, None);
    lab.ours.send(&packet(1, 2, b"plain"), lab.now);
    lab.settle();
    assert_eq!(lab.theirs.delivered.len(), 1);

    // All zeros is the same as none.
    let zeros = |ours: &mut NodeConfig| ours.peers[0].preshared_key = Some(PresharedKey::default());
    let mut lab = Lab::with(zeros, None);
    lab.theirs.send(&packet(2, 1, b"plain"));
    lab.settle();
    assert_eq!(lab.ours.delivered.len(), 1);

    for begins in [Side::Ours, Side::Theirs] {
        let mut lab = Lab::with(|_| (), Some([78; 32]));
        lab.send(begins, b"never");
        lab.run_for(30 * SECOND);
        assert!(lab.ours.delivered.is_empty() && lab.theirs.delivered.is_empty());
        assert_eq!(lab.count(Side::Ours, 4) + lab.count(Side::Theirs, 4), 0);
    }
}

#[test]
fn data_that_is_not_answered_gets_a_keepalive_from_either_end() {
    let mut lab = Lab::new();
    lab.ours.send(&packet(1, 2, b"first"), lab.now);
    lab.run_for(30 * SECOND);
    lab.carried.clear();

    lab.ours.send(&packet(1, 2, b"x"), lab.now);
    lab.run_for(12 * SECOND);
    assert_eq!(lab.kinds(), [(Side::Ours, 4), (Side::Theirs, 4)]);
    assert_eq!(lab.carried[1].1.len(), 32);

    // boringtun counts its 15 seconds without an answer from the last packet received, so one comes just before.
    lab.ours.send(&packet(1, 2, b"y"), lab.now);
    lab.run_for(SECOND);
    lab.carried.clear();
    lab.theirs.send(&packet(2, 1, b"x"));
    lab.run_for(9 * SECOND);
    assert_eq!(lab.carried.len(), 1);
    lab.run_for(2 * SECOND);
    assert_eq!(lab.kinds(), [(Side::Theirs, 4), (Side::Ours, 4)]);
    assert_eq!(lab.carried[1].1.len(), 32);
    lab.run_for(60 * SECOND);
    assert_eq!(lab.carried.len(), 2, "keepalives are not answered");
    lab.assert_clean();
}

#[test]
fn persistent_keepalives_are_understood_both_ways() {
    let mut lab = Lab::with(|ours| ours.peers[0].persistent_keepalive = Some(25 * SECOND), Some(PSK));
    lab.run_for(100 * SECOND);
    assert!(lab.count(Side::Ours, 4) >= 4);
    lab.assert_clean();

    let mut lab = Lab::new();
    lab.theirs = Theirs::new(Some(PSK), Some(25), None);
    lab.run_for(100 * SECOND);
    assert_eq!(lab.ours.sessions_established(), 1, "boringtun begins by itself");
    assert!(lab.count(Side::Theirs, 4) >= 3);
    assert!(lab.ours.deadline().is_some());
    lab.assert_clean();
}

#[test]
fn both_are_back_after_half_an_hour_of_silence() {
    for begins in [Side::Ours, Side::Theirs] {
        let mut lab = Lab::new();
        lab.ours.send(&packet(1, 2, b"first"), lab.now);
        lab.run_for(1800 * SECOND);
        assert_eq!(lab.ours.node.tunnel_count(), 0);
        lab.send(begins, b"again");
        lab.run_for(SECOND);
        lab.send(begins.other(), b"again");
        lab.run_for(SECOND);
        assert_eq!((lab.theirs.delivered.len(), lab.ours.delivered.len()), (2, 1));
    }
}

#[test]
fn nothing_is_taken_twice_by_us() {
    let mut lab = Lab::new();
    lab.theirs.send(&packet(2, 1, b"first"));
    lab.settle();
    lab.talk_for(130);
    let delivered = lab.ours.delivered.len();
    let carried = core::mem::take(&mut lab.carried);
    let before = format!("{:?}", lab.ours.node.status(lab.now).peers);
    for (from, datagram) in carried {
        if from == Side::Theirs {
            lab.ours.receive(datagram, address(66), lab.now);
            assert!(lab.ours.sent.is_empty(), "a replay is not answered");
        }
    }
    assert_eq!(lab.ours.delivered.len(), delivered);
    assert_eq!(before, format!("{:?}", lab.ours.node.status(lab.now).peers), "and moves nothing");
    assert_eq!(lab.ours.node.status(lab.now).drops.get(DropReason::ReplayedHandshake), 2);
    assert!(lab.ours.drops.get(DropReason::Replayed) > 100);
}

#[test]
fn a_late_packet_is_taken_once_even_when_the_window_has_moved_on() {
    let mut lab = Lab::new();
    lab.theirs.send(&packet(2, 1, b"first"));
    lab.settle();
    for number in 0..5_000u32 {
        lab.theirs.send(&packet(2, 1, &number.to_be_bytes()));
    }
    let mut datagrams: Vec<_> = lab.theirs.sent.drain(..).collect();
    datagrams.reverse();
    for datagram in datagrams.iter().chain(&datagrams) {
        lab.ours.receive(datagram.clone(), lab.theirs.address, lab.now);
    }
    assert_eq!(lab.ours.delivered.len(), 5_001);
    assert_eq!(lab.ours.drops.get(DropReason::Replayed), 5_000);
}

#[test]
fn changed_handshake_messages_of_boringtun_change_nothing() {
    // The second MAC means nothing without load, so the bits before it are what counts.
    let mut lab = Lab::new();
    lab.theirs.send(&packet(2, 1, b"first"));
    let initiation = lab.theirs.sent.pop_front().unwrap();
    for changed in one_bit_off(&initiation, 132).chain(one_bit_off_with_mac(&initiation, 1)) {
        lab.later(Duration::from_millis(3));
        lab.ours.receive(changed, lab.theirs.address, lab.now);
        assert!(lab.ours.sent.is_empty());
    }
    lab.deliver(Side::Theirs, initiation);
    lab.settle();
    assert_eq!(lab.ours.delivered.len(), 1, "the right one still does");

    let mut lab = Lab::new();
    lab.ours.send(&packet(1, 2, b"first"), lab.now);
    let initiation = lab.ours.sent.pop_front().unwrap().1;
    lab.deliver(Side::Ours, initiation);
    let response = lab.theirs.sent.pop_front().unwrap();
    let begin = lab.now;
    for changed in one_bit_off(&response, 76).chain(one_bit_off_with_mac(&response, 1)) {
        lab.later(Duration::from_millis(2));
        lab.ours.receive(changed, lab.theirs.address, lab.now);
        assert!(lab.ours.sent.is_empty());
    }
    assert!(lab.now < begin + 5 * SECOND);
    lab.deliver(Side::Theirs, response);
    lab.settle();
    assert_eq!(lab.theirs.delivered.len(), 1);
}

#[test]
fn boringtun_refuses_our_messages_when_a_bit_is_changed() {
    let mut lab = Lab::new();
    lab.ours.send(&packet(1, 2, b"first"), lab.now);
    let initiation = lab.ours.sent.pop_front().unwrap().1;
    for changed in one_bit_off(&initiation, 132) {
        lab.theirs.receive(&changed, lab.ours.address);
        assert!(lab.theirs.sent.is_empty());
    }
    lab.deliver(Side::Ours, initiation);
    lab.settle();
    lab.ours.send(&packet(1, 2, b"second"), lab.now);
    let data = lab.ours.sent.pop_front().unwrap().1;
    for changed in one_bit_off(&data, data.len()) {
        lab.theirs.receive(&changed, lab.ours.address);
    }
    assert_eq!(lab.theirs.delivered.len(), 1);
    lab.deliver(Side::Ours, data);
    assert_eq!(lab.theirs.delivered.len(), 2);
}

#[test]
fn garbage_between_the_messages_disturbs_nobody() {
    let mut lab = Lab::new();
    let mut rng = Seed::from_number(8).stream("garbage", 0);
    lab.ours.send(&packet(1, 2, b"begin"), lab.now);
    for second in 0..150u32 {
        for _ in 0..10 {
            let garbage = garbage(&mut rng, &lab.carried);
            lab.ours.receive(garbage.clone(), address(66), lab.now);
            lab.theirs.receive(&garbage, address(66));
        }
        // What is said to the stranger goes nowhere.
        lab.ours.sent.retain(|(to, _)| *to == PathAddr::Udp(lab.theirs.address));
        lab.ours.send(&packet(1, 2, &second.to_be_bytes()), lab.now);
        lab.theirs.send(&packet(2, 1, &second.to_be_bytes()));
        lab.run_for(SECOND);
    }
    assert_eq!((lab.theirs.delivered.len(), lab.ours.delivered.len()), (151, 150));
    let moved = lab.ours.said.iter().any(|o| matches!(o, Output::Event(Event::PathChanged { .. })));
    assert!(!moved, "garbage moves nobody");
}

/// Which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Ours,
    Theirs,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Ours => Self::Theirs,
            Self::Theirs => Self::Ours,
        }
    }
}

/// boringtun as peer number 2, with what drives it.
struct Theirs {
    tunn: Tunn,
    address: SocketAddr,
    sent: VecDeque<Vec<u8>>,
    delivered: Vec<Vec<u8>>,
    errors: Vec<WireGuardError>,
}

impl Theirs {
    fn new(psk: Option<[u8; 32]>, persistent_keepalive: Option<u16>, limiter: Option<Arc<RateLimiter>>) -> Self {
        let secret = x25519::StaticSecret::from(private(2).to_bytes());
        let tunn = Tunn::new(secret, public(1), psk, persistent_keepalive, 7, limiter);
        Self { tunn, address: address(2), sent: VecDeque::new(), delivered: Vec::new(), errors: Vec::new() }
    }

    fn send(&mut self, packet: &[u8]) {
        self.with(|tunn, buffer| tunn.encapsulate(packet, buffer));
    }

    fn receive(&mut self, datagram: &[u8], from: SocketAddr) {
        // An empty datagram means something else to boringtun.
        if datagram.is_empty() {
            return;
        }
        let answered = self.with(|tunn, buffer| tunn.decapsulate(Some(from.ip()), datagram, buffer));
        // What waited for a session goes out after a message that made one.
        if answered {
            while self.with(|tunn, buffer| tunn.decapsulate(None, &[], buffer)) {}
        }
    }

    fn tick(&mut self) {
        self.with(|tunn, buffer| tunn.update_timers(buffer));
    }

    /// Whether there was something for the network.
    fn with(&mut self, act: impl for<'b> FnOnce(&mut Tunn, &'b mut [u8]) -> TunnResult<'b>) -> bool {
        let mut buffer = vec![0; 70_000];
        match act(&mut self.tunn, &mut buffer) {
            TunnResult::Done => {}
            // Said at every tick while nothing is left to be done.
            TunnResult::Err(WireGuardError::ConnectionExpired) => {}
            TunnResult::Err(error) => self.errors.push(error),
            TunnResult::WriteToNetwork(datagram) => {
                self.sent.push_back(datagram.to_vec());
                return true;
            }
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                self.delivered.push(packet.to_vec());
            }
        }
        false
    }
}

/// Our node as number 1, boringtun as number 2, and a pipe between them.
struct Lab {
    ours: End,
    theirs: Theirs,
    now: Instant,
    carried: Vec<(Side, Vec<u8>)>,
    /// Datagrams that are lost, by their number.
    lose: Vec<usize>,
    lost_data: usize,
    stranger: Vec<u8>,
}

impl Lab {
    fn new() -> Self {
        Self::with(|_| (), Some(PSK))
    }

    fn with(change: impl FnOnce(&mut NodeConfig), psk: Option<[u8; 32]>) -> Self {
        let now = Instant::from_secs(1);
        MockClock::set_time(SECOND);
        let mut settings = config(1, vec![peer(2)]);
        change(&mut settings);
        let mut stranger = End::new(9, config(9, vec![peer(1)]), now);
        stranger.send(&packet(9, 1, b"x"), now);
        let (_, stranger) = stranger.sent.pop_front().expect("a first packet makes an initiation");
        let (ours, theirs) = (End::new(1, settings, now), Theirs::new(psk, None, None));
        Self { ours, theirs, now, carried: Vec::new(), lose: Vec::new(), lost_data: 0, stranger }
    }

    fn send(&mut self, side: Side, payload: &[u8]) {
        match side {
            Side::Ours => self.ours.send(&packet(1, 2, payload), self.now),
            Side::Theirs => self.theirs.send(&packet(2, 1, payload)),
        }
    }

    fn deliver(&mut self, from: Side, datagram: Vec<u8>) {
        self.carried.push((from, datagram.clone()));
        if self.lose.contains(&(self.carried.len() - 1)) {
            self.lost_data += usize::from(datagram[0] == 4 && datagram.len() > 32);
            return;
        }
        match from {
            Side::Ours => self.theirs.receive(&datagram, self.ours.address),
            Side::Theirs => self.ours.receive(datagram, self.theirs.address, self.now),
        }
    }

    /// Carries datagrams until none is left.
    fn settle(&mut self) {
        loop {
            if let Some((to, datagram)) = self.ours.sent.pop_front() {
                assert_eq!(to, PathAddr::Udp(self.theirs.address));
                self.deliver(Side::Ours, datagram);
            } else if let Some(datagram) = self.theirs.sent.pop_front() {
                self.deliver(Side::Theirs, datagram);
            } else {
                return;
            }
        }
    }

    /// Moves both clocks, and lets boringtun see it.
    fn later(&mut self, duration: Duration) {
        self.now += duration;
        MockClock::set_time(Duration::from_nanos(self.now.as_nanos()));
    }

    /// Lets time pass, with timers and datagrams.
    fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        self.settle();
        while self.now < end {
            self.later(Duration::from_millis(250).min(end.since(self.now)));
            self.theirs.tick();
            if self.ours.deadline().is_some_and(|at| at <= self.now) {
                self.ours.timeout(self.now);
            }
            self.settle();
        }
    }

    /// One packet each way every second.
    fn talk_for(&mut self, seconds: u32) {
        for second in 0..seconds {
            self.send(Side::Ours, &second.to_be_bytes());
            self.send(Side::Theirs, &second.to_be_bytes());
            self.run_for(SECOND);
        }
    }

    /// Brings our end under load: more initiations of a stranger than it opens without cookies.
    fn flood(&mut self) {
        let before = core::mem::take(&mut self.ours.sent);
        for _ in 0..700 {
            self.ours.receive(self.stranger.clone(), address(66), self.now);
        }
        self.ours.sent = before;
    }

    fn kinds(&self) -> Vec<(Side, u8)> {
        self.carried.iter().map(|(from, datagram)| (*from, datagram[0])).collect()
    }

    fn count(&self, side: Side, kind: u8) -> usize {
        self.kinds().into_iter().filter(|carried| *carried == (side, kind)).count()
    }

    /// Nobody had anything to complain about.
    fn assert_clean(&self) {
        assert!(self.theirs.errors.is_empty(), "{:?}", self.theirs.errors);
        assert_eq!((self.ours.drops.total(), self.ours.node.status(self.now).drops.total()), (0, 0));
        assert!(self.ours.node.poll_timeout().is_none_or(|deadline| deadline.at > self.now));
    }
}

fn public(number: u8) -> x25519::PublicKey {
    x25519::PublicKey::from(*private(number).public().as_bytes())
}

fn packet_v6(from: u8, to: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 40];
    bytes[0] = 0x60;
    bytes[4..6].copy_from_slice(&u16::try_from(payload.len()).expect("a short payload").to_be_bytes());
    bytes[6] = 17;
    (bytes[8], bytes[23], bytes[24], bytes[39]) = (0xfd, from, 0xfd, to);
    bytes.extend_from_slice(payload);
    bytes
}

/// `message` with each of the bits of its first `bytes` bytes changed in turn.
fn one_bit_off(message: &[u8], bytes: usize) -> impl Iterator<Item = Vec<u8>> {
    (0..bytes * 8).map(|bit| {
        let mut changed = message.to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        changed
    })
}

/// The same for what the first MAC covers, by somebody who knows the receiver's key and makes that MAC anew. Type and
/// sender's index are left alone: the handshake's transcript does not cover them, so nothing but the MAC protects them.
fn one_bit_off_with_mac(message: &[u8], receiver: u8) -> impl Iterator<Item = Vec<u8>> {
    let keys = MacKeys::new(&private(receiver).public());
    let covered = message.len() - 32;
    one_bit_off(message, covered).skip(8 * 8).map(move |mut changed| {
        let mac = keys.mac1(&changed[..covered]);
        changed[covered..covered + 16].copy_from_slice(&mac);
        changed
    })
}

/// Bytes that mean nothing, or a changed part of something that was said before.
fn garbage(rng: &mut Rng, carried: &[(Side, Vec<u8>)]) -> Vec<u8> {
    if rng.below(2) == 0 || carried.is_empty() {
        let lengths = [1, 4, 31, 32, 64, 92, 148, 1452];
        let mut bytes = vec![0; lengths[rng.below(lengths.len() as u64) as usize]];
        rng.fill(&mut bytes);
        if rng.below(2) == 0 && bytes.len() >= 4 {
            bytes[..4].copy_from_slice(&[1 + rng.below(4) as u8, 0, 0, 0]);
        }
        return bytes;
    }
    let mut bytes = carried[rng.below(carried.len() as u64) as usize].1.clone();
    let at = rng.below(bytes.len() as u64 - 16) as usize;
    bytes[at] ^= 1 + rng.below(255) as u8;
    bytes
}
