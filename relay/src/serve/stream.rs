//! A client's byte stream: TCP, and TLS on it where there is any.
//!
//! rustls is driven directly, so that many frames go into one TLS record and one system call. Nothing here waits: the
//! caller waits for the socket and calls again, so one task reads and writes without either holding up the other.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    cell::RefCell,
    io::{self, Read},
    ops::{Deref, DerefMut},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{BufMut, BytesMut};
use rustls::{ServerConfig, ServerConnection};
use tokio::io::{AsyncRead, ReadBuf};
use transports::{MaybeTls, net::TcpStream};

/// What one system call reads at most: as many full packets as fit into one mailbox, should all be for one client.
const READ_BYTES: usize = 32 << 10;

thread_local! {
    /// One read buffer for each core: an idle connection holds none.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// A client's byte stream.
pub(super) struct Stream(MaybeTls<ServerConnection>);

impl Stream {
    /// A stream on a connected socket.
    ///
    /// # Errors
    /// When the TLS configuration does not fit.
    pub(super) fn new(socket: TcpStream, tls: Option<&Arc<ServerConfig>>) -> io::Result<Self> {
        let tls = tls.map(|config| {
            let mut tls = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
            tls.set_buffer_limit(None);
            Ok::<_, io::Error>(tls)
        });
        Ok(Self(MaybeTls::new(socket, tls.transpose()?)))
    }

    /// Waits until something was read into `into`, if it is wanted, or until there is room for what waits to be written.
    ///
    /// # Errors
    /// When the stream is broken; `UnexpectedEof` when it ended.
    pub(super) fn poll_ready(
        &mut self,
        context: &mut Context<'_>,
        into: Option<&mut BytesMut>,
    ) -> Poll<io::Result<()>> {
        if let Some(buffer) = into
            && let Poll::Ready(read) = self.poll_read(context, buffer)
        {
            return Poll::Ready(read);
        }
        if self.has_unsent() { self.socket.poll_write_ready(context) } else { Poll::Pending }
    }

    /// Appends what has come to `buffer`.
    fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut BytesMut) -> Poll<io::Result<()>> {
        SCRATCH.with_borrow_mut(|scratch| {
            // Unlike a read that is tried, this one knows that the socket is empty when it gives less than was asked for.
            let mut scratch = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.socket).poll_read(context, &mut scratch))?;
            Poll::Ready(self.take_in(scratch.filled(), buffer))
        })
    }

    /// Appends what was read, without TLS, to `buffer`.
    fn take_in(&mut self, mut read: &[u8], buffer: &mut BytesMut) -> io::Result<()> {
        if read.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some(tls) = &mut self.0.tls else {
            buffer.extend_from_slice(read);
            return Ok(());
        };
        while !read.is_empty() {
            tls.read_tls(&mut read)?;
            let state = match tls.process_new_packets() {
                Ok(state) => state,
                Err(error) => return Err(self.0.refuse(error)),
            };
            let plain = state.plaintext_bytes_to_read();
            if plain > 0 {
                buffer.reserve(plain);
                io::copy(&mut tls.reader().take(plain as u64), &mut buffer.writer())?;
            }
            if state.peer_has_closed() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }
}

impl Deref for Stream {
    type Target = MaybeTls<ServerConnection>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Stream {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}
