//! Where a candidate came from and what it has shown.

use core::{
    cmp::Reverse,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use std::collections::{BTreeMap, BTreeSet};

use crate::{limits, time::Instant};

use super::{CandidateReport, Verdict, score::Measured};

/// How long an address that only pings came from is kept without another. Stock nodes: 45 s.
const HEARD_FOR: Duration = Duration::from_secs(45);
/// Pings to an address for each ping that came from there, until it answers: with the pong less than three times what came,
/// which is what QUIC allows towards an address that has not answered (RFC 9000 §8). Stock nodes have no such bound.
const PINGS_FOR_ONE: u32 = 2;

/// Who says that the peer is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    /// The netmap.
    Netmap,
    /// The peer's last call-me-maybe.
    Call,
}

/// One address.
#[derive(Debug)]
pub(super) struct Candidate {
    in_netmap: bool,
    in_call: bool,
    /// Last ping or pong from there, or when it was added.
    heard_at: Instant,
    /// Last pong and the smoothed round trip.
    pong: Option<(Instant, Duration)>,
    /// Last ping back, and how many since the last pong.
    pub(super) pinged_back: Option<(Instant, u32)>,
    /// Pings that may go there before it answers, where nothing but pings says that the peer is there; `None` is any
    /// number. A ping can be replayed by a stranger from the address of another.
    credit: Option<u32>,
}

impl Candidate {
    const fn new(now: Instant) -> Self {
        Self { in_netmap: false, in_call: false, heard_at: now, pong: None, pinged_back: None, credit: None }
    }

    /// Whether one more ping may go there; then it has.
    pub(super) fn take_credit(&mut self) -> bool {
        let Some(credit) = &mut self.credit else { return true };
        let is_left = *credit > 0;
        *credit = credit.saturating_sub(1);
        is_left
    }

    /// Notes a pong; the round trip is smoothed as TCP's is (RFC 6298 §2.3).
    pub(super) fn note_pong(&mut self, sample: Duration, now: Instant) -> Duration {
        let latency = self.pong.map_or(sample, |(_, latency)| (latency * 7 + sample) / 8);
        self.pong = Some((now, latency));
        self.heard_at = now;
        self.pinged_back = None;
        self.credit = None;
        latency
    }

    /// Whether a pong came within `time`.
    pub(super) fn ponged_within(&self, time: Duration, now: Instant) -> bool {
        self.pong.is_some_and(|(at, _)| now.since(at) < time)
    }

    fn is_listed(&self) -> bool {
        self.in_netmap || self.in_call
    }

    fn listed_mut(&mut self, list: List) -> &mut bool {
        match list {
            List::Netmap => &mut self.in_netmap,
            List::Call => &mut self.in_call,
        }
    }
}

/// All addresses of a peer.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    by_address: BTreeMap<SocketAddr, Candidate>,
}

/// Whether a list brought something new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Added {
    /// An address that was not there.
    New,
    /// Nothing.
    Nothing,
}

impl Candidates {
    /// Replaces what `list` said earlier. Returns how many addresses could not be used, too.
    pub(super) fn set_list(&mut self, list: List, addresses: &[SocketAddr], keep: Keep, now: Instant) -> (Added, u64) {
        for candidate in self.by_address.values_mut() {
            *candidate.listed_mut(list) = false;
        }
        let (mut added, mut refused, mut seen) = (Added::Nothing, 0, BTreeSet::new());
        for address in addresses {
            if !is_usable(*address) || seen.len() >= limits::ENDPOINTS_PER_LIST {
                refused += 1;
            } else if seen.insert(*address) {
                if !self.by_address.contains_key(address) {
                    self.make_room(keep);
                    added = Added::New;
                }
                let candidate = self.by_address.entry(*address).or_insert(Candidate::new(now));
                *candidate.listed_mut(list) = true;
                candidate.credit = None;
            }
        }
        self.prune(keep, now);
        (added, refused)
    }

    /// Notes a ping from an address; false when it cannot be used. Until it answers, it is pinged a bounded number of times.
    pub(super) fn note_ping(&mut self, address: SocketAddr, keep: Keep, now: Instant) -> bool {
        if !is_usable(address) {
            return false;
        }
        if !self.by_address.contains_key(&address) {
            self.make_room(keep);
        }
        let strange = Candidate { credit: Some(0), ..Candidate::new(now) };
        let candidate = self.by_address.entry(address).or_insert(strange);
        candidate.heard_at = now;
        candidate.credit = candidate.credit.map(|_| PINGS_FOR_ONE);
        true
    }

    /// Forgets those that only pings came from and that have been silent for long.
    pub(super) fn prune(&mut self, Keep(keep): Keep, now: Instant) {
        self.by_address.retain(|address, candidate| {
            candidate.is_listed() || Some(*address) == keep || now.since(candidate.heard_at) < HEARD_FOR
        });
    }

    /// Forgets what was measured.
    pub(super) fn forget_measurements(&mut self) {
        for candidate in self.by_address.values_mut() {
            candidate.pong = None;
            candidate.pinged_back = None;
        }
    }

    pub(super) fn get_mut(&mut self, address: SocketAddr) -> Option<&mut Candidate> {
        self.by_address.get_mut(&address)
    }

    pub(super) fn len(&self) -> usize {
        self.by_address.len()
    }

    /// All, in order of address; `in_use` is the one in use and whether it is trusted.
    pub(super) fn report(
        &self,
        in_use: Option<(SocketAddr, bool)>,
        trust: Duration,
        now: Instant,
    ) -> Vec<CandidateReport> {
        let of = |(address, candidate): (&SocketAddr, &Candidate)| CandidateReport {
            address: *address,
            in_netmap: candidate.in_netmap,
            in_call: candidate.in_call,
            heard_ago: now.since(candidate.heard_at),
            pong: candidate.pong.map(|(at, latency)| (now.since(at), latency)),
            verdict: match in_use {
                Some((used, true)) if used == *address => Verdict::InUse,
                Some((used, false)) if used == *address => Verdict::InDoubt,
                _ if candidate.ponged_within(trust, now) => Verdict::NotBetter,
                _ if candidate.pong.is_some() => Verdict::Stale,
                _ => Verdict::Silent,
            },
        };
        self.by_address.iter().map(of).collect()
    }

    /// All, those heard from last first: they are the likeliest to answer.
    pub(super) fn in_order(&self) -> Vec<SocketAddr> {
        let mut addresses: Vec<_> = self.by_address.iter().collect();
        addresses.sort_by_key(|(_, candidate)| Reverse((candidate.pong.map(|(at, _)| at), candidate.heard_at)));
        addresses.into_iter().map(|(address, _)| *address).collect()
    }

    /// Those with a pong within `time`, other than `not`.
    pub(super) fn measured(
        &self,
        time: Duration,
        not: SocketAddr,
        now: Instant,
    ) -> impl Iterator<Item = Measured> + '_ {
        self.by_address.iter().filter_map(move |(address, candidate)| {
            let (at, latency) = candidate.pong?;
            let is_fresh = now.since(at) < time && *address != not;
            is_fresh.then_some(Measured { address: *address, latency })
        })
    }

    fn make_room(&mut self, Keep(keep): Keep) {
        if self.by_address.len() < limits::CANDIDATES_PER_PEER {
            return;
        }
        let unlisted =
            self.by_address.iter().filter(|(address, candidate)| !candidate.is_listed() && Some(**address) != keep);
        if let Some(silent) = unlisted.min_by_key(|(_, candidate)| candidate.heard_at).map(|(address, _)| *address) {
            self.by_address.remove(&silent);
        }
    }
}

/// The address in use, which is never forgotten.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keep(pub(super) Option<SocketAddr>);

/// Whether a datagram to this address makes sense. Link-local IPv6 would need to name an interface.
fn is_usable(address: SocketAddr) -> bool {
    let is_ip_usable = match address.ip() {
        IpAddr::V4(v4) => !(v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast()),
        IpAddr::V6(v6) => {
            let is_scoped = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
            !(v6.is_unspecified() || v6.is_multicast() || v6.is_unicast_link_local() && !is_scoped)
        }
    };
    is_ip_usable && address.port() != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_replaces_itself_alone() {
        let (mut candidates, now) = (Candidates::default(), Instant::from_secs(1));
        assert_eq!(candidates.set_list(List::Netmap, &[at(1), at(2)], Keep(None), now), (Added::New, 0));
        assert_eq!(candidates.set_list(List::Call, &[at(2), at(3)], Keep(None), now), (Added::New, 0));
        assert_eq!(candidates.set_list(List::Call, &[at(2)], Keep(None), now), (Added::Nothing, 0));
        let later = now + HEARD_FOR;
        candidates.set_list(List::Netmap, &[at(1)], Keep(None), later);
        assert_eq!(sorted(&candidates), [at(1), at(2)]);
        candidates.set_list(List::Call, &[], Keep(None), later);
        assert_eq!(sorted(&candidates), [at(1)]);
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_lists_are_bounded() {
        let (mut candidates, now) = (Candidates::default(), Instant::from_secs(1));
        let senseless =
            ["0.0.0.0:1", "255.255.255.255:1", "224.0.0.1:1", "[ff02::1]:1", "[fe80::1]:1", "[::]:1", "1.1.1.1:0"];
        for text in senseless {
            assert_eq!(candidates.set_list(List::Call, &[addr(text)], Keep(None), now), (Added::Nothing, 1), "{text}");
            assert!(!candidates.note_ping(addr(text), Keep(None), now));
        }
        let many: Vec<_> = (1..=30).map(at).collect();
        assert_eq!(candidates.set_list(List::Call, &many, Keep(None), now), (Added::New, 6));
        assert_eq!(candidates.len(), limits::ENDPOINTS_PER_LIST);
    }

    #[test]
    fn an_address_that_only_pings_come_from_is_pinged_twice_for_each_until_it_answers_or_is_listed() {
        let (mut candidates, address, now) = (Candidates::default(), "192.0.2.1:1".parse().unwrap(), Instant::ZERO);
        let credit = |candidates: &mut Candidates| {
            let candidate = candidates.get_mut(address).unwrap();
            (0..5).filter(|_| candidate.take_credit()).count()
        };
        for _ in 0..2 {
            assert!(candidates.note_ping(address, Keep(None), now));
            assert_eq!(credit(&mut candidates), 2);
        }
        candidates.get_mut(address).unwrap().note_pong(Duration::ZERO, now);
        assert_eq!(credit(&mut candidates), 5);
        let mut candidates = Candidates::default();
        candidates.note_ping(address, Keep(None), now);
        candidates.set_list(List::Call, &[address], Keep(None), now);
        assert_eq!(credit(&mut candidates), 5);
    }

    #[test]
    fn at_the_bound_the_longest_silent_goes_and_the_listed_stay() {
        let mut candidates = Candidates::default();
        let listed: Vec<_> = (1..=24).map(at).collect();
        candidates.set_list(List::Netmap, &listed, Keep(None), Instant::ZERO);
        let keep = Keep(Some(at(100)));
        for port in 100..200 {
            assert!(candidates.note_ping(at(port), keep, Instant::from_millis(u64::from(port))));
        }
        let kept = sorted(&candidates);
        assert_eq!(kept.len(), limits::CANDIDATES_PER_PEER);
        let expected: Vec<_> = (1..=24).chain([100]).chain(161..200).map(at).collect();
        assert_eq!(kept, expected);
        candidates.prune(keep, Instant::from_secs(60));
        assert_eq!(sorted(&candidates), (1..=24).chain([100]).map(at).collect::<Vec<_>>());
    }

    fn sorted(candidates: &Candidates) -> Vec<SocketAddr> {
        let mut addresses = candidates.in_order();
        addresses.sort();
        addresses
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }
}
