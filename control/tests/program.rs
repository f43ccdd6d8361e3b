//! The program as scripts see it: what it prints, how it ends, what it leaves.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

#[path = "support/program.rs"]
mod program;

use std::{
    fs,
    os::unix::fs::{FileTypeExt, PermissionsExt},
};

use program::{Running, directory, run};

#[test]
fn the_version_is_one_line_with_name_and_commit() {
    let output = run(&["--version"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(text.starts_with("mesh-control 0.") && text.trim_end().ends_with(')'), "{text}");
    assert_eq!(text.lines().count(), 1);
}

#[test]
fn wrong_usage_is_exit_code_2_and_one_sentence() {
    for arguments in [
        &[][..],
        &["serve"],
        &["serve", "--server-url", "ftp://c"],
        &["serve", "--server-url", "http://c", "--relay", "none"],
        &["serve", "--server-url", "http://c", "--config", "/nonexistent"],
        &["keys", "create"],
        &["policy", "check", "/nonexistent"],
    ] {
        let output = run(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
        assert!(stderr.starts_with("mesh-control: "), "{arguments:?}: {stderr}");
    }
    let output = run(&["--json", "serve"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["error"]["code"], "no-server-url");
    assert!(json["error"]["hint"].as_str().unwrap().contains("--server-url"));
}

#[test]
fn without_a_server_the_verbs_say_so() {
    let socket = directory("nobody").join("s");
    let output = run(&["--socket", socket.to_str().unwrap(), "users", "list"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("mesh-control serve"));
}

#[test]
fn a_server_ends_cleanly_and_leaves_no_socket() {
    let mut server = Running::start("end", &[]);
    let socket = program::socket(&server.state);
    let found = fs::symlink_metadata(&socket).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    for name in ["control.db", "noise.key"] {
        assert_eq!(fs::metadata(server.state.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    server.signal("HUP");
    assert_eq!(server.json(&["users", "list"]), serde_json::json!([]));
    server.signal("INT");
    assert_eq!(server.exit_code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn two_servers_do_not_share_a_state() {
    let server = Running::start("twice", &[]);
    let state = server.state.to_str().unwrap();
    let map = server.state.join("derp.json");
    let output = run(&[
        "serve",
        "--server-url",
        "http://c",
        "--listen",
        "127.0.0.1:0",
        "--relay",
        "none",
        "--derp-map",
        map.to_str().unwrap(),
        "--state-dir",
        state,
    ]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("another mesh-control"));
}

#[test]
fn the_key_and_what_was_said_outlive_a_restart() {
    let mut server = Running::start("again", &[]).with_user("alice");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let key = runtime.block_on(program::server_key(server.address("http")));
    server.signal("TERM");
    assert_eq!(server.exit_code(), Some(0));
    let again = Running::start_in(&server.state, &[]);
    assert_eq!(runtime.block_on(program::server_key(again.address("http"))), key);
    assert_eq!(again.json(&["users", "list"])[0]["loginName"], "alice");
    assert_eq!(again.verb(&["policy", "get"]), program::ALLOW_ALL);
}

#[test]
fn keys_are_printed_alone_and_listed_without_their_secret() {
    let server = Running::start("keys", &[]).with_user("alice");
    let key = server.verb(&["keys", "create", "--user", "alice", "--tags", "", "--expiry", "1h"]);
    let (id, secret) = key.strip_prefix("tskey-auth-").unwrap().split_once('-').unwrap();
    assert_eq!(key.lines().count(), 1);
    let list = server.verb(&["keys", "list"]);
    assert!(list.contains(id) && !list.contains(secret), "{list}");
    let made = server.json(&["keys", "create", "--user", "alice", "--reusable", "--ephemeral"]);
    assert!(made["key"].as_str().unwrap().starts_with("tskey-auth-k"));
    assert_eq!(made["capabilities"]["devices"]["create"]["ephemeral"], true);
    assert_eq!(server.verb(&["keys", "expire", id]), id);
    assert_eq!(server.json(&["keys", "list"])[0]["invalid"], true);
    for wrong in [&["keys", "expire", "kNobodyCNTRL"][..], &["keys", "create", "--user", "bob"]] {
        let output = server.try_verb(wrong);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
    }
    let long = server.try_verb(&["keys", "create", "--user", "alice", "--expiry", "91d"]);
    assert_eq!(long.status.code(), Some(1), "{long:?}");
}

#[test]
fn a_bad_policy_is_told_with_its_place_and_changes_nothing() {
    let server = Running::start("policy", &[]);
    let listed = server.verb(&["nodes", "list"]);
    assert!(listed.starts_with("no policy is stored: nothing is allowed"), "{listed}");
    let none = server.try_verb(&["policy", "get"]);
    assert_eq!(none.status.code(), Some(1));

    let server = server.with_user("alice");
    assert!(server.verb(&["nodes", "list"]).starts_with("NAME"));
    let file = server.state.join("bad.json");
    fs::write(&file, "{\n  \"acls\": [{\"action\": \"accept\", \"src\": [\"nobody\"], \"dst\": [\"*:*\"]}]\n}")
        .unwrap();
    for verb in ["set", "check", "diff"] {
        let output = server.try_verb(&["policy", verb, file.to_str().unwrap()]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{verb}: {stderr}");
        assert!(stderr.starts_with("line 2, column "), "{verb}: {stderr}");
    }
    assert_eq!(server.verb(&["policy", "get"]), program::ALLOW_ALL);
    let explained = server.verb(&["policy", "explain", "100.64.0.1", "100.64.0.2:22"]);
    assert!(!explained.is_empty());
    fs::write(&file, "{\"acls\": []}").unwrap();
    assert!(server.verb(&["policy", "diff", file.to_str().unwrap()]).starts_with("- acls entry 1"));
    server.verb(&["policy", "set", file.to_str().unwrap()]);
    let denied = server.try_verb(&["policy", "explain", "100.64.0.1", "100.64.0.2:22", "udp"]);
    assert_eq!(denied.status.code(), Some(1), "{denied:?}");
    assert!(!denied.stdout.is_empty() && denied.stderr.is_empty(), "{denied:?}");
}

#[test]
fn a_policy_is_checked_without_a_server_as_far_as_that_goes() {
    let state = directory("check-alone");
    let (file, socket) = (state.join("policy.json"), state.join("s"));
    let check = |text: &str, flags: &[&str]| {
        fs::write(&file, text).unwrap();
        let verb = ["--socket", socket.to_str().unwrap(), "policy", "check", file.to_str().unwrap()];
        let output = run(&[flags, &verb].concat());
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, said, _) = check(program::ALLOW_ALL, &[]);
    assert!(code == Some(0) && said.contains("good by itself; no server runs at"), "{said}");
    let tests = r#"{"acls": [{"action": "accept", "src": ["a@"], "dst": ["*:*"]}],
        "tests": [{"src": "a@", "accept": ["100.64.0.1:1"]}]}"#;
    let (code, said, _) = check(tests, &["--json"]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, said), (Some(0), serde_json::json!({ "network": false, "testsNotJudged": 1 })));
    let (code, _, error) =
        check("{\n \"acls\": [{\"action\": \"accept\", \"src\": [\"nobody\"], \"dst\": [\"*:*\"]}]\n}", &[]);
    assert!(code == Some(1) && error.starts_with("line 2, column "), "{error}");
    let (code, _, error) = check(
        "{\"acls\": [], \"ssh\": [{\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*\"], \"users\": [\"root\"]}]}",
        &[],
    );
    assert!(code == Some(1) && error.contains("\"ssh\" is something that this server does not have"), "{error}");
}

#[test]
fn a_first_policy_is_stored_once_and_never_put_over_another() {
    let state = directory("first-policy");
    let server = Running::start_in(&state, &["--first-policy", "own"]);
    assert!(server.verb(&["policy", "get"]).contains("autogroup:self:*"));
    let file = state.join("policy.json");
    fs::write(&file, program::ALLOW_ALL).unwrap();
    server.verb(&["policy", "set", file.to_str().unwrap()]);
    let state = server.kill();
    let again = Running::start_in(&state, &["--first-policy", "own"]);
    assert_eq!(again.verb(&["policy", "get"]), program::ALLOW_ALL);
    drop(again);

    let of_file = Running::start("first-policy-file", &["--first-policy", file.to_str().unwrap()]);
    assert_eq!(of_file.verb(&["policy", "get"]), program::ALLOW_ALL);
    drop(of_file);
    let refused = |text: &str| {
        let state = directory("first-policy-bad");
        let (bad, map) = (state.join("policy.json"), state.join("derp.json"));
        fs::write(&bad, text).unwrap();
        fs::write(&map, program::DERP_MAP).unwrap();
        let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
        let flags = format!(
            "serve --server-url http://c --listen 127.0.0.1:0 --relay none --derp-map {} --state-dir {} --first-policy {}",
            path(&map),
            path(&state),
            path(&bad)
        );
        let socket = path(&program::socket(&state));
        let output = run(&[&["--socket", &socket][..], &flags.split(' ').collect::<Vec<_>>()].concat());
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(2), &[][..]), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused("{\n \"acls\": 7}").contains("line 2, column "));
    assert!(
        refused("{\"acls\": [], \"tests\": [{\"src\": \"100.64.0.1\", \"accept\": [\"100.64.0.2:1\"]}]}")
            .contains("want: Accept")
    );
}

#[test]
fn a_key_may_make_its_user() {
    let server = Running::start("create-user", &[]);
    let create = ["keys", "create", "--user", "me"];
    assert_eq!(server.try_verb(&create).status.code(), Some(1), "a misspelt name makes nobody");
    for _ in 0..2 {
        let key = server.verb(&[&create[..], &["--create-user", "--reusable"]].concat());
        assert!(key.starts_with("tskey-auth-"), "{key}");
    }
    let users = server.json(&["users", "list"]);
    assert_eq!((users.as_array().unwrap().len(), &users[0]["loginName"]), (1, &"me".into()));
    let odd = server.try_verb(&["keys", "create", "--user", "a b", "--create-user"]);
    assert_eq!(odd.status.code(), Some(1), "{odd:?}");
}

#[test]
fn a_relay_inside_is_in_the_map_and_keeps_its_certificate() {
    let state = directory("embedded");
    let flags = ["--relay", "embedded", "--derp-listen", "127.0.0.1:0", "--stun-listen", "127.0.0.1:0"];
    let mut server = Running::start_in(&state, &flags);
    assert!(server.address("derp").port() > 0 && server.address("stun").port() > 0);
    let certificate = fs::read(state.join("relay.crt")).unwrap();
    for name in ["relay.crt", "relay.pem", "relay.key"] {
        assert_eq!(fs::metadata(state.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    server.signal("TERM");
    assert_eq!(server.exit_code(), Some(0));
    let _again = Running::start_in(&state, &flags);
    assert_eq!(fs::read(state.join("relay.crt")).unwrap(), certificate);
}
