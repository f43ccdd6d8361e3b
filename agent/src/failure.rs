//! What ends a program: a sentence, what to do, and an exit code.

use core::fmt;
use std::process::ExitCode;

use serde_json::json;

/// Exit codes of all programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The answer is no, or something is refused.
    Refused = 1,
    /// Usage or configuration.
    Usage = 2,
    /// The program talked to is not running or not reachable.
    Unreachable = 3,
    /// Not permitted.
    NotPermitted = 4,
    /// A bug of ours.
    Bug = 70,
}

/// Why a program ends without having done its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// A stable word for scripts.
    pub code: &'static str,
    /// What is wrong, in one sentence without full stop.
    pub message: String,
    /// What to do about it; may be empty.
    pub hint: String,
}

impl Failure {
    /// A failure without a hint.
    #[must_use]
    pub fn new(exit: Exit, code: &'static str, message: impl fmt::Display) -> Self {
        Self { exit, code, message: message.to_string(), hint: String::new() }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = hint.to_string();
        self
    }

    /// The object that `--json` puts on stdout.
    #[must_use]
    pub fn to_json(&self) -> String {
        json!({"error": {"code": self.code, "message": self.message, "hint": self.hint}}).to_string()
    }
}

impl From<&Failure> for ExitCode {
    fn from(failure: &Failure) -> Self {
        Self::from(failure.exit as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "; {}", self.hint) }
    }
}

impl std::error::Error for Failure {}
