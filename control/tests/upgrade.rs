//! State directories of earlier programs, read by this one. Each form that was ever in use has a directory below
//! `fixtures`, written by the program of its time. A change of form adds one and edits none.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

#[path = "support/program.rs"]
mod program;

use std::{fs, path::Path};

use program::{Running, directory};
use serde_json::Value;

#[test]
fn state_of_earlier_programs_is_read_and_can_be_changed() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut forms: Vec<_> = fs::read_dir(fixtures).unwrap().map(|entry| entry.unwrap().path()).collect();
    forms.sort();
    assert!(!forms.is_empty());
    for form in forms {
        let name = form.file_name().unwrap().to_str().unwrap().to_owned();
        let state = directory(&format!("upgrade-{name}"));
        for entry in fs::read_dir(&form).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), state.join(entry.file_name())).unwrap();
        }
        let relay = fs::read(state.join("relay.key")).unwrap();
        // The second start reads what the first has written.
        for user in ["carol@example.com", "dave@example.com"] {
            let mut server = start(&state);
            see(&server, &name);
            server.verb(&["users", "create", user]);
            assert!(server.verb(&["users", "list"]).contains(user));
            server.signal("TERM");
            assert_eq!(server.exit_code(), Some(0));
        }
        assert_eq!(fs::read(state.join("relay.key")).unwrap(), relay, "{name}");
    }
}

fn start(state: &Path) -> Running {
    let relay = ["--relay", "embedded", "--relay-host", "127.0.0.1", "--derp-listen", "127.0.0.1:0"];
    let flags = [&relay[..], &["--stun-listen", "127.0.0.1:0", "--base-domain", "example.com"]].concat();
    Running::start_in(state, &flags)
}

/// What every fixture holds.
fn see(server: &Running, form: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let key = runtime.block_on(program::server_key(server.address("http")));
    assert_eq!(key.to_string(), SERVER_KEY, "{form}");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let users = server.json(&["users", "list"]);
    let users: Vec<_> = users.as_array().unwrap().iter().map(|user| text(&user["loginName"])).collect();
    assert_eq!(users[..2], ["alice@example.com", "bob@example.com"], "{form}");
    let nodes = server.json(&["nodes", "list"]);
    let nodes: Vec<_> = nodes.as_array().unwrap().iter().collect();
    assert_eq!(nodes.len(), 2, "{form}");
    let shown = |node: &Value| (text(&node["name"]), text(&node["addresses"][0]), text(&node["nodeKey"]));
    assert_eq!(shown(nodes[0]), ("laptop.example.com".into(), "100.64.0.1".into(), LAPTOP_KEY.into()), "{form}");
    assert_eq!(shown(nodes[1]), ("www.example.com".into(), "100.64.0.2".into(), WEB_KEY.into()), "{form}");
    assert_eq!(nodes[1]["tags"], serde_json::json!(["tag:server"]), "{form}");
    assert_eq!(nodes[1]["enabledRoutes"], serde_json::json!(["10.20.0.0/16"]), "{form}");
    let keys = server.json(&["keys", "list"]);
    let ids: Vec<_> = keys.as_array().unwrap().iter().map(|key| text(&key["id"])).collect();
    for id in ["kp8QqdVeGxHPCNTRL", "kgJSWpRFn9G7CNTRL", "kEiwfjq5LYLXCNTRL"] {
        assert!(ids.contains(&id.to_owned()), "{form}: no {id} in {ids:?}");
    }
    assert!(server.verb(&["policy", "get"]).starts_with("// Everybody reaches everything."), "{form}");
    let output = server.try_verb(&["policy", "explain", "laptop", "www:22"]);
    assert!(output.status.success(), "{form}: {output:?}");
}

const SERVER_KEY: &str = "mkey:721aeda35aeddc3f60e8b1abe898f9a7e3686dc5f65485d6651e1b6ec93f5f29";
const LAPTOP_KEY: &str = "nodekey:89e19c8fcef811d91241e731e1e65744a56884a6fdfcb2f3bda64790c1e10b22";
const WEB_KEY: &str = "nodekey:d05ea7f483ae773d164737f0b9d61783f15c1394e917ef92b22337fe5c8bbc02";
