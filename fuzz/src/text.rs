//! Texts: addresses of control servers, what control asks in HTTP, names of hosts, what is printed, command lines.

use clap::Parser as _;
use control::names;
use mesh_agent::cli;
use mesh_core::{
    control::{
        ControlUrl, Route, c2n,
        types::{NodeId, PingRequest},
    },
    printable,
};
use sim::host::dns;

/// The address of a control server is printed as one that reads the same, and a page is its own only at its host.
///
/// # Panics
/// When that is not so.
pub fn control_url(data: &[u8]) {
    let Ok(text) = core::str::from_utf8(data) else { return };
    let server: ControlUrl = "https://control.example.com:8443".parse().expect("it is one");
    if server.is_at(text) {
        assert!(is_of_the_host(text), "{text:?}");
    }
    if server.may_show(text) {
        assert!(text.as_bytes()[..8].eq_ignore_ascii_case(b"https://"));
    }
    let url: ControlUrl = match text.parse() {
        Ok(url) => url,
        Err(error) => {
            assert_eq!(printable::line(&format!("{error}")).lines().count(), 1);
            return;
        }
    };
    let written = url.to_string();
    assert_eq!(written.parse().as_ref(), Ok(&url), "{written}");
    assert!(url.is_at(&written) && url.port() != Some(0) && !url.host().is_empty());
    let json = serde_json::to_string(&url).expect("a text");
    assert_eq!(serde_json::from_str::<ControlUrl>(&json).expect("it was one"), url);
}

/// Whether a page is at `https://control.example.com`, at any port; told without any parser of URLs.
fn is_of_the_host(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let Some(rest) = lower.strip_prefix("https://control.example.com") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority.is_empty() || authority.strip_prefix(':').is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()))
}

/// What control asks of a node is answered with a whole HTTP response, through the control connection or at the server's
/// own host; nobody else is ever spoken to.
///
/// # Panics
/// When that is not so.
pub fn c2n(data: &[u8]) {
    let server: ControlUrl = "https://control.example.com".parse().expect("it is one");
    let url = "https://unused/machine/c2n-reply/1".to_owned();
    let carried = PingRequest { url, types: "c2n".to_owned(), payload: data.to_vec(), ..PingRequest::default() };
    let asked = serde_json::from_slice::<PingRequest>(data).ok();
    for ping in asked.into_iter().chain([carried]) {
        let Some(answer) = c2n::answer(&ping, &server) else {
            let is_elsewhere = ping.types.is_empty() && !ping.url_is_noise && !server.is_at(&ping.url);
            assert!(ping.url.is_empty() || is_elsewhere, "{ping:?}");
            continue;
        };
        assert_eq!(answer.url, ping.url);
        assert!(answer.route == Route::Noise || is_of_the_host(&answer.url), "{answer:?}");
        match (&*ping.types, answer.body) {
            ("", body) => assert_eq!(body, None),
            ("c2n", Some(body)) => check_response(&body),
            (_, Some(body)) => drop(serde_json::from_slice::<serde_json::Value>(&body).expect("an object")),
            (_, None) => panic!("nothing is said to {ping:?}"),
        }
    }
}

fn check_response(response: &[u8]) {
    let end = response.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let (head, body) = (core::str::from_utf8(&response[..end]).expect("our own words"), &response[end + 4..]);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") || head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{head}");
    assert_eq!(head.split("\r\n").count(), 3, "{head}");
    assert!(head.ends_with(&format!("\r\nContent-Length: {}", body.len())), "{head}");
}

/// Of whatever a host calls itself a label is made, and made of the label it is the same; however many ask for it, each
/// node has a name of its own. What is printed of it moves no cursor and, as JSON, means the same.
///
/// # Panics
/// When that is not so.
pub fn host_names(data: &[u8]) {
    let Ok(text) = core::str::from_utf8(data) else { return };
    let label = names::label(text);
    assert!(names::is_label(&label) && !names::is_number(&label), "{label:?}");
    assert_eq!(names::label(&label), label);
    if names::is_base_domain(text) {
        assert!(text.split('.').all(names::is_label));
    }
    let mut taken = names::Names::default();
    for (number, part) in text.split('\n').take(32).enumerate() {
        let node = NodeId(number as i64 + 1);
        let stem = names::label(part);
        let name = taken.like(&stem, node, None);
        assert!(names::is_label(&name) && name.starts_with(&stem) && taken.holder(&name).is_none(), "{name}");
        taken.take(name.clone(), node);
        assert_eq!(taken.like(&stem, node, Some(&name)), name, "it stays");
    }

    let steers = |letter: &char| letter.is_control() || ('\u{202a}'..='\u{202e}').contains(letter);
    let (line, lines) = (printable::line(text), printable::lines(text));
    assert!(!line.chars().filter(|letter| *letter != '\t').any(|letter| steers(&letter)), "{line:?}");
    assert!(!lines.chars().filter(|letter| !"\t\n".contains(*letter)).any(|letter| steers(&letter)), "{lines:?}");
    assert_eq!((printable::line(&line), printable::lines(&lines)), (line.clone(), lines.clone()));
    if let Ok(value) = serde_json::from_str::<serde_json::Value>(text) {
        let text = value.to_string();
        let shown = printable::json(&text);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).expect("it is still JSON"), value);
        assert!(!shown.chars().any(|letter| steers(&letter)), "{shown:?}");
    }
}

/// A question or an answer of DNS that is read is the same when it is written and read again.
///
/// # Panics
/// When it is not.
pub fn dns(data: &[u8]) {
    if let Some(question) = dns::Question::parse(data) {
        // A name with a dot inside a label, or one that is too long, has no way back.
        let Some(written) = question.emit() else { return };
        assert_eq!(dns::Question::parse(&written).map(|again| again.name), Some(question.name.clone()));
        let addresses = [[192, 0, 2, 1].into(), [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into()];
        let answer = question.answer(dns::Rcode::Ok, &addresses).expect("it was asked");
        let answer = dns::Answer::parse(&answer).expect("we made it");
        assert_eq!((answer.id, answer.addresses.len()), (question.id, 1));
    }
    if let Some(answer) = dns::Answer::parse(data) {
        assert!(dns::Question::parse(data).is_none() && answer.addresses.len() * 4 <= data.len());
    }
}

/// Arguments, one a line, are understood or refused with a sentence.
///
/// # Panics
/// When there is none.
pub fn command_line(data: &[u8]) {
    let Ok(text) = core::str::from_utf8(data) else { return };
    let words = core::iter::once("mesh").chain(text.split('\n').take(12));
    match cli::Arguments::try_parse_from(words) {
        Ok(arguments) => drop(format!("{arguments:?}")),
        Err(error) => assert!(!error.to_string().trim().is_empty()),
    }
}
