//! The log of what happened, for those who run the server: a line for each change that was stored, made of the audit
//! record, which holds no secret.

use mesh_core::printable;
use serde_json::Value;
use tracing::info;

use crate::store::{AuditRow, Mutation, Principal};

/// Tells what is on disk by now.
pub(super) fn tell(mutations: &[Mutation]) {
    for mutation in mutations {
        if let Mutation::Audit(row) = mutation {
            tell_row(row);
        }
    }
}

fn tell_row(row: &AuditRow) {
    let Line { what, by, id, name, owner, auth_key } = Line::of(row);
    info!(by, id, name, owner, auth_key, "{what}");
}

/// A line; what does not apply is left out of it.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    what: &'a str,
    by: String,
    id: &'a str,
    name: Option<String>,
    owner: Option<String>,
    auth_key: Option<&'a str>,
}

impl<'a> Line<'a> {
    fn of(row: &'a AuditRow) -> Self {
        let what = match row.action.as_str() {
            "node.create" => "a node joined",
            "node.reauthenticate" => "a node signed in again",
            "node.rotate" => "a node changed its key",
            "node.register" => "a node was admitted",
            "node.logout" => "a node signed out",
            "node.expire" => "the sign-in of a node ended",
            "node.clone" => "two machines use the keys of a node: one of them has to be signed in anew",
            "node.disconnect" => "the user of a node disconnected it",
            "node.delete" => "a node was deleted",
            "node.tag" => "a node was given tags",
            "node.rename" => "a node was renamed",
            "node.routes" => "the routes of a node were approved",
            "user.create" => "a user was made",
            "user.delete" => "a user was deleted",
            "key.create" => "an auth key was made",
            "key.expire" => "an auth key was ended",
            "policy.set" => "the policy was changed",
            other => other,
        };
        let by = match &row.actor {
            Principal::Operator(name) => name.clone(),
            Principal::Node(_) => "the node".to_owned(),
            Principal::Server => "the server".to_owned(),
        };
        let seen = if row.after.is_null() { &row.before } else { &row.after };
        let tags: Vec<_> = seen["tags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let shown = |text: &str| printable::line(text).into_owned();
        let login = seen["login"].as_str();
        Self {
            what,
            by,
            id: &row.target,
            name: seen["name"].as_str().map(shown),
            owner: if tags.is_empty() { login.map(shown) } else { Some(tags.join(",")) },
            auth_key: seen["auth_key"].as_str(),
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::time::WallTime;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_says_who_did_what_to_whom() {
        let seen = |login: &str, tags: &[&str]| {
            let key = "nodekey:aa";
            json!({ "name": "web", "key": key, "login": login, "tags": tags, "auth_key": "k1CNTRL" })
        };
        let row = |actor, action: &str, before, after| AuditRow {
            at: WallTime::UNIX_EPOCH,
            actor,
            action: action.to_owned(),
            target: "n1CNTRL".to_owned(),
            before,
            after,
        };
        let joined = row(Principal::Node("n1CNTRL".into()), "node.create", Value::Null, seen("alice", &[]));
        let line = Line::of(&joined);
        assert_eq!((line.what, line.by.as_str(), line.id), ("a node joined", "the node", "n1CNTRL"));
        assert_eq!((line.name.as_deref(), line.owner.as_deref()), (Some("web"), Some("alice")));
        assert_eq!(line.auth_key, Some("k1CNTRL"));
        let deleted =
            row(Principal::Operator("root".into()), "node.delete", seen("alice", &["tag:a", "tag:b"]), Value::Null);
        let line = Line::of(&deleted);
        assert_eq!((line.by.as_str(), line.owner.as_deref()), ("root", Some("tag:a,tag:b")));
        // Of a policy nothing is told but that it is another.
        let policy = row(Principal::Server, "policy.set", Value::Null, json!("{\"acls\": []}"));
        let line = Line::of(&policy);
        assert_eq!((line.what, line.name, line.owner, line.auth_key), ("the policy was changed", None, None, None));
    }
}
