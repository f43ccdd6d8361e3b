//! The program in the forms that scripts rely on: its files, flags, codes, signals, and whom it asks.
#![cfg(feature = "serve")]
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

#[path = "support/program.rs"]
mod support;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixDatagram,
    path::Path,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_core::derp::Frame;
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{PrivateKeyDer, pem::PemObject},
};
use serde_json::Value;
use support::{PATIENCE, Running, directory, get, key, pin, program, run, seen_by, until};

#[test]
fn a_relay_that_is_not_told_who_may_connect_does_not_start() {
    let output = run(&["--json", "serve", "--host", "localhost"]);
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("--verify-url") && stderr.contains("--open"), "{stderr}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["error"]["code"], "no-policy");
}

#[test]
fn usage_errors_are_json_too() {
    for arguments in [&["--json", "serve", "--lisen", "x"][..], &["serve", "--json", "--listen", "443"], &["--json"]] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["error"]["code"], "usage", "{arguments:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[test]
fn flags_win_over_the_environment_and_the_environment_over_the_file() {
    let state = directory("sources");
    let file = state.join("relay.toml");
    let text = format!(
        "host = \"127.0.0.1\"\nstate-dir = {state:?}\nno-tls = true\nregion-id = 901\nregion-code = \"file\"\n\
         listen = \"127.0.0.1:8443\"\n"
    );
    fs::write(&file, text).unwrap();
    let output = program()
        .args(["derp-map", "--region-code", "flag", "--config"])
        .arg(&file)
        .envs([("MESH_RELAY_REGION_ID", "902"), ("MESH_RELAY_REGION_CODE", "environment")])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let region: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&region["RegionID"], &region["RegionCode"]), (&902.into(), &"flag".into()));
    let node = &region["Nodes"][0];
    assert_eq!((&node["DERPPort"], &node["InsecureForTests"]), (&8443.into(), &true.into()));

    fs::write(&file, "lisen = \"127.0.0.1:0\"\n").unwrap();
    let output = run(&["serve", "--open", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("unknown key lisen; did you mean listen?"), "{stderr}");

    let output = program().args(["derp-map", "--host", "h"]).env("MESH_RELAY_LISTEN", "443").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("the environment: invalid value '443'"));
}

#[test]
fn logs_are_objects_when_asked_for_and_name_no_key_whole() {
    let mut relay = {
        let mut command = program();
        command.stderr(Stdio::piped());
        let flags = ["--no-tls", "--open", "--log-format", "json", "--log", "trace"];
        Running::start_as(command, &directory("logs"), &flags)
    };
    drop(relay.dial().connect(1).unwrap());
    until("the client leaves", || (relay.metric("leaves_total ") == 1).then_some(()));
    relay.signal("TERM");
    assert_eq!(relay.child.wait().unwrap().code(), Some(0));
    let lines: Vec<_> = BufReader::new(relay.child.stderr.take().unwrap()).lines().map(Result::unwrap).collect();
    assert!(lines.len() > 3, "{lines:?}");
    for line in &lines {
        assert!(serde_json::from_str::<Value>(line).is_ok_and(|line| line["level"].is_string()), "{line}");
    }
    let secret = fs::read_to_string(relay.state.join("relay.key")).unwrap();
    let secret: Value = serde_json::from_str(&secret).unwrap();
    let secret = secret["PrivateKey"].as_str().unwrap().trim_start_matches("privkey:");
    assert!(lines.iter().all(|line| !line.contains(secret)), "the private key is in the log");
}

#[test]
fn systemd_hears_of_start_and_end() {
    let state = directory("systemd");
    let socket = state.join("notify");
    let systemd = UnixDatagram::bind(&socket).unwrap();
    systemd.set_read_timeout(Some(PATIENCE)).unwrap();
    let heard = || {
        let mut text = [0; 64];
        let length = systemd.recv(&mut text).unwrap();
        String::from_utf8(text[..length].to_vec()).unwrap()
    };
    let mut command = program();
    command.env("NOTIFY_SOCKET", &socket);
    let mut relay = Running::start_as(command, &state, &["--no-tls", "--open"]);
    assert_eq!(heard(), "READY=1");
    relay.signal("INT");
    assert_eq!(heard(), "STOPPING=1");
    assert_eq!(relay.child.wait().unwrap().code(), Some(0));
}

#[test]
fn clients_hear_of_the_restart_and_the_program_ends_well() {
    let mut relay = Running::start("restart", &["--no-tls", "--open"]);
    let mut clients: Vec<_> = (1..=8).map(|number| relay.dial().connect(number).unwrap()).collect();
    // One more that is not in yet and says nothing.
    let _silent = relay.dial().tcp().unwrap();
    relay.signal("TERM");
    for client in &mut clients {
        assert!(matches!(client.next().unwrap(), Frame::Restarting { .. }));
        assert!(client.is_closed());
    }
    let began = Instant::now();
    assert_eq!(relay.child.wait().unwrap().code(), Some(0));
    // The contract of the program, not a figure of this machine.
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[test]
fn when_nobody_can_be_asked_nobody_gets_in() {
    let relay = Running::start("closed", &["--no-tls", "--verify-url", "http://127.0.0.1:1/verify"]);
    assert!(relay.dial().connect(1).is_err());
    assert_eq!(relay.closes("refused"), 1);
}

#[test]
fn a_control_server_is_asked_over_https_and_only_a_yes_lets_in() {
    let files = directory("verify");
    let (chain, key_file) = certificate(&files, "localhost", "control");
    let control = serve_verdicts(&chain, &key_file, |node| match node {
        node if node == key(1).to_string() => ("200 OK", "{\"Allow\":true}"),
        node if node == key(2).to_string() => ("200 OK", "{\"Allow\":false}"),
        node if node == key(3).to_string() => ("500 Internal Server Error", "{\"Allow\":true}"),
        _ => ("200 OK", "yes"),
    });
    let url = format!("https://localhost:{}/verify", control.port());
    let mut command = program();
    command.env("SSL_CERT_FILE", &chain);
    let relay = Running::start_as(command, &directory("asking"), &["--no-tls", "--verify-url", &url]);
    let mut client = relay.dial().connect(1).unwrap();
    client.send(&Frame::Ping(*b"12345678")).unwrap();
    assert_eq!(client.next().unwrap(), Frame::Pong(*b"12345678"));
    for number in 2..=4 {
        assert!(relay.dial().connect(number).is_err(), "{number}");
    }
    assert_eq!(relay.closes("refused"), 3);

    // Without the control server's root nobody can be asked.
    let stranger = Running::start("stranger", &["--no-tls", "--verify-url", &url]);
    assert!(stranger.dial().connect(1).is_err());
}

#[test]
fn stun_and_probes_are_answered() {
    let relay = Running::start("stun", &["--no-tls", "--open"]);
    let (seen, own) = seen_by(relay.stun, "127.0.0.1:0");
    assert_eq!(seen, own);
    let answer = get(relay.derp, "/derp/latency-check");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let answer = get(relay.derp, "/generate_204");
    assert!(answer.starts_with("HTTP/1.1 204 ") && !answer.contains("X-Tailscale-Response"), "{answer}");
}

#[test]
fn one_listener_takes_both_families() {
    let flags = ["--no-tls", "--open", "--listen", "[::]:0", "--stun-listen", "[::]:0"];
    let relay = Running::start("families", &flags);
    for host in ["127.0.0.1", "::1"] {
        let at = |port| SocketAddr::new(host.parse().unwrap(), port);
        let mut dial = relay.dial();
        dial.relay = at(relay.derp.port());
        dial.connect(1).unwrap();
        let own = if host == "::1" { "[::1]:0" } else { "127.0.0.1:0" };
        let (seen, own) = seen_by(at(relay.stun.port()), own);
        assert_eq!(seen, own);
    }
}

#[test]
fn the_map_pins_a_certificate_that_stays() {
    let state = directory("map");
    let map = |host: &str| {
        let state = state.to_str().unwrap();
        let output = run(&["derp-map", "--host", host, "--state-dir", state, "--listen", "127.0.0.1:8443"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let region = map("127.0.0.1");
    let node = &region["Nodes"][0];
    assert_eq!((&region["RegionID"], &node["Name"], &node["DERPPort"]), (&900.into(), &"900a".into(), &8443.into()));
    assert_eq!(node["IPv4"], "127.0.0.1");
    assert_eq!(node["CertName"].as_str().unwrap().len(), "sha256-raw:".len() + 64);
    assert_eq!(map("127.0.0.1"), region);
}

#[test]
fn the_map_says_the_addresses_of_a_literal_and_of_a_name() {
    let node = |host: &str| {
        let output = run(&["derp-map", "--host", host, "--no-tls"]);
        let mut region: Value = serde_json::from_slice(&output.stdout).unwrap();
        region["Nodes"][0].take()
    };
    assert_eq!(node("2001:db8::1")["IPv6"], "2001:db8::1");
    assert_eq!(node("2001:db8::1")["IPv4"], Value::Null);
    assert_eq!(node("localhost")["IPv4"], "127.0.0.1");
    assert_eq!(node("name.invalid")["IPv4"], Value::Null);
}

#[test]
fn a_certificate_for_another_host_is_neither_used_nor_replaced() {
    let state = directory("renamed");
    let before = pin(&state, "one.example.com");
    let state_text = state.to_str().unwrap();
    for arguments in [
        &["serve", "--open", "--host", "two.example.com", "--state-dir", state_text][..],
        &["derp-map", "--host", "two.example.com", "--state-dir", state_text],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("two.example.com") && stderr.contains("relay.crt"), "{stderr}");
    }
    assert_eq!(pin(&state, "one.example.com"), before);

    let (chain, key_file) = certificate(&state, "one.example.com", "given");
    let output = run(&["serve", "--open", "--host", "two.example.com", "--tls-cert", &chain, "--tls-key", &key_file]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("is not for \"two.example.com\""));
}

#[test]
fn a_renewed_certificate_is_served_after_a_hangup() {
    let state = directory("renewed");
    let (chain, key_file) = certificate(&state, "127.0.0.1", "web");
    let relay = Running::start_in(&state, &["--open", "--tls-cert", &chain, "--tls-key", &key_file]);
    let pin_of = |chain: &str| {
        let der = rustls::pki_types::CertificateDer::from_pem_file(chain).unwrap();
        let hash = ring::digest::digest(&ring::digest::SHA256, &der);
        format!("sha256-raw:{}", data_encoding::HEXLOWER.encode(hash.as_ref()))
    };
    let gets_in = |pin: &str| {
        let mut dial = relay.dial();
        dial.pin = Some(pin);
        dial.connect(1)
    };
    let old = pin_of(&chain);
    let mut before = gets_in(&old).unwrap();
    certificate(&state, "127.0.0.1", "web");
    let new = pin_of(&chain);
    assert!(gets_in(&new).is_err());
    relay.signal("HUP");
    until("the new certificate is served", || gets_in(&new).ok());
    assert!(gets_in(&old).is_err());
    // Whoever was in stays in.
    before.send(&Frame::Ping(*b"12345678")).unwrap();
    assert_eq!(before.next().unwrap(), Frame::Pong(*b"12345678"));
}

#[test]
fn a_port_in_use_is_said_with_exit_code_1() {
    let relay = Running::start("first", &["--no-tls", "--open"]);
    let (address, state) = (relay.derp.to_string(), directory("second"));
    let state = state.to_str().unwrap();
    let output = run(&["serve", "--host", "r", "--open", "--no-tls", "--listen", &address, "--state-dir", state]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains(&address));
}

#[test]
fn the_version_is_one_line_with_name_and_commit() {
    let output = run(&["--version"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(text.starts_with("mesh-relay 0.") && text.trim_end().ends_with(')'), "{text}");
    assert_eq!(text.lines().count(), 1);
}

#[test]
fn no_verb_is_a_usage_error() {
    assert_eq!(run(&[]).status.code(), Some(2));
}

/// A self-signed certificate and its key, as files.
fn certificate(directory: &Path, host: &str, name: &str) -> (String, String) {
    let made = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
    let [chain, key] = ["crt", "key"].map(|end| directory.join(format!("{name}.{end}")));
    fs::write(&chain, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    [chain, key].map(|path| path.to_str().unwrap().to_owned()).into()
}

/// A control server that answers about nodes as `verdict` says, until the test ends.
fn serve_verdicts(
    chain: &str,
    key_file: &str,
    verdict: impl Fn(&str) -> (&'static str, &'static str) + Send + 'static,
) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = rustls::pki_types::CertificateDer::from_pem_file(chain).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![chain], PrivateKeyDer::from_pem_file(key_file).unwrap())
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let tls = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = StreamOwned::new(tls, socket.unwrap());
            let mut request = Vec::new();
            let mut chunk = [0; 4096];
            // Whoever does not trust this certificate ends here.
            while let Ok(count @ 1..) = stream.read(&mut chunk) {
                request.extend_from_slice(&chunk[..count]);
                let text = String::from_utf8_lossy(&request);
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let Ok(body) = serde_json::from_str::<Value>(body) else { continue };
                assert!(head.starts_with("POST /verify HTTP/1.1\r\n"), "{head}");
                assert_eq!(body["Source"], "127.0.0.1");
                let (status, answer) = verdict(body["NodePublic"].as_str().unwrap());
                let length = answer.len();
                write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{answer}").unwrap();
                break;
            }
        }
    });
    address
}
