//! Every scenario file passes, and shows what it is about.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

mod support;

use core::time::Duration;

use mesh_core::time::Instant;
use sim::{LinkParams, NatParams, RunReport, Verdict, scenario::Endpoint};
use support::{mesh_sim, scenario_files, scenario_text};

#[test]
fn every_scenario_passes_with_its_first_seeds() {
    let mut arguments = vec!["run".to_owned()];
    arguments.extend(scenario_files());
    arguments.extend(["--seeds".to_owned(), "0..12".to_owned()]);
    let output = mesh_sim(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(output.exit, 0, "{}{}", output.stdout, output.stderr);
    assert_eq!(output.stdout.lines().filter(|line| line.starts_with("pass")).count(), scenario_files().len());
}

#[test]
fn every_scenario_is_read_back_as_it_was_written() {
    let unlined = |mut scenario: sim::Scenario| {
        scenario.expects.iter_mut().for_each(|spec| spec.line = None);
        format!("{scenario:?}")
    };
    for file in scenario_files() {
        let scenario = sim::scenario::parse(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let text = sim::scenario::write(&scenario).unwrap();
        let read = sim::scenario::parse(&text).unwrap_or_else(|error| panic!("{file}: {error}\n{text}"));
        assert_eq!(read.canonical(), scenario.canonical(), "{file}");
        assert_eq!(unlined(read), unlined(scenario), "{file}");
    }
}

#[test]
fn the_named_scenarios_exist() {
    for name in [
        "static-pair",
        "nat-one-side",
        "handshake-collision",
        "rekey-under-loss",
        "reorder-duplicate-corrupt",
        "restart-one-end",
        "router-reboot-same-ip",
        "collision-same-port-lan",
        "early-inbound-clash",
        "crossing-window",
        "stun-disagrees",
        "udp-blocked-tcp443",
        "relay-region-dies",
        "router-reboot-new-ip",
        "wifi-lte-handover",
        "ipv6-broken",
        "easy-easy",
        "easy-hard",
        "hard-hard",
        "cone-hard",
        "udp-blocked",
        "relay-restarted",
        "relay-black-holed",
        "roaming",
        "router-reboot",
        "ipv6-direct-ipv4-blocked",
        "two-agents-behind-one-nat",
        "policy-denied",
        "policy-withdrawn",
    ] {
        assert_eq!(sim::scenario::parse(&scenario_text(name)).unwrap().name, name);
    }
}

/// Seven kinds of networks, each with each and with itself.
#[test]
fn every_pair_of_networks_has_a_scenario() {
    let files = scenario_files();
    assert_eq!(files.iter().filter(|file| file.contains("/pair-")).count(), 28);
}

#[test]
fn damage_copies_and_disorder_are_seen_by_the_nodes() {
    let report = run("reorder-duplicate-corrupt", 1);
    for reason in ["forged", "replayed", "wrong_mac1"] {
        let seen = report.drops.contains_key(reason);
        // A damaged handshake is rare: few are sent.
        assert!(seen || reason == "wrong_mac1", "{reason} is not among {:?}", report.drops);
    }
}

#[test]
fn what_a_policy_denies_is_refused_by_the_filter_and_s1_looked_at_the_rest() {
    let report = run("policy-denied", 1);
    assert!(report.drops["filter_denied"] > 1_000, "{:?}", report.drops);
    let looked_at = report.invariants.iter().find(|(id, _)| id.name() == "S1").map(|(_, times)| *times);
    assert!(looked_at > Some(500), "{looked_at:?}");
}

#[test]
fn a_rebooted_router_lets_nothing_in_until_something_went_out() {
    let report = run("router-reboot-same-ip", 1);
    assert!(report.drops["nat_filtered"] > 5 && report.drops["link_down"] > 5, "{:?}", report.drops);
    assert_eq!(report.faults, 2);
}

#[test]
fn a_silent_restart_costs_the_time_that_the_paper_says() {
    let text = scenario_text("restart-one-end");
    let impatient = text.replace("within = \"16s\"", "within = \"14s\"");
    assert_ne!(text, impatient);
    let report = sim::run(&sim::scenario::parse(&impatient).unwrap(), 1);
    assert_eq!(report.verdict, Verdict::Fail);
}

/// Without the keepalive the router forgets the laptop, which shows that the scenario is about the keepalive.
#[test]
fn without_keepalives_the_public_side_cannot_speak_first() {
    let text = scenario_text("nat-one-side").replace("keepalive = \"25s\"\n", "");
    let report = sim::run(&sim::scenario::parse(&text).unwrap(), 1);
    assert_eq!(report.verdict, Verdict::Fail);
    assert!(report.drops["nat_filtered"] > 0, "{:?}", report.drops);
}

#[test]
fn two_home_routers_are_punched_when_both_sides_send() {
    sim::seeds(0..10, |w| {
        let home = w.net("home").nat(NatParams::LINUX_FILTERED).link(LinkParams::WIFI_GOOD);
        let cafe = w.net("cafe").nat(NatParams::LINUX_FILTERED);
        let (a, b) = (w.node("a", &home), w.node("b", &cafe));
        let keepalive = Some(Duration::from_secs(25));
        w.peer(a, b, Endpoint::Told, keepalive);
        w.peer(b, a, Endpoint::Told, keepalive);
        let _ = w.ping(a, b, Duration::from_millis(200)).start(Instant::from_secs(1));
        let _ = w.request(b, a, Duration::from_millis(500)).sizes(100, 1000);
        let _ = w.expect_delivery(a, b).within(Duration::from_secs(12));
        w.expect_direct(a, b, Duration::from_secs(12));
        let report = w.run_until(Instant::from_secs(30));
        assert_eq!(report.pairs[0].technique.map(|technique| technique.name()), Some("punch"));
    });
}

#[test]
#[should_panic(expected = "failed with seed 3")]
fn a_world_that_fails_says_with_which_seed() {
    sim::seeds(3..4, |w| {
        let net = w.net("net");
        let (a, b) = (w.node("a", &net), w.node("b", &net));
        w.peer(a, b, Endpoint::Unknown, None);
        let _ = w.ping(a, b, Duration::from_secs(1));
        let _ = w.expect_delivery(a, b).within(Duration::from_secs(2));
        w.run_until(Instant::from_secs(5));
    });
}

#[test]
fn a_star_of_many_nodes_speaks() {
    let scenario = sim::star(20, Duration::from_millis(100), Duration::from_secs(2));
    let report = sim::run(&scenario, 0);
    assert_eq!((report.verdict, report.pairs.len()), (Verdict::Pass, 19));
    assert!(report.pairs.iter().all(|pair| pair.direct.is_some()));
}

/// What differs between two routers of one profile but for one parameter is what the parameter is about.
#[test]
fn an_open_router_is_what_keeps_the_two_apart_and_a_filtered_one_does_not() {
    let text = scenario_text("early-inbound-clash").replace("linux-open", "linux-filtered");
    let report = sim::run(&sim::scenario::parse(&text).unwrap(), 1);
    assert_eq!(report.verdict, Verdict::Fail);
    let clash = run("early-inbound-clash", 1);
    assert!(clash.drops["nat_local"] > 0 && clash.drops["nat_filtered"] > 0, "{:?}", clash.drops);
}

#[test]
fn a_firewall_that_blocks_udp_or_wireguard_lets_nothing_pass() {
    let drops = |firewall: &str| {
        let net = format!("name = \"left\"\nfirewall = \"{firewall}\"");
        let text = scenario_text("static-pair").replace("name = \"left\"", &net);
        let report = sim::run(&sim::scenario::parse(&text).unwrap(), 1);
        (report.verdict, report.pairs[0].direct.is_some(), report.drops)
    };
    for firewall in ["fw-udp-blocked", "fw-https-only", "fw-dpi-wg"] {
        let (verdict, is_direct, drops) = drops(firewall);
        assert!(verdict == Verdict::Fail && !is_direct && drops["firewall_blocked"] > 5, "{firewall}: {drops:?}");
    }
    for firewall in ["fw-host", "fw-cloud", "fw-quic-blocked"] {
        assert!(drops(firewall).1, "{firewall}");
    }
}

/// Two homes of one carrier reach each other by the addresses that the carrier shows, if it turns packets round.
#[test]
fn homes_behind_one_carrier_need_its_hairpin() {
    let world = r#"
schema = 1
name = "two-homes"
seeds = [1]
duration = "30s"

[[net]]
name = "carrier"
nat = { profile = "linux-filtered", filter = "eif", pool = { addresses = 1 }, alloc = "preserve", port_range = "linux" }

[[net]]
name = "one"
nat = "linux-filtered"
behind = "carrier"

[[net]]
name = "other"
nat = "linux-filtered"
behind = "carrier"

[[node]]
name = "a"
net = "one"
port = 5001

[[node]]
name = "b"
net = "other"
port = 5002

[[peer]]
of = "a"
is = "b"
endpoint = true

[[peer]]
of = "b"
is = "a"
endpoint = true

[[traffic]]
kind = "ping"
from = "a"
to = "b"
every = "500ms"

[[traffic]]
kind = "ping"
from = "b"
to = "a"
every = "500ms"

[[expect]]
that = "delivered"
from = "a"
to = "b"
within = "20s"
"#;
    let run = |text: &str| sim::run(&sim::scenario::parse(text).unwrap(), 1);
    let turning = world.replace("pool =", "hairpin = \"external-src\", pool =");
    assert_eq!(run(&turning).failed, Vec::<String>::new());
    let apart = run(world);
    assert!(apart.verdict == Verdict::Fail && apart.drops["nat_hairpin"] > 0, "{:?}", apart.drops);
}

/// A router that becomes a hard one keeps its sessions; after the next reboot it shows another port.
#[test]
fn a_nat_changes_its_behaviour_when_the_scenario_says_so() {
    let text = scenario_text("router-reboot-same-ip");
    let event =
        "[[event]]\nat = \"20s\"\ndo = \"nat\"\nnat = \"home\"\nset = { mapping = \"apdm\", alloc = \"random\" }\n\n";
    let changed = text.replacen("[[event]]", &format!("{event}[[event]]"), 1);
    let report = sim::run(&sim::scenario::parse(&changed).unwrap(), 1);
    assert_eq!((report.verdict, report.faults), (Verdict::Fail, 3));
    assert!(report.failed.iter().all(|failed| failed.contains("path_changed")), "{:?}", report.failed);
}

/// A link that goes down, comes up and changes is seen by the traffic over it, when it happens.
#[test]
fn links_change_when_the_scenario_says_so() {
    let events = r#"
[[event]]
at = "10s"
do = "link"
link = "left"
state = "down"
for = "2s"

[[event]]
at = "20s"
do = "link"
link = "left"
set = { delay = "200ms" }

[[event]]
at = "30s"
do = "link"
link = "right"
state = "down"

[[event]]
at = "31s"
do = "link"
link = "right"
state = "up"
"#;
    let text = scenario_text("static-pair");
    let (world, _) = text.split_once("[[expect]]").unwrap();
    let expect = |expectation: &str| {
        let pair = "from = \"alice\"\nto = \"bob\"";
        let text = format!("{world}{events}\n[[expect]]\n{pair}\n{expectation}\n");
        sim::run(&sim::scenario::parse(&text).unwrap(), 1).verdict
    };
    let outage = |max: &str, outside: &str| {
        expect(&format!("that = \"outage\"\nmax = \"{max}\"\noutside = [\"0s..9s\", {outside}]"))
    };
    assert_eq!(outage("500ms", "\"10s..12300ms\", \"20s..21s\", \"30s..31300ms\""), Verdict::Pass);
    assert_eq!(outage("1900ms", "\"20s..60s\""), Verdict::Fail);
    assert_eq!(outage("900ms", "\"9s..29s\""), Verdict::Fail);
    assert_eq!(expect("that = \"rtt\"\nafter = \"21s\"\np50 = \"380ms\""), Verdict::Fail);
    assert_eq!(expect("that = \"rtt\"\nafter = \"21s\"\np50 = \"420ms\""), Verdict::Pass);
}

/// A panic inside a host is a broken invariant of that host, with the seed, and not the end of the program.
#[test]
fn a_panic_in_a_host_is_told_as_a_broken_invariant() {
    let world = sim::World::new(1);
    let net = world.net("net");
    let (a, b) = (world.node("a", &net), world.node("b", &net));
    world.befriend(a, b);
    // A node refuses a peer that is listed twice; the file format does not let that through.
    world.befriend(a, b);
    let report = sim::run(&world.scenario(Instant::from_secs(1)), 1);
    assert_eq!(report.verdict, Verdict::Fail);
    assert!(report.failed[0].starts_with("invariant S12 at 0.000000s: a panicked"), "{:?}", report.failed);
}

fn run(name: &str, seed: u64) -> RunReport {
    sim::run(&sim::scenario::parse(&scenario_text(name)).unwrap(), seed)
}
