//! One client's connection in the daemon: moves bytes between its socket and its [`Conn`].
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    future::{pending, poll_fn},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    net::TcpStream,
    sync::watch,
    task::{JoinHandle, yield_now},
    time::timeout,
};
use tracing::{debug, trace};

use mesh_core::{key::NodePublic, machine::Deadline, time::Instant};
use transports::clock::Clock;

use super::{
    http::{self, Request},
    listen::Shop,
    stream::Stream,
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
    let from = pass.from();
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
    if let Err(error) = served.await {
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
        tokio::select! {
            ready = stream.socket.readable() => {
                ready?;
                tolerate(stream.read(buffer))?;
            }
            ready = stream.socket.writable(), if stream.has_unsent() => ready?,
        }
    };
    stream.push(answer.as_bytes())?;
    stream.flush()?;
    if !upgraded {
        while stream.has_unsent() {
            stream.socket.writable().await?;
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
    let clock = Clock::new();
    let from = pass.from();
    let mut conn = Conn::new(id, pass, clock.now());
    let mut is_closing = false;
    let mut asking: Option<JoinHandle<Admission>> = None;
    let mut write = Vec::new();
    loop {
        conn.handle_buffer(&mut buffer, clock.now());
        if buffer.is_empty() {
            // An idle connection holds no room for what it once sent.
            buffer = BytesMut::new();
        }
        while let Some(output) = conn.poll_output() {
            match output {
                // Its task waits for its mail and has been woken.
                ConnOutput::Wake(_) => {}
                ConnOutput::Admit(node) => asking = Some(ask(shop, node, from)),
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
        tokio::select! {
            ready = stream.socket.readable(), if conn.is_reading() => {
                ready?;
                tolerate(stream.read(&mut buffer))?;
            }
            ready = stream.socket.writable(), if unsent => ready?,
            // Others on this core first, and what this client sends as well as what it is sent.
            () = yield_now(), if more => {}
            () = poll_fn(|context| conn.poll_mail(context)), if !unsent && !more => {}
            admission = answer(&mut asking) => {
                asking = None;
                conn.handle_admission(admission, clock.now());
            }
            () = sleep(conn.poll_timeout(), clock.now()) => conn.handle_timeout(clock.now()),
            _ = closing.wait_for(|closing| *closing), if !is_closing => {
                is_closing = true;
                conn.say_restarting(RESTART_IN, RESTART_FOR);
            }
        }
    }
}

fn ask(shop: &Shop, node: NodePublic, from: SocketAddr) -> JoinHandle<Admission> {
    let verifier = shop.verifier.clone();
    tokio::spawn(async move {
        match verifier {
            Some(verifier) => verifier.ask(&node, from.ip()).await,
            None => Admission::Unreachable,
        }
    })
}

async fn answer(asking: &mut Option<JoinHandle<Admission>>) -> Admission {
    match asking {
        Some(task) => task.await.unwrap_or(Admission::Unreachable),
        None => pending().await,
    }
}

async fn sleep(deadline: Option<Deadline>, now: Instant) {
    match deadline {
        // One millisecond more: the timer is coarser than the machine's time, and must not wake too early.
        Some(deadline) => tokio::time::sleep(deadline.at.since(now) + Duration::from_millis(1)).await,
        None => pending().await,
    }
}

/// That a socket had nothing after all is no error.
fn tolerate(read: io::Result<()>) -> io::Result<()> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        read => read,
    }
}
