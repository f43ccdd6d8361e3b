//! Who may connect: what is known, what must be asked, and what an answer means.
//!
//! Fails closed: when nobody can be asked, a node gets in only if it was let in a short while ago.

use std::collections::BTreeMap;

use mesh_core::{key::NodePublic, time::Instant};

use crate::limits;

/// Who may connect at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Everybody.
    Open,
    /// Nodes that the control server knows.
    Ask,
}

/// What came of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Yes.
    Allowed,
    /// No.
    Refused,
    /// Somebody answered, but neither yes nor no: an error, or something else than a verdict.
    Unclear,
    /// Nobody answered.
    Unreachable,
}

/// What to do with a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let it in.
    Allow,
    /// Close it.
    Refuse,
    /// Ask.
    Ask,
}

/// Remembers verdicts.
#[derive(Debug)]
pub struct Admissions {
    policy: Policy,
    known: BTreeMap<NodePublic, Known>,
    /// Those who may, by [`Known::turn`]: the first was asked for longest ago.
    allowed: BTreeMap<u64, NodePublic>,
    /// Those who may not, apart: anybody can make keys to be refused, and none of them is to push out a yes.
    refused: BTreeMap<u64, NodePublic>,
    next_turn: u64,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    allowed: bool,
    at: Instant,
    turn: u64,
}

impl Admissions {
    /// Nothing known yet.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self { policy, known: BTreeMap::new(), allowed: BTreeMap::new(), refused: BTreeMap::new(), next_turn: 0 }
    }

    /// What is known about a node.
    #[must_use]
    pub fn verdict(&self, node: &NodePublic, now: Instant) -> Verdict {
        if self.policy == Policy::Open {
            return Verdict::Allow;
        }
        match self.known.get(node) {
            Some(known) if known.allowed && now.since(known.at) < limits::ALLOWED_FOR => Verdict::Allow,
            Some(known) if !known.allowed && now.since(known.at) < limits::REFUSED_FOR => Verdict::Refuse,
            Some(_) | None => Verdict::Ask,
        }
    }

    /// Takes in what came of asking; says whether the node may connect.
    pub fn handle_admission(&mut self, node: NodePublic, admission: Admission, now: Instant) -> bool {
        let allowed = match admission {
            Admission::Allowed => true,
            Admission::Refused => false,
            // derper refuses as well. What was known stays, for when nobody answers.
            Admission::Unclear => return false,
            // Not remembered: the next one asks again.
            Admission::Unreachable => {
                let known = self.known.get(&node);
                return known.is_some_and(|k| k.allowed && now.since(k.at) < limits::ALLOWED_WHILE_AWAY);
            }
        };
        let turn = self.next_turn;
        self.next_turn += 1;
        if let Some(before) = self.known.insert(node, Known { allowed, at: now, turn }) {
            self.order(before.allowed).0.remove(&before.turn);
        }
        let (order, most) = self.order(allowed);
        order.insert(turn, node);
        if order.len() > most
            && let Some((_, oldest)) = order.pop_first()
        {
            self.known.remove(&oldest);
        }
        allowed
    }

    /// Verdicts of one kind in their order, and how many are remembered.
    fn order(&mut self, allowed: bool) -> (&mut BTreeMap<u64, NodePublic>, usize) {
        if allowed { (&mut self.allowed, limits::VERDICTS) } else { (&mut self.refused, limits::REFUSALS) }
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;

    const NODE: NodePublic = NodePublic::from_bytes([1; 32]);
    const START: Instant = Instant::from_secs(1000);

    #[test]
    fn a_yes_holds_ten_minutes_and_a_no_ten_seconds() {
        let mut admissions = Admissions::new(Policy::Ask);
        assert_eq!(admissions.verdict(&NODE, START), Verdict::Ask);
        assert!(admissions.handle_admission(NODE, Admission::Allowed, START));
        assert_eq!(admissions.verdict(&NODE, START + Duration::from_secs(599)), Verdict::Allow);
        assert_eq!(admissions.verdict(&NODE, START + Duration::from_secs(600)), Verdict::Ask);

        assert!(!admissions.handle_admission(NODE, Admission::Refused, START));
        assert_eq!(admissions.verdict(&NODE, START + Duration::from_secs(9)), Verdict::Refuse);
        assert_eq!(admissions.verdict(&NODE, START + Duration::from_secs(10)), Verdict::Ask);
    }

    #[test]
    fn while_nobody_answers_only_those_who_were_in_get_in() {
        let mut admissions = Admissions::new(Policy::Ask);
        assert!(!admissions.handle_admission(NODE, Admission::Unreachable, START));
        admissions.handle_admission(NODE, Admission::Allowed, START);
        let hours = |hours: u64| START + Duration::from_secs(hours * 3600);
        assert!(admissions.handle_admission(NODE, Admission::Unreachable, hours(23)));
        assert!(!admissions.handle_admission(NODE, Admission::Unreachable, hours(24)));
        admissions.handle_admission(NODE, Admission::Refused, START);
        assert!(!admissions.handle_admission(NODE, Admission::Unreachable, hours(1)));
    }

    #[test]
    fn an_error_for_an_answer_refuses_and_changes_nothing() {
        let mut admissions = Admissions::new(Policy::Ask);
        admissions.handle_admission(NODE, Admission::Allowed, START);
        let later = START + limits::ALLOWED_FOR;
        assert!(!admissions.handle_admission(NODE, Admission::Unclear, later));
        assert_eq!(admissions.verdict(&NODE, later), Verdict::Ask);
        assert!(admissions.handle_admission(NODE, Admission::Unreachable, later));
    }

    #[test]
    fn an_open_relay_asks_nobody() {
        assert_eq!(Admissions::new(Policy::Open).verdict(&NODE, START), Verdict::Allow);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut admissions = Admissions::new(Policy::Ask);
        // The first is asked for again, so the second is the oldest.
        for number in [0, 1, 0].into_iter().chain(2..=limits::VERDICTS as u64) {
            admissions.handle_admission(key(number), Admission::Allowed, START);
        }
        assert_eq!(admissions.known.len(), limits::VERDICTS);
        assert_eq!(admissions.verdict(&key(0), START), Verdict::Allow);
        assert_eq!(admissions.verdict(&key(1), START), Verdict::Ask);
    }

    #[test]
    fn refusals_push_out_nobody_who_may_connect() {
        let mut admissions = Admissions::new(Policy::Ask);
        admissions.handle_admission(NODE, Admission::Allowed, START);
        for number in 0..=limits::VERDICTS as u64 {
            admissions.handle_admission(key(number), Admission::Refused, START);
        }
        assert_eq!(admissions.known.len(), limits::REFUSALS + 1);
        assert_eq!(admissions.verdict(&key(0), START), Verdict::Ask);
        assert_eq!(admissions.verdict(&key(limits::VERDICTS as u64), START), Verdict::Refuse);
        assert_eq!(admissions.verdict(&NODE, START), Verdict::Allow);
        // Who may no longer leaves no trace among those who may.
        admissions.handle_admission(NODE, Admission::Refused, START);
        assert!(admissions.allowed.is_empty());
        assert_eq!((admissions.known.len(), admissions.refused.len()), (limits::REFUSALS, limits::REFUSALS));
    }

    fn key(number: u64) -> NodePublic {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_be_bytes());
        NodePublic::from_bytes(key)
    }
}
