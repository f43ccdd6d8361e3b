//! What is refused, in which words and where.

use super::super::Policy;

fn refused(text: &str) -> String {
    Policy::parse(text).expect_err(text).to_string()
}

fn acl(src: &str, dst: &str) -> String {
    format!(
        "{{\"tagOwners\": {{\"tag:a\": []}}, \"groups\": {{\"group:g\": [\"a@b.c\"]}}, \"hosts\": {{\"h\": \"10.0.0.1\"}},\n\
         \"acls\": [{{\"action\": \"accept\", \"src\": [{src:?}],\n\"dst\": [{dst:?}]}}]}}"
    )
}

fn grant(fields: &str) -> String {
    format!("{{\"tagOwners\": {{\"tag:a\": []}},\n\"grants\": [{{{fields}}}]}}")
}

#[test]
fn acls_are_refused_in_the_stock_services_words() {
    for (src, dst, message) in [
        ("tag:x", "*:*", "line 2, column 39: src=tag not found: \"tag:x\""),
        ("*", "tag:x:22", "line 3, column 9: dst=\"tag:x\": tag not found: \"tag:x\""),
        ("*", "autogroup:self", "line 3, column 9: dst=\"autogroup:self\": port range \"self\": invalid first integer"),
        (
            "*",
            "tag:a:0",
            "line 3, column 9: dst=\"tag:a:0\": port range \"0\": first port must be >0, or use '*' for wildcard",
        ),
        ("autogroup:self", "*:*", "line 2, column 39: \"autogroup:self\" not valid on the src side of a rule"),
        ("autogroup:internet", "*:*", "line 2, column 39: autogroup:internet can only be used in ACL destinations"),
        ("*", "autogroup:danger-all:*", "line 3, column 9: cannot use autogroup:danger-all as a dst"),
        (
            "tag:a",
            "autogroup:self:*",
            "line 3, column 9: autogroup:self can only be used with users, groups, or supported autogroups",
        ),
        (
            "h",
            "autogroup:self:*",
            "line 3, column 9: autogroup:self can only be used with users, groups, or supported autogroups",
        ),
        ("group:x", "*:*", "line 2, column 39: src=group not defined in policy: \"group:x\""),
        ("nobody", "*:*", "line 2, column 39: host not defined in policy: \"nobody\""),
        ("autogroup:x", "*:*", "line 2, column 39: unknown autogroup: \"autogroup:x\""),
        ("10.0.0.0/33", "*:*", "line 2, column 39: invalid address or name: \"10.0.0.0/33\""),
        ("*", "h", "line 3, column 9: dst=\"h\": hostport must contain a colon"),
    ] {
        assert_eq!(refused(&acl(src, dst)), message);
    }
    assert_eq!(
        refused(&acl("*", "*:*").replace("accept", "deny")),
        "line 2, column 21: action=\"deny\" is not supported"
    );
    for src in ["*", "a@b.c", "group:g", "group:of@directory", "autogroup:member", "autogroup:owner", "user:*@b.c"] {
        Policy::parse(&acl(src, "autogroup:self:*")).unwrap_or_else(|why| panic!("{src}: {why}"));
    }
}

#[test]
fn grants_are_refused_in_the_stock_services_words() {
    let rest = "\"src\": [\"*\"], \"dst\": [\"tag:a\"]";
    for (fields, message) in [
        (rest.to_owned(), "ip and app can not both be empty"),
        (format!("{rest}, \"ip\": [\"icmp\"]"), "port range \"icmp\": invalid first integer"),
        (format!("{rest}, \"app\": {{\"https://x.y/z\": []}}"), "capability name must have the form {domain}/{path}"),
        (
            format!("{rest}, \"app\": {{\"tailscale.com/cap/relay-target\": []}}"),
            "capability name must not be in the tailscale.com domain",
        ),
        (format!("{rest}, \"ip\": [\"*\"], \"via\": [\"a@b.c\"]"), "via can only be a tag"),
        (format!("{rest}, \"ip\": [\"*\"], \"via\": [\"tag:x\"]"), "tag \"tag:x\" not found"),
        ("\"src\": [\"*\"], \"dst\": [\"tag:x\"], \"ip\": [\"*\"]".to_owned(), "tag not found: \"tag:x\""),
        (
            "\"src\": [\"*\"], \"dst\": [\"::/0\"], \"ip\": [\"*\"]".to_owned(),
            "dst \"::/0\": to allow all IP addresses, use \"*\" or \"autogroup:internet\"",
        ),
        (
            "\"src\": [\"*\"], \"dst\": [\"autogroup:self\"], \"ip\": [\"*\"]".to_owned(),
            "autogroup:self can only be used with users, groups, or supported autogroups",
        ),
        (
            "\"src\": [\"*\"], \"dst\": [\"autogroup:internet\"], \"app\": {\"x.y/z\": [{}]}".to_owned(),
            "cannot use app grants with autogroup:internet",
        ),
    ] {
        let found = refused(&grant(&fields));
        assert!(found.starts_with("line 2, column ") && found.ends_with(message), "{found}");
    }
    assert!(Policy::parse(&grant("\"src\": [], \"dst\": [], \"ip\": [\"*\"]")).is_ok());
}

#[test]
fn definitions_are_refused_where_they_are_wrong() {
    for (text, message) in [
        (
            r#"{"groups": {"group:a": ["group:b"], "group:b": ["group:a"]}}"#,
            "groups[\"group:b\"]: \"group:a\": group members cannot be recursive",
        ),
        (r#"{"groups": {"a": []}}"#, "groups[\"a\"]: group names must start with \"group:\""),
        (r#"{"groups": {"group:a": ["tag:x"]}}"#, "username must contain @"),
        (
            r#"{"tagOwners": {"tag:сервер": []}}"#,
            "tagOwners[\"tag:сервер\"]: tag names must start with a letter, after 'tag:'",
        ),
        (r#"{"tagOwners": {"tag:a_b": []}}"#, "can only contain letters, digits and '-'"),
        (r#"{"tagOwners": {"tag:a": ["tag:b"]}}"#, "tag not found: \"tag:b\""),
        (r#"{"tagOwners": {"tag:a": ["10.0.0.1"]}}"#, "invalid owner \"10.0.0.1\""),
        (r#"{"hosts": {"h": "10.0.0"}}"#, "hostname contains invalid IP address"),
        (r#"{"hosts": {"h:1": "10.0.0.1"}}"#, "host names cannot contain"),
        (r#"{"autoApprovers": {"routes": {"10.0.0.0/40": []}}}"#, "autoApprovers[\"10.0.0.0/40\"]"),
        (r#"{"autoApprovers": {"exitNode": ["tag:x"]}}"#, "tag not found: \"tag:x\""),
    ] {
        let found = refused(text);
        let first = found.lines().next().unwrap_or_default();
        assert!(first.starts_with("line 1, column ") && first.contains(message), "{found}");
    }
    let circle = r#"{"tagOwners": {"tag:a": ["tag:b"], "tag:b": ["tag:a", "autogroup:admin"]}}"#;
    assert!(Policy::parse(circle).is_ok());
}

#[test]
fn all_problems_are_told_and_not_too_many() {
    let problems = Policy::parse(&grant("\"src\": [\"tag:x\", \"tag:y\"], \"dst\": []")).unwrap_err();
    assert_eq!(problems.list().len(), 3);
    let many = format!("{{\"grants\": [{}]}}", "{}, ".repeat(1000));
    assert_eq!(Policy::parse(&many).unwrap_err().list().len(), super::super::limits::PROBLEMS);
}

/// A rule whose condition is not looked at must not let in everyone.
#[test]
fn what_is_not_built_allows_nothing() {
    let text = acl("*", "*:*").replace("\"src\"", "\"srcPosture\": [\"posture:p\"], \"src\"");
    let policy = Policy::parse(&text).unwrap();
    assert!(policy.rules().is_empty());
    assert_eq!(policy.unbuilt()[0].name, "srcPosture");
    let policy = Policy::parse(&acl("ipset:x", "svc:web:443")).unwrap();
    let names: Vec<_> = policy.unbuilt().iter().map(|unbuilt| unbuilt.name.as_str()).collect();
    assert_eq!(names, ["ipset:x", "svc:web"]);
}

#[test]
fn own_nodes_come_last_unless_all_destinations_are_autogroups() {
    let order = |dst: &str| {
        let text = format!(
            "{{\"tagOwners\": {{\"tag:a\": []}}, \"acls\": [{{\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [{dst}]}}]}}"
        );
        let policy = Policy::parse(&text).unwrap();
        policy.rules().iter().map(|rule| rule.dst[0].text.clone()).collect::<Vec<_>>()
    };
    assert_eq!(order("\"autogroup:self:*\", \"tag:a:1\""), ["tag:a", "autogroup:self"]);
    assert_eq!(order("\"autogroup:self:*\", \"autogroup:member:1\""), ["autogroup:self", "autogroup:member"]);
}
