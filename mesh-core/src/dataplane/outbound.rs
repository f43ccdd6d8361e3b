//! IP packets → sealed datagrams.

use core::net::IpAddr;
use std::sync::Arc;

use crate::{
    filter::{Filter, Headers, Refusal},
    ip::packet::IpPacket,
    limits,
    time::Instant,
    wireguard::{Sealer, timers::Edge},
};

use super::{Addressing, Adjacency, DropReason, Fib, Notice, Punt, Reports, TransmitSink, TxState};

impl Fib {
    /// Seals `packets` into `sink`, in order. What needs a decision is punted.
    ///
    /// Packets to one peer come in runs: what is needed to send is loaded once a run, and stamps and counters are
    /// written once a run.
    pub fn outbound<'p>(
        &self,
        packets: impl IntoIterator<Item = &'p [u8]>,
        now: Instant,
        sink: &mut impl TransmitSink,
        reports: &mut impl Reports,
    ) {
        let mut run: Option<OutboundRun<'_>> = None;
        for packet in packets {
            let Ok(packet) = IpPacket::parse(packet) else {
                reports.dropped(DropReason::MalformedPacket);
                continue;
            };
            if packet.bytes().len() > limits::PACKET_BYTES {
                reports.dropped(DropReason::TooLarge);
                continue;
            }
            let current = match run.take() {
                Some(run) if run.destination == packet.destination() => run,
                before => {
                    let Some(adjacency) = self.routes.lookup(packet.destination()) else {
                        reports.dropped(DropReason::NoRoute);
                        run = before;
                        continue;
                    };
                    match before {
                        Some(run) if run.adjacency.peer() == adjacency.peer() => {
                            OutboundRun { destination: packet.destination(), ..run }
                        }
                        before => {
                            if let Some(before) = before {
                                before.finish(now, reports);
                            }
                            OutboundRun::new(adjacency, packet.destination())
                        }
                    }
                }
            };
            run = Some(current);
            if let Some(run) = &mut run {
                if let Some(filter) = &self.filter
                    && let Err(refusal) = run.release(filter, &packet, now)
                {
                    reports.dropped(refusal.into());
                    continue;
                }
                run.send(packet.bytes(), self.local.mtu_bytes, now, sink, reports);
            }
        }
        if let Some(run) = run {
            run.finish(now, reports);
        }
    }
}

/// Neighbouring packets to one peer.
struct OutboundRun<'f> {
    destination: IpAddr,
    adjacency: &'f Arc<Adjacency>,
    tx: Arc<TxState>,
    /// Headers that the filter released: neighbours mostly are of one flow.
    released: Option<Headers>,
    packets: u64,
    bytes: u64,
}

impl<'f> OutboundRun<'f> {
    fn new(adjacency: &'f Arc<Adjacency>, destination: IpAddr) -> Self {
        Self { destination, adjacency, tx: adjacency.tx(), released: None, packets: 0, bytes: 0 }
    }

    #[inline]
    fn release(&mut self, filter: &Filter, packet: &IpPacket<'_>, now: Instant) -> Result<(), Refusal> {
        let headers = Headers::of(packet)?;
        if self.released != Some(headers) {
            filter.release(&headers, self.adjacency.flows(), now)?;
            self.released = Some(headers);
        }
        Ok(())
    }

    #[inline]
    fn send(
        &mut self,
        packet: &[u8],
        mtu_bytes: usize,
        now: Instant,
        sink: &mut impl TransmitSink,
        reports: &mut impl Reports,
    ) {
        let Some(sealer) = self.tx.sealer.as_ref().filter(|sealer| !sealer.is_spent(now)) else {
            reports.punt(Punt::Unsent { peer: self.adjacency.peer(), packet: packet.to_vec() });
            return;
        };
        let Some(path) = &self.tx.path else {
            reports.dropped(DropReason::NoPath);
            return;
        };
        let len = Sealer::datagram_len(packet.len(), mtu_bytes);
        if !sink.datagram(path, len, |datagram| sealer.seal(packet, datagram)) {
            reports.dropped(DropReason::BatchFull);
            return;
        }
        self.packets += 1;
        self.bytes += len as u64;
    }

    fn finish(self, now: Instant, reports: &mut impl Reports) {
        if self.packets == 0 {
            return;
        }
        let activity = self.adjacency.activity();
        let notice = |edge| Notice { peer: self.adjacency.peer(), edge, source: None };
        self.adjacency.counters().add_sent(self.packets, self.bytes);
        if activity.note_data_sent(now) {
            reports.notice(notice(Edge::DataSent));
        }
        if self.adjacency.addressing() == Addressing::Discovered && activity.raise(Edge::Unanswered) {
            reports.notice(notice(Edge::Unanswered));
        }
        let wants_rekey = self.tx.sealer.as_ref().is_some_and(|sealer| sealer.wants_rekey(now));
        if wants_rekey && activity.raise(Edge::Rekey) {
            reports.notice(notice(Edge::Rekey));
        }
    }
}
