//! How much was done, and how things are.

/// What the server counts; exported as `mesh_control_…`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// How often a selector of the policy was found to name a node.
    pub selector_evaluations_total: u64,
    /// Nodes and patches written as JSON for messages that tell a change; once for all who see it.
    pub peer_serializations_total: u64,
    /// Nodes written as JSON because a full map was the first to need them.
    pub full_map_serializations_total: u64,
    /// Messages that told an open stream of changes.
    pub sessions_woken_total: u64,
    /// Full maps.
    pub full_maps_total: u64,
    /// Versions: changes that others are told of.
    pub changes_total: u64,
    /// Views made for pushing.
    pub snapshots_total: u64,
    /// Keepalives sent.
    pub keep_alives_total: u64,
    /// Nodes that registered for the first time.
    pub joins_total: u64,
    /// Registrations that were refused, or told an error.
    pub registrations_refused_total: u64,
    /// Requests other than registrations that were refused.
    pub requests_refused_total: u64,
    /// Map requests that had to wait because their node asks, or changes what it says of itself, too often.
    pub requests_delayed_total: u64,
    /// Streams that were replaced by a newer one of the same node.
    pub streams_replaced_total: u64,
    /// Nodes that were found on two machines.
    pub clones_total: u64,
    /// Sign-ins that were given up because too many waited.
    pub sign_ins_evicted_total: u64,
}

/// How things are at the moment, for gauges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Nodes that are registered.
    pub nodes: usize,
    /// Nodes that are online.
    pub online: usize,
    /// Open streams.
    pub streams: usize,
    /// Users.
    pub users: usize,
    /// Sign-ins under way.
    pub sign_ins: usize,
    /// The version of the newest change.
    pub version: u64,
}
