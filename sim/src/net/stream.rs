//! One end of an ordered byte stream: TCP as those who use it see it.
//!
//! Bytes come out in the order in which they went in, or not at all. A lost segment holds up everything behind it until
//! it is sent again: after three duplicate acknowledgements, or when the retransmission timer runs out (RFC 6298, never
//! below 200 ms, as Linux has it). How much is under way is bounded by the other side's window and by a congestion
//! window that grows and is halved (RFC 5681); how much waits here is bounded too, so a writer is told to wait.
//!
//! A stream whose peer vanished without a word goes on sending the same bytes for a quarter of an hour before it gives
//! up. Nothing shorter is to be expected of TCP; who uses it must notice earlier.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use mesh_core::time::Instant;

use super::segment::{SEGMENT_DATA, Segment};

/// Bytes that wait for being sent or acknowledged. Linux begins with less and grows beyond.
pub const SEND_BUFFER: usize = 256 << 10;
/// Bytes that were received and not read.
const RECEIVE_BUFFER: usize = 128 << 10;

/// Before a round trip was measured.
const FIRST_TIMEOUT: Duration = Duration::from_secs(1);
const TIMEOUT_MIN: Duration = Duration::from_millis(200);
const TIMEOUT_MAX: Duration = Duration::from_secs(120);
/// Repetitions of a SYN. Linux: 6, which is 127 s.
const SYN_RETRIES: u32 = 6;
/// Repetitions of anything else. Linux: 15, which is 924 s and more.
const RETRIES: u32 = 15;
/// Segments under way at first (RFC 6928).
const FIRST_WINDOW: usize = 10 * SEGMENT_DATA;
/// So many acknowledgements of the same byte mean that the segment behind it is lost.
const DUPLICATES: u32 = 3;

/// What a stream says to who uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamOutput {
    /// Send this segment.
    Send(Segment),
    /// It is open.
    Open,
    /// Bytes, in order.
    Received(Vec<u8>),
    /// There is room for writing again.
    Writable,
    /// It is no more; nothing follows.
    Ended(StreamEnd),
}

/// Why a stream is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// One side closed it, and all that it had written came through.
    Closed,
    /// The other side does not know it.
    Reset,
    /// Nobody listens there.
    Refused,
    /// The other side did not answer for too long.
    TimedOut,
}

impl StreamEnd {
    /// A few words.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Closed => "the other side closed the stream",
            Self::Reset => "the stream was reset",
            Self::Refused => "connection refused",
            Self::TimedOut => "the stream timed out",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A SYN was sent.
    Opening,
    /// A SYN was received and answered.
    Accepting,
    Open,
    /// Everything is to be sent, then a FIN.
    Closing,
    Ended,
}

/// One end of a stream.
#[derive(Debug)]
pub struct Stream {
    state: State,
    /// Bytes from `acked` on, without SYN and FIN.
    buffer: VecDeque<u8>,
    acked: u64,
    /// The number after the last byte that was sent ever.
    sent: u64,
    /// The number from which on sending goes on; before `sent` after a timeout.
    next: u64,
    peer_window: usize,
    congestion: usize,
    threshold: usize,
    /// Bytes acknowledged since the congestion window grew last, past the threshold.
    grown: usize,
    duplicates: u32,
    /// Until this number is acknowledged nothing more is taken for lost.
    recover: u64,
    /// Whether what is acknowledged short of `recover` shows the next hole.
    recovering: bool,
    /// The number after the last byte that was written; that of the FIN.
    written: u64,
    smoothed: Option<(Duration, Duration)>,
    /// A number whose acknowledgement says how long a round trip is, and when it was sent.
    measured: Option<(u64, Instant)>,
    retries: u32,
    timer: Option<Instant>,
    /// Bytes that are taken and were never sent, at most.
    unsent_max: usize,
    blocked: bool,
    /// The number that is expected next.
    expected: u64,
    early: BTreeMap<u64, (Vec<u8>, bool)>,
    /// What the user has not taken, while it does not read.
    unread: VecDeque<u8>,
    reading: bool,
    outputs: VecDeque<StreamOutput>,
}

impl Stream {
    /// Connects.
    #[must_use]
    pub fn connect(now: Instant) -> Self {
        let mut stream = Self::new(State::Opening);
        stream.send_syn(now);
        stream
    }

    /// Answers a SYN.
    #[must_use]
    pub fn accept(syn: &Segment, now: Instant) -> Self {
        let mut stream = Self::new(State::Accepting);
        stream.expected = syn.sequence + 1;
        stream.peer_window = syn.window;
        stream.send_syn(now);
        stream
    }

    fn new(state: State) -> Self {
        Self {
            state,
            buffer: VecDeque::new(),
            acked: 0,
            sent: 0,
            next: 0,
            peer_window: SEGMENT_DATA,
            congestion: FIRST_WINDOW,
            threshold: usize::MAX,
            grown: 0,
            duplicates: 0,
            recover: 0,
            recovering: false,
            written: 1,
            smoothed: None,
            measured: None,
            retries: 0,
            timer: None,
            unsent_max: SEND_BUFFER,
            blocked: false,
            expected: 0,
            early: BTreeMap::new(),
            unread: VecDeque::new(),
            reading: true,
            outputs: VecDeque::new(),
        }
    }

    /// Writes what there is room for, and says how much that was. If not all, [`StreamOutput::Writable`] follows.
    pub fn write(&mut self, bytes: &[u8], now: Instant) -> usize {
        if matches!(self.state, State::Closing | State::Ended) {
            return bytes.len();
        }
        let taken = bytes.len().min(self.room());
        self.buffer.extend(&bytes[..taken]);
        self.written += taken as u64;
        self.blocked |= taken < bytes.len();
        self.pump(now);
        taken
    }

    /// From now on no more than so many bytes are taken that were never sent: what waits in its user's hands can be put in
    /// another order, or dropped (`TCP_NOTSENT_LOWAT` of Linux).
    pub fn set_unsent_max(&mut self, bytes: usize) {
        self.unsent_max = bytes;
    }

    /// Closes: what was written still goes out.
    pub fn close(&mut self, now: Instant) {
        match self.state {
            State::Opening | State::Accepting => self.reset(),
            State::Open => {
                self.state = State::Closing;
                self.pump(now);
            }
            State::Closing | State::Ended => {}
        }
    }

    /// Drops the stream and tells the other side.
    pub fn reset(&mut self) {
        if self.state != State::Ended {
            let rst = Segment { rst: true, ..self.segment(self.sent, Vec::new()) };
            self.outputs.push_back(StreamOutput::Send(rst));
            self.end(StreamEnd::Reset);
        }
    }

    /// Whether received bytes are handed out. What comes while they are not is kept, as much as the window says.
    pub fn set_reading(&mut self, reading: bool) {
        self.reading = reading;
        if reading && !self.unread.is_empty() {
            let bytes = self.unread.drain(..).collect();
            self.outputs.push_back(StreamOutput::Received(bytes));
            self.acknowledge();
        }
    }

    /// A segment of the other side.
    pub fn handle_segment(&mut self, segment: Segment, now: Instant) {
        if self.state == State::Ended {
            return;
        }
        if segment.rst {
            // A reset that answers nothing that was sent is not for this stream.
            if !segment.ack || segment.received <= self.sent {
                let refused = self.state == State::Opening;
                self.end(if refused { StreamEnd::Refused } else { StreamEnd::Reset });
            }
            return;
        }
        if segment.syn {
            self.handle_syn(&segment, now);
            return;
        }
        if self.state == State::Opening {
            return;
        }
        if segment.ack {
            self.handle_ack(&segment, now);
        }
        if segment.length() > 0 {
            self.handle_data(segment);
        }
        self.pump(now);
    }

    /// Lets due timers act.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.timer.is_none_or(|at| at > now) || self.state == State::Ended {
            return;
        }
        self.timer = None;
        self.retries += 1;
        let is_new = matches!(self.state, State::Opening | State::Accepting);
        if self.retries > if is_new { SYN_RETRIES } else { RETRIES } {
            self.end(StreamEnd::TimedOut);
            return;
        }
        self.measured = None;
        if is_new {
            self.send_syn(now);
            return;
        }
        if self.acked < self.sent {
            self.threshold = ((self.sent - self.acked) as usize / 2).max(2 * SEGMENT_DATA);
            self.congestion = SEGMENT_DATA;
        }
        self.duplicates = 0;
        (self.recover, self.recovering) = (self.sent, false);
        self.next = self.acked;
        // A window of nothing is asked about with one byte.
        self.send_from(self.peer_window.max(1).min(self.congestion), now);
        self.timer.get_or_insert(now + self.timeout());
    }

    /// When [`Self::handle_timeout`] is wanted next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timer
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<StreamOutput> {
        self.outputs.pop_front()
    }

    /// Whether it is no more.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Whether its user closed it: what was written still goes out.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.state == State::Closing
    }

    /// Bytes that were written and not acknowledged.
    #[must_use]
    pub fn unacknowledged(&self) -> usize {
        self.buffer.len()
    }

    fn handle_syn(&mut self, segment: &Segment, now: Instant) {
        match self.state {
            State::Opening if segment.ack => {
                self.expected = segment.sequence + 1;
                self.peer_window = segment.window;
                self.established(now);
                self.acknowledge();
                self.pump(now);
            }
            // The answer to the SYN, or the acknowledgement of that, was lost.
            State::Accepting => self.send_syn(now),
            State::Open | State::Closing => self.acknowledge(),
            State::Opening | State::Ended => {}
        }
    }

    fn established(&mut self, now: Instant) {
        self.acked = 1;
        self.next = self.next.max(1);
        self.state = State::Open;
        self.timer = None;
        self.measure(1, now);
        self.retries = 0;
        self.outputs.push_back(StreamOutput::Open);
    }

    fn handle_ack(&mut self, segment: &Segment, now: Instant) {
        let to = segment.received;
        if to > self.sent {
            return;
        }
        self.peer_window = segment.window;
        if self.state == State::Accepting && to >= 1 {
            self.established(now);
        }
        if to <= self.acked {
            let is_duplicate = to == self.acked && segment.length() == 0 && self.acked < self.sent;
            self.duplicates += u32::from(is_duplicate);
            if self.duplicates == DUPLICATES && self.acked >= self.recover {
                self.threshold = ((self.sent - self.acked) as usize / 2).max(2 * SEGMENT_DATA);
                self.congestion = self.threshold;
                (self.recover, self.recovering) = (self.sent, true);
                self.send_again(now);
            }
            return;
        }
        let newly = (to - self.acked) as usize;
        drop(self.buffer.drain(..newly.min(self.buffer.len())));
        self.acked = to;
        self.next = self.next.max(to);
        self.duplicates = 0;
        self.retries = 0;
        self.measure(to, now);
        self.timer = (self.acked < self.sent).then(|| now + self.timeout());
        self.recovering &= self.acked < self.recover;
        if self.recovering {
            // More of the same loss.
            self.send_again(now);
        } else if self.congestion < self.threshold {
            self.congestion += newly.min(2 * SEGMENT_DATA);
        } else {
            self.grown += newly;
            if self.grown >= self.congestion {
                self.grown = 0;
                self.congestion += SEGMENT_DATA;
            }
        }
        if self.acked > self.written {
            self.end(StreamEnd::Closed);
        }
    }

    fn handle_data(&mut self, segment: Segment) {
        if matches!(self.state, State::Accepting) {
            return;
        }
        let end = segment.sequence + segment.data.len() as u64;
        let room = self.expected + self.window() as u64;
        if end >= self.expected && end <= room {
            self.early.insert(segment.sequence, (segment.data, segment.fin));
        }
        let mut bytes = Vec::new();
        let mut fin = false;
        while let Some(entry) = self.early.first_entry() {
            if *entry.key() > self.expected {
                break;
            }
            let (sequence, (data, last)) = entry.remove_entry();
            let known = (self.expected - sequence) as usize;
            if let Some(new) = data.get(known..) {
                bytes.extend_from_slice(new);
                self.expected += new.len() as u64;
                fin |= last;
            }
        }
        if !bytes.is_empty() && self.state == State::Open {
            if self.reading {
                self.outputs.push_back(StreamOutput::Received(bytes));
            } else {
                self.unread.extend(bytes);
            }
        }
        self.expected += u64::from(fin);
        self.acknowledge();
        if fin {
            self.end(StreamEnd::Closed);
        }
    }

    fn acknowledge(&mut self) {
        let segment = self.segment(self.next, Vec::new());
        self.outputs.push_back(StreamOutput::Send(segment));
    }

    fn send_syn(&mut self, now: Instant) {
        self.sent = 1;
        let syn = Segment { syn: true, ack: self.state == State::Accepting, ..self.segment(0, Vec::new()) };
        if self.retries == 0 {
            self.measured = Some((1, now));
        }
        self.outputs.push_back(StreamOutput::Send(syn));
        self.timer = Some(now + self.timeout());
    }

    /// Sends what the windows allow.
    fn pump(&mut self, now: Instant) {
        if !matches!(self.state, State::Open | State::Closing) {
            return;
        }
        let window = self.peer_window.min(self.congestion);
        self.send_from(window, now);
        if self.blocked && self.buffer.len() <= SEND_BUFFER / 2 && self.unsent() <= self.unsent_max / 2 {
            self.blocked = false;
            self.outputs.push_back(StreamOutput::Writable);
        }
        let waits = self.acked < self.sent || self.next < self.written;
        if waits && self.timer.is_none() {
            self.timer = Some(now + self.timeout());
        }
    }

    /// Sends from `next` on, as far as a window of this size reaches.
    fn send_from(&mut self, window: usize, now: Instant) {
        while self.next <= self.written {
            let room = window.saturating_sub((self.next - self.acked) as usize);
            let waiting = (self.written - self.next) as usize;
            let length = waiting.min(room).min(SEGMENT_DATA);
            let fin = self.state == State::Closing && length == waiting;
            if length == 0 && !fin {
                return;
            }
            self.send_data(length, fin, now);
        }
    }

    /// The segment that is missing first, once more.
    fn send_again(&mut self, now: Instant) {
        let length = self.buffer.len().min(SEGMENT_DATA);
        let fin = self.state == State::Closing && length == self.buffer.len();
        let next = self.next;
        self.next = self.acked;
        self.measured = None;
        self.send_data(length, fin, now);
        self.next = self.next.max(next);
    }

    fn send_data(&mut self, length: usize, fin: bool, now: Instant) {
        let from = (self.next - self.acked) as usize;
        let data: Vec<u8> = self.buffer.range(from..from + length).copied().collect();
        let segment = Segment { fin, ..self.segment(self.next, data) };
        self.next += segment.length();
        if self.next > self.sent {
            self.sent = self.next;
            self.measured.get_or_insert((self.next, now));
        }
        self.outputs.push_back(StreamOutput::Send(segment));
        self.timer.get_or_insert(now + self.timeout());
    }

    fn segment(&self, sequence: u64, data: Vec<u8>) -> Segment {
        Segment { ack: true, sequence, received: self.expected, window: self.window(), data, ..Segment::EMPTY }
    }

    /// Bytes that were never sent.
    fn unsent(&self) -> usize {
        self.written.saturating_sub(self.sent) as usize
    }

    /// Bytes that [`Self::write`] takes.
    fn room(&self) -> usize {
        SEND_BUFFER.saturating_sub(self.buffer.len()).min(self.unsent_max.saturating_sub(self.unsent()))
    }

    fn window(&self) -> usize {
        RECEIVE_BUFFER - self.unread.len().min(RECEIVE_BUFFER)
    }

    fn measure(&mut self, to: u64, now: Instant) {
        let Some((_, at)) = self.measured.filter(|(number, _)| *number <= to) else { return };
        self.measured = None;
        let sample = now.since(at);
        self.smoothed = Some(match self.smoothed {
            None => (sample, sample / 2),
            Some((mean, spread)) => {
                let error = sample.abs_diff(mean);
                ((mean * 7 + sample) / 8, (spread * 3 + error) / 4)
            }
        });
    }

    fn timeout(&self) -> Duration {
        let base = self.smoothed.map_or(FIRST_TIMEOUT, |(mean, spread)| (mean + spread * 4).max(TIMEOUT_MIN));
        base.saturating_mul(1 << self.retries.min(16)).min(TIMEOUT_MAX)
    }

    fn end(&mut self, end: StreamEnd) {
        self.state = State::Ended;
        self.timer = None;
        self.outputs.push_back(StreamOutput::Ended(end));
    }
}

#[cfg(test)]
mod tests;
