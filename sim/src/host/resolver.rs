//! A DNS server that answers, is slow, lies or is gone.

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use std::collections::{BTreeMap, VecDeque};

use mesh_core::{machine::Deadline, time::Instant};

use crate::net::{NetId, Proto};

use super::{
    Effects, Outgoing,
    dns::{DNS_PORT, Question, Rcode},
};

/// Answers that wait at most. At the bound a question is dropped; who asked asks again.
const WAITING: usize = 4096;

/// How a resolver behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// It answers.
    Answer,
    /// It says that it cannot say.
    Fail,
    /// It says that there is no such name.
    Deny,
    /// It says nothing.
    Silent,
}

/// A DNS server.
#[derive(Debug)]
pub struct ResolverHost {
    net: NetId,
    addresses: Vec<IpAddr>,
    names: BTreeMap<String, Vec<IpAddr>>,
    manner: Manner,
    delay: Duration,
    waiting: VecDeque<(Instant, Outgoing)>,
}

impl ResolverHost {
    /// A resolver that answers after `delay`.
    #[must_use]
    pub fn new(net: NetId, addresses: Vec<IpAddr>, names: BTreeMap<String, Vec<IpAddr>>, delay: Duration) -> Self {
        Self { net, addresses, names, manner: Manner::Answer, delay, waiting: VecDeque::new() }
    }

    /// Behaves otherwise from now on.
    pub fn set_manner(&mut self, manner: Manner) {
        self.manner = manner;
    }

    /// The net that it is in.
    #[must_use]
    pub fn net(&self) -> NetId {
        self.net
    }

    /// Its addresses.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Whether a datagram to this port would be read.
    #[must_use]
    pub fn has_socket(&self, port: u16) -> bool {
        port == DNS_PORT
    }

    /// A datagram came to its address `to`.
    pub fn handle_datagram(&mut self, from: SocketAddr, to: SocketAddr, payload: &[u8], now: Instant) {
        let Some(question) = Question::parse(payload) else { return };
        let found = self.names.get(&question.name).map(Vec::as_slice);
        let answer = match (self.manner, found) {
            (Manner::Silent, _) => None,
            (Manner::Fail, _) => question.answer(Rcode::Failed, &[]),
            (Manner::Answer, Some(addresses)) => question.answer(Rcode::Ok, addresses),
            (Manner::Deny, _) | (Manner::Answer, None) => question.answer(Rcode::NoName, &[]),
        };
        let Some(payload) = answer.filter(|_| self.waiting.len() < WAITING) else { return };
        let answer = Outgoing { proto: Proto::Udp, from: to, to: from, ttl: None, payload };
        self.waiting.push_back((now + self.delay, answer));
    }

    /// Lets due timers act.
    pub fn handle_timeout(&mut self, now: Instant, effects: &mut Effects) {
        while self.waiting.front().is_some_and(|(at, _)| *at <= now) {
            effects.packets.extend(self.waiting.pop_front().map(|(_, answer)| answer));
        }
    }

    /// When [`Self::handle_timeout`] is wanted next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        self.waiting.front().map(|(at, _)| Deadline::new(*at, "answer"))
    }
}
