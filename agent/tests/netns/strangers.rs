//! Strangers: this program, started again inside a namespace, does one thing too often.
//!
//! Each is told how often. It says when it has done so, and all but those who sign in go on until they are ended. Those
//! that are to come from many addresses have [`SOURCES`] for themselves: their host answers for the whole network.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a stranger is a program of its own")]

use std::{
    collections::BTreeSet,
    future::poll_fn,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use data_encoding::BASE64;
use mesh_core::{
    control::{
        CAPABILITY_VERSION, ControlEvent, ControlRequest, ControlUrl, RequestId, Server,
        noise::Initiator,
        types::{Hostinfo, RegisterRequest},
    },
    derp::Frame,
    disco,
    key::{DiscoPublic, MachinePrivate, MachinePublic, NodePrivate, NodePublic},
    rng::{Rng, Seed},
    wireguard::identity::MacKeys,
};
use socket2::{Domain, Socket, Type};
use transports::{
    control::{ControlDialer, ControlLink},
    derp::Trust,
    net::Net,
};

use super::{
    homes::Homes,
    joined::note,
    lab::{Node, Process},
};

#[path = "../../../benches/src/bin/relay/client.rs"]
#[allow(dead_code, reason = "made for another user")]
mod client;
use client::Client;

/// What this program is started again with to be a stranger.
pub(crate) const WORD: &str = "stranger";

/// The network that strangers of many addresses have for themselves.
const SOURCES: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 0);

/// How often connections that are held are looked after.
const TICK: Duration = Duration::from_millis(50);

/// A host on the segment that has nothing to do with anybody; the first of them has [`SOURCES`].
pub(crate) fn host(homes: &mut Homes, number: usize) -> Result<Node> {
    let node = homes.lab.node(&format!("guest{number}"))?;
    let (ours, theirs) = (format!("198.18.{number}.1"), format!("198.18.{number}.2"));
    let port = format!("guest{number}");
    homes.lab.cable((&homes.segment, &port, &[&format!("{ours}/24")]), (&node, "eth0", &[&format!("{theirs}/24")]))?;
    node.route(&format!("default via {ours}"))?;
    if number == 0 {
        homes.segment.route(&format!("{SOURCES}/16 via {theirs}"))?;
        node.run(&["ip", "route", "add", "local", &format!("{SOURCES}/16"), "dev", "lo"])?;
    }
    Ok(node)
}

/// Starts a stranger, which may have as many files as the system lets anybody have, and waits until it is at work.
pub(crate) fn start(node: &Node, words: &[&str]) -> Result<Process> {
    let own = std::env::current_exe()?;
    let line = ["prlimit", "--nofile=20000:20000", own.to_str().context("a path that is not text")?, WORD];
    let process = node.spawn(&[&line[..], words].concat())?;
    process.wait_for("begun", Duration::from_secs(60))?;
    Ok(process)
}

/// The number in the line that begins with `word` of what a stranger said; waits for it, and shows it.
pub(crate) fn said(process: &Process, word: &str) -> Result<u64> {
    let ended = process.wait_for(word, Duration::from_secs(120));
    // It may be the last thing that it says.
    let output = process.output();
    let line = output.lines().find(|line| line.starts_with(word)).map(ToOwned::to_owned);
    let line = line.map_or(ended, Ok)?;
    note(format_args!("stranger: {line}"));
    Ok(line.rsplit(' ').next().unwrap_or_default().parse()?)
}

/// The stranger: what it does, and how.
pub(crate) fn main(arguments: &[String]) -> ExitCode {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["handshakes", to, key, rate, count, sources] => handshakes(to, key, rate, count, sources),
        ["disco", to, key, rate, count, sources] => forged_disco(to, key, rate, count, sources),
        ["half", to, count, sources] => half(to, count, sources),
        ["hold", how, to, count, sources] => hold(how, to, count, sources),
        ["derp-idle", to, count] => derp_idle(to, count),
        ["derp-flood", to, senders, deaf, bytes, count] => derp_flood(to, senders, deaf, bytes, count),
        ["sign-in", url, count] => sign_in(url, count),
        _ => Err(anyhow::anyhow!("not understood: {words:?}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Initiations of nobody, with a right first MAC.
fn handshakes(to: &str, key: &str, rate: &str, count: &str, sources: &str) -> Result<()> {
    let macs = MacKeys::new(&key.parse::<NodePublic>()?);
    let mut message = [0; 148];
    message[0] = 1;
    blast(to, rate, count, sources, move |rng| {
        rng.fill(&mut message[4..116]);
        let mac = macs.mac1(&message[..116]);
        message[116..132].copy_from_slice(&mac);
        message.to_vec()
    })
}

/// Disco packets as if from `key`, or from keys that nobody has; nothing can be opened in them.
fn forged_disco(to: &str, key: &str, rate: &str, count: &str, sources: &str) -> Result<()> {
    let key = if key == "anybody" { None } else { Some(key.parse::<DiscoPublic>()?) };
    blast(to, rate, count, sources, move |rng| {
        let mut packet = [disco::MAGIC.as_slice(), &[0; 32 + 24 + 16 + 46]].concat();
        rng.fill(&mut packet[6..]);
        if let Some(key) = &key {
            packet[6..38].copy_from_slice(key.as_bytes());
        }
        packet
    })
}

/// Sends what `make` makes, `rate` times a second where the machine is fast enough, in turn from all sources; from one where
/// there are none. Says when `count` are sent.
fn blast(to: &str, rate: &str, count: &str, sources: &str, mut make: impl FnMut(&mut Rng) -> Vec<u8>) -> Result<()> {
    let (to, rate, count): (SocketAddr, u64, u64) = (to.parse()?, rate.parse()?, count.parse()?);
    let from = match sources.parse()? {
        0 => vec![UdpSocket::bind("0.0.0.0:0")?],
        sources => (0..sources).map(|number| UdpSocket::bind((source(number), 0))).collect::<io::Result<Vec<_>>>()?,
    };
    println!("begun");
    let (start, mut sent, mut past, mut rng) = (Instant::now(), 0_u64, 0, rng("blast"));
    let mut from = from.iter().cycle();
    loop {
        // As many as are due by now; one that was held up does not make up for all of it.
        let due = start.elapsed().as_micros() as u64 * rate / 1_000_000;
        for socket in from.by_ref().take((due - past).min(rate / 50) as usize) {
            // A full queue loses it, as floods do.
            let _ = socket.send_to(&make(&mut rng), to);
            sent += 1;
            if sent == count {
                println!("sent within {:.1?}: {count}", start.elapsed());
            }
        }
        past = due;
        thread::sleep(Duration::from_millis(1));
    }
}

fn source(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(SOURCES.to_bits() + 1 + number)
}

/// Connections that are to be held, and which of them have not been there yet.
struct Places {
    missing: BTreeSet<u32>,
    count: u32,
    start: Instant,
}

impl Places {
    fn new(count: u32) -> Self {
        Self { missing: (0..count).collect(), count, start: Instant::now() }
    }

    /// This one is there. Says so when all were at some time.
    fn note(&mut self, number: u32) {
        if self.missing.remove(&number) && self.missing.is_empty() {
            println!("held within {:.1?}: {}", self.start.elapsed(), self.count);
        }
    }
}

/// Keeps so many connections open that say little: those that are closed are opened again. With several sources they
/// come in turn from all.
fn hold(how: &str, to: &str, count: &str, sources: &str) -> Result<()> {
    let (to, count, sources): (SocketAddrV4, u32, u32) = (to.parse()?, count.parse()?, sources.parse()?);
    let first = match how {
        "silent" => Vec::new(),
        // The beginning of a ClientHello of 512 bytes.
        "tls" => vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3],
        "http" => b"GET /key HTTP/1.1\r\nHost: control\r\nX-Nothing: ".to_vec(),
        "noise" => into_noise(to)?,
        _ => bail!("no way to hold a connection: {how}"),
    };
    let drips = matches!(how, "tls" | "http");
    let mut held: Vec<Held> = (0..count).map(|_| Held::default()).collect();
    let mut places = Places::new(count);
    println!("begun");
    loop {
        for (held, number) in held.iter_mut().zip(0..) {
            if held.socket.is_none() {
                let from = (sources > 0).then(|| source(number % sources));
                // One for which the system has no room is tried again.
                *held = Held { socket: connect(to, from).ok(), ..Held::default() };
            }
            if held.is_there() {
                places.note(number);
            }
            held.go_on(&first, drips);
        }
        thread::sleep(TICK);
    }
}

/// A connection that is held.
#[derive(Default)]
struct Held {
    socket: Option<TcpStream>,
    said: usize,
    last: Option<Instant>,
}

impl Held {
    /// Whether the other end has taken it.
    fn is_there(&self) -> bool {
        self.socket.as_ref().is_some_and(|socket| socket.peer_addr().is_ok())
    }

    /// Says what is due, and finds out whether it was closed.
    fn go_on(&mut self, first: &[u8], drips: bool) {
        let Some(socket) = &mut self.socket else { return };
        let is_due = self.last.is_none_or(|last| last.elapsed() >= Duration::from_secs(1));
        let next = match first.get(self.said..).filter(|rest| !rest.is_empty()) {
            Some(rest) => rest,
            None if drips && is_due => b"a",
            None => &[],
        };
        if !next.is_empty()
            && let Ok(count) = socket.write(next)
        {
            (self.said, self.last) = (self.said + count, Some(Instant::now()));
        }
        let is_open = match socket.read(&mut [0; 1024]) {
            Ok(count) => count > 0,
            Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected),
        };
        if !is_open {
            self.socket = None;
        }
    }
}

/// A connection in the making that nobody waits for.
fn connect(to: SocketAddrV4, from: Option<Ipv4Addr>) -> Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    if let Some(from) = from {
        socket.bind(&SocketAddrV4::new(from, 0).into())?;
    }
    socket.set_nonblocking(true)?;
    // It goes on by itself; one that fails is seen when it is read.
    let _ = socket.connect(&to.into());
    Ok(socket.into())
}

/// A request that ends in Noise.
fn into_noise(control: SocketAddrV4) -> Result<Vec<u8>> {
    let mut socket = TcpStream::connect(control)?;
    socket.write_all(b"GET /key HTTP/1.1\r\nHost: control\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let body = answer.rsplit("\r\n\r\n").next().unwrap_or_default();
    let key: MachinePublic =
        serde_json::from_value(serde_json::from_str::<serde_json::Value>(body)?["publicKey"].clone())?;
    let mut rng = rng("noise");
    let (_, initiation) = Initiator::start(CAPABILITY_VERSION, &MachinePrivate::generate(&mut rng), &key, &mut rng)?;
    let request = format!(
        "POST /ts2021 HTTP/1.1\r\nHost: control\r\nUpgrade: tailscale-control-protocol\r\nConnection: Upgrade\r\n\
         X-Tailscale-Handshake: {}\r\nContent-Length: 0\r\n\r\n",
        BASE64.encode(&initiation)
    );
    Ok(request.into_bytes())
}

/// Keeps so many connections open that have TLS and half a request.
fn half(to: &str, count: &str, sources: &str) -> Result<()> {
    let (to, count, sources): (SocketAddr, u32, u32) = (to.parse()?, count.parse()?, sources.parse()?);
    let open = |number: u32| -> Result<Client> {
        let mut client = Client::open(to, source(number % sources), number)?;
        client.push(b"GET /derp HTTP/1.1\r\nX-Nothing: ")?;
        // Until TLS is done there is nothing else to read.
        client.receive(|_| {})?;
        client.shrink();
        Ok(client)
    };
    let say = |client: &mut Client| client.push(b"a").and_then(|()| client.flush());
    let mut held: Vec<Option<Client>> = (0..count).map(|_| None).collect();
    let mut places = Places::new(count);
    println!("begun");
    loop {
        for (held, number) in held.iter_mut().zip(0..) {
            // One that is not taken in is tried again.
            let said = held.as_mut().is_some_and(|client| say(client).is_ok());
            if !said {
                *held = open(number).ok();
            }
            if held.is_some() {
                places.note(number);
            }
        }
        thread::sleep(Duration::from_secs(1));
    }
}

/// Clients that are let in and do nothing.
fn derp_idle(to: &str, count: &str) -> Result<()> {
    let (to, count): (SocketAddr, u32) = (to.parse()?, count.parse()?);
    let connect = |number| -> Result<Client> {
        let mut client = Client::connect_from(to, Ipv4Addr::UNSPECIFIED, number)?;
        client.shrink();
        Ok(client)
    };
    let clients = (0..count).map(connect).collect::<Result<Vec<_>>>()?;
    println!("begun {}", clients.len());
    loop {
        thread::park();
    }
}

/// Clients that are let in and read nothing, and senders who send them packets of so many bytes as fast as the relay takes
/// them. Says when `count` are sent.
fn derp_flood(to: &str, senders: &str, deaf: &str, bytes: &str, count: &str) -> Result<()> {
    let (to, bytes, count): (SocketAddr, usize, u64) = (to.parse()?, bytes.parse()?, count.parse()?);
    // A number says with which key and which first frame, and the relay lets the same one in only once.
    let mut numbers = rng("clients").below(1 << 31) as u32..;
    let mut join = || -> Result<Client> {
        let number = numbers.next().context("no numbers left")?;
        Client::connect_from(to, Ipv4Addr::UNSPECIFIED, number).with_context(|| format!("client {number}"))
    };
    let mut deaf = (0..deaf.parse()?).map(|_| join()).collect::<Result<Vec<_>>>()?;
    let senders = (0..senders.parse()?).map(|_| join()).collect::<Result<Vec<_>>>()?;
    let flood = Arc::new(DerpFlood {
        to: Mutex::new(deaf.iter().map(|client| client.key).collect()),
        packet: vec![0; bytes],
        sent: AtomicU64::new(0),
        count,
        start: Instant::now(),
    });
    println!("begun");
    let (ended, end) = mpsc::channel();
    for mut sender in senders {
        // What the relay says to it is of no interest, but has to be read.
        let mut heard = sender.socket()?;
        thread::spawn(move || io::copy(&mut heard, &mut io::sink()));
        let (flood, ended) = (Arc::clone(&flood), ended.clone());
        thread::spawn(move || ended.send(flood.send(&mut sender)));
    }
    // The relay closes who takes nothing for ten seconds, and hears of nothing more from whom it closed: another takes its
    // place before.
    for turn in (0..deaf.len()).cycle() {
        match end.recv_timeout(TICK) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(error) => return error,
            Err(RecvTimeoutError::Disconnected) => bail!("no senders"),
        }
        deaf[turn] = join()?;
        flood.to.lock().unwrap_or_else(PoisonError::into_inner)[turn] = deaf[turn].key;
    }
    bail!("nobody is deaf")
}

/// What the senders share.
struct DerpFlood {
    /// For whom the packets are.
    to: Mutex<Vec<NodePublic>>,
    packet: Vec<u8>,
    sent: AtomicU64,
    count: u64,
    start: Instant,
}

impl DerpFlood {
    fn send(&self, sender: &mut Client) -> Result<()> {
        let mut frame = Vec::new();
        loop {
            let number = self.sent.fetch_add(1, Relaxed) + 1;
            let to = {
                let to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
                to[number as usize % to.len()]
            };
            frame.clear();
            Frame::SendPacket { to, packet: &self.packet }.encode(&mut frame);
            // A record at a time, as TLS has room for.
            for record in frame.chunks(16 << 10) {
                sender.push(record)?;
                sender.flush().with_context(|| format!("a sender is closed after {number} packets of all"))?;
            }
            if number == self.count {
                println!("sent within {:.1?}: {number}", self.start.elapsed());
            }
        }
    }
}

/// Machines that nobody knows ask to be let in, one after the other, and go when they were told where to sign in.
fn sign_in(url: &str, count: &str) -> Result<()> {
    let (url, count): (ControlUrl, u64) = (url.parse()?, count.parse()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut asked, mut refused) = (0, 0);
    runtime.block_on(async {
        let dialer = ControlDialer { net: Net::Host, trust: Trust::system() };
        let mut rng = rng("sign-in");
        let mut link = ControlLink::new(&Seed::from_number(1), dialer.clone());
        link.handle_request(ControlRequest::FetchKey { id: RequestId(0), server: url.clone() });
        let key = match next(&mut link).await {
            ControlEvent::Key { key, .. } => key,
            other => bail!("no key: {other:?}"),
        };
        println!("begun");
        for number in 0..count {
            let mut link = ControlLink::new(&Seed::from_number(2 + number), dialer.clone());
            let machine = MachinePrivate::generate(&mut rng);
            link.handle_request(ControlRequest::Connect(Server { url: url.clone(), key, machine }));
            let hostinfo =
                Hostinfo { hostname: format!("stranger{number}"), os: "linux".to_owned(), ..Hostinfo::default() };
            let request = RegisterRequest {
                version: CAPABILITY_VERSION.into(),
                node_key: NodePrivate::generate(&mut rng).public(),
                hostinfo: Some(Box::new(hostinfo)),
                ..RegisterRequest::default()
            };
            link.handle_request(ControlRequest::Register { id: RequestId(1), request: Box::new(request) });
            match next(&mut link).await {
                ControlEvent::Registered { response, .. } if !response.auth_url.is_empty() => asked += 1,
                ControlEvent::Registered { .. } | ControlEvent::Failed { .. } => refused += 1,
                other => bail!("an answer to something else: {other:?}"),
            }
        }
        Ok(())
    })?;
    ensure!(asked + refused == count);
    println!("refused {refused}");
    println!("asked {asked}");
    Ok(())
}

async fn next(link: &mut ControlLink) -> ControlEvent {
    loop {
        poll_fn(|context| link.poll_ready(context)).await;
        if let Some(event) = link.try_recv() {
            return event;
        }
    }
}

/// Others for each process.
fn rng(label: &str) -> Rng {
    Seed::from_number(std::process::id().into()).stream(label, 0)
}
