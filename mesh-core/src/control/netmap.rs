//! [`NetMap`]: what a node knows of its tailnet, merged from the messages of a map stream.
//!
//! A stream begins with a message that tells everything: what is not in it is not there. Those that follow tell what
//! changed: what is not in them is as it was. Applying a message says in a [`Change`] which parts are other than
//! before, so that nothing is redone for what a server merely repeats, or tells again because the stream was broken.
//!
//! A message counts wholly or not at all, and is refused when it makes no map: the first one lacks the node itself,
//! the node has no key, or there are too many peers. Single things in it that make no sense (a peer without a key, two
//! peers with one key, a region that is none) are left out and listed in [`Change::skipped`]; the rest counts, because
//! one bad peer must not cut a node off from all others.
//!
//! What holds in a map at all times: every peer has a number above 0 and a key, no two have the same of either, and
//! none has those of the node itself. Peers are shared ([`Arc`]); a change replaces the one it is about.
//!
//! ```
//! use mesh_core::{control::{NetMap, NodeId, netmap}, time::WallTime};
//!
//! let now = WallTime::from_unix_secs(1_800_000_000);
//! let key = |digit: &str| format!("nodekey:{}", digit.repeat(64));
//! let first = format!(r#"{{"Node":{{"ID":1,"Key":"{}"}},"Peers":[{{"ID":2,"Key":"{}"}}]}}"#, key("1"), key("2"));
//!
//! let mut map = NetMap::new();
//! let change = map.apply(netmap::decode(first.as_bytes(), None)?, now)?;
//! assert_eq!(change.peers.added, [NodeId(2)]);
//!
//! let delta = br#"{"PeersChangedPatch":[{"NodeID":2,"DERPRegion":900}]}"#;
//! let change = map.apply(netmap::decode(delta, None)?, now)?;
//! assert_eq!(change.peers.changed, [NodeId(2)]);
//! assert_eq!(map.peer(NodeId(2)).and_then(|peer| peer.home()).map(|region| region.number()), Some(900));
//!
//! let wrong = netmap::decode(b"{\n  \"Peers\": 7\n}", None).unwrap_err();
//! assert_eq!(wrong.to_string(), "line 2, column 12: invalid type: integer `7`, expected a sequence");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod change;
mod decode;
mod interner;
mod peers;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::Value;

use super::types::{
    DisplayMessage, DnsConfig, FilterRule, MapResponse, NodeId, PeerNode, TkaInfo, UserId, UserProfile,
};
use crate::{
    derp::{DerpMap, DerpRegion, RegionId, map::DerpHomeParams},
    key::NodePublic,
    limits,
    time::WallTime,
};

pub use change::{Change, Orders, PeersChange, Skipped};
pub use decode::{DecodeError, decode};
pub use interner::Interner;

/// The name of the filter that `PacketFilter` sets.
const BASE_FILTER: &str = "base";
/// The name that, with null, takes all others out.
const ALL_NAMES: &str = "*";

/// Why a message makes no map. Nothing of it was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetMapError {
    /// The first message of a stream must say who the node is.
    #[error("the first message of a map stream has no Node")]
    NoNode,
    /// A node without a number above 0.
    #[error("the Node has the ID {0}: it must be above 0")]
    NodeWithoutId(NodeId),
    /// A node without a key.
    #[error("the Node has no Key")]
    NodeWithoutKey,
    /// More than [`limits::PEERS`].
    #[error("{0} peers are more than a node can have ({max})", max = limits::PEERS)]
    TooManyPeers(usize),
}

/// What has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetMapStats {
    /// Messages that were applied.
    pub applied: u64,
    /// Messages that only showed that the stream lives.
    pub keep_alives: u64,
    /// Messages that were refused.
    pub refused: u64,
    /// Things in messages that were left out, each told in [`Change::skipped`].
    pub skipped: u64,
}

/// What a node knows of its tailnet.
#[derive(Clone, Debug, Default)]
pub struct NetMap {
    /// Whether a message of the stream has been applied.
    is_begun: bool,
    view: View,
    stats: NetMapStats,
}

/// The parts of the map.
#[derive(Clone, Debug, Default, PartialEq)]
struct View {
    node: Option<Arc<PeerNode>>,
    peers: peers::Peers,
    derp_map: DerpMap,
    filters: BTreeMap<String, Vec<FilterRule>>,
    dns: DnsConfig,
    users: BTreeMap<UserId, UserProfile>,
    ssh_policy: Option<Value>,
    other: Other,
}

/// The small parts.
#[derive(Clone, Debug, Default, PartialEq)]
struct Other {
    domain: String,
    collect_services: Option<bool>,
    health: Vec<String>,
    display_messages: BTreeMap<String, DisplayMessage>,
    tka_info: Option<TkaInfo>,
    audit_log_id: String,
}

impl NetMap {
    /// Nothing is known; the next message is the first of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A new stream begins: its first message tells everything. Until then the map stays as it is.
    pub fn begin_stream(&mut self) {
        self.is_begun = false;
    }

    /// Applies one message of the stream. `now` is for peers that are "seen now".
    ///
    /// # Errors
    /// When the message makes no map; the map is as it was then.
    pub fn apply(&mut self, response: MapResponse, now: WallTime) -> Result<Change, NetMapError> {
        if response.keep_alive {
            self.stats.keep_alives += 1;
            return Ok(Change { orders: orders(response), ..Change::default() });
        }
        let reset = !self.is_begun;
        if let Err(error) = self.view.check(&response, reset) {
            self.stats.refused += 1;
            return Err(error);
        }
        let change = self.view.merge(response, reset, now);
        self.is_begun = true;
        self.stats.applied += 1;
        self.stats.skipped += change.skipped.len() as u64;
        Ok(change)
    }

    /// The node itself; `None` before the first message.
    #[must_use]
    pub fn self_node(&self) -> Option<&Arc<PeerNode>> {
        self.view.node.as_ref()
    }

    /// The peers.
    #[must_use]
    pub fn peers(&self) -> &BTreeMap<NodeId, Arc<PeerNode>> {
        self.view.peers.by_id()
    }

    /// The peer of this number.
    #[must_use]
    pub fn peer(&self, id: NodeId) -> Option<&Arc<PeerNode>> {
        self.view.peers.by_id().get(&id)
    }

    /// The peer with this key.
    #[must_use]
    pub fn peer_by_key(&self, key: &NodePublic) -> Option<&Arc<PeerNode>> {
        self.view.peers.by_key(key)
    }

    /// The relays. Every region is there and under its own number.
    #[must_use]
    pub fn derp_map(&self) -> &DerpMap {
        &self.view.derp_map
    }

    /// The regions of the relay map, in ascending order.
    pub fn regions(&self) -> impl Iterator<Item = (RegionId, &DerpRegion)> {
        regions(&self.view.derp_map)
    }

    /// The packet filters by name. What counts is all their rules, in this order; no rule admits nothing.
    #[must_use]
    pub fn filters(&self) -> &BTreeMap<String, Vec<FilterRule>> {
        &self.view.filters
    }

    /// How names are resolved.
    #[must_use]
    pub fn dns(&self) -> &DnsConfig {
        &self.view.dns
    }

    /// A user.
    #[must_use]
    pub fn user(&self, id: UserId) -> Option<&UserProfile> {
        self.view.users.get(&id)
    }

    /// The users that the server told of.
    #[must_use]
    pub fn users(&self) -> &BTreeMap<UserId, UserProfile> {
        &self.view.users
    }

    /// Who may sign in by SSH, as it was sent.
    #[must_use]
    pub fn ssh_policy(&self) -> Option<&Value> {
        self.view.ssh_policy.as_ref()
    }

    /// The tailnet's name for people.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.view.other.domain
    }

    /// Whether the node should look for services on its host; `None`: the server did not say.
    #[must_use]
    pub fn collect_services(&self) -> Option<bool> {
        self.view.other.collect_services
    }

    /// What is wrong, in the server's words.
    #[must_use]
    pub fn health(&self) -> &[String] {
        &self.view.other.health
    }

    /// What is to be shown to the user, by name.
    #[must_use]
    pub fn display_messages(&self) -> &BTreeMap<String, DisplayMessage> {
        &self.view.other.display_messages
    }

    /// State of tailnet lock; `None`: the server did not say.
    #[must_use]
    pub fn tka_info(&self) -> Option<&TkaInfo> {
        self.view.other.tka_info.as_ref()
    }

    /// The tailnet's name under which flows are logged; empty is none.
    #[must_use]
    pub fn audit_log_id(&self) -> &str {
        &self.view.other.audit_log_id
    }

    /// The whole map as the first message of a stream would tell it; `None` before there was one.
    #[must_use]
    pub fn snapshot(&self) -> Option<MapResponse> {
        let (view, other) = (&self.view, &self.view.other);
        let messages = other.display_messages.iter().map(|(name, message)| (name.clone(), Some(message.clone())));
        let filters = view.filters.iter().map(|(name, rules)| (name.clone(), Some(rules.clone())));
        Some(MapResponse {
            node: Some(Arc::clone(view.node.as_ref()?)),
            derp_map: Some(view.derp_map.clone()),
            peers: self.peers().values().cloned().collect(),
            dns_config: Some(view.dns.clone()),
            domain: other.domain.clone(),
            collect_services: other.collect_services,
            packet_filters: Some(filters.collect()),
            user_profiles: view.users.values().cloned().collect(),
            health: Some(other.health.clone()),
            display_messages: Some(messages.collect()),
            ssh_policy: view.ssh_policy.clone(),
            tka_info: other.tka_info.clone(),
            domain_data_plane_audit_log_id: other.audit_log_id.clone(),
            ..MapResponse::default()
        })
    }

    /// What has happened.
    #[must_use]
    pub fn stats(&self) -> NetMapStats {
        self.stats
    }
}

impl View {
    fn check(&self, response: &MapResponse, reset: bool) -> Result<(), NetMapError> {
        match &response.node {
            None if reset => return Err(NetMapError::NoNode),
            Some(node) if node.id.0 <= 0 => return Err(NetMapError::NodeWithoutId(node.id)),
            Some(node) if node.key.is_zero() => return Err(NetMapError::NodeWithoutKey),
            Some(_) | None => {}
        }
        match self.peers.len_after(response, reset) {
            count if count > limits::PEERS => Err(NetMapError::TooManyPeers(count)),
            _ => Ok(()),
        }
    }

    /// Cannot fail. With `reset`, what is absent becomes empty, and otherwise stays.
    fn merge(&mut self, mut response: MapResponse, reset: bool, now: WallTime) -> Change {
        let mut change = Change::default();
        let skipped = &mut change.skipped;
        change.self_node = match response.node.take() {
            Some(node) => set(&mut self.node, Some(Some(node)), reset),
            None => false,
        };
        change.peers = peers::Merge::new(&mut self.peers, self.node.as_deref(), skipped).apply(&response, reset, now);
        change.users = self.merge_users(core::mem::take(&mut response.user_profiles), reset, skipped);
        if let Some(derp_map) = merged_derp_map(&self.derp_map, response.derp_map.take(), reset, skipped) {
            change.derp_regions = changed_regions(&self.derp_map, &derp_map);
            change.derp_map = set(&mut self.derp_map, Some(derp_map), reset);
        }
        let filters = merged_filters(&self.filters, &mut response, reset, skipped);
        change.filters = filters.is_some() && set(&mut self.filters, filters, reset);
        change.dns = set(&mut self.dns, response.dns_config.take(), reset);
        change.ssh_policy = set(&mut self.ssh_policy, response.ssh_policy.take().map(Some), reset);
        change.other = self.other.merge(&mut response, reset, skipped);
        change.orders = orders(response);
        change
    }

    fn merge_users(&mut self, profiles: Vec<UserProfile>, reset: bool, skipped: &mut Vec<Skipped>) -> BTreeSet<UserId> {
        let mut changed = BTreeSet::new();
        let before = if reset { core::mem::take(&mut self.users) } else { BTreeMap::new() };
        let known = |id: &UserId, users: &BTreeMap<UserId, UserProfile>| before.get(id).or(users.get(id)).cloned();
        for profile in profiles {
            if self.users.len() >= limits::USER_PROFILES && !self.users.contains_key(&profile.id) {
                skipped.push(Skipped::User(profile.id));
                continue;
            }
            if known(&profile.id, &self.users).as_ref() != Some(&profile) {
                changed.insert(profile.id);
            }
            self.users.insert(profile.id, profile);
        }
        changed.extend(before.keys().filter(|id| !self.users.contains_key(id)));
        changed
    }
}

impl Other {
    fn merge(&mut self, response: &mut MapResponse, reset: bool, skipped: &mut Vec<Skipped>) -> bool {
        let text = |text: &mut String| Some(core::mem::take(text)).filter(|text| !text.is_empty());
        let messages = response.display_messages.take().map(|update| {
            let known = if reset { BTreeMap::new() } else { self.display_messages.clone() };
            merged_names(known, update, skipped)
        });
        let changed = [
            set(&mut self.domain, text(&mut response.domain), reset),
            set(&mut self.collect_services, response.collect_services.map(Some), reset),
            set(&mut self.health, response.health.take(), reset),
            set(&mut self.display_messages, messages, reset),
            set(&mut self.tka_info, response.tka_info.take().map(Some), reset),
            set(&mut self.audit_log_id, text(&mut response.domain_data_plane_audit_log_id), reset),
        ];
        changed.contains(&true)
    }
}

/// Puts a new value in its place; without one, the place becomes empty by a reset and else stays. Says whether it is
/// other than before.
fn set<T: Default + PartialEq>(place: &mut T, value: Option<T>, reset: bool) -> bool {
    let Some(value) = value.or_else(|| reset.then(T::default)) else { return false };
    let changed = *place != value;
    *place = value;
    changed
}

/// What the rules become; `None` when the message says nothing of them. `PacketFilter` counts first.
fn merged_filters(
    known: &BTreeMap<String, Vec<FilterRule>>,
    response: &mut MapResponse,
    reset: bool,
    skipped: &mut Vec<Skipped>,
) -> Option<BTreeMap<String, Vec<FilterRule>>> {
    let (base, named) = (response.packet_filter.take(), response.packet_filters.take());
    if base.is_none() && named.is_none() && !reset {
        return None;
    }
    let mut filters = if reset { BTreeMap::new() } else { known.clone() };
    if let Some(base) = base {
        filters.insert(BASE_FILTER.to_owned(), base);
    }
    Some(merged_names(filters, named.unwrap_or_default(), skipped))
}

/// A name with null goes, another is set. `*` with null takes all out before, and is never a name itself.
fn merged_names<T>(
    mut known: BTreeMap<String, T>,
    update: BTreeMap<String, Option<T>>,
    skipped: &mut Vec<Skipped>,
) -> BTreeMap<String, T> {
    if matches!(update.get(ALL_NAMES), Some(None)) {
        known.clear();
    }
    for (name, value) in update {
        match value {
            _ if name == ALL_NAMES => {}
            None => drop(known.remove(&name)),
            Some(_) if known.len() >= limits::NETMAP_NAMES && !known.contains_key(&name) => {
                skipped.push(Skipped::Name(name));
            }
            Some(value) => drop(known.insert(name, value)),
        }
    }
    known
}

/// What the relay map becomes; `None` when the message says nothing of it. Without regions in the update they stay;
/// weights stay likewise.
fn merged_derp_map(
    known: &DerpMap,
    update: Option<DerpMap>,
    reset: bool,
    skipped: &mut Vec<Skipped>,
) -> Option<DerpMap> {
    let mut merged = if reset { DerpMap::default() } else { known.clone() };
    let Some(update) = update else { return reset.then_some(merged) };
    if let Some(regions) = update.regions {
        let usable = regions.into_iter().filter_map(|(number, region)| usable(number, region, skipped));
        merged.regions = Some(usable.collect());
        merged.omit_default_regions = update.omit_default_regions;
    }
    if let Some(params) = update.home_params {
        let region_score = params.region_score.or_else(|| merged.home_params.take()?.region_score);
        merged.home_params = Some(DerpHomeParams { region_score });
    }
    Some(merged)
}

/// A region under the number it is listed under; one that does not say its number has that.
fn usable(number: i64, region: Option<DerpRegion>, skipped: &mut Vec<Skipped>) -> Option<(i64, Option<DerpRegion>)> {
    let is_number = u16::try_from(number).ok().and_then(RegionId::new).is_some();
    match region {
        Some(region) if is_number && [0, number].contains(&region.region_id) => {
            Some((number, Some(DerpRegion { region_id: number, ..region })))
        }
        Some(_) | None => {
            skipped.push(Skipped::Region(number));
            None
        }
    }
}

fn regions(map: &DerpMap) -> impl Iterator<Item = (RegionId, &DerpRegion)> {
    map.regions.iter().flatten().filter_map(|(number, region)| {
        let id = u16::try_from(*number).ok().and_then(RegionId::new)?;
        Some((id, region.as_ref()?))
    })
}

/// The regions that came, went, or have other relays.
fn changed_regions(before: &DerpMap, after: &DerpMap) -> BTreeSet<RegionId> {
    let nodes = |map| -> BTreeMap<_, _> { regions(map).map(|(id, region)| (id, &region.nodes)).collect() };
    let (before, after) = (nodes(before), nodes(after));
    let ids = before.keys().chain(after.keys()).copied();
    ids.filter(|id| before.get(id) != after.get(id)).collect()
}

fn orders(response: MapResponse) -> Orders {
    Orders {
        ping: response.ping_request,
        browser_url: response.pop_browser_url,
        control_time: response.control_time,
        debug: response.debug.filter(|_| !response.keep_alive),
        client_version: response.client_version,
        dial_plan: response.control_dial_plan,
    }
}

#[cfg(test)]
mod tests;
