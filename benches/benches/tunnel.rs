//! Seal, open and a whole handshake beside boringtun, which uses ring for the AEAD as we do.

use benches::{FULL, established, one_direction, packet, support::Pair};
use boringtun::{
    noise::{Tunn, TunnResult},
    x25519::{PublicKey, StaticSecret},
};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use mesh_core::wireguard::Sealer;

const BUFFER: usize = 2048;

fn boringtun_pair() -> (Tunn, Tunn) {
    let (a, b) = (StaticSecret::from([1; 32]), StaticSecret::from([2; 32]));
    let (public_a, public_b) = (PublicKey::from(&a), PublicKey::from(&b));
    (Tunn::new(a, public_b, None, None, 1, None), Tunn::new(b, public_a, None, None, 2, None))
}

fn boringtun_handshake(a: &mut Tunn, b: &mut Tunn) {
    let (mut buffer_a, mut buffer_b) = ([0; BUFFER], [0; BUFFER]);
    let TunnResult::WriteToNetwork(initiation) = a.format_handshake_initiation(&mut buffer_a, false) else {
        panic!("no initiation")
    };
    let TunnResult::WriteToNetwork(response) = b.decapsulate(None, initiation, &mut buffer_b) else {
        panic!("no response")
    };
    let TunnResult::WriteToNetwork(keepalive) = a.decapsulate(None, response, &mut buffer_a) else {
        panic!("no keepalive")
    };
    assert!(matches!(b.decapsulate(None, keepalive, &mut buffer_b), TunnResult::Done));
}

fn tunnel(c: &mut Criterion) {
    let mut group = c.benchmark_group("tunnel");
    let packet = packet(FULL);
    group.throughput(Throughput::Bytes(FULL as u64));

    let pair = established(0);
    let (sealer, opener) = one_direction(&pair);
    let now = pair.now;
    group.bench_function("seal/mesh", |b| {
        let mut datagram = vec![0; Sealer::datagram_len(FULL, FULL)];
        b.iter(|| sealer.seal(&packet, &mut datagram));
    });
    let (mut a, mut b_end) = boringtun_pair();
    boringtun_handshake(&mut a, &mut b_end);
    group.bench_function("seal/boringtun", |b| {
        let mut buffer = [0; BUFFER];
        b.iter(|| matches!(a.encapsulate(&packet, &mut buffer), TunnResult::WriteToNetwork(_)));
    });

    group.bench_function("open/mesh", |b| {
        b.iter_batched_ref(
            || {
                let mut datagram = vec![0; Sealer::datagram_len(FULL, FULL)];
                assert!(sealer.seal(&packet, &mut datagram));
                datagram
            },
            |datagram| opener.open(datagram, now).map(|plain| plain.len()),
            BatchSize::SmallInput,
        );
    });
    group.bench_function("open/boringtun", |b| {
        let mut buffer = [0; BUFFER];
        b.iter_batched(
            || {
                let mut sealed = [0; BUFFER];
                match a.encapsulate(&packet, &mut sealed) {
                    TunnResult::WriteToNetwork(datagram) => datagram.to_vec(),
                    _ => panic!("no session"),
                }
            },
            |datagram| matches!(b_end.decapsulate(None, &datagram, &mut buffer), TunnResult::WriteToTunnelV4(..)),
            BatchSize::SmallInput,
        );
    });
    group.finish();

    // Both ends on one thread: initiation, response, first transport message.
    let mut group = c.benchmark_group("handshake");
    group.bench_function("mesh", |b| {
        b.iter_batched_ref(
            Pair::new,
            |pair| {
                pair.a.send(&packet, pair.now);
                pair.settle();
                assert_eq!(pair.b.delivered.len(), 1);
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("boringtun", |b| {
        b.iter_batched_ref(boringtun_pair, |(a, b)| boringtun_handshake(a, b), BatchSize::SmallInput);
    });
    group.finish();
}

criterion_group!(benches, tunnel);
criterion_main!(benches);
