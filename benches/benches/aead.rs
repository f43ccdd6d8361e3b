//! Seal and open of one packet beside bare ring: what header, copy, counter and replay window cost.

use benches::{FULL, SMALL, established, one_direction, packet};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use mesh_core::wireguard::Sealer;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

fn ring_key() -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).expect("a key has 32 bytes"))
}

fn aead(c: &mut Criterion) {
    let pair = established(0);
    let (sealer, opener) = one_direction(&pair);
    let now = pair.now;
    for bytes in [SMALL, FULL] {
        let mut group = c.benchmark_group(format!("aead/{bytes}"));
        group.throughput(Throughput::Bytes(bytes as u64));
        let key = ring_key();
        let nonce = || Nonce::assume_unique_for_key([1; 12]);
        let padded = bytes.next_multiple_of(16).min(FULL);

        group.bench_function("seal/ring", |b| {
            let mut buffer = vec![0x5a; padded];
            b.iter(|| key.seal_in_place_separate_tag(nonce(), Aad::empty(), &mut buffer).map(|tag| tag.as_ref()[0]));
        });
        group.bench_function("seal/mesh", |b| {
            let packet = packet(bytes);
            let mut datagram = vec![0; Sealer::datagram_len(bytes, FULL)];
            b.iter(|| sealer.seal(&packet, &mut datagram));
        });

        group.bench_function("open/ring", |b| {
            let mut sealed = vec![0x5a; padded];
            key.seal_in_place_append_tag(nonce(), Aad::empty(), &mut sealed).expect("it fits");
            b.iter_batched_ref(
                || sealed.clone(),
                |sealed| key.open_in_place(nonce(), Aad::empty(), sealed).map(|plain| plain.len()),
                BatchSize::SmallInput,
            );
        });
        group.bench_function("open/mesh", |b| {
            let packet = packet(bytes);
            b.iter_batched_ref(
                || {
                    let mut datagram = vec![0; Sealer::datagram_len(bytes, FULL)];
                    assert!(sealer.seal(&packet, &mut datagram));
                    datagram
                },
                |datagram| opener.open(datagram, now).map(|plain| plain.len()),
                BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

criterion_group!(benches, aead);
criterion_main!(benches);
