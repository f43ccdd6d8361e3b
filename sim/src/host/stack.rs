//! The streams of a host: who listens, who is connected, and what is answered to strangers.
//!
//! A stream belongs to the address that it was made from. When the host loses that address nothing is said to either
//! end: what it sends is not sent, and what is sent to it finds nobody. An end that is asked about a stream that it does
//! not know answers with a reset, which is how a restarted host, or a NAT that forgot, shows.

use core::net::{IpAddr, SocketAddr};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mesh_core::{rng::Rng, time::Instant};

use crate::net::{
    segment::Segment,
    stream::{Stream, StreamEnd, StreamOutput},
};

/// Streams of one host at most. At the bound a SYN is not answered, counted; the other side tries again.
const STREAMS: usize = 16_384;

/// The first of the ports that streams are connected from.
const PORTS: u16 = 32_768;

/// Names a stream of a host; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamId(u64);

/// What streams have to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StackOutput {
    /// Send a segment.
    Send {
        /// From this address and port of the host.
        from: SocketAddr,
        /// Where to.
        to: SocketAddr,
        /// The segment.
        payload: Vec<u8>,
    },
    /// Somebody connected to a port that is listened on.
    Accepted {
        /// A new name for it.
        stream: StreamId,
        /// From where.
        from: SocketAddr,
    },
    /// A stream that the host connected is open.
    Connected(StreamId),
    /// Bytes came.
    Received {
        /// Of which.
        stream: StreamId,
        /// In order.
        bytes: Vec<u8>,
    },
    /// There is room for writing again.
    Writable(StreamId),
    /// A stream is no more; nothing follows.
    Ended {
        /// Which.
        stream: StreamId,
        /// Why.
        end: StreamEnd,
    },
}

impl StackOutput {
    /// The stream of the host's own that something happened to.
    #[must_use]
    pub fn own(&self) -> Option<StreamId> {
        match self {
            Self::Connected(stream) | Self::Writable(stream) => Some(*stream),
            Self::Received { stream, .. } | Self::Ended { stream, .. } => Some(*stream),
            Self::Send { .. } | Self::Accepted { .. } => None,
        }
    }
}

/// The streams of a host.
#[derive(Debug)]
pub struct Stack {
    streams: BTreeMap<StreamId, Entry>,
    by_ends: BTreeMap<(SocketAddr, SocketAddr), StreamId>,
    listening: BTreeSet<u16>,
    outputs: VecDeque<StackOutput>,
    next_stream: u64,
    next_port: u16,
    ignored: u64,
}

#[derive(Debug)]
struct Entry {
    local: SocketAddr,
    remote: SocketAddr,
    /// It came from outside and is not open yet.
    arriving: bool,
    stream: Stream,
}

impl Stack {
    /// No streams.
    #[must_use]
    pub fn new(rng: &mut Rng) -> Self {
        Self {
            streams: BTreeMap::new(),
            by_ends: BTreeMap::new(),
            listening: BTreeSet::new(),
            outputs: VecDeque::new(),
            next_stream: 0,
            next_port: PORTS + rng.below(20_000) as u16,
            ignored: 0,
        }
    }

    /// Takes streams to this port from now on.
    pub fn listen(&mut self, port: u16) {
        self.listening.insert(port);
    }

    /// Connects from an address of the host.
    pub fn connect(&mut self, from: IpAddr, to: SocketAddr, now: Instant) -> StreamId {
        let mut local = SocketAddr::new(from, self.next_port);
        while self.by_ends.contains_key(&(local, to)) {
            self.next_port = self.next_port.checked_add(1).unwrap_or(PORTS);
            local.set_port(self.next_port);
        }
        self.next_port = self.next_port.checked_add(1).unwrap_or(PORTS);
        self.add(Entry { local, remote: to, arriving: false, stream: Stream::connect(now) })
    }

    /// Writes what there is room for, and says how much that was. If not all, [`StackOutput::Writable`] follows.
    pub fn write(&mut self, stream: StreamId, bytes: &[u8], now: Instant) -> usize {
        self.with(stream, |entry| entry.write(bytes, now)).unwrap_or(bytes.len())
    }

    /// From now on no more than so many bytes are taken that were never sent.
    pub fn set_unsent_max(&mut self, stream: StreamId, bytes: usize) {
        self.with(stream, |stream| stream.set_unsent_max(bytes));
    }

    /// Closes a stream: what was written still goes out. Nothing more is said about it.
    pub fn close(&mut self, stream: StreamId, now: Instant) {
        self.with(stream, |stream| {
            stream.set_reading(true);
            stream.close(now);
        });
    }

    /// Whether received bytes are handed out: back-pressure.
    pub fn set_reading(&mut self, stream: StreamId, reading: bool) {
        self.with(stream, |stream| stream.set_reading(reading));
    }

    /// Resets all streams; both ends of each are told.
    pub fn reset_all(&mut self) {
        for stream in self.streams.keys().copied().collect::<Vec<_>>() {
            self.with(stream, Stream::reset);
        }
    }

    /// Nothing listens any more and every stream is reset: the program that had them is gone.
    pub fn shut_down(&mut self) {
        self.listening.clear();
        self.reset_all();
    }

    /// A segment came.
    pub fn handle_segment(&mut self, from: SocketAddr, to: SocketAddr, payload: &[u8], now: Instant) {
        let Some(segment) = Segment::parse(payload) else {
            self.ignored += 1;
            return;
        };
        if let Some(stream) = self.by_ends.get(&(to, from)).copied() {
            self.with(stream, |stream| stream.handle_segment(segment, now));
            return;
        }
        if segment.rst {
            return;
        }
        if segment.syn && !segment.ack && self.listening.contains(&to.port()) {
            if self.streams.len() >= STREAMS {
                self.ignored += 1;
                return;
            }
            self.add(Entry { local: to, remote: from, arriving: true, stream: Stream::accept(&segment, now) });
            return;
        }
        let received = segment.sequence + segment.length();
        let answer = Segment { rst: true, ack: true, sequence: segment.received, received, ..Segment::EMPTY };
        self.outputs.push_back(StackOutput::Send { from: to, to: from, payload: answer.emit() });
    }

    /// Lets due timers act.
    pub fn handle_timeout(&mut self, now: Instant) {
        let is_due = |entry: &Entry| entry.stream.poll_timeout().is_some_and(|at| at <= now);
        let due: Vec<_> = self.streams.iter().filter(|(_, entry)| is_due(entry)).map(|(id, _)| *id).collect();
        for stream in due {
            self.with(stream, |stream| stream.handle_timeout(now));
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<StackOutput> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] is wanted next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.streams.values().filter_map(|entry| entry.stream.poll_timeout()).min()
    }

    /// How many streams there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// How many there are that their users have not closed. Of those that they have some stay for twenty minutes: the other
    /// end may not answer.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.streams.values().filter(|entry| !entry.stream.is_closing()).count()
    }

    /// Whether there is nothing to do, now or later.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.streams.is_empty() && self.outputs.is_empty()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    fn add(&mut self, entry: Entry) -> StreamId {
        let id = StreamId(self.next_stream);
        self.next_stream += 1;
        self.by_ends.insert((entry.local, entry.remote), id);
        self.streams.insert(id, entry);
        self.with(id, |_| ());
        id
    }

    fn with<T>(&mut self, id: StreamId, act: impl FnOnce(&mut Stream) -> T) -> Option<T> {
        let entry = self.streams.get_mut(&id)?;
        let result = act(&mut entry.stream);
        while let Some(output) = entry.stream.poll_output() {
            let output = match output {
                StreamOutput::Send(segment) => {
                    StackOutput::Send { from: entry.local, to: entry.remote, payload: segment.emit() }
                }
                StreamOutput::Open if core::mem::take(&mut entry.arriving) => {
                    StackOutput::Accepted { stream: id, from: entry.remote }
                }
                StreamOutput::Open => StackOutput::Connected(id),
                StreamOutput::Received(bytes) => StackOutput::Received { stream: id, bytes },
                StreamOutput::Writable => StackOutput::Writable(id),
                // One that never opened was not told of.
                StreamOutput::Ended(_) if entry.arriving => continue,
                StreamOutput::Ended(end) => StackOutput::Ended { stream: id, end },
            };
            self.outputs.push_back(output);
        }
        if entry.stream.is_ended() {
            self.by_ends.remove(&(entry.local, entry.remote));
            self.streams.remove(&id);
        }
        Some(result)
    }
}
