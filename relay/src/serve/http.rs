//! The one request that a connection begins with, and the answers to those that are not for a relay.

use data_encoding::HEXLOWER;

use mesh_core::key::NodePublic;

/// Bytes that a request head may have.
pub(super) const HEAD_BYTES: usize = 8 << 10;
const HEADERS: usize = 64;

/// What the first request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// The head is not whole yet.
    Partial,
    /// A relay connection; the head takes so many bytes. `fast`: the client has sent its greeting along and wants no
    /// answer of HTTP.
    Derp { head_bytes: usize, fast: bool },
    /// An answer, and then the end.
    Answer(String),
}

/// Reads a request head.
pub(super) fn read(bytes: &[u8]) -> Request {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let head_bytes = match request.parse(bytes) {
        Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES => return Request::Partial,
        Ok(httparse::Status::Partial) => {
            return refuse("431 Request Header Fields Too Large", "the request is too long");
        }
        Err(_) => return refuse("400 Bad Request", "this is no request of HTTP/1.1"),
    };
    let header = |name: &str| {
        let found = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| std::str::from_utf8(header.value).ok()).map(str::trim)
    };
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    let is_get = matches!(method, "GET" | "HEAD");
    match target.split('?').next().unwrap_or_default() {
        "/derp" => match header("upgrade") {
            Some(upgrade) if upgrade.eq_ignore_ascii_case("derp") && method == "GET" => {
                Request::Derp { head_bytes, fast: header("derp-fast-start") == Some("1") }
            }
            Some(upgrade) if upgrade.eq_ignore_ascii_case("websocket") => {
                refuse("426 Upgrade Required", "this relay does not speak websocket: connect with \"Upgrade: DERP\"")
            }
            Some(_) | None => refuse("426 Upgrade Required", "a relay is here: connect with \"Upgrade: DERP\""),
        },
        "/derp/probe" | "/derp/latency-check" if is_get => {
            Request::Answer(response("200 OK", "Access-Control-Allow-Origin: *\r\n", ""))
        }
        "/derp/probe" | "/derp/latency-check" => refuse("405 Method Not Allowed", "GET and HEAD alone"),
        "/generate_204" => {
            let challenge = header("x-tailscale-challenge").filter(|text| is_challenge(text));
            let answer = challenge.map(|text| format!("X-Tailscale-Response: response {text}\r\n")).unwrap_or_default();
            let cache = "Cache-Control: no-cache, no-store, must-revalidate, no-transform, max-age=0\r\n";
            Request::Answer(format!("HTTP/1.1 204 No Content\r\n{cache}{answer}Connection: close\r\n\r\n"))
        }
        "/robots.txt" if is_get => Request::Answer(text("User-agent: *\nDisallow: /\n", method)),
        "/" if is_get => Request::Answer(text("This is a relay of a mesh VPN.\n", method)),
        _ => refuse("404 Not Found", "nothing is here"),
    }
}

/// The answer that makes the connection one of a relay.
pub(super) fn switching(key: &NodePublic) -> String {
    let key = HEXLOWER.encode(key.as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Version: 2\r\n\
         Derp-Public-Key: {key}\r\n\r\n"
    )
}

/// A whole response of plain text, after which the connection ends.
pub(super) fn response(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n\
         {body}"
    )
}

fn text(body: &str, method: &str) -> String {
    let whole = response("200 OK", "", body);
    if method == "HEAD" { whole[..whole.len() - body.len()].to_owned() } else { whole }
}

fn refuse(status: &str, why: &str) -> Request {
    Request::Answer(response(status, "", &format!("{why}\n")))
}

/// What may be sent back in a header: 1 to 64 characters that cannot end it.
fn is_challenge(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upgrade_is_seen_in_any_case_and_fast_start_too() {
        let head = b"GET /derp HTTP/1.1\r\nHost: r\r\nupgrade: derp\r\nConnection: Upgrade\r\n\r\n";
        let whole = [&head[..], b"next"].concat();
        assert_eq!(read(&whole), Request::Derp { head_bytes: head.len(), fast: false });
        for cut in 0..head.len() {
            assert_eq!(read(&head[..cut]), Request::Partial);
        }
        let fast = b"GET /derp HTTP/1.1\r\nUpgrade: DERP\r\nDerp-Fast-Start: 1\r\n\r\n";
        assert_eq!(read(fast), Request::Derp { head_bytes: fast.len(), fast: true });
    }

    #[test]
    fn other_requests_are_answered() {
        let check = |request: &str, status: &str| {
            let Request::Answer(answer) = read(format!("{request}\r\n\r\n").as_bytes()) else { panic!("{request}") };
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
            answer
        };
        check("GET /derp HTTP/1.1", "426");
        assert!(check("GET /derp HTTP/1.1\r\nUpgrade: websocket", "426").contains("websocket"));
        assert!(check("GET /derp/probe HTTP/1.1", "200").contains("Access-Control-Allow-Origin: *"));
        check("HEAD /derp/latency-check HTTP/1.1", "200");
        check("POST /derp/latency-check HTTP/1.1", "405");
        check("GET /robots.txt HTTP/1.1", "200");
        assert!(!check("HEAD / HTTP/1.1", "200").contains("relay of"));
        check("GET /debug HTTP/1.1", "404");
        check("SSH-2.0", "400");
    }

    #[test]
    fn a_challenge_is_answered_unless_it_could_do_harm() {
        let with = |challenge: &str| {
            let head = format!("GET /generate_204 HTTP/1.1\r\nX-Tailscale-Challenge: {challenge}\r\n\r\n");
            let Request::Answer(answer) = read(head.as_bytes()) else { panic!("{head}") };
            assert!(answer.starts_with("HTTP/1.1 204 "));
            answer.contains(&format!("X-Tailscale-Response: response {challenge}\r\n"))
        };
        assert!(with("ts_relay.example.com:443-x"));
        assert!(!with("a b") && !with("<script>") && !with(&"a".repeat(65)));
    }
}
