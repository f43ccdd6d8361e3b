//! Signals as requests: the end, and reading the file again.

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
};
use tracing::{info, warn};

use super::{basic::Request, source::Source};
use crate::failure::{Exit, Failure};

/// Listens until aborted.
///
/// # Errors
/// When signals cannot be listened for.
pub(super) fn listen(requests: mpsc::Sender<Request>, source: Source) -> Result<JoinHandle<()>, Failure> {
    let open = |kind| {
        signal(kind).map_err(|error| Failure::new(Exit::Bug, "signals", format!("cannot listen for signals: {error}")))
    };
    let mut terminate = open(SignalKind::terminate())?;
    let mut interrupt = open(SignalKind::interrupt())?;
    let mut hangup = open(SignalKind::hangup())?;
    Ok(tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                // A control server says by itself when something changes.
                _ = hangup.recv() => if let Source::Static(_) | Source::Map(_) = source { match source.reload(&requests).await {
                    Ok(()) => info!("file read again"),
                    Err(failure) => warn!(%failure, "file not read again; everything stays as it is"),
                }},
            }
        }
        let _ = requests.send(Request::Stop).await;
    }))
}
