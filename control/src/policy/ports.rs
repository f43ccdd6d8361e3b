//! Ports and protocols as a policy writes them.

use mesh_core::control::types::PortRange;

use super::limits;

/// Names of protocols, and the numbers they stand for.
const NAMES: &[(&str, u8)] = &[
    ("icmp", 1),
    ("igmp", 2),
    ("ipv4", 4),
    ("ip-in-ip", 4),
    ("tcp", 6),
    ("egp", 8),
    ("igp", 9),
    ("udp", 17),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("ipv6-icmp", 58),
    ("sctp", 132),
    ("fc", 133),
];

/// ICMP of IPv4.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMP of IPv6.
pub const ICMPV6: u8 = 58;
/// SCTP.
pub const SCTP: u8 = 132;

/// What a rule without a protocol admits.
pub const USUAL: [u8; 4] = [TCP, UDP, ICMP, ICMPV6];

/// A protocol as a rule names it; none is the usual ones, [`USUAL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Protocol(pub Option<u8>);

impl Protocol {
    /// Reads a name or a number; an empty text is none.
    ///
    /// # Errors
    /// Why it is neither.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        if let Some((_, number)) = NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)) {
            return Ok(Self(Some(*number)));
        }
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!(
                "proto name {text:?} not known; use protocol number 0-255 or protocol name (icmp, tcp, udp, etc.)"
            ));
        }
        if text.starts_with('0') {
            return Err("leading 0 not permitted in protocol number".into());
        }
        match text.parse() {
            Ok(number) => Ok(Self(Some(number))),
            Err(_) => Err("protocol number out of range (0-255)".into()),
        }
    }

    /// Whether ports mean something.
    #[must_use]
    pub fn has_ports(self) -> bool {
        matches!(self.0, None | Some(TCP | UDP | SCTP))
    }

    /// Whether it admits packets of a protocol.
    #[must_use]
    pub fn admits(self, protocol: u8) -> bool {
        self.0.map_or_else(|| USUAL.contains(&protocol), |number| number == protocol)
    }

    /// As a filter rule says it.
    #[must_use]
    pub fn wire(self) -> Vec<i64> {
        self.0.map(i64::from).into_iter().collect()
    }
}

/// Reads `*`, `n`, `a-b` and lists of these.
///
/// # Errors
/// Which range is wrong, and why.
pub fn parse_ports(text: &str) -> Result<Vec<PortRange>, String> {
    let mut ranges = Vec::new();
    for part in text.split(',').map(str::trim) {
        if ranges.len() == limits::PORT_RANGES {
            return Err(format!("more than {} ranges of ports", limits::PORT_RANGES));
        }
        ranges.push(range(part).map_err(|why| format!("port range {part:?}: {why}"))?);
    }
    Ok(ranges)
}

fn range(text: &str) -> Result<PortRange, &'static str> {
    if text == "*" {
        return Ok(PortRange::ALL);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let first = number(first).ok_or("invalid first integer")??;
    let last = number(last).ok_or("invalid last integer")??;
    if first == 0 {
        return Err("first port must be >0, or use '*' for wildcard");
    }
    if first > last {
        return Err("invalid port range: first port is greater than last port");
    }
    Ok(PortRange { first, last })
}

/// `None` when it is no number.
fn number(text: &str) -> Option<Result<u16, &'static str>> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().map_err(|_| "port number out of range"))
}

/// Reads an entry of a grant's `ip`: `*`, ports, or protocol and ports with a colon between.
///
/// # Errors
/// What is wrong with it.
pub fn parse_entry(text: &str) -> Result<(Protocol, Vec<PortRange>), String> {
    let Some((protocol, ports)) = text.split_once(':') else {
        return Ok((Protocol(None), parse_ports(text)?));
    };
    if ports.contains(':') {
        return Err("expected only one colon in Internet protocol and port type".into());
    }
    let protocol = if protocol == "*" { Protocol(None) } else { Protocol::parse(protocol)? };
    let ranges = parse_ports(ports)?;
    check_ports(protocol, ports, &ranges)?;
    Ok((protocol, ranges))
}

/// Refuses ports with protocols that have none.
///
/// # Errors
/// Which ports.
pub fn check_ports(protocol: Protocol, text: &str, ranges: &[PortRange]) -> Result<(), String> {
    if protocol.has_ports() || ranges.iter().all(|range| *range == PortRange::ALL) {
        return Ok(());
    }
    Err(format!("protocol does not support specific ports: {text:?}, only \"*\" is allowed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_in_all_their_forms() {
        let range = |first, last| PortRange { first, last };
        assert_eq!(parse_ports("*"), Ok(vec![PortRange::ALL]));
        assert_eq!(parse_ports("22,80-443, 1"), Ok(vec![range(22, 22), range(80, 443), range(1, 1)]));
        for (text, why) in [
            ("0", "port range \"0\": first port must be >0, or use '*' for wildcard"),
            ("self", "port range \"self\": invalid first integer"),
            ("80-x", "port range \"80-x\": invalid last integer"),
            ("443-80", "port range \"443-80\": invalid port range: first port is greater than last port"),
            ("65536", "port range \"65536\": port number out of range"),
            ("-1", "port range \"-1\": invalid first integer"),
            ("", "port range \"\": invalid first integer"),
        ] {
            assert_eq!(parse_ports(text), Err(why.to_owned()));
        }
        assert!(parse_ports(&"1,".repeat(limits::PORT_RANGES + 1)).is_err());
    }

    #[test]
    fn protocols_are_names_or_numbers() {
        assert_eq!(Protocol::parse("TCP"), Ok(Protocol(Some(6))));
        assert_eq!(Protocol::parse("47"), Ok(Protocol(Some(47))));
        assert_eq!(Protocol::parse(""), Ok(Protocol(None)));
        for text in ["*", "06", "0", "256", "tcpx", "-1"] {
            assert!(Protocol::parse(text).is_err(), "{text}");
        }
        assert!(Protocol(None).admits(ICMPV6) && !Protocol(None).admits(SCTP));
        assert!(!Protocol(Some(ICMP)).admits(ICMPV6));
    }

    #[test]
    fn entries_of_a_grant_have_at_most_one_colon() {
        assert_eq!(parse_entry("*"), Ok((Protocol(None), vec![PortRange::ALL])));
        assert_eq!(parse_entry("udp:*"), Ok((Protocol(Some(17)), vec![PortRange::ALL])));
        assert_eq!(parse_entry("icmp").unwrap_err(), "port range \"icmp\": invalid first integer");
        assert!(parse_entry("tcp:80:90").is_err());
        assert!(parse_entry("1:80").unwrap_err().contains("only \"*\""));
    }
}
