//! What the operating system should look like. States what should be, not what to change: the driver compares
//! with what is.

use core::net::IpAddr;

use crate::ip::prefix::Prefix;

/// How the TUN device and the routes to it should look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostConfig {
    /// MTU of the TUN in bytes.
    pub mtu_bytes: usize,
    /// Addresses on the TUN, with prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Destinations to be routed to the TUN, sorted. Default routes may be among them.
    pub routes: Vec<Prefix>,
}

/// Which UDP sockets should be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketPlan {
    /// The port, for both families; 0 lets the host choose one.
    pub port: u16,
}
