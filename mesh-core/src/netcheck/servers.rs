//! What of a relay map can be measured.

use core::net::{IpAddr, SocketAddr};
use std::collections::BTreeMap;

use crate::{
    derp::{DerpMap, DerpNode, DerpRegion, RegionId, map::HostAddr},
    limits,
};

use super::{names::Names, report::Family};

/// Longest name of DNS (RFC 1035 §2.3.4), as text.
const NAME_BYTES: usize = 253;

/// Regions that are measured and may be home.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Servers {
    pub(super) regions: BTreeMap<RegionId, Region>,
    /// What a latency is multiplied by when homes are compared.
    pub(super) scores: BTreeMap<RegionId, f64>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Region {
    /// Deprecated in maps: only measured in full reports.
    pub(super) avoid: bool,
    pub(super) servers: Vec<Server>,
}

/// One relay or STUN server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) node: DerpNode,
    v4: Target,
    v6: Target,
}

/// Where STUN requests go in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Nowhere,
    At(SocketAddr),
    /// Where DNS says, at this port.
    Named(u16),
}

/// What of a map was left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) regions: u64,
    pub(super) nodes: u64,
}

impl Servers {
    /// Reads a map and leaves out nonsense.
    pub(super) fn read(map: &DerpMap) -> (Self, Refused) {
        let (mut servers, mut refused) = (Self::default(), Refused::default());
        for (number, region) in map.regions.iter().flatten() {
            let id = region_id(*number);
            let Some((id, region)) = id.zip(region.as_ref()).filter(|(_, region)| is_of(region.region_id, *number))
            else {
                refused.regions += 1;
                continue;
            };
            if region.no_measure_no_home {
                continue;
            }
            match Region::read(region, *number, &mut refused) {
                Some(region) if servers.regions.len() < limits::NETCHECK_REGIONS => {
                    servers.regions.insert(id, region);
                }
                Some(_) | None => refused.regions += 1,
            }
        }
        let scores = map.home_params.iter().filter_map(|params| params.region_score.as_ref()).flatten();
        let scores = scores.filter_map(|(number, score)| Some((region_id(*number)?, *score)));
        servers.scores = scores.filter(|(id, score)| *score > 0.0 && servers.regions.contains_key(id)).collect();
        (servers, refused)
    }

    /// Where the `index`th request of a region goes in a family, and the name to be asked for.
    pub(super) fn target(&self, region: RegionId, family: Family, index: usize) -> (Target, &str) {
        let region = self.regions.get(&region);
        let usable: Vec<_> = region.into_iter().flat_map(|region| region.reachable(family)).collect();
        let server = index.checked_rem(usable.len()).and_then(|index| usable.get(index));
        server.map_or((Target::Nowhere, ""), |server| (server.target(family), server.node.host_name.as_str()))
    }

    /// Whether a region has a relay: one of STUN servers alone is measured and no home.
    pub(super) fn can_be_home(&self, region: RegionId) -> bool {
        self.regions.get(&region).is_some_and(|region| region.servers.iter().any(Server::relays))
    }

    /// Regions that can be home.
    pub(super) fn homes(&self) -> impl Iterator<Item = RegionId> {
        self.regions.keys().copied().filter(|region| self.can_be_home(*region))
    }

    /// Whether a region that is to be asked cannot be, because only DNS says where its servers are, and has not.
    pub(super) fn needs_name(&self, region: RegionId, families: &[Family], names: &Names) -> bool {
        let is_nowhere = |server: &Server| server.is_named(families) && !names.knows(&server.node.host_name);
        self.regions.get(&region).is_some_and(|region| !region.avoid && region.servers.iter().all(is_nowhere))
    }

    /// The names of all servers.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.regions.values().flat_map(|region| &region.servers).map(|server| server.node.host_name.as_str())
    }
}

impl Region {
    fn read(region: &DerpRegion, number: i64, refused: &mut Refused) -> Option<Self> {
        let nodes = region.nodes.as_deref().unwrap_or_default();
        let mut servers = Vec::new();
        for node in nodes {
            match Server::read(node).filter(|_| is_of(node.region_id, number)) {
                Some(server) if servers.len() < limits::NETCHECK_NODES_PER_REGION => servers.push(server),
                Some(_) | None => refused.nodes += 1,
            }
        }
        (!servers.is_empty()).then_some(Self { avoid: region.avoid, servers })
    }

    /// Servers that take STUN requests in a family.
    pub(super) fn reachable(&self, family: Family) -> impl Iterator<Item = &Server> {
        self.servers.iter().filter(move |server| server.target(family) != Target::Nowhere)
    }
}

impl Server {
    fn read(node: &DerpNode) -> Option<Self> {
        let host = node.host_name.as_str();
        let literal: Option<IpAddr> = host.parse().ok();
        let is_name = !host.is_empty() && host.len() <= NAME_BYTES && host.bytes().all(|byte| byte.is_ascii_graphic());
        let test: Option<IpAddr> = node.stun_test_ip.parse().ok();
        let target = |family, said: HostAddr<IpAddr>| {
            let Some(port) = node.stun_port() else { return Target::Nowhere };
            let address = match (said, test, literal) {
                (_, Some(test), _) => test,
                (HostAddr::Disabled, None, _) => return Target::Nowhere,
                (HostAddr::Literal(address), None, _) => address,
                (HostAddr::Dns, None, Some(literal)) => literal,
                (HostAddr::Dns, None, None) if is_name => return Target::Named(port),
                (HostAddr::Dns, None, None) => return Target::Nowhere,
            };
            if Family::of(address) == family && is_host(address) {
                Target::At(SocketAddr::new(address, port))
            } else {
                Target::Nowhere
            }
        };
        let v4 = match node.v4() {
            HostAddr::Literal(address) => HostAddr::Literal(IpAddr::V4(address)),
            HostAddr::Dns => HostAddr::Dns,
            HostAddr::Disabled => HostAddr::Disabled,
        };
        let v6 = match node.v6() {
            HostAddr::Literal(address) => HostAddr::Literal(IpAddr::V6(address)),
            HostAddr::Dns => HostAddr::Dns,
            HostAddr::Disabled => HostAddr::Disabled,
        };
        let server = Self { node: node.clone(), v4: target(Family::V4, v4), v6: target(Family::V6, v6) };
        let is_somewhere = Family::BOTH.iter().any(|family| server.target(*family) != Target::Nowhere);
        (is_somewhere || (server.relays() && is_name)).then_some(server)
    }

    pub(super) const fn target(&self, family: Family) -> Target {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// Whether only DNS says where it is in these families.
    fn is_named(&self, families: &[Family]) -> bool {
        let mut targets = families.iter().map(|family| self.target(*family));
        let is_at = targets.clone().any(|target| matches!(target, Target::At(_)));
        !is_at && targets.any(|target| matches!(target, Target::Named(_)))
    }

    /// Whether it can be asked over TLS.
    pub(super) fn relays(&self) -> bool {
        self.node.derp_port().is_some()
    }
}

/// Whether a host can have this address.
pub(super) fn is_host(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || is_broadcast)
}

fn region_id(number: i64) -> Option<RegionId> {
    u16::try_from(number).ok().and_then(RegionId::new)
}

/// Whether a number inside a region is that of its key; some maps leave it out.
const fn is_of(said: i64, key: i64) -> bool {
    said == key || said == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_left_out_and_counted() {
        let text = r#"{"HomeParams": {"RegionScore": {"1": 0.5, "2": -1, "70000": 2, "9": 3}}, "Regions": {
            "-1": {"RegionID": -1, "Nodes": [{"HostName": "a"}]},
            "0": {"Nodes": [{"HostName": "a"}]},
            "70000": {"RegionID": 70000, "Nodes": [{"HostName": "a"}]},
            "1": {"RegionID": 1, "Nodes": [{"HostName": "a"}, {"HostName": ""}, {"HostName": "b c"},
                {"HostName": "x", "IPv4": "224.0.0.1", "IPv6": "::", "STUNOnly": true},
                {"HostName": "x", "STUNPort": -1, "STUNOnly": true}, {"RegionID": 2, "HostName": "a"},
                {"HostName": "x", "STUNPort": 70000, "DERPPort": 99999}]},
            "2": null,
            "3": {"RegionID": 4, "Nodes": [{"HostName": "a"}]},
            "5": {"RegionID": 5, "Nodes": []},
            "6": {"RegionID": 6},
            "7": {"RegionID": 7, "NoMeasureNoHome": true, "Nodes": [{"HostName": "a"}]}}}"#;
        let (servers, refused) = Servers::read(&serde_json::from_str(text).unwrap());
        let one = RegionId::new(1).unwrap();
        assert_eq!(servers.regions.keys().collect::<Vec<_>>(), [&one]);
        assert_eq!(servers.regions[&one].servers.len(), 1);
        assert_eq!(servers.scores, BTreeMap::from([(one, 0.5)]));
        assert_eq!(refused, Refused { regions: 7, nodes: 6 });
        assert_eq!(Servers::read(&DerpMap::default()), (Servers::default(), Refused::default()));
    }

    #[test]
    fn a_map_is_bounded() {
        let node = DerpNode { host_name: "a".into(), ..DerpNode::default() };
        let region = DerpRegion { nodes: Some(vec![node; 20]), ..DerpRegion::default() };
        let regions = (1..=200).map(|number| (number, Some(region.clone()))).collect();
        let (servers, refused) = Servers::read(&DerpMap { regions: Some(regions), ..DerpMap::default() });
        assert_eq!(servers.regions.len(), limits::NETCHECK_REGIONS);
        assert_eq!(refused, Refused { regions: 72, nodes: 200 * 12 });
    }

    #[test]
    fn targets_are_literals_or_names_or_nowhere() {
        let check = |node: DerpNode, v4: Target, v6: Target| {
            let server = Server::read(&DerpNode { host_name: node.host_name.clone(), ..node }).unwrap();
            assert_eq!((server.target(Family::V4), server.target(Family::V6)), (v4, v6), "{server:?}");
        };
        let named = || DerpNode { host_name: "relay.example".into(), ..DerpNode::default() };
        let at = |text: &str| Target::At(text.parse().unwrap());
        check(named(), Target::Named(3478), Target::Named(3478));
        check(DerpNode { stun_port: -1, ..named() }, Target::Nowhere, Target::Nowhere);
        check(
            DerpNode { ipv4: "192.0.2.1".into(), ipv6: "none".into(), ..named() },
            at("192.0.2.1:3478"),
            Target::Nowhere,
        );
        check(
            DerpNode { stun_test_ip: "192.0.2.9".into(), stun_port: 5, ..named() },
            at("192.0.2.9:5"),
            Target::Nowhere,
        );
        let literal = DerpNode { host_name: "2001:db8::1".into(), ..DerpNode::default() };
        check(literal, Target::Nowhere, at("[2001:db8::1]:3478"));
    }

    #[test]
    fn requests_go_round_the_servers_of_a_family() {
        let text = r#"{"Regions": {"1": {"RegionID": 1, "Nodes": [{"HostName": "a", "IPv4": "192.0.2.1", "IPv6": "none"},
            {"HostName": "b", "IPv4": "none", "IPv6": "2001:db8::1"}, {"HostName": "c", "IPv4": "192.0.2.3"}]}}}"#;
        let (servers, _) = Servers::read(&serde_json::from_str(text).unwrap());
        let one = RegionId::new(1).unwrap();
        let names = |family| (0..3).map(|index| servers.target(one, family, index).1.to_owned()).collect::<Vec<_>>();
        assert_eq!(names(Family::V4), ["a", "c", "a"]);
        assert_eq!(names(Family::V6), ["b", "c", "b"]);
        assert_eq!(servers.target(RegionId::new(2).unwrap(), Family::V4, 0), (Target::Nowhere, ""));
    }
}
