//! The door: how many connections there may be at once, and how many of them from one source.
//!
//! A connection costs little once its client has proved a key and was let in, and nobody can have many of those without
//! many admitted keys. Before that it costs a TLS handshake and a few curve operations, and anybody can ask for one. So
//! what is not greeted yet is counted apart, with narrower bounds. At each bound the newcomer is turned away, counted.
//!
//! Only where the door is full of many sources, somebody who stands in it makes room instead: the one who has stood there
//! longest of the source that has most there, unless that is the newcomer's own. Who proves a key at once is through the
//! door before its turn comes, however many others are held open there.
//!
//! A source is an IPv4 address or an IPv6 network of 64 bits, which is what one customer has.

use core::{
    cmp::Reverse,
    fmt,
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    task::{Poll, Waker},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use mesh_core::ip::source;

use crate::{hub::Hub, limits, stats::CloseReason};

/// Who is in, and who stands in the door.
#[derive(Debug)]
pub struct Gate {
    /// Connections at once.
    room: usize,
    connections: usize,
    ungreeted: usize,
    sources: BTreeMap<IpAddr, Source>,
    /// Sources that have somebody in the door: by how many, and among equals by who came first.
    crowds: BTreeMap<Rank, IpAddr>,
    /// Those that had to make room.
    displaced: u64,
    last: u64,
}

/// How many, and the first of them.
type Rank = (usize, Reverse<u64>);

#[derive(Debug, Default)]
struct Source {
    connections: usize,
    /// Of them, those that have not proved a key yet, in the order in which they came.
    door: BTreeMap<u64, Arc<Place>>,
}

impl Source {
    fn rank(&self) -> Option<Rank> {
        self.door.first_key_value().map(|(first, _)| (self.door.len(), Reverse(*first)))
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new(limits::CONNECTIONS)
    }
}

impl Gate {
    /// A gate for so many connections at once, and [`limits::CONNECTIONS`] at most. Half of them may stand in the door.
    #[must_use]
    pub fn new(room: usize) -> Self {
        Self {
            room: room.min(limits::CONNECTIONS),
            connections: 0,
            ungreeted: 0,
            sources: BTreeMap::new(),
            crowds: BTreeMap::new(),
            displaced: 0,
            last: 0,
        }
    }

    /// Takes a connection in, unless there are too many.
    ///
    /// # Errors
    /// Which bound it met.
    pub fn enter(&mut self, from: IpAddr) -> Result<Arc<Place>, CloseReason> {
        let source = source(from);
        let (connections, standing) =
            self.sources.get(&source).map_or((0, 0), |source| (source.connections, source.door.len()));
        if self.connections >= self.room {
            return Err(CloseReason::Full);
        }
        // Where files are few: all clients of a small relay may be behind one address, but must not take all places.
        if connections >= limits::CONNECTIONS_OF_SOURCE.min(self.room / 4).max(1)
            || standing >= limits::UNGREETED_OF_SOURCE
        {
            return Err(CloseReason::SourceFull);
        }
        if self.ungreeted >= limits::UNGREETED.min(self.room / 2).max(1) {
            self.make_room(standing)?;
        }
        self.last += 1;
        self.connections += 1;
        self.ungreeted += 1;
        let place =
            Arc::new(Place { source, number: self.last, lost: AtomicBool::new(false), waker: Mutex::default() });
        self.change(source, |source| {
            source.connections += 1;
            source.door.insert(place.number, Arc::clone(&place));
        });
        Ok(place)
    }

    /// The connection that has this place proved its key and was let in.
    pub fn note_greeted(&mut self, place: &Place) {
        if self.change(place.source, |source| source.door.remove(&place.number)).is_some() {
            self.ungreeted -= 1;
        }
    }

    /// The connection that has this place ended.
    pub fn leave(&mut self, place: &Place) {
        self.note_greeted(place);
        self.connections = self.connections.saturating_sub(1);
        self.change(place.source, |source| source.connections = source.connections.saturating_sub(1));
        if self.sources.get(&place.source).is_some_and(|source| source.connections == 0) {
            self.sources.remove(&place.source);
        }
    }

    /// Connections, and those of them that are not greeted.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.connections, self.ungreeted)
    }

    /// How many had to make room in the door so far.
    #[must_use]
    pub fn displaced(&self) -> u64 {
        self.displaced
    }

    /// Has one leave the door for a newcomer of a source that has `standing` there.
    fn make_room(&mut self, standing: usize) -> Result<(), CloseReason> {
        let (&(most, _), &crowd) = self.crowds.last_key_value().ok_or(CloseReason::Crowded)?;
        if most <= standing {
            return Err(CloseReason::Crowded);
        }
        if let Some((_, place)) = self.change(crowd, |source| source.door.pop_first()) {
            self.ungreeted -= 1;
            self.displaced += 1;
            place.lose();
        }
        Ok(())
    }

    /// Changes what is known of a source, and where it stands among the others.
    fn change<T>(&mut self, address: IpAddr, change: impl FnOnce(&mut Source) -> T) -> T {
        let source = self.sources.entry(address).or_default();
        let before = source.rank();
        let changed = change(source);
        let after = source.rank();
        if before != after {
            if let Some(before) = before {
                self.crowds.remove(&before);
            }
            if let Some(after) = after {
                self.crowds.insert(after, address);
            }
        }
        changed
    }
}

/// A place in the door, for as long as the connection lasts.
pub struct Place {
    source: IpAddr,
    number: u64,
    lost: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Place {
    /// Waits until the place is needed for another: the connection is to be closed. Never, once its client was let in.
    pub fn lost(self: &Arc<Self>) -> impl Future<Output = ()> + Send + use<> {
        let place = Arc::clone(self);
        let mut known: Option<Waker> = None;
        // Waited for beside everything else that a connection does: one look at a flag.
        poll_fn(move |context| {
            if known.as_ref().is_none_or(|known| !known.will_wake(context.waker())) {
                known = Some(context.waker().clone());
                *place.waker.lock().unwrap_or_else(PoisonError::into_inner) = known.clone();
            }
            if place.lost.load(SeqCst) { Poll::Ready(()) } else { Poll::Pending }
        })
    }

    fn lose(&self) {
        self.lost.store(true, SeqCst);
        if let Some(waker) = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take() {
            waker.wake();
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({}, {})", self.source, self.number)
    }
}

/// A connection's place; it is free again when this is dropped.
pub struct Pass {
    hub: Arc<Hub>,
    from: SocketAddr,
    place: Arc<Place>,
}

impl Pass {
    /// A place for a connection that was just accepted.
    ///
    /// # Errors
    /// Which bound it met, counted.
    pub fn new(hub: Arc<Hub>, from: SocketAddr) -> Result<Self, CloseReason> {
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let entered = hub.gate().enter(from.ip());
        match entered {
            Ok(place) => Ok(Self { hub, from, place }),
            Err(reason) => {
                hub.stats.note_close(reason);
                Err(reason)
            }
        }
    }

    /// The relay that it is a place at.
    #[must_use]
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Where the connection comes from; an IPv4 address is one, whatever socket took it.
    #[must_use]
    pub fn from(&self) -> SocketAddr {
        self.from
    }

    /// Its place in the door.
    #[must_use]
    pub fn place(&self) -> &Arc<Place> {
        &self.place
    }

    /// The client proved its key and was let in.
    pub fn note_greeted(&mut self) {
        self.hub.gate().note_greeted(&self.place);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.hub.gate().leave(&self.place);
    }
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pass({})", self.from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_takes_no_more_than_its_share_of_the_door() {
        let mut gate = Gate::default();
        let first = gate.enter(address(1)).unwrap();
        for _ in 1..limits::UNGREETED_OF_SOURCE {
            gate.enter(address(1)).unwrap();
        }
        assert_eq!(refused(&mut gate, 1), Some(CloseReason::SourceFull));
        assert_eq!(refused(&mut gate, 2), None);
        gate.note_greeted(&first);
        assert_eq!(refused(&mut gate, 1), None);
    }

    #[test]
    fn who_fills_the_door_from_many_sources_keeps_nobody_out() {
        let mut gate = Gate::default();
        let greeted = gate.enter(address(0)).unwrap();
        gate.note_greeted(&greeted);
        let share = limits::UNGREETED_OF_SOURCE;
        let standing: Vec<_> =
            (0..limits::UNGREETED).map(|number| gate.enter(address(1 + (number / share) as u32)).unwrap()).collect();
        let honest = gate.enter(address(u32::MAX)).unwrap();
        assert!(is_lost(&standing[0]), "the first of the first of the largest crowds");
        assert!(standing[1..].iter().all(|place| !is_lost(place)) && !is_lost(&greeted));
        assert_eq!((gate.counts(), gate.displaced()), ((limits::UNGREETED + 2, limits::UNGREETED), 1));
        // The strangers come again: they make room for each other, as long as any source has more.
        gate.leave(&standing[0]);
        for _ in 0..limits::UNGREETED {
            let _ = gate.enter(address(1));
        }
        assert!(!is_lost(&honest));
        gate.note_greeted(&honest);
        assert_eq!(gate.counts().1, limits::UNGREETED - 1);
    }

    #[test]
    fn among_sources_with_one_each_whoever_came_first_makes_room() {
        let mut gate = Gate::default();
        let standing: Vec<_> =
            (0..limits::UNGREETED as u32).map(|number| gate.enter(address(u32::MAX - number)).unwrap()).collect();
        let next = gate.enter(address(7)).unwrap();
        assert!(is_lost(&standing[0]) && !is_lost(&standing[1]) && !is_lost(&next));
        assert_eq!(refused(&mut gate, 7), Some(CloseReason::Crowded), "nobody has more there");
    }

    #[test]
    fn with_few_files_half_of_the_places_are_for_those_who_are_let_in() {
        let mut gate = Gate::new(10);
        let standing: Vec<_> = (0..5).map(|number| gate.enter(address(number)).unwrap()).collect();
        let next = gate.enter(address(9)).unwrap();
        assert!(is_lost(&standing[0]));
        for place in standing.iter().chain([&next]) {
            gate.note_greeted(place);
        }
        let more: Vec<_> = (10..14).map(|number| gate.enter(address(number)).unwrap()).collect();
        assert_eq!((more.len(), refused(&mut gate, 20)), (4, Some(CloseReason::Full)));
    }

    #[test]
    fn the_greeted_are_bounded_by_source_and_in_all() {
        let mut gate = Gate::default();
        let mut enter = |number: u32| {
            let entered = gate.enter(address(number));
            entered.map(|place| gate.note_greeted(&place))
        };
        for _ in 0..limits::CONNECTIONS_OF_SOURCE {
            assert_eq!(enter(1), Ok(()));
        }
        assert_eq!(enter(1), Err(CloseReason::SourceFull));
        for number in 0..(limits::CONNECTIONS - limits::CONNECTIONS_OF_SOURCE) as u32 {
            assert_eq!(enter(10 + number), Ok(()));
        }
        assert_eq!(enter(5), Err(CloseReason::Full));
    }

    #[test]
    fn what_left_is_forgotten() {
        let mut gate = Gate::default();
        for greeted in [false, true] {
            let place = gate.enter(address(1)).unwrap();
            if greeted {
                gate.note_greeted(&place);
            }
            gate.leave(&place);
        }
        assert_eq!(gate.counts(), (0, 0));
        assert!(gate.sources.is_empty() && gate.crowds.is_empty());
    }

    #[test]
    fn a_source_is_an_address_or_a_network_of_a_customer() {
        let check = |a: &str, b: &str| source(a.parse().unwrap()) == source(b.parse().unwrap());
        assert!(check("2001:db8::1", "2001:db8::ffff:1"));
        assert!(!check("2001:db8::1", "2001:db8:0:1::1"));
        assert!(check("::ffff:192.0.2.1", "192.0.2.1"));
        assert!(!check("192.0.2.1", "192.0.2.2"));
    }

    fn address(number: u32) -> IpAddr {
        core::net::Ipv4Addr::from_bits(number).into()
    }

    fn refused(gate: &mut Gate, number: u32) -> Option<CloseReason> {
        gate.enter(address(number)).err()
    }

    fn is_lost(place: &Arc<Place>) -> bool {
        let mut context = core::task::Context::from_waker(Waker::noop());
        core::pin::pin!(place.lost()).poll(&mut context).is_ready()
    }
}
