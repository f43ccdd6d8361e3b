//! Logs on stderr.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::failure::{Exit, Failure};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// Sends what is traced at `level` and above to stderr. `level` is a level or a list such as
/// `info,mesh_core::node=debug`.
///
/// # Errors
/// When `level` is no such list.
pub fn init(level: &str, format: Format) -> Result<(), Failure> {
    let filter = EnvFilter::builder().parse(level).map_err(|error| {
        Failure::new(Exit::Usage, "bad-log-level", format!("\"{level}\" is not a log level: {error}"))
            .hint("use error, warn, info, debug or trace, or a list such as info,mesh_core::node=debug")
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        Format::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        Format::Json => builder.json().try_init(),
    }
    .map_err(|error| Failure::new(Exit::Bug, "logging", error))
}
