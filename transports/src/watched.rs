//! Descriptors that the tokio runtime watches.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// A type that owns one descriptor and shows that one for all its life.
///
/// Known to this crate alone, because the runtime's safety rests on it.
pub trait Steady: AsFd {}

impl Steady for OwnedFd {}
impl Steady for std::net::UdpSocket {}
impl Steady for netlink_sys::Socket {}
impl Steady for crate::tun::LinuxTun {}
impl Steady for crate::tun::MemoryTun {}

/// Shows tokio the raw descriptor, which is all it wants.
#[derive(Debug)]
pub(crate) struct Descriptor<T: Steady>(pub(crate) T);

impl<T: Steady> AsRawFd for Descriptor<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// A descriptor that the runtime watches.
pub(crate) type Watched<T> = AsyncFd<Descriptor<T>>;

/// Registers `owner`'s descriptor with the current runtime, which must have I/O.
#[expect(unsafe_code, reason = "tokio cannot know that the descriptor stays open")]
pub(crate) fn watch<T: Steady>(owner: T, interest: Interest) -> io::Result<Watched<T>> {
    // SAFETY: the descriptor is owned by `owner`, which the returned value owns and never gives a `&mut` of; a `Steady`
    // type shows the same open descriptor until it is dropped, which is after deregistration.
    unsafe { AsyncFd::register_with_interest(Descriptor(owner), interest) }.map_err(Into::into)
}
