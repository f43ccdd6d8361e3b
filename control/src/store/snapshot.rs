//! [`Snapshot`]: everything that a map tells, as it was at one version.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_core::{
    control::types::{NodeId, UserId},
    derp::DerpMap,
};

use super::{log::Version, node::Member, rows::UserRow};
use crate::{policy::Rulebook, render::RenderCounters};

/// An immutable view. Parts that did not change are shared with earlier ones.
#[derive(Debug)]
pub struct Snapshot {
    /// Of which version.
    pub version: Version,
    /// The nodes.
    pub members: Arc<BTreeMap<NodeId, Arc<Member>>>,
    /// The users.
    pub users: Arc<BTreeMap<UserId, Arc<UserRow>>>,
    /// The policy, applied.
    pub rulebook: Arc<Rulebook>,
    /// Nodes that serve routes.
    pub routers: Arc<BTreeSet<NodeId>>,
    /// Whether a policy is stored.
    pub has_policy: bool,
    /// The relays.
    pub derp_map: Arc<DerpMap>,
    /// What names end in, without dots around.
    pub base_domain: Arc<str>,
    /// Counts what is written.
    pub counters: Arc<RenderCounters>,
}
