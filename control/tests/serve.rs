//! The served coordinator end to end: nodes over real sockets, commands over the real socket, and a store that keeps what
//! was answered.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

#[path = "support/program.rs"]
mod program;

use std::{collections::BTreeSet, fs, net::SocketAddr};

use hyper::StatusCode;
use mesh_core::{key::MachinePublic, rng::Seed};
use program::{Keys, Link, Running, join};
use tokio::task::JoinSet;

#[tokio::test(flavor = "current_thread")]
async fn two_nodes_join_and_see_each_other_come_and_go() {
    let server = Running::start("join", &[]).with_user("alice");
    let to = server.address("http");
    let key = server.verb(&["keys", "create", "--user", "alice", "--reusable"]);

    let (alpha, alpha_link, mut alpha_map) = join(to, 1, "alpha", &key).await;
    let first = alpha_map.next().await.unwrap();
    let own = first.node.expect("the first message says who the node is");
    assert_eq!(own.name, "alpha.mesh.internal.");
    assert!(first.derp_map.is_some() && first.dns_config.is_some() && !first.domain.is_empty());

    let (beta, beta_link, mut beta_map) = join(to, 2, "beta", &key).await;
    let full = beta_map.next().await.unwrap();
    let peers: Vec<_> = full.peers.iter().map(|peer| peer.key).collect();
    assert_eq!(peers, [alpha.public()]);
    alpha_map.until(|message| message.peers_changed.iter().any(|peer| peer.key == beta.public())).await;

    // A client that compresses nothing is served too, and a map that is asked for again replaces the old one.
    let mut plain = alpha_link.stream(&alpha, "").await.unwrap();
    assert_eq!(plain.next().await.unwrap().peers.len(), 1);
    while alpha_map.next().await.is_some() {}

    // Logged out by an operator: the peer hears of it, and the node's own map ends.
    server.verb(&["nodes", "delete", "beta"]);
    let gone = plain.until(|message| !message.peers_removed.is_empty()).await;
    assert_eq!(gone.peers_removed.len(), 1);
    while beta_map.next().await.is_some() {}
    let (status, _) = beta_link.post("/machine/map", &program::map_request(&beta)).await.unwrap();
    assert_eq!(status, StatusCode::NOT_FOUND);

    let listed = server.json(&["nodes", "list"]);
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(listed[0]["name"], "alpha.mesh.internal");
    assert_eq!(listed[0]["connectedToControl"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_lets_a_node_in_that_waits_at_its_url() {
    let server = Running::start("interactive", &["--server-url", "http://control.test:8080"]).with_user("alice");
    let keys = Keys::new(1);
    let link = Link::open(server.address("http"), &keys).await.unwrap();
    let response = link.register(&keys, "laptop", None).await.unwrap();
    let code = response.auth_url.strip_prefix("http://control.test:8080/register/").unwrap().to_owned();
    let page = program::get(server.address("http"), &format!("/register/{code}")).await;
    assert!(page.starts_with("HTTP/1.1 200 ") && page.contains(&format!("nodes register {code} ")), "{page}");
    let machine = keys.machine.public().to_string();
    let fingerprint = format!("{}-{}-", &machine[5..9], &machine[9..13]);
    for told in ["laptop", "linux", &fingerprint] {
        assert!(page.contains(told), "{told}: {page}");
    }
    let other = code.replace(|letter: char| letter.is_ascii_digit(), "A").to_lowercase();
    let over = program::get(server.address("http"), &format!("/register/{other}")).await;
    assert!(over.starts_with("HTTP/1.1 404 "), "{over}");

    let followup = {
        let (link, keys) = (link.clone(), Keys::new(1));
        tokio::spawn(async move {
            let request = mesh_core::control::types::RegisterRequest {
                version: program::VERSION.into(),
                node_key: keys.public(),
                followup: response.auth_url,
                ..Default::default()
            };
            link.post("/machine/register", &request).await.unwrap()
        })
    };
    let registered = server.verb(&["nodes", "register", &code, "--user", "alice"]);
    for told in ["laptop", "linux", &fingerprint] {
        assert!(registered.contains(told), "{told}: {registered}");
    }
    let (status, body) = followup.await.unwrap();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &body["AuthURL"], &body["MachineAuthorized"]), (StatusCode::OK, &"".into(), &true.into()));
}

#[tokio::test(flavor = "current_thread")]
async fn a_single_use_key_lets_one_of_eight_machines_in() {
    let server = Running::start("race", &[]).with_user("alice");
    let to = server.address("http");
    let key = server.verb(&["keys", "create", "--user", "alice"]);
    let mut links = Vec::new();
    for number in 0..8 {
        let keys = Keys::new(number);
        links.push((Link::open(to, &keys).await.unwrap(), keys));
    }
    let mut tries = JoinSet::new();
    for (link, keys) in links {
        let key = key.clone();
        tries.spawn(async move { link.register(&keys, "racer", Some(&key)).await.unwrap().error });
    }
    let errors = tries.join_all().await;
    assert_eq!(errors.iter().filter(|error| error.is_empty()).count(), 1, "{errors:?}");
    assert_eq!(errors.iter().filter(|error| error.contains("already used")).count(), 7, "{errors:?}");
    assert_eq!(server.json(&["nodes", "list"]).as_array().unwrap().len(), 1);
}

/// Everything that was answered before the server was killed is there when it is back.
#[tokio::test(flavor = "current_thread")]
async fn what_was_answered_survives_a_kill_at_any_moment() {
    let mut rng = Seed::from_number(3).stream("kill", 0);
    let mut server = Running::start("kill", &[]).with_user("alice");
    let shared = server.verb(&["keys", "create", "--user", "alice", "--reusable"]);
    let key = program::server_key(server.address("http")).await;
    let (mut known_keys, mut known_nodes) = (BTreeSet::new(), BTreeSet::new());
    for round in 0..4 {
        let to = server.address("http");
        let mut work = JoinSet::new();
        for number in 0..24 {
            let (shared, number) = (shared.clone(), round * 100 + number);
            work.spawn(async move { joined(to, &key, number, &shared).await });
        }
        if round == 0 {
            known_nodes.extend(work.join_next().await.unwrap().unwrap());
        }
        // The rest is under way when it is killed, somewhere between two answers.
        for _ in 0..=rng.below(8) {
            let mut command = program::program();
            command.arg("--socket").arg(program::socket(&server.state)).args(["keys", "create", "--user", "alice"]);
            let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
            let key = String::from_utf8(output.stdout).unwrap();
            known_keys.insert(key.split('-').nth(2).unwrap().to_owned());
        }
        let state = server.kill();
        while let Some(done) = work.join_next().await {
            known_nodes.extend(done.unwrap());
        }

        server = Running::start_in(&state, &[]);
        let listed = |what: &str, id: &str| -> BTreeSet<String> {
            let list = server.json(&[what, "list"]);
            list.as_array().unwrap().iter().map(|object| object[id].as_str().unwrap().to_owned()).collect()
        };
        let (keys, nodes) = (listed("keys", "id"), listed("nodes", "nodeKey"));
        assert!(known_keys.is_subset(&keys), "keys that are gone: {:?}", known_keys.difference(&keys));
        assert!(known_nodes.is_subset(&nodes), "nodes that are gone: {:?}", known_nodes.difference(&nodes));
    }
    assert!(!known_nodes.is_empty());
}

/// The node's key when the server said that it has joined.
async fn joined(to: SocketAddr, server: &MachinePublic, number: u64, auth_key: &str) -> Option<String> {
    let keys = Keys::new(number);
    let link = Link::open_to(to, server, &keys).await.ok()?;
    let response = link.register(&keys, &format!("node-{number}"), Some(auth_key)).await.ok()?;
    assert_eq!(response.error, "");
    Some(keys.public().to_string())
}

#[tokio::test(flavor = "current_thread")]
async fn no_secret_is_in_the_files() {
    let mut server = Running::start("secret", &[]).with_user("alice");
    let key = server.verb(&["keys", "create", "--user", "alice"]);
    let (id, secret) = key.strip_prefix("tskey-auth-").unwrap().split_once('-').unwrap();
    let (_keys, _link, mut map) = join(server.address("http"), 1, "alpha", &key).await;
    map.next().await.unwrap();
    let state = server.state.clone();
    let count = |text: &str| {
        let files = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().path());
        let found = files.filter(|path| path.to_string_lossy().contains("control.db")).map(|path| {
            let bytes = fs::read(path).unwrap();
            bytes.windows(text.len()).filter(|window| *window == text.as_bytes()).count()
        });
        found.sum::<usize>()
    };
    assert_eq!(count(secret), 0);
    assert!(count(id) >= 1 && state.join("control.db-wal").exists());
    server.signal("TERM");
    assert_eq!(server.exit_code(), Some(0));
    assert_eq!(count(secret), 0);
    assert!(count(id) >= 1);
}

#[tokio::test(flavor = "current_thread")]
async fn relays_are_told_who_is_a_member() {
    let server = Running::start("verify", &[]).with_user("alice");
    let to = server.address("http");
    let key = server.verb(&["keys", "create", "--user", "alice"]);
    let (keys, _link, _map) = join(to, 1, "alpha", &key).await;
    let ask = async |node: String| {
        let body = format!("{{\"NodePublic\":\"{node}\",\"Source\":\"192.0.2.1\"}}");
        let head = format!("POST /verify HTTP/1.1\r\nHost: c\r\nConnection: close\r\nContent-Length: {}", body.len());
        program::raw(to, format!("{head}\r\n\r\n{body}").as_bytes()).await
    };
    assert!(ask(keys.public().to_string()).await.ends_with("{\"Allow\":true}"));
    assert!(ask(Keys::new(9).public().to_string()).await.ends_with("{\"Allow\":false}"));
    assert!(ask("nodekey:".to_owned()).await.starts_with("HTTP/1.1 400 "));
}
