//! IP packets, prefixes and routes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use mesh_core::{
    filter::{Content, Headers},
    ip::{
        checksum::checksum,
        icmp::Echo,
        packet::{IpPacket, protocol},
        prefix::Prefix,
    },
    routes::RouteTable,
};

use crate::script::Script;

/// A packet lies within the bytes, and without what lay behind it, it is the same packet.
///
/// # Panics
/// When it does not.
pub fn packet(data: &[u8]) {
    let Ok(packet) = IpPacket::parse(data) else { return };
    assert_eq!(packet.bytes(), &data[..packet.bytes().len()]);
    assert!(packet.bytes().ends_with(packet.payload()));
    let header = packet.bytes().len() - packet.payload().len();
    match (packet.source(), packet.destination(), data[0] >> 4) {
        (IpAddr::V4(source), IpAddr::V4(destination), 4) => {
            assert_eq!((&data[12..16], &data[16..20]), (&source.octets()[..], &destination.octets()[..]));
            assert_eq!((header, packet.protocol()), (usize::from(data[0] & 15) * 4, data[9]));
        }
        (IpAddr::V6(source), IpAddr::V6(destination), 6) => {
            assert_eq!((&data[8..24], &data[24..40]), (&source.octets()[..], &destination.octets()[..]));
            assert_eq!((header, packet.protocol()), (40, data[6]));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(IpPacket::parse(packet.bytes()), Ok(packet));
    if packet.is_later_fragment() {
        assert!(packet.source().is_ipv4());
        assert_eq!(Echo::parse(&packet), None);
    }
    if let Ok(headers) = Headers::of(&packet) {
        assert_eq!((headers.source, headers.destination), (packet.source(), packet.destination()));
        let fits = match headers.content {
            Content::Tcp { .. } => headers.protocol == protocol::TCP,
            Content::Datagram(_) => matches!(headers.protocol, protocol::UDP | protocol::SCTP),
            Content::Icmp(_) => matches!(headers.protocol, protocol::ICMP | protocol::ICMPV6),
            Content::Tsmp => headers.protocol == protocol::TSMP,
            Content::LaterFragment => packet.is_later_fragment() || packet.source().is_ipv6(),
            Content::Other => !matches!(headers.protocol, protocol::TCP | protocol::UDP | protocol::TSMP),
        };
        assert!(fits, "{headers:?}");
        assert!(!packet.is_later_fragment() || headers.content == Content::LaterFragment);
    }
    for cut in 0..packet.bytes().len().min(64) {
        assert!(IpPacket::parse(&packet.bytes()[..cut]).is_err(), "a part of a packet is none");
    }
}

/// An echo that is read can be built again, with right checksums.
///
/// # Panics
/// When it cannot.
pub fn echo(data: &[u8]) {
    let Ok(packet) = IpPacket::parse(data) else { return };
    let Some(echo) = Echo::parse(&packet) else { return };
    assert!(matches!(packet.protocol(), protocol::ICMP | protocol::ICMPV6));
    let Some(built) = echo.packet(packet.source(), packet.destination()) else {
        // Without the options that it came with it is not longer, so only a longest one may not fit.
        assert!(packet.payload().len() > 60_000);
        return;
    };
    let view = IpPacket::parse(&built).expect("what we build is a packet");
    assert_eq!((view.source(), view.destination()), (packet.source(), packet.destination()));
    match Echo::parse(&view) {
        Some(again) => assert_eq!(again, echo),
        // A type of the other family: ICMP's numbers in ICMPv6 and the other way round mean something else.
        None => panic!("what we build is an echo"),
    }
    if view.source().is_ipv4() {
        assert_eq!((checksum(&built[..20]), checksum(&built[20..])), (0, 0));
    }
}

/// What reads as a prefix prints as a text that reads as the same prefix.
///
/// # Panics
/// When it does not.
pub fn prefix(data: &[u8]) {
    let Ok(text) = core::str::from_utf8(data) else { return };
    let Ok(prefix) = text.parse::<Prefix>() else { return };
    assert_eq!(prefix.to_string().parse(), Ok(prefix));
    assert_eq!(Prefix::new(prefix.address(), prefix.length()), Some(prefix));
    assert!(prefix.contains(prefix.address()));
    assert_eq!(prefix.is_host(), prefix == Prefix::host(prefix.address()));
    let written: IpAddr = text.split('/').next().unwrap_or_default().parse().expect("the part before the slash");
    assert!(prefix.contains(written));
    assert_eq!(written.is_ipv4(), prefix.address().is_ipv4());
}

/// A script of insertions, removals and copies of a table, against a list that is searched slowly.
///
/// # Panics
/// When they differ.
pub fn routes(data: &[u8]) {
    let mut script = Script::new(data);
    let mut table = RouteTable::new();
    let mut model: BTreeMap<Prefix, u16> = BTreeMap::new();
    let mut snapshot = (table.clone(), model.clone());
    let mut number = 0;
    for _ in 0..300 {
        if script.is_done() {
            break;
        }
        let what = script.byte();
        let address = address(&mut script, what & 0x80 != 0);
        match what & 3 {
            0 | 1 => {
                let prefix = prefix_of(address, script.byte());
                number += 1;
                table.insert(prefix, number);
                model.insert(prefix, number);
            }
            2 => {
                let prefix = prefix_of(address, script.byte());
                table.remove(prefix);
                model.remove(&prefix);
            }
            _ if what & 4 != 0 => snapshot = (table.clone(), model.clone()),
            _ => {}
        }
        assert_eq!(table.lookup(address), slow_lookup(&model, address));
        assert_eq!(snapshot.0.lookup(address), slow_lookup(&snapshot.1, address), "a copy keeps what it had");
    }
    for (table, model) in [(&table, &model), (&snapshot.0, &snapshot.1)] {
        for (prefix, value) in model {
            assert_eq!(table.get(*prefix), Some(value));
            assert_eq!(table.lookup(prefix.address()), slow_lookup(model, prefix.address()));
        }
    }
}

fn slow_lookup(model: &BTreeMap<Prefix, u16>, address: IpAddr) -> Option<&u16> {
    let matching = model.iter().filter(|(prefix, _)| prefix.contains(address));
    matching.max_by_key(|(prefix, _)| prefix.length()).map(|(_, value)| value)
}

/// Few bytes make an address, so that prefixes nest and collide; they stand at both ends and in the middle.
fn address(script: &mut Script<'_>, is_v6: bool) -> IpAddr {
    let [high, middle, low] = script.array();
    if is_v6 {
        let mut octets = [0; 16];
        (octets[0], octets[7], octets[8], octets[15]) = (high, middle, middle, low);
        Ipv6Addr::from(octets).into()
    } else {
        Ipv4Addr::new(high, middle, 0, low).into()
    }
}

fn prefix_of(address: IpAddr, length: u8) -> Prefix {
    let longest = Prefix::host(address).length();
    Prefix::new(address, length % (longest + 1)).expect("the length fits the family")
}
