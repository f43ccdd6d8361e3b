//! How much a node holds, for those who watch that it stays within its bounds and comes back when there is no traffic.

use super::Node;

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
        let mut sizes = Sizes {
            indices: self.index_count(),
            timers: self.timers.len(),
            pings: self.pings.len(),
            departed: self.peers.departed_count(),
            endpoints: self.own_endpoints.len(),
            outputs: self.outbox.len(),
            ..Sizes::default()
        };
        for peer in self.peers.iter() {
            sizes.peers += 1;
            if let Some(tunnel) = &peer.tunnel {
                sizes.tunnels += 1;
                sizes.queued = sizes.queued.max(tunnel.queued_count());
            }
            if let Some(paths) = &peer.paths {
                sizes.paths += 1;
                sizes.candidates = sizes.candidates.max(paths.candidate_count());
                sizes.path_pings = sizes.path_pings.max(paths.outstanding_count());
            }
        }
        sizes
    }
}
