//! Which way two nodes speak, from what they said of it.
//!
//! A node says where its packets for a peer go whenever that changes. Two nodes are direct when both send directly and
//! neither is in doubt; they are on a relay when either way goes over one. A doubt that comes and goes is no change of the
//! way where [`Doubt::Ignored`] is asked for: packets still go directly, and a copy goes over the relay.

use core::net::SocketAddr;

use mesh_core::{path::Selection, time::Instant};

use crate::host::{HostId, NodeEvent};

use super::PathIs;

/// How packets count that go both ways, because the direct one is in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// As relayed.
    Counts,
    /// As direct.
    Ignored,
}

/// When two nodes began to speak in which way, in order; at the beginning they do not speak.
pub(crate) fn ways(
    events: &[(Instant, HostId, NodeEvent)],
    between: [HostId; 2],
    doubt: Doubt,
) -> Vec<(Instant, PathIs)> {
    let mut selected = [Selection::Nowhere; 2];
    let mut ways = vec![(Instant::ZERO, PathIs::None)];
    for (at, host, event) in events {
        let Some(end) = between.iter().position(|one| one == host) else { continue };
        match event {
            NodeEvent::PathChanged { peer, to } if *peer == between[1 - end] => selected[end] = *to,
            NodeEvent::Started | NodeEvent::Stopped => selected[end] = Selection::Nowhere,
            _ => continue,
        }
        let now = way(selected, doubt);
        if ways.last().is_some_and(|(_, last)| *last != now) {
            ways.push((*at, now));
        }
    }
    ways
}

/// How two nodes speak at an instant.
pub(crate) fn way_at(ways: &[(Instant, PathIs)], at: Instant) -> PathIs {
    let before = ways.partition_point(|(since, _)| *since <= at);
    before.checked_sub(1).map_or(PathIs::None, |last| ways[last].1)
}

/// The first instant in `from..=until` at which two nodes speak in this way.
pub(crate) fn first_in(ways: &[(Instant, PathIs)], is: PathIs, from: Instant, until: Instant) -> Option<Instant> {
    if way_at(ways, from) == is {
        return Some(from);
    }
    ways.iter().find(|(since, way)| *way == is && (from..=until).contains(since)).map(|(since, _)| *since)
}

/// The first instant in `from..=until` at which they do not.
pub(crate) fn first_not(ways: &[(Instant, PathIs)], is: PathIs, from: Instant, until: Instant) -> Option<Instant> {
    if way_at(ways, from) != is {
        return Some(from);
    }
    ways.iter().find(|(since, way)| *way != is && (from..=until).contains(since)).map(|(since, _)| *since)
}

fn way(selected: [Selection; 2], doubt: Doubt) -> PathIs {
    let is_direct = |one: &Selection| match one {
        Selection::Direct(_) => true,
        Selection::Both { .. } => doubt == Doubt::Ignored,
        Selection::Relay(_) | Selection::Nowhere => false,
    };
    match selected {
        [Selection::Nowhere, _] | [_, Selection::Nowhere] => PathIs::None,
        _ if selected.iter().all(is_direct) => PathIs::Direct,
        [_, _] => PathIs::Relay,
    }
}

/// Where two nodes sent directly at last, the first to the second and back.
pub(crate) fn addresses(events: &[(Instant, HostId, NodeEvent)], between: [HostId; 2]) -> [Option<SocketAddr>; 2] {
    let [a, b] = between;
    [(a, b), (b, a)].map(|(from, to)| {
        events.iter().rev().find_map(|(_, host, event)| match event {
            NodeEvent::PathChanged { peer, to: selected } if (*host, *peer) == (from, to) => selected.direct(),
            _ => None,
        })
    })
}

#[cfg(test)]
mod tests {
    use mesh_core::derp::RegionId;

    use super::*;

    #[test]
    fn a_pair_is_direct_when_both_ends_are_and_on_the_relay_when_one_is() {
        let (a, b) = (HostId(0), HostId(1));
        let direct = Selection::Direct("192.0.2.1:1".parse().unwrap());
        let relay = Selection::Relay(RegionId::new(1).unwrap());
        let changed = |second, host, peer, to| (secs(second), host, NodeEvent::PathChanged { peer, to });
        let events = [
            changed(1, a, b, relay),
            changed(2, b, a, relay),
            changed(3, a, b, direct),
            changed(4, a, HostId(2), relay),
            changed(5, b, a, direct),
            (secs(9), b, NodeEvent::Stopped),
        ];
        let ways = ways(&events, [a, b], Doubt::Counts);
        let expected = [(0, PathIs::None), (2, PathIs::Relay), (5, PathIs::Direct), (9, PathIs::None)];
        assert_eq!(ways, expected.map(|(second, way)| (secs(second), way)));
        assert_eq!((way_at(&ways, secs(4)), way_at(&ways, secs(8))), (PathIs::Relay, PathIs::Direct));
        assert_eq!(first_in(&ways, PathIs::Direct, secs(1), secs(4)), None);
        assert_eq!(first_in(&ways, PathIs::Direct, secs(1), secs(5)), Some(secs(5)));
        assert_eq!(first_not(&ways, PathIs::Direct, secs(6), secs(20)), Some(secs(9)));
        assert_eq!(first_not(&ways, PathIs::Relay, secs(3), secs(4)), None);
    }

    #[test]
    fn a_doubt_is_a_relayed_way_or_none() {
        let (a, b) = (HostId(0), HostId(1));
        let (direct, relay) = ("192.0.2.1:1".parse().unwrap(), RegionId::new(1).unwrap());
        let changed = |second, host, peer, to| (secs(second), host, NodeEvent::PathChanged { peer, to });
        let events = [
            changed(1, a, b, Selection::Direct(direct)),
            changed(1, b, a, Selection::Direct(direct)),
            changed(2, a, b, Selection::Both { direct, relay }),
            changed(3, a, b, Selection::Direct(direct)),
        ];
        let of = |doubt| ways(&events, [a, b], doubt).len();
        assert_eq!((of(Doubt::Counts), of(Doubt::Ignored)), (4, 2));
        assert_eq!(addresses(&events, [a, b]), [Some(direct), Some(direct)]);
    }

    fn secs(secs: u64) -> Instant {
        Instant::from_secs(secs)
    }
}
