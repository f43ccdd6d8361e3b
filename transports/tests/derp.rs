//! Links to relays that are not as they should be, on sockets of the loopback.

use core::{future::poll_fn, net::SocketAddr, time::Duration};
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
};

use data_encoding::HEXLOWER;
use rcgen::{CertificateParams, DnType, KeyPair, SerialNumber};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer},
    version::{TLS12, TLS13},
};

use mesh_core::{
    crypto::nacl::BoxKey,
    derp::{DerpNode, Frame, PeerGoneReason, RegionId, relays::Home},
    disco,
    key::{NodePrivate, NodePublic},
    node::{RelayCommand, RelayEvent},
    rng::Seed,
};
use transports::{
    derp::{Arrival, Dialer, Plain, RelayLinks, Trust},
    fetch,
    net::Net,
    udp::Family,
};

const LONG: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "current_thread")]
async fn a_fast_start_sends_the_hello_with_the_request_and_a_slow_one_waits() {
    for (versions, is_fast) in [(&[&TLS13], true), (&[&TLS12], false)] {
        let certificate = Certificate::new("localhost");
        let node = certificate.node(serve_tls(&certificate, versions, move |mut stream| {
            let head = read_head(&mut stream);
            assert_eq!(head.contains("Derp-Fast-Start: 1\r\n"), is_fast, "{head}");
            assert!(head.contains("Upgrade: DERP\r\n"), "{head}");
            take_in(stream, !is_fast, |mut stream, client| {
                // Home is told, then packets in order.
                assert_eq!(next(&mut stream), Owned::Home(true));
                let packet = next(&mut stream);
                assert_eq!(packet, Owned::Packet(peer(), b"out".to_vec()));
                say(&mut stream, &Frame::RecvPacket { from: client, packet: b"in" });
                say(&mut stream, &Frame::PeerGone { peer: peer(), reason: PeerGoneReason::NotHere });
                say(&mut stream, &Frame::Health(b"sick"));
                say(&mut stream, &Frame::Restarting { reconnect_in_ms: 1500, try_for_ms: 1 });
            });
        }));
        let mut links = links(Plain::Never);
        connect(&mut links, vec![node]);
        // Waits until the relay took us in.
        links.send(region(), peer(), b"out".to_vec());
        links.handle_command(RelayCommand::SetHome { region: region(), home: Home::Here });
        assert_eq!(receive(&mut links).await, connected());
        let packet = Arrival::Packet { region: region(), from: ours().public(), packet: b"in".to_vec() };
        assert_eq!(receive(&mut links).await, packet);
        assert_eq!(receive(&mut links).await, event(RelayEvent::PeerGone { region: region(), peer: peer() }));
        let problem = Some("sick".to_owned());
        assert_eq!(receive(&mut links).await, event(RelayEvent::Health { region: region(), problem }));
        let reconnect_in = Duration::from_millis(1500);
        assert_eq!(receive(&mut links).await, event(RelayEvent::Restarting { region: region(), reconnect_in }));
        assert_eq!(failure(&mut links).await, "localhost closed the connection");
        assert_eq!((links.counts().sent_packets, links.counts().received_bytes), (1, 2));
        // Now there is no link.
        links.send(region(), peer(), b"late".to_vec());
        assert_eq!(links.counts().dropped_no_link, 1);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn another_certificate_than_the_map_says_is_refused_by_name() {
    let (shown, pinned) = (Certificate::new("localhost"), Certificate::new("localhost"));
    let address = serve_tls(&shown, &[&TLS13], |mut stream| {
        let _ = stream.read(&mut [0]);
    });
    let mut links = links(Plain::Never);
    let node = pinned.node(address);
    let expected = format!("certificate of localhost does not match {} of the relay map", node.cert_name);
    assert_eq!(refusal(&mut links, node).await, expected);
    let node = DerpNode { cert_name: "sha256-raw:12".into(), ..pinned.node(address) };
    let expected = "the relay map says \"sha256-raw:12\" where sha256-raw: and 64 hexadecimal digits should be";
    assert_eq!(refusal(&mut links, node).await, expected);
}

#[tokio::test(flavor = "current_thread")]
async fn without_a_pin_the_name_must_be_right_and_the_issuer_known() {
    let certificate = Certificate::new("relay.example");
    let serve = || {
        serve_tls(&certificate, &[&TLS13], |mut stream| {
            read_head(&mut stream);
            take_in(stream, false, |_, _| {});
        })
    };
    let with =
        |trust| RelayLinks::new(ours(), Seed::from_number(1), Dialer { net: Net::Host, trust, plain: Plain::Never });
    let known = || with(Trust::of(vec![certificate.der.to_vec()]));
    let named = |cert_name: &str| DerpNode { cert_name: cert_name.into(), ..certificate.node(serve()) };
    let mut right = known();
    connect(&mut right, vec![named("relay.example")]);
    assert_eq!(receive(&mut right).await, connected());
    // The map does not say another name: that of the host counts.
    let reason = refusal(&mut known(), named("")).await;
    assert!(reason.starts_with("certificate of localhost is not good: "), "{reason}");
    let unknown = with(Trust::of(vec![Certificate::new("other").der.to_vec()]));
    let reason = refusal(&mut { unknown }, named("relay.example")).await;
    assert_eq!(reason, "certificate of localhost is of an issuer that this host does not know");
    // Unless nobody is to look.
    let mut careless = known();
    connect(&mut careless, vec![DerpNode { insecure_for_tests: true, ..named("") }]);
    assert_eq!(receive(&mut careless).await, connected());
}

#[tokio::test(flavor = "current_thread")]
async fn relays_without_tls_are_for_those_who_ask_for_them() {
    let serve = || {
        serve(|mut stream| {
            if read_head(&mut stream).starts_with("GET ") {
                take_in(stream, true, |_, _| {});
            } else {
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            }
        })
    };
    assert_eq!(refusal(&mut links(Plain::Never), plain_node(serve())).await, "localhost does not speak TLS");
    let mut links = links(Plain::WhereInsecure);
    connect(&mut links, vec![plain_node(serve())]);
    assert_eq!(receive(&mut links).await, connected());
    let node =
        DerpNode { insecure_for_tests: false, cert_name: format!("sha256-raw:{:064}", 0), ..plain_node(serve()) };
    assert_eq!(refusal(&mut links, node).await, "localhost does not speak TLS");
}

#[tokio::test(flavor = "current_thread")]
async fn what_is_no_relay_is_said() {
    let check = async |answer: &'static [u8], expected: &str| {
        let address = serve(move |mut stream| {
            read_head(&mut stream);
            let _ = stream.write_all(answer);
        });
        assert_eq!(refusal(&mut links(Plain::WhereInsecure), plain_node(address)).await, expected);
    };
    check(b"HTTP/1.1 404 Not Found\r\n\r\n", "localhost answers \"404 Not Found\" and is no relay").await;
    check(b"220 mail.example\r\n", "localhost does not speak HTTP").await;
    check(b"", "localhost closed the connection before it answered: unexpected end of file").await;
    let garbage = b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x77\xff\xff\xff\xff";
    check(garbage, "localhost: a frame of type 0x77 with 4294967295 bytes is too long").await;
    let silent = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
    check(silent, "localhost closed the connection and did not take us in").await;
    let mut links = links(Plain::Never);
    assert_eq!(refusal_of(&mut links, Vec::new()).await, "the region has no relays");
    let nowhere = DerpNode { ipv4: "none".into(), ipv6: "none".into(), ..plain_node(([127, 0, 0, 1], 1).into()) };
    assert_eq!(refusal(&mut links, nowhere).await, "the relay map gives no address for localhost");
}

#[tokio::test(flavor = "current_thread")]
async fn relays_that_hang_leave_time_for_the_next() {
    // One takes the connection and says nothing, one does not even exist, and one is well.
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let well = serve(|mut stream| {
        assert!(read_head(&mut stream).contains("Ideal-Node: first\r\n"));
        take_in(stream, true, |_, _| {});
    });
    let mut links = links(Plain::WhereInsecure);
    let first = DerpNode { name: "first".into(), ..plain_node(hanging.local_addr().unwrap()) };
    let stun = DerpNode { stun_only: true, ..plain_node(nobody) };
    connect(&mut links, vec![stun, first, plain_node(nobody), plain_node(well)]);
    assert_eq!(receive(&mut links).await, connected());
}

#[tokio::test(flavor = "current_thread")]
async fn addresses_that_swallow_everything_do_not_hide_those_that_answer() {
    // The backlog of this listener is full, so the kernel drops what else comes: a black hole.
    let hole = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    hole.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    hole.listen(0).unwrap();
    let address = hole.local_addr().unwrap().as_socket().unwrap();
    let _fills = TcpStream::connect(address).unwrap();
    let well = serve_at("[::1]", address.port(), |mut stream| {
        read_head(&mut stream);
        take_in(stream, true, |_, _| {});
    });
    let Some(well) = well else { return };
    assert_eq!(well.port(), address.port());
    let mut links = links(Plain::WhereInsecure);
    connect(&mut links, vec![DerpNode { ipv6: "::1".into(), ..plain_node(address) }]);
    assert_eq!(receive(&mut links).await, connected());
    // Alone it is given up in time.
    assert_eq!(refusal(&mut links, plain_node(address)).await, "localhost does not answer");
}

#[tokio::test(flavor = "current_thread")]
async fn disco_overtakes_packets_and_the_oldest_are_dropped_while_the_relay_is_dialled() {
    let address = serve(|mut stream| {
        read_head(&mut stream);
        take_in(stream, true, |mut stream, client| {
            let Owned::Packet(_, first) = next(&mut stream) else { panic!("a packet is first") };
            let Owned::Packet(_, second) = next(&mut stream) else { panic!("a packet is second") };
            for packet in [first, second] {
                say(&mut stream, &Frame::RecvPacket { from: client, packet: &packet });
            }
            let _ = stream.read_to_end(&mut Vec::new());
        });
    });
    let mut links = links(Plain::WhereInsecure);
    connect(&mut links, vec![plain_node(address)]);
    for number in 0..300_u16 {
        links.send(region(), peer(), number.to_be_bytes().to_vec());
    }
    let ping = [&disco::MAGIC[..], &[0; 60]].concat();
    links.send(region(), peer(), ping.clone());
    assert_eq!(links.counts().dropped_full, 44);
    assert_eq!(receive(&mut links).await, connected());
    let mut packets = Vec::new();
    while packets.len() < 2 {
        let Arrival::Packet { packet, .. } = receive(&mut links).await else { panic!("the relay echoes") };
        packets.push(packet);
    }
    assert_eq!(packets, [ping, 44_u16.to_be_bytes().to_vec()]);
}

#[tokio::test(flavor = "current_thread")]
async fn a_driver_that_takes_nothing_stops_the_relay_and_loses_nothing() {
    const PACKETS: usize = 20_000;
    let (written, progress) = std::sync::mpsc::channel();
    let address = serve(move |mut stream| {
        read_head(&mut stream);
        take_in(stream, true, |mut stream, client| {
            for number in 0..PACKETS {
                let packet = [&number.to_be_bytes()[..], &[0; 1392]].concat();
                say(&mut stream, &Frame::RecvPacket { from: client, packet: &packet });
                written.send(number).unwrap();
            }
            // Until we are done.
            let _ = stream.read(&mut [0]);
        });
    });
    let mut links = links(Plain::WhereInsecure);
    connect(&mut links, vec![plain_node(address)]);
    assert_eq!(receive(&mut links).await, connected());
    // The link reads as much as fits; then the relay cannot write any more.
    let mut sent = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = sent + progress.try_iter().count();
        if now == sent {
            break;
        }
        sent = now;
    }
    assert!(sent < PACKETS, "28 MB were taken from the relay and by nobody");
    for number in 0..PACKETS {
        let Arrival::Packet { packet, .. } = receive(&mut links).await else { panic!("only packets come") };
        assert_eq!(packet[..8], number.to_be_bytes());
    }
}

#[tokio::test(flavor = "current_thread")]
async fn nothing_is_said_about_a_link_that_was_closed() {
    let address = serve(|mut stream| {
        read_head(&mut stream);
        take_in(stream, true, |_, _| {});
    });
    let mut links = links(Plain::WhereInsecure);
    connect(&mut links, vec![plain_node(address)]);
    // The report is there, and then the link is another.
    poll_fn(|cx| links.poll_ready(cx)).await;
    links.handle_command(RelayCommand::Close { region: region() });
    assert_eq!(links.try_recv(), None);
    links.send(region(), peer(), vec![1]);
    assert_eq!(links.counts().dropped_no_link, 1);
}

#[tokio::test(flavor = "current_thread")]
async fn a_relay_is_asked_whether_it_is_there() {
    let address = serve(|mut stream| {
        read_head(&mut stream);
        take_in(stream, true, |mut stream, client| {
            assert_eq!(next(&mut stream), Owned::Ping);
            say(&mut stream, &Frame::RecvPacket { from: client, packet: b"asked" });
        });
    });
    let mut links = links(Plain::WhereInsecure);
    connect(&mut links, vec![plain_node(address)]);
    assert_eq!(receive(&mut links).await, connected());
    links.handle_command(RelayCommand::Ask { region: region() });
    let packet = Arrival::Packet { region: region(), from: ours().public(), packet: b"asked".to_vec() };
    assert_eq!(receive(&mut links).await, packet);
}

#[tokio::test(flavor = "current_thread")]
async fn a_relay_that_asks_for_less_is_sent_less() {
    let address = serve(|mut stream| {
        read_head(&mut stream);
        let info = br#"{"version":2,"TokenBucketBytesPerSecond":1,"TokenBucketBytesBurst":300}"#;
        take_in_with(stream, true, info, |mut stream, client| {
            for _ in 0..2 {
                let Owned::Packet(_, packet) = next(&mut stream) else { panic!("packets come") };
                say(&mut stream, &Frame::RecvPacket { from: client, packet: &packet });
            }
            let _ = stream.read(&mut [0]);
        });
    });
    let mut links = links(Plain::WhereInsecure);
    connect(&mut links, vec![plain_node(address)]);
    for _ in 0..5 {
        links.send(region(), peer(), vec![0; 100]);
    }
    assert_eq!(receive(&mut links).await, connected());
    for _ in 0..2 {
        assert!(matches!(receive(&mut links).await, Arrival::Packet { .. }));
    }
    assert_eq!((links.counts().sent_packets, links.counts().dropped_over_rate), (2, 3));
}

#[tokio::test(flavor = "current_thread")]
async fn a_fetch_is_bounded_in_size_and_time_and_measures_the_answer_alone() {
    let dialer = Dialer { net: Net::Host, trust: Trust::system(), plain: Plain::WhereInsecure };
    let get = async |node: &DerpNode, within| fetch::get(&dialer, node, "/x", &["X-Own: 1"], Family::V4, within).await;
    let certificate = Certificate::new("localhost");
    let serve = || {
        serve_tls(&certificate, &[&TLS13], |mut stream| {
            let head = read_head(&mut stream);
            if head.is_empty() {
                return;
            }
            assert!(head.starts_with("GET /x HTTP/1.1\r\nHost: localhost:") && head.contains("X-Own: 1\r\n"), "{head}");
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX-Theirs:  2 \r\n\r\n");
            let _ = stream.write_all(&vec![b'a'; 100_000]);
        })
    };
    let response = get(&certificate.node(serve()), LONG).await.unwrap();
    assert_eq!((response.status, response.header("x-theirs"), response.body.len()), (200, Some("2"), 8192));
    assert!(response.took > Duration::ZERO && response.took < LONG);
    let pinned = Certificate::new("localhost").node(serve());
    let error = get(&pinned, LONG).await.unwrap_err().to_string();
    assert!(error.starts_with("certificate of localhost does not match"), "{error}");
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    let node = plain_node(hanging.local_addr().unwrap());
    let error = get(&node, Duration::from_millis(50)).await.unwrap_err().to_string();
    assert_eq!(error, "localhost did not answer within 50 ms");
}

/// A self-signed certificate, and one that announces [`relay_key`].
struct Certificate {
    der: CertificateDer<'static>,
    announcement: CertificateDer<'static>,
    key: KeyPair,
}

impl Certificate {
    fn new(host: &str) -> Self {
        let key = KeyPair::generate().expect("the stand-in does its part");
        let mut params = CertificateParams::new(vec![host.to_owned()]).expect("the stand-in does its part");
        params.distinguished_name.push(DnType::CommonName, host);
        let der = params.self_signed(&key).expect("the stand-in does its part").der().clone();
        let mut params = CertificateParams::default();
        let name = format!("derpkey{}", HEXLOWER.encode(relay_key().public().as_bytes()));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(SerialNumber::from(2_u64));
        let announcement = params
            .self_signed(&KeyPair::generate().expect("the stand-in does its part"))
            .expect("the stand-in does its part")
            .der()
            .clone();
        Self { der, announcement, key }
    }

    /// An entry of the relay map that pins this certificate.
    fn node(&self, address: SocketAddr) -> DerpNode {
        let hash = ring::digest::digest(&ring::digest::SHA256, &self.der);
        let cert_name = format!("sha256-raw:{}", HEXLOWER.encode(hash.as_ref()));
        DerpNode { cert_name, insecure_for_tests: false, ..plain_node(address) }
    }
}

fn plain_node(address: SocketAddr) -> DerpNode {
    DerpNode {
        host_name: "localhost".into(),
        ipv4: address.ip().to_string(),
        ipv6: "none".into(),
        derp_port: address.port().into(),
        insecure_for_tests: true,
        ..DerpNode::default()
    }
}

/// A relay for one connection.
fn serve(relay: impl FnOnce(TcpStream) + Send + 'static) -> SocketAddr {
    serve_at("127.0.0.1", 0, relay).expect("this host has IPv4")
}

fn serve_at(host: &str, port: u16, relay: impl FnOnce(TcpStream) + Send + 'static) -> Option<SocketAddr> {
    let listener = TcpListener::bind(format!("{host}:{port}")).ok()?;
    let address = listener.local_addr().expect("the stand-in does its part");
    thread::spawn(move || relay(listener.accept().expect("the stand-in does its part").0));
    Some(address)
}

fn serve_tls(
    certificate: &Certificate,
    versions: &[&'static rustls::SupportedProtocolVersion],
    relay: impl FnOnce(StreamOwned<ServerConnection, TcpStream>) + Send + 'static,
) -> SocketAddr {
    let chain = vec![certificate.der.clone(), certificate.announcement.clone()];
    let key = PrivateKeyDer::try_from(certificate.key.serialize_der()).expect("the stand-in does its part");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("the stand-in does its part");
    let config =
        Arc::new(builder.with_no_client_auth().with_single_cert(chain, key).expect("the stand-in does its part"));
    serve(move |socket| {
        relay(StreamOwned::new(ServerConnection::new(config).expect("the stand-in does its part"), socket))
    })
}

/// Everything up to an empty line, or what came before the end.
fn read_head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
        head.push(byte[0]);
        if head.len() == 2 && head[0] == 0x16 {
            // TLS: there is no end of a line to wait for.
            break;
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

fn take_in<S: Read + Write>(stream: S, with_head: bool, then: impl FnOnce(S, NodePublic)) {
    take_in_with(stream, with_head, br#"{"version":2}"#, then);
}

/// The relay's part of the beginning.
fn take_in_with<S: Read + Write>(mut stream: S, with_head: bool, info: &[u8], then: impl FnOnce(S, NodePublic)) {
    if with_head {
        let _ = stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\n\r\n");
    }
    say(&mut stream, &Frame::ServerKey(relay_key().public()));
    // Whoever does not believe the certificate says no hello.
    let Owned::Hello(client) = next(&mut stream) else { return };
    let shared = BoxKey::new(&relay_key().to_bytes(), client.as_bytes()).expect("the stand-in does its part");
    let sealed = [&[7; 24][..], &shared.seal(&[7; 24], info)].concat();
    say(&mut stream, &Frame::ServerInfo { sealed: &sealed });
    then(stream, client);
}

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
enum Owned {
    Hello(NodePublic),
    Home(bool),
    Packet(NodePublic, Vec<u8>),
    Ping,
    Other,
    End,
}

fn next(stream: &mut impl Read) -> Owned {
    let mut bytes = vec![0; 5];
    if stream.read_exact(&mut bytes).is_err() {
        return Owned::End;
    }
    let length = u32::from_be_bytes(bytes[1..].try_into().expect("the stand-in does its part")) as usize;
    bytes.resize(5 + length, 0);
    stream.read_exact(&mut bytes[5..]).expect("the stand-in does its part");
    match Frame::decode(&bytes).expect("the stand-in does its part").expect("the stand-in does its part").0 {
        Frame::ClientInfo { key, .. } => Owned::Hello(key),
        Frame::NotePreferred(is_home) => Owned::Home(is_home),
        Frame::SendPacket { to, packet } => Owned::Packet(to, packet.to_vec()),
        Frame::Ping(_) => Owned::Ping,
        _ => Owned::Other,
    }
}

fn say(stream: &mut impl Write, frame: &Frame<'_>) {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    // The client may be gone.
    let _ = stream.write_all(&bytes);
    let _ = stream.flush();
}

fn links(plain: Plain) -> RelayLinks {
    RelayLinks::new(ours(), Seed::from_number(1), Dialer { net: Net::Host, trust: Trust::system(), plain })
}

fn connect(links: &mut RelayLinks, nodes: Vec<DerpNode>) {
    links.handle_command(RelayCommand::Connect { region: region(), nodes });
}

async fn receive(links: &mut RelayLinks) -> Arrival {
    loop {
        if let Some(arrival) = links.try_recv() {
            return arrival;
        }
        tokio::time::timeout(LONG, poll_fn(|cx| links.poll_ready(cx))).await.expect("something comes");
    }
}

async fn failure(links: &mut RelayLinks) -> String {
    match receive(links).await {
        Arrival::Event(RelayEvent::Failed { region: own, reason }) if own == region() => reason,
        other => panic!("{other:?}"),
    }
}

async fn refusal(links: &mut RelayLinks, node: DerpNode) -> String {
    refusal_of(links, vec![node]).await
}

async fn refusal_of(links: &mut RelayLinks, nodes: Vec<DerpNode>) -> String {
    connect(links, nodes);
    failure(links).await
}

fn connected() -> Arrival {
    event(RelayEvent::Connected { region: region() })
}

fn event(event: RelayEvent) -> Arrival {
    Arrival::Event(event)
}

fn region() -> RegionId {
    RegionId::new(900).expect("the stand-in does its part")
}

fn ours() -> NodePrivate {
    NodePrivate::from_bytes([1; 32])
}

fn relay_key() -> NodePrivate {
    NodePrivate::from_bytes([2; 32])
}

fn peer() -> NodePublic {
    NodePrivate::from_bytes([3; 32]).public()
}
