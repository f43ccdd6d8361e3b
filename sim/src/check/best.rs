//! N5: the way that two nodes speak is about the best that there is.
//!
//! What a way could take is known from the links and regions between the ends; what it does take is the fastest answer of
//! many. A direct way is held to what is between the ends: neighbours that send round over their router are seen.
//! A relayed one is held to the relays that may be home to each end, where packets for it go. As with stock nodes a direct
//! way is taken even where a relay would be faster, and a home is not left for one that is little nearer.

use core::time::Duration;

use mesh_core::time::Instant;

use crate::host::HostId;

use super::{CheckId, Flows, PathIs, Tally};

/// Answers that are enough to say something.
const ANSWERS: usize = 20;
/// Bytes of messages that are looked at: larger ones take their time on slow links.
const SMALL: usize = 100;
/// How much longer a way may take: by a fifth, and by this.
const SLACK: Duration = Duration::from_millis(5);
/// How much farther than the nearest relay a home may be: by half, and by this. Stock nodes leave a home for one that takes
/// less than two thirds of its time, and 10 ms less; by as much again may be wrong what they measure.
const FARTHER: Duration = Duration::from_millis(20);

/// What a round trip between two hosts takes at best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Best {
    /// Directly.
    pub(crate) direct: Duration,
    /// Over relays, if there are any, where homes are the farthest that they may be.
    pub(crate) relayed: Option<Duration>,
}

/// Whether a relay with this round trip may be home where the nearest takes `nearest`.
pub(crate) fn is_near(round_trip: Duration, nearest: Duration) -> bool {
    round_trip <= nearest * 3 / 2 || round_trip <= nearest + FARTHER
}

/// Looks at two hosts that spoke in one way from `from` to `until`.
pub(super) fn check(
    flows: &Flows,
    pair: [HostId; 2],
    (from, until): (Instant, Instant),
    is: PathIs,
    best: Best,
    tally: &mut Tally,
) {
    let of_pair = flows.iter().filter(|flow| pair.contains(&flow.from) && pair.contains(&flow.to));
    let small = of_pair.filter(|flow| flow.bytes.max(flow.answer_bytes) <= SMALL);
    let samples = small.flat_map(|flow| &flow.samples).filter(|sample| (from..until).contains(&sample.sent));
    let answered = samples.filter(|sample| sample.answered != Instant::FAR_FUTURE);
    let took: Vec<_> = answered.map(|sample| sample.answered.since(sample.sent)).collect();
    let Some(fastest) = took.iter().min().filter(|_| took.len() >= ANSWERS) else { return };
    let best = match (is, best.relayed) {
        (PathIs::Direct, _) => best.direct,
        (PathIs::Relay, Some(relayed)) => relayed,
        (PathIs::Relay, None) | (PathIs::None, _) => return,
    };
    let text = (*fastest > best * 6 / 5 + SLACK).then(|| {
        let (one, other) = (pair[0].0, pair[1].0);
        format!("hosts {one} and {other} take {fastest:?} {} where {best:?} would do", is.name())
    });
    tally.note(CheckId::N5, until, text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::traffic::asked_every_second,
        host::{
            Over,
            message::{Carrier, Message, Role},
        },
    };

    const PAIR: [HostId; 2] = [HostId(0), HostId(1)];

    #[test]
    fn a_detour_is_seen() {
        let took = |millis, is| {
            let mut flows = asked_every_second(56, 0, |_| true);
            for second in 0..30 {
                answer(&mut flows, second, millis);
            }
            let best = Best { direct: Duration::from_millis(20), relayed: Some(Duration::from_millis(60)) };
            let mut tally = Tally::default();
            check(&flows, PAIR, (Instant::ZERO, Instant::from_secs(40)), is, best, &mut tally);
            (tally.checked(CheckId::N5), tally.violations())
        };
        assert_eq!((took(29, PathIs::Direct), took(30, PathIs::Direct)), ((1, 0), (1, 1)));
        assert_eq!((took(77, PathIs::Relay), took(78, PathIs::Relay)), ((1, 0), (1, 1)));
        assert_eq!(took(121, PathIs::None), (0, 0));
    }

    #[test]
    fn a_home_may_be_as_far_as_nodes_stay_at_one() {
        let is = |round_trip, nearest| is_near(Duration::from_millis(round_trip), Duration::from_millis(nearest));
        assert_eq!((is(1, 1), is(21, 1), is(22, 1)), (true, true, false));
        assert_eq!((is(150, 100), is(151, 100)), (true, false));
    }

    fn answer(flows: &mut Flows, second: u64, millis: u64) {
        let sent = Instant::from_secs(second);
        let sequence = flows.note_sent(0, sent);
        let question =
            Message { flow: 0, sequence, role: Role::Question, carrier: Carrier::Udp, bytes: 56, answer_bytes: 56 };
        flows.note_delivered(&question, PAIR[1], Over::Udp, sent).unwrap();
        let answer = Message { role: Role::Answer, ..question };
        flows.note_delivered(&answer, PAIR[0], Over::Udp, sent + Duration::from_millis(millis)).unwrap();
    }
}
