//! S6: no data is sent to an address that did not answer; and what is sent to find one, for N3.
//!
//! The check opens disco packets with the keys of those who receive them. An address has answered when a pong came back
//! to a ping that was sent to it, whatever the pong's own source is. Whom data is for shows in its receiver index, which
//! its owner told in a handshake, and whom a handshake is begun with in its first MAC, whose key is made of theirs.

use core::net::SocketAddr;
use std::collections::{BTreeMap, BTreeSet};

use mesh_core::{
    disco::{Disco, Message, TxId},
    key::{DiscoPublic, NodePublic},
    time::Instant,
    wireguard::{Kind, identity::MacKeys},
};

use crate::{host::HostId, net::PacketKind};

use super::{CheckId, Tally};

/// Watches what becomes of pings, and where data goes.
#[derive(Debug)]
pub struct PathCheck {
    keys: Vec<Disco>,
    by_key: BTreeMap<DiscoPublic, HostId>,
    /// Where disco packets were sent to, by number of the packet.
    disco: BTreeMap<u64, SocketAddr>,
    /// Where pings went that arrived.
    pings: BTreeMap<(HostId, TxId), SocketAddr>,
    /// Who got a pong of whom to a ping to where.
    answered: BTreeSet<(HostId, HostId, SocketAddr)>,
    /// Whose receiver indices are whose.
    owners: BTreeMap<u32, HostId>,
    /// What the first MACs of messages to each host are made with, for each key that it has or had.
    macs: Vec<(MacKeys, HostId)>,
    /// When each host sent disco datagrams, and where to.
    probes: Vec<Vec<(Instant, SocketAddr)>>,
}

impl PathCheck {
    /// Watches nodes with these keys, by number.
    #[must_use]
    pub fn new(keys: Vec<Disco>) -> Self {
        let by_key = keys.iter().zip(0..).map(|(key, number)| (key.public(), HostId(number))).collect();
        let probes = keys.iter().map(|_| Vec::new()).collect();
        Self {
            keys,
            by_key,
            disco: BTreeMap::new(),
            pings: BTreeMap::new(),
            answered: BTreeSet::new(),
            owners: BTreeMap::new(),
            macs: Vec::new(),
            probes,
        }
    }

    /// A host has this key from now on.
    pub fn note_key(&mut self, key: &NodePublic, of: HostId) {
        self.macs.push((MacKeys::new(key), of));
    }

    /// A host starts: it has heard of nobody.
    pub fn handle_start(&mut self, host: HostId) {
        self.answered.retain(|(owner, ..)| *owner != host);
    }

    /// A host sends a datagram.
    pub fn handle_sent(
        &mut self,
        host: HostId,
        (number, kind): (u64, PacketKind),
        to: SocketAddr,
        payload: &[u8],
        now: Instant,
        tally: &mut Tally,
    ) {
        match kind {
            PacketKind::Disco => {
                self.disco.insert(number, to);
                if let Some(probes) = self.probes.get_mut(host.index()) {
                    probes.push((now, to));
                }
            }
            PacketKind::WireguardHandshake => self.note_index(host, payload),
            PacketKind::WireguardData => {
                let Some(Kind::Transport { receiver }) = Kind::of(payload) else { return };
                let Some(peer) = self.owners.get(&receiver) else { return };
                let is_fine = self.answered.contains(&(host, *peer, to));
                let text = (!is_fine)
                    .then(|| format!("host {} sent data for host {} to {to}, which has not answered", host.0, peer.0));
                tally.note(CheckId::S6, now, text);
            }
            PacketKind::Stun | PacketKind::Stream | PacketKind::Other => {}
        }
    }

    /// A host gives a packet to its connection to a relay.
    pub fn handle_relayed(&mut self, host: HostId, payload: &[u8]) {
        self.note_index(host, payload);
    }

    /// A host receives a datagram.
    pub fn handle_received(&mut self, host: HostId, origin: HostId, number: u64, payload: &[u8]) {
        let Some(to) = self.disco.get(&number).copied() else { return };
        let Some(Ok((sender, message))) = self.keys.get_mut(host.index()).map(|key| key.open(payload)) else { return };
        match message {
            Message::Ping(ping) => {
                self.pings.insert((origin, ping.tx), to);
            }
            Message::Pong(pong) => {
                let peer = self.by_key.get(&sender).copied();
                let pinged = self.pings.get(&(host, pong.tx)).copied();
                self.answered.extend(peer.zip(pinged).map(|(peer, pinged)| (host, peer, pinged)));
            }
            Message::CallMeMaybe(_) | Message::PeerRelay(_) => {}
        }
    }

    /// Whom a packet of the tunnel is for, as its receiver index says, or its first MAC.
    #[must_use]
    pub fn owner(&self, payload: &[u8]) -> Option<HostId> {
        match Kind::of(payload)? {
            Kind::Transport { receiver } | Kind::Response { receiver, .. } | Kind::CookieReply { receiver, .. } => {
                self.owners.get(&receiver).copied()
            }
            Kind::Initiation => self.macs.iter().find(|(keys, _)| keys.has_mac1(payload)).map(|(_, host)| *host),
        }
    }

    /// When each host sent disco datagrams, and where to.
    #[must_use]
    pub fn probes(&self) -> &[Vec<(Instant, SocketAddr)>] {
        &self.probes
    }

    /// Initiations and responses tell the index of who sends them.
    fn note_index(&mut self, host: HostId, payload: &[u8]) {
        if let Some(Kind::Initiation | Kind::Response { .. }) = Kind::of(payload)
            && let Some(index) = payload.get(4..8).and_then(|bytes| bytes.first_chunk())
        {
            self.owners.insert(u32::from_le_bytes(*index), host);
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::{
        disco::{Ping, Pong},
        key::{DiscoPrivate, NodePrivate},
        rng::Seed,
        wireguard::message::INITIATION_BYTES,
    };

    use super::*;
    use crate::check::GoneCheck;

    const A: HostId = HostId(0);
    const B: HostId = HostId(1);

    #[test]
    fn data_may_go_where_a_ping_was_answered_and_nowhere_else() {
        let (here, there) = ("192.0.2.1:1".parse().unwrap(), "192.0.2.2:1".parse().unwrap());
        assert_eq!(data_to(here, &[Step::Ping(here), Step::Pong]), None);
        assert_eq!(data_to(there, &[Step::Ping(here), Step::Pong]), Some(CheckId::S6));
        assert_eq!(data_to(here, &[Step::Ping(here)]), Some(CheckId::S6));
        assert_eq!(data_to(here, &[Step::Ping(here), Step::Pong, Step::Restart]), Some(CheckId::S6));
        assert_eq!(data_to(here, &[]), Some(CheckId::S6));
    }

    #[test]
    fn a_handshake_that_is_begun_with_somebody_who_is_gone_is_seen() {
        let key = |number| NodePrivate::from_bytes([number; 32]).public();
        let mut check = PathCheck::new(Vec::new());
        for (number, host) in [(1, A), (2, B), (3, B)] {
            check.note_key(&key(number), host);
        }
        let mut gone = GoneCheck::default();
        gone.note_known(A, [B].into(), Instant::ZERO);
        gone.note_known(A, BTreeSet::new(), Instant::from_secs(10));
        let with = |number| {
            let mut initiation = vec![0; INITIATION_BYTES];
            initiation[0] = 1;
            let mac1 = MacKeys::new(&key(number)).mac1(&initiation[..116]);
            initiation[116..132].copy_from_slice(&mac1);
            let mut tally = Tally::default();
            if let Some(other) = check.owner(&initiation) {
                gone.handle_sent(A, other, Instant::from_secs(15), &mut tally);
            }
            tally.violation().map(|violation| violation.id)
        };
        assert_eq!((with(2), with(3)), (Some(CheckId::S7), Some(CheckId::S7)), "the one that it had, too");
        assert_eq!((with(1), with(4)), (None, None));
    }

    enum Step {
        Ping(SocketAddr),
        Pong,
        Restart,
    }

    /// A pings B or not, B answers or not, and then A sends data for B to `to`.
    #[allow(clippy::unwrap_in_result, reason = "a test")]
    fn data_to(to: SocketAddr, steps: &[Step]) -> Option<CheckId> {
        let disco = |number: u8| {
            Disco::new(DiscoPrivate::from_bytes([number; 32]), Seed::from_number(1).stream("t", number.into()))
        };
        let (mut a, mut b) = (disco(1), disco(2));
        let mut check = PathCheck::new(vec![disco(1), disco(2)]);
        let (mut tally, now) = (Tally::default(), Instant::ZERO);
        let from: SocketAddr = "192.0.2.9:9".parse().unwrap();
        let tx = TxId([7; 12]);
        for step in steps {
            match step {
                Step::Ping(to) => {
                    let ping = a.seal(b.public(), &Message::Ping(Ping { tx, node: None, padding_bytes: 0 })).unwrap();
                    check.handle_sent(A, (1, PacketKind::Disco), *to, &ping, now, &mut tally);
                    check.handle_received(B, A, 1, &ping);
                }
                Step::Pong => {
                    let pong = b.seal(a.public(), &Message::Pong(Pong { tx, observed: from })).unwrap();
                    check.handle_sent(B, (2, PacketKind::Disco), from, &pong, now, &mut tally);
                    check.handle_received(A, B, 2, &pong);
                }
                Step::Restart => check.handle_start(A),
            }
        }
        let mut response = vec![0; 92];
        response[..8].copy_from_slice(&[2, 0, 0, 0, 5, 0, 0, 0]);
        check.handle_relayed(B, &response);
        let mut data = vec![0; 48];
        data[..8].copy_from_slice(&[4, 0, 0, 0, 5, 0, 0, 0]);
        check.handle_sent(A, (3, PacketKind::WireguardData), to, &data, now, &mut tally);
        assert_eq!(tally.checked(CheckId::S6), 1);
        tally.violation().map(|violation| violation.id)
    }
}
