//! What changed since a stream was last told, cut to what its node may see.
//!
//! Entries only say where to look. For each peer that one names it counts whether the stream knew the peer before the
//! first of them, and whether its node may see the peer now; what is told is how the peer is now.

use core::sync::atomic::Ordering::Relaxed;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_core::control::types::NodeId;

use super::{Kind, Message, node, to_json};
use crate::store::{
    log::{Entry, Parts, What},
    node::Member,
    snapshot::Snapshot,
};

/// What entries say of one viewer's map.
#[derive(Default)]
struct Touched {
    peers: BTreeMap<NodeId, Peer>,
    own: bool,
    filters: bool,
    routes: bool,
    policy: bool,
    relays: bool,
}

/// What entries say of one peer.
#[derive(Default)]
struct Peer {
    /// Whether it was seen before; `None`: as now.
    was_seen: Option<bool>,
    parts: Parts,
}

impl Touched {
    fn new(viewer: NodeId, entries: &[Arc<Entry>]) -> Self {
        let mut touched = Self::default();
        for entry in entries {
            match &entry.what {
                What::Node(id, parts, change) => {
                    if *id == viewer {
                        touched.own |= parts.has(Parts::OWN);
                    } else {
                        touched.peers.entry(*id).or_default().parts |= *parts;
                    }
                    touched.filters |= change.filters.contains(&viewer);
                    touched.routes |= change.routes.contains(&viewer);
                    for peer in pairs(&change.vanished, viewer) {
                        touched.peers.entry(peer).or_default().was_seen.get_or_insert(true);
                    }
                    for peer in pairs(&change.appeared, viewer) {
                        touched.peers.entry(peer).or_default().was_seen.get_or_insert(false);
                    }
                }
                What::Policy(change) => {
                    touched.policy = true;
                    touched.filters |= change.affected.filters.contains(&viewer);
                    touched.routes |= change.affected.routes.contains(&viewer);
                    if change.affected.peers.contains(&viewer) {
                        let (before, after) = (change.before.peers(viewer), change.after.peers(viewer));
                        for peer in &before ^ &after {
                            let was_seen = before.contains(&peer);
                            touched.peers.entry(peer).or_default().was_seen.get_or_insert(was_seen);
                        }
                    }
                }
                What::Relays => touched.relays = true,
            }
        }
        touched
    }
}

/// The nodes that came into sight of a viewer or went out of it.
fn pairs(by_node: &BTreeMap<NodeId, BTreeSet<NodeId>>, viewer: NodeId) -> impl Iterator<Item = NodeId> + '_ {
    let own = by_node.get(&viewer).into_iter().flatten().copied();
    own.chain(by_node.iter().filter(move |(id, set)| **id != viewer && set.contains(&viewer)).map(|(id, _)| *id))
}

impl Snapshot {
    pub(super) fn delta(&self, viewer: NodeId, entries: &[Arc<Entry>]) -> Message {
        let Some(own) = self.members.get(&viewer) else { return Message::default() };
        let touched = Touched::new(viewer, entries);
        let mut message = Message::default();
        let response = &mut message.response;
        let mut whole: BTreeMap<NodeId, &Arc<Member>> = BTreeMap::new();
        for (id, peer) in &touched.peers {
            let member = self.seen(viewer, *id);
            match (peer.was_seen, member) {
                (Some(false) | None, None) => {}
                (Some(true), None) => response.peers_removed.push(*id),
                // Also when it was out of sight for a while: meanwhile its routes may have become others.
                (Some(_), Some(member)) => drop(whole.insert(*id, member)),
                (None, Some(member)) if peer.parts.has(Parts::WHOLE) => drop(whole.insert(*id, member)),
                (None, Some(member)) => {
                    let parts = peer.parts.without(Parts::OWN);
                    if parts.is_empty() {
                        continue;
                    }
                    if parts.has(Parts::ONLINE) && member.live.online {
                        response.peer_seen_change.insert(*id, false);
                    }
                    message.patches.push(self.patch(member, parts));
                }
            }
        }
        if touched.routes {
            let routers = self.routers.iter().filter(|id| **id != viewer);
            whole.extend(routers.filter_map(|id| Some((*id, self.seen(viewer, *id)?))));
        }
        let mut profiles = BTreeMap::new();
        for member in whole.values() {
            let profile = self.profile(member);
            profiles.insert(profile.id, profile);
        }
        let is_router = self.routers.contains(&viewer);
        if touched.own || (touched.routes && is_router) {
            let profile = self.profile(own);
            profiles.insert(profile.id, profile);
            response.node = Some(Arc::new(self.own_node(own)));
        }
        response.user_profiles = profiles.into_values().collect();
        response.packet_filters = touched.filters.then(|| self.filters(viewer));
        response.health = (touched.policy || touched.own).then(|| self.health(own));
        response.derp_map = touched.relays.then(|| self.derp_map.as_ref().clone());
        message.peers_changed = whole.values().map(|member| self.peer(viewer, member, Kind::Change)).collect();
        message
    }

    /// A peer, when a viewer may see it. One whose key has expired sees nobody.
    fn seen(&self, viewer: NodeId, peer: NodeId) -> Option<&Arc<Member>> {
        self.members.get(&viewer).filter(|own| !own.live.expired)?;
        let member = self.members.get(&peer).filter(|member| member.row.announced)?;
        self.rulebook.sees(viewer, peer).then_some(member)
    }

    fn patch(&self, member: &Arc<Member>, parts: Parts) -> Arc<str> {
        member.patch(parts, || {
            self.counters.peers.fetch_add(1, Relaxed);
            to_json(&node::patch(member, parts))
        })
    }
}
