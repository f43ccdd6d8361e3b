//! Logs on stderr.

use std::io::{IsTerminal, stderr};

use clap::ValueEnum;
use tracing_subscriber::{filter::Targets, fmt, layer::SubscriberExt, registry, util::SubscriberInitExt};

use super::{Exit, Failure};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// Sends what is traced at `level` and above to stderr. `level` is a level or a list; `example` is one of its items for
/// who gave something else, such as `mesh_core::node=debug`.
///
/// # Errors
/// When `level` is no such list.
pub fn log(level: &str, format: LogFormat, example: &str) -> Result<(), Failure> {
    let filter: Targets = level.parse().map_err(|error| {
        Failure::new(Exit::Usage, "bad-log-level", format!("\"{level}\" is not a log level: {error}"))
            .hint(format!("use error, warn, info, debug or trace, or a list such as info,{example}"))
    })?;
    let lines = fmt::layer().with_writer(stderr);
    match format {
        LogFormat::Text => registry().with(filter).with(lines.with_ansi(stderr().is_terminal())).try_init(),
        LogFormat::Json => registry().with(filter).with(lines.json()).try_init(),
    }
    .map_err(|error| Failure::new(Exit::Bug, "logging", format!("cannot log: {error}")))
}
