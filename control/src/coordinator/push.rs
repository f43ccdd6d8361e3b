//! When streams are told what, and how streams open and end.

use std::{collections::BTreeSet, sync::Arc};

use mesh_core::{control::types::NodeId, time::Instant};

use super::{
    Coordinator, Output,
    input::{ConnId, RequestId, StreamId},
    streams::{Cursor, Stream},
    timers::Timer,
};
use crate::{limits, render::MapUpdate};

impl Coordinator {
    /// Something is to be told: changes are gathered until none came for a moment, but not for long.
    pub(super) fn gather(&mut self) {
        let since = *self.gathering.get_or_insert(self.now);
        let at = self.after(limits::PUSH_QUIET).min(since + limits::PUSH_STORM);
        self.timers.set(Timer::Push, at.max(self.now + core::time::Duration::from_nanos(1)));
    }

    /// Streams that were opened get their first map: at once, unless others just did.
    pub(super) fn open_ready(&mut self) {
        if !self.streams.has_new() {
            return;
        }
        let next = self.opened.map_or(Instant::ZERO, |opened| opened + limits::OPEN_GAP);
        if next <= self.now {
            self.push_first();
        } else if self.timers.get(Timer::Open).is_none() {
            self.timers.set(Timer::Open, next);
        }
    }

    pub(super) fn push_first(&mut self) {
        self.timers.clear(Timer::Open);
        self.opened = Some(self.now);
        let ready = self.streams.take_new();
        self.push(ready);
    }

    pub(super) fn push_changes(&mut self) {
        let ready = self.streams.ready();
        self.push(ready);
        // Each change may name all nodes that came into sight: what nobody waits for is not kept.
        let told = self.streams.oldest().unwrap_or(self.state.log().version());
        self.state.forget_changes(told);
    }

    fn push(&mut self, ready: Vec<StreamId>) {
        if ready.is_empty() {
            return;
        }
        let (snapshot, is_new) = self.state.snapshot();
        self.counters.snapshots_total += u64::from(is_new);
        let now = self.wall();
        // One list of entries for all: from the oldest cursor that the log still reaches.
        let log = self.state.log();
        let cursors: BTreeSet<_> = ready.iter().filter_map(|id| self.streams.get(*id)?.behind()).collect();
        let reached = cursors.into_iter().find_map(|cursor| Some((cursor, log.since(cursor)?)));
        for id in ready {
            let Some(stream) = self.streams.get(id) else { continue };
            let node = stream.node;
            let update = match (stream.cursor, &reached) {
                (Cursor::Whole, _) => continue,
                (Cursor::Behind(after), Some((oldest, entries))) if after >= *oldest => {
                    self.counters.sessions_woken_total += 1;
                    MapUpdate::since(id, node, after, Arc::clone(entries), Arc::clone(&snapshot), now)
                }
                // A full map cannot say that there are no peers any more; the first map of a new stream can.
                (Cursor::Behind(_), _) if !self.has_peers(node) => {
                    self.close_stream(id);
                    continue;
                }
                (Cursor::Behind(_) | Cursor::Nothing, _) => {
                    self.counters.full_maps_total += 1;
                    MapUpdate::full(Some(id), node, Arc::clone(&snapshot), now)
                }
            };
            self.pending.push(Output::Push(update));
            self.streams.note_pushed(id, self.now);
            self.set_keep_alive(id);
        }
    }

    fn has_peers(&self, node: NodeId) -> bool {
        if self.state.member(node).is_some_and(|member| member.live.expired) {
            return false;
        }
        let is_told = |id: &NodeId| self.state.member(*id).is_some_and(|member| member.row.announced);
        self.state.rulebook().peers(node).iter().any(is_told)
    }

    /// A node opens its map; the one that it had open ends.
    pub(super) fn open_stream(&mut self, node: NodeId, conn: ConnId, request: RequestId, keep_alive: bool) -> StreamId {
        match self.streams.of_node(node) {
            Some(before) => {
                self.counters.streams_replaced_total += 1;
                if let Some(displaced) =
                    self.streams.get(before).map(|stream| stream.conn).filter(|other| *other != conn)
                {
                    self.displace(node, displaced);
                }
                self.drop_stream(before);
            }
            None => self.note_single(node),
        }
        self.timers.clear(Timer::Offline(node));
        self.timers.clear(Timer::Forget(node));
        let jitter = self.rng.duration_below(limits::KEEP_ALIVE_JITTER);
        let cursor = Cursor::Nothing;
        let id = self.streams.open(Stream { node, conn, request, cursor, writing: None, keep_alive, jitter });
        self.set_keep_alive(id);
        id
    }

    /// A node's key has expired, or is good again. Until it has signed in it is told of nobody: its stream ends with the
    /// word that it has to, and the next begins without peers. Once it has, it is told everything.
    pub(super) fn note_expiry(&mut self, node: NodeId, expired: bool) {
        let Some(stream) = self.streams.of_node(node) else { return };
        if !expired {
            self.streams.begin_again(stream);
            return self.gather();
        }
        if let Some(member) = self.state.member(node).cloned() {
            let (snapshot, _) = self.state.snapshot();
            self.pending.push(Output::Push(MapUpdate::farewell(stream, member, snapshot, self.wall())));
        }
        self.close_stream(stream);
    }

    /// A stream is ended from here, and its node may come back.
    pub(super) fn close_stream(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get(id) else { return };
        let node = stream.node;
        self.drop_stream(id);
        self.note_leaving(node);
    }

    /// A stream is ended from here.
    pub(super) fn drop_stream(&mut self, id: StreamId) {
        if self.streams.close(id).is_some() {
            self.timers.clear(Timer::KeepAlive(id));
            self.pending.push(Output::Close { stream: id });
        }
    }

    /// A stream ended by itself.
    fn lose_stream(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.close(id) {
            self.timers.clear(Timer::KeepAlive(id));
            self.note_leaving(stream.node);
        }
    }

    pub(super) fn note_written(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        stream.writing = None;
        if stream.cursor != Cursor::Whole && self.timers.get(Timer::Push).is_none() {
            self.gather();
        }
    }

    pub(super) fn abort(&mut self, conn: ConnId, request: RequestId) {
        self.sign_ins.note_aborted(conn, request);
        self.pace.note_aborted(conn, request);
        if let Some(stream) = self.streams.of_request(conn, request) {
            self.lose_stream(stream);
        }
    }

    pub(super) fn close(&mut self, conn: ConnId) {
        self.sign_ins.note_closed(conn);
        self.pace.note_closed(conn);
        for stream in self.streams.of_conn(conn) {
            self.lose_stream(stream);
        }
        let gone: Vec<_> =
            self.displaced.iter().filter(|(_, displaced)| displaced.conn == conn).map(|(node, _)| *node).collect();
        gone.into_iter().for_each(|node| self.note_single(node));
    }

    fn set_keep_alive(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get(id) {
            let at = self.after(limits::KEEP_ALIVE + stream.jitter);
            self.timers.set(Timer::KeepAlive(id), at);
        }
    }

    /// Nothing was said on a stream for a while.
    pub(super) fn keep_alive(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get(id) else { return };
        if stream.writing.is_some_and(|since| self.now.since(since) >= limits::WRITE_STALL) {
            return self.close_stream(id);
        }
        if stream.keep_alive && stream.writing.is_none() {
            self.counters.keep_alives_total += 1;
            self.pending.push(Output::KeepAlive { stream: id });
        }
        self.set_keep_alive(id);
    }
}
