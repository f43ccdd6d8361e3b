//! The host's side of the tunnel: IP packets, one a call.

mod linux;
mod memory;

use std::{
    io,
    task::{Context, Poll},
};

use tokio::io::Interest;

use crate::watched::{Steady, Watched, watch};

pub use linux::{LinuxTun, OpenError};
pub use memory::MemoryTun;

/// A device that gives and takes IP packets without waiting.
pub trait Tun: Steady + Send + 'static {
    /// Takes one packet from the host into `room`; returns its length. A longer packet is cut off.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    fn recv(&self, room: &mut [u8]) -> io::Result<usize>;

    /// Gives one packet to the host.
    ///
    /// # Errors
    /// When the host does not take it. The packet is lost.
    fn send(&self, packet: &[u8]) -> io::Result<()>;
}

/// Packets read from the host in one go, one behind the other.
#[derive(Debug)]
pub struct PacketBatch {
    buffer: Vec<u8>,
    slot_bytes: usize,
    lengths: Vec<usize>,
    limit: usize,
}

impl PacketBatch {
    /// A batch of at most `packets` packets of at most `packet_bytes` bytes.
    #[must_use]
    pub fn new(packets: usize, packet_bytes: usize) -> Self {
        let slot_bytes = packet_bytes.max(1);
        Self { buffer: vec![0; packets * slot_bytes], slot_bytes, lengths: Vec::with_capacity(packets), limit: packets }
    }

    /// The packets.
    pub fn packets(&self) -> impl Iterator<Item = &[u8]> {
        self.buffer.chunks(self.slot_bytes).zip(&self.lengths).map(|(slot, length)| &slot[..*length])
    }

    /// How many packets.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }
}

/// A [`Tun`] that tells when it has something.
#[derive(Debug)]
pub struct AsyncTun<T: Tun>(Watched<T>);

impl<T: Tun> AsyncTun<T> {
    /// Registers `tun` with the tokio runtime, which must have I/O.
    ///
    /// # Errors
    /// When the runtime cannot watch the descriptor.
    pub fn new(tun: T) -> io::Result<Self> {
        watch(tun, Interest::READABLE).map(Self)
    }

    /// Whether there is something to read.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read_ready(cx).map_ok(|mut ready| ready.retain_ready())
    }

    /// Reads packets until there are none or the batch is full; returns how many.
    ///
    /// Costs no system call while nothing has arrived since the device was last seen empty.
    ///
    /// # Errors
    /// When the device fails, as when it was deleted.
    pub fn recv(&self, batch: &mut PacketBatch) -> io::Result<usize> {
        batch.lengths.clear();
        let result = self.0.try_io(Interest::READABLE, |tun| {
            for slot in batch.buffer.chunks_mut(batch.slot_bytes).take(batch.limit) {
                batch.lengths.push(tun.0.recv(slot)?);
            }
            Ok(())
        });
        match result {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            Ok(()) | Err(_) => Ok(batch.lengths.len()),
        }
    }

    /// Gives one packet to the host.
    ///
    /// # Errors
    /// When the host does not take it. The packet is lost.
    #[inline]
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.0.get_ref().0.send(packet)
    }

    /// The device itself.
    #[must_use]
    pub fn get_ref(&self) -> &T {
        &self.0.get_ref().0
    }
}
