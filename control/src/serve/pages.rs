//! What is asked outside Noise: the server's key, the way into Noise, relays' questions, and pages for people.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use data_encoding::BASE64;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, UPGRADE},
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use mesh_core::{
    control::noise::{EarlyNoise, Initiation, NoiseError, error_frame},
    key::{MachinePrivate, NodePublic},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::timeout,
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tracing::debug;
use transports::control::NoiseIo;

use super::{
    desk::No,
    limits,
    listen::{Shop, Wire},
    machine_api::Machine,
    pass::Pass,
    text::{fingerprint, html},
    websocket::WebSocket,
};
use crate::{
    coordinator::{Command, Reply, SignInView},
    limits::MIN_CAPABILITY_VERSION,
    store::Principal,
};

/// What stock clients upgrade to; they compare it letter by letter.
const PROTOCOL: &str = "tailscale-control-protocol";
const HANDSHAKE_HEADER: &str = "x-tailscale-handshake";
const HANDSHAKE_PARAMETER: &str = "X-Tailscale-Handshake";

/// The key of the protocol before Noise, which nobody has.
const NO_KEY: &str = "mkey:0000000000000000000000000000000000000000000000000000000000000000";

type Page = Response<Full<Bytes>>;

/// Answers one request.
pub(super) async fn answer(request: Request<Incoming>, wire: Wire, shop: &Arc<Shop>, pass: &Arc<Pass>) -> Page {
    let is_get = matches!(*request.method(), Method::GET | Method::HEAD);
    match request.uri().path() {
        "/key" if is_get => key(shop),
        "/ts2021" => upgrade(request, shop, pass),
        "/verify" if *request.method() == Method::POST => verify(request, shop).await,
        "/verify" => wrong_method("POST"),
        "/health" if is_get => health(shop).await,
        // What follows is for people, who are sent to where nobody listens in.
        path if is_get && wire == Wire::Beside => redirect(&format!("{}{path}", shop.server_url)),
        "/" if is_get => text(StatusCode::OK, "This is the coordination server of a mesh VPN.\n"),
        "/robots.txt" if is_get => text(StatusCode::OK, "User-agent: *\nDisallow: /\n"),
        path if is_get => match path.strip_prefix("/register/").filter(|code| is_code(code)) {
            Some(code) => sign_in(code, shop).await,
            None => text(StatusCode::NOT_FOUND, "nothing is here\n"),
        },
        "/key" | "/health" | "/" => wrong_method("GET"),
        _ => text(StatusCode::NOT_FOUND, "nothing is here\n"),
    }
}

fn key(shop: &Shop) -> Page {
    let body = serde_json::json!({ "legacyPublicKey": NO_KEY, "publicKey": shop.public });
    let mut page = json(StatusCode::OK, &body);
    // One that is kept somewhere on the way locks nodes out after a change.
    page.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    page
}

/// The way into Noise.
fn upgrade(mut request: Request<Incoming>, shop: &Arc<Shop>, pass: &Arc<Pass>) -> Page {
    let bad = |why: &str| text(StatusCode::BAD_REQUEST, why);
    let Some(upgrade) = header(request.headers(), UPGRADE.as_str()) else {
        return bad("this is for nodes: nothing asks for an upgrade; a proxy in between may have removed it\n");
    };
    let is_websocket = upgrade.eq_ignore_ascii_case("websocket");
    match (request.method(), is_websocket, upgrade) {
        (&Method::GET, true, _) | (&Method::POST, false, PROTOCOL) => {}
        (_, true, _) => return wrong_method("GET"),
        (_, false, PROTOCOL) => return wrong_method("POST"),
        (_, false, _) => return bad("nothing else than tailscale-control-protocol and websocket is spoken here\n"),
    }
    let given = if is_websocket {
        parameter(request.uri().query().unwrap_or_default(), HANDSHAKE_PARAMETER)
    } else {
        header(request.headers(), HANDSHAKE_HEADER).map(str::to_owned)
    };
    let Some(initiation) = given.and_then(|text| BASE64.decode(text.as_bytes()).ok()) else {
        return bad("there is no handshake\n");
    };
    let answer = if is_websocket { websocket_answer(request.headers()) } else { switching(PROTOCOL) };
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let on = hyper::upgrade::on(&mut request);
        let (shop, pass) = (Arc::clone(shop), Arc::clone(pass));
        tokio::spawn(async move {
            let Some(stream) = upgraded(on).await else { return };
            let early = if is_websocket { Early::Nothing } else { Early::Challenge };
            if is_websocket {
                handshake(WebSocket::new(stream).await, &initiation, early, &shop, pass).await;
            } else {
                handshake(stream, &initiation, early, &shop, pass).await;
            }
        });
    }
    answer
}

async fn upgraded(on: OnUpgrade) -> Option<TokioIo<Upgraded>> {
    match timeout(limits::HANDSHAKE, on).await {
        Ok(Ok(stream)) => Some(TokioIo::new(stream)),
        Ok(Err(_)) | Err(_) => None,
    }
}

fn switching(protocol: &'static str) -> Page {
    let mut page = Response::new(Full::default());
    *page.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    page.headers_mut().insert(UPGRADE, HeaderValue::from_static(protocol));
    page.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    page
}

fn websocket_answer(headers: &HeaderMap) -> Page {
    let refuse = |why: &str| text(StatusCode::BAD_REQUEST, why);
    let Some(key) = header(headers, "sec-websocket-key") else { return refuse("there is no WebSocket key\n") };
    if header(headers, "sec-websocket-version") != Some("13") {
        return refuse("WebSocket version 13 alone is spoken here\n");
    }
    let offered = header(headers, "sec-websocket-protocol").unwrap_or_default();
    if !offered.split(',').any(|name| name.trim() == PROTOCOL) {
        return refuse("the subprotocol is tailscale-control-protocol\n");
    }
    let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) else {
        return refuse("this is no WebSocket key\n");
    };
    let mut page = switching("websocket");
    page.headers_mut().insert("sec-websocket-accept", accept);
    page.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(PROTOCOL));
    page
}

/// What is said before HTTP/2.
#[derive(Clone, Copy)]
enum Early {
    Nothing,
    Challenge,
}

async fn handshake<S>(mut stream: S, initiation: &[u8], early: Early, shop: &Shop, pass: Arc<Pass>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let conn = shop.next_conn();
    let mut rng = shop.split_dice();
    let opened = Initiation::open(initiation, &shop.key);
    let refusal = match &opened {
        Ok(opened) if i64::from(opened.version()) < MIN_CAPABILITY_VERSION => Some(format!(
            "this client is too old: its capability version is {}, and this server serves {MIN_CAPABILITY_VERSION} and \
             later (Tailscale 1.80)",
            opened.version()
        )),
        Ok(_) => None,
        Err(error @ (NoiseError::Type { .. } | NoiseError::Length { .. })) => Some(error.to_string()),
        // Nobody who has our key sends this; nothing is said to others.
        Err(_) => return,
    };
    if let Some(refusal) = refusal {
        debug!(from = %pass.from(), refusal, "a handshake was refused");
        // Whoever it was may have gone.
        let _ = timeout(limits::HANDSHAKE, stream.write_all(&error_frame(&refusal))).await;
        let _ = timeout(limits::HANDSHAKE, stream.shutdown()).await;
        return;
    }
    let Ok(opened) = opened else { return };
    let machine = opened.machine();
    let Ok((response, mut sealer, opener)) = opened.respond(&mut rng) else { return };
    let mut first = response.to_vec();
    if let Early::Challenge = early {
        let challenge = MachinePrivate::generate(&mut rng).public().to_string();
        let node_key_challenge = challenge.replace("mkey:", "chalpub:");
        if sealer.seal(&EarlyNoise { node_key_challenge }.to_bytes(), &mut first).is_err() {
            return;
        }
    }
    let stream = NoiseIo::of_server(stream, sealer, opener, first);
    let machine = Machine::new(conn, machine, shop.desk.clone(), shop.pool.clone(), pass);
    // A task of its own: it lasts, and the memory of this one is free again.
    tokio::spawn(machine.serve(stream));
}

/// Whether a relay may serve a node: derper's contract.
async fn verify(request: Request<Incoming>, shop: &Shop) -> Page {
    #[derive(serde::Deserialize)]
    struct Question {
        #[serde(rename = "NodePublic")]
        node: NodePublic,
    }
    let body = match timeout(limits::BODY, Limited::new(request.into_body(), limits::VERIFY_BYTES).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            return text(StatusCode::PAYLOAD_TOO_LARGE, "the question is too long\n");
        }
        Ok(Err(_)) => return text(StatusCode::BAD_REQUEST, "the question did not arrive\n"),
        Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "the question took too long\n"),
    };
    let Ok(Question { node }) = serde_json::from_slice(&body) else {
        return text(StatusCode::BAD_REQUEST, "this is not the question of a relay\n");
    };
    match within(limits::VERIFY, shop.desk.command(Principal::Server, Command::Verify { node })).await {
        Some(Ok(Reply::Verdict(allow))) => json(StatusCode::OK, &serde_json::json!({ "Allow": allow })),
        _ => text(StatusCode::SERVICE_UNAVAILABLE, "nobody can say now\n"),
    }
}

async fn health(shop: &Shop) -> Page {
    match within(limits::HEALTH, shop.desk.look()).await {
        Some(Ok(look)) if !look.stuck => json(StatusCode::OK, &serde_json::json!({ "status": "pass" })),
        _ => json(StatusCode::SERVICE_UNAVAILABLE, &serde_json::json!({ "status": "fail" })),
    }
}

async fn within<T>(time: std::time::Duration, work: impl Future<Output = T>) -> Option<T> {
    timeout(time, work).await.ok()
}

/// Tells whoever follows a sign-in URL who asks and what is to be done.
async fn sign_in(code: &str, shop: &Shop) -> Page {
    let question = Command::ShowSignIn { code: code.to_owned() };
    let view = match within(limits::HEALTH, shop.desk.command(Principal::Server, question)).await {
        Some(Ok(Reply::SignIn(view))) => view,
        Some(Ok(_) | Err(No::Refused(_))) => {
            return text(
                StatusCode::NOT_FOUND,
                "this sign-in is over; start it again on the device, which shows a new URL\n",
            );
        }
        Some(Err(_)) | None => return text(StatusCode::SERVICE_UNAVAILABLE, "nobody can say now\n"),
    };
    let mut page = text(StatusCode::OK, &sign_in_page(code, &view));
    page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    page.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    page.headers_mut()
        .insert("content-security-policy", HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
    page
}

/// The host name and the system are the device's own words: they prove nothing and may be anything.
fn sign_in_page(code: &str, view: &SignInView) -> String {
    let key = view.machine.to_string();
    let tags =
        if view.tags.is_empty() { String::new() } else { format!("tags         {}\n", html(&view.tags.join(" "))) };
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Sign in</title>\n\
         <h1>A device asks to join</h1>\n<p>It says of itself</p>\n\
         <pre>host name    {}\nsystem       {}\n{tags}fingerprint  {}</pre>\n\
         <p>Whoever runs the server lets it in with</p>\n\
         <pre>mesh-control nodes register {code} --user USER</pre>\n\
         <p>Do so only if it was you who started this on a device of yours. The fingerprint is how its machine key \
         begins; mesh-control nodes show has it, too.</p>\n</html>\n",
        html(&view.hostname),
        html(&view.os),
        fingerprint(&key),
    )
}

/// What may stand at the end of a sign-in URL.
fn is_code(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

fn redirect(to: &str) -> Page {
    let Ok(to) = HeaderValue::from_str(to) else { return text(StatusCode::BAD_REQUEST, "this is no path\n") };
    let mut page = text(StatusCode::FOUND, "");
    page.headers_mut().insert(LOCATION, to);
    page
}

fn wrong_method(wanted: &'static str) -> Page {
    let mut page = text(StatusCode::METHOD_NOT_ALLOWED, &format!("this path wants {wanted}\n"));
    page.headers_mut().insert(ALLOW, HeaderValue::from_static(wanted));
    page
}

fn json(status: StatusCode, body: &serde_json::Value) -> Page {
    let mut page = text(status, &body.to_string());
    page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    page
}

fn text(status: StatusCode, text: &str) -> Page {
    let mut page = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *page.status_mut() = status;
    page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    page
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// A parameter of a query, with its escapes resolved. Base64 has `+`, which some leave as it is, so it is no space here.
fn parameter(query: &str, name: &str) -> Option<String> {
    let raw = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_unescaped() {
        let of = |query: &str| parameter(query, HANDSHAKE_PARAMETER);
        assert_eq!(of("a=1&X-Tailscale-Handshake=AB%2Bc%2f%3D%3D").as_deref(), Some("AB+c/=="));
        assert_eq!(of("X-Tailscale-Handshake=a+b").as_deref(), Some("a+b"));
        for query in ["", "X-Tailscale-Handshake", "X-Tailscale-Handshake=%4", "X-Tailscale-Handshake=%zz", "x=%ff"] {
            assert_eq!(of(query), None, "{query}");
        }
    }

    #[test]
    fn a_sign_in_page_shows_what_a_device_says_as_text() {
        let view = SignInView {
            machine: mesh_core::key::MachinePublic::from_bytes([0xab; 32]),
            hostname: "<script>alert(1)</script>".to_owned(),
            os: "linux\u{202e}".to_owned(),
            tags: vec!["tag:<b>".to_owned()],
        };
        let page = sign_in_page("c0de", &view);
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;") && !page.contains("<script"), "{page}");
        assert!(page.contains("linux\\u{202e}") && page.contains("tag:&lt;b&gt;"), "{page}");
        assert!(page.contains("fingerprint  abab-abab-abab-abab-abab<"), "{page}");
    }

    #[test]
    fn a_page_shows_nothing_but_codes() {
        assert!(is_code("aZ09-_"));
        for text in ["", "a b", "<script>", "a/b", "ü", &"a".repeat(129)] {
            assert!(!is_code(text), "{text}");
        }
    }
}
