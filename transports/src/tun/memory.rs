//! A device without a host: for tests.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixDatagram,
    },
};

use super::Tun;

/// One end of a pair. What one end sends, the other receives.
#[derive(Debug)]
pub struct MemoryTun(UnixDatagram);

impl MemoryTun {
    /// Two ends: one for a driver, one that plays the host.
    ///
    /// # Errors
    /// When the process has too many files open.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = UnixDatagram::pair()?;
        a.set_nonblocking(true)?;
        b.set_nonblocking(true)?;
        Ok((Self(a), Self(b)))
    }
}

impl AsFd for MemoryTun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Tun for MemoryTun {
    fn recv(&self, room: &mut [u8]) -> io::Result<usize> {
        self.0.recv(room)
    }

    fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.0.send(packet).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use core::{future::poll_fn, time::Duration};

    use super::{
        super::{AsyncTun, PacketBatch},
        *,
    };

    #[tokio::test(flavor = "current_thread")]
    async fn packets_are_read_in_batches_until_there_are_none() {
        let (ours, host) = MemoryTun::pair().unwrap();
        let ours = AsyncTun::new(ours).unwrap();
        let mut batch = PacketBatch::new(4, 100);
        for round in 0..2 {
            for index in 0..6_u8 {
                host.send(&vec![index; 10 + usize::from(index)]).unwrap();
            }
            let readable = poll_fn(|cx| ours.poll_readable(cx));
            tokio::time::timeout(Duration::from_secs(5), readable).await.unwrap().unwrap();
            assert_eq!(ours.recv(&mut batch).unwrap(), 4, "round {round}");
            assert_eq!(batch.packets().map(<[u8]>::len).collect::<Vec<_>>(), [10, 11, 12, 13]);
            assert_eq!(ours.recv(&mut batch).unwrap(), 2);
            assert_eq!(ours.recv(&mut batch).unwrap(), 0);
            assert!(batch.is_empty());
        }
    }
}
