//! Whose clock expiries go by: the server's, as far as it is known.
//!
//! A host may boot with a date that is years off, and its clock may be set while the node runs. A server says its time
//! now and then; what it is ahead of ours is kept, and corrected when ours is set, so that no key expires for that.

use core::time::Duration;

use crate::time::{Instant, WallAnchor, WallTime};

use super::Node;

/// Clocks that differ by less are taken as equal. Stock nodes: 1 min.
const SKEW: u64 = 60_000_000_000;
/// A server's clock before this is wrong. Stock nodes: the same.
const CLOCK_FLOOR: WallTime = WallTime::from_unix_secs(1_673_373_066);

impl Node {
    /// The calendar as control reads it.
    pub(super) fn control_wall(&self, now: Instant) -> WallTime {
        let skew = self.control.as_ref().and_then(|control| control.skew).unwrap_or(0);
        let wall = self.local.clock.wall_at(now).as_unix_nanos();
        WallTime::from_unix_nanos(wall.saturating_add_signed(skew))
    }

    /// Our clock was set. The server's went on meanwhile.
    pub(super) fn handle_clock_step(&mut self, anchor: WallAnchor, now: Instant) {
        let before = self.control_wall(now);
        self.local.clock = anchor;
        let after = self.local.clock.wall_at(now);
        let Some(control) = &mut self.control else { return };
        control.skew = control.skew.map(|_| skew(before, after));
        self.look_at_expiries(now);
        self.drain_session(now);
    }

    /// The server says its time. Whether that is other than was thought.
    pub(super) fn note_control_time(&mut self, time: WallTime, now: Instant) -> bool {
        let skew = skew(time, self.local.clock.wall_at(now));
        let Some(control) = self.control.as_mut().filter(|_| time >= CLOCK_FLOOR) else { return false };
        let is_news = control.skew.unwrap_or(0).abs_diff(skew) > SKEW;
        if is_news || control.skew.is_none() {
            control.skew = Some(skew);
        }
        is_news
    }

    /// Keys may have expired, or not have expired after all. What the session says is heard by who called.
    pub(super) fn look_at_expiries(&mut self, now: Instant) {
        let own = self.netmap.self_node().map(|node| node.key_expiry);
        let wall = self.control_wall(now);
        if let (Some(control), Some(expiry)) = (&mut self.control, own) {
            control.session.set_key_expiry(expiry, wall, now);
        }
        self.refresh_state(now);
        self.apply_peers_of_map(now);
        self.answer_ups();
    }

    /// Whether our own key has expired. Of the key before a rotation that is not known any more.
    pub(super) fn is_expired(&self, now: Instant) -> bool {
        let node = self.netmap.self_node();
        let is_ours = node.is_some_and(|node| node.key == self.local.identity.public());
        is_ours && node.and_then(|node| node.key_expiry).is_some_and(|expiry| expiry <= self.control_wall(now))
    }

    /// When the next key of the map expires is looked at then.
    pub(super) fn plan_expiry(&mut self, now: Instant) {
        let wall = self.control_wall(now);
        let peers = self.netmap.peers().values().filter_map(|peer| peer.key_expiry);
        let own = self.netmap.self_node().and_then(|node| node.key_expiry);
        let next = peers.chain(own).filter(|expiry| *expiry > wall).min();
        if let Some(control) = &mut self.control {
            control.expiry_at = next.map(|expiry| instant_of(expiry, wall, now));
        }
    }
}

/// What the server's clock, which says `server`, is ahead of ours, which says `own`; 0 when that is little.
fn skew(server: WallTime, own: WallTime) -> i64 {
    let (server, own) = (server.as_unix_nanos(), own.as_unix_nanos());
    let is_off = server.abs_diff(own) > SKEW;
    if is_off { server.wrapping_sub(own).cast_signed() } else { 0 }
}

/// The instant at which the calendar, which says `wall` now, says `at`. Never in the past.
pub(super) fn instant_of(at: WallTime, wall: WallTime, now: Instant) -> Instant {
    // A moment later, so that what is due is past when it is looked at.
    now + Duration::from_nanos(at.as_unix_nanos().saturating_sub(wall.as_unix_nanos()).max(1))
}
