//! Randomness as a value: a tree of streams grown from one seed.
//!
//! A [`Seed`] is 32 bytes: from the operating system in a daemon, from the scenario in the simulator.
//! [`Seed::child`] hashes seed, label and id into another seed, so it does not matter in which order
//! streams are made, and a new draw in one place moves nobody else's dice. The generator is ChaCha20
//! with the stream position at zero, named here and pinned: recorded seeds stay useful.

use blake2::{Blake2s256, Digest};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng};
use zeroize::{Zeroize, ZeroizeOnDrop};

use core::{fmt, time::Duration};

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
        let child = self.child(label, id);
        Rng(ChaCha20Rng::from_seed(child.0))
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

/// One stream of randomness: ChaCha20.
pub struct Rng(ChaCha20Rng);

impl Rng {
    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
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
        self.0.next_u32()
    }

    /// A uniform `u64`.
    #[must_use]
    pub fn u64(&mut self) -> u64 {
        self.0.next_u64()
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
        // Recorded once; a change here invalidates every recorded seed.
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
    fn below_stays_below() {
        let mut rng = Seed::from_number(3).stream("test", 0);
        for bound in [1, 2, 3, 1000] {
            assert!((0..100).all(|_| rng.below(bound) < bound));
        }
        assert_eq!(rng.below(0), 0);
    }

    const PINNED: [u64; 2] = [3403844599532042064, 15301409940349558435];
}
