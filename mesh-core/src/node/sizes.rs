//! How much a node holds, for those who watch that it stays within its bounds and comes back when there is no traffic.

use super::{Node, table::Peer};

/// How many entries there are of what comes and goes. Of what every peer has some of, the most that one has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Peers of the configuration or the network map.
    pub peers: usize,
    /// Peers with a tunnel.
    pub tunnels: usize,
    /// Peers with paths.
    pub paths: usize,
    /// Receiver indices in use.
    pub indices: usize,
    /// Deadlines of peers.
    pub timers: usize,
    /// Addresses at which a peer may be.
    pub candidates: usize,
    /// Disco pings to a peer that wait for their pongs.
    pub path_pings: usize,
    /// Packets that wait for a peer's session.
    pub queued: usize,
    /// Pings of commands under way.
    pub pings: usize,
    /// Removed peers whose handshake stamps are kept.
    pub departed: usize,
    /// Own addresses, as peers are told of them.
    pub endpoints: usize,
    /// What was said and not carried out yet.
    pub outputs: usize,
}

impl Node {
    /// How much the node holds now.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        let most = |count: fn(&Peer) -> usize| self.peers.iter().map(count).max().unwrap_or(0);
        Sizes {
            peers: self.peers.iter().count(),
            tunnels: self.tunnel_count(),
            paths: self.peers.iter().filter(|peer| peer.paths.is_some()).count(),
            indices: self.index_count(),
            timers: self.timers.len(),
            candidates: most(|peer| peer.paths.as_ref().map_or(0, |paths| paths.candidate_count())),
            path_pings: most(|peer| peer.paths.as_ref().map_or(0, |paths| paths.outstanding_count())),
            queued: most(|peer| peer.tunnel.as_ref().map_or(0, |tunnel| tunnel.queued_count())),
            pings: self.pings.len(),
            departed: self.peers.departed_count(),
            endpoints: self.own_endpoints.len(),
            outputs: self.outbox.len(),
        }
    }
}
