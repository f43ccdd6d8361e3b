//! L3: nodes that have nothing to say fall silent.
//!
//! It is about worlds that end in silence: nothing is asked any more and nothing happens for [`CALM`] before the last
//! [`WATCHED`]. In that time a node may ask where it is seen and keep its connections alive, and that is all: nothing goes
//! to peers but the keepalives that they want, and it wakes up no more often than those timers need.

use core::time::Duration;

use mesh_core::time::Instant;

use crate::{host::HostId, net::PacketKind, scenario::Scenario};

use super::{CheckId, Tally};

/// How long sessions and paths go on after the last packet: a WireGuard session lives for 180 s, and a path that was not
/// used for 120 s is dropped.
const CALM: Duration = Duration::from_secs(150);
/// How long is looked.
const WATCHED: Duration = Duration::from_secs(60);

/// STUN requests to a relay in [`WATCHED`]: a round every 20 s at least, over two families, each said up to three times.
const STUN: u64 = 4 * 2 * 3;
/// WireGuard packets for each peer that wants a keepalive: one every 25 s, answered, and a handshake.
const KEPT_ALIVE: u64 = 12;
/// Wake-ups in [`WATCHED`]: four a second.
const WAKES: u64 = 240;

/// Watches the end of a run.
#[derive(Debug)]
pub(crate) struct QuietCheck {
    /// When everybody must be silent; never in a world that does not end in silence.
    from: Instant,
    /// When the last thing is asked, or is over.
    last: Instant,
    /// By host, by kind.
    sent: Vec<[u64; PacketKind::ALL.len()]>,
    wakes: Vec<u64>,
}

impl QuietCheck {
    /// Watches a scenario in which the last thing that happens is over at `over`.
    pub(crate) fn new(scenario: &Scenario, hosts: usize, over: Instant) -> Self {
        let end = Instant::ZERO + scenario.duration;
        let asked = scenario.traffic.iter().map(|traffic| traffic.stop.unwrap_or(Instant::FAR_FUTURE));
        let last = asked.max().unwrap_or(Instant::ZERO).max(over);
        let is_silent = last < Instant::FAR_FUTURE && last + CALM + WATCHED <= end;
        Self {
            from: if is_silent { end - WATCHED } else { Instant::FAR_FUTURE },
            last,
            sent: vec![[0; PacketKind::ALL.len()]; hosts],
            wakes: vec![0; hosts],
        }
    }

    /// How long nobody has said anything; `None` in a world that does not end in silence.
    pub(crate) fn silence(&self, now: Instant) -> Option<Duration> {
        (self.from != Instant::FAR_FUTURE).then(|| now.since(self.last))
    }

    /// A host sends a packet, by itself or over a relay.
    #[inline]
    pub(crate) fn handle_sent(&mut self, host: HostId, kind: PacketKind, now: Instant) {
        if now >= self.from {
            self.sent[host.index()][kind as usize] += 1;
        }
    }

    /// A host's timer is due.
    #[inline]
    pub(crate) fn handle_woken(&mut self, host: HostId, now: Instant) {
        if now >= self.from {
            self.wakes[host.index()] += 1;
        }
    }

    /// Looks at a node when the run is over.
    pub(crate) fn check(&self, scenario: &Scenario, host: HostId, now: Instant, tally: &mut Tally) {
        if self.from == Instant::FAR_FUTURE {
            return;
        }
        let sent = |kind: PacketKind| self.sent[host.index()][kind as usize];
        let peers =
            scenario.peers.iter().filter(|peer| peer.keepalive.is_some() && (peer.of == host || peer.is == host));
        let wireguard = sent(PacketKind::WireguardHandshake) + sent(PacketKind::WireguardData);
        let bounds = [
            ("disco packets", sent(PacketKind::Disco), 0),
            ("WireGuard packets", wireguard, peers.count() as u64 * KEPT_ALIVE),
            ("STUN packets", sent(PacketKind::Stun), scenario.relays.len() as u64 * STUN),
            ("wake-ups", self.wakes[host.index()], WAKES),
        ];
        for (what, count, bound) in bounds {
            let text = (count > bound)
                .then(|| format!("idle host {} has {count} {what} in a minute, {bound} at most", host.0));
            tally.note(CheckId::L3, now, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::World;

    #[test]
    fn who_goes_on_talking_is_seen_and_only_at_the_end() {
        assert_eq!(talking(0..290, secs(80)), (4, None));
        assert_eq!(talking(0..291, secs(80)), (4, Some(CheckId::L3)));
        assert_eq!(talking(0..300, secs(91)), (0, None), "the world does not end in silence");
    }

    /// A world of 300 s in which the last thing is over at `over`, and a node that sends disco packets and STUN.
    fn talking(disco: core::ops::Range<u64>, over: Instant) -> (u64, Option<CheckId>) {
        let world = World::new(0);
        let _ = world.node("a", &world.net("net"));
        let mut scenario = world.scenario(secs(300));
        scenario.duration = Duration::from_secs(300);
        let mut check = QuietCheck::new(&scenario, 1, over);
        let mut tally = Tally::default();
        for second in disco.filter(|second| *second < 240 || *second == 290) {
            check.handle_sent(HostId(0), PacketKind::Disco, secs(second));
            check.handle_woken(HostId(0), secs(second));
        }
        check.check(&scenario, HostId(0), secs(300), &mut tally);
        (tally.checked(CheckId::L3), tally.violation().map(|violation| violation.id))
    }

    fn secs(secs: u64) -> Instant {
        Instant::from_secs(secs)
    }
}
