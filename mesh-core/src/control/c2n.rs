//! What control asks of a node: a sign of life, or a small HTTP request inside the map stream.
//!
//! A [`PingRequest`] comes with any message of the map. Without types it is answered by `HEAD` of its URL, outside the
//! control connection only at the server's own host: a node is nobody's means to reach others. Of type `c2n`
//! it carries a request in HTTP/1.1, whose answer is posted to the URL through the control connection; this node knows
//! `/echo` and nothing else. Other types ask it to ping a peer, which it declines in the answer.
//! `control-protocol.md` §5.15 and §6.5.
#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation)]

use serde::Serialize;

use super::{
    link::{Answer, ControlUrl, Route},
    types::PingRequest,
};

/// What is posted about a ping of a peer.
#[derive(Serialize)]
struct PingResponse<'p> {
    #[serde(rename = "Type")]
    kind: &'p str,
    #[serde(rename = "IP")]
    ip: String,
    #[serde(rename = "Err")]
    error: &'p str,
}

/// The answer to a request of `server`; `None` when it has no place for one, or a place that is not the server's.
#[must_use]
pub fn answer(ping: &PingRequest, server: &ControlUrl) -> Option<Answer> {
    let url = ping.url.clone();
    match ping.types.as_str() {
        _ if url.is_empty() => None,
        "" if ping.url_is_noise => Some(Answer { url, route: Route::Noise, body: None }),
        "" => server.is_at(&url).then_some(Answer { url, route: Route::Web, body: None }),
        // Always through the control connection, whatever it says.
        "c2n" => Some(Answer { url, route: Route::Noise, body: Some(respond(&ping.payload)) }),
        kinds => {
            let kind = kinds.split(',').next().unwrap_or_default();
            let ip = ping.ip.map(|ip| ip.to_string()).unwrap_or_default();
            let error = "this node does not ping peers for control";
            let body = serde_json::to_vec(&PingResponse { kind, ip, error }).ok()?;
            Some(Answer { url, route: Route::Noise, body: Some(body) })
        }
    }
}

/// The HTTP/1.1 response to a request.
fn respond(request: &[u8]) -> Vec<u8> {
    let end = request.windows(4).position(|window| window == b"\r\n\r\n");
    let (head, body) = match end.and_then(|end| request.split_at_checked(end)) {
        Some((head, rest)) => (head, rest.get(4..).unwrap_or_default()),
        None => (request, [].as_slice()),
    };
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let path = words.nth(1).and_then(|target| target.split(|byte| *byte == b'?').next());
    match path {
        Some(b"/echo") => response("200 OK", body),
        Some(_) => response("400 Bad Request", b"unknown c2n path\n"),
        None => response("400 Bad Request", b"no HTTP request\n"),
    }
}

fn response(status: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> ControlUrl {
        "https://control.example.com".parse().unwrap()
    }

    fn ping(types: &str, payload: &str) -> PingRequest {
        PingRequest {
            url: "https://unused/machine/c2n-reply/1".to_owned(),
            types: types.to_owned(),
            payload: payload.as_bytes().to_vec(),
            ..PingRequest::default()
        }
    }

    fn posted(types: &str, payload: &str) -> String {
        String::from_utf8(answer(&ping(types, payload), &server()).unwrap().body.unwrap()).unwrap()
    }

    #[test]
    fn a_sign_of_life_is_the_way_that_control_says() {
        let at = |url: &str, url_is_noise| {
            answer(&PingRequest { url: url.to_owned(), url_is_noise, ..ping("", "") }, &server())
        };
        let web = at("https://control.example.com:8443/ping/1", false).unwrap();
        assert_eq!((web.route, web.body), (Route::Web, None));
        assert_eq!(at("https://unused/ping/1", true).unwrap().route, Route::Noise);
        for url in ["", "https://example.com/ping/1", "http://control.example.com/ping/1", "http://127.0.0.1:2375/x"] {
            assert_eq!(at(url, false), None, "{url}");
        }
    }

    #[test]
    fn an_echo_comes_back() {
        let text = posted("c2n", "POST /echo?x HTTP/1.1\r\nHost: n\r\n\r\nhello\r\n\r\nthere");
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\nhello\r\n\r\nthere"), "{text}");
        assert!(text.contains("Content-Length: 14\r\n"), "{text}");
        assert_eq!(answer(&ping("c2n", ""), &server()).unwrap().route, Route::Noise);
    }

    #[test]
    fn other_requests_are_answered_that_they_are_unknown() {
        for request in ["GET /debug/prefs HTTP/1.1\r\n\r\n", "GET /echoes HTTP/1.1\r\n\r\n"] {
            assert!(posted("c2n", request).ends_with("unknown c2n path\n"));
        }
        assert!(posted("c2n", "nonsense").ends_with("no HTTP request\n"));
    }

    #[test]
    fn pings_of_peers_are_declined() {
        let request = PingRequest { ip: "100.64.0.2".parse().ok(), ..ping("disco,TSMP", "") };
        let answer = answer(&request, &server()).unwrap();
        assert_eq!(answer.route, Route::Noise);
        let text = String::from_utf8(answer.body.unwrap()).unwrap();
        assert!(text.starts_with(r#"{"Type":"disco","IP":"100.64.0.2","Err":"#), "{text}");
    }
}
