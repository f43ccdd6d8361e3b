//! A byte stream inside the messages of a WebSocket: how clients in browsers reach the server. Borders of messages mean
//! nothing.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        protocol::{Role, WebSocketConfig},
    },
};

/// Bytes of one message at most. A node's handshake and requests come in pieces of a few KiB; at the bound the connection
/// is closed.
const MESSAGE_BYTES: usize = 64 << 10;

/// The server's end.
pub(super) struct WebSocket<S> {
    inner: WebSocketStream<S>,
    unread: Bytes,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// A stream after the upgrade was answered.
    pub(super) async fn new(stream: S) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(4 << 10)
            .write_buffer_size(0)
            .max_message_size(Some(MESSAGE_BYTES))
            .max_frame_size(Some(MESSAGE_BYTES));
        Self { inner: WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await, unread: Bytes::new() }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(Pin::new(&mut self.inner).poll_next(context)) {
                Some(Ok(Message::Binary(bytes))) => self.unread = bytes,
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Text(_))) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(other(error))),
            }
        }
        let count = self.unread.len().min(into.remaining());
        into.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.inner).poll_ready(context)).map_err(other)?;
        let message = Message::Binary(Bytes::copy_from_slice(bytes));
        Pin::new(&mut self.inner).start_send(message).map_err(other)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context).map_err(other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(context).map_err(other)
    }
}

fn other(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        error => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt, StreamExt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn messages_become_a_stream_whatever_their_borders() {
        let (mut client, mut server) = pair().await;
        for piece in [&b"he"[..], b"", b"llo"] {
            client.send(Message::Binary(Bytes::copy_from_slice(piece))).await.unwrap();
        }
        client.send(Message::Ping(Bytes::new())).await.unwrap();
        let mut heard = [0; 5];
        server.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
        server.write_all(b"back").await.unwrap();
        server.flush().await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::Binary(Bytes::from_static(b"back")));
        client.close(None).await.unwrap();
        assert_eq!(server.read(&mut heard).await.unwrap(), 0);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn text_and_what_is_too_long_end_the_stream() {
        for message in [Message::text("hello"), Message::Binary(vec![0; MESSAGE_BYTES + 1].into())] {
            let (mut client, mut server) = pair().await;
            // The server may have hung up before all was sent.
            let sent = tokio::spawn(async move { client.send(message).await.is_ok() });
            assert!(server.read_u8().await.is_err());
            drop(server);
            sent.await.unwrap();
        }
    }

    async fn pair() -> (WebSocketStream<DuplexStream>, WebSocket<DuplexStream>) {
        let (one, other) = duplex(1 << 20);
        (WebSocketStream::from_raw_socket(one, Role::Client, None).await, WebSocket::new(other).await)
    }
}
