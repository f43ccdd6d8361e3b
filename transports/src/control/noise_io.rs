//! A byte stream inside the records of Noise: what HTTP/2 between a node and its control server runs on. Both ends.
//!
//! A server's answer to the handshake waits in the stream and goes out with the first bytes. An idle stream holds no
//! buffers.

use core::{
    cell::RefCell,
    pin::Pin,
    task::{Context, Poll, ready},
};
use std::io;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use mesh_core::control::noise::{EarlyReader, NoiseError, Opener, PLAINTEXT_BYTES, Sealer};

/// What one call reads from the stream below at most: four full records.
const READ_BYTES: usize = 16 << 10;
/// Plaintext that one write takes at most: what waits for the stream below is bounded by it. At the bound: the writer
/// waits.
const WRITE_BYTES: usize = 4 * PLAINTEXT_BYTES;

thread_local! {
    /// Where streams of this thread read into.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// A byte stream inside another: what is written is sealed, what is read was opened.
#[derive(Debug)]
pub struct NoiseIo<T> {
    inner: T,
    sealer: Sealer,
    opener: Opener,
    /// While it is not known whether the other end begins with an early payload.
    early: Option<EarlyReader>,
    /// What was opened and not read yet, from `taken` on.
    plaintext: Vec<u8>,
    taken: usize,
    /// What was sealed and not written yet, from `written` on.
    unsent: Vec<u8>,
    written: usize,
}

impl<T> NoiseIo<T> {
    /// The server's end of one, after the handshake. `first` is written as it is before anything else.
    #[must_use]
    pub fn of_server(inner: T, sealer: Sealer, opener: Opener, first: Vec<u8>) -> Self {
        Self { inner, sealer, opener, early: None, plaintext: Vec::new(), taken: 0, unsent: first, written: 0 }
    }

    /// The node's end of one: an early payload is left out of what is read. `received` is what came behind the
    /// handshake.
    ///
    /// # Errors
    /// When that is no record.
    pub fn of_node(inner: T, sealer: Sealer, opener: Opener, received: &[u8]) -> Result<Self, NoiseError> {
        let mut stream = Self { early: Some(EarlyReader::new()), ..Self::of_server(inner, sealer, opener, Vec::new()) };
        stream.open(received)?;
        Ok(stream)
    }

    /// Takes what was read from below. What was opened before is read already.
    fn open(&mut self, received: &[u8]) -> Result<(), NoiseError> {
        (self.plaintext, self.taken) = (Vec::new(), 0);
        let opened = self.opener.open(received, &mut self.plaintext);
        if let Some(reader) = &mut self.early {
            let plaintext = core::mem::take(&mut self.plaintext);
            if let Some((_, rest)) = reader.receive(&plaintext)? {
                (self.early, self.plaintext) = (None, rest);
            }
        }
        // What came before it is read first; the error comes again.
        if self.plaintext.is_empty() { opened } else { Ok(()) }
    }

    /// Hands over what was opened; an idle stream keeps no room for it.
    fn take(&mut self, into: &mut ReadBuf<'_>) {
        let rest = self.plaintext.get(self.taken..).unwrap_or_default();
        let now = rest.get(..into.remaining()).unwrap_or(rest);
        into.put_slice(now);
        self.taken += now.len();
        if self.taken >= self.plaintext.len() {
            (self.plaintext, self.taken) = (Vec::new(), 0);
        }
    }
}

impl<T: AsyncWrite + Unpin> NoiseIo<T> {
    /// Writes what was sealed.
    fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.unsent.get(self.written..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        (self.unsent, self.written) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for NoiseIo<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.taken >= this.plaintext.len() {
            let ended = SCRATCH.with_borrow_mut(|scratch| {
                let mut read = ReadBuf::new(scratch);
                ready!(Pin::new(&mut this.inner).poll_read(cx, &mut read))?;
                this.open(read.filled()).map_err(broken)?;
                Poll::Ready(Ok::<_, io::Error>(read.filled().is_empty()))
            });
            if ready!(ended)? {
                // An end within a record is a break: somebody cut it.
                let is_whole = !this.opener.is_within_record();
                return Poll::Ready(if is_whole { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) });
            }
        }
        this.take(into);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for NoiseIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_unsent(cx))?;
        let now = bytes.get(..WRITE_BYTES).unwrap_or(bytes);
        this.sealer.seal(now, &mut this.unsent).map_err(broken)?;
        // It is taken, whether the stream below has room for it or not.
        if let Poll::Ready(Err(error)) = this.poll_unsent(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(now.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_unsent(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_unsent(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

fn broken(error: NoiseError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use mesh_core::{
        control::noise::{EarlyNoise, Initiation, Initiator, Progress},
        key::MachinePrivate,
        rng::Seed,
    };
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_written_is_read_in_whatever_pieces_and_ends_with_the_stream_below() {
        // Smaller than a record: nothing fits at once.
        let (mut node, mut server) = pair(100);
        let said: Vec<u8> = (0..100_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        let write = async {
            node.write_all(&said).await.unwrap();
            node.shutdown().await.unwrap();
        };
        let mut heard = Vec::new();
        let (read, ()) = tokio::join!(server.read_to_end(&mut heard), write);
        assert_eq!((read.unwrap(), heard), (said.len(), said));
        // The other way is still open.
        server.write_all(b"thanks").await.unwrap();
        server.shutdown().await.unwrap();
        let mut heard = Vec::new();
        node.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"thanks");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_early_payload_is_not_read_and_its_absence_is_no_matter() {
        for early in [EarlyNoise::default().to_bytes(), Vec::new()] {
            let (mut node, mut server) = pair(1 << 16);
            let said = [early.as_slice(), b"PRI * HTTP/2.0"].concat();
            for byte in said {
                server.write_all(&[byte]).await.unwrap();
            }
            server.shutdown().await.unwrap();
            let mut heard = Vec::new();
            node.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"PRI * HTTP/2.0");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_was_changed_on_the_way_ends_it_and_so_does_half_a_record() {
        let (mut node, mut server) = pair(1 << 16);
        node.write_all(b"whole").await.unwrap();
        let mut heard = [0; 5];
        server.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"whole");
        // Not sealed by anybody.
        node.inner.write_all(&[4, 0, 17, 1, 2, 3]).await.unwrap();
        node.inner.shutdown().await.unwrap();
        assert_eq!(server.read(&mut heard).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);

        let (mut node, mut server) = pair(1 << 16);
        node.inner.write_all(&[[4, 0, 17].as_slice(), &[0; 17]].concat()).await.unwrap();
        for _ in 0..2 {
            node.inner.write_all(&[0]).await.unwrap();
            assert_eq!(server.read(&mut heard).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    fn pair(room: usize) -> (NoiseIo<DuplexStream>, NoiseIo<DuplexStream>) {
        let mut rng = Seed::from_number(1).stream("test", 0);
        let (machine, control) = (MachinePrivate::generate(&mut rng), MachinePrivate::generate(&mut rng));
        let (initiator, initiation) = Initiator::start(119, &machine, &control.public(), &mut rng).unwrap();
        let opened = Initiation::open(&initiation, &control).unwrap();
        let (response, to_node, from_node) = opened.respond(&mut rng).unwrap();
        let Progress::Done { sealer, opener, .. } = initiator.read(&response).unwrap() else { panic!("not whole") };
        let (node, server) = duplex(room);
        (
            NoiseIo::of_node(node, sealer, opener, &[]).unwrap(),
            NoiseIo::of_server(server, to_node, from_node, Vec::new()),
        )
    }
}
