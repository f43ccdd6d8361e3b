//! The direct address in use, and whether it is trusted.

use core::{net::SocketAddr, time::Duration};

use crate::time::Instant;

use super::score::Measured;

/// The address in use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Direct {
    pub(super) address: SocketAddr,
    /// Smoothed round trip.
    pub(super) latency: Duration,
    pub(super) trusted_until: Instant,
    /// When the first ping went out that has not been answered since.
    pub(super) waiting_since: Option<Instant>,
    /// Since when there is a reason to send both ways.
    pub(super) doubted_at: Option<Instant>,
}

impl Direct {
    pub(super) const fn new(measured: Measured, trusted_until: Instant) -> Self {
        let Measured { address, latency } = measured;
        Self { address, latency, trusted_until, waiting_since: None, doubted_at: None }
    }

    pub(super) fn is_trusted(&self, now: Instant) -> bool {
        now < self.trusted_until && self.doubted_at.is_none()
    }

    pub(super) fn patience(&self) -> Duration {
        (self.latency * 3).clamp(PATIENCE_MIN, PATIENCE_MAX)
    }

    /// When waiting for a pong becomes doubt.
    pub(super) fn doubt_at(&self) -> Option<Instant> {
        self.waiting_since.filter(|_| self.doubted_at.is_none()).map(|since| since + self.patience())
    }
}

/// A ping counts as unanswered after three round trips, within these bounds: a scheduler's hiccup is no doubt, and the
/// doubt comes before the next heartbeat.
const PATIENCE_MIN: Duration = Duration::from_millis(300);
const PATIENCE_MAX: Duration = Duration::from_millis(2_500);
