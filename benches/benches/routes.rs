//! Longest-prefix match, and what one changed peer costs in a table of ten thousand.

use std::net::{IpAddr, Ipv4Addr};

use criterion::{Criterion, criterion_group, criterion_main};
use mesh_core::{ip::prefix::Prefix, routes::RouteTable};

fn routes(c: &mut Criterion) {
    let mut group = c.benchmark_group("routes");
    for count in [1u32, 100, 10_000] {
        let address = |number: u32| IpAddr::from(Ipv4Addr::from_bits(0x6440_0000 + number));
        let mut table = RouteTable::new();
        for number in 0..count {
            table.insert(Prefix::host(address(number)), number);
        }
        let mut number = 0;
        group.bench_function(format!("lookup/{count}"), |b| {
            b.iter(|| {
                number = (number + 7919) % count;
                table.lookup(address(number)).copied()
            });
        });
        group.bench_function(format!("replace-one/{count}"), |b| {
            b.iter(|| {
                number = (number + 7919) % count;
                let mut changed = table.clone();
                changed.insert(Prefix::host(address(number)), 0);
                changed
            });
        });
    }
    group.finish();
}

criterion_group!(benches, routes);
criterion_main!(benches);
