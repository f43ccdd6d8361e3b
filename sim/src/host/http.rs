//! The few bytes of HTTP that stand before DERP on a relay's port, and the request that measures it.
//!
//! Requests and answers are heads without bodies. What a client of DERP says after its request belongs to DERP.

/// How long a head may be. At the bound the stream is closed.
pub const HEAD_BYTES: usize = 4096;

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// DERP; the client speaks first.
    FastStart,
    /// DERP; the relay speaks first, after its answer.
    Upgrade,
    /// Any answer.
    LatencyCheck,
}

impl Request {
    /// The request to a host.
    #[must_use]
    pub fn emit(self, host: &str) -> Vec<u8> {
        let (path, more) = match self {
            Self::FastStart => ("/derp", "Upgrade: DERP\r\nConnection: Upgrade\r\nDerp-Fast-Start: 1\r\n"),
            Self::Upgrade => ("/derp", "Upgrade: DERP\r\nConnection: Upgrade\r\n"),
            Self::LatencyCheck => ("/derp/latency-check", "Connection: close\r\n"),
        };
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n").into_bytes()
    }

    /// What a head asks for, if it is one of these.
    #[must_use]
    pub fn parse(head: &str) -> Option<Self> {
        let mut lines = head.split("\r\n");
        match lines.next()? {
            "GET /derp/latency-check HTTP/1.1" => Some(Self::LatencyCheck),
            "GET /derp HTTP/1.1" if lines.any(|line| line == "Derp-Fast-Start: 1") => Some(Self::FastStart),
            "GET /derp HTTP/1.1" => Some(Self::Upgrade),
            _ => None,
        }
    }

    /// How it is answered; a fast start is not.
    #[must_use]
    pub const fn answer(self) -> &'static [u8] {
        match self {
            Self::FastStart => b"",
            Self::Upgrade => b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n",
            Self::LatencyCheck => b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        }
    }
}

/// A head that is being read.
#[derive(Clone, Debug, Default)]
pub struct Head(Vec<u8>);

/// What is known of a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// More is to come.
    Part,
    /// All of it, and the bytes after it.
    Whole(String, Vec<u8>),
    /// It is none.
    Nonsense,
}

impl Head {
    /// Bytes came.
    pub fn read(&mut self, bytes: &[u8]) -> Read {
        self.0.extend_from_slice(bytes);
        match self.0.windows(4).position(|four| four == b"\r\n\r\n") {
            Some(end) => match core::str::from_utf8(&self.0[..end]) {
                Ok(head) => Read::Whole(head.to_owned(), self.0[end + 4..].to_vec()),
                Err(_) => Read::Nonsense,
            },
            None if self.0.len() > HEAD_BYTES => Read::Nonsense,
            None => Read::Part,
        }
    }
}

/// Whether a head says that all is well; an upgrade is.
#[must_use]
pub fn is_good(head: &str) -> bool {
    ["HTTP/1.1 101 ", "HTTP/1.1 200 "].iter().any(|good| head.starts_with(good))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_written_and_what_follows_is_kept() {
        for request in [Request::FastStart, Request::Upgrade, Request::LatencyCheck] {
            let bytes = [request.emit("relay.example"), b"rest".to_vec()].concat();
            for cut in [1, 20, bytes.len() - 6] {
                let mut head = Head::default();
                assert_eq!(head.read(&bytes[..cut]), Read::Part);
                let Read::Whole(text, rest) = head.read(&bytes[cut..]) else { panic!("a whole head") };
                assert_eq!((Request::parse(&text), rest.as_slice()), (Some(request), &b"rest"[..]));
            }
        }
        assert_eq!(Request::parse("GET / HTTP/1.1"), None);
        assert!(is_good("HTTP/1.1 101 Switching Protocols") && !is_good("HTTP/1.1 404 Not Found"));
    }

    #[test]
    fn what_is_no_head_is_given_up() {
        assert_eq!(Head::default().read(&[b'a'; HEAD_BYTES + 1]), Read::Nonsense);
        assert_eq!(Head::default().read(b"\xff\r\n\r\n"), Read::Nonsense);
    }
}
