//! Replies to what we sent.
//!
//! A UDP or SCTP packet that leaves opens the way back for packets of the same flow: the same addresses and ports, the
//! other way round, by the same peer. What answers a flow that the peer began opens nothing: when the rule that let it in
//! is withdrawn, it ends. So whose a flow is is kept too. Each peer has a [`FlowTable`] of its own, so one with many flows costs the others
//! nothing, and a table is there only once something was sent.
//!
//! A table holds, for each flow, a keyed 64-bit hash of addresses, ports and protocol, and until when the flow lasts.
//! Nobody who lacks the keys can find another flow with the same hash. Slots are read and written without a lock: a
//! reader who meets a slot that is just being given to another flow may miss it for this one packet, and can at worst
//! let a flow last as long as its neighbour.
//!
//! Unlike stock nodes, whose flows end only when 512 others came and where an answer opens the way for more questions,
//! flows here end by time, and as many fit as are needed, within [`limits`]. Those that a peer began take few of the
//! slots, and none of ours.

use core::{
    fmt,
    hash::{BuildHasher, Hash, Hasher},
    net::IpAddr,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};
use std::sync::{Arc, OnceLock};

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
            Some(slot) if slot.is_live(now) && slot.is_theirs() => slot.extend(flow, THEIRS | ANSWERED, now),
            Some(slot) if slot.is_live(now) => slot.extend(flow, slot.marks(), now),
            Some(slot) => slot.begin(hash, flow, 0, now),
            None => {
                let slot = self.slot(hash, limits::FLOWS_PER_PEER.len(), |_| true, pool, now);
                if let Some(slot) = slot {
                    slot.begin(hash, flow, 0, now);
                }
            }
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
            Some(slot) if slot.is_live(now) && slot.is_theirs() => slot.extend(flow, slot.marks(), now),
            // Another thread has just sent something of it.
            Some(slot) if slot.is_live(now) => {}
            Some(slot) => slot.begin(hash, flow, THEIRS, now),
            None => {
                if let Some(slot) = self.slot(hash, STEPS_OF_THEIRS, Slot::is_theirs, pool, now) {
                    slot.begin(hash, flow, THEIRS, now);
                }
            }
        }
    }

    /// Whether a packet of this flow would be a reply to what we sent.
    pub(super) fn is_open(&self, flow: &Flow, pool: &FlowPool, now: Instant) -> bool {
        self.find(pool.hash(flow)).is_some_and(|slot| slot.is_live(now) && !slot.is_theirs())
    }

    /// A slot for a new flow in one of the first `steps`: one that is free, or of those that `may_go` in the last step the
    /// one that would end first.
    fn slot(
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
            if let Some(slot) = step.ways(hash).iter().find(|slot| !slot.is_live(now)) {
                return Some(slot);
            }
            last = Some(step);
        }
        let of_last = last.map(|step| step.ways(hash)).unwrap_or_default();
        let taken = of_last.iter().filter(|slot| may_go(slot)).min_by_key(|slot| slot.until());
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
    fn begin(&self, hash: u64, flow: &Flow, marks: u64, now: Instant) {
        // Over before it is another's: whoever reads between the two finds a flow that has ended.
        self.until.store(0, Ordering::Relaxed);
        self.hash.store(hash, Ordering::Release);
        self.store(now + flow.lasts(false), marks);
    }

    fn extend(&self, flow: &Flow, marks: u64, now: Instant) {
        let until = now + flow.lasts(marks & ANSWERED != 0);
        if marks != self.marks() || until.since(self.until()) >= STAMP_STEP {
            self.store(until, marks);
        }
    }

    fn store(&self, until: Instant, marks: u64) {
        self.until.store(until.as_nanos() & !(ANSWERED | THEIRS) | marks, Ordering::Release);
    }

    fn until(&self) -> Instant {
        Instant::from_nanos(self.until.load(Ordering::Acquire))
    }

    fn is_live(&self, now: Instant) -> bool {
        self.until() > now
    }

    fn marks(&self) -> u64 {
        self.until.load(Ordering::Acquire) & (ANSWERED | THEIRS)
    }

    fn is_theirs(&self) -> bool {
        self.marks() & THEIRS != 0
    }
}
