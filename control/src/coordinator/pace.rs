//! How often a node may have others told of it.
//!
//! What one node changes of itself is written for everybody who sees it. So each node has a budget: a change costs one, and
//! so do a registration that is heard and a whole map, which it can ask for again and again. When the budget is spent a map
//! request waits for its turn, one of each node, and a registration is refused with a hint when to come again; a sign-out or
//! a sign-in that waits for a person never is. A node that is flapping is told of late, and the others are served.

use std::collections::BTreeMap;

use mesh_core::{
    control::types::{MapRequest, NodeId},
    time::{Budget, Instant},
};

use super::{
    Caller, Coordinator,
    input::{ConnId, RequestId},
    output::Refusal,
    timers::Timer,
};
use crate::limits;

/// The budgets of all nodes that did something since the start, and the requests that wait.
#[derive(Debug, Default)]
pub(super) struct Pace {
    budgets: BTreeMap<NodeId, Budget>,
    waiting: BTreeMap<NodeId, (Caller, MapRequest)>,
    by_request: BTreeMap<(ConnId, RequestId), NodeId>,
}

impl Pace {
    /// When a node may do something next.
    fn ready_at(&self, node: NodeId) -> Instant {
        self.budgets.get(&node).map_or(Instant::ZERO, Budget::ready_at)
    }

    fn spend(&mut self, node: NodeId, now: Instant) {
        self.budgets.entry(node).or_insert(Budget::new(limits::CHANGES, limits::CHANGES_EVERY)).take(now);
    }

    /// A request waits; gives the one of the node that waited before.
    fn wait(&mut self, node: NodeId, caller: Caller, request: MapRequest) -> Option<Caller> {
        let before = self.take(node);
        self.by_request.insert((caller.conn, caller.id), node);
        self.waiting.insert(node, (caller, request));
        before.map(|(caller, _)| caller)
    }

    fn take(&mut self, node: NodeId) -> Option<(Caller, MapRequest)> {
        let (caller, request) = self.waiting.remove(&node)?;
        self.by_request.remove(&(caller.conn, caller.id));
        Some((caller, request))
    }

    /// A request waits no more.
    pub(super) fn note_aborted(&mut self, conn: ConnId, request: RequestId) {
        if let Some(node) = self.by_request.remove(&(conn, request)) {
            self.waiting.remove(&node);
        }
    }

    /// No request of a connection waits any more.
    pub(super) fn note_closed(&mut self, conn: ConnId) {
        let all = (conn, RequestId(0))..=(conn, RequestId(u64::MAX));
        let requests: Vec<_> = self.by_request.range(all).map(|((_, request), _)| *request).collect();
        for request in requests {
            self.note_aborted(conn, request);
        }
    }
}

impl Coordinator {
    /// Whether a node that is known may register now.
    pub(super) fn may_register(&self, node: NodeId) -> Result<(), Refusal> {
        if self.pace.ready_at(node) > self.now {
            let text = "the node registers, or changes what it says of itself, too often: try again in a moment";
            return Err(Refusal { retry_after: Some(limits::CHANGES_EVERY), ..Refusal::new(429, text) });
        }
        Ok(())
    }

    /// A map request that is its node's turn; one that is not waits for it.
    pub(super) fn in_turn(&mut self, node: NodeId, caller: Caller, request: MapRequest) -> Option<MapRequest> {
        let ready = self.pace.ready_at(node);
        if ready <= self.now {
            return Some(request);
        }
        self.counters.requests_delayed_total += 1;
        if let Some(before) = self.pace.wait(node, caller, request) {
            self.refuse(before, Refusal::new(409, "a newer request of the node waits for its turn"));
        }
        self.timers.set(Timer::Turn(node), ready);
        None
    }

    /// A node registered, had others told of it, or a map made.
    pub(super) fn note_cost(&mut self, node: NodeId) {
        self.pace.spend(node, self.now);
    }

    /// It is a node's turn.
    pub(super) fn take_turn(&mut self, node: NodeId) {
        if let Some((caller, request)) = self.pace.take(node) {
            self.map(caller, request);
        }
    }

    /// A node is no more; what waited for its turn is answered as to an unknown one.
    pub(super) fn forget_pace(&mut self, node: NodeId) {
        self.timers.clear(Timer::Turn(node));
        self.pace.budgets.remove(&node);
        self.take_turn(node);
    }
}
