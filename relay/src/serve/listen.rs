//! Listeners, threads, signals: the daemon from its first socket to its end.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    future::Future,
    io,
    net::{SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use rustls::ServerConfig;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream, UdpSocket},
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing::{info, warn};

use super::{
    failure::{Exit, Failure},
    http,
    link::{self, Shop},
    verify::Verifier,
};
use crate::{directory::ConnId, hub::Hub, limits, stun};

/// A client that is gone without a word is noticed after this, when something is sent to it. derper: 15 s.
const USER_TIMEOUT: Duration = Duration::from_secs(15);
/// And after this when nothing is. derper: 10 minutes.
const KEEPALIVE: Duration = Duration::from_secs(600);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;
/// Pause after an accept that failed, as when files run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Clients get this long to take their last frame.
const GRACE: Duration = Duration::from_secs(1);

/// Where to listen.
#[derive(Debug)]
pub(super) struct Addresses {
    pub(super) derp: SocketAddr,
    pub(super) stun: SocketAddr,
    pub(super) metrics: Option<SocketAddr>,
}

/// Serves until a signal says to end.
pub(super) fn serve(
    addresses: &Addresses,
    hub: &Arc<Hub>,
    tls: Option<Arc<ServerConfig>>,
    verifier: Option<Verifier>,
) -> Result<(), Failure> {
    let bug = |error: io::Error| Failure::new(Exit::Bug, "runtime", format!("cannot start: {error}"));
    let cores = thread::available_parallelism().map_or(1, usize::from);
    // Listeners that share a port would share it with another relay too: find out first.
    drop(StdTcpListener::bind(addresses.derp).map_err(|error| in_use(addresses.derp, &error))?);
    let first = tcp(addresses.derp)?;
    // Port 0 stands for one that is free: the others take the same.
    let derp = first.local_addr().map_err(bug)?;
    let mut listeners = vec![first];
    for _ in 1..cores {
        listeners.push(tcp(derp)?);
    }
    let stun = StdUdpSocket::bind(addresses.stun).map_err(|error| in_use(addresses.stun, &error))?;
    stun.set_nonblocking(true).map_err(bug)?;
    let metrics = addresses.metrics.map(tcp).transpose()?;
    let mut ready = format!("ready derp={derp} stun={}", stun.local_addr().map_err(bug)?);
    if let Some(metrics) = &metrics {
        ready += &format!(" metrics={}", metrics.local_addr().map_err(bug)?);
    }

    let (close, closing) = watch::channel(false);
    let shop = Arc::new(Shop { hub: Arc::clone(hub), tls, verifier, closing });
    let (ids, open) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut threads = Vec::new();
    for listener in listeners {
        let (runtime, shop) = (runtime().map_err(bug)?, Arc::clone(&shop));
        let (ids, open) = (Arc::clone(&ids), Arc::clone(&open));
        threads.push(thread::spawn(move || run(&runtime, shop.closing.clone(), accept(listener, shop, ids, open))));
    }
    let main = runtime().map_err(bug)?;
    main.block_on(async {
        let (mut term, mut int, mut hup) = (
            signal(SignalKind::terminate()).map_err(bug)?,
            signal(SignalKind::interrupt()).map_err(bug)?,
            signal(SignalKind::hangup()).map_err(bug)?,
        );
        tokio::spawn(answer_stun(UdpSocket::from_std(stun).map_err(bug)?, Arc::clone(hub)));
        if let Some(metrics) = metrics {
            tokio::spawn(serve_metrics(TcpListener::from_std(metrics).map_err(bug)?, Arc::clone(hub)));
        }
        super::print(&ready);
        info!(%derp, cores, "ready");
        loop {
            tokio::select! {
                _ = term.recv() => return Ok(()),
                _ = int.recv() => return Ok(()),
                // There is no configuration to read again.
                _ = hup.recv() => {}
            }
        }
    })?;
    info!("ending");
    let _ = close.send(true);
    for thread in threads {
        if thread.join().is_err() {
            return Err(Failure::new(Exit::Bug, "panic", "a thread of the relay panicked"));
        }
    }
    Ok(())
}

/// Runs one core until the daemon ends, and a little longer for last words.
fn run(runtime: &Runtime, mut closing: watch::Receiver<bool>, accept: impl Future<Output = ()>) {
    runtime.block_on(async {
        tokio::select! {
            () = accept => {}
            _ = closing.changed() => tokio::time::sleep(GRACE).await,
        }
    });
}

async fn accept(listener: StdTcpListener, shop: Arc<Shop>, ids: Arc<AtomicU64>, open: Arc<AtomicUsize>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            warn!(%error, "cannot listen");
            return;
        }
    };
    loop {
        let (socket, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if open.fetch_add(1, Relaxed) >= limits::CONNECTIONS || prepare(&socket).is_err() {
            open.fetch_sub(1, Relaxed);
            continue;
        }
        let id = ConnId(ids.fetch_add(1, Relaxed));
        let (shop, open) = (Arc::clone(&shop), Arc::clone(&open));
        tokio::spawn(async move {
            link::serve(socket, from, id, shop).await;
            open.fetch_sub(1, Relaxed);
        });
    }
}

fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))
}

async fn answer_stun(socket: UdpSocket, hub: Arc<Hub>) {
    let mut datagram = [0; 1500];
    loop {
        // Errors are those of earlier answers that could not be delivered.
        let Ok((length, from)) = socket.recv_from(&mut datagram).await else { continue };
        if let Some(answer) = stun::answer(&datagram[..length], from, &hub.stats) {
            // One that does not fit is asked for again.
            let _ = socket.try_send_to(&answer, from);
        }
    }
}

/// One request at a time: whoever asks here is the operator.
async fn serve_metrics(listener: TcpListener, hub: Arc<Hub>) {
    loop {
        let Ok((mut socket, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let answer = async {
            let mut head = Vec::new();
            while head.len() < http::HEAD_BYTES && !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
                socket.readable().await?;
                match socket.try_read_buf(&mut head) {
                    Ok(0) => return Ok(()),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            let response = if head.starts_with(b"GET /metrics ") {
                let gauge = format!("mesh_relay_clients {}\n", hub.directory.len());
                http::response("200 OK", "", &(hub.stats.to_prometheus() + &gauge))
            } else {
                http::response("404 Not Found", "", "metrics are at /metrics\n")
            };
            socket.write_all(response.as_bytes()).await?;
            socket.shutdown().await
        };
        let _ = tokio::time::timeout(limits::GREETING, answer).await;
    }
}

fn tcp(address: SocketAddr) -> Result<StdTcpListener, Failure> {
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(StdTcpListener::from(socket))
    };
    bind().map_err(|error| in_use(address, &error))
}

fn in_use(address: SocketAddr, error: &io::Error) -> Failure {
    let exit = if error.kind() == io::ErrorKind::PermissionDenied { Exit::NotPermitted } else { Exit::Refused };
    Failure::new(exit, "cannot-listen", format!("cannot listen on {address}: {error}"))
        .hint("give another address with --listen and --stun-listen, or end what listens there")
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
