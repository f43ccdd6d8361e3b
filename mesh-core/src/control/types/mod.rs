//! The JSON objects of the control protocol, one file for each family.
//!
//! Both official ends are written in Go and lean on what its encoder does, so these types do the same:
//!
//! * a field that is missing or null has its zero value, and unknown fields are skipped
//! * what stock servers and clients leave out when it is zero is left out
//! * a time of zero is `0001-01-01T00:00:00Z` and here `None`
//! * a key of zeros is none
//! * texts are owned: Go writes `&`, `<` and `>` as escapes
//!
//! What absence means differs: in a [`MapResponse`] and a [`PeerChange`] it is *unchanged*, in a [`PeerNode`] it is
//! *zero*. Nothing here judges values; [`super::netmap`] does.

pub mod capability;
pub mod dns;
pub mod filter_rule;
pub mod hostinfo;
mod json;
pub mod map;
pub mod netinfo;
pub mod node;
pub mod register;
pub mod user;

pub use capability::CapMap;
pub use dns::{DnsConfig, DnsRecord, Resolver};
pub use filter_rule::{CapGrant, FilterRule, NetPortRange, PortRange};
pub use hostinfo::{Hostinfo, Location, Service, Tpm, is_tag};
pub use map::{
    ClientVersion, ControlDialPlan, ControlIpCandidate, Debug, DisplayMessage, DisplayMessageAction, MapRequest,
    MapResponse, PeerChange, PingRequest, TkaInfo,
};
pub use netinfo::NetInfo;
pub use node::{Expiry, NodeId, PeerNode};
pub use register::{RegisterAuth, RegisterRequest, RegisterResponse};
pub use user::{Login, User, UserId, UserProfile};

#[cfg(test)]
mod tests;
