//! The paths of one peer, whatever the peer, its networks and whoever stands between them do.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use mesh_core::{
    derp::RegionId,
    disco::{Message, Ping, Pong, TxId},
    key::NodePublic,
    limits,
    path::{Opening, Output, PathsConfig, PeerPaths, Selection, Via},
    rng::Seed,
    time::Instant,
};

use crate::script::Script;

/// A pong after this is none.
const PONG_WITHIN: Duration = Duration::from_secs(5);
/// Twice the pings that all budgets together give: a burst, and then by the time that has passed.
const BURST: u64 = 2 * (24 + 8 + 32);
const PINGS_PER_SECOND: u64 = 2 * (50 + 4 + 33);

/// Pings to an address for each that came from there, as long as nobody else speaks of it and it has not answered.
const PINGS_FOR_ONE: u64 = 2;

/// A script of pings, pongs, calls, lists, failures and time, in any order. Data never goes to an address that did not
/// answer a ping of ours, and one of which only pings speak is pinged at most twice for each; everything heard is counted
/// once; candidates, pings and what is sent are bounded; nothing spins, and a peer without traffic is left alone.
///
/// # Panics
/// When that is not so.
pub fn peer_paths(data: &[u8]) {
    let mut script = Script::new(data);
    let opening = if script.byte() & 1 == 0 { Opening::Plain } else { Opening::LowTtl };
    let config = PathsConfig { node: NodePublic::from_bytes([1; 32]), opening };
    let mut world = World {
        paths: PeerPaths::new(config, Seed::from_number(1).stream("paths", 0)),
        now: BEGIN,
        relay: None,
        own: Vec::new(),
        listed: BTreeSet::new(),
        told: BTreeSet::new(),
        strangers: BTreeMap::new(),
        pings: BTreeMap::new(),
        proven: BTreeSet::new(),
        steps: 0,
        heard: [0; 3],
        said: [0; 3],
    };
    for _ in 0..400 {
        if script.is_done() {
            break;
        }
        world.step(&mut script);
        world.check();
    }
    world.rest();
}

const BEGIN: Instant = Instant::from_secs(100);

struct World {
    paths: PeerPaths,
    now: Instant,
    relay: Option<RegionId>,
    own: Vec<SocketAddr>,
    /// Addresses that anybody ever spoke of.
    listed: BTreeSet<SocketAddr>,
    /// Of these, those that a list named.
    told: BTreeSet<SocketAddr>,
    /// Pings that came from each address, and that went there.
    strangers: BTreeMap<SocketAddr, [u64; 2]>,
    /// Pings of ours, where they went and when.
    pings: BTreeMap<TxId, (SocketAddr, Instant)>,
    /// Addresses from which a ping of ours was answered in time.
    proven: BTreeSet<SocketAddr>,
    /// Local events that may each cost pings beside the budgets.
    steps: u64,
    /// Pings, pongs and calls that were handed in.
    heard: [u64; 3],
    /// Pings, pongs and calls that came out.
    said: [u64; 3],
}

impl World {
    fn step(&mut self, script: &mut Script<'_>) {
        let what = script.byte();
        // Somebody whose clock is behind.
        let now = if what & 0x80 == 0 { self.now } else { Instant::ZERO };
        self.steps += 1;
        match what % 16 {
            0 => {
                let endpoints = self.endpoints(script);
                self.relay = RegionId::new(u16::from(script.byte() % 4));
                self.paths.set_endpoints(&endpoints, self.relay, now);
            }
            1 => {
                self.own = self.endpoints(script);
                self.paths.set_own_endpoints(&self.own, now);
            }
            2 | 3 => self.paths.note_activity(now),
            4 => drop(self.paths.note_sent(self.now)),
            5 => match script.byte() % 5 {
                0 => self.paths.note_relay_connected(now),
                1 => self.paths.note_silence(now),
                2 => self.paths.note_restart(now),
                3 => self.paths.note_network_change(now),
                _ => self.paths.set_node(NodePublic::from_bytes([script.byte(); 32])),
            },
            6 => {
                let to = self.address(script);
                self.paths.note_send_failure(to, now);
            }
            7 | 8 => {
                let (from, tx) = (self.via(script), TxId(script.array()));
                let ping = Ping { tx, node: None, padding_bytes: 0 };
                // Whoever hears it may send it again.
                for _ in 0..=script.byte() % 40 {
                    self.heard[0] += 1;
                    if let Via::Direct(from) = from {
                        self.strangers.entry(from).or_default()[0] += 1;
                    }
                    self.paths.handle_ping(&ping, from, now);
                }
            }
            9 | 10 => self.pong(script, now),
            11 => {
                let endpoints = self.endpoints(script);
                self.heard[2] += 1;
                self.paths.handle_call_me_maybe(&endpoints, now);
            }
            12 => self.pass(Duration::from_millis(u64::from(script.byte()))),
            13 => self.pass(Duration::from_millis(u64::from(script.byte()) * 100)),
            14 => self.pass(Duration::from_secs(u64::from(script.byte()))),
            // A late driver.
            _ => {
                self.now += Duration::from_millis(u64::from(script.short()));
                self.paths.handle_timeout(self.now);
            }
        }
    }

    /// An answer to one of the last pings of ours, or to none; from where it went, or from elsewhere.
    fn pong(&mut self, script: &mut Script<'_>, now: Instant) {
        let pick = usize::from(script.byte());
        let known = pick.checked_rem(self.pings.len()).and_then(|at| self.pings.iter().nth(at));
        let known = known.map(|(tx, ping)| (*tx, *ping));
        let (tx, from) = match (known, script.byte() % 4) {
            (Some((tx, (to, _))), 0 | 1) => (tx, Via::Direct(to)),
            (Some((tx, _)), 2) => (tx, self.via(script)),
            _ => (TxId(script.array()), self.via(script)),
        };
        if let (Via::Direct(_), Some((to, at))) = (from, self.pings.get(&tx))
            && self.now.since(*at) < PONG_WITHIN
        {
            self.proven.insert(*to);
        }
        self.heard[1] += 1;
        self.paths.handle_pong(&Pong { tx, observed: ([192, 0, 2, 1], 1).into() }, from, now);
    }

    fn via(&mut self, script: &mut Script<'_>) -> Via {
        let region = RegionId::new(u16::from(script.byte() % 4));
        region.map_or_else(|| Via::Direct(self.address(script)), Via::Relay)
    }

    fn endpoints(&mut self, script: &mut Script<'_>) -> Vec<SocketAddr> {
        let count = script.byte() % 64;
        let endpoints: Vec<_> = (0..count).map(|_| self.address(script)).collect();
        self.told.extend(&endpoints);
        endpoints
    }

    /// Few addresses, good ones and others, so that they come again.
    fn address(&mut self, script: &mut Script<'_>) -> SocketAddr {
        let byte = script.byte();
        let ip: IpAddr = match byte >> 5 {
            0 => [127, 0, 0, byte].into(),
            1 => [224, 0, 0, byte].into(),
            2 => [0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(byte)].into(),
            3 => [0xfe80, 0, 0, 0, 0, 0, 0, u16::from(byte)].into(),
            4 => [0, 0, 0, 0].into(),
            _ => [198, 51, 100, byte].into(),
        };
        let address = SocketAddr::new(ip, u16::from(byte & 0x1f) * 100);
        self.listed.insert(address);
        address
    }

    fn pass(&mut self, time: Duration) {
        self.check();
        let until = self.now + time;
        let mut timers = 0;
        while let Some(deadline) = self.paths.poll_timeout().filter(|deadline| deadline.at <= until) {
            timers += 1;
            assert!(timers < 20_000, "spins: {deadline:?}");
            self.now = self.now.max(deadline.at);
            self.paths.handle_timeout(self.now);
            self.check();
        }
        self.now = until;
        self.paths.handle_timeout(until);
    }

    fn check(&mut self) {
        let mut outputs = 0;
        while let Some(output) = self.paths.poll_output() {
            outputs += 1;
            match output {
                Output::Selected(selection) => assert_eq!(selection, self.paths.selection()),
                Output::Send { via: Via::Direct(to), message: Message::Ping(ping), .. } => {
                    assert!(self.listed.contains(&to), "{to} was never spoken of");
                    assert!(to.port() != 0 && !to.ip().is_unspecified() && !to.ip().is_multicast(), "{to}");
                    self.said[0] += 1;
                    let [from, sent] = self.strangers.entry(to).or_default();
                    *sent += 1;
                    let is_strange = !self.told.contains(&to) && !self.proven.contains(&to);
                    assert!(!is_strange || *sent <= PINGS_FOR_ONE * *from, "{sent} pings to {to} for {from}");
                    assert_eq!(self.pings.insert(ping.tx, (to, self.now)), None, "a transaction used twice");
                }
                Output::Send { via: Via::Relay(region), message: Message::CallMeMaybe(endpoints), .. } => {
                    self.said[2] += 1;
                    assert_eq!((Some(region), &endpoints), (self.relay, &self.own));
                    assert!(!endpoints.is_empty());
                }
                Output::Send { message: Message::Pong(_), .. } => self.said[1] += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!(outputs <= 3 * limits::CANDIDATES_PER_PEER, "{outputs} at once");
        let keep_from = self.now - PONG_WITHIN * 2;
        self.pings.retain(|_, (_, at)| *at >= keep_from);

        match self.paths.selection() {
            Selection::Nowhere => assert_eq!(self.relay, None),
            Selection::Relay(relay) => assert_eq!(Some(relay), self.relay),
            Selection::Direct(direct) => assert!(self.proven.contains(&direct), "{direct} never answered"),
            Selection::Both { direct, relay } => {
                assert!(self.proven.contains(&direct), "{direct} never answered");
                assert_eq!(Some(relay), self.relay);
            }
        }
        assert!(self.paths.candidate_count() <= limits::CANDIDATES_PER_PEER);
        assert!(self.paths.outstanding_count() <= limits::PATH_PINGS_PER_PEER);
        assert!(self.paths.candidates(self.now).iter().all(|candidate| self.listed.contains(&candidate.address)));
        let stats = self.paths.stats();
        let [pings, pongs, calls] = self.heard;
        assert_eq!(stats.pings_answered + stats.pings_over_budget, pings);
        assert_eq!(stats.pongs + stats.unknown_pongs, pongs);
        assert_eq!(stats.calls_heeded + stats.calls_over_budget, calls);
        assert_eq!(self.said, [stats.pings_sent, stats.pings_answered, stats.calls_sent]);
        let seconds = self.now.since(BEGIN).as_secs() + 1;
        assert!(stats.pings_sent <= BURST + seconds * PINGS_PER_SECOND + self.steps, "{stats:?} in {seconds} s");
        let deadline = self.paths.poll_timeout();
        // What is due has acted only when it was asked to.
        if deadline.is_some_and(|deadline| deadline.at <= self.now) {
            self.paths.handle_timeout(self.now);
            let deadline = self.paths.poll_timeout();
            assert!(deadline.is_none_or(|deadline| deadline.at > self.now), "{deadline:?} at {}", self.now);
            self.check();
        }
    }

    /// Without traffic nothing goes on for ever.
    fn rest(&mut self) {
        self.pass(Duration::from_secs(200));
        let before = self.said;
        self.pass(Duration::from_secs(600));
        assert_eq!((self.said, self.paths.poll_timeout()), (before, None), "{:?}", self.paths);
    }
}
