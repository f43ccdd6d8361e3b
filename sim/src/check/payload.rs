//! N4 and N8: where there is a way at all, payload takes it, large packets like small ones.
//!
//! Both look at spells of [`SPELL`] in which nothing that a scenario did is felt, and in which somebody says something: of
//! all that is said, something arrives. N8 is about full packets of 1280 bytes. A relay over TCP is a way; in worlds of
//! static peers there is one where one end can be reached by everybody and the other knows where it is.

use core::time::Duration;

use mesh_core::time::Instant;

use crate::host::{HostId, message::MAX_BYTES};

use super::{CheckId, Flows, Tally};

/// How long is looked at once.
const SPELL: Duration = Duration::from_secs(10);
/// When a pair has to have spoken for some time, it began within so long.
const BEGINNING: Duration = Duration::from_secs(5);
/// Messages of one direction in a spell that are enough to say something.
const MESSAGES: usize = 5;

/// Looks at what two hosts said in a time in which it should have arrived, once they had spoken for `lead`.
pub(super) fn check(
    flows: &Flows,
    pair: [HostId; 2],
    (from, until): (Instant, Instant),
    lead: Duration,
    tally: &mut Tally,
) {
    let mut begin = from;
    while begin + SPELL <= until {
        let spell = begin..begin + SPELL;
        for (id, is_large) in [(CheckId::N4, false), (CheckId::N8, true)] {
            for (one, other) in [(pair[0], pair[1]), (pair[1], pair[0])] {
                let messages =
                    if is_large { flows.between_of(one, other, MAX_BYTES) } else { flows.between(one, other) };
                let sent: Vec<_> = messages.iter().filter(|(sent, _)| spell.contains(sent)).collect();
                let beginning = begin - lead..begin - lead + BEGINNING;
                let is_late = begin >= Instant::ZERO + lead;
                let has_led = lead.is_zero() || is_late && messages.iter().any(|(sent, _)| beginning.contains(sent));
                if sent.len() < MESSAGES || !has_led {
                    continue;
                }
                let none = sent.iter().all(|(_, delivered)| *delivered == Instant::FAR_FUTURE);
                let what = if is_large { "full packets" } else { "messages" };
                let text = none.then(|| {
                    format!("none of {} {what} of host {} reached host {} from {begin} on", sent.len(), one.0, other.0)
                });
                tally.note(id, spell.end, text);
            }
        }
        begin += SPELL;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::traffic::{asked_and_answered, asked_every_second};

    const PAIR: [HostId; 2] = [HostId(0), HostId(1)];

    #[test]
    fn a_spell_in_which_nothing_arrives_is_seen() {
        // Of the answers there are too few to say something.
        assert_eq!(seen(56, |second| second % 9 == 0), (8, None));
        // Ten seconds of questions, and of no answers.
        assert_eq!(seen(56, |second| !(40..50).contains(&second)), (15, Some(CheckId::N4)));
    }

    #[test]
    fn full_packets_that_vanish_are_seen() {
        assert_eq!(seen(MAX_BYTES, |_| true), (32, None));
        let (flows, mut tally) = (asked_every_second(MAX_BYTES, 100, |_| false), Tally::default());
        check(&flows, PAIR, (Instant::from_secs(20), Instant::from_secs(30)), Duration::ZERO, &mut tally);
        assert_eq!((tally.checked(CheckId::N8), tally.violations()), (1, 2));
    }

    #[test]
    fn small_answers_are_no_full_packets() {
        let (flows, mut tally) = (asked_and_answered(MAX_BYTES, 56, 100, |_| true), Tally::default());
        check(&flows, PAIR, (Instant::from_secs(20), Instant::from_secs(30)), Duration::ZERO, &mut tally);
        assert_eq!((tally.checked(CheckId::N8), tally.checked(CheckId::N4)), (1, 2));
    }

    #[test]
    fn who_has_just_begun_to_speak_is_not_looked_at_where_a_session_may_be_stale() {
        let seen = |first| {
            let (flows, mut tally) = (asked_every_second(56, 50, |second| second >= first), Tally::default());
            let (lead, window) = (Duration::from_secs(20), (Instant::ZERO, Instant::from_secs(50)));
            check(&flows, PAIR, window, lead, &mut tally);
            (tally.checked(CheckId::N4), tally.violations())
        };
        assert_eq!((seen(20), seen(29), seen(30)), ((4, 0), (3, 0), (3, 1)), "the third ten seconds have a lead");
    }

    fn seen(bytes: usize, arrives: impl Fn(u64) -> bool) -> (u64, Option<CheckId>) {
        let (flows, mut tally) = (asked_every_second(bytes, 100, arrives), Tally::default());
        check(&flows, PAIR, (Instant::from_secs(20), Instant::from_secs(100)), Duration::ZERO, &mut tally);
        let looked_at = tally.checked(CheckId::N4) + tally.checked(CheckId::N8);
        (looked_at, tally.violation().map(|violation| violation.id))
    }
}
