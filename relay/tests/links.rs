//! The agent's links to relays, with the program at their other end.
#![cfg(feature = "serve")]
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

#[path = "support/program.rs"]
mod support;

use core::{future::poll_fn, time::Duration};
use std::process::Command;

use mesh_core::{
    derp::{DerpNode, DerpRegion, RegionId, map::HostAddr},
    key::{NodePrivate, NodePublic},
    node::{RelayCommand, RelayEvent},
    rng::Seed,
};
use support::{Running, directory, run};
use transports::{
    derp::{Arrival, Dialer, Plain, RelayLinks, Trust},
    fetch,
    net::Net,
    udp::Family,
};

const LONG: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "current_thread")]
async fn two_nodes_exchange_packets_with_tls_and_without() {
    for flags in [&["--open"][..], &["--open", "--no-tls"]] {
        let relay = Running::start("links-exchange", flags);
        let node = entry("links-exchange", flags, &relay);
        assert_eq!(node.insecure_for_tests, flags.contains(&"--no-tls"));
        let (mut alice, mut bob) = (links(1), links(2));
        for links in [&mut alice, &mut bob] {
            connect(links, &node);
            assert_eq!(receive(links).await, Arrival::Event(RelayEvent::Connected { region: region() }));
        }
        // As many as fit on both ways; larger than a record, too.
        for size in [0, 1, 1400, 20_000, 65_536] {
            alice.send(region(), key(2), vec![7; size]);
            let expected = Arrival::Packet { region: region(), from: key(1), packet: vec![7; size] };
            let arrived = receive(&mut bob).await;
            assert!(arrived == expected, "{size} bytes do not arrive");
        }
        for size in [65_537, 2] {
            alice.send(region(), key(2), vec![7; size]);
        }
        assert!(matches!(receive(&mut bob).await, Arrival::Packet { packet, .. } if packet.len() == 2));
        assert_eq!(alice.counts().dropped_too_large, 1);
        drop(alice);
        let gone = Arrival::Event(RelayEvent::PeerGone { region: region(), peer: key(1) });
        assert_eq!(receive(&mut bob).await, gone);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_relay_with_another_certificate_than_its_map_is_refused_by_links_and_probes() {
    let relay = Running::start("links-swapped", &["--open"]);
    let node = entry("links-swapped", &["--open"], &relay);
    directory("links-other");
    let swapped = DerpNode { cert_name: entry("links-other", &["--open"], &relay).cert_name, ..node.clone() };
    let expected = format!("certificate of 127.0.0.1 does not match {} of the relay map", swapped.cert_name);
    let mut links = links(1);
    connect(&mut links, &swapped);
    let failed = RelayEvent::Failed { region: region(), reason: expected.clone() };
    assert_eq!(receive(&mut links).await, Arrival::Event(failed));
    let probe = async |node| fetch::get(links.dialer(), node, fetch::LATENCY_CHECK, &[], Family::V4, LONG).await;
    assert_eq!(probe(&swapped).await.unwrap_err().to_string(), expected);
    assert_eq!(probe(&node).await.unwrap().status, 200);
}

#[tokio::test(flavor = "current_thread")]
async fn a_relay_that_restarts_says_so_and_its_end_is_a_failure() {
    let relay = Running::start("links-restart", &["--open"]);
    let mut links = links(1);
    connect(&mut links, &entry("links-restart", &["--open"], &relay));
    assert_eq!(receive(&mut links).await, Arrival::Event(RelayEvent::Connected { region: region() }));
    Command::new("kill").arg(relay.child.id().to_string()).status().unwrap();
    assert!(matches!(receive(&mut links).await, Arrival::Event(RelayEvent::Restarting { .. })));
    assert!(matches!(receive(&mut links).await, Arrival::Event(RelayEvent::Failed { .. })));
}

#[tokio::test(flavor = "current_thread")]
async fn a_relay_that_does_not_take_us_in_is_said() {
    let flags = &["--verify-url", "http://127.0.0.1:1/verify"];
    let relay = Running::start("links-closed", flags);
    let mut links = links(1);
    connect(&mut links, &entry("links-closed", flags, &relay));
    let reason = "127.0.0.1 closed the connection and did not take us in".to_owned();
    let failed = RelayEvent::Failed { region: region(), reason };
    assert_eq!(receive(&mut links).await, Arrival::Event(failed));
}

/// What the program says about itself for the relay map, with the port that it has.
fn entry(name: &str, flags: &[&str], relay: &Running) -> DerpNode {
    let state = state_path(name);
    let mut arguments = vec!["derp-map", "--host", "127.0.0.1", "--state-dir", &state];
    arguments.extend(flags.iter().filter(|flag| **flag == "--no-tls"));
    let output = run(&arguments);
    let region: DerpRegion = serde_json::from_slice(&output.stdout).expect("the program prints its region");
    let node = region.nodes.into_iter().flatten().next().expect("the region has a relay");
    assert_eq!(node.v4(), HostAddr::Literal([127, 0, 0, 1].into()));
    DerpNode { derp_port: relay.derp.port().into(), ..node }
}

fn links(number: u8) -> RelayLinks {
    let dialer = Dialer { net: Net::Host, trust: Trust::system(), plain: Plain::WhereInsecure };
    RelayLinks::new(NodePrivate::from_bytes([number; 32]), Seed::from_number(number.into()), dialer)
}

fn connect(links: &mut RelayLinks, node: &DerpNode) {
    links.handle_command(RelayCommand::Connect { region: region(), nodes: vec![node.clone()] });
}

async fn receive(links: &mut RelayLinks) -> Arrival {
    loop {
        if let Some(arrival) = links.try_recv() {
            return arrival;
        }
        tokio::time::timeout(LONG, poll_fn(|cx| links.poll_ready(cx))).await.expect("something comes");
    }
}

fn key(number: u8) -> NodePublic {
    NodePrivate::from_bytes([number; 32]).public()
}

fn region() -> RegionId {
    RegionId::new(900).expect("it is a number")
}

/// The directory that [`directory`] empties.
fn state_path(name: &str) -> String {
    format!("{}/relay-{name}", env!("CARGO_TARGET_TMPDIR"))
}
