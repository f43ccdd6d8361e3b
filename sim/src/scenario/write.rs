//! Scenarios written as files, in one canonical form: what the reader makes of the text is the scenario that it was
//! written from.
//!
//! Everything is told by name and nothing is left to a default that another table decides, so nets of relays and of
//! control are nets like all others. Regions are called by their numbers: a scenario does not keep their names.
//! Some worlds that are written in Rust have no form in a file; [`write`] says what in them has none.

use core::{fmt::Write as _, time::Duration};

use mesh_core::time::Instant;

use crate::{
    host::HostId,
    kernel::dice::Probability,
    net::{Ipv6, NetId, NetSetup},
};

use super::{DEFAULT_PORT, Endpoint, Maps, RelayStart, Scenario, TrafficKind, default_user, write_event, write_net};

/// What has no form in a file.
pub(super) type Result<T> = core::result::Result<T, String>;

/// The text of a scenario file.
///
/// # Errors
/// What in the scenario has no form in a file.
pub fn write(scenario: &Scenario) -> Result<String> {
    let file = Writer { scenario };
    let mut text = String::from("schema = 1\n");
    let top = &mut text;
    set(top, "name", &quoted(&scenario.name));
    set(top, "seeds", &seeds(&scenario.seeds)?);
    set(top, "duration", &duration(scenario.duration));
    match scenario.maps {
        Maps::Live => {}
        Maps::Static => set(top, "maps", "\"static\""),
        Maps::None => return Err("a world in which nobody is told of anybody".to_owned()),
    }
    if let Some(policy) = &scenario.policy {
        set(top, "policy", &quoted(policy));
    }
    file.regions(top);
    file.control(top);
    file.nets(top)?;
    file.nodes(top);
    file.relays(top);
    if let Some(resolver) = &scenario.resolver {
        table(top, "[resolver]");
        set(top, "net", &file.net(resolver.net));
        set(top, "delay", &duration(resolver.delay));
    }
    file.peers(top);
    file.traffic(top);
    for event in &scenario.events {
        write_event::event(&file, event, top)?;
    }
    for spec in &scenario.expects {
        write_event::expect(&file, spec, top)?;
    }
    Ok(text)
}

/// A scenario that is being written.
pub(super) struct Writer<'s> {
    pub(super) scenario: &'s Scenario,
}

impl Writer<'_> {
    pub(super) fn net(&self, id: NetId) -> String {
        quoted(self.scenario.nets.get(id.index()).map_or("?", |net| net.name.as_str()))
    }

    pub(super) fn node(&self, id: HostId) -> String {
        quoted(self.scenario.nodes.get(id.index()).map_or("?", |node| node.name.as_str()))
    }

    fn regions(&self, out: &mut String) {
        let of_nets = self.scenario.nets.iter().map(|net| net.setup.region);
        let of_relays = self.scenario.relays.iter().map(|relay| relay.region.number());
        let of_latencies = self.scenario.latencies.iter().flat_map(|(one, other, _)| [*one, *other]);
        for number in 1..=of_nets.chain(of_relays).chain(of_latencies).max().unwrap_or(0) {
            table(out, &format!("[region.r{number}]"));
            let mut latencies = String::new();
            for (_, other, time) in self.scenario.latencies.iter().filter(|(one, ..)| *one == number) {
                let comma = if latencies.is_empty() { "" } else { ", " };
                let _ = write!(latencies, "{comma}r{other} = {}", duration(*time));
            }
            if !latencies.is_empty() {
                set(out, "latency", &format!("{{ {latencies} }}"));
            }
        }
    }

    fn control(&self, out: &mut String) {
        let Some(control) = &self.scenario.control else { return };
        table(out, "[control]");
        set(out, "net", &self.net(control.net));
        set(out, "commit", &duration(control.commit));
        if let Some(policy) = &control.preparation.policy {
            set(out, "policy", &quoted(policy));
        }
        for key in &control.preparation.keys {
            table(out, "[[key]]");
            set(out, "name", &quoted(&key.name));
            set(out, "user", &quoted(&key.user));
            for (name, is_so) in [("reusable", key.reusable), ("ephemeral", key.ephemeral)] {
                if is_so {
                    set(out, name, "true");
                }
            }
            tags(out, &key.tags);
            if let Some(expiry) = key.expiry {
                set(out, "expiry", &duration(expiry));
            }
        }
    }

    fn nets(&self, out: &mut String) -> Result<()> {
        for net in &self.scenario.nets {
            let NetSetup { link, nat, firewall, behind, ipv6, region } = &net.setup;
            table(out, "[[net]]");
            set(out, "name", &quoted(&net.name));
            region_of(out, *region);
            if let Some(nat) = nat {
                set(out, "nat", &write_net::nat(nat)?);
            }
            if let Some(firewall) = firewall {
                set(out, "firewall", &quoted(firewall.profile));
            }
            if let Some(behind) = behind {
                set(out, "behind", &self.net(*behind));
            }
            set(out, "link", &write_net::link(link)?);
            match ipv6 {
                Ipv6::None => {}
                Ipv6::Guarded => set(out, "ipv6", "\"guarded\""),
                Ipv6::Open => set(out, "ipv6", "\"open\""),
                Ipv6::Broken => set(out, "ipv6", "\"broken\""),
            }
        }
        Ok(())
    }

    fn nodes(&self, out: &mut String) {
        for node in &self.scenario.nodes {
            table(out, "[[node]]");
            set(out, "name", &quoted(&node.name));
            set(out, "net", &self.net(node.net));
            if node.port != DEFAULT_PORT {
                set(out, "port", &node.port.to_string());
            }
            match &node.key {
                // Its key says whose it is.
                Some(key) => set(out, "key", &quoted(key)),
                None => {
                    if node.user != default_user(&node.name) {
                        set(out, "user", &quoted(&node.user));
                    }
                    tags(out, &node.tags);
                }
            }
            since_start(out, "start", node.start);
        }
    }

    fn relays(&self, out: &mut String) {
        for relay in &self.scenario.relays {
            table(out, "[[relay]]");
            set(out, "name", &quoted(&relay.name));
            region_of(out, relay.region.number());
            set(out, "net", &self.net(relay.net));
            match (relay.stun, relay.derp) {
                (true, true) => {}
                (true, false) => set(out, "transports", "[\"udp\"]"),
                (false, true) => set(out, "transports", "[\"tcp443\"]"),
                (false, false) => set(out, "transports", "[]"),
            }
            if relay.start == RelayStart::Slow {
                set(out, "start", "\"slow\"");
            }
        }
    }

    fn peers(&self, out: &mut String) {
        for peer in &self.scenario.peers {
            table(out, "[[peer]]");
            set(out, "of", &self.node(peer.of));
            set(out, "is", &self.node(peer.is));
            if peer.endpoint == Endpoint::Told {
                set(out, "endpoint", "true");
            }
            if let Some(keepalive) = peer.keepalive {
                set(out, "keepalive", &duration(keepalive));
            }
        }
    }

    fn traffic(&self, out: &mut String) {
        for traffic in &self.scenario.traffic {
            table(out, "[[traffic]]");
            let kind = match traffic.kind {
                TrafficKind::Ping => "\"ping\"",
                TrafficKind::Request => "\"request\"",
            };
            set(out, "kind", kind);
            set(out, "from", &self.node(traffic.from));
            set(out, "to", &self.node(traffic.to));
            set(out, "every", &duration(traffic.every));
            since_start(out, "start", traffic.start);
            if let Some(stop) = traffic.stop {
                set(out, "stop", &instant(stop));
            }
            if traffic.bytes != 56 {
                set(out, "size", &traffic.bytes.to_string());
            }
            if traffic.answer_bytes != traffic.bytes {
                set(out, "answer", &traffic.answer_bytes.to_string());
            }
        }
    }
}

/// `key = value`.
pub(super) fn set(out: &mut String, key: &str, value: &str) {
    let _ = writeln!(out, "{key} = {value}");
}

/// A new table after a blank line.
pub(super) fn table(out: &mut String, header: &str) {
    let _ = writeln!(out, "\n{header}");
}

pub(super) fn quoted(text: &str) -> String {
    ::toml::Value::String(text.to_owned()).to_string()
}

/// A key that is left out when it is the start of the world.
pub(super) fn since_start(out: &mut String, key: &str, at: Instant) {
    if at != Instant::ZERO {
        set(out, key, &instant(at));
    }
}

pub(super) fn instant(at: Instant) -> String {
    duration(at.since(Instant::ZERO))
}

/// In the largest unit that leaves nothing over.
pub(super) fn duration(time: Duration) -> String {
    let nanos = time.as_nanos();
    let units = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000), ("ns", 1)];
    let (unit, size) = units.into_iter().find(|(_, size)| nanos.is_multiple_of(*size)).unwrap_or(("ns", 1));
    format!("\"{}{unit}\"", nanos / size)
}

/// A number from 0 to 1.
pub(super) fn share(share: Probability) -> String {
    if share == Probability::ONE {
        return "1".to_owned();
    }
    let digits = format!("{:09}", share.parts());
    match digits.trim_end_matches('0') {
        "" => "0".to_owned(),
        digits => format!("0.{digits}"),
    }
}

fn seeds(seeds: &[u64]) -> Result<String> {
    let (Some(first), Some(last)) = (seeds.first(), seeds.last()) else {
        return Err("a scenario without seeds".to_owned());
    };
    let is_range = seeds.windows(2).all(|pair| pair[0].checked_add(1) == Some(pair[1]));
    match last.checked_add(1).filter(|_| is_range) {
        Some(end) => Ok(format!("\"{first}..{end}\"")),
        None => Ok(format!("\"{}\"", seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(","))),
    }
}

fn region_of(out: &mut String, number: u16) {
    if number != 0 {
        set(out, "region", &format!("\"r{number}\""));
    }
}

fn tags(out: &mut String, tags: &[String]) {
    if !tags.is_empty() {
        let list: Vec<_> = tags.iter().map(|tag| quoted(tag)).collect();
        set(out, "tags", &format!("[{}]", list.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_shares_are_read_back_as_they_were() {
        use crate::scenario::value;
        for nanos in [0, 1, 1_500, 250_000_000, 60_000_000_000, 1_234_567_891] {
            let time = Duration::from_nanos(nanos);
            assert_eq!(value::duration(duration(time).trim_matches('"')), Some(time));
        }
        for parts in [0, 1, 5_000_000, 999_999_999, 1_000_000_000] {
            let probability = Probability::from_parts(parts);
            assert_eq!(value::share(&share(probability)), Some(probability));
        }
    }

    #[test]
    fn seeds_are_a_range_where_they_are_one() {
        assert_eq!(seeds(&[3, 4, 5]).as_deref(), Ok("\"3..6\""));
        assert_eq!(seeds(&[5, 3]).as_deref(), Ok("\"5,3\""));
        assert_eq!(seeds(&[u64::MAX]), Ok(format!("\"{}\"", u64::MAX)));
        assert!(seeds(&[]).is_err());
    }
}
