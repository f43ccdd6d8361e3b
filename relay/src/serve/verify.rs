//! Asks a URL whether a node may connect: a POST, as derper does it, to headscale's or our own `/verify`.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{io, net::IpAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tracing::warn;

use mesh_core::key::NodePublic;

use super::failure::{Exit, Failure};
use crate::{admission::Admission, limits};

/// Bytes that an answer may have, head and body.
const ANSWER_BYTES: u64 = 16 << 10;

/// Where to ask.
#[derive(Clone, Debug)]
pub(super) struct Verifier {
    /// Host and port, to connect to.
    target: String,
    /// As the request says it.
    host: String,
    path: String,
}

impl Verifier {
    /// Reads a URL.
    pub(super) fn new(url: &str) -> Result<Self, Failure> {
        let wrong = |why: &str| {
            Failure::new(Exit::Usage, "bad-verify-url", format!("\"{url}\" cannot be asked: {why}"))
                .hint("give a URL such as http://127.0.0.1:8080/verify")
        };
        if url.starts_with("https://") {
            return Err(wrong("this build asks over http:// alone"));
        }
        let rest = url.strip_prefix("http://").ok_or_else(|| wrong("it does not begin with http://"))?;
        let (host, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if host.is_empty() || host.contains('@') || !is_plain(host) || !is_plain(path) {
            return Err(wrong("its host or path is not well made"));
        }
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let target = if has_port { host.to_owned() } else { format!("{host}:80") };
        Ok(Self { target, host: host.to_owned(), path: path.to_owned() })
    }

    /// Asks. What is not a clear answer in time is none.
    pub(super) async fn ask(&self, node: &NodePublic, source: IpAddr) -> Admission {
        match timeout(limits::ADMISSION, self.exchange(node, source)).await {
            Ok(Ok(answer)) => read(&answer),
            Ok(Err(error)) => {
                warn!(%error, "cannot ask who may connect");
                Admission::Unreachable
            }
            Err(_) => Admission::Unreachable,
        }
    }

    async fn exchange(&self, node: &NodePublic, source: IpAddr) -> io::Result<Vec<u8>> {
        let body = serde_json::json!({ "NodePublic": node, "Source": source.to_canonical().to_string() }).to_string();
        let request = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            self.path,
            self.host,
            body.len()
        );
        let mut socket = TcpStream::connect(&self.target).await?;
        socket.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        socket.take(ANSWER_BYTES).read_to_end(&mut answer).await?;
        Ok(answer)
    }
}

/// What a whole response means.
fn read(response: &[u8]) -> Admission {
    #[derive(serde::Deserialize)]
    struct Answer {
        #[serde(rename = "Allow")]
        allow: bool,
    }
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(length)) = head.parse(response) else { return Admission::Unreachable };
    if head.code != Some(200) {
        return Admission::Unreachable;
    }
    let body = response.get(length..).unwrap_or_default();
    // A short answer may come in chunks all the same: the object is what stands between the braces.
    let object = body.iter().position(|byte| *byte == b'{').zip(body.iter().rposition(|byte| *byte == b'}'));
    let object = object.and_then(|(first, last)| body.get(first..=last)).unwrap_or_default();
    match serde_json::from_slice(object) {
        Ok(Answer { allow: true }) => Admission::Allowed,
        Ok(Answer { allow: false }) => Admission::Refused,
        Err(_) => Admission::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_answer_counts() {
        let check = |response: &str, expected| assert_eq!(read(response.as_bytes()), expected, "{response}");
        check("HTTP/1.1 200 OK\r\n\r\n{\"Allow\":true}", Admission::Allowed);
        check("HTTP/1.1 200 OK\r\n\r\n{\"Allow\":false}", Admission::Refused);
        check(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\ne\r\n{\"Allow\":true}\r\n0\r\n\r\n",
            Admission::Allowed,
        );
        check("HTTP/1.1 500 No\r\n\r\n{\"Allow\":true}", Admission::Unreachable);
        check("HTTP/1.1 200 OK\r\n\r\n{}", Admission::Unreachable);
        check("", Admission::Unreachable);
    }

    #[test]
    fn urls_are_read() {
        let verifier = Verifier::new("http://control:8080/verify").unwrap();
        assert_eq!((verifier.target.as_str(), verifier.path.as_str()), ("control:8080", "/verify"));
        assert_eq!(Verifier::new("http://control").unwrap().target, "control:80");
        for url in ["https://control/verify", "control/verify", "http:///verify", "http://a b/", "http://u@h/"] {
            assert!(Verifier::new(url).is_err(), "{url}");
        }
    }
}
