//! The peers of a node: configuration, adjacency, and a tunnel for those with traffic.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use crate::{
    dataplane::{Adjacency, PeerId, TxState},
    ip::prefix::Prefix,
    key::NodePublic,
    limits,
    path::SendPath,
    time::Instant,
    wireguard::{Sealer, Tunnel, tunnel::Stamps},
};

use super::{ConfigError, PeerConfig};

/// One peer. An idle one has no tunnel.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) config: PeerConfig,
    pub(super) adjacency: Arc<Adjacency>,
    pub(super) path: Option<SendPath>,
    pub(super) sealer: Option<Arc<Sealer>>,
    pub(super) tunnel: Option<Box<Tunnel>>,
    pub(super) stamps: Stamps,
    pub(super) last_handshake: Option<Instant>,
}

impl Peer {
    fn new(id: PeerId, config: PeerConfig) -> Self {
        let path = config.endpoint.map(SendPath::udp);
        Self {
            id,
            adjacency: Arc::new(Adjacency::new(id, path)),
            path,
            config,
            sealer: None,
            tunnel: None,
            stamps: Stamps::default(),
            last_handshake: None,
        }
    }

    /// Tells the fast path how to send now.
    pub(super) fn publish(&self) {
        self.adjacency.publish(TxState { sealer: self.sealer.clone(), path: self.path });
    }
}

/// All peers, by id and by key.
#[derive(Debug, Default)]
pub(super) struct PeerTable {
    peers: BTreeMap<PeerId, Peer>,
    by_key: BTreeMap<NodePublic, PeerId>,
    /// Which peer has a prefix: the last one to name it.
    routes: BTreeMap<Prefix, PeerId>,
    /// Stamps of peers that are gone, oldest first.
    departed: VecDeque<(NodePublic, Stamps)>,
    next_id: u32,
}

/// What a new list of peers means for the rest of the node.
#[derive(Debug, Default)]
pub(super) struct TableChange {
    /// Peers that are gone.
    pub(super) removed: Vec<Peer>,
    /// Peers that are new.
    pub(super) added: Vec<PeerId>,
    /// Peers whose pre-shared key is another: their tunnels start over.
    pub(super) rekeyed: Vec<PeerId>,
    /// Peers whose persistent keepalive is another.
    pub(super) keepalive_changed: Vec<PeerId>,
    /// Prefixes without a peer now.
    pub(super) routes_removed: Vec<Prefix>,
    /// Prefixes with another peer than before.
    pub(super) routes_set: Vec<(Prefix, PeerId)>,
}

impl PeerTable {
    pub(super) fn get(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.peers.get_mut(&id)
    }

    pub(super) fn by_key(&self, key: &NodePublic) -> Option<PeerId> {
        self.by_key.get(key).copied()
    }

    /// All peers in the order of their keys.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.by_key.values().filter_map(|id| self.peers.get(id))
    }

    /// All routed prefixes, sorted.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = Prefix> + '_ {
        self.routes.keys().copied()
    }

    /// Whether a list of peers can be applied.
    pub(super) fn check(own: NodePublic, configs: &[PeerConfig]) -> Result<(), ConfigError> {
        if configs.len() > limits::PEERS {
            return Err(ConfigError::TooManyPeers(configs.len()));
        }
        let mut seen = BTreeSet::new();
        for config in configs {
            if config.key == own {
                return Err(ConfigError::OwnKey(config.key));
            }
            if !seen.insert(config.key) {
                return Err(ConfigError::DuplicatePeer(config.key));
            }
            if config.allowed_ips.len() > limits::ROUTES_PER_PEER {
                return Err(ConfigError::TooManyRoutes(config.key));
            }
        }
        Ok(())
    }

    /// Makes the peers those of `configs`, which [`Self::check`] has passed. Peers that stay keep their sessions.
    pub(super) fn apply(&mut self, configs: Vec<PeerConfig>) -> TableChange {
        let mut change = TableChange::default();
        let keep: BTreeSet<_> = configs.iter().map(|config| config.key).collect();
        let gone: Vec<_> = self.by_key.iter().filter(|(key, _)| !keep.contains(key)).map(|(_, id)| *id).collect();
        for id in gone {
            if let Some(peer) = self.peers.remove(&id) {
                self.by_key.remove(&peer.config.key);
                self.departed.push_back((peer.config.key, peer.stamps));
                if self.departed.len() > limits::DEPARTED_PEERS {
                    self.departed.pop_front();
                }
                change.removed.push(peer);
            }
        }

        let mut routes = BTreeMap::new();
        for config in configs {
            let id = match self.by_key(&config.key) {
                Some(id) => id,
                None => {
                    let id = PeerId::new(self.next_id);
                    self.next_id += 1;
                    change.added.push(id);
                    id
                }
            };
            routes.extend(config.allowed_ips.iter().map(|prefix| (*prefix, id)));
            self.set(id, config, &mut change);
        }

        change.routes_removed = self.routes.keys().filter(|prefix| !routes.contains_key(prefix)).copied().collect();
        change.routes_set = routes
            .iter()
            .filter(|(prefix, id)| self.routes.get(prefix) != Some(id))
            .map(|(prefix, id)| (*prefix, *id))
            .collect();
        self.routes = routes;
        change
    }

    fn set(&mut self, id: PeerId, config: PeerConfig, change: &mut TableChange) {
        let Some(peer) = self.peers.get_mut(&id) else {
            let departed = self.departed.iter().position(|(key, _)| *key == config.key);
            let stamps = departed.and_then(|index| self.departed.remove(index)).map(|(_, stamps)| stamps);
            self.by_key.insert(config.key, id);
            self.peers.insert(id, Peer { stamps: stamps.unwrap_or_default(), ..Peer::new(id, config) });
            return;
        };
        if peer.config.preshared_key != config.preshared_key {
            change.rekeyed.push(id);
        }
        if peer.config.persistent_keepalive != config.persistent_keepalive {
            change.keepalive_changed.push(id);
        }
        if peer.config.endpoint != config.endpoint && config.endpoint.is_some() {
            peer.path = config.endpoint.map(SendPath::udp);
            peer.publish();
        }
        peer.config = config;
    }
}
