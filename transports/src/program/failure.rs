//! Why a program ends, in the forms that scripts rely on.

use core::fmt;
use std::{
    borrow::Cow,
    io::Write,
    panic::{UnwindSafe, catch_unwind},
    process::ExitCode,
};

use clap::error::ErrorKind;
use mesh_core::printable;
use serde::Deserialize;

/// Exit codes of all programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The answer is no, or something is refused or in use.
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

/// Why a program ends without having done its work, or why a daemon says no: what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    exit: Exit,
    code: Cow<'static, str>,
    message: String,
    hint: String,
    about_text: bool,
}

/// Runs a program: its work, then how it ended. With `json` a failure is an object on stdout as well.
pub fn run(program: &str, json: bool, work: impl FnOnce() -> Result<(), Failure> + UnwindSafe) -> ExitCode {
    // Unwinding lets drops take back what was done to the host.
    match catch_unwind(work) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => failure.report(program, json),
        // The panic has said on stderr what and where.
        Err(_) => ExitCode::from(Exit::Bug as u8),
    }
}

/// Whether the arguments of the process ask for JSON. Looked at before anything can go wrong with the other arguments.
#[must_use]
pub fn wants_json() -> bool {
    std::env::args_os().skip(1).take_while(|argument| argument != "--").any(|argument| argument == "--json")
}

impl Failure {
    /// A failure without a hint. `code` is a stable word for scripts, `message` one sentence without full stop.
    #[must_use]
    pub fn new(exit: Exit, code: impl Into<Cow<'static, str>>, message: impl fmt::Display) -> Self {
        Self { exit, code: code.into(), message: message.to_string(), hint: String::new(), about_text: false }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = hint.to_string();
        self
    }

    /// The same; where nothing says what to do, it is to read the help of `program`.
    #[must_use]
    pub fn or_see_help(self, program: &str) -> Self {
        if self.hint.is_empty() { self.hint(format_args!("see {program} --help")) } else { self }
    }

    /// An end without words: what was printed says it.
    #[must_use]
    pub fn silent(exit: Exit) -> Self {
        Self::new(exit, "", "")
    }

    /// The same about a text, whose place the message begins with: the program's name does not come before it.
    #[must_use]
    pub fn about_text(mut self) -> Self {
        self.about_text = true;
        self
    }

    /// What clap says about arguments. Help and version are no failures: they are printed, and the answer is `None`.
    #[must_use]
    pub fn of_arguments(error: &clap::Error) -> Option<Self> {
        if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
            // Whoever reads may have closed the pipe.
            let _ = error.print();
            return None;
        }
        Some(Self::new(Exit::Usage, "usage", sentence(error)))
    }

    /// The exit code.
    #[must_use]
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// The word for scripts.
    #[must_use]
    pub fn code(&self) -> &str {
        &self.code
    }

    /// What is wrong.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do about it; may be empty.
    #[must_use]
    pub fn what_to_do(&self) -> &str {
        &self.hint
    }

    /// The object for scripts.
    #[must_use]
    pub fn to_json(&self) -> String {
        let error = serde_json::json!({ "code": self.code, "message": self.message, "hint": self.hint });
        printable::json(&serde_json::json!({ "error": error }).to_string()).into_owned()
    }

    /// What [`Self::to_json`] made, for who asked and whose program ends with it. `None` when it is something else.
    #[must_use]
    pub fn of_json(exit: Exit, object: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Object {
            error: Parts,
        }
        #[derive(Deserialize)]
        struct Parts {
            code: String,
            message: String,
            hint: String,
        }
        let Object { error } = serde_json::from_slice(object).ok()?;
        Some(Self::new(exit, error.code, error.message).hint(error.hint))
    }

    /// Says it as `program` and returns the exit code.
    fn report(&self, program: &str, json: bool) -> ExitCode {
        if self.message.is_empty() {
            return ExitCode::from(self.exit as u8);
        }
        // Whoever reads may have closed the pipes; the exit code says enough.
        let _ = writeln!(std::io::stderr(), "{}", self.said(program));
        if json {
            let _ = writeln!(std::io::stdout(), "{}", self.to_json());
        }
        ExitCode::from(self.exit as u8)
    }

    /// What people read.
    fn said(&self, program: &str) -> String {
        if self.about_text {
            return printable::lines(&self.message).into_owned();
        }
        format!("{program}: {self}")
    }
}

/// For people, in one line: texts of others in it steer no terminal.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable::line(&self.message))?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "; {}", printable::line(&self.hint)) }
    }
}

impl std::error::Error for Failure {}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_said_is_shown_and_not_obeyed() {
        let failure = Failure::new(Exit::Refused, "refused", "no\x1b[2J\nmesh: all is well").hint("visit \u{9b}2J");
        assert_eq!(failure.said("mesh-x"), "mesh-x: no\\u{1b}[2J\\nmesh: all is well; visit \\u{9b}2J");
        let object = failure.to_json();
        assert!(!object.contains(char::is_control), "{object}");
        assert_eq!(Failure::of_json(Exit::Refused, object.as_bytes()).as_ref(), Some(&failure));
        assert_eq!(Failure::of_json(Exit::Refused, b"{\"error\":1}"), None);
        assert_eq!(failure.about_text().said("mesh-x"), "no\\u{1b}[2J\nmesh: all is well");
    }

    #[test]
    fn the_help_is_pointed_to_where_nothing_else_is() {
        let failure = Failure::new(Exit::Usage, "usage", "no");
        assert_eq!(failure.said("mesh"), "mesh: no");
        assert_eq!(failure.clone().or_see_help("mesh").said("mesh"), "mesh: no; see mesh --help");
        assert_eq!(failure.hint("do").or_see_help("mesh").what_to_do(), "do");
    }
}
