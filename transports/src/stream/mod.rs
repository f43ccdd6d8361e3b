//! Byte streams that we open: TCP, and TLS on it where there is any.
//!
//! rustls is driven directly, so that many frames go into one record and one system call, and what was decrypted is
//! read where it lies. Nothing here waits but [`Stream::settle`]: the caller waits for the socket and calls again, so
//! one task reads and writes without either holding up the other.

pub(crate) mod connect;
mod maybe_tls;
pub(crate) mod tls;

use std::{
    cell::RefCell,
    io::{self, BufRead},
    sync::Arc,
};

use rustls::{ClientConfig, ClientConnection, ProtocolVersion, pki_types::ServerName};

use crate::net::TcpStream;
pub use maybe_tls::MaybeTls;

/// What one system call reads at most.
const READ_BYTES: usize = 64 << 10;
/// What one system call reads at most during the handshake: data behind it stay within what TLS keeps.
const HANDSHAKE_BYTES: usize = 16 << 10;

thread_local! {
    /// One read buffer for each thread: an idle stream holds none.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// Whom pieces of what came are handed to.
type Take<'t> = dyn FnMut(&[u8]) + 't;

/// A byte stream.
pub(crate) type Stream = MaybeTls<ClientConnection>;

impl Stream {
    /// A stream without TLS.
    pub(crate) fn plain(socket: TcpStream) -> Self {
        Self::new(socket, None)
    }

    /// A stream with TLS; [`Self::handshake`] comes next.
    ///
    /// # Errors
    /// When the configuration does not fit.
    pub(crate) fn tls(
        socket: TcpStream,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, rustls::Error> {
        let mut tls = ClientConnection::new(config, name)?;
        tls.set_buffer_limit(None);
        Ok(Self::new(socket, Some(tls)))
    }

    /// Waits until the certificate was checked and keys are there. Our last message may still wait, so that a request
    /// can go with it.
    ///
    /// # Errors
    /// When the other side is not whom it should be, or the stream breaks. Errors of TLS hold a [`rustls::Error`].
    pub(crate) async fn handshake(&mut self) -> io::Result<()> {
        while self.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
            self.flush()?;
            tokio::select! {
                ready = self.socket.readable() => {
                    ready?;
                    self.receive(HANDSHAKE_BYTES, None)?;
                }
                ready = self.socket.writable(), if self.has_unsent() => ready?,
            }
        }
        Ok(())
    }

    /// The certificates that the other side showed, when the version of TLS hides them from onlookers.
    pub(crate) fn hidden_certificates(&self) -> &[rustls::pki_types::CertificateDer<'static>] {
        let tls = self.tls.as_ref().filter(|tls| tls.protocol_version() == Some(ProtocolVersion::TLSv1_3));
        tls.and_then(|tls| tls.peer_certificates()).unwrap_or_default()
    }

    /// Hands what has come to `take`, in pieces. Nothing when nothing has.
    ///
    /// # Errors
    /// When the stream is broken; `UnexpectedEof` when it ended. What came before that has been handed over.
    pub(crate) fn read(&mut self, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        // What came with the end of the handshake.
        self.tls.as_mut().map_or(Ok(()), |tls| drain(tls, &mut take))?;
        self.receive(READ_BYTES, Some(&mut take))
    }

    /// Reads once from the socket, up to `most` bytes, and hands over what is in them; without `take`, TLS keeps it.
    fn receive(&mut self, most: usize, mut take: Option<&mut Take<'_>>) -> io::Result<()> {
        SCRATCH.with_borrow_mut(|scratch| {
            let got = match self.socket.try_read(&mut scratch[..most]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let mut read = &scratch[..got];
            let Some(tls) = &mut self.tls else {
                if let Some(take) = take {
                    take(read);
                }
                return Ok(());
            };
            while !read.is_empty() {
                if tls.read_tls(&mut read)? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let processed = tls.process_new_packets();
                if let Some(take) = take.as_mut() {
                    drain(tls, take)?;
                }
                if let Err(error) = processed {
                    return Err(self.refuse(error));
                }
            }
            Ok(())
        })
    }

    /// Waits until something came or there is room for what waits, and writes that.
    ///
    /// # Errors
    /// When the stream is broken.
    pub(crate) async fn settle(&mut self) -> io::Result<()> {
        self.flush()?;
        tokio::select! {
            ready = self.socket.readable() => ready,
            ready = self.socket.writable(), if self.has_unsent() => {
                ready?;
                self.flush().map(drop)
            }
        }
    }
}

/// Hands over what was decrypted, where it lies.
fn drain(tls: &mut ClientConnection, take: &mut Take<'_>) -> io::Result<()> {
    let mut reader = tls.reader();
    loop {
        match reader.fill_buf() {
            Ok([]) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => {
                let length = bytes.len();
                take(bytes);
                reader.consume(length);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
