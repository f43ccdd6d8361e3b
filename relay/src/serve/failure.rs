//! Why the program ends, in the forms that scripts rely on.

use std::{io::Write, process::ExitCode};

use clap::error::ErrorKind;

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
    hint: String,
}

impl Failure {
    pub(super) fn new(exit: Exit, code: &'static str, message: impl Into<String>) -> Self {
        Self { exit, code, message: message.into(), hint: "see mesh-relay --help".to_owned() }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// What clap says about arguments. Help and version are no failures: they are printed, and the answer is `None`.
    pub(super) fn of_arguments(error: &clap::Error) -> Option<Self> {
        if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
            // Whoever reads may have closed the pipe.
            let _ = error.print();
            return None;
        }
        Some(Self::new(Exit::Usage, "usage", Self::sentence(error)))
    }

    /// What clap says, in one sentence.
    pub(super) fn sentence(error: &clap::Error) -> String {
        let text = error.to_string();
        let mut lines = text.lines().take_while(|line| !line.is_empty()).map(str::trim);
        let first = lines.next().unwrap_or_default();
        match first.strip_prefix("error: ") {
            Some(first) => lines.fold(first.to_owned(), |message, line| message + " " + line),
            // Without a verb clap shows its help instead of a sentence.
            None => "no verb was given".to_owned(),
        }
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// Says it and returns the exit code.
    pub(super) fn report(&self, json: bool) -> ExitCode {
        // Whoever reads may have closed the pipes; the exit code says enough.
        let _ = writeln!(std::io::stderr(), "mesh-relay: {}; {}", self.message, self.hint);
        if json {
            let error = serde_json::json!({
                "error": { "code": self.code, "message": self.message, "hint": self.hint }
            });
            let _ = writeln!(std::io::stdout(), "{error}");
        }
        ExitCode::from(self.exit as u8)
    }
}
