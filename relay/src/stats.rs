//! Counters of the relay, with the labels of derper where it has them.
//!
//! Connections on several cores count into one set, so the numbers are atomic; nothing is decided by them but how much
//! may wait for one client when very much waits for all.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

/// A number that goes up.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn add_one(&self) {
        self.add(1);
    }

    /// `count` more.
    pub fn add(&self, count: usize) {
        self.0.fetch_add(count as u64, Relaxed);
    }

    /// The number.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What waits for all clients together.
#[derive(Debug, Default)]
pub struct Mail {
    letters: AtomicU64,
    bytes: AtomicU64,
}

impl Mail {
    /// A packet of so many bytes waits.
    pub(crate) fn add(&self, bytes: usize) {
        self.letters.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// So many packets of so many bytes together wait no more.
    pub(crate) fn remove(&self, letters: u64, bytes: usize) {
        self.letters.fetch_sub(letters, Relaxed);
        self.bytes.fetch_sub(bytes as u64, Relaxed);
    }

    /// Packets.
    #[must_use]
    pub fn letters(&self) -> u64 {
        self.letters.load(Relaxed)
    }

    /// Their bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}

/// What a packet looks like: the relay cannot open it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Path discovery.
    Disco,
    /// Anything else.
    Other,
}

impl Kind {
    /// Both, in order of their index.
    pub const ALL: [Self; 2] = [Self::Disco, Self::Other];

    /// As derper labels it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Disco => "disco",
            Self::Other => "other",
        }
    }
}

/// Why a packet ended here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Nobody of that key is connected.
    UnknownDest,
    /// Its receiver left while it waited.
    GoneDisconnected,
    /// It was the oldest in a full mailbox.
    QueueHead,
    /// It waited too long.
    Expired,
}

impl DropReason {
    /// All, in order of their index.
    pub const ALL: [Self; 4] = [Self::UnknownDest, Self::GoneDisconnected, Self::QueueHead, Self::Expired];

    /// As derper labels it; `expired` is ours.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::UnknownDest => "unknown_dest",
            Self::GoneDisconnected => "gone_disconnected",
            Self::QueueHead => "queue_head",
            Self::Expired => "expired",
        }
    }
}

/// Why a connection was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The client said nothing, or its first frame was never whole.
    GreetingTimeout,
    /// The first frame was another, or its box did not open, or what was in it is not of this protocol.
    BadGreeting,
    /// The first frame has been seen before.
    Replayed,
    /// The client may not connect, or nobody could say whether it may.
    Refused,
    /// A frame is too long or not well made.
    Malformed,
    /// A frame that only another relay may send.
    NotAllowed,
    /// The client did not take what was written.
    Stalled,
    /// More unread bytes than the driver should have handed in.
    Flooded,
    /// The relay holds as many connections as it may.
    Full,
    /// It holds as many as it may whose client is not in yet.
    Crowded,
    /// It holds as many as it may from one source.
    SourceFull,
}

impl CloseReason {
    /// All, in order of their index.
    pub const ALL: [Self; 11] = [
        Self::GreetingTimeout,
        Self::BadGreeting,
        Self::Replayed,
        Self::Refused,
        Self::Malformed,
        Self::NotAllowed,
        Self::Stalled,
        Self::Flooded,
        Self::Full,
        Self::Crowded,
        Self::SourceFull,
    ];

    /// As metrics and logs name it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::GreetingTimeout => "greeting_timeout",
            Self::BadGreeting => "bad_greeting",
            Self::Replayed => "replayed",
            Self::Refused => "refused",
            Self::Malformed => "malformed",
            Self::NotAllowed => "not_allowed",
            Self::Stalled => "stalled",
            Self::Flooded => "flooded",
            Self::Full => "full",
            Self::Crowded => "crowded",
            Self::SourceFull => "source_full",
        }
    }
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub struct Stats {
    /// What waits now.
    pub mail: Arc<Mail>,
    /// Connections that were taken in.
    pub accepts: Counter,
    /// Clients that were let in and registered.
    pub joins: Counter,
    /// Clients that had joined and left again.
    pub leaves: Counter,
    /// Joins of a key that was already here.
    pub duplicates: Counter,
    /// Packets that clients sent, by [`Kind`].
    pub packets_received: [Counter; 2],
    /// Bytes of packets that clients sent.
    pub bytes_received: Counter,
    /// Packets that were handed to a connection for writing.
    pub packets_sent: Counter,
    /// Bytes of packets that were handed to a connection for writing.
    pub bytes_sent: Counter,
    /// Pings of clients.
    pub got_ping: Counter,
    /// Answers to them; fewer than pings when a client pings faster than it reads.
    pub sent_pong: Counter,
    /// Keepalives that were sent.
    pub keepalives: Counter,
    /// "Disconnected" notices that were queued.
    pub peer_gone_disconnected: Counter,
    /// "Not here" notices that were queued.
    pub peer_gone_not_here: Counter,
    /// Keys that more than one node was found to use.
    pub clones: Counter,
    /// Notices that a full mailbox or a rate limit left out.
    pub notices_left_out: Counter,
    /// Frames of a type that is not known, or that a client has no reason to send, skipped.
    pub unknown_frames: Counter,
    /// Clients that made this relay their home.
    pub home_moves_in: Counter,
    /// Clients that made another relay their home.
    pub home_moves_out: Counter,
    /// Times that reading from a client was paused because it was over its rate.
    pub pauses: Counter,
    /// Packets dropped, by [`DropReason`] and [`Kind`].
    pub packets_dropped: [[Counter; 2]; DropReason::ALL.len()],
    /// Bytes dropped, likewise.
    pub bytes_dropped: [[Counter; 2]; DropReason::ALL.len()],
    /// Connections that the relay closed, by [`CloseReason`].
    pub closes: [Counter; CloseReason::ALL.len()],
    /// STUN requests answered.
    pub stun_answered: Counter,
    /// Datagrams at the STUN port that were no request.
    pub stun_ignored: Counter,
}

impl Stats {
    /// Counts a packet that ended here.
    pub fn note_drop(&self, reason: DropReason, kind: Kind, bytes: usize) {
        self.packets_dropped[reason as usize][kind as usize].add_one();
        self.bytes_dropped[reason as usize][kind as usize].add(bytes);
    }

    /// How many packets ended for this reason.
    #[must_use]
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.packets_dropped[reason as usize].iter().map(Counter::get).sum()
    }

    /// Counts a connection that the relay closed, or did not take.
    pub fn note_close(&self, reason: CloseReason) {
        self.closes[reason as usize].add_one();
    }

    /// How many connections the relay closed for this reason.
    #[must_use]
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.closes[reason as usize].get()
    }

    /// The counters in Prometheus text.
    #[must_use]
    pub fn to_prometheus(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, labels: &str, value: u64| {
            text.push_str(&format!("mesh_relay_{name}{labels} {value}\n"));
        };
        for (name, counter) in [
            ("accepts_total", &self.accepts),
            ("joins_total", &self.joins),
            ("leaves_total", &self.leaves),
            ("duplicate_joins_total", &self.duplicates),
            ("received_bytes_total", &self.bytes_received),
            ("sent_packets_total", &self.packets_sent),
            ("sent_bytes_total", &self.bytes_sent),
            ("got_ping_total", &self.got_ping),
            ("sent_pong_total", &self.sent_pong),
            ("keepalives_total", &self.keepalives),
            ("peer_gone_disconnected_frames_total", &self.peer_gone_disconnected),
            ("peer_gone_not_here_frames_total", &self.peer_gone_not_here),
            ("cloned_keys_total", &self.clones),
            ("notices_left_out_total", &self.notices_left_out),
            ("unknown_frames_total", &self.unknown_frames),
            ("home_moves_in_total", &self.home_moves_in),
            ("home_moves_out_total", &self.home_moves_out),
            ("read_pauses_total", &self.pauses),
            ("stun_answered_total", &self.stun_answered),
            ("stun_ignored_total", &self.stun_ignored),
        ] {
            line(name, "", counter.get());
        }
        line("waiting_packets", "", self.mail.letters());
        line("waiting_bytes", "", self.mail.bytes());
        for kind in Kind::ALL {
            let labels = format!("{{kind=\"{}\"}}", kind.label());
            line("received_packets_total", &labels, self.packets_received[kind as usize].get());
        }
        for reason in DropReason::ALL {
            for kind in Kind::ALL {
                let labels = format!("{{reason=\"{}\",kind=\"{}\"}}", reason.label(), kind.label());
                line("dropped_packets_total", &labels, self.packets_dropped[reason as usize][kind as usize].get());
                line("dropped_bytes_total", &labels, self.bytes_dropped[reason as usize][kind as usize].get());
            }
        }
        for reason in CloseReason::ALL {
            line("closes_total", &format!("{{reason=\"{}\"}}", reason.label()), self.closed(reason));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_where_its_index_says() {
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        for (index, reason) in CloseReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }

    #[test]
    fn the_text_holds_drops_by_reason_and_kind() {
        let stats = Stats::default();
        stats.note_drop(DropReason::QueueHead, Kind::Disco, 62);
        let text = stats.to_prometheus();
        assert!(text.contains("mesh_relay_dropped_packets_total{reason=\"queue_head\",kind=\"disco\"} 1\n"), "{text}");
        assert!(text.contains("mesh_relay_dropped_bytes_total{reason=\"queue_head\",kind=\"disco\"} 62\n"), "{text}");
    }
}
