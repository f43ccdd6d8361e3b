//! What several benches need: two nodes with a session, and packets.

pub mod keys;
#[path = "../../agent/tests/netns/lab.rs"]
pub mod lab;
pub mod report;
#[path = "../../mesh-core/tests/support/mod.rs"]
pub mod support;

use std::sync::Arc;

use mesh_core::{
    dataplane::{Fib, TransmitSink},
    ip::prefix::Prefix,
    path::SendPath,
    time::Instant,
    wireguard::{Opener, Sealer},
};
use support::Pair;

/// Bytes of a full packet with the usual MTU.
pub const FULL: usize = 1420;
/// Bytes of a small packet.
pub const SMALL: usize = 64;
/// Packets in a run, as they come out of one batch.
pub const RUN: usize = 16;

/// A pair with a session that A began and both have used, and `extra` further peers at A.
#[must_use]
pub fn established(extra: u32) -> Pair {
    let mut pair = Pair::with(|a, _| {
        a.peers.extend((0..extra).map(|number| {
            let mut peer = support::peer(3);
            let mut key = [9; 32];
            key[..4].copy_from_slice(&number.to_be_bytes());
            peer.key = mesh_core::key::NodePublic::from_bytes(key);
            let address = std::net::Ipv4Addr::from_bits(0x6440_0000 + number);
            peer.allowed_ips = vec![Prefix::host(address.into())];
            peer
        }));
    });
    pair.a.send(&support::packet(1, 2, b"first"), pair.now);
    pair.settle();
    pair.b.send(&support::packet(2, 1, b"first"), pair.now);
    pair.settle();
    pair
}

/// The two directions of A's session with B: A's sealer and B's opener.
///
/// # Panics
/// When `pair` has no session.
#[must_use]
pub fn one_direction(pair: &Pair) -> (Arc<Sealer>, Arc<Opener>) {
    let fib = pair.a.plane.fib();
    let adjacency = fib.routes().lookup([10, 0, 0, 2].into()).expect("B is routed");
    let sealer = adjacency.tx().sealer.clone().expect("there is a session");
    let mut probe = vec![0; 32];
    assert!(sealer.seal(&[], &mut probe), "the session is new");
    let index = u32::from_le_bytes([probe[4], probe[5], probe[6], probe[7]]);
    let session = pair.b.plane.fib().receivers().get(index).expect("B receives on it");
    (sealer, Arc::clone(&session.opener))
}

/// A packet of `bytes` bytes from A to B.
#[must_use]
pub fn packet(bytes: usize) -> Vec<u8> {
    support::packet(1, 2, &vec![0x5a; bytes - 20])
}

/// A sink that keeps datagrams in one buffer and forgets them at once: what a batch does, without the system call.
#[derive(Debug)]
pub struct Scratch(Vec<u8>, usize);

impl Default for Scratch {
    fn default() -> Self {
        Self(vec![0; 65_536], 0)
    }
}

impl TransmitSink for Scratch {
    fn datagram(&mut self, _path: &SendPath, len: usize, fill: impl FnOnce(&mut [u8]) -> bool) -> bool {
        if self.1 + len > self.0.len() {
            self.1 = 0;
        }
        let filled = fill(&mut self.0[self.1..self.1 + len]);
        if filled {
            self.1 += len;
        }
        filled
    }
}

/// Datagrams from A to B that hold `count` packets of `bytes` bytes, sealed in order.
#[must_use]
pub fn sealed(fib: &Fib, count: usize, bytes: usize, now: Instant) -> Vec<Vec<u8>> {
    let packet = packet(bytes);
    let (mut sink, mut reports) = (Vec::new(), mesh_core::dataplane::ReportBuffer::default());
    fib.outbound((0..count).map(|_| packet.as_slice()), now, &mut sink, &mut reports);
    sink.into_iter().map(|(_, datagram)| datagram).collect()
}
