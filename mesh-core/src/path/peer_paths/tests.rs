use super::*;
use crate::{key::NodePublic, rng::Seed};

#[test]
fn the_relay_comes_first_and_activity_begins_a_discovery() {
    let mut paths = idle();
    assert_eq!(paths.selection(), Selection::Relay(region()));
    assert_eq!(drain(&mut paths), [Output::Selected(Selection::Relay(region()))]);
    assert_eq!(paths.poll_timeout(), None, "an idle peer is left alone");

    paths.note_activity(secs(1));
    let sent = drain(&mut paths);
    assert_eq!(pinged(&sent), [addr(1), addr(2)]);
    assert_eq!(sent.last(), Some(&call()), "pings first, so that our NAT is open when the peer hears");
}

#[test]
fn what_comes_to_be_known_while_there_was_nobody_to_ask_is_tried_at_once() {
    let mut paths = PeerPaths::new(config(), Seed::from_number(1).stream("paths", 0));
    paths.set_own_endpoints(&[addr(100)], Instant::ZERO);
    paths.note_activity(secs(1));
    assert_eq!(pinged(&drain(&mut paths)), []);
    paths.set_endpoints(&[addr(1)], Some(region()), millis(1060));
    let sent = drain(&mut paths);
    assert_eq!((pinged(&sent), sent.contains(&call())), (vec![addr(1)], true));
    // What has begun is not begun again so soon.
    paths.set_endpoints(&[addr(1), addr(2)], Some(region()), millis(1070));
    assert_eq!(pinged(&drain(&mut paths)), []);
}

#[test]
fn a_pong_selects_the_address_that_was_pinged() {
    let mut paths = active();
    let tx = tx_to(&drain(&mut paths), addr(1));
    paths.handle_pong(&pong(tx), Via::Direct(addr(77)), millis(1020));
    assert_eq!(paths.selection(), Selection::Direct(addr(1)));
    assert_eq!(paths.latency(), Some(Duration::from_millis(20)));
}

#[test]
fn a_pong_that_answers_nothing_changes_nothing() {
    let mut paths = active();
    let tx = tx_to(&drain(&mut paths), addr(1));
    paths.handle_pong(&pong(TxId([0; 12])), Via::Direct(addr(1)), millis(1020));
    paths.handle_pong(&pong(tx), Via::Relay(region()), millis(1020));
    paths.handle_pong(&pong(tx), Via::Direct(addr(1)), secs(6));
    assert_eq!(paths.selection(), Selection::Relay(region()));
    assert_eq!(drain(&mut paths), []);
    assert_eq!(paths.stats().unknown_pongs, 3);
}

#[test]
fn a_ping_from_an_unconfirmed_address_is_answered_and_pinged_back_at_once() {
    let mut paths = idle();
    drain(&mut paths);
    paths.handle_ping(&ping(1), Via::Direct(addr(9)), secs(1));
    let sent = drain(&mut paths);
    let answer = Message::Pong(Pong { tx: TxId([1; 12]), observed: addr(9) });
    assert_eq!(sent[0], Output::Send { via: Via::Direct(addr(9)), message: answer, reach: Reach::Peer });
    assert_eq!(pinged(&sent), [addr(9)]);
    assert_eq!(paths.selection(), Selection::Relay(region()), "a ping alone proves nothing");

    paths.handle_pong(&pong(tx_to(&sent, addr(9))), Via::Direct(addr(9)), millis(1010));
    assert_eq!(paths.selection(), Selection::Direct(addr(9)));
    paths.handle_ping(&ping(2), Via::Direct(addr(9)), secs(2));
    assert_eq!(pinged(&drain(&mut paths)), [], "confirmed already");
}

#[test]
fn pings_back_to_an_address_that_never_answers_end() {
    let mut paths = idle();
    for number in 0..200 {
        paths.handle_ping(&ping(1), Via::Direct(addr(9)), millis(number * 300));
    }
    assert_eq!(paths.stats().pings_back, 3);
    assert_eq!(paths.stats().pings_answered, 200);
    assert_eq!(paths.selection(), Selection::Relay(region()));
}

#[test]
fn a_flood_of_pings_draws_a_bounded_answer() {
    let mut paths = idle();
    drain(&mut paths);
    for port in 1..1000 {
        paths.handle_ping(&ping(1), Via::Direct(addr(port)), secs(1));
    }
    assert_eq!(paths.stats().pings_answered, 32);
    assert_eq!(paths.stats().pings_back, 8);
    assert_eq!(drain(&mut paths).len(), 40);
    assert!(paths.candidate_count() <= crate::limits::CANDIDATES_PER_PEER);
}

#[test]
fn an_address_of_which_only_a_ping_speaks_is_pinged_twice_for_it() {
    let mut paths = idle();
    paths.handle_ping(&ping(1), Via::Direct(addr(9)), secs(1));
    paths.handle_call_me_maybe(&[addr(5)], secs(1));
    let is_nine = |outputs: &[Output]| pinged(outputs).into_iter().filter(|to| *to == addr(9)).count();
    assert_eq!((is_nine(&drain(&mut paths)), paths.stats().pings_without_credit), (2, 0));
    paths.handle_timeout(millis(1250));
    assert_eq!((is_nine(&drain(&mut paths)), paths.stats().pings_without_credit), (0, 1));
}

#[test]
fn an_address_that_is_forgotten_while_it_waits_to_be_pinged_is_not_pinged() {
    let mut paths = idle();
    let run = |paths: &mut PeerPaths, from, until| {
        let mut nines = 0;
        for at in from..until {
            paths.handle_timeout(millis(at));
            nines += pinged(&drain(paths)).into_iter().filter(|to| *to == addr(9)).count();
        }
        nines
    };
    paths.handle_ping(&ping(1), Via::Direct(addr(9)), secs(1));
    let listed: Vec<_> = (1000..1034).map(addr).collect();
    paths.set_endpoints(&listed[..24], Some(region()), secs(2));
    paths.handle_call_me_maybe(&listed[24..], secs(2));
    assert_eq!(run(&mut paths, 2000, 4000), 2, "back, and for the call");
    paths.note_activity(millis(45_900));
    assert_eq!(run(&mut paths, 45_901, 46_100), 0, "it is the last of many");
    paths.set_endpoints(&listed[..24], Some(region()), millis(46_100));
    assert_eq!((paths.candidate_count(), run(&mut paths, 46_100, 48_000)), (34, 0));
}

#[test]
fn a_ping_over_the_relay_is_answered_there() {
    let mut paths = idle();
    drain(&mut paths);
    paths.handle_ping(&ping(1), Via::Relay(region()), secs(1));
    let answer = Message::Pong(Pong { tx: TxId([1; 12]), observed: "127.3.3.40:7".parse().unwrap() });
    assert_eq!(drain(&mut paths), [Output::Send { via: Via::Relay(region()), message: answer, reach: Reach::Peer }]);
}

#[test]
fn a_call_me_maybe_is_heeded_twice_and_not_returned() {
    let mut paths = idle();
    drain(&mut paths);
    paths.handle_call_me_maybe(&[addr(5)], secs(1));
    assert_eq!(pinged(&drain(&mut paths)), [addr(1), addr(2), addr(5)]);
    let deadline = paths.poll_timeout().unwrap();
    assert_eq!(deadline.at, millis(1250));
    paths.handle_timeout(deadline.at);
    let again = drain(&mut paths);
    assert_eq!(pinged(&again), [addr(1), addr(2), addr(5)]);
    assert_eq!(again.len(), 3);
    assert_eq!(paths.poll_timeout(), None);
}

#[test]
fn who_was_called_a_moment_ago_is_not_called_back() {
    let mut paths = active();
    assert!(drain(&mut paths).contains(&call()));
    paths.handle_call_me_maybe(&[addr(5)], secs(2));
    assert!(!drain(&mut paths).contains(&call()));
    paths.handle_call_me_maybe(&[addr(5)], secs(6));
    assert!(drain(&mut paths).contains(&call()));
}

#[test]
fn an_empty_call_me_maybe_forgets_nothing_and_a_flood_is_cut_off() {
    let mut paths = idle();
    paths.handle_call_me_maybe(&[addr(5)], secs(1));
    for _ in 0..100 {
        paths.handle_call_me_maybe(&[], secs(1));
    }
    assert_eq!(paths.candidate_count(), 3);
    assert_eq!((paths.stats().calls_heeded, paths.stats().calls_over_budget), (4, 97));
}

#[test]
fn heartbeats_keep_a_path_and_stop_with_the_activity() {
    let mut paths = direct();
    let stopped = run(&mut paths, secs(1), secs(200), Answer::All);
    assert_eq!(paths.stats().doubts, 0);
    assert_eq!(paths.selection(), Selection::Relay(region()), "dropped long after the last packet");
    let beats = stopped.iter().filter(|at| **at > millis(1020)).count();
    assert!((13..=16).contains(&beats), "{beats} in 45 s");
    assert_eq!(paths.poll_timeout(), None);
}

#[test]
fn an_unanswered_heartbeat_sends_both_ways_and_then_only_by_relay() {
    let mut paths = direct();
    run(&mut paths, millis(1020), millis(4000), Answer::None);
    assert_eq!(paths.selection(), Selection::Direct(addr(1)));
    run(&mut paths, millis(4000), millis(4400), Answer::None);
    assert_eq!(paths.selection(), Selection::Both { direct: addr(1), relay: region() });
    run(&mut paths, millis(4400), millis(12_400), Answer::None);
    assert_eq!(paths.selection(), Selection::Both { direct: addr(1), relay: region() });
    run(&mut paths, millis(12_400), millis(12_600), Answer::None);
    assert_eq!(paths.selection(), Selection::Relay(region()));
    assert_eq!((paths.stats().doubts, paths.stats().drops), (1, 1));
}

#[test]
fn a_path_in_doubt_is_asked_again_and_again() {
    let mut paths = direct();
    let beats = run(&mut paths, millis(1020), millis(7500), Answer::None);
    let beats: Vec<_> = beats.into_iter().filter(|at| *at > secs(4)).collect();
    assert!(beats.len() > 10, "{beats:?}");
    assert!(beats.windows(2).all(|pair| pair[1].since(pair[0]) <= Duration::from_millis(300)), "{beats:?}");
}

#[test]
fn a_late_pong_ends_the_doubt() {
    let mut paths = direct();
    run(&mut paths, millis(1020), millis(5000), Answer::None);
    assert_eq!(paths.selection().relay(), Some(region()));
    run(&mut paths, millis(5000), millis(6000), Answer::All);
    assert_eq!(paths.selection(), Selection::Direct(addr(1)));
}

#[test]
fn a_peer_that_turns_up_elsewhere_is_followed_within_the_patience() {
    let mut paths = direct();
    paths.handle_ping(&ping(1), Via::Direct(addr(9)), millis(2000));
    let sent = drain(&mut paths);
    assert_eq!(pinged(&sent), [addr(1), addr(9)], "is it still where it was?");
    paths.handle_pong(&pong(tx_to(&sent, addr(9))), Via::Direct(addr(9)), millis(2020));
    assert_eq!(paths.selection(), Selection::Direct(addr(1)));
    run(&mut paths, millis(2020), millis(2301), Answer::None);
    assert_eq!(paths.selection(), Selection::Direct(addr(9)));
}

#[test]
fn silence_is_looked_into() {
    let mut paths = direct();
    paths.note_silence(millis(1500));
    paths.note_silence(millis(1600));
    assert_eq!(pinged(&drain(&mut paths)), [addr(1)]);
    run(&mut paths, millis(1600), millis(1801), Answer::None);
    assert_eq!(paths.selection(), Selection::Both { direct: addr(1), relay: region() });
}

#[test]
fn a_restart_and_a_change_of_network_make_a_path_doubtful_at_once() {
    for change in [PeerPaths::note_restart, PeerPaths::note_network_change] {
        let mut paths = direct();
        change(&mut paths, secs(3));
        assert_eq!(paths.selection(), Selection::Both { direct: addr(1), relay: region() });
        let sent = drain(&mut paths);
        assert!(pinged(&sent).contains(&addr(1)) && sent.contains(&call()));
        paths.handle_pong(&pong(tx_to(&sent, addr(1))), Via::Direct(addr(1)), millis(3010));
        assert_eq!(paths.selection(), Selection::Direct(addr(1)));
    }
}

#[test]
fn a_failed_send_drops_the_path_in_use_alone() {
    let mut paths = direct();
    paths.note_send_failure(addr(2), millis(1500));
    assert_eq!(paths.selection(), Selection::Direct(addr(1)));
    paths.note_send_failure(addr(1), millis(1500));
    assert_eq!(paths.selection(), Selection::Relay(region()));
}

#[test]
fn equal_answers_keep_the_first_and_ipv6_replaces_ipv4() {
    let v6: SocketAddr = "[2001:db8::1]:1".parse().unwrap();
    let mut paths = idle();
    paths.set_endpoints(&[addr(1), addr(2), v6], Some(region()), secs(0));
    paths.note_activity(secs(1));
    let sent = drain(&mut paths);
    let mut answer = |to| {
        paths.handle_pong(&pong(tx_to(&sent, to)), Via::Direct(to), millis(1020));
        paths.selection()
    };
    assert_eq!(answer(addr(2)), Selection::Direct(addr(2)));
    assert_eq!(answer(addr(1)), Selection::Direct(addr(2)));
    assert_eq!(answer(v6), Selection::Direct(v6));
}

#[test]
fn without_a_relay_the_last_path_is_kept() {
    let mut paths = PeerPaths::new(config(), Seed::from_number(1).stream("paths", 0));
    paths.set_endpoints(&[addr(1)], None, secs(0));
    assert_eq!(paths.selection(), Selection::Nowhere);
    paths.note_activity(secs(1));
    let sent = drain(&mut paths);
    assert_eq!(sent.len(), 1, "there is nothing to call over");
    paths.handle_pong(&pong(tx_to(&sent, addr(1))), Via::Direct(addr(1)), millis(1020));
    let pings = run(&mut paths, millis(1020), secs(100), Answer::None);
    assert_eq!(paths.selection(), Selection::Direct(addr(1)));
    assert!(pings.len() < 70, "{}", pings.len());
}

#[test]
fn with_low_ttl_opening_the_first_pings_die_and_the_next_go_through() {
    let mut paths = idle();
    paths.set_opening(Opening::LowTtl);
    drain(&mut paths);
    let reaches = |sent: &[Output]| -> Vec<Reach> {
        let reach = |output: &Output| match output {
            Output::Send { message: Message::Ping(_), reach, .. } => Some(*reach),
            Output::Send { .. } | Output::Selected(_) => None,
        };
        sent.iter().filter_map(reach).collect()
    };
    paths.note_activity(secs(1));
    assert_eq!(reaches(&drain(&mut paths)), [Reach::Opener; 2]);
    paths.handle_timeout(paths.poll_timeout().unwrap().at);
    assert_eq!(reaches(&drain(&mut paths)), [Reach::Peer; 2]);
}

#[test]
fn a_relay_that_connects_late_is_called_over_again() {
    let mut paths = active();
    drain(&mut paths);
    paths.note_relay_connected(millis(1200));
    run(&mut paths, millis(1200), millis(2000), Answer::None);
    assert!(paths.stats().calls_sent >= 3);
    assert!(paths.stats().pings_sent < 12);
    let mut idle = idle();
    idle.note_relay_connected(secs(1));
    assert_eq!(idle.stats().calls_sent, 0);
}

#[test]
fn unanswered_probing_backs_off() {
    let mut paths = active();
    let mut pings = Vec::new();
    for second in 1..600 {
        paths.note_activity(secs(second));
        pings.extend(run(&mut paths, secs(second), secs(second + 1), Answer::None));
    }
    assert!((40..=60).contains(&pings.len()), "{} pings to two addresses in ten minutes", pings.len());
    assert_eq!(paths.selection(), Selection::Relay(region()));
}

#[test]
fn a_slow_path_is_compared_once_a_minute() {
    let mut paths = direct();
    let mut at = millis(1020);
    for _ in 0..130 {
        paths.note_activity(at);
        run(&mut paths, at, at + Duration::from_secs(1), Answer::From(addr(1)));
        at += Duration::from_secs(1);
    }
    let to_other = paths.stats().pings_sent - 130 / 3;
    assert!((3..=6).contains(&to_other), "{to_other}");
    assert_eq!(paths.selection(), Selection::Direct(addr(1)));
}

#[derive(Clone, Copy)]
enum Answer {
    All,
    None,
    From(SocketAddr),
}

/// Lets timers act from `from` to `until`, with answers 20 ms later; returns when pings went out.
fn run(paths: &mut PeerPaths, from: Instant, until: Instant, answer: Answer) -> Vec<Instant> {
    let (mut pings, mut now) = (Vec::new(), from);
    let mut pongs: VecDeque<(Instant, TxId, SocketAddr)> = VecDeque::new();
    loop {
        for output in drain(paths) {
            let Output::Send { via: Via::Direct(to), message: Message::Ping(ping), .. } = output else { continue };
            pings.push(now);
            if match answer {
                Answer::All => true,
                Answer::None => false,
                Answer::From(address) => address == to,
            } {
                pongs.push_back((now + Duration::from_millis(20), ping.tx, to));
            }
        }
        let timer = paths.poll_timeout().map(|deadline| deadline.at);
        assert!(timer.is_none_or(|at| at > now || now == from), "{:?} at {now}", paths.poll_timeout());
        let next = earliest(timer, pongs.front().map(|(at, ..)| *at));
        let Some(next) = next.filter(|at| *at < until) else { return pings };
        now = now.max(next);
        if let Some((_, tx, to)) = pongs.front().copied().filter(|(at, ..)| *at <= now) {
            pongs.pop_front();
            paths.handle_pong(&pong(tx), Via::Direct(to), now);
        } else {
            paths.handle_timeout(now);
        }
    }
}

fn idle() -> PeerPaths {
    let mut paths = PeerPaths::new(config(), Seed::from_number(1).stream("paths", 0));
    paths.set_endpoints(&[addr(1), addr(2)], Some(region()), Instant::ZERO);
    paths.set_own_endpoints(&[addr(100)], Instant::ZERO);
    paths
}

fn active() -> PeerPaths {
    let mut paths = idle();
    drain(&mut paths);
    paths.note_activity(secs(1));
    paths
}

/// Active since 1 s, with a direct path to `addr(1)` of 20 ms since 1.02 s.
fn direct() -> PeerPaths {
    let mut paths = active();
    let tx = tx_to(&drain(&mut paths), addr(1));
    paths.handle_pong(&pong(tx), Via::Direct(addr(1)), millis(1020));
    drain(&mut paths);
    paths
}

fn drain(paths: &mut PeerPaths) -> Vec<Output> {
    core::iter::from_fn(|| paths.poll_output()).collect()
}

fn pinged(outputs: &[Output]) -> Vec<SocketAddr> {
    let mut addresses: Vec<_> = pings(outputs).map(|(to, _)| to).collect();
    addresses.sort();
    addresses
}

fn tx_to(outputs: &[Output], address: SocketAddr) -> TxId {
    pings(outputs).find(|(to, _)| *to == address).map(|(_, tx)| tx).expect("a ping to the address")
}

fn pings(outputs: &[Output]) -> impl Iterator<Item = (SocketAddr, TxId)> + '_ {
    outputs.iter().filter_map(|output| match output {
        Output::Send { via: Via::Direct(to), message: Message::Ping(ping), .. } => Some((*to, ping.tx)),
        Output::Send { .. } | Output::Selected(_) => None,
    })
}

fn call() -> Output {
    let message = Message::CallMeMaybe(vec![addr(100)]);
    Output::Send { via: Via::Relay(region()), message, reach: Reach::Peer }
}

fn ping(number: u8) -> Ping {
    Ping { tx: TxId([number; 12]), node: None, padding_bytes: 0 }
}

fn pong(tx: TxId) -> Pong {
    Pong { tx, observed: addr(100) }
}

fn config() -> PathsConfig {
    PathsConfig { node: NodePublic::from_bytes([1; 32]), opening: Opening::Plain }
}

fn region() -> RegionId {
    RegionId::new(7).unwrap()
}

fn addr(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

fn secs(secs: u64) -> Instant {
    Instant::from_secs(secs)
}

fn millis(millis: u64) -> Instant {
    Instant::from_millis(millis)
}
