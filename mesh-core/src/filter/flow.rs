//! Replies to what we sent.
//!
//! A UDP or SCTP packet that leaves opens the way back for packets of the same flow: the same addresses and ports, the
//! other way round, by the same peer. What answers a flow that the peer began opens nothing: when the rule that let it in
//! is withdrawn, it ends. So whose a flow is is kept too. Each peer has a [`FlowTable`] of its own, so one with many flows costs the others
//! nothing, and a table is there only once something was sent.
//!
//! A table holds, for each flow, a keyed 64-bit hash of addresses, ports and protocol, and until when the flow lasts.
//! Nobody who lacks the keys can find another flow with the same hash. Slots are read and written without a lock: of the
//! threads that want a slot one alone takes it, and a reader who meets it just then may miss a flow for this one packet,
//! and can at worst let a flow last as long as its neighbour.
//!
//! Unlike stock nodes, whose flows end only when 512 others came and where an answer opens the way for more questions,
//! flows here end by time, and as many fit as are needed, within [`limits`]. Those that a peer began take few of the
//! slots, and none of ours.

#[cfg(not(loom))]
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use core::{
    fmt,
    hash::{BuildHasher, Hash, Hasher},
    net::IpAddr,
    time::Duration,
};
use std::sync::{Arc, OnceLock};

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::{ip::packet::protocol, limits, lookup::Keys, rng::Rng, time::Instant};

use super::headers::{Headers, Ports};

/// A flow nobody has answered yet. RFC 4787 allows NATs two minutes at least; Linux has 30 s, and so has whatever else is
/// on the way.
pub const UNANSWERED_FOR: Duration = Duration::from_secs(30);
/// A flow with packets both ways. Linux: 120 s.
pub const ANSWERED_FOR: Duration = Duration::from_secs(180);
/// An SCTP association with packets both ways; RFC 9260 §15 sends a heartbeat every 30 s, and Linux has 210 s.
pub const ASSOCIATED_FOR: Duration = Duration::from_secs(900);

/// A stamp is written again when it moves by this much: not for every packet.
const STAMP_STEP: Duration = Duration::from_secs(1);
/// Slots in which a flow may stand.
const WAYS: usize = 8;
/// Of a stamp: there were packets both ways.
const ANSWERED: u64 = 1;
/// Of a stamp: the peer began, and a rule let it.
const THEIRS: u64 = 2;
/// A stamp long past that no flow has: a thread is about to write whose the slot is.
const TAKEN: u64 = THEIRS;
/// Steps that flows of the peer's may be in: nobody takes all slots from outside.
const STEPS_OF_THEIRS: usize = 2;

/// Flows that found no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCounts {
    /// Flows that were forgotten before their time: another took the place.
    pub evicted: u64,
    /// Packets whose flow got no place: of ours, no reply comes in.
    pub unnoted: u64,
}

/// What the flow tables of a node share: the keys of their hash, and how much they may hold together.
pub struct FlowPool {
    keys: Keys,
    /// Slots that may still be taken.
    free: AtomicUsize,
    evicted: AtomicU64,
    unnoted: AtomicU64,
}

impl FlowPool {
    /// Keys from `rng`, and [`limits::FLOWS`] slots.
    #[must_use]
    pub fn new(rng: &mut Rng) -> Self {
        let (free, evicted, unnoted) = (AtomicUsize::new(limits::FLOWS), AtomicU64::new(0), AtomicU64::new(0));
        Self { keys: Keys::new(rng), free, evicted, unnoted }
    }

    /// What happened for lack of room.
    #[must_use]
    pub fn counts(&self) -> FlowCounts {
        FlowCounts { evicted: self.evicted.load(Ordering::Relaxed), unnoted: self.unnoted.load(Ordering::Relaxed) }
    }

    /// The hash of a flow, which is not 0.
    fn hash(&self, flow: &Flow) -> u64 {
        self.keys.hash_one(flow) | 1
    }

    fn take(&self, slots: usize) -> bool {
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(slots)).is_ok()
    }
}

impl fmt::Debug for FlowPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FlowPool({} slots free)", self.free.load(Ordering::Relaxed))
    }
}

/// A flow, seen from here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    ours: IpAddr,
    our_port: u16,
    theirs: IpAddr,
    their_port: u16,
    protocol: u8,
}

/// In one piece: small ones cost more than their bytes.
impl Hash for Flow {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut bytes = [0; 37];
        let [ours, theirs] = [self.ours, self.theirs].map(|address| match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        });
        bytes[..16].copy_from_slice(&ours);
        bytes[16..32].copy_from_slice(&theirs);
        bytes[32..34].copy_from_slice(&self.our_port.to_be_bytes());
        bytes[34..36].copy_from_slice(&self.their_port.to_be_bytes());
        bytes[36] = self.protocol;
        state.write(&bytes);
    }
}

impl Flow {
    /// Of a packet that leaves.
    pub(super) fn outbound(headers: &Headers, ports: Ports) -> Self {
        Self {
            ours: headers.source,
            our_port: ports.source,
            theirs: headers.destination,
            their_port: ports.destination,
            protocol: headers.protocol,
        }
    }

    /// Of a packet that came.
    pub(super) fn inbound(headers: &Headers, ports: Ports) -> Self {
        Self {
            ours: headers.destination,
            our_port: ports.destination,
            theirs: headers.source,
            their_port: ports.source,
            protocol: headers.protocol,
        }
    }

    fn lasts(&self, is_answered: bool) -> Duration {
        match (is_answered, self.protocol) {
            (false, _) => UNANSWERED_FOR,
            (true, protocol::SCTP) => ASSOCIATED_FOR,
            (true, _) => ANSWERED_FOR,
        }
    }
}

/// The flows of one peer.
#[derive(Debug, Default)]
pub struct FlowTable {
    /// Each is taken when a flow finds no room in those before.
    steps: [OnceLock<Step>; limits::FLOWS_PER_PEER.len()],
}

impl FlowTable {
    /// A packet of this flow leaves.
    pub(super) fn note_sent(&self, flow: &Flow, pool: &Arc<FlowPool>, now: Instant) {
        let hash = pool.hash(flow);
        match self.find(hash) {
            Some(slot) if slot.is_live(now) && slot.is_theirs() => slot.extend(flow, ANSWERED, now),
            Some(slot) if slot.is_live(now) => slot.extend(flow, 0, now),
            ended => self.begin(ended, hash, flow, 0, pool, now),
        }
    }

    /// A packet of this flow came; whether it is a reply to what we sent.
    pub(super) fn note_received(&self, flow: &Flow, pool: &FlowPool, now: Instant) -> bool {
        match self.find(pool.hash(flow)) {
            Some(slot) if slot.is_live(now) && !slot.is_theirs() => {
                slot.extend(flow, ANSWERED, now);
                true
            }
            Some(_) | None => false,
        }
    }

    /// A packet of this flow, which is no reply, was let in by a rule.
    pub(super) fn note_admitted(&self, flow: &Flow, pool: &Arc<FlowPool>, now: Instant) {
        let hash = pool.hash(flow);
        match self.find(hash) {
            Some(slot) if slot.is_live(now) && slot.is_theirs() => slot.extend(flow, 0, now),
            // Another thread has just sent something of it.
            Some(slot) if slot.is_live(now) => {}
            ended => self.begin(ended, hash, flow, THEIRS, pool, now),
        }
    }

    /// A flow begins: where it stood before, if that is still free, or in another slot.
    fn begin(&self, ended: Option<&Slot>, hash: u64, flow: &Flow, marks: u64, pool: &Arc<FlowPool>, now: Instant) {
        let again = ended.filter(|slot| slot.take_free(now));
        let taken = again.or_else(|| match marks & THEIRS {
            0 => self.take(hash, limits::FLOWS_PER_PEER.len(), |_| true, pool, now),
            _ => self.take(hash, STEPS_OF_THEIRS, Slot::is_theirs, pool, now),
        });
        if let Some(slot) = taken {
            slot.begin(hash, flow, marks, now);
        }
    }

    /// Whether a packet of this flow would be a reply to what we sent.
    pub(super) fn is_open(&self, flow: &Flow, pool: &FlowPool, now: Instant) -> bool {
        self.find(pool.hash(flow)).is_some_and(|slot| slot.is_live(now) && !slot.is_theirs())
    }

    /// Takes a slot for a new flow in one of the first `steps`: one that is free, or of those that `may_go` in the last step
    /// the one that would end first.
    fn take(
        &self,
        hash: u64,
        steps: usize,
        may_go: impl Fn(&Slot) -> bool,
        pool: &Arc<FlowPool>,
        now: Instant,
    ) -> Option<&Slot> {
        let mut last = None;
        for (step, slots) in self.steps.iter().zip(limits::FLOWS_PER_PEER).take(steps) {
            let step = match step.get() {
                Some(step) => step,
                None if !pool.take(slots) => break,
                // If another thread was faster, its step counts, and dropping ours gives the slots back.
                None => {
                    let _ = step.set(Step::new(slots, Arc::clone(pool)));
                    let Some(step) = step.get() else { break };
                    step
                }
            };
            if let Some(slot) = step.ways(hash).iter().find(|slot| slot.take_free(now)) {
                return Some(slot);
            }
            last = Some(step);
        }
        let of_last = last.map(|step| step.ways(hash)).unwrap_or_default();
        let first =
            of_last.iter().filter(|slot| may_go(slot)).map(|slot| (slot.stamp(), slot)).min_by_key(|(at, _)| *at);
        // Where another thread was faster the flow is not noted: its next packet tries again.
        let taken = first.filter(|(seen, slot)| slot.take_from(*seen)).map(|(_, slot)| slot);
        let count = if taken.is_some() { &pool.evicted } else { &pool.unnoted };
        count.fetch_add(1, Ordering::Relaxed);
        taken
    }

    fn find(&self, hash: u64) -> Option<&Slot> {
        let taken = self.steps.iter().map_while(OnceLock::get);
        taken.flat_map(|step| step.ways(hash)).find(|slot| slot.hash.load(Ordering::Relaxed) == hash)
    }
}

/// Slots that were taken from the pool together, and go back together.
#[derive(Debug)]
struct Step {
    slots: Box<[Slot]>,
    pool: Arc<FlowPool>,
}

impl Step {
    fn new(slots: usize, pool: Arc<FlowPool>) -> Self {
        Self { slots: (0..slots).map(|_| Slot::default()).collect(), pool }
    }

    /// The slots in which a flow may stand.
    fn ways(&self, hash: u64) -> &[Slot] {
        // The lowest bit is always set.
        let place = (hash >> 1) as usize % (self.slots.len() / WAYS);
        &self.slots[place * WAYS..][..WAYS]
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.pool.free.fetch_add(self.slots.len(), Ordering::Relaxed);
    }
}

/// One flow, or none.
#[derive(Debug, Default)]
struct Slot {
    /// 0 is none.
    hash: AtomicU64,
    /// Until when, in nanoseconds; the lowest bits are [`ANSWERED`] and [`THEIRS`].
    until: AtomicU64,
}

impl Slot {
    /// Takes the slot if no flow is in it that has not ended.
    fn take_free(&self, now: Instant) -> bool {
        let seen = self.stamp();
        until(seen) <= now && self.take_from(seen)
    }

    /// Takes the slot from the flow with this stamp. Of several threads one succeeds, and must [`begin`](Self::begin).
    fn take_from(&self, seen: u64) -> bool {
        seen != TAKEN && self.until.compare_exchange(seen, TAKEN, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Gives a slot that was taken to a flow.
    fn begin(&self, hash: u64, flow: &Flow, marks: u64, now: Instant) {
        // It is over before it is another's: whoever reads between the two finds a flow that has ended.
        self.hash.store(hash, Ordering::Release);
        self.until.store(stamp(now + flow.lasts(false), marks), Ordering::Release);
    }

    /// A packet of the flow: it lasts longer, and has these marks too.
    fn extend(&self, flow: &Flow, marks: u64, now: Instant) {
        // One that has ended meanwhile may be another's.
        let _ = self.until.fetch_update(Ordering::AcqRel, Ordering::Acquire, |seen| {
            let marks = marks | seen & (ANSWERED | THEIRS);
            let later = now + flow.lasts(marks & ANSWERED != 0);
            let is_news = stamp(until(seen), marks) != seen || later.since(until(seen)) >= STAMP_STEP;
            (until(seen) > now && is_news).then(|| stamp(later, marks))
        });
    }

    fn stamp(&self) -> u64 {
        self.until.load(Ordering::Acquire)
    }

    fn is_live(&self, now: Instant) -> bool {
        until(self.stamp()) > now
    }

    fn is_theirs(&self) -> bool {
        self.stamp() & THEIRS != 0
    }
}

fn stamp(until: Instant, marks: u64) -> u64 {
    until.as_nanos() & !(ANSWERED | THEIRS) | marks
}

fn until(stamp: u64) -> Instant {
    Instant::from_nanos(stamp & !(ANSWERED | THEIRS))
}

/// Every order in which threads can meet at a slot:
/// `RUSTFLAGS="--cfg loom" cargo test -p mesh-core --lib --target-dir target/loom every_order`
#[cfg(all(test, loom))]
mod every_order {
    use loom::{sync::Arc, thread};

    use super::*;

    const NOW: Instant = Instant::from_secs(1_000);
    const FLOW: Flow = Flow {
        ours: IpAddr::V4(core::net::Ipv4Addr::new(10, 0, 0, 1)),
        our_port: 1,
        theirs: IpAddr::V4(core::net::Ipv4Addr::new(10, 0, 0, 2)),
        their_port: 2,
        protocol: protocol::UDP,
    };

    fn begin(ways: &[Slot], hash: u64) {
        let slot = ways.iter().find(|slot| slot.take_free(NOW)).expect("there are as many slots as flows");
        slot.begin(hash, &FLOW, 0, NOW);
    }

    fn is_there(ways: &[Slot], hash: u64) -> bool {
        ways.iter().any(|slot| slot.hash.load(Ordering::Relaxed) == hash && slot.is_live(NOW))
    }

    #[test]
    fn flows_that_begin_at_once_all_have_a_slot() {
        loom::model(|| {
            let ways = Arc::new([Slot::default(), Slot::default()]);
            let other = thread::spawn({
                let ways = Arc::clone(&ways);
                move || begin(&*ways, 3)
            });
            begin(&*ways, 5);
            other.join().expect("it does not panic");
            assert!(is_there(&*ways, 3) && is_there(&*ways, 5));
        });
    }

    #[test]
    fn what_is_heard_of_a_flow_at_once_is_all_kept() {
        loom::model(|| {
            let slot = Arc::new(Slot::default());
            begin(core::slice::from_ref(&*slot), 3);
            let later = NOW + STAMP_STEP * 2;
            let other = thread::spawn({
                let slot = Arc::clone(&slot);
                move || slot.extend(&FLOW, ANSWERED, NOW)
            });
            slot.extend(&FLOW, 0, later);
            other.join().expect("it does not panic");
            assert_eq!(slot.stamp() & ANSWERED, ANSWERED);
            assert!(until(slot.stamp()) >= later + UNANSWERED_FOR);
        });
    }

    #[test]
    fn a_slot_that_is_given_away_keeps_nothing_of_the_flow_before() {
        loom::model(|| {
            let slot = Arc::new(Slot::default());
            begin(core::slice::from_ref(&*slot), 3);
            let other = thread::spawn({
                let slot = Arc::clone(&slot);
                move || {
                    let seen = slot.stamp();
                    if slot.take_from(seen) {
                        slot.begin(5, &FLOW, THEIRS, NOW);
                    }
                }
            });
            // A packet of the flow before, by a thread that has found it.
            slot.extend(&FLOW, 0, NOW + STAMP_STEP * 2);
            other.join().expect("it does not panic");
            let is_theirs = slot.is_theirs();
            assert_eq!(is_theirs, slot.hash.load(Ordering::Relaxed) == 5, "hash and marks are of one flow");
        });
    }
}
