//! What waits for one relay: disco messages and packets, each in a small queue of its own.
//!
//! The newest is worth most, so a full queue drops its oldest. Disco goes first: it is what finds a way around the
//! relay, and must get through while a transfer fills it.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use mesh_core::{derp::relays::Home, disco, key::NodePublic};

/// Disco messages that wait for one relay. Stock relays: 32.
const DISCO: usize = 32;
/// Packets that wait for one relay. Stock nodes: 32, which TCP within the tunnel fills with one burst; the driver hands
/// over a whole round of its TUN before the link's task has its turn.
const PACKETS: usize = 256;
/// Bytes of packets that wait: 40 ms at 100 Mbit/s, and eight of the largest.
const BYTES: usize = 512 << 10;

/// A packet and whom it is for.
pub(super) type Letter = (NodePublic, Vec<u8>);

/// What waits for one relay.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    inner: Mutex<Inner>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    disco: VecDeque<Letter>,
    packets: VecDeque<Letter>,
    packet_bytes: usize,
    home: Option<Home>,
    is_asked: bool,
}

impl Outbox {
    /// Adds a packet; returns how many old ones were dropped for it.
    pub(super) fn push(&self, to: NodePublic, packet: Vec<u8>) -> u64 {
        let mut inner = self.lock();
        let mut dropped = 0;
        if packet.starts_with(&disco::MAGIC) {
            if inner.disco.len() >= DISCO {
                inner.disco.pop_front();
                dropped += 1;
            }
            inner.disco.push_back((to, packet));
        } else {
            inner.packet_bytes += packet.len();
            inner.packets.push_back((to, packet));
            while inner.packets.len() > PACKETS || inner.packet_bytes > BYTES && inner.packets.len() > 1 {
                let oldest = inner.packets.pop_front().map_or(0, |(_, packet)| packet.len());
                inner.packet_bytes -= oldest;
                dropped += 1;
            }
        }
        drop(inner);
        self.wake.notify_one();
        dropped
    }

    /// The next packet.
    pub(super) fn pop(&self) -> Option<Letter> {
        let mut inner = self.lock();
        if let Some(letter) = inner.disco.pop_front() {
            return Some(letter);
        }
        let letter = inner.packets.pop_front()?;
        inner.packet_bytes -= letter.1.len();
        Some(letter)
    }

    /// Whether the relay is to be our home, if that was said.
    pub(super) fn home(&self) -> Option<Home> {
        self.lock().home
    }

    /// Says whether the relay is to be our home.
    pub(super) fn set_home(&self, home: Home) {
        self.lock().home = Some(home);
        self.wake.notify_one();
    }

    /// Asks whether the relay is there.
    pub(super) fn ask(&self) {
        self.lock().is_asked = true;
        self.wake.notify_one();
    }

    /// Whether it was asked since this was looked at last.
    pub(super) fn take_asked(&self) -> bool {
        core::mem::take(&mut self.lock().is_asked)
    }

    /// Whether no packet waits.
    pub(super) fn is_empty(&self) -> bool {
        let inner = self.lock();
        inner.disco.is_empty() && inner.packets.is_empty()
    }

    /// Waits until something was added since it was last waited for.
    pub(super) async fn added(&self) {
        self.wake.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in between can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_outbox_drops_its_oldest_and_disco_goes_first() {
        let outbox = Outbox::default();
        let dropped: u64 = (0..300_u16).map(|number| outbox.push(peer(), number.to_be_bytes().to_vec())).sum();
        assert_eq!(dropped, 300 - PACKETS as u64);
        let disco = |number: u8| [&disco::MAGIC[..], &[number]].concat();
        let dropped: u64 = (0..40).map(|number| outbox.push(peer(), disco(number))).sum();
        assert_eq!(dropped, 40 - DISCO as u64);
        let all: Vec<_> = core::iter::from_fn(|| outbox.pop()).map(|(_, packet)| packet).collect();
        assert_eq!((all.len(), &all[0], &all[DISCO]), (DISCO + PACKETS, &disco(8), &vec![0, 44]));
        assert!(outbox.is_empty());
    }

    #[test]
    fn bytes_are_bounded_too_but_one_packet_always_fits() {
        let outbox = Outbox::default();
        let dropped: u64 = (0..20).map(|_| outbox.push(peer(), vec![0; 65_536])).sum();
        assert_eq!(dropped, 20 - (BYTES / 65_536) as u64);
        assert_eq!(outbox.push(peer(), vec![0; BYTES + 1]), (BYTES / 65_536) as u64);
        assert_eq!(outbox.pop().map(|(_, packet)| packet.len()), Some(BYTES + 1));
        assert!(outbox.is_empty());
    }

    fn peer() -> NodePublic {
        NodePublic::from_bytes([7; 32])
    }
}
