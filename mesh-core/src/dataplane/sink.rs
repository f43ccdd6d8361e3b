//! Where sealed datagrams go.

use crate::path::SendPath;

/// Lends room for one datagram in whatever is about to be sent.
pub trait TransmitSink {
    /// Calls `fill` with exactly `len` bytes of unspecified content and keeps them, as one datagram for `path`, when
    /// it returns true. A sink that is out of room keeps nothing and may leave `fill` uncalled. Returns whether the
    /// datagram was kept.
    #[must_use]
    fn datagram(&mut self, path: &SendPath, len: usize, fill: impl FnOnce(&mut [u8]) -> bool) -> bool;
}

/// Collects datagrams: for tests and the simulator.
impl TransmitSink for Vec<(SendPath, Vec<u8>)> {
    fn datagram(&mut self, path: &SendPath, len: usize, fill: impl FnOnce(&mut [u8]) -> bool) -> bool {
        let mut datagram = vec![0; len];
        let filled = fill(&mut datagram);
        if filled {
            self.push((*path, datagram));
        }
        filled
    }
}
