//! A node as it is told to its peers and to itself, and the users.
//!
//! Peers are told of a host what they can use: its system, its name, what it serves, its SSH keys and where it is. What
//! it says of its network, its logs and its serial numbers stays here.

use core::net::IpAddr;
use std::collections::BTreeSet;

use mesh_core::{
    control::types::{CapMap, Expiry, Hostinfo, Login, PeerChange, PeerNode, User, UserId, UserProfile},
    ip::prefix::Prefix,
    time::WallTime,
};
use serde_json::Value;

use crate::{
    policy::{Role, Rulebook},
    store::{log::Parts, node::Member, rows::UserRow, snapshot::Snapshot},
};

/// The user that stands for the owner of tagged nodes; the number is headscale's.
pub const TAGGED_USER: UserId = UserId(2_147_455_555);
/// What that user is called.
pub const TAGGED_LOGIN: &str = "tagged-devices";

/// A node as those see it who are shown `routes`.
pub(super) fn peer(member: &Member, routes: &BTreeSet<Prefix>, base_domain: &str) -> PeerNode {
    let (row, live) = (&member.row, &member.live);
    let mut cap_map = CapMap::default();
    if row.served_routes().any(|route| route.length() == 0) {
        cap_map.0.insert("suggest-exit-node".to_owned(), Vec::new());
    }
    PeerNode {
        disco_key: row.disco,
        endpoints: live.endpoints.clone(),
        home_derp: row.home().map_or(0, |home| home.number().into()),
        hostinfo: Some(Box::new(shown(&row.hostinfo))),
        cap: row.cap,
        last_seen: row.last_seen.filter(|_| !live.online),
        online: Some(live.online),
        expired: live.expired,
        cap_map,
        ..both(member, routes.iter().copied(), base_domain)
    }
}

/// What a peer and the node itself are told alike.
fn both(member: &Member, routes: impl Iterator<Item = Prefix>, base_domain: &str) -> PeerNode {
    let row = &member.row;
    let addresses: Vec<_> = row.addresses().into_iter().map(Prefix::host).collect();
    let mut allowed = addresses.clone();
    allowed.extend(routes);
    PeerNode {
        id: row.id,
        stable_id: row.stable_id.clone(),
        name: full_name(&row.name, base_domain),
        user: row.user.unwrap_or(TAGGED_USER),
        key: row.key,
        key_expiry: row.key_expiry,
        primary_routes: allowed.iter().skip(addresses.len()).filter(|route| route.length() > 0).copied().collect(),
        addresses,
        allowed_ips: Some(allowed),
        created: Some(row.created),
        tags: row.tags.iter().cloned().collect(),
        ..PeerNode::default()
    }
}

/// A name in its domain, with a trailing dot.
pub(crate) fn full_name(name: &str, base_domain: &str) -> String {
    format!("{name}.{base_domain}.")
}

/// What of a host its peers are told.
pub(crate) fn shown(hostinfo: &Hostinfo) -> Hostinfo {
    Hostinfo {
        os: hostinfo.os.clone(),
        hostname: hostinfo.hostname.clone(),
        services: hostinfo.services.clone(),
        ssh_host_keys: hostinfo.ssh_host_keys.clone(),
        app_connector: hostinfo.app_connector,
        peer_relay: hostinfo.peer_relay,
        location: hostinfo.location.clone(),
        ..Hostinfo::default()
    }
}

/// What changed in a peer, as a patch. A patch with a disco key says that the node is online, or not whether it is:
/// stock clients drop one that says when an offline node was last seen and is not news.
pub(super) fn patch(member: &Member, parts: Parts) -> PeerChange {
    let (row, live) = (&member.row, &member.live);
    let mut patch = PeerChange { node_id: row.id, ..PeerChange::default() };
    if parts.has(Parts::KEY) {
        patch.key = Some(row.key);
    }
    if parts.has(Parts::EXPIRY) {
        patch.key_expiry = Some(row.key_expiry.map_or(Expiry::Never, Expiry::At));
    }
    if parts.has(Parts::DISCO) {
        patch.disco_key = row.disco;
        patch.online = live.online.then_some(true);
    }
    if parts.has(Parts::ENDPOINTS) {
        patch.endpoints = Some(live.endpoints.clone());
    }
    if parts.has(Parts::HOME) {
        patch.derp_region = row.home().map_or(0, |home| home.number().into());
    }
    if parts.has(Parts::CAP) {
        patch.cap = row.cap;
    }
    if parts.has(Parts::ONLINE) {
        patch.online = Some(live.online);
        patch.last_seen = row.last_seen.filter(|_| !live.online && !parts.has(Parts::DISCO));
    }
    patch
}

/// Who stands for tagged nodes.
pub(super) fn tagged_profile() -> UserProfile {
    UserProfile {
        id: TAGGED_USER,
        login_name: TAGGED_LOGIN.to_owned(),
        display_name: "Tagged Devices".to_owned(),
        ..UserProfile::default()
    }
}

impl Snapshot {
    /// A node as it is told to itself.
    pub(super) fn own_node(&self, member: &Member) -> PeerNode {
        let routes: BTreeSet<_> = member.row.served_routes().collect();
        let mut own = both(member, routes.into_iter(), &self.base_domain);
        own.primary_routes.retain(|route| self.rulebook.primary(*route) == Some(member.id()));
        own.machine_authorized = true;
        own.expired = member.live.expired;
        own.cap_map = own_capabilities(member, &self.rulebook);
        own
    }

    /// The user of a node as others are told of them.
    pub(super) fn profile(&self, member: &Member) -> UserProfile {
        let Some(user) = member.row.user else {
            return tagged_profile();
        };
        let row = self.users.get(&user);
        UserProfile {
            id: user,
            login_name: row.map(|row| row.login.clone()).unwrap_or_default(),
            display_name: row.map(|row| row.display_name.clone()).unwrap_or_default(),
            ..UserProfile::default()
        }
    }
}

/// What a node may do or is told to do: what headscale gives to all, names over IPv6, and who its user is.
fn own_capabilities(member: &Member, rulebook: &Rulebook) -> CapMap {
    let mut capabilities = CapMap::default();
    let mut add = |name: &str, values| drop(capabilities.0.insert(name.to_owned(), values));
    add("https://tailscale.com/cap/ssh", Vec::new());
    add("https://tailscale.com/cap/file-sharing", Vec::new());
    add("default-auto-update", vec![Value::Bool(false)]);
    add("magicdns-aaaa", Vec::new());
    let role = member.row.user.and_then(|user| rulebook.user(user)).map(|user| user.role);
    if role.is_some_and(|role| role.includes(Role::Admin)) {
        add("https://tailscale.com/cap/is-admin", Vec::new());
    }
    if role == Some(Role::Owner) {
        add("https://tailscale.com/cap/is-owner", Vec::new());
    }
    capabilities
}

/// The user of a registration.
pub(crate) fn user(row: Option<&UserRow>) -> User {
    let Some(row) = row else {
        return User { id: TAGGED_USER, display_name: "Tagged Devices".to_owned(), ..User::default() };
    };
    User { id: row.id, display_name: row.display_name.clone(), created: Some(row.created), ..User::default() }
}

/// How the user of a registration signed in.
pub(crate) fn login(row: Option<&UserRow>) -> Login {
    let (id, login_name, display_name) = row.map_or_else(
        || (TAGGED_USER.0, TAGGED_LOGIN.to_owned(), "Tagged Devices".to_owned()),
        |row| (row.id.0, row.login.clone(), row.display_name.clone()),
    );
    Login { id, provider: "mesh".to_owned(), login_name, display_name, ..Login::default() }
}

/// Whether two lists of endpoints differ in more than the port that a NAT gave: something that a peer would miss.
pub(crate) fn adds_endpoint(before: &[(core::net::SocketAddr, i64)], after: &[(core::net::SocketAddr, i64)]) -> bool {
    /// Learnt by STUN, as a map request says it.
    const STUN: [i64; 2] = [2, 4];
    let known: BTreeSet<_> = before.iter().map(|(endpoint, _)| *endpoint).collect();
    let hosts: BTreeSet<IpAddr> = before.iter().map(|(endpoint, _)| endpoint.ip()).collect();
    after
        .iter()
        .filter(|(endpoint, _)| !known.contains(endpoint))
        .any(|(endpoint, kind)| !STUN.contains(kind) || !hosts.contains(&endpoint.ip()))
}

/// How a node was when it was deleted: expired since then.
pub(super) fn expired_since(mut own: PeerNode, at: WallTime) -> PeerNode {
    own.key_expiry = Some(own.key_expiry.map_or(at, |expiry| expiry.min(at)));
    own.expired = true;
    own
}
