//! The peers of a netmap, and how messages change them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::change::{PeersChange, Skipped};
use crate::{
    control::types::{MapResponse, NodeId, PeerChange, PeerNode},
    key::NodePublic,
    limits,
    time::WallTime,
};

/// Peers by number and by key. No two have the same of either.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Peers {
    by_id: BTreeMap<NodeId, Arc<PeerNode>>,
    by_key: BTreeMap<NodePublic, NodeId>,
}

impl Peers {
    pub(super) fn by_id(&self) -> &BTreeMap<NodeId, Arc<PeerNode>> {
        &self.by_id
    }

    pub(super) fn by_key(&self, key: &NodePublic) -> Option<&Arc<PeerNode>> {
        self.by_id.get(self.by_key.get(key)?)
    }

    /// How many there would be after a message, at most.
    pub(super) fn len_after(&self, response: &MapResponse, reset: bool) -> usize {
        if !response.peers.is_empty() {
            return response.peers.len();
        }
        let is_here = |id: &NodeId| !reset && self.by_id.contains_key(id);
        let changed: BTreeSet<_> = response.peers_changed.iter().map(|peer| peer.id).collect();
        let removed: BTreeSet<_> = response.peers_removed.iter().copied().filter(is_here).collect();
        let stay = if reset { 0 } else { self.by_id.len() };
        let added = changed.iter().filter(|id| !is_here(id)).count();
        stay + added - removed.difference(&changed).count()
    }

    fn insert(&mut self, peer: Arc<PeerNode>) {
        self.remove(peer.id);
        self.by_key.insert(peer.key, peer.id);
        self.by_id.insert(peer.id, peer);
    }

    fn remove(&mut self, id: NodeId) -> Option<Arc<PeerNode>> {
        let peer = self.by_id.remove(&id)?;
        self.by_key.remove(&peer.key);
        Some(peer)
    }
}

/// One message's work on the peers. Remembers what each was before.
#[derive(Debug)]
pub(super) struct Merge<'m> {
    peers: &'m mut Peers,
    own: Option<&'m PeerNode>,
    skipped: &'m mut Vec<Skipped>,
    before: BTreeMap<NodeId, Option<Arc<PeerNode>>>,
}

impl<'m> Merge<'m> {
    pub(super) fn new(peers: &'m mut Peers, own: Option<&'m PeerNode>, skipped: &'m mut Vec<Skipped>) -> Self {
        Self { peers, own, skipped, before: BTreeMap::new() }
    }

    /// Applies all lists of peers of a message. With `reset`, nothing that was known before stays.
    pub(super) fn apply(mut self, response: &MapResponse, reset: bool, now: WallTime) -> PeersChange {
        if !response.peers.is_empty() {
            self.replace_all(&response.peers, reset);
        } else {
            if reset {
                self.replace_all(&[], true);
            }
            for id in &response.peers_removed {
                self.remove(*id);
            }
            self.upsert_all(&response.peers_changed);
            for (id, seen) in &response.peer_seen_change {
                self.modify(*id, |peer| peer.last_seen = seen.then_some(now));
            }
            for (id, online) in &response.online_change {
                self.modify(*id, |peer| peer.online = Some(*online));
            }
            for change in &response.peers_changed_patch {
                self.patch(change);
            }
        }
        self.part_from_own();
        self.finish()
    }

    fn replace_all(&mut self, list: &[Arc<PeerNode>], reset: bool) {
        let known = core::mem::take(self.peers);
        let entries: Vec<_> = list
            .iter()
            .map(|peer| match known.by_id.get(&peer.id) {
                Some(known) if !reset => keep_newer_disco_key(peer, known),
                Some(_) | None => peer.clone(),
            })
            .collect();
        self.before.extend(known.by_id.into_iter().map(|(id, peer)| (id, Some(peer))));
        self.upsert_all(&entries);
    }

    fn upsert_all(&mut self, list: &[Arc<PeerNode>]) {
        let mut seen = BTreeSet::new();
        for peer in list {
            let is_again = !seen.insert(peer.id);
            if is_again {
                self.skipped.push(Skipped::Repeated(peer.id));
            }
            if let Some(problem) = self.problem(peer) {
                self.skipped.push(problem);
                continue;
            }
            if self.takes_key(peer.key, peer.id, &seen) {
                self.remember(peer.id);
                let peer = self.within_routes(peer);
                self.peers.insert(peer);
            }
        }
    }

    /// The peer without the routes that are too many. What it keeps first of all is its own addresses.
    fn within_routes(&mut self, peer: &Arc<PeerNode>) -> Arc<PeerNode> {
        let routes = peer.allowed_ips();
        let left_out = routes.len().saturating_sub(limits::ROUTES_PER_PEER);
        if left_out == 0 {
            return Arc::clone(peer);
        }
        self.skipped.push(Skipped::Routes(peer.id, left_out));
        let own: BTreeSet<_> = peer.addresses.iter().collect();
        let (first, rest): (Vec<_>, Vec<_>) = routes.iter().partition(|route| own.contains(route));
        let kept = first.into_iter().chain(rest).take(limits::ROUTES_PER_PEER).copied().collect();
        Arc::new(PeerNode { allowed_ips: Some(kept), ..PeerNode::clone(peer) })
    }

    /// Why a peer cannot be one.
    fn problem(&self, peer: &PeerNode) -> Option<Skipped> {
        let is_own = self.own.is_some_and(|own| own.id == peer.id || own.key == peer.key);
        match peer {
            _ if peer.id.0 <= 0 => Some(Skipped::NoId(peer.id)),
            _ if peer.key.is_zero() => Some(Skipped::NoKey(peer.id)),
            _ if is_own => Some(Skipped::Own(peer.id)),
            _ => None,
        }
    }

    /// Whether the peer may have the key. Another that has it loses it, unless it is of the same list.
    fn takes_key(&mut self, key: NodePublic, id: NodeId, of_this_list: &BTreeSet<NodeId>) -> bool {
        let Some(&holder) = self.peers.by_key.get(&key) else { return true };
        if holder == id {
            return true;
        }
        if of_this_list.contains(&holder) {
            self.skipped.push(Skipped::SameKey(id, holder));
            return false;
        }
        self.skipped.push(Skipped::SameKey(holder, id));
        self.remove(holder);
        true
    }

    fn remove(&mut self, id: NodeId) {
        self.remember(id);
        self.peers.remove(id);
    }

    fn patch(&mut self, change: &PeerChange) {
        let id = change.node_id;
        let Some(known) = self.peers.by_id.get(&id) else {
            self.skipped.push(Skipped::UnknownPeer(id));
            return;
        };
        let is_stale = change.disco_key.is_some()
            && change.online == Some(false)
            && change.last_seen.is_some_and(|seen| known.last_seen.is_some_and(|known| seen <= known));
        if is_stale {
            self.skipped.push(Skipped::Stale(id));
            return;
        }
        if let Some(key) = change.key {
            if self.own.is_some_and(|own| own.key == key) {
                self.skipped.push(Skipped::Own(id));
                return;
            }
            self.takes_key(key, id, &BTreeSet::new());
        }
        self.modify(id, |peer| apply_patch(peer, change));
    }

    fn modify(&mut self, id: NodeId, change: impl FnOnce(&mut PeerNode)) {
        self.remember(id);
        let Some(mut peer) = self.peers.remove(id) else {
            self.skipped.push(Skipped::UnknownPeer(id));
            return;
        };
        change(Arc::make_mut(&mut peer));
        self.peers.insert(peer);
    }

    /// The node itself may have taken a number or a key that a peer had.
    fn part_from_own(&mut self) {
        let Some(own) = self.own else { return };
        let of_key = self.peers.by_key.get(&own.key).copied();
        let of_id = Some(own.id).filter(|id| self.peers.by_id.contains_key(id));
        for id in of_key.into_iter().chain(of_id.filter(|id| Some(*id) != of_key)) {
            self.skipped.push(Skipped::Own(id));
            self.remove(id);
        }
    }

    fn remember(&mut self, id: NodeId) {
        self.before.entry(id).or_insert_with(|| self.peers.by_id.get(&id).cloned());
    }

    fn finish(self) -> PeersChange {
        let mut change = PeersChange::default();
        for (id, before) in self.before {
            match (before, self.peers.by_id.get(&id)) {
                (None, Some(_)) => change.added.push(id),
                (Some(_), None) => change.removed.push(id),
                (Some(before), Some(after)) if !Arc::ptr_eq(&before, after) && before != *after => {
                    change.changed.push(id)
                }
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
        change
    }
}

fn apply_patch(peer: &mut PeerNode, change: &PeerChange) {
    let PeerChange {
        node_id: _,
        derp_region,
        cap,
        cap_map,
        endpoints,
        key,
        key_signature,
        disco_key,
        online,
        last_seen,
        key_expiry,
    } = change;
    if *derp_region != 0 {
        peer.home_derp = *derp_region;
    }
    if *cap != 0 {
        peer.cap = *cap;
    }
    if let Some(cap_map) = cap_map {
        peer.cap_map.clone_from(cap_map);
    }
    if let Some(endpoints) = endpoints {
        peer.endpoints.clone_from(endpoints);
    }
    if let Some(key) = key {
        peer.key = *key;
    }
    if !key_signature.is_empty() {
        peer.key_signature.clone_from(key_signature);
    }
    peer.disco_key = disco_key.or(peer.disco_key);
    peer.online = online.or(peer.online);
    peer.last_seen = last_seen.or(peer.last_seen);
    if let Some(expiry) = key_expiry {
        peer.key_expiry = expiry.at();
    }
}

/// A peer that is offline and was not seen since has no newer disco key than the one known. Stock nodes: a key learnt
/// from the peer itself is not undone by an old entry of the server's.
fn keep_newer_disco_key(peer: &Arc<PeerNode>, known: &PeerNode) -> Arc<PeerNode> {
    let is_newer = match (peer.last_seen, known.last_seen) {
        (Some(seen), Some(known)) => seen > known,
        (Some(_), None) => true,
        (None, _) => false,
    };
    if peer.online != Some(false) || is_newer || peer.disco_key == known.disco_key {
        return peer.clone();
    }
    let mut kept = PeerNode::clone(peer);
    kept.disco_key = known.disco_key;
    Arc::new(kept)
}
