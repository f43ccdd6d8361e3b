//! What waits for one client: notices, disco messages and packets, each in a small queue of its own, and how its
//! connection is.
//!
//! The newest is worth most, so a full queue drops its oldest: of the sender that has most in it, so that one who sends
//! too much loses his own and not those of others. Disco goes before packets: it is what finds a way around
//! the relay, and must get through while a transfer fills it. Packets are slices of the buffer they were read into;
//! nothing is copied until it is written, unless very much waits for all clients together.

use std::{collections::VecDeque, sync::Arc, task::Waker};

use bytes::Bytes;

use mesh_core::{
    derp::{Frame, PeerGoneReason, frame::HEADER_BYTES},
    disco,
    key::NodePublic,
    time::Instant,
};

use crate::{
    limits,
    stats::{DropReason, Kind, Mail, Stats},
};

/// A packet on its way.
#[derive(Clone, Debug)]
pub struct Letter {
    /// From whom: the key that the connection proved to hold.
    pub from: NodePublic,
    /// The packet.
    pub packet: Bytes,
    /// When it came.
    pub arrived: Instant,
}

impl Letter {
    /// What the packet looks like.
    #[must_use]
    pub fn kind(&self) -> Kind {
        kind_of(&self.packet)
    }
}

/// What a packet looks like: disco is known by its magic and its shortest length.
#[must_use]
pub fn kind_of(packet: &[u8]) -> Kind {
    // Magic, sender's key, nonce: derper asks for as much.
    const SHORTEST_DISCO: usize = 6 + 32 + 24;
    if packet.len() >= SHORTEST_DISCO && packet.starts_with(&disco::MAGIC) { Kind::Disco } else { Kind::Other }
}

/// The queues of one client. Empty ones take no memory.
#[derive(Debug, Default)]
pub struct Mailbox {
    notices: VecDeque<(NodePublic, PeerGoneReason)>,
    health: Option<Health>,
    disco: VecDeque<Letter>,
    packets: VecDeque<Letter>,
    /// Of `disco` and `packets`.
    share: Share,
    /// Somebody has been told that there is mail and has not emptied the box since.
    told: bool,
    waker: Option<Waker>,
}

/// What waits for one client, as a part of what waits for all; gives it back when dropped.
#[derive(Debug, Default)]
struct Share {
    of: Option<Arc<Mail>>,
    letters: u64,
    bytes: usize,
}

impl Share {
    fn add(&mut self, bytes: usize, of: &Arc<Mail>) {
        self.of.get_or_insert_with(|| Arc::clone(of)).add(bytes);
        self.letters += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, letters: u64, bytes: usize) {
        self.letters -= letters;
        self.bytes -= bytes;
        if let Some(of) = &self.of {
            of.remove(letters, bytes);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // Letters that were left here after the receiver had gone.
        if let Some(of) = &self.of {
            of.remove(self.letters, self.bytes);
        }
    }
}

/// How a client's connection is, when that is worth saying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Another node uses the same key, and each gets some of the packets for both.
    Cloned,
    /// Well again.
    Well,
}

impl Health {
    /// As the client shows it; empty when all is well.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Cloned => {
                "another node uses the same node key at this relay, so packets get lost: sign one of them in anew"
            }
            Self::Well => "",
        }
    }
}

/// Whether the mailbox's owner must be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// There was no mail before.
    Needed,
    /// It knows.
    Known,
}

impl Mailbox {
    /// Puts a letter in and drops what that leaves no room for.
    pub fn put(&mut self, mut letter: Letter, stats: &Stats) -> Wake {
        self.share.add(letter.packet.len(), &stats.mail);
        if stats.mail.letters() > limits::MAIL_BUFFERS {
            letter.packet = Bytes::copy_from_slice(&letter.packet);
        }
        let is_crowded = stats.mail.bytes() > limits::MAIL_BYTES_OF_ALL;
        let most = if is_crowded { limits::MAIL_SHARE } else { limits::MAIL_BYTES };
        let queue = match letter.kind() {
            Kind::Disco => &mut self.disco,
            Kind::Other => &mut self.packets,
        };
        queue.push_back(letter);
        if queue.len() > limits::MAIL_PACKETS
            && let Some(oldest) = take_of_busiest(queue)
        {
            self.drop_letter(&oldest, DropReason::QueueHead, stats);
        }
        while self.share.bytes > most {
            let queue = if self.packets.is_empty() { &mut self.disco } else { &mut self.packets };
            let Some(oldest) = take_of_busiest(queue) else { break };
            self.drop_letter(&oldest, DropReason::QueueHead, stats);
        }
        self.tell()
    }

    /// Puts in that a peer cannot be reached.
    pub fn put_notice(&mut self, peer: NodePublic, reason: PeerGoneReason, stats: &Stats) -> Wake {
        if self.notices.len() >= limits::MAIL_NOTICES {
            self.notices.pop_front();
            stats.notices_left_out.add_one();
        }
        self.notices.push_back((peer, reason));
        self.tell()
    }

    /// Puts in how the connection is; only the newest counts.
    pub fn put_health(&mut self, health: Health) -> Wake {
        self.health = Some(health);
        self.tell()
    }

    /// Appends frames to `out`: health, notices, disco, packets, as long as one write has room.
    pub fn take(&mut self, out: &mut Vec<u8>, now: Instant, stats: &Stats) {
        if let Some(health) = self.health.take() {
            Frame::Health(health.text().as_bytes()).encode(out);
        }
        while out.len() < limits::WRITE_BYTES
            && let Some((peer, reason)) = self.notices.pop_front()
        {
            Frame::PeerGone { peer, reason }.encode(out);
        }
        // What all share is told once a write.
        let (mut letters, mut bytes) = (0, 0);
        while let Some(next) = self.disco.front().or_else(|| self.packets.front()) {
            let expired = now.since(next.arrived) > limits::MAIL_AGE;
            let length = HEADER_BYTES + 32 + next.packet.len();
            if !expired && !out.is_empty() && out.len() + length > limits::WRITE_BYTES {
                break;
            }
            let Some(letter) = self.disco.pop_front().or_else(|| self.packets.pop_front()) else { break };
            if expired {
                self.drop_letter(&letter, DropReason::Expired, stats);
                continue;
            }
            (letters, bytes) = (letters + 1, bytes + letter.packet.len());
            stats.packets_sent.add_one();
            stats.bytes_sent.add(letter.packet.len());
            Frame::RecvPacket { from: letter.from, packet: &letter.packet }.encode(out);
        }
        if letters > 0 {
            self.share.remove(letters, bytes);
        }
        if self.is_empty() {
            // A client that sends little should not hold room for a burst it once got.
            *self = Self { waker: self.waker.take(), ..Self::default() };
        }
    }

    /// Drops everything because its receiver left.
    pub fn clear(&mut self, stats: &Stats) {
        let left = self.disco.drain(..).chain(self.packets.drain(..)).collect::<Vec<_>>();
        for letter in left {
            self.drop_letter(&letter, DropReason::GoneDisconnected, stats);
        }
        *self = Self::default();
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.health.is_none() && self.notices.is_empty() && self.disco.is_empty() && self.packets.is_empty()
    }

    /// Keeps who is to be woken by the next letter.
    pub fn set_waker(&mut self, waker: &Waker) {
        if self.waker.as_ref().is_none_or(|known| !known.will_wake(waker)) {
            self.waker = Some(waker.clone());
        }
    }

    /// Who is to be woken, if anybody waits.
    pub fn take_waker(&mut self) -> Option<Waker> {
        self.waker.take()
    }

    fn tell(&mut self) -> Wake {
        if core::mem::replace(&mut self.told, true) { Wake::Known } else { Wake::Needed }
    }

    fn drop_letter(&mut self, letter: &Letter, reason: DropReason, stats: &Stats) {
        self.share.remove(1, letter.packet.len());
        stats.note_drop(reason, letter.kind(), letter.packet.len());
    }
}

/// Takes out the oldest letter of the sender that has most of them; of equal ones, of the one whose letter is oldest.
fn take_of_busiest(queue: &mut VecDeque<Letter>) -> Option<Letter> {
    let first = queue.front()?.from;
    // One sender for all is the usual case, and then the answer is short.
    if queue.iter().all(|letter| letter.from == first) {
        return queue.pop_front();
    }
    let mut senders: Vec<(NodePublic, usize)> = Vec::new();
    for letter in queue.iter() {
        match senders.iter_mut().find(|(sender, _)| *sender == letter.from) {
            Some((_, count)) => *count += 1,
            None => senders.push((letter.from, 1)),
        }
    }
    let (mut busiest, mut most) = (first, 0);
    for (sender, count) in senders {
        if count > most {
            (busiest, most) = (sender, count);
        }
    }
    let index = queue.iter().position(|letter| letter.from == busiest)?;
    queue.remove(index)
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;

    const NOW: Instant = Instant::from_secs(10);

    #[test]
    fn disco_goes_first_and_packets_keep_their_order() {
        let (mut mailbox, stats) = (Mailbox::default(), Stats::default());
        for packet in [packet(1), packet(2), disco_packet(), packet(3)] {
            mailbox.put(letter(packet), &stats);
        }
        assert_eq!(taken(&mut mailbox, NOW, &stats), [disco_packet(), packet(1), packet(2), packet(3)]);
        assert!(mailbox.is_empty());
    }

    #[test]
    fn a_full_mailbox_drops_its_oldest_and_leaves_disco_alone() {
        let (mut mailbox, stats) = (Mailbox::default(), Stats::default());
        mailbox.put(letter(disco_packet()), &stats);
        for number in 0..limits::MAIL_PACKETS as u8 + 8 {
            mailbox.put(letter(packet(number)), &stats);
        }
        let taken = taken(&mut mailbox, NOW, &stats);
        assert_eq!(taken.len(), 1 + limits::MAIL_PACKETS);
        assert_eq!(taken[0], disco_packet());
        assert_eq!(taken[1], packet(8));
        assert_eq!(stats.drops(DropReason::QueueHead), 8);
    }

    #[test]
    fn who_sends_too_much_loses_his_own() {
        let (mut mailbox, stats) = (Mailbox::default(), Stats::default());
        let quiet = Letter { from: NodePublic::from_bytes([2; 32]), ..letter(packet(255)) };
        mailbox.put(quiet.clone(), &stats);
        for number in 0..200 {
            mailbox.put(letter(packet(number)), &stats);
            if number == 50 {
                mailbox.put(quiet.clone(), &stats);
            }
        }
        let taken = taken(&mut mailbox, NOW, &stats);
        assert_eq!(taken.iter().filter(|packet| packet[0] == 255).count(), 2);
        let dropped = 202 - limits::MAIL_PACKETS;
        assert_eq!((taken.len(), stats.drops(DropReason::QueueHead)), (limits::MAIL_PACKETS, dropped as u64));
        assert_eq!(taken.last(), Some(&packet(199)));
    }

    #[test]
    fn bytes_are_bounded_too() {
        let (mut mailbox, stats) = (Mailbox::default(), Stats::default());
        for _ in 0..=limits::MAIL_BYTES / 65_536 {
            mailbox.put(letter(vec![0; 65_536]), &stats);
        }
        assert_eq!(stats.drops(DropReason::QueueHead), 1);
        assert_eq!(mailbox.share.bytes, limits::MAIL_BYTES);
    }

    #[test]
    fn what_waits_for_all_is_bounded_and_each_keeps_a_little() {
        let stats = Stats::default();
        let large = Bytes::from(vec![0; 65_000]);
        let mut mailboxes: Vec<_> = (0..600).map(|_| Mailbox::default()).collect();
        for mailbox in &mut mailboxes {
            for _ in 0..16 {
                mailbox.put(Letter { packet: large.clone(), ..letter(Vec::new()) }, &stats);
            }
            for _ in 0..20 {
                mailbox.put(letter(vec![0; 1_000]), &stats);
            }
        }
        let most = limits::MAIL_BYTES_OF_ALL + (600 * limits::MAIL_SHARE) as u64;
        assert!(stats.mail.bytes() > limits::MAIL_BYTES_OF_ALL && stats.mail.bytes() < most, "{:?}", stats.mail);
        assert!(mailboxes.iter().all(|mailbox| !mailbox.is_empty()));
        for mailbox in &mut mailboxes[..300] {
            mailbox.clear(&stats);
        }
        drop(mailboxes);
        assert_eq!((stats.mail.letters(), stats.mail.bytes()), (0, 0));
    }

    #[test]
    fn where_many_wait_none_keeps_the_buffer_it_came_in() {
        let stats = Stats::default();
        let buffer = Bytes::from(vec![0; 32 << 10]);
        let mut mailboxes: Vec<_> = (0..200).map(|_| Mailbox::default()).collect();
        for mailbox in &mut mailboxes {
            for _ in 0..limits::MAIL_PACKETS {
                mailbox.put(Letter { packet: buffer.slice(..10), ..letter(Vec::new()) }, &stats);
            }
        }
        let keeps = |mailbox: &Mailbox| mailbox.packets.iter().all(|letter| letter.packet.as_ptr() == buffer.as_ptr());
        let keeping = mailboxes.iter().filter(|mailbox| keeps(mailbox)).count();
        assert_eq!(keeping as u64, limits::MAIL_BUFFERS / limits::MAIL_PACKETS as u64);
    }

    #[test]
    fn what_waited_too_long_is_dropped() {
        let (mut mailbox, stats) = (Mailbox::default(), Stats::default());
        mailbox.put(letter(packet(1)), &stats);
        let later = NOW + limits::MAIL_AGE + Duration::from_nanos(1);
        mailbox.put(Letter { arrived: later, ..letter(packet(2)) }, &stats);
        assert_eq!(taken(&mut mailbox, later, &stats), [packet(2)]);
        assert_eq!(stats.drops(DropReason::Expired), 1);
    }

    #[test]
    fn a_write_holds_one_record_or_one_long_frame() {
        let (mut mailbox, stats) = (Mailbox::default(), Stats::default());
        mailbox.put(letter(vec![0; 65_536]), &stats);
        for _ in 0..20 {
            mailbox.put(letter(vec![0; 1400]), &stats);
        }
        let mut sizes = Vec::new();
        while !mailbox.is_empty() {
            let mut out = Vec::new();
            mailbox.take(&mut out, NOW, &stats);
            sizes.push(out.len());
        }
        assert_eq!(sizes, [65_573, 11 * 1437, 9 * 1437]);
    }

    #[test]
    fn what_was_taken_leaves_room() {
        let (mut mailbox, stats) = (Mailbox::default(), Stats::default());
        for _ in 0..20 {
            mailbox.put(letter(vec![0; 1400]), &stats);
        }
        mailbox.take(&mut Vec::new(), NOW, &stats);
        assert_eq!((mailbox.share.bytes, stats.mail.letters()), (9 * 1400, 9));
    }

    #[test]
    fn its_owner_is_told_once() {
        let (mut mailbox, stats) = (Mailbox::default(), Stats::default());
        assert_eq!(mailbox.put(letter(packet(1)), &stats), Wake::Needed);
        assert_eq!(mailbox.put(letter(packet(2)), &stats), Wake::Known);
        taken(&mut mailbox, NOW, &stats);
        assert_eq!(mailbox.put(letter(packet(3)), &stats), Wake::Needed);
    }

    fn letter(packet: Vec<u8>) -> Letter {
        Letter { from: NodePublic::from_bytes([1; 32]), packet: packet.into(), arrived: NOW }
    }

    fn packet(number: u8) -> Vec<u8> {
        vec![number; 10]
    }

    fn disco_packet() -> Vec<u8> {
        [&disco::MAGIC[..], &[0; 56]].concat()
    }

    fn taken(mailbox: &mut Mailbox, now: Instant, stats: &Stats) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        mailbox.take(&mut out, now, stats);
        let mut rest = &out[..];
        let mut packets = Vec::new();
        while let Ok(Some((Frame::RecvPacket { packet, .. }, length))) = Frame::decode(rest) {
            packets.push(packet.to_vec());
            rest = &rest[length..];
        }
        packets
    }
}
