//! The program on real sockets of the loopback, in the forms that scripts rely on.
#![cfg(feature = "serve")]
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

#[path = "support/running.rs"]
mod running;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use mesh_core::{
    crypto::nacl::BoxKey,
    derp::Frame,
    key::{NodePrivate, NodePublic},
    stun,
};
use running::{Running, run, state_dir};

#[test]
fn a_relay_that_is_not_told_who_may_connect_does_not_start() {
    let output = run(&["--json", "serve", "--host", "localhost"]);
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("--verify-url") && stderr.contains("--open"), "{stderr}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["error"]["code"], "no-policy");
}

#[test]
fn two_clients_exchange_packets_with_and_without_fast_start() {
    let relay = Running::start("exchange", &["--no-tls", "--open"]);
    let mut alice = Client::connect(relay.derp, 1, None);
    let mut bob = Client::connect(relay.derp, 2, Some(alice.server));
    alice.send(&Frame::SendPacket { to: bob.key(), packet: b"hello" });
    assert_eq!(bob.next(), Frame::RecvPacket { from: alice.key(), packet: b"hello" });
    bob.send(&Frame::Ping(*b"12345678"));
    assert_eq!(bob.next(), Frame::Pong(*b"12345678"));
    let gone = alice.key();
    drop(alice);
    assert!(matches!(bob.next(), Frame::PeerGone { peer, .. } if peer == gone));
}

#[test]
fn a_client_hears_of_the_restart_and_the_program_ends_well() {
    let mut relay = Running::start("restart", &["--no-tls", "--open"]);
    let mut client = Client::connect(relay.derp, 1, None);
    Command::new("kill").arg(relay.child.id().to_string()).status().unwrap();
    assert!(matches!(client.next(), Frame::Restarting { .. }));
    let began = Instant::now();
    assert_eq!(relay.child.wait().unwrap().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[test]
fn when_nobody_can_be_asked_nobody_gets_in() {
    let relay = Running::start("closed", &["--no-tls", "--verify-url", "http://127.0.0.1:1/verify"]);
    let mut socket = TcpStream::connect(relay.derp).unwrap();
    socket.write_all(&upgrade(false)).unwrap();
    let mut seen = read_past_head(&mut socket);
    while seen.len() < 45 {
        seen.push(read_byte(&mut socket));
    }
    let Ok(Some((Frame::ServerKey(server), _))) = Frame::decode(&seen) else { panic!("no key") };
    socket.write_all(&greeting(1, &server)).unwrap();
    let mut rest = Vec::new();
    socket.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
}

#[test]
fn stun_and_probes_are_answered() {
    let relay = Running::start("stun", &["--no-tls", "--open"]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let tx = stun::TxId([1; 12]);
    socket.send_to(&stun::request(tx), relay.stun).unwrap();
    let mut answer = [0; 100];
    let length = socket.recv(&mut answer).unwrap();
    assert_eq!(stun::parse_response(&answer[..length]), Ok((tx, socket.local_addr().unwrap())));

    let mut probe = TcpStream::connect(relay.derp).unwrap();
    probe.write_all(b"GET /derp/latency-check HTTP/1.1\r\nHost: r\r\n\r\n").unwrap();
    let mut answer = String::new();
    probe.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

#[test]
fn the_map_pins_a_certificate_that_stays() {
    let state = state_dir("map");
    let map = || {
        let state = state.to_str().unwrap();
        let output = run(&["derp-map", "--host", "127.0.0.1", "--state-dir", state, "--listen", "127.0.0.1:8443"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    std::fs::create_dir_all(&state).unwrap();
    let region = map();
    let node = &region["Nodes"][0];
    assert_eq!((&region["RegionID"], &node["Name"], &node["DERPPort"]), (&900.into(), &"900a".into(), &8443.into()));
    assert_eq!(node["IPv4"], "127.0.0.1");
    assert_eq!(node["CertName"].as_str().unwrap().len(), "sha256-raw:".len() + 64);
    assert_eq!(map(), region);
}

#[test]
fn a_port_in_use_is_said_with_exit_code_1() {
    let relay = Running::start("first", &["--no-tls", "--open"]);
    let (address, state) = (relay.derp.to_string(), state_dir("second"));
    let state = state.to_str().unwrap();
    let output = run(&["serve", "--host", "r", "--open", "--no-tls", "--listen", &address, "--state-dir", state]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains(&address));
}

#[test]
fn the_version_is_one_line_with_name_and_commit() {
    let output = run(&["--version"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(text.starts_with("mesh-relay 0.") && text.trim_end().ends_with(')'), "{text}");
    assert_eq!(text.lines().count(), 1);
}

#[test]
fn no_verb_is_a_usage_error() {
    assert_eq!(run(&[]).status.code(), Some(2));
}

struct Client {
    socket: TcpStream,
    private: NodePrivate,
    server: NodePublic,
    unread: Vec<u8>,
    used: usize,
}

impl Client {
    /// Connects; with the server's key known beforehand, by fast start.
    fn connect(relay: SocketAddr, number: u8, known: Option<NodePublic>) -> Self {
        let mut socket = TcpStream::connect(relay).expect("the relay does its part");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("the relay does its part");
        socket.write_all(&upgrade(known.is_some())).expect("the relay does its part");
        let unread = match &known {
            Some(server) => {
                socket.write_all(&greeting(number, server)).expect("the relay does its part");
                Vec::new()
            }
            None => read_past_head(&mut socket),
        };
        let private = NodePrivate::from_bytes([number; 32]);
        let mut client = Self { socket, server: private.public(), private, unread, used: 0 };
        let Frame::ServerKey(server) = client.next() else { panic!("the key is first") };
        client.server = server;
        if known.is_none() {
            client.socket.write_all(&greeting(number, &server)).expect("the relay does its part");
        }
        assert!(matches!(client.next(), Frame::ServerInfo { .. }));
        client
    }

    fn key(&self) -> NodePublic {
        self.private.public()
    }

    fn send(&mut self, frame: &Frame<'_>) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.socket.write_all(&bytes).expect("the relay does its part");
    }

    fn next(&mut self) -> Frame<'_> {
        self.unread.drain(..self.used);
        while Frame::decode(&self.unread).expect("the relay speaks DERP").is_none() {
            self.unread.push(read_byte(&mut self.socket));
        }
        let (frame, length) =
            Frame::decode(&self.unread).expect("the relay does its part").expect("the relay does its part");
        self.used = length;
        frame
    }
}

fn upgrade(fast: bool) -> Vec<u8> {
    let fast = if fast { "Derp-Fast-Start: 1\r\n" } else { "" };
    format!("GET /derp HTTP/1.1\r\nHost: r\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n{fast}\r\n").into_bytes()
}

fn greeting(number: u8, server: &NodePublic) -> Vec<u8> {
    let private = NodePrivate::from_bytes([number; 32]);
    let nonce = [number; 24];
    let shared = BoxKey::new(&private.to_bytes(), server.as_bytes()).expect("the relay does its part");
    let sealed = [&nonce[..], &shared.seal(&nonce, br#"{"version":2,"CanAckPings":true}"#)].concat();
    let mut bytes = Vec::new();
    Frame::ClientInfo { key: private.public(), sealed: &sealed }.encode(&mut bytes);
    bytes
}

/// Reads the answer's head and returns what follows it: nothing, since it reads no further.
fn read_past_head(socket: &mut TcpStream) -> Vec<u8> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(read_byte(socket));
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    Vec::new()
}

fn read_byte(socket: &mut TcpStream) -> u8 {
    let mut byte = [0];
    socket.read_exact(&mut byte).expect("the relay says more");
    byte[0]
}
