//! Who comes and goes, and who is told.
//!
//! A key may have several connections, as when a node's network changed and the old connection is not known to be dead
//! yet. The newest is active and gets the letters; one that says something becomes active in its place. When that goes to
//! and fro, two nodes use one key, and both are told. Peers that a key
//! has sent to are told that it is gone when its last connection leaves.

use core::sync::atomic::Ordering::Relaxed;
use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use mesh_core::{derp::PeerGoneReason, key::NodePublic};

use crate::{
    directory::{ConnId, Desk, Directory, Presence},
    limits,
    mailbox::{Health, Wake},
    stats::Stats,
};

impl Directory {
    /// A connection that proved to hold a key comes in and is active.
    pub fn join(&self, desk: &Arc<Desk>, stats: &Stats) {
        stats.joins.add_one();
        let mut keys = self.write();
        if let Some(presence) = keys.get_mut(&desk.key) {
            stats.duplicates.add_one();
            let before = core::mem::replace(&mut presence.active, Arc::clone(desk));
            before.passed_over.store(true, Relaxed);
            presence.others.push(before);
        } else {
            let presence =
                Presence { active: Arc::clone(desk), others: Vec::new(), turns: 0, reached: BTreeMap::new() };
            keys.insert(desk.key, presence);
        }
    }

    /// A connection that was passed over said something, so it is active again. Says which connections have mail about
    /// that.
    pub fn note_speaking(&self, desk: &Arc<Desk>, stats: &Stats) -> Vec<ConnId> {
        let mut keys = self.write();
        let Some(presence) = keys.get_mut(&desk.key) else { return Vec::new() };
        let Some(index) = presence.others.iter().position(|other| other.id == desk.id) else { return Vec::new() };
        let speaking = presence.others.remove(index);
        speaking.passed_over.store(false, Relaxed);
        let before = core::mem::replace(&mut presence.active, speaking);
        before.passed_over.store(true, Relaxed);
        presence.others.push(before);
        if presence.turns >= limits::CLONE_TURNS {
            return Vec::new();
        }
        presence.turns += 1;
        if presence.turns < limits::CLONE_TURNS {
            return Vec::new();
        }
        stats.clones.add_one();
        let all = presence.others.iter().chain([&presence.active]);
        all.filter(|desk| desk.post_health(Health::Cloned) == Wake::Needed).map(|desk| desk.id).collect()
    }

    /// `to` got a packet of `from` and is told when `from` is gone.
    pub fn note_reached(&self, from: &NodePublic, to: &Arc<Desk>, stats: &Stats) {
        let mut keys = self.write();
        let Some(presence) = keys.get_mut(from) else { return };
        if presence.reached.len() >= limits::REACHED {
            presence.reached.retain(|_, desk| desk.strong_count() > 0);
        }
        if presence.reached.len() >= limits::REACHED {
            stats.notices_left_out.add_one();
            return;
        }
        presence.reached.insert(to.id, Arc::downgrade(to));
    }

    /// A connection leaves; says which others have mail about it.
    #[must_use]
    pub fn leave(&self, desk: &Desk, stats: &Stats) -> Vec<ConnId> {
        stats.leaves.add_one();
        desk.clear(stats);
        let gone = {
            let mut keys = self.write();
            let Some(presence) = keys.get_mut(&desk.key) else { return Vec::new() };
            if presence.active.id != desk.id {
                presence.others.retain(|other| other.id != desk.id);
                return presence.note_fewer();
            }
            if let Some(next) = presence.others.pop() {
                next.passed_over.store(false, Relaxed);
                presence.active = next;
                return presence.note_fewer();
            }
            keys.remove(&desk.key)
        };
        let reached = gone.map(|presence| presence.reached).unwrap_or_default();
        let tell = |desk: &Arc<Desk>, peer: NodePublic| {
            stats.peer_gone_disconnected.add_one();
            desk.post_notice(peer, PeerGoneReason::Disconnected, stats) == Wake::Needed
        };
        reached
            .into_values()
            .filter_map(|other| Weak::upgrade(&other))
            .filter(|other| tell(other, desk.key))
            .map(|other| other.id)
            .collect()
    }
}

impl Presence {
    /// One that is alone again is well.
    fn note_fewer(&mut self) -> Vec<ConnId> {
        if !self.others.is_empty() || core::mem::take(&mut self.turns) < limits::CLONE_TURNS {
            return Vec::new();
        }
        let wake = self.active.post_health(Health::Well);
        if wake == Wake::Needed { vec![self.active.id] } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::{derp::Frame, rng::Seed, time::Instant};

    use super::*;

    #[test]
    fn the_newest_connection_of_a_key_is_active_until_another_speaks() {
        let (directory, stats) = empty();
        let (first, second) = (desk(1, 1), desk(2, 1));
        directory.join(&first, &stats);
        directory.join(&second, &stats);
        assert_eq!(active(&directory, 1), Some(2));
        assert!(first.is_passed_over() && !second.is_passed_over());

        assert_eq!(directory.note_speaking(&first, &stats), []);
        assert_eq!(active(&directory, 1), Some(1));
        assert!(!first.is_passed_over() && second.is_passed_over());

        assert_eq!(directory.leave(&first, &stats), []);
        assert_eq!(active(&directory, 1), Some(2));
        assert_eq!(directory.leave(&second, &stats), []);
        assert_eq!(active(&directory, 1), None);
    }

    #[test]
    fn two_nodes_with_one_key_are_told_and_the_one_that_is_left_is_well() {
        let (directory, stats) = empty();
        let (first, second) = (desk(1, 1), desk(2, 1));
        directory.join(&first, &stats);
        directory.join(&second, &stats);
        for turn in 1..=limits::CLONE_TURNS + 1 {
            let speaking = if turn % 2 == 1 { &first } else { &second };
            let wakes = directory.note_speaking(speaking, &stats);
            assert_eq!(wakes.len(), if turn == limits::CLONE_TURNS { 2 } else { 0 });
        }
        assert_eq!((health(&first), health(&second)), (Health::Cloned.text().into(), Health::Cloned.text().into()));
        assert_eq!(directory.leave(&second, &stats), [ConnId(1)]);
        assert_eq!(health(&first), "");
        assert_eq!(stats.clones.get(), 1);
    }

    #[test]
    fn those_it_reached_are_told_when_the_last_connection_leaves() {
        let (directory, stats) = empty();
        let (first, second, other) = (desk(1, 1), desk(2, 1), desk(3, 2));
        for desk in [&first, &second, &other] {
            directory.join(desk, &stats);
        }
        directory.note_reached(&first.key, &other, &stats);

        assert_eq!(directory.leave(&second, &stats), []);
        assert_eq!(directory.leave(&first, &stats), [ConnId(3)]);

        let mut out = Vec::new();
        other.take(&mut out, Instant::ZERO, &stats);
        let gone = Frame::PeerGone { peer: first.key, reason: PeerGoneReason::Disconnected };
        assert_eq!(Frame::decode(&out), Ok(Some((gone, out.len()))));
    }

    #[test]
    fn who_left_itself_is_not_told() {
        let (directory, stats) = empty();
        let (first, other) = (desk(1, 1), desk(3, 2));
        directory.join(&first, &stats);
        directory.join(&other, &stats);
        directory.note_reached(&first.key, &other, &stats);
        assert_eq!(directory.leave(&other, &stats), []);
        drop(other);
        assert_eq!(directory.leave(&first, &stats), []);
        assert!(directory.is_empty());
    }

    fn health(desk: &Desk) -> String {
        let mut out = Vec::new();
        desk.take(&mut out, Instant::ZERO, &Stats::default());
        let Ok(Some((Frame::Health(text), _))) = Frame::decode(&out) else { panic!("no health: {out:?}") };
        String::from_utf8(text.to_vec()).unwrap()
    }

    fn empty() -> (Directory, Stats) {
        (Directory::new(&mut Seed::from_number(0).stream("directory", 0)), Stats::default())
    }

    fn desk(id: u64, key: u8) -> Arc<Desk> {
        Arc::new(Desk::new(ConnId(id), NodePublic::from_bytes([key; 32])))
    }

    fn active(directory: &Directory, key: u8) -> Option<u64> {
        directory.find(&NodePublic::from_bytes([key; 32])).map(|desk| desk.id.0)
    }
}
