//! From a relay of the map to a stream that speaks DERP: addresses, TCP, TLS, the HTTP upgrade.
//!
//! Addresses of both families are tried side by side, the preferred one 200 ms ahead; literals of the map do not wait
//! for DNS. A relay that announces its key in a certificate gets our hello together with the request (*fast start*),
//! without waiting for an answer of HTTP, which it then leaves out.

use core::{fmt, net::SocketAddr, time::Duration};
use std::io;

use tokio::time::timeout;

use mesh_core::derp::{DerpNode, client::Start, map::HostAddr};

use crate::{
    net::{Net, TcpOptions, TcpStream},
    stream::{
        Stream,
        connect::{ConnectError, Target},
        tls::{self, TlsError, Trust},
    },
    udp::Family,
};

/// For a TCP connection to one relay, DNS included. Stock nodes: 1.5 s.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_500);
/// Bytes that the answer to the upgrade may have before the relay's first frame.
const HEAD_BYTES: usize = 8 << 10;
/// Headers that it may have.
const HEADERS: usize = 64;

/// After so long without an acknowledgement the connection is dead. Stock relays: 15 s.
const USER_TIMEOUT: Duration = Duration::from_secs(15);
/// When to ask a silent network whether the relay is there. DERP has its own pings: this is for what stands between.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// What waits in the kernel unsent, and can no more be overtaken by disco: 10 ms at 100 Mbit/s.
const NOT_SENT_BYTES: u32 = 128 << 10;
const OPTIONS: TcpOptions =
    TcpOptions { user_timeout: USER_TIMEOUT, keepalive: KEEPALIVE, not_sent_bytes: Some(NOT_SENT_BYTES) };

/// How relays are reached.
#[derive(Clone, Debug)]
pub struct Dialer {
    /// Where streams lead.
    pub net: Net,
    /// Whom to believe.
    pub trust: Trust,
    /// Relays without TLS.
    pub plain: Plain,
}

/// What to do about relays without TLS. A relay map cannot tell them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    /// There are none.
    Never,
    /// Those whose certificate is not to be looked at have none: for tests. Stock nodes: TS_DEBUG_USE_DERP_HTTP.
    WhereInsecure,
}

/// Why a relay was not reached, for people.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// It relays nothing, or its port is none.
    #[error("the relay map gives no port for {0}")]
    NoPort(String),
    /// It has no address in either family.
    #[error("the relay map gives no address for {0}")]
    NoAddress(String),
    /// DNS does not know.
    #[error("cannot resolve {host}: {source}")]
    Resolve {
        /// Whom.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// No TCP.
    #[error("cannot connect to {host} at {address}: {source}")]
    Connect {
        /// To whom.
        host: String,
        /// Where: the address that failed last.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No TCP in time.
    #[error("{0} does not answer")]
    ConnectTimeout(String),
    /// The certificate is not the one, or it is no TLS.
    #[error("{0}")]
    Tls(String),
    /// What the map says makes no sense.
    #[error(transparent)]
    Setup(#[from] TlsError),
    /// The connection broke.
    #[error("{host} closed the connection {when}: {source}")]
    Broken {
        /// Who.
        host: String,
        /// Before it was what.
        when: Stage,
        /// How.
        source: io::Error,
    },
    /// Not a relay.
    #[error("{host} answers \"{status}\" and is no relay")]
    Status {
        /// Who.
        host: String,
        /// Number and words.
        status: String,
    },
    /// Not even HTTP.
    #[error("{0} does not speak HTTP")]
    NotHttp(String),
}

/// How far a connection had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// No keys yet.
    Tls,
    /// The request was not answered.
    Request,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls => "during the TLS handshake",
            Self::Request => "before it answered",
        })
    }
}

/// A stream on which the relay speaks DERP.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) stream: Stream,
    /// How to begin.
    pub(super) start: Start,
    /// What the relay has said already.
    pub(super) rest: Vec<u8>,
}

impl Dialer {
    /// A stream to `node` that has its keys. Bounded in time as far as TCP; the rest is for the caller to bound.
    ///
    /// # Errors
    /// When it is not reached, or is not whom the map says.
    pub(crate) async fn open(&self, node: &DerpNode, first: Family) -> Result<Stream, DialError> {
        let host = &node.host_name;
        if host.contains(char::is_control) {
            return Err(DialError::NoAddress(host.clone()));
        }
        let is_plain = match self.plain {
            Plain::WhereInsecure => node.insecure_for_tests,
            Plain::Never => false,
        };
        // Before anything is sent: what the map says may make no sense.
        let tls = if is_plain { None } else { Some(self.trust.for_relay(node).await?) };
        let connected = timeout(CONNECT_TIMEOUT, connect(self.net, node, first)).await;
        let socket = connected.map_err(|_| DialError::ConnectTimeout(host.clone()))??;
        let Some((config, name)) = tls else { return Ok(Stream::plain(socket)) };
        let explain = |error: &rustls::Error| DialError::Tls(tls::explain(host, error));
        let mut stream = Stream::tls(socket, config, name).map_err(|error| explain(&error))?;
        match stream.handshake().await {
            Ok(()) => Ok(stream),
            Err(source) => Err(match source.get_ref().and_then(|inner| inner.downcast_ref()) {
                Some(error) => explain(error),
                None => DialError::Broken { host: host.clone(), when: Stage::Tls, source },
            }),
        }
    }

    /// Makes the stream one that speaks DERP. `ideal` is the relay that the map would have us use before this one.
    ///
    /// # Errors
    /// When the other side is no relay.
    pub(super) async fn upgrade(
        &self,
        mut stream: Stream,
        node: &DerpNode,
        ideal: Option<&str>,
    ) -> Result<Opened, DialError> {
        let announced = stream.hidden_certificates().iter().find_map(tls::announced_key);
        let broken = |source| DialError::Broken { host: node.host_name.clone(), when: Stage::Request, source };
        stream.push(request(node, ideal, announced.is_some()).as_bytes()).map_err(broken)?;
        if let Some(key) = announced {
            // Not flushed: our hello goes with it.
            return Ok(Opened { stream, start: Start::Fast(key), rest: Vec::new() });
        }
        let head = read_head(&mut stream, &node.host_name).await?;
        if head.status != 101 {
            let status = format!("{} {}", head.status, head.reason);
            return Err(DialError::Status { host: node.host_name.clone(), status });
        }
        Ok(Opened { stream, start: Start::Slow, rest: head.rest })
    }
}

/// What an HTTP server said before its body.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) reason: String,
    pub(crate) headers: Vec<(String, String)>,
    /// What came behind it.
    pub(crate) rest: Vec<u8>,
}

/// Sends what is to be sent and reads the head of the answer.
///
/// # Errors
/// When it is no HTTP, or the stream breaks before the head is whole.
pub(crate) async fn read_head(stream: &mut Stream, host: &str) -> Result<Head, DialError> {
    let broken = |source| DialError::Broken { host: host.to_owned(), when: Stage::Request, source };
    let mut bytes = Vec::new();
    loop {
        let ended = stream.read(|piece| bytes.extend_from_slice(piece));
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(&bytes) {
            Ok(httparse::Status::Complete(length)) => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
                return Ok(Head {
                    status: response.code.unwrap_or(0),
                    reason: response.reason.unwrap_or_default().to_owned(),
                    headers: response.headers.iter().map(|h| (h.name.to_lowercase(), text(h.value))).collect(),
                    rest: bytes[length..].to_vec(),
                });
            }
            Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES => {}
            Ok(httparse::Status::Partial) | Err(_) => return Err(DialError::NotHttp(host.to_owned())),
        }
        ended.map_err(broken)?;
        stream.settle().await.map_err(broken)?;
    }
}

/// The name for the header Host.
pub(crate) fn host_header(node: &DerpNode, default_port: u16) -> String {
    let host = &node.host_name;
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    match node.derp_port() {
        Some(port) if port != default_port => format!("{host}:{port}"),
        Some(_) | None => host,
    }
}

fn request(node: &DerpNode, ideal: Option<&str>, fast: bool) -> String {
    let host = host_header(node, mesh_core::derp::map::DERP_PORT);
    // What the map says is not to become other headers.
    let is_text = |name: &&str| !name.contains(char::is_control);
    let ideal = ideal.filter(is_text).map(|name| format!("Ideal-Node: {name}\r\n")).unwrap_or_default();
    let fast = if fast { "Derp-Fast-Start: 1\r\n" } else { "" };
    format!("GET /derp HTTP/1.1\r\nHost: {host}\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n{ideal}{fast}\r\n")
}

/// The first TCP connection that comes about.
async fn connect(net: Net, node: &DerpNode, first: Family) -> Result<TcpStream, DialError> {
    let host = &node.host_name;
    let port = node.derp_port().ok_or_else(|| DialError::NoPort(host.clone()))?;
    let mut literals = Vec::new();
    let (mut v4_by_dns, mut v6_by_dns) = (false, false);
    match node.v4() {
        HostAddr::Literal(address) => literals.push(address.into()),
        HostAddr::Dns => v4_by_dns = true,
        HostAddr::Disabled => {}
    }
    match node.v6() {
        HostAddr::Literal(address) => literals.push(address.into()),
        HostAddr::Dns => v6_by_dns = true,
        HostAddr::Disabled => {}
    }
    let target = Target { host, port, literals, v4_by_dns, v6_by_dns };
    target.connect(net, first, OPTIONS).await.map_err(|error| match error {
        ConnectError::NoAddress => DialError::NoAddress(host.clone()),
        ConnectError::Resolve(source) => DialError::Resolve { host: host.clone(), source },
        ConnectError::Refused { address, source } => DialError::Connect { host: host.clone(), address, source },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_host_and_port_and_the_relay_that_would_be_better() {
        let node = DerpNode { host_name: "::1".into(), derp_port: 8443, ..DerpNode::default() };
        let text = request(&node, Some("1a"), true);
        let lines: Vec<_> = text.split("\r\n").collect();
        let expected = [
            "GET /derp HTTP/1.1",
            "Host: [::1]:8443",
            "Upgrade: DERP",
            "Connection: Upgrade",
            "Ideal-Node: 1a",
            "Derp-Fast-Start: 1",
            "",
            "",
        ];
        assert_eq!(lines, expected);
        let node = DerpNode { host_name: "relay.example".into(), ..DerpNode::default() };
        assert!(request(&node, None, false).contains("Host: relay.example\r\n"));
        // A name with a line break in it would be a header of its own.
        assert_eq!(request(&node, Some("1a\r\nCookie: x"), false), request(&node, None, false));
    }
}
