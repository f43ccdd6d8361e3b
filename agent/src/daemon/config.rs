//! What meshd is started with: flags over environment over the file of `--config`.

use std::path::{Path, PathBuf};

use clap::Parser;
use serde::Deserialize;

use crate::{
    failure::{Exit, Failure},
    logging::Format,
    nearest::nearest,
};

/// Member of a mesh VPN.
#[derive(Debug, Parser)]
#[command(name = "meshd", version = crate::VERSION, about = "Member of a mesh VPN: the daemon", args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// Directory for keys and state
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Unix socket for the command line [default: /run/mesh/meshd.sock]
    #[arg(long, value_name = "PATH", env = "MESH_SOCKET")]
    pub socket: Option<PathBuf>,
    /// Name of the TUN device [default: mesh0]
    #[arg(long, value_name = "NAME")]
    pub tun: Option<String>,
    /// UDP port; 0 lets the system choose [default: 41641]
    #[arg(long, value_name = "N")]
    pub port: Option<u16>,
    /// TOML file with these settings
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// WireGuard only: keys, addresses and peers from a wg-quick style file, no control server
    #[arg(long = "static", value_name = "FILE", conflicts_with = "map")]
    pub static_file: Option<PathBuf>,
    /// A network map from a file instead of a control server; read again when it changes
    #[arg(long, value_name = "FILE")]
    pub map: Option<PathBuf>,
    /// What to log: error, warn, info, debug, trace, or a list such as info,mesh_core::node=debug [default: info]
    #[arg(long, value_name = "LEVEL", env = "MESH_LOG")]
    pub log: Option<String>,
    /// How to log [default: text]
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub log_format: Option<Format>,
    /// Something else than to run
    #[command(subcommand)]
    pub command: Option<Verb>,
}

/// What meshd does besides running.
#[derive(Clone, Copy, Debug, clap::Subcommand)]
pub enum Verb {
    /// Print a completion script
    Completion {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

/// The settings after all sources were looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Directory for keys and state. Static mode keeps none.
    pub state_dir: PathBuf,
    /// Unix socket for the command line.
    pub socket: PathBuf,
    /// Name of the TUN device.
    pub tun: String,
    /// UDP port; 0 lets the system choose.
    pub port: u16,
    /// The static file.
    pub static_file: Option<PathBuf>,
    /// The file with a network map.
    pub map: Option<PathBuf>,
    /// What to log.
    pub log: String,
    /// How to log.
    pub log_format: Format,
}

/// The file of `--config`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    state_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
    tun: Option<String>,
    port: Option<u16>,
    r#static: Option<PathBuf>,
    map: Option<PathBuf>,
    log: Option<String>,
    log_format: Option<Format>,
}

const KEYS: [&str; 8] = ["state-dir", "socket", "tun", "port", "static", "map", "log", "log-format"];

impl Config {
    /// Puts the sources together.
    ///
    /// # Errors
    /// When the file of `--config` cannot be read or is wrong.
    pub fn new(arguments: Arguments) -> Result<Self, Failure> {
        let file = arguments.config.as_deref().map(File::load).transpose()?.unwrap_or_default();
        Ok(Self {
            state_dir: arguments.state_dir.or(file.state_dir).unwrap_or_else(|| "/var/lib/mesh".into()),
            socket: arguments.socket.or(file.socket).unwrap_or_else(|| crate::local_api::SOCKET.into()),
            tun: arguments.tun.or(file.tun).unwrap_or_else(|| "mesh0".into()),
            port: arguments.port.or(file.port).unwrap_or(41641),
            static_file: arguments.static_file.or(file.r#static),
            map: arguments.map.or(file.map),
            log: arguments.log.or(file.log).unwrap_or_else(|| "info".into()),
            log_format: arguments.log_format.or(file.log_format).unwrap_or_default(),
        })
    }
}

impl File {
    fn load(path: &Path) -> Result<Self, Failure> {
        let refuse = |problem: &dyn core::fmt::Display| {
            Failure::new(Exit::Usage, "bad-config", format!("{}: {problem}", path.display()))
        };
        let text = std::fs::read_to_string(path).map_err(|error| refuse(&error))?;
        Self::parse(&text).map_err(|problem| refuse(&problem))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| told(text, &error))?;
        if let Some(unknown) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
            let hint = nearest(unknown, KEYS).map(|known| format!("; did you mean {known}?")).unwrap_or_default();
            return Err(format!("unknown key {unknown}{hint}"));
        }
        toml::from_str(text).map_err(|error| told(text, &error))
    }
}

/// In one line, where the library takes several.
fn told(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let message = error.message().replace('\n', " ");
    line.map_or_else(|| message.clone(), |line| format!("line {line}: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let path = std::env::temp_dir().join(format!("meshd-config-{}.toml", std::process::id()));
        std::fs::write(&path, "port = 7\ntun = \"t7\"\nlog-format = \"json\"\n").unwrap();
        let arguments = ["meshd", "--config", path.to_str().unwrap(), "--port", "8"];
        let config = Config::new(Arguments::try_parse_from(arguments).unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!((config.port, config.tun.as_str(), config.log_format), (8, "t7", Format::Json));
        assert_eq!(config.state_dir, Path::new("/var/lib/mesh"));
    }

    #[test]
    fn a_wrong_file_is_told_in_one_line() {
        assert_eq!(File::parse("prot = 1").unwrap_err(), "unknown key prot; did you mean port?");
        let error = File::parse("tun = \"a\"\nport = \"x\"").unwrap_err();
        assert!(error.starts_with("line 2: ") && !error.contains('\n'), "{error}");
        assert!(File::parse("port").is_err());
    }
}
