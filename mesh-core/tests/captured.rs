//! Vectors captured from stock software, read from where they are kept and never copied into the project.
//!
//! The folder is that of `MESH_VECTORS_DIR`, else `../shared/vectors` beside the workspace. Without it the tests report
//! themselves ignored, with the reason in their line: a harness of its own makes that possible.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

mod support;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
};

use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

use mesh_core::{
    key::{NodePrivate, NodePublic},
    node::PeerConfig,
    time::Instant,
    wireguard::{
        Identity, Kind,
        identity::MacKeys,
        message::{Initiation, Response},
    },
};
use support::{End, config};

type Test = fn(&Path) -> Result<(), Failed>;

fn main() -> ExitCode {
    let tests: [(&str, Test); 2] = [
        ("a_stock_initiation_opens_with_its_receivers_key", a_stock_initiation_opens_with_its_receivers_key),
        ("a_node_answers_a_stock_initiation", a_node_answers_a_stock_initiation),
    ];
    let folder = folder();
    let trials = tests.map(|(name, test)| {
        let stock = folder.join("stock");
        if stock.is_dir() {
            Trial::test(name, move || test(&stock))
        } else {
            let name = format!("{name} (no captured vectors in {}; set MESH_VECTORS_DIR)", folder.display());
            Trial::test(name, || Err("there is nothing to read".into())).with_ignored_flag(true)
        }
    });
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit_code()
}

fn a_stock_initiation_opens_with_its_receivers_key(stock: &Path) -> Result<(), Failed> {
    let capture = Capture::read(stock)?;
    let identity = Identity::new(capture.private.clone());
    assert!(identity.has_mac1(&capture.initiation));
    let opened = identity.open_initiation(&capture.parsed()?).ok_or("the initiation does not open")?;

    // The answer is to the key that was named inside, and to the index beside it.
    let answer = Response::parse(&capture.response).ok_or("no response")?;
    assert_eq!(answer.receiver, capture.parsed()?.sender);
    let (covered, macs) = capture.response.split_at(capture.response.len() - 32);
    assert_eq!(MacKeys::new(&opened.peer).mac1(covered), macs[..16]);

    let other = Identity::new(NodePrivate::from_bytes([1; 32]));
    assert!(!other.has_mac1(&capture.initiation));
    assert!(other.open_initiation(&capture.parsed()?).is_none());
    Ok(())
}

/// The timestamp opens too, which only a node can show: it answers.
fn a_node_answers_a_stock_initiation(stock: &Path) -> Result<(), Failed> {
    let capture = Capture::read(stock)?;
    let opened = Identity::new(capture.private.clone()).open_initiation(&capture.parsed()?).ok_or("does not open")?;
    let peer = |key: NodePublic| PeerConfig {
        key,
        preshared_key: None,
        allowed_ips: vec!["10.0.0.2/32".parse().expect("a prefix")],
        endpoint: None,
        persistent_keepalive: None,
    };
    let now = Instant::from_secs(1);
    let mut settings = config(1, vec![peer(opened.peer)]);
    settings.key = capture.private.clone();
    let mut node = End::new(1, settings, now);
    node.receive(capture.initiation.clone(), capture.sender, now);
    let (_, answer) = node.sent.pop_front().ok_or("no answer")?;
    assert!(matches!(Kind::of(&answer), Some(Kind::Response { .. })));
    assert_eq!(Response::parse(&answer).map(|answer| answer.receiver), Some(capture.parsed()?.sender));

    // The same one again is a replay.
    node.receive(capture.initiation.clone(), capture.sender, now);
    assert!(node.sent.is_empty());
    Ok(())
}

/// The first handshake of `packets/wan-udp.pcap`, and the private key of its responder.
struct Capture {
    private: NodePrivate,
    sender: SocketAddr,
    initiation: Vec<u8>,
    response: Vec<u8>,
}

impl Capture {
    fn read(stock: &Path) -> Result<Self, Failed> {
        let keys: Value = serde_json::from_slice(&std::fs::read(stock.join("keys.json"))?)?;
        // Node b had its old key when the capture was made.
        let old = keys["nodes"]["b"]
            .as_object()
            .and_then(|keys| keys.iter().find(|(name, _)| name.ends_with("/OldPrivateNodeKey")))
            .and_then(|(_, key)| key.as_str())
            .ok_or("keys.json has no old key of node b")?;
        let datagrams = udp_datagrams(&std::fs::read(stock.join("packets/wan-udp.pcap"))?);
        let first = |is_wanted: fn(&Kind) -> bool| {
            let found = datagrams.iter().find(|(_, datagram)| Kind::of(datagram).is_some_and(|kind| is_wanted(&kind)));
            found.cloned().ok_or("the capture has no handshake")
        };
        let (sender, initiation) = first(|kind| matches!(kind, Kind::Initiation))?;
        let (_, response) = first(|kind| matches!(kind, Kind::Response { .. }))?;
        Ok(Self { private: NodePrivate::from_secret_text(old)?, sender, initiation, response })
    }

    fn parsed(&self) -> Result<Initiation, Failed> {
        Ok(Initiation::parse(&self.initiation).ok_or("not an initiation")?)
    }
}

/// Source and payload of every UDP datagram over IPv4 in a little-endian Ethernet capture.
fn udp_datagrams(pcap: &[u8]) -> Vec<(SocketAddr, Vec<u8>)> {
    let word = |at: usize| u32::from_le_bytes(pcap[at..at + 4].try_into().expect("four bytes")) as usize;
    assert_eq!((word(0), word(20)), (0xa1b2_c3d4, 1), "a little-endian capture of Ethernet");
    let mut datagrams = Vec::new();
    let mut at = 24;
    while at < pcap.len() {
        let frame = &pcap[at + 16..at + 16 + word(at + 8)];
        at += 16 + word(at + 8);
        if frame.len() < 14 + 28 || frame[12..14] != [8, 0] || frame[14 + 9] != 17 {
            continue;
        }
        let header = 14 + usize::from(frame[14] & 15) * 4;
        let source = Ipv4Addr::new(frame[26], frame[27], frame[28], frame[29]);
        let port = u16::from_be_bytes([frame[header], frame[header + 1]]);
        let length = usize::from(u16::from_be_bytes([frame[header + 4], frame[header + 5]]));
        datagrams.push(((source, port).into(), frame[header + 8..header + length].to_vec()));
    }
    datagrams
}

fn folder() -> PathBuf {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/vectors");
    std::env::var_os("MESH_VECTORS_DIR").map_or_else(|| beside.into(), PathBuf::from)
}
