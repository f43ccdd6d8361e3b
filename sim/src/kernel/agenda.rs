//! What happens next.
//!
//! A total order: time first, then class, then the number of the insertion. Nothing else decides, so two runs
//! that put in the same things take out the same things. A binary heap of small keys in front of a slab: what
//! is sifted is 32 bytes whatever the payload weighs.

use std::{cmp::Reverse, collections::BinaryHeap};

use mesh_core::time::Instant;

/// Which of two things at the same instant goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Faults come first: a link that goes down at 10 s carries nothing at 10 s.
    Fault,
    /// Packets that arrive.
    Packet,
    /// Timers of machines, after the packets that may have moved them.
    Timer,
    /// Applications.
    App,
}

/// What happens next, ordered by time, class and insertion.
#[derive(Debug)]
pub struct Agenda<E> {
    heap: BinaryHeap<Reverse<Key>>,
    slots: Vec<Option<E>>,
    free: Vec<u32>,
    inserted: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    at: Instant,
    class: Class,
    sequence: u64,
    slot: u32,
}

impl<E> Agenda<E> {
    /// Nothing is planned.
    #[must_use]
    pub const fn new() -> Self {
        Self { heap: BinaryHeap::new(), slots: Vec::new(), free: Vec::new(), inserted: 0 }
    }

    /// Plans `event` for `at`.
    ///
    /// # Panics
    /// When more than `u32::MAX` events are planned at once.
    pub fn insert(&mut self, at: Instant, class: Class, event: E) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(event);
                slot
            }
            None => {
                self.slots.push(Some(event));
                u32::try_from(self.slots.len() - 1).expect("memory ends long before u32::MAX planned events")
            }
        };
        self.heap.push(Reverse(Key { at, class, sequence: self.inserted, slot }));
        self.inserted += 1;
    }

    /// When the next thing happens.
    #[must_use]
    pub fn next_at(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse(key)| key.at)
    }

    /// Takes out what happens next.
    pub fn pop(&mut self) -> Option<(Instant, E)> {
        let Reverse(key) = self.heap.pop()?;
        let event = self.slots[key.slot as usize].take()?;
        self.free.push(key.slot);
        Some((key.at, event))
    }

    /// Everything that is planned, in no useful order: for counting.
    pub fn iter(&self) -> impl Iterator<Item = &E> {
        self.slots.iter().flatten()
    }
}

impl<E> Default for Agenda<E> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_decides_then_class_then_insertion() {
        let mut agenda = Agenda::new();
        let (one, two) = (Instant::from_secs(1), Instant::from_secs(2));
        agenda.insert(two, Class::Fault, "late");
        agenda.insert(one, Class::App, "app");
        agenda.insert(one, Class::Packet, "first packet");
        agenda.insert(one, Class::Packet, "second packet");
        agenda.insert(one, Class::Fault, "fault");
        let order: Vec<_> = core::iter::from_fn(|| agenda.pop()).map(|(_, event)| event).collect();
        assert_eq!(order, ["fault", "first packet", "second packet", "app", "late"]);
    }

    #[test]
    fn slots_are_used_again() {
        let mut agenda = Agenda::new();
        for round in 0..100 {
            agenda.insert(Instant::from_secs(round), Class::App, round);
            assert_eq!(agenda.pop(), Some((Instant::from_secs(round), round)));
        }
        assert_eq!((agenda.slots.len(), agenda.iter().count()), (1, 0));
    }
}
