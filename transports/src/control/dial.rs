//! From the address of a control server to its key, and to a Noise connection.
//!
//! The key is fetched over verified TLS (or in clear, where the address says http: then everything hangs on the
//! network). The Noise connection itself needs no TLS: it is known by that key. It begins as an HTTP/1 upgrade with
//! the initiation in a header, over several ways at once, of which the first that leads there is taken.

use core::time::Duration;
use std::{collections::VecDeque, io, sync::Arc};

use bytes::Bytes;
use data_encoding::BASE64;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1,
    header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderName, LOCATION, UPGRADE},
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tokio_rustls::TlsConnector;
use tracing::debug;

use mesh_core::{
    control::{
        CAPABILITY_VERSION, ControlUrl, Failure, FailureKind, Scheme, Server,
        noise::{Initiator, NoiseError, Progress, RESPONSE_BYTES},
    },
    key::MachinePublic,
    rng::Rng,
};

use super::{
    NoiseIo,
    ways::{LastTry, Way, authority, ways, web},
};
use crate::{
    net::{Net, TcpOptions, TcpStream},
    stream::{
        connect::{ConnectError, Target},
        tls::{self, TlsError, Trust},
    },
    udp::Family,
};

/// For one exchange over HTTP/1, or for a Noise connection over all ways, DNS included. Stock nodes: 10 s.
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How far a way is ahead of the next. Stock nodes: 500 ms.
const HEAD_START: Duration = Duration::from_millis(500);
/// The answer to the question for the server's key. Stock nodes: 64 KiB.
const KEY_BYTES: usize = 64 << 10;
/// Redirects that are followed to the server's key. Stock nodes: 10.
const REDIRECTS: usize = 10;
/// Our initiation.
const HANDSHAKE: HeaderName = HeaderName::from_static("x-tailscale-handshake");
/// What the connection becomes.
const PROTOCOL: &str = "tailscale-control-protocol";

/// As for relays, but a stream that is quiet for a minute is as it should be.
const OPTIONS: TcpOptions =
    TcpOptions { user_timeout: Duration::from_secs(15), keepalive: Duration::from_secs(60), not_sent_bytes: None };

/// A byte stream to the server, as HTTP/2 wants it.
pub(super) type Channel = NoiseIo<TokioIo<Upgraded>>;

/// How control servers are reached.
#[derive(Clone, Debug)]
pub struct ControlDialer {
    /// Where streams lead.
    pub net: Net,
    /// Whom to believe.
    pub trust: Trust,
}

/// Why a control server was not reached, for people.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// DNS does not know.
    #[error("cannot resolve {host}: {source}")]
    Resolve {
        /// Whom.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// No TCP.
    #[error("cannot connect to {host} port {port}: {source}")]
    Connect {
        /// To whom.
        host: String,
        /// Where.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// It takes too long.
    #[error("{host} did not answer within {} s", DIAL_TIMEOUT.as_secs())]
    TimedOut {
        /// Who.
        host: String,
    },
    /// The certificate is not good, or it is no TLS.
    #[error("{0}")]
    Tls(String),
    /// There can be no TLS.
    #[error(transparent)]
    Setup(#[from] TlsError),
    /// It breaks off, or speaks no HTTP.
    #[error("{host} does not answer as a control server does: {source}")]
    Http {
        /// Who.
        host: String,
        /// How.
        source: hyper::Error,
    },
    /// It is another kind of server.
    #[error("{host} answers {status} to {what}: no control server is there")]
    Status {
        /// Who.
        host: String,
        /// Number and words.
        status: StatusCode,
        /// To what.
        what: &'static str,
    },
    /// Its answer is no key.
    #[error("{host} does not say its key: {problem}")]
    Key {
        /// Who.
        host: String,
        /// What is wrong.
        problem: String,
    },
    /// No secure connection.
    #[error("no secure connection to {host}: {source}")]
    Noise {
        /// To whom.
        host: String,
        /// Why.
        source: NoiseError,
    },
    /// It breaks off.
    #[error("the connection to {host} broke: {source}")]
    Broken {
        /// To whom.
        host: String,
        /// How.
        source: io::Error,
    },
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        use ControlError as Error;
        let kind = match &error {
            Error::Tls(_) | Error::Setup(_) | Error::Noise { source: NoiseError::Forged, .. } => FailureKind::Untrusted,
            Error::Key { .. } => FailureKind::Malformed,
            Error::Status { status, .. } => FailureKind::Status { code: status.as_u16(), retry_after: None },
            Error::Resolve { .. } | Error::Connect { .. } | Error::TimedOut { .. } => FailureKind::Unreachable,
            Error::Http { .. } | Error::Noise { .. } | Error::Broken { .. } => FailureKind::Unreachable,
        };
        Self { kind, text: error.to_string() }
    }
}

/// What a Noise connection is opened with.
#[derive(Clone, Debug)]
pub(super) struct Hello {
    pub(super) server: Server,
    pub(super) last: LastTry,
}

impl ControlDialer {
    /// The server's key.
    ///
    /// # Errors
    /// When the server is not reached, or is none.
    pub(super) async fn fetch_key(&self, server: &ControlUrl) -> Result<MachinePublic, ControlError> {
        let fetched = timeout(DIAL_TIMEOUT, self.ask_for_key(server)).await;
        fetched.map_err(|_| ControlError::TimedOut { host: server.host().to_owned() })?
    }

    async fn ask_for_key(&self, server: &ControlUrl) -> Result<MachinePublic, ControlError> {
        let (mut server, mut path) = (server.clone(), format!("/key?v={CAPABILITY_VERSION}"));
        for _ in 0..=REDIRECTS {
            let response = self.exchange(&server, Method::GET, &path, Bytes::new()).await?;
            let host = server.host().to_owned();
            if response.status().is_redirection() {
                let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or_default();
                (server, path) = redirected(&server, to).ok_or(ControlError::Status {
                    host,
                    status: response.status(),
                    what: "the question for its key",
                })?;
                continue;
            }
            if response.status() != StatusCode::OK {
                let (status, what) = (response.status(), "the question for its key");
                return Err(ControlError::Status { host, status, what });
            }
            let key = |problem: String| ControlError::Key { host: host.clone(), problem };
            let body = Limited::new(response.into_body(), KEY_BYTES).collect().await;
            let body = body.map_err(|error| key(error.to_string()))?.to_bytes();
            return key_of(&body).map_err(key);
        }
        let problem = "it sends us round in a circle".to_owned();
        Err(ControlError::Key { host: server.host().to_owned(), problem })
    }

    /// Asks the outer HTTP server, whose certificate counts.
    ///
    /// # Errors
    /// When it is not reached.
    pub(super) async fn exchange(
        &self,
        server: &ControlUrl,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ControlError> {
        let request = request(method, path, server, body);
        match self.connect(server, web(server), Check::Certificate).await? {
            Outer::Plain(stream) => ask(stream, server, request).await,
            Outer::Tls(stream) => ask(*stream, server, request).await,
        }
    }

    /// A Noise connection, over the first way that leads to one.
    ///
    /// # Errors
    /// When none does.
    pub(super) async fn open(&self, hello: Hello, dice: Rng) -> Result<Channel, ControlError> {
        let host = hello.server.url.host().to_owned();
        let opened = timeout(DIAL_TIMEOUT, self.race(hello, dice)).await;
        opened.map_err(|_| ControlError::TimedOut { host })?
    }

    async fn race(&self, hello: Hello, mut dice: Rng) -> Result<Channel, ControlError> {
        let hello = Arc::new(hello);
        let mut waiting: VecDeque<_> = ways(&hello.server.url, hello.last).into();
        let mut attempts = JoinSet::new();
        let mut next_at = Instant::now();
        let mut failure = ControlError::TimedOut { host: hello.server.url.host().to_owned() };
        let named = web(&hello.server.url);
        let mut is_of_named = false;
        loop {
            if waiting.is_empty() && attempts.is_empty() {
                return Err(failure);
            }
            tokio::select! {
                Some(attempt) = attempts.join_next() => match attempt {
                    Ok((_, Ok(channel))) => return Ok(channel),
                    Ok((way, Err(error))) => {
                        debug!(%error, "one way to the control server is none");
                        // People know the way that the address names.
                        if !is_of_named {
                            (failure, is_of_named) = (error, way == named);
                        }
                        next_at = Instant::now();
                    }
                    // Only by a panic, which the runtime has said.
                    Err(_) => {}
                },
                () = sleep_until(next_at), if !waiting.is_empty() => {
                    if let Some(way) = waiting.pop_front() {
                        let (dialer, hello, rng) = (self.clone(), Arc::clone(&hello), dice.split());
                        attempts.spawn(async move { (way, dialer.attempt(&hello, way, rng).await) });
                        next_at = Instant::now() + HEAD_START;
                    }
                }
            }
        }
    }

    async fn attempt(&self, hello: &Hello, way: Way, mut rng: Rng) -> Result<Channel, ControlError> {
        match self.connect(&hello.server.url, way, Check::Nothing).await? {
            Outer::Plain(stream) => upgrade(stream, hello, &mut rng).await,
            Outer::Tls(stream) => upgrade(*stream, hello, &mut rng).await,
        }
    }

    async fn connect(&self, server: &ControlUrl, way: Way, check: Check) -> Result<Outer, ControlError> {
        let host = server.host();
        let (Way::Plain(port) | Way::Tls(port)) = way;
        let literal = host.parse().ok();
        let by_dns = literal.is_none();
        let target =
            Target { host, port, literals: literal.into_iter().collect(), v4_by_dns: by_dns, v6_by_dns: by_dns };
        let stream = target.connect(self.net, Family::V4, OPTIONS).await.map_err(|error| {
            let host = host.to_owned();
            match error {
                ConnectError::NoAddress => ControlError::Resolve { host, source: io::ErrorKind::NotFound.into() },
                ConnectError::Resolve(source) => ControlError::Resolve { host, source },
                ConnectError::Refused { source, .. } => ControlError::Connect { host, port, source },
            }
        })?;
        if let Way::Plain(_) = way {
            return Ok(Outer::Plain(stream));
        }
        let (config, name) = match check {
            Check::Certificate => self.trust.for_host(host).await?,
            Check::Nothing => self.trust.unchecked(host)?,
        };
        let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|source| {
            let explained = source.get_ref().and_then(|inner| inner.downcast_ref());
            match explained {
                Some(error) => ControlError::Tls(tls::explain(host, error)),
                None => ControlError::Broken { host: host.to_owned(), source },
            }
        })?;
        Ok(Outer::Tls(Box::new(stream)))
    }
}

/// Whether the certificate of a server counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    /// It does.
    Certificate,
    /// It does not: Noise will tell who is there.
    Nothing,
}

/// A stream to the outer HTTP server.
enum Outer {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

/// The head of the answer to one request; the body follows.
async fn ask<S>(
    stream: S,
    server: &ControlUrl,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, ControlError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let broken = |source| ControlError::Http { host: server.host().to_owned(), source };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // It ends with the answer, or with the sender.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(broken)
}

fn request(method: Method, path: &str, server: &ControlUrl, body: Bytes) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    // What is no path is the root, which no control server answers.
    *request.uri_mut() = path.parse().unwrap_or_default();
    if let Ok(host) = authority(server).parse() {
        request.headers_mut().insert(HOST, host);
    }
    request
}

/// Where a redirect leads: another server, or another path of this one.
fn redirected(server: &ControlUrl, to: &str) -> Option<(ControlUrl, String)> {
    if to.starts_with('/') && !to.starts_with("//") {
        return Some((server.clone(), to.to_owned()));
    }
    let uri: hyper::Uri = to.parse().ok()?;
    let next: ControlUrl = format!("{}://{}", uri.scheme_str()?, uri.authority()?).parse().ok()?;
    // What began over TLS does not go on without.
    let is_safe = next.scheme() == Scheme::Https || server.scheme() == Scheme::Http;
    is_safe.then(|| (next, uri.path_and_query().map_or("/", |path| path.as_str()).to_owned()))
}

fn key_of(body: &[u8]) -> Result<MachinePublic, String> {
    let said: ServerKeys = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    match said.public_key {
        Some(key) if key.as_bytes() != &[0; 32] => Ok(key),
        Some(_) | None => Err("it is too old for this protocol".to_owned()),
    }
}

/// The answer to the question for the server's key.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServerKeys {
    #[serde(default)]
    public_key: Option<MachinePublic>,
}

/// Makes an HTTP/1 connection a Noise connection.
async fn upgrade<S>(stream: S, hello: &Hello, rng: &mut Rng) -> Result<Channel, ControlError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let host = hello.server.url.host();
    let http = |source| ControlError::Http { host: host.to_owned(), source };
    let noise = |source| ControlError::Noise { host: host.to_owned(), source };
    let (initiator, initiation) =
        Initiator::start(CAPABILITY_VERSION, &hello.server.machine, &hello.server.key, rng).map_err(noise)?;

    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    tokio::spawn(connection.with_upgrades());
    let mut request = request(Method::POST, "/ts2021", &hello.server.url, Bytes::new());
    let headers = request.headers_mut();
    let header = |text: &str| text.parse().unwrap_or(hyper::header::HeaderValue::from_static(""));
    headers.insert(UPGRADE, header(PROTOCOL));
    headers.insert(CONNECTION, header("upgrade"));
    headers.insert(CONTENT_LENGTH, header("0"));
    headers.insert(HANDSHAKE, header(&BASE64.encode(&initiation)));
    let response = sender.send_request(request).await.map_err(http)?;
    let is_upgrade = response.headers().get(UPGRADE).is_some_and(|protocol| protocol == PROTOCOL);
    if response.status() != StatusCode::SWITCHING_PROTOCOLS || !is_upgrade {
        let (status, what) = (response.status(), "the request for a secure connection");
        return Err(ControlError::Status { host: host.to_owned(), status, what });
    }
    let stream = TokioIo::new(hyper::upgrade::on(response).await.map_err(http)?);
    begin(stream, initiator, host).await
}

/// Reads the response of the handshake.
async fn begin<S: AsyncRead + Unpin>(
    mut stream: S,
    mut initiator: Initiator,
    host: &str,
) -> Result<NoiseIo<S>, ControlError> {
    let noise = |source| ControlError::Noise { host: host.to_owned(), source };
    let mut received = Vec::with_capacity(RESPONSE_BYTES);
    loop {
        let count = stream.read_buf(&mut received).await;
        let broken = |source| ControlError::Broken { host: host.to_owned(), source };
        if count.map_err(broken)? == 0 {
            return Err(broken(io::ErrorKind::UnexpectedEof.into()));
        }
        match initiator.read(&received).map_err(noise)? {
            Progress::Waiting(waiting) => initiator = waiting,
            Progress::Done { sealer, opener, used } => {
                debug!(host, "secure connection to the control server");
                return NoiseIo::of_node(stream, sealer, opener, received.get(used..).unwrap_or_default())
                    .map_err(noise);
            }
        }
    }
}
