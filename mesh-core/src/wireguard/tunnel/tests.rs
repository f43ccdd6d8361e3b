//! One tunnel, or two that talk to each other, without a node around them.

use super::*;
use crate::{
    key::{NodePrivate, PresharedKey},
    rng::Seed,
    time::WallTime,
    wireguard::{message::Initiation, timers::REKEY_AFTER_TIME},
};

const START: Instant = Instant::from_secs(1);

struct End {
    tunnel: Tunnel,
    local: Local,
}

impl End {
    fn new(own: u8, peer: u8) -> Self {
        let seed = Seed::from_number(own.into());
        let identity = Arc::new(Identity::new(NodePrivate::from_bytes([own; 32])));
        let peer = NodePrivate::from_bytes([peer; 32]).public();
        let remote = Remote::new(&identity, peer, PresharedKey::default()).unwrap();
        let config = TunnelConfig {
            owner: 1,
            mtu_bytes: 1280,
            persistent_keepalive: None,
            stamps: Stamps::default(),
            rng: seed.stream("tunnel", 0),
        };
        let clock = WallAnchor { at: Instant::ZERO, wall: WallTime::from_unix_secs(1_800_000_000) };
        let local = Local { identity, indices: IndexTable::new(seed.stream("indices", 0)), clock };
        Self { tunnel: Tunnel::new(config, remote, Arc::default(), START), local }
    }

    /// Handshake messages that are to be sent.
    fn sent(&mut self) -> Vec<Vec<u8>> {
        core::iter::from_fn(|| self.tunnel.poll_output())
            .filter_map(|output| match output {
                Output::Send(message) => Some(message),
                _ => None,
            })
            .collect()
    }
}

/// Carries what `a` has begun to `b` and the answer back.
fn shake_hands(a: &mut End, b: &mut End, now: Instant) {
    let initiation = Initiation::parse(&a.sent()[0]).unwrap();
    let opened = b.local.identity.open_initiation(&initiation).unwrap();
    b.tunnel.handle_initiation(opened, &mut b.local, now).unwrap();
    let response = Response::parse(&b.sent()[0]).unwrap();
    a.tunnel.handle_response(&response, &mut a.local, now).unwrap();
}

#[test]
fn initiations_that_nobody_answers_hold_one_index() {
    let mut end = End::new(1, 2);
    end.tunnel.initiate(&mut end.local, START);
    for number in 1..REKEY_ATTEMPTS {
        end.tunnel.handle_timeout(&mut end.local, START + 2 * REKEY_TIMEOUT * number);
        assert_eq!(end.local.indices.len(), 1);
    }
    assert_eq!(end.sent().len(), REKEY_ATTEMPTS as usize);
}

#[test]
fn a_new_session_is_reported_when_it_is_due_for_a_rekey_too() {
    let (mut a, mut b) = (End::new(1, 2), End::new(2, 1));
    a.tunnel.initiate(&mut a.local, START);
    shake_hands(&mut a, &mut b, START);
    for number in 1..4 {
        let now = START + REKEY_AFTER_TIME * number;
        a.sent();
        assert!(a.tunnel.activity.raise(Edge::Rekey), "it is reported");
        a.tunnel.handle_edge(Edge::Rekey, &mut a.local, now);
        shake_hands(&mut a, &mut b, now);
        assert_eq!(a.tunnel.sessions.current().map(|session| session.established), Some(now));
    }
}
