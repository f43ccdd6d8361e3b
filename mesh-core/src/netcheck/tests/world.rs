//! A network around one [`Netcheck`]: servers with delays, losses and lies, a NAT, DNS, and relays over TLS.

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use std::collections::{BTreeMap, BTreeSet};

use crate::{
    derp::{DerpMap, RegionId},
    netcheck::{Family, FetchFailed, FetchId, Fetched, Netcheck, Output, Report, ResolveFailed},
    rng::{Rng, Seed},
    stun::{self, TxId},
    time::Instant,
};

/// How a NAT maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nat {
    Easy,
    Hard,
}

/// What is wrong with a server's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lie {
    Tx,
    Source,
    Address(SocketAddr),
    Garbage,
}

#[derive(Debug)]
enum Arrival {
    Stun(SocketAddr, Vec<u8>),
    Resolved(String),
    Fetched(FetchId, Result<Fetched, FetchFailed>),
}

/// A network. Region `n` is at 192.0.2.n and 2001:db8::n.
pub(super) struct World {
    pub(super) netcheck: Netcheck,
    pub(super) now: Instant,
    /// Round trips in ms by region; absent ones do not answer.
    pub(super) round_trips: BTreeMap<u16, u64>,
    pub(super) nat: Nat,
    /// Our port outside, or the first of them.
    pub(super) outside_port: u16,
    pub(super) udp_works: bool,
    /// Families without a route.
    pub(super) refused: Vec<Family>,
    pub(super) lies: BTreeMap<u16, Lie>,
    /// Requests that get lost: by their number, or so many of 100.
    pub(super) lost: BTreeSet<usize>,
    pub(super) loss_percent: u64,
    /// How long DNS takes; `None` when there is none.
    pub(super) dns: Option<Duration>,
    /// Regions whose relays do not answer over TLS.
    pub(super) tls_fails: BTreeSet<u16>,
    /// When which request left, and what else was said.
    pub(super) probes: Vec<(Instant, SocketAddr)>,
    pub(super) homes: Vec<(Instant, u16)>,
    pub(super) observed: Vec<(Instant, SocketAddr)>,
    pub(super) reports: Vec<(Instant, Report)>,
    pub(super) fetches: Vec<(Instant, u16)>,
    pub(super) resolves: Vec<(Instant, String)>,
    arrivals: BTreeMap<(Instant, u64), Arrival>,
    sequence: u64,
    rng: Rng,
}

impl World {
    /// With these round trips, a network of both families, and a map whose relays have literal addresses.
    pub(super) fn new(round_trips: &[(u16, u64)]) -> Self {
        let mut world = Self::without_map(round_trips, 1);
        world.set_map();
        world
    }

    /// The same before there is a map.
    pub(super) fn without_map(round_trips: &[(u16, u64)], seed: u64) -> Self {
        let mut netcheck = Netcheck::new(Seed::from_number(seed).stream("netcheck", 0));
        netcheck.set_families(true, true, Instant::from_secs(1));
        Self {
            netcheck,
            now: Instant::from_secs(1),
            round_trips: round_trips.iter().copied().collect(),
            nat: Nat::Easy,
            outside_port: 1000,
            udp_works: true,
            refused: Vec::new(),
            lies: BTreeMap::new(),
            lost: BTreeSet::new(),
            loss_percent: 0,
            dns: Some(Duration::from_millis(5)),
            tls_fails: BTreeSet::new(),
            probes: Vec::new(),
            homes: Vec::new(),
            observed: Vec::new(),
            reports: Vec::new(),
            fetches: Vec::new(),
            resolves: Vec::new(),
            arrivals: BTreeMap::new(),
            sequence: 0,
            rng: Seed::from_number(seed).stream("world", 0),
        }
    }

    pub(super) fn set_map(&mut self) {
        self.netcheck.set_map(&literal_map(self.round_trips.keys()), self.now);
    }

    /// Hands in a change at the time it is, and carries out what follows from it at once.
    pub(super) fn act(&mut self, act: impl FnOnce(&mut Netcheck, Instant)) {
        act(&mut self.netcheck, self.now);
        self.drain();
    }

    /// Lets `millis` pass.
    pub(super) fn run(&mut self, millis: u64) {
        let until = self.now + Duration::from_millis(millis);
        self.drain();
        let mut steps = 0;
        loop {
            let arrival = self.arrivals.first_key_value().map(|((at, _), _)| *at);
            let timer = self.netcheck.poll_timeout().map(|deadline| deadline.at);
            let Some(at) = arrival.into_iter().chain(timer).min().filter(|at| *at <= until) else { break };
            self.now = self.now.max(at);
            steps += 1;
            assert!(steps < 100_000, "spins: {:?}", self.netcheck.poll_timeout());
            if arrival == Some(at)
                && let Some((_, arrival)) = self.arrivals.pop_first()
            {
                self.arrive(arrival);
            } else {
                self.netcheck.handle_timeout(self.now);
            }
            self.drain();
        }
        self.now = until;
    }

    pub(super) fn report(&self) -> &Report {
        &self.reports.last().expect("a report").1
    }

    fn arrive(&mut self, arrival: Arrival) {
        let now = self.now;
        match arrival {
            Arrival::Stun(source, datagram) => self.netcheck.handle_stun(source, &datagram, now),
            Arrival::Fetched(id, result) => self.netcheck.handle_fetched(id, result, now),
            Arrival::Resolved(host) => {
                let number: Option<u16> = host.trim_start_matches('r').parse().ok();
                let addresses = number.map(|number| [v4(number), v6(number)]);
                let result = addresses.as_ref().map(|addresses| &addresses[..]).ok_or(ResolveFailed);
                self.netcheck.handle_resolved(&host, result, now);
            }
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.netcheck.poll_output() {
            match output {
                Output::Probe { to, payload } => self.probe(to, &payload),
                Output::Resolve { host } => {
                    self.resolves.push((self.now, host.clone()));
                    if let Some(delay) = self.dns {
                        self.later(delay, Arrival::Resolved(host));
                    }
                }
                Output::Fetch { id, region, node } => {
                    assert_eq!(node.host_name, format!("r{region}"));
                    self.fetch(id, region.number());
                }
                Output::Observed { address, .. } => {
                    self.observed.extend(address.map(|address| (self.now, address)));
                }
                Output::Home(region) => self.homes.push((self.now, region.number())),
                Output::Report(report) => self.reports.push((self.now, (*report).clone())),
            }
        }
        assert!(self.netcheck.poll_timeout().is_none_or(|deadline| deadline.at > self.now), "a deadline lies ahead");
    }

    fn probe(&mut self, to: SocketAddr, payload: &[u8]) {
        let number = self.probes.len();
        self.probes.push((self.now, to));
        let family = Family::of(to.ip());
        if self.refused.contains(&family) {
            self.netcheck.note_send_failure(to, self.now);
            return;
        }
        let is_lost = self.lost.contains(&number) || self.rng.below(100) < self.loss_percent;
        let region = region_of(to.ip());
        let Some(round_trip) = self.round_trips.get(&region).copied().filter(|_| self.udp_works && !is_lost) else {
            return;
        };
        let (tx, _) = stun::parse_request(payload).expect("a request");
        let port = if self.nat == Nat::Hard { self.outside_port + region } else { self.outside_port };
        let mapped: SocketAddr = match family {
            Family::V4 => ([198, 51, 100, 1], port).into(),
            Family::V6 => SocketAddr::new("2001:db8:1::9".parse().expect("an address"), 41_641),
        };
        let (source, answer) = match self.lies.get(&region) {
            None => (to, stun::response(tx, mapped)),
            Some(Lie::Tx) => (to, stun::response(TxId([7; 12]), mapped)),
            Some(Lie::Source) => (SocketAddr::new(to.ip(), 9), stun::response(tx, mapped)),
            Some(Lie::Address(address)) => (to, stun::response(tx, *address)),
            Some(Lie::Garbage) => (to, stun::response(tx, mapped)[..30].to_vec()),
        };
        self.later(Duration::from_millis(round_trip), Arrival::Stun(source, answer));
    }

    /// A connection, a handshake and a request are three round trips.
    fn fetch(&mut self, id: FetchId, region: u16) {
        self.fetches.push((self.now, region));
        let Some(millis) = self.round_trips.get(&region) else { return };
        let round_trip = Duration::from_millis(*millis);
        let fetched = Fetched { round_trip, family: Family::V4 };
        let result = if self.tls_fails.contains(&region) { Err(FetchFailed) } else { Ok(fetched) };
        self.later(round_trip * 3, Arrival::Fetched(id, result));
    }

    fn later(&mut self, delay: Duration, arrival: Arrival) {
        self.sequence += 1;
        self.arrivals.insert((self.now + delay, self.sequence), arrival);
    }
}

/// A map of relays with literal addresses.
pub(super) fn literal_map<'n>(numbers: impl Iterator<Item = &'n u16>) -> DerpMap {
    map(numbers, |number| format!(r#", "IPv4": "{}", "IPv6": "{}""#, v4(number), v6(number)))
}

/// A map of relays with names only.
pub(super) fn named_map<'n>(numbers: impl Iterator<Item = &'n u16>) -> DerpMap {
    map(numbers, |_| String::new())
}

fn map<'n>(numbers: impl Iterator<Item = &'n u16>, addresses: impl Fn(u16) -> String) -> DerpMap {
    let region = |number: &u16| {
        let addresses = addresses(*number);
        format!(r#""{number}": {{"RegionID": {number}, "Nodes": [{{"HostName": "r{number}"{addresses}}}]}}"#)
    };
    let regions: Vec<_> = numbers.map(region).collect();
    serde_json::from_str(&format!(r#"{{"Regions": {{{}}}}}"#, regions.join(","))).expect("a map")
}

fn v4(number: u16) -> IpAddr {
    IpAddr::from([192, 0, 2, number as u8])
}

fn v6(number: u16) -> IpAddr {
    IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, number])
}

fn region_of(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(v4) => u16::from(v4.octets()[3]),
        IpAddr::V6(v6) => v6.segments()[7],
    }
}

pub(super) fn id(number: u16) -> Option<RegionId> {
    RegionId::new(number)
}
