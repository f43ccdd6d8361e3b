//! The built program on real sockets of the loopback, and clients made of frames.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]
#![allow(dead_code, reason = "not every user of this file needs all of it")]
#![allow(clippy::unwrap_used, clippy::unwrap_in_result, reason = "helpers of tests too")]

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use mesh_core::{
    crypto::nacl::BoxKey,
    derp::Frame,
    key::{NodePrivate, NodePublic},
    stun,
};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring::default_provider},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use socket2::{Domain, Socket, Type};

/// How long anything may take that is expected to come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the program to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

/// The program, with no setting from around the test.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-relay"));
    command.env_remove("MESH_LOG").env_remove("NOTIFY_SOCKET").env_remove("SSL_CERT_FILE");
    command
}

/// An empty directory of this test alone.
pub(crate) fn directory(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("relay-{name}"));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Calls `probe` until it returns something.
pub(crate) fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let began = std::time::Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A relay that runs until it is dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) derp: SocketAddr,
    pub(crate) stun: SocketAddr,
    pub(crate) metrics: SocketAddr,
    pub(crate) state: PathBuf,
}

impl Running {
    /// With an empty state directory.
    pub(crate) fn start(name: &str, flags: &[&str]) -> Self {
        Self::start_in(&directory(name), flags)
    }

    pub(crate) fn start_in(state: &Path, flags: &[&str]) -> Self {
        Self::start_as(program(), state, flags)
    }

    pub(crate) fn start_as(mut command: Command, state: &Path, flags: &[&str]) -> Self {
        command.arg("serve").args(flags).arg("--state-dir").arg(state);
        for (flag, usual) in [
            ("--host", "127.0.0.1"),
            ("--listen", "127.0.0.1:0"),
            ("--stun-listen", "127.0.0.1:0"),
            ("--metrics-listen", "127.0.0.1:0"),
        ] {
            if !flags.contains(&flag) {
                command.args([flag, usual]);
            }
        }
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = |name: &str| -> SocketAddr {
            let word = line.split_whitespace().find_map(|word| word.strip_prefix(name));
            word.unwrap_or_else(|| panic!("no {name} in {line:?}")).parse().unwrap()
        };
        Self {
            derp: address("derp="),
            stun: address("stun="),
            metrics: address("metrics="),
            state: state.to_owned(),
            child,
        }
    }

    /// Sends it a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        assert!(Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// A line of its metrics, named as it begins.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = get(self.metrics, "/metrics");
        let value = text.lines().find_map(|line| line.strip_prefix("mesh_relay_")?.strip_prefix(name));
        value.unwrap_or_else(|| panic!("no {name} in {text}")).trim().parse().unwrap()
    }

    pub(crate) fn closes(&self, reason: &str) -> u64 {
        self.metric(&format!("closes_total{{reason=\"{reason}\"}}"))
    }

    /// What its region says of its certificate.
    pub(crate) fn pin(&self) -> String {
        pin(&self.state, "127.0.0.1")
    }

    pub(crate) fn dial(&self) -> Dial<'_> {
        Dial { relay: self.derp, from: None, pin: None, fast: false }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The pin that the program prints for a map.
pub(crate) fn pin(state: &Path, host: &str) -> String {
    let output = run(&["derp-map", "--host", host, "--state-dir", state.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let region: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    region["Nodes"][0]["CertName"].as_str().unwrap().to_owned()
}

/// A whole answer over plain HTTP.
pub(crate) fn get(from: SocketAddr, path: &str) -> String {
    let mut socket = TcpStream::connect(from).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: r\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

/// Asks a STUN server which address it sees, from a socket on `own`.
pub(crate) fn seen_by(server: SocketAddr, own: &str) -> (SocketAddr, SocketAddr) {
    let socket = UdpSocket::bind(own).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let tx = stun::TxId([1; 12]);
    socket.send_to(&stun::request(tx), server).unwrap();
    let mut answer = [0; 100];
    let length = socket.recv(&mut answer).unwrap();
    let (answered, seen) = stun::parse_response(&answer[..length]).unwrap();
    assert_eq!(answered, tx);
    (seen, socket.local_addr().unwrap())
}

/// How a client connects.
#[derive(Clone, Copy)]
pub(crate) struct Dial<'a> {
    pub(crate) relay: SocketAddr,
    /// From which address of the loopback.
    pub(crate) from: Option<Ipv4Addr>,
    /// Over TLS, with this pin.
    pub(crate) pin: Option<&'a str>,
    /// Without waiting for the answer to the request; over TLS alone.
    pub(crate) fast: bool,
}

pub(crate) trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

impl Dial<'_> {
    pub(crate) fn from(self, last: u8) -> Self {
        Self { from: Some(Ipv4Addr::new(127, 0, 0, last)), ..self }
    }

    /// A socket of TCP.
    pub(crate) fn tcp(&self) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(self.relay), Type::STREAM, None)?;
        if let Some(from) = self.from {
            socket.bind(&SocketAddr::from((from, 0)).into())?;
        }
        socket.connect(&self.relay.into())?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_tcp_nodelay(true)?;
        Ok(socket.into())
    }

    /// A stream; over TLS with the relay's key, as its second certificate tells it.
    pub(crate) fn stream(&self) -> io::Result<(Box<dyn Wire>, Option<NodePublic>)> {
        let socket = self.tcp()?;
        let Some(pin) = self.pin else { return Ok((Box::new(socket), None)) };
        let name = ServerName::from(self.relay.ip());
        let tls = ClientConnection::new(pinned(pin), name).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(tls, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        let announced = stream.conn.peer_certificates().unwrap_or_default().iter().find_map(announced);
        Ok((Box::new(stream), announced))
    }

    /// A client that is in.
    pub(crate) fn connect(&self, number: u16) -> io::Result<Client> {
        let (mut wire, announced) = self.stream()?;
        wire.write_all(&upgrade(self.fast))?;
        let private = private(number);
        let mut unread = Vec::new();
        if self.fast {
            wire.write_all(&greeting(number, &announced.unwrap()))?;
        } else {
            unread = read_past_head(&mut wire)?;
        }
        let mut client = Client { wire, private, server: announced, unread, used: 0 };
        let Frame::ServerKey(server) = client.next()? else { panic!("the key is first") };
        assert!(announced.is_none_or(|announced| announced == server), "both say the same key");
        client.server = Some(server);
        if !self.fast {
            client.wire.write_all(&greeting(number, &server))?;
        }
        match client.next()? {
            Frame::ServerInfo { .. } => Ok(client),
            other => panic!("{other:?} before the client is in"),
        }
    }
}

/// A client that is in.
pub(crate) struct Client {
    pub(crate) wire: Box<dyn Wire>,
    private: NodePrivate,
    pub(crate) server: Option<NodePublic>,
    unread: Vec<u8>,
    used: usize,
}

impl Client {
    pub(crate) fn key(&self) -> NodePublic {
        self.private.public()
    }

    pub(crate) fn send(&mut self, frame: &Frame<'_>) -> io::Result<()> {
        self.wire.write_all(&encoded(frame))
    }

    /// The next frame, keepalives left out.
    pub(crate) fn next(&mut self) -> io::Result<Frame<'_>> {
        loop {
            self.unread.drain(..core::mem::take(&mut self.used));
            match Frame::decode(&self.unread).unwrap() {
                Some((Frame::KeepAlive, length)) => self.used = length,
                Some((_, length)) => {
                    self.used = length;
                    let (frame, _) = Frame::decode(&self.unread).unwrap().unwrap();
                    return Ok(frame);
                }
                None => {
                    let mut chunk = [0; 16 << 10];
                    match self.wire.read(&mut chunk)? {
                        0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                        count => self.unread.extend_from_slice(&chunk[..count]),
                    }
                }
            }
        }
    }

    /// Whether the relay has closed the stream, after whatever it still had to say.
    pub(crate) fn is_closed(&mut self) -> bool {
        loop {
            match self.next() {
                Ok(_) => {}
                Err(error) => return !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
            }
        }
    }
}

pub(crate) fn private(number: u16) -> NodePrivate {
    // Not at either end: bits of those are not part of the key.
    let mut bytes = [7; 32];
    bytes[1..3].copy_from_slice(&number.to_be_bytes());
    NodePrivate::from_bytes(bytes)
}

pub(crate) fn key(number: u16) -> NodePublic {
    private(number).public()
}

pub(crate) fn encoded(frame: &Frame<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

pub(crate) fn upgrade(fast: bool) -> Vec<u8> {
    let fast = if fast { "Derp-Fast-Start: 1\r\n" } else { "" };
    format!("GET /derp HTTP/1.1\r\nHost: r\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n{fast}\r\n").into_bytes()
}

/// The first frame of a client; each is another.
pub(crate) fn greeting(number: u16, server: &NodePublic) -> Vec<u8> {
    static GREETINGS: AtomicU64 = AtomicU64::new(0);
    let mut nonce = [3; 24];
    nonce[..8].copy_from_slice(&GREETINGS.fetch_add(1, Relaxed).to_be_bytes());
    let shared = BoxKey::new(&private(number).to_bytes(), server.as_bytes()).unwrap();
    let sealed = [&nonce[..], &shared.seal(&nonce, br#"{"version":2,"CanAckPings":true}"#)].concat();
    encoded(&Frame::ClientInfo { key: key(number), sealed: &sealed })
}

/// Reads the answer's head and returns what came behind it.
pub(crate) fn read_past_head(wire: &mut dyn Wire) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            assert!(bytes.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&bytes));
            return Ok(bytes.split_off(end + 4));
        }
        let mut chunk = [0; 4096];
        match wire.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => bytes.extend_from_slice(&chunk[..count]),
        }
    }
}

/// The key in a certificate whose name says one.
fn announced(certificate: &CertificateDer<'_>) -> Option<NodePublic> {
    let at = certificate.windows(7).position(|seven| seven == b"derpkey")?;
    let hex = std::str::from_utf8(certificate.get(at + 7..at + 71)?).ok()?;
    let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).ok()?;
    Some(NodePublic::from_bytes(bytes.try_into().ok()?))
}

fn pinned(pin: &str) -> Arc<ClientConfig> {
    let provider = Arc::new(default_provider());
    let verifier = Pin { pin: pin.to_owned(), provider: Arc::clone(&provider) };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Arc::new(config)
}

/// Checks what stock clients check: one certificate beside the one that tells the key, with this hash.
#[derive(Debug)]
struct Pin {
    pin: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let refuse = |why: &str| Err(rustls::Error::General(why.to_owned()));
        let hash = data_encoding::HEXLOWER.encode(ring::digest::digest(&ring::digest::SHA256, leaf).as_ref());
        if self.pin != format!("sha256-raw:{hash}") {
            return refuse("the certificate is not the pinned one");
        }
        if others.iter().any(|other| announced(other).is_none()) {
            return refuse("more than one certificate");
        }
        rustls::client::verify_server_name(&rustls::server::ParsedCertificate::try_from(leaf)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, leaf, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
