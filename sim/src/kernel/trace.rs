//! What happened, and one number that stands for all of it.
//!
//! Every event of the world goes into a running XXH3-128 as time, kind, host, two numbers and a digest of the
//! bytes concerned; every 4096 events the state is kept as a checkpoint, so that two runs that differ are
//! bisected without keeping either. The last events are held in a ring for whoever has to explain a failure.

use core::{fmt, net::SocketAddr};
use std::collections::VecDeque;

use mesh_core::{dataplane::DropReason, time::Instant};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::{
    host::{HostId, NodeEvent},
    net::{DropCause, NetId, PacketKind},
};

/// Events between two checkpoints.
pub const CHECKPOINT_EVERY: u64 = 4096;

/// Events that are held for explanations.
const RING: usize = 2048;

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// When, in the world's time.
    pub at: Instant,
    /// At which host, if at one.
    pub host: Option<HostId>,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The host sent a datagram.
    Sent {
        /// Its number.
        packet: u64,
        /// Where to.
        to: SocketAddr,
        /// What it is.
        kind: PacketKind,
        /// Bytes of UDP payload.
        bytes: u32,
    },
    /// A datagram left its net and is in the core.
    Crossed {
        /// Its number.
        packet: u64,
        /// The net that it left.
        net: NetId,
    },
    /// The host received a datagram.
    Received {
        /// Its number.
        packet: u64,
        /// Where it says that it comes from.
        from: SocketAddr,
        /// What it is.
        kind: PacketKind,
        /// Bytes of UDP payload.
        bytes: u32,
    },
    /// A datagram ended.
    Dropped {
        /// Its number.
        packet: u64,
        /// Why.
        cause: DropCause,
    },
    /// The node ended a packet.
    Refused(DropReason),
    /// An application sent a message.
    Asked {
        /// Which traffic.
        flow: u32,
        /// Which message.
        sequence: u32,
    },
    /// A message came out of the tunnel.
    Delivered {
        /// Which traffic.
        flow: u32,
        /// Which message.
        sequence: u32,
        /// Whether it is the answer.
        answer: bool,
    },
    /// A timer of the node was due.
    Woken(&'static str),
    /// The node said something.
    Node(NodeEvent),
    /// The node was handed a network map.
    Mapped {
        /// Its number.
        version: u64,
    },
    /// An event of the scenario was carried out.
    Fault {
        /// Which of the scenario's, counted from 0.
        event: u32,
    },
}

/// What the numbers in records are called.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Names of hosts, by number.
    pub hosts: Vec<String>,
    /// Names of nets, by number.
    pub nets: Vec<String>,
    /// What the scenario's events do, by number.
    pub events: Vec<String>,
}

/// Sees every record as it is made.
pub type Observer<'o> = dyn FnMut(&Record, &Names) + 'o;

/// What happened so far.
pub struct Trace {
    hash: Xxh3,
    events: u64,
    checkpoints: Vec<u128>,
    ring: VecDeque<Record>,
}

impl Trace {
    /// Nothing has happened; `about` is what the run is of, and part of the digest.
    #[must_use]
    pub fn new(about: &[u8]) -> Self {
        let mut hash = Xxh3::new();
        hash.update(about);
        Self { hash, events: 0, checkpoints: Vec::new(), ring: VecDeque::with_capacity(RING) }
    }

    /// Takes in what happened and the digest of the bytes that it happened to.
    pub fn record(&mut self, record: Record, payload: u128) {
        let (kind, first, second) = record.what.numbers();
        let mut bytes = [0; 48];
        bytes[..8].copy_from_slice(&record.at.as_nanos().to_le_bytes());
        bytes[8..12].copy_from_slice(&record.host.map_or(u32::MAX, |host| host.0).to_le_bytes());
        bytes[12] = kind;
        bytes[16..24].copy_from_slice(&first.to_le_bytes());
        bytes[24..32].copy_from_slice(&second.to_le_bytes());
        bytes[32..].copy_from_slice(&payload.to_le_bytes());
        self.hash.update(&bytes);
        self.events += 1;
        if self.events.is_multiple_of(CHECKPOINT_EVERY) {
            self.checkpoints.push(self.hash.digest128());
        }
        if self.ring.len() == RING {
            self.ring.pop_front();
        }
        self.ring.push_back(record);
    }

    /// How many events there were.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    /// One number for all that happened.
    #[must_use]
    pub fn digest(&self) -> u128 {
        self.hash.digest128()
    }

    /// The digest after every [`CHECKPOINT_EVERY`] events.
    #[must_use]
    pub fn checkpoints(&self) -> &[u128] {
        &self.checkpoints
    }

    /// The last `count` of the held records that concern one of `hosts`, or all when none is named; without the
    /// timers, which explain little. Oldest first.
    #[must_use]
    pub fn last(&self, count: usize, hosts: &[HostId]) -> Vec<Record> {
        let concerns = |record: &&Record| match (record.what, record.host) {
            (What::Woken(_), _) => false,
            (_, Some(host)) => hosts.is_empty() || hosts.contains(&host),
            (_, None) => true,
        };
        let mut records: Vec<_> = self.ring.iter().rev().filter(concerns).take(count).copied().collect();
        records.reverse();
        records
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trace({} events, {:032x})", self.events, self.digest())
    }
}

impl Record {
    /// One line of text.
    #[must_use]
    pub fn line(&self, names: &Names) -> String {
        let host = self.host.map_or("-", |host| names.hosts.get(host.index()).map_or("?", String::as_str));
        format!("{:>14} {host:<10} {}", self.at.to_string(), self.what.text(names))
    }
}

impl What {
    fn numbers(&self) -> (u8, u64, u64) {
        match *self {
            Self::Sent { packet, to, .. } => (1, packet, number_of(to)),
            Self::Crossed { packet, net } => (2, packet, u64::from(net.0)),
            Self::Received { packet, from, .. } => (3, packet, number_of(from)),
            Self::Dropped { packet, cause } => (4, packet, cause as u64),
            Self::Refused(reason) => (5, reason as u64, 0),
            Self::Asked { flow, sequence } => (6, u64::from(flow), u64::from(sequence)),
            Self::Delivered { flow, sequence, answer } => {
                (7, u64::from(flow) << 1 | u64::from(answer), u64::from(sequence))
            }
            Self::Woken(_) => (8, 0, 0),
            Self::Node(event) => {
                let (kind, peer) = event.numbers();
                (9, kind, peer)
            }
            Self::Fault { event } => (10, u64::from(event), 0),
            Self::Mapped { version } => (11, version, 0),
        }
    }

    fn text(&self, names: &Names) -> String {
        let net = |id: NetId| names.nets.get(id.index()).map_or("?", String::as_str);
        match *self {
            Self::Sent { packet, to, kind, bytes } => format!("sent #{packet} {} {bytes} B to {to}", kind.name()),
            Self::Crossed { packet, net: id } => format!("crossed #{packet} out of {}", net(id)),
            Self::Received { packet, from, kind, bytes } => {
                format!("received #{packet} {} {bytes} B from {from}", kind.name())
            }
            Self::Dropped { packet, cause } => format!("dropped #{packet} {}", cause.name()),
            Self::Refused(reason) => format!("refused {}", reason.name()),
            Self::Asked { flow, sequence } => format!("asked traffic {flow} message {sequence}"),
            Self::Delivered { flow, sequence, answer } => {
                format!("delivered traffic {flow} {} {sequence}", if answer { "answer" } else { "message" })
            }
            Self::Woken(why) => format!("woken {why}"),
            Self::Node(event) => event.text(names),
            Self::Mapped { version } => format!("handed map {version}"),
            Self::Fault { event } => {
                format!("event {event} {}", names.events.get(event as usize).map_or("?", String::as_str))
            }
        }
    }
}

/// The digest of bytes that something happens to.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> u128 {
    xxh3_128(bytes)
}

fn number_of(address: SocketAddr) -> u64 {
    match address {
        SocketAddr::V4(v4) => u64::from(v4.ip().to_bits()) << 16 | u64::from(v4.port()),
        SocketAddr::V6(v6) => digest_of(&v6.ip().octets()) as u64 ^ u64::from(v6.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_in_a_record_moves_the_digest() {
        let record = Record {
            at: Instant::from_secs(1),
            host: Some(HostId(1)),
            what: What::Dropped { packet: 1, cause: DropCause::LinkDown },
        };
        let digest = |record, payload| {
            let mut trace = Trace::new(b"test");
            trace.record(record, payload);
            trace.digest()
        };
        let digests = [
            digest(record, 0),
            digest(record, 1),
            digest(Record { at: Instant::from_secs(2), ..record }, 0),
            digest(Record { host: None, ..record }, 0),
            digest(Record { what: What::Dropped { packet: 2, cause: DropCause::LinkDown }, ..record }, 0),
            digest(Record { what: What::Dropped { packet: 1, cause: DropCause::Loss }, ..record }, 0),
        ];
        let mut distinct = digests.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), digests.len());
        assert_eq!(digest(record, 0), digests[0]);
    }

    #[test]
    fn checkpoints_and_ring_have_their_sizes() {
        let mut trace = Trace::new(b"");
        for event in 0..2 * CHECKPOINT_EVERY + 1 {
            let what = What::Asked { flow: 0, sequence: event as u32 };
            trace.record(Record { at: Instant::ZERO, host: Some(HostId(event as u32 % 2)), what }, 0);
        }
        assert_eq!(trace.checkpoints().len(), 2);
        let last = trace.last(3, &[HostId(1)]);
        let sequences: Vec<_> = last
            .iter()
            .map(|record| match record.what {
                What::Asked { sequence, .. } => sequence,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(sequences, [8187, 8189, 8191]);
    }
}
