//! Randomness as a value: a tree of streams grown from one seed.
//!
//! A [`Seed`] is 32 bytes: from the operating system in a daemon, from the scenario in the simulator.
//! [`Seed::child`] hashes seed, label and id into another seed, so it does not matter in which order
//! streams are made, and a new draw in one place moves nobody else's dice.
//!
//! An [`Rng`] erases its past: what it has given cannot be worked out from what it is now. It makes 256 bytes of ChaCha20
//! at a time, keeps the first 32 as its next key in place of the one that made them, and wipes the others as it gives them
//! out (fast key erasure). So a daemon makes its generators at the start and forgets the seed, and what needs one later gets
//! it from [`Rng::split`]. The generator is pinned: recorded seeds stay useful.

use blake2::{Blake2s256, Digest};
use chacha20::{
    ChaCha20,
    cipher::{KeyIvInit, StreamCipher},
};
use zeroize::{Zeroize, ZeroizeOnDrop};

use core::{fmt, time::Duration};

/// What a generator makes at a time: four blocks, which processors make at once.
const POOL_BYTES: usize = 256;
const KEY_BYTES: usize = 32;

/// The root of a tree of random streams.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Seed([u8; 32]);

impl Seed {
    /// A seed of the given bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The seed of scenario seed `number`: BLAKE2s-256 of a label and the number.
    #[must_use]
    pub fn from_number(number: u64) -> Self {
        Self::from_bytes([0; 32]).child("scenario", number)
    }

    /// Another seed, for the part of the system that `label` and `id` name.
    #[must_use]
    pub fn child(&self, label: &str, id: u64) -> Self {
        let mut hash = Blake2s256::new();
        hash.update(self.0);
        hash.update((label.len() as u64).to_le_bytes());
        hash.update(label.as_bytes());
        hash.update(id.to_le_bytes());
        Self(hash.finalize().into())
    }

    /// The stream of the part of the system that `label` and `id` name.
    #[must_use]
    pub fn stream(&self, label: &str, id: u64) -> Rng {
        Rng::new(&self.child(label, id))
    }

    /// The bytes, for handing a child seed to another machine.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed([private])")
    }
}

/// One stream of randomness. What it has given cannot be worked out from it.
#[derive(ZeroizeOnDrop)]
pub struct Rng {
    /// The key of the next pool, then what is to be given out; zeros where that was.
    pool: [u8; POOL_BYTES],
    /// Where what is to be given out begins.
    at: usize,
}

impl Rng {
    fn new(seed: &Seed) -> Self {
        let mut pool = [0; POOL_BYTES];
        pool[..KEY_BYTES].copy_from_slice(&seed.0);
        Self { pool, at: POOL_BYTES }
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            if self.at == POOL_BYTES {
                self.refill();
            }
            let length = bytes.len().min(POOL_BYTES - self.at);
            let given = &mut self.pool[self.at..self.at + length];
            let (now, later) = bytes.split_at_mut(length);
            now.copy_from_slice(given);
            given.zeroize();
            self.at += length;
            bytes = later;
        }
    }

    fn refill(&mut self) {
        let mut key = [0; KEY_BYTES];
        key.copy_from_slice(&self.pool[..KEY_BYTES]);
        self.pool = [0; POOL_BYTES];
        ChaCha20::new((&key).into(), (&[0_u8; 12]).into()).apply_keystream(&mut self.pool);
        key.zeroize();
        self.at = KEY_BYTES;
    }

    /// Another stream, which cannot be worked out from this one any more.
    #[must_use]
    pub fn split(&mut self) -> Self {
        Self::new(&Seed(self.bytes()))
    }

    /// From now on the stream hangs on `seed`, too: whoever knows the one or the other cannot go on with it.
    pub fn mix(&mut self, seed: &Seed) {
        let mut hash = Blake2s256::new();
        hash.update(self.bytes::<KEY_BYTES>());
        hash.update(seed.0);
        *self = Self::new(&Seed(hash.finalize().into()));
    }

    /// `N` random bytes.
    #[must_use]
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }

    /// A uniform `u32`.
    #[must_use]
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    /// A uniform `u64`.
    #[must_use]
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    /// A uniform number below `bound`; 0 when `bound` is 0. Widening multiplication, no rejection: the
    /// bias is below `bound / 2^64`.
    #[must_use]
    pub fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.u64()) * u128::from(bound);
        (wide >> 64) as u64
    }

    /// A uniform duration from zero up to, not including, `bound`.
    #[must_use]
    pub fn duration_below(&mut self, bound: Duration) -> Duration {
        let bound = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.below(bound))
    }
}

impl fmt::Debug for Rng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rng([private])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_pinned() {
        // Worked out apart from this code; a change here invalidates every recorded seed.
        let mut rng = Seed::from_number(1).stream("test", 2);
        assert_eq!([rng.u64(), rng.u64()], PINNED);
    }

    #[test]
    fn streams_are_independent_of_the_order_they_are_made_in() {
        let seed = Seed::from_number(9);
        let first = (seed.stream("a", 1).u64(), seed.stream("b", 1).u64());
        let second = (seed.stream("b", 1).u64(), seed.stream("a", 1).u64());
        assert_eq!(first, (second.1, second.0));
        assert_ne!(first.0, first.1);
    }

    #[test]
    fn what_was_given_is_nowhere_in_the_generator() {
        let seed = Seed::from_number(4);
        let mut rng = seed.stream("test", 0);
        let mut given = Vec::new();
        for length in [1, 31, 7, 224, 300, 8] {
            let mut bytes = vec![0; length];
            rng.fill(&mut bytes);
            given.extend_from_slice(&bytes);
            assert!(rng.pool[KEY_BYTES..rng.at].iter().all(|byte| *byte == 0));
            // Nor what it was made of.
            let key = seed.child("test", 0).0;
            for past in given.windows(8).chain(key.windows(8)) {
                assert!(!rng.pool.windows(8).any(|window| window == past));
            }
        }
        let once: Vec<u8> = seed.stream("test", 0).bytes::<571>().to_vec();
        assert_eq!(given, once, "however it is asked for");
        // Going on from the key that is left gives what comes, and nothing of what was.
        let rest = Rng { pool: rng.pool, at: rng.at }.bytes::<64>();
        assert_eq!(rng.bytes::<64>(), rest);
        assert!(!given.windows(8).any(|past| rest.windows(8).any(|window| window == past)));
    }

    #[test]
    fn a_stream_that_is_split_off_or_mixed_is_another() {
        let seed = Seed::from_number(5);
        let mut rng = seed.stream("test", 0);
        let (mut first, mut second) = (rng.split(), rng.split());
        let draws = [first.u64(), second.u64(), rng.u64(), seed.stream("test", 0).u64()];
        assert!((1..4).all(|index| !draws[..index].contains(&draws[index])), "{draws:?}");
        // A copy of a machine goes on otherwise than its original, given anything new.
        let mut copies = [1, 2].map(|number| {
            let mut copy = seed.stream("test", 0);
            copy.mix(&Seed::from_number(number));
            copy
        });
        assert_ne!(copies[0].u64(), copies[1].u64());
    }

    #[test]
    fn below_stays_below() {
        let mut rng = Seed::from_number(3).stream("test", 0);
        for bound in [1, 2, 3, 1000] {
            assert!((0..100).all(|_| rng.below(bound) < bound));
        }
        assert_eq!(rng.below(0), 0);
    }

    const PINNED: [u64; 2] = [363449594036405073, 3345162819430755915];
}
