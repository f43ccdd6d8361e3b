//! What nodes ask inside Noise: HTTP/2 from the first byte, and the paths of the control protocol.
//!
//! Everything that is about a node goes to the coordinator, which checks that the node belongs to the machine that Noise
//! vouches for. A connection whose requests were all refused stays a stranger's, and strangers have narrow bounds.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full};
use hyper::{
    Method, Request as HttpRequest, Response as HttpResponse, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_core::{
    control::types::{MapRequest, RegisterRequest, RegisterResponse},
    key::{MachinePublic, NodePublic},
};
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{debug, info, trace};

use super::{
    desk::{Answer, Desk},
    limits,
    map_stream::MapBody,
    pass::{Gathered, Pass, TooMuch},
    render_pool::{Coding, RenderPool},
    text::fingerprint,
};
use crate::coordinator::{ConnId, Endpoint, Input, Refusal, Request, RequestId};

type Body = Either<Full<Bytes>, MapBody>;

/// One node's connection.
pub(super) struct Machine {
    pub(super) conn: ConnId,
    pub(super) machine: MachinePublic,
    pub(super) desk: Desk,
    pub(super) pool: RenderPool,
    pub(super) pass: Arc<Pass>,
    next: AtomicU64,
    /// Requests under way.
    busy: AtomicUsize,
    /// Requests with a message that the node has yet to take, and since when.
    given: Mutex<BTreeMap<RequestId, Instant>>,
    /// A request began or ended, or a message was given out.
    moved: Notify,
}

/// Why a connection is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Useless {
    /// Nothing has been asked for too long.
    Idle,
    /// The node takes nothing of a message.
    Stalled,
}

impl Machine {
    pub(super) fn new(conn: ConnId, machine: MachinePublic, desk: Desk, pool: RenderPool, pass: Arc<Pass>) -> Self {
        Self {
            conn,
            machine,
            desk,
            pool,
            pass,
            next: AtomicU64::new(0),
            busy: AtomicUsize::new(0),
            given: Mutex::default(),
            moved: Notify::new(),
        }
    }

    /// Serves the node until it goes, or until it is idle for too long.
    pub(super) fn serve(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (conn, desk) = (self.conn, self.desk.clone());
        let this = Arc::new(self);
        let service = service_fn({
            let this = Arc::clone(&this);
            move |request| {
                let this = Arc::clone(&this);
                // On the heap, or the task that writes an open map would keep the place for it.
                Box::pin(async move { Ok::<_, Infallible>(this.handle(request).await) })
            }
        });
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .max_concurrent_streams(limits::REQUESTS)
            .max_header_list_size(limits::HEADER_LIST_BYTES)
            .max_send_buf_size(64 << 10);
        // Made here and on the heap: a future keeps the place of what it moves.
        let connection = Box::pin(http.serve_connection(TokioIo::new(stream), service));
        let lost = this.pass.lost();
        async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    trace!(conn = conn.0, %error, "a node's connection ended");
                },
                why = this.useless() => debug!(conn = conn.0, ?why, "a connection is closed"),
                () = lost => debug!(conn = conn.0, "a connection made room for another"),
            }
            desk.tell(Input::Closed { conn }).await;
        }
    }

    /// Waits until the connection is of no more use.
    async fn useless(&self) -> Useless {
        loop {
            let moved = self.moved.notified();
            let oldest = self.given().values().min().map(|since| *since + limits::WRITE);
            if let Some(deadline) = oldest {
                if deadline <= Instant::now() {
                    return Useless::Stalled;
                }
                tokio::select! {
                    () = moved => {}
                    () = sleep_until(deadline) => {}
                }
            } else if self.busy.load(Relaxed) > 0 {
                moved.await;
            } else {
                let patience = if self.pass.is_greeted() { limits::IDLE } else { limits::STRANGER };
                tokio::select! {
                    () = moved => {}
                    () = sleep(patience) => return Useless::Idle,
                }
            }
        }
    }

    fn given(&self) -> MutexGuard<'_, BTreeMap<RequestId, Instant>> {
        // Each change is one step; a panic leaves nothing half done.
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message of a request's answer goes out.
    pub(super) fn note_given(&self, id: RequestId) {
        self.given().insert(id, Instant::now());
        self.moved.notify_one();
    }

    /// The node has taken it, as far as it is known here.
    pub(super) fn note_taken(&self, id: RequestId) {
        self.given().remove(&id);
    }

    async fn handle(self: &Arc<Self>, request: HttpRequest<Incoming>) -> HttpResponse<Body> {
        let _busy = Busy::new(self);
        let asked = match route(request.method(), request.uri().path()) {
            Ok(asked) => asked,
            Err(refusal) => return refuse(&refusal),
        };
        // It counts until the answer is there; the bytes themselves and the head go before.
        let mut gathered = Gathered::new(&self.pass);
        let body = match read(request.into_body(), &mut gathered).await {
            Ok(body) => body,
            Err(refusal) => return refuse(&refusal),
        };
        let mut coding = Coding::Plain;
        let request = match asked {
            Asked::WhoAmI => return text(StatusCode::OK, &format!("{}\n", self.machine)),
            Asked::Register => parse::<RegisterRequest>(&body).map(|request| Request::Register(Box::new(request))),
            Asked::Map => parse::<MapRequest>(&body).map(|request| {
                if request.compress == "zstd" {
                    coding = Coding::Zstd;
                }
                Request::Map(Box::new(request))
            }),
            Asked::Other(endpoint) => {
                parse::<OfNode>(&body).map(|of| Request::Other { endpoint, node_key: of.node_key })
            }
        };
        drop(body);
        match request {
            Ok(request) => self.ask(request, coding).await,
            Err(refusal) => refuse(&refusal),
        }
    }

    async fn ask(self: &Arc<Self>, request: Request, coding: Coding) -> HttpResponse<Body> {
        let id = RequestId(self.next.fetch_add(1, Relaxed));
        let mut waiting = Waiting { machine: Arc::clone(self), id, given_up: true };
        let answer = self.desk.ask(self.conn, (self.machine, self.pass.from()), id, request).await;
        waiting.given_up = false;
        let Ok(answer) = answer else { return text(StatusCode::SERVICE_UNAVAILABLE, "the server is about to end") };
        if lets_in(&answer) {
            self.pass.note_greeted();
        }
        match answer {
            Answer::Register(response) => {
                self.tell(&response);
                json(&*response)
            }
            Answer::Stream(orders) => {
                HttpResponse::new(Either::Right(MapBody::new(Busy::new(self), id, coding, orders)))
            }
            Answer::Once(update) => match self.pool.render(update, coding).await {
                Ok(frame) => HttpResponse::new(Either::Left(Full::new(frame))),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            },
            Answer::Updated => HttpResponse::new(Either::Left(Full::default())),
            Answer::Done => json(&serde_json::json!({})),
            Answer::Refused(refusal) => refuse(&refusal),
        }
    }
}

impl Machine {
    /// Tells those who run the server of a node that was not let in. What was stored tells of those that were.
    fn tell(&self, response: &RegisterResponse) {
        if response.error.is_empty() && response.auth_url.is_empty() {
            return;
        }
        let Some(left_out) = self.pass.may_tell() else { return };
        let (from, machine) = (self.pass.from(), fingerprint(&self.machine.to_string()));
        if response.error.is_empty() {
            info!(%from, machine, left_out, "a device asks to join, and waits for somebody to admit it");
        } else {
            info!(%from, machine, left_out, error = response.error, "a registration was refused");
        }
    }
}

/// A request under way.
pub(super) struct Busy(Arc<Machine>);

impl Busy {
    /// Whose.
    pub(super) fn machine(&self) -> &Machine {
        &self.0
    }

    fn new(machine: &Arc<Machine>) -> Self {
        machine.busy.fetch_add(1, Relaxed);
        machine.moved.notify_one();
        Self(Arc::clone(machine))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Relaxed);
        self.0.moved.notify_one();
    }
}

/// A request that the coordinator was asked: one that the node gives up is dropped, and the coordinator is told.
struct Waiting {
    machine: Arc<Machine>,
    id: RequestId,
    given_up: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.given_up {
            self.machine.desk.tell_at_once(Input::Aborted { conn: self.machine.conn, id: self.id });
        }
    }
}

/// What a path stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Register,
    Map,
    Other(Endpoint),
    WhoAmI,
}

fn route(method: &Method, path: &str) -> Result<Asked, Refusal> {
    let (wanted, asked) = match path {
        "/machine/register" => (Method::POST, Asked::Register),
        "/machine/map" => (Method::POST, Asked::Map),
        "/machine/set-dns" => (Method::POST, Asked::Other(Endpoint::SetDns)),
        "/machine/id-token" => (Method::POST, Asked::Other(Endpoint::IdToken)),
        "/machine/feature/query" => (Method::POST, Asked::Other(Endpoint::FeatureQuery)),
        "/machine/set-device-attr" => (Method::PATCH, Asked::Other(Endpoint::SetDeviceAttributes)),
        "/machine/audit-log" => (Method::POST, Asked::Other(Endpoint::AuditLog)),
        "/machine/update-health" => (Method::POST, Asked::Other(Endpoint::UpdateHealth)),
        "/machine/whoami" => (Method::GET, Asked::WhoAmI),
        _ => return Err(Refusal::new(404, "this server does not have that")),
    };
    if *method == wanted { Ok(asked) } else { Err(Refusal::new(405, format!("this path wants {wanted}"))) }
}

/// Whom a small request is about.
#[derive(serde::Deserialize)]
struct OfNode {
    #[serde(rename = "NodeKey")]
    node_key: NodePublic,
}

/// Whether whoever asked is a node of ours. Who is refused in words or is to sign in is answered well, and is a stranger.
fn lets_in(answer: &Answer) -> bool {
    match answer {
        Answer::Register(told) => told.error.is_empty() && told.auth_url.is_empty() && !told.node_key_expired,
        Answer::Stream(_) | Answer::Once(_) | Answer::Updated | Answer::Done => true,
        Answer::Refused(_) => false,
    }
}

async fn read(mut body: Incoming, gathered: &mut Gathered) -> Result<Vec<u8>, Refusal> {
    let work = async {
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Refusal::new(400, format!("the request did not arrive: {error}")))?;
            let Some(data) = frame.data_ref() else { continue };
            gathered.add(data.len()).map_err(|bound| match bound {
                TooMuch::Body => Refusal::new(413, "the request is too long"),
                TooMuch::Connection => Refusal {
                    retry_after: Some(limits::BODY),
                    ..Refusal::new(429, "too much is asked at once on a connection whose node is not let in yet")
                },
            })?;
            bytes.extend_from_slice(data);
        }
        Ok(bytes)
    };
    timeout(limits::BODY, work).await.unwrap_or_else(|_| Err(Refusal::new(408, "the request took too long")))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    // A list would be read as the fields in their order.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(Refusal::new(400, "the request is malformed: it is no JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| Refusal::new(400, format!("the request is malformed: {error}")))
}

fn json(value: &impl serde::Serialize) -> HttpResponse<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => {
            let mut response = HttpResponse::new(Either::Left(Full::new(bytes.into())));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn text(status: StatusCode, text: &str) -> HttpResponse<Body> {
    let mut response = HttpResponse::new(Either::Left(Full::new(Bytes::copy_from_slice(text.as_bytes()))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn refuse(refusal: &Refusal) -> HttpResponse<Body> {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = text(status, &refusal.text);
    if let Some(after) = refusal.retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::{super::pass::Door, *};

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_useless_when_a_message_is_not_taken_or_nothing_is_asked() {
        let machine = Arc::new(Machine::new(
            ConnId(0),
            MachinePublic::from_bytes([7; 32]),
            Desk::nobody(),
            RenderPool::new(),
            Arc::new(Door::default().enter(([127, 0, 0, 1], 1).into()).unwrap()),
        ));
        let busy = Busy::new(&machine);
        let (open, other) = (RequestId(0), RequestId(1));
        let began = Instant::now();
        machine.note_given(open);
        let late = async {
            sleep(limits::WRITE / 2).await;
            machine.note_taken(open);
            machine.note_given(other);
        };
        let (why, ()) = tokio::join!(machine.useless(), late);
        assert_eq!((why, began.elapsed().as_secs()), (Useless::Stalled, limits::WRITE.as_secs() * 3 / 2));
        machine.note_taken(other);
        let still_open = timeout(2 * limits::IDLE, machine.useless()).await;
        assert!(still_open.is_err(), "a request is under way");
        drop(busy);
        let began = Instant::now();
        assert_eq!((machine.useless().await, began.elapsed().as_secs()), (Useless::Idle, limits::STRANGER.as_secs()));
    }

    #[test]
    fn paths_want_their_method() {
        assert_eq!(route(&Method::POST, "/machine/map"), Ok(Asked::Map));
        assert_eq!(route(&Method::GET, "/machine/map").unwrap_err().status, 405);
        assert_eq!(route(&Method::PATCH, "/machine/set-device-attr"), Ok(Asked::Other(Endpoint::SetDeviceAttributes)));
        for path in ["/machine/tka/init/begin", "/machine/c2n", "/machine/webclient/init/a/to/b", "/key", "/"] {
            assert_eq!(route(&Method::GET, path).unwrap_err().status, 404, "{path}");
        }
    }

    #[test]
    fn what_is_no_json_is_refused_and_what_is_missing_is_zero() {
        assert_eq!(parse::<MapRequest>(b"{\"Version\":").unwrap_err().status, 400);
        assert_eq!(parse::<MapRequest>(b"[1]").unwrap_err().status, 400);
        assert_eq!(parse::<MapRequest>(b"{}").unwrap(), MapRequest::default());
        assert_eq!(parse::<OfNode>(b"{}").err().map(|refusal| refusal.status), Some(400));
        let deep = "[".repeat(100_000);
        assert_eq!(parse::<RegisterRequest>(format!("{{\"Auth\":{deep}").as_bytes()).unwrap_err().status, 400);
    }
}
