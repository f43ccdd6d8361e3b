//! N7 and N9: looking for ways does no harm, and is not harmed by what we send ourselves.
//!
//! N7: a node sends no more disco datagrams than a pair may cost, and takes no more of its router's table than leaves room
//! for others: a router with a small one (`tiny-table`) forgets nobody for our sake. N9: on a link that what we send does
//! not fill, a probe does not wait long behind it.

use core::{net::SocketAddr, time::Duration};

use mesh_core::time::Instant;

use crate::{
    host::HostId,
    net::{NetId, nat::NatCounts},
};

use super::{CheckId, Tally};

/// N7: disco datagrams of a node in [`ATTEMPT`], for each of its peers.
const PROBES: usize = 2_048;
const ATTEMPT: Duration = Duration::from_secs(300);
/// N7: sessions of each node in a table of its router.
const SESSIONS: usize = 128;
/// N9: how long a probe may wait.
const WAIT: Duration = Duration::from_millis(500);

/// N7: a node with so many peers sent disco datagrams then.
pub(crate) fn check_probes(host: HostId, sent: &[(Instant, SocketAddr)], peers: usize, tally: &mut Tally) {
    let Some((last, _)) = sent.last() else { return };
    let bound = PROBES * peers.max(1);
    let many = sent.windows(bound + 1).find(|window| window[bound].0.since(window[0].0) < ATTEMPT);
    let text = many.map(|window| format!("host {} sent {} probes from {} on", host.0, window.len(), window[0].0));
    tally.note(CheckId::N7, *last, text);
}

/// N7: what became of the table of a net's router, behind which there were so many nodes.
pub(crate) fn check_table(net: NetId, counts: &NatCounts, nodes: usize, now: Instant, tally: &mut Tally) {
    if nodes == 0 || counts.sessions == 0 {
        return;
    }
    let text = if counts.evicted > 0 {
        Some(format!("the router of net {} forgot {} sessions for new ones", net.0, counts.evicted))
    } else {
        let bound = nodes * SESSIONS;
        (counts.most > bound).then(|| format!("{nodes} nodes had {} sessions of net {}", counts.most, net.0))
    };
    tally.note(CheckId::N7, now, text);
}

/// N9: probes that had to wait before a net's link, and how long the longest did.
pub(crate) fn check_waits(net: NetId, (probes, longest): (u64, Duration), now: Instant, tally: &mut Tally) {
    for _ in 0..probes {
        let text = (longest > WAIT).then(|| format!("a probe waited {longest:?} for the link of net {}", net.0));
        tally.note(CheckId::N9, now, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_probes_in_too_short_a_time_are_seen() {
        let sent = |every_millis: u64| {
            let times = (0..=PROBES as u64).map(|number| Instant::ZERO + Duration::from_millis(number * every_millis));
            let sent: Vec<_> = times.map(|at| (at, "192.0.2.1:1".parse().unwrap())).collect();
            seen(|tally| check_probes(HostId(0), &sent, 1, tally))
        };
        assert_eq!((sent(147), sent(146)), (None, Some(CheckId::N7)));
    }

    #[test]
    fn a_router_that_has_no_room_for_others_is_seen() {
        let of = |most, evicted| {
            let counts = NatCounts { sessions: 1, most, evicted, ..NatCounts::default() };
            seen(|tally| check_table(NetId(0), &counts, 2, Instant::ZERO, tally))
        };
        assert_eq!((of(256, 0), of(257, 0), of(1, 1)), (None, Some(CheckId::N7), Some(CheckId::N7)));
    }

    #[test]
    fn a_probe_that_waits_behind_our_own_packets_is_seen() {
        let of = |millis| {
            let waits = (1, Duration::from_millis(millis));
            seen(|tally| check_waits(NetId(0), waits, Instant::ZERO, tally))
        };
        assert_eq!((of(500), of(501)), (None, Some(CheckId::N9)));
    }

    fn seen(look: impl FnOnce(&mut Tally)) -> Option<CheckId> {
        let mut tally = Tally::default();
        look(&mut tally);
        assert_eq!(tally.checked(CheckId::N7) + tally.checked(CheckId::N9), 1);
        tally.violation().map(|violation| violation.id)
    }
}
