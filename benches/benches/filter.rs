//! The packet filter: what one packet costs at 10, 1,000 and 10,000 rules, for a node with its own addresses and for one
//! that routes as many subnets; and what it adds to the packet path.

use std::{net::IpAddr, sync::Arc};

use benches::{RUN, SMALL, Scratch, established, sealed};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use mesh_core::{
    dataplane::{Inbound, ReportBuffer},
    filter::{Content, Destination, Filter, FlowPool, FlowTable, Headers, Ports, Protocols, Rule, RuleName},
    ip::{
        packet::protocol,
        set::{IpSet, Span},
    },
    path::PathAddr,
    rng::Seed,
    time::Instant,
};

const OWN: [u8; 4] = [100, 64, 0, 1];
const NOW: Instant = Instant::from_secs(1000);

fn pool() -> Arc<FlowPool> {
    Arc::new(FlowPool::new(&mut Seed::from_number(1).stream("flows", 0)))
}

/// Rules with eight sources each, a port of their own, and either our address or a subnet of their own.
fn rules(count: u32, subnets: bool) -> Filter {
    let mut local: IpSet = [IpAddr::from(OWN)].into_iter().collect();
    let rules = (0..count).map(|number| {
        let source = |n: u32| IpAddr::V4((0x6440_0100 + (number * 8 + n) * 2).into());
        let subnet =
            Span::new(IpAddr::V4((0x0a00_0000 + number * 256).into()), IpAddr::V4((0x0a00_00ff + number * 256).into()));
        let addresses = subnet.filter(|_| subnets).unwrap_or(IpAddr::from(OWN).into());
        local.insert(addresses);
        let port = 1000 + number as u16;
        Rule {
            name: RuleName { filter: "base".into(), index: number as usize },
            sources: (0..8).map(source).collect(),
            destinations: vec![Destination { addresses, ports: port..=port }],
            protocols: Protocols::usual(),
        }
    });
    let rules = rules.collect();
    Filter::new(rules, local, pool())
}

/// What the rule of this number allows, but for the address.
fn packet(number: u32, source: u32, subnets: bool, content: impl Fn(Ports) -> Content, protocol: u8) -> Headers {
    let destination = if subnets { (0x0a00_0007 + number * 256).into() } else { OWN.into() };
    Headers {
        source: IpAddr::V4((0x6440_0100 + source * 2).into()),
        destination: IpAddr::V4(destination),
        protocol,
        content: content(Ports { source: 40_000, destination: 1000 + number as u16 }),
    }
}

fn verdicts(c: &mut Criterion) {
    let mut group = c.benchmark_group("filter");
    let syn = |ports| Content::Tcp { ports, opens: true };
    for (name, subnets) in [("own-address", false), ("subnets", true)] {
        for count in [10, 1_000, 10_000] {
            let (filter, flows) = (rules(count, subnets), FlowTable::default());
            let all: Vec<_> = (0..1024u32).map(|n| n * 7919 % count).collect();
            let mut bench = |what: &str, packets: Vec<Headers>, is_admitted: bool| {
                let mut next = packets.iter().cycle();
                group.bench_function(format!("{name}/{count}-rules/{what}"), |b| {
                    b.iter(|| {
                        let verdict = next.next().map(|headers| filter.admit(headers, &flows, NOW));
                        assert_eq!(verdict.is_some_and(|verdict| verdict.is_ok()), is_admitted);
                    });
                });
            };
            let tcp = |n: &u32| packet(*n, n * 8 + 3, subnets, syn, protocol::TCP);
            bench("syn-allowed", all.iter().map(tcp).collect(), true);
            let stranger = |n: &u32| packet(*n, n * 8 + 11 + 8 * count, subnets, syn, protocol::TCP);
            bench("syn-denied", all.iter().map(stranger).collect(), false);
            let data = |n: &u32| packet(*n, 3, subnets, |ports| Content::Tcp { ports, opens: false }, protocol::TCP);
            bench("tcp-data", all.iter().map(data).collect(), true);
        }
    }

    let (filter, flows) = (rules(1_000, false), FlowTable::default());
    let ports = |n: u16| Ports { source: n, destination: 53 };
    let question = |n: u16| Headers {
        source: OWN.into(),
        destination: [100, 64, 0, 9].into(),
        protocol: protocol::UDP,
        content: Content::Datagram(ports(n)),
    };
    let answer = |n: u16| Headers {
        source: [100, 64, 0, 9].into(),
        destination: OWN.into(),
        protocol: protocol::UDP,
        content: Content::Datagram(Ports { source: 53, destination: n }),
    };
    let mut port = (0..1000u16).cycle();
    for n in 0..1000 {
        filter.release(&question(n), &flows, NOW).expect("an allowed question");
    }
    group.bench_function("udp-sent, 1,000 flows", |b| {
        b.iter(|| port.next().map(|n| filter.release(&question(n), &flows, NOW).is_ok()));
    });
    group.bench_function("udp-reply, 1,000 flows", |b| {
        b.iter(|| assert!(port.next().is_some_and(|n| filter.admit(&answer(n), &flows, NOW).is_ok())));
    });
    group.finish();

    let mut group = c.benchmark_group("filter-compile");
    group.sample_size(20);
    for count in [10, 1_000, 10_000] {
        group.bench_function(format!("{count}-rules"), |b| b.iter(|| rules(count, false)));
    }
    group.finish();
}

/// Runs of one flow, as batches have them, and runs in which every packet is of another flow than the one before.
fn packet_path(c: &mut Criterion) {
    let mut group = c.benchmark_group("filter-path");
    group.throughput(Throughput::Elements(RUN as u64));
    let pair = established(0);
    let (plain_a, plain_b) = (pair.a.plane.fib(), pair.b.plane.fib());
    let filter = || {
        let everything: Span = "0.0.0.0/0".parse().expect("a prefix");
        let mut rules = rules(1_000, false).rules().to_vec();
        rules.push(Rule {
            name: RuleName { filter: "base".into(), index: 1_000 },
            sources: [everything].into_iter().collect(),
            destinations: vec![Destination { addresses: everything, ports: 0..=u16::MAX }],
            protocols: Protocols::usual(),
        });
        Arc::new(Filter::new(rules, [everything].into_iter().collect(), pool()))
    };
    let (mut fib_a, mut fib_b) = ((*plain_a).clone(), (*plain_b).clone());
    fib_a.set_filter(filter());
    fib_b.set_filter(filter());
    let one = benches::packet(SMALL);
    let many: Vec<_> = (0..RUN as u8)
        .map(|n| {
            let mut packet = one.clone();
            packet[21] = n;
            packet
        })
        .collect();
    let now = pair.now;
    for (name, a, b) in [("without", &*plain_a, &*plain_b), ("with", &fib_a, &fib_b)] {
        group.bench_function(format!("outbound/one-flow/{name}"), |bench| {
            let (mut sink, mut reports) = (Scratch::default(), ReportBuffer::default());
            bench.iter(|| {
                a.outbound((0..RUN).map(|_| one.as_slice()), now, &mut sink, &mut reports);
                reports.notices.clear();
            });
            assert_eq!(reports.drops.total() as usize + reports.punts.len(), 0, "every packet was sealed");
        });
        group.bench_function(format!("outbound/many-flows/{name}"), |bench| {
            let (mut sink, mut reports) = (Scratch::default(), ReportBuffer::default());
            bench.iter(|| {
                a.outbound(many.iter().map(Vec::as_slice), now, &mut sink, &mut reports);
                reports.notices.clear();
            });
            assert_eq!(reports.drops.total() as usize + reports.punts.len(), 0, "every packet was sealed");
        });
        group.bench_function(format!("inbound/one-flow/{name}"), |bench| {
            let mut reports = ReportBuffer::default();
            bench.iter_batched_ref(
                || sealed(a, RUN, SMALL, now),
                |datagrams| {
                    let mut run = b.inbound(now);
                    for datagram in datagrams {
                        let inbound = run.handle(datagram, PathAddr::Udp(pair.a.address), &mut reports);
                        assert!(matches!(inbound, Inbound::Deliver { .. }));
                    }
                    reports.notices.clear();
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, verdicts, packet_path);
criterion_main!(benches);
