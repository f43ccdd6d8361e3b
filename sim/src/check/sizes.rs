//! S9 and L4: what a node holds stays within its bounds, and what came with traffic goes with it.
//!
//! S9 is looked at whenever a node's timer is due. L4 is about worlds that end in silence (as L3), and is looked at at
//! their end: no packet waits for a session, no ping is under way, a tunnel has no more receiver indices than its sessions
//! need, and there are no streams in use but one to each relay and one to control. After [`LONG`] the paths are gone as
//! well, and all tunnels but those that are kept alive. That is what an idle node holds from its start, so the baseline
//! needs no measuring.

use core::time::Duration;

use mesh_core::{limits, node::Sizes, time::Instant};

use crate::host::HostId;

use super::{CheckId, Tally};

/// Receiver indices of one tunnel: three sessions, a handshake of our own, and one that the peer began.
const INDICES_PER_TUNNEL: usize = 5;

/// Own addresses that peers are told of: what STUN saw, a guess for each of those, two of the host and a mapped one.
const ENDPOINTS: usize = 2 * limits::STUN_ADDRESSES + 3;

/// After this nothing is left of a conversation: WireGuard erases sessions after 540 s, and paths go at most 240 s after
/// their tunnel.
const LONG: Duration = Duration::from_secs(960);

/// Streams of an idle node to control.
const CONTROL_STREAMS: usize = 1;

/// S9: a node holds this now.
pub(crate) fn check_bounds(host: HostId, sizes: &Sizes, now: Instant, tally: &mut Tally) {
    let bounds = [
        ("receiver indices", sizes.indices, sizes.tunnels * INDICES_PER_TUNNEL),
        ("deadlines", sizes.timers, sizes.peers),
        ("addresses of a peer", sizes.candidates, limits::CANDIDATES_PER_PEER),
        ("path pings of a peer", sizes.path_pings, limits::PATH_PINGS_PER_PEER),
        ("packets that wait for a session", sizes.queued, limits::QUEUED_PACKETS_PER_PEER),
        ("pings", sizes.pings, limits::PINGS),
        ("departed peers", sizes.departed, limits::DEPARTED_PEERS),
        ("own addresses", sizes.endpoints, ENDPOINTS),
        ("outputs that nobody took", sizes.outputs, 0),
    ];
    note(CheckId::S9, host, &bounds, now, tally);
}

/// L4: a node holds this, and so many streams, after such a silence; `kept` of its peers it keeps alive, and there are so
/// many relays.
pub(crate) fn check_idle(
    host: HostId,
    (sizes, streams): (&Sizes, usize),
    silence: Duration,
    (kept, relays): (usize, usize),
    now: Instant,
    tally: &mut Tally,
) {
    let mut bounds = vec![
        ("receiver indices", sizes.indices, sizes.tunnels * INDICES_PER_TUNNEL),
        ("packets that wait for a session", sizes.queued, usize::from(kept > 0)),
        ("pings", sizes.pings, 0),
        ("streams", streams, relays + CONTROL_STREAMS),
    ];
    if silence >= LONG {
        bounds.extend([("peers with paths", sizes.paths, 0), ("tunnels", sizes.tunnels, kept)]);
    }
    note(CheckId::L4, host, &bounds, now, tally);
}

fn note(id: CheckId, host: HostId, bounds: &[(&str, usize, usize)], now: Instant, tally: &mut Tally) {
    let beyond = bounds.iter().find(|(_, count, bound)| count > bound);
    let text = beyond.map(|(what, count, bound)| format!("host {} has {count} {what}, {bound} at most", host.0));
    tally.note(id, now, text);
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINE: Sizes = Sizes {
        peers: 3,
        tunnels: 2,
        paths: 0,
        indices: 10,
        timers: 3,
        candidates: 64,
        path_pings: 0,
        queued: 0,
        pings: 0,
        departed: 0,
        endpoints: 6,
        outputs: 0,
    };

    #[test]
    fn what_is_beyond_a_bound_is_seen() {
        let of = |sizes: Sizes| seen(|tally| check_bounds(HostId(0), &sizes, Instant::ZERO, tally));
        assert_eq!(of(FINE), None);
        for wrong in [
            Sizes { indices: 11, ..FINE },
            Sizes { timers: 4, ..FINE },
            Sizes { candidates: 65, ..FINE },
            Sizes { queued: 33, ..FINE },
            Sizes { outputs: 1, ..FINE },
        ] {
            assert_eq!(of(wrong), Some(CheckId::S9), "{wrong:?}");
        }
    }

    #[test]
    fn what_stays_when_nobody_speaks_is_seen() {
        let with = |secs, sizes: Sizes, streams| {
            let silence = Duration::from_secs(secs);
            seen(|tally| check_idle(HostId(0), (&sizes, streams), silence, (0, 2), Instant::ZERO, tally))
        };
        let after = |secs, sizes| with(secs, sizes, 3);
        let of = |sizes| after(220, sizes);
        assert_eq!((of(FINE), with(220, FINE, 4)), (None, Some(CheckId::L4)));
        for wrong in [Sizes { indices: 11, ..FINE }, Sizes { queued: 1, ..FINE }, Sizes { pings: 1, ..FINE }] {
            assert_eq!(of(wrong), Some(CheckId::L4), "{wrong:?}");
        }
        let gone = Sizes { tunnels: 0, indices: 0, ..FINE };
        assert_eq!((after(1000, gone), after(1000, FINE)), (None, Some(CheckId::L4)));
        for wrong in [Sizes { paths: 1, ..gone }, Sizes { tunnels: 1, ..gone }] {
            assert_eq!((after(959, wrong), after(960, wrong)), (None, Some(CheckId::L4)), "{wrong:?}");
        }
    }

    fn seen(look: impl FnOnce(&mut Tally)) -> Option<CheckId> {
        let mut tally = Tally::default();
        look(&mut tally);
        tally.violation().map(|violation| violation.id)
    }
}
