//! Signals as requests: the end, and reading the file again.

use tokio::{sync::mpsc, task::JoinHandle};
use tracing::{info, warn};
use transports::program::{Failure, Signalled, Signals};

use super::{driver::Request, source::Source};

/// Listens until aborted.
///
/// # Errors
/// When signals cannot be listened for.
pub(super) fn listen(requests: mpsc::Sender<Request>, source: Source) -> Result<JoinHandle<()>, Failure> {
    let mut signals = Signals::new()?;
    Ok(tokio::spawn(async move {
        while signals.next().await == Signalled::Reload {
            match (&source, source.reload(&requests).await) {
                // A control server says by itself when something changes.
                (Source::Control, _) => {}
                (Source::Static(_) | Source::Map(_), Ok(())) => info!("file read again"),
                (Source::Static(_) | Source::Map(_), Err(failure)) => {
                    warn!(%failure, "file not read again; everything stays as it is");
                }
            }
        }
        let _ = requests.send(Request::Stop).await;
    }))
}
