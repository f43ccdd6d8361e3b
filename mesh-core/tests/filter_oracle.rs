//! The packet filter against a slow evaluator: the same packets come in, for the same reasons.
//!
//! The evaluator shares nothing with the filter. It reads the rules as the texts in which they travel, one after the
//! other, and knows what a packet is because it made it; the filter gets a network map and bytes.

use std::{net::IpAddr, sync::Arc, time::Duration};

use proptest::{collection::vec, prelude::*, sample::select, test_runner::FileFailurePersistence};
use serde_json::{Value, json};

use mesh_core::{
    control::{NetMap, PacketFilter, netmap::decode},
    filter::{Explanation, Filter, FlowPool, FlowTable, Headers, Pass, Refusal},
    ip::{packet::IpPacket, set::Span},
    rng::Seed,
    time::{Instant, WallTime},
};

const NOW: WallTime = WallTime::from_unix_secs(1_800_000_000);
/// What the node has, and what is routed to it.
const LOCAL: [&str; 4] = ["100.64.0.1", "fd7a::1", "10.0.0.0/30", "fd00::/126"];
const V4: [&str; 10] = [
    "100.64.0.1",
    "100.64.0.2",
    "100.64.0.3",
    "100.64.0.4",
    "100.64.0.9",
    "10.0.0.1",
    "10.0.0.3",
    "10.0.0.4",
    "224.0.0.9",
    "169.254.1.1",
];
const V6: [&str; 10] =
    ["fd7a::1", "fd7a::2", "fd7a::3", "fd7a::4", "fd7a::9", "fd00::1", "fd00::3", "fd00::4", "ff02::1", "fe80::1"];
/// The peer with the capability `x` has these.
const HOLDER: [&str; 2] = ["100.64.0.3", "fd7a::3"];
const SPANS: [&str; 16] = [
    "*",
    "100.64.0.1",
    "100.64.0.2",
    "100.64.0.3",
    "100.64.0.0/30",
    "100.64.0.2-100.64.0.4",
    "10.0.0.0/31",
    "10.0.0.2/31",
    "0.0.0.0/0",
    "fd7a::1",
    "fd7a::2",
    "fd7a::/126",
    "fd7a::2-fd7a::4",
    "fd00::/127",
    "100.64.0.1/30",
    "nonsense",
];
const PORTS: [u16; 7] = [0, 1, 22, 23, 80, 1024, 65535];
const RANGES: [(u16, u16); 8] =
    [(0, 65535), (22, 22), (22, 80), (23, 1024), (1, 65535), (80, 22), (0, 0), (65535, 65535)];
const PROTOCOLS: [i64; 9] = [1, 6, 17, 58, 47, 99, 132, 300, -1];

const TCP: u8 = 6;
const UDP: u8 = 17;
const GRE: u8 = 47;
const TSMP: u8 = 99;
const SCTP: u8 = 132;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/regressions/filter_oracle.txt"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_filter_and_a_slow_evaluator_agree(rules in vec(rule(), 0..12), steps in vec(step(), 0..60)) {
        let filter = compile(&rules);
        let (flows, mut oracle) = (FlowTable::default(), Oracle { rules, flows: Vec::new() });
        let mut now = Instant::from_secs(1000);
        for step in steps {
            match step {
                Step::Wait(time) => now += time,
                Step::Send(packet) => {
                    let released = headers(&packet).and_then(|headers| filter.release(&headers, &flows, now));
                    prop_assert_eq!(released.is_ok(), oracle.release(&packet, now), "{:?}", packet);
                }
                Step::Receive(packet) => {
                    let expected = oracle.admit(&packet, now);
                    let headers = headers(&packet);
                    let explained = headers.map(|headers| filter.explain(&headers, &flows, now));
                    let admitted = headers.and_then(|headers| filter.admit(&headers, &flows, now));
                    match (&expected, admitted, explained) {
                        (Verdict::Refused, Err(error), explained) => {
                            let explained = explained.unwrap_or_else(Explanation::Refused);
                            prop_assert_eq!(explained, Explanation::Refused(error));
                        }
                        (Verdict::Passes, Ok(pass), Ok(explained)) => {
                            prop_assert_eq!(explained, Explanation::Passes(pass));
                            prop_assert_ne!(pass, Pass::Rule);
                        }
                        (Verdict::Rule(index), Ok(Pass::Rule), Ok(Explanation::Allowed(name))) => {
                            prop_assert_eq!((&*name.filter, name.index), ("base", *index));
                        }
                        (_, admitted, explained) => {
                            prop_assert!(false, "{packet:?}: {expected:?}, but {admitted:?}, {explained:?}");
                        }
                    }
                }
            }
        }
    }
}

/// The rules as they travel, so many of each verdict: a generator that only makes packets that are refused shows
/// nothing.
#[test]
fn the_generator_makes_packets_of_every_verdict() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let (mut refused, mut passed, mut by_rule, mut replies) = (0, 0, 0, 0);
    for _ in 0..200 {
        let (rules, steps) = (vec(rule(), 0..12), vec(step(), 0..60)).new_tree(&mut runner).unwrap().current();
        let mut oracle = Oracle { rules, flows: Vec::new() };
        let mut now = Instant::from_secs(1000);
        for step in steps {
            match step {
                Step::Wait(time) => now += time,
                Step::Send(packet) => {
                    oracle.release(&packet, now);
                }
                Step::Receive(packet) => match oracle.admit(&packet, now) {
                    Verdict::Refused => refused += 1,
                    Verdict::Passes if matches!(packet.body, Body::Ports { protocol: UDP | SCTP, .. }) => replies += 1,
                    Verdict::Passes => passed += 1,
                    Verdict::Rule(_) => by_rule += 1,
                },
            }
        }
    }
    let least = [refused, passed, by_rule, replies].into_iter().min();
    assert!(least > Some(20), "{refused} refused, {passed} passed, {by_rule} by a rule, {replies} replies");
}

#[derive(Clone, Debug)]
enum Step {
    Wait(Duration),
    Send(Packet),
    Receive(Packet),
}

/// A rule as it travels.
#[derive(Clone, Debug)]
struct WireRule {
    sources: Vec<String>,
    destinations: Vec<(String, u16, u16)>,
    protocols: Vec<i64>,
}

#[derive(Clone, Debug)]
struct Packet {
    source: IpAddr,
    destination: IpAddr,
    /// IPv6 headers before the body, by number; of a fragment its offset in blocks, and whether more follow.
    extensions: Vec<u8>,
    fragment: Option<(u16, bool)>,
    body: Body,
    /// Bytes that are cut off the end.
    cut: usize,
}

#[derive(Clone, Debug)]
enum Body {
    Ports { protocol: u8, from: u16, to: u16, flags: u8 },
    Icmp { protocol: u8, kind: u8, code: u8 },
    Bare(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (1u64..200).prop_map(|secs| Step::Wait(Duration::from_secs(secs))),
        4 => packet(true).prop_map(Step::Send),
        10 => packet(false).prop_map(Step::Receive),
    ]
}

fn rule() -> impl Strategy<Value = WireRule> {
    let source = prop_oneof![9 => select(&SPANS[..]), 1 => Just("cap:x"), 1 => Just("cap:y")];
    let destination = (select(&SPANS[..]), select(&RANGES[..]));
    (vec(source, 0..4), vec(destination, 0..4), vec(select(&PROTOCOLS[..]), 0..3)).prop_map(
        |(sources, destinations, protocols)| WireRule {
            sources: sources.into_iter().map(str::to_owned).collect(),
            destinations: destinations.into_iter().map(|(ip, (first, last))| (ip.to_owned(), first, last)).collect(),
            protocols,
        },
    )
}

/// Of what we send the source is ours, and of what comes the destination mostly.
fn packet(is_ours: bool) -> impl Strategy<Value = Packet> {
    let body = prop_oneof![
        4 => (select(&[TCP, UDP, UDP, SCTP][..]), select(&PORTS[..3]), select(&PORTS[..]), select(&[0x02u8, 0x12, 0x10, 0xc2][..]))
            .prop_map(|(protocol, from, to, flags)| Body::Ports { protocol, from, to, flags }),
        2 => (select(&[1u8, 58][..]), select(&[0u8, 3, 8, 11, 12, 18, 1, 2, 4, 128, 129, 135][..]), select(&[0u8, 0, 0, 1][..]))
            .prop_map(|(protocol, kind, code)| Body::Icmp { protocol, kind, code }),
        1 => select(&[GRE, TSMP, 255u8, 59, 50][..]).prop_map(Body::Bare),
    ];
    let fragment = prop_oneof![
        6 => Just(None),
        1 => (select(&[0u16, 1, 9, 10, 100][..]), any::<bool>()).prop_map(Some),
    ];
    let extensions = prop_oneof![3 => Just(vec![]), 1 => vec(select(&[0u8, 60, 43][..]), 0..3)];
    let cut = prop_oneof![8 => Just(0usize), 1 => 1usize..24];
    let addresses = (any::<bool>(), select(&[0usize, 0, 0, 1, 5, 6, 7, 8, 9][..]), 0usize..6);
    (addresses, body, fragment, extensions, cut).prop_map(
        move |((is_v6, near, far), body, fragment, extensions, cut)| {
            let pool = if is_v6 { V6 } else { V4 };
            let (near, far) =
                (pool[near].parse().expect("it is well formed"), pool[far].parse().expect("it is well formed"));
            let (source, destination) = if is_ours { (near, far) } else { (far, near) };
            let extensions = if is_v6 { extensions } else { vec![] };
            Packet { source, destination, extensions, fragment, body, cut }
        },
    )
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        let protocol = self.protocol();
        let mut body = match self.body {
            Body::Ports { protocol, from, to, flags } => {
                let mut bytes = vec![0; transport_header(protocol)];
                bytes[..2].copy_from_slice(&from.to_be_bytes());
                bytes[2..4].copy_from_slice(&to.to_be_bytes());
                if protocol == TCP {
                    bytes[13] = flags;
                }
                bytes
            }
            Body::Icmp { kind, code, .. } => vec![kind, code, 0, 0],
            Body::Bare(_) => vec![0; 24],
        };
        body.truncate(body.len().saturating_sub(self.cut));
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
                bytes[2..4].copy_from_slice(&(20 + body.len() as u16).to_be_bytes());
                if let Some((offset, more)) = self.fragment {
                    bytes[6..8].copy_from_slice(&(offset | u16::from(more) << 13).to_be_bytes());
                }
                bytes.extend(source.octets().into_iter().chain(destination.octets()).chain(body));
                bytes
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut kinds = self.extensions.clone();
                kinds.extend(self.fragment.map(|_| 44));
                kinds.push(protocol);
                let mut chain = Vec::new();
                for pair in kinds.windows(2) {
                    match (pair[0], self.fragment) {
                        (44, Some((offset, more))) => {
                            let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
                            chain.extend([pair[1], 0, high, low, 0, 0, 0, 7]);
                        }
                        _ => chain.extend([pair[1], 0, 0, 0, 0, 0, 0, 0]),
                    }
                }
                let mut bytes = vec![0x60, 0, 0, 0, 0, 0, kinds[0], 64];
                bytes[4..6].copy_from_slice(&((chain.len() + body.len()) as u16).to_be_bytes());
                bytes.extend(source.octets().into_iter().chain(destination.octets()).chain(chain).chain(body));
                bytes
            }
            _ => panic!("two families"),
        }
    }

    fn protocol(&self) -> u8 {
        match self.body {
            Body::Ports { protocol, .. } | Body::Icmp { protocol, .. } | Body::Bare(protocol) => protocol,
        }
    }

    /// Whether anybody can say what it is.
    fn is_clear(&self) -> bool {
        let is_part = self.fragment.is_some_and(|(offset, more)| offset > 0 || more);
        let is_whole_header = match self.body {
            Body::Ports { .. } => self.cut == 0,
            Body::Icmp { .. } => self.cut == 0 || !self.is_icmp(),
            Body::Bare(protocol) => protocol != 255,
        };
        let could_overwrite = self.fragment.is_some_and(|(offset, _)| (1..10).contains(&offset));
        let is_hidden = could_overwrite || is_part && self.protocol() == TSMP;
        !is_hidden && (self.is_later() || is_whole_header)
    }

    fn is_icmp(&self) -> bool {
        matches!(
            (&self.body, self.source),
            (Body::Icmp { protocol: 1, .. }, IpAddr::V4(_)) | (Body::Icmp { protocol: 58, .. }, IpAddr::V6(_))
        )
    }

    fn is_later(&self) -> bool {
        self.fragment.is_some_and(|(offset, _)| offset > 0)
    }
}

/// Bytes of the smallest header.
fn transport_header(protocol: u8) -> usize {
    match protocol {
        TCP => 20,
        UDP => 8,
        SCTP => 12,
        other => panic!("{other} has no ports"),
    }
}

#[derive(Debug)]
enum Verdict {
    Refused,
    /// Without a rule.
    Passes,
    /// By the rule at this place, which is the first.
    Rule(usize),
}

/// Protocol, our address and port, theirs.
type Flow = (u8, IpAddr, u16, IpAddr, u16);

/// Whether a rule is about what a packet wants, at one of its destinations.
type Allows<'a> = dyn Fn(&WireRule, &(String, u16, u16)) -> bool + 'a;

struct Oracle {
    rules: Vec<WireRule>,
    /// With the time until which it lasts, whether there were packets both ways, and whether the peer began.
    flows: Vec<(Flow, Instant, bool, bool)>,
}

impl Oracle {
    fn release(&mut self, packet: &Packet, now: Instant) -> bool {
        if !packet.is_clear() || !is_carried(packet.destination) {
            return false;
        }
        if let (Body::Ports { protocol: protocol @ (UDP | SCTP), from, to, .. }, false) =
            (&packet.body, packet.is_later())
        {
            let flow = (*protocol, packet.source, *from, packet.destination, *to);
            let open = self.flows.iter_mut().find(|(known, until, ..)| *known == flow && *until > now);
            if let Some((_, until, is_answered, true)) = open {
                // An answer to what the peer began.
                (*until, *is_answered) = (now + lasts(*protocol, true), true);
                return true;
            }
            let is_answered =
                self.flows.iter().any(|(known, until, answered, _)| *known == flow && *until > now && *answered);
            self.flows.retain(|(known, ..)| *known != flow);
            self.flows.push((flow, now + lasts(*protocol, is_answered), is_answered, false));
        }
        true
    }

    fn admit(&mut self, packet: &Packet, now: Instant) -> Verdict {
        let is_local = LOCAL.iter().any(|text| holds(text, packet.destination));
        if !packet.is_clear() || !is_carried(packet.destination) || !is_local {
            return Verdict::Refused;
        }
        if packet.is_later() {
            return Verdict::Passes;
        }
        let protocol = i64::from(packet.protocol());
        let by = |allows: &Allows<'_>| {
            let index = self.rules.iter().position(|rule| {
                let is_source = rule.sources.iter().any(|text| match text.strip_prefix("cap:") {
                    Some(name) => name == "x" && HOLDER.iter().any(|own| own.parse() == Ok(packet.source)),
                    None => holds(text, packet.source),
                });
                is_source
                    && rule
                        .destinations
                        .iter()
                        .any(|to| holds(&to.0, packet.destination) && to.1 <= to.2 && allows(rule, to))
            });
            index.map_or(Verdict::Refused, Verdict::Rule)
        };
        let names = |rule: &WireRule| match &rule.protocols[..] {
            [] => matches!(protocol, 1 | 6 | 17 | 58),
            named => named.contains(&protocol),
        };
        match packet.body {
            Body::Ports { protocol: TCP, flags, .. } if flags & 0x12 != 0x02 => Verdict::Passes,
            Body::Ports { protocol: TCP, to: port, .. } => by(&|rule, to| names(rule) && to.1 <= port && port <= to.2),
            Body::Ports { protocol, from, to: port, .. } => {
                let flow = (protocol, packet.destination, port, packet.source, from);
                let open = self.flows.iter_mut().find(|(known, until, ..)| *known == flow && *until > now);
                if let Some((_, until, is_answered, false)) = open {
                    (*until, *is_answered) = (now + lasts(protocol, true), true);
                    return Verdict::Passes;
                }
                let verdict = by(&|rule, to| names(rule) && to.1 <= port && port <= to.2);
                match (&verdict, open) {
                    (Verdict::Rule(_), Some((_, until, is_answered, _))) => {
                        *until = now + lasts(protocol, *is_answered)
                    }
                    (Verdict::Rule(_), None) => {
                        self.flows.retain(|(known, ..)| *known != flow);
                        self.flows.push((flow, now + lasts(protocol, false), false, true));
                    }
                    (Verdict::Refused | Verdict::Passes, _) => {}
                }
                verdict
            }
            Body::Icmp { kind, code, .. } if packet.is_icmp() => match (packet.source.is_ipv4(), kind, code) {
                (true, 0, 0) | (true, 3 | 11 | 12, _) | (false, 129, 0) | (false, 1..=4, _) => Verdict::Passes,
                _ => by(&|_, _| true),
            },
            Body::Bare(TSMP) => Verdict::Passes,
            Body::Icmp { .. } | Body::Bare(_) => by(&|rule, to| names(rule) && (to.1, to.2) == (0, 65535)),
        }
    }
}

fn lasts(protocol: u8, is_answered: bool) -> Duration {
    Duration::from_secs(match (protocol, is_answered) {
        (_, false) => 30,
        (SCTP, true) => 900,
        (_, true) => 180,
    })
}

fn is_carried(address: IpAddr) -> bool {
    !["224.0.0.0/4", "169.254.0.0/16", "ff00::/8", "fe80::/10"].iter().any(|text| holds(text, address))
}

/// Whether a text of a rule means an address.
fn holds(text: &str, address: IpAddr) -> bool {
    let number = |text: &str| {
        text.parse().ok().map(|address| match address {
            IpAddr::V4(v4) => (true, u128::from(v4.to_bits())),
            IpAddr::V6(v6) => (false, v6.to_bits()),
        })
    };
    let Some((is_v4, address)) = number(&address.to_string()) else { return false };
    if text == "*" {
        return true;
    }
    if let Some((first, last)) = text.split_once('-') {
        return number(first).zip(number(last)).is_some_and(|(first, last)| {
            first.0 == is_v4 && last.0 == is_v4 && first.1 <= address && address <= last.1
        });
    }
    let (start, length) =
        text.split_once('/').map_or((text, None), |(start, length)| (start, length.parse::<u32>().ok()));
    number(start).is_some_and(|(family, start)| {
        let width = if family { 32 } else { 128 };
        let size = 1u128.checked_shl(width - length.unwrap_or(width));
        // A prefix with bits behind its length is none.
        family == is_v4 && size.is_none_or(|size| start % size == 0 && address / size == start / size)
    })
}

fn compile(rules: &[WireRule]) -> Filter {
    let key = |digit: &str| format!("nodekey:{}", digit.repeat(64));
    let rules: Vec<Value> = rules
        .iter()
        .map(|rule| {
            let to =
                |(ip, first, last): &(String, u16, u16)| json!({"IP": ip, "Ports": {"First": first, "Last": last}});
            let to: Vec<_> = rule.destinations.iter().map(to).collect();
            json!({"SrcIPs": rule.sources, "DstPorts": to, "IPProto": rule.protocols})
        })
        .collect();
    let holder: Vec<_> =
        HOLDER.iter().map(|address| format!("{address}/{}", if address.contains(':') { 128 } else { 32 })).collect();
    let map = json!({
        "Node": {"ID": 1, "Key": key("1")},
        "PacketFilters": {"base": rules},
        "Peers": [{"ID": 2, "Key": key("2"), "Addresses": holder, "CapMap": {"x": null}}],
    });
    let mut netmap = NetMap::new();
    netmap.apply(decode(map.to_string().as_bytes(), None).expect("it is well formed"), NOW).expect("it is well formed");
    let local = LOCAL.iter().map(|text| text.parse::<Span>().expect("it is well formed")).collect();
    let pool = Arc::new(FlowPool::new(&mut Seed::from_number(1).stream("flows", 0)));
    Filter::new(PacketFilter::of(&netmap).rules, local, pool)
}

fn headers(packet: &Packet) -> Result<Headers, Refusal> {
    let bytes = packet.bytes();
    Headers::of(&view(&bytes)).map_err(Refusal::from)
}

fn view(bytes: &[u8]) -> IpPacket<'_> {
    IpPacket::parse(bytes).expect("the IP header is good")
}
