//! When a handshake is tried again before WireGuard would, which is after five seconds.
//!
//! Two reasons say that an initiation is lost, and not when its successor will not be: the relay did not have the peer,
//! or our key is a new one that the peer may hear of later than of us. Such a handshake is tried again and again, as
//! [`PAUSES`] says, until there is a session.
//!
//! Two others say that the peer could have answered by now: it was heard, so it has us in its map, which it may not have
//! had when our initiation came; or a better way to it was found than the initiation took. Then it is tried again, and
//! where that stays without an answer, up to [`LOSSES_MAX`] times: links lose packets.
//!
//! And a peer that does not know that we have restarted, because control is away, goes on with a session that ended with our
//! last run. WireGuard would begin anew after fifteen seconds; here what it sends is a reason to offer it another session,
//! as [`Tunnel::offer`](crate::wireguard::Tunnel::offer) does. Only for peers of the map, and only when the relay says that
//! it is the peer, or the datagram came from an address that the map gives it: strangers get no word out of us.

use core::{net::SocketAddr, time::Duration};

use crate::{dataplane::PeerId, path::PathAddr, time::Instant};

use super::{Node, table::Peer};

/// Before each try, in milliseconds. Dense in the first two seconds, because a peer whose first packet to the relay was
/// lost comes a second later; nine seconds in all. A peer that is not there then is away, and WireGuard's own pace is
/// enough.
const PAUSES: [u64; 11] = [100, 200, 400, 400, 400, 400, 800, 800, 1_600, 2_000, 2_000];
/// An initiation younger than this is not repeated.
const SPACING: Duration = Duration::from_millis(100);
/// An initiation is taken as lost after so many round trips of a way that was found meanwhile: the way that it took may be
/// slower.
const ROUND_TRIPS: u32 = 3;
/// And after this at the latest.
const LOST_AFTER: Duration = Duration::from_millis(500);
/// So many initiations are taken as lost until there is a session; from then on WireGuard's own pace is enough.
const LOSSES_MAX: u32 = 3;
/// Between two searches for the peer with an address: they go through all peers, and strangers can ask for them.
const SEARCH_SPACING: Duration = Duration::from_millis(50);

impl Node {
    /// An initiation that was lost for a reason that passes is sent again before long.
    pub(super) fn plan_retry(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.initiated_at().is_some()
            && peer.watch.retry_at.is_none()
            && let Some(pause) = PAUSES.get(peer.watch.retries)
        {
            peer.watch.retries += 1;
            peer.watch.retry_at = Some(now + Duration::from_millis(*pause));
            self.rearm(id);
        }
    }

    /// The peer has us in its map: it spoke.
    pub(super) fn note_heard(&mut self, id: PeerId) {
        self.expect_answer(id, LOST_AFTER);
    }

    /// There is a better way to the peer than there was; `is_first` when there was none.
    pub(super) fn note_better_way(&mut self, id: PeerId, is_first: bool, now: Instant) {
        if is_first {
            self.with_tunnel_if_any(id, now, |tunnel, local| tunnel.retry(Duration::ZERO, local, now));
            return;
        }
        let latency = self.peers.get(id).and_then(|peer| peer.paths.as_ref()).and_then(|paths| paths.latency());
        let wait = latency.map_or(LOST_AFTER, |latency| (latency * ROUND_TRIPS).clamp(SPACING, LOST_AFTER));
        self.expect_answer(id, wait);
    }

    /// An initiation that is under way is lost if it is not answered within `wait` of when it was sent: where it had to wait
    /// for the connection to the peer's relay, of when there was one.
    fn expect_answer(&mut self, id: PeerId, wait: Duration) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Some(initiated_at) = peer.initiated_at().filter(|_| peer.watch.losses < LOSSES_MAX) else { return };
        let home = peer.config.addressing.whereabouts().and_then(|whereabouts| whereabouts.home);
        let connected_at = home.and_then(|home| self.relays.connected_since(home));
        let at = connected_at.map_or(initiated_at, |connected_at| connected_at.max(initiated_at)) + wait;
        peer.watch.lost_at = Some(peer.watch.lost_at.map_or(at, |before| before.min(at)));
        self.rearm(id);
    }

    /// A datagram came from there on a session that we do not have.
    pub(super) fn handle_stray(&mut self, source: PathAddr, now: Instant) {
        let id = match source {
            PathAddr::Relay { peer, .. } => self.peers.by_key(&peer),
            PathAddr::Udp(address) => self.peer_at(address, now),
        };
        if let Some(id) = id {
            self.with_tunnel(id, now, |tunnel, local| tunnel.offer(local, now));
        }
    }

    /// A peer that has this address, by the map or because it is sent to there, and no session, and is not being asked for
    /// one. Several may name the same address of a home network: then it is one after the other.
    fn peer_at(&mut self, address: SocketAddr, now: Instant) -> Option<PeerId> {
        if now < self.strays_at {
            return None;
        }
        self.strays_at = now + SEARCH_SPACING;
        let has = |peer: &&Peer| {
            let whereabouts = peer.config.addressing.whereabouts();
            whereabouts.is_some_and(|whereabouts| {
                whereabouts.endpoints.contains(&address) || peer.selection().direct() == Some(address)
            })
        };
        let is_without = |peer: &&Peer| peer.sealer.as_ref().is_none_or(|sealer| sealer.is_spent(now));
        let mut found = self.peers.iter().filter(|peer| is_without(peer) && peer.initiated_at().is_none());
        found.find(has).map(|peer| peer.id)
    }

    /// Tries handshakes again whose time has come.
    pub(super) fn handle_retries_due(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.watch.lost_at.take_if(|at| *at <= now).is_some() {
            peer.watch.losses += 1;
            self.with_tunnel_if_any(id, now, |tunnel, local| tunnel.retry(SPACING, local, now));
            self.expect_answer(id, LOST_AFTER);
        }
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.watch.retry_at.take_if(|at| *at <= now).is_some() {
            self.with_tunnel_if_any(id, now, |tunnel, local| tunnel.retry(SPACING, local, now));
            // Neither does the relay say again and again that it does not have the peer, nor the peer that it does not
            // know us.
            let Some(peer) = self.peers.get(id) else { return };
            if peer.watch.is_rekeyed || peer.selection().relay().is_some() {
                self.plan_retry(id, now);
            }
        }
    }
}
