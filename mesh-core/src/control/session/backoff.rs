//! When something that failed is tried again.

use core::time::Duration;

use crate::{rng::Rng, time::Instant};

/// The first pause; the nth is n² of it. Stock nodes: 10 ms.
const STEP: Duration = Duration::from_millis(10);
/// The longest pause. Stock nodes: 30 s.
const LONGEST: Duration = Duration::from_secs(30);
/// The longest pause that a server may ask for. Stock nodes: one hour.
const LONGEST_ASKED: Duration = Duration::from_secs(3_600);
/// The pause when a server is asked too often and does not say how long: this and up to as much again. Stock nodes:
/// 5 to 10 s.
const TOO_MANY: Duration = Duration::from_secs(5);

/// HTTP 429 Too Many Requests (RFC 6585 §4).
const TOO_MANY_REQUESTS: u16 = 429;

use super::super::link::{Failure, FailureKind};

/// Failures in a row, and when the next try is due.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    until: Instant,
}

impl Backoff {
    /// Whether a try is due.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.until <= now
    }

    /// When the next one is.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// It worked.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// It failed: the pause grows with the square of the failures, and is spread from half to one and a half of that.
    pub(super) fn fail(&mut self, rng: &mut Rng, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        let pause = STEP.saturating_mul(self.failures.saturating_mul(self.failures)).min(LONGEST);
        self.until = now + pause / 2 + rng.duration_below(pause);
    }

    /// It failed in a way that may say how long to wait.
    pub(super) fn fail_with(&mut self, failure: &Failure, rng: &mut Rng, now: Instant) {
        match failure.kind {
            FailureKind::Status { retry_after: Some(pause), .. } => {
                self.failures = self.failures.saturating_add(1);
                self.until = now + pause.min(LONGEST_ASKED);
            }
            FailureKind::Status { code: TOO_MANY_REQUESTS, retry_after: None } => {
                self.failures = self.failures.saturating_add(1);
                self.until = now + TOO_MANY + rng.duration_below(TOO_MANY);
            }
            FailureKind::Status { .. } | FailureKind::Unreachable | FailureKind::Untrusted | FailureKind::Malformed => {
                self.fail(rng, now)
            }
        }
    }

    /// Nothing failed, but all nodes come at once: any time from now up to `spread`.
    pub(super) fn spread(&mut self, spread: Duration, rng: &mut Rng, now: Instant) {
        self.until = now + rng.duration_below(spread);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Seed;

    fn status(code: u16, retry_after: Option<Duration>) -> Failure {
        Failure { kind: FailureKind::Status { code, retry_after }, text: String::new() }
    }

    #[test]
    fn pauses_grow_up_to_half_a_minute_and_are_spread() {
        let mut rng = Seed::from_number(1).stream("test", 0);
        let (mut backoff, now) = (Backoff::default(), Instant::from_secs(100));
        assert!(backoff.is_due(now));
        for n in 1..200u32 {
            backoff.fail(&mut rng, now);
            let pause = backoff.until().since(now);
            let middle = (STEP * n * n).min(LONGEST);
            assert!(pause >= middle / 2 && pause <= middle * 3 / 2, "{n}: {pause:?}");
        }
        backoff.reset();
        assert!(backoff.is_due(now));
    }

    #[test]
    fn a_server_says_how_long_to_wait() {
        let mut rng = Seed::from_number(1).stream("test", 0);
        let (mut backoff, now) = (Backoff::default(), Instant::from_secs(100));
        backoff.fail_with(&status(503, Some(Duration::from_secs(7))), &mut rng, now);
        assert_eq!(backoff.until(), now + Duration::from_secs(7));
        backoff.fail_with(&status(429, Some(Duration::from_secs(1_000_000))), &mut rng, now);
        assert_eq!(backoff.until(), now + LONGEST_ASKED);
        backoff.fail_with(&status(429, None), &mut rng, now);
        assert!((TOO_MANY..2 * TOO_MANY).contains(&backoff.until().since(now)));
    }
}
