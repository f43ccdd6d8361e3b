//! Why a program ends, in the forms that scripts rely on. Shared with the control server, whose program keeps the same
//! contract.

use std::{
    borrow::Cow,
    io::Write,
    panic::{UnwindSafe, catch_unwind},
    process::ExitCode,
};

use clap::error::ErrorKind;
use mesh_core::printable;

/// Exit codes of all programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Refused, or in use.
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

/// What is wrong and what to do.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    code: Cow<'static, str>,
    message: String,
    hint: String,
    about_text: bool,
}

/// Runs a program: its work with the arguments of the process, then how it ended.
pub fn run(program: &str, work: impl FnOnce() -> Result<(), Failure> + UnwindSafe) -> ExitCode {
    // Asked for before anything can go wrong with the other arguments.
    let json = std::env::args_os().any(|argument| argument == "--json");
    match catch_unwind(work) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => failure.report(program, json),
        // The panic has said on stderr what and where.
        Err(_) => ExitCode::from(Exit::Bug as u8),
    }
}

impl Failure {
    /// A failure without a hint: where to find help is said then. `code` is a word for programs.
    #[must_use]
    pub fn new(exit: Exit, code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { exit, code: code.into(), message: message.into(), hint: String::new(), about_text: false }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
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
        Some(Self::new(Exit::Usage, "usage", Self::sentence(error)))
    }

    /// What clap says, in one sentence.
    #[must_use]
    pub fn sentence(error: &clap::Error) -> String {
        let text = error.to_string();
        let mut lines = text.lines().take_while(|line| !line.is_empty()).map(str::trim);
        let first = lines.next().unwrap_or_default();
        match first.strip_prefix("error: ") {
            Some(first) => lines.fold(first.to_owned(), |message, line| message + " " + line),
            // Without a verb clap shows its help instead of a sentence.
            None => "no verb was given".to_owned(),
        }
    }

    /// What is wrong.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The word for programs.
    #[must_use]
    pub fn code(&self) -> &str {
        &self.code
    }

    /// Says it as `program` and returns the exit code.
    #[must_use]
    pub fn report(&self, program: &str, json: bool) -> ExitCode {
        if self.message.is_empty() {
            return ExitCode::from(self.exit as u8);
        }
        let help = format!("see {program} --help");
        let hint = if self.hint.is_empty() { &help } else { &self.hint };
        // Whoever reads may have closed the pipes; the exit code says enough.
        let _ = writeln!(std::io::stderr(), "{}", self.said(program, hint));
        if json {
            let error = serde_json::json!({
                "error": { "code": self.code, "message": self.message, "hint": hint }
            });
            let _ = writeln!(std::io::stdout(), "{}", printable::json(&error.to_string()));
        }
        ExitCode::from(self.exit as u8)
    }

    /// What people read. Texts of others in it steer no terminal.
    fn said(&self, program: &str, hint: &str) -> String {
        if self.about_text {
            return printable::lines(&self.message).into_owned();
        }
        printable::line(&format!("{program}: {}; {hint}", self.message)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_said_is_shown_and_not_obeyed() {
        let failure = Failure::new(Exit::Refused, "refused", "no node \x1b[2J\nall is well");
        assert_eq!(failure.said("mesh-x", "hint"), "mesh-x: no node \\u{1b}[2J\\nall is well; hint");
        assert_eq!(failure.about_text().said("mesh-x", "hint"), "no node \\u{1b}[2J\nall is well");
    }
}
