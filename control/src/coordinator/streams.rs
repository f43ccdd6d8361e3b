//! Open maps: how far each has been told, and who is to be told more.
//!
//! A stream that knows everything is nothing but itself. One that has something to learn remembers from which version on:
//! one number, however much there is. While a message is being written nothing more is made for it, so a stalled client
//! costs that number and later gets one message.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::{control::types::NodeId, time::Instant};

use super::input::{ConnId, RequestId, StreamId};
use crate::store::log::Version;

/// How far a stream has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cursor {
    /// Everything, so far.
    Whole,
    /// Everything up to this version, and something after it concerns it.
    Behind(Version),
    /// Nothing yet.
    Nothing,
}

/// One open map.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    pub(super) node: NodeId,
    pub(super) conn: ConnId,
    pub(super) request: RequestId,
    pub(super) cursor: Cursor,
    /// Since when a message is being written.
    pub(super) writing: Option<Instant>,
    /// The node asked for keepalives.
    pub(super) keep_alive: bool,
    /// Drawn once: streams that began together do not speak together.
    pub(super) jitter: core::time::Duration,
}

impl Stream {
    /// From which version on it has something to learn.
    pub(super) fn behind(&self) -> Option<Version> {
        match self.cursor {
            Cursor::Behind(version) => Some(version),
            Cursor::Whole | Cursor::Nothing => None,
        }
    }
}

/// All open maps; a node has one at most.
#[derive(Debug, Default)]
pub(super) struct Streams {
    by_id: BTreeMap<StreamId, Stream>,
    by_node: BTreeMap<NodeId, StreamId>,
    by_request: BTreeMap<(ConnId, RequestId), StreamId>,
    /// Those that have something to learn.
    waiting: BTreeSet<StreamId>,
    /// Those that know nothing yet.
    new: BTreeSet<StreamId>,
    next: u64,
}

impl Streams {
    /// A node opens its map. It has none open.
    pub(super) fn open(&mut self, stream: Stream) -> StreamId {
        let id = StreamId(self.next);
        self.next += 1;
        self.by_node.insert(stream.node, id);
        self.by_request.insert((stream.conn, stream.request), id);
        self.new.insert(id);
        self.by_id.insert(id, stream);
        id
    }

    pub(super) fn close(&mut self, id: StreamId) -> Option<Stream> {
        let stream = self.by_id.remove(&id)?;
        self.by_node.remove(&stream.node);
        self.by_request.remove(&(stream.conn, stream.request));
        self.waiting.remove(&id);
        self.new.remove(&id);
        Some(stream)
    }

    pub(super) fn get_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.by_id.get_mut(&id)
    }

    pub(super) fn get(&self, id: StreamId) -> Option<&Stream> {
        self.by_id.get(&id)
    }

    pub(super) fn of_node(&self, node: NodeId) -> Option<StreamId> {
        self.by_node.get(&node).copied()
    }

    pub(super) fn of_request(&self, conn: ConnId, request: RequestId) -> Option<StreamId> {
        self.by_request.get(&(conn, request)).copied()
    }

    pub(super) fn of_conn(&self, conn: ConnId) -> Vec<StreamId> {
        let all = (conn, RequestId(0))..=(conn, RequestId(u64::MAX));
        self.by_request.range(all).map(|(_, id)| *id).collect()
    }

    /// A change after `before` concerns these nodes. Says whether one of them listens.
    pub(super) fn note_concern(&mut self, before: Version, viewers: &BTreeSet<NodeId>) -> bool {
        let mut any = false;
        let mut note = |id: StreamId| {
            let Some(stream) = self.by_id.get_mut(&id) else { return };
            if stream.cursor == Cursor::Whole {
                stream.cursor = Cursor::Behind(before);
                self.waiting.insert(id);
            }
            any = true;
        };
        // Of both, the fewer are gone through.
        if viewers.len() <= self.by_node.len() {
            viewers.iter().filter_map(|node| self.by_node.get(node)).for_each(|id| note(*id));
        } else {
            self.by_node.iter().filter(|(node, _)| viewers.contains(node)).for_each(|(_, id)| note(*id));
        }
        any
    }

    /// A stream is to be told everything, whatever it was told before.
    pub(super) fn begin_again(&mut self, id: StreamId) {
        if let Some(stream) = self.by_id.get_mut(&id).filter(|stream| stream.cursor != Cursor::Nothing) {
            stream.cursor = Cursor::Nothing;
            self.waiting.insert(id);
        }
    }

    /// Streams that have something to learn and can be written to.
    pub(super) fn ready(&self) -> Vec<StreamId> {
        let is_ready = |id: &&StreamId| self.by_id.get(id).is_some_and(|stream| stream.writing.is_none());
        self.waiting.iter().filter(is_ready).copied().collect()
    }

    /// From which version on the one that is furthest behind has something to learn.
    pub(super) fn oldest(&self) -> Option<Version> {
        self.waiting.iter().filter_map(|id| self.by_id.get(id)?.behind()).min()
    }

    pub(super) fn has_new(&self) -> bool {
        !self.new.is_empty()
    }

    /// Streams that know nothing yet; they are no longer new.
    pub(super) fn take_new(&mut self) -> Vec<StreamId> {
        core::mem::take(&mut self.new).into_iter().collect()
    }

    /// A stream is told everything up to now, by a message that is being written.
    pub(super) fn note_pushed(&mut self, id: StreamId, now: Instant) {
        if let Some(stream) = self.by_id.get_mut(&id) {
            stream.cursor = Cursor::Whole;
            stream.writing = Some(now);
            self.waiting.remove(&id);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }
}
