//! WireGuard: messages, the data plane's way in, the replay window, and two nodes with a bad pipe between them.

use std::collections::BTreeSet;

use mesh_core::{
    ip::packet::IpPacket,
    time::Instant,
    wireguard::{
        Kind, Sealer,
        identity::MacKeys,
        message::{CookieReply, Initiation, Response},
        replay::{ReplayWindow, WINDOW_PACKETS},
        session::OVERHEAD,
        timers::REJECT_AFTER_MESSAGES,
    },
};

use crate::{
    script::{Script, step},
    support::{MTU, Pair, address, packet, private, world::World},
};

/// A message that is read is written as it was, and its kind is told from its first bytes.
///
/// # Panics
/// When it is not.
pub fn messages(data: &[u8]) {
    let kind = Kind::of(data);
    let (initiation, response, cookie) = (Initiation::parse(data), Response::parse(data), CookieReply::parse(data));
    assert_eq!(initiation.is_some(), kind == Some(Kind::Initiation));
    assert_eq!(response.is_some(), matches!(kind, Some(Kind::Response { .. })));
    assert_eq!(cookie.is_some(), matches!(kind, Some(Kind::CookieReply { .. })));
    let written = initiation.map(|m| m.emit()).or(response.map(|m| m.emit())).or(cookie.map(|m| m.emit()));
    if let Some(written) = written {
        let macs = if matches!(kind, Some(Kind::CookieReply { .. })) { 0 } else { 32 };
        assert_eq!(written, data[..data.len() - macs]);
    }
    if let Some(Kind::Transport { receiver }) = kind {
        assert_eq!(data[..8], [&[4, 0, 0, 0], &receiver.to_le_bytes()[..]].concat());
        assert!(data.len() >= OVERHEAD);
    }
}

/// Datagrams for a node with a session: as they are, with a right first MAC, for its session, or well sealed.
///
/// # Panics
/// When one that is not authentic changes something, or something that is no packet of the peer's is delivered.
pub fn inbound(data: &[u8]) {
    let mut script = Script::new(data);
    let mut pair = Pair::new();
    pair.a.send(&packet(1, 2, b"begin"), pair.now);
    pair.settle();
    pair.b.delivered.clear();
    let sealer = pair.a.plane.fib().routes().lookup([10, 0, 0, 2].into()).and_then(|b| b.tx().sealer.clone());
    let sealer = sealer.expect("there is a session");
    let session = pair.carried.iter().rev().find(|(_, datagram)| datagram[0] == 4).expect("of data").1.clone();
    let mac_keys = MacKeys::new(&private(2).public());

    for _ in 0..40 {
        if script.is_done() {
            break;
        }
        let what = script.byte();
        let mut datagram = script.chunk().to_vec();
        let (mut is_authentic, mut from) = (false, address(66));
        match what % 5 {
            0 => {}
            // A handshake message by somebody who knows the node's key.
            1 | 2 => {
                let (kind, length) = if what.is_multiple_of(2) { (1, 148) } else { (2, 92) };
                datagram.resize(length, what);
                datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
                let mac = mac_keys.mac1(&datagram[..length - 32]);
                datagram[length - 32..length - 16].copy_from_slice(&mac);
            }
            // Something for the session by somebody who does not know its keys.
            3 => datagram.splice(..datagram.len().min(8), session[..8].iter().copied()).for_each(drop),
            // Anything at all inside, by the peer.
            _ => {
                let mut sealed = vec![0; Sealer::datagram_len(datagram.len(), MTU)];
                assert!(sealer.seal(&datagram, &mut sealed));
                (datagram, is_authentic, from) = (sealed, true, address(1));
            }
        }
        let before = (pair.b.node.status(pair.now), pair.b.drops.total());
        pair.b.receive(datagram, from, pair.now);
        for (_, answer) in pair.b.sent.drain(..) {
            assert!(matches!(Kind::of(&answer), Some(Kind::CookieReply { .. })), "nothing else is due");
        }
        let after = (pair.b.node.status(pair.now), pair.b.drops.total());
        if !is_authentic {
            assert!(pair.b.delivered.is_empty(), "delivered");
            assert_eq!(before.0.peers, after.0.peers);
            assert_eq!(before.0.drops.total() + before.1 + 1, after.0.drops.total() + after.1, "dropped and counted");
        }
        for delivered in pair.b.delivered.drain(..) {
            let packet = IpPacket::parse(&delivered).expect("what is delivered is a packet");
            assert_eq!(packet.bytes().len(), delivered.len(), "without padding");
            assert_eq!(packet.source(), std::net::IpAddr::from([10, 0, 0, 1]), "from an address of the peer's");
        }
    }
    // After all that, the session is as good as before.
    let last = packet(1, 2, b"last");
    pair.a.send(&last, pair.now);
    pair.settle();
    assert_eq!(pair.b.delivered, [last]);
}

/// A script of counters, against a set of all that were seen.
///
/// # Panics
/// When they differ.
pub fn replay_window(data: &[u8]) {
    let mut script = Script::new(data);
    let mut window = ReplayWindow::new();
    let mut seen = BTreeSet::new();
    let mut highest: Option<u64> = None;
    for _ in 0..2000 {
        if script.is_done() {
            break;
        }
        let what = script.byte();
        let amount = match what & 3 {
            0 => u64::from(what >> 3),
            1 => u64::from(script.byte()),
            2 => u64::from(script.short()),
            _ => u64::from_be_bytes(script.array()),
        };
        let base = highest.unwrap_or(0);
        let counter = if what & 4 == 0 { base.saturating_add(amount) } else { base.saturating_sub(amount) };
        let counter = counter.min(REJECT_AFTER_MESSAGES - 1);
        let top = highest.map_or(counter, |highest| highest.max(counter));
        let expected = top - counter < WINDOW_PACKETS && !seen.contains(&counter);
        assert_eq!(window.admit(counter), expected, "{counter} after {highest:?}");
        highest = Some(top);
        if expected {
            seen.insert(counter);
        }
    }
}

/// A script for two nodes and the pipe between them; see `support/world.rs` for what must hold. Run twice, the second
/// time with calls that promise to be harmless strewn in, it must give the same datagrams.
///
/// # Panics
/// When something does not hold.
pub fn tunnel_pair(data: &[u8]) {
    let run = |has_harmless_calls: bool| {
        let mut script = Script::new(data);
        let mut world = World::new();
        for _ in 0..150 {
            let Some(step) = step(&mut script) else { break };
            world.apply(&step);
            if has_harmless_calls {
                world.timeout_both(Instant::ZERO);
            }
        }
        world.finish();
        world.trace()
    };
    assert_eq!(run(false), run(true), "an older now, or a second run, makes a difference");
}
