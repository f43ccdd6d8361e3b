//! The fast path allocates nothing per packet: a counting allocator watches a million packets each way.
#![expect(unsafe_code, reason = "a global allocator is unsafe to implement; this one counts and passes on")]

mod support;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    net::IpAddr,
    sync::Arc,
};

use mesh_core::{
    dataplane::{DropReason, Inbound, Notice, Punt, Reports, TransmitSink},
    filter::{Content, Destination, Filter, FlowPool, FlowTable, Headers, Ports, Protocols, Rule, RuleName},
    ip::packet::protocol,
    path::{PathAddr, SendPath},
    rng::Seed,
    time::Instant,
};
use support::{End, MTU, Pair, packet};

/// A million packets each way, in batches as a driver would carry them.
const BATCHES: usize = 15_625;
const BATCH: usize = 64;

#[test]
fn the_counter_counts() {
    let before = allocations();
    drop(core::hint::black_box(vec![1; 100]));
    assert_eq!(allocations() - before, 1);
}

#[test]
fn a_million_packets_each_way_allocate_nothing() {
    let mut pair = Pair::new();
    pair.a.send(&packet(1, 2, b"begin"), pair.now);
    pair.settle();
    assert_eq!(pair.b.delivered.len(), 1);

    let packets: Vec<_> = (0..BATCH).map(|n| packet(1, 2, &vec![n as u8; 4 * n])).collect();
    let mut sink = ReusedSink { buffer: vec![0; BATCH * (MTU + 32)], used: 0, ends: Vec::with_capacity(BATCH) };
    let mut reports = Quiet::default();
    let (mut outbound, mut inbound, mut delivered) = (0, 0, 0);
    let now = pair.now;
    for _ in 0..BATCHES {
        sink.clear();
        let before = allocations();
        pair.a.plane.fib().outbound(packets.iter().map(Vec::as_slice), now, &mut sink, &mut reports);
        outbound += allocations() - before;

        let before = allocations();
        let fib = pair.b.plane.fib();
        let mut run = fib.inbound(now);
        let mut rest = &mut sink.buffer[..sink.used];
        let mut start = 0;
        for end in &sink.ends {
            let (datagram, behind) = core::mem::take(&mut rest).split_at_mut(end - start);
            (rest, start) = (behind, *end);
            match run.handle(datagram, PathAddr::Udp(pair.a.address), &mut reports) {
                Inbound::Deliver { packet, .. } => delivered += packet.len(),
                Inbound::Consumed | Inbound::Drop(_) => {}
            }
        }
        drop(run);
        inbound += allocations() - before;
    }
    let bytes: usize = packets.iter().map(Vec::len).sum();
    assert_eq!(delivered, bytes * BATCHES, "every packet arrived");
    assert_eq!((outbound, inbound), (0, 0));
    assert_eq!((reports.punts, reports.drops), (0, 0));
    assert!(reports.notices < 10, "an edge is reported once: {}", reports.notices);
}

/// Flows take their slots in steps; a packet of any verdict, and of a flow that is new, takes nothing.
#[test]
fn a_million_packets_through_the_filter_allocate_nothing() {
    let own = IpAddr::from([10, 0, 0, 1]);
    let peer = IpAddr::from([10, 0, 0, 2]);
    let rule = Rule {
        name: RuleName { filter: "base".into(), index: 0 },
        sources: [peer].into_iter().collect(),
        destinations: vec![Destination { addresses: own.into(), ports: 22..=80 }],
        protocols: Protocols::usual(),
    };
    let pool = Arc::new(FlowPool::new(&mut Seed::from_number(1).stream("flows", 0)));
    let filter = Filter::new(vec![rule], [own].into_iter().collect(), pool);
    let (flows, now) = (FlowTable::default(), Instant::from_secs(1));
    let udp = |source, destination, ports| Headers {
        source,
        destination,
        protocol: protocol::UDP,
        content: Content::Datagram(ports),
    };
    // All steps are taken, and most flows end for others.
    for port in 0..50_000 {
        let ports = Ports { source: port, destination: 53 };
        filter.release(&udp(own, peer, ports), &flows, now).expect("it is carried");
    }

    let (mut passed, mut refused) = (0, 0);
    let before = allocations();
    for round in 0..250_000u32 {
        let port = round as u16;
        let _ = filter.release(&udp(own, peer, Ports { source: port, destination: 7 }), &flows, now);
        let ports = Ports { source: port, destination: (round % 100) as u16 };
        let tcp =
            Headers { protocol: protocol::TCP, content: Content::Tcp { ports, opens: true }, ..udp(peer, own, ports) };
        for headers in [udp(peer, own, ports), tcp, udp(peer, own, Ports { source: 7, destination: port })] {
            match filter.admit(&headers, &flows, now) {
                Ok(_) => passed += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert_eq!(allocations() - before, 0);
    assert!(passed > 100_000 && refused > 100_000, "{passed} passed, {refused} were refused");
}

/// What is not wanted costs no allocation either, so that a flood of it cannot exhaust the heap.
#[test]
fn dropped_datagrams_allocate_nothing() {
    let mut pair = Pair::new();
    pair.a.send(&packet(1, 2, b"begin"), pair.now);
    pair.settle();
    pair.a.send(&packet(1, 2, b"data"), pair.now);
    let replayed = pair.a.sent.pop_front().expect("there is a session").1;
    pair.b.receive(replayed.clone(), pair.a.address, pair.now);
    let mut forged = replayed.clone();
    forged[20] ^= 1;
    let mut unknown = replayed.clone();
    unknown[4] ^= 1;
    let mut wrong_mac = vec![9; 148];
    wrong_mac[..4].copy_from_slice(&[1, 0, 0, 0]);

    for (datagram, reason) in [
        (vec![], DropReason::NotWireguard),
        (vec![7], DropReason::NotWireguard),
        (forged, DropReason::Forged),
        (unknown, DropReason::UnknownSession),
        (wrong_mac, DropReason::WrongMac1),
        (replayed, DropReason::Replayed),
    ] {
        let mut copy = datagram.clone();
        let (end, mut reports) = (&pair.b, Quiet::default());
        let before = allocations();
        for _ in 0..1000 {
            copy.copy_from_slice(&datagram);
            let fib = end.plane.fib();
            let outcome = fib.inbound(pair.now).handle(&mut copy, PathAddr::Udp(pair.a.address), &mut reports);
            assert_eq!(outcome, Inbound::Drop(reason));
        }
        assert_eq!(allocations() - before, 0, "{reason:?}");
        assert_eq!(reports.drops, 1000);
    }
    assert!(outbound_drops_allocate_nothing(&pair.a, pair.now));
}

fn outbound_drops_allocate_nothing(end: &End, now: Instant) -> bool {
    let mut sink = ReusedSink { buffer: vec![0; MTU + 32], used: 0, ends: Vec::with_capacity(1) };
    let (mut reports, nobody) = (Quiet::default(), packet(1, 99, b"x"));
    let before = allocations();
    for _ in 0..1000 {
        end.plane.fib().outbound([&nobody[..], b"no packet"], now, &mut sink, &mut reports);
    }
    reports.drops == 2000 && sink.used == 0 && allocations() == before
}

/// Keeps datagrams one behind the other in a buffer that is used again, as a batch of a driver does.
struct ReusedSink {
    buffer: Vec<u8>,
    used: usize,
    ends: Vec<usize>,
}

impl ReusedSink {
    fn clear(&mut self) {
        self.used = 0;
        self.ends.clear();
    }
}

impl TransmitSink for ReusedSink {
    fn datagram(&mut self, _: &SendPath, len: usize, fill: impl FnOnce(&mut [u8]) -> bool) -> bool {
        let filled = fill(&mut self.buffer[self.used..self.used + len]);
        if filled {
            self.used += len;
            self.ends.push(self.used);
        }
        filled
    }
}

/// Counts, because keeping would allocate.
#[derive(Default)]
struct Quiet {
    punts: usize,
    notices: usize,
    drops: usize,
}

impl Reports for Quiet {
    fn punt(&mut self, _: Punt) {
        self.punts += 1;
    }

    fn notice(&mut self, _: Notice) {
        self.notices += 1;
    }

    fn dropped(&mut self, _: DropReason) {
        self.drops += 1;
    }
}

/// The system's allocator, counting per thread: the harness's own threads do not disturb.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> usize {
    ALLOCATIONS.get()
}

fn count() {
    // A thread that is ending may allocate when its locals are gone; nobody counts then.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`, which is the same there.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System` with this layout, because all of ours do.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as for `dealloc`, and the caller vouches for `size`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
