//! The UDP underlay: one port on both address families.
//!
//! [`UdpSockets`] has a socket a family, bound to the same port. A host with one family is served by it; with none
//! there is nothing to do. Sends go out as trains (UDP_SEGMENT), receives come in as trains (UDP_GRO); a path that
//! refuses trains gets single datagrams from then on.

mod options;
mod socket;

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    task::{Context, Poll},
};

use tracing::{debug, warn};

use crate::batch::{RecvBatch, SendBatch, Train, canonical};

use socket::FamilySocket;

pub use options::BYPASS_MARK;

/// How often a port is chosen anew when the one that the host chose for one family is taken on the other.
const CHOICES: usize = 16;

/// An address family of the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Why there are no sockets.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program has the port.
    #[error("UDP port {0} is in use by another program; choose another with --port or ListenPort")]
    InUse(u16),
    /// Neither family.
    #[error("this host has neither IPv4 nor IPv6, and a mesh needs one of them")]
    NoFamily,
    /// Something else.
    #[error("cannot open UDP port {port}: {source}")]
    Io {
        /// Which.
        port: u16,
        /// Why.
        source: io::Error,
    },
}

/// What was sent. Counted per process start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendCounts {
    /// System calls that sent something.
    pub sends: u64,
    /// Datagrams sent.
    pub datagrams: u64,
    /// Times a path refused a train, and got single datagrams from then on.
    pub fallbacks: u64,
    /// Datagrams lost because no route led to their destination.
    pub unreachable: u64,
    /// Datagrams lost to other errors of the path, or to a full socket buffer.
    pub failed: u64,
}

/// Destinations that wait to be reported. At the bound newer ones are not: the node asks each path again anyway.
const FAILURES: usize = 64;

/// What became of sends.
#[derive(Debug, Default)]
struct Outcome {
    counts: SendCounts,
    /// Where the host refused to send to, each once, in order.
    refused: VecDeque<SocketAddr>,
}

impl Outcome {
    /// Datagrams to `to` were lost.
    fn fail(&mut self, error: &io::Error, to: SocketAddr, datagrams: u64) {
        match error.raw_os_error() {
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EADDRNOTAVAIL) => self.counts.unreachable += datagrams,
            _ => self.counts.failed += datagrams,
        }
        if is_refusal(error) && self.refused.len() < FAILURES && !self.refused.contains(&to) {
            self.refused.push_back(to);
        }
    }
}

/// Whether the host will not send to the destination, for want of a route or of permission. Not when a buffer is full,
/// a datagram too large, or a program at the other end missing: that says nothing about the way.
fn is_refusal(error: &io::Error) -> bool {
    let codes = [
        libc::ENETUNREACH,
        libc::EHOSTUNREACH,
        libc::ENETDOWN,
        libc::EADDRNOTAVAIL,
        libc::EAFNOSUPPORT,
        libc::EPERM,
        libc::EACCES,
        libc::EINVAL,
    ];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// One port on both families.
#[derive(Debug)]
pub struct UdpSockets {
    v4: Option<FamilySocket>,
    v6: Option<FamilySocket>,
    outcome: Outcome,
}

impl UdpSockets {
    /// Binds `port` on each family that the host has; 0 lets the host choose one. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    /// When the port is taken, or the host has no family at all.
    pub fn bind(port: u16) -> Result<Self, BindError> {
        let [v4, v6] = bind_both(port, FamilySocket::bind, FamilySocket::port)?;
        Ok(Self { v4, v6, outcome: Outcome::default() })
    }

    /// The port, on both families.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.v4.as_ref().or(self.v6.as_ref()).map_or(0, FamilySocket::port)
    }

    /// Which families there are.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        let v4 = self.v4.as_ref().map(|_| Family::V4);
        v4.into_iter().chain(self.v6.as_ref().map(|_| Family::V6))
    }

    /// What was sent.
    #[must_use]
    pub fn counts(&self) -> &SendCounts {
        &self.outcome.counts
    }

    /// The next destination that the host refused to send to: it has no route there, or forbids it. Each is said once
    /// between two calls that say none.
    pub fn take_refused(&mut self) -> Option<SocketAddr> {
        self.outcome.refused.pop_front()
    }

    /// Whether one of the sockets has something, without looking twice: see [`Self::recv`].
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_any(|socket| socket.poll_readable(cx))
    }

    /// Whether the socket of the next train takes something.
    pub fn poll_writable(&self, batch: &SendBatch, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = batch.front().and_then(|(train, _)| match train.to {
            SocketAddr::V4(_) => self.v4.as_ref(),
            SocketAddr::V6(_) => self.v6.as_ref(),
        });
        socket.map_or(Poll::Ready(Ok(())), |socket| socket.poll_writable(cx))
    }

    /// Receives once from the socket of `family`; returns how many messages came.
    ///
    /// # Errors
    /// When the socket reports an error. It stays usable.
    pub fn recv(&mut self, family: Family, batch: &mut RecvBatch) -> io::Result<usize> {
        match self.socket(family) {
            Some(socket) => socket.recv(batch),
            None => {
                batch.clear();
                Ok(0)
            }
        }
    }

    /// Sends all of `batch`; returns false, with the rest still in it, when a socket's buffer is full.
    pub fn send(&mut self, batch: &mut SendBatch) -> bool {
        while let Some((train, bytes)) = batch.front() {
            if self.send_train(&train, bytes).is_err() {
                return false;
            }
            batch.pop();
        }
        true
    }

    /// Sends one datagram; it is lost when the socket's buffer is full. With `ttl` it passes so many routers at most.
    pub fn send_datagram(&mut self, to: SocketAddr, ttl: Option<u8>, datagram: &[u8]) {
        let train = Train::single(canonical(to), datagram.len());
        let family = if train.to.is_ipv4() { Family::V4 } else { Family::V6 };
        let limited = ttl.map_or(Ok(()), |ttl| self.limit(family, Some(ttl)));
        let sent = limited.and_then(|()| self.send_train(&train, datagram));
        if ttl.is_some()
            && let Err(error) = self.limit(family, None)
        {
            warn!(%error, "socket keeps a datagram's TTL");
        }
        if let Err(error) = sent {
            self.outcome.fail(&error, train.to, 1);
        }
    }

    /// Sets how many routers the next datagrams may pass; `None` for what the host says.
    fn limit(&mut self, family: Family, ttl: Option<u8>) -> io::Result<()> {
        self.socket(family).map_or(Ok(()), |socket| socket.set_ttl(ttl))
    }

    fn send_train(&mut self, train: &Train, bytes: &[u8]) -> io::Result<()> {
        let mut train = *train;
        train.to = canonical(train.to);
        let Self { v4, v6, outcome } = self;
        match if train.to.is_ipv4() { v4 } else { v6 } {
            Some(socket) => socket.send(&train, bytes, outcome),
            None => {
                outcome.fail(&io::Error::from_raw_os_error(libc::ENETUNREACH), train.to, train.segments as u64);
                Ok(())
            }
        }
    }

    fn socket(&mut self, family: Family) -> Option<&mut FamilySocket> {
        match family {
            Family::V4 => self.v4.as_mut(),
            Family::V6 => self.v6.as_mut(),
        }
    }

    fn poll_any(&self, mut poll: impl FnMut(&FamilySocket) -> Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        // Both are polled, so that both know whom to wake.
        let polls = [&self.v4, &self.v6].map(|socket| socket.as_ref().map_or(Poll::Pending, &mut poll));
        polls.into_iter().find(Poll::is_ready).unwrap_or(Poll::Pending)
    }
}

/// Binds a socket a family to one port. Apart from sockets, so that hosts with any mix of families can be tried.
fn bind_both<S>(
    port: u16,
    bind: impl Fn(Family, u16) -> io::Result<S>,
    port_of: impl Fn(&S) -> u16,
) -> Result<[Option<S>; 2], BindError> {
    let mut last = None;
    for _ in 0..CHOICES {
        let mut bound = [None, None];
        let mut chosen = port;
        let mut clash = false;
        for (slot, family) in bound.iter_mut().zip([Family::V4, Family::V6]) {
            match bind(family, chosen) {
                Ok(socket) => {
                    chosen = port_of(&socket);
                    *slot = Some(socket);
                }
                Err(error) if is_missing(&error) => debug!(?family, %error, "host lacks an address family"),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    clash = true;
                    last = Some(BindError::InUse(chosen));
                    break;
                }
                Err(source) => return Err(BindError::Io { port: chosen, source }),
            }
        }
        if !clash {
            return if bound.iter().all(Option::is_none) { Err(BindError::NoFamily) } else { Ok(bound) };
        }
        if port != 0 {
            break;
        }
    }
    Err(last.unwrap_or(BindError::InUse(port)))
}

/// Whether the host lacks the family: not compiled in, or switched off.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT))
}

#[cfg(test)]
mod tests {
    use core::{future::poll_fn, time::Duration};
    use std::cell::Cell;

    use mesh_core::{dataplane::TransmitSink, path::SendPath};

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn trains_arrive_as_the_datagrams_they_were() {
        let mut sender = UdpSockets::bind(0).unwrap();
        let mut receiver = UdpSockets::bind(0).unwrap();
        for (family, host) in [(Family::V4, "127.0.0.1"), (Family::V6, "[::1]")] {
            if !receiver.families().any(|f| f == family) {
                continue;
            }
            let to: SocketAddr = format!("{host}:{}", receiver.port()).parse().unwrap();
            let mut batch = SendBatch::new();
            for index in 0..50_u8 {
                let len = if index == 49 { 40 } else { 1000 };
                let kept = batch.datagram(&SendPath::udp(to), len, |room| {
                    room.fill(index);
                    true
                });
                assert!(kept);
            }
            assert!(sender.send(&mut batch));
            let mut got = Vec::new();
            let mut received = RecvBatch::new();
            while got.len() < 50 {
                tokio::time::timeout(Duration::from_secs(5), poll_fn(|cx| receiver.poll_readable(cx)))
                    .await
                    .unwrap()
                    .unwrap();
                receiver.recv(family, &mut received).unwrap();
                for (from, datagram) in received.datagrams() {
                    assert_eq!(from.port(), sender.port());
                    got.push((datagram.len(), datagram[0]));
                }
                // Nothing is waiting: says so, and does not report the same messages again.
                assert_eq!(receiver.recv(family, &mut received).unwrap(), 0);
                assert_eq!(received.datagrams().count(), 0);
            }
            let expected: Vec<_> = (0..50).map(|index| (if index == 49 { 40 } else { 1000 }, index)).collect();
            assert_eq!(got, expected);
        }
        assert_eq!(sender.counts().failed, 0);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_port_in_use_is_named() {
        let first = UdpSockets::bind(0).unwrap();
        let error = UdpSockets::bind(first.port()).unwrap_err();
        assert!(matches!(error, BindError::InUse(port) if port == first.port()), "{error}");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn destinations_that_the_host_refuses_are_said_once() {
        let mut sockets = UdpSockets::bind(0).unwrap();
        // Broadcasts want a permission of their own.
        let refused: [SocketAddr; 2] = [9, 10].map(|port| ([255; 4], port).into());
        for to in [refused[0], refused[1], refused[0]] {
            sockets.send_datagram(to, None, b"x");
        }
        let mut batch = SendBatch::new();
        assert!(batch.datagram(&SendPath::udp(refused[1]), 1, |_| true));
        assert!(sockets.send(&mut batch));
        // A closed port is no refusal of the host.
        sockets.send_datagram("127.0.0.1:1".parse().unwrap(), None, b"x");
        sockets.send_datagram("127.0.0.1:1".parse().unwrap(), None, b"x");
        let said: Vec<_> = core::iter::from_fn(|| sockets.take_refused()).collect();
        assert_eq!(said, refused);
        sockets.send_datagram(refused[0], None, b"x");
        assert_eq!(sockets.take_refused(), Some(refused[0]));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_host_without_a_family_says_so_for_its_destinations() {
        let mut sockets = UdpSockets { v6: None, ..UdpSockets::bind(0).unwrap() };
        assert_eq!(sockets.families().collect::<Vec<_>>(), [Family::V4]);
        let to = "[2001:db8::1]:9".parse().unwrap();
        sockets.send_datagram(to, Some(3), b"x");
        assert_eq!((sockets.take_refused(), sockets.counts().unreachable), (Some(to), 1));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_ttl_is_of_one_datagram() {
        let mut sockets = UdpSockets::bind(0).unwrap();
        let receiver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let to = receiver.local_addr().unwrap();
        // Sees headers; only root may.
        let raw = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, Some(socket2::Protocol::UDP)).ok();
        for (ttl, expected) in [(Some(3), 3), (None, 64), (Some(255), 255), (Some(0), 0), (None, 64)] {
            sockets.send_datagram(to, ttl, &[expected]);
            assert_eq!(sockets.socket(Family::V4).unwrap().ttl().unwrap(), 64);
            if ttl == Some(0) {
                // There is no such thing, so nothing is sent.
                assert_eq!((sockets.take_refused(), sockets.counts().failed), (Some(to), 1));
                continue;
            }
            assert_eq!(receiver.recv(&mut [0; 9]).unwrap(), 1);
            let mut packet = [0; 99];
            // Others may send over the loopback too: ours has our ports and one byte.
            while let Some(mut raw) = raw.as_ref() {
                let length = io::Read::read(&mut raw, &mut packet).unwrap();
                let ports = [sockets.port().to_be_bytes(), to.port().to_be_bytes()].concat();
                if length == 29 && packet[20..24] == ports {
                    assert_eq!(packet[8], expected);
                    break;
                }
            }
        }
        let Some(v6) = sockets.socket(Family::V6) else { return };
        v6.set_ttl(Some(7)).unwrap();
        assert_eq!(v6.ttl().unwrap(), 7);
        v6.set_ttl(None).unwrap();
        assert_eq!(v6.ttl().unwrap(), 64);
    }

    #[test]
    fn one_family_is_enough_and_none_is_too_few() {
        let host = |families: &'static [Family]| {
            move |family, port| {
                if families.contains(&family) {
                    Ok(port)
                } else {
                    Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
                }
            }
        };
        let bind = |families| bind_both(7, host(families), |port| *port);
        assert_eq!(bind(&[Family::V4, Family::V6]).unwrap(), [Some(7), Some(7)]);
        assert_eq!(bind(&[Family::V4]).unwrap(), [Some(7), None]);
        assert_eq!(bind(&[Family::V6]).unwrap(), [None, Some(7)]);
        assert!(matches!(bind(&[]), Err(BindError::NoFamily)));
    }

    #[test]
    fn a_chosen_port_that_is_taken_on_the_other_family_is_chosen_anew() {
        let next = Cell::new(100);
        let bind = |family, port: u16| match (family, port) {
            (Family::V4, 0) => {
                next.set(next.get() + 1);
                Ok(next.get())
            }
            (Family::V6, 101) => Err(io::ErrorKind::AddrInUse.into()),
            (_, port) => Ok(port),
        };
        assert_eq!(bind_both(0, bind, |port| *port).unwrap(), [Some(102), Some(102)]);
    }
}
