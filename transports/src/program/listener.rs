//! The sockets of a server, and what to say when it cannot have them.

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{Exit, Failure};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;

/// A listener that has its port to itself.
///
/// # Errors
/// When the address is in use, or may not be used.
pub fn tcp(address: SocketAddr) -> Result<TcpListener, Failure> {
    bind(address, |_| Ok(()))
}

/// A listener that shares its port with others of this process.
///
/// # Errors
/// As [`tcp`].
pub fn shared_tcp(address: SocketAddr) -> Result<TcpListener, Failure> {
    bind(address, |socket| socket.set_reuse_port(true))
}

fn bind(address: SocketAddr, prepare: impl Fn(&Socket) -> io::Result<()>) -> Result<TcpListener, Failure> {
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        prepare(&socket)?;
        take_both_families(&socket, address)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(TcpListener::from(socket))
    };
    bind().map_err(|error| in_use(address, &error))
}

/// A socket for datagrams.
///
/// # Errors
/// As [`tcp`].
pub fn udp(address: SocketAddr) -> Result<UdpSocket, Failure> {
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        take_both_families(&socket, address)?;
        socket.bind(&address.into())?;
        Ok(UdpSocket::from(socket))
    };
    bind().map_err(|error| in_use(address, &error))
}

/// `[::]` is every address, whatever the host's sysctl says.
fn take_both_families(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    if address.is_ipv6() && address.ip().is_unspecified() { socket.set_only_v6(false) } else { Ok(()) }
}

/// The address cannot be listened on.
#[must_use]
pub fn in_use(address: SocketAddr, error: &io::Error) -> Failure {
    let exit = if error.kind() == io::ErrorKind::PermissionDenied { Exit::NotPermitted } else { Exit::Refused };
    Failure::new(exit, "cannot-listen", format!("cannot listen on {address}: {error}"))
        .hint("give another address, or end what listens there")
}
