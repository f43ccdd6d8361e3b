//! One node's open map: takes the coordinator's orders, has them rendered, and writes one message after the other.
//!
//! Nothing is queued for a node that does not read: a message is asked for when the last one has gone into HTTP/2, which
//! holds no more than the node's window.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::{
    sync::{Notify, mpsc},
    time::timeout,
};
use tracing::{debug, error};

use super::{
    desk::{Desk, Order, Orders},
    limits,
    render_pool::{self, Coding, RenderPool},
};
use crate::coordinator::{ConnId, Input, RequestId};

/// The body of the response: its messages.
pub(super) struct MapBody {
    frames: mpsc::Receiver<Bytes>,
    /// Says that there is room for another message.
    room: Arc<Notify>,
    /// A message was given out.
    given: bool,
}

impl Body for MapBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        // HTTP/2 asks for more when the node's window has room for more.
        if std::mem::take(&mut self.given) {
            self.room.notify_one();
        }
        let frame = ready!(self.frames.poll_recv(context));
        self.given = frame.is_some();
        Poll::Ready(frame.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Writes one map.
pub(super) struct MapWriter {
    pub(super) conn: ConnId,
    pub(super) id: RequestId,
    pub(super) coding: Coding,
    pub(super) desk: Desk,
    pub(super) pool: RenderPool,
    /// Ends the connection.
    pub(super) stalled: Arc<Notify>,
    frames: mpsc::Sender<Bytes>,
    room: Arc<Notify>,
}

/// Why a map ends.
enum End {
    /// The node has gone, or is taken for gone.
    Gone,
    /// It takes nothing.
    Stalled,
}

impl MapWriter {
    /// A writer and the body that it writes to.
    pub(super) fn new(
        conn: ConnId,
        id: RequestId,
        coding: Coding,
        desk: Desk,
        pool: RenderPool,
        stalled: Arc<Notify>,
    ) -> (Self, MapBody) {
        let (frames, taken) = mpsc::channel(1);
        let room = Arc::new(Notify::new());
        let body = MapBody { frames: taken, room: Arc::clone(&room), given: false };
        (Self { conn, id, coding, desk, pool, stalled, frames, room }, body)
    }

    /// Writes until orders end or the node goes.
    pub(super) async fn run(self, orders: Orders) {
        let end = self.follow(orders).await;
        let Err(end) = end else { return };
        if let End::Stalled = end {
            debug!(conn = self.conn.0, "a node takes nothing of its map");
            self.stalled.notify_one();
        }
        self.desk.tell(Input::Aborted { conn: self.conn, id: self.id }).await;
    }

    async fn follow(&self, Orders { stream, mut orders }: Orders) -> Result<(), End> {
        loop {
            let order = tokio::select! {
                order = orders.recv() => order,
                () = self.frames.closed() => return Err(End::Gone),
            };
            match order {
                None => return Ok(()),
                Some(Order::KeepAlive) => self.write(render_pool::keep_alive(self.coding)).await?,
                Some(Order::Push(update)) => {
                    let owed = !update.is_last();
                    self.write(self.pool.render(update, self.coding).await).await?;
                    if owed {
                        self.desk.tell(Input::Writable { stream }).await;
                    }
                }
            }
        }
    }

    /// Writes a message and waits until there is room for another.
    async fn write(&self, frame: std::io::Result<Bytes>) -> Result<(), End> {
        let frame = frame.map_err(|error| {
            error!(%error, "a message cannot be written");
            End::Gone
        })?;
        self.frames.send(frame).await.map_err(|_| End::Gone)?;
        tokio::select! {
            written = timeout(limits::WRITE, self.room.notified()) => written.map_err(|_| End::Stalled),
            () = self.frames.closed() => Err(End::Gone),
        }
    }
}
