//! One client's connection in the daemon: moves bytes between its socket and its [`Conn`].
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    future::{pending, poll_fn},
    io,
    net::IpAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    sync::watch,
    time::{Sleep, timeout},
};
use tracing::{debug, trace};

use mesh_core::{key::NodePublic, machine::Deadline, time::Instant};
use transports::{net::TcpStream, task::Task};

use super::{
    http::{self, Request},
    listen::Shop,
    stream::Stream,
    verify::Asker,
};
use crate::{
    admission::Admission,
    conn::{Conn, ConnOutput},
    directory::ConnId,
    gate::Pass,
    limits,
    stats::CloseReason,
};

/// What clients are told at a restart: come back after this, and try for this long.
const RESTART_IN: Duration = Duration::from_secs(1);
const RESTART_FOR: Duration = Duration::from_secs(5);

/// Serves one connection to its end; `closing` becomes true when the daemon ends.
pub(super) async fn serve(
    socket: TcpStream,
    pass: Pass,
    id: ConnId,
    shop: Arc<Shop>,
    mut closing: watch::Receiver<bool>,
) {
    let (from, lost) = (pass.from(), pass.place().lost());
    let served = async {
        let mut stream = Stream::new(socket, shop.tls().as_ref())?;
        let mut buffer = BytesMut::new();
        let upgraded = tokio::select! {
            upgraded = timeout(limits::GREETING, upgrade(&mut stream, &mut buffer, &shop)) => upgraded,
            // Who is not in yet need not hear of a restart.
            _ = closing.wait_for(|closing| *closing) => return Ok(()),
        };
        let Ok(upgraded) = upgraded else {
            shop.hub.stats.note_close(CloseReason::GreetingTimeout);
            return Err(io::ErrorKind::TimedOut.into());
        };
        if upgraded? { relay(stream, buffer, pass, id, &shop, closing).await } else { Ok(()) }
    };
    let served = tokio::select! {
        biased;
        served = served => served,
        () = lost => {
            shop.hub.stats.note_close(CloseReason::Crowded);
            return;
        }
    };
    if let Err(error) = served {
        trace!(conn = id.0, %from, %error, "connection ended");
    }
}

/// Answers the request that a connection begins with; true when it is one of a relay from now on.
async fn upgrade(stream: &mut Stream, buffer: &mut BytesMut, shop: &Shop) -> io::Result<bool> {
    let (answer, upgraded) = loop {
        stream.flush()?;
        if !buffer.is_empty() {
            match http::read(buffer) {
                Request::Partial => {}
                Request::Derp { head_bytes, fast } => {
                    buffer.advance(head_bytes);
                    break (if fast { String::new() } else { http::switching(&shop.hub.public) }, true);
                }
                Request::Answer(answer) => break (answer, false),
            }
        }
        poll_fn(|context| stream.poll_ready(context, Some(&mut *buffer))).await?;
    };
    stream.push(answer.as_bytes())?;
    stream.flush()?;
    if !upgraded {
        while stream.has_unsent() {
            poll_fn(|context| stream.poll_ready(context, None)).await?;
            stream.flush()?;
        }
        stream.say_end();
    }
    Ok(upgraded)
}

async fn relay(
    mut stream: Stream,
    mut buffer: BytesMut,
    pass: Pass,
    id: ConnId,
    shop: &Shop,
    mut closing: watch::Receiver<bool>,
) -> io::Result<()> {
    // Both are waited for again and again: registered once, they cost nothing while nothing happens.
    let mut closing = pin!(closing.wait_for(|closing| *closing));
    let mut timer = Timer::new();
    let clock = shop.net.clock();
    let from = pass.from();
    let mut conn = Conn::new(id, pass, clock.now());
    let mut is_closing = false;
    let mut asking: Option<Task<Admission>> = None;
    let mut write = Vec::new();
    let mut took = false;
    loop {
        conn.handle_buffer(&mut buffer, clock.now());
        if core::mem::take(&mut took) {
            // Or what was just left in their mailboxes is thrown out by what is read next.
            others_first().await;
        }
        if buffer.is_empty() {
            // An idle connection holds no room for what it once sent.
            buffer = BytesMut::new();
        }
        while let Some(output) = conn.poll_output() {
            match output {
                // Its task waits for its mail and has been woken.
                ConnOutput::Wake(_) => {}
                ConnOutput::Admit(node) => asking = Some(ask(shop.asker.clone(), node, from.ip())),
                ConnOutput::Close(reason) => {
                    debug!(conn = id.0, reason = reason.label(), "closing");
                    stream.say_end();
                    return Ok(());
                }
            }
        }
        if !stream.has_unsent() {
            conn.handle_written(clock.now());
            conn.take_write(&mut write, clock.now());
            stream.push(&write)?;
            // An idle connection holds no room for a burst it once got.
            write = Vec::new();
        }
        let progress = stream.flush()?;
        if stream.has_unsent() {
            if progress {
                conn.handle_progress(clock.now());
            }
        } else {
            conn.handle_written(clock.now());
            if is_closing && !conn.has_writes() {
                stream.say_end();
                return Ok(());
            }
        }
        let unsent = stream.has_unsent();
        let more = !unsent && conn.has_writes();
        let reading = conn.is_reading();
        timer.set(conn.poll_timeout(), clock.now());
        tokio::select! {
            ready = poll_fn(|context| stream.poll_ready(context, reading.then_some(&mut buffer))) => {
                ready?;
                took = !buffer.is_empty();
            }
            // What this client sends is taken as well as what it is sent.
            () = others_first(), if more => {}
            () = poll_fn(|context| conn.poll_mail(context)), if !unsent && !more => {}
            admission = answer(asking.as_mut()) => {
                asking = None;
                conn.handle_admission(admission, clock.now());
            }
            () = timer.fired() => conn.handle_timeout(clock.now()),
            _ = &mut closing, if !is_closing => {
                is_closing = true;
                conn.say_restarting(RESTART_IN, RESTART_FOR);
            }
        }
    }
}

/// A question that is asked for a client. It ends with the connection: one who has gone takes no place from others.
fn ask(asker: Option<Asker>, node: NodePublic, from: IpAddr) -> Task<Admission> {
    Task::spawn(async move {
        match asker {
            Some(asker) => asker.ask(&node, from).await,
            None => Admission::Unreachable,
        }
    })
}

async fn answer(asking: Option<&mut Task<Admission>>) -> Admission {
    match asking {
        Some(task) => task.ended().await.unwrap_or(Admission::Unreachable),
        None => pending().await,
    }
}

/// Lets the tasks that are ready on this core run.
async fn others_first() {
    let mut waited = false;
    poll_fn(|context| {
        if core::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        // Unlike tokio's own, this asks the system for nothing: who was woken just now is what matters.
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Fires at a deadline or before: one that moves away, as at every write, is found out when the timer fires.
struct Timer {
    sleep: Pin<Box<Sleep>>,
    set_for: Option<Instant>,
}

impl Timer {
    fn new() -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(Duration::ZERO)), set_for: None }
    }

    fn set(&mut self, deadline: Option<Deadline>, now: Instant) {
        let Some(Deadline { at, .. }) = deadline else { return };
        if self.set_for.is_none_or(|set_for| at < set_for) {
            // One millisecond more: the timer is coarser than the machine's time, and must not wake too early.
            let wait = at.since(now) + Duration::from_millis(1);
            self.sleep.as_mut().reset(tokio::time::Instant::now() + wait);
            self.set_for = Some(at);
        }
    }

    async fn fired(&mut self) {
        if self.set_for.is_none() {
            return pending().await;
        }
        self.sleep.as_mut().await;
        self.set_for = None;
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::serve::Ask;

    /// Somebody who never answers.
    struct Silent(Arc<()>);

    impl Ask for Silent {
        fn ask(&self, _: NodePublic) -> Pin<Box<dyn Future<Output = Admission> + Send + '_>> {
            let asked = Arc::clone(&self.0);
            Box::pin(async move {
                let _asked = asked;
                pending().await
            })
        }
    }

    #[tokio::test]
    async fn a_question_ends_with_the_connection_of_who_it_is_about() {
        let counted = Arc::new(());
        let asker = Asker::Program(Arc::new(Silent(Arc::clone(&counted))));
        let node = NodePublic::from_bytes([1; 32]);
        let asking = ask(Some(asker), node, Ipv4Addr::LOCALHOST.into());
        // Asked, by the other task, and its asker holds one more.
        while Arc::strong_count(&counted) < 3 {
            tokio::task::yield_now().await;
        }
        drop(asking);
        while Arc::strong_count(&counted) > 1 {
            tokio::task::yield_now().await;
        }
    }
}
