//! What is wrong is said in one sentence, with its place, and told by the exit status.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

mod support;

use std::{fs, path::PathBuf};

use mesh_core::rng::Seed;
use support::{Output, mesh_sim, scenario_text};

#[test]
fn a_misspelt_key_is_refused_with_its_place_and_the_nearest_key() {
    refused("misspelt", |text| text.replacen("keepalive =", "keepalife =", 1), "28:1", "did you mean `keepalive`?");
    refused("misspelt-top", |text| text.replacen("duration", "durration", 1), "6:1", "did you mean `duration`?");
    refused("misspelt-word", |text| text.replacen("\"ping\"", "\"pinf\"", 1), "35:8", "did you mean `ping`?");
    refused("misspelt-node", |text| text.replace("to = \"server\"", "to = \"sever\""), "37:6", "`server`");
    refused("misspelt-that", |text| text.replacen("\"delivered\"", "\"deliverd\"", 1), "52:8", "`delivered`");
}

#[test]
fn what_is_not_built_yet_is_said_to_be_so() {
    refused("relay", |text| format!("{text}\n[[relay]]\nname = \"r\"\n"), "", "a relay needs the key `region`");
    let lost = "\n[region.eu]\n[[relay]]\nname = \"r\"\nregion = \"ue\"\n";
    refused("region", |text| format!("{text}{lost}"), "", "did you mean `eu`?");
    let event = "\n[[event]]\nat = \"1s\"\ndo = \"suspend\"\nnode = \"laptop\"\ngap = \"1s\"\n";
    refused("event", |text| format!("{text}{event}"), "", "this event has no key `gap`");
    refused("profile", |text| text.replace("linux-filtered", "one2one"), "10:7", "there are: linux-filtered");
    refused("goodput", |text| text.replacen("\"path\"", "\"goodput\"", 1), "", "`goodput` are not built yet");
}

#[test]
fn a_world_with_control_says_what_it_lacks() {
    refused("control", |text| format!("{text}\n[control]\n"), "", "control tells nodes of relays");
    let relay = "\n[region.eu]\n[[relay]]\nname = \"r\"\nregion = \"eu\"\n";
    refused("peers", |text| format!("{text}{relay}[control]\n"), "", "leave out `[[peer]]`");
    let without_peers = |text: &str, more: &str| {
        let tables = text.split_inclusive("\n\n").filter(|table| !table.starts_with("[[peer]]"));
        format!("{}{relay}{more}", tables.collect::<String>())
    };
    let control = |name: &str, more: &str, message: &str| {
        refused(name, |text| without_peers(text, more), "", message);
    };
    control("control-key", "[control]\npollicy = \"{}\"\n", "did you mean `policy`?");
    control("control-policy", "[control]\npolicy = '{\"acls\": 7}'\n", "the policy: ");
    control("control-file", "[control]\npolicy_file = \"none.hujson\"\n", "the file `none.hujson` cannot be read");
    control("control-none", "[[event]]\nat = \"1s\"\ndo = \"logout\"\nnode = \"laptop\"\n", "there is no `[control]`");
    let event = |event: &str| format!("[control]\n[[event]]\nat = \"1s\"\ndo = \"control\"\n{event}\n");
    control("control-state", &event("state = \"kild\""), "did you mean `killed`?");
    control("control-for", &event("state = \"reset\"\nfor = \"1s\""), "have a `for`");
    control("control-within", &event("state = \"killed\"\nwithin = 3"), "only `crash` is `within`");
    let expect = |expect: &str| format!("[control]\n[[expect]]\nthat = \"state\"\n{expect}\n");
    control("state", &expect("is = \"runing\""), "did you mean `running`?");
}

#[test]
fn a_nat_says_which_of_its_parameters_is_wrong() {
    let with = |nat: &str| format!("nat = {{ profile = \"linux-open\", {nat} }}");
    let nat = |name: &str, nat: &str, place: &str, message: &str| {
        refused(name, |text| text.replace("nat = \"linux-filtered\"", &with(nat)), place, message);
    };
    nat("nat-key", "maping = \"eim\"", "10:33", "did you mean `mapping`?");
    nat("nat-word", "filter = \"eiff\"", "10:42", "did you mean `eif`?");
    nat("nat-icmp", "icmp = false", "10:33", "`icmp` of a NAT is not built yet");
    nat("nat-range", "port_range = \"9-8\"", "10:46", "a range of ports");
    nat("nat-block", "port_block = { size = 1024, max_blocks = 64 }", "10:46", "more than the 64512 ports");
    nat("nat-delta", "alloc = { kind = \"random\", delta = 2 }", "10:41", "only `sequential` has a `delta`");
    let profile = |text: &str| text.replace("linux-filtered", "linux-opn");
    refused("nat-profile", profile, "10:7", "did you mean `linux-open`?");
}

#[test]
fn firewalls_are_known_by_name_and_some_are_not_built() {
    let firewall = |name: &str, place: &str, message: &str| {
        let line = format!("name = \"datacentre\"\nfirewall = \"{name}\"");
        refused(name, |text| text.replace("name = \"datacentre\"", &line), place, message);
    };
    firewall("fw-captive", "15:12", "`fw-captive` is not built yet: it is about HTTP");
    firewall("fw-hst", "15:12", "did you mean `fw-host`?");
    refused(
        "behind",
        |text| text.replace("name = \"datacentre\"", "name = \"datacentre\"\nbehind = \"home\""),
        "15:10",
        "a net behind another needs a NAT",
    );
}

#[test]
fn values_out_of_range_are_refused_with_their_place() {
    refused("duration", |text| text.replacen("\"7m\"", "\"7 minutes\"", 1), "6:12", "`duration` is a duration");
    refused("schema", |text| text.replacen("schema = 1", "schema = 2", 1), "3:10", "schema = 1");
    refused("seeds", |text| text.replacen("0..100", "9..9", 1), "5:9", "empty");
    refused("twice", |text| text.replacen("name = \"datacentre\"", "name = \"home\"", 1), "14:8", "exists already");
    refused("toml", |text| text.replacen("[[net]]", "[[net]", 1), "8:", "not TOML");
    refused("size", |text| text.replacen("every = \"200ms\"", "every = \"1s\"\nsize = 2", 1), "", "`size` is a whole");
}

#[test]
fn a_scenario_that_expects_nothing_is_refused() {
    let nothing = |text: &str| text[..text.find("[[expect]]").unwrap()].to_owned();
    refused("nothing", nothing, "1:1", "expects nothing");
}

#[test]
fn with_json_an_error_is_an_object_too() {
    let file = written("json", &scenario_text("static-pair").replacen("schema", "shema", 1));
    let output = mesh_sim(&["run", &file, "--json"]);
    let value: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!((output.exit, &value["error"]["code"]), (2, &"bad_scenario".into()));
    assert_eq!(value["error"]["hint"], "did you mean `schema`?");
}

#[test]
fn a_false_expectation_fails_with_the_seed_and_a_command_that_repeats_it() {
    let output = changed("false", |text| text.replace("within = \"7s\"", "within = \"2ms\""));
    assert_eq!(output.exit, 1);
    assert!(output.stderr.contains("failed with seed 0"), "{}", output.stderr);
    assert!(output.stderr.contains("mesh-sim replay ") && output.stderr.contains("--seed 0"));
    assert!(output.stderr.contains("line 51: delivered laptop to server"), "{}", output.stderr);
    // The last events before it was clear, not those at the end of the run.
    assert!(output.stderr.contains("delivered traffic 0 message 0"), "{}", output.stderr);
}

#[test]
fn an_expectation_that_was_never_evaluated_fails() {
    let expectations = [
        "that = \"rtt\"\nfrom = \"laptop\"\nto = \"server\"\nafter = \"6m\"\nmax = \"1s\"",
        "that = \"delivered\"\nfrom = \"laptop\"\nto = \"server\"\nafter = \"401s\"\nwithin = \"1s\"",
        "that = \"event\"\nis = \"handshake_given_up\"\nafter = \"6m\"\nwithin = \"9m\"",
    ];
    for (number, expectation) in expectations.iter().enumerate() {
        let name = format!("never-{number}");
        let output = changed(&name, |text| format!("{text}\n[[expect]]\n{expectation}\n"));
        assert_eq!(output.exit, 1, "{expectation}");
        assert!(output.stderr.contains("never evaluated"), "{}", output.stderr);
    }
    // A check that has nothing to look at has not passed: there is no NAT here.
    let text = scenario_text("static-pair") + "[[expect]]\nthat = \"invariants\"\nall = [\"nat\"]\n";
    let output = mesh_sim(&["run", &written("never-nat", &text), "--seeds", "0..1"]);
    assert!(output.exit == 1 && output.stderr.contains("never evaluated: nat"), "{}", output.stderr);
}

#[test]
fn a_share_of_the_seeds_is_judged_over_all_of_them() {
    let seldom = "[[expect]]\nthat = \"delivered\"\nfrom = \"laptop\"\nto = \"server\"\nwithin = \"1ms\"\nmin_rate = ";
    let output = changed("rate-low", |text| format!("{text}\n{seldom}0.0\n"));
    assert_eq!(output.exit, 0, "{}", output.stderr);
    let output = changed("rate-high", |text| format!("{text}\n{seldom}0.5\n"));
    assert_eq!(output.exit, 1);
    assert!(output.stderr.contains("held in 0 of 2 seeds, 50 % is expected"), "{}", output.stderr);
}

#[test]
fn a_run_without_end_is_a_fault_of_the_simulator() {
    let file = written("endless", &scenario_text("static-pair"));
    let output = mesh_sim(&["run", &file, "--seeds", "0..1", "--max-events", "100"]);
    assert_eq!(output.exit, 4);
    assert!(output.stderr.contains("no end to the events"), "{}", output.stderr);
}

#[test]
fn the_highest_exit_status_counts_and_all_files_are_run() {
    let wrong = written("highest", &scenario_text("static-pair").replace("max = \"25ms\"", "max = \"1ms\""));
    let right = written("right", &scenario_text("static-pair"));
    let output = mesh_sim(&["run", &wrong, &right, "--seeds", "0..1", "--json"]);
    assert_eq!((output.exit, output.stdout.lines().count()), (1, 2));
}

#[test]
fn json_has_the_fields_of_the_contract_and_no_nulls() {
    let file = written("fields", &scenario_text("nat-one-side"));
    let output = mesh_sim(&["run", &file, "--seeds", "7..8", "--json"]);
    assert!(!output.stdout.contains("null"));
    let value: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!((&value["schema"], &value["scenario"]), (&1.into(), &"nat-one-side".into()));
    let run = &value["runs"][0];
    assert_eq!((&run["seed"], &run["verdict"], &run["faults"]), (&7.into(), &"pass".into(), &0.into()));
    assert_eq!(run["digest"].as_str().unwrap().len(), 32);
    assert_eq!((&run["pairs"][0]["a"], &run["pairs"][0]["path"]), (&"laptop".into(), &"direct".into()));
    assert_eq!(run["pairs"][0]["technique"], "ordinary");
    assert!(run["pairs"][0]["direct_ms"].as_f64() >= run["pairs"][0]["first_delivery_ms"].as_f64());
    assert!(run["packets"]["wireguard_data"].as_u64() > run["packets"]["wireguard_handshake"].as_u64());
    assert!(
        run["packets"]["disco"] == 0
            && run["packets"]["derp_frames"] == 0
            && run["failed"].as_array().unwrap().is_empty()
    );
}

#[test]
fn junit_tells_each_expectation_and_what_failed() {
    let file = written("junit", &scenario_text("static-pair").replace("max = \"25ms\"", "max = \"1ms\""));
    let xml = scratch("junit.xml");
    let output = mesh_sim(&["run", &file, "--seeds", "0..2", "--junit", xml.to_str().unwrap()]);
    let text = fs::read_to_string(xml).unwrap();
    assert_eq!(output.exit, 1);
    assert_eq!((text.matches("<testcase").count(), text.matches("<failure").count()), (10, 1), "{text}");
    assert_eq!(text.matches("<testcase").count(), text.matches("</testcase>").count());
}

#[test]
fn verbs_that_are_not_built_say_so() {
    for verb in ["matrix", "show", "diff", "fmt"] {
        let output = mesh_sim(&[verb, "--seeds", "0..3"]);
        assert_eq!(output.exit, 2);
        assert!(output.stderr.contains(&format!("`mesh-sim {verb}` is not built yet")), "{}", output.stderr);
    }
}

#[test]
fn usage_help_and_version() {
    assert_eq!(mesh_sim(&["run"]).exit, 2);
    assert_eq!(mesh_sim(&["run", "no-such-file.toml"]).exit, 2);
    assert_eq!(mesh_sim(&["--help"]).exit, 0);
    let version = mesh_sim(&["--version"]);
    assert!(version.exit == 0 && version.stdout.starts_with("mesh-sim 0."), "{}", version.stdout);
    assert!(mesh_sim(&["completion", "bash"]).stdout.contains("mesh-sim"));
}

/// Damaged scenarios are refused or read; none makes the reader panic, and every place is in the text.
#[test]
fn no_text_makes_the_reader_panic() {
    let mut rng = Seed::from_number(1).stream("damage", 0);
    let mut refused = 0;
    for name in ["nat-one-side", "rekey-under-loss", "router-reboot-same-ip"] {
        let text = scenario_text(name).replace("home", "h\u{f6}me");
        for _ in 0..700 {
            let mut bytes = text.clone().into_bytes();
            for _ in 0..=rng.below(3) {
                let at = rng.below(bytes.len() as u64) as usize;
                match rng.below(3) {
                    0 => bytes[at] = rng.u32() as u8,
                    1 => drop(bytes.remove(at)),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            let text = String::from_utf8_lossy(&bytes);
            if let Err(error) = sim::scenario::parse(&text) {
                refused += 1;
                assert!((1..=text.lines().count() + 1).contains(&error.line) && error.column > 0, "{error}");
            }
        }
    }
    assert!(refused > 1000, "{refused}");
}

/// Runs `nat-one-side` after a change.
fn changed(name: &str, change: impl FnOnce(&str) -> String) -> Output {
    let file = written(name, &change(&scenario_text("nat-one-side")));
    mesh_sim(&["run", &file, "--seeds", "0..2"])
}

/// The change must be refused with this place and this text.
fn refused(name: &str, change: impl FnOnce(&str) -> String, place: &str, text: &str) {
    let output = changed(name, change);
    assert_eq!(output.exit, 2, "{}", output.stderr);
    assert!(output.stderr.contains(&format!("{name}.toml:{place}")), "{name}: {}", output.stderr);
    assert!(output.stderr.contains(text), "{name}: {}", output.stderr);
    assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
}

fn written(name: &str, text: &str) -> String {
    let path = scratch(&format!("{name}.toml"));
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn scratch(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}
