//! [`Report`]: what one check of the network found.

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use std::collections::BTreeMap;

use crate::{
    derp::RegionId,
    stun::Mapping,
    time::{Instant, earliest},
};

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, the older first.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// That of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// How much a report looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The nearest regions of before, and home.
    Incremental,
    /// All regions.
    Full,
}

/// Shortest round trips to a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegionLatency {
    /// Over IPv4.
    pub v4: Option<Duration>,
    /// Over IPv6.
    pub v6: Option<Duration>,
}

impl RegionLatency {
    /// The shorter of the two.
    #[must_use]
    pub fn best(self) -> Option<Duration> {
        earliest(self.v4, self.v6)
    }

    /// That of one family.
    #[must_use]
    pub const fn of(self, family: Family) -> Option<Duration> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// Keeps a round trip when it is the shortest.
    pub(super) fn note(&mut self, family: Family, latency: Duration) {
        let kept = match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        };
        *kept = earliest(*kept, Some(latency));
    }
}

/// What one check of the network found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How much was looked at.
    pub kind: Kind,
    /// When it ended.
    pub ended_at: Instant,
    /// How long it took.
    pub took: Duration,
    /// A STUN server answered. What is measured over TLS does not count here.
    pub udp: bool,
    /// Something answered over IPv4.
    pub ipv4: bool,
    /// Something answered over IPv6.
    pub ipv6: bool,
    /// The operating system took datagrams over IPv4.
    pub ipv4_can_send: bool,
    /// The operating system took datagrams over IPv6.
    pub ipv6_can_send: bool,
    /// The host has IPv6.
    pub os_has_ipv6: bool,
    /// Whether the NAT gives us another IPv4 address for each destination. Known when two servers with different
    /// addresses said the same, or any two did not.
    pub mapping: Mapping,
    /// Our IPv4 address, as the first answer said.
    pub global_v4: Option<SocketAddr>,
    /// Our IPv6 address, as the last answer said.
    pub global_v6: Option<SocketAddr>,
    /// How many answers said each of our addresses.
    pub mapped: BTreeMap<SocketAddr, u32>,
    /// Where each server saw us first.
    pub seen_by: BTreeMap<SocketAddr, SocketAddr>,
    /// By region that answered.
    pub regions: BTreeMap<RegionId, RegionLatency>,
    /// The region to be home, as far as this and the reports before can say.
    pub preferred: Option<RegionId>,
}

impl Report {
    /// One that found nothing yet.
    pub(super) const fn new(kind: Kind) -> Self {
        Self {
            kind,
            ended_at: Instant::ZERO,
            took: Duration::ZERO,
            udp: false,
            ipv4: false,
            ipv6: false,
            ipv4_can_send: false,
            ipv6_can_send: false,
            os_has_ipv6: false,
            mapping: Mapping::Unknown,
            global_v4: None,
            global_v6: None,
            mapped: BTreeMap::new(),
            seen_by: BTreeMap::new(),
            regions: BTreeMap::new(),
            preferred: None,
        }
    }

    /// Shortest round trip to a region; `None` when it did not answer.
    #[must_use]
    pub fn latency(&self, region: RegionId) -> Option<Duration> {
        self.regions.get(&region).and_then(|latency| latency.best())
    }

    /// Whether anything answered at all.
    #[must_use]
    pub fn heard_anything(&self) -> bool {
        !self.regions.is_empty()
    }

    /// What control is told, when `home` is our home region.
    #[must_use]
    pub fn net_info(&self, home: Option<RegionId>) -> NetInfo {
        let of_region = |(region, latency): (&RegionId, &RegionLatency)| {
            let (region, latency) = (*region, *latency);
            Family::BOTH.into_iter().filter_map(move |family| Some(((region, family), latency.of(family)?)))
        };
        NetInfo {
            mapping_varies: match self.mapping {
                Mapping::Unknown => None,
                Mapping::Same => Some(false),
                Mapping::Varies => Some(true),
            },
            working_ipv6: self.ipv6,
            os_has_ipv6: self.os_has_ipv6,
            working_udp: self.udp,
            preferred: home,
            latencies: self.regions.iter().flat_map(of_region).collect(),
        }
    }

    /// Takes in that a server saw us at `mapped`. Says whether that is worth being told to peers: it is the first address
    /// of its family, or several servers said the same. What only one server saw behind a NAT that gives each another
    /// is of no use to anybody.
    pub(super) fn note_mapped(&mut self, server: SocketAddr, mapped: SocketAddr) -> bool {
        self.udp = true;
        self.seen_by.entry(server).or_insert(mapped);
        self.mapping = mapping(&self.seen_by);
        *self.mapped.entry(mapped).or_insert(0) += 1;
        let agreeing = self.seen_by.values().filter(|seen| **seen == mapped).count();
        let is_first = match Family::of(mapped.ip()) {
            Family::V4 => *self.global_v4.get_or_insert(mapped) == mapped,
            Family::V6 => self.global_v6.replace(mapped).is_none_or(|before| before == mapped),
        };
        is_first || agreeing > 1
    }

    /// Takes in a round trip to a region.
    pub(super) fn note_latency(&mut self, region: RegionId, family: Family, latency: Duration) {
        match family {
            Family::V4 => self.ipv4 = true,
            Family::V6 => self.ipv6 = true,
        }
        self.regions.entry(region).or_default().note(family, latency);
    }
}

/// What control is told of our network: stock nodes' `NetInfo`, as far as it is measured here. Port mappings are the port
/// mapper's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetInfo {
    /// `MappingVariesByDestIP`; `None` is unknown.
    pub mapping_varies: Option<bool>,
    /// `WorkingIPv6`.
    pub working_ipv6: bool,
    /// `OSHasIPv6`.
    pub os_has_ipv6: bool,
    /// `WorkingUDP`.
    pub working_udp: bool,
    /// `PreferredDERP`; 0 on the wire when `None`.
    pub preferred: Option<RegionId>,
    /// `DERPLatency`: seconds by `<region>-v4` and `<region>-v6` on the wire.
    pub latencies: BTreeMap<(RegionId, Family), Duration>,
}

impl NetInfo {
    /// Whether control is to be told, when `told` is what it knows: latencies alone are no reason.
    #[must_use]
    pub fn is_news(&self, told: &Self) -> bool {
        let facts =
            |info: &Self| (info.mapping_varies, info.working_ipv6, info.os_has_ipv6, info.working_udp, info.preferred);
        facts(self) != facts(told)
    }
}

/// What the IPv4 addresses that servers saw say about the NAT. Two ports of one host saying the same prove nothing: many
/// NATs map by address.
fn mapping(seen_by: &BTreeMap<SocketAddr, SocketAddr>) -> Mapping {
    let mut v4 = seen_by.iter().filter(|(server, mapped)| server.is_ipv4() && mapped.is_ipv4());
    let Some((first_server, first)) = v4.next() else { return Mapping::Unknown };
    let mut mapping = Mapping::Unknown;
    for (server, mapped) in v4 {
        if mapped != first {
            return Mapping::Varies;
        }
        if server.ip() != first_server.ip() {
            mapping = Mapping::Same;
        }
    }
    mapping
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mapping_is_unknown_until_two_hosts_said_something() {
        let check = |answers: &[(&str, &str)], expected| {
            let mut report = Report::new(Kind::Full);
            for (server, mapped) in answers {
                report.note_mapped(addr(server), addr(mapped));
            }
            assert_eq!(report.mapping, expected, "{answers:?}");
        };
        check(&[("192.0.2.1:1", "198.51.100.1:5")], Mapping::Unknown);
        check(&[("192.0.2.1:1", "198.51.100.1:5"), ("192.0.2.1:2", "198.51.100.1:5")], Mapping::Unknown);
        check(&[("192.0.2.1:1", "198.51.100.1:5"), ("192.0.2.1:2", "198.51.100.1:6")], Mapping::Varies);
        check(&[("192.0.2.1:1", "198.51.100.1:5"), ("192.0.2.2:1", "198.51.100.1:5")], Mapping::Same);
        check(&[("[2001:db8::1]:1", "[2001:db8::9]:5"), ("192.0.2.2:1", "198.51.100.1:5")], Mapping::Unknown);
        let sticky = [("192.0.2.1:1", "198.51.100.1:5"), ("192.0.2.2:1", "198.51.100.1:6")];
        check(&[sticky[0], sticky[1], ("192.0.2.2:1", "198.51.100.1:5")], Mapping::Varies);
    }

    #[test]
    fn only_addresses_of_use_are_worth_telling() {
        let mut report = Report::new(Kind::Full);
        assert!(report.note_mapped(addr("192.0.2.1:1"), addr("198.51.100.1:5")));
        assert!(!report.note_mapped(addr("192.0.2.2:1"), addr("198.51.100.1:6")));
        assert!(report.note_mapped(addr("192.0.2.3:1"), addr("198.51.100.1:6")));
        assert!(report.note_mapped(addr("[2001:db8::1]:1"), addr("[2001:db8::9]:5")));
        assert_eq!(report.global_v4, Some(addr("198.51.100.1:5")));
        assert_eq!(report.mapped[&addr("198.51.100.1:6")], 2);
    }

    #[test]
    fn control_is_told_when_more_than_latencies_changed() {
        let region = RegionId::new(7).unwrap();
        let mut report = Report::new(Kind::Full);
        report.note_mapped(addr("192.0.2.1:1"), addr("198.51.100.1:5"));
        report.note_latency(region, Family::V4, Duration::from_millis(20));
        let told = report.net_info(Some(region));
        assert_eq!(told.latencies.into_iter().collect::<Vec<_>>(), [((region, Family::V4), Duration::from_millis(20))]);
        let told = report.net_info(Some(region));
        report.note_latency(region, Family::V4, Duration::from_millis(10));
        assert_eq!(report.latency(region), Some(Duration::from_millis(10)));
        assert!(!report.net_info(Some(region)).is_news(&told));
        assert!(report.net_info(None).is_news(&told));
        report.note_mapped(addr("192.0.2.2:1"), addr("198.51.100.1:5"));
        assert!(report.net_info(Some(region)).is_news(&told));
        report.note_latency(region, Family::V6, Duration::from_millis(30));
        assert!(report.net_info(Some(region)).working_ipv6);
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }
}
