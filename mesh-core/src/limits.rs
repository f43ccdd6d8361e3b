//! Every bound of the crate: the number, why it is that number, and what happens at the bound.

use core::time::Duration;

/// Packets that wait for a peer's session. Enough for the first flight of a few TCP connections; more
/// would be stale by the time a handshake is through. At the bound: drop the oldest, counted.
pub const QUEUED_PACKETS_PER_PEER: usize = 32;

/// Punts that wait for the owner when workers and owner are apart. A router's slow path: at the bound new
/// punts are dropped and counted, and the sender repeats what mattered.
pub const PUNTS: usize = 1024;

/// Peers of one node. wireguard-go's bound. At the bound: the configuration is refused.
pub const PEERS: usize = 65_536;

/// Peers that were removed and whose handshake stamps are kept, so that an initiation of before cannot be replayed when
/// they come back. At the bound: the one removed longest ago is forgotten.
pub const DEPARTED_PEERS: usize = 1_024;

/// Routes of one peer. At the bound: a configuration is refused; of a network map, the rest of the peer's routes are
/// left out, counted.
pub const ROUTES_PER_PEER: usize = 4_096;

/// Handshake messages with a right first MAC that are opened in one burst before the node counts as
/// under load and asks for cookies. wireguard-go: an eighth of its handshake queue of 1,024.
pub const HANDSHAKE_BURST: u32 = 128;

/// Handshake messages a second that the node opens for ever without asking for cookies. At about 100 µs
/// each this is a twentieth of a core.
pub const HANDSHAKES_PER_SECOND: u32 = 512;

/// How long the node stays under load after the budget ran out. wireguard-go: 1 s.
pub const UNDER_LOAD_FOR: Duration = Duration::from_secs(1);

/// Handshake messages a second from one source (an IPv4 address or an IPv6 /64) while under load, with a right
/// cookie. wireguard-go: 20/s, burst 5.
pub const HANDSHAKES_PER_SECOND_PER_SOURCE: u32 = 20;

/// Burst for [`HANDSHAKES_PER_SECOND_PER_SOURCE`].
pub const HANDSHAKE_BURST_PER_SOURCE: u32 = 5;

/// Source addresses that the rate limiter remembers. At the bound: the address idle longest is forgotten,
/// which can only let one more burst through.
pub const RATE_LIMITED_SOURCES: usize = 4_096;

/// Pings of `mesh ping` under way at once. At the bound: the command is refused.
pub const PINGS: usize = 64;

/// Commands that wait for a report about the network. At the bound: the command is refused.
pub const REPORTS_WANTED: usize = 64;

/// Commands that wait for the node to run. Nobody says when they wait no longer. At the bound: the one that has waited
/// longest is answered that it was superseded.
pub const UPS_WAITING: usize = 64;

/// Commands that wait for the node to be signed out, which takes seconds. At the bound: the command is refused.
pub const LOGOUTS_WAITING: usize = 64;

/// Largest IP packet the node carries, and so the largest TUN MTU: a datagram of 65,507 bytes less 32 of
/// WireGuard, rounded down to the padding of 16.
pub const PACKET_BYTES: usize = 65_472;

/// Addresses at which a peer may be. Stock nodes have about ten each. At the bound: of those that only pings came from,
/// the longest silent is forgotten; what the peer lists itself is bounded by [`ENDPOINTS_PER_LIST`], so there is one.
pub const CANDIDATES_PER_PEER: usize = 64;

/// Endpoints that are taken from one list (a netmap entry or a call-me-maybe). At the bound: the rest is left out. Two
/// lists leave room for candidates that pings came from.
pub const ENDPOINTS_PER_LIST: usize = 24;

/// Disco pings to one peer that wait for their pongs. One to each candidate. At the bound: the oldest is forgotten.
pub const PATH_PINGS_PER_PEER: usize = 64;

/// Packets that wait until a relay has said its key. Stock nodes: 32. At the bound: drop the oldest, counted.
pub const RELAY_MAILBOX: usize = 32;

/// Addresses at which STUN servers saw us. One or two a family, more behind a NAT that gives one for each destination.
/// At the bound: the one not seen for longest is forgotten.
pub const STUN_ADDRESSES: usize = 8;

/// Bytes of one map message, unpacked. A full map of 65,536 peers of 1 KiB each. At the bound: the message is refused.
pub const MAP_MESSAGE_BYTES: usize = 64 << 20;

/// Users that a netmap knows: they are only ever added. As many as there can be peers. At the bound: new ones are left
/// out, counted.
pub const USER_PROFILES: usize = PEERS;

/// Names of packet filters, and of messages to the user, that a netmap keeps. Stock servers use a handful. At the bound:
/// new names are left out, counted.
pub const NETMAP_NAMES: usize = 1_024;

/// Regions of the relay map that are measured. Tailscale's own map has about thirty. At the bound: those with the largest
/// numbers are left out, counted.
pub const NETCHECK_REGIONS: usize = 128;

/// Relays of one region that are measured. At the bound: the last of the list are left out, counted.
pub const NETCHECK_NODES_PER_REGION: usize = 8;

/// STUN requests of one report. A full report sends three to each region and family when nothing answers. At the bound:
/// the rest is not sent, counted; home and the nearest regions come first.
pub const NETCHECK_PROBES: usize = 512;

/// Regions that one report measures over TLS. Each costs a handshake. At the bound: the rest is left out; home and the
/// nearest come first.
pub const NETCHECK_FETCHES: usize = 32;

/// Reports of the last minutes that are kept for the choice of a home. One comes every 20 s or more rarely unless asked
/// for. At the bound: the oldest is forgotten.
pub const NETCHECK_HISTORY: usize = 32;

/// Runs of netcheck that begin within 4 s. For links that flap. At the bound: the next one waits.
pub const NETCHECK_RUNS: usize = 4;

/// Entries in the tables of a packet filter of one address family, at four bytes each. A thousand rules of ten thousand
/// different sources take a few thousand; only rules that cross each other take more than their number. At the bound:
/// the last rules are left out, counted, and admit nothing.
pub const FILTER_CELLS: usize = 4 << 20;

/// Flows of one peer: what we sent and may be replied to, and in the first two steps what the peer began. In steps that
/// are taken when the one before is full: an idle peer costs nothing, a busy resolver has room for sixteen thousand.
/// Stock nodes: 512 of all peers together. At the last one: the flow that would end first is forgotten; where none may
/// be, the new one is not noted. Both counted.
pub const FLOWS_PER_PEER: [usize; 3] = [64, 1_024, 16_384];

/// Flows of all peers together, at 16 bytes each. At the bound: peers take no further steps of [`FLOWS_PER_PEER`].
pub const FLOWS: usize = 1 << 20;
