//! The node's own pings: ICMP echoes and TSMP pings inside the tunnel, and disco pings that show the path.

use core::{net::IpAddr, time::Duration};
use std::collections::BTreeMap;

use crate::{
    dataplane::PeerId,
    disco::TxId,
    ip::{
        icmp::{Echo, EchoKind},
        packet::IpPacket,
        tsmp::{PING_DATA, Tsmp},
    },
    limits,
    machine::Deadline,
    path::PathAddr,
    rng::Rng,
    time::Instant,
};

use super::{CommandId, Node, Output, PingKind, Reply};

/// Pings that wait for their answer.
#[derive(Debug)]
pub(super) struct Pings {
    rng: Rng,
    /// Our ICMP identifier: the fast path punts replies that carry it.
    pub(super) id: u16,
    next_sequence: u16,
    waiting: BTreeMap<u16, Waiting>,
    waiting_tsmp: BTreeMap<[u8; PING_DATA], Waiting>,
    waiting_disco: BTreeMap<TxId, WaitingDisco>,
}

/// Whom a disco ping asks, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WaitingDisco {
    pub(super) command: CommandId,
    pub(super) peer: PeerId,
    pub(super) address: IpAddr,
    pub(super) sent_at: Instant,
    pub(super) timeout: Duration,
}

#[derive(Debug)]
struct Waiting {
    command: CommandId,
    address: IpAddr,
    /// What an echo carries.
    cookie: [u8; 16],
    sent_at: Instant,
    timeout: Duration,
}

/// A ping that came to its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) command: CommandId,
    pub(super) address: IpAddr,
    /// From request to now.
    pub(super) elapsed: Duration,
}

impl Node {
    /// Answers whoever asked. The pong came back over `via`, or inside the tunnel, over whatever path there is.
    pub(super) fn reply_pong(&mut self, id: PeerId, ended: Ended, kind: PingKind, via: Option<PathAddr>) {
        let Some(peer) = self.peers.get(id) else { return };
        let Ended { command, address, elapsed: round_trip } = ended;
        let via = via.or(peer.path.map(|path| path.to));
        let pong = Reply::Pong { peer: peer.config.key, address, round_trip, kind, via };
        self.outbox.push_back(Output::Reply(command, Ok(pong)));
    }
}

impl Pings {
    pub(super) fn new(mut rng: Rng) -> Self {
        let id = rng.u32() as u16;
        Self {
            rng,
            id,
            next_sequence: 0,
            waiting: BTreeMap::new(),
            waiting_tsmp: BTreeMap::new(),
            waiting_disco: BTreeMap::new(),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= limits::PINGS
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.waiting_tsmp.len() + self.waiting_disco.len()
    }

    /// The name under which a disco ping waits for its pong.
    pub(super) fn start_disco(&mut self, waiting: WaitingDisco) -> TxId {
        let tx = TxId::random(&mut self.rng);
        self.waiting_disco.insert(tx, waiting);
        tx
    }

    /// The disco ping that a pong of one of `owners` answers, and which of them was asked.
    pub(super) fn finish_disco(&mut self, tx: TxId, owners: &[PeerId], now: Instant) -> Option<(PeerId, Ended)> {
        self.waiting_disco.get(&tx).filter(|waiting| owners.contains(&waiting.peer))?;
        self.waiting_disco.remove(&tx).map(|waiting| (waiting.peer, waiting.end(now)))
    }

    /// The echo request to send; `None` when the addresses are of two families.
    pub(super) fn start(
        &mut self,
        command: CommandId,
        source: IpAddr,
        address: IpAddr,
        timeout: Duration,
        now: Instant,
    ) -> Option<Vec<u8>> {
        let cookie = self.rng.bytes();
        let sequence = self.next_sequence;
        let packet =
            Echo { kind: EchoKind::Request, id: self.id, sequence, payload: &cookie }.packet(source, address)?;
        self.next_sequence = self.next_sequence.wrapping_add(1);
        self.waiting.insert(sequence, Waiting { command, address, cookie, sent_at: now, timeout });
        Some(packet)
    }

    /// The TSMP ping to send; `None` when the addresses are of two families.
    pub(super) fn start_tsmp(
        &mut self,
        command: CommandId,
        source: IpAddr,
        address: IpAddr,
        timeout: Duration,
        now: Instant,
    ) -> Option<Vec<u8>> {
        let data = self.rng.bytes();
        let packet = Tsmp::Ping { data }.packet(source, address)?;
        self.waiting_tsmp.insert(data, Waiting { command, address, cookie: [0; 16], sent_at: now, timeout });
        Some(packet)
    }

    /// The TSMP ping that a pong from `source` answers; `None` when there is none.
    pub(super) fn finish_tsmp(&mut self, data: [u8; PING_DATA], source: IpAddr, now: Instant) -> Option<Ended> {
        self.waiting_tsmp.get(&data).filter(|waiting| waiting.address == source)?;
        self.waiting_tsmp.remove(&data).map(|waiting| waiting.end(now))
    }

    /// The ping that an echo reply answers; `None` when it is somebody else's.
    pub(super) fn finish(&mut self, packet: &[u8], now: Instant) -> Option<Ended> {
        let packet = IpPacket::parse(packet).ok()?;
        let echo = Echo::parse(&packet)?;
        let waiting = self.waiting.get(&echo.sequence)?;
        if echo.payload != waiting.cookie || packet.source() != waiting.address {
            return None;
        }
        self.waiting.remove(&echo.sequence).map(|waiting| waiting.end(now))
    }

    /// A ping whose time is up.
    pub(super) fn pop_timed_out(&mut self, now: Instant) -> Option<Ended> {
        let disco = self.waiting_disco.iter().find(|(_, waiting)| waiting.deadline() <= now).map(|(tx, _)| *tx);
        if let Some(waiting) = disco.and_then(|tx| self.waiting_disco.remove(&tx)) {
            return Some(waiting.end(now));
        }
        let tsmp = self.waiting_tsmp.iter().find(|(_, waiting)| waiting.deadline() <= now).map(|(data, _)| *data);
        if let Some(waiting) = tsmp.and_then(|data| self.waiting_tsmp.remove(&data)) {
            return Some(waiting.end(now));
        }
        let sequence = *self.waiting.iter().find(|(_, waiting)| waiting.deadline() <= now)?.0;
        self.waiting.remove(&sequence).map(|waiting| waiting.end(now))
    }

    pub(super) fn poll_timeout(&self) -> Option<Deadline> {
        let disco = self.waiting_disco.values().map(WaitingDisco::deadline);
        let inside = self.waiting.values().chain(self.waiting_tsmp.values());
        let at = inside.map(Waiting::deadline).chain(disco).min()?;
        Some(Deadline::new(at, "ping"))
    }
}

impl WaitingDisco {
    fn deadline(&self) -> Instant {
        self.sent_at + self.timeout
    }

    fn end(self, now: Instant) -> Ended {
        Ended { command: self.command, address: self.address, elapsed: now.since(self.sent_at) }
    }
}

impl Waiting {
    fn deadline(&self) -> Instant {
        self.sent_at + self.timeout
    }

    fn end(self, now: Instant) -> Ended {
        Ended { command: self.command, address: self.address, elapsed: now.since(self.sent_at) }
    }
}
