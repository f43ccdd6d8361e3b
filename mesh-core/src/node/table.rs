//! The peers of a node: configuration, adjacency, and a tunnel for those with traffic.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use crate::{
    dataplane::{Addressing, Adjacency, PeerId, TxState},
    ip::prefix::Prefix,
    key::{DiscoPublic, NodePublic},
    limits,
    machine::Deadline,
    path::{PathAddr, PeerPaths, Selection, SendPath},
    time::{Instant, earliest},
    wireguard::{Sealer, Tunnel, tunnel::Stamps},
};

use super::{ConfigError, PeerAddressing, PeerConfig, Whereabouts};

/// One peer. An idle one has neither tunnel nor paths.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) config: PeerConfig,
    pub(super) adjacency: Arc<Adjacency>,
    pub(super) path: Option<SendPath>,
    /// Of peers that are found by disco.
    pub(super) paths: Option<Box<PeerPaths>>,
    pub(super) watch: Watch,
    pub(super) sealer: Option<Arc<Sealer>>,
    pub(super) tunnel: Option<Box<Tunnel>>,
    pub(super) stamps: Stamps,
    pub(super) last_handshake: Option<Instant>,
}

/// What is watched at a peer with paths, and when it is looked at next.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Data waits for an answer: does one come?
    pub(super) answer_at: Option<Instant>,
    /// The initiation that waited for its response when this was looked at last. Another in its place means that there was none.
    pub(super) initiated_at: Option<Instant>,
    /// The relay did not have the peer, or the peer may not know our key yet: it is tried again then.
    pub(super) retry_at: Option<Instant>,
    /// Our key is another since the last session.
    pub(super) is_rekeyed: bool,
    /// Such tries since there was a session.
    pub(super) retries: usize,
    /// An initiation that is unanswered then is taken as lost: the peer could have answered it.
    pub(super) lost_at: Option<Instant>,
    /// Initiations that were taken as lost since there was a session.
    pub(super) losses: u32,
    /// The paths are dropped when they have not been used until then.
    pub(super) idle_at: Option<Instant>,
}

impl Peer {
    fn new(id: PeerId, config: PeerConfig) -> Self {
        let path = first_path(&config);
        Self {
            id,
            adjacency: Arc::new(Adjacency::new(id, config.addressing.kind(), path)),
            path,
            paths: None,
            watch: Watch::default(),
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

    /// How its packets are sent now.
    pub(super) fn selection(&self) -> Selection {
        match (&self.paths, self.path.map(|path| path.to)) {
            (Some(paths), _) => paths.selection(),
            (None, Some(PathAddr::Udp(address))) => Selection::Direct(address),
            (None, Some(PathAddr::Relay { region, .. })) => Selection::Relay(region),
            (None, None) => Selection::Nowhere,
        }
    }

    /// When an initiation was sent to it that it has not answered.
    pub(super) fn initiated_at(&self) -> Option<Instant> {
        self.tunnel.as_ref()?.initiated_at()
    }

    /// Its disco key, where it has one.
    pub(super) fn disco_key(&self) -> Option<DiscoPublic> {
        self.config.addressing.whereabouts()?.disco_key
    }

    /// When anything of the peer wants to be looked at next.
    pub(super) fn poll_timeout(&self) -> Option<Deadline> {
        let watch = &self.watch;
        let deadline = |at: Option<Instant>, why| at.map(|at| Deadline::new(at, why));
        [
            self.tunnel.as_ref().and_then(|tunnel| tunnel.poll_timeout()),
            self.paths.as_ref().and_then(|paths| paths.poll_timeout()),
            deadline(watch.answer_at, "answer to data"),
            deadline(watch.retry_at, "peer was not at the relay"),
            deadline(watch.lost_at, "initiation is taken as lost"),
            deadline(watch.idle_at, "paths are idle"),
        ]
        .into_iter()
        .fold(None, earliest)
    }
}

/// Where to begin, before anything was heard of the peer.
fn first_path(config: &PeerConfig) -> Option<SendPath> {
    match &config.addressing {
        PeerAddressing::Roaming { endpoint } => endpoint.map(SendPath::udp),
        PeerAddressing::Discovered(Whereabouts { home, .. }) => {
            home.map(|region| SendPath::new(PathAddr::Relay { region, peer: config.key }))
        }
    }
}

/// All peers, by id and by key.
#[derive(Debug, Default)]
pub(super) struct PeerTable {
    peers: BTreeMap<PeerId, Peer>,
    by_key: BTreeMap<NodePublic, PeerId>,
    /// Who has a disco key: usually one.
    by_disco: BTreeMap<DiscoPublic, BTreeSet<PeerId>>,
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
    /// Peers whose endpoints or home are others.
    pub(super) moved: Vec<PeerId>,
    /// Peers whose disco key is another: they have restarted.
    pub(super) restarted: Vec<PeerId>,
    /// Disco keys that a peer has now.
    pub(super) disco_added: Vec<DiscoPublic>,
    /// Disco keys that no peer has any more.
    pub(super) disco_removed: Vec<DiscoPublic>,
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

    /// Who has this disco key.
    pub(super) fn by_disco(&self, key: &DiscoPublic) -> impl Iterator<Item = PeerId> + '_ {
        self.by_disco.get(key).into_iter().flatten().copied()
    }

    /// All ids, in order.
    pub(super) fn ids(&self) -> Vec<PeerId> {
        self.peers.keys().copied().collect()
    }

    /// Of how many peers that are gone stamps are kept.
    pub(super) fn departed_count(&self) -> usize {
        self.departed.len()
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
        // A peer that is found in another way from now on is another peer.
        let keep: BTreeSet<_> = configs.iter().map(|config| (config.key, config.addressing.kind())).collect();
        let is_gone = |peer: &Peer| !keep.contains(&(peer.config.key, peer.config.addressing.kind()));
        let gone: Vec<_> = self.peers.values().filter(|peer| is_gone(peer)).map(|peer| peer.id).collect();
        for id in gone {
            if let Some(peer) = self.peers.remove(&id) {
                self.by_key.remove(&peer.config.key);
                self.release_disco(id, peer.disco_key(), &mut change);
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

    fn hold_disco(&mut self, id: PeerId, key: Option<DiscoPublic>, change: &mut TableChange) {
        let Some(key) = key else { return };
        let owners = self.by_disco.entry(key).or_default();
        if owners.is_empty() {
            change.disco_removed.retain(|removed| *removed != key);
            change.disco_added.push(key);
        }
        owners.insert(id);
    }

    fn release_disco(&mut self, id: PeerId, key: Option<DiscoPublic>, change: &mut TableChange) {
        let Some(key) = key else { return };
        let Some(owners) = self.by_disco.get_mut(&key) else { return };
        owners.remove(&id);
        if owners.is_empty() {
            self.by_disco.remove(&key);
            change.disco_added.retain(|added| *added != key);
            change.disco_removed.push(key);
        }
    }

    fn set(&mut self, id: PeerId, config: PeerConfig, change: &mut TableChange) {
        let disco_key = config.addressing.whereabouts().and_then(|whereabouts| whereabouts.disco_key);
        let before = self.peers.get(&id).and_then(Peer::disco_key);
        if before != disco_key {
            self.release_disco(id, before, change);
            self.hold_disco(id, disco_key, change);
            if before.is_some() {
                change.restarted.push(id);
            }
        }
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
        if peer.config.addressing != config.addressing {
            // A roaming peer is where it was last heard, unless the configuration says another place than before.
            let first = first_path(&config);
            if peer.paths.is_none() && (first.is_some() || config.addressing.kind() == Addressing::Discovered) {
                peer.path = first;
                peer.publish();
            }
            change.moved.push(id);
        }
        peer.config = config;
    }
}
