//! Randomness of the simulated world: a tree of streams, one for every link direction, NAT, node and fault.
//!
//! What a link does to a packet is a function of the link's stream and the packet's number: every packet takes
//! exactly one block of the generator, whether or not the link has a use for it. So switching jitter on does not
//! move the losses, and a new node moves nobody's dice.
//!
//! Decisions are made with integers. Probabilities are counted in parts of a thousand million.

use core::{fmt, time::Duration};

use mesh_core::rng::{Rng, Seed};

/// The root of a run's randomness.
#[derive(Clone, Debug)]
pub struct Dice(Seed);

impl Dice {
    /// The dice of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Seed::from_number(seed))
    }

    /// A stream of draws in any number.
    #[must_use]
    pub fn stream(&self, label: &str, id: u64) -> Rng {
        self.0.stream(label, id)
    }

    /// A seed to be handed on.
    #[must_use]
    pub fn seed(&self, label: &str, id: u64) -> Seed {
        self.0.child(label, id)
    }

    /// A stream of one [`Roll`] a packet.
    #[must_use]
    pub fn rolls(&self, label: &str, id: u64) -> Rolls {
        Rolls { rng: self.0.stream(label, id), packets: 0 }
    }
}

/// A stream of one [`Roll`] a packet.
#[derive(Debug)]
pub struct Rolls {
    rng: Rng,
    packets: u64,
}

impl Rolls {
    /// The dice of the next packet, and its number.
    pub fn next_roll(&mut self) -> (u64, Roll) {
        let bytes: [u8; 64] = self.rng.bytes();
        let mut words = [0; 8];
        for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*chunk);
        }
        let number = self.packets;
        self.packets += 1;
        (number, Roll(words))
    }
}

/// The dice of one packet: a word for each [`Die`].
#[derive(Clone, Copy, Debug)]
pub struct Roll([u64; 8]);

/// What a word of a [`Roll`] decides.
#[derive(Clone, Copy, Debug)]
pub enum Die {
    /// Whether the packet is lost.
    Loss,
    /// Whether a link with memory changes its state.
    State,
    /// How much later the packet arrives.
    Jitter,
    /// Whether others may overtake it.
    Reorder,
    /// Whether it arrives twice.
    Duplicate,
    /// How much later the second copy arrives.
    DuplicateDelay,
    /// Whether a bit is flipped.
    Corrupt,
    /// Which bit is flipped.
    CorruptAt,
}

impl Roll {
    /// Whether something of this probability happens.
    #[must_use]
    pub fn hits(&self, die: Die, probability: Probability) -> bool {
        self.below(die, u64::from(Probability::ONE.0)) < u64::from(probability.0)
    }

    /// A uniform number below `bound`; 0 when `bound` is 0.
    #[must_use]
    pub fn below(&self, die: Die, bound: u64) -> u64 {
        ((u128::from(self.0[die as usize]) * u128::from(bound)) >> 64) as u64
    }

    /// A uniform duration below `bound`.
    #[must_use]
    pub fn duration_below(&self, die: Die, bound: Duration) -> Duration {
        Duration::from_nanos(self.below(die, u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// A probability in parts of a thousand million.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probability(u32);

impl Probability {
    /// Never.
    pub const ZERO: Self = Self(0);
    /// Always.
    pub const ONE: Self = Self(1_000_000_000);

    /// `parts` of a thousand million; more than that is taken as always.
    #[must_use]
    pub const fn from_parts(parts: u32) -> Self {
        Self(if parts > Self::ONE.0 { Self::ONE.0 } else { parts })
    }

    /// `percent` in hundredths of a percent: 150 is 1.5 %.
    #[must_use]
    pub const fn from_basis_points(points: u32) -> Self {
        Self::from_parts(points.saturating_mul(100_000))
    }

    /// Parts of a thousand million.
    #[must_use]
    pub const fn parts(self) -> u32 {
        self.0
    }

    /// Whether `part` of `whole` is at most this much. Exact.
    #[must_use]
    pub fn allows(self, part: u64, whole: u64) -> bool {
        u128::from(part) * u128::from(Self::ONE.0) <= u128::from(whole) * u128::from(self.0)
    }

    /// Whether `part` of `whole` is at least this much. Exact.
    #[must_use]
    pub fn reached_by(self, part: u64, whole: u64) -> bool {
        u128::from(part) * u128::from(Self::ONE.0) >= u128::from(whole) * u128::from(self.0)
    }
}

/// As a percentage, without trailing zeros.
impl fmt::Display for Probability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 10_000_000, self.0 % 10_000_000);
        let digits = format!("{rest:07}");
        let digits = digits.trim_end_matches('0');
        if digits.is_empty() { write!(f, "{whole} %") } else { write!(f, "{whole}.{digits} %") }
    }
}

impl fmt::Debug for Probability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packets_dice_depend_on_its_number_alone() {
        let mut one = Dice::new(7).rolls("link", 3);
        let mut other = Dice::new(7).rolls("link", 3);
        for _ in 0..9 {
            let _ = one.next_roll().1.hits(Die::Loss, Probability::from_basis_points(100));
            let _ = other.next_roll();
        }
        assert_eq!(one.next_roll().1.0, other.next_roll().1.0);
    }

    #[test]
    fn probabilities_come_true_about_as_often_as_they_say() {
        let mut rolls = Dice::new(1).rolls("link", 0);
        let tenth = Probability::from_basis_points(1000);
        let hits = (0..10_000).filter(|_| rolls.next_roll().1.hits(Die::Loss, tenth)).count();
        assert!((900..1100).contains(&hits), "{hits}");
        let (_, roll) = rolls.next_roll();
        assert!(roll.hits(Die::Loss, Probability::ONE) && !roll.hits(Die::Loss, Probability::ZERO));
    }

    #[test]
    fn shares_are_compared_exactly() {
        let third = Probability::from_parts(333_333_333);
        assert!(!third.allows(1, 3) && third.reached_by(1, 3));
        assert_eq!(Probability::from_basis_points(150).to_string(), "1.5 %");
        assert_eq!(Probability::ONE.to_string(), "100 %");
    }
}
