//! Policies of generated worlds: a few rules of users, tags and groups.

use super::bytes::Bytes;

/// Users that there may be.
pub(super) const USERS: [&str; 3] = ["ann@example.com", "bob@example.com", "cleo@example.com"];
/// Tags that there may be.
pub(super) const TAGS: [&str; 2] = ["tag:a", "tag:b"];

const SOURCES: [&str; 9] =
    ["*", USERS[0], USERS[1], USERS[2], "autogroup:member", "autogroup:tagged", TAGS[0], TAGS[1], "group:two"];

/// Everybody may reach everybody.
pub(super) const ALL: &str =
    r#"{"tagOwners": {"tag:a": [], "tag:b": []}, "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;

/// A policy's text.
pub(super) fn draw(draw: &mut Bytes<'_>) -> String {
    let rules = draw.below(5);
    if rules == 0 && !draw.chance(40) {
        return ALL.to_owned();
    }
    let (mut acls, mut grants) = (Vec::new(), Vec::new());
    for _ in 0..rules {
        if draw.chance(80) {
            grants.push(grant(draw));
        } else {
            acls.push(acl(draw));
        }
    }
    let (acls, grants) = (acls.join(", "), grants.join(", "));
    let [one, two, _] = USERS;
    format!(
        r#"{{"groups": {{"group:two": ["{one}", "{two}"]}}, "tagOwners": {{"tag:a": [], "tag:b": []}}, "grants": [{grants}], "acls": [{acls}]}}"#
    )
}

fn acl(draw: &mut Bytes<'_>) -> String {
    if draw.chance(25) {
        return r#"{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}"#.to_owned();
    }
    let proto = draw.pick(&["", "udp", "tcp", "icmp", ""]);
    let ports = draw.pick(&["*", "7000", "1-6999", "22,7000-7001"]);
    let ports = if proto == "icmp" { "*" } else { ports };
    let proto = if proto.is_empty() { String::new() } else { format!(r#""proto": "{proto}", "#) };
    let (from, to) = (draw.pick(&SOURCES), draw.pick(&SOURCES));
    format!(r#"{{"action": "accept", {proto}"src": ["{from}"], "dst": ["{to}:{ports}"]}}"#)
}

fn grant(draw: &mut Bytes<'_>) -> String {
    let (from, to) = (draw.pick(&SOURCES), draw.pick(&SOURCES));
    let ip = draw.pick(&["*", "udp:7000", "tcp:*", "icmp:*", "7000-7001"]);
    format!(r#"{{"src": ["{from}"], "dst": ["{to}"], "ip": ["{ip}"]}}"#)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{check::PolicyText, swarm::bytes};

    #[test]
    fn every_policy_is_understood_by_both_readers() {
        for seed in 0..400 {
            let bytes = bytes::of_seed(seed);
            let text = draw(&mut Bytes::new(&bytes));
            let policy = control::policy::Policy::parse(&text).unwrap_or_else(|problems| panic!("{text}: {problems}"));
            assert!(policy.unbuilt().is_empty(), "{text}");
            PolicyText::parse(&text).unwrap_or_else(|problem| panic!("{text}: {problem}"));
        }
        assert_eq!(draw(&mut Bytes::new(&[])), ALL);
    }
}
