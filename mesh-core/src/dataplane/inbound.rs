//! Datagrams → IP packets.

use core::net::IpAddr;
use std::sync::Arc;

use crate::{
    disco,
    filter::{Filter, Headers, Refusal},
    ip::{
        icmp::{Echo, EchoKind},
        packet::{IpPacket, protocol},
    },
    path::{PathAddr, SendPath},
    stun,
    time::Instant,
    wireguard::{Kind, OpenError, timers::Edge},
};

use super::{Addressing, DropReason, Fib, Notice, PeerId, Punt, ReceiveSession, Reports};

/// What became of a datagram.
#[derive(Debug, PartialEq, Eq)]
pub enum Inbound<'p> {
    /// An IP packet for the host, without padding.
    Deliver {
        /// Who sent it.
        peer: PeerId,
        /// The packet.
        packet: &'p mut [u8],
    },
    /// A keepalive, or punted.
    Consumed,
    /// Ended here; also reported.
    Drop(DropReason),
}

impl Fib {
    /// Begins a run of datagrams that were received at `now`.
    #[must_use]
    pub fn inbound(&self, now: Instant) -> InboundRun<'_> {
        InboundRun { fib: self, now, current: None, has_strayed: false }
    }
}

/// Opens datagrams one by one. Neighbours on one session share one lookup; their counters are written when the
/// session changes or the run is dropped.
#[derive(Debug)]
pub struct InboundRun<'f> {
    fib: &'f Fib,
    now: Instant,
    current: Option<SessionRun>,
    /// A datagram of this run was for no session, and the node has been told.
    has_strayed: bool,
}

/// Neighbouring datagrams on one session.
#[derive(Debug)]
struct SessionRun {
    session: Arc<ReceiveSession>,
    send_path: Option<SendPath>,
    /// An inner source address that was found to be the peer's.
    allowed: Option<IpAddr>,
    /// Headers that the filter admitted: neighbours mostly are of one flow.
    admitted: Option<Headers>,
    noted: Noted,
    packets: u64,
    bytes: u64,
}

/// What has been written to the activity stamps in this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Noted {
    Nothing,
    Received,
    DataReceived,
}

impl InboundRun<'_> {
    /// Opens one datagram in place.
    #[inline]
    pub fn handle<'p>(&mut self, datagram: &'p mut [u8], source: PathAddr, reports: &mut impl Reports) -> Inbound<'p> {
        let result = match Kind::of(datagram) {
            Some(Kind::Transport { receiver }) => self.transport(receiver, datagram, source, reports),
            Some(Kind::Initiation) => self.handshake(datagram, source, reports),
            // What costs a stranger nothing must cost us little: answers are taken to what we sent alone.
            Some(Kind::Response { receiver } | Kind::CookieReply { receiver })
                if !self.fib.receivers.is_known(receiver) =>
            {
                Err(DropReason::UnexpectedResponse)
            }
            Some(Kind::Response { .. }) => self.handshake(datagram, source, reports),
            Some(Kind::CookieReply { .. }) => {
                reports.punt(Punt::Handshake { source, datagram: datagram.to_vec() });
                Ok(Inbound::Consumed)
            }
            None => self.other(datagram, source, reports),
        };
        result.unwrap_or_else(|reason| {
            reports.dropped(reason);
            Inbound::Drop(reason)
        })
    }

    /// What is no WireGuard message.
    fn other<'p>(
        &self,
        datagram: &[u8],
        source: PathAddr,
        reports: &mut impl Reports,
    ) -> Result<Inbound<'p>, DropReason> {
        if let Some(sender) = disco::sender(datagram) {
            if !self.fib.disco_keys.is_known(&sender) {
                return Err(DropReason::UnknownDiscoKey);
            }
            reports.punt(Punt::Disco { source, datagram: datagram.to_vec() });
            return Ok(Inbound::Consumed);
        }
        match source {
            PathAddr::Udp(source) if stun::is_binding(datagram) => {
                reports.punt(Punt::Stun { source, datagram: datagram.to_vec() });
                Ok(Inbound::Consumed)
            }
            PathAddr::Udp(_) | PathAddr::Relay { .. } => Err(DropReason::NotWireguard),
        }
    }

    fn handshake<'p>(
        &self,
        datagram: &[u8],
        source: PathAddr,
        reports: &mut impl Reports,
    ) -> Result<Inbound<'p>, DropReason> {
        // Only who knows our public key gets further.
        if !self.fib.identity.has_mac1(datagram) {
            return Err(DropReason::WrongMac1);
        }
        reports.punt(Punt::Handshake { source, datagram: datagram.to_vec() });
        Ok(Inbound::Consumed)
    }

    #[inline]
    fn transport<'p>(
        &mut self,
        receiver: u32,
        datagram: &'p mut [u8],
        source: PathAddr,
        reports: &mut impl Reports,
    ) -> Result<Inbound<'p>, DropReason> {
        let bytes = datagram.len() as u64;
        let run = match &mut self.current {
            Some(run) if run.session.index == receiver => run,
            current => {
                let Some(session) = self.fib.receivers.get(receiver) else {
                    // Once a run: strangers can send many of these.
                    if !core::mem::replace(&mut self.has_strayed, true) {
                        reports.punt(Punt::Stray { source });
                    }
                    return Err(DropReason::UnknownSession);
                };
                current.insert(SessionRun::new(session))
            }
        };
        let packet = run.session.opener.open(datagram, self.now).map_err(|error| match error {
            OpenError::Short => DropReason::NotWireguard,
            OpenError::Expired => DropReason::ExpiredSession,
            OpenError::Forged => DropReason::Forged,
            OpenError::Replayed => DropReason::Replayed,
        })?;
        // Authenticated and new: from here on it counts, whatever is inside.
        run.packets += 1;
        run.bytes += bytes;
        run.note(!packet.is_empty(), source, self.now, reports);
        if packet.is_empty() {
            return Ok(Inbound::Consumed);
        }

        let inner = IpPacket::parse(packet).map_err(|_| DropReason::MalformedInner)?;
        let peer = run.session.adjacency.peer();
        if run.allowed != Some(inner.source()) {
            let owner = self.fib.routes.lookup(inner.source());
            if owner.is_none_or(|owner| owner.peer() != peer) {
                return Err(DropReason::SourceNotAllowed);
            }
            run.allowed = Some(inner.source());
        }
        if inner.protocol() == protocol::TSMP {
            // Never for the host, and no filter speaks of it.
            reports.punt(Punt::Tsmp { peer, packet: inner.bytes().to_vec() });
            return Ok(Inbound::Consumed);
        }
        if let Some(filter) = &self.fib.filter {
            run.admit(filter, &inner, self.now)?;
        }
        if matches!(inner.protocol(), protocol::ICMP | protocol::ICMPV6)
            && Echo::parse(&inner).is_some_and(|e| e.kind == EchoKind::Reply && e.id == self.fib.local.ping_id)
        {
            reports.punt(Punt::EchoReply { peer, packet: inner.bytes().to_vec() });
            return Ok(Inbound::Consumed);
        }
        let length = inner.bytes().len();
        Ok(Inbound::Deliver { peer, packet: &mut packet[..length] })
    }
}

impl SessionRun {
    fn new(session: Arc<ReceiveSession>) -> Self {
        let send_path = session.adjacency.tx().path;
        Self { session, send_path, allowed: None, admitted: None, noted: Noted::Nothing, packets: 0, bytes: 0 }
    }

    #[inline]
    fn admit(&mut self, filter: &Filter, packet: &IpPacket<'_>, now: Instant) -> Result<(), Refusal> {
        let headers = Headers::of(packet)?;
        if self.admitted != Some(headers) {
            filter.admit(&headers, self.session.adjacency.flows(), now)?;
            self.admitted = Some(headers);
        }
        Ok(())
    }

    #[inline]
    fn note(&mut self, has_data: bool, source: PathAddr, now: Instant, reports: &mut impl Reports) {
        let activity = self.session.adjacency.activity();
        let mut report = |edge| {
            reports.notice(Notice { peer: self.session.adjacency.peer(), edge, source: Some(source) });
        };
        // The session first: whoever hears of data on it may want to answer on it.
        if self.session.opener.confirm() && activity.raise(Edge::Confirmed) {
            report(Edge::Confirmed);
        }
        let note = if has_data { Noted::DataReceived } else { Noted::Received };
        if note > self.noted {
            self.noted = note;
            if !has_data {
                activity.note_received(now);
            } else if activity.note_data_received(now) {
                report(Edge::DataReceived);
            }
            if self.session.opener.wants_rekey(now) && activity.raise(Edge::Rekey) {
                report(Edge::Rekey);
            }
        }
        let is_elsewhere = || self.send_path.is_none_or(|path| path.to != source);
        if self.session.adjacency.addressing() == Addressing::Roaming && is_elsewhere() && activity.raise(Edge::Moved) {
            report(Edge::Moved);
        }
    }
}

impl Drop for SessionRun {
    fn drop(&mut self) {
        if self.packets > 0 {
            self.session.adjacency.counters().add_received(self.packets, self.bytes);
        }
    }
}
