//! Secrets in a server's state directory, and what to say when it cannot be used.

use std::{io, path::Path};

use super::{Exit, Failure};
use crate::private;

/// Makes the directory for its owner alone, when there is none.
///
/// # Errors
/// When it cannot be made.
pub fn make(path: &Path) -> Result<(), Failure> {
    private::make_directory(path).map_err(|error| cannot_use(path, &error))
}

/// Writes a file that only its owner may read, whole or not at all.
///
/// # Errors
/// When the directory or the file cannot be written.
pub fn write_secret(path: &Path, text: &str) -> Result<(), Failure> {
    private::write(path, text).map_err(|error| cannot_use(path, &error))
}

/// The directory, or a file in it, cannot be used.
#[must_use]
pub fn cannot_use(path: &Path, error: &io::Error) -> Failure {
    let exit = if error.kind() == io::ErrorKind::PermissionDenied { Exit::NotPermitted } else { Exit::Usage };
    let hint = match error.kind() {
        _ if private::is_full(error) => "make room there, or give another directory with --state-dir",
        io::ErrorKind::IsADirectory => "move that directory away and restore the file",
        _ => "give a directory that can be written with --state-dir",
    };
    Failure::new(exit, "state-dir", format!("cannot use {}: {error}", path.display())).hint(hint)
}
