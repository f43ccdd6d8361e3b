//! One node's open map: takes the coordinator's orders, and makes one message after the other.
//!
//! Nothing is queued for a node that does not read: HTTP/2 asks for a message when the last one has gone into it, and
//! it holds no more than the node's window.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tracing::error;

use super::{
    desk::{Order, Orders},
    machine_api::Busy,
    render_pool::{self, Coding},
};
use crate::coordinator::{Input, RequestId};

/// The next message, and who makes the one after it; `None`: nothing comes any more.
type Next = Pin<Box<dyn Future<Output = Option<(Bytes, Writer)>> + Send>>;

/// The body of the response: its messages.
pub(super) struct MapBody {
    next: Option<Next>,
}

impl MapBody {
    /// The messages that answer a request, until its orders end.
    pub(super) fn new(of: Busy, id: RequestId, coding: Coding, orders: Orders) -> Self {
        let writer = Writer { of, id, coding, orders, owed: false, ended: false };
        Self { next: Some(Box::pin(writer.next())) }
    }
}

impl Body for MapBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        // HTTP/2 asks for more when the node's window has room for more.
        let Some(next) = &mut self.next else { return Poll::Ready(None) };
        let made = ready!(next.as_mut().poll(context));
        let (message, writer) = made.unzip();
        self.next = writer.map(|writer| -> Next { Box::pin(writer.next()) });
        Poll::Ready(message.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Makes the messages of one map.
struct Writer {
    of: Busy,
    id: RequestId,
    coding: Coding,
    orders: Orders,
    /// The coordinator waits to hear that the last message was taken.
    owed: bool,
    /// The orders have ended.
    ended: bool,
}

impl Writer {
    /// Begins when the node has taken the message before.
    async fn next(mut self) -> Option<(Bytes, Self)> {
        let machine = self.of.machine();
        machine.note_taken(self.id);
        if std::mem::take(&mut self.owed) {
            machine.desk.tell(Input::Writable { stream: self.orders.stream }).await;
        }
        let message = match self.orders.orders.recv().await {
            None => {
                self.ended = true;
                return None;
            }
            Some(Order::KeepAlive) => render_pool::keep_alive(self.coding),
            Some(Order::Push(update)) => {
                self.owed = !update.is_last();
                machine.pool.render(update, self.coding).await
            }
        };
        match message {
            Ok(message) => {
                machine.note_given(self.id);
                Some((message, self))
            }
            Err(error) => {
                error!(%error, "a message cannot be written");
                None
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let machine = self.of.machine();
        machine.note_taken(self.id);
        if !self.ended {
            machine.desk.tell_at_once(Input::Aborted { conn: machine.conn, id: self.id });
        }
    }
}
