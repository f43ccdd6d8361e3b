//! Settings of a program from the environment and from the file of `--config`.
//!
//! All sources speak the same language: a setting of the environment or of the file is read as if it were given as a flag,
//! so it means the same, is checked alike, and a mistake is told in the same words.

use core::fmt::Display;
use std::{ffi::OsString, fs, path::Path};

use clap::{
    ArgAction, Args, CommandFactory, Parser,
    error::{ContextKind, ErrorKind},
};

use super::{Exit, Failure, failure::sentence};

/// The one setting whose name in the environment all programs share.
const LOG: &str = "MESH_LOG";

/// Where a program's settings come from beside its flags. `S` is what can be said, by one source.
#[derive(Clone, Copy, Debug)]
pub struct Sources {
    /// Program and verb whose flags the settings are.
    pub program: &'static str,
    /// Before the name of a setting in the environment.
    pub prefix: &'static str,
}

/// A source by itself, in the language of flags.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Source<S: Args> {
    #[command(flatten)]
    settings: S,
}

/// Settings of one source, which may be put over those of another.
pub trait Layer: Args + Clone {
    /// These, and those of `lower` where these say nothing. What belongs together comes from one source.
    #[must_use]
    fn over(self, lower: Self) -> Self;
}

/// The names of those that are not the same.
pub fn changed<const N: usize>(checks: [(&'static str, bool); N]) -> Vec<&'static str> {
    checks.into_iter().filter(|(_, is_same)| !is_same).map(|(name, _)| name).collect()
}

impl Sources {
    /// Flags over the environment over a file.
    ///
    /// # Errors
    /// When one of them is wrong.
    pub fn gather<S: Layer>(&self, flags: &S, file: Option<&Path>) -> Result<S, Failure> {
        let settings = flags.clone().over(self.of_environment()?);
        Ok(match file {
            Some(path) => settings.over(self.of_file(path)?),
            None => settings,
        })
    }

    /// What the environment says.
    ///
    /// # Errors
    /// When something in it is wrong.
    pub fn of_environment<S: Args>(&self) -> Result<S, Failure> {
        let command = Source::<S>::command();
        let names = command.get_arguments().filter_map(|argument| argument.get_long());
        let name_of = |key: &str| match key {
            "log" => LOG.to_owned(),
            key => self.prefix.to_owned() + &key.replace('-', "_").to_ascii_uppercase(),
        };
        let said = names.filter_map(|key| Some((key.to_owned(), std::env::var_os(name_of(key))?)));
        self.of_source("the environment", said.collect())
    }

    /// What a file says.
    ///
    /// # Errors
    /// When it cannot be read, or something in it is wrong or not known.
    pub fn of_file<S: Args>(&self, path: &Path) -> Result<S, Failure> {
        let text = fs::read_to_string(path).map_err(|error| self.bad_file(&path.display().to_string(), &error))?;
        self.of_text(&text, &path.display().to_string())
    }

    /// What the text of a file says; `name` is the file's.
    ///
    /// # Errors
    /// As [`Self::of_file`].
    pub fn of_text<S: Args>(&self, text: &str, name: &str) -> Result<S, Failure> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            self.bad_file(name, &format!("line {line}: {}", error.message().replace('\n', " ")))
        })?;
        let mut said = Vec::new();
        for (key, value) in table {
            let value = match value {
                toml::Value::String(text) => text,
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Boolean(switch) => switch.to_string(),
                _ => {
                    let problem = format!("{key} is neither a text nor a number nor true or false");
                    return Err(self.bad_file(name, &problem));
                }
            };
            said.push((key, value.into()));
        }
        self.of_source(name, said)
    }

    fn bad_file(&self, name: &str, problem: &dyn Display) -> Failure {
        Failure::new(Exit::Usage, "bad-config", format!("{name}: {problem}"))
            .hint(format!("correct the file; its keys are the flags of {}", self.program))
    }

    /// Reads names and values as flags.
    fn of_source<S: Args>(&self, name: &str, said: Vec<(String, OsString)>) -> Result<S, Failure> {
        let refuse = |problem: String| {
            Failure::new(Exit::Usage, "bad-config", format!("{name}: {problem}"))
                .hint(format!("see {} --help", self.program))
        };
        let command = Source::<S>::command();
        let mut flags = Vec::new();
        for (key, value) in said {
            let argument = command.get_arguments().find(|argument| argument.get_long() == Some(&key));
            let is_switch = argument.is_some_and(|argument| matches!(argument.get_action(), ArgAction::SetTrue));
            let mut flag = OsString::from(format!("--{key}"));
            if is_switch {
                match value.to_str() {
                    Some("true" | "1") => flags.push(flag),
                    Some("false" | "0" | "") => {}
                    _ => return Err(refuse(format!("{key} is neither true nor false"))),
                }
            } else {
                flag.push("=");
                flag.push(value);
                flags.push(flag);
            }
        }
        match Source::<S>::try_parse_from(flags) {
            Ok(source) => Ok(source.settings),
            Err(error) if error.kind() == ErrorKind::UnknownArgument => {
                let word = |kind| error.get(kind).map(|value| value.to_string().trim_start_matches('-').to_owned());
                let unknown = word(ContextKind::InvalidArg).unwrap_or_default();
                let near = word(ContextKind::SuggestedArg).map(|near| format!("; did you mean {near}?"));
                Err(refuse(format!("unknown key {unknown}{}", near.unwrap_or_default())))
            }
            Err(error) => Err(refuse(sentence(&error))),
        }
    }
}
