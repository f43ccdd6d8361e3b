//! What meshd is started with: flags over environment over the file of `--config`.

use std::path::PathBuf;

use clap::{Args, Parser};
use transports::program::{Failure, Layer, LogFormat, Sources};

/// The file says what the flags say. Of the environment there are `MESH_SOCKET` and `MESH_LOG`, which all programs share.
const FILE: Sources = Sources { program: "meshd", prefix: "MESH_" };

/// Member of a mesh VPN.
#[derive(Debug, Parser)]
#[command(name = "meshd", version = crate::VERSION, about = "Member of a mesh VPN: the daemon", args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// TOML file with these settings
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What can be said in the file too
    #[command(flatten)]
    pub settings: Settings,
    /// Something else than to run
    #[command(subcommand)]
    pub command: Option<Verb>,
}

/// What can be said, by one source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_line_help = false)]
pub struct Settings {
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
    pub log_format: Option<LogFormat>,
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
    pub log_format: LogFormat,
}

impl Config {
    /// Puts the sources together.
    ///
    /// # Errors
    /// When the file of `--config` cannot be read or is wrong.
    pub fn new(arguments: Arguments) -> Result<Self, Failure> {
        let Arguments { config, settings, command: _ } = arguments;
        Ok(match config {
            Some(path) => settings.over(FILE.of_file(&path)?),
            None => settings,
        }
        .into_config())
    }
}

impl Layer for Settings {
    fn over(self, lower: Self) -> Self {
        let says_network = self.static_file.is_some() || self.map.is_some();
        let (static_file, map) =
            if says_network { (self.static_file, self.map) } else { (lower.static_file, lower.map) };
        Self {
            state_dir: self.state_dir.or(lower.state_dir),
            socket: self.socket.or(lower.socket),
            tun: self.tun.or(lower.tun),
            port: self.port.or(lower.port),
            static_file,
            map,
            log: self.log.or(lower.log),
            log_format: self.log_format.or(lower.log_format),
        }
    }
}

impl Settings {
    fn into_config(self) -> Config {
        Config {
            state_dir: self.state_dir.unwrap_or_else(|| "/var/lib/mesh".into()),
            socket: self.socket.unwrap_or_else(|| crate::local_api::SOCKET.into()),
            tun: self.tun.unwrap_or_else(|| "mesh0".into()),
            port: self.port.unwrap_or(41641),
            static_file: self.static_file,
            map: self.map,
            log: self.log.unwrap_or_else(|| "info".into()),
            log_format: self.log_format.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let path = std::env::temp_dir().join(format!("meshd-config-{}.toml", std::process::id()));
        std::fs::write(&path, "port = 7\ntun = \"t7\"\nlog-format = \"json\"\n").unwrap();
        let arguments = ["meshd", "--config", path.to_str().unwrap(), "--port", "8"];
        let config = Config::new(Arguments::try_parse_from(arguments).unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!((config.port, config.tun.as_str(), config.log_format), (8, "t7", LogFormat::Json));
        assert_eq!(config.state_dir, Path::new("/var/lib/mesh"));
    }

    #[test]
    fn where_the_network_comes_from_is_said_by_one_source() {
        let file = FILE.of_text::<Settings>("static = \"s\"", "f").unwrap();
        let flags = Arguments::try_parse_from(["meshd", "--map", "m"]).unwrap().settings;
        let config = flags.over(file).into_config();
        assert_eq!((config.static_file, config.map), (None, Some("m".into())));
    }

    #[test]
    fn a_wrong_file_is_told_in_one_line() {
        let told = |text: &str| FILE.of_text::<Settings>(text, "f").unwrap_err().message().to_owned();
        assert_eq!(told("prot = 1"), "f: unknown key prot; did you mean port?");
        assert_eq!(told("tun = \"a\"\nport ="), "f: line 2: string values must be quoted, expected literal string");
        assert_eq!(told("port = \"x\""), "f: invalid value 'x' for '--port <N>': invalid digit found in string");
        assert!(told("static = \"s\"\nmap = \"m\"").contains("cannot be used with"));
    }
}
