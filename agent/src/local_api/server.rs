//! The daemon's end of the local API.

use std::{convert::Infallible, net::IpAddr, path::Path, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_core::{
    key::NodePublic,
    node::{Command, CommandError, PingKind, PingTarget, Reply},
};
use tokio::{
    net::UnixStream,
    sync::{mpsc, oneshot},
};
use tracing::debug;
use transports::{
    local::{self, LocalSocket},
    program::{Exit, Failure},
};

use super::{
    PREFIX, joining, metrics,
    status::Status,
    types::{NetcheckReport, PeerPaths, PingResult},
};
use crate::daemon::{Snapshot, driver, source::Source};

/// Connections at once; what happens at the bound says [`LocalSocket::serve`].
const CONNECTIONS: usize = 64;

/// How long a client may take to send its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a ping waits when the client does not say, and at most.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
const PING_TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// The socket of the local API.
#[derive(Debug)]
pub struct LocalApi(LocalSocket);

/// What handlers need.
#[derive(Clone, Debug)]
pub(super) struct Context {
    requests: mpsc::Sender<driver::Request>,
    source: Source,
}

impl LocalApi {
    /// Claims `path`. Everybody may ask; who may change things is looked at in each connection.
    ///
    /// # Errors
    /// When another daemon listens there, or the path cannot be used.
    pub async fn bind(path: &Path) -> Result<Self, Failure> {
        LocalSocket::claim("meshd", path, 0o666).await.map(Self).map_err(|error| {
            let exit = if error.is_denied() { Exit::NotPermitted } else { Exit::Refused };
            Failure::new(exit, error.code(), error.to_string()).hint(error.hint())
        })
    }

    /// Serves until dropped.
    pub async fn serve(self, requests: mpsc::Sender<driver::Request>, source: Source) {
        let context = Context { requests, source };
        let answer = |stream| {
            let connection = connection(stream, context.clone());
            async move {
                if let Err(error) = connection.await {
                    debug!(%error, "local connection ended");
                }
            }
        };
        self.0.serve(CONNECTIONS, answer).await;
    }
}

async fn connection(stream: UnixStream, context: Context) -> hyper::Result<()> {
    let may_change = local::may_change(local::peer(&stream));
    let service = service_fn(move |request| {
        let context = context.clone();
        async move { Ok::<_, Infallible>(respond(request, may_change, &context).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

async fn respond(request: Request<Incoming>, may_change: bool, context: &Context) -> Response<Full<Bytes>> {
    let result = route(request, may_change, context).await;
    let (status, kind, body) = match result {
        Ok(Answer::Json(body)) => (StatusCode::OK, "application/json", body),
        Ok(Answer::Text(body)) => (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body),
        Err((status, failure)) => (status, "application/json", failure.to_json()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

pub(super) enum Answer {
    Json(String),
    Text(String),
}

impl Answer {
    /// It is done, and there is no more to say.
    pub(super) fn nothing() -> Self {
        Self::Json("{}".to_owned())
    }
}

pub(super) type Answered = Result<Answer, (StatusCode, Failure)>;

async fn route(request: Request<Incoming>, may_change: bool, context: &Context) -> Answered {
    let Some(what) = request.uri().path().strip_prefix(PREFIX).map(ToOwned::to_owned) else { return Err(unknown()) };
    let query = request.uri().query().unwrap_or_default().to_owned();
    let Some((_, method, right)) =
        REQUESTS.iter().find(|(name, method, _)| *name == what && method == request.method())
    else {
        let Some((name, method, _)) = REQUESTS.iter().find(|(name, ..)| *name == what) else { return Err(unknown()) };
        let failure = Failure::new(Exit::Usage, "method", format!("{name} wants another method"));
        return Err((StatusCode::METHOD_NOT_ALLOWED, failure.hint(format_args!("use {method}"))));
    };
    if *right == Right::Change && !may_change {
        let failure = Failure::new(Exit::NotPermitted, "not-permitted", "this user may not change the daemon");
        return Err((StatusCode::FORBIDDEN, failure.hint("use root, or the user that meshd runs as")));
    }
    match (what.as_str(), method) {
        ("status", _) => json(&Status::new(&snapshot(context).await?).shown_to(may_change)),
        ("metrics", _) => Ok(Answer::Text(metrics::render(&snapshot(context).await?))),
        ("debug-paths", _) => paths(&query, context).await,
        ("debug-self", _) => json(&snapshot(context).await?.status.self_node()),
        ("debug-map", _) => map(context).await,
        ("whois", _) => joining::whois(&query, context).await,
        ("prefs", &Method::PATCH) => joining::set(request, context).await,
        ("prefs", _) => json(&snapshot(context).await?.status.prefs),
        ("netcheck", _) => netcheck(context).await,
        ("ping", _) => ping(&query, context).await,
        ("up", _) => joining::up(request, context).await,
        ("down", _) => joining::simple(Command::Down, context).await,
        ("logout", _) => joining::simple(Command::Logout, context).await,
        ("reload-config", _) => {
            let reloaded = context.source.reload(&context.requests).await;
            reloaded.map(|()| Answer::nothing()).map_err(|failure| (StatusCode::BAD_REQUEST, failure))
        }
        _ => Err(unknown()),
    }
}

/// Who may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    /// Everyone on the host.
    Look,
    /// Root, and the user that the daemon runs as.
    Change,
}

/// All that can be asked.
const REQUESTS: [(&str, Method, Right); 14] = [
    ("status", Method::GET, Right::Look),
    ("metrics", Method::GET, Right::Look),
    ("debug-paths", Method::GET, Right::Look),
    ("debug-self", Method::GET, Right::Look),
    ("debug-map", Method::GET, Right::Look),
    ("whois", Method::GET, Right::Look),
    ("prefs", Method::GET, Right::Look),
    ("prefs", Method::PATCH, Right::Change),
    ("netcheck", Method::POST, Right::Look),
    ("ping", Method::POST, Right::Look),
    ("up", Method::POST, Right::Change),
    ("down", Method::POST, Right::Change),
    ("logout", Method::POST, Right::Change),
    ("reload-config", Method::POST, Right::Change),
];

pub(super) async fn snapshot(context: &Context) -> Result<Snapshot, (StatusCode, Failure)> {
    let (reply, answer) = oneshot::channel();
    context.requests.send(driver::Request::Status(reply)).await.map_err(|_| stopping())?;
    answer.await.map_err(|_| stopping())
}

/// The network map, as the first message of a stream.
async fn map(context: &Context) -> Answered {
    let (reply, answer) = oneshot::channel();
    context.requests.send(driver::Request::Map(reply)).await.map_err(|_| stopping())?;
    let map = answer.await.map_err(|_| stopping())?.ok_or_else(|| {
        let failure = Failure::new(Exit::Refused, "no-map", "there is no network map yet");
        (StatusCode::NOT_FOUND, failure.hint("mesh status says what is waited for"))
    })?;
    json(&map)
}

async fn ping(query: &str, context: &Context) -> Answered {
    let bad = |failure: Failure| (StatusCode::BAD_REQUEST, failure);
    let target = target(query).map_err(bad)?;
    let timeout = match value(query, "timeout") {
        None => PING_TIMEOUT,
        Some(text) => {
            let millis = text.parse().map_err(|_| {
                bad(Failure::new(Exit::Usage, "bad-timeout", format!("\"{text}\" is not a number of milliseconds")))
            })?;
            Duration::from_millis(millis).min(PING_TIMEOUT_MAX)
        }
    };
    let kind = match value(query, "type") {
        None | Some("disco") => PingKind::Disco,
        Some("ICMP") => PingKind::Icmp,
        Some("TSMP") => PingKind::Tsmp,
        Some(other) => {
            let failure = Failure::new(Exit::Usage, "bad-type", format!("there is no ping of type \"{other}\""));
            return Err(bad(failure.hint("the types are disco, TSMP and ICMP")));
        }
    };
    let reply = command(Command::Ping { target, kind, timeout }, context).await?;
    let status = snapshot(context).await?.status;
    PingResult::new(&reply, &status).map_or_else(|| Err(stopping()), |result| json(&result))
}

async fn netcheck(context: &Context) -> Answered {
    let reply = command(Command::Netcheck, context).await?;
    let Reply::Report(report) = reply else { return Err(stopping()) };
    json(&NetcheckReport::new(&report, &snapshot(context).await?.status))
}

pub(super) async fn command(command: Command, context: &Context) -> Result<Reply, (StatusCode, Failure)> {
    let (reply, answer) = oneshot::channel();
    context.requests.send(driver::Request::Command(command, reply)).await.map_err(|_| stopping())?;
    answer.await.map_err(|_| stopping())?.map_err(|error| refused(&error))
}

async fn paths(query: &str, context: &Context) -> Answered {
    let target = target(query).map_err(|failure| (StatusCode::BAD_REQUEST, failure))?;
    let snapshot = snapshot(context).await?;
    let found = snapshot.status.peers.iter().find(|peer| match &target {
        PingTarget::Name(_) => false,
        PingTarget::Key(key) => peer.key == *key,
        PingTarget::Address(address) => peer.allowed_ips.iter().any(|prefix| prefix.contains(*address)),
    });
    let nobody = || {
        let failure = Failure::new(Exit::Refused, "no-peer", "no peer has this address or key");
        (StatusCode::NOT_FOUND, failure.hint("mesh status lists all peers"))
    };
    let key = found.ok_or_else(nobody)?.key;
    let (reply, answer) = oneshot::channel();
    context.requests.send(driver::Request::Paths(key, reply)).await.map_err(|_| stopping())?;
    let paths = answer.await.map_err(|_| stopping())?.ok_or_else(nobody)?;
    json(&PeerPaths::new(&paths, &snapshot.status.relays, snapshot.now))
}

/// Whom a query is about: `ip` or `peer`.
fn target(query: &str) -> Result<PingTarget, Failure> {
    let refuse = |message| Failure::new(Exit::Usage, "bad-peer", message).hint("name a peer by overlay address or key");
    if let Some(text) = value(query, "ip") {
        let address: IpAddr = text.parse().map_err(|_| refuse(format!("\"{text}\" is not an address")))?;
        return Ok(PingTarget::Address(address));
    }
    let text = value(query, "peer").ok_or_else(|| refuse("which peer?".to_owned()))?;
    let key: NodePublic = text.parse().map_err(|error| refuse(format!("\"{text}\" is not a node key: {error}")))?;
    Ok(PingTarget::Key(key))
}

/// The value of a parameter. Addresses and keys need no escapes, so there are none.
pub(super) fn value<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn refused(error: &CommandError) -> (StatusCode, Failure) {
    let (status, code) = match error {
        CommandError::NoRoute(_) => (StatusCode::NOT_FOUND, "no-route"),
        CommandError::PeerExpired(_) => (StatusCode::NOT_FOUND, "peer-expired"),
        CommandError::UnknownPeer(_) | CommandError::UnknownName(_) => (StatusCode::NOT_FOUND, "no-peer"),
        CommandError::AmbiguousName { .. } => (StatusCode::CONFLICT, "ambiguous-name"),
        CommandError::NoControl => (StatusCode::BAD_REQUEST, "no-control"),
        CommandError::NoServer => (StatusCode::BAD_REQUEST, "no-server"),
        CommandError::Refused(_) => (StatusCode::UNAUTHORIZED, "sign-in-refused"),
        CommandError::Superseded(_) => (StatusCode::CONFLICT, "superseded"),
        CommandError::LogoutUntold(_) => (StatusCode::BAD_GATEWAY, "logout-untold"),
        CommandError::NotKept(_) => (StatusCode::INSUFFICIENT_STORAGE, "not-kept"),
        CommandError::TooManyLogouts => (StatusCode::TOO_MANY_REQUESTS, "too-many-logouts"),
        CommandError::NoAddress(_) => (StatusCode::BAD_REQUEST, "no-address"),
        CommandError::NoWay(_) => (StatusCode::BAD_GATEWAY, "no-way"),
        CommandError::NoSource(_) => (StatusCode::BAD_REQUEST, "no-source"),
        CommandError::TooManyPings => (StatusCode::TOO_MANY_REQUESTS, "too-many-pings"),
        CommandError::TooManyReports => (StatusCode::TOO_MANY_REQUESTS, "too-many-reports"),
        CommandError::TimedOut { .. } => (StatusCode::GATEWAY_TIMEOUT, "timeout"),
        CommandError::Map(_) => (StatusCode::BAD_REQUEST, "bad-map"),
        CommandError::Config(_) => (StatusCode::BAD_REQUEST, "bad-config"),
    };
    (status, Failure::new(Exit::Refused, code, error))
}

pub(super) fn json(value: &impl serde::Serialize) -> Answered {
    serde_json::to_string(value)
        .map(Answer::Json)
        .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, Failure::new(Exit::Bug, "json", error)))
}

fn unknown() -> (StatusCode, Failure) {
    (StatusCode::NOT_FOUND, Failure::new(Exit::Usage, "unknown-request", "this meshd does not know this request"))
}

pub(super) fn stopping() -> (StatusCode, Failure) {
    (StatusCode::SERVICE_UNAVAILABLE, Failure::new(Exit::Unreachable, "stopping", "meshd is about to end"))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn queries_name_a_peer_by_address_or_key() {
        assert_eq!(target("type=ICMP&ip=fd00::1").unwrap(), PingTarget::Address("fd00::1".parse().unwrap()));
        let key = NodePublic::from_bytes([5; 32]);
        assert_eq!(target(&format!("peer={key}&timeout=5")).unwrap(), PingTarget::Key(key));
        for query in ["", "ip=", "ip=x", "peer=abc", "ipp=1.1.1.1"] {
            assert!(target(query).is_err(), "{query}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_socket_that_nobody_listens_on_is_replaced_and_a_living_one_is_not() {
        let path = std::env::temp_dir().join(format!("mesh-api-{}.sock", std::process::id()));
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let api = LocalApi::bind(&path).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
        assert_eq!(LocalApi::bind(&path).await.unwrap_err().code(), "already-running");
        drop(api);
        assert!(!path.exists());
    }
}
