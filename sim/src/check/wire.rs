//! S2, S3, S4, S5 and S8: what must not be seen on a wire, what must not be seen twice, and what must not go in circles.
//!
//! The checks know the layout of WireGuard's messages and nothing of the node's inside. A session shows on the
//! wire as its receiver index; within one boot of the receiving host an index is not used again.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::collections::{BTreeMap, BTreeSet};

use mesh_core::{time::Instant, wireguard::Kind};

use crate::{
    host::{HostId, message::Marker},
    net::Proto,
};

use super::{CheckId, Tally};

/// The hop limit that applications send with.
const INNER_TTL: u8 = 64;

/// Watches the wires.
#[derive(Debug)]
pub struct WireCheck {
    marker: Marker,
    /// Overlay addresses in use.
    overlay: BTreeSet<[u8; 4]>,
    /// Which of them each host has or had: packets that it sealed may be on their way.
    held: BTreeSet<(HostId, [u8; 4])>,
    /// What each host sent, by receiver index.
    sent: Vec<BTreeMap<u32, Counters>>,
    /// Ephemeral keys that were sent.
    ephemerals: BTreeSet<[u8; 32]>,
    /// What each host delivered, by its boot and receiver index.
    delivered: Vec<BTreeMap<(u64, u32), Counters>>,
}

impl WireCheck {
    /// Watches so many hosts, some of which have these overlay addresses.
    #[must_use]
    pub fn new(marker: Marker, overlay: impl IntoIterator<Item = (HostId, Ipv4Addr)>, hosts: usize) -> Self {
        let held: BTreeSet<_> = overlay.into_iter().map(|(host, address)| (host, address.octets())).collect();
        Self {
            marker,
            overlay: held.iter().map(|(_, address)| *address).collect(),
            held,
            sent: (0..hosts).map(|_| BTreeMap::new()).collect(),
            ephemerals: BTreeSet::new(),
            delivered: (0..hosts).map(|_| BTreeMap::new()).collect(),
        }
    }

    /// A host has this overlay address from now on.
    pub fn note_overlay(&mut self, host: HostId, address: Ipv4Addr) {
        self.overlay.insert(address.octets());
        self.held.insert((host, address.octets()));
    }

    /// A host delivered an inner packet from `source` that `sealer` had sealed.
    pub fn handle_source(
        &mut self,
        host: HostId,
        sealer: HostId,
        source: Option<IpAddr>,
        now: Instant,
        tally: &mut Tally,
    ) {
        let is_own = matches!(source, Some(IpAddr::V4(source)) if self.held.contains(&(sealer, source.octets())));
        let (host, sealer) = (host.0, sealer.0);
        let forged =
            (!is_own).then(|| format!("host {host} delivered a packet from {source:?} that host {sealer} sealed"));
        tally.note(CheckId::S3, now, forged);
    }

    /// A host sends a packet.
    pub fn handle_sent(&mut self, host: HostId, proto: Proto, payload: &[u8], now: Instant, tally: &mut Tally) {
        self.check_clear(host, payload, now, tally);
        if proto == Proto::Udp {
            self.check_fresh(host, payload, now, tally);
        }
    }

    /// A host gives a packet to its connection to a relay; a copy is of what it sends directly as well.
    pub fn handle_relayed(&mut self, host: HostId, payload: &[u8], is_copy: bool, now: Instant, tally: &mut Tally) {
        self.check_clear(host, payload, now, tally);
        if !is_copy {
            self.check_fresh(host, payload, now, tally);
        }
    }

    /// A host sends a packet there: not into a tunnel of the mesh.
    pub fn handle_way(&self, host: HostId, to: SocketAddr, now: Instant, tally: &mut Tally) {
        let is_inside = matches!(to.ip(), IpAddr::V4(to) if self.overlay.contains(&to.octets()));
        let text = is_inside.then(|| format!("host {} sends to the overlay address {to}", host.0));
        tally.note(CheckId::S8, now, text);
    }

    /// A host delivered a message of an application: it went through one tunnel and no router.
    pub fn handle_inner(&self, host: HostId, packet: &[u8], now: Instant, tally: &mut Tally) {
        let hops = packet.get(8).copied().unwrap_or(0);
        let text = (hops != INNER_TTL)
            .then(|| format!("host {} delivered a packet with a hop limit of {hops}, sent with {INNER_TTL}", host.0));
        tally.note(CheckId::S8, now, text);
    }

    fn check_clear(&self, host: HostId, payload: &[u8], now: Instant, tally: &mut Tally) {
        let leak = if self.marker.is_in(payload) {
            Some("payload of an application")
        } else if self.has_inner_addresses(payload) {
            Some("the addresses of an inner packet")
        } else {
            None
        };
        let leak = leak.map(|what| format!("host {} sent {what} in the clear", host.0));
        tally.note(CheckId::S2, now, leak);
    }

    fn check_fresh(&mut self, host: HostId, payload: &[u8], now: Instant, tally: &mut Tally) {
        let used_again = match Kind::of(payload) {
            Some(Kind::Transport { receiver }) => {
                let counter = counter_of(payload);
                let fresh = self.sent[host.index()].entry(receiver).or_default().insert(counter);
                (!fresh).then(|| format!("host {} sent counter {counter} to receiver {receiver:08x} twice", host.0))
            }
            Some(Kind::Initiation) => self.ephemeral(host, payload, 8),
            Some(Kind::Response { .. }) => self.ephemeral(host, payload, 12),
            Some(Kind::CookieReply { .. }) | None => return,
        };
        tally.note(CheckId::S5, now, used_again);
    }

    /// A host, in its `boot`th boot, delivered the inner packet of a datagram whose first bytes were `head`.
    pub fn handle_delivered(&mut self, host: HostId, boot: u64, head: [u8; 16], now: Instant, tally: &mut Tally) {
        let [_, _, _, _, r0, r1, r2, r3, ..] = head;
        let receiver = u32::from_le_bytes([r0, r1, r2, r3]);
        let counter = counter_of(&head);
        let fresh = self.delivered[host.index()].entry((boot, receiver)).or_default().insert(counter);
        let twice =
            (!fresh).then(|| format!("host {} delivered counter {counter} of session {receiver:08x} twice", host.0));
        tally.note(CheckId::S4, now, twice);
    }

    fn ephemeral(&mut self, host: HostId, payload: &[u8], at: usize) -> Option<String> {
        let key = payload.get(at..)?.first_chunk::<32>()?;
        let fresh = self.ephemerals.insert(*key);
        // WireGuard makes a new message for every attempt, so none is ever sent twice.
        (!fresh).then(|| format!("host {} sent an ephemeral key twice", host.0))
    }

    /// Source and destination of an inner IPv4 packet, next to each other.
    fn has_inner_addresses(&self, payload: &[u8]) -> bool {
        // Overlay addresses are in 100.64.0.0/10 and given out from its start; most datagrams do not have the
        // first two bytes anywhere, and that is found out many bytes at a time.
        let candidates = payload.iter().zip(payload.iter().skip(1));
        if candidates.fold(0, |found, (a, b)| found | (u8::from(*a == 100) & u8::from(*b == 64))) == 0 {
            return false;
        }
        payload.windows(8).any(|window| {
            let (source, destination) = window.split_at(4);
            source != destination && self.overlay.contains(source) && self.overlay.contains(destination)
        })
    }
}

/// Numbers that were used, most of them one after the other.
#[derive(Debug, Default)]
struct Counters {
    /// The block of 64 that was used last, and its bits.
    block: u64,
    bits: u64,
    others: BTreeMap<u64, u64>,
}

impl Counters {
    /// Whether `counter` was not used before.
    fn insert(&mut self, counter: u64) -> bool {
        let block = counter / 64;
        if block != self.block {
            self.others.insert(self.block, self.bits);
            self.bits = self.others.remove(&block).unwrap_or(0);
            self.block = block;
        }
        let bit = 1 << (counter % 64);
        let fresh = self.bits & bit == 0;
        self.bits |= bit;
        fresh
    }
}

fn counter_of(payload: &[u8]) -> u64 {
    payload.get(8..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        host::message::{Carrier, Message, Role},
        kernel::dice::Dice,
    };

    const A: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
    const B: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);

    #[test]
    fn plaintext_and_inner_addresses_are_seen() {
        let message =
            Message { flow: 0, sequence: 0, role: Role::Question, carrier: Carrier::Udp, bytes: 64, answer_bytes: 64 };
        let packet = message.packet(A, B, marker());
        assert_eq!(
            check(|wire, tally| wire.handle_sent(HostId(0), Proto::Udp, &packet, Instant::ZERO, tally)),
            [CheckId::S2]
        );
        let header = &packet[..24];
        assert_eq!(
            check(|wire, tally| wire.handle_sent(HostId(0), Proto::Tcp, header, Instant::ZERO, tally)),
            [CheckId::S2]
        );
        let noise = &Dice::new(2).stream("noise", 0).bytes::<1400>();
        assert_eq!(check(|wire, tally| wire.handle_sent(HostId(0), Proto::Udp, noise, Instant::ZERO, tally)), []);
    }

    #[test]
    fn a_counter_sent_twice_is_seen_and_two_sessions_are_not_confused() {
        let send = |datagrams: &[(u32, u64)]| {
            check(|wire, tally| {
                for (receiver, counter) in datagrams {
                    wire.handle_sent(HostId(0), Proto::Udp, &transport(*receiver, *counter), Instant::ZERO, tally);
                }
            })
        };
        assert_eq!(send(&[(1, 0), (1, 1), (1, 64), (1, 2), (2, 0), (2, 1)]), []);
        assert_eq!(send(&[(1, 0), (1, 100), (1, 0)]), [CheckId::S5]);
    }

    #[test]
    fn an_ephemeral_key_sent_twice_is_seen() {
        let mut initiation = vec![7; 148];
        initiation[..4].copy_from_slice(&[1, 0, 0, 0]);
        let found = check(|wire, tally| {
            wire.handle_sent(HostId(0), Proto::Udp, &initiation, Instant::ZERO, tally);
            wire.handle_sent(HostId(1), Proto::Udp, &initiation, Instant::ZERO, tally);
        });
        assert_eq!(found, [CheckId::S5]);
    }

    #[test]
    fn a_packet_delivered_twice_is_seen_within_a_boot() {
        let head = *transport(1, 5).first_chunk().unwrap();
        let deliver = |boots: [u64; 2]| {
            check(|wire, tally| {
                for boot in boots {
                    wire.handle_delivered(HostId(1), boot, head, Instant::ZERO, tally);
                }
            })
        };
        assert_eq!(deliver([1, 1]), [CheckId::S4]);
        assert_eq!(deliver([1, 2]), []);
    }

    #[test]
    fn a_source_that_its_sealer_never_had_is_seen() {
        let from = |source: Ipv4Addr| {
            check(|wire, tally| wire.handle_source(HostId(1), HostId(0), Some(source.into()), Instant::ZERO, tally))
        };
        assert_eq!((from(A), from(B)), (vec![], vec![CheckId::S3]));
    }

    #[test]
    fn what_goes_into_a_tunnel_of_its_own_or_through_a_router_is_seen() {
        let sent = |to: &str| {
            let to = to.parse().unwrap();
            check(|wire, tally| wire.handle_way(HostId(0), to, Instant::ZERO, tally))
        };
        assert_eq!((sent("100.64.0.2:41641"), sent("100.96.0.2:41641")), (vec![CheckId::S8], vec![]));
        let delivered = |hops| {
            let mut packet = [0; 28];
            packet[8] = hops;
            check(|wire, tally| wire.handle_inner(HostId(0), &packet, Instant::ZERO, tally))
        };
        assert_eq!((delivered(63), delivered(64)), (vec![CheckId::S8], vec![]));
    }

    fn check(act: impl FnOnce(&mut WireCheck, &mut Tally)) -> Vec<CheckId> {
        let mut tally = Tally::default();
        act(&mut WireCheck::new(marker(), [(HostId(0), A), (HostId(1), B)], 2), &mut tally);
        tally.violation().map(|violation| violation.id).into_iter().collect()
    }

    fn marker() -> Marker {
        Marker::new(&mut Dice::new(1).stream("marker", 0))
    }

    fn transport(receiver: u32, counter: u64) -> Vec<u8> {
        let mut datagram = vec![4, 0, 0, 0];
        datagram.extend(receiver.to_le_bytes());
        datagram.extend(counter.to_le_bytes());
        datagram.extend([0; 16]);
        datagram
    }
}
