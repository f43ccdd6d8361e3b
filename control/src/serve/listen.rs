//! Listeners: from a socket to a request.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    convert::Infallible,
    io,
    net::TcpListener as StdTcpListener,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_core::{
    key::{MachinePrivate, MachinePublic},
    rng::Rng,
};
use relay::serve::embedded::Embedded;
use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tracing::{trace, warn};

use super::{
    desk::Desk,
    limits, pages,
    pass::{Door, Pass},
    render_pool::RenderPool,
};
use crate::coordinator::ConnId;

/// A node that is gone without a word is noticed after this, when something is sent to it.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// And after this when nothing is, as while somebody signs in.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// Pause after an accept that failed, as when files run out.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What every connection needs.
pub(super) struct Shop {
    pub(super) key: MachinePrivate,
    pub(super) public: MachinePublic,
    /// What handshakes draw from: each gets a stream that is split off.
    pub(super) dice: Mutex<Rng>,
    pub(super) server_url: String,
    pub(super) desk: Desk,
    pub(super) pool: RenderPool,
    pub(super) door: Door,
    pub(super) tls: RwLock<Option<Arc<ServerConfig>>>,
    /// Connections accepted, and of them those turned away.
    pub(super) accepted: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) conns: AtomicU64,
    /// The relay in this process.
    pub(super) relay: Option<Embedded>,
}

impl Shop {
    /// A number for a connection of a node.
    pub(super) fn next_conn(&self) -> ConnId {
        ConnId(self.conns.fetch_add(1, Relaxed))
    }

    /// What a handshake draws from.
    pub(super) fn split_dice(&self) -> Rng {
        self.dice.lock().unwrap_or_else(PoisonError::into_inner).split()
    }

    /// What the next connection is wrapped in.
    fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.tls.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From the next connection on.
    pub(super) fn set_tls(&self, tls: Arc<ServerConfig>) {
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = Some(tls);
    }
}

/// What requests come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    /// TLS.
    Tls,
    /// Plain HTTP, and there is nothing else.
    Plain,
    /// Plain HTTP beside TLS, for what Noise protects.
    Beside,
}

/// Accepts connections until it is dropped.
pub(super) async fn accept(listener: StdTcpListener, wire: Wire, shop: Arc<Shop>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut failed = 0_u64;
    loop {
        let (socket, from) = match listener.accept().await {
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
        shop.accepted.fetch_add(1, Relaxed);
        match shop.door.enter(from) {
            Ok(pass) if prepare(&socket).is_ok() => {
                tokio::spawn(serve(socket, wire, Arc::clone(&shop), Arc::new(pass)));
            }
            // It is gone already.
            Ok(_) => {}
            Err(reason) => {
                let refused = shop.refused.fetch_add(1, Relaxed) + 1;
                // Once for each doubling: a flood must not fill the log.
                if refused.is_power_of_two() {
                    warn!(%from, reason = reason.label(), refused, "connections are turned away");
                }
            }
        }
    }
}

async fn serve(socket: TcpStream, wire: Wire, shop: Arc<Shop>, pass: Arc<Pass>) {
    let from = pass.from();
    tokio::select! {
        // What was upgraded has a task of its own by then.
        () = pass.lost() => trace!(%from, "a connection made room for another"),
        () = spoken(socket, wire, shop, pass) => {}
    }
}

async fn spoken(socket: TcpStream, wire: Wire, shop: Arc<Shop>, pass: Arc<Pass>) {
    match (wire, shop.tls()) {
        (Wire::Tls, Some(tls)) => match timeout(limits::HANDSHAKE, TlsAcceptor::from(tls).accept(socket)).await {
            Ok(Ok(stream)) => requests(stream, wire, shop, pass).await,
            Ok(Err(error)) => trace!(from = %pass.from(), %error, "no TLS"),
            Err(_) => trace!(from = %pass.from(), "no TLS in time"),
        },
        (Wire::Tls, None) => {}
        (Wire::Plain | Wire::Beside, _) => requests(socket, wire, shop, pass).await,
    }
}

pub(super) async fn requests<S>(stream: S, wire: Wire, shop: Arc<Shop>, pass: Arc<Pass>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let from = pass.from();
    let service = service_fn(move |request| {
        let (shop, pass) = (Arc::clone(&shop), Arc::clone(&pass));
        async move { Ok::<_, Infallible>(pages::answer(request, wire, &shop, &pass).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEAD)
        .max_buf_size(limits::HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        trace!(%from, %error, "a connection ended");
    }
}

fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))
}
