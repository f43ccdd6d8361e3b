//! What the fast path shares between threads, with real threads on it: sealer and replay window, published tables,
//! receivers, flows. Each test does a bounded amount of work and then asks whether a promise held that only right sharing
//! keeps. All orders of a few steps at the same places are tried with loom (`every_order` beside the code).
//!
//! Workers begin together at a barrier. Nothing is said about time: a test on one core is merely a weaker one.

#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

mod support;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use mesh_core::{
    dataplane::{
        Addressing, Adjacency, DataPlane, DropReason, Fib, Inbound, LocalAddrs, PeerId, ReceiveSession, Receivers,
        ReportBuffer,
    },
    filter::{Content, Filter, FlowPool, FlowTable, Headers, Pass, Ports},
    ip::packet::protocol,
    limits,
    path::PathAddr,
    published::Published,
    rng::Seed,
    time::Instant,
    wireguard::{Identity, Opener, replay::WINDOW_PACKETS},
};
use support::{Pair, packet, private};

const THREADS: usize = 4;

/// Runs `work` on [`THREADS`] threads that begin together, and gathers what they found.
fn together<T: Send>(work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let barrier = Barrier::new(THREADS);
    thread::scope(|scope| {
        let begin = |number| {
            let (barrier, work) = (&barrier, &work);
            scope.spawn(move || {
                barrier.wait();
                work(number)
            })
        };
        let threads: Vec<_> = (0..THREADS).map(begin).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Two nodes with a session from the first to the second.
fn pair() -> Pair {
    let mut pair = Pair::new();
    pair.a.send(&packet(1, 2, b"begin"), pair.now);
    pair.settle();
    assert_eq!(pair.b.delivered.len(), 1);
    pair
}

/// Packets of one thread. None of all threads' may be too late for the window.
const PACKETS: usize = 1_500;
const _: () = assert!(THREADS * PACKETS < WINDOW_PACKETS as usize);

/// What a thread's share of the packets is sealed to.
fn seal(pair: &Pair, thread: usize) -> Vec<Vec<u8>> {
    let mut sink = Vec::new();
    for number in 0..PACKETS {
        let packet = packet(1, 2, &((thread * PACKETS + number) as u32).to_be_bytes());
        pair.a.plane.fib().outbound([packet.as_slice()], pair.now, &mut sink, &mut ReportBuffer::default());
    }
    sink.into_iter().map(|(_, datagram)| datagram).collect()
}

#[test]
fn no_counter_is_used_twice() {
    let pair = pair();
    let before = counters(&pair.a.plane, [10, 0, 0, 2].into()).0;
    let datagrams = together(|thread| seal(&pair, thread)).concat();
    assert_eq!(datagrams.len(), THREADS * PACKETS);
    let used: BTreeSet<_> = datagrams.iter().map(|d| u64::from_le_bytes(d[8..16].try_into().unwrap())).collect();
    assert_eq!(used.len(), datagrams.len(), "a counter was used twice");
    assert_eq!(counters(&pair.a.plane, [10, 0, 0, 2].into()).0 - before, datagrams.len() as u64);
}

#[test]
fn no_packet_is_accepted_twice_and_none_is_lost() {
    let pair = pair();
    let before = counters(&pair.b.plane, [10, 0, 0, 1].into()).1;
    let datagrams: Vec<_> = (0..THREADS).flat_map(|thread| seal(&pair, thread)).collect();
    // Everybody gets everything, in step, so that each packet meets itself.
    let delivered = together(|_| {
        let (mut delivered, mut reports) = (Vec::new(), ReportBuffer::default());
        for datagram in &datagrams {
            let mut datagram = datagram.clone();
            let fib = pair.b.plane.fib();
            match fib.inbound(pair.now).handle(&mut datagram, PathAddr::Udp(pair.a.address), &mut reports) {
                Inbound::Deliver { packet, .. } => {
                    delivered.push(u32::from_be_bytes(packet[20..24].try_into().unwrap()));
                }
                Inbound::Drop(reason) => assert_eq!(reason, DropReason::Replayed),
                Inbound::Consumed => panic!("it holds a packet"),
            }
        }
        delivered
    });
    let mut delivered = delivered.concat();
    delivered.sort_unstable();
    assert_eq!(delivered, (0..datagrams.len() as u32).collect::<Vec<_>>(), "each packet once");
    assert_eq!(counters(&pair.b.plane, [10, 0, 0, 1].into()).1 - before, datagrams.len() as u64);
}

/// Packets sent to and received from the peer that has this address.
fn counters(plane: &DataPlane, address: IpAddr) -> (u64, u64) {
    let fib = plane.fib();
    let counters = fib.routes().lookup(address).unwrap().counters();
    (counters.sent_packets(), counters.received_packets())
}

#[test]
fn what_is_published_is_seen_whole_and_never_goes_back() {
    const VERSIONS: u64 = 3_000;
    let published = Published::new(vec![0; 64]);
    let is_over = AtomicBool::new(false);
    let seen = together(|thread| {
        if thread == 0 {
            (1..=VERSIONS).for_each(|version| published.publish(vec![version; 64]));
            is_over.store(true, Ordering::Release);
            return VERSIONS;
        }
        let mut newest = 0;
        loop {
            let was_over = is_over.load(Ordering::Acquire);
            let value = published.load();
            assert!(value.iter().all(|part| *part == value[0]), "torn: {value:?}");
            assert!(value[0] >= newest, "{} after {newest}", value[0]);
            newest = value[0];
            if was_over {
                return newest;
            }
        }
    });
    assert_eq!(seen, [VERSIONS; THREADS], "what was published last is what all have");
}

#[test]
fn tables_that_belong_together_are_of_one_version() {
    const VERSIONS: u32 = 1_000;
    let mut rng = Seed::from_number(1).stream("stress", 0);
    let receivers = Arc::new(Receivers::new(&mut rng));
    let local = LocalAddrs { mtu_bytes: 1420, ping_id: 0 };
    let empty = Fib::new(Arc::new(Identity::new(private(1))), receivers, local);
    let of_version = |version: u32| {
        let mut fib = empty.clone();
        for number in 1..=20 {
            let peer = Adjacency::new(PeerId::new(version), Addressing::Roaming, None);
            fib.routes_mut().insert(format!("10.0.{number}.0/24").parse().unwrap(), Arc::new(peer));
        }
        fib
    };
    let plane = DataPlane::new(of_version(0));
    let is_over = AtomicBool::new(false);
    let seen = together(|thread| {
        if thread == 0 {
            (1..=VERSIONS).for_each(|version| plane.publish(of_version(version)));
            is_over.store(true, Ordering::Release);
            return VERSIONS;
        }
        let mut newest = 0;
        loop {
            let was_over = is_over.load(Ordering::Acquire);
            let fib = plane.fib();
            let versions: BTreeSet<_> =
                (1..=20).map(|n| fib.routes().lookup([10, 0, n, 1].into()).unwrap().peer().number()).collect();
            assert_eq!(versions.len(), 1, "routes of several versions: {versions:?}");
            let version = versions.into_iter().next().unwrap();
            assert!(version >= newest, "{version} after {newest}");
            newest = version;
            if was_over {
                return newest;
            }
        }
    });
    assert_eq!(seen, [VERSIONS; THREADS], "what was published last is what all have");
}

#[test]
fn a_session_is_found_while_it_is_there_and_only_by_its_index() {
    const STAYING: u32 = 64;
    const ROUNDS: u32 = 20_000;
    let pair = pair();
    let (adjacency, opener) = session(&pair);
    let receivers = Receivers::new(&mut Seed::from_number(1).stream("stress", 0));
    let insert = |index| {
        receivers.insert(ReceiveSession { index, adjacency: Arc::clone(&adjacency), opener: Arc::clone(&opener) });
    };
    (0..STAYING).for_each(insert);
    // How far the owner is: what has a lower number than this and does not stay is gone.
    let (gone, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let found = together(|thread| {
        if thread == 0 {
            for round in 0..ROUNDS {
                let index = STAYING + round;
                receivers.expect(index);
                insert(index);
                assert!(receivers.get(index).is_some());
                receivers.remove(index);
                gone.store(u64::from(index) + 1, Ordering::Release);
            }
            is_over.store(true, Ordering::Release);
            return 0;
        }
        let mut lookups = 0_u32;
        while !is_over.load(Ordering::Acquire) || lookups == 0 {
            for index in 0..STAYING {
                let session = receivers.get(index).expect("it stays");
                assert_eq!(session.index, index, "the session of another");
            }
            let below = gone.load(Ordering::Acquire) as u32;
            for index in below.saturating_sub(8).max(STAYING)..below {
                assert!(receivers.get(index).is_none() && !receivers.is_known(index), "{index} was removed");
            }
            if let Some(session) = receivers.get(below) {
                assert_eq!(session.index, below);
            }
            lookups += 1;
        }
        lookups
    });
    assert!(found[1..].iter().all(|lookups| *lookups > 0));
    assert_eq!(receivers.len(), STAYING as usize, "what was removed is gone, what stays has stayed");
}

/// The session of the first node's peer at the second.
fn session(pair: &Pair) -> (Arc<Adjacency>, Arc<Opener>) {
    let datagram = &pair.carried.iter().rev().find(|(_, datagram)| datagram[0] == 4).unwrap().1;
    let index = u32::from_le_bytes(datagram[4..8].try_into().unwrap());
    let session = pair.b.plane.fib().receivers().get(index).unwrap();
    (Arc::clone(&session.adjacency), Arc::clone(&session.opener))
}

#[test]
fn flows_that_begin_on_all_threads_at_once_are_all_answered() {
    const ROUNDS: u64 = 40;
    const FLOWS: u16 = 100;
    let own = IpAddr::from([10, 0, 0, 1]);
    let peer = IpAddr::from([10, 0, 0, 2]);
    let now = Instant::from_secs(1);
    let datagram = |source, destination, ports| Headers {
        source,
        destination,
        protocol: protocol::UDP,
        content: Content::Datagram(ports),
    };
    for round in 0..ROUNDS {
        let pool = Arc::new(FlowPool::new(&mut Seed::from_number(round).stream("flows", 0)));
        let filter = Filter::new(Vec::new(), [own].into_iter().collect(), Arc::clone(&pool));
        let flows = FlowTable::default();
        let port = |thread: usize, number: u16| 1_000 * (thread as u16 + 1) + number;
        together(|thread| {
            for number in 0..FLOWS {
                let ports = Ports { source: port(thread, number), destination: 53 };
                filter.release(&datagram(own, peer, ports), &flows, now).unwrap();
            }
        });
        let mut lost = 0;
        for thread in 0..THREADS {
            for number in 0..FLOWS {
                let ports = Ports { source: 53, destination: port(thread, number) };
                match filter.admit(&datagram(peer, own, ports), &flows, now) {
                    Ok(pass) => assert_eq!(pass, Pass::Reply),
                    Err(_) => lost += 1,
                }
            }
        }
        let counts = pool.counts();
        assert_eq!(lost, counts.evicted + counts.unnoted, "flows were lost that nobody counted");
        assert_eq!(lost, 0, "there is room for {} flows", THREADS * usize::from(FLOWS));
        // Nobody else is let in, and all slots go back.
        let stranger = datagram(peer, own, Ports { source: 53, destination: 9 });
        assert!(filter.admit(&stranger, &flows, now).is_err());
        drop((flows, filter));
        assert_eq!(format!("{pool:?}"), format!("FlowPool({} slots free)", limits::FLOWS));
    }
}

#[test]
fn a_full_table_says_how_many_flows_it_forgot() {
    const FLOWS: u16 = 6_000;
    let own = IpAddr::from([10, 0, 0, 1]);
    let peer = IpAddr::from([10, 0, 0, 2]);
    let now = Instant::from_secs(1);
    let headers = |source, destination, ports| Headers {
        source,
        destination,
        protocol: protocol::UDP,
        content: Content::Datagram(ports),
    };
    let pool = Arc::new(FlowPool::new(&mut Seed::from_number(1).stream("flows", 0)));
    let filter = Filter::new(Vec::new(), [own].into_iter().collect(), Arc::clone(&pool));
    let flows = FlowTable::default();
    // More than there are slots, from all threads.
    together(|thread| {
        for number in 0..FLOWS {
            let ports = Ports { source: number, destination: thread as u16 };
            filter.release(&headers(own, peer, ports), &flows, now).unwrap();
        }
    });
    let is_lost = |thread: usize, number: u16| {
        let ports = Ports { source: thread as u16, destination: number };
        filter.admit(&headers(peer, own, ports), &flows, now).is_err()
    };
    let lost: u64 =
        (0..THREADS).map(|thread| (0..FLOWS).filter(|number| is_lost(thread, *number)).count() as u64).sum();
    let counts = pool.counts();
    let all = (THREADS * usize::from(FLOWS)) as u64;
    let slots: usize = limits::FLOWS_PER_PEER.iter().sum();
    assert!(lost >= all - slots as u64, "{lost} of {all} in {slots} slots");
    assert_eq!(lost, counts.evicted + counts.unnoted, "{counts:?} of {all}");
}
