//! Choices drawn from bytes.
//!
//! Every choice takes one byte or two, and 0 is the simplest: the first of a list, the least number, no. Past the end
//! everything is 0. So any bytes are a world, bytes that are cut short or lowered are a simpler one, and whoever makes
//! bytes (a seed, a fuzzer, an enumeration) need not know what they mean.

use core::time::Duration;

use mesh_core::rng::Seed;

/// Bytes of a seed: more than any world takes.
const SEED_BYTES: usize = 1024;

/// The bytes that a seed stands for.
#[must_use]
pub fn of_seed(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; SEED_BYTES];
    Seed::from_number(seed).stream("swarm", 0).fill(&mut bytes);
    bytes
}

/// A source of choices.
#[derive(Clone, Debug)]
pub struct Bytes<'b> {
    rest: &'b [u8],
}

impl<'b> Bytes<'b> {
    /// Choices from the first byte on.
    #[must_use]
    pub fn new(bytes: &'b [u8]) -> Self {
        Self { rest: bytes }
    }

    /// A number below `bound`, which is at most 65,536; 0 when `bound` is 0.
    pub fn below(&mut self, bound: u32) -> u32 {
        if bound <= 256 {
            return (u32::from(self.byte()) * bound) >> 8;
        }
        let word = u32::from(self.byte()) << 8 | u32::from(self.byte());
        ((u64::from(word) * u64::from(bound)) >> 16) as u32
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: u32, high: u32) -> u32 {
        low + self.below(high - low + 1)
    }

    /// Whether something happens that happens in so many of 256 cases.
    pub fn chance(&mut self, of_256: u32) -> bool {
        u32::from(self.byte()) >= 256 - of_256.min(256)
    }

    /// One of a list that is not empty.
    pub fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u32) as usize]
    }

    /// So many tenths of a second, from `low` to `high` seconds.
    pub fn time(&mut self, low: u32, high: u32) -> Duration {
        Duration::from_millis(u64::from(self.between(low * 10, high.max(low) * 10)) * 100)
    }

    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        *first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn past_the_end_all_is_simplest() {
        let mut bytes = Bytes::new(&[255]);
        assert_eq!((bytes.below(10), bytes.below(10), bytes.between(3, 9)), (9, 0, 3));
        assert!(!bytes.chance(200) && bytes.pick(&["simple", "not"]) == "simple");
    }

    #[test]
    fn what_is_certain_happens_and_numbers_stay_in_their_bounds() {
        assert!(Bytes::new(&[0]).chance(256));
        for byte in 0..=255 {
            let bytes = [byte; 2];
            assert!(Bytes::new(&bytes).below(7) < 7 && Bytes::new(&bytes).below(1000) < 1000);
        }
        assert_eq!(of_seed(1), of_seed(1));
        assert_ne!(of_seed(1), of_seed(2));
    }
}
