//! Two machines with the keys of one node, as when a state directory was copied.
//!
//! A node's newest stream ends the one before: networks change, and the old connection may be dead. When the connection
//! whose stream was ended asks again, it is not, and there are two machines. If both were served they would end each
//! other's streams for ever and their peers would be sent to and fro. So the one that opened its stream last is served,
//! the other one is refused with the reason until the first goes, and the first is told in its map. Only who opens a
//! stream again is there beyond doubt: an update may have been under way when the network changed.

use core::time::Duration;

use mesh_core::control::types::NodeId;
use serde_json::Value;

use super::{Coordinator, input::ConnId, output::Refusal, timers::Timer};
use crate::{limits, store::Principal};

/// When the machine that is not served may ask again: soon after the other one went.
const AGAIN: Duration = Duration::from_secs(10);

/// The connection whose stream the open one of a node ended, as long as that connection is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Displaced {
    pub(super) conn: ConnId,
    /// It has asked since.
    pub(super) is_clone: bool,
}

impl Coordinator {
    /// Whether the open stream of a node is another connection's, and ended that of this one.
    pub(super) fn is_displaced(&self, node: NodeId, conn: ConnId) -> bool {
        let other = self.streams.of_node(node).and_then(|id| self.streams.get(id)).map(|stream| stream.conn);
        self.displaced.get(&node).is_some_and(|displaced| displaced.conn == conn)
            && other.is_some_and(|other| other != conn)
    }

    /// The stream of a connection is ended by that of another.
    pub(super) fn displace(&mut self, node: NodeId, conn: ConnId) {
        self.note_single(node);
        self.displaced.insert(node, Displaced { conn, is_clone: false });
    }

    /// A connection whose stream was ended opens another one.
    pub(super) fn note_clone(&mut self, node: NodeId) {
        let Some(displaced) = self.displaced.get_mut(&node).filter(|displaced| !displaced.is_clone) else { return };
        displaced.is_clone = true;
        self.counters.clones_total += 1;
        let Some(member) = self.state.member(node).cloned() else { return };
        let quiet = Timer::Quiet(node);
        if self.timers.get(quiet).is_none() {
            self.timers.set(quiet, self.after(limits::REPORT_GAP));
            let seen = self.seen(&member.row);
            self.audit(Principal::Server, "node.clone", &member.row.stable_id, Value::Null, seen);
        }
        self.put((*member.row).clone(), member.live.clone());
    }

    /// Of two machines one is left, or there was one all the time.
    pub(super) fn note_single(&mut self, node: NodeId) {
        let was_clone = self.displaced.remove(&node).is_some_and(|displaced| displaced.is_clone);
        if let Some(member) = self.state.member(node).cloned().filter(|_| was_clone) {
            self.put((*member.row).clone(), member.live.clone());
        }
    }
}

/// What the machine is told that is not served.
pub(super) fn refusal() -> Refusal {
    let text = "another machine is connected with the keys of this node, as when its state was copied: sign one of them in \
                anew (meshd with an empty state directory)";
    Refusal { retry_after: Some(AGAIN), ..Refusal::new(409, text) }
}
