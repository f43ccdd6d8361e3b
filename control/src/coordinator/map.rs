//! Map requests: updates of a node, maps for once, and opening a stream.
//!
//! What a node says of itself counts when it comes in an update. In the request of a stream it counts only where nothing is
//! known: clients that open a stream may know less of themselves than they did a moment ago.

use std::{collections::BTreeSet, sync::Arc};

use mesh_core::{
    control::types::{Hostinfo, MapRequest, NodeId},
    ip::prefix::Prefix,
};
use serde_json::json;

use super::{
    Caller, Coordinator, clone,
    hostinfo::{bound, merged},
    output::{Refusal, Response},
    timers::Timer,
};
use crate::{
    limits, names,
    policy::Assigner,
    render::MapUpdate,
    store::{
        NodeRow, Principal,
        node::{Live, Member},
    },
};

impl Coordinator {
    pub(super) fn map(&mut self, caller: Caller, request: MapRequest) {
        if request.version < limits::MIN_CAPABILITY_VERSION {
            return self.refuse(caller, too_old(request.version));
        }
        let member = match self.own_node(caller.machine, &request.node_key) {
            Ok(member) => member,
            Err(refusal) => return self.refuse(caller, refusal),
        };
        let node = member.id();
        if !request.read_only && self.is_displaced(node, caller.conn) {
            if request.stream {
                self.note_clone(node);
            }
            return self.refuse(caller, clone::refusal());
        }
        let Some(request) = self.in_turn(node, caller, request) else { return };
        // A stream that is to change nothing would end the one that the node has open: it gets one map.
        let opens = request.stream && !request.read_only;
        if opens {
            let stream = self.open_stream(node, caller.conn, caller.id, request.keep_alive);
            self.respond(caller, Response::Stream(stream));
        }
        if !request.read_only {
            self.update(&member, &request);
        }
        let is_other = self.state.member(node).is_none_or(|now| !Arc::ptr_eq(now, &member));
        if is_other || opens || !request.omit_peers {
            self.note_cost(node);
        }
        if opens {
            return;
        }
        if request.omit_peers {
            return self.respond(caller, Response::Updated);
        }
        let (snapshot, is_new) = self.state.snapshot();
        self.counters.snapshots_total += u64::from(is_new);
        self.counters.full_maps_total += 1;
        let update = MapUpdate::full(None, node, snapshot, self.wall());
        self.respond(caller, Response::Once(Box::new(update)));
    }

    /// Takes in what a request says of its node.
    fn update(&mut self, member: &Member, request: &MapRequest) {
        let mut row = (*member.row).clone();
        let mut live = member.live.clone();
        row.cap = request.version;
        let is_known = |known: bool| request.stream && known;
        if !is_known(row.disco.is_some()) {
            row.disco = request.disco_key.or(row.disco);
        }
        if !is_known(!live.endpoints.is_empty()) && (!request.stream || !request.endpoints.is_empty()) {
            live.endpoints = request.endpoints.iter().copied().take(limits::ENDPOINTS).collect();
            let kinds = request.endpoint_types.iter().copied().chain(core::iter::repeat(0));
            live.endpoint_kinds = kinds.take(live.endpoints.len()).collect();
        }
        if let Some(said) = &request.hostinfo {
            let mut said = (**said).clone();
            bound(&mut said);
            if live.expired {
                // Who it is and what it serves counts once it has signed in, by what it says then.
                row.hostinfo.net_info = merged(said, &row.hostinfo).net_info;
            } else if !request.stream {
                self.note_host(&mut row, said);
            } else if row.hostinfo.net_info.is_none() {
                row.hostinfo.net_info = said.net_info;
            }
        }
        self.put(row, live);
    }

    /// A node says of itself what it is.
    fn note_host(&mut self, row: &mut NodeRow, said: Hostinfo) {
        let known = core::mem::take(&mut *row.hostinfo);
        let said = merged(said, &known);
        self.note_name(row, &said, &known);
        let wanted: BTreeSet<_> = said.request_tags.iter().cloned().collect();
        let asked_before = known.request_tags.iter().cloned().collect();
        *row.hostinfo = said;
        let is_asking = wanted != asked_before && !wanted.is_empty() && !wanted.is_subset(&row.tags);
        if is_asking && !row.is_expired(self.wall()) {
            self.note_wanted_tags(row, wanted);
        }
        self.note_routes(row, &known);
    }

    /// A host is called otherwise than before, and so is its node where nobody has fixed its name.
    pub(super) fn note_name(&mut self, row: &mut NodeRow, said: &Hostinfo, known: &Hostinfo) {
        let label = names::label(&said.hostname);
        if !row.name_is_fixed && label != names::label(&known.hostname) {
            row.name = self.state.names.like(&label, row.id, Some(&row.name));
        }
    }

    /// A node offers other routes than before: the policy may approve them.
    pub(super) fn note_routes(&self, row: &mut NodeRow, known: &Hostinfo) {
        if row.hostinfo.routable_ips != known.routable_ips {
            let approved = self.state.approved_by_policy(row);
            row.approved_routes.extend(approved);
        }
    }

    /// A node asks for other tags. One that may not have them has to sign in again, as stock servers want it.
    fn note_wanted_tags(&mut self, row: &mut NodeRow, wanted: BTreeSet<String>) {
        let who = match row.user {
            Some(user) => Assigner::User(user),
            None => Assigner::Tags(&row.tags),
        };
        let is_good = |tag: &String| row.tags.contains(tag) || self.state.rulebook().may_assign(who, tag);
        let actor = Principal::Node(row.stable_id.clone());
        if wanted.iter().all(is_good) {
            let before = json!({ "tags": row.tags });
            (row.tags, row.user, row.key_expiry) = (wanted, None, None);
            let after = json!({ "tags": row.tags });
            self.audit(actor, "node.tag", &row.stable_id, before, after);
        } else {
            row.key_expiry = Some(self.wall());
            self.audit(actor, "node.expire", &row.stable_id, json!({ "asked": wanted }), json!({ "expired": true }));
        }
    }

    /// A node is to be so. One that has its map open and a disco key is of use to others, and they are told.
    pub(super) fn put(&mut self, mut row: NodeRow, mut live: Live) {
        let id = row.id;
        live.online |= self.streams.of_node(id).is_some();
        live.expired = row.is_expired(self.wall());
        live.cloned = self.displaced.get(&id).is_some_and(|displaced| displaced.is_clone);
        let (expired, was_expired) = (live.expired, self.state.member(id).is_some_and(|member| member.live.expired));
        row.announced |= row.disco.is_some() && live.online;
        self.set_expiry(id, row.key_expiry);
        let served = self.state.served_subnets(id).collect();
        self.state.put_node(row, live);
        self.elect(id, served);
        if expired != was_expired {
            self.note_expiry(id, expired);
        }
    }

    /// A node that served these subnets is other than before: no subnet of its has a primary router that is away when
    /// there is another.
    pub(super) fn elect(&mut self, id: NodeId, served: BTreeSet<Prefix>) {
        // A router that is not back yet may be in a moment.
        let timers = &self.timers;
        self.state.elect(id, served, |router| timers.get(Timer::Offline(router)).is_some());
    }
}

/// The text that a node gets that is not served.
pub(super) fn too_old(version: i64) -> Refusal {
    let least = limits::MIN_CAPABILITY_VERSION;
    let text = format!("capability version {version} is too old: this server needs {least} (Tailscale 1.80) or later");
    Refusal::new(400, text)
}
