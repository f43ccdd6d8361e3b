//! The writing half of a stream, with TLS or without, of either end.
//!
//! rustls is driven directly, so that what is pushed at once goes into as few records and system calls as can be. Nothing
//! here waits: the caller waits for the socket and calls again.

use core::ops::DerefMut;
use std::io::{self, Write};

use rustls::ConnectionCommon;

use crate::net::TcpStream;

/// A socket, and TLS on it where there is any. `C` is rustls' connection of this end.
#[derive(Debug)]
pub struct MaybeTls<C> {
    /// Bytes as they go over the network.
    pub socket: TcpStream,
    /// What makes them of what is said.
    pub tls: Option<Box<C>>,
    /// Bytes for a stream without TLS that did not fit yet.
    unsent: Vec<u8>,
}

impl<C> MaybeTls<C> {
    /// A stream on a connected socket.
    #[must_use]
    pub fn new(socket: TcpStream, tls: Option<C>) -> Self {
        Self { socket, tls: tls.map(Box::new), unsent: Vec::new() }
    }
}

impl<C, D> MaybeTls<C>
where
    C: DerefMut<Target = ConnectionCommon<D>>,
{
    /// Takes bytes for writing. Call [`Self::flush`] after. Bounded by whoever pushes: one write at a time.
    ///
    /// # Errors
    /// When the TLS session cannot encrypt any more.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => tls.writer().write_all(bytes),
            None => {
                self.unsent.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// Writes as much as the socket takes; says whether that was anything.
    ///
    /// # Errors
    /// When the stream is broken.
    pub fn flush(&mut self) -> io::Result<bool> {
        let mut progress = false;
        while self.has_unsent() {
            let written = match &mut self.tls {
                Some(tls) => tls.write_tls(&mut Socket(&self.socket)),
                None => self.socket.try_write(&self.unsent).inspect(|count| {
                    self.unsent.drain(..*count);
                }),
            };
            match written {
                Ok(_) => progress = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(progress)
    }

    /// Whether something waits for the socket.
    #[must_use]
    pub fn has_unsent(&self) -> bool {
        match &self.tls {
            Some(tls) => tls.wants_write(),
            None => !self.unsent.is_empty(),
        }
    }

    /// The other side broke TLS: it is told so, as far as the socket takes it, for that is a courtesy.
    pub fn refuse(&mut self, error: rustls::Error) -> io::Error {
        if let Some(tls) = &mut self.tls {
            let _ = tls.write_tls(&mut Socket(&self.socket));
        }
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    /// Says the end to the other side, as far as the socket takes it.
    pub fn say_end(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
        }
        // It ends in any case.
        let _ = self.flush();
    }
}

/// The socket as rustls wants it.
struct Socket<'a>(&'a TcpStream);

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
