//! Every bound of the shell: the number, why it is that number, and what happens at the bound. How many connections there
//! may be is in [`relay::limits`]: the door is the same.

use core::time::Duration;

/// From the connection, or the last answer on it, to the end of a request's head. At the bound it is closed.
pub(super) const HEAD: Duration = Duration::from_secs(10);

/// Bytes of a request's head outside Noise; hyper's least. At the bound: 431.
pub(super) const HEAD_BYTES: usize = 8 << 10;

/// For TLS to be spoken of, and for what follows an upgrade to begin. At the bound the connection is closed.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(10);

/// For a request's body to arrive. At the bound: 408.
pub(super) const BODY: Duration = Duration::from_secs(15);

/// Bytes of a request's body inside Noise; headscale takes 1 MiB as well. At the bound: 413.
pub(super) const BODY_BYTES: usize = 1 << 20;

/// Bytes of all bodies together that a connection gathers before its node was let in: with [`relay::limits::UNGREETED`] of
/// them a quarter of a gigabyte, and some ten times what the longest registration of a stock client has. One body above it
/// is answered 413, one more of several 429.
pub(super) const STRANGER_BYTES: usize = 64 << 10;

/// Bytes of a relay's question. At the bound: 413.
pub(super) const VERIFY_BYTES: usize = 4 << 10;

/// Bytes of a command, which may hold a policy. At the bound: 413.
pub(super) const COMMAND_BYTES: usize = 8 << 20;

/// Requests of one connection at once; Go's servers have 250. At the bound a node waits.
pub(super) const REQUESTS: u32 = 250;

/// Bytes of headers of a request inside Noise; what stock clients send has some hundred. At the bound: 431.
pub(super) const HEADER_LIST_BYTES: u32 = 16 << 10;

/// A connection without any request for this long is closed. Nodes hold one open as long as they run; stock clients dial
/// again when they want something. Before its node was let in, the time is [`STRANGER`].
pub(super) const IDLE: Duration = Duration::from_secs(15 * 60);

/// The same for who has not been let in: enough for a client that was shown an error and tries again.
pub(super) const STRANGER: Duration = Duration::from_secs(60);

/// A node that takes nothing of a message for this long has given up: stock clients do after 120 s without a message. At
/// the bound its connection is closed.
pub(super) const WRITE: Duration = Duration::from_secs(120);

/// Things for the coordinator that wait. At the bound who has another one waits.
pub(super) const EVENTS: usize = 1_024;

/// Things that the coordinator takes in before what it says is carried out.
pub(super) const BATCH: usize = 64;

/// Things that the coordinator said and that wait for the disk. At the bound it takes nothing in until a commit is done. What is to
/// be stored while a commit fails is outside of it, and bounded by what is not refused then: nodes that leave, keys that expire.
pub(super) const OUTPUTS: usize = 65_536;

/// Orders that wait for one stream: a message and the last one, and keepalives. At the bound keepalives are left out.
pub(super) const ORDERS: usize = 4;

/// After a commit that failed, until the next try.
pub(super) const COMMIT_AGAIN: Duration = Duration::from_secs(1);

/// Of commits that fail one after the other, every so manieth is told in the log: one a minute.
pub(super) const COMMITS_UNTOLD: u64 = 60;

/// When a node that was refused for want of room may ask again.
pub(super) const STORED_BY: Duration = Duration::from_secs(10);

/// For the coordinator to answer whether it is well. At the bound: 503.
pub(super) const HEALTH: Duration = Duration::from_secs(5);

/// For a relay's question. Relays wait 5 s themselves. At the bound: 503.
pub(super) const VERIFY: Duration = Duration::from_secs(5);

/// Connections to the socket at once. At the bound new ones wait; see [`transports::local::LocalSocket::serve`].
pub(super) const SOCKET_CONNECTIONS: usize = 64;
