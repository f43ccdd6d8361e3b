//! The kernel's TUN device, over `tun-rs`.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, BorrowedFd},
};

use tun_rs::{DeviceBuilder, SyncDevice};

use super::Tun;

/// Longest name of an interface: IFNAMSIZ less the terminator.
const NAME_BYTES: usize = 15;

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The name is not one.
    #[error("\"{0}\" is no interface name: up to 15 characters without \"/\" and spaces; choose another with --tun")]
    Name(String),
    /// An interface has the name.
    #[error("an interface named {0} exists already; choose another name with --tun")]
    Taken(String),
    /// The process may not.
    #[error("not permitted to create the TUN device {0}; run as root or with the capability CAP_NET_ADMIN")]
    NotPermitted(String),
    /// The kernel has no TUN devices.
    #[error("this system has no /dev/net/tun; load the kernel module with: modprobe tun")]
    Unsupported,
    /// Something else.
    #[error("cannot create the TUN device {name}: {source}")]
    Io {
        /// Which.
        name: String,
        /// Why.
        source: io::Error,
    },
}

/// A TUN device of the kernel. It is gone when this is dropped, or the process ends in whatever way.
pub struct LinuxTun {
    device: SyncDevice,
    name: String,
}

impl LinuxTun {
    /// Creates the device `name`, without packet information and without offloads. Addresses, MTU and the up flag are
    /// the business of [`host`](crate::host).
    ///
    /// # Errors
    /// When the name is taken, or the process may not.
    pub fn open(name: &str) -> Result<Self, OpenError> {
        let is_name = !name.is_empty()
            && name.len() <= NAME_BYTES
            && name != "."
            && name != ".."
            && !name.contains(|c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control());
        if !is_name {
            return Err(OpenError::Name(name.to_owned()));
        }
        // The kernel would attach us to a persistent device that somebody made; that is not ours.
        if exists(name) {
            return Err(OpenError::Taken(name.to_owned()));
        }
        let device = DeviceBuilder::new()
            .name(name)
            .enable(false)
            .build_sync()
            .and_then(|device| device.set_nonblocking(true).map(|()| device))
            .map_err(|source| match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => OpenError::NotPermitted(name.to_owned()),
                Some(libc::EBUSY | libc::EEXIST | libc::EINVAL) => OpenError::Taken(name.to_owned()),
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => OpenError::Unsupported,
                _ => OpenError::Io { name: name.to_owned(), source },
            })?;
        Ok(Self { device, name: name.to_owned() })
    }

    /// The name of the interface.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number of the interface.
    ///
    /// # Errors
    /// When the interface is gone.
    pub fn index(&self) -> io::Result<u32> {
        self.device.if_index()
    }
}

impl core::fmt::Debug for LinuxTun {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("LinuxTun").field("name", &self.name).finish_non_exhaustive()
    }
}

impl AsFd for LinuxTun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl Tun for LinuxTun {
    #[inline]
    fn recv(&self, room: &mut [u8]) -> io::Result<usize> {
        self.device.recv(room)
    }

    #[inline]
    fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.device.send(packet).map(drop)
    }
}

/// Whether this network namespace has an interface of the name. (The files below /sys may show another namespace's.)
#[expect(unsafe_code, reason = "std has no if_nametoindex")]
fn exists(name: &str) -> bool {
    let Ok(name) = CString::new(name) else { return false };
    // SAFETY: `name` is a string that ends in a zero byte and lives for the call.
    unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_none_are_refused_before_the_kernel_is_asked() {
        for name in ["", "a/b", "with space", "0123456789abcdef", "..", "a:b"] {
            assert!(matches!(LinuxTun::open(name), Err(OpenError::Name(_))), "{name}");
        }
    }

    #[test]
    fn an_interface_of_the_name_is_not_taken_over() {
        let error = LinuxTun::open("lo").unwrap_err();
        assert!(matches!(error, OpenError::Taken(_)), "{error}");
    }
}
