//! The address of a control server, and the ways that lead to its Noise connection.

use core::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use hyper::Uri;

/// The address of a control server: a scheme, a host, maybe a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUrl {
    is_https: bool,
    host: String,
    port: Option<u16>,
}

/// Why a text is no address of a control server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no address of a control server, such as https://control.example.net")]
pub struct BadUrl(pub String);

/// A way to the Noise connection of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// TCP alone, to this port. Noise hides what is said.
    Plain(u16),
    /// TLS, to this port.
    Tls(u16),
}

/// Whether the last try to open a Noise connection was a short time ago. Stock nodes: less than two minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastTry {
    /// It was: whatever stands in between may swallow what is not TLS, so TLS first.
    Recent,
    /// It was not.
    LongAgo,
}

impl FromStr for ServerUrl {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        let bad = || BadUrl(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| bad())?;
        let is_https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            Some(_) | None => return Err(bad()),
        };
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(bad)?;
        if authority.host().is_empty() || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(bad());
        }
        let (host, port) = (authority.host(), authority.port());
        let port = match port {
            Some(port) => Some(port.as_str().parse().ok().filter(|port| *port != 0).ok_or_else(bad)?),
            None if authority.as_str().ends_with(':') => return Err(bad()),
            None => None,
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Ok(Self { is_https, host: host.to_ascii_lowercase(), port })
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.is_https { "https" } else { "http" }, self.authority())
    }
}

impl ServerUrl {
    /// The name or address of the host; IPv6 without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Whether the server is asked over TLS.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.is_https
    }

    /// The port that the address says, or that of its scheme.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(if self.is_https { 443 } else { 80 })
    }

    /// Host and port as headers have them.
    #[must_use]
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        self.port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"))
    }

    /// The ways to the Noise connection, each half a second ahead of the next. `control-protocol.md` §2.4.
    ///
    /// Stock nodes know no way at all back to a server that speaks http alone when the last try is recent; ours try it
    /// after TLS.
    pub(super) fn ways(&self, last: LastTry) -> Vec<Way> {
        let plain = Way::Plain(if self.is_https { 80 } else { self.port() });
        let tls = Way::Tls(if self.is_https { self.port() } else { 443 });
        match (self.is_https, last) {
            (false, _) if self.is_near() => vec![plain],
            (true, LastTry::Recent) => vec![tls],
            (false, LastTry::Recent) => vec![tls, plain],
            (_, LastTry::LongAgo) => vec![plain, tls],
        }
    }

    /// Whether nothing can stand in between: localhost, or an address that is not of the Internet.
    fn is_near(&self) -> bool {
        match self.host.parse() {
            Ok(IpAddr::V4(address)) => address.is_private() || address.is_loopback() || address.is_link_local(),
            Ok(IpAddr::V6(address)) => address == Ipv6Addr::LOCALHOST || address.is_unique_local(),
            Err(_) => self.host == "localhost",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_strictly_and_written_back() {
        for text in ["https://a.example", "http://a.example:8080", "https://[2001:db8::1]:8443", "http://192.0.2.1"] {
            assert_eq!(url(text).to_string(), text);
        }
        assert_eq!(url("HTTPS://A.example/").to_string(), "https://a.example");
        let bad = ["", "a.example", "ftp://a", "https://", "https://a/x", "https://a?x", "https://u@a", "http://a:0"];
        for text in bad.into_iter().chain(["http://a:x", "http://a:", "http://a:99999"]) {
            assert!(text.parse::<ServerUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn ways_are_those_of_stock_nodes_and_one_more() {
        let cases = [
            ("https://a.example", vec![Way::Plain(80), Way::Tls(443)], vec![Way::Tls(443)]),
            ("https://a.example:8443", vec![Way::Plain(80), Way::Tls(8443)], vec![Way::Tls(8443)]),
            ("http://a.example", vec![Way::Plain(80), Way::Tls(443)], vec![Way::Tls(443), Way::Plain(80)]),
            ("http://a.example:8080", vec![Way::Plain(8080), Way::Tls(443)], vec![Way::Tls(443), Way::Plain(8080)]),
            ("http://10.0.0.1:8080", vec![Way::Plain(8080)], vec![Way::Plain(8080)]),
            ("http://localhost", vec![Way::Plain(80)], vec![Way::Plain(80)]),
            ("http://[::1]:8", vec![Way::Plain(8)], vec![Way::Plain(8)]),
        ];
        for (text, long_ago, recent) in cases {
            assert_eq!(url(text).ways(LastTry::LongAgo), long_ago, "{text}");
            assert_eq!(url(text).ways(LastTry::Recent), recent, "{text}");
        }
    }

    fn url(text: &str) -> ServerUrl {
        text.parse().unwrap()
    }
}
