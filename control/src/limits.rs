//! Every bound of the pure half: the number, why it is that number, and what happens at the bound. Those of policies are
//! in [`crate::policy::limits`].

use core::time::Duration;

/// Changes that the log keeps. A thousand nodes that come back at once make some 4,000. At the bound the oldest is
/// forgotten: a stream that was not told of it gets a full map.
pub const LOG_ENTRIES: usize = 8_192;

/// Changes of the policy that the log keeps: each holds two rulebooks. At the bound everything up to the oldest is
/// forgotten.
pub const LOG_POLICIES: usize = 4;

/// How long an auth key is good when nobody says, and at most (SaaS: 1 to 90 days). Beyond, it is refused.
pub const KEY_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);

/// Pairs of nodes that `policy diff` tells. At the bound: it says that there are more.
pub const DIFFERENCE_PAIRS: usize = 1_000;
