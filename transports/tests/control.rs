//! Control links against a stand-in for a server, on sockets of the loopback.
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

use core::{
    convert::Infallible,
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use data_encoding::BASE64;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::{Body, Frame, Incoming},
    header::{CONNECTION, LOCATION, RETRY_AFTER, UPGRADE},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    task::AbortHandle,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use mesh_core::{
    control::{
        ControlEvent, ControlRequest, ControlUrl, Failure, FailureKind, RequestId, Server,
        codec::frame,
        noise::{EarlyNoise, Initiation},
        types::{MapRequest, RegisterRequest, RegisterResponse},
    },
    key::MachinePrivate,
    rng::Seed,
};
use transports::{
    control::{ControlDialer, ControlLink, NoiseIo},
    derp::Trust,
    net::Net,
};

const LONG: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "current_thread")]
async fn a_key_is_fetched_and_all_requests_share_one_connection() {
    for early in [true, false] {
        let server = StandIn::start(early, |path, body| match (path, body.contains("\"Stream\":true")) {
            ("/machine/register", _) => Answer::json(&RegisterResponse { auth_url: "u".into(), ..Default::default() }),
            ("/machine/map", true) => {
                let first = zstd::encode_all(&br#"{"Domain":"first"}"#[..], 1).unwrap();
                let second = zstd::encode_all(&br#"{"KeepAlive":true}"#[..], 1).unwrap();
                // In pieces that are no messages.
                let stream = [frame(&first).unwrap(), frame(&second).unwrap()].concat();
                Answer { chunks: stream.chunks(7).map(Bytes::copy_from_slice).collect(), ..Answer::ok() }
            }
            ("/machine/map", false) => Answer::ok(),
            _ => Answer { status: 404, ..Answer::ok() },
        })
        .await;
        let mut link = link();
        link.handle_request(ControlRequest::FetchKey { id: RequestId(1), server: server.url() });
        assert_eq!(next(&mut link).await, ControlEvent::Key { id: RequestId(1), key: server.key.public() });
        link.handle_request(ControlRequest::Connect(server.server()));
        let stream = MapRequest { stream: true, compress: "zstd".into(), ..MapRequest::default() };
        link.handle_request(ControlRequest::StreamMap { id: RequestId(2), request: Box::new(stream) });
        assert_eq!(next(&mut link).await, ControlEvent::Opened { id: RequestId(2) });
        let ControlEvent::Map { response, .. } = next(&mut link).await else { panic!("no map") };
        assert_eq!(response.domain, "first");
        let ControlEvent::Map { response, .. } = next(&mut link).await else { panic!("no map") };
        assert!(response.keep_alive);
        assert_eq!(next(&mut link).await, ControlEvent::Closed { id: RequestId(2) });
        link.handle_request(ControlRequest::Update { id: RequestId(3), request: Box::default() });
        assert_eq!(next(&mut link).await, ControlEvent::Updated { id: RequestId(3) });
        link.handle_request(ControlRequest::Register { id: RequestId(4), request: Box::default() });
        let ControlEvent::Registered { response, .. } = next(&mut link).await else { panic!("not registered") };
        assert_eq!(response.auth_url, "u");
        assert_eq!(server.connections.load(SeqCst), 1, "early payload: {early}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn requests_that_come_while_it_is_connected_share_the_connection_and_its_failure() {
    let server = StandIn::start(true, |_, _| Answer::ok()).await;
    let mut link = link();
    link.handle_request(ControlRequest::Connect(server.server()));
    for id in 0..10 {
        link.handle_request(ControlRequest::Update { id: RequestId(id), request: Box::default() });
    }
    for _ in 0..10 {
        assert!(matches!(next(&mut link).await, ControlEvent::Updated { .. }));
    }
    assert_eq!(server.connections.load(SeqCst), 1);

    let gone = server.server();
    drop(server);
    link.handle_request(ControlRequest::Connect(gone));
    for id in 10..20 {
        link.handle_request(ControlRequest::Update { id: RequestId(id), request: Box::default() });
    }
    for _ in 0..10 {
        let failure = failure(&mut link).await;
        assert_eq!(failure.kind, FailureKind::Unreachable);
        assert!(failure.text.starts_with("cannot connect to 127.0.0.1 port "), "{}", failure.text);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_connection_that_broke_is_made_anew_by_the_next_request() {
    let server =
        StandIn::start(true, |_, body| Answer { hangs: body.contains("\"Stream\":true"), ..Answer::ok() }).await;
    let mut link = link();
    link.handle_request(ControlRequest::Connect(server.server()));
    let stream = MapRequest { stream: true, ..MapRequest::default() };
    link.handle_request(ControlRequest::StreamMap { id: RequestId(1), request: Box::new(stream) });
    assert_eq!(next(&mut link).await, ControlEvent::Opened { id: RequestId(1) });
    server.break_connections();
    let broken = failure(&mut link).await;
    assert_eq!(broken.kind, FailureKind::Unreachable);
    assert!(broken.text.starts_with("the map stream broke: "), "{}", broken.text);
    link.handle_request(ControlRequest::Update { id: RequestId(2), request: Box::default() });
    assert_eq!(next(&mut link).await, ControlEvent::Updated { id: RequestId(2) });
    assert_eq!(server.connections.load(SeqCst), 2);
}

#[tokio::test(flavor = "current_thread")]
async fn nothing_is_said_about_what_was_cancelled() {
    let server =
        StandIn::start(true, |_, body| Answer { hangs: body.contains("\"Stream\":true"), ..Answer::ok() }).await;
    let mut link = link();
    link.handle_request(ControlRequest::Connect(server.server()));
    let stream = MapRequest { stream: true, ..MapRequest::default() };
    link.handle_request(ControlRequest::StreamMap { id: RequestId(1), request: Box::new(stream) });
    link.handle_request(ControlRequest::Update { id: RequestId(2), request: Box::default() });
    link.handle_request(ControlRequest::Cancel { id: RequestId(1) });
    assert_eq!(next(&mut link).await, ControlEvent::Updated { id: RequestId(2) });
    link.handle_request(ControlRequest::Update { id: RequestId(3), request: Box::default() });
    link.handle_request(ControlRequest::Disconnect);
    link.handle_request(ControlRequest::Connect(server.server()));
    link.handle_request(ControlRequest::Update { id: RequestId(4), request: Box::default() });
    assert_eq!(next(&mut link).await, ControlEvent::Updated { id: RequestId(4) });
}

#[tokio::test(flavor = "current_thread")]
async fn a_request_before_a_server_was_named_fails() {
    let mut link = link();
    link.handle_request(ControlRequest::Update { id: RequestId(1), request: Box::default() });
    let expected = Failure { kind: FailureKind::Unreachable, text: "no server was named".into() };
    assert_eq!(failure(&mut link).await, expected);
    link.handle_request(ControlRequest::Update { id: RequestId(2), request: Box::default() });
    link.handle_request(ControlRequest::Cancel { id: RequestId(2) });
    link.handle_request(ControlRequest::Update { id: RequestId(3), request: Box::default() });
    assert!(matches!(next(&mut link).await, ControlEvent::Failed { id: RequestId(3), .. }));
}

#[tokio::test(flavor = "current_thread")]
async fn what_a_server_refuses_is_told_with_its_words() {
    let server = StandIn::start(true, |path, body| match (path, body.contains("\"Stream\":true")) {
        ("/machine/map", true) => {
            let chunks = [Bytes::from_static(&[3, 0, 0, 0, b'{', b'x', b'}'])].into();
            Answer { chunks, ..Answer::ok() }
        }
        ("/machine/map", false) => {
            let chunks = [Bytes::from_static(b"come back later\n"), Bytes::from(vec![b'x'; 5000])].into();
            Answer { status: 429, retry_after: Some("7"), chunks, ..Answer::ok() }
        }
        _ => Answer { chunks: [Bytes::from_static(b"no json")].into(), ..Answer::ok() },
    })
    .await;
    let mut link = link();
    link.handle_request(ControlRequest::Connect(server.server()));
    link.handle_request(ControlRequest::Update { id: RequestId(1), request: Box::default() });
    let refused = failure(&mut link).await;
    let kind = FailureKind::Status { code: 429, retry_after: Some(Duration::from_secs(7)) };
    assert_eq!((refused.kind, refused.text.len()), (kind, 200));
    assert!(refused.text.starts_with("come back later"), "{}", refused.text);

    let register = RegisterRequest { followup: "https://x".into(), ..RegisterRequest::default() };
    link.handle_request(ControlRequest::Register { id: RequestId(2), request: Box::new(register) });
    assert_eq!(failure(&mut link).await.kind, FailureKind::Malformed);
    let stream = MapRequest { stream: true, ..MapRequest::default() };
    link.handle_request(ControlRequest::StreamMap { id: RequestId(3), request: Box::new(stream) });
    assert_eq!(next(&mut link).await, ControlEvent::Opened { id: RequestId(3) });
    assert_eq!(failure(&mut link).await.kind, FailureKind::Malformed);
}

#[tokio::test(flavor = "current_thread")]
async fn another_server_than_the_key_says_is_not_believed() {
    let server = StandIn::start(true, |_, _| Answer::ok()).await;
    let mut link = link();
    let other = MachinePrivate::from_bytes([9; 32]).public();
    link.handle_request(ControlRequest::Connect(Server { key: other, ..server.server() }));
    link.handle_request(ControlRequest::Update { id: RequestId(1), request: Box::default() });
    // It cannot read what was meant for another, and closes.
    assert_eq!(failure(&mut link).await.kind, FailureKind::Unreachable);
    assert_eq!(server.connections.load(SeqCst), 0);
}

#[tokio::test(flavor = "current_thread")]
async fn what_is_said_of_a_server_that_is_away_is_about_the_port_that_its_address_names() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    // An address behind which there may be more, so that port 443 is tried too.
    let url: ControlUrl = format!("http://[::ffff:127.0.0.1]:{port}").parse().unwrap();
    let mut link = link();
    let key = MachinePrivate::from_bytes([9; 32]).public();
    let server = StandIn::start(true, |_, _| Answer::ok()).await;
    link.handle_request(ControlRequest::Connect(Server { url, key, ..server.server() }));
    for id in 1..=2 {
        // The second time over TLS first.
        link.handle_request(ControlRequest::Update { id: RequestId(id), request: Box::default() });
        let failure = failure(&mut link).await;
        assert_eq!(failure.kind, FailureKind::Unreachable);
        assert!(failure.text.contains(&format!(" port {port}: ")), "{}", failure.text);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn what_is_no_control_server_is_said() {
    let ask = async |answer: &'static str| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: ControlUrl = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.readable().await.unwrap();
                let _ = stream.try_read(&mut [0; 4096]);
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            }
        });
        let mut link = link();
        link.handle_request(ControlRequest::FetchKey { id: RequestId(1), server: url });
        failure(&mut link).await
    };
    let other = ask("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(other.kind, FailureKind::Status { code: 404, retry_after: None });
    assert!(other.text.contains("no control server is there"), "{}", other.text);
    for body in ["", "{", "mkey:00", r#"{"publicKey":""}"#, r#"{"legacyPublicKey":"mkey:00"}"#] {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        assert_eq!(ask(answer.leak()).await.kind, FailureKind::Malformed, "{body}");
    }
    assert_eq!(ask("SSH-2.0-x\r\n").await.kind, FailureKind::Unreachable);
    let round = ask("HTTP/1.1 302 Found\r\nLocation: /key?v=1\r\nContent-Length: 0\r\n\r\n").await;
    assert!(round.text.contains("circle"), "{}", round.text);
}

#[tokio::test(flavor = "current_thread")]
async fn redirects_lead_to_the_key_and_certificates_must_be_good() {
    let server = StandIn::start(true, |_, _| Answer::ok()).await;
    let before = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: ControlUrl = format!("http://{}", before.local_addr().unwrap()).parse().unwrap();
    let to = format!("{}/key?v=119", server.url());
    tokio::spawn(async move {
        let (stream, _) = before.accept().await.unwrap();
        let answer = service_fn(move |_| {
            let response = Response::builder().status(302).header(LOCATION, &to).body(Full::new(Bytes::new()));
            async move { Ok::<_, Infallible>(response.unwrap()) }
        });
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
    });
    let mut link = link();
    link.handle_request(ControlRequest::FetchKey { id: RequestId(1), server: url });
    assert_eq!(next(&mut link).await, ControlEvent::Key { id: RequestId(1), key: server.key.public() });

    // Something that is no TLS.
    let https: ControlUrl = server.url().to_string().replace("http://", "https://").parse().unwrap();
    link.handle_request(ControlRequest::FetchKey { id: RequestId(2), server: https });
    let failure = failure(&mut link).await;
    assert_eq!((failure.kind, failure.text.as_str()), (FailureKind::Untrusted, "127.0.0.1 does not speak TLS"));
}

#[tokio::test(flavor = "current_thread")]
async fn over_tls_the_certificate_counts_for_the_key_and_noise_for_the_rest() {
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let der = certificate.cert.der().clone();
    let key = PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let tls = TlsAcceptor::from(Arc::new(config.with_single_cert(vec![der.clone()], key).unwrap()));
    let server = StandIn::start_with(Some(tls), true, |_, _| Answer::ok()).await;

    let known = ControlDialer { net: Net::Host, trust: Trust::of(vec![der.to_vec()]) };
    let mut known = ControlLink::new(&Seed::from_number(1), known);
    let mut unknown = link();
    let url: ControlUrl = format!("https://localhost:{}", server.address.port()).parse().unwrap();
    known.handle_request(ControlRequest::FetchKey { id: RequestId(1), server: url.clone() });
    assert_eq!(next(&mut known).await, ControlEvent::Key { id: RequestId(1), key: server.key.public() });
    unknown.handle_request(ControlRequest::FetchKey { id: RequestId(1), server: url.clone() });
    let failure = failure(&mut unknown).await;
    assert_eq!(failure.kind, FailureKind::Untrusted);
    assert!(failure.text.starts_with("certificate of localhost is "), "{}", failure.text);
    // Who has the key is the server, whatever certificate it shows.
    unknown.handle_request(ControlRequest::Connect(Server { url, ..server.server() }));
    unknown.handle_request(ControlRequest::Update { id: RequestId(2), request: Box::default() });
    assert_eq!(next(&mut unknown).await, ControlEvent::Updated { id: RequestId(2) });
}

type Handler = dyn Fn(&str, &str) -> Answer + Send + Sync;

/// A control server that answers as a test wants.
struct StandIn {
    address: SocketAddr,
    key: MachinePrivate,
    /// Noise connections that were made.
    connections: Arc<AtomicUsize>,
    tasks: Arc<Mutex<Vec<AbortHandle>>>,
    listener: AbortHandle,
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.listener.abort();
        self.break_connections();
    }
}

impl StandIn {
    async fn start(early: bool, handler: impl Fn(&str, &str) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_with(None, early, handler).await
    }

    async fn start_with(
        tls: Option<TlsAcceptor>,
        early: bool,
        handler: impl Fn(&str, &str) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let key = MachinePrivate::from_bytes([5; 32]);
        let (connections, tasks) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let shared = Arc::new(Shared {
            key: key.clone(),
            early,
            connections: Arc::clone(&connections),
            tasks: Arc::clone(&tasks),
            handler: Box::new(handler),
        });
        let listener = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (outer, tls) = (Arc::clone(&shared), tls.clone());
                let task = tokio::spawn(async move {
                    match tls {
                        // Who does not believe the certificate breaks off.
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                outer.outer(stream).await;
                            }
                        }
                        None => outer.outer(stream).await,
                    }
                });
                shared.keep(task.abort_handle());
            }
        });
        Self { address, key, connections, tasks, listener: listener.abort_handle() }
    }

    fn url(&self) -> ControlUrl {
        format!("http://{}", self.address).parse().unwrap()
    }

    fn server(&self) -> Server {
        Server { url: self.url(), key: self.key.public(), machine: MachinePrivate::from_bytes([3; 32]) }
    }

    fn break_connections(&self) {
        self.tasks.lock().unwrap().drain(..).for_each(|task| task.abort());
    }
}

struct Shared {
    key: MachinePrivate,
    early: bool,
    connections: Arc<AtomicUsize>,
    tasks: Arc<Mutex<Vec<AbortHandle>>>,
    handler: Box<Handler>,
}

impl Shared {
    fn keep(&self, task: AbortHandle) {
        self.tasks.lock().unwrap().push(task);
    }

    async fn outer<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(self: Arc<Self>, stream: S) {
        let service = service_fn(move |request: Request<Incoming>| {
            let shared = Arc::clone(&self);
            async move { Ok::<_, Infallible>(shared.answer_outer(request)) }
        });
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
    }

    fn answer_outer(self: Arc<Self>, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() == "/key" {
            let keys = format!(r#"{{"legacyPublicKey":"mkey:{:064}","publicKey":"{}"}}"#, 0, self.key.public());
            return Response::new(Full::from(keys));
        }
        assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/ts2021"));
        assert_eq!(request.headers()[UPGRADE], "tailscale-control-protocol");
        let initiation = BASE64.decode(request.headers()["x-tailscale-handshake"].as_bytes()).unwrap();
        let shared = Arc::clone(&self);
        let task = tokio::spawn(async move {
            let mut stream = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
            let Ok(opened) = Initiation::open(&initiation, &shared.key) else { return };
            assert_eq!(opened.version(), 119);
            let mut rng = Seed::from_number(8).stream("server", 0);
            let (response, sealer, opener) = opened.respond(&mut rng).unwrap();
            stream.write_all(&response).await.unwrap();
            let mut noise = NoiseIo::of_server(stream, sealer, opener, Vec::new());
            if shared.early {
                noise.write_all(&EarlyNoise::default().to_bytes()).await.unwrap();
            }
            shared.connections.fetch_add(1, SeqCst);
            let service = service_fn(move |request: Request<Incoming>| {
                let shared = Arc::clone(&shared);
                async move {
                    let path = request.uri().path().to_owned();
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let answer = (shared.handler)(&path, core::str::from_utf8(&body).unwrap());
                    let mut response = Response::builder().status(answer.status);
                    if let Some(after) = answer.retry_after {
                        response = response.header(RETRY_AFTER, after);
                    }
                    Ok::<_, Infallible>(response.body(answer).unwrap())
                }
            });
            let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(noise), service).await;
        });
        self.keep(task.abort_handle());
        let response = Response::builder().status(101).header(UPGRADE, "tailscale-control-protocol");
        response.header(CONNECTION, "upgrade").body(Full::new(Bytes::new())).unwrap()
    }
}

/// What a server answers.
struct Answer {
    status: u16,
    retry_after: Option<&'static str>,
    chunks: VecDeque<Bytes>,
    /// It never ends.
    hangs: bool,
}

impl Answer {
    fn ok() -> Self {
        Self { status: 200, retry_after: None, chunks: VecDeque::new(), hangs: false }
    }

    fn json(value: &impl serde::Serialize) -> Self {
        Self { chunks: [Bytes::from(serde_json::to_vec(value).unwrap())].into(), ..Self::ok() }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.chunks.pop_front() {
            Some(chunk) => Poll::Ready(Some(Ok(Frame::data(chunk)))),
            None if self.hangs => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}

fn link() -> ControlLink {
    let root = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let dialer = ControlDialer { net: Net::Host, trust: Trust::of(vec![root.cert.der().to_vec()]) };
    ControlLink::new(&Seed::from_number(1), dialer)
}

async fn next(link: &mut ControlLink) -> ControlEvent {
    loop {
        if let Some(event) = link.try_recv() {
            return event;
        }
        timeout(LONG, poll_fn(|cx| link.poll_ready(cx))).await.expect("nothing came");
    }
}

async fn failure(link: &mut ControlLink) -> Failure {
    match next(link).await {
        ControlEvent::Failed { failure, .. } => failure,
        other => panic!("no failure: {other:?}"),
    }
}
