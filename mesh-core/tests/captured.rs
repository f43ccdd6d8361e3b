//! Vectors captured from stock software, read from where they are kept and never copied into the project.
//!
//! The folder is that of `MESH_VECTORS_DIR`, else `../shared/vectors` beside the workspace. Without it the tests report
//! themselves ignored, with the reason in their line: a harness of its own makes that possible.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

mod support;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
};

use libtest_mimic::{Arguments, Failed, Trial};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use mesh_core::{
    control::{
        Interner, NetMap,
        codec::{MapReader, frame},
        netmap,
        noise::{self, Early, EarlyReader},
        types::{
            DnsConfig, FilterRule, Hostinfo, MapRequest, MapResponse, PeerNode, RegisterRequest, RegisterResponse,
        },
    },
    crypto::nacl::BoxKey,
    derp::{
        Client, DerpMap, Frame,
        client::{Event, Output, Start},
    },
    disco::{self, Disco, Message},
    key::{DiscoPrivate, MachinePrivate, MachinePublic, NodePrivate, NodePublic},
    node::{PeerAddressing, PeerConfig},
    rng::Seed,
    stun,
    time::{Instant, WallTime},
    wireguard::{
        Identity, Kind,
        identity::MacKeys,
        message::{Initiation, Response},
    },
};
use support::{End, config};

type Test = fn(&Path) -> Result<(), Failed>;

fn main() -> ExitCode {
    let tests: [(&str, Test); 13] = [
        ("a_stock_initiation_opens_with_its_receivers_key", a_stock_initiation_opens_with_its_receivers_key),
        ("a_node_answers_a_stock_initiation", a_node_answers_a_stock_initiation),
        ("stock_disco_messages_open_and_are_made_alike", stock_disco_messages_open_and_are_made_alike),
        ("stock_stun_messages_are_read_and_made_alike", stock_stun_messages_are_read_and_made_alike),
        ("stock_derp_streams_decode_and_are_made_alike", stock_derp_streams_decode_and_are_made_alike),
        ("stock_derp_hellos_open_with_the_relays_key", stock_derp_hellos_open_with_the_relays_key),
        ("a_client_follows_what_a_stock_relay_said", a_client_follows_what_a_stock_relay_said),
        ("stock_control_messages_are_read_and_written_alike", stock_control_messages_are_read_and_written_alike),
        ("stock_noise_initiations_open_with_the_servers_key", stock_noise_initiations_open_with_the_servers_key),
        ("stock_early_payloads_come_before_http2", stock_early_payloads_come_before_http2),
        ("stock_map_frames_are_told_apart_and_made_alike", stock_map_frames_are_told_apart_and_made_alike),
        ("netmaps_follow_what_a_stock_server_said", netmaps_follow_what_a_stock_server_said),
        ("what_a_stock_client_shows_is_read_and_written_alike", what_a_stock_client_shows_is_read_and_written_alike),
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
        addressing: PeerAddressing::Roaming { endpoint: None },
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

/// The boxes open at the receiver they are for, hold the plaintext that is noted beside them, and what this node sends
/// too is made of the same bytes.
fn stock_disco_messages_open_and_are_made_alike(stock: &Path) -> Result<(), Failed> {
    let file = json(&stock.join("crypto/disco.json"))?;
    let mut receivers = Vec::new();
    for name in ["receiver_private", "relay_server_private", "sender_private"] {
        receivers
            .push(Disco::new(DiscoPrivate::from_bytes(array(&file[name])?), Seed::from_number(1).stream("disco", 0)));
    }
    let sender = DiscoPrivate::from_bytes(array(&file["sender_private"])?).public();
    let messages = file["messages"].as_array().ok_or("no messages")?;
    let (mut made, mut opened) = (0, 0);
    for entry in messages {
        let name = entry["name"].as_str().unwrap_or_default();
        let (plaintext, wire) = (hex(&entry["plaintext"])?, hex(&entry["wire"])?);
        let message = Message::parse(&plaintext)?;
        if let Some(bytes) = message.emit() {
            assert_eq!(bytes, plaintext, "{name}");
            made += 1;
        }
        let from = disco::sender(&wire).ok_or("no disco packet")?;
        let found =
            receivers.iter_mut().filter(|disco| disco.public() != from).find_map(|disco| disco.open(&wire).ok());
        assert_eq!(found, Some((from, message)), "{name}");
        opened += usize::from(from == sender);
    }
    assert_eq!((messages.len(), made), (13, 7), "the seven that are no relaying through another node");
    assert!(opened >= 7, "{opened} are from the sender");
    Ok(())
}

fn stock_stun_messages_are_read_and_made_alike(stock: &Path) -> Result<(), Failed> {
    let file = json(&stock.join("crypto/stun.json"))?;
    let tx = stun::TxId(array(&file["txid"])?);
    let request = hex(&file["request"])?;
    assert!(stun::is_binding(&request));
    assert_eq!(stun::parse_request(&request), Ok((tx, stun::Asker::Stock)));
    assert_eq!(stun::request(tx), request);
    for address in ["203.0.113.101:41641", "[2001:db8:1::100]:41641"] {
        let response = hex(&file[format!("response_{address}")])?;
        let address = address.parse()?;
        assert!(stun::is_binding(&response));
        assert_eq!(stun::parse_response(&response), Ok((tx, address)));
        assert_eq!(stun::response(tx, address), response);
    }
    Ok(())
}

fn stock_derp_streams_decode_and_are_made_alike(stock: &Path) -> Result<(), Failed> {
    let mut frames = 0;
    for session in json(&stock.join("packets/derp-sessions.json"))?.as_array().ok_or("no sessions")? {
        for entry in session["frames"].as_array().ok_or("no frames")? {
            let bytes = hex(&entry["hex"])?;
            let (frame, length) = Frame::decode(&bytes)?.ok_or("a frame is cut off")?;
            assert_eq!(length, bytes.len());
            assert!(!matches!(frame, Frame::Unknown(_)), "{entry}");
            let mut again = Vec::new();
            frame.encode(&mut again);
            assert_eq!(again, bytes);
            frames += 1;
        }
    }
    assert!(frames > 90, "{frames}");
    Ok(())
}

/// A box opens at both ends, so the relay's key opens what the relay sealed too.
fn stock_derp_hellos_open_with_the_relays_key(stock: &Path) -> Result<(), Failed> {
    let keys = json(&stock.join("keys.json"))?;
    let relay = NodePrivate::from_secret_text(keys["relay"]["PrivateKey"].as_str().ok_or("no key of the relay")?)?;
    let mut hellos = 0;
    for session in json(&stock.join("packets/derp-sessions.json"))?.as_array().ok_or("no sessions")? {
        let mut shared = None;
        for entry in session["frames"].as_array().ok_or("no frames")? {
            let bytes = hex(&entry["hex"])?;
            match Frame::decode(&bytes)?.ok_or("a frame is cut off")?.0 {
                Frame::ServerKey(key) => assert_eq!(key, relay.public()),
                Frame::ClientInfo { key, sealed } => {
                    let key = BoxKey::new(&relay.to_bytes(), key.as_bytes()).ok_or("a low-order key")?;
                    let info = open(&key, sealed)?;
                    assert_eq!((&info["version"], &info["CanAckPings"]), (&2.into(), &true.into()));
                    assert_eq!(info.get("meshKey"), None);
                    shared = Some(key);
                }
                Frame::ServerInfo { sealed } => {
                    let info = open(shared.as_ref().ok_or("an answer before the question")?, sealed)?;
                    assert_eq!(info["version"], 2);
                    hellos += 1;
                }
                _ => {}
            }
        }
    }
    assert_eq!(hellos, 11);
    Ok(())
}

/// The streams to node b, whose keys are kept, go into a client of ours.
fn a_client_follows_what_a_stock_relay_said(stock: &Path) -> Result<(), Failed> {
    let keys = json(&stock.join("keys.json"))?;
    let keys = keys["nodes"]["b"].as_object().ok_or("no node b")?.iter();
    let keys: Vec<_> = keys
        .filter(|(name, _)| name.ends_with("PrivateNodeKey"))
        .filter_map(|(_, key)| NodePrivate::from_secret_text(key.as_str()?).ok())
        .collect();
    let mut followed = 0;
    for session in json(&stock.join("packets/derp-sessions.json"))?.as_array().ok_or("no sessions")? {
        let (mut from_relay, mut packets, mut key) = (Vec::new(), 0, None);
        for entry in session["frames"].as_array().ok_or("no frames")? {
            let bytes = hex(&entry["hex"])?;
            match Frame::decode(&bytes)?.ok_or("a frame is cut off")?.0 {
                Frame::ClientInfo { key: of_client, .. } => key = keys.iter().find(|key| key.public() == of_client),
                Frame::RecvPacket { .. } => packets += 1,
                _ => {}
            }
            if entry["from"] == "server" {
                from_relay.extend(bytes);
            }
        }
        let Some(key) = key else { continue };
        let now = Instant::from_secs(1);
        let mut client = Client::new(key.clone(), Start::Slow, Seed::from_number(1).stream("derp", 0), now);
        client.handle_bytes(&from_relay, now);
        let outputs: Vec<_> = std::iter::from_fn(|| client.poll_output()).collect();
        let is_ready = |output: &Output| matches!(output, Output::Event(Event::Ready { .. }));
        assert_eq!(outputs.iter().filter(|output| is_ready(output)).count(), 1);
        assert!(!outputs.iter().any(|output| matches!(output, Output::Close(_))), "{outputs:?}");
        assert_eq!((client.stats().packets_received, client.stats().frames_skipped), (packets, 0));
        followed += 1;
    }
    assert!(followed > 0, "streams of node b are there");
    Ok(())
}

/// Every request, answer and map message says the same when it has been read and written: nothing is lost.
fn stock_control_messages_are_read_and_written_alike(stock: &Path) -> Result<(), Failed> {
    let mut kinds = BTreeMap::new();
    for entry in session(stock)? {
        let original = &entry["JSON"];
        let has = |name| original.get(name).is_some();
        let (kind, again) = match entry["Kind"].as_str() {
            Some("map-message") => ("map response", again::<MapResponse>(original)?),
            Some("body") if has("AuthURL") => ("register response", again::<RegisterResponse>(original)?),
            Some("body") if has("OldNodeKey") => ("register request", again::<RegisterRequest>(original)?),
            Some("body") if has("Compress") => ("map request", again::<MapRequest>(original)?),
            _ => continue,
        };
        assert_eq!(again, *original, "{kind}");
        *kinds.entry(kind).or_insert(0) += 1;
    }
    assert_eq!((kinds["register request"], kinds["register response"]), (8, 8));
    assert!(kinds["map request"] > 30 && kinds["map response"] > 100, "{kinds:?}");
    Ok(())
}

/// The initiations that a program with Tailscale's own code and stock clients made.
fn stock_noise_initiations_open_with_the_servers_key(stock: &Path) -> Result<(), Failed> {
    let handshake = json(&stock.join("crypto/noise.json"))?;
    let text = |value: &Value| value.as_str().map(str::to_owned).ok_or("no text");
    let message = data_encoding::HEXLOWER.decode(text(&handshake["records"][0]["hex"])?.as_bytes())?;
    let server = MachinePrivate::from_secret_text(&text(&handshake["control_private"])?)?;
    let opened = noise::Initiation::open(&message, &server)?;
    assert_eq!(opened.machine().to_string(), text(&handshake["machine_public"])?);
    assert_eq!(Some(u64::from(opened.version())), handshake["protocol_version"].as_u64());

    let keys = json(&stock.join("keys.json"))?;
    let tap = MachinePrivate::from_secret_text(&text(&keys["control"]["tap"]["tap_control_private"])?)?;
    for number in 1..=3 {
        let upgrade = json(&stock.join(format!("control/raw/conn-{number:02}.json")))?;
        let header = text(&upgrade["handshake_headers"]["X-Tailscale-Handshake"][0])?;
        let opened = noise::Initiation::open(&data_encoding::BASE64.decode(header.as_bytes())?, &tap)?;
        assert_eq!(opened.machine(), text(&upgrade["client_machine"])?.parse::<MachinePublic>()?);
        assert_eq!(Some(u64::from(opened.version())), upgrade["protocol_version"].as_u64());
    }
    Ok(())
}

/// What stock servers and clients say first inside Noise.
fn stock_early_payloads_come_before_http2(stock: &Path) -> Result<(), Failed> {
    for number in 1..=3 {
        let said = std::fs::read(stock.join(format!("control/raw/conn-{number:02}.s2c")))?;
        let (early, rest) = EarlyReader::new().receive(&said)?.ok_or("the payload is whole")?;
        let Early::Present(payload) = early else { return Err("no early payload".into()) };
        assert!(payload.node_key_challenge.starts_with("chalpub:"), "{payload:?}");
        assert_eq!(payload.to_bytes(), said[..said.len() - rest.len()]);
        // A SETTINGS frame (RFC 9113 §6.5) on stream 0.
        assert_eq!((rest[3], &rest[5..9]), (4, &[0; 4][..]));
        let asked = std::fs::read(stock.join(format!("control/raw/conn-{number:02}.c2s")))?;
        assert_eq!(EarlyReader::new().receive(&asked)?, Some((Early::Absent, asked)));
    }
    Ok(())
}

/// The short messages of map streams, as they were framed.
fn stock_map_frames_are_told_apart_and_made_alike(stock: &Path) -> Result<(), Failed> {
    let entries = session(stock)?;
    let messages = entries.iter().filter(|entry| entry["Kind"] == "map-message");
    let framed: Vec<_> = messages.filter_map(|entry| entry["Hex"].as_str()).collect();
    assert!(framed.len() > 10, "{} frames", framed.len());
    let bytes = data_encoding::HEXLOWER.decode(framed.concat().as_bytes())?;
    let mut reader = MapReader::new();
    for piece in bytes.chunks(7) {
        reader.receive(piece)?;
    }
    assert!(!reader.is_within_message());
    let mut again = Vec::new();
    while let Some(message) = reader.pop() {
        assert_eq!(message[..4], [0x28, 0xb5, 0x2f, 0xfd], "a zstd frame (RFC 8878 §3.1.1)");
        again.extend(frame(&message)?);
    }
    assert_eq!(again, bytes);
    Ok(())
}

/// Each stream makes a map, without anything left out, and with an interner the same.
fn netmaps_follow_what_a_stock_server_said(stock: &Path) -> Result<(), Failed> {
    let now = WallTime::from_unix_secs(1);
    let mut interner = Interner::new();
    let mut maps: BTreeMap<(u64, u64), (NetMap, NetMap)> = BTreeMap::new();
    for entry in session(stock)?.iter().filter(|entry| entry["Kind"] == "map-message") {
        let stream = (entry["Conn"].as_u64().ok_or("no Conn")?, entry["Stream"].as_u64().ok_or("no Stream")?);
        let (map, shared) = maps.entry(stream).or_default();
        let text = serde_json::to_vec(&entry["JSON"])?;
        let change = map.apply(netmap::decode(&text, None)?, now)?;
        assert_eq!(change.skipped, [], "{entry}");
        assert_eq!(shared.apply(netmap::decode(&text, Some(&mut interner))?, now)?, change);
        assert_eq!(map.peers(), shared.peers());
    }
    assert!(maps.len() > 5, "{} streams", maps.len());
    assert!(maps.values().any(|(map, _)| map.peers().len() == 2));
    for (map, _) in maps.values() {
        let node = map.self_node().ok_or("no node")?;
        assert!(!node.allowed_ips().is_empty() && node.has_capability("https://tailscale.com/cap/ssh"));
        assert_eq!(map.regions().map(|(id, _)| id.number()).collect::<Vec<_>>(), [900]);
        for peer in map.peers().values() {
            assert!(peer.disco_key.is_some() && !peer.addresses.is_empty() && map.user(peer.user).is_some());
        }
    }
    Ok(())
}

/// The same objects as a client keeps them; only the names that it computes itself are none of ours.
fn what_a_stock_client_shows_is_read_and_written_alike(stock: &Path) -> Result<(), Failed> {
    let map = json(&stock.join("client/netmap.json"))?;
    let peers = map["Peers"].as_array().ok_or("no Peers")?;
    let (whois, tagged) = (json(&stock.join("client/whois.json"))?, json(&stock.join("client/whois-tagged.json"))?);
    let nodes: Vec<_> = peers.iter().chain([&map["SelfNode"], &whois["Node"], &tagged["Node"]]).collect();
    assert!(nodes.len() >= 4);
    for node in nodes {
        let mut node = node.clone();
        let members = node.as_object_mut().ok_or("no object")?;
        members.retain(|name, _| !name.starts_with("Computed"));
        assert_eq!(again::<PeerNode>(&node)?, node);
    }
    let hostinfo = json(&stock.join("client/hostinfo.json"))?;
    assert_eq!(again::<Hostinfo>(&hostinfo)?, hostinfo);
    let relays = json(&stock.join("client/derp-map.json"))?;
    assert_eq!(again::<DerpMap>(&relays)?, relays);
    assert_eq!(again::<DnsConfig>(&map["DNS"])?, map["DNS"]);
    for rule in map["PacketFilterRules"].as_array().ok_or("no rules")? {
        assert_eq!(again::<FilterRule>(rule)?, *rule);
    }
    Ok(())
}

fn again<T: DeserializeOwned + Serialize>(original: &Value) -> Result<Value, Failed> {
    Ok(serde_json::to_value(serde_json::from_value::<T>(original.clone())?)?)
}

fn session(stock: &Path) -> Result<Vec<Value>, Failed> {
    let lines = std::fs::read_to_string(stock.join("control/session.jsonl"))?;
    Ok(lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

fn open(key: &BoxKey, sealed: &[u8]) -> Result<Value, Failed> {
    let (nonce, sealed) = sealed.split_first_chunk().ok_or("no nonce")?;
    Ok(serde_json::from_slice(&key.open(nonce, sealed).map_err(|_| "the box does not open")?)?)
}

fn json(path: &Path) -> Result<Value, Failed> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

fn hex(value: &Value) -> Result<Vec<u8>, Failed> {
    Ok(data_encoding::HEXLOWER.decode(value.as_str().ok_or("not a text")?.as_bytes())?)
}

fn array<const N: usize>(value: &Value) -> Result<[u8; N], Failed> {
    Ok(hex(value)?.try_into().map_err(|_| "of another length")?)
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
        let keys = json(&stock.join("keys.json"))?;
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
