//! What passes between a node and whoever owns its control connection.
//!
//! The owner (a task of the daemon, a host of the simulator) has the sockets, TLS, Noise and HTTP; the node speaks in
//! typed requests and hears typed answers. A request is named by a [`RequestId`] until its last answer:
//!
//! | request | answers |
//! |---|---|
//! | [`FetchKey`](ControlRequest::FetchKey) | [`Key`](ControlEvent::Key) or [`Failed`](ControlEvent::Failed) |
//! | [`Register`](ControlRequest::Register) | [`Registered`](ControlEvent::Registered) or `Failed` |
//! | [`StreamMap`](ControlRequest::StreamMap) | [`Opened`](ControlEvent::Opened), any number of [`Map`](ControlEvent::Map), then [`Closed`](ControlEvent::Closed) or `Failed` |
//! | [`Update`](ControlRequest::Update) | [`Updated`](ControlEvent::Updated) or `Failed` |
//! | [`Answer`](ControlRequest::Answer) | none |
//!
//! After [`Cancel`](ControlRequest::Cancel) nothing more is said about a request; after
//! [`Connect`](ControlRequest::Connect) and [`Disconnect`](ControlRequest::Disconnect) nothing about any of before.
//! Answers to what is not under way are ignored, so a race costs nothing.

use core::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::types::{MapRequest, MapResponse, RegisterRequest, RegisterResponse};
use crate::key::{MachinePrivate, MachinePublic};

/// What is to be done about control.
#[derive(Clone, Debug, PartialEq)]
pub enum ControlRequest {
    /// `GET /key?v=119`, over TLS where the address says so, with the certificate checked.
    FetchKey {
        /// Names it.
        id: RequestId,
        /// Of whom.
        server: ControlUrl,
    },
    /// All further requests go to this server, over one connection: made when the first of them comes, and anew when one
    /// comes and it is gone. An earlier connection is closed.
    Connect(Server),
    /// Close the connection. None is made until the next [`Connect`](Self::Connect).
    Disconnect,
    /// `POST /machine/register`. With a `Followup` the answer may take minutes: no timeout then.
    Register {
        /// Names it.
        id: RequestId,
        /// The body.
        request: Box<RegisterRequest>,
    },
    /// `POST /machine/map` of a stream.
    StreamMap {
        /// Names it.
        id: RequestId,
        /// The body.
        request: Box<MapRequest>,
    },
    /// `POST /machine/map` whose answer has no content.
    Update {
        /// Names it.
        id: RequestId,
        /// The body.
        request: Box<MapRequest>,
    },
    /// Give a request up: reset its HTTP/2 stream.
    Cancel {
        /// Which.
        id: RequestId,
    },
    /// Answer what control asked. How that ends does not matter to the node.
    Answer(Answer),
}

impl ControlRequest {
    /// What names it; `None` for what is not answered.
    #[must_use]
    pub fn id(&self) -> Option<RequestId> {
        match self {
            Self::FetchKey { id, .. }
            | Self::Register { id, .. }
            | Self::StreamMap { id, .. }
            | Self::Update { id, .. }
            | Self::Cancel { id } => Some(*id),
            Self::Connect(_) | Self::Disconnect | Self::Answer(_) => None,
        }
    }
}

/// An answer to control, by its own URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Where to: a whole URL, as control wrote it. With [`Route::Noise`] only path and query count.
    pub url: String,
    /// Which way.
    pub route: Route,
    /// What to send: nothing, by `HEAD`, or this body, by `POST`.
    pub body: Option<Vec<u8>>,
}

/// Which way a request to control takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Inside the control connection.
    Noise,
    /// An ordinary HTTP or HTTPS request.
    Web,
}

/// A server, and who we are to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where.
    pub url: ControlUrl,
    /// The key that it must have.
    pub key: MachinePublic,
    /// Our own.
    pub machine: MachinePrivate,
}

/// Names a request until its last answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// What was heard of control.
#[derive(Clone, Debug, PartialEq)]
pub enum ControlEvent {
    /// The server's Noise key.
    Key {
        /// What was asked.
        id: RequestId,
        /// The key.
        key: MachinePublic,
    },
    /// A registration was answered with 200.
    Registered {
        /// Which.
        id: RequestId,
        /// The answer.
        response: Box<RegisterResponse>,
    },
    /// A map stream was answered with 200: messages follow.
    Opened {
        /// Which.
        id: RequestId,
    },
    /// A message of a map stream.
    Map {
        /// Of which.
        id: RequestId,
        /// The message.
        response: Box<MapResponse>,
    },
    /// The server ended a map stream.
    Closed {
        /// Which.
        id: RequestId,
    },
    /// An update was answered with 200.
    Updated {
        /// Which.
        id: RequestId,
    },
    /// A request ended badly.
    Failed {
        /// Which.
        id: RequestId,
        /// How.
        failure: Failure,
    },
}

/// How a request ended badly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What it means.
    pub kind: FailureKind,
    /// For people: a sentence, or up to 200 characters of what the server said.
    pub text: String,
}

/// What a failure means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// No connection, or it broke.
    Unreachable,
    /// The server does not have the key that it had, or TLS does not trust it.
    Untrusted,
    /// An HTTP status other than 200.
    Status {
        /// Which.
        code: u16,
        /// What `Retry-After` said, with times made relative.
        retry_after: Option<Duration>,
    },
    /// The answer cannot be read.
    Malformed,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            FailureKind::Status { code, .. } => write!(f, "status {code}: {}", self.text),
            FailureKind::Unreachable | FailureKind::Untrusted | FailureKind::Malformed => f.write_str(&self.text),
        }
    }
}

/// Where a control server is: scheme, host and port, nothing behind them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ControlUrl {
    scheme: Scheme,
    host: String,
    port: Option<u16>,
}

/// How a server is spoken to until Noise begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheme {
    /// In clear: for tests and closed networks, because the server's key is fetched in clear too.
    Http,
    /// Over TLS.
    Https,
}

/// Why a text is no address of a control server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no address of a control server: {problem}; expected something like https://control.example.com")]
pub struct ControlUrlError {
    text: String,
    problem: &'static str,
}

impl ControlUrl {
    /// How it is spoken to.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host: a name, or an address; one of IPv6 is without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, where the address says one.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Whether a page may be shown to the user: `https:`, and `http:` only where the server itself is spoken to so.
    #[must_use]
    pub fn may_show(&self, url: &str) -> bool {
        let url = url.to_ascii_lowercase();
        url.starts_with("https://") || self.scheme == Scheme::Http && url.starts_with("http://")
    }

    /// Whether a URL is one of the server's host, spoken to in the same way; at any port.
    #[must_use]
    pub fn is_at(&self, url: &str) -> bool {
        let Some((scheme, rest)) = url.split_once("://") else { return false };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        format!("{scheme}://{authority}")
            .parse::<Self>()
            .is_ok_and(|url| url.scheme == self.scheme && url.host.eq_ignore_ascii_case(&self.host))
    }
}

impl FromStr for ControlUrl {
    type Err = ControlUrlError;

    fn from_str(text: &str) -> Result<Self, ControlUrlError> {
        let wrong = |problem| ControlUrlError { text: text.to_owned(), problem };
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (Scheme::Https, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (Scheme::Http, rest),
            Some(_) => return Err(wrong("it must begin with https:// or http://")),
            None => return Err(wrong("it must begin with https://")),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            return Err(wrong("nothing may follow host and port"));
        }
        if authority.contains('@') {
            return Err(wrong("it must not hold a user name"));
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or_else(|| wrong("a bracket is not closed"))?;
                host.parse::<core::net::Ipv6Addr>().map_err(|_| wrong("no IPv6 address in brackets"))?;
                match after {
                    "" => (host, None),
                    after => (host, Some(after.strip_prefix(':').ok_or_else(|| wrong("no port behind the bracket"))?)),
                }
            }
            None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
        };
        let is_host = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
        if host.is_empty() || host.len() > 253 || !host.chars().all(is_host) {
            return Err(wrong("the host is no name and no address"));
        }
        let port = match port {
            None => None,
            Some(port) => Some(port.parse().ok().filter(|port| *port != 0).ok_or_else(|| wrong("no port number"))?),
        };
        Ok(Self { scheme, host: host.to_ascii_lowercase(), port })
    }
}

impl fmt::Display for ControlUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.scheme {
            Scheme::Http => "http://",
            Scheme::Https => "https://",
        })?;
        match self.host.contains(':') {
            true => write!(f, "[{}]", self.host)?,
            false => f.write_str(&self.host)?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl Serialize for ControlUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ControlUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_servers_come_back() {
        for text in ["https://control.example.com", "http://10.0.0.1:8080", "https://[2001:db8::1]:8443"] {
            assert_eq!(text.parse::<ControlUrl>().unwrap().to_string(), text);
        }
        assert_eq!("HTTPS://Control.Example.com/".parse::<ControlUrl>().unwrap().host(), "control.example.com");
        assert_eq!("http://[::1]".parse::<ControlUrl>().unwrap().host(), "::1");
    }

    #[test]
    fn other_texts_are_refused_with_the_reason() {
        for (text, problem) in [
            ("control.example.com", "begin with https"),
            ("ftp://control.example.com", "begin with https"),
            ("https://control.example.com/path", "nothing may follow"),
            ("https://me@control.example.com", "user name"),
            ("https://", "no name"),
            ("https://a b", "no name"),
            ("https://host:0", "port"),
            ("https://host:99999", "port"),
            ("https://[::1", "bracket"),
            ("https://[host]:1", "IPv6"),
            ("https://[::1]1", "bracket"),
        ] {
            let error = text.parse::<ControlUrl>().unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn pages_in_clear_are_shown_only_of_servers_in_clear() {
        let (clear, tls): (ControlUrl, ControlUrl) = ("http://h".parse().unwrap(), "https://h".parse().unwrap());
        assert!(clear.may_show("http://h/a") && clear.may_show("https://h/a") && tls.may_show("https://h/a"));
        assert!(!tls.may_show("http://h/a") && !clear.may_show("file:///etc/passwd"));
    }
}
