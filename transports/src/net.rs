//! Where streams lead and what time it is there: the host, or a simulated network of the crate turmoil.
//!
//! Everything of this crate that opens TCP connections takes a [`Net`], and so do the shells of our servers. The
//! second variant exists with the feature `turmoil` alone, is chosen at run time, and changes nothing else: tests of
//! the asynchronous shells run the very code of the daemons under drops, partitions and restarts that a seed decides.

use core::{
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};
use std::io;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener as HostListener, TcpSocket, TcpStream as HostStream},
};
use tracing::debug;

use crate::{
    clock::{Clock, Timer},
    udp::BYPASS_MARK,
};

/// Where streams lead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Net {
    /// The host's network and clocks.
    #[default]
    Host,
    /// The network and the clock of the simulation that the caller runs in.
    #[cfg(feature = "turmoil")]
    Turmoil,
}

/// What is asked of a TCP connection beside what is common to all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpOptions {
    /// After so long without an acknowledgement the connection is dead.
    pub user_timeout: core::time::Duration,
    /// When to ask a silent network whether the other side is there.
    pub keepalive: core::time::Duration,
    /// Bytes that wait in the kernel unsent, when those are to be bounded.
    pub not_sent_bytes: Option<u32>,
}

impl Net {
    /// A connection to `address` that does not go through our own tunnel.
    ///
    /// # Errors
    /// When there is none.
    pub async fn connect(self, address: SocketAddr, options: TcpOptions) -> io::Result<TcpStream> {
        match self {
            Self::Host => {
                let kind = Type::STREAM.nonblocking().cloexec();
                let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
                if let Err(error) = socket.set_mark(BYPASS_MARK) {
                    debug!(%error, "socket is not marked");
                }
                let stream = TcpSocket::from_std_stream(socket.into()).connect(address).await?;
                stream.set_nodelay(true)?;
                let socket = SockRef::from(&stream);
                socket.set_tcp_user_timeout(Some(options.user_timeout))?;
                if let Some(bytes) = options.not_sent_bytes {
                    socket.set_tcp_notsent_lowat(bytes)?;
                }
                socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(options.keepalive))?;
                Ok(stream.into())
            }
            #[cfg(feature = "turmoil")]
            Self::Turmoil => turmoil::net::TcpStream::connect(address).await.map(Into::into),
        }
    }

    /// A clock of this world.
    #[must_use]
    pub fn clock(self) -> Clock {
        match self {
            Self::Host => Clock::new(),
            #[cfg(feature = "turmoil")]
            Self::Turmoil => Clock::simulated(),
        }
    }

    /// A timer on that clock, not set.
    ///
    /// # Errors
    /// When the process has too many files open.
    pub fn timer(self) -> io::Result<Timer> {
        match self {
            Self::Host => Timer::new(),
            #[cfg(feature = "turmoil")]
            Self::Turmoil => Ok(Timer::simulated()),
        }
    }
}

/// A listener of either world.
pub enum TcpListener {
    /// On the host's network.
    Host(HostListener),
    /// On a simulated one.
    #[cfg(feature = "turmoil")]
    Turmoil(turmoil::net::TcpListener),
}

impl core::fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Host(listener) => listener.fmt(f),
            #[cfg(feature = "turmoil")]
            Self::Turmoil(_) => f.write_str("TcpListener(turmoil)"),
        }
    }
}

impl TcpListener {
    /// The next connection, and who made it.
    ///
    /// # Errors
    /// When the process has too many files open, or the connection is gone already.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        match self {
            Self::Host(listener) => listener.accept().await.map(|(stream, from)| (stream.into(), from)),
            #[cfg(feature = "turmoil")]
            Self::Turmoil(listener) => listener.accept().await.map(|(stream, from)| (stream.into(), from)),
        }
    }
}

/// A TCP connection of either world, with what [`tokio::net::TcpStream`] offers of the same names.
#[derive(Debug)]
pub struct TcpStream(Inner);

#[derive(Debug)]
enum Inner {
    Host(HostStream),
    /// Behind a lock that nobody waits for, since looking at it changes it.
    #[cfg(feature = "turmoil")]
    Turmoil(std::sync::Mutex<turmoil::net::TcpStream>),
}

impl From<HostStream> for TcpStream {
    fn from(stream: HostStream) -> Self {
        Self(Inner::Host(stream))
    }
}

impl TcpStream {
    /// The other end.
    ///
    /// # Errors
    /// When it is not connected any more.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            Inner::Host(stream) => stream.peer_addr(),
            #[cfg(feature = "turmoil")]
            Inner::Turmoil(stream) => simulated::lock(stream).peer_addr(),
        }
    }

    /// Our own end.
    ///
    /// # Errors
    /// When it is not connected any more.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            Inner::Host(stream) => stream.local_addr(),
            #[cfg(feature = "turmoil")]
            Inner::Turmoil(stream) => simulated::lock(stream).local_addr(),
        }
    }

    /// The host's stream, for options that only it has.
    #[must_use]
    pub fn host(&self) -> Option<&HostStream> {
        match &self.0 {
            Inner::Host(stream) => Some(stream),
            #[cfg(feature = "turmoil")]
            Inner::Turmoil(_) => None,
        }
    }

    /// Waits until there may be something to read.
    ///
    /// # Errors
    /// When the stream is broken.
    pub async fn readable(&self) -> io::Result<()> {
        match &self.0 {
            Inner::Host(stream) => stream.readable().await,
            #[cfg(feature = "turmoil")]
            Inner::Turmoil(stream) => core::future::poll_fn(|cx| simulated::poll_readable(stream, cx)).await,
        }
    }

    /// Waits until there may be room to write.
    ///
    /// # Errors
    /// When the stream is broken.
    pub async fn writable(&self) -> io::Result<()> {
        core::future::poll_fn(|cx| self.poll_write_ready(cx)).await
    }

    /// Whether there may be room to write.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.0 {
            Inner::Host(stream) => stream.poll_write_ready(cx),
            #[cfg(feature = "turmoil")]
            Inner::Turmoil(stream) => simulated::poll_writable(stream, cx),
        }
    }

    /// Reads what is there; `WouldBlock` when nothing is.
    ///
    /// # Errors
    /// When there is nothing, or the stream is broken.
    pub fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        match &self.0 {
            Inner::Host(stream) => stream.try_read(into),
            #[cfg(feature = "turmoil")]
            Inner::Turmoil(stream) => simulated::try_read(stream, into),
        }
    }

    /// Writes what there is room for; `WouldBlock` when there is none.
    ///
    /// # Errors
    /// When there is no room, or the stream is broken.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.0 {
            Inner::Host(stream) => stream.try_write(bytes),
            #[cfg(feature = "turmoil")]
            Inner::Turmoil(stream) => simulated::lock(stream).try_write(bytes),
        }
    }

    /// Writes of several pieces what there is room for; `WouldBlock` when there is none.
    ///
    /// # Errors
    /// When there is no room, or the stream is broken.
    pub fn try_write_vectored(&self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match &self.0 {
            Inner::Host(stream) => stream.try_write_vectored(slices),
            #[cfg(feature = "turmoil")]
            Inner::Turmoil(stream) => {
                let first = slices.iter().find(|slice| !slice.is_empty());
                first.map_or(Ok(0), |slice| simulated::lock(stream).try_write(slice))
            }
        }
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Inner::Host(stream) => Pin::new(stream).poll_read(cx, into),
            #[cfg(feature = "turmoil")]
            Inner::Turmoil(stream) => Pin::new(&mut *simulated::lock(stream)).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Inner::Host(stream) => Pin::new(stream).poll_write(cx, bytes),
            #[cfg(feature = "turmoil")]
            Inner::Turmoil(stream) => Pin::new(&mut *simulated::lock(stream)).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Inner::Host(stream) => Pin::new(stream).poll_flush(cx),
            #[cfg(feature = "turmoil")]
            Inner::Turmoil(stream) => Pin::new(&mut *simulated::lock(stream)).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Inner::Host(stream) => Pin::new(stream).poll_shutdown(cx),
            #[cfg(feature = "turmoil")]
            Inner::Turmoil(stream) => Pin::new(&mut *simulated::lock(stream)).poll_shutdown(cx),
        }
    }
}

/// What turmoil's streams do not offer by themselves.
#[cfg(feature = "turmoil")]
mod simulated {
    use core::{
        pin::{Pin, pin},
        task::{Context, Poll, Waker, ready},
    };
    use std::{
        io,
        sync::{Mutex, MutexGuard, PoisonError},
    };

    use tokio::io::{AsyncRead, ReadBuf};
    use turmoil::net::TcpStream;

    use super::Inner;

    impl From<TcpStream> for super::TcpStream {
        fn from(stream: TcpStream) -> Self {
            Self(Inner::Turmoil(Mutex::new(stream)))
        }
    }

    pub(super) fn lock(stream: &Mutex<TcpStream>) -> MutexGuard<'_, TcpStream> {
        stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn poll_readable(stream: &Mutex<TcpStream>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut byte = [0];
        // An end, or a break, is something to read too.
        let _ = ready!(lock(stream).poll_peek(cx, &mut ReadBuf::new(&mut byte)));
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_writable(stream: &Mutex<TcpStream>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = lock(stream);
        // Holds no state from one poll to the next.
        pin!(stream.writable()).poll(cx)
    }

    pub(super) fn try_read(stream: &Mutex<TcpStream>, into: &mut [u8]) -> io::Result<usize> {
        let mut into = ReadBuf::new(into);
        // Whoever waits asks again with a waker of its own.
        let mut context = Context::from_waker(Waker::noop());
        match Pin::new(&mut *lock(stream)).poll_read(&mut context, &mut into) {
            Poll::Ready(read) => read.map(|()| into.filled().len()),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}
