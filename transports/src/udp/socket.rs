//! One socket of one family: batched receive and send over `quinn-udp`.

use std::{
    collections::HashSet,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    task::{Context, Poll},
};

use quinn_udp::{Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tracing::debug;

use crate::{
    batch::{RECV_MESSAGES, RecvBatch, SEGMENTS, Train},
    watched::{Watched, watch},
};

use super::{Family, Outcome, options};

/// Paths that are remembered to take single datagrams only. At the bound all are forgotten, and each costs one
/// refused send more.
const PLAIN_PATHS: usize = 1024;

/// One bound socket.
#[derive(Debug)]
pub(super) struct FamilySocket {
    fd: Watched<UdpSocket>,
    state: UdpSocketState,
    port: u16,
    is_v6: bool,
    /// Paths that refused a train.
    plain: HashSet<SocketAddr>,
}

impl FamilySocket {
    /// Binds a socket to `port` on all addresses of `family`.
    pub(super) fn bind(family: Family, port: u16) -> io::Result<Self> {
        let is_v6 = family == Family::V6;
        let (domain, address) = match family {
            Family::V4 => (Domain::IPV4, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))),
            Family::V6 => (Domain::IPV6, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))),
        };
        let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        options::before_bind(&socket, is_v6)?;
        socket.bind(&address.into())?;
        let socket = UdpSocket::from(socket);
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        options::after_quinn(&socket, is_v6)?;
        let port = socket.local_addr()?.port();
        debug!(
            port,
            is_v6,
            mtu_discovery = options::mtu_discovery(&socket, is_v6).ok(),
            buffers = ?options::buffer_bytes(&socket).ok(),
            gso_segments = state.max_gso_segments(),
            gro_segments = state.gro_segments(),
            "socket bound"
        );
        let fd = watch(socket, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { fd, state, port, is_v6, plain: HashSet::new() })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Sets how many routers the next datagrams may pass; `None` for what the host says.
    pub(super) fn set_ttl(&self, ttl: Option<u8>) -> io::Result<()> {
        options::set_ttl(&self.fd.get_ref().0, self.is_v6, ttl)
    }

    #[cfg(test)]
    pub(super) fn ttl(&self) -> io::Result<u32> {
        let socket = socket2::SockRef::from(&self.fd.get_ref().0);
        if self.is_v6 { socket.unicast_hops_v6() } else { socket.ttl_v4() }
    }

    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.fd.poll_read_ready(cx).map_ok(|mut ready| ready.retain_ready())
    }

    pub(super) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.fd.poll_write_ready(cx).map_ok(|mut ready| ready.retain_ready())
    }

    /// Receives once; no messages when there are none.
    ///
    /// Costs no system call while nothing has arrived since the queue was last seen empty.
    pub(super) fn recv(&self, batch: &mut RecvBatch) -> io::Result<usize> {
        batch.clear();
        let mut messages = Ok(0);
        let done = self.fd.try_io(Interest::READABLE, |socket| {
            messages = batch.fill_with(|room, meta| self.state.recv(UdpSockRef::from(&socket.0), room, meta));
            match &messages {
                // A full batch: there may be more. A short one ended because the queue was empty, so it is not worth
                // another call to hear that again; whatever comes later is a new edge.
                Ok(RECV_MESSAGES) => Ok(()),
                Ok(_) => Err(io::ErrorKind::WouldBlock.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::WouldBlock.into()),
                Err(_) => Ok(()),
            }
        });
        match (done, messages) {
            (_, Err(error)) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            (_, Ok(messages)) => Ok(messages),
            (_, Err(_)) => Ok(0),
        }
    }

    /// Sends one train, with one system call where the path allows it.
    ///
    /// # Errors
    /// `WouldBlock` when the socket's buffer is full and nothing was sent. Other errors are of the path; they are
    /// counted, and the train is lost as datagrams are.
    pub(super) fn send(&mut self, train: &Train, bytes: &[u8], outcome: &mut Outcome) -> io::Result<()> {
        let as_train =
            train.segments > 1 && self.state.max_gso_segments() >= SEGMENTS && !self.plain.contains(&train.to);
        if as_train {
            match self.send_once(train.to, bytes, Some(train.segment_bytes)) {
                Ok(()) => {
                    outcome.counts.sends += 1;
                    outcome.counts.datagrams += train.segments as u64;
                    return Ok(());
                }
                Err(error) if refuses_trains(&error) => {
                    debug!(%error, to = %train.to, "path takes single datagrams only");
                    if self.plain.len() >= PLAIN_PATHS {
                        self.plain.clear();
                    }
                    self.plain.insert(train.to);
                    outcome.counts.fallbacks += 1;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(error) => {
                    outcome.fail(&error, train.to, train.segments as u64);
                    return Ok(());
                }
            }
        }
        for (index, datagram) in bytes.chunks(train.segment_bytes).enumerate() {
            match self.send_once(train.to, datagram, None) {
                Ok(()) => {
                    outcome.counts.sends += 1;
                    outcome.counts.datagrams += 1;
                }
                // Nothing is out yet: the caller may come again. Later, the rest is lost rather than sent twice.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && index == 0 => return Err(error),
                Err(error) => outcome.fail(&error, train.to, 1),
            }
        }
        Ok(())
    }

    fn send_once(&self, to: SocketAddr, contents: &[u8], segment_size: Option<usize>) -> io::Result<()> {
        let transmit = Transmit { destination: to, ecn: None, contents, segment_size, src_ip: None };
        let result = self.state.try_send(UdpSockRef::from(&self.fd.get_ref().0), &transmit);
        if let Err(error) = &result
            && error.kind() == io::ErrorKind::WouldBlock
        {
            // Tells the reactor that the next edge is wanted.
            let _ = self.fd.try_io(Interest::WRITABLE, |_| Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        }
        result
    }
}

/// Whether a train was refused for being one: no checksum offload (EIO), a segment larger than the path's MTU
/// (EMSGSIZE, on older kernels EINVAL).
fn refuses_trains(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EMSGSIZE | libc::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn fragments_are_allowed_on_both_families() {
        for family in [Family::V4, Family::V6] {
            let Ok(socket) = FamilySocket::bind(family, 0) else { continue };
            let is_v6 = family == Family::V6;
            let expected = if is_v6 { libc::IPV6_PMTUDISC_DONT } else { libc::IP_PMTUDISC_DONT };
            assert_eq!(options::mtu_discovery(&socket.fd.get_ref().0, is_v6).unwrap(), expected);
        }
    }

    #[test]
    fn errors_of_the_path_are_told_from_refused_trains() {
        assert!(refuses_trains(&io::Error::from_raw_os_error(libc::EIO)));
        assert!(refuses_trains(&io::Error::from_raw_os_error(libc::EMSGSIZE)));
        assert!(!refuses_trains(&io::Error::from_raw_os_error(libc::ENETUNREACH)));
    }
}
