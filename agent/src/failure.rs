//! What ends a program: a sentence, what to do, and an exit code.

use core::fmt;
use std::process::ExitCode;

use mesh_core::printable;
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
    /// Somebody has to sign in, or the key that was shown is not taken.
    SignIn = 5,
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
        let object = json!({"error": {"code": self.code, "message": self.message, "hint": self.hint}}).to_string();
        printable::json(&object).into_owned()
    }
}

impl Failure {
    /// What clap says about arguments, in one sentence. Help and version are no failures: they are printed, and the
    /// answer is `None`.
    #[must_use]
    pub fn of_arguments(error: &clap::Error, program: &str) -> Option<Self> {
        use clap::error::ErrorKind;
        if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
            // Whoever reads may have closed the pipe.
            let _ = error.print();
            return None;
        }
        let text = error.to_string();
        let mut lines = text.lines().take_while(|line| !line.is_empty()).map(str::trim);
        let first = lines.next().unwrap_or_default();
        let message = match first.strip_prefix("error: ") {
            Some(first) => lines.fold(first.to_owned(), |message, line| message + " " + line),
            // Without a verb clap shows its help instead of a sentence.
            None => "no verb was given".to_owned(),
        };
        Some(Self::new(Exit::Usage, "usage", message).hint(format_args!("see {program} --help")))
    }
}

impl From<&Failure> for ExitCode {
    fn from(failure: &Failure) -> Self {
        Self::from(failure.exit as u8)
    }
}

/// For people: texts of others in it steer no terminal.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable::line(&self.message))?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "; {}", printable::line(&self.hint)) }
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_said_is_shown_and_not_obeyed() {
        let failure = Failure::new(Exit::Refused, "refused", "no\x1b[2J\nmesh: all is well").hint("visit \u{9b}2J");
        assert_eq!(failure.to_string(), "no\\u{1b}[2J\\nmesh: all is well; visit \\u{9b}2J");
        let object = failure.to_json();
        assert!(!object.contains(char::is_control), "{object}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&object).unwrap()["error"]["message"], failure.message);
    }
}
