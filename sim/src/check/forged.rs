//! S10: nobody is made to send more to a stranger than the stranger's own address seemed to send.
//!
//! In worlds where somebody replays what a host received, from the address of a victim that never sent anything, the host
//! may be fooled into an answer. No single answer is larger than what it answers (but for what STUN makes it), and all that goes to the victim is at
//! most three times what came in its name (the bound of QUIC for addresses that have not answered, RFC 9000 §8).

use core::net::{IpAddr, SocketAddr};
use std::collections::{BTreeMap, VecDeque};

use mesh_core::time::Instant;

use crate::{
    host::HostId,
    net::{HEADER_BYTES, Packet, PacketKind, Proto},
};

use super::{CheckId, Tally};

/// Datagrams that an attacker remembers of each host.
const REMEMBERED: usize = 24;

/// What may go to a victim, by what came in its name.
const FACTOR: u64 = 3;

/// By how much a STUN answer that names an IPv6 address is larger than the requests of stock clients, which have 40 bytes.
const STUN_MORE: u64 = 4;

/// Remembers what hosts received, and watches what goes to victims.
#[derive(Debug, Default)]
pub(crate) struct ForgedCheck {
    /// By host: the last datagrams that it received.
    received: BTreeMap<HostId, VecDeque<Packet>>,
    /// Bytes in a victim's name to a host, and from the host to the victim.
    accounts: BTreeMap<(HostId, IpAddr), Account>,
    /// The forged datagram that is being handled: in whose name, and its bytes.
    handled: Option<(SocketAddr, u64)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    forged: u64,
    sent: u64,
}

impl ForgedCheck {
    /// A host receives a datagram.
    pub(crate) fn handle_received(&mut self, host: HostId, packet: &Packet) {
        if packet.proto == Proto::Udp {
            let received = self.received.entry(host).or_default();
            if received.len() == REMEMBERED {
                received.pop_front();
            }
            received.push_back(packet.clone());
        }
    }

    /// What a host received last, the oldest first, as if it came from `victim`.
    pub(crate) fn forge(&self, host: HostId, victim: SocketAddr) -> Vec<Packet> {
        let of_family = |packet: &&Packet| packet.destination.is_ipv4() == victim.is_ipv4();
        let received = self.received.get(&host).into_iter().flatten().filter(of_family);
        received.map(|packet| Packet { source: victim, ..packet.clone() }).collect()
    }

    /// A host is about to handle a forged datagram.
    pub(crate) fn handle_forged(&mut self, host: HostId, packet: &Packet) {
        let bytes = bytes_of(packet.payload.len());
        self.accounts.entry((host, packet.source.ip())).or_default().forged += bytes;
        self.handled = Some((packet.source, bytes));
    }

    /// It has handled it.
    pub(crate) fn note_handled(&mut self, tally: &mut Tally) {
        self.handled = None;
        tally.note_held(CheckId::S10);
    }

    /// A host sends a datagram.
    pub(crate) fn handle_sent(
        &mut self,
        host: HostId,
        to: SocketAddr,
        payload: &[u8],
        now: Instant,
        tally: &mut Tally,
    ) {
        let Some(account) = self.accounts.get_mut(&(host, to.ip())) else { return };
        let bytes = bytes_of(payload.len());
        account.sent += bytes;
        let more = if PacketKind::of(Proto::Udp, payload) == PacketKind::Stun { STUN_MORE } else { 0 };
        let answered = self.handled.filter(|(victim, _)| *victim == to).map(|(_, bytes)| bytes + more);
        let text = if account.sent > FACTOR * account.forged {
            Some(format!("host {} sent {} bytes to {to} for {}", host.0, account.sent, account.forged))
        } else {
            let larger = answered.filter(|answered| bytes > *answered);
            larger.map(|answered| format!("host {} answered {answered} bytes of {to} with {bytes}", host.0))
        };
        tally.note(CheckId::S10, now, text);
    }
}

/// Bytes on the wire of a datagram.
fn bytes_of(payload: usize) -> u64 {
    (payload + HEADER_BYTES) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::trace::digest_of;

    const HOST: HostId = HostId(0);

    #[test]
    fn an_answer_that_is_larger_than_its_question_is_seen() {
        assert_eq!(answered(&[100]), (2, 0));
        assert_eq!(answered(&[101]), (2, 1));
    }

    #[test]
    fn many_answers_to_one_question_are_seen() {
        assert_eq!(answered(&[100, 100, 100]), (4, 0));
        assert_eq!(answered(&[100, 100, 100, 1]), (5, 1));
    }

    #[test]
    fn what_goes_to_those_who_sent_something_themselves_is_not_looked_at() {
        let (mut check, mut tally) = (ForgedCheck::default(), Tally::default());
        check.handle_received(HOST, &packet(100, "192.0.2.1:5"));
        check.handle_sent(HOST, "192.0.2.1:5".parse().unwrap(), &[0; 1000], Instant::ZERO, &mut tally);
        assert_eq!(tally.checked(CheckId::S10), 0);
    }

    #[test]
    fn the_last_datagrams_are_remembered() {
        let mut check = ForgedCheck::default();
        for bytes in 0..REMEMBERED + 3 {
            check.handle_received(HOST, &packet(bytes, "192.0.2.1:5"));
        }
        let forged = check.forge(HOST, victim());
        assert!(forged.iter().all(|packet| packet.source == victim()));
        assert_eq!(forged.iter().map(|packet| packet.payload.len()).collect::<Vec<_>>(), (3..27).collect::<Vec<_>>());
        assert!(check.forge(HostId(1), victim()).is_empty());
    }

    /// A host that answers a forged datagram of 100 bytes with these: looked at, and wrong.
    fn answered(answers: &[usize]) -> (u64, u64) {
        let (mut check, mut tally) = (ForgedCheck::default(), Tally::default());
        check.handle_forged(HOST, &packet(100, "203.0.113.1:9"));
        for bytes in answers {
            check.handle_sent(HOST, victim(), &vec![0; *bytes], Instant::ZERO, &mut tally);
        }
        check.note_handled(&mut tally);
        (tally.checked(CheckId::S10), tally.violations())
    }

    fn victim() -> SocketAddr {
        "203.0.113.1:9".parse().unwrap()
    }

    fn packet(bytes: usize, source: &str) -> Packet {
        let payload = vec![0; bytes];
        Packet {
            number: 0,
            origin: HostId(1),
            proto: Proto::Udp,
            source: source.parse().unwrap(),
            destination: "198.19.0.1:1".parse().unwrap(),
            ttl: 64,
            digest: digest_of(&payload),
            payload,
        }
    }
}
