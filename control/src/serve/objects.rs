//! The objects of the REST API, as the socket answers them and `--json` prints them.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use mesh_core::time::WallTime;
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    coordinator::{KeyView, NodeView, Reply, SignInView},
    store::{UserRow, role_name},
};

/// What a command comes to, as an object.
pub(super) fn reply(reply: &Reply) -> Value {
    match reply {
        Reply::Users(users) => json!({ "users": users.iter().map(user).collect::<Vec<_>>() }),
        Reply::Keys(keys) => json!({ "keys": keys.iter().map(key).collect::<Vec<_>>() }),
        Reply::Nodes { nodes, has_policy } => {
            json!({ "devices": nodes.iter().map(device).collect::<Vec<_>>(), "hasPolicy": has_policy })
        }
        Reply::User(row) => user(row),
        Reply::Node(view) => device(view),
        Reply::SignIn(SignInView { machine, hostname, os, tags }) => {
            json!({ "machineKey": machine, "hostname": hostname, "os": os, "tags": tags })
        }
        Reply::Key(view) => key(view),
        Reply::NewKey { key: view, text } => {
            let mut object = key(view);
            object["key"] = text.0.as_str().into();
            object
        }
        Reply::Policy(text) => json!({ "policy": text }),
        Reply::PolicyGood => json!({}),
        Reply::Difference { lines, more } => json!({ "lines": lines, "more": more }),
        Reply::Explained { allowed, text } => json!({ "allowed": allowed, "text": text }),
        Reply::Verdict(allow) => json!({ "Allow": allow }),
    }
}

fn user(row: &UserRow) -> Value {
    json!({
        "id": row.stable_id,
        "loginName": row.login,
        "displayName": row.display_name,
        "role": role_name(row.role),
        "type": "member",
        "status": "active",
        "created": stamp(row.created),
    })
}

fn key(KeyView { key, login, invalid }: &KeyView) -> Value {
    let create = json!({
        "reusable": key.reusable,
        "ephemeral": key.ephemeral,
        "preauthorized": true,
        "tags": key.tags,
    });
    let life = key.expires.as_unix_nanos().saturating_sub(key.created.as_unix_nanos()) / 1_000_000_000;
    let mut object = json!({
        "id": key.id,
        "keyType": "auth",
        "description": "",
        "expirySeconds": life,
        "created": stamp(key.created),
        "expires": stamp(key.expires),
        "capabilities": { "devices": { "create": create } },
        "user": login,
        "uses": key.uses,
    });
    if let Some(revoked) = key.revoked {
        object["revoked"] = stamp(revoked).into();
    }
    if *invalid {
        object["invalid"] = true.into();
    }
    object
}

fn device(view: &NodeView) -> Value {
    let NodeView { node, .. } = view;
    let host = &node.hostinfo;
    let mut object = json!({
        "addresses": view.addresses,
        "id": node.id.0.to_string(),
        "nodeId": node.stable_id,
        "user": view.login,
        "name": view.full_name,
        "hostname": host.hostname,
        "clientVersion": host.ipn_version,
        "updateAvailable": false,
        "os": host.os,
        "created": stamp(node.created),
        "connectedToControl": view.online,
        "keyExpiryDisabled": node.key_expiry.is_none(),
        "expired": view.expired,
        "authorized": true,
        "isExternal": false,
        "isEphemeral": node.ephemeral,
        "machineKey": node.machine,
        "nodeKey": node.key,
        "blocksIncomingConnections": host.shields_up,
        "tailnetLockKey": node.nl_key,
        "sshEnabled": !host.ssh_host_keys.is_empty(),
        "advertisedRoutes": view.advertised_routes,
        "enabledRoutes": view.enabled_routes,
        "primaryRoutes": view.primary_routes,
        "clientConnectivity": connectivity(view),
    });
    if let Some(expiry) = node.key_expiry {
        object["expires"] = stamp(expiry).into();
    }
    if let Some(seen) = view.last_seen.filter(|_| !view.online) {
        object["lastSeen"] = stamp(seen).into();
    }
    if !node.tags.is_empty() {
        object["tags"] = json!(node.tags);
    }
    object
}

fn connectivity(view: &NodeView) -> Value {
    let mut object = Map::new();
    object.insert("endpoints".to_owned(), json!(view.endpoints));
    let home = view.node.home().map(|region| region.to_string()).unwrap_or_default();
    object.insert("derp".to_owned(), home.into());
    if let Some(net) = &view.node.hostinfo.net_info {
        object.insert("mappingVariesByDestIP".to_owned(), json!(net.mapping_varies_by_dest_ip));
        let supports = json!({
            "ipv6": net.working_ipv6,
            "udp": net.working_udp,
            "upnp": net.upnp,
            "pmp": net.pmp,
            "pcp": net.pcp,
        });
        object.insert("clientSupports".to_owned(), supports);
    }
    object.into()
}

/// A time in RFC 3339, to the second.
pub(super) fn stamp(time: WallTime) -> String {
    let secs = i64::try_from(time.as_unix_nanos() / 1_000_000_000).unwrap_or(i64::MAX);
    let time = OffsetDateTime::from_unix_timestamp(secs).ok();
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_rfc_3339() {
        assert_eq!(stamp(WallTime::from_unix_nanos(1_767_323_045_999_999_999)), "2026-01-02T03:04:05Z");
        assert_eq!(stamp(WallTime::UNIX_EPOCH), "1970-01-01T00:00:00Z");
        assert!(!stamp(WallTime::from_unix_nanos(u64::MAX)).is_empty());
    }
}
