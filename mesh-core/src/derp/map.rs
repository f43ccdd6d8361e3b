//! The relay map: regions, and the relays of each.

use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where to send STUN requests when a relay does not say.
pub const STUN_PORT: u16 = 3478;
/// Where a relay takes TLS connections when it does not say.
pub const DERP_PORT: u16 = 443;

/// All relays that a node may use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DerpMap {
    /// What weighs in the choice of a home.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub home_params: Option<DerpHomeParams>,
    /// By region number. `None` in an update: the regions stay as they were. A region that is null does not exist.
    pub regions: Option<BTreeMap<i64, Option<DerpRegion>>>,
    /// Whether the regions that a client has built in are left out.
    #[serde(rename = "omitDefaultRegions", skip_serializing_if = "is_default")]
    pub omit_default_regions: bool,
}

/// What weighs in the choice of a home.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DerpHomeParams {
    /// By region number: what its latency is multiplied by when homes are compared. Below 1 is better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region_score: Option<BTreeMap<i64, f64>>,
}

/// Relays that count as one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DerpRegion {
    /// Its number, the same as its key in the map.
    #[serde(rename = "RegionID")]
    pub region_id: i64,
    /// A short name.
    pub region_code: String,
    /// A name for people.
    pub region_name: String,
    /// Degrees.
    #[serde(skip_serializing_if = "is_default")]
    pub latitude: f64,
    /// Degrees.
    #[serde(skip_serializing_if = "is_default")]
    pub longitude: f64,
    /// Deprecated.
    #[serde(skip_serializing_if = "is_default")]
    pub avoid: bool,
    /// Never probed and never a home; still used to reach a peer whose home it is.
    #[serde(skip_serializing_if = "is_default")]
    pub no_measure_no_home: bool,
    /// In order of priority.
    pub nodes: Option<Vec<DerpNode>>,
}

/// One relay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DerpNode {
    /// Unique across regions; not a host name.
    pub name: String,
    /// The region it is of.
    #[serde(rename = "RegionID")]
    pub region_id: i64,
    /// Where it is: for DNS and for TLS.
    pub host_name: String,
    /// The name its certificate must have when that is not the host name, or `sha256-raw:` and the hash of it.
    #[serde(skip_serializing_if = "is_default")]
    pub cert_name: String,
    /// Its address; empty asks DNS, anything that is no address means it has none.
    #[serde(rename = "IPv4", skip_serializing_if = "is_default")]
    pub ipv4: String,
    /// Its address; empty asks DNS, anything that is no address means it has none.
    #[serde(rename = "IPv6", skip_serializing_if = "is_default")]
    pub ipv6: String,
    /// Where it takes STUN requests; 0 means 3478, below 0 nowhere.
    #[serde(rename = "STUNPort", skip_serializing_if = "is_default")]
    pub stun_port: i32,
    /// It takes STUN requests and relays nothing.
    #[serde(rename = "STUNOnly", skip_serializing_if = "is_default")]
    pub stun_only: bool,
    /// Where it takes TLS connections; 0 means 443.
    #[serde(rename = "DERPPort", skip_serializing_if = "is_default")]
    pub derp_port: i32,
    /// Its certificate is not looked at.
    #[serde(skip_serializing_if = "is_default")]
    pub insecure_for_tests: bool,
    /// Where STUN requests go instead.
    #[serde(rename = "STUNTestIP", skip_serializing_if = "is_default")]
    pub stun_test_ip: String,
    /// It answers probes for captive portals on port 80.
    #[serde(skip_serializing_if = "is_default")]
    pub can_port80: bool,
}

/// Where a relay is, in one family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostAddr<T> {
    /// There.
    Literal(T),
    /// Where DNS says.
    Dns,
    /// Nowhere.
    Disabled,
}

impl<T: core::str::FromStr> HostAddr<T> {
    fn parse(text: &str) -> Self {
        match text {
            "" => Self::Dns,
            text => text.parse().map_or(Self::Disabled, Self::Literal),
        }
    }
}

impl DerpNode {
    /// Its IPv4 address.
    #[must_use]
    pub fn v4(&self) -> HostAddr<Ipv4Addr> {
        HostAddr::parse(&self.ipv4)
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn v6(&self) -> HostAddr<Ipv6Addr> {
        HostAddr::parse(&self.ipv6)
    }

    /// Where it takes STUN requests; `None` when it takes none.
    #[must_use]
    pub fn stun_port(&self) -> Option<u16> {
        match self.stun_port {
            0 => Some(STUN_PORT),
            port => u16::try_from(port).ok(),
        }
    }

    /// Where it takes TLS connections; `None` when the number is none of a port, or it relays nothing.
    #[must_use]
    pub fn derp_port(&self) -> Option<u16> {
        match self.derp_port {
            _ if self.stun_only => None,
            0 => Some(DERP_PORT),
            port => u16::try_from(port).ok().filter(|port| *port != 0),
        }
    }

    /// Where STUN requests go as far as the map says; without DNS.
    #[must_use]
    pub fn stun_addresses(&self) -> Vec<SocketAddr> {
        let Some(port) = self.stun_port() else { return Vec::new() };
        if let Ok(address) = self.stun_test_ip.parse() {
            return vec![SocketAddr::new(address, port)];
        }
        let v4 = match self.v4() {
            HostAddr::Literal(address) => Some(SocketAddr::from((address, port))),
            HostAddr::Dns | HostAddr::Disabled => None,
        };
        let v6 = match self.v6() {
            HostAddr::Literal(address) => Some(SocketAddr::from((address, port))),
            HostAddr::Dns | HostAddr::Disabled => None,
        };
        v4.into_iter().chain(v6).collect()
    }
}

/// Whether a field is left out.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_keeps_its_form() {
        let text = r#"{"HomeParams":{"RegionScore":{"900":0.5}},"Regions":{"900":{"RegionID":900,"RegionCode":"mesh","RegionName":"Mesh","Nodes":[{"Name":"900a","RegionID":900,"HostName":"relay.example","CertName":"sha256-raw:00","IPv4":"192.0.2.1","STUNPort":-1,"DERPPort":8443}]},"901":null},"omitDefaultRegions":true}"#;
        let map: DerpMap = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&map).unwrap(), text);
        let region = map.regions.unwrap()[&900].clone().unwrap();
        let node = &region.nodes.unwrap()[0];
        assert_eq!((node.v4(), node.v6()), (HostAddr::Literal([192, 0, 2, 1].into()), HostAddr::Dns));
        assert_eq!((node.stun_port(), node.derp_port()), (None, Some(8443)));
    }

    #[test]
    fn ports_and_addresses_have_their_defaults_and_their_off() {
        let node = DerpNode { ipv4: "none".into(), ipv6: "2001:db8::1".into(), ..DerpNode::default() };
        assert_eq!((node.v4(), node.stun_port(), node.derp_port()), (HostAddr::Disabled, Some(3478), Some(443)));
        assert_eq!(node.stun_addresses(), ["[2001:db8::1]:3478".parse().unwrap()]);
        let node = DerpNode { derp_port: 70_000, stun_test_ip: "192.0.2.9".into(), ..node };
        assert_eq!((node.derp_port(), node.stun_addresses()), (None, vec!["192.0.2.9:3478".parse().unwrap()]));
    }
}
