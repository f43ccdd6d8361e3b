//! One session: a pair of transport keys, each direction usable from any thread.
//!
//! A transport message is type 4, three zero bytes, the receiver's index, a counter, all little-endian, then
//! ciphertext and tag (WireGuard paper §5.4.6).

#[cfg(not(loom))]
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::Mutex;
use std::sync::PoisonError;

#[cfg(loom)]
use loom::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use crate::{
    crypto::aead::{AeadKey, TAG, nonce_le},
    time::Instant,
};

use super::{
    message::TYPE_TRANSPORT,
    replay::ReplayWindow,
    timers::{REJECT_AFTER_MESSAGES, REKEY_AFTER_MESSAGES},
};

/// Bytes before the ciphertext.
pub const HEADER: usize = 16;
/// Bytes that a transport message adds to its padded packet.
pub const OVERHEAD: usize = HEADER + TAG;

/// Seals one direction of a session. `&self`: any thread may seal.
#[derive(Debug)]
pub struct Sealer {
    key: AeadKey,
    /// The index by which the peer knows this session.
    receiver: u32,
    counter: AtomicU64,
    rekey_at: Instant,
    reject_at: Instant,
}

impl Sealer {
    pub(super) fn new(key: &[u8; 32], receiver: u32, rekey_at: Instant, reject_at: Instant) -> Self {
        Self { key: AeadKey::new(key), receiver, counter: AtomicU64::new(0), rekey_at, reject_at }
    }

    /// Whether the session has reached its age or its count of messages.
    #[inline]
    #[must_use]
    pub fn is_spent(&self, now: Instant) -> bool {
        now >= self.reject_at || self.counter.load(Ordering::Relaxed) >= REJECT_AFTER_MESSAGES
    }

    /// Whether sending now should ask for a successor.
    #[inline]
    #[must_use]
    pub fn wants_rekey(&self, now: Instant) -> bool {
        now >= self.rekey_at || self.counter.load(Ordering::Relaxed) >= REKEY_AFTER_MESSAGES
    }

    /// Bytes of the message for a packet of `packet_bytes`: zero padding to a multiple of 16, but not beyond the
    /// MTU (WireGuard paper §5.4.6).
    #[inline]
    #[must_use]
    pub fn datagram_len(packet_bytes: usize, mtu_bytes: usize) -> usize {
        OVERHEAD + packet_bytes.next_multiple_of(16).min(mtu_bytes).max(packet_bytes)
    }

    /// Writes the message for `packet` into `datagram`, whose length is that of [`Self::datagram_len`]. False, and
    /// `datagram` unspecified, when no counter is left.
    ///
    /// # Panics
    /// When `datagram` is too short.
    #[inline]
    #[must_use]
    pub fn seal(&self, packet: &[u8], datagram: &mut [u8]) -> bool {
        let counter = self.counter.fetch_add(1, Ordering::Relaxed);
        if counter >= REJECT_AFTER_MESSAGES {
            // Never reached by counting. Undo, so that no number of tries wraps the counter round.
            self.counter.store(REJECT_AFTER_MESSAGES, Ordering::Relaxed);
            return false;
        }
        let (header, body) = datagram.split_at_mut(HEADER);
        header[..4].copy_from_slice(&u32::from(TYPE_TRANSPORT).to_le_bytes());
        header[4..8].copy_from_slice(&self.receiver.to_le_bytes());
        header[8..].copy_from_slice(&counter.to_le_bytes());
        let padding_end = body.len() - TAG;
        body[..packet.len()].copy_from_slice(packet);
        body[packet.len()..padding_end].fill(0);
        self.key.seal(nonce_le(counter), &[], body);
        true
    }

    /// The message for `packet` in a buffer of its own, for the slow path. `None` when the session is spent.
    #[must_use]
    pub fn seal_to_vec(&self, packet: &[u8], mtu_bytes: usize, now: Instant) -> Option<Vec<u8>> {
        if self.is_spent(now) {
            return None;
        }
        let mut datagram = vec![0; Self::datagram_len(packet.len(), mtu_bytes)];
        self.seal(packet, &mut datagram).then_some(datagram)
    }

    #[cfg(test)]
    pub(super) fn set_counter(&self, counter: u64) {
        self.counter.store(counter, Ordering::Relaxed);
    }
}

/// Opens one direction of a session.
#[derive(Debug)]
pub struct Opener {
    key: AeadKey,
    replay: Mutex<ReplayWindow>,
    rekey_at: Instant,
    reject_at: Instant,
    confirmed: AtomicBool,
}

/// Why a transport message was not opened. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Shorter than an empty message.
    #[error("shorter than a transport message")]
    Short,
    /// The session, or its counter, is past its limit.
    #[error("the session has expired")]
    Expired,
    /// The tag is wrong.
    #[error("the authentication tag is wrong")]
    Forged,
    /// The counter was seen before, or is too far behind.
    #[error("the counter was used before")]
    Replayed,
}

impl Opener {
    pub(super) fn new(key: &[u8; 32], rekey_at: Instant, reject_at: Instant, confirmed: bool) -> Self {
        Self {
            key: AeadKey::new(key),
            replay: Mutex::new(ReplayWindow::new()),
            rekey_at,
            reject_at,
            confirmed: AtomicBool::new(confirmed),
        }
    }

    /// Opens a transport message in place and returns the padded packet; empty for a keepalive.
    ///
    /// # Errors
    /// When the message is not a new one of this session. The content of `datagram` is then unspecified.
    #[inline]
    pub fn open<'d>(&self, datagram: &'d mut [u8], now: Instant) -> Result<&'d mut [u8], OpenError> {
        let Some((header, body)) = datagram.split_first_chunk_mut::<HEADER>() else { return Err(OpenError::Short) };
        if body.len() < TAG {
            return Err(OpenError::Short);
        }
        let counter = u64::from_le_bytes(*header.last_chunk().ok_or(OpenError::Short)?);
        if now >= self.reject_at || counter >= REJECT_AFTER_MESSAGES {
            return Err(OpenError::Expired);
        }
        let packet = self.key.open(nonce_le(counter), &[], body).map_err(|_| OpenError::Forged)?;
        // Only authenticated counters may move the window.
        let admitted = self.replay.lock().unwrap_or_else(PoisonError::into_inner).admit(counter);
        if admitted { Ok(packet) } else { Err(OpenError::Replayed) }
    }

    /// Notes that a packet arrived on this session; true the first time, when the responder may begin to use it.
    #[inline]
    #[must_use]
    pub fn confirm(&self) -> bool {
        !self.confirmed.load(Ordering::Acquire) && !self.confirmed.swap(true, Ordering::AcqRel)
    }

    /// Whether a packet has arrived, or we were the initiator and need none.
    #[must_use]
    pub fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Acquire)
    }

    /// Whether receiving now should ask for a successor.
    #[inline]
    #[must_use]
    pub fn wants_rekey(&self, now: Instant) -> bool {
        now >= self.rekey_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [5; 32];
    const REJECT: Instant = Instant::from_secs(180);

    #[test]
    fn what_is_sealed_opens_once() {
        let (sealer, opener) = session();
        let mut datagram = sealer.seal_to_vec(b"hello", 1420, Instant::ZERO).unwrap();
        let mut copy = datagram.clone();
        assert_eq!(datagram.len(), OVERHEAD + 16);
        assert_eq!(opener.open(&mut datagram, Instant::ZERO).unwrap(), b"hello\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(opener.open(&mut copy, Instant::ZERO), Err(OpenError::Replayed));
    }

    #[test]
    fn padding_stops_at_the_mtu() {
        for (packet, mtu, padded) in
            [(0, 1420, 0), (1, 1420, 16), (16, 1420, 16), (1417, 1420, 1420), (1420, 1420, 1420), (1430, 1420, 1430)]
        {
            assert_eq!(Sealer::datagram_len(packet, mtu), OVERHEAD + padded);
        }
    }

    #[test]
    fn a_forged_message_does_not_move_the_window() {
        let (sealer, opener) = session();
        let mut good = sealer.seal_to_vec(b"x", 1420, Instant::ZERO).unwrap();
        let mut forged = good.clone();
        forged[8] = 200;
        assert_eq!(opener.open(&mut forged, Instant::ZERO), Err(OpenError::Forged));
        assert!(opener.open(&mut good, Instant::ZERO).is_ok());
    }

    #[test]
    fn nothing_is_sealed_or_opened_past_the_limits() {
        let (sealer, opener) = session();
        assert!(sealer.seal_to_vec(b"x", 1420, REJECT).is_none());
        let mut late = sealer.seal_to_vec(b"x", 1420, Instant::ZERO).unwrap();
        assert_eq!(opener.open(&mut late, REJECT), Err(OpenError::Expired));

        sealer.set_counter(REJECT_AFTER_MESSAGES - 1);
        let mut last = sealer.seal_to_vec(b"x", 1420, Instant::ZERO).unwrap();
        assert!(opener.open(&mut last, Instant::ZERO).is_ok());
        let mut datagram = [0; 64];
        assert!((0..20_000).all(|_| !sealer.seal(b"x", &mut datagram)));
        last[8..16].copy_from_slice(&REJECT_AFTER_MESSAGES.to_le_bytes());
        assert_eq!(opener.open(&mut last, Instant::ZERO), Err(OpenError::Expired));
    }

    #[test]
    fn short_messages_are_refused() {
        let (_, opener) = session();
        for length in 0..OVERHEAD {
            assert_eq!(opener.open(&mut vec![4; length], Instant::ZERO), Err(OpenError::Short));
        }
    }

    fn session() -> (Sealer, Opener) {
        let sealer = Sealer::new(&KEY, 1, Instant::from_secs(120), REJECT);
        (sealer, Opener::new(&KEY, Instant::FAR_FUTURE, REJECT, true))
    }
}

/// Every order in which threads can meet at a session:
/// `RUSTFLAGS="--cfg loom" cargo test -p mesh-core --lib --target-dir target/loom every_order`
#[cfg(all(test, loom))]
mod every_order {
    use loom::{sync::Arc, thread};

    use super::*;

    fn both<T: Send + 'static>(work: impl Fn() -> T + Clone + Send + 'static) -> [T; 2] {
        let other = thread::spawn(work.clone());
        let here = work();
        [here, other.join().expect("it does not panic")]
    }

    fn sealer() -> Arc<Sealer> {
        Arc::new(Sealer::new(&[5; 32], 1, Instant::FAR_FUTURE, Instant::FAR_FUTURE))
    }

    fn opener(is_confirmed: bool) -> Arc<Opener> {
        Arc::new(Opener::new(&[5; 32], Instant::FAR_FUTURE, Instant::FAR_FUTURE, is_confirmed))
    }

    #[test]
    fn no_counter_is_used_twice() {
        loom::model(|| {
            let sealer = sealer();
            let [one, other] = both(move || sealer.seal_to_vec(b"x", 1420, Instant::ZERO).expect("it is new"));
            assert_ne!(one[8..16], other[8..16]);
        });
    }

    #[test]
    fn the_last_counter_is_used_once_and_none_after_it() {
        loom::model(|| {
            let sealer = sealer();
            sealer.set_counter(REJECT_AFTER_MESSAGES - 1);
            let last = Arc::clone(&sealer);
            let sealed = both(move || [0; 2].map(|_| last.seal(b"x", &mut [0; OVERHEAD + 16])));
            assert_eq!(sealed.concat().into_iter().filter(|is_sealed| *is_sealed).count(), 1);
            assert!(sealer.is_spent(Instant::ZERO));
        });
    }

    #[test]
    fn a_packet_is_accepted_once_and_confirms_once() {
        loom::model(|| {
            let datagram = sealer().seal_to_vec(b"x", 1420, Instant::ZERO).expect("it is new");
            let opener = opener(false);
            let results = both(move || {
                let is_new = opener.open(&mut datagram.clone(), Instant::ZERO).is_ok();
                (is_new, opener.confirm())
            });
            assert_eq!(results.iter().filter(|(is_new, _)| *is_new).count(), 1);
            assert_eq!(results.iter().filter(|(_, confirms)| *confirms).count(), 1);
        });
    }
}
