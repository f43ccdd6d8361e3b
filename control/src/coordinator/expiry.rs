//! What happens when a time has come: keys expire, nodes that left count as offline, ephemeral ones are forgotten.

use core::time::Duration;

use mesh_core::{control::types::NodeId, time::WallTime};
use serde_json::{Value, json};

use super::{Coordinator, timers::Timer};
use crate::{limits, store::Principal};

impl Coordinator {
    /// Timers that follow from what was stored. Nobody is connected.
    pub(super) fn restore_timers(&mut self) {
        self.plan_expiries();
        for (id, member) in self.state.members() {
            // Routers that do not come back are replaced by those that do.
            if member.row.served_routes().next().is_some() {
                self.timers.set(Timer::Offline(*id), self.now + limits::OFFLINE_GRACE);
            }
            if member.row.ephemeral {
                self.timers.set(Timer::Forget(*id), self.now + limits::EPHEMERAL_LIFE);
            }
        }
    }

    /// Which keys have expired, and when the others will, by the calendar as it is set now.
    pub(super) fn plan_expiries(&mut self) {
        let now = self.wall();
        for member in self.state.members().values().cloned().collect::<Vec<_>>() {
            if member.row.is_expired(now) == member.live.expired {
                self.set_expiry(member.id(), member.row.key_expiry);
            } else {
                self.put((*member.row).clone(), member.live.clone());
            }
        }
    }

    /// A node's key expires then.
    pub(super) fn set_expiry(&mut self, id: NodeId, expiry: Option<WallTime>) {
        let now = self.wall();
        match expiry {
            Some(expiry) if expiry > now => {
                let wait = Duration::from_nanos(expiry.as_unix_nanos() - now.as_unix_nanos());
                self.timers.set(Timer::Expire(id), self.after(wait));
            }
            Some(_) | None => self.timers.clear(Timer::Expire(id)),
        }
    }

    /// A node's key is due to expire.
    pub(super) fn expire_due(&mut self, id: NodeId) {
        let Some(member) = self.state.member(id).cloned() else { return };
        if member.row.is_expired(self.wall()) && !member.live.expired {
            let seen = self.seen(&member.row);
            self.audit(Principal::Server, "node.expire", &member.row.stable_id, seen.clone(), seen);
        }
        self.put((*member.row).clone(), member.live.clone());
    }

    /// A node's stream ended. It may be back in a moment.
    pub(super) fn note_leaving(&mut self, id: NodeId) {
        self.timers.set(Timer::Offline(id), self.after(limits::OFFLINE_GRACE));
        if self.state.member(id).is_some_and(|member| member.row.ephemeral) {
            self.timers.set(Timer::Forget(id), self.after(limits::EPHEMERAL_LIFE));
        }
    }

    /// A node was let in. It opens its map, or is forgotten where it is ephemeral.
    pub(super) fn note_admitted(&mut self, id: NodeId) {
        if self.streams.of_node(id).is_none() && self.state.member(id).is_some_and(|member| member.row.ephemeral) {
            self.timers.set(Timer::Forget(id), self.after(limits::EPHEMERAL_LIFE));
        }
    }

    /// A node did not come back.
    pub(super) fn note_gone(&mut self, id: NodeId) {
        let Some(member) = self.state.member(id).cloned() else { return };
        if self.streams.of_node(id).is_some() {
            return;
        }
        let (mut row, mut live) = ((*member.row).clone(), member.live.clone());
        if live.online {
            live.online = false;
            row.last_seen = Some(self.wall());
        }
        self.put(row, live);
    }

    /// An ephemeral node has been gone long enough.
    pub(super) fn forget_ephemeral(&mut self, id: NodeId) {
        let Some(member) = self.state.member(id).cloned() else { return };
        if !member.row.ephemeral || self.streams.of_node(id).is_some() {
            return;
        }
        let before = json!({ "name": member.row.name, "ephemeral": true });
        self.audit(Principal::Server, "node.delete", &member.row.stable_id, before, Value::Null);
        self.forget(id);
    }

    /// Nobody signed in for a node; who still waits gets another URL.
    pub(super) fn expire_sign_in(&mut self, number: u64) {
        let Some(code) = self.sign_ins.code(number).map(str::to_owned) else { return };
        let Some(sign_in) = self.sign_ins.close(&code) else { return };
        if let Some((conn, id)) = sign_in.waiting {
            let caller = super::Caller { conn, id, machine: sign_in.machine, from: sign_in.from };
            self.sign_in(caller, sign_in.request);
        }
    }
}
