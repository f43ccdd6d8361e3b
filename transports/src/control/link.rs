//! Requests of the node to its control server, a task each.

use core::{
    fmt,
    task::{Context, Poll},
    time::Duration,
};
use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header::RETRY_AFTER};
use serde::Serialize;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tracing::debug;

use mesh_core::{
    control::{
        Answer, ControlEvent, ControlRequest, ControlUrl, Failure, FailureKind, RequestId, Route,
        codec::MapReader,
        types::{MapRequest, MapResponse, RegisterRequest},
    },
    rng::{Rng, Seed},
};

use super::{
    channel::{Channel, Patience, innermost},
    dial::{ControlDialer, DIAL_TIMEOUT},
    map_stream::{Compression, MapError, read},
};
use crate::task::Task;

/// Events that wait for the driver. At the bound map streams are not read.
const EVENTS: usize = 4;
/// Answers to control under way. At the bound new ones are left out: control asks again.
const ANSWERS: usize = 8;
/// The answer to a registration. Stock nodes: 1 MiB.
const REGISTER_BYTES: usize = 1 << 20;
/// What is read of an answer that is an error, and what is shown of it.
const ERROR_BYTES: usize = 4 << 10;
const ERROR_CHARS: usize = 200;
/// A message from this length on is read on a thread of its own, so that packets do not wait for it: a few
/// milliseconds' work.
const LARGE_BYTES: usize = 64 << 10;

/// The connection to the control server.
#[derive(Debug)]
pub struct ControlLink {
    dialer: ControlDialer,
    dice: Rng,
    /// Of the server that the node is connected to, or to be.
    channel: Option<Arc<Channel>>,
    under_way: BTreeMap<RequestId, Task>,
    report: mpsc::Sender<ControlEvent>,
    reports: mpsc::Receiver<ControlEvent>,
    next: Option<ControlEvent>,
    answers: Arc<Semaphore>,
}

impl ControlLink {
    /// No connection yet. `seed` feeds what is random in connections, and must be used for nothing else.
    #[must_use]
    pub fn new(seed: &Seed, dialer: ControlDialer) -> Self {
        let (report, reports) = mpsc::channel(EVENTS);
        Self {
            dialer,
            dice: seed.stream("channels", 0),
            channel: None,
            under_way: BTreeMap::new(),
            report,
            reports,
            next: None,
            answers: Arc::new(Semaphore::new(ANSWERS)),
        }
    }

    /// Does what the node says. Needs a tokio runtime with I/O and time.
    pub fn handle_request(&mut self, request: ControlRequest) {
        match request {
            ControlRequest::FetchKey { id, server } => {
                let (dialer, report) = (self.dialer.clone(), self.report.clone());
                self.begin(id, async move {
                    let event = match dialer.fetch_key(&server).await {
                        Ok(key) => ControlEvent::Key { id, key },
                        Err(error) => ControlEvent::Failed { id, failure: error.into() },
                    };
                    let _ = report.send(event).await;
                });
            }
            ControlRequest::Connect(server) => {
                self.disconnect();
                self.channel = Some(Channel::new(self.dialer.clone(), server, self.dice.split()));
            }
            ControlRequest::Disconnect => self.disconnect(),
            ControlRequest::Register { id, request } => self.ask(id, |call| call.register(request)),
            ControlRequest::StreamMap { id, request } => self.ask(id, |call| call.stream_map(request)),
            ControlRequest::Update { id, request } => self.ask(id, |call| call.update(request)),
            ControlRequest::Cancel { id } => {
                self.under_way.remove(&id);
            }
            ControlRequest::Answer(answer) => self.answer(answer),
        }
    }

    /// What came next. Costs nothing when nothing has.
    pub fn try_recv(&mut self) -> Option<ControlEvent> {
        loop {
            let event = match self.next.take() {
                Some(event) => event,
                None => self.reports.try_recv().ok()?,
            };
            let (id, is_last) = of(&event);
            // Nothing is to be said about what was cancelled.
            if self.under_way.contains_key(&id) {
                if is_last {
                    self.under_way.remove(&id);
                }
                return Some(event);
            }
        }
    }

    /// Whether something came: then call [`Self::try_recv`] until it has nothing more.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.next.is_none()
            && let Poll::Ready(Some(event)) = self.reports.poll_recv(cx)
        {
            self.next = Some(event);
        }
        if self.next.is_some() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn disconnect(&mut self) {
        self.under_way.clear();
        self.channel = None;
    }

    fn begin(&mut self, id: RequestId, task: impl Future<Output = ()> + Send + 'static) {
        self.under_way.insert(id, Task::spawn(task));
    }

    /// Asks the server that the node is connected to.
    fn ask<F>(&mut self, id: RequestId, task: impl FnOnce(Call) -> F)
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let report = self.report.clone();
        let call = self.channel.clone().map(|channel| task(Call { id, channel, report: report.clone() }));
        self.begin(id, async move {
            let ended = match call {
                Some(call) => call.await,
                None => Err(Failure { kind: FailureKind::Unreachable, text: "no server was named".to_owned() }),
            };
            if let Err(failure) = ended {
                debug!(?id, %failure, "request to control");
                let _ = report.send(ControlEvent::Failed { id, failure }).await;
            }
        });
    }

    fn answer(&self, answer: Answer) {
        let Ok(permit) = Arc::clone(&self.answers).try_acquire_owned() else {
            return debug!("too many answers to control are under way");
        };
        match answer.route {
            Route::Noise => {
                if let Some(channel) = self.channel.clone() {
                    tokio::spawn(answer_inside(channel, answer, permit));
                }
            }
            Route::Web => {
                tokio::spawn(answer_outside(self.dialer.clone(), answer, permit));
            }
        }
    }
}

/// Which request an event is about, and whether it is the last one.
fn of(event: &ControlEvent) -> (RequestId, bool) {
    match event {
        ControlEvent::Opened { id } | ControlEvent::Map { id, .. } => (*id, false),
        ControlEvent::Key { id, .. }
        | ControlEvent::Registered { id, .. }
        | ControlEvent::Closed { id }
        | ControlEvent::Updated { id }
        | ControlEvent::Failed { id, .. } => (*id, true),
    }
}

/// A request under way.
struct Call {
    id: RequestId,
    channel: Arc<Channel>,
    report: mpsc::Sender<ControlEvent>,
}

impl Call {
    async fn register(self, request: Box<RegisterRequest>) -> Result<(), Failure> {
        let patience = if request.followup.is_empty() { Patience::Usual } else { Patience::Endless };
        let response = self.post("/machine/register", &*request, patience).await?;
        let body = Limited::new(response.into_body(), REGISTER_BYTES).collect().await;
        let body = body.map_err(|error| malformed(&innermost(error.as_ref())))?.to_bytes();
        let response = serde_json::from_slice(&body).map_err(|error| malformed(&error))?;
        self.say(ControlEvent::Registered { id: self.id, response }).await;
        Ok(())
    }

    async fn update(self, request: Box<MapRequest>) -> Result<(), Failure> {
        // What the answer holds does not matter.
        self.post("/machine/map", &*request, Patience::Usual).await?;
        self.say(ControlEvent::Updated { id: self.id }).await;
        Ok(())
    }

    async fn stream_map(self, request: Box<MapRequest>) -> Result<(), Failure> {
        let compression = if request.compress == "zstd" { Compression::Zstd } else { Compression::None };
        let response = self.post("/machine/map", &*request, Patience::Usual).await?;
        self.say(ControlEvent::Opened { id: self.id }).await;
        let mut body = response.into_body();
        let mut reader = MapReader::default();
        while let Some(frame) = body.frame().await {
            let lost = |error: hyper::Error| Failure {
                kind: FailureKind::Unreachable,
                text: format!("the map stream broke: {}", innermost(&error)),
            };
            let Ok(bytes) = frame.map_err(lost)?.into_data() else { continue };
            let received = reader.receive(&bytes);
            while let Some(message) = reader.pop() {
                let response = Box::new(decode(message, compression).await.map_err(|error| malformed(&error))?);
                self.say(ControlEvent::Map { id: self.id, response }).await;
            }
            received.map_err(|error| malformed(&error))?;
        }
        if reader.is_within_message() {
            return Err(malformed(&"the map stream ended within a message"));
        }
        self.say(ControlEvent::Closed { id: self.id }).await;
        Ok(())
    }

    /// The answer, when it is 200.
    async fn post(&self, path: &str, body: &impl Serialize, patience: Patience) -> Result<Response<Incoming>, Failure> {
        let body = serde_json::to_vec(body).map_err(|error| malformed(&error))?;
        let request = request(Method::POST, &self.channel.authority(), path, body)?;
        let response = self.channel.send(request, patience).await?;
        if response.status() == StatusCode::OK { Ok(response) } else { Err(refused(response).await) }
    }

    async fn say(&self, event: ControlEvent) {
        // Nobody listens when the driver is gone.
        let _ = self.report.send(event).await;
    }
}

/// Reads one message, a large one on another thread.
async fn decode(message: Vec<u8>, compression: Compression) -> Result<MapResponse, MapError> {
    if message.len() < LARGE_BYTES {
        return read(&message, compression);
    }
    match tokio::task::spawn_blocking(move || read(&message, compression)).await {
        Ok(response) => response,
        Err(error) => Err(MapError::Zstd(std::io::Error::other(error))),
    }
}

fn request(method: Method, authority: &str, path: &str, body: Vec<u8>) -> Result<Request<Full<Bytes>>, Failure> {
    let uri = format!("https://{authority}{path}");
    let request = Request::builder().method(method).uri(uri).body(Full::from(body));
    request.map_err(|error| malformed(&error))
}

/// What an answer other than 200 says.
async fn refused(response: Response<Incoming>) -> Failure {
    let code = response.status().as_u16();
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()).and_then(relative);
    let mut body = response.into_body();
    let mut said = Vec::new();
    // One that goes on for ever, or breaks, has said enough.
    let read = timeout(DIAL_TIMEOUT, async {
        while said.len() < ERROR_BYTES
            && let Some(Ok(frame)) = body.frame().await
        {
            said.extend_from_slice(frame.data_ref().map_or(&[], |bytes| bytes));
        }
    });
    let _ = read.await;
    let text = String::from_utf8_lossy(&said);
    let text: String = text.trim().chars().filter(|c| !c.is_control()).take(ERROR_CHARS).collect();
    Failure { kind: FailureKind::Status { code, retry_after }, text }
}

/// How long `Retry-After` asks to wait: seconds, or a date.
fn relative(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text.trim()).ok()?;
    Some(at.duration_since(SystemTime::now()).unwrap_or_default())
}

fn malformed(problem: &dyn fmt::Display) -> Failure {
    Failure { kind: FailureKind::Malformed, text: format!("the control server's answer cannot be read: {problem}") }
}

/// Answers control by the connection that it asked on.
async fn answer_inside(channel: Arc<Channel>, answer: Answer, permit: OwnedSemaphorePermit) {
    let (method, body) = content(answer.body);
    let path = path_of(&answer.url);
    let sent = async {
        let request = request(method, &channel.authority(), &path, body)?;
        channel.send(request, Patience::Usual).await
    };
    if let Err(failure) = sent.await {
        debug!(%failure, "answer to control");
    }
    drop(permit);
}

/// Answers control by an ordinary request.
async fn answer_outside(dialer: ControlDialer, answer: Answer, permit: OwnedSemaphorePermit) {
    let uri: Option<hyper::Uri> = answer.url.parse().ok();
    let server = uri.and_then(|uri| format!("{}://{}", uri.scheme_str()?, uri.authority()?).parse::<ControlUrl>().ok());
    let Some(server) = server else { return debug!(url = answer.url, "control wants an answer at no address") };
    let (method, body) = content(answer.body);
    match timeout(DIAL_TIMEOUT, dialer.exchange(&server, method, &path_of(&answer.url), body.into())).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => debug!(%error, "answer to control"),
        Err(_) => debug!(%server, "answer to control: it takes too long"),
    }
    drop(permit);
}

/// How what is to be said is said.
fn content(body: Option<Vec<u8>>) -> (Method, Vec<u8>) {
    body.map_or_else(|| (Method::HEAD, Vec::new()), |body| (Method::POST, body))
}

/// Path and query of a URL.
fn path_of(url: &str) -> String {
    let uri: Option<hyper::Uri> = url.parse().ok();
    uri.and_then(|uri| Some(uri.path_and_query()?.as_str().to_owned())).unwrap_or_else(|| "/".to_owned())
}
