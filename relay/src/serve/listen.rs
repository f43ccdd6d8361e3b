//! Listeners, threads, signals: the daemon from its first socket to its end.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    future::{Future, pending},
    io,
    net::{SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket},
    panic::AssertUnwindSafe,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener as HostListener, UdpSocket},
    sync::{Notify, watch},
    task::{JoinError, JoinSet},
    time::timeout,
};
use tracing::{error, info, warn};
use transports::{
    net::{Net, TcpListener, TcpStream},
    notify,
    program::{
        Exit, Failure, Signalled, Signals, cannot_start,
        listener::{in_use, shared_tcp, tcp, udp},
        print, runtime,
    },
};

use super::{http, link, verify::Asker};
use crate::{directory::ConnId, gate::Pass, hub::Hub, limits, stun};

/// A client that is gone without a word is noticed after this, when something is sent to it. derper: 15 s.
const USER_TIMEOUT: Duration = Duration::from_secs(15);
/// And after this when nothing is. derper: 10 minutes.
const KEEPALIVE: Duration = Duration::from_secs(600);
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

/// What every connection of a daemon needs.
pub(super) struct Shop {
    /// Whose clock counts.
    pub(super) net: Net,
    pub(super) hub: Arc<Hub>,
    pub(super) tls: RwLock<Option<Arc<ServerConfig>>>,
    pub(super) asker: Option<Asker>,
}

impl Shop {
    /// What the next connection is wrapped in.
    pub(super) fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.tls.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From the next connection on.
    pub(super) fn set_tls(&self, tls: Option<Arc<ServerConfig>>) {
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = tls;
    }
}

/// A relay that accepts connections.
pub(super) struct Running {
    pub(super) derp: SocketAddr,
    pub(super) stun: SocketAddr,
    pub(super) metrics: Option<SocketAddr>,
    close: watch::Sender<bool>,
    threads: Vec<thread::JoinHandle<()>>,
    lost: Arc<Notify>,
}

impl Running {
    /// Opens the sockets and starts a thread for each core, and one for what is asked seldom.
    pub(super) fn start(addresses: &Addresses, shop: &Arc<Shop>) -> Result<Self, Failure> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        // Listeners that share a port would share it with another relay too: find out first.
        drop(StdTcpListener::bind(addresses.derp).map_err(|error| in_use(addresses.derp, &error))?);
        let first = shared_tcp(addresses.derp)?;
        // Port 0 stands for one that is free: the others take the same.
        let derp = first.local_addr().map_err(|error| cannot_start(&error))?;
        let mut listeners = vec![first];
        for _ in 1..cores {
            listeners.push(shared_tcp(derp)?);
        }
        let stun = udp(addresses.stun)?;
        let metrics = addresses.metrics.map(tcp).transpose()?;
        let (close, closing) = watch::channel(false);
        let mut running = Self {
            derp,
            stun: stun.local_addr().map_err(|error| cannot_start(&error))?,
            metrics: metrics
                .as_ref()
                .map(StdTcpListener::local_addr)
                .transpose()
                .map_err(|error| cannot_start(&error))?,
            close,
            threads: Vec::new(),
            lost: Arc::new(Notify::new()),
        };
        let ids = Arc::new(AtomicU64::new(0));
        for listener in listeners {
            running.spawn(accept_on(listener, Arc::clone(shop), Arc::clone(&ids), closing.clone()))?;
        }
        running.spawn(answer_others(stun, metrics, Arc::clone(&shop.hub), closing))?;
        Ok(running)
    }

    /// Runs a part of the relay on a thread of its own.
    fn spawn(&mut self, work: impl Future<Output = ()> + Send + 'static) -> Result<(), Failure> {
        let (runtime, closing, lost) = (runtime()?, self.close.subscribe(), Arc::clone(&self.lost));
        self.threads.push(thread::spawn(move || {
            let ended = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(work)));
            if ended.is_err() || !*closing.borrow() {
                lost.notify_one();
            }
        }));
        Ok(())
    }

    /// Waits until a thread has ended by itself, which is a bug.
    pub(super) async fn lost(&self) -> Failure {
        self.lost.notified().await;
        Failure::new(Exit::Bug, "lost-thread", "a thread of the relay ended by itself")
    }

    /// Says last words to all clients and ends.
    pub(super) fn stop(self) -> Result<(), Failure> {
        // Nobody listens when all threads have ended already.
        let _ = self.close.send(true);
        for thread in self.threads {
            if thread.join().is_err() {
                return Err(Failure::new(Exit::Bug, "panic", "a thread of the relay panicked"));
            }
        }
        Ok(())
    }
}

/// Serves until a signal says to end; `reload` is called when one says to read the configuration again.
pub(super) fn serve(addresses: &Addresses, shop: &Arc<Shop>, reload: impl Fn(&Shop)) -> Result<(), Failure> {
    let running = Running::start(addresses, shop)?;
    let mut ready = format!("ready derp={} stun={}", running.derp, running.stun);
    if let Some(metrics) = running.metrics {
        ready += &format!(" metrics={metrics}");
    }
    runtime()?.block_on(async {
        let mut signals = Signals::new()?;
        print(&ready);
        notify::ready();
        info!("{ready}");
        loop {
            tokio::select! {
                signalled = signals.next() => match signalled {
                    Signalled::End => return Ok(()),
                    Signalled::Reload => reload(shop),
                },
                failure = running.lost() => return Err(failure),
            }
        }
    })?;
    info!("ending");
    notify::stopping();
    running.stop()
}

/// Answers STUN and whoever asks for metrics, until the relay ends.
async fn answer_others(
    stun: StdUdpSocket,
    metrics: Option<StdTcpListener>,
    hub: Arc<Hub>,
    mut closing: watch::Receiver<bool>,
) {
    let open = || Ok::<_, io::Error>((UdpSocket::from_std(stun)?, metrics.map(HostListener::from_std).transpose()?));
    let (stun, metrics) = match open() {
        Ok(open) => open,
        Err(error) => return error!(%error, "cannot listen"),
    };
    let metrics = async {
        match metrics {
            Some(metrics) => serve_metrics(metrics, Arc::clone(&hub)).await,
            None => pending().await,
        }
    };
    tokio::select! {
        () = answer_stun(stun, Arc::clone(&hub)) => {}
        () = metrics => {}
        _ = closing.wait_for(|closing| *closing) => {}
    }
}

/// Runs one core until the daemon ends, and a little longer for last words.
async fn accept_on(listener: StdTcpListener, shop: Arc<Shop>, ids: Arc<AtomicU64>, closing: watch::Receiver<bool>) {
    match HostListener::from_std(listener) {
        Ok(listener) => accept(TcpListener::Host(listener), shop, ids, closing).await,
        Err(error) => error!(%error, "cannot listen"),
    }
}

/// The same on a listener of any network.
pub(super) async fn accept(
    listener: TcpListener,
    shop: Arc<Shop>,
    ids: Arc<AtomicU64>,
    mut closing: watch::Receiver<bool>,
) {
    let mut tasks = JoinSet::new();
    let (mut refused, mut failed) = (0_u64, 0_u64);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = tasks.join_next() => {
                note_end(ended);
                continue;
            }
            _ = closing.wait_for(|closing| *closing) => break,
        };
        let (socket, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                failed += 1;
                // Once for each doubling, as below: it may be that strangers have taken all files.
                if failed.is_power_of_two() {
                    warn!(%error, failed, "cannot accept");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match Pass::new(Arc::clone(&shop.hub), from) {
            Ok(pass) if prepare(&socket).is_ok() => {
                let id = ConnId(ids.fetch_add(1, Relaxed));
                tasks.spawn(link::serve(socket, pass, id, Arc::clone(&shop), closing.clone()));
            }
            // It is gone already.
            Ok(_) => {}
            Err(reason) => {
                refused += 1;
                // Once for each doubling: a flood must not fill the log.
                if refused.is_power_of_two() {
                    warn!(%from, reason = reason.label(), refused, "connections are turned away");
                }
            }
        }
    }
    drop(listener);
    let all = async {
        while let Some(ended) = tasks.join_next().await {
            note_end(ended);
        }
    };
    // Those that do not read go without last words.
    let _ = timeout(GRACE, all).await;
}

/// A client whose task panicked is closed by that; the others are served.
fn note_end(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        error!(%error, "a connection ended by a bug");
    }
}

fn prepare(socket: &TcpStream) -> io::Result<()> {
    let Some(socket) = socket.host() else { return Ok(()) };
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    socket.set_tcp_notsent_lowat(limits::UNSENT_BYTES)?;
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
async fn serve_metrics(listener: HostListener, hub: Arc<Hub>) {
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
                http::response("200 OK", "", &(metrics(&hub) + &broken_invariants()))
            } else {
                http::response("404 Not Found", "", "metrics are at /metrics\n")
            };
            socket.write_all(response.as_bytes()).await?;
            socket.shutdown().await
        };
        // Whoever asked has gone, or will ask again.
        let _ = timeout(limits::GREETING, answer).await;
    }
}

/// Of the whole process, so an embedded relay leaves it to the program it is in.
fn broken_invariants() -> String {
    let total = mesh_core::invariant::broken_total();
    format!("# TYPE mesh_broken_invariants_total counter\nmesh_broken_invariants_total {total}\n")
}

/// Counters, and what is the case now.
pub(super) fn metrics(hub: &Hub) -> String {
    let (connections, ungreeted) = hub.connections();
    let clients = hub.directory.len();
    let now = format!(
        "mesh_relay_clients {clients}\nmesh_relay_connections {connections}\nmesh_relay_ungreeted {ungreeted}\n"
    );
    hub.stats.to_prometheus() + &now
}
