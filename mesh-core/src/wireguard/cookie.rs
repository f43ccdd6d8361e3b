//! Cookies (WireGuard paper §5.3, §5.4.7) in both roles: who demands them under load, and who answers with one.
//!
//! Opening a handshake message costs a Diffie-Hellman, so a flood of them could eat a core. While more arrive than
//! [`limits::HANDSHAKES_PER_SECOND`], a message without the cookie for its source address is answered with that
//! cookie, sealed, and not opened. Who then sends it along has shown that packets to that address reach it, and
//! is held to a rate per address; a relay vouches for a key, which has a rate, too.

use core::{fmt, net::IpAddr, time::Duration};
use std::collections::{BTreeMap, BTreeSet};

use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use crate::{
    crypto::{
        aead::{xopen, xseal},
        hash::mac,
    },
    ip,
    key::NodePublic,
    limits,
    path::PathAddr,
    rng::Rng,
    time::Instant,
};

use super::{
    identity::MacKeys,
    message::{CookieReply, split_macs},
    timers::COOKIE_LIFETIME,
};

/// What to do with a handshake message.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// Open it.
    Open,
    /// Send this cookie reply back and forget the message.
    Demand(Vec<u8>),
    /// Forget it: its source had its share.
    RateLimited,
}

/// Decides which handshake messages are opened.
pub struct Gatekeeper {
    rng: Rng,
    secret: [u8; 32],
    secret_since: Option<Instant>,
    budget: Bucket,
    loaded_until: Option<Instant>,
    sources: Sources,
}

impl Gatekeeper {
    /// A gatekeeper without load.
    #[must_use]
    pub fn new(rng: Rng) -> Self {
        Self {
            rng,
            secret: [0; 32],
            secret_since: None,
            budget: Bucket::default(),
            loaded_until: None,
            sources: Sources::default(),
        }
    }

    /// Decides on a handshake message with a right first MAC. `sender` is the index that it names as its own.
    pub fn admit(&mut self, keys: &MacKeys, message: &[u8], sender: u32, source: PathAddr, now: Instant) -> Admission {
        if !self.budget.take(limits::HANDSHAKES_PER_SECOND, limits::HANDSHAKE_BURST, now) {
            self.loaded_until = Some(now + limits::UNDER_LOAD_FOR);
        }
        if !self.is_under_load(now) {
            return Admission::Open;
        }
        let Some((_, covered, macs)) = split_macs(message) else { return Admission::RateLimited };
        let cookie = self.cookie(source, now);
        if bool::from(mac(&cookie, covered).ct_eq(&macs.mac2)) {
            return if self.sources.take(Source::of(source), now) { Admission::Open } else { Admission::RateLimited };
        }
        let nonce = self.rng.bytes();
        let sealed = xseal(keys.cookie(), &nonce, &macs.mac1, &cookie);
        let Ok(encrypted_cookie) = sealed.try_into() else { return Admission::RateLimited };
        Admission::Demand(CookieReply { receiver: sender, nonce, encrypted_cookie }.emit())
    }

    /// Whether cookies are demanded now.
    #[must_use]
    pub fn is_under_load(&self, now: Instant) -> bool {
        self.loaded_until.is_some_and(|until| now < until)
    }

    fn cookie(&mut self, source: PathAddr, now: Instant) -> [u8; 16] {
        if self.secret_since.is_none_or(|since| now.since(since) >= COOKIE_LIFETIME) {
            self.rng.fill(&mut self.secret);
            self.secret_since = Some(now);
        }
        mac(&self.secret, &source.cookie_bytes())
    }
}

impl Drop for Gatekeeper {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl fmt::Debug for Gatekeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gatekeeper").field("loaded_until", &self.loaded_until).finish_non_exhaustive()
    }
}

/// A leaky bucket as one stamp (the generic cell rate algorithm): when it will be empty.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    empty_at: Instant,
}

impl Bucket {
    /// Whether one more fits, at `per_second` with bursts of `burst`. Takes it if so.
    fn take(&mut self, per_second: u32, burst: u32, now: Instant) -> bool {
        let interval = Duration::from_secs(1) / per_second;
        let empty_at = self.empty_at.max(now) + interval;
        let fits = empty_at.since(now) <= interval * burst;
        if fits {
            self.empty_at = empty_at;
        }
        fits
    }
}

/// What shares a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// A source of packets, as [`ip::source`] has it.
    Network(IpAddr),
    /// The key that a relay vouches for, over whichever relay.
    Key(NodePublic),
}

impl Source {
    fn of(path: PathAddr) -> Self {
        match path {
            PathAddr::Relay { peer, .. } => Self::Key(peer),
            PathAddr::Udp(address) => Self::Network(ip::source(address.ip())),
        }
    }
}

/// A bucket per source, bounded: the one idle longest is forgotten first.
#[derive(Debug, Default)]
struct Sources {
    buckets: BTreeMap<Source, Bucket>,
    by_age: BTreeSet<(Instant, Source)>,
}

impl Sources {
    fn take(&mut self, source: Source, now: Instant) -> bool {
        let mut bucket = self.buckets.get(&source).copied().unwrap_or_default();
        self.by_age.remove(&(bucket.empty_at, source));
        let fits = bucket.take(limits::HANDSHAKES_PER_SECOND_PER_SOURCE, limits::HANDSHAKE_BURST_PER_SOURCE, now);
        self.by_age.insert((bucket.empty_at, source));
        self.buckets.insert(source, bucket);
        if self.buckets.len() > limits::RATE_LIMITED_SOURCES
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.buckets.remove(&oldest);
        }
        fits
    }
}

/// The other role: puts MACs on messages to one peer and keeps the cookie it may have sent.
#[derive(Debug, Default)]
pub(super) struct CookieJar {
    cookie: Option<([u8; 16], Instant)>,
    last_mac1: Option<[u8; 16]>,
}

impl CookieJar {
    /// Appends both MACs; the second is zero without a fresh cookie.
    pub(super) fn append_macs(&mut self, keys: &MacKeys, mut message: Vec<u8>, now: Instant) -> Vec<u8> {
        let mac1 = keys.mac1(&message);
        message.extend(mac1);
        self.last_mac1 = Some(mac1);
        let mac2 = match &self.cookie {
            Some((cookie, since)) if now.since(*since) < COOKIE_LIFETIME => mac(cookie, &message),
            Some(_) | None => [0; 16],
        };
        message.extend(mac2);
        message
    }

    /// Keeps the cookie of a reply to the last message; false when it is none.
    pub(super) fn keep(&mut self, keys: &MacKeys, reply: &CookieReply, now: Instant) -> bool {
        let Some(mac1) = self.last_mac1 else { return false };
        let Ok(opened) = xopen(keys.cookie(), &reply.nonce, &mac1, &reply.encrypted_cookie) else { return false };
        let Ok(cookie) = opened.try_into() else { return false };
        self.cookie = Some((cookie, now));
        // One reply per message: a repeated one has nothing to add.
        self.last_mac1 = None;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{derp::RegionId, key::NodePrivate, rng::Seed, wireguard::message::COOKIE_BYTES};

    #[test]
    fn a_flood_brings_cookies_and_the_cookie_opens_the_gate() {
        let (mut gate, keys, mut jar) = parts();
        let now = Instant::from_secs(1);
        let source = udp("192.0.2.1:1000");
        flood(&mut gate, &keys, now);

        let message = jar.append_macs(&keys, vec![1; 116], now);
        let Admission::Demand(reply) = gate.admit(&keys, &message, 7, source, now) else { panic!("no cookie") };
        assert_eq!(reply.len(), COOKIE_BYTES);
        let reply = CookieReply::parse(&reply).unwrap();
        assert_eq!(reply.receiver, 7);
        assert!(jar.keep(&keys, &reply, now));
        assert!(!jar.keep(&keys, &reply, now), "a repeated reply is no news");

        let message = jar.append_macs(&keys, vec![1; 116], now);
        assert_eq!(gate.admit(&keys, &message, 7, source, now), Admission::Open);
        let elsewhere = gate.admit(&keys, &message, 7, udp("192.0.2.1:1001"), now);
        assert!(matches!(elsewhere, Admission::Demand(_)), "a cookie is for one address and port");
    }

    #[test]
    fn a_cookie_opens_nothing_once_its_secret_is_two_minutes_old() {
        let (mut gate, _, _) = parts();
        let source = udp("192.0.2.1:1000");
        let at = |secs: u64| Instant::from_secs(1 + secs);
        let cookie = gate.cookie(source, at(0));
        assert_eq!(gate.cookie(source, at(119)), cookie);
        assert_ne!(gate.cookie(source, at(120)), cookie);
    }

    #[test]
    fn one_source_gets_its_share_and_no_more() {
        let (mut gate, keys, mut jar) = parts();
        let now = Instant::from_secs(1);
        let source = udp("192.0.2.1:1000");
        flood(&mut gate, &keys, now);
        jar.cookie = Some((gate.cookie(source, now), now));
        let message = jar.append_macs(&keys, vec![1; 116], now);
        let admitted = (0..50).filter(|_| gate.admit(&keys, &message, 7, source, now) == Admission::Open).count();
        assert_eq!(admitted, limits::HANDSHAKE_BURST_PER_SOURCE as usize);
    }

    #[test]
    fn a_host_with_many_ipv6_addresses_has_one_share() {
        let (mut gate, keys, mut jar) = parts();
        let now = Instant::from_secs(1);
        flood(&mut gate, &keys, now);
        let mut opened_from = |source: PathAddr| {
            jar.cookie = Some((gate.cookie(source, now), now));
            let message = jar.append_macs(&keys, vec![1; 116], now);
            gate.admit(&keys, &message, 7, source, now) == Admission::Open
        };
        let one_network = (0..50).filter(|n| opened_from(udp(&format!("[2001:db8::{n:x}]:1000")))).count();
        assert_eq!(one_network, limits::HANDSHAKE_BURST_PER_SOURCE as usize);
        assert!(opened_from(udp("[2001:db8:0:1::1]:1000")), "the next network has its own");
        // The same for an IPv4 address as a socket of both families shows it; others have their own.
        let mapped = (0..50).filter(|_| opened_from(udp("[::ffff:192.0.2.1]:1000"))).count();
        assert_eq!(mapped, limits::HANDSHAKE_BURST_PER_SOURCE as usize);
        assert!(!opened_from(udp("192.0.2.1:1000")));
        assert!(opened_from(udp("[::ffff:192.0.2.2]:1000")));
    }

    #[test]
    fn a_key_that_a_relay_vouches_for_has_one_share_over_all_relays() {
        let (mut gate, keys, mut jar) = parts();
        let now = Instant::from_secs(1);
        flood(&mut gate, &keys, now);
        let mut opened_from = |region: u16, key: u8| {
            let region = RegionId::new(region).unwrap();
            let source = PathAddr::Relay { region, peer: NodePublic::from_bytes([key; 32]) };
            jar.cookie = Some((gate.cookie(source, now), now));
            let message = jar.append_macs(&keys, vec![1; 116], now);
            gate.admit(&keys, &message, 7, source, now) == Admission::Open
        };
        let opened = (0..50).filter(|n| opened_from(1 + n % 5, 7)).count();
        assert_eq!(opened, limits::HANDSHAKE_BURST_PER_SOURCE as usize);
        assert!(opened_from(1, 8), "another key has its own");
    }

    #[test]
    fn load_passes() {
        let (mut gate, keys, mut jar) = parts();
        let now = Instant::from_secs(1);
        flood(&mut gate, &keys, now);
        assert!(gate.is_under_load(now));
        let later = now + limits::UNDER_LOAD_FOR;
        let message = jar.append_macs(&keys, vec![1; 116], later);
        assert_eq!(gate.admit(&keys, &message, 7, udp("192.0.2.1:1000"), later), Admission::Open);
    }

    #[test]
    fn remembered_sources_are_bounded() {
        let mut sources = Sources::default();
        for number in 0..limits::RATE_LIMITED_SOURCES as u32 + 100 {
            let now = Instant::from_millis(u64::from(number));
            assert!(sources.take(Source::Network(IpAddr::from(number.to_be_bytes())), now));
        }
        assert_eq!(sources.buckets.len(), limits::RATE_LIMITED_SOURCES);
        assert_eq!(sources.by_age.len(), limits::RATE_LIMITED_SOURCES);
    }

    #[test]
    fn a_cookie_is_used_for_two_minutes() {
        let (_, keys, mut jar) = parts();
        jar.cookie = Some(([1; 16], Instant::ZERO));
        let message = |jar: &mut CookieJar, now| jar.append_macs(&keys, vec![1; 116], now)[132..].to_vec();
        assert_ne!(message(&mut jar, Instant::from_secs(119)), [0; 16]);
        assert_eq!(message(&mut jar, Instant::from_secs(120)), [0; 16]);
    }

    fn parts() -> (Gatekeeper, MacKeys, CookieJar) {
        let keys = MacKeys::new(&NodePrivate::from_bytes([1; 32]).public());
        (Gatekeeper::new(Seed::from_number(1).stream("gate", 0)), keys, CookieJar::default())
    }

    fn flood(gate: &mut Gatekeeper, keys: &MacKeys, now: Instant) {
        let opened = (0..10_000)
            .filter(|_| gate.admit(keys, &[1; 148], 0, udp("198.51.100.1:1"), now) == Admission::Open)
            .count();
        assert_eq!(opened, limits::HANDSHAKE_BURST as usize);
    }

    fn udp(address: &str) -> PathAddr {
        PathAddr::Udp(address.parse().unwrap())
    }
}
