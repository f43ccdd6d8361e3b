//! What the program is started with: flags over environment over the file of `--config`.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use hyper::Uri;
use transports::program::{Exit, Failure, Layer, LogFormat, Sources, changed};

const SOURCES: Sources = Sources { program: "mesh-control serve", prefix: "MESH_CONTROL_" };

/// Where the socket is when nobody says otherwise.
pub(super) const SOCKET: &str = "/run/mesh-control/control.sock";

/// What can be said, by one source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_line_help = false)]
pub(super) struct Settings {
    /// Where nodes reach the server: https://HOST[:PORT], or http
    #[arg(long, value_name = "URL")]
    server_url: Option<String>,
    /// Where keys and the database are kept [default: /var/lib/mesh-control]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Address for nodes [default: 0.0.0.0:443 with a certificate, 0.0.0.0:8080 without]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// A certificate chain, in PEM; read again at SIGHUP
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// With a certificate: address for plain HTTP beside it, or none [default: 0.0.0.0:80]
    #[arg(long, value_name = "ADDR|none", value_parser = Place::parse)]
    http_listen: Option<Place>,
    /// What the names of nodes end in [default: mesh.internal]
    #[arg(long, value_name = "D")]
    base_domain: Option<String>,
    /// A relay in this process, or none [default: embedded]
    #[arg(long, value_name = "WHICH")]
    relay: Option<RelayKind>,
    /// Name or address under which clients find the embedded relay [default: the host of --server-url]
    #[arg(long, value_name = "H")]
    relay_host: Option<String>,
    /// Address of the embedded relay for clients, over TLS [default: 0.0.0.0:443]
    #[arg(long, value_name = "ADDR")]
    derp_listen: Option<SocketAddr>,
    /// Address of the embedded relay for STUN [default: 0.0.0.0:3478]
    #[arg(long, value_name = "ADDR")]
    stun_listen: Option<SocketAddr>,
    /// Other relays: a DERP map in JSON; read again at SIGHUP
    #[arg(long, value_name = "FILE")]
    derp_map: Option<PathBuf>,
    /// What a network that has no policy yet begins with: own (users reach what is theirs), all (everybody reaches
    /// everything), or a file with a policy [default: none, which allows nothing]
    #[arg(long, value_name = "own|all|FILE", value_parser = FirstPolicy::parse)]
    first_policy: Option<FirstPolicy>,
    /// Address for metrics, over plain HTTP at /metrics; not for strangers
    #[arg(long, value_name = "ADDR")]
    metrics_listen: Option<SocketAddr>,
    /// What to log: error, warn, info, debug, trace, or a list such as info,control::coordinator=debug [default: info]
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
    /// How to log [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

/// Whether a relay runs in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum RelayKind {
    /// It does.
    Embedded,
    /// It does not.
    None,
}

/// An address, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    At(SocketAddr),
    Nowhere,
}

impl Place {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::Nowhere),
            text => text.parse().map(Self::At).map_err(|_| "neither an address with a port nor none".to_owned()),
        }
    }
}

/// The policy that is stored at a start that finds none; one that is stored is never touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FirstPolicy {
    Own,
    All,
    File(PathBuf),
}

impl FirstPolicy {
    /// Never fails: whether the file can be read shows when it is needed.
    fn parse(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "own" => Self::Own,
            "all" => Self::All,
            file => Self::File(file.into()),
        })
    }
}

/// What the program does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Config {
    /// Without a slash at the end.
    pub(super) server_url: String,
    /// The host of it, without brackets.
    pub(super) host: String,
    pub(super) state_dir: PathBuf,
    pub(super) listen: SocketAddr,
    pub(super) tls: Option<TlsFiles>,
    /// Plain HTTP beside TLS.
    pub(super) http_listen: Option<SocketAddr>,
    pub(super) base_domain: String,
    pub(super) relay: Option<RelayConfig>,
    pub(super) derp_map: Option<PathBuf>,
    pub(super) first_policy: Option<FirstPolicy>,
    pub(super) metrics_listen: Option<SocketAddr>,
    pub(super) log: String,
    pub(super) log_format: LogFormat,
}

/// A certificate that somebody else takes care of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TlsFiles {
    pub(super) chain: PathBuf,
    pub(super) key: PathBuf,
}

/// The relay in this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RelayConfig {
    pub(super) host: String,
    pub(super) listen: SocketAddr,
    pub(super) stun_listen: SocketAddr,
}

impl Config {
    /// Puts the sources together.
    ///
    /// # Errors
    /// When one of them is wrong, or what must be said is not.
    pub(super) fn gather(flags: &Settings, file: Option<&Path>) -> Result<Self, Failure> {
        SOURCES.gather(flags, file)?.into_config()
    }

    /// What differs in another one and counts only at the next start.
    pub(super) fn fixed_changes(&self, new: &Self) -> Vec<&'static str> {
        changed([
            ("server-url", self.server_url == new.server_url),
            ("state-dir", self.state_dir == new.state_dir),
            ("listen", self.listen == new.listen),
            ("http-listen", self.http_listen == new.http_listen),
            ("tls-cert, tls-key", self.tls == new.tls),
            ("base-domain", self.base_domain == new.base_domain),
            ("relay, relay-host, derp-listen, stun-listen", self.relay == new.relay),
            ("derp-map", self.derp_map == new.derp_map),
            ("first-policy", self.first_policy == new.first_policy),
            ("metrics-listen", self.metrics_listen == new.metrics_listen),
            ("log, log-format", (&self.log, self.log_format) == (&new.log, new.log_format)),
        ])
    }
}

impl Layer for Settings {
    fn over(self, lower: Self) -> Self {
        let (tls_cert, tls_key) =
            if self.tls_cert.is_some() { (self.tls_cert, self.tls_key) } else { (lower.tls_cert, lower.tls_key) };
        Self {
            server_url: self.server_url.or(lower.server_url),
            state_dir: self.state_dir.or(lower.state_dir),
            listen: self.listen.or(lower.listen),
            tls_cert,
            tls_key,
            http_listen: self.http_listen.or(lower.http_listen),
            base_domain: self.base_domain.or(lower.base_domain),
            relay: self.relay.or(lower.relay),
            relay_host: self.relay_host.or(lower.relay_host),
            derp_listen: self.derp_listen.or(lower.derp_listen),
            stun_listen: self.stun_listen.or(lower.stun_listen),
            derp_map: self.derp_map.or(lower.derp_map),
            first_policy: self.first_policy.or(lower.first_policy),
            metrics_listen: self.metrics_listen.or(lower.metrics_listen),
            log: self.log.or(lower.log),
            log_format: self.log_format.or(lower.log_format),
        }
    }
}

impl Settings {
    fn into_config(self) -> Result<Config, Failure> {
        let url = self.server_url.filter(|url| !url.is_empty()).ok_or_else(|| {
            Failure::new(Exit::Usage, "no-server-url", "under which URL nodes reach the server is not said")
                .hint("give --server-url https://HOST")
        })?;
        let (server_url, host) = read_url(&url)?;
        let tls = self.tls_cert.zip(self.tls_key).map(|(chain, key)| TlsFiles { chain, key });
        let any = |port| SocketAddr::from(([0; 4], port));
        let http_listen = match (self.http_listen, &tls) {
            (Some(Place::At(address)), Some(_)) => Some(address),
            (None, Some(_)) => Some(any(80)),
            (Some(Place::Nowhere), _) | (None, None) => None,
            (Some(Place::At(_)), None) => {
                let message = "--http-listen is for plain HTTP beside a certificate, and there is none";
                return Err(Failure::new(Exit::Usage, "no-certificate", message)
                    .hint("give --tls-cert and --tls-key, or the address with --listen"));
            }
        };
        let relay = match self.relay.unwrap_or(RelayKind::Embedded) {
            RelayKind::Embedded => Some(RelayConfig {
                host: self.relay_host.unwrap_or_else(|| host.clone()),
                listen: self.derp_listen.unwrap_or(any(443)),
                stun_listen: self.stun_listen.unwrap_or(any(3478)),
            }),
            RelayKind::None if self.derp_map.is_none() => {
                let message = "there is no relay, and nodes need one to meet";
                return Err(
                    Failure::new(Exit::Usage, "no-relay", message).hint("give --derp-map FILE, or --relay embedded")
                );
            }
            RelayKind::None => None,
        };
        let listen = self.listen.unwrap_or(any(if tls.is_some() { 443 } else { 8080 }));
        if let Some(relay) = relay.as_ref().filter(|relay| relay.listen == listen && listen.port() != 0) {
            let message = format!("the server and the relay in it cannot both listen on {}", relay.listen);
            return Err(Failure::new(Exit::Usage, "same-address", message).hint(
                "give another address with --derp-listen or --listen, or run mesh-relay apart and give --relay none",
            ));
        }
        Ok(Config {
            server_url,
            host,
            state_dir: self.state_dir.unwrap_or_else(|| "/var/lib/mesh-control".into()),
            listen,
            tls,
            http_listen,
            base_domain: self.base_domain.unwrap_or_else(|| "mesh.internal".to_owned()),
            relay,
            derp_map: self.derp_map,
            first_policy: self.first_policy,
            metrics_listen: self.metrics_listen,
            log: self.log.unwrap_or_else(|| "info".to_owned()),
            log_format: self.log_format.unwrap_or_default(),
        })
    }
}

/// The URL without a slash at its end, and its host.
fn read_url(text: &str) -> Result<(String, String), Failure> {
    let wrong = |why: &str| {
        Failure::new(Exit::Usage, "bad-server-url", format!("\"{text}\" cannot be the server's URL: {why}"))
            .hint("give a URL such as https://control.example.com")
    };
    let url: Uri = text.parse().map_err(|_| wrong("it is not a URL"))?;
    if !matches!(url.scheme_str(), Some("https" | "http")) {
        return Err(wrong("it begins with neither https:// nor http://"));
    }
    let authority = url.authority().filter(|authority| !authority.host().is_empty());
    let authority = authority.ok_or_else(|| wrong("it names no host"))?;
    if authority.as_str().contains('@') {
        return Err(wrong("it holds a name or a password"));
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() {
        return Err(wrong("stock clients ask for paths at the root of a host only"));
    }
    Ok((text.trim_end_matches('/').to_owned(), authority.host().trim_matches(['[', ']']).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_moves_the_ports() {
        let config = read("server-url = \"http://c.example:8080\"").unwrap();
        assert_eq!((config.listen.port(), config.http_listen), (8080, None));
        let tls = "tls-cert = \"c\"\ntls-key = \"k\"\nderp-listen = \"0.0.0.0:8443\"";
        let config = read(&format!("server-url = \"https://c.example/\"\n{tls}")).unwrap();
        assert_eq!((config.listen.port(), config.http_listen.map(|address| address.port())), (443, Some(80)));
        assert_eq!(config.server_url, "https://c.example");
        let more = format!("server-url = \"https://c\"\n{tls}\nhttp-listen = \"none\"");
        assert_eq!(read(&more).unwrap().http_listen, None);
    }

    #[test]
    fn the_relay_has_the_servers_host_unless_told_otherwise() {
        let relay = |more: &str| read(&format!("server-url = \"http://[fd00::1]:80\"\n{more}")).unwrap().relay;
        assert_eq!(relay("").unwrap().host, "fd00::1");
        assert_eq!(relay("relay-host = \"r\"").unwrap().host, "r");
        assert_eq!(relay("relay = \"none\"\nderp-map = \"f\""), None);
    }

    #[test]
    fn what_cannot_be_is_said_in_one_line() {
        let told = |text: &str| read(text).unwrap_err().message().to_owned();
        let url = "server-url = \"http://c\"\n";
        assert!(told("").contains("is not said"));
        assert_eq!(told("sever-url = \"http://c\""), "f: unknown key sever-url; did you mean server-url?");
        for bad in ["c", "ftp://c", "http:///x", "http://a@c", "http://c/path", "http://c/?q"] {
            assert!(told(&format!("server-url = \"{bad}\"")).contains("cannot be"), "{bad}");
        }
        assert!(told(&format!("{url}relay = \"none\"")).contains("no relay"));
        assert!(told(&format!("{url}http-listen = \"0.0.0.0:80\"")).contains("beside a certificate"));
        assert!(told(&format!("{url}http-listen = \"x\"")).contains("neither an address"));
        assert!(told(&format!("{url}tls-cert = \"c\"")).contains("--tls-key"));
        assert!(told(&format!("{url}tls-cert = \"c\"\ntls-key = \"k\"")).contains("both listen on 0.0.0.0:443"));
    }

    fn read(text: &str) -> Result<Config, Failure> {
        SOURCES.of_text::<Settings>(text, "f")?.into_config()
    }
}
