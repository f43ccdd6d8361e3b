//! The served coordinator end to end: nodes over real sockets, commands over the real socket, and a store that keeps what
//! was answered.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

#[path = "support/program.rs"]
mod program;

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use hyper::StatusCode;
use mesh_core::{key::MachinePublic, rng::Seed};
use program::{Keys, Link, Running, join};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::mpsc,
    task::JoinSet,
};

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

/// Auth keys and joins that are answered while the server is killed again and again.
const ANSWERS: usize = 1_000;

/// Everything that was answered before the server was killed is there when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_in_a_thousand_keys_and_joins_survives_kills_at_any_moment() {
    let mut rng = Seed::from_number(3).stream("kill", 0);
    let mut server = Running::start("kill", &["--log", "warn"]).with_user("alice");
    let shared: Arc<str> = server.verb(&["keys", "create", "--user", "alice", "--reusable"]).into();
    let key = program::server_key(server.address("http")).await;
    let tried = Arc::new(AtomicU64::new(0));
    let mut known = Known::default();
    let mut kills = 0;
    while known.count() < ANSWERS {
        let (to, state) = (server.address("http"), server.state.clone());
        let (answers, mut answered) = mpsc::unbounded_channel();
        let mut work = JoinSet::new();
        for _ in 0..16 {
            let (tried, shared, state, answers) = (tried.clone(), shared.clone(), state.clone(), answers.clone());
            work.spawn(async move {
                loop {
                    let number = tried.fetch_add(1, Relaxed);
                    let answer = if number % 2 == 0 {
                        made_key(&state).await.map(Answered::Key)
                    } else {
                        joined(to, &key, number, &shared).await.map(Answered::Node)
                    };
                    // Without an answer the server is gone.
                    let Some(answer) = answer else { break };
                    // The receiver outlives this.
                    let _ = answers.send(answer);
                }
            });
        }
        drop(answers);
        // It is killed while 16 of them are under way, each somewhere between its question and its answer.
        for _ in 0..20 + rng.below(150) {
            known.note(answered.recv().await.expect("the server answers until it is killed"));
        }
        drop(server.kill());
        kills += 1;
        while let Some(answer) = answered.recv().await {
            known.note(answer);
        }
        while work.join_next().await.is_some() {}

        server = Running::start_in(&state, &["--log", "warn"]);
        let listed = |what: &str, id: &str| -> BTreeSet<String> {
            let list = server.json(&[what, "list"]);
            list.as_array().unwrap().iter().map(|object| object[id].as_str().unwrap().to_owned()).collect()
        };
        let (keys, nodes) = (listed("keys", "id"), listed("nodes", "nodeKey"));
        assert!(known.keys.is_subset(&keys), "keys that are gone: {:?}", known.keys.difference(&keys));
        assert!(known.nodes.is_subset(&nodes), "nodes that are gone: {:?}", known.nodes.difference(&nodes));
    }
    println!("{} keys and {} joins answered, {kills} kills", known.keys.len(), known.nodes.len());
    assert!(kills >= 5 && known.keys.len().min(known.nodes.len()) >= ANSWERS / 4, "{kills} kills");
}

/// What the server said that it did.
enum Answered {
    Key(String),
    Node(String),
}

#[derive(Default)]
struct Known {
    keys: BTreeSet<String>,
    nodes: BTreeSet<String>,
}

impl Known {
    fn count(&self) -> usize {
        self.keys.len() + self.nodes.len()
    }

    fn note(&mut self, answer: Answered) {
        let is_new = match answer {
            Answered::Key(id) => self.keys.insert(id),
            Answered::Node(key) => self.nodes.insert(key),
        };
        assert!(is_new, "nothing is given out twice");
    }
}

/// The id of an auth key that the server said is made, asked at its socket.
async fn made_key(state: &Path) -> Option<String> {
    let body = r#"{"createKey":{"user":"alice","reusable":false,"ephemeral":false,"tags":[],"expiry":null}}"#;
    let head = format!("POST /command HTTP/1.1\r\nHost: c\r\nConnection: close\r\nContent-Length: {}", body.len());
    let mut stream = UnixStream::connect(program::socket(state)).await.ok()?;
    stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    assert!(head.starts_with("HTTP/1.1 200 "), "{answer}");
    let object: serde_json::Value = serde_json::from_str(body).ok()?;
    Some(object["id"].as_str()?.to_owned())
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
