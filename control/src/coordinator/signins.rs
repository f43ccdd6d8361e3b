//! Nodes that wait for somebody to sign in for them.
//!
//! Each has a code that cannot be guessed, which ends its sign-in URL, and is bound to the machine that asked. None of it
//! is stored: after a restart a node that asks again gets another URL.
//!
//! Strangers can make as many as there is room for. So where there is no more, one goes whose source has the most, and
//! nobody loses a place to a source that has as many: who floods the server from one address pushes out their own.

use core::net::IpAddr;
use std::collections::BTreeMap;

use mesh_core::{control::types::RegisterRequest, ip, key::MachinePublic};

use super::input::{ConnId, RequestId};
use crate::limits;

/// A node that waits.
#[derive(Clone, Debug)]
pub(super) struct SignIn {
    /// Counts them; the oldest has the lowest.
    pub(super) number: u64,
    pub(super) machine: MachinePublic,
    /// The source of who asked, as [`ip::source`] has it.
    pub(super) from: IpAddr,
    pub(super) request: RegisterRequest,
    /// Who is to be told when somebody signs in.
    pub(super) waiting: Option<(ConnId, RequestId)>,
}

/// All nodes that wait; a machine has one at most.
#[derive(Debug, Default)]
pub(super) struct SignIns {
    by_code: BTreeMap<String, SignIn>,
    by_machine: BTreeMap<MachinePublic, String>,
    by_number: BTreeMap<u64, String>,
    by_request: BTreeMap<(ConnId, RequestId), String>,
    /// How many each source has; none has none.
    of_source: BTreeMap<IpAddr, usize>,
    next: u64,
}

impl SignIns {
    /// The sign-in of a machine.
    pub(super) fn of_machine(&self, machine: &MachinePublic) -> Option<(&str, &SignIn)> {
        let code = self.by_machine.get(machine)?;
        Some((code, self.by_code.get(code)?))
    }

    pub(super) fn get(&self, code: &str) -> Option<&SignIn> {
        self.by_code.get(code)
    }

    /// The same with its code.
    pub(super) fn found(&self, code: &str) -> Option<(&str, &SignIn)> {
        self.by_code.get_key_value(code).map(|(code, sign_in)| (code.as_str(), sign_in))
    }

    pub(super) fn code(&self, number: u64) -> Option<&str> {
        self.by_number.get(&number).map(String::as_str)
    }

    /// The number of the one that has to go so that there is room for one more from a source: the oldest that nobody
    /// waits at, of the sources that have the most. Where somebody waits at each of those, it is the oldest, but for a source
    /// that has as many itself. `Ok(None)` when there is room as it is.
    pub(super) fn to_evict(&self, from: IpAddr) -> Result<Option<u64>, ()> {
        if self.by_code.len() < limits::SIGN_INS {
            return Ok(None);
        }
        let from = ip::source(from);
        let most = self.of_source.values().copied().max().unwrap_or_default();
        let is_own = self.count_of(from) >= most;
        let of_those =
            |sign_in: &SignIn| if is_own { sign_in.from == from } else { self.count_of(sign_in.from) == most };
        let by_age = self.by_number.values().filter_map(|code| self.by_code.get(code)).filter(|known| of_those(known));
        let idle = by_age.clone().find(|sign_in| sign_in.waiting.is_none());
        let oldest = idle.or_else(|| by_age.clone().next().filter(|_| !is_own));
        oldest.map(|sign_in| Some(sign_in.number)).ok_or(())
    }

    fn count_of(&self, source: IpAddr) -> usize {
        self.of_source.get(&source).copied().unwrap_or_default()
    }

    /// A machine waits. It has no other, and there is room.
    pub(super) fn open(&mut self, code: String, machine: MachinePublic, from: IpAddr, request: RegisterRequest) -> u64 {
        let (number, from) = (self.next, ip::source(from));
        self.next += 1;
        self.by_machine.insert(machine, code.clone());
        self.by_number.insert(number, code.clone());
        *self.of_source.entry(from).or_default() += 1;
        self.by_code.insert(code, SignIn { number, machine, from, request, waiting: None });
        number
    }

    pub(super) fn close(&mut self, code: &str) -> Option<SignIn> {
        let sign_in = self.by_code.remove(code)?;
        self.by_machine.remove(&sign_in.machine);
        self.by_number.remove(&sign_in.number);
        if let Some(count) = self.of_source.get_mut(&sign_in.from) {
            *count -= 1;
            if *count == 0 {
                self.of_source.remove(&sign_in.from);
            }
        }
        if let Some(request) = sign_in.waiting {
            self.by_request.remove(&request);
        }
        Some(sign_in)
    }

    /// A request waits at a sign-in; gives the one that waited before.
    pub(super) fn wait(&mut self, code: &str, request: (ConnId, RequestId)) -> Option<(ConnId, RequestId)> {
        let sign_in = self.by_code.get_mut(code)?;
        let before = sign_in.waiting.replace(request);
        if let Some(before) = before {
            self.by_request.remove(&before);
        }
        self.by_request.insert(request, code.to_owned());
        before
    }

    /// A request waits no more.
    pub(super) fn note_aborted(&mut self, conn: ConnId, request: RequestId) {
        let Some(code) = self.by_request.remove(&(conn, request)) else { return };
        if let Some(sign_in) = self.by_code.get_mut(&code) {
            sign_in.waiting = None;
        }
    }

    /// No request of a connection waits any more.
    pub(super) fn note_closed(&mut self, conn: ConnId) {
        let all = (conn, RequestId(0))..=(conn, RequestId(u64::MAX));
        let requests: Vec<_> = self.by_request.range(all).map(|((_, request), _)| *request).collect();
        for request in requests {
            self.note_aborted(conn, request);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_code.len()
    }
}
