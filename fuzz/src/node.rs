//! What a node starts with: the state that an earlier run kept, and the relay map.

use std::time::Duration;

use mesh_core::{
    control::{ControlRequest, types::Hostinfo},
    derp::DerpMap,
    key::DiscoPrivate,
    limits,
    machine::Machine,
    netcheck::{self, Netcheck},
    node::{ControlConfig, Node, NodeConfig, Output, SavedState},
    rng::Seed,
    time::Instant,
};

use crate::support::config;

/// State that reads is the same when it is written and read again, prints none of its secrets, and a node that starts with
/// it runs: it asks control ever more rarely when there is none, keeps what it was given, and never spins.
///
/// # Panics
/// When that is not so.
pub fn saved_state(data: &[u8]) {
    let Ok(saved) = serde_json::from_slice::<SavedState>(data) else { return };
    let written = serde_json::to_string(&saved).expect("what was read can be written");
    let again = serde_json::from_str::<SavedState>(&written).expect("and read again");
    assert_eq!(serde_json::to_string(&again).expect("as it was"), written);
    let printed = format!("{saved:?}");
    for secret in [saved.machine_key.to_secret_text(), saved.node_key.to_secret_text()] {
        let secret = &secret["privkey:".len()..];
        assert!(!printed.contains(secret), "{printed}");
    }

    let begin = Instant::from_secs(1);
    let control = ControlConfig { saved: saved.clone(), hostinfo: Hostinfo::default() };
    let settings = NodeConfig {
        disco_key: DiscoPrivate::from_bytes([9; 32]),
        addresses: Vec::new(),
        control: Some(control),
        ..config(1, Vec::new())
    };
    let Ok(mut node) = Node::new(settings, begin) else { return };
    let (mut now, mut requests) = (begin, 0);
    let end = begin + Duration::from_secs(120);
    loop {
        while let Some(output) = node.poll_output() {
            match output {
                Output::Save(kept) => assert_eq!(kept.machine_key, saved.machine_key),
                Output::Control(ControlRequest::FetchKey { .. } | ControlRequest::Register { .. }) => requests += 1,
                Output::Transmit(_) => panic!("nobody was spoken to"),
                _ => {}
            }
        }
        let deadline = node.poll_timeout();
        assert!(deadline.is_none_or(|deadline| deadline.at > now), "{deadline:?} at {now}");
        let Some(deadline) = deadline.filter(|deadline| deadline.at < end) else { break };
        now = deadline.at;
        node.handle_timeout(now);
    }
    assert!(requests <= 8, "{requests} requests while nobody answers");
}

/// A relay map that reads is the same when it is written and read again; every relay has ports and addresses or has not; and what is measured of it is bounded.
///
/// # Panics
/// When that is not so.
pub fn derp_map(data: &[u8]) {
    let Ok(map) = serde_json::from_slice::<DerpMap>(data) else { return };
    let now = Instant::from_secs(1);
    let mut netcheck = Netcheck::new(Seed::from_number(1).stream("netcheck", 0));
    netcheck.set_families(true, true, now);
    netcheck.set_map(&map, now);
    netcheck.refresh(now);
    let mut probes = 0;
    while let Some(output) = netcheck.poll_output() {
        if let netcheck::Output::Probe { to, .. } = output {
            assert!(to.port() != 0 && !to.ip().is_unspecified() && !to.ip().is_multicast(), "{to}");
            probes += 1;
        }
    }
    assert!(probes <= limits::NETCHECK_PROBES);
    assert!(netcheck.poll_timeout().is_none_or(|deadline| deadline.at > now));

    for region in map.regions.iter().flatten().filter_map(|(_, region)| region.as_ref()) {
        for node in region.nodes.iter().flatten() {
            assert!(node.stun_port().is_none_or(|port| port > 0) || node.stun_port == 0);
            assert!(node.derp_port().is_none_or(|port| port > 0 && !node.stun_only));
            let addresses = node.stun_addresses();
            assert!(addresses.len() <= 2 && (addresses.is_empty() || node.stun_port().is_some()));
        }
    }
    let text = serde_json::to_string(&map).expect("what was read can be written");
    assert_eq!(serde_json::from_str::<DerpMap>(&text).expect("and read again"), map);
}
