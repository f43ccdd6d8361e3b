//! The ways that lead to the Noise connection of a control server.

use core::net::{IpAddr, Ipv6Addr};

use mesh_core::control::{ControlUrl, Scheme};

/// A way to the Noise connection of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// TCP alone, to this port. Noise hides what is said.
    Plain(u16),
    /// TLS, to this port.
    Tls(u16),
}

/// Whether the last try to open a Noise connection was a short time ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LastTry {
    /// It was: whatever stands in between may swallow what is not TLS, so TLS first.
    Recent,
    /// It was not.
    LongAgo,
}

/// The ways to the Noise connection, in the order in which they are tried. `control-protocol.md` §2.4.
///
/// Stock nodes know no way at all back to a server that speaks http alone when the last try is recent; ours try it after
/// TLS.
pub(super) fn ways(server: &ControlUrl, last: LastTry) -> Vec<Way> {
    match server.scheme() {
        Scheme::Https => {
            let tls = web(server);
            match last {
                LastTry::Recent => vec![tls],
                LastTry::LongAgo => vec![Way::Plain(80), tls],
            }
        }
        Scheme::Http if is_near(server.host()) => vec![web(server)],
        Scheme::Http => match last {
            LastTry::Recent => vec![Way::Tls(443), web(server)],
            LastTry::LongAgo => vec![web(server), Way::Tls(443)],
        },
    }
}

/// The way to the outer HTTP server.
pub(super) fn web(server: &ControlUrl) -> Way {
    match server.scheme() {
        Scheme::Https => Way::Tls(server.port().unwrap_or(443)),
        Scheme::Http => Way::Plain(server.port().unwrap_or(80)),
    }
}

/// Host and port as headers have them.
pub(super) fn authority(server: &ControlUrl) -> String {
    let host = server.host();
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    server.port().map_or_else(|| host.clone(), |port| format!("{host}:{port}"))
}

/// Whether nothing can stand in between: localhost, or an address that is not of the Internet.
fn is_near(host: &str) -> bool {
    match host.parse() {
        Ok(IpAddr::V4(address)) => address.is_private() || address.is_loopback() || address.is_link_local(),
        Ok(IpAddr::V6(address)) => address == Ipv6Addr::LOCALHOST || address.is_unique_local(),
        Err(_) => host == "localhost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(ways(&url(text), LastTry::LongAgo), long_ago, "{text}");
            assert_eq!(ways(&url(text), LastTry::Recent), recent, "{text}");
        }
    }

    fn url(text: &str) -> ControlUrl {
        text.parse().unwrap()
    }
}
