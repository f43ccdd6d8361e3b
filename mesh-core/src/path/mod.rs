//! Where datagrams go.
//!
//! A [`PathAddr`] is one concrete way to send to a peer; a [`SendPath`] is what the fast path uses for a
//! peer now. With static peers there is one kind of path, UDP, and it is where the peer's last
//! authenticated packet came from.

use core::{fmt, net::SocketAddr};

/// One concrete way to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathAddr {
    /// A UDP datagram to this address.
    Udp(SocketAddr),
}

impl PathAddr {
    /// The bytes that stand for the sender in a cookie: IP address and port (WireGuard paper §5.4.7).
    #[must_use]
    pub fn cookie_bytes(&self) -> [u8; 18] {
        let mut bytes = [0; 18];
        match self {
            Self::Udp(SocketAddr::V4(v4)) => bytes[..4].copy_from_slice(&v4.ip().octets()),
            Self::Udp(SocketAddr::V6(v6)) => bytes[..16].copy_from_slice(&v6.ip().octets()),
        }
        let Self::Udp(address) = self;
        bytes[16..].copy_from_slice(&address.port().to_be_bytes());
        bytes
    }
}

impl fmt::Display for PathAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(address) => address.fmt(f),
        }
    }
}

/// The way in use for a peer now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendPath {
    /// Where datagrams go.
    pub to: PathAddr,
}

impl SendPath {
    /// A path over UDP.
    #[must_use]
    pub const fn udp(to: SocketAddr) -> Self {
        Self { to: PathAddr::Udp(to) }
    }
}
