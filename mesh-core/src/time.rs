//! Time as a value. There is no `now()`: drivers read clocks and hand the result in.
//!
//! Two clocks exist. [`Instant`] is monotonic and counts time asleep; every timer uses it.
//! [`WallTime`] is what a calendar says; only stamps that leave the machine use it. A [`WallAnchor`]
//! pairs the two.

use core::{
    fmt,
    ops::{Add, AddAssign, Sub},
    time::Duration,
};

/// Nanoseconds since the driver's epoch, on a monotonic clock that counts time asleep.
///
/// Subtraction saturates at zero: a worker's stamp may be a little ahead of the owner's `now`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The driver's epoch.
    pub const ZERO: Self = Self(0);
    /// Later than everything; used as "never".
    pub const FAR_FUTURE: Self = Self(u64::MAX);

    /// The instant `nanos` nanoseconds after the epoch.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// The instant `millis` milliseconds after the epoch.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis * 1_000_000)
    }

    /// The instant `secs` seconds after the epoch.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs * 1_000_000_000)
    }

    /// Nanoseconds since the epoch.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to `self`; zero when `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(nanos(rhs)))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, rhs: Duration) {
        *self = *self + rhs;
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(rhs)))
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}s", self.0 / 1_000_000_000, self.0 / 1_000 % 1_000_000)
    }
}

/// Nanoseconds since 1970-01-01 00:00 UTC, as the host's calendar clock says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallTime(u64);

impl WallTime {
    /// 1970-01-01 00:00 UTC.
    pub const UNIX_EPOCH: Self = Self(0);

    /// The time `secs` seconds after 1970.
    #[must_use]
    pub const fn from_unix_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1_000_000_000))
    }

    /// The time `nanos` nanoseconds after 1970.
    #[must_use]
    pub const fn from_unix_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since 1970.
    #[must_use]
    pub const fn as_unix_nanos(self) -> u64 {
        self.0
    }
}

/// Pairs the two clocks: at `at` the calendar said `wall`.
///
/// Re-anchored by the driver when the host's wall clock steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallAnchor {
    /// A point on the monotonic clock.
    pub at: Instant,
    /// What the calendar said at that point.
    pub wall: WallTime,
}

impl WallAnchor {
    /// What the calendar says at `now`; works for times before the anchor too.
    #[must_use]
    pub fn wall_at(&self, now: Instant) -> WallTime {
        let wall = if now >= self.at {
            self.wall.0.saturating_add(now.0 - self.at.0)
        } else {
            self.wall.0.saturating_sub(self.at.0 - now.0)
        };
        WallTime(wall)
    }
}

/// So many at once, and one more every so often.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    burst: u32,
    every: Duration,
    /// When the budget will be whole again.
    whole_at: Instant,
}

impl Budget {
    /// A whole one: `burst` at once, at least one, and one more each `every`.
    #[must_use]
    pub const fn new(burst: u32, every: Duration) -> Self {
        Self { burst, every, whole_at: Instant::ZERO }
    }

    /// Whether one more fits; it is then spent.
    pub fn take(&mut self, now: Instant) -> bool {
        let fits = self.ready_at() <= now;
        if fits {
            self.whole_at = self.whole_at.max(now) + self.every;
        }
        fits
    }

    /// When the next fits.
    #[must_use]
    pub fn ready_at(&self) -> Instant {
        self.whole_at - self.every * self.burst.saturating_sub(1)
    }
}

/// The earlier of two optional points in time, where `None` is "never".
#[must_use]
pub fn earliest<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtraction_saturates() {
        assert_eq!(Instant::from_secs(1).since(Instant::from_secs(2)), Duration::ZERO);
        assert_eq!(Instant::from_secs(1) - Duration::from_secs(2), Instant::ZERO);
        assert_eq!(Instant::FAR_FUTURE + Duration::MAX, Instant::FAR_FUTURE);
    }

    #[test]
    fn a_budget_gives_its_burst_and_then_one_at_a_time() {
        let mut budget = Budget::new(3, Duration::from_millis(10));
        let spent = |budget: &mut Budget, millis| (0..9).filter(|_| budget.take(Instant::from_millis(millis))).count();
        assert_eq!(spent(&mut budget, 1000), 3);
        assert_eq!(budget.ready_at(), Instant::from_millis(1010));
        assert_eq!(spent(&mut budget, 1009), 0);
        assert_eq!(spent(&mut budget, 1010), 1);
        assert_eq!(spent(&mut budget, 1035), 2);
        assert_eq!(spent(&mut budget, 9000), 3);
    }

    #[test]
    fn an_anchor_converts_both_ways() {
        let anchor = WallAnchor { at: Instant::from_secs(10), wall: WallTime::from_unix_secs(1000) };
        assert_eq!(anchor.wall_at(Instant::from_secs(12)), WallTime::from_unix_secs(1002));
        assert_eq!(anchor.wall_at(Instant::from_secs(7)), WallTime::from_unix_secs(997));
    }

    #[test]
    fn prints_seconds_and_microseconds() {
        assert_eq!(Instant::from_nanos(1_234_567_890).to_string(), "1.234567s");
    }
}
