//! Every bound of the pure half: the number, why it is that number, and what happens at the bound. Those of policies are
//! in [`crate::policy::limits`].

use core::time::Duration;

/// The oldest capability version that is served: Tailscale 1.80. From there on nodes read `HomeDERP`. Below, a node is
/// refused with a text.
pub const MIN_CAPABILITY_VERSION: i64 = 113;

/// Nodes. Four million addresses would allow more; a node takes no more peers than this. At the bound a registration is
/// refused.
pub const NODES: usize = mesh_core::limits::PEERS;

/// Users. As many as there can be nodes. At the bound: no more are made.
pub const USERS: usize = NODES;

/// Auth keys that are not forgotten. At the bound, those that nothing can be done with are forgotten, the oldest first;
/// when there are none, no more are made.
pub const KEYS: usize = 4_096;

/// Nodes that wait for somebody to sign in (headscale: 1,024). At the bound one of the source that has the most is given up,
/// counted: the oldest at which no request waits. A source that has the most itself and whose requests all wait is asked to
/// come again later.
pub const SIGN_INS: usize = 1_024;

/// Bytes of JSON that a node which waits for somebody to sign in says of itself. Stock nodes say 2 KiB, one with 1,024 routes
/// some 20; strangers may fill all places. At the bound the node is refused.
pub const SIGN_IN_HOSTINFO: usize = 32 * 1024;

/// How long a node may wait for somebody to sign in (headscale: 15 min). Then it gets another URL.
pub const SIGN_IN_LIFE: Duration = Duration::from_secs(15 * 60);

/// When a node that found no room may ask again.
pub const SIGN_IN_RETRY: Duration = Duration::from_secs(60);

/// Changes that the log keeps. A thousand nodes that come back at once make some 4,000. At the bound the oldest is
/// forgotten: a stream that was not told of it gets a full map.
pub const LOG_ENTRIES: usize = 8_192;

/// Changes of the policy that the log keeps: each holds two rulebooks. At the bound everything up to the oldest is
/// forgotten.
pub const LOG_POLICIES: usize = 4;

/// Changes are gathered until none came for this long.
pub const PUSH_QUIET: Duration = Duration::from_millis(50);

/// Changes are gathered for at most this long: in a storm nodes are told four times a second.
pub const PUSH_STORM: Duration = Duration::from_millis(250);

/// First maps are made at most this often: each view of the state after a change is a copy of its tables.
pub const OPEN_GAP: Duration = Duration::from_millis(10);

/// Changes of one node, registrations and whole maps that it asks for, at once: starting takes five, and networks come and
/// go. Beyond, its map requests wait for their turn, and registrations are refused; both counted.
pub const CHANGES: u32 = 20;

/// And one more each: peers are told of what flaps once in so long.
pub const CHANGES_EVERY: Duration = Duration::from_secs(2);

/// Something is said on a silent stream after this long; stock nodes give a stream up after 120 s.
pub const KEEP_ALIVE: Duration = Duration::from_secs(50);

/// And up to this much later, drawn for each stream (headscale: 9 s).
pub const KEEP_ALIVE_JITTER: Duration = Duration::from_secs(9);

/// A message that is not written after this long never will be: the node has given the stream up. The stream is closed.
pub const WRITE_STALL: Duration = Duration::from_secs(120);

/// How long after its stream ended a node counts as online: networks change (headscale: 10 s).
pub const OFFLINE_GRACE: Duration = Duration::from_secs(10);

/// How long after its stream ended an ephemeral node is forgotten.
pub const EPHEMERAL_LIFE: Duration = Duration::from_secs(5 * 60);

/// How long the key of a user's node is good. Those of tagged nodes do not expire.
pub const NODE_KEY_LIFE: Duration = Duration::from_secs(180 * 24 * 3600);

/// How long an auth key is good when nobody says, and at most (SaaS: 1 to 90 days). Beyond, it is refused.
pub const KEY_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);

/// Endpoints of one node. Stock nodes have about ten. At the bound the rest is left out.
pub const ENDPOINTS: usize = 48;

/// Routes that one node advertises. At the bound the rest is left out.
pub const ADVERTISED_ROUTES: usize = 1_024;

/// Tags of one node, and of one auth key. At the bound: refused.
pub const TAGS: usize = 64;

/// Entries of each list in what a node says of itself. Stock nodes have a few. At the bound the rest is left out.
pub const HOSTINFO_LIST: usize = 64;

/// Services and SSH keys of a node: every peer is told of them, and stock nodes have four. At the bound the rest is left
/// out.
pub const HOSTINFO_SHOWN: usize = 8;

/// Bytes of each text in what a node says of itself; the longest that stock nodes say is an SSH key of 800. At the bound a
/// text is cut, and one of a list left out.
pub const HOSTINFO_TEXT: usize = 1_024;

/// Bytes of the name of a region in what a node measured: a number, `-v4` or `-v6`. At the bound it is left out.
pub const HOSTINFO_REGION: usize = 16;

/// What a node reports is written into the record at most this often; stock nodes report that their user turned them
/// off. In between it is taken and not written.
pub const REPORT_GAP: Duration = Duration::from_secs(60);

/// Rows of the record of who changed what: a hundred a day for two years. At the bound the oldest go.
pub const AUDIT_ROWS: i64 = 65_536;

/// Pairs of nodes that `policy diff` tells. At the bound: it says that there are more.
pub const DIFFERENCE_PAIRS: usize = 1_000;
