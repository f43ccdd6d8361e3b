//! N6: after a single change two nodes that spoke speak again, within the time that such a change may cost.
//!
//! A change counts when nothing else happened for [`ALONE`] before it and until its budget was over, and when the two
//! had been answering each other. Then a question that is asked after it is answered within the budget: both ways work.

use core::time::Duration;

use mesh_core::time::Instant;

use crate::host::HostId;

use super::{CheckId, Flows, Tally};

/// So long before a change nothing else may have happened.
const ALONE: Duration = Duration::from_secs(30);
/// So long before it the two had to be answering each other.
const BEFORE: Duration = Duration::from_secs(5);

/// Something that two nodes have to recover from.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// When it begins.
    pub(crate) begin: Instant,
    /// When it is over.
    pub(crate) over: Instant,
    /// Whom it is about; nobody is whoever is relayed.
    pub(crate) hosts: Vec<HostId>,
    /// How long it may be felt after it is over.
    pub(crate) budget: Duration,
    /// Whether their connections may be dead from its beginning on without their being told.
    pub(crate) cuts: bool,
    /// What it is.
    pub(crate) what: String,
}

/// Looks at two hosts; `disturbed` is when the scenario did something, and `is_relayed` whether they were at an instant.
pub(super) fn check(
    flows: &Flows,
    pair: [HostId; 2],
    changes: &[Change],
    disturbed: &[(Instant, Instant)],
    is_relayed: impl Fn(Instant) -> bool,
    tally: &mut Tally,
) {
    let of_pair = flows.iter().filter(|flow| pair.contains(&flow.from) && pair.contains(&flow.to));
    let samples: Vec<_> = of_pair.flat_map(|flow| &flow.samples).collect();
    for change in changes {
        let is_felt = match &change.hosts[..] {
            [] => is_relayed(change.begin),
            hosts => hosts.iter().any(|host| pair.contains(host)),
        };
        if !is_felt {
            continue;
        }
        let (begin, over, until) = (change.begin, change.over, change.over + change.budget);
        let alone = disturbed.iter().filter(|(at, end)| *end + ALONE > begin && *at < until).count() <= 1;
        if !alone {
            continue;
        }
        let spoke = samples.iter().any(|sample| (begin - BEFORE..begin).contains(&sample.answered));
        let asked = samples.iter().filter(|sample| (over..until).contains(&sample.sent));
        let is_asked_on = samples.iter().any(|sample| (until - Duration::from_secs(1)..until).contains(&sample.sent));
        if !spoke || !is_asked_on {
            continue;
        }
        let again = asked.map(|sample| sample.answered).min().unwrap_or(Instant::FAR_FUTURE);
        let text = (again > until).then(|| {
            let (one, other) = (pair[0].0, pair[1].0);
            format!("hosts {one} and {other} do not speak {:?} after this was over: {}", change.budget, change.what)
        });
        tally.note(CheckId::N6, until, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::traffic::asked_every_second;

    const PAIR: [HostId; 2] = [HostId(0), HostId(1)];

    #[test]
    fn who_does_not_speak_again_in_time_is_seen() {
        let back = |second| seen(|at| !(60..second).contains(&at), &[PAIR[0]], &[]);
        assert_eq!((back(72), back(76)), ((1, 0), (1, 1)));
    }

    #[test]
    fn changes_that_are_not_alone_and_those_of_others_are_not_looked_at() {
        let other = |at| seen(|_| false, &[PAIR[0]], &[(Instant::from_secs(at), Instant::from_secs(at))]);
        assert_eq!((other(40), other(70)), ((0, 0), (0, 0)));
        assert_eq!(seen(|_| true, &[HostId(7)], &[]), (0, 0));
        assert_eq!(seen(|_| false, &[PAIR[0]], &[]), (0, 0), "they never spoke");
        assert_eq!(seen(|_| true, &[], &[]), (1, 0), "they are relayed");
    }

    /// A change from 60 to 65 s that may be felt for 10 s.
    fn seen(arrives: impl Fn(u64) -> bool, hosts: &[HostId], others: &[(Instant, Instant)]) -> (u64, u64) {
        let (begin, over) = (Instant::from_secs(60), Instant::from_secs(65));
        let budget = Duration::from_secs(10);
        let change = Change { begin, over, hosts: hosts.to_vec(), budget, cuts: false, what: "a change".to_owned() };
        let disturbed: Vec<_> = others.iter().copied().chain([(begin, over)]).collect();
        let mut tally = Tally::default();
        check(&asked_every_second(56, 100, arrives), PAIR, &[change], &disturbed, |_| true, &mut tally);
        (tally.checked(CheckId::N6), tally.violations())
    }
}
