//! Worlds that a user writes: nodes that know each other only by key find each other over a relay, and directly where
//! their NATs allow it.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

mod support;

use std::{fs, path::PathBuf};

use sim::{RunReport, Verdict};
use support::{mesh_sim, run_json, scenario_files, scenario_text};

/// Two nets with the same NAT, a relay, and what is expected of the path.
fn world(nat: &str, path: &str) -> String {
    format!(
        r#"
schema = 1
name = "made-by-a-user"
seeds = "0..3"
duration = "40s"

[region.eu]

[[relay]]
name = "relay-eu"
region = "eu"

[[net]]
name = "home"
nat = {nat}
link = {{ delay = "10ms" }}

[[net]]
name = "office"
nat = {nat}
link = {{ delay = "20ms" }}

[[node]]
name = "laptop"
net = "home"

[[node]]
name = "server"
net = "office"

[[traffic]]
kind = "ping"
from = "laptop"
to = "server"
every = "500ms"
start = "1s"

[[expect]]
that = "path"
between = ["laptop", "server"]
is = "{path}"
after = "1s"
within = "5s"
always = true
"#
    )
}

#[test]
fn two_hard_nats_stay_on_the_relay_and_expecting_more_fails() {
    assert_eq!(exit("relay", &world("\"linux-random\"", "relay")), (0, true));
    assert_eq!(exit("direct", &world("\"linux-random\"", "direct")), (1, false));
}

#[test]
fn the_same_nats_with_one_parameter_changed_are_punched() {
    let nat = "{ profile = \"linux-random\", mapping = \"eim\" }";
    assert_eq!(exit("changed", &world(nat, "direct")), (0, true));
    let report = run(&world(nat, "direct"));
    assert_eq!(report.pairs[0].technique.map(|technique| technique.name()), Some("punch"));
}

#[test]
fn the_real_protocols_are_counted() {
    let file = scenario_files().into_iter().find(|file| file.ends_with("/easy-easy.toml")).unwrap();
    let value = run_json(&file, "0..1");
    let run = &value["runs"][0];
    for kind in ["wireguard_handshake", "wireguard_data", "disco", "stun", "derp_frames"] {
        assert!(run["packets"][kind].as_u64() > Some(0), "{kind}: {}", run["packets"]);
    }
    let pair = &run["pairs"][0];
    assert_eq!((&pair["path"], &pair["technique"]), (&"direct".into(), &"punch".into()));
    let times = ["relay_up_ms", "first_delivery_ms", "direct_ms"].map(|key| pair[key].as_f64().unwrap());
    assert!(times[0] < times[1] && times[0] < times[2], "{times:?}");
    let invariants = run["invariants"].as_array().unwrap();
    for id in ["S6", "N1", "N2", "L1", "L2"] {
        assert!(invariants.iter().any(|one| one["id"] == id && one["checked"].as_u64() > Some(0)), "{id}");
    }
}

/// Addresses come by call-me-maybe alone where maps do not say them.
#[test]
fn maps_without_addresses_are_enough() {
    let text = world("\"linux-filtered\"", "direct");
    let report = run(&text.replace("schema = 1", "schema = 1\nmaps = \"static\""));
    assert_eq!(report.failed, Vec::<String>::new());
    let at = |report: &RunReport| report.pairs[0].direct;
    assert_ne!(at(&report), at(&run(&text)), "and they are found otherwise");
}

#[test]
fn the_nearer_region_is_found_without_udp() {
    let text = scenario_text("udp-blocked-tcp443");
    assert_eq!(run(&text).verdict, Verdict::Pass);
    // When the farther one is all there is, the round trips are longer: the expectation is about the choice.
    let farther = text.replace("name = \"relay-eu\"\nregion = \"eu\"", "name = \"relay-eu\"\nregion = \"us\"");
    assert_ne!(text, farther);
    let report = run(&farther);
    assert!(report.failed.iter().any(|failed| failed.contains("rtt alice to bob")), "{:?}", report.failed);
}

#[test]
fn names_are_resolved_for_the_relay_and_for_stun() {
    let resolver = "\n[resolver]\nnet = \"office\"\ndelay = \"5ms\"\n";
    let text = world("\"linux-filtered\"", "direct").replace("[[traffic]]", &format!("{resolver}\n[[traffic]]"));
    // A server behind a NAT answers its neighbour alone, so the resolver has a net of its own.
    let public = "[[net]]\nname = \"public\"\n\n[[node]]\nname = \"laptop\"";
    let text = text
        .replace("[[node]]\nname = \"laptop\"", public)
        .replace("net = \"office\"\ndelay", "net = \"public\"\ndelay");
    let report = run(&text);
    assert_eq!(report.failed, Vec::<String>::new());
    assert!(report.packets["stun"] > 0);
}

/// A relay's messages are told from direct ones.
#[test]
fn how_a_message_came_can_be_expected() {
    let expect = |via: &str| {
        let expect =
            format!("\n[[expect]]\nthat = \"delivered\"\nfrom = \"laptop\"\nto = \"server\"\nvia = \"{via}\"\n");
        run(&(world("\"linux-random\"", "relay") + &expect)).verdict
    };
    assert_eq!((expect("relay"), expect("direct")), (Verdict::Pass, Verdict::Fail));
}

fn run(text: &str) -> RunReport {
    sim::run(&sim::scenario::parse(text).unwrap(), 1)
}

/// The exit status, and whether nothing was complained about.
fn exit(name: &str, text: &str) -> (i32, bool) {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("paths-{name}.toml"));
    fs::write(&path, text).unwrap();
    let output = mesh_sim(&["run", path.to_str().unwrap()]);
    (output.exit, output.stderr.is_empty())
}
