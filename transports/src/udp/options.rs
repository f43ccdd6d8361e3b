//! Options of the underlay sockets, each for a reason of its own.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use socket2::SockRef;
use tracing::debug;

/// Mark of everything that must not go into the tunnel: the bypass rules of [`host`](crate::host) match it.
/// The value of stock clients; only bits 16 to 23 are used.
pub const BYPASS_MARK: u32 = 0x80000;

/// Asked for; the kernel gives as much as its `rmem_max` and `wmem_max` allow. 4 MiB is 30 ms at 1 Gbit/s.
const BUFFER_BYTES: usize = 4 << 20;

/// Sets what every socket has, before it is bound.
pub(super) fn before_bind(socket: &socket2::Socket, is_v6: bool) -> io::Result<()> {
    if is_v6 {
        // The other socket has the same port for IPv4.
        socket.set_only_v6(true)?;
    }
    // Less room, and own packets in the tunnel, are worse but not fatal.
    for result in [socket.set_recv_buffer_size(BUFFER_BYTES), socket.set_send_buffer_size(BUFFER_BYTES)] {
        if let Err(error) = result {
            debug!(%error, "socket buffer kept its size");
        }
    }
    if let Err(error) = socket.set_mark(BYPASS_MARK) {
        debug!(%error, "socket is not marked");
    }
    Ok(())
}

/// Takes back what `quinn-udp` asked for and WireGuard does not want.
///
/// QUIC finds the path's MTU and forbids fragments; WireGuard, like its stock implementations, lets routers fragment
/// its datagrams where a link is smaller than the tunnel's MTU plus headers. Stamps of the kernel are not used.
pub(super) fn after_quinn(socket: &impl AsFd, is_v6: bool) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    if is_v6 {
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)?;
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0)?;
    } else {
        set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)?;
    }
    if let Err(error) = set_option(fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 0) {
        debug!(%error, "receive stamps stay on");
    }
    Ok(())
}

/// Sets how many routers datagrams may pass; `None` for what the host says.
///
/// An option of the socket rather than of the message, because `quinn-udp` writes the messages: set before a send and
/// taken back after it.
pub(super) fn set_ttl(socket: &impl AsFd, is_v6: bool, ttl: Option<u8>) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    // -1: what the host says.
    let ttl = ttl.map_or(-1, libc::c_int::from);
    if is_v6 {
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, ttl)
    } else {
        set_option(fd, libc::IPPROTO_IP, libc::IP_TTL, ttl)
    }
}

/// What the socket says about fragments: for tests and the log.
pub(super) fn mtu_discovery(socket: &impl AsFd, is_v6: bool) -> io::Result<libc::c_int> {
    let fd = socket.as_fd().as_raw_fd();
    if is_v6 {
        get_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
    } else {
        get_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
    }
}

/// The buffers that the kernel gave, in bytes: receive, send.
pub(super) fn buffer_bytes(socket: &impl AsFd) -> io::Result<(usize, usize)> {
    let socket = SockRef::from(socket);
    Ok((socket.recv_buffer_size()?, socket.send_buffer_size()?))
}

#[expect(unsafe_code, reason = "socket2 has no IP_MTU_DISCOVER, and no way back from a TTL")]
fn set_option(fd: libc::c_int, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` is an int to read from, and `size` is its size.
    let result = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[expect(unsafe_code, reason = "socket2 has no IP_MTU_DISCOVER")]
fn get_option(fd: libc::c_int, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` is an int to write to, and `size` is its size.
    let result = unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}
