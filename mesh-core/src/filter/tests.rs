use core::time::Duration;

use super::*;
use crate::{
    ip::packet::{IpPacket, protocol},
    limits,
    rng::Seed,
};

const NOW: Instant = Instant::from_secs(1000);

/// An IP packet; the family is that of `source`.
fn packet(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap();
    let mut bytes;
    match (source.parse().unwrap(), destination.parse().unwrap()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
            bytes[2..4].copy_from_slice(&(length + 20).to_be_bytes());
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            bytes = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
            bytes[4..6].copy_from_slice(&length.to_be_bytes());
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
        }
        _ => panic!("two families"),
    }
    bytes.extend(payload);
    bytes
}

fn headers(bytes: &[u8]) -> Result<Headers, HeadersError> {
    Headers::of(&view(bytes))
}

fn view(bytes: &[u8]) -> IpPacket<'_> {
    IpPacket::parse(bytes).unwrap()
}

fn ports(from: u16, to: u16, length: usize) -> Vec<u8> {
    let mut payload = vec![0; length];
    payload[..2].copy_from_slice(&from.to_be_bytes());
    payload[2..4].copy_from_slice(&to.to_be_bytes());
    payload
}

fn tcp(source: &str, destination: &str, port: u16, flags: u8) -> Headers {
    let mut payload = ports(40_000, port, 20);
    payload[13] = flags;
    headers(&packet(source, destination, protocol::TCP, &payload)).unwrap()
}

fn udp(source: &str, from: u16, destination: &str, to: u16) -> Headers {
    headers(&packet(source, destination, protocol::UDP, &ports(from, to, 8))).unwrap()
}

fn icmp(source: &str, destination: &str, kind: u8) -> Headers {
    let protocol = if source.contains(':') { protocol::ICMPV6 } else { protocol::ICMP };
    headers(&packet(source, destination, protocol, &[kind, 0, 0, 0, 0, 0, 0, 0])).unwrap()
}

fn rule(index: usize, sources: &[&str], to: &str, ports: core::ops::RangeInclusive<u16>, protocols: &[u8]) -> Rule {
    let span = |text: &str| text.parse::<Span>().unwrap();
    Rule {
        name: RuleName { filter: "base".into(), index },
        sources: sources.iter().map(|text| span(text)).collect(),
        destinations: vec![Destination { addresses: span(to), ports }],
        protocols: if protocols.is_empty() { Protocols::usual() } else { protocols.iter().copied().collect() },
    }
}

fn filter(rules: Vec<Rule>) -> Filter {
    let local = ["100.64.0.1", "fd7a::1", "10.9.0.0/16"].iter().map(|text| text.parse::<Span>().unwrap()).collect();
    Filter::new(rules, local, Arc::new(FlowPool::new(&mut Seed::from_number(1).stream("flows", 0))))
}

fn admit(filter: &Filter, headers: &Headers) -> Result<Pass, Refusal> {
    filter.admit(headers, &FlowTable::default(), NOW)
}

#[test]
fn without_rules_nothing_is_opened_and_answers_come_in() {
    let filter = filter(vec![]);
    let (them, us) = ("100.64.0.2", "100.64.0.1");
    assert_eq!(admit(&filter, &tcp(them, us, 22, 0x02)), Err(Refusal::Denied));
    assert_eq!(admit(&filter, &udp(them, 53, us, 999)), Err(Refusal::Denied));
    assert_eq!(admit(&filter, &icmp(them, us, 8)), Err(Refusal::Denied));
    for flags in [0x12, 0x10, 0x04, 0x11, 0x00] {
        assert_eq!(admit(&filter, &tcp(them, us, 22, flags)), Ok(Pass::Established));
    }
    for kind in [0, 3, 11, 12] {
        assert_eq!(admit(&filter, &icmp(them, us, kind)), Ok(Pass::IcmpAnswer));
    }
    for kind in [1, 2, 3, 4, 129] {
        assert_eq!(admit(&filter, &icmp("fd7a::2", "fd7a::1", kind)), Ok(Pass::IcmpAnswer));
    }
    for kind in [128, 135, 0] {
        assert_eq!(admit(&filter, &icmp("fd7a::2", "fd7a::1", kind)), Err(Refusal::Denied));
    }
    let tsmp = headers(&packet(them, us, protocol::TSMP, b"p12345678")).unwrap();
    assert_eq!(admit(&filter, &tsmp), Ok(Pass::Tsmp));
}

#[test]
fn a_rule_opens_its_ports_to_its_sources_and_nothing_else() {
    let filter = filter(vec![rule(0, &["100.64.0.2", "fd7a::2"], "100.64.0.1", 22..=23, &[])]);
    let us = "100.64.0.1";
    assert_eq!(admit(&filter, &tcp("100.64.0.2", us, 22, 0x02)), Ok(Pass::Rule));
    assert_eq!(admit(&filter, &udp("100.64.0.2", 1, us, 23)), Ok(Pass::Rule));
    assert_eq!(admit(&filter, &tcp("100.64.0.2", us, 24, 0x02)), Err(Refusal::Denied));
    assert_eq!(admit(&filter, &tcp("100.64.0.3", us, 22, 0x02)), Err(Refusal::Denied));
    assert_eq!(admit(&filter, &tcp("fd7a::2", "fd7a::1", 22, 0x02)), Err(Refusal::Denied));
    assert_eq!(admit(&filter, &tcp("100.64.0.2", "10.9.1.1", 22, 0x02)), Err(Refusal::Denied));
    assert_eq!(admit(&filter, &icmp("100.64.0.2", us, 8)), Ok(Pass::Rule), "a port is open, so it may be pinged");
    assert_eq!(admit(&filter, &icmp("100.64.0.3", us, 8)), Err(Refusal::Denied));
}

#[test]
fn protocols_without_ports_need_a_rule_that_names_them_and_all_ports() {
    const GRE: u8 = 47;
    let gre = headers(&packet("100.64.0.2", "100.64.0.1", GRE, &[0; 8])).unwrap();
    let sctp = headers(&packet("100.64.0.2", "100.64.0.1", protocol::SCTP, &ports(1, 80, 12))).unwrap();
    let with = |ports, protocols: &[u8]| filter(vec![rule(0, &["100.64.0.0/10"], "100.64.0.1", ports, protocols)]);
    assert_eq!(admit(&with(0..=u16::MAX, &[]), &gre), Err(Refusal::Denied));
    assert_eq!(admit(&with(0..=u16::MAX, &[GRE]), &gre), Ok(Pass::Rule));
    assert_eq!(admit(&with(0..=80, &[GRE]), &gre), Err(Refusal::Denied));
    assert_eq!(admit(&with(80..=80, &[]), &sctp), Err(Refusal::Denied));
    assert_eq!(admit(&with(80..=80, &[protocol::SCTP]), &sctp), Ok(Pass::Rule));
    // ICMP of the other family is any other protocol.
    let foreign = headers(&packet("100.64.0.2", "100.64.0.1", protocol::ICMPV6, &[129, 0, 0, 0])).unwrap();
    assert_eq!(foreign.content, Content::Other);
    assert_eq!(admit(&with(80..=80, &[]), &foreign), Err(Refusal::Denied));
}

#[test]
fn only_our_addresses_are_reached() {
    let filter = filter(vec![
        rule(0, &["0.0.0.0/0"], "0.0.0.0/0", 0..=u16::MAX, &[]),
        rule(1, &["::/0"], "::/0", 0..=u16::MAX, &[]),
    ]);
    let open = |to: &str| admit(&filter, &tcp(if to.contains(':') { "fd7a::2" } else { "100.64.0.2" }, to, 22, 0x02));
    assert_eq!(open("10.9.255.255"), Ok(Pass::Rule), "routed to us");
    assert_eq!(open("10.10.0.0"), Err(Refusal::NotLocal));
    assert_eq!(open("100.64.0.3"), Err(Refusal::NotLocal));
    assert_eq!(open("fd7a::3"), Err(Refusal::NotLocal));
    assert_eq!(open("224.0.0.1"), Err(Refusal::Multicast));
    assert_eq!(open("ff02::1"), Err(Refusal::Multicast));
    assert_eq!(open("169.254.1.1"), Err(Refusal::LinkLocal));
    assert_eq!(open("169.254.169.254"), Err(Refusal::NotLocal), "not refused for being link-local");
    assert_eq!(open("fe80::1"), Err(Refusal::LinkLocal));
    assert_eq!(admit(&filter, &tcp("100.64.0.2", "100.64.0.3", 22, 0x10)), Err(Refusal::NotLocal));
}

#[test]
fn replies_come_in_while_the_flow_lasts() {
    let (filter, flows) = (filter(vec![]), FlowTable::default());
    let question = udp("100.64.0.1", 5000, "100.64.0.2", 53);
    let answer = udp("100.64.0.2", 53, "100.64.0.1", 5000);
    let after = |secs| NOW + Duration::from_secs(secs);
    assert_eq!(filter.admit(&answer, &flows, NOW), Err(Refusal::Denied), "nothing was asked");
    filter.release(&question, &flows, NOW).unwrap();
    assert_eq!(filter.explain(&answer, &flows, after(29)), Explanation::Passes(Pass::Reply));
    assert_eq!(filter.admit(&answer, &flows, after(31)), Err(Refusal::Denied), "a question is answered soon");
    filter.release(&question, &flows, after(40)).unwrap();
    assert_eq!(filter.admit(&answer, &flows, after(50)), Ok(Pass::Reply));
    assert_eq!(filter.admit(&answer, &flows, after(50 + 179)), Ok(Pass::Reply), "a conversation lasts longer");
    assert_eq!(filter.admit(&answer, &flows, after(229 + 181)), Err(Refusal::Denied));

    for other in [
        udp("100.64.0.2", 54, "100.64.0.1", 5000),
        udp("100.64.0.2", 53, "100.64.0.1", 5001),
        udp("100.64.0.3", 53, "100.64.0.1", 5000),
        udp("100.64.0.2", 53, "10.9.0.1", 5000),
        Headers { protocol: protocol::SCTP, ..answer },
    ] {
        filter.release(&question, &flows, after(500)).unwrap();
        assert_eq!(filter.admit(&other, &flows, after(500)), Err(Refusal::Denied), "{other:?} is of another flow");
    }
    assert_eq!(filter.admit(&answer, &FlowTable::default(), after(500)), Err(Refusal::Denied), "nor is another peer's");
}

#[test]
fn a_flow_that_the_peer_began_ends_with_the_rule_that_let_it() {
    let (open, shut) = (filter(vec![rule(0, &["100.64.0.2"], "100.64.0.1", 53..=53, &[])]), filter(vec![]));
    // One node has one pool for all its filters.
    let shut = Filter { pool: Arc::clone(&open.pool), ..shut };
    let flows = FlowTable::default();
    let (question, answer) = (udp("100.64.0.2", 5000, "100.64.0.1", 53), udp("100.64.0.1", 53, "100.64.0.2", 5000));
    for _ in 0..3 {
        assert_eq!(open.admit(&question, &flows, NOW), Ok(Pass::Rule), "an answer does not make it a reply");
        open.release(&answer, &flows, NOW).unwrap();
    }
    shut.release(&answer, &flows, NOW).unwrap();
    assert_eq!(shut.admit(&question, &flows, NOW), Err(Refusal::Denied));
    // What we began goes on, whatever the rules were.
    let (ours, theirs) = (udp("100.64.0.1", 6000, "100.64.0.2", 53), udp("100.64.0.2", 53, "100.64.0.1", 6000));
    open.release(&ours, &flows, NOW).unwrap();
    assert_eq!(shut.admit(&theirs, &flows, NOW), Ok(Pass::Reply));
    // When all has been silent for long, whoever speaks first begins anew.
    let later = NOW + ANSWERED_FOR + Duration::from_secs(1);
    shut.release(&answer, &flows, later).unwrap();
    assert_eq!(shut.admit(&question, &flows, later), Ok(Pass::Reply));
}

#[test]
fn what_peers_begin_takes_few_slots_and_none_of_ours() {
    let filter = filter(vec![rule(0, &["100.64.0.2"], "100.64.0.1", 53..=53, &[])]);
    let flows = FlowTable::default();
    for port in 0..200 {
        filter.release(&udp("100.64.0.1", port, "100.64.0.2", 9), &flows, NOW).unwrap();
    }
    for port in 1_000..60_000 {
        assert_eq!(filter.admit(&udp("100.64.0.2", port, "100.64.0.1", 53), &flows, NOW), Ok(Pass::Rule));
    }
    for port in 0..200 {
        assert_eq!(filter.admit(&udp("100.64.0.2", 9, "100.64.0.1", port), &flows, NOW), Ok(Pass::Reply));
    }
    let taken: usize = limits::FLOWS_PER_PEER[..2].iter().sum();
    assert_eq!(format!("{:?}", filter.pool), format!("FlowPool({} slots free)", limits::FLOWS - taken));
}

#[test]
fn what_is_not_carried_does_not_leave() {
    let (filter, flows) = (filter(vec![]), FlowTable::default());
    let to = |destination| filter.release(&udp("100.64.0.1", 1, destination, 2), &flows, NOW);
    assert_eq!(to("239.1.2.3"), Err(Refusal::Multicast));
    assert_eq!(to("169.254.3.3"), Err(Refusal::LinkLocal));
    assert_eq!(to("169.254.169.254"), Ok(()));
}

#[test]
fn many_flows_fit_and_the_first_to_end_makes_room() {
    let (filter, flows) = (filter(vec![]), FlowTable::default());
    let most: usize = limits::FLOWS_PER_PEER.iter().sum();
    let flow = |n: usize| ((n / 60_000) as u16 + 1, (n % 60_000) as u16);
    let many = most * 2;
    for n in 0..many {
        let (from, to) = flow(n);
        filter
            .release(&udp("100.64.0.1", from, "100.64.0.2", to), &flows, NOW + Duration::from_millis(n as u64 / 10))
            .unwrap();
    }
    let open = |n: usize| {
        let (from, to) = flow(n);
        filter.explain(&udp("100.64.0.2", to, "100.64.0.1", from), &flows, NOW + Duration::from_secs(4))
            == Explanation::Passes(Pass::Reply)
    };
    let held = (0..many).filter(|n| open(*n)).count();
    assert!(held <= most && held > most * 9 / 10, "{held} of {many} are held, there is room for {most}");
    assert_eq!(filter.pool.counts().evicted as usize, many - held);
    assert!((many - 100..many).all(open), "the newest are there");
}

#[test]
fn steps_go_back_to_the_pool_with_their_peer() {
    let filter = filter(vec![]);
    let free = || format!("{:?}", filter.pool);
    let before = free();
    let flows = FlowTable::default();
    assert_eq!(free(), before, "an idle peer costs nothing");
    filter.release(&udp("100.64.0.1", 1, "100.64.0.2", 2), &flows, NOW).unwrap();
    assert_ne!(free(), before);
    drop(flows);
    assert_eq!(free(), before);
}

#[test]
fn an_empty_pool_means_no_flows_and_no_harm() {
    let filter = filter(vec![]);
    let tables: Vec<_> = (0..limits::FLOWS / limits::FLOWS_PER_PEER[0])
        .map(|_| {
            let flows = FlowTable::default();
            filter.release(&udp("100.64.0.1", 1, "100.64.0.2", 2), &flows, NOW).unwrap();
            flows
        })
        .collect();
    assert_eq!(filter.pool.counts(), FlowCounts::default());
    let late = FlowTable::default();
    filter.release(&udp("100.64.0.1", 1, "100.64.0.2", 2), &late, NOW).unwrap();
    assert_eq!(filter.admit(&udp("100.64.0.2", 2, "100.64.0.1", 1), &late, NOW), Err(Refusal::Denied));
    assert_eq!(filter.pool.counts(), FlowCounts { evicted: 0, unnoted: 1 }, "there was nothing to forget");
    assert_eq!(filter.admit(&udp("100.64.0.2", 2, "100.64.0.1", 1), &tables[7], NOW), Ok(Pass::Reply));
}

#[test]
fn explanations_name_the_first_rule() {
    let filter = filter(vec![
        rule(0, &["100.64.0.3"], "100.64.0.1", 22..=22, &[]),
        rule(1, &["100.64.0.0/10"], "100.64.0.1", 20..=30, &[]),
        rule(2, &["100.64.0.2"], "100.64.0.1", 22..=22, &[]),
    ]);
    let explain = |headers| filter.explain(&headers, &FlowTable::default(), NOW);
    let name = RuleName { filter: "base".into(), index: 1 };
    assert_eq!(name.to_string(), "base[1]");
    assert_eq!(explain(tcp("100.64.0.2", "100.64.0.1", 22, 2)), Explanation::Allowed(name));
    assert_eq!(explain(tcp("100.64.0.2", "100.64.0.1", 80, 2)), Explanation::Refused(Refusal::Denied));
    assert_eq!(explain(tcp("100.64.0.2", "100.64.0.1", 80, 16)), Explanation::Passes(Pass::Established));
}

#[test]
fn rules_past_the_bound_admit_nothing_and_are_counted() {
    // Each crosses all others: half of the square of their number.
    let rules: Vec<_> = (0..3000u32)
        .map(|n| {
            let addresses = Span::new(IpAddr::V4(n.into()), IpAddr::V4((n + 3000).into())).unwrap();
            let mut rule = rule(n as usize, &["100.64.0.2"], "0.0.0.0", 22..=22, &[]);
            rule.destinations[0].addresses = addresses;
            rule
        })
        .chain([rule(3000, &["100.64.0.2"], "100.64.0.1", 80..=80, &[])])
        .collect();
    let filter = filter(rules);
    assert!(filter.left_out() > 1000, "{}", filter.left_out());
    assert_eq!(admit(&filter, &tcp("100.64.0.2", "100.64.0.1", 80, 2)), Err(Refusal::Denied));
}

#[test]
fn headers_that_hide_what_a_packet_is_are_refused() {
    let (them, us) = ("100.64.0.2", "100.64.0.1");
    let fragment = |protocol, payload: &[u8], field: u16| {
        let mut bytes = packet(them, us, protocol, payload);
        bytes[6..8].copy_from_slice(&field.to_be_bytes());
        headers(&bytes).map(|headers| headers.content)
    };
    const MORE: u16 = 0x2000;
    let syn = Content::Tcp { ports: Ports { source: 1, destination: 22 }, opens: false };
    assert_eq!(fragment(protocol::TCP, &ports(1, 22, 24), MORE), Ok(syn));
    assert_eq!(fragment(protocol::TCP, &ports(1, 22, 16), MORE), Err(HeadersError::Fragment));
    assert_eq!(fragment(protocol::TCP, &ports(1, 22, 16), 0), Err(HeadersError::Unknown));
    assert_eq!(fragment(protocol::TCP, &[0; 16], 9), Err(HeadersError::Fragment));
    assert_eq!(fragment(protocol::TCP, &[0; 16], 10), Ok(Content::LaterFragment));
    assert_eq!(fragment(protocol::TCP, &[0; 16], 10 | MORE), Ok(Content::LaterFragment));
    assert_eq!(fragment(protocol::TSMP, b"p1234567", MORE), Err(HeadersError::Fragment));
    assert_eq!(fragment(protocol::TSMP, b"p1234567", 10), Err(HeadersError::Fragment));
    assert_eq!(fragment(protocol::UDP, &[0; 7], 0), Err(HeadersError::Unknown));
    assert_eq!(fragment(protocol::SCTP, &[0; 11], 0), Err(HeadersError::Unknown));
    assert_eq!(fragment(protocol::ICMP, &[0; 3], 0), Err(HeadersError::Unknown));
    assert_eq!(fragment(255, &[0; 30], 0), Err(HeadersError::Unknown));
}

#[test]
fn ipv6_extension_headers_are_walked() {
    let with = |chain: &[(u8, &[u8])], last: u8| {
        let mut payload = Vec::new();
        for (number, (_, body)) in chain.iter().enumerate() {
            let next = chain.get(number + 1).map_or(last, |(kind, _)| *kind);
            payload.push(next);
            payload.extend(*body);
        }
        payload.extend(ports(1, 53, 8));
        headers(&packet("fd7a::2", "fd7a::1", chain[0].0, &payload)).map(|headers| (headers.protocol, headers.content))
    };
    let udp = Ok((protocol::UDP, Content::Datagram(Ports { source: 1, destination: 53 })));
    let options = [0, 1, 4, 0, 0, 0, 0];
    assert_eq!(with(&[(0, &options)], 17), udp);
    assert_eq!(with(&[(0, &options), (60, &options), (43, &[0, 0, 0, 0, 0, 0, 0])], 17), udp);
    assert_eq!(with(&[(0, &options), (44, &[0; 7])], 17), udp, "a fragment that is all");
    assert_eq!(with(&[(43, &[0, 0, 1, 0, 0, 0, 0])], 17), Err(HeadersError::Unknown), "goes on to somewhere else");
    assert_eq!(with(&[(44, &[0, 0, 1, 0, 0, 0, 9])], 17), udp, "a first fragment");
    assert_eq!(with(&[(44, &[0, 0, 1, 0, 0, 0, 9])], 6), Err(HeadersError::Fragment), "too short for TCP");
    assert_eq!(with(&[(44, &[0, 0, 8, 0, 0, 0, 9])], 17), Err(HeadersError::Fragment), "could overwrite");
    assert_eq!(with(&[(44, &[0, 0, 80, 0, 0, 0, 9])], 17), Ok((17, Content::LaterFragment)));
    assert_eq!(with(&[(44, &[0, 0, 1, 0, 0, 0, 9]), (44, &[0; 7])], 17), Err(HeadersError::Fragment));
    assert_eq!(with(&[(60, &[9, 0, 0, 0, 0, 0, 0])], 17), Err(HeadersError::Unknown), "cut off");
    assert_eq!(with(&[(60, &options[..]); 7], 17), udp);
    assert_eq!(with(&[(60, &options[..]); 8], 17), Err(HeadersError::Unknown), "no end");
    assert_eq!(with(&[(0, &options)], 59), Ok((59, Content::Other)));
}
