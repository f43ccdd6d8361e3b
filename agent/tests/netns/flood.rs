//! Strangers that know our public key and ask for handshakes faster than they can be opened.

use anyhow::{Context, Result, ensure};

use super::{
    agents::{A, Agent, B, reach, reach_all, two_files},
    joined::PATIENCE,
    lab::{Lab, until},
    strangers,
};
use crate::Test;

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

    let flood = strangers::start(&stranger, &["handshakes", "198.51.100.2:51820", &key, "10000", "25000", "0"])?;
    let is_loaded = |demanded| {
        let metric = "mesh_dropped_packets_total{reason=\"cookie_demanded\"}";
        until("cookies are asked for", PATIENCE, || Ok((agent_b.metric(metric)? >= demanded).then_some(())))
    };
    is_loaded(1)?;
    // A peer that begins in the middle of it needs a cookie, and gets through with it.
    let _agent_a = Agent::start(&a, &file_a)?;
    reach(&a, B[0])?;
    reach_all(&b, A[0], 50)?;
    strangers::said(&flood, "sent")?;
    is_loaded(1_000)?;
    let log = agent_b.process.output();
    ensure!(log.lines().count() < 20, "strangers filled the log: {log}");
    Ok(())
}
