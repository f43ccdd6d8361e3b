//! The one HTTP/2 connection that all requests share.

use core::time::Duration;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use tracing::debug;

use mesh_core::{
    control::{Failure, FailureKind, Server, session::ANSWER_WITHIN},
    rng::Rng,
};

use super::{
    dial::{ControlDialer, DIAL_TIMEOUT, Hello},
    ways::LastTry,
};
use crate::task::Task;

/// For a request, until the head of its answer. Stock nodes have none; a server that is there answers in a second.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
// The node must not lose patience first: it would ask again over the same dead connection.
const _: () = assert!(DIAL_TIMEOUT.as_secs() + ANSWER_TIMEOUT.as_secs() < ANSWER_WITHIN.as_secs());
/// A try to connect within this time of the last one goes over TLS first. Stock nodes: 2 minutes.
const RECENT: Duration = Duration::from_secs(120);
/// How often a quiet server with a request under way is asked whether it is there, and how long it may take to say so.
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// What may come unread on one stream, and on all. Stock nodes: 4 MiB and 1 GiB. A first map is a few MiB at most.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

type Sender = SendRequest<Full<Bytes>>;

/// The connection to one server, made when it is needed.
#[derive(Debug)]
pub(super) struct Channel {
    dialer: ControlDialer,
    server: Server,
    /// How often it was dialled. Whoever waited for a try that failed does not try again at once.
    tries: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What handshakes draw from: each gets a stream that is split off.
    dice: Rng,
    open: Option<Open>,
    last_try: Option<Instant>,
    /// Why the last try failed.
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Open {
    number: u64,
    sender: Sender,
    /// Moves the bytes.
    _task: Task,
}

/// How long a request may be kept waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// As long as a server needs.
    Usual,
    /// As long as people need.
    Endless,
}

impl Channel {
    pub(super) fn new(dialer: ControlDialer, server: Server, dice: Rng) -> Arc<Self> {
        let state = Mutex::new(State { dice, open: None, last_try: None, failure: None });
        Arc::new(Self { dialer, server, tries: AtomicU64::new(0), state })
    }

    /// Host and port, for the URL of a request.
    pub(super) fn authority(&self) -> String {
        super::ways::authority(&self.server.url)
    }

    /// The head of the answer to `request`.
    ///
    /// # Errors
    /// When there is no connection, or it broke before the answer.
    pub(super) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        patience: Patience,
    ) -> Result<Response<Incoming>, Failure> {
        let (number, mut sender) = self.sender().await?;
        let host = self.server.url.host();
        let lost = |error: hyper::Error| Failure {
            kind: FailureKind::Unreachable,
            text: format!("the connection to {host} was lost: {}", innermost(&error)),
        };
        let answer = async {
            sender.ready().await?;
            sender.send_request(request).await
        };
        match patience {
            Patience::Endless => answer.await.map_err(lost),
            Patience::Usual => match timeout(ANSWER_TIMEOUT, answer).await {
                Ok(answered) => answered.map_err(lost),
                Err(_) => {
                    self.give_up(number).await;
                    let text = format!("{host} did not answer within {} s", ANSWER_TIMEOUT.as_secs());
                    Err(Failure { kind: FailureKind::Unreachable, text })
                }
            },
        }
    }

    /// The connection that there is, or a new one. Those who come while it is dialled wait, and share how that ends.
    async fn sender(&self) -> Result<(u64, Sender), Failure> {
        let seen = self.tries.load(Relaxed);
        let mut state = self.state.lock().await;
        if let Some(open) = state.open.as_ref().filter(|open| !open.sender.is_closed()) {
            return Ok((open.number, open.sender.clone()));
        }
        state.open = None;
        let number = self.tries.load(Relaxed);
        if number > seen
            && let Some(failure) = &state.failure
        {
            return Err(failure.clone());
        }
        let last = match state.last_try.replace(Instant::now()) {
            Some(at) if at.elapsed() < RECENT => LastTry::Recent,
            Some(_) | None => LastTry::LongAgo,
        };
        let opened = self.open(number, last, state.dice.split()).await;
        self.tries.fetch_add(1, Relaxed);
        match opened {
            Ok(open) => {
                let sender = open.sender.clone();
                (state.open, state.failure) = (Some(open), None);
                Ok((number, sender))
            }
            Err(failure) => {
                state.failure = Some(failure.clone());
                Err(failure)
            }
        }
    }

    async fn open(&self, number: u64, last: LastTry, dice: Rng) -> Result<Open, Failure> {
        let hello = Hello { server: self.server.clone(), last };
        let stream = self.dialer.open(hello, dice).await?;
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .handshake(TokioIo::new(stream))
            .await;
        let (sender, connection) = handshake.map_err(|error| Failure {
            kind: FailureKind::Unreachable,
            text: format!("{} does not speak HTTP/2: {}", self.server.url.host(), innermost(&error)),
        })?;
        let host = self.server.url.host().to_owned();
        let task = Task::spawn(async move {
            let ended = connection.await;
            debug!(host, ?ended, "connection to the control server ended");
        });
        Ok(Open { number, sender, _task: task })
    }

    /// The connection is dead, unless it is another by now.
    async fn give_up(&self, number: u64) {
        let mut state = self.state.lock().await;
        if state.open.as_ref().is_some_and(|open| open.number == number) {
            state.open = None;
        }
    }
}

/// The error below all others, which is the one that says something.
pub(super) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
