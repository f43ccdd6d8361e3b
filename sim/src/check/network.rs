//! N1 to N6, N8 and L2: what a network owes those who use it, looked at when a run is over.
//!
//! Most are about worlds with relays: there any two nodes that are up can speak. What a scenario did to the world, and
//! some time after that, does not count; budgets of single changes are for the scenario's own expectations.

use core::{net::SocketAddr, time::Duration};
use std::collections::BTreeSet;

use mesh_core::time::Instant;

use crate::host::{HostId, NodeEvent};

use super::{
    CheckId, Flow, Flows, PathIs, Tally,
    best::{self, Best},
    payload,
    recovery::{self, Change},
    ways::{Doubt, first_not, way_at, ways},
};

/// From the start, or from what a scenario did, until it must not be felt any more.
const SETTLED_AFTER: Duration = Duration::from_secs(30);

/// N1: messages may be lost for so long before the way is another one.
const LOST: Duration = Duration::from_secs(3);

/// N2: changes of a pair's way in [`STEADY`].
const CHANGES: usize = 2;
const STEADY: Duration = Duration::from_secs(60);

/// N2: a way counts for so long after each message.
const IN_USE: Duration = Duration::from_secs(10);

/// N3: disco datagrams to each address in [`STEADY`] while only the relay works. Stock nodes ping every five seconds, and
/// once more when the peer asks for it.
const PROBES: usize = 14;

/// L2: in this time before the end both must have heard of each other.
const LATELY: Duration = Duration::from_secs(10);

/// N4 among static peers: a session that the other end lost is found out 15 s after somebody speaks.
const LEAD: Duration = Duration::from_secs(20);

/// A stream of maps that is dead is found out after so long without a word. Whom it does not tell of a newcomer cannot answer.
/// Stock nodes: 120 s.
const STREAM_SILENCE: Duration = Duration::from_secs(120);

/// What is not an instant of its own at the end of a run: it may be on its way.
const IN_FLIGHT: Duration = Duration::from_secs(2);

/// What is known of a run for these checks.
pub(crate) struct Ended<'r> {
    pub(crate) end: Instant,
    pub(crate) flows: &'r Flows,
    pub(crate) events: &'r [(Instant, HostId, NodeEvent)],
    /// By host: when it sent disco datagrams, and where to.
    pub(crate) probes: &'r [Vec<(Instant, SocketAddr)>],
    /// When the scenario did something, and when that was over, in order.
    pub(crate) disturbed: Vec<(Instant, Instant)>,
    /// Pairs whose messages a policy may stop.
    pub(crate) denied: Vec<[HostId; 2]>,
    /// By host: from when on it takes part.
    pub(crate) since: &'r [Instant],
    /// What two nodes may have to recover from.
    pub(crate) changes: Vec<Change>,
    /// What a round trip between two nodes takes at best, as the world is at the end.
    pub(crate) best: &'r dyn Fn([HostId; 2]) -> Option<Best>,
    /// Whether nodes know each other from the beginning: then there are neither relays nor choices.
    pub(crate) is_static: bool,
}

/// Looks at everything.
pub(crate) fn check(ended: &Ended<'_>, tally: &mut Tally) {
    let quiet = quiet(ended);
    let mut seen: Vec<[HostId; 2]> = Vec::new();
    for flow in ended.flows.iter() {
        let pair = [flow.from.min(flow.to), flow.from.max(flow.to)];
        if seen.contains(&pair) || ended.denied.contains(&pair) {
            continue;
        }
        seen.push(pair);
        let ways = ways(ended.events, pair, Doubt::Ignored);
        let Some(met) = met(ended, pair) else { continue };
        let both = quiet.iter().map(|(from, until)| ((*from).max(met), *until)).filter(|(from, until)| from < until);
        let both: Vec<_> = both.collect();
        for window in &both {
            let (lead, until) =
                (if ended.is_static { LEAD } else { Duration::ZERO }, window.1.min(ended.end - IN_FLIGHT));
            payload::check(ended.flows, pair, (window.0, until), lead, tally);
        }
        if ended.is_static {
            continue;
        }
        for window in &both {
            check_loss(ended, pair, *window, tally);
            check_flapping(ended, &ways, pair, *window, tally);
        }
        for window in &both {
            check_probing(ended, pair, *window, tally);
        }
        if let Some((from, until)) = both.last().copied().filter(|(_, until)| *until == ended.end) {
            check_best(ended, &ways, pair, (from, until), tally);
        }
        let is_relayed = |at| way_at(&ways, at) == PathIs::Relay;
        let changes = ended.changes.iter().filter(|change| met <= change.begin).cloned().collect::<Vec<_>>();
        recovery::check(ended.flows, pair, &changes, &ended.disturbed, is_relayed, tally);
        check_connected(ended, pair, both.last().copied(), tally);
    }
}

/// From when on two hosts owe each other an answer: both take part, for long enough to have heard of each other.
fn met(ended: &Ended<'_>, pair: [HostId; 2]) -> Option<Instant> {
    let since = pair.map(|host| ended.since.get(host.index()).copied().unwrap_or(Instant::ZERO));
    // Of the one that was there already the stream may have been dead when the other came.
    let was_there = if since[0] <= since[1] { pair[0] } else { pair[1] };
    let since = since[0].max(since[1]);
    let deaf = ended.changes.iter().filter(|change| change.cuts && change.hosts.contains(&was_there));
    let deaf = deaf.map(|change| (change.begin, change.over.max(change.begin + STREAM_SILENCE)));
    let heard = deaf.filter(|(begin, until)| (*begin..*until).contains(&since)).map(|(_, until)| until).max();
    (since != Instant::FAR_FUTURE).then(|| heard.unwrap_or(since) + SETTLED_AFTER)
}

/// The times in which nothing that the scenario did is felt.
fn quiet(ended: &Ended<'_>) -> Vec<(Instant, Instant)> {
    let mut quiet = Vec::new();
    let mut from = Instant::ZERO + SETTLED_AFTER;
    for (begin, over) in &ended.disturbed {
        if from < *begin {
            quiet.push((from, *begin));
        }
        from = from.max(*over + SETTLED_AFTER);
    }
    if from < ended.end {
        quiet.push((from, ended.end));
    }
    quiet
}

fn check_loss(ended: &Ended<'_>, pair: [HostId; 2], (from, until): (Instant, Instant), tally: &mut Tally) {
    for (one, other) in [(pair[0], pair[1]), (pair[1], pair[0])] {
        let messages = ended.flows.between(one, other);
        let until = until.min(ended.end - IN_FLIGHT);
        let mut lost: Option<Instant> = None;
        let mut wrong = None;
        let mut looked = false;
        for (sent, delivered) in messages.iter().filter(|(sent, _)| (from..until).contains(sent)) {
            looked = true;
            if *delivered != Instant::FAR_FUTURE {
                lost = None;
                continue;
            }
            let since = *lost.get_or_insert(*sent);
            if sent.since(since) > LOST {
                wrong.get_or_insert(since);
            }
        }
        if looked {
            let text = wrong.map(|since| format!("host {} lost all to host {} from {since} on", one.0, other.0));
            tally.note(CheckId::N1, wrong.map_or(until, |since| since + LOST), text);
        }
    }
}

fn check_flapping(
    ended: &Ended<'_>,
    ways: &[(Instant, PathIs)],
    pair: [HostId; 2],
    (from, until): (Instant, Instant),
    tally: &mut Tally,
) {
    if until.since(from) < STEADY {
        return;
    }
    // A way that nobody uses comes to its end, and comes back.
    let messages = ended.flows.between(pair[0], pair[1]).into_iter().chain(ended.flows.between(pair[1], pair[0]));
    let sent: BTreeSet<_> = messages.map(|(sent, _)| sent).collect();
    let is_used = |at: Instant| sent.range(at - IN_USE..=at).next().is_some();
    let changes: Vec<_> =
        ways.iter().map(|(at, _)| *at).filter(|at| (from..until).contains(at) && is_used(*at)).collect();
    let flapping = changes.windows(CHANGES + 1).find(|window| window[CHANGES].since(window[0]) <= STEADY);
    let text = flapping.map(|window| {
        format!("hosts {} and {} change their way again and again from {} on", pair[0].0, pair[1].0, window[0])
    });
    tally.note(CheckId::N2, flapping.map_or(until, |window| window[CHANGES]), text);
}

/// Of a host all of whose peers are relayed.
fn check_probing(ended: &Ended<'_>, pair: [HostId; 2], (from, until): (Instant, Instant), tally: &mut Tally) {
    if until.since(from) < STEADY {
        return;
    }
    let is_relayed = |pair: [HostId; 2]| {
        let ways = ways(ended.events, pair, Doubt::Ignored);
        first_not(&ways, PathIs::Relay, from, until).is_none()
    };
    for host in pair {
        // Whoever begins to speak looks for a way, more often at first.
        let spoke = ended.flows.iter().filter(|flow| flow.from == host || flow.to == host);
        let spoke = spoke.filter_map(|flow| flow.samples.first()).map(|sample| sample.sent);
        // So does whoever hears that a peer has another home, or is at its relay again.
        let moved = ended
            .events
            .iter()
            .filter(|(_, _, event)| matches!(event, NodeEvent::HomeChanged { .. } | NodeEvent::RelayConnected { .. }));
        let searches = spoke.chain(moved.map(|(at, ..)| *at)).filter(|at| *at < until);
        let from = searches.map(|at| at + SETTLED_AFTER).max().map_or(from, |at| at.max(from));
        if until.since(from) < STEADY {
            continue;
        }
        let of_host = ended.flows.iter().filter(|flow| flow.from == host || flow.to == host);
        if !of_host.map(|flow| [flow.from, flow.to]).all(is_relayed) {
            continue;
        }
        let Some(probes) = ended.probes.get(host.index()) else { continue };
        // One that learns something new, as another port of a peer's, searches once more; without an end is what goes on.
        let mut went_on = false;
        let mut begin = from;
        while begin + STEADY <= until {
            let window = begin..begin + STEADY;
            let sent: Vec<_> = probes.iter().filter(|(at, _)| window.contains(at)).map(|(_, to)| *to).collect();
            let addresses: BTreeSet<_> = sent.iter().collect();
            let is_many = sent.len() > PROBES * addresses.len();
            let text = (is_many && went_on).then(|| {
                format!("host {} again sent {} probes to {} addresses in a minute", host.0, sent.len(), addresses.len())
            });
            went_on = is_many;
            tally.note(CheckId::N3, begin + STEADY, text);
            begin += STEADY;
        }
    }
}

/// The way that two hosts settled on; one that is found late in the window counts from then on.
fn check_best(
    ended: &Ended<'_>,
    ways: &[(Instant, PathIs)],
    pair: [HostId; 2],
    (from, until): (Instant, Instant),
    tally: &mut Tally,
) {
    let lasting = |flow: &&Flow| pair.contains(&flow.from) && pair.contains(&flow.to);
    let Some(last) =
        ended.flows.iter().filter(lasting).filter_map(|flow| flow.samples.last()).map(|last| last.sent).max()
    else {
        return;
    };
    let changed = ways.iter().map(|(at, _)| *at).filter(|at| *at <= last).max().unwrap_or(Instant::ZERO);
    let from = from.max(changed + SETTLED_AFTER);
    if let Some(best) = (ended.best)(pair) {
        best::check(ended.flows, pair, (from, until), way_at(ways, last), best, tally);
    }
}

fn check_connected(ended: &Ended<'_>, pair: [HostId; 2], quiet: Option<(Instant, Instant)>, tally: &mut Tally) {
    let since = ended.end - LATELY;
    if quiet.is_none_or(|(from, until)| from > since || until < ended.end) {
        return;
    }
    for (one, other) in [(pair[0], pair[1]), (pair[1], pair[0])] {
        let messages = ended.flows.between(one, other);
        let mut sent = messages.iter().filter(|(sent, _)| (since..ended.end - IN_FLIGHT).contains(sent)).peekable();
        if sent.peek().is_none() {
            continue;
        }
        let none = sent.all(|(_, delivered)| *delivered == Instant::FAR_FUTURE);
        let text = none.then(|| format!("nothing of host {} reaches host {} at the end", one.0, other.0));
        tally.note(CheckId::L2, ended.end, text);
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::path::Selection;

    use super::*;
    use crate::check::traffic::asked_every_second;

    const A: HostId = HostId(0);
    const B: HostId = HostId(1);

    #[test]
    fn a_quiet_world_in_which_all_arrives_is_looked_at_and_fine() {
        let tally = run(|_| true, &[], Vec::new());
        assert_eq!(tally.violation(), None);
        assert!([CheckId::N1, CheckId::N2, CheckId::L2].iter().all(|id| tally.checked(*id) > 0));
    }

    #[test]
    fn what_is_lost_for_longer_than_three_seconds_is_seen_unless_something_happened() {
        assert_eq!(violated(|second| !(50..53).contains(&second), &[], Vec::new()), None);
        assert_eq!(violated(|second| !(50..55).contains(&second), &[], Vec::new()), Some(CheckId::N1));
        let event = vec![(secs(49), secs(50))];
        assert_eq!(violated(|second| !(50..55).contains(&second), &[], event.clone()), None);
        assert_eq!(violated(|second| !(90..95).contains(&second), &[], event), Some(CheckId::N1));
        assert_eq!(violated(|second| second > 25, &[], Vec::new()), None, "the beginning is no quiet time");
    }

    #[test]
    fn a_way_that_changes_again_and_again_is_seen() {
        let changes = |times: &[u64]| {
            let direct = Selection::Direct("192.0.2.1:1".parse().unwrap());
            let event = |at, host, peer, to| (secs(at), host, NodeEvent::PathChanged { peer, to });
            let mut events = vec![event(1, A, B, direct), event(1, B, A, direct)];
            for (number, at) in times.iter().enumerate() {
                let relay = Selection::Relay(mesh_core::derp::RegionId::new(1).unwrap());
                events.push(event(*at, A, B, if number % 2 == 0 { relay } else { direct }));
            }
            violated(|_| true, &events, Vec::new())
        };
        assert_eq!(changes(&[100, 110]), None);
        assert_eq!(changes(&[100, 110, 120]), Some(CheckId::N2));
        assert_eq!(changes(&[40, 110, 180]), None);
    }

    #[test]
    fn who_is_not_heard_at_the_end_is_seen() {
        let lost = |since, over| {
            let tally = run(|second| second < since, &[], vec![(secs(100), secs(over))]);
            (tally.checked(CheckId::L2), tally.violations())
        };
        assert_eq!(lost(200, 160), (2, 0));
        // The messages of the one who asks are lost; the other has none to answer. N1 sees it as well.
        assert_eq!(lost(150, 160), (1, 2));
        assert_eq!(lost(150, 170), (0, 0), "what happened is still felt");
    }

    #[test]
    fn a_host_that_probes_on_and_on_is_seen() {
        let relay = Selection::Relay(mesh_core::derp::RegionId::new(1).unwrap());
        let event = |host, peer| (secs(1), host, NodeEvent::PathChanged { peer, to: relay });
        let events = [event(A, B), event(B, A)];
        let looked_at = |every: u64| {
            let probes = (0..200).step_by(every as usize).map(|at| (secs(at), "192.0.2.1:1".parse().unwrap()));
            let probes = [probes.collect(), Vec::new()];
            let mut tally = Tally::default();
            let flows = asked_every_second(56, 200, |_| true);
            check(&Ended { probes: &probes, ..ended(&flows, &events, Vec::new()) }, &mut tally);
            (tally.checked(CheckId::N3), tally.violation().map(|violation| violation.id))
        };
        assert_eq!(looked_at(6), (4, None));
        assert_eq!(looked_at(4), (4, Some(CheckId::N3)));
    }

    #[test]
    fn whoever_came_while_the_other_heard_nothing_is_met_when_the_other_hears_again() {
        let flows = asked_every_second(56, 200, |_| true);
        let change = |begin, over, host, cuts| {
            let (begin, over, hosts, what) = (secs(begin), secs(over), vec![host], "a change".to_owned());
            Change { begin, over, hosts, budget: Duration::from_secs(15), cuts, what }
        };
        let met = |since: [u64; 2], changes: &[Change]| {
            let since = since.map(secs);
            let changes = changes.to_vec();
            met(&Ended { since: &since, changes, ..ended(&flows, &[], Vec::new()) }, [A, B])
        };
        assert_eq!(met([0, 50], &[]), Some(secs(80)));
        assert_eq!(met([0, 50], &[change(40, 41, A, true)]), Some(secs(190)), "two minutes, and then as any");
        assert_eq!(met([0, 50], &[change(40, 180, A, true)]), Some(secs(210)));
        for other in [change(40, 41, B, true), change(40, 41, A, false), change(51, 52, A, true)] {
            assert_eq!(met([0, 50], &[other]), Some(secs(80)), "it is of who came, is told, or is later");
        }
        assert_eq!(met([50, 0], &[change(40, 41, B, true)]), Some(secs(190)));
    }

    fn violated(
        arrives: impl Fn(u64) -> bool,
        events: &[(Instant, HostId, NodeEvent)],
        disturbed: Vec<(Instant, Instant)>,
    ) -> Option<CheckId> {
        run(arrives, events, disturbed).violation().map(|violation| violation.id)
    }

    fn run(
        arrives: impl Fn(u64) -> bool,
        events: &[(Instant, HostId, NodeEvent)],
        disturbed: Vec<(Instant, Instant)>,
    ) -> Tally {
        let mut tally = Tally::default();
        check(&ended(&asked_every_second(56, 200, arrives), events, disturbed), &mut tally);
        tally
    }

    fn ended<'r>(
        flows: &'r Flows,
        events: &'r [(Instant, HostId, NodeEvent)],
        disturbed: Vec<(Instant, Instant)>,
    ) -> Ended<'r> {
        let (probes, denied, since, changes) = (&[][..], Vec::new(), &[][..], Vec::new());
        let (end, best, is_static) = (secs(200), &|_| None, false);
        Ended { end, flows, events, probes, disturbed, denied, since, changes, best, is_static }
    }

    fn secs(secs: u64) -> Instant {
        Instant::from_secs(secs)
    }
}
