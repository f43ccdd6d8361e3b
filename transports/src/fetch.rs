//! Small requests over HTTPS to relays: is it there, and how far away.
//!
//! One request, one answer, then the end. The connection is made as for relaying, with the same check of the
//! certificate; what is measured is the time from the request to the head of its answer, without the connection.

use core::time::Duration;

use tokio::time::{Instant, timeout};

use mesh_core::derp::DerpNode;

use crate::{
    derp::{DialError, Dialer, Head, Stage, host_header, read_head},
    stream::Stream,
    udp::Family,
};

/// Bytes of a body that are read. Stock nodes: 8 KiB.
const BODY_BYTES: usize = 8 << 10;
/// What relays answer for the measurement of latency.
pub const LATENCY_CHECK: &str = "/derp/latency-check";

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Its number.
    pub status: u16,
    /// Its headers: names in lower case, values trimmed.
    pub headers: Vec<(String, String)>,
    /// Its body, or the first 8 KiB of it.
    pub body: Vec<u8>,
    /// From the request to the head of the answer.
    pub took: Duration,
    /// Over which family it came.
    pub over: Family,
}

impl Response {
    /// The value of the first header of this name, which is in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It was not reached, or does not speak HTTP.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// It took too long.
    #[error("{host} did not answer within {} ms", within.as_millis())]
    TimedOut {
        /// Who.
        host: String,
        /// How long it was waited for.
        within: Duration,
    },
}

/// Gets `path` from a relay, all within `within`. `headers` are lines without their ends.
///
/// # Errors
/// When there is no answer. Any status is an answer.
pub async fn get(
    dialer: &Dialer,
    node: &DerpNode,
    path: &str,
    headers: &[&str],
    first: Family,
    within: Duration,
) -> Result<Response, FetchError> {
    let answer = timeout(within, exchange(dialer, node, path, headers, first)).await;
    answer.map_err(|_| FetchError::TimedOut { host: node.host_name.clone(), within })?.map_err(FetchError::Dial)
}

async fn exchange(
    dialer: &Dialer,
    node: &DerpNode,
    path: &str,
    headers: &[&str],
    first: Family,
) -> Result<Response, DialError> {
    let mut stream = dialer.open(node, first).await?;
    // The last message of the handshake is not to be measured.
    let broken = |source| DialError::Broken { host: node.host_name.clone(), when: Stage::Request, source };
    stream.flush().map_err(broken)?;
    let host = host_header(node, mesh_core::derp::map::DERP_PORT);
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n");
    let began = Instant::now();
    stream.push(request.as_bytes()).map_err(broken)?;
    let head = read_head(&mut stream, &node.host_name).await?;
    let took = began.elapsed();
    let over = if stream.socket.peer_addr().is_ok_and(|peer| peer.is_ipv6()) { Family::V6 } else { Family::V4 };
    let body = body(&mut stream, &head).await;
    Ok(Response { status: head.status, headers: head.headers, body, took, over })
}

/// Reads to the end of the body, of the connection, or of what is read at all. A connection that breaks ends the body:
/// what a probe wants to know is in the head.
async fn body(stream: &mut Stream, head: &Head) -> Vec<u8> {
    let length = head.headers.iter().find(|(name, _)| name == "content-length");
    let length = length.and_then(|(_, value)| value.parse().ok());
    let has_none = head.status == 204 || head.status == 304;
    let length: usize = if has_none { 0 } else { length.unwrap_or(BODY_BYTES).min(BODY_BYTES) };
    let mut body = head.rest.clone();
    while body.len() < length {
        if stream.settle().await.is_err() || stream.read(|piece| body.extend_from_slice(piece)).is_err() {
            break;
        }
    }
    body.truncate(length);
    body
}
