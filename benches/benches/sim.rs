//! Simulated events a second, and a whole pair scenario with real cryptography.

use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use mesh_core::time::Instant;
use sim::{Simulation, scenario};

const PAIR: &str = include_str!("../../sim/scenarios/static-pair.toml");

fn events(c: &mut Criterion) {
    let mut group = c.benchmark_group("sim/events");
    group.sample_size(10);
    for nodes in [2, 100] {
        let scenario = sim::star(nodes, Duration::from_millis(5), Duration::from_secs(20));
        let start = || {
            // Past the handshakes, which cost what cryptography costs.
            let mut world = Simulation::new(&scenario, 1);
            world.run_until(Instant::from_secs(2));
            world
        };
        let mut world = start();
        let before = world.handled();
        world.run_until(Instant::from_secs(3));
        let count = world.handled() - before;

        group.throughput(Throughput::Elements(count));
        group.bench_function(format!("{nodes}-nodes"), |b| {
            b.iter_batched(
                start,
                |mut world| {
                    world.run_until(Instant::from_secs(3));
                    assert_eq!(world.handled() - before, count);
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

fn pair(c: &mut Criterion) {
    let scenario = scenario::parse(PAIR).expect("the scenario is good");
    c.bench_function("sim/static-pair-60s", |b| b.iter(|| sim::run(&scenario, 1)));
}

criterion_group!(benches, events, pair);
criterion_main!(benches);
