//! What all programs have in common, so that whoever scripts one of them knows the others.
//!
//! A program runs ([`run`]) and ends well, or with a [`Failure`]: a sentence, what to do about it, a word for scripts and
//! an [`Exit`] code. Servers take their settings from flags, the environment and a file ([`Sources`]), log to stderr
//! ([`log`]), listen ([`listener`]), keep secrets in a directory of their own ([`state_dir`]), bound what strangers
//! can make them log ([`Told`]), and end or read their
//! configuration again when a signal says so ([`Signals`]).

mod failure;
pub mod listener;
mod log;
mod signals;
mod source;
pub mod state_dir;
mod told;

use std::io::{self, Write};

use tokio::runtime::{Builder, Runtime};

pub use failure::{Exit, Failure, run, wants_json};
pub use log::{LogFormat, log};
pub use signals::{Signalled, Signals};
pub use source::{Layer, Sources, changed};
pub use told::Told;

/// Prints a line of what a program has to say. Whoever reads may have closed the pipe.
pub fn print(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// How many files may be open at once, after as many were asked for as the system gives: each client of a server is one.
#[must_use]
pub fn open_files() -> usize {
    // Where the system does not say, it does not bound them either.
    rlimit::increase_nofile_limit(u64::MAX).map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX))
}

/// A runtime on the thread that asks for it.
///
/// # Errors
/// When the system refuses what it needs.
pub fn runtime() -> Result<Runtime, Failure> {
    Builder::new_current_thread().enable_all().build().map_err(|error| cannot_start(&error))
}

/// The system refuses what any program needs.
#[must_use]
pub fn cannot_start(error: &io::Error) -> Failure {
    Failure::new(Exit::Bug, "runtime", format!("cannot start: {error}"))
}
