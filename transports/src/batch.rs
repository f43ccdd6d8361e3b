//! Datagrams in bulk: what is about to be sent, and what was just received.
//!
//! Both reuse their buffers: after the first rounds nothing here allocates.

use std::{io::IoSliceMut, net::SocketAddr};

use quinn_udp::RecvMeta;

use mesh_core::{
    dataplane::TransmitSink,
    derp::RegionId,
    key::NodePublic,
    path::{PathAddr, SendPath},
};

/// The kernel's bound on segments of one send (UDP_MAX_SEGMENTS, 64 before Linux 6.9).
pub const SEGMENTS: usize = 64;

/// The largest UDP payload over IPv4, and so of one send.
pub const TRAIN_BYTES: usize = 65_507;

/// How much a batch holds at most; more than any budget of a round fills. At the bound datagrams are not kept.
const BATCH_BYTES: usize = 4 << 20;

/// Packets for relays that a batch holds at most. At the bound packets are not kept.
const RELAYED_PACKETS: usize = 1_024;

/// Messages taken by one receive call. More made no difference (32 were tried).
pub const RECV_MESSAGES: usize = 8;

/// Room for one received message, which with GRO is up to 64 datagrams and at most this many bytes.
const RECV_BYTES: usize = 65_536;

/// Datagrams about to be sent, one behind the other in one buffer.
///
/// Neighbours of one size to one path form a [`Train`], which goes out with one system call; the last of a train may
/// be shorter.
#[derive(Debug, Default)]
pub struct SendBatch {
    /// Grows to what rounds need and keeps its length, so that growing is the only time it is written to here.
    buffer: Vec<u8>,
    used: usize,
    trains: Vec<Train>,
    /// Trains before this one have been sent.
    sent: usize,
    relayed: Vec<Relayed>,
}

/// A packet for a peer, to be handed to a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relayed {
    /// The region whose relay is to carry it.
    pub region: RegionId,
    /// For whom.
    pub peer: NodePublic,
    /// The packet.
    pub packet: Vec<u8>,
}

/// Datagrams that go out with one system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Train {
    /// Where to.
    pub to: SocketAddr,
    /// Bytes of each datagram but the last.
    pub segment_bytes: usize,
    /// How many datagrams.
    pub segments: usize,
    start: usize,
    end: usize,
    /// A shorter datagram was added: it is the last.
    closed: bool,
}

impl SendBatch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes out what is to go over relays, in order.
    pub fn take_relayed(&mut self) -> impl Iterator<Item = Relayed> + '_ {
        self.relayed.drain(..)
    }

    /// Whether there is nothing to be sent over UDP.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sent == self.trains.len()
    }

    /// The next train to be sent and its bytes.
    #[must_use]
    pub fn front(&self) -> Option<(Train, &[u8])> {
        self.trains.get(self.sent).map(|train| (*train, &self.buffer[train.start..train.end]))
    }

    /// Is done with the next train; when it was the last, the batch is empty and its room free again.
    pub fn pop(&mut self) {
        self.sent += 1;
        if self.sent >= self.trains.len() {
            self.clear();
        }
    }

    /// Forgets everything that was not sent.
    pub fn clear(&mut self) {
        self.trains.clear();
        self.sent = 0;
        self.used = 0;
    }
}

impl TransmitSink for SendBatch {
    #[inline]
    fn datagram(&mut self, path: &SendPath, len: usize, fill: impl FnOnce(&mut [u8]) -> bool) -> bool {
        let Some(also) = path.also else { return self.one(path.to, len, fill) };
        let mut copy = vec![0; len];
        if !fill(&mut copy) {
            return false;
        }
        let kept = [path.to, also].map(|to| {
            self.one(to, len, |room| {
                room.copy_from_slice(&copy);
                true
            })
        });
        kept.contains(&true)
    }
}

impl SendBatch {
    /// Keeps a datagram for one way.
    #[inline]
    fn one(&mut self, to: PathAddr, len: usize, fill: impl FnOnce(&mut [u8]) -> bool) -> bool {
        match to {
            PathAddr::Udp(to) => self.udp(to, len, fill),
            PathAddr::Relay { region, peer } => {
                let mut packet = vec![0; len];
                let kept = self.relayed.len() < RELAYED_PACKETS && fill(&mut packet);
                if kept {
                    self.relayed.push(Relayed { region, peer, packet });
                }
                kept
            }
        }
    }

    #[inline]
    fn udp(&mut self, to: SocketAddr, len: usize, fill: impl FnOnce(&mut [u8]) -> bool) -> bool {
        let (start, end) = (self.used, self.used + len);
        if end > self.buffer.len() {
            if end > BATCH_BYTES {
                return false;
            }
            self.buffer.resize(end.next_power_of_two().min(BATCH_BYTES), 0);
        }
        if !fill(&mut self.buffer[start..end]) {
            return false;
        }
        self.used = end;
        if let Some(train) = self.trains[self.sent..].last_mut()
            && train.takes(to, len)
        {
            train.segments += 1;
            train.end = end;
            train.closed = len < train.segment_bytes;
        } else {
            self.trains.push(Train { to, segment_bytes: len, segments: 1, start, end, closed: false });
        }
        true
    }
}

impl Train {
    /// One datagram of `len` bytes that is in no batch.
    pub(crate) fn single(to: SocketAddr, len: usize) -> Self {
        Self { to, segment_bytes: len.max(1), segments: 1, start: 0, end: len, closed: true }
    }

    #[inline]
    fn takes(&self, to: SocketAddr, len: usize) -> bool {
        !self.closed
            && self.to == to
            && len <= self.segment_bytes
            && self.segments < SEGMENTS
            && self.end - self.start + len <= TRAIN_BYTES
    }
}

/// Datagrams that were just received, to be opened in place.
#[derive(Debug)]
pub struct RecvBatch {
    buffer: Vec<u8>,
    meta: [RecvMeta; RECV_MESSAGES],
    messages: usize,
}

impl RecvBatch {
    /// A batch with room for [`RECV_MESSAGES`] messages. The room costs memory only as far as it is ever used.
    #[must_use]
    pub fn new() -> Self {
        Self { buffer: vec![0; RECV_MESSAGES * RECV_BYTES], meta: [RecvMeta::default(); RECV_MESSAGES], messages: 0 }
    }

    /// The datagrams of the last receive call, each with where it came from.
    pub fn datagrams(&mut self) -> impl Iterator<Item = (SocketAddr, &mut [u8])> {
        let messages = self.buffer.chunks_mut(RECV_BYTES).zip(&self.meta).take(self.messages);
        messages.flat_map(|(bytes, meta)| {
            let from = meta.addr;
            // An empty datagram has no stride, and no chunk either.
            bytes[..meta.len].chunks_mut(meta.stride.max(1)).map(move |datagram| (from, datagram))
        })
    }

    /// Forgets what was received.
    pub(crate) fn clear(&mut self) {
        self.messages = 0;
    }

    /// Lets `receive` fill the room; it returns how many messages it put there.
    pub(crate) fn fill_with(
        &mut self,
        receive: impl FnOnce(&mut [IoSliceMut<'_>], &mut [RecvMeta]) -> std::io::Result<usize>,
    ) -> std::io::Result<usize> {
        self.clear();
        let mut room = self.buffer.chunks_mut(RECV_BYTES);
        let mut slices: [IoSliceMut<'_>; RECV_MESSAGES] =
            core::array::from_fn(|_| IoSliceMut::new(room.next().unwrap_or_default()));
        let messages = receive(&mut slices, &mut self.meta)?;
        for meta in &mut self.meta[..messages] {
            meta.addr = canonical(meta.addr);
        }
        self.messages = messages;
        Ok(messages)
    }
}

impl Default for RecvBatch {
    fn default() -> Self {
        Self::new()
    }
}

/// The one form of an address that the rest of the program compares: IPv4-mapped addresses as IPv4, no flow label.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => address,
        SocketAddr::V6(mut v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::from((v4, v6.port())),
            None => {
                v6.set_flowinfo(0);
                SocketAddr::V6(v6)
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_size_form_a_train_and_a_shorter_one_closes_it() {
        let mut batch = SendBatch::new();
        for len in [100, 100, 60, 60, 100] {
            push(&mut batch, 1, len);
        }
        assert_eq!(drain(&mut batch), [(1, 100, 3), (1, 60, 1), (1, 100, 1)]);
    }

    #[test]
    fn another_path_begins_another_train() {
        let mut batch = SendBatch::new();
        for port in [1, 1, 2, 1] {
            push(&mut batch, port, 50);
        }
        assert_eq!(drain(&mut batch), [(1, 50, 2), (2, 50, 1), (1, 50, 1)]);
    }

    #[test]
    fn trains_stay_within_what_the_kernel_takes() {
        let mut batch = SendBatch::new();
        for _ in 0..130 {
            push(&mut batch, 1, 32);
        }
        assert_eq!(drain(&mut batch), [(1, 32, 64), (1, 32, 64), (1, 32, 2)]);
        for _ in 0..46 {
            push(&mut batch, 1, 1452);
        }
        assert_eq!(drain(&mut batch), [(1, 1452, 45), (1, 1452, 1)]);
    }

    #[test]
    fn what_is_refused_by_its_filler_is_not_kept() {
        let mut batch = SendBatch::new();
        assert!(!batch.datagram(&path(1), 10, |_| false));
        assert!(batch.is_empty());
        push(&mut batch, 1, 10);
        assert!(!batch.datagram(&path(1), 10, |_| false));
        push(&mut batch, 1, 10);
        let (train, bytes) = batch.front().unwrap();
        assert_eq!((train.segments, bytes.len()), (2, 20));
    }

    #[test]
    fn a_path_in_doubt_gets_each_datagram_twice() {
        let mut batch = SendBatch::new();
        let (region, peer) = (RegionId::new(7).unwrap(), NodePublic::from_bytes([7; 32]));
        let both = SendPath { also: Some(PathAddr::Relay { region, peer }), ..path(1) };
        assert!(batch.datagram(&both, 10, |room| {
            room.fill(1);
            true
        }));
        let relayed: Vec<_> = batch.take_relayed().collect();
        assert_eq!(relayed, [Relayed { region, peer, packet: vec![1; 10] }]);
        assert_eq!(drain(&mut batch), [(1, 10, 1)]);
        assert!(!batch.datagram(&both, 10, |_| false));
        assert!(batch.is_empty() && batch.take_relayed().next().is_none());
    }

    #[test]
    fn a_full_batch_says_so() {
        let mut batch = SendBatch::new();
        let kept = (0..70).filter(|_| batch.datagram(&path(1), 65_000, |_| true)).count();
        assert_eq!(kept, BATCH_BYTES / 65_000);
    }

    #[test]
    fn a_batch_that_is_half_sent_does_not_add_to_what_is_gone() {
        let mut batch = SendBatch::new();
        push(&mut batch, 1, 10);
        push(&mut batch, 2, 10);
        batch.pop();
        push(&mut batch, 2, 10);
        assert_eq!(drain(&mut batch), [(2, 10, 2)]);
    }

    #[test]
    fn received_trains_come_apart_at_their_stride() {
        let mut batch = RecvBatch::new();
        let sizes = [(100, 40), (30, 30), (0, 0)];
        let receive = |room: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]| {
            for ((meta, room), (len, stride)) in meta.iter_mut().zip(room).zip(sizes) {
                room[..len].fill(7);
                meta.addr = "[::ffff:192.0.2.1]:9".parse().unwrap();
                (meta.len, meta.stride) = (len, stride);
            }
            Ok(sizes.len())
        };
        assert_eq!(batch.fill_with(receive).unwrap(), 3);
        let lengths: Vec<_> = batch.datagrams().map(|(from, datagram)| (from.to_string(), datagram.len())).collect();
        assert_eq!(lengths, [40, 40, 20, 30].map(|len| ("192.0.2.1:9".to_owned(), len)));
    }

    fn path(port: u16) -> SendPath {
        SendPath::udp(SocketAddr::from(([192, 0, 2, 1], port)))
    }

    fn push(batch: &mut SendBatch, port: u16, len: usize) {
        let kept = batch.datagram(&path(port), len, |room| {
            room.fill(port as u8);
            true
        });
        assert!(kept);
    }

    fn drain(batch: &mut SendBatch) -> Vec<(u16, usize, usize)> {
        let mut trains = Vec::new();
        while let Some((train, bytes)) = batch.front() {
            assert!(bytes.iter().all(|b| *b == train.to.port() as u8));
            trains.push((train.to.port(), train.segment_bytes, train.segments));
            batch.pop();
        }
        trains
    }
}
