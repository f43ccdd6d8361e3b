//! Why the program ends, in the forms that scripts rely on.

use std::process::ExitCode;

/// Exit codes of all programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// Refused, or in use.
    Refused = 1,
    /// Usage or configuration.
    Usage = 2,
    /// Not permitted.
    NotPermitted = 4,
    /// A bug of ours.
    Bug = 70,
}

/// What is wrong and what to do.
#[derive(Debug)]
pub(super) struct Failure {
    exit: Exit,
    code: &'static str,
    message: String,
    hint: &'static str,
}

impl Failure {
    pub(super) fn new(exit: Exit, code: &'static str, message: impl Into<String>) -> Self {
        Self { exit, code, message: message.into(), hint: "see mesh-relay --help" }
    }

    pub(super) fn hint(mut self, hint: &'static str) -> Self {
        self.hint = hint;
        self
    }

    /// Says it and returns the exit code.
    #[expect(clippy::print_stderr, clippy::print_stdout, reason = "the one sentence that a failure owes")]
    pub(super) fn report(&self, json: bool) -> ExitCode {
        eprintln!("mesh-relay: {}; {}", self.message, self.hint);
        if json {
            let error = serde_json::json!({
                "error": { "code": self.code, "message": self.message, "hint": self.hint }
            });
            println!("{error}");
        }
        ExitCode::from(self.exit as u8)
    }
}
