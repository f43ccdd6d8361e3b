//! The socket for those who run the server: one command in, its answer out, HTTP/1 over a unix socket. Both ends.
//!
//! `POST /command` with a [`Command`] as JSON is answered with an object of the REST API, or with
//! `{"error":{"code","message","hint"}}`. Root may, and the user that the server runs as.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{convert::Infallible, io, path::Path};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client,
    header::{CONTENT_TYPE, HOST, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::{net::UnixStream, time::timeout};
use tracing::debug;
use transports::{
    local::{self, LocalSocket},
    program::{Exit, Failure},
};

use super::{
    desk::{Desk, No},
    limits, objects,
};
use crate::{
    coordinator::{AdminError, Command},
    store::Principal,
};

const PATH: &str = "/command";

/// The code of [`AdminError::Policy`](crate::coordinator::AdminError::Policy): each line begins with a place.
const BAD_POLICY: &str = "bad_policy";

/// The code of a [`Failure`] because no server is there.
pub(super) const NOT_RUNNING: &str = "not-running";

/// What to do about [`No::NotYet`].
const NOT_YET: &str = "make room where the server's state directory is: it is tried again every second; look whether it is there before \
     you ask again";

/// What to do about [`No::NotNow`].
const NOT_NOW: &str = "make room where the server's state directory is, and ask again";

/// The socket of those who run the server.
pub(super) struct AdminSocket(LocalSocket);

impl AdminSocket {
    /// Claims `path`. Who may is checked by credentials; others get no further than its mode.
    ///
    /// # Errors
    /// When another server listens there, or the path cannot be used.
    pub(super) async fn bind(path: &Path) -> Result<Self, Failure> {
        LocalSocket::claim("mesh-control", path, 0o600).await.map(Self).map_err(|error| {
            let exit = if error.is_denied() { Exit::NotPermitted } else { Exit::Refused };
            Failure::new(exit, error.code(), error.to_string()).hint(error.hint())
        })
    }

    /// Serves until dropped.
    pub(super) async fn serve(self, desk: Desk) {
        let answer = |stream| {
            let connection = connection(stream, desk.clone());
            async move {
                if let Err(error) = connection.await {
                    debug!(%error, "a connection of the socket ended");
                }
            }
        };
        self.0.serve(limits::SOCKET_CONNECTIONS, answer).await;
    }
}

async fn connection(stream: UnixStream, desk: Desk) -> hyper::Result<()> {
    let uid = local::peer(&stream);
    let service = service_fn(move |request| {
        let desk = desk.clone();
        async move {
            let (status, body) = answer(request, uid, &desk).await;
            let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
            *response.status_mut() = status;
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            Ok::<_, Infallible>(response)
        }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

async fn answer(request: Request<Incoming>, uid: u32, desk: &Desk) -> (StatusCode, Value) {
    if !local::may_change(uid) {
        let hint = "use root, or the user that the server runs as";
        return refuse(StatusCode::FORBIDDEN, "not_permitted", "this user may not administer the server", hint);
    }
    if request.uri().path() != PATH || *request.method() != Method::POST {
        return refuse(StatusCode::NOT_FOUND, "unknown_request", "this server does not know this request", "");
    }
    let body = timeout(limits::BODY, Limited::new(request.into_body(), limits::COMMAND_BYTES).collect()).await;
    let Ok(Ok(body)) = body else {
        let hint = "a policy has at most 8 MiB";
        return refuse(StatusCode::BAD_REQUEST, "bad_request", "the command is too long or did not arrive", hint);
    };
    let command: Command = match serde_json::from_slice(&body.to_bytes()) {
        Ok(command) => command,
        Err(error) => {
            let hint = "use the mesh-control of the same version as the server";
            let message = format!("this server does not know the command: {error}");
            return refuse(StatusCode::BAD_REQUEST, "unknown_command", &message, hint);
        }
    };
    let by = Principal::Operator(if uid == 0 { "root".to_owned() } else { format!("uid {uid}") });
    match desk.command(by, command).await {
        Ok(reply) => (StatusCode::OK, objects::reply(&reply)),
        Err(no) => {
            let (status, code, hint) = match &no {
                No::Refused(error) => (StatusCode::CONFLICT, error.code(), ""),
                No::NotYet(_) => (StatusCode::INSUFFICIENT_STORAGE, "not_stored", NOT_YET),
                No::NotNow(_) => (StatusCode::INSUFFICIENT_STORAGE, "not_stored", NOT_NOW),
                No::Ending(_) => (StatusCode::SERVICE_UNAVAILABLE, "stopping", ""),
            };
            refuse(status, code, &no.to_string(), hint)
        }
    }
}

fn refuse(status: StatusCode, code: &str, message: &str, hint: &str) -> (StatusCode, Value) {
    (status, json!({ "error": { "code": code, "message": message, "hint": hint } }))
}

/// Has a server carry out a command.
///
/// # Errors
/// When the server is not there, or says no.
pub(super) async fn ask(socket: &Path, command: &Command) -> Result<Value, Failure> {
    let stream = UnixStream::connect(socket).await.map_err(|error| unreachable(socket, &error))?;
    let lost = |error: hyper::Error| {
        Failure::new(Exit::Unreachable, "connection-lost", format!("the connection to the server was lost: {error}"))
            .hint("see whether it runs, and try again")
    };
    let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    let driver = tokio::spawn(connection);
    let bug = |error: &dyn core::fmt::Display| Failure::new(Exit::Bug, "bad-request", error.to_string());
    let request = Request::post(PATH)
        .header(HOST, "mesh-control")
        .body(Full::new(Bytes::from(serde_json::to_vec(command).map_err(|error| bug(&error))?)))
        .map_err(|error| bug(&error))?;
    let response = sender.send_request(request).await.map_err(lost)?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(lost)?.to_bytes();
    driver.abort();
    let value: Value = serde_json::from_slice(&body).map_err(|error| {
        Failure::new(Exit::Unreachable, "strange-answer", format!("{} answers strangely: {error}", socket.display()))
            .hint("name the socket of a mesh-control with --socket")
    })?;
    if status == StatusCode::OK { Ok(value) } else { Err(refused(status, &value)) }
}

fn unreachable(socket: &Path, error: &io::Error) -> Failure {
    let socket = socket.display();
    if error.kind() == io::ErrorKind::PermissionDenied {
        return Failure::new(Exit::NotPermitted, "not-permitted", format!("not permitted to open {socket}"))
            .hint("use root, or the user that the server runs as");
    }
    Failure::new(Exit::Unreachable, NOT_RUNNING, format!("the server is not reachable at {socket}: {error}"))
        .hint("start it with \"mesh-control serve\", or name its socket with --socket")
}

/// Why a policy is not good, where no server said it.
pub(super) fn refused_policy(error: &AdminError) -> Failure {
    Failure::new(Exit::Refused, error.code(), error.to_string()).about_text()
}

fn refused(status: StatusCode, answer: &Value) -> Failure {
    let exit = match status {
        StatusCode::FORBIDDEN => Exit::NotPermitted,
        StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND => Exit::Usage,
        StatusCode::SERVICE_UNAVAILABLE => Exit::Unreachable,
        _ => Exit::Refused,
    };
    let word = |name: &str| answer["error"][name].as_str().unwrap_or_default().to_owned();
    let code = word("code");
    let is_policy = code == BAD_POLICY;
    let failure = Failure::new(exit, code, word("message"));
    let failure = if is_policy { failure.about_text() } else { failure };
    match word("hint") {
        hint if hint.is_empty() => failure,
        hint => failure.hint(hint),
    }
}
