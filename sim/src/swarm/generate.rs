//! Bytes to a scenario: who is where, who tells them of each other, what they say, and what has to be true in the end.
//!
//! The first bytes say what kind of world it is. In worlds with control nodes join the real coordination server; in worlds
//! with maps the kernel hands these out; in worlds of static peers there are no relays, and clients talk to a server
//! with a public address. Whoever can reach a relay can be reached, so what has to be true is what the policy says.

use core::time::Duration;

use mesh_core::{derp::RegionId, node::BackendState, time::Instant};

use crate::{
    check::{CheckId, Expectation, Held, Hold, Ruling},
    host::{HostId, KeySetup, Preparation, message::MAX_BYTES},
    kernel::dice::Probability,
    net::{
        Ipv6, NetId, NetSetup,
        firewall::FirewallParams,
        link::{LinkParams, Loss},
        nat::NatParams,
    },
    scenario::{
        CONTROL, ControlSpec, DEFAULT_PORT, Endpoint, ExpectSpec, Maps, NetSpec, NodeSpec, PeerSpec, RelaySpec,
        RelayStart, ResolverSpec, Scenario, TrafficKind, TrafficSpec,
    },
};

use super::{
    bytes::Bytes,
    chaos,
    oracle::{Oracle, by_the_text},
    policies::{self, TAGS, USERS},
};

/// When faults begin: by then whoever starts with the world has joined.
const BOOT: Instant = Instant::from_secs(20);
/// From the last fault undone until everybody must be heard: without control; with it, when nodes may have to wait a minute
/// before they try again; and where a connection can have died without a word, which who is silent finds out in two.
const SETTLE: [Duration; 3] = [Duration::from_secs(30), Duration::from_secs(95), Duration::from_secs(160)];
/// So long before that those who are looked at begin to ask: WireGuard finds out in 15 s that a session is one-sided.
const LEAD: Duration = Duration::from_secs(20);
/// How long it is looked whether they are.
const LIVENESS: Duration = Duration::from_secs(75);
/// In this time of the liveness phase a message of those who may speak arrives, and its answer.
const HEARD: Duration = Duration::from_secs(10);
/// So long after the liveness phase began something happens once more, alone, in some worlds: who spoke speaks again.
const LATE: (u32, u32) = (16, 22);
/// How long nobody says anything at the end: longer than paths go on, in some worlds longer than sessions. In others there
/// is no such phase: who spoke goes on to the end.
const QUIET: [Duration; 3] = [Duration::from_secs(220), Duration::from_secs(1000), Duration::ZERO];

/// A narrow link: what a full packet takes in its tunnel over IPv6, and little more.
const NARROW: usize = 1400;
/// Bits a second of the slowest link, the queue of which holds a second; what somebody says who fills half of it, and for
/// how long.
const SLOW: u64 = 2_000_000;
const BULK_EVERY: Duration = Duration::from_millis(10);
const BULK: Duration = Duration::from_secs(12);

/// Pairs that are looked at in the liveness phase, at most.
const PAIRS: u32 = 6;

/// When the phases of a world begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Phases {
    pub(super) chaos: Instant,
    pub(super) heal: Instant,
}

/// What tells nodes of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Maps,
    Control,
    Static,
}

/// The world of some bytes.
#[must_use]
pub fn generate(bytes: &[u8], seed: u64) -> Scenario {
    generate_with(bytes, seed, by_the_text)
}

/// The same with another idea of what a policy allows, for tests of the search itself.
#[must_use]
pub fn generate_with(bytes: &[u8], seed: u64, oracle: Oracle) -> Scenario {
    let mut draw = Bytes::new(bytes);
    let kinds = [Kind::Maps, Kind::Maps, Kind::Control, Kind::Control, Kind::Control, Kind::Static];
    let kind = draw.pick(&kinds);
    let chaos_for = draw.time(20, 80);
    let phases = Phases { chaos: BOOT, heal: BOOT + chaos_for };
    let mut world = Scenario { name: format!("swarm-{seed}"), seeds: vec![seed], ..Scenario::default() };
    sites(&mut draw, kind, &mut world);
    let has_policy = kind == Kind::Control || (kind == Kind::Maps && draw.chance(128));
    nodes(&mut draw, kind, has_policy, phases, &mut world);
    let policy = has_policy.then(|| policies::draw(&mut draw));
    match kind {
        Kind::Static => peers(&mut world),
        Kind::Maps => {
            relays(&mut draw, &mut world);
            world.maps = if draw.chance(64) { Maps::Static } else { Maps::Live };
            world.policy.clone_from(&policy);
        }
        Kind::Control => {
            relays(&mut draw, &mut world);
            control(&mut draw, policy.clone(), &mut world);
        }
    }
    chatter(&mut draw, kind, phases, &mut world);
    chaos::draw(&mut draw, kind, phases, &mut world);
    let last = world.events.iter().rev().find_map(|event| chaos::policy_of(&event.fault)).map(str::to_owned);
    let settle = match kind {
        _ if world.events.iter().any(|event| chaos::can_cut(&event.fault)) => SETTLE[2],
        Kind::Control => SETTLE[1],
        Kind::Maps | Kind::Static => SETTLE[0],
    };
    let liveness = phases.heal + settle;
    let quiet = draw.pick(&[QUIET[0], QUIET[0], QUIET[0], QUIET[0], QUIET[1], QUIET[2]]);
    world.duration = (liveness + LIVENESS + quiet).since(Instant::ZERO);
    // In a world that goes on to the end control may not yet have been found again.
    if kind != Kind::Static && !quiet.is_zero() && draw.chance(110) {
        let at = liveness + draw.time(LATE.0, LATE.1);
        chaos::draw_late(&mut draw, kind, at, &mut world);
    }
    liveness_phase(&mut draw, kind, last.or(policy).as_deref(), oracle, liveness, &mut world);
    world
}

/// Where nodes can be.
fn sites(draw: &mut Bytes<'_>, kind: Kind, world: &mut Scenario) {
    let regions = draw.between(1, 3) as u16;
    for (one, other) in [(1, 2), (1, 3), (2, 3)] {
        if other <= regions {
            let latency = draw.pick(&[10, 45, 90]);
            world.latencies.push((one, other, Duration::from_millis(latency)));
        }
    }
    for number in 0..draw.between(1, 4) {
        let mut setup = NetSetup { region: draw.between(1, u32::from(regions)) as u16, ..NetSetup::PUBLIC };
        setup.link = link(draw);
        setup.ipv6 = draw.pick(&[Ipv6::None, Ipv6::None, Ipv6::Guarded, Ipv6::Open, Ipv6::Broken]);
        setup.nat = nat(draw);
        setup.firewall = firewall(draw, kind);
        let outside: Vec<_> =
            (0..number).map(NetId).filter(|net| world.nets[net.index()].setup.nat.is_some()).collect();
        if setup.nat.is_some() && !outside.is_empty() && draw.chance(40) {
            setup.behind = Some(draw.pick(&outside));
        }
        if kind == Kind::Static && number == 0 {
            (setup.nat, setup.firewall, setup.ipv6) = (None, None, Ipv6::None);
        }
        world.nets.push(NetSpec { name: format!("net-{}", number + 1), setup });
    }
}

fn link(draw: &mut Bytes<'_>) -> LinkParams {
    let preset = draw.pick(&["lan", "wifi-good", "lte", "wifi-busy", "leo", "dsl-bloat"]);
    let mut link = LinkParams::preset(preset).unwrap_or(LinkParams::LAN);
    // In a burst that goes on by packets a stream that waits longer for each try is silent for many seconds, and a
    // relay keeps nothing for so long: no budget of seconds holds. Bursts are for scenarios with budgets of their own.
    if let Loss::Bursts { mean, .. } = link.loss {
        link.loss = Loss::Bernoulli(mean);
    }
    if draw.chance(60) {
        spoil(draw, &mut link);
    }
    if draw.chance(50) {
        link.mtu_bytes = NARROW;
    }
    link
}

/// Makes a link worse, but not so that nothing gets through.
pub(super) fn spoil(draw: &mut Bytes<'_>, link: &mut LinkParams) {
    let share = |draw: &mut Bytes<'_>| Probability::from_basis_points(draw.pick(&[0, 20, 100, 200]));
    link.loss = Loss::Bernoulli(share(draw));
    link.duplicate = share(draw);
    link.reorder = share(draw);
    link.corrupt = Probability::from_basis_points(draw.pick(&[0, 0, 10]));
}

fn nat(draw: &mut Bytes<'_>) -> Option<NatParams> {
    let usual = [None, Some("linux-filtered"), Some("linux-filtered"), Some("easy-af"), Some("pf-default")];
    let name = if draw.chance(128) {
        let all: Vec<_> = NatParams::presets().collect();
        Some(draw.pick(&all))
    } else {
        draw.pick(&usual)
    };
    name.and_then(NatParams::preset)
}

fn firewall(draw: &mut Bytes<'_>, kind: Kind) -> Option<FirewallParams> {
    if !draw.chance(50) {
        return None;
    }
    let mild = ["fw-host", "fw-cloud", "fw6-home"];
    let all = ["fw-host", "fw-cloud", "fw6-home", "fw-udp-blocked", "fw-https-only", "fw-quic-blocked"];
    FirewallParams::preset(if kind == Kind::Static { draw.pick(&mild) } else { draw.pick(&all) })
}

fn nodes(draw: &mut Bytes<'_>, kind: Kind, has_policy: bool, phases: Phases, world: &mut Scenario) {
    let sites = world.nets.len() as u32;
    for number in 0..draw.between(2, 6) {
        let is_server = kind == Kind::Static && number == 0;
        let net = NetId(if is_server { 0 } else { draw.below(sites) });
        let port = if draw.chance(80) { 41_641 + draw.between(1, 4) as u16 } else { DEFAULT_PORT };
        let user = draw.pick(&USERS).to_owned();
        let tags = if has_policy && draw.chance(80) { vec![draw.pick(&TAGS).to_owned()] } else { Vec::new() };
        // Some start one after the other, some in the middle of everything.
        let start = match draw.below(4) {
            0 | 1 => Instant::ZERO,
            2 => Instant::ZERO + draw.time(0, 15),
            _ => phases.chaos + draw.time(0, phases.heal.since(phases.chaos).as_secs() as u32),
        };
        let start = if is_server { Instant::ZERO } else { start };
        world.nodes.push(NodeSpec { name: format!("node-{}", number + 1), net, port, user, tags, start, key: None });
    }
}

/// All but the first are clients of the first.
fn peers(world: &mut Scenario) {
    let (server, keepalive) = (HostId(0), Some(Duration::from_secs(25)));
    for client in (1..world.nodes.len() as u32).map(HostId) {
        world.peers.push(PeerSpec { of: client, is: server, endpoint: Endpoint::Told, keepalive });
        world.peers.push(PeerSpec { of: server, is: client, endpoint: Endpoint::Unknown, keepalive: None });
    }
}

fn relays(draw: &mut Bytes<'_>, world: &mut Scenario) {
    // One in each region: relays of one region would have to hand packets on to each other, which ours do not.
    let regions = world.latencies.iter().map(|(_, other, _)| *other).max().unwrap_or(1);
    for region in 1..=draw.between(1, u32::from(regions)) as u16 {
        let Some(id) = RegionId::new(region) else { continue };
        let name = format!("relay-{region}");
        let net = place(&name, region, world);
        let start = draw.pick(&[RelayStart::Fast, RelayStart::Slow]);
        world.relays.push(RelaySpec { name, region: id, net, stun: true, derp: true, start });
    }
    // Who gets nothing but the web through a firewall asks a DNS server on this side of it, which there is not.
    let is_web_only = world.nets.iter().any(|net| net.setup.firewall == Some(FirewallParams::HTTPS_ONLY));
    if draw.chance(50) && !is_web_only {
        let net = place("resolver", 1, world);
        world.resolver = Some(ResolverSpec { net, delay: Duration::from_millis(u64::from(draw.between(1, 50))) });
    }
}

/// A net of its own for something that everybody can reach.
fn place(name: &str, region: u16, world: &mut Scenario) -> NetId {
    let setup = NetSetup { ipv6: Ipv6::Open, region, ..NetSetup::PUBLIC };
    world.nets.push(NetSpec { name: name.to_owned(), setup });
    NetId(world.nets.len() as u32 - 1)
}

fn control(draw: &mut Bytes<'_>, policy: Option<String>, world: &mut Scenario) {
    let net = place(CONTROL, 1, world);
    let commit = Duration::from_millis(draw.pick(&[2, 0, 10, 100]));
    let (mut users, mut keys) = (Vec::new(), Vec::<KeySetup>::new());
    for node in &mut world.nodes {
        let mut name = core::iter::once(&node.user).chain(&node.tags).map(String::as_str).collect::<Vec<_>>().join(" ");
        let ephemeral = draw.chance(20);
        if ephemeral {
            name += " ephemeral";
        }
        if !keys.iter().any(|key| key.name == name) {
            let (user, tags) = (node.user.clone(), node.tags.clone());
            keys.push(KeySetup { name: name.clone(), user, reusable: true, ephemeral, tags, expiry: None });
        }
        if !users.contains(&node.user) {
            users.push(node.user.clone());
        }
        node.key = Some(name);
    }
    world.control = Some(ControlSpec { net, commit, preparation: Preparation { users, keys, policy } });
}

/// Two nodes that are not one; in worlds of static peers a client and the server.
fn two(draw: &mut Bytes<'_>, kind: Kind, world: &Scenario) -> (HostId, HostId) {
    let nodes = world.nodes.len() as u32;
    if kind == Kind::Static {
        return (HostId(draw.between(1, nodes - 1)), HostId(0));
    }
    let from = draw.below(nodes);
    let to = (from + draw.between(1, nodes - 1)) % nodes;
    (HostId(from), HostId(to))
}

/// What is said until everything is undone.
fn chatter(draw: &mut Bytes<'_>, kind: Kind, phases: Phases, world: &mut Scenario) {
    for _ in 0..draw.between(1, 5) {
        let (from, to) = two(draw, kind, world);
        let start = Instant::ZERO + draw.time(1, 25);
        let every = Duration::from_millis(draw.pick(&[1000, 500, 200, 5000, 50]));
        let large = draw.chance(40);
        let bytes = if large { draw.between(200, MAX_BYTES as u32) as usize } else { 56 };
        let kind = draw.pick(&[TrafficKind::Ping, TrafficKind::Request]);
        let stop = Some(phases.heal);
        world.traffic.push(TrafficSpec { kind, from, to, every, start, stop, bytes, answer_bytes: bytes });
    }
}

/// What has to be true once everything is undone.
fn liveness_phase(
    draw: &mut Bytes<'_>,
    kind: Kind,
    policy: Option<&str>,
    oracle: Oracle,
    liveness: Instant,
    world: &mut Scenario,
) {
    let quiet = liveness + LIVENESS;
    let mut expects = Vec::new();
    if kind == Kind::Control {
        let (is, within, hold) = (BackendState::Running, Some(Duration::ZERO), Hold::Always);
        expects.push(Expectation::State { node: None, is, after: liveness, within, hold, count: None });
    }
    let mut seen: Vec<(HostId, HostId)> = Vec::new();
    for _ in 0..draw.between(1, PAIRS) {
        let (from, to) = two(draw, kind, world);
        let ways = draw.pick(&[TrafficKind::Ping, TrafficKind::Request]);
        // An answer is no question: each two are looked at in one direction, so that the two are not confused.
        if seen.contains(&(from, to)) || seen.contains(&(to, from)) {
            continue;
        }
        seen.push((from, to));
        let bytes = if draw.chance(80) { MAX_BYTES } else { 56 };
        let said = TrafficSpec {
            kind: ways,
            from,
            to,
            every: Duration::from_secs(1),
            start: liveness - LEAD,
            stop: Some(quiet),
            bytes,
            answer_bytes: bytes,
        };
        let is_allowed = policy.is_none_or(|text| oracle(text, &world.nodes, (from, to), ways));
        let (start, stop) = (liveness, Some(liveness + BULK));
        let link = world.nets[world.nodes[from.index()].net.index()].setup.link;
        if draw.chance(128) && is_allowed && seen.len() == 1 && link.rate.is_some_and(|rate| rate <= SLOW) {
            let (bytes, every) = (MAX_BYTES, BULK_EVERY);
            let answer_bytes = if ways == TrafficKind::Ping { bytes } else { 56 };
            world.traffic.push(TrafficSpec { every, start, stop, bytes, answer_bytes, ..said.clone() });
        }
        world.traffic.push(said);
        let is = if is_allowed { Ruling::Allowed } else { Ruling::Denied };
        expects.push(Expectation::Acl { from, to, is, after: liveness, within: Duration::ZERO, until: Some(quiet) });
        let heard = |from, to| {
            let (after, within, held, via) = (liveness, Some(HEARD), Held::Once, None);
            Expectation::Delivered { from, to, after, within, held, via }
        };
        if is_allowed {
            expects.extend([heard(from, to), heard(to, from)]);
        }
    }
    expects.push(Expectation::Invariants { all: vec![CheckId::S12, CheckId::Conservation] });
    let spec = |expectation| ExpectSpec { line: None, expectation, min_rate: Probability::ONE };
    world.expects = expects.into_iter().map(spec).collect();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        scenario::{parse, write},
        swarm::{bytes, of_seed},
    };

    #[test]
    fn every_world_can_be_written_and_is_read_back_as_it_was() {
        for seed in 0..300 {
            let world = of_seed(seed);
            let text = write(&world).unwrap_or_else(|what| panic!("seed {seed} has {what}"));
            let mut read = parse(&text).unwrap_or_else(|error| panic!("seed {seed}: {error}\n{text}"));
            for spec in &mut read.expects {
                spec.line = None;
            }
            assert_eq!(format!("{read:?}"), format!("{world:?}"), "seed {seed}");
        }
    }

    #[test]
    fn worlds_of_all_kinds_with_every_fault_are_made() {
        let worlds: Vec<_> = (0..300).map(of_seed).collect();
        let some = |what: fn(&Scenario) -> bool| worlds.iter().filter(|world| what(world)).count() > 20;
        assert!(some(|world| world.control.is_some()) && some(|world| !world.peers.is_empty()));
        assert!(some(|world| world.policy.is_some()) && some(|world| world.maps == Maps::Static));
        assert!(
            some(|world| world.resolver.is_some())
                && some(|world| world.nets.iter().any(|net| net.setup.behind.is_some()))
        );
        let mut faults: Vec<_> = worlds
            .iter()
            .flat_map(|world| &world.events)
            .map(|event| format!("{:?}", event.fault).split([' ', '(']).next().unwrap_or_default().to_owned())
            .collect();
        faults.sort();
        faults.dedup();
        let all = [
            "Admin", "Control", "Firewall", "Link", "Move", "Nat", "Order", "Policy", "Reboot", "Relay", "Replay",
            "Resolver", "Restart", "Suspend",
        ];
        assert_eq!(faults, all);
    }

    #[test]
    fn no_bytes_are_the_simplest_world() {
        let world = generate(&[], 0);
        assert_eq!((world.nodes.len(), world.nets.len(), world.events.len()), (2, 2, 0));
        assert!(world.control.is_none() && world.policy.is_none());
    }

    #[test]
    fn a_world_takes_fewer_bytes_than_a_seed_has() {
        for seed in 0..300 {
            let all = bytes::of_seed(seed);
            let cut = &all[..all.len() - 100];
            assert_eq!(format!("{:?}", generate(cut, seed)), format!("{:?}", of_seed(seed)));
        }
    }
}
