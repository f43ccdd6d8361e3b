//! A byte stream inside the records of Noise: what HTTP/2 with a node runs on.
//!
//! The answer to the handshake waits in the stream and goes out with the first bytes. An idle stream holds no buffers.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use mesh_core::control::noise::{Opener, Sealer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What one call reads at most: four records.
const READ_BYTES: usize = 16 << 10;
/// What one call seals at most.
const WRITE_BYTES: usize = 16 << 10;

thread_local! {
    /// One read buffer for each thread.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// One end of a stream in records.
pub struct NoiseStream<S> {
    inner: S,
    sealer: Sealer,
    opener: Opener,
    /// Opened and not read yet, from `read` on.
    plain: Vec<u8>,
    read: usize,
    /// Sealed and not written yet, from `written` on.
    sealed: Vec<u8>,
    written: usize,
}

impl<S> NoiseStream<S> {
    /// The stream after a handshake; `first` is written as it is before anything else.
    #[must_use]
    pub fn new(inner: S, sealer: Sealer, opener: Opener, first: Vec<u8>) -> Self {
        Self { inner, sealer, opener, plain: Vec::new(), read: 0, sealed: first, written: 0 }
    }
}

impl<S: AsyncWrite + Unpin> NoiseStream<S> {
    /// Writes what is sealed.
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.sealed.get(self.written..).filter(|rest| !rest.is_empty()) {
            let count = ready!(Pin::new(&mut self.inner).poll_write(context, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
        }
        self.sealed = Vec::new();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for NoiseStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.read == this.plain.len() {
            this.plain = Vec::new();
            this.read = 0;
            let ended = SCRATCH.with_borrow_mut(|scratch| {
                let mut scratch = ReadBuf::new(scratch);
                ready!(Pin::new(&mut this.inner).poll_read(context, &mut scratch))?;
                let bytes = scratch.filled();
                this.opener
                    .open(bytes, &mut this.plain)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                Poll::Ready(Ok::<_, io::Error>(bytes.is_empty()))
            });
            if ready!(ended)? {
                let within = this.opener.is_within_record();
                return Poll::Ready(if within { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) });
            }
        }
        let unread = this.plain.get(this.read..).unwrap_or_default();
        let count = unread.len().min(into.remaining());
        into.put_slice(&unread[..count]);
        this.read += count;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for NoiseStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_drain(context))?;
        let count = bytes.len().min(WRITE_BYTES);
        this.sealer.seal(&bytes[..count], &mut this.sealed).map_err(io::Error::other)?;
        // Sealed is taken: what the socket does not take now goes with the next write or flush.
        match this.poll_drain(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(count)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::{
        control::noise::{Initiation, Initiator, Progress},
        key::MachinePrivate,
        rng::Seed,
    };
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn streams_pass_both_ways_through_a_socket_that_takes_few_bytes_at_a_time() {
        let (mut a, mut b) = pair(100);
        let sent: Vec<u8> = (0..50_000_u32).map(|number| number as u8).collect();
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            a.write_all(&sent).await.unwrap();
            a.shutdown().await.unwrap();
            let mut back = Vec::new();
            a.read_to_end(&mut back).await.unwrap();
            back
        });
        let mut got = Vec::new();
        b.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, expected);
        b.write_all(b"thanks").await.unwrap();
        b.shutdown().await.unwrap();
        assert_eq!(writer.await.unwrap(), b"thanks");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_no_record_ends_the_stream() {
        let (a, mut b) = pair(1000);
        let mut raw = a.inner;
        raw.write_all(&[9, 0, 20]).await.unwrap();
        let error = b.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_end_within_a_record_is_no_clean_end() {
        let (a, mut b) = pair(1000);
        let mut raw = a.inner;
        raw.write_all(&[4, 0, 20, 1]).await.unwrap();
        drop(raw);
        assert_eq!(b.read_u8().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let (a, mut b) = pair(1000);
        drop(a);
        assert_eq!(b.read(&mut [0; 8]).await.unwrap(), 0);
    }

    fn pair(bytes: usize) -> (NoiseStream<DuplexStream>, NoiseStream<DuplexStream>) {
        let mut rng = Seed::from_number(1).stream("noise stream", 0);
        let (node, server) = (MachinePrivate::generate(&mut rng), MachinePrivate::generate(&mut rng));
        let (initiator, message) = Initiator::start(120, &node, &server.public(), &mut rng).unwrap();
        let (response, to_node, at_server) = Initiation::open(&message, &server).unwrap().respond(&mut rng).unwrap();
        let Progress::Done { sealer, opener, .. } = initiator.read(&response).unwrap() else { panic!("it is whole") };
        let (one, other) = duplex(bytes);
        (NoiseStream::new(one, sealer, opener, Vec::new()), NoiseStream::new(other, to_node, at_server, Vec::new()))
    }
}
