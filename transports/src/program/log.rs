//! Logs on stderr.

use std::io::{IsTerminal, stderr};

use clap::ValueEnum;
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt,
    registry,
    util::SubscriberInitExt,
};

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
    let filter = levels(level).ok_or_else(|| {
        Failure::new(Exit::Usage, "bad-log-level", format!("\"{level}\" is not a log level"))
            .hint(format!("use off, error, warn, info, debug or trace, or a list such as info,{example}"))
    })?;
    let lines = fmt::layer().with_writer(stderr);
    match format {
        LogFormat::Text => registry().with(filter).with(lines.with_ansi(stderr().is_terminal())).try_init(),
        LogFormat::Json => registry().with(filter).with(lines.json()).try_init(),
    }
    .map_err(|error| Failure::new(Exit::Bug, "logging", format!("cannot log: {error}")))
}

/// A level for all, and levels for what begins with a path.
fn levels(list: &str) -> Option<Targets> {
    let items = list.split(',').map(str::trim).filter(|item| !item.is_empty());
    let mut levels = None;
    for item in items {
        let before = levels.unwrap_or_default();
        levels = Some(match item.split_once('=') {
            None => Targets::with_default(before, level(item)?),
            Some((path, of)) => {
                let is_path = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':' | b'-');
                if path.is_empty() || !path.bytes().all(is_path) {
                    return None;
                }
                Targets::with_target(before, path, level(of)?)
            }
        });
    }
    levels
}

/// To tracing no word at all is a level, too.
fn level(word: &str) -> Option<LevelFilter> {
    word.parse().ok().filter(|_| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn levels_are_for_all_or_for_a_path() {
        let check = |list: &str, target: &str, level: Level, expected: bool| {
            assert_eq!(levels(list).unwrap().would_enable(target, &level), expected, "{list}: {target} {level}");
        };
        for list in ["info", "INFO,", " info , ", "mesh_core::path=trace,info"] {
            check(list, "tokio", Level::INFO, true);
            check(list, "tokio", Level::DEBUG, false);
        }
        check("info,mesh_core::path=trace", "mesh_core::path::score", Level::TRACE, true);
        check("info,mesh_core=off", "mesh_core", Level::ERROR, false);
        check("off", "mesh_core", Level::ERROR, false);
        check("mesh_core=debug", "tokio", Level::ERROR, false);
    }

    #[test]
    fn what_is_no_level_is_refused() {
        for list in ["", ",", "inof", "=debug", "mesh_core=", "mesh_core=inof", "a[span]=info", "a b=info"] {
            assert!(levels(list).is_none(), "{list}");
        }
    }
}
