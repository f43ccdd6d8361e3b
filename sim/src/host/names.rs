//! What a host asks a resolver: names, for both families, asked again after a second, three times.

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use std::collections::{BTreeMap, VecDeque};

use mesh_core::{machine::Deadline, time::Instant};

use super::dns::{Answer, Kind, Question, Rcode};

/// From question to question.
const AGAIN: Duration = Duration::from_secs(1);

/// Questions about one name and family.
const TRIES: u32 = 3;

/// Questions under way at most. At the bound nothing more is asked, and the name counts as unknown.
const LOOKUPS: usize = 256;

/// Names a question under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lookup(u16);

/// What a host asks a resolver.
#[derive(Debug)]
pub struct Names {
    resolver: Option<SocketAddr>,
    lookups: BTreeMap<Lookup, State>,
    next: u16,
    outputs: VecDeque<(SocketAddr, Vec<u8>)>,
}

#[derive(Debug)]
struct State {
    name: String,
    addresses: Vec<IpAddr>,
    /// The families that are not answered yet, and how often each was asked.
    open: BTreeMap<Kind, u32>,
    again_at: Instant,
}

impl Names {
    /// A host that asks this resolver, or has none to ask.
    #[must_use]
    pub fn new(resolver: Option<SocketAddr>) -> Self {
        Self { resolver, lookups: BTreeMap::new(), next: 0, outputs: VecDeque::new() }
    }

    /// Asks for a name; `None` when that cannot be.
    pub fn ask(&mut self, name: &str, now: Instant) -> Option<Lookup> {
        self.resolver?;
        if self.lookups.len() >= LOOKUPS {
            return None;
        }
        self.next = self.next.wrapping_add(2);
        let lookup = Lookup(self.next);
        let open = BTreeMap::from([(Kind::A, 0), (Kind::Aaaa, 0)]);
        let state = State { name: name.to_owned(), addresses: Vec::new(), open, again_at: now };
        self.lookups.insert(lookup, state);
        self.send(lookup, now);
        Some(lookup)
    }

    /// The addresses, once both families are answered or given up; the question is over then. None are an empty list.
    pub fn answer(&mut self, lookup: Lookup) -> Option<Vec<IpAddr>> {
        self.lookups.get(&lookup).filter(|state| state.open.is_empty())?;
        self.lookups.remove(&lookup).map(|state| state.addresses)
    }

    /// A datagram came from `from`.
    pub fn handle_datagram(&mut self, from: SocketAddr, payload: &[u8]) {
        if self.resolver != Some(from) {
            return;
        }
        let Some(Answer { id, rcode, addresses }) = Answer::parse(payload) else { return };
        let kind = if id % 2 == 0 { Kind::A } else { Kind::Aaaa };
        let Some(state) = self.lookups.get_mut(&Lookup(id & !1)) else { return };
        match rcode {
            Rcode::Ok | Rcode::NoName => {
                if state.open.remove(&kind).is_some() {
                    state.addresses.extend(addresses);
                    state.addresses.sort_unstable();
                }
            }
            // The next question may have more luck.
            Rcode::Failed => {}
        }
    }

    /// Lets due timers act.
    pub fn handle_timeout(&mut self, now: Instant) {
        let due: Vec<_> =
            self.lookups.iter().filter(|(_, s)| s.again_at <= now && !s.open.is_empty()).map(|(l, _)| *l).collect();
        for lookup in due {
            self.send(lookup, now);
        }
    }

    /// When [`Self::handle_timeout`] is wanted next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let waiting = self.lookups.values().filter(|state| !state.open.is_empty());
        waiting.map(|state| Deadline::new(state.again_at, "name")).min()
    }

    /// Whether there is nothing to do, now or later.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.lookups.is_empty() && self.outputs.is_empty()
    }

    /// The next datagram to send.
    pub fn poll_output(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.outputs.pop_front()
    }

    fn send(&mut self, lookup: Lookup, now: Instant) {
        let (Some(resolver), Some(state)) = (self.resolver, self.lookups.get_mut(&lookup)) else { return };
        state.again_at = now + AGAIN;
        state.open.retain(|_, tries| *tries < TRIES);
        for (kind, tries) in &mut state.open {
            *tries += 1;
            let id = lookup.0 | u16::from(*kind == Kind::Aaaa);
            let question = Question { id, name: state.name.clone(), kind: *kind };
            self.outputs.extend(question.emit().map(|payload| (resolver, payload)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_are_asked_for_and_an_answer_ends_it() {
        let mut names = names();
        let lookup = names.ask("relay.example", Instant::ZERO).unwrap();
        for address in ["192.0.2.1", "2001:db8::1"] {
            assert_eq!(names.answer(lookup), None);
            let (to, question) = names.poll_output().unwrap();
            let question = Question::parse(&question).unwrap();
            let answer = question.answer(Rcode::Ok, &[address.parse().unwrap()]).unwrap();
            names.handle_datagram("192.0.2.9:53".parse().unwrap(), &answer);
            names.handle_datagram(to, &answer);
            names.handle_datagram(to, &answer);
        }
        assert_eq!(names.answer(lookup).map(|addresses| addresses.len()), Some(2));
        assert_eq!(names.answer(lookup), None);
    }

    #[test]
    fn silence_is_given_up_after_three_questions() {
        let mut names = names();
        let lookup = names.ask("relay.example", Instant::ZERO).unwrap();
        let mut asked = 0;
        while let Some(deadline) = names.poll_timeout() {
            asked += core::iter::from_fn(|| names.poll_output()).count();
            assert_eq!(names.answer(lookup), None);
            names.handle_timeout(deadline.at);
        }
        assert_eq!((asked, names.answer(lookup)), (6, Some(Vec::new())));
        assert_eq!(Names::new(None).ask("relay.example", Instant::ZERO), None);
    }

    fn names() -> Names {
        Names::new(Some("192.0.2.53:53".parse().unwrap()))
    }
}
