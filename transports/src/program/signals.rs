//! Signals as what they ask for.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Exit, Failure};

/// The signals that a server heeds.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signalled {
    /// End: SIGTERM or SIGINT.
    End,
    /// Read the configuration again: SIGHUP.
    Reload,
}

impl Signals {
    /// Heeds them from now on. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the system refuses, which it does not for these.
    pub fn new() -> Result<Self, Failure> {
        let open = |kind| {
            let cannot = |error| Failure::new(Exit::Bug, "signals", format!("cannot listen for signals: {error}"));
            signal(kind).map_err(cannot)
        };
        Ok(Self {
            terminate: open(SignalKind::terminate())?,
            interrupt: open(SignalKind::interrupt())?,
            hangup: open(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) -> Signalled {
        tokio::select! {
            _ = self.terminate.recv() => Signalled::End,
            _ = self.interrupt.recv() => Signalled::End,
            _ = self.hangup.recv() => Signalled::Reload,
        }
    }
}
