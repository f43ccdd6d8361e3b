//! Runs of 16 packets through `Fib::outbound` and `Fib::inbound`, and the same AEAD work by bare ring. The difference,
//! divided by 16, is the bookkeeping per packet: parsing, routing, counters, replay window, stamps.

use benches::{FULL, RUN, SMALL, Scratch, established, packet, sealed};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use mesh_core::{
    dataplane::{Inbound, ReportBuffer},
    path::PathAddr,
};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

fn fastpath(c: &mut Criterion) {
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).expect("a key has 32 bytes"));
    let nonce = || Nonce::assume_unique_for_key([1; 12]);
    for (peers, extra) in [(1, 0), (10_000, 9_999)] {
        let pair = established(extra);
        let (fib_a, fib_b) = (pair.a.plane.fib(), pair.b.plane.fib());
        let now = pair.now;
        for bytes in [SMALL, FULL] {
            let mut group = c.benchmark_group(format!("fastpath/{peers}-peers/{bytes}"));
            group.throughput(Throughput::Elements(RUN as u64));
            let packet = packet(bytes);
            let padded = bytes.next_multiple_of(16).min(FULL);

            group.bench_function("outbound/ring-alone", |b| {
                let mut buffer = vec![0x5a; padded * RUN];
                b.iter(|| {
                    for packet in buffer.chunks_exact_mut(padded) {
                        let tag = key.seal_in_place_separate_tag(nonce(), Aad::empty(), packet);
                        std::hint::black_box(tag.is_ok());
                    }
                });
            });
            group.bench_function("outbound/mesh", |b| {
                let (mut sink, mut reports) = (Scratch::default(), ReportBuffer::default());
                b.iter(|| {
                    fib_a.outbound((0..RUN).map(|_| packet.as_slice()), now, &mut sink, &mut reports);
                    reports.notices.clear();
                });
                assert_eq!(reports.drops.total() as usize + reports.punts.len(), 0, "every packet was sealed");
            });

            group.bench_function("inbound/ring-alone", |b| {
                let mut one = vec![0x5a; padded];
                key.seal_in_place_append_tag(nonce(), Aad::empty(), &mut one).expect("it fits");
                b.iter_batched_ref(
                    || vec![one.clone(); RUN],
                    |datagrams| datagrams.iter_mut().all(|d| key.open_in_place(nonce(), Aad::empty(), d).is_ok()),
                    BatchSize::SmallInput,
                );
            });
            group.bench_function("inbound/mesh", |b| {
                let mut reports = ReportBuffer::default();
                b.iter_batched_ref(
                    || sealed(&fib_a, RUN, bytes, now),
                    |datagrams| {
                        let mut run = fib_b.inbound(now);
                        for datagram in datagrams {
                            let inbound = run.handle(datagram, PathAddr::Udp(pair.a.address), &mut reports);
                            assert!(matches!(inbound, Inbound::Deliver { .. }));
                        }
                        reports.notices.clear();
                    },
                    BatchSize::SmallInput,
                );
            });
            group.finish();
        }
    }
}

criterion_group!(benches, fastpath);
criterion_main!(benches);
