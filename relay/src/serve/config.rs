//! What the program is started with: flags over environment over the file of `--config`.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::Args;
use transports::program::{Exit, Failure, Layer, LogFormat, Sources, changed};

use crate::hub::Rate;

const SOURCES: Sources = Sources { program: "mesh-relay serve", prefix: "MESH_RELAY_" };

/// What can be said, by one source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_line_help = false)]
pub(super) struct Settings {
    /// Name or address under which clients find the relay
    #[arg(long, value_name = "H")]
    host: Option<String>,
    /// Where keys and the certificate are kept [default: /var/lib/mesh-relay]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Address for clients, over TLS; [::]:443 takes both families [default: 0.0.0.0:443]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Address for STUN [default: 0.0.0.0:3478]
    #[arg(long, value_name = "ADDR")]
    stun_listen: Option<SocketAddr>,
    /// A certificate chain that somebody else takes care of, in PEM; it is not pinned, and read again at SIGHUP
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// No TLS: for tests
    #[arg(long, conflicts_with_all = ["tls_cert", "tls_key"])]
    no_tls: bool,
    /// Whom to ask who may connect: http://HOST[:PORT]/PATH, or https
    #[arg(long, value_name = "URL", conflicts_with = "open")]
    verify_url: Option<String>,
    /// Let everybody connect
    #[arg(long)]
    open: bool,
    /// Number of the region in a DERP map [default: 900]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    region_id: Option<u16>,
    /// Short name of the region [default: mesh]
    #[arg(long, value_name = "C")]
    region_code: Option<String>,
    /// Bytes a second that one client may send in the long run; over it, reading from it is delayed [default: no bound]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    client_rate: Option<u64>,
    /// Bytes that it may send at once; at least one packet of the largest size passes
    #[arg(long, value_name = "BYTES", requires = "client_rate")]
    client_burst: Option<u64>,
    /// Address for metrics, over plain HTTP at /metrics; not for strangers
    #[arg(long, value_name = "ADDR")]
    metrics_listen: Option<SocketAddr>,
    /// What to log: error, warn, info, debug, trace, or a list such as info,relay::conn=debug [default: info]
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
    /// How to log [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

/// What the program does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) host: String,
    pub(super) state_dir: PathBuf,
    pub(super) listen: SocketAddr,
    pub(super) stun_listen: SocketAddr,
    pub(super) metrics_listen: Option<SocketAddr>,
    pub(super) tls: Tls,
    /// Nobody said: `serve` refuses that.
    pub(super) admit: Option<Admit>,
    pub(super) region_id: u16,
    pub(super) region_code: String,
    pub(super) client_rate: Option<Rate>,
    pub(super) log: String,
    pub(super) log_format: LogFormat,
}

/// What the stream is wrapped in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tls {
    /// With a certificate of our own, which clients pin.
    SelfSigned,
    /// With one that somebody else takes care of.
    Files { chain: PathBuf, key: PathBuf },
    /// Nothing.
    None,
}

/// Who may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Admit {
    Everybody,
    /// Those that this URL lets in.
    Asked(String),
}

impl Config {
    /// Puts the sources together.
    ///
    /// # Errors
    /// When one of them is wrong, or nobody said the host.
    pub(super) fn gather(flags: &Settings, file: Option<&Path>) -> Result<Self, Failure> {
        SOURCES.gather(flags, file)?.into_config()
    }

    /// What differs in another one and counts only at the next start.
    pub(super) fn fixed_changes(&self, new: &Self) -> Vec<&'static str> {
        changed([
            ("host", self.host == new.host),
            ("state-dir", self.state_dir == new.state_dir),
            ("listen", self.listen == new.listen),
            ("stun-listen", self.stun_listen == new.stun_listen),
            ("metrics-listen", self.metrics_listen == new.metrics_listen),
            ("tls-cert, tls-key, no-tls", self.tls == new.tls),
            ("verify-url, open", self.admit == new.admit),
            ("log, log-format", (&self.log, self.log_format) == (&new.log, new.log_format)),
        ])
    }
}

impl Layer for Settings {
    fn over(self, lower: Self) -> Self {
        let says_tls = self.no_tls || self.tls_cert.is_some();
        let (tls_cert, tls_key, no_tls) = if says_tls {
            (self.tls_cert, self.tls_key, self.no_tls)
        } else {
            (lower.tls_cert, lower.tls_key, lower.no_tls)
        };
        let says_who = self.open || self.verify_url.is_some();
        let (verify_url, open) = if says_who { (self.verify_url, self.open) } else { (lower.verify_url, lower.open) };
        let says_rate = self.client_rate.is_some();
        let (client_rate, client_burst) =
            if says_rate { (self.client_rate, self.client_burst) } else { (lower.client_rate, lower.client_burst) };
        Self {
            host: self.host.or(lower.host),
            state_dir: self.state_dir.or(lower.state_dir),
            listen: self.listen.or(lower.listen),
            stun_listen: self.stun_listen.or(lower.stun_listen),
            tls_cert,
            tls_key,
            no_tls,
            verify_url,
            open,
            region_id: self.region_id.or(lower.region_id),
            region_code: self.region_code.or(lower.region_code),
            client_rate,
            client_burst,
            metrics_listen: self.metrics_listen.or(lower.metrics_listen),
            log: self.log.or(lower.log),
            log_format: self.log_format.or(lower.log_format),
        }
    }
}

impl Settings {
    fn into_config(self) -> Result<Config, Failure> {
        let host = self.host.filter(|host| !host.is_empty()).ok_or_else(|| {
            Failure::new(Exit::Usage, "no-host", "under which name clients find the relay is not said")
                .hint("give --host NAME, or --host ADDRESS")
        })?;
        let tls = match (self.tls_cert, self.tls_key) {
            (Some(chain), Some(key)) => Tls::Files { chain, key },
            _ if self.no_tls => Tls::None,
            _ => Tls::SelfSigned,
        };
        let everybody = self.open.then_some(Admit::Everybody);
        let rate = |bytes_per_second| Rate { bytes_per_second, burst_bytes: self.client_burst.unwrap_or(0) };
        Ok(Config {
            host,
            state_dir: self.state_dir.unwrap_or_else(|| "/var/lib/mesh-relay".into()),
            listen: self.listen.unwrap_or(SocketAddr::from(([0; 4], 443))),
            stun_listen: self.stun_listen.unwrap_or(SocketAddr::from(([0; 4], 3478))),
            metrics_listen: self.metrics_listen,
            tls,
            admit: self.verify_url.map(Admit::Asked).or(everybody),
            region_id: self.region_id.unwrap_or(900),
            region_code: self.region_code.unwrap_or_else(|| "mesh".to_owned()),
            client_rate: self.client_rate.map(rate),
            log: self.log.unwrap_or_else(|| "info".to_owned()),
            log_format: self.log_format.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::serve::{Arguments, Verb};

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file = SOURCES
            .of_text::<Settings>("host = \"a\"\nregion-id = 7\nlog-format = \"json\"\nopen = true", "f")
            .unwrap();
        let config = flags(&["--host", "b"]).over(file).into_config().unwrap();
        assert_eq!((config.host.as_str(), config.region_id, config.log_format), ("b", 7, LogFormat::Json));
        assert_eq!(config.admit, Some(Admit::Everybody));
        assert_eq!(config.listen.to_string(), "0.0.0.0:443");
    }

    #[test]
    fn what_belongs_together_comes_from_one_source() {
        let file = "host = \"a\"\nopen = true\nno-tls = true\nclient-rate = 9\nclient-burst = 99";
        let file = SOURCES.of_text::<Settings>(file, "f").unwrap();
        let flags = flags(&["--verify-url", "http://c/", "--tls-cert", "c", "--tls-key", "k", "--client-rate", "5"]);
        let config = flags.over(file).into_config().unwrap();
        assert_eq!(config.admit, Some(Admit::Asked("http://c/".to_owned())));
        assert_eq!(config.tls, Tls::Files { chain: "c".into(), key: "k".into() });
        assert_eq!(config.client_rate, Some(Rate { bytes_per_second: 5, burst_bytes: 0 }));
    }

    #[test]
    fn a_wrong_file_is_told_in_one_line() {
        let told = |text: &str| SOURCES.of_text::<Settings>(text, "f").unwrap_err().message().to_owned();
        assert_eq!(told("lisen = \"0.0.0.0:1\""), "f: unknown key lisen; did you mean listen?");
        assert_eq!(told("colour = 1"), "f: unknown key colour");
        assert_eq!(told("config = \"x\""), "f: unknown key config");
        assert_eq!(told("host = \"a\"\nlisten ="), "f: line 2: string values must be quoted, expected literal string");
        assert_eq!(told("host = [1]"), "f: host is neither a text nor a number nor true or false");
        assert_eq!(told("open = \"maybe\""), "f: open is neither true nor false");
        assert_eq!(told("listen = 443"), "f: invalid value '443' for '--listen <ADDR>': invalid socket address syntax");
        assert!(told("open = true\nverify-url = \"http://c\"").contains("cannot be used with"));
        assert!(told("tls-cert = \"c\"").contains("--tls-key"));
    }

    #[test]
    fn no_host_is_said() {
        assert!(flags(&["--open"]).into_config().unwrap_err().message().contains("is not said"));
    }

    #[test]
    fn what_counts_at_the_next_start_is_named() {
        let with = |line: &[&str]| flags(line).into_config().unwrap();
        let old = with(&["--host", "h", "--open"]);
        let new = with(&["--host", "h", "--open", "--client-rate", "5", "--listen", "[::]:443"]);
        assert_eq!(old.fixed_changes(&new), ["listen"]);
    }

    fn flags(line: &[&str]) -> Settings {
        let arguments = Arguments::try_parse_from(["mesh-relay", "serve"].iter().chain(line)).unwrap();
        match arguments.verb {
            Verb::Serve(flags) => flags.settings,
            verb => panic!("{verb:?}"),
        }
    }
}
