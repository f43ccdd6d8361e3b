//! Full maps: the first message of a stream, and what a stream gets that was left too far behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_core::{
    control::types::{DnsConfig, FilterRule, MapResponse, NodeId},
    time::WallTime,
};
use serde_json::json;

use super::{Kind, Message, TAGGED_USER, node};
use crate::store::{node::Member, snapshot::Snapshot};

impl Snapshot {
    pub(super) fn full_map(&self, viewer: NodeId) -> Message {
        let Some(own) = self.members.get(&viewer) else { return Message::default() };
        let mut message = Message::default();
        // Stock clients' status reads profiles from full maps alone: whose a tagged peer is that comes later is told now.
        let mut profiles = BTreeMap::from([(TAGGED_USER, node::tagged_profile())]);
        let mut add_profile = |member: &Member| {
            let profile = self.profile(member);
            profiles.insert(profile.id, profile);
        };
        add_profile(own);
        // Who has to sign in again learns that, and nothing of others.
        let peers = if own.live.expired { BTreeSet::new() } else { self.rulebook.peers(viewer) };
        for id in peers {
            let Some(peer) = self.members.get(&id).filter(|peer| peer.row.announced) else { continue };
            add_profile(peer);
            message.peers.push(self.peer(viewer, peer, Kind::Full));
        }
        message.response = MapResponse {
            node: Some(Arc::new(self.own_node(own))),
            derp_map: Some(self.derp_map.as_ref().clone()),
            dns_config: Some(self.dns_config()),
            domain: self.base_domain.to_string(),
            collect_services: Some(false),
            packet_filters: Some(self.filters(viewer)),
            user_profiles: profiles.into_values().collect(),
            health: Some(self.health(own)),
            ssh_policy: Some(json!({ "rules": [] })),
            ..MapResponse::default()
        };
        message
    }

    /// The last words on a stream whose node was deleted, or whose key has expired.
    pub(super) fn farewell(&self, member: &Arc<Member>, now: WallTime) -> Message {
        let own = node::expired_since(self.own_node(member), now);
        let response = MapResponse { node: Some(Arc::new(own)), ..MapResponse::default() };
        Message { response, ..Message::default() }
    }

    /// Names of peers are resolved by the node itself; all else goes where the host sends it.
    fn dns_config(&self) -> DnsConfig {
        DnsConfig {
            routes: [(self.base_domain.to_string(), Vec::new())].into(),
            domains: vec![self.base_domain.to_string()],
            proxied: true,
            ..DnsConfig::default()
        }
    }

    /// The packet filter, by name. One whose key has expired lets nobody in, and its rules would name others.
    pub(super) fn filters(&self, viewer: NodeId) -> BTreeMap<String, Option<Vec<FilterRule>>> {
        let is_expired = self.members.get(&viewer).is_some_and(|own| own.live.expired);
        let filters = self.rulebook.packet_filters(viewer);
        filters.into_iter().map(|(name, rules)| (name, Some(if is_expired { Vec::new() } else { rules }))).collect()
    }

    /// What is wrong, in words.
    pub(super) fn health(&self, own: &Member) -> Vec<String> {
        let cloned = own.live.cloned.then_some(
            "another machine has the keys of this node, as when its state was copied, and is refused while this one is \
             connected: sign one of them in anew (meshd with an empty state directory)",
        );
        let bare = (!self.has_policy)
            .then_some("no policy is stored on the server: nodes do not see each other (mesh-control policy set FILE)");
        cloned.into_iter().chain(bare).map(str::to_owned).collect()
    }
}
