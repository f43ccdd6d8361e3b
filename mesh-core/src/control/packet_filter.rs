//! What the packet filters of a network map mean.
//!
//! Rules travel as texts; here they become [`Rule`]s, which admit packets, and [`Grant`]s, which say what else their
//! sources may do at this node. What cannot be read is left out and listed, and the rest of its rule counts, as with
//! stock nodes: a rule only ever allows, so what is left out allows nothing. Two obsolete fields make the whole filter
//! void, because nobody can say what was meant.

use core::net::IpAddr;
use std::sync::Arc;

use crate::{
    filter::{Destination, Protocols, Rule, RuleName},
    ip::{
        prefix::Prefix,
        set::{IpSet, Span},
    },
};

use super::{
    NetMap,
    netmap::Skipped,
    types::{CapMap, FilterRule, NetPortRange},
};

/// What stands before the name of a capability among sources.
const CAPABILITY: &str = "cap:";
/// All addresses of both families.
const EVERYTHING: &str = "*";

/// What the packet filters of a network map mean.
#[derive(Clone, Debug, Default)]
pub struct PacketFilter {
    /// Who may open what.
    pub rules: Vec<Rule>,
    /// Who may do what else.
    pub grants: Vec<Grant>,
    /// Whether a rule names sources by a capability, so that it changes with the peers.
    pub names_capabilities: bool,
    /// What was left out.
    pub skipped: Vec<Skipped>,
}

/// Capabilities that some sources hold at some destinations.
#[derive(Clone, Debug, PartialEq)]
pub struct Grant {
    /// Who.
    pub sources: IpSet,
    /// Where.
    pub destinations: Vec<Prefix>,
    /// What.
    pub capabilities: CapMap,
}

impl PacketFilter {
    /// The filters of `map`, all names in their order.
    #[must_use]
    pub fn of(map: &NetMap) -> Self {
        let mut filter = Self::default();
        for (name, rules) in map.filters() {
            let name: Arc<str> = name.as_str().into();
            for (index, rule) in rules.iter().enumerate() {
                let name = RuleName { filter: Arc::clone(&name), index };
                if !rule.src_bits.is_empty() || rule.dst_ports.iter().any(|to| to.bits.is_some()) {
                    return Self { skipped: vec![Skipped::Filters(name)], ..Self::default() };
                }
                filter.add(name, rule, map);
            }
        }
        filter
    }

    /// What a node with the address `source` may do at `destination` besides opening ports.
    #[must_use]
    pub fn capabilities(grants: &[Grant], source: IpAddr, destination: IpAddr) -> CapMap {
        let mut held = CapMap::default();
        for grant in grants {
            if grant.sources.covers(source) && grant.destinations.iter().any(|prefix| prefix.contains(destination)) {
                for (name, values) in &grant.capabilities.0 {
                    held.0.entry(name.clone()).or_default().extend(values.iter().cloned());
                }
            }
        }
        held
    }

    fn add(&mut self, name: RuleName, rule: &FilterRule, map: &NetMap) {
        let mut spans = Vec::new();
        for text in &rule.src_ips {
            if let Some(capability) = text.strip_prefix(CAPABILITY) {
                self.names_capabilities = true;
                let holders = map.peers().values().filter(|peer| peer.has_capability(capability));
                spans.extend(holders.flat_map(|peer| &peer.addresses).copied().map(Span::from));
            } else {
                self.read(&name, text, &mut spans);
            }
        }
        // In order, so that each is put behind the one before.
        spans.sort_unstable();
        let sources: IpSet = spans.into_iter().collect();

        for grant in &rule.cap_grant {
            let mut capabilities = grant.cap_map.clone();
            for name in &grant.caps {
                capabilities.0.entry(name.clone()).or_default();
            }
            self.grants.push(Grant { sources: sources.clone(), destinations: grant.dsts.clone(), capabilities });
        }
        let mut destinations = Vec::new();
        for NetPortRange { ip, ports, .. } in &rule.dst_ports {
            let mut spans = Vec::new();
            self.read(&name, ip, &mut spans);
            destinations
                .extend(spans.into_iter().map(|addresses| Destination { addresses, ports: ports.first..=ports.last }));
        }
        if !destinations.is_empty() {
            self.rules.push(Rule { name, sources, destinations, protocols: protocols(&rule.ip_proto) });
        }
    }

    /// The addresses that a text means.
    fn read(&mut self, rule: &RuleName, text: &str, spans: &mut Vec<Span>) {
        match text {
            EVERYTHING => spans.extend(["0.0.0.0/0", "::/0"].iter().filter_map(|all| all.parse::<Span>().ok())),
            text => match text.parse().ok().filter(|_| has_no_host_bits(text)) {
                Some(span) => spans.push(span),
                None => self.skipped.push(Skipped::FilterAddress(rule.clone(), text.to_owned())),
            },
        }
    }
}

/// Stock nodes refuse a prefix whose address is not its lowest: it may not be what was meant.
fn has_no_host_bits(text: &str) -> bool {
    text.split_once('/').is_none_or(|(address, _)| {
        let prefix = text.parse::<Prefix>();
        prefix.is_ok_and(|prefix| address.parse() == Ok(prefix.address()))
    })
}

/// Numbers that are no protocol's are left out; what is left may be none at all.
fn protocols(numbers: &[i64]) -> Protocols {
    if numbers.is_empty() {
        return Protocols::usual();
    }
    numbers.iter().filter_map(|number| u8::try_from(*number).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{control::netmap, time::WallTime};

    const NOW: WallTime = WallTime::from_unix_secs(1_800_000_000);

    /// The filter of a map with these filters (JSON), and a peer with the capability `x`.
    fn filter(filters: &str) -> PacketFilter {
        let key = |digit: &str| format!("nodekey:{}", digit.repeat(64));
        let text = format!(
            r#"{{"Node": {{"ID": 1, "Key": "{}"}}, "PacketFilters": {filters},
                "Peers": [{{"ID": 2, "Key": "{}", "Addresses": ["100.64.0.2/32", "fd7a::2/128"], "CapMap": {{"x": null}}}}]}}"#,
            key("1"),
            key("2"),
        );
        let mut map = NetMap::new();
        map.apply(netmap::decode(text.as_bytes(), None).unwrap(), NOW).unwrap();
        PacketFilter::of(&map)
    }

    fn texts(set: &IpSet) -> Vec<String> {
        set.spans().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_form_of_an_address_is_read() {
        let read = filter(
            r#"{"base": [{"SrcIPs": ["100.64.0.9", "10.0.0.0/8", "fd7a::5-fd7a::7", "cap:x", "cap:y"],
                 "DstPorts": [{"IP": "100.64.0.1", "Ports": {"First": 22, "Last": 23}}, {"IP": "*", "Ports": {"First": 0, "Last": 65535}}],
                 "IPProto": [6, 300, -1, 255]}]}"#,
        );
        assert!(read.names_capabilities && read.skipped.is_empty());
        let [rule] = &read.rules[..] else { panic!("{read:?}") };
        assert_eq!(texts(&rule.sources), ["10.0.0.0/8", "100.64.0.2", "100.64.0.9", "fd7a::2", "fd7a::5-fd7a::7"]);
        let to: Vec<_> = rule.destinations.iter().map(|to| format!("{} {:?}", to.addresses, to.ports)).collect();
        assert_eq!(to, ["100.64.0.1 22..=23", "0.0.0.0/0 0..=65535", "::/0 0..=65535"]);
        assert_eq!(rule.protocols, [6, 255].into_iter().collect());
    }

    #[test]
    fn what_cannot_be_read_is_left_out_and_the_rest_of_the_rule_counts() {
        let read = filter(
            r#"{"a": [], "b": [{}, {"SrcIPs": ["100.64.0.9", "10.0.0.1/8", "x", "7-3", "100.64.0.3-100.64.0.2"],
                 "DstPorts": [{"IP": "nowhere", "Ports": {}}, {"IP": "100.64.0.1", "Ports": {"First": 7, "Last": 7}}]}]}"#,
        );
        let [rule] = &read.rules[..] else { panic!("{read:?}") };
        assert_eq!(rule.name.to_string(), "b[1]");
        assert_eq!((texts(&rule.sources), rule.destinations.len()), (vec!["100.64.0.9".to_owned()], 1));
        assert_eq!(rule.protocols, Protocols::usual());
        let skipped: Vec<_> = read.skipped.iter().map(ToString::to_string).collect();
        assert_eq!(skipped.len(), 5);
        assert_eq!(skipped[0], "rule b[1] of the packet filter has \"10.0.0.1/8\", which is no address");
        assert!(
            filter(r#"{"b": [{"SrcIPs": ["*"], "IPProto": [900], "DstPorts": [{"IP": "*"}]}]}"#).rules[0].protocols
                == Protocols::default()
        );
    }

    #[test]
    fn obsolete_fields_make_the_whole_filter_void() {
        let good = r#"{"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": 0, "Last": 65535}}]}"#;
        let bits = r#"{"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Bits": 8, "Ports": {"First": 0, "Last": 65535}}]}"#;
        let src_bits = r#"{"SrcIPs": ["*"], "SrcBits": [8]}"#;
        assert_eq!(filter(&format!(r#"{{"a": [{good}]}}"#)).rules.len(), 1);
        for bad in [bits, src_bits] {
            let read = filter(&format!(r#"{{"a": [{good}], "b": [{good}, {bad}]}}"#));
            assert!(read.rules.is_empty());
            assert_eq!(
                read.skipped[0].to_string(),
                "rule b[1] has an obsolete field, so the packet filter admits nothing"
            );
        }
    }

    #[test]
    fn grants_are_kept_apart_and_add_up() {
        let read = filter(
            r#"{"base": [{"SrcIPs": ["100.64.0.2"], "CapGrant": [{"Dsts": ["100.64.0.1/32"], "Caps": ["old"], "CapMap": {"a": [1]}}]},
                         {"SrcIPs": ["*"], "CapGrant": [{"Dsts": ["100.64.0.0/10"], "CapMap": {"a": [2], "b": null}}]}]}"#,
        );
        assert!(read.rules.is_empty());
        let at = |source: &str, destination: &str| {
            let held = PacketFilter::capabilities(&read.grants, source.parse().unwrap(), destination.parse().unwrap());
            serde_json::to_string(&held).unwrap()
        };
        assert_eq!(at("100.64.0.2", "100.64.0.1"), r#"{"a":[1,2],"b":[],"old":[]}"#);
        assert_eq!(at("100.64.0.3", "100.64.0.1"), r#"{"a":[2],"b":[]}"#);
        assert_eq!(at("100.64.0.2", "10.0.0.1"), "{}");
    }
}
