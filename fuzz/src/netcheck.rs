//! STUN messages, and what a network may do to netcheck.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use mesh_core::{
    derp::{DerpMap, DerpNode, DerpRegion, RegionId, map::DerpHomeParams},
    limits,
    netcheck::{FETCH_TIMEOUT, Family, FetchFailed, FetchId, Fetched, Kind, Netcheck, Output, ResolveFailed},
    rng::Seed,
    stun::{self, TxId},
    time::Instant,
};

use crate::script::Script;

/// A message that is read says the same when it is written and read again.
///
/// # Panics
/// When it does not.
pub fn stun(data: &[u8]) {
    let (request, response) = (stun::parse_request(data), stun::parse_response(data));
    if let Ok((tx, _)) = request {
        assert!(stun::is_binding(data) || data[1] != 1);
        assert_eq!(stun::parse_request(&stun::request(tx)), Ok((tx, stun::Asker::Stock)));
    }
    if let Ok((tx, address)) = response {
        assert!(stun::is_binding(data) && request.is_err());
        assert_eq!(address.ip(), address.ip().to_canonical());
        assert_eq!(stun::parse_response(&stun::response(tx, address)), Ok((tx, address)));
    }
}

/// Whatever map, network and servers do: nothing spins, runs end, what is sent is bounded, and home is on the map.
///
/// # Panics
/// When it is not so.
pub fn script(data: &[u8]) {
    let mut world = World::new();
    let mut script = Script::new(data);
    while !script.is_done() {
        world.step(&mut script);
        world.drain();
    }
    // Left alone it goes on as it should, and without a network it comes to rest.
    world.pass(Duration::from_secs(60));
    world.netcheck.set_families(false, false, world.now);
    world.pass(Duration::from_secs(60));
    assert!(!world.netcheck.is_running() && world.netcheck.poll_timeout().is_none());
}

struct World {
    netcheck: Netcheck,
    now: Instant,
    regions: BTreeSet<RegionId>,
    probes: VecDeque<(SocketAddr, TxId)>,
    hosts: VecDeque<String>,
    fetches: VecDeque<FetchId>,
}

impl World {
    fn new() -> Self {
        Self {
            netcheck: Netcheck::new(Seed::from_number(1).stream("netcheck", 0)),
            now: Instant::from_secs(1),
            regions: BTreeSet::new(),
            probes: VecDeque::new(),
            hosts: VecDeque::new(),
            fetches: VecDeque::new(),
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let now = self.now;
        match script.byte() % 18 {
            0 => {
                let map = map(script);
                self.netcheck.set_map(&map, now);
                let numbers = map.regions.iter().flatten().map(|(number, _)| *number);
                self.regions = numbers.filter_map(|number| RegionId::new(number.try_into().ok()?)).collect();
            }
            1 => {
                let families = script.byte();
                self.netcheck.set_families(families & 1 > 0, families & 2 > 0, now);
            }
            2 => self.netcheck.note_active(now),
            3 => self.netcheck.note_network_change(now),
            4 => self.netcheck.refresh(now),
            5 => self.netcheck.start(if script.byte() & 1 > 0 { Kind::Full } else { Kind::Incremental }, now),
            6 => {
                if let Some(region) = RegionId::new(script.byte().into()) {
                    self.netcheck.note_relay_heard(region, now);
                }
            }
            7 => {
                let home = RegionId::new(script.byte().into()).filter(|home| self.regions.contains(home));
                self.netcheck.set_home(home, now);
            }
            8 => self.pass(Duration::from_millis(script.byte().into())),
            9 => self.pass(Duration::from_secs(script.byte().into())),
            // A late driver.
            10 => {
                self.now += Duration::from_secs(script.byte().into());
                self.netcheck.handle_timeout(self.now);
            }
            11 => {
                if let Some((to, tx)) = pick(&mut self.probes, script) {
                    let mapped = SocketAddr::from(([198, 51, 100, script.byte()], 1000 + u16::from(script.byte())));
                    self.netcheck.handle_stun(to, &stun::response(tx, mapped), now);
                }
            }
            12 => {
                if let Some((to, tx)) = pick(&mut self.probes, script) {
                    let mapped = SocketAddr::new(IpAddr::from(script.array::<16>()).to_canonical(), script.short());
                    let from = if script.byte() & 1 > 0 { mapped } else { to };
                    self.netcheck.handle_stun(from, &stun::response(tx, mapped), now);
                }
            }
            13 => self.netcheck.handle_stun(([192, 0, 2, 1], 3478).into(), script.chunk(), now),
            14 => {
                if let Some(host) = pick(&mut self.hosts, script) {
                    let flavour = script.byte();
                    let addresses = [IpAddr::from([192, 0, 2, flavour]), IpAddr::from(script.array::<16>())];
                    let count = usize::from(flavour % 3);
                    let result = if flavour > 200 { Err(ResolveFailed) } else { Ok(&addresses[..count]) };
                    self.netcheck.handle_resolved(&host, result, now);
                }
            }
            15 => {
                if let Some(id) = pick(&mut self.fetches, script) {
                    let round_trip = Duration::from_millis(script.byte().into());
                    let fetched = Fetched { round_trip, family: Family::V4 };
                    let result = if round_trip.is_zero() { Err(FetchFailed) } else { Ok(fetched) };
                    self.netcheck.handle_fetched(id, result, now);
                }
            }
            16 => {
                if let Some(region) = RegionId::new(script.byte().into()) {
                    self.netcheck.note_relay_failed(region, now);
                }
            }
            _ => {
                if let Some((to, _)) = pick(&mut self.probes, script) {
                    self.netcheck.note_send_failure(to, now);
                }
            }
        }
    }

    /// Lets time pass, timer by timer.
    fn pass(&mut self, time: Duration) {
        self.drain();
        let until = self.now + time;
        let mut timers = 0;
        while let Some(deadline) = self.netcheck.poll_timeout().filter(|deadline| deadline.at <= until) {
            timers += 1;
            assert!(timers < 20_000, "spins: {deadline:?}");
            self.now = deadline.at;
            self.netcheck.handle_timeout(self.now);
            self.drain();
        }
        self.now = until;
    }

    fn drain(&mut self) {
        let mut requests = 0;
        while let Some(output) = self.netcheck.poll_output() {
            match output {
                Output::Probe { to, payload } => {
                    let (tx, asker) = stun::parse_request(&payload).expect("a request");
                    assert_eq!(asker, stun::Asker::Stock);
                    assert!(to.port() != 0 && !to.ip().is_unspecified() && !to.ip().is_multicast());
                    requests += 1;
                    self.probes.push_back((to, tx));
                }
                Output::Resolve { host } => self.hosts.push_back(host),
                Output::Fetch { id, region, node } => {
                    assert!(node.derp_port().is_some() && self.regions.contains(&region));
                    self.fetches.push_back(id);
                }
                Output::Observed { address, .. } => {
                    assert!(address.is_none_or(|at| at.port() != 0 && !at.ip().is_unspecified()));
                }
                Output::Home(region) => assert!(self.regions.contains(&region)),
                Output::Report(report) => {
                    assert!(report.took <= FETCH_TIMEOUT || report.ended_at == self.now, "{report:?}");
                    assert!(report.regions.keys().all(|region| self.regions.contains(region)));
                }
            }
        }
        assert!(requests <= limits::NETCHECK_PROBES * limits::NETCHECK_RUNS);
        let deadline = self.netcheck.poll_timeout();
        assert!(deadline.is_none_or(|deadline| deadline.at > self.now), "{deadline:?} is not after {}", self.now);
        assert!(self.netcheck.home().is_none_or(|home| self.regions.contains(&home)));
        // What nobody will answer any more.
        self.probes.drain(..self.probes.len().saturating_sub(256));
        self.hosts.drain(..self.hosts.len().saturating_sub(256));
        self.fetches.drain(..self.fetches.len().saturating_sub(256));
    }
}

/// A map of up to seven regions with up to three relays each, right or not.
fn map(script: &mut Script<'_>) -> DerpMap {
    let (mut regions, mut scores) = (BTreeMap::new(), BTreeMap::new());
    for _ in 0..script.byte() % 8 {
        let (number, flavour) = (script.byte(), script.byte());
        let key = if flavour == 255 { i64::from(number) * 1000 - 500 } else { i64::from(number) };
        let node = |script: &mut Script<'_>| {
            let (kind, address) = (script.byte(), script.byte());
            DerpNode {
                host_name: if kind & 1 > 0 { format!("r{address}") } else { String::new() },
                ipv4: if kind & 2 > 0 { format!("192.0.2.{address}") } else { String::new() },
                ipv6: if kind & 4 > 0 { "none".into() } else { String::new() },
                stun_port: if kind & 8 > 0 { -1 } else { i32::from(address) << 9 },
                stun_only: kind & 16 > 0,
                stun_test_ip: if kind & 32 > 0 { "2001:db8::1".into() } else { String::new() },
                ..DerpNode::default()
            }
        };
        let nodes = (0..flavour % 4).map(|_| node(script)).collect();
        let region = DerpRegion {
            avoid: flavour & 4 > 0,
            no_measure_no_home: flavour & 24 == 24,
            nodes: Some(nodes),
            ..DerpRegion::default()
        };
        regions.insert(key, (flavour != 254).then_some(region));
        if flavour & 32 > 0 {
            scores.insert(key, f64::from_be_bytes(script.array()));
        }
    }
    DerpMap {
        home_params: Some(DerpHomeParams { region_score: Some(scores) }),
        regions: Some(regions),
        ..DerpMap::default()
    }
}

fn pick<T>(from: &mut VecDeque<T>, script: &mut Script<'_>) -> Option<T> {
    let index = usize::from(script.byte()).checked_rem(from.len())?;
    from.remove(index)
}
