//! Strangers that know our public key and ask for handshakes faster than they can be opened.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the stranger is a program of its own")]

use std::{
    net::UdpSocket,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use mesh_core::{key::NodePublic, wireguard::identity::MacKeys};

use super::{
    agents::{A, Agent, B, reach, reach_all, two_files},
    lab::{Lab, until},
};
use crate::Test;

/// What this program is started again with to be the stranger.
pub(crate) const WORD: &str = "flood-a-peer";

/// Initiations a second.
const RATE: u32 = 10_000;

/// How long.
const SECONDS: u32 = 5;

pub(crate) const TESTS: &[Test] =
    &[("an_honest_peer_is_served_while_strangers_ask_for_handshakes", an_honest_peer_is_served_while_strangers_ask)];

fn an_honest_peer_is_served_while_strangers_ask() -> Result<()> {
    let mut lab = Lab::new()?;
    let (a, b, stranger) = (lab.node("a")?, lab.node("b")?, lab.node("stranger")?);
    lab.cable((&a, "eth0", &["192.0.2.1/24"]), (&b, "eth0", &["192.0.2.2/24"]))?;
    lab.cable((&stranger, "eth0", &["198.51.100.1/24"]), (&b, "eth1", &["198.51.100.2/24"]))?;
    let (file_a, file_b) = two_files("192.0.2.2:51820", &[])?;
    let agent_b = Agent::start(&b, &file_b)?;
    let key = agent_b.status()?["Self"]["PublicKey"].as_str().context("no key")?.to_owned();

    let own = std::env::current_exe()?;
    let mut flood = stranger.spawn(&[&own.to_string_lossy(), WORD, "198.51.100.2:51820", &key])?;
    flood.wait_for("sending", Duration::from_secs(10))?;
    let is_loaded =
        || Ok((agent_b.metric("mesh_dropped_packets_total{reason=\"cookie_demanded\"}")? > 0).then_some(()));
    until("cookies are asked for", Duration::from_secs(10), is_loaded)?;
    // A peer that begins in the middle of it needs a cookie, and gets through with it.
    let _agent_a = Agent::start(&a, &file_a)?;
    reach(&a, B[0])?;
    reach_all(&b, A[0], 50)?;
    ensure!(flood.wait(Duration::from_secs(30))?.success(), "{}", flood.output());
    let sent: u64 = flood.wait_for("sent ", Duration::from_secs(1))?[5..].parse()?;
    ensure!(sent > u64::from(RATE * SECONDS) / 2, "only {sent} were sent");
    let demanded = agent_b.metric("mesh_dropped_packets_total{reason=\"cookie_demanded\"}")?;
    ensure!(demanded > 1000, "only {demanded} were asked for cookies");
    let log = agent_b.process.output();
    ensure!(log.lines().count() < 20, "strangers filled the log: {log}");
    Ok(())
}

/// The stranger: `ADDRESS NODEKEY`.
pub(crate) fn main(arguments: &[String]) -> ExitCode {
    match send(arguments) {
        Ok(sent) => {
            println!("sent {sent}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn send(arguments: &[String]) -> Result<u64> {
    let [to, key] = arguments else { anyhow::bail!("expected an address and a key") };
    let key: NodePublic = key.parse()?;
    let macs = MacKeys::new(&key);
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    println!("sending");
    let start = Instant::now();
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    let mut sent = 0;
    while start.elapsed() < Duration::from_secs(SECONDS.into()) {
        // As many as are due by now.
        let due = start.elapsed().as_micros() as u64 * u64::from(RATE) / 1_000_000;
        while sent < due {
            let mut message = [0; 148];
            message[0] = 1;
            for byte in &mut message[4..116] {
                // xorshift: anything that is no valid message will do.
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                *byte = noise as u8;
            }
            let mac = macs.mac1(&message[..116]);
            message[116..132].copy_from_slice(&mac);
            // A full queue loses it, as floods do.
            let _ = socket.send_to(&message, to);
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(sent)
}
