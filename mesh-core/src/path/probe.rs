//! Outstanding pings, and the budgets that pace what is sent.

use core::{net::SocketAddr, time::Duration};
use std::collections::BTreeMap;

use crate::{disco::TxId, limits, time::Instant};

/// A pong after this is none. Stock nodes: 5 s.
pub(super) const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Pings that wait for their pongs.
#[derive(Debug, Default)]
pub(super) struct Outstanding {
    pings: BTreeMap<TxId, Sent>,
}

/// One ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    /// Where it went.
    pub(super) to: SocketAddr,
    /// When.
    pub(super) at: Instant,
}

impl Outstanding {
    /// Keeps a ping; at the bound the oldest is forgotten.
    pub(super) fn insert(&mut self, tx: TxId, sent: Sent) {
        self.pings.retain(|_, ping| sent.at.since(ping.at) < PING_TIMEOUT);
        if self.pings.len() >= limits::PATH_PINGS_PER_PEER
            && let Some(oldest) = self.pings.iter().min_by_key(|(tx, ping)| (ping.at, **tx)).map(|(tx, _)| *tx)
        {
            self.pings.remove(&oldest);
        }
        self.pings.insert(tx, sent);
    }

    /// The ping that a pong answers, once.
    pub(super) fn take(&mut self, tx: TxId, now: Instant) -> Option<Sent> {
        self.pings.remove(&tx).filter(|sent| now.since(sent.at) < PING_TIMEOUT)
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.pings.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.pings.len()
    }
}

/// From one round of a discovery to the next; the last repeats.
pub(super) const ROUND_GAPS: [Duration; 7] = [
    Duration::from_millis(250),
    Duration::from_millis(750),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
];
/// A discovery begins anew at most this often.
pub(super) const DISCOVERY_SPACING: Duration = Duration::from_secs(1);

/// Rounds of pings to all candidates: which is next, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Discovery {
    pub(super) round: usize,
    pub(super) at: Instant,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_is_answered_once_and_in_time() {
        let (mut pings, at) = (Outstanding::default(), Instant::from_secs(1));
        let sent = Sent { to: "192.0.2.1:1".parse().unwrap(), at };
        pings.insert(TxId([1; 12]), sent);
        assert_eq!(pings.take(TxId([2; 12]), at), None);
        assert_eq!(pings.take(TxId([1; 12]), at), Some(sent));
        assert_eq!(pings.take(TxId([1; 12]), at), None);
        pings.insert(TxId([1; 12]), sent);
        assert_eq!(pings.take(TxId([1; 12]), at + PING_TIMEOUT), None);
    }

    #[test]
    fn pings_are_bounded_and_the_oldest_goes() {
        let mut pings = Outstanding::default();
        let tx = |number: u8| TxId([number; 12]);
        for number in 0..=64 {
            let at = Instant::from_millis(u64::from(number));
            pings.insert(tx(number), Sent { to: "192.0.2.1:1".parse().unwrap(), at });
        }
        assert_eq!(pings.len(), limits::PATH_PINGS_PER_PEER);
        assert_eq!(pings.take(tx(0), Instant::from_millis(64)), None);
        assert!(pings.take(tx(1), Instant::from_millis(64)).is_some());
    }
}
