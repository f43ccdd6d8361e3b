//! The built program on real sockets of the loopback, and a node made of the parts that nodes have.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]
#![allow(dead_code, reason = "not every user of this file needs all of it")]
#![allow(clippy::unwrap_used, clippy::unwrap_in_result, reason = "helpers of tests too")]

use std::{
    io::{self, BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use data_encoding::BASE64;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::{
    control::{
        noise::{Early, EarlyReader, Initiator, Progress},
        types::{Hostinfo, MapRequest, MapResponse, RegisterAuth, RegisterRequest, RegisterResponse},
    },
    key::{DiscoPublic, MachinePrivate, MachinePublic, NodePrivate, NodePublic},
    rng::Seed,
};
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use transports::control::NoiseIo;

/// How long anything may take that is expected to come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What nodes of tests announce.
pub(crate) const VERSION: u16 = 119;

/// Relays that nobody asks.
pub(crate) const DERP_MAP: &str = r#"{"Regions":{"901":{"RegionID":901,"RegionCode":"test","RegionName":"test","Nodes":[
    {"Name":"901a","RegionID":901,"HostName":"relay.test","IPv4":"127.0.0.1"}]}}}"#;

pub(crate) const ALLOW_ALL: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;

/// The program, with no setting from around the test.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-control"));
    for name in ["MESH_LOG", "NOTIFY_SOCKET", "SSL_CERT_FILE", "MESH_CONTROL_SOCKET", "MESH_CONTROL_CONFIG"] {
        command.env_remove(name);
    }
    command
}

/// Runs the program to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

/// An empty directory of this test alone.
pub(crate) fn directory(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("control-{name}"));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// A server that runs until it is dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    /// The line that it printed.
    pub(crate) ready: String,
    pub(crate) state: PathBuf,
}

impl Running {
    /// With an empty state directory, and without a relay of its own.
    pub(crate) fn start(name: &str, flags: &[&str]) -> Self {
        Self::start_in(&directory(name), flags)
    }

    pub(crate) fn start_in(state: &Path, flags: &[&str]) -> Self {
        let map = state.join("derp.json");
        std::fs::write(&map, DERP_MAP).unwrap();
        let mut command = program();
        command.arg("serve").args(flags).arg("--state-dir").arg(state).arg("--socket").arg(socket(state));
        for (flag, usual) in [
            ("--server-url", "http://127.0.0.1:1"),
            ("--listen", "127.0.0.1:0"),
            ("--metrics-listen", "127.0.0.1:0"),
            ("--relay", "none"),
            ("--derp-map", map.to_str().unwrap()),
        ] {
            if !flags.contains(&flag) {
                command.args([flag, usual]);
            }
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        assert!(ready.starts_with("ready "), "{ready:?}");
        Self { child, ready, state: state.to_owned() }
    }

    /// An address of the line that it printed.
    pub(crate) fn address(&self, name: &str) -> SocketAddr {
        let word = self.ready.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        word.unwrap_or_else(|| panic!("no {name} in {:?}", self.ready)).parse().unwrap()
    }

    /// Runs a verb and returns what it says; it must succeed.
    pub(crate) fn verb(&self, arguments: &[&str]) -> String {
        let output = self.try_verb(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    pub(crate) fn try_verb(&self, arguments: &[&str]) -> Output {
        program().arg("--socket").arg(socket(&self.state)).args(arguments).output().unwrap()
    }

    /// Runs a verb with `--json`.
    pub(crate) fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.verb(&[&["--json"], arguments].concat())).unwrap()
    }

    /// A user and a policy that allows everything, so that nodes see each other.
    pub(crate) fn with_user(self, name: &str) -> Self {
        self.verb(&["users", "create", name]);
        let policy = self.state.join("policy.json");
        std::fs::write(&policy, ALLOW_ALL).unwrap();
        self.verb(&["policy", "set", policy.to_str().unwrap()]);
        self
    }

    pub(crate) fn signal(&self, name: &str) {
        assert!(Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// Kills it at once and returns its state directory.
    pub(crate) fn kill(mut self) -> PathBuf {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.state.clone()
    }

    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn socket(state: &Path) -> PathBuf {
    state.join("s")
}

/// Sends a request of HTTP/1.1 as it is, and returns all that comes back until the end.
pub(crate) async fn raw(to: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // One who was refused may be cut off before everything was read.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an answer in time");
    String::from_utf8_lossy(&answer).into_owned()
}

pub(crate) async fn get(to: SocketAddr, path: &str) -> String {
    raw(to, format!("GET {path} HTTP/1.1\r\nHost: c\r\nConnection: close\r\n\r\n").as_bytes()).await
}

/// The server's key, as it says at `/key`.
pub(crate) async fn server_key(to: SocketAddr) -> MachinePublic {
    let answer = get(to, "/key?v=119").await;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    body["publicKey"].as_str().unwrap().parse().unwrap()
}

/// An installation and its node, by number.
pub(crate) struct Keys {
    pub(crate) machine: MachinePrivate,
    pub(crate) node: NodePrivate,
    pub(crate) disco: DiscoPublic,
}

impl Keys {
    pub(crate) fn new(number: u64) -> Self {
        let mut rng = Seed::from_number(number).stream("test node", 0);
        Self {
            machine: MachinePrivate::generate(&mut rng),
            node: NodePrivate::generate(&mut rng),
            disco: DiscoPublic::from_bytes(rng.bytes()),
        }
    }

    pub(crate) fn public(&self) -> NodePublic {
        self.node.public()
    }
}

/// A connection inside Noise.
#[derive(Clone)]
pub(crate) struct Link {
    sender: SendRequest<Full<Bytes>>,
}

/// What the upgrade is asked with.
pub(crate) fn upgrade(initiation: &[u8]) -> String {
    format!(
        "POST /ts2021 HTTP/1.1\r\nHost: c\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\
         X-Tailscale-Handshake: {}\r\nContent-Length: 0\r\n\r\n",
        BASE64.encode(initiation)
    )
}

impl Link {
    pub(crate) async fn open(to: SocketAddr, keys: &Keys) -> io::Result<Self> {
        Self::open_to(to, &server_key(to).await, keys).await
    }

    /// To a server that has this key.
    pub(crate) async fn open_to(to: SocketAddr, server: &MachinePublic, keys: &Keys) -> io::Result<Self> {
        let mut stream = TcpStream::connect(to).await?;
        let mut rng = Seed::from_number(7).stream("ephemeral", 0);
        let (mut initiator, initiation) = Initiator::start(VERSION, &keys.machine, server, &mut rng).unwrap();
        stream.write_all(upgrade(&initiation).as_bytes()).await?;
        let mut read = BytesMut::new();
        let end = loop {
            if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut read).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        assert!(read.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&read));
        let mut read = read.split_off(end);
        let (sealer, mut opener, used) = loop {
            match initiator.read(&read).map_err(io::Error::other)? {
                Progress::Done { sealer, opener, used } => break (sealer, opener, used),
                Progress::Waiting(waiting) => initiator = waiting,
            }
            if stream.read_buf(&mut read).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        // What is said before HTTP/2 is taken off.
        let (mut early, mut plain) = (EarlyReader::new(), Vec::new());
        let mut bytes = read.split_off(used);
        let rest = loop {
            plain.clear();
            opener.open(&bytes, &mut plain).map_err(io::Error::other)?;
            if let Some((said, rest)) = early.receive(&plain).map_err(io::Error::other)? {
                let Early::Present(said) = said else { panic!("the server says something early") };
                assert!(said.node_key_challenge.starts_with("chalpub:"), "{said:?}");
                break rest;
            }
            bytes.clear();
            if stream.read_buf(&mut bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        // From here on both ends are alike.
        let stream = NoiseIo::of_server(stream, sealer, opener, Vec::new());
        let (unread, writer) = tokio::io::split(stream);
        let stream = tokio::io::join(io::Cursor::new(rest).chain(unread), writer);
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    pub(crate) async fn send(&self, method: &str, path: &str, body: Vec<u8>) -> io::Result<Response<Incoming>> {
        let request = Request::builder().method(method).uri(format!("https://c{path}")).body(Full::from(body)).unwrap();
        let mut sender = self.sender.clone();
        timeout(PATIENCE, sender.send_request(request)).await.expect("an answer in time").map_err(io::Error::other)
    }

    /// Status and body of a whole answer.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: Vec<u8>) -> io::Result<(StatusCode, Bytes)> {
        let response = self.send(method, path, body).await?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(io::Error::other)?;
        Ok((status, body.to_bytes()))
    }

    pub(crate) async fn post(&self, path: &str, body: &impl Serialize) -> io::Result<(StatusCode, Bytes)> {
        self.ask("POST", path, serde_json::to_vec(body).unwrap()).await
    }

    pub(crate) async fn register(
        &self,
        keys: &Keys,
        name: &str,
        auth_key: Option<&str>,
    ) -> io::Result<RegisterResponse> {
        let request = RegisterRequest {
            version: VERSION.into(),
            node_key: keys.public(),
            auth: auth_key.map(|key| RegisterAuth { auth_key: key.to_owned() }),
            hostinfo: Some(Box::new(hostinfo(name))),
            ..RegisterRequest::default()
        };
        let (status, body) = self.post("/machine/register", &request).await?;
        assert_eq!(status, StatusCode::OK, "{body:?}");
        Ok(serde_json::from_slice(&body).unwrap())
    }

    /// Tells where the node is.
    pub(crate) async fn update(&self, keys: &Keys, name: &str) -> io::Result<StatusCode> {
        let request = MapRequest {
            omit_peers: true,
            hostinfo: Some(Box::new(hostinfo(name))),
            endpoints: vec!["192.0.2.1:41641".parse().unwrap()],
            ..map_request(keys)
        };
        self.post("/machine/map", &request).await.map(|(status, _)| status)
    }

    /// Opens a map.
    pub(crate) async fn stream(&self, keys: &Keys, compress: &str) -> io::Result<Map> {
        let request = MapRequest { stream: true, keep_alive: true, compress: compress.to_owned(), ..map_request(keys) };
        let response = self.send("POST", "/machine/map", serde_json::to_vec(&request).unwrap()).await?;
        assert_eq!(response.status(), StatusCode::OK);
        Ok(Map { body: response.into_body(), unread: BytesMut::new(), zstd: compress == "zstd" })
    }
}

pub(crate) fn hostinfo(name: &str) -> Hostinfo {
    Hostinfo { hostname: name.to_owned(), os: "linux".to_owned(), ..Hostinfo::default() }
}

pub(crate) fn map_request(keys: &Keys) -> MapRequest {
    MapRequest {
        version: VERSION.into(),
        node_key: keys.public(),
        disco_key: Some(keys.disco),
        ..MapRequest::default()
    }
}

/// An open map.
pub(crate) struct Map {
    body: Incoming,
    unread: BytesMut,
    zstd: bool,
}

impl Map {
    /// The next message; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<MapResponse> {
        loop {
            if let Some((head, rest)) = self.unread.split_first_chunk::<4>() {
                let length = u32::from_le_bytes(*head) as usize;
                if rest.len() >= length {
                    let frame = self.unread.split_to(4 + length);
                    let json = if self.zstd { zstd::decode_all(&frame[4..]).unwrap() } else { frame[4..].to_vec() };
                    return Some(serde_json::from_slice(&json).unwrap());
                }
            }
            let frame = timeout(PATIENCE, self.body.frame()).await.expect("a message in time")?;
            self.unread.extend_from_slice(&frame.ok()?.into_data().unwrap());
        }
    }

    /// The next message that `wanted` likes.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&MapResponse) -> bool) -> MapResponse {
        loop {
            let message = self.next().await.expect("the map goes on");
            if wanted(&message) {
                return message;
            }
        }
    }
}

/// A node that has joined, its link, and its first map.
pub(crate) async fn join(to: SocketAddr, number: u64, name: &str, auth_key: &str) -> (Keys, Link, Map) {
    let keys = Keys::new(number);
    let link = Link::open(to, &keys).await.unwrap();
    let response = link.register(&keys, name, Some(auth_key)).await.unwrap();
    assert_eq!((response.error.as_str(), response.auth_url.as_str()), ("", ""));
    let map = link.stream(&keys, "zstd").await.unwrap();
    assert_eq!(link.update(&keys, name).await.unwrap(), StatusCode::OK);
    (keys, link, map)
}
