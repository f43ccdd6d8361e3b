//! A token bucket that stores one instant: when it would be full again.

use core::time::Duration;

use mesh_core::time::Instant;

/// Lets things through at a rate, and a burst at once. How deep it is, in the time that filling it takes, is said each
/// time: rates change while it is in use.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    full_at: Instant,
}

impl Bucket {
    /// A full bucket.
    pub const FULL: Self = Self { full_at: Instant::ZERO };

    /// Takes `cost` when there is enough.
    pub fn take(&mut self, cost: Duration, depth: Duration, now: Instant) -> bool {
        let full_at = self.full_at.max(now) + cost;
        let enough = full_at <= now + depth;
        if enough {
            self.full_at = full_at;
        }
        enough
    }

    /// Takes `cost` in any case; when that was more than there is, says when the debt is paid.
    pub fn charge(&mut self, cost: Duration, depth: Duration, now: Instant) -> Option<Instant> {
        self.full_at = self.full_at.max(now) + cost;
        let paid_at = self.full_at - depth;
        (paid_at > now).then_some(paid_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let second = Duration::from_secs(1);
        let (mut bucket, depth) = (Bucket::FULL, 3 * second);
        let now = Instant::from_secs(10);
        assert_eq!((0..5).filter(|_| bucket.take(second, depth, now)).count(), 3);
        assert!(!bucket.take(second, depth, now + second / 2));
        assert!(bucket.take(second, depth, now + second));
        assert!(!bucket.take(second, depth, now + second));
    }

    #[test]
    fn a_debt_is_paid_at_the_rate() {
        let second = Duration::from_secs(1);
        let (mut bucket, depth) = (Bucket::FULL, 2 * second);
        let now = Instant::from_secs(10);
        assert_eq!(bucket.charge(2 * second, depth, now), None);
        assert_eq!(bucket.charge(second, depth, now), Some(now + second));
        assert_eq!(bucket.charge(Duration::ZERO, depth, now + second), None);
    }
}
