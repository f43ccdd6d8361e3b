//! Two ends' [`PeerPaths`] against a model of NATs: the pair goes direct exactly where the NATs allow it, only ever to
//! addresses where the peer is, and with a bounded number of pings.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use proptest::{prelude::*, test_runner::FileFailurePersistence};

use mesh_core::{
    derp::RegionId,
    disco::Message,
    key::NodePublic,
    path::{Opening, Output, PathsConfig, PeerPaths, Reach, Selection, Via},
    rng::{Rng, Seed},
    time::{Instant, earliest},
};

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/regressions/paths_model.txt"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_pair_goes_direct_exactly_where_its_nats_allow(
        seed: u64,
        nats in [nat(), nat()],
        opening in prop_oneof![Just(Opening::Plain), Just(Opening::LowTtl)],
        loss_percent in 0u64..20,
        both_speak: bool,
    ) {
        let mut world = World::new(seed, nats, opening, loss_percent);
        world.run(Duration::from_secs(40), both_speak);
        let speakers = if both_speak { 2 } else { 1 };
        for end in &world.ends[..speakers] {
            prop_assert_eq!(end.paths.selection().direct().is_some(), is_direct_possible(nats), "{:?}", end.paths);
        }
        for end in &world.ends {
            let stats = end.paths.stats();
            prop_assert!(stats.pings_sent < 400, "{:?}", stats);
            prop_assert!(stats.calls_sent < 60, "{:?}", stats);
        }
    }

    #[test]
    fn a_pair_finds_together_again_when_one_moves(seed: u64, nats in direct_nats(), both_speak: bool) {
        let mut world = World::new(seed, nats, Opening::Plain, 0);
        world.run(Duration::from_secs(10), both_speak);
        world.move_first();
        world.run(Duration::from_secs(5), both_speak);
        let to = world.ends[0].paths.selection();
        prop_assert!(matches!(to, Selection::Direct(_)), "{:?}", to);
        if both_speak {
            let to = world.ends[1].paths.selection();
            prop_assert!(matches!(to, Selection::Direct(address) if address.ip() == world.ends[0].ip), "{:?}", to);
        }
    }
}

/// Stock nodes need five seconds more than the relay for this.
#[test]
fn behind_easy_nats_the_first_try_succeeds() {
    for opening in [Opening::Plain, Opening::LowTtl] {
        let mut world = World::new(1, [Nat::Easy, Nat::Easy], opening, 0);
        world.run(Duration::from_millis(150), false);
        for end in &world.ends {
            assert!(matches!(end.paths.selection(), Selection::Direct(_)), "{opening:?}: {:?}", end.paths.selection());
        }
    }
}

#[test]
fn without_traffic_nothing_is_sent() {
    let mut world = World::new(1, [Nat::Open, Nat::Open], Opening::Plain, 0);
    world.settle(Duration::from_secs(600));
    assert!(world.ends.iter().all(|end| end.paths.stats().pings_sent == 0));
}

/// How an end is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nat {
    /// Not at all hindered.
    Open,
    /// One port outside for one inside; in come only answers, by address and port.
    Easy,
    /// A port outside for each destination, in which only that destination's answers come.
    Hard,
    /// No UDP.
    Blocked,
}

fn nat() -> impl Strategy<Value = Nat> {
    prop_oneof![Just(Nat::Open), Just(Nat::Easy), Just(Nat::Hard), Just(Nat::Blocked)]
}

fn direct_nats() -> impl Strategy<Value = [Nat; 2]> {
    use Nat::{Easy, Hard, Open};
    prop::sample::select(vec![[Open, Open], [Open, Easy], [Open, Hard], [Easy, Open], [Hard, Open], [Easy, Easy]])
}

fn is_direct_possible(nats: [Nat; 2]) -> bool {
    let has = |nat| nats.contains(&nat);
    !has(Nat::Blocked) && (has(Nat::Open) || nats == [Nat::Easy; 2])
}

const ONE_WAY: Duration = Duration::from_millis(20);
const OVER_RELAY: Duration = Duration::from_millis(30);
/// What is told about every end although nobody is there.
const NOBODY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 9)), 9);
/// Somebody on the way who sends all messages again.
const REPEATER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 66)), 6);

struct World {
    ends: [End; 2],
    now: Instant,
    on_the_way: BTreeMap<(Instant, u64), (usize, Via, Message)>,
    number: u64,
    loss_percent: u64,
    dice: Rng,
}

struct End {
    paths: PeerPaths,
    nat: Nat,
    ip: IpAddr,
    /// Where datagrams went: the filter of an easy NAT, the ports of a hard one.
    sent_to: Vec<SocketAddr>,
}

impl World {
    fn new(seed: u64, nats: [Nat; 2], opening: Opening, loss_percent: u64) -> Self {
        let seed = Seed::from_number(seed);
        let mut number = 0;
        let ends = nats.map(|nat| {
            number += 1;
            let config = PathsConfig { node: NodePublic::from_bytes([number; 32]), opening };
            End {
                paths: PeerPaths::new(config, seed.stream("paths", number.into())),
                nat,
                ip: Ipv4Addr::new(192, 0, 2, number).into(),
                sent_to: Vec::new(),
            }
        });
        let mut world = Self {
            ends,
            now: Instant::from_secs(1),
            on_the_way: BTreeMap::new(),
            number: 0,
            loss_percent,
            dice: seed.stream("loss", 0),
        };
        for end in 0..2 {
            world.tell_endpoints(end);
            let theirs = [world.ends[1 - end].endpoint(), NOBODY];
            world.ends[end].paths.set_endpoints(&theirs, RegionId::new(1), world.now);
        }
        world
    }

    /// The end learns its own endpoints.
    fn tell_endpoints(&mut self, end: usize) {
        let own = [self.ends[end].endpoint(), NOBODY];
        self.ends[end].paths.set_own_endpoints(&own, self.now);
    }

    /// The first end is elsewhere, and knows.
    fn move_first(&mut self) {
        let end = &mut self.ends[0];
        end.ip = Ipv4Addr::new(203, 0, 113, 1).into();
        end.sent_to.clear();
        end.paths.note_network_change(self.now);
        self.tell_endpoints(0);
    }

    /// Goes on for `time`, with a packet of the first end, or of both, every half second.
    fn run(&mut self, time: Duration, both_speak: bool) {
        let until = self.now + time;
        while self.now < until {
            self.ends[0].paths.note_activity(self.now);
            if both_speak {
                self.ends[1].paths.note_activity(self.now);
            }
            self.settle(Duration::from_millis(500).min(until.since(self.now)));
        }
    }

    fn settle(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            self.drain();
            let timers = self.ends.iter().filter_map(|end| end.paths.poll_timeout()).map(|deadline| deadline.at).min();
            let next = earliest(timers, self.on_the_way.keys().next().map(|(at, _)| *at));
            let Some(next) = next.filter(|at| *at < until) else { break };
            self.now = self.now.max(next);
            while let Some(entry) = self.on_the_way.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let (to, from, message) = entry.remove();
                self.receive(to, from, &message);
            }
            for end in &mut self.ends {
                end.paths.handle_timeout(self.now);
                let deadline = end.paths.poll_timeout();
                assert!(deadline.is_none_or(|deadline| deadline.at > self.now), "{deadline:?} at {}", self.now);
            }
        }
        self.now = until;
    }

    fn receive(&mut self, to: usize, from: Via, message: &Message) {
        let (end, now) = (&mut self.ends[to], self.now);
        match message {
            Message::Ping(ping) => {
                end.paths.handle_ping(ping, from, now);
                // Somebody on the way sends it again, from an address that is not the peer's.
                end.paths.handle_ping(ping, Via::Direct(REPEATER), now);
            }
            Message::Pong(pong) => {
                end.paths.handle_pong(pong, from, now);
                end.paths.handle_pong(pong, Via::Direct(REPEATER), now);
            }
            Message::CallMeMaybe(endpoints) => {
                assert!(matches!(from, Via::Relay(_)));
                end.paths.handle_call_me_maybe(endpoints, now);
            }
            Message::PeerRelay(_) => panic!("not a message of paths"),
        }
    }

    fn drain(&mut self) {
        for from in 0..2 {
            while let Some(output) = self.ends[from].paths.poll_output() {
                match output {
                    Output::Send { via: Via::Relay(region), message, reach } => {
                        assert_eq!(reach, Reach::Peer);
                        self.put(OVER_RELAY, 1 - from, Via::Relay(region), message);
                    }
                    Output::Send { via: Via::Direct(to), message, reach } => self.transmit(from, to, message, reach),
                    Output::Selected(selection) => {
                        let peer_ips = [self.ends[1 - from].ip, Ipv4Addr::new(192, 0, 2, 1).into()];
                        let is_peer = selection.direct().is_none_or(|address| peer_ips.contains(&address.ip()));
                        assert!(is_peer, "{selection:?} is not where the peer is");
                    }
                }
            }
            let end = &self.ends[from];
            assert!(end.paths.outstanding_count() <= 64 && end.paths.candidate_count() <= 64);
        }
    }

    fn transmit(&mut self, from: usize, to: SocketAddr, message: Message, reach: Reach) {
        let Some(source) = self.ends[from].source(to) else { return };
        let receiver = 1 - from;
        let is_lost = self.dice.below(100) < self.loss_percent;
        if reach == Reach::Peer && !is_lost && self.ends[receiver].lets_in(source, to) {
            self.put(ONE_WAY, receiver, Via::Direct(source), message);
        }
    }

    fn put(&mut self, after: Duration, to: usize, from: Via, message: Message) {
        self.number += 1;
        self.on_the_way.insert((self.now + after, self.number), (to, from, message));
    }
}

impl End {
    /// What a STUN server would say.
    fn endpoint(&self) -> SocketAddr {
        SocketAddr::new(self.ip, 40_000)
    }

    /// Sends: as what it leaves the NAT, if it does.
    fn source(&mut self, to: SocketAddr) -> Option<SocketAddr> {
        let known = self.sent_to.iter().position(|sent_to| *sent_to == to);
        let index = known.unwrap_or_else(|| {
            self.sent_to.push(to);
            self.sent_to.len() - 1
        });
        match self.nat {
            Nat::Open | Nat::Easy => Some(self.endpoint()),
            Nat::Hard => Some(SocketAddr::new(self.ip, 50_000 + u16::try_from(index).expect("few destinations"))),
            Nat::Blocked => None,
        }
    }

    fn lets_in(&self, from: SocketAddr, to: SocketAddr) -> bool {
        to.ip() == self.ip
            && match self.nat {
                Nat::Open => to == self.endpoint(),
                Nat::Easy => to == self.endpoint() && self.sent_to.contains(&from),
                Nat::Hard => {
                    let index = usize::from(to.port()).checked_sub(50_000);
                    index.and_then(|index| self.sent_to.get(index)) == Some(&from)
                }
                Nat::Blocked => false,
            }
    }
}
