//! S7: who was removed or has expired gets nothing more from those who have learnt it.
//!
//! A node has learnt it when the map that control told it does not name the other any more, or names it with a key that
//! has expired. From [`GRACE`] after that nothing of the tunnel goes to the other, and nothing that it sealed comes out of
//! a tunnel. It is looked at whenever there is something to resist: an application asks for the one who is gone, or a
//! datagram comes from it.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use mesh_core::time::Instant;

use crate::host::HostId;

use super::{CheckId, Tally};

/// From learning until nothing may go out any more. Calendars of hosts differ by seconds, and so does what they think of
/// an expiry.
const GRACE: Duration = Duration::from_secs(5);

/// Knows whom each node knows.
#[derive(Debug, Default)]
pub(crate) struct GoneCheck {
    known: BTreeMap<HostId, BTreeSet<HostId>>,
    /// Who does not know whom any more, and since when.
    gone: BTreeMap<(HostId, HostId), Instant>,
}

impl GoneCheck {
    /// A node knows these now.
    pub(crate) fn note_known(&mut self, host: HostId, known: BTreeSet<HostId>, now: Instant) {
        for other in &known {
            self.gone.remove(&(host, *other));
        }
        if let Some(before) = self.known.get(&host) {
            for other in before.difference(&known) {
                self.gone.insert((host, *other), now);
            }
        }
        self.known.insert(host, known);
    }

    /// There is something that a node must not heed.
    pub(crate) fn handle_temptation(&self, host: HostId, other: HostId, now: Instant, tally: &mut Tally) {
        if self.is_gone(host, other, now) {
            tally.note_held(CheckId::S7);
        }
    }

    /// A node sends something of the tunnel to another.
    pub(crate) fn handle_sent(&self, host: HostId, other: HostId, now: Instant, tally: &mut Tally) {
        if self.is_gone(host, other, now) {
            let text = format!("host {} still sends to host {}, which is gone", host.0, other.0);
            tally.note(CheckId::S7, now, Some(text));
        }
    }

    /// What another sealed comes out of a node's tunnel.
    pub(crate) fn handle_delivered(&self, host: HostId, other: HostId, now: Instant, tally: &mut Tally) {
        if self.is_gone(host, other, now) {
            let text = format!("host {} takes a packet of host {}, which is gone", host.0, other.0);
            tally.note(CheckId::S7, now, Some(text));
        }
    }

    fn is_gone(&self, host: HostId, other: HostId, now: Instant) -> bool {
        self.gone.get(&(host, other)).is_some_and(|since| *since + GRACE <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: HostId = HostId(0);
    const B: HostId = HostId(1);

    #[test]
    fn what_goes_to_somebody_who_is_gone_is_seen_and_what_went_before_is_not() {
        let sent_at = |second| {
            let (check, mut tally) = (gone_at_ten(), Tally::default());
            check.handle_temptation(A, B, Instant::from_secs(second), &mut tally);
            check.handle_sent(A, B, Instant::from_secs(second), &mut tally);
            (tally.checked(CheckId::S7), tally.violations())
        };
        assert_eq!((sent_at(9), sent_at(14), sent_at(15)), ((0, 0), (0, 0), (2, 1)));
    }

    #[test]
    fn what_somebody_sealed_who_is_gone_is_seen_until_it_is_back() {
        let (mut check, mut tally) = (gone_at_ten(), Tally::default());
        check.handle_delivered(A, B, Instant::from_secs(20), &mut tally);
        check.handle_delivered(B, A, Instant::from_secs(20), &mut tally);
        check.note_known(A, [B].into(), Instant::from_secs(30));
        check.handle_delivered(A, B, Instant::from_secs(40), &mut tally);
        assert_eq!((tally.checked(CheckId::S7), tally.violations()), (1, 1));
    }

    fn gone_at_ten() -> GoneCheck {
        let mut check = GoneCheck::default();
        check.note_known(A, [B].into(), Instant::from_secs(1));
        check.note_known(A, BTreeSet::new(), Instant::from_secs(10));
        check
    }
}
