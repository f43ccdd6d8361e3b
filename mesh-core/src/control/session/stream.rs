//! The map stream, and updates beside it.

use core::time::Duration;

use crate::time::Instant;

use super::{
    super::{
        link::{ControlRequest, Failure, FailureKind, RequestId},
        types::{MapRequest, MapResponse},
    },
    ANSWER_WITHIN, Activity, Facts, Output, Pending, Session,
};

/// A stream that says nothing for so long is dead. Servers send something about every 50 s. Stock nodes: 120 s.
const SILENCE: Duration = Duration::from_secs(120);
/// A stream that lasted so long was good: what comes after its end is a first failure.
const GOOD_FOR: Duration = Duration::from_secs(30);
/// When a good stream ends, that of all nodes may have: they come back spread over this.
const SPREAD: Duration = Duration::from_millis(500);

/// The map stream.
#[derive(Debug, Default)]
pub(super) struct Stream {
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    id: RequestId,
    since: Instant,
    /// The watchdog.
    silent_at: Instant,
    /// Whether a message that tells everything has come.
    has_begun: bool,
}

impl Stream {
    pub(super) fn id(&self) -> Option<RequestId> {
        self.open.as_ref().map(|open| open.id)
    }

    pub(super) fn has_begun(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.has_begun)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.open.as_ref().map(|open| open.silent_at)
    }

    pub(super) fn is_silent(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|at| at <= now)
    }

    /// Nobody listens any more.
    pub(super) fn end(&mut self) {
        self.open = None;
    }
}

/// What control was told, and an update that is under way.
#[derive(Debug, Default)]
pub(super) struct Update {
    told: Option<Facts>,
    sending: Option<(Pending, Facts)>,
}

impl Update {
    pub(super) fn pending(&self) -> Option<Pending> {
        self.sending.as_ref().map(|(pending, _)| *pending)
    }

    pub(super) fn overdue(&self, now: Instant) -> Option<RequestId> {
        self.pending().filter(|pending| pending.until <= now).map(|pending| pending.id)
    }

    /// It is not known whether it arrived.
    pub(super) fn interrupt(&mut self) {
        if self.sending.take().is_some() {
            self.told = None;
        }
    }
}

impl Session {
    /// Whether a map should be streamed.
    pub(super) fn wants_stream(&self) -> bool {
        self.goal.want_running && self.is_known() && !self.is_logging_out() && !self.is_refreshing()
    }

    pub(super) fn advance_stream(&mut self, now: Instant) {
        if !self.wants_stream() {
            self.cancel_stream();
            return;
        }
        if self.stream.open.is_some() || !self.stream_backoff.is_due(now) {
            return;
        }
        let id = self.next_id();
        self.stream.open = Some(Open { id, since: now, silent_at: now + SILENCE, has_begun: false });
        // All that is known goes with it: some servers take it from here.
        let request = MapRequest {
            compress: "zstd".to_owned(),
            keep_alive: true,
            stream: true,
            ..self.facts.request(self.node_key.public())
        };
        self.request(ControlRequest::StreamMap { id, request: Box::new(request) });
    }

    /// Whether control should be told something.
    pub(super) fn wants_update(&self) -> bool {
        let is_news = self.update.told.as_ref().is_none_or(|told| self.facts.is_news_after(told));
        is_news && self.update.sending.is_none() && self.stream.open.is_some() && self.wants_stream()
    }

    pub(super) fn advance_update(&mut self, now: Instant) {
        if !self.wants_update() || !self.update_backoff.is_due(now) || self.pace.earliest() > now {
            return;
        }
        self.pace.note(now);
        let id = self.next_id();
        self.update.sending = Some((Pending { id, until: now + ANSWER_WITHIN }, self.facts.clone()));
        let request = MapRequest { omit_peers: true, ..self.facts.request(self.node_key.public()) };
        self.request(ControlRequest::Update { id, request: Box::new(request) });
    }

    pub(super) fn handle_updated(&mut self, id: RequestId) {
        if let Some((_, facts)) = self.update.sending.take_if(|(pending, _)| pending.id == id) {
            self.update.told = Some(facts);
            self.update_backoff.reset();
            self.note_success(Activity::Update);
        }
    }

    pub(super) fn handle_opened(&mut self, id: RequestId, now: Instant) {
        if let Some(open) = self.stream.open.as_mut().filter(|open| open.id == id) {
            open.silent_at = now + SILENCE;
        }
    }

    pub(super) fn handle_map(&mut self, id: RequestId, response: Box<MapResponse>, now: Instant) {
        let Some(open) = self.stream.open.as_mut().filter(|open| open.id == id) else { return };
        open.silent_at = now + SILENCE;
        let is_first = !open.has_begun && !response.keep_alive;
        open.has_begun |= is_first;
        if is_first {
            self.problem = None;
        }
        self.outputs.push_back(Output::Map { is_first, response });
    }

    pub(super) fn handle_closed(&mut self, id: RequestId, now: Instant) {
        if self.stream.id() == Some(id) {
            let text = "the server ended the map stream".to_owned();
            self.end_stream(&Failure { kind: FailureKind::Unreachable, text }, now);
        }
    }

    /// The stream is over; another one comes after a pause.
    pub(super) fn end_stream(&mut self, failure: &Failure, now: Instant) {
        let Some(open) = self.stream.open.take() else { return };
        self.request(ControlRequest::Cancel { id: open.id });
        if open.has_begun && now.since(open.since) >= GOOD_FOR {
            self.stream_backoff.reset();
            self.stream_backoff.spread(SPREAD, &mut self.jitter, now);
        } else {
            self.stream_backoff.fail_with(failure, &mut self.jitter, now);
        }
        if let FailureKind::Status { code: 401 | 403 | 404, .. } = failure.kind {
            // It does not know us: registering says why, or helps.
            self.begin_refresh();
        }
        self.note_problem(Activity::Stream, format!("no map from control: {failure}"));
    }

    /// What control was told was of another node.
    pub(super) fn forget_update(&mut self) {
        let before = core::mem::take(&mut self.update);
        if let Some(pending) = before.pending() {
            self.request(ControlRequest::Cancel { id: pending.id });
        }
    }

    /// Ends the stream because it is not wanted any more, or wanted with another key.
    pub(super) fn cancel_stream(&mut self) {
        if let Some(open) = self.stream.open.take() {
            self.request(ControlRequest::Cancel { id: open.id });
        }
    }
}
