//! The relay and the stock programs: published clients and the published prober through our relay, and our test clients
//! through the published server, which answer alike.
//!
//! Needs Go; without it every test is reported as ignored, with the reason in its line.
#![cfg(feature = "serve")]
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]
#![allow(clippy::unwrap_used, clippy::unwrap_in_result, reason = "helpers of tests too")]

#[path = "../../agent/tests/peers/peers.rs"]
mod peers;
#[path = "support/program.rs"]
mod support;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        OnceLock,
        mpsc::{Receiver, channel},
    },
    thread,
};

use data_encoding::HEXLOWER;
use libtest_mimic::{Arguments, Failed, Trial};
use mesh_core::{
    derp::{Frame, frame::PACKET_BYTES},
    disco,
};
use serde_json::Value;
use support::{Client, Dial, PATIENCE, Running, directory, key, private, run, seen_by};

/// A test: its name as a sentence, and what it does.
type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("stock_clients_exchange_packets_with_fast_start", stock_clients_exchange_packets_with_fast_start),
    ("stock_clients_exchange_packets_without_fast_start", stock_clients_exchange_packets_without_fast_start),
    ("a_stock_client_and_ours_exchange_packets", a_stock_client_and_ours_exchange_packets),
    ("a_stock_client_hears_who_is_not_here", a_stock_client_hears_who_is_not_here),
    ("stock_clients_with_one_key_hear_of_each_other", stock_clients_with_one_key_hear_of_each_other),
    ("a_stock_client_hears_of_the_restart", a_stock_client_hears_of_the_restart),
    ("a_stock_client_refuses_a_swapped_certificate", a_stock_client_refuses_a_swapped_certificate),
    ("a_stock_client_that_is_not_allowed_does_not_get_in", a_stock_client_that_is_not_allowed_does_not_get_in),
    ("the_stock_netcheck_finds_relay_and_stun_healthy", the_stock_netcheck_finds_relay_and_stun_healthy),
    ("our_clients_find_the_stock_server_alike", our_clients_find_the_stock_server_alike),
];

fn main() -> ExitCode {
    let missing = peers::missing();
    let trials = TESTS.iter().map(|&(name, test)| {
        let trial = Trial::test(name, move || thread::spawn(test).join().map_err(|_| Failed::from("see above")));
        match &missing {
            Some(reason) => trial.with_kind(reason.clone()).with_ignored_flag(true),
            None => trial,
        }
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

fn stock_clients_exchange_packets_with_fast_start() {
    let relay = Running::start("stock-fast", &["--open"]);
    let region = region_of(&relay);
    stock_clients_exchange_packets(&relay, &["--region", &region], ("TLS 1.3", true));
}

fn stock_clients_exchange_packets_without_fast_start() {
    let relay = Running::start("stock-slow", &["--open"]);
    let region = region_of(&relay);
    stock_clients_exchange_packets(&relay, &["--region", &region, "--tls12"], ("TLS 1.2", false));
    let relay = Running::start("stock-plain", &["--open", "--no-tls"]);
    let url = format!("http://{}/derp", relay.derp);
    stock_clients_exchange_packets(&relay, &["--url", &url], ("", false));
}

fn stock_clients_exchange_packets(relay: &Running, how: &[&str], (tls, fast): (&str, bool)) {
    let (mut alice, mut bob) = (Stock::start(how), Stock::start(how));
    for client in [&mut alice, &mut bob] {
        let connected = client.expect("connected");
        assert_eq!((connected["tls"].as_str(), connected["fast"].as_bool()), (Some(tls), Some(fast)));
        client.key = connected["self"].as_str().unwrap().to_owned();
        assert_eq!(client.expect("server-info")["rate"], 0);
    }
    for packet in [&b"x"[..], &[7; 1400], &[9; PACKET_BYTES]] {
        for (from, to) in [(0, 1), (1, 0)] {
            let clients = [&mut alice, &mut bob];
            let (sender, receiver) = (clients[from].key.clone(), clients[to].key.clone());
            clients[from].say(&format!("send {receiver} {}", HEXLOWER.encode(packet)));
            let received = clients[to].expect("received");
            assert_eq!((received["from"].as_str(), &received["packet"]), (Some(&*sender), &hex(packet)));
        }
    }
    for client in [&mut alice, &mut bob] {
        client.say("prefer true");
        client.say("ping");
        client.expect("pong");
    }
    assert_eq!((relay.metric("home_moves_in_total "), relay.metric("home_moves_out_total ")), (2, 0));
    alice.say("prefer false");
    alice.say("ping");
    alice.expect("pong");
    assert_eq!(relay.metric("home_moves_out_total "), 1);
    assert_eq!(relay.metric("unknown_frames_total "), 0);
    alice.say("close");
    let gone = bob.expect("peer-gone");
    assert_eq!((gone["peer"].as_str(), &gone["reason"]), (Some(&*alice.key), &0.into()));
}

fn a_stock_client_and_ours_exchange_packets() {
    let relay = Running::start("stock-ours", &["--open"]);
    let (region, pin) = (region_of(&relay), relay.pin());
    let mut stock = Stock::start(&["--region", &region, "--key", &private(5).to_secret_text()]);
    stock.expect("server-info");
    let mut ours = Dial { pin: Some(&pin), fast: true, ..relay.dial() }.connect(6).unwrap();
    stock.say(&format!("send {} {}", key(6), HEXLOWER.encode(b"from stock")));
    assert_eq!(ours.next().unwrap(), Frame::RecvPacket { from: key(5), packet: b"from stock" });
    ours.send(&Frame::SendPacket { to: key(5), packet: b"from ours" }).unwrap();
    let received = stock.expect("received");
    assert_eq!((received["from"].as_str(), &received["packet"]), (Some(&*key(6).to_string()), &hex(b"from ours")));
}

fn a_stock_client_hears_who_is_not_here() {
    let relay = Running::start("stock-nobody", &["--open"]);
    let mut client = Stock::start(&["--region", &region_of(&relay)]);
    client.expect("server-info");
    let ping = [&disco::MAGIC[..], &[0; 56]].concat();
    client.say(&format!("send {} {}", key(7), HEXLOWER.encode(&ping)));
    let gone = client.expect("peer-gone");
    assert_eq!((gone["peer"].as_str(), &gone["reason"]), (Some(&*key(7).to_string()), &1.into()));
}

fn stock_clients_with_one_key_hear_of_each_other() {
    let relay = Running::start("stock-clones", &["--open"]);
    let secret = private(8).to_secret_text();
    let (region, secret) = (region_of(&relay), secret.as_str());
    let start = || {
        let mut client = Stock::start(&["--region", &region, "--key", secret]);
        client.expect("server-info");
        client
    };
    let (mut one, mut other) = (start(), start());
    for _ in 0..3 {
        for client in [&mut one, &mut other] {
            client.say("ping");
            client.expect_with("pong", &["health"]);
        }
    }
    let problems = |client: &Stock| client.health.clone();
    assert_eq!(problems(&other).len(), 1, "the last one to speak has been told");
    assert!(problems(&other)[0].contains("same node key"), "{:?}", problems(&other));
    one.say("close");
    let health = other.expect("health");
    assert_eq!(health["problem"], "");
}

fn a_stock_client_hears_of_the_restart() {
    let relay = Running::start("stock-restart", &["--open"]);
    let mut client = Stock::start(&["--region", &region_of(&relay)]);
    client.expect("server-info");
    relay.signal("TERM");
    let restarting = client.expect("restarting");
    assert_eq!((&restarting["in_ms"], &restarting["for_ms"]), (&1000.into(), &5000.into()));
    assert_eq!(client.expect("ended")["closed"], false);
}

fn a_stock_client_refuses_a_swapped_certificate() {
    let relay = Running::start("stock-swapped", &["--open"]);
    let region = region_of(&relay);
    let mut map: Value = serde_json::from_str(&fs::read_to_string(&region).unwrap()).unwrap();
    map["Nodes"][0]["CertName"] = format!("sha256-raw:{}", "00".repeat(32)).into();
    fs::write(&region, map.to_string()).unwrap();
    let mut client = Stock::start(&["--region", &region]);
    let refused = client.expect("refused");
    assert!(refused["error"].as_str().unwrap().contains("cert"), "{refused}");
    assert_eq!(relay.metric("joins_total "), 0);
}

fn a_stock_client_that_is_not_allowed_does_not_get_in() {
    let relay = Running::start("stock-refused", &["--verify-url", "http://127.0.0.1:1/verify"]);
    let mut client = Stock::start(&["--region", &region_of(&relay)]);
    // With fast start it is connected before the relay has answered; what it must not hear is that it is in.
    client.expect("connected");
    client.expect("ended");
    assert_eq!((relay.closes("refused"), relay.metric("joins_total ")), (1, 0));
}

fn the_stock_netcheck_finds_relay_and_stun_healthy() {
    let relay = Running::start("stock-netcheck", &["--open"]);
    let region = region_of(&relay);
    let report = |more: &[&str]| {
        let output = Command::new(program()).args(["netcheck", "--region", &region]).args(more).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let by_udp = report(&[]);
    assert_eq!((&by_udp["udp"], &by_udp["ipv4"]), (&true.into(), &true.into()), "{by_udp}");
    assert_eq!((&by_udp["answered"], &by_udp["preferred"]), (&true.into(), &900.into()), "{by_udp}");
    assert!(by_udp["global_v4"].as_str().unwrap().starts_with("127.0.0.1:"), "{by_udp}");
    assert!(relay.metric("stun_answered_total ") > 0);
    let by_tcp = report(&["--tcp"]);
    assert_eq!((&by_tcp["udp"], &by_tcp["answered"]), (&false.into(), &true.into()), "{by_tcp}");
    assert_eq!(by_tcp["preferred"], 900, "{by_tcp}");
}

/// What our tests ask of our relay holds for the published server too.
fn our_clients_find_the_stock_server_alike() {
    let mut command = Command::new(program());
    let mut server = Stock::spawn(command.arg("derpserver"));
    let ready = server.expect("ready");
    let address = |name: &str| ready[name].as_str().unwrap().parse().unwrap();
    let pin = ready["region"]["Nodes"][0]["CertName"].as_str().unwrap();
    let dial = Dial { relay: address("derp"), from: None, pin: Some(pin), fast: false };
    for fast in [false, true] {
        let dial = Dial { fast, ..dial };
        let (mut alice, mut bob) = (dial.connect(1).unwrap(), dial.connect(2).unwrap());
        exchange(&mut alice, &mut bob, b"hello");
        exchange(&mut bob, &mut alice, &[7; PACKET_BYTES]);
        bob.send(&Frame::Ping(*b"12345678")).unwrap();
        assert_eq!(bob.next().unwrap(), Frame::Pong(*b"12345678"));
        let gone = alice.key();
        drop(alice);
        assert!(matches!(bob.next().unwrap(), Frame::PeerGone { peer, .. } if peer == gone));
    }
    let wrong = format!("sha256-raw:{}", "00".repeat(32));
    assert!(Dial { pin: Some(&wrong), ..dial }.connect(1).is_err());
    let (seen, own) = seen_by(address("stun"), "127.0.0.1:0");
    assert_eq!(seen, own);
}

fn exchange(from: &mut Client, to: &mut Client, packet: &[u8]) {
    from.send(&Frame::SendPacket { to: to.key(), packet }).unwrap();
    assert_eq!(to.next().unwrap(), Frame::RecvPacket { from: from.key(), packet });
}

/// The built Go program.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| peers::program().unwrap())
}

/// The region of a relay, as a file.
fn region_of(relay: &Running) -> String {
    let (derp, stun) = (relay.derp.to_string(), relay.stun.to_string());
    let state = relay.state.to_str().unwrap();
    let flags = ["--host", "127.0.0.1", "--state-dir", state, "--listen", &derp, "--stun-listen", &stun];
    let output = run(&[&["derp-map"][..], &flags].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let name = relay.state.file_name().unwrap().to_str().unwrap();
    let path = directory(&format!("{name}-map")).join("region.json");
    fs::write(&path, output.stdout).unwrap();
    path.to_str().unwrap().to_owned()
}

fn hex(bytes: &[u8]) -> Value {
    HEXLOWER.encode(bytes).into()
}

/// A running Go program; it ends when this is dropped.
struct Stock {
    child: Child,
    events: Receiver<Value>,
    key: String,
    /// Health that was reported in between.
    health: Vec<String>,
}

impl Stock {
    /// A client that connects in the given way.
    fn start(how: &[&str]) -> Self {
        Self::spawn(Command::new(program()).arg("client").args(how))
    }

    fn spawn(command: &mut Command) -> Self {
        // Settings from around the test would send it elsewhere.
        let command = command.env_remove("http_proxy").env_remove("https_proxy").env_remove("SSL_CERT_FILE");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, events) = channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let event: Value = serde_json::from_str(&line).unwrap();
                // Whoever asked may have seen enough.
                let _ = sender.send(event);
            }
        });
        Self { child, events, key: String::new(), health: Vec::new() }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_ref().unwrap(), "{line}").unwrap();
    }

    /// The next observation, which must be this one.
    fn expect(&mut self, event: &str) -> Value {
        let skipped: &[&str] = if event == "server-info" { &["connected"] } else { &[] };
        self.expect_with(event, skipped)
    }

    /// The same, with others that may come before it.
    fn expect_with(&mut self, event: &str, others: &[&str]) -> Value {
        loop {
            let next = self.events.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no {event}"));
            let name = next["event"].as_str().unwrap();
            if name == event {
                return next;
            }
            assert!(name == "keepalive" || others.contains(&name), "{next} instead of {event}");
            if name == "health" {
                self.health.push(next["problem"].as_str().unwrap().to_owned());
            }
        }
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
