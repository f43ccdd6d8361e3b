//! The policy's own tests: what it must let through and what not.
//!
//! They are judged with the users and nodes of the moment, when a policy is about to be stored; one that is stored
//! stays good although its tests may become false. What is wrong with the form of a test makes it fail, as any other.

use core::{fmt, net::IpAddr};
use std::sync::Arc;

use super::{
    Policy,
    document::{Test, Text},
    explain::Flow,
    ipset::IpSet,
    ports::{Protocol, SCTP, TCP, UDP, USUAL, parse_ports},
    problem::Problem,
    rulebook::Rulebook,
    selector::{Form, Selector, cut},
    tailnet::{Node, User},
};

/// The tests that failed; none is good.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failures(Vec<Problem>);

impl Failures {
    /// Whether all tests passed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What failed, where it is written.
    #[must_use]
    pub fn list(&self) -> &[Problem] {
        &self.0
    }
}

/// The stock service's words, then each failure in a line.
impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("test(s) failed")?;
        self.0.iter().try_for_each(|failure| write!(f, "\n{failure}"))
    }
}

/// What is said of a selector that names no node that is there.
const NOBODY: &str = "it names no address";

/// What is known of a tailnet while tests are judged.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tailnet {
    /// All its users and nodes.
    Known,
    /// Nothing: rules that name users, tags or groups may allow more than can be seen.
    Unknown,
}

impl Policy {
    /// Judges the policy's own tests where no tailnet is known: what fails whatever users and nodes there are, and how
    /// many things that tests want could not be judged.
    #[must_use]
    pub fn run_tests_alone(&self) -> (Failures, usize) {
        let mut failures = Vec::new();
        let rulebook = Rulebook::new(Arc::new(self.clone()), [], []);
        let open = self.tests().iter().map(|test| rulebook.run_test(test, Tailnet::Unknown, &mut failures)).sum();
        (Failures(failures), open)
    }
}

impl Rulebook {
    /// Judges the policy's own tests.
    #[must_use]
    pub fn run_tests(&self) -> Failures {
        let mut failures = Vec::new();
        for test in self.policy.tests() {
            self.run_test(test, Tailnet::Known, &mut failures);
        }
        Failures(failures)
    }

    /// Judges a test, and says how much of it could not be judged.
    fn run_test(&self, test: &Test, tailnet: Tailnet, failures: &mut Vec<Problem>) -> usize {
        let mut fail = |at: &Text, message: String| failures.push(Problem { at: at.at, message });
        let is_open = |why: &str| tailnet == Tailnet::Unknown && why == NOBODY;
        let mut open = 0;
        if test.accept.is_empty() && test.deny.is_empty() {
            fail(&test.src, "test entry must have at least one of \"accept\" or \"deny\"".into());
        }
        let protocols = match self.protocols(&test.proto.value) {
            Ok(protocols) => protocols,
            Err(why) => {
                fail(&test.proto, why);
                return open;
            }
        };
        let sources = match self.sources(&test.src.value) {
            Ok(sources) => Some(sources),
            Err(why) if is_open(&why) => None,
            Err(why) => {
                fail(&test.src, format!("src={:?}: {why}", test.src.value));
                return open;
            }
        };
        for (texts, wanted) in [(&test.accept, true), (&test.deny, false)] {
            for text in texts {
                match self.destination(&text.value) {
                    Ok((addresses, port)) => {
                        let Some(sources) = &sources else {
                            open += 1;
                            continue;
                        };
                        // Every source has to reach one of the destination's addresses in one of the protocols.
                        let reached = sources.spans().iter().all(|src| {
                            addresses.iter().any(|dst| {
                                let flow = |protocol| Flow { src: *src, dst: *dst, protocol, port };
                                protocols.iter().any(|protocol| self.explain(flow(*protocol)).is_ok())
                            })
                        });
                        if !reached && tailnet == Tailnet::Unknown {
                            open += 1;
                        } else if reached != wanted {
                            let say = |reached| if reached { "Accept" } else { "Drop" };
                            let (want, got) = (say(wanted), say(reached));
                            fail(text, format!("address {:?}: want: {want}, got: {got}", text.value));
                        }
                    }
                    Err(why) if is_open(&why) => open += 1,
                    Err(why) => fail(text, format!("address {:?}: {why}", text.value)),
                }
            }
        }
        open
    }

    fn protocols(&self, text: &str) -> Result<Vec<u8>, String> {
        match Protocol::parse(text)?.0 {
            None => Ok(USUAL.to_vec()),
            Some(protocol @ (TCP | UDP | SCTP)) => Ok(vec![protocol]),
            Some(_) => Err("test protocol must be tcp, udp, sctp, or empty".into()),
        }
    }

    fn sources(&self, text: &str) -> Result<IpSet, String> {
        let selector = self.selector(text)?;
        let addresses = match &selector {
            Selector::All | Selector::AnySource | Selector::Internet | Selector::Own => {
                return Err("not valid as the source of a test".into());
            }
            Selector::Address(prefix) => [*prefix].into_iter().collect(),
            selector => self.nodes_named(selector).flat_map(|node| &node.addresses).copied().collect(),
        };
        if IpSet::is_empty(&addresses) { Err(NOBODY.into()) } else { Ok(addresses) }
    }

    fn destination(&self, text: &str) -> Result<(Vec<IpAddr>, u16), String> {
        let (name, ports) = cut(text)?;
        let port = match parse_ports(ports)?.as_slice() {
            [range] if range.first == range.last => range.first,
            _ => return Err("test destination port must be a single port".into()),
        };
        let addresses: Vec<_> = match self.selector(&name)? {
            Selector::Address(prefix) if prefix.is_host() && !name.contains('/') => vec![prefix.address()],
            Selector::Address(_) => return Err("test destination must be a single host, not a CIDR range".into()),
            Selector::All | Selector::AnySource | Selector::Internet | Selector::Own => {
                return Err(format!("{name} not valid as a test destination"));
            }
            selector => self.nodes_named(&selector).flat_map(|node| &node.addresses).copied().collect(),
        };
        if addresses.is_empty() { Err(NOBODY.into()) } else { Ok((addresses, port)) }
    }

    fn selector(&self, text: &str) -> Result<Selector, String> {
        match Form::of(text) {
            Form::Ready(Selector::Group(group)) if !self.policy.groups.contains_key(&group) => {
                Err(format!("group not defined in policy: {group:?}"))
            }
            Form::Ready(selector) => Ok(selector),
            Form::Host(name) => match self.policy.hosts.get(&name) {
                Some(prefix) => Ok(Selector::Address(*prefix)),
                None => Err(format!("host not defined in policy: {name:?}")),
            },
            Form::Unbuilt | Form::UnknownAutogroup | Form::None => Err("invalid address or name".into()),
        }
    }

    /// The nodes that a selector names by what they are. Goes through all nodes: for selectors that no rule has.
    pub(super) fn nodes_named<'a>(&'a self, selector: &'a Selector) -> impl Iterator<Item = &'a Node> {
        self.nodes().filter(move |node| self.is_named(selector, node))
    }

    pub(super) fn is_named(&self, selector: &Selector, node: &Node) -> bool {
        match selector {
            Selector::Tag(tag) => node.tags.contains(tag),
            Selector::Tagged => !node.is_untagged(),
            selector => {
                let user = node.owner().and_then(|user| self.user(user));
                user.is_some_and(|user| self.is_user_named(selector, user))
            }
        }
    }

    pub(super) fn is_user_named(&self, selector: &Selector, user: &User) -> bool {
        let has_name = |name: &str| user.names().contains(name);
        match selector {
            Selector::Member => true,
            Selector::User(login) => has_name(login),
            Selector::UsersOf(domain) => has_name(&format!("*@{domain}")),
            Selector::Group(group) => {
                let mut members = self.policy.groups.get(group).into_iter().flatten();
                members.any(|member| has_name(member.strip_prefix("user:").unwrap_or(member)))
            }
            Selector::Role(role) => user.role.includes(*role),
            Selector::All
            | Selector::AnySource
            | Selector::Internet
            | Selector::Own
            | Selector::Address(_)
            | Selector::Tag(_)
            | Selector::Tagged => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::support;

    fn failures(tests: &str) -> Vec<String> {
        let text = format!(
            r#"{{"tagOwners": {{"tag:web": [], "tag:none": []}}, "groups": {{"group:g": ["bob@example.com"]}},
"hosts": {{"db": "10.0.0.5", "lan": "10.0.0.0/8"}},
"acls": [{{"action": "accept", "src": ["alice@example.com", "100.64.0.3"], "dst": ["tag:web:443", "db:5432"]}},
{{"action": "accept", "src": ["alice@example.com"], "dst": ["tag:web:53"], "proto": "udp"}}],
"tests": [{tests}]}}"#
        );
        let failures = support::rulebook(&text, &["1 alice", "2 alice", "3 bob", "4 tag:web", "5 tag:web"]).run_tests();
        failures.list().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn good_tests_pass() {
        for test in [
            r#"{"src": "alice@example.com", "accept": ["tag:web:443", "db:5432", "100.64.0.4:443"], "deny": ["tag:web:80"]}"#,
            r#"{"src": "alice@example.com", "accept": ["tag:web:53"], "proto": "udp"}"#,
            r#"{"src": "alice@example.com", "deny": ["tag:web:53"], "proto": "6"}"#,
            r#"{"user": "tag:web", "deny": ["[fd7a:115c:a1e0::1]:22"]}"#,
            // Bob's IPv4 address may, his IPv6 address may not.
            r#"{"src": "group:g", "deny": ["tag:web:443"]}"#,
            r#"{"src": "100.64.0.3", "allow": ["tag:web:443"]}"#,
        ] {
            assert_eq!(failures(test), Vec::<String>::new(), "{test}");
        }
    }

    #[test]
    fn without_a_tailnet_a_test_fails_only_when_it_would_in_any() {
        let judged = |tests: &str| {
            let text = format!(
                r#"{{"hosts": {{"db": "10.0.0.5"}}, "tagOwners": {{"tag:web": []}},
"acls": [{{"action": "accept", "src": ["100.64.0.3"], "dst": ["db:5432"]}},
{{"action": "accept", "src": ["alice@example.com"], "dst": ["tag:web:443"]}}], "tests": [{tests}]}}"#
            );
            let (failures, open) = super::Policy::parse(&text).unwrap().run_tests_alone();
            (failures.list().iter().map(ToString::to_string).collect::<Vec<_>>(), open)
        };
        assert_eq!(judged(r#"{"src": "100.64.0.3", "accept": ["db:5432"]}"#), (vec![], 0));
        // What no rule allows now, a rule about a user may allow: 100.64.0.3 may be alice's.
        assert_eq!(judged(r#"{"src": "100.64.0.3", "accept": ["100.64.0.4:443"], "deny": ["db:80"]}"#), (vec![], 2));
        let by_name = r#"{"src": "alice@example.com", "accept": ["tag:web:443"], "deny": ["db:1"]}"#;
        assert_eq!(judged(by_name), (vec![], 2));
        let (failures, open) = judged(r#"{"src": "100.64.0.3", "deny": ["db:5432", "tag:web:443"]}"#);
        assert!(failures.len() == 1 && failures[0].contains("want: Drop, got: Accept"), "{failures:?}");
        assert_eq!(open, 1);
        let (failures, open) = judged(r#"{"src": "alice@example.com", "accept": ["nobody:1", "tag:web:1-2"]}"#);
        assert_eq!((failures.len(), open), (2, 0), "{failures:?}");
    }

    #[test]
    fn failing_tests_say_what_was_wanted_and_where() {
        let found = failures(r#"{"src": "alice@example.com", "accept": ["tag:web:80"], "deny": ["db:5432"]}"#);
        assert_eq!(
            found,
            [
                "line 5, column 51: address \"tag:web:80\": want: Accept, got: Drop",
                "line 5, column 75: address \"db:5432\": want: Drop, got: Accept"
            ]
        );
    }

    #[test]
    fn tests_without_a_good_form_fail() {
        for (test, why) in [
            (r#"{"src": "tag:web"}"#, "must have at least one"),
            (r#"{"deny": ["db:1"]}"#, "src=\"\""),
            (r#"{"src": "tag:none", "deny": ["db:1"]}"#, "it names no address"),
            (r#"{"src": "*", "deny": ["db:1"]}"#, "not valid as the source of a test"),
            (r#"{"src": "group:x", "deny": ["db:1"]}"#, "group not defined"),
            (r#"{"src": "tag:web", "deny": ["db:1-2"]}"#, "single port"),
            (r#"{"src": "tag:web", "deny": ["db:1,2"]}"#, "single port"),
            (r#"{"src": "tag:web", "deny": ["lan:1"]}"#, "single host"),
            (r#"{"src": "tag:web", "deny": ["10.0.0.5/32:1"]}"#, "single host"),
            (r#"{"src": "tag:web", "deny": ["nobody:1"]}"#, "host not defined"),
            (r#"{"src": "tag:web", "deny": ["autogroup:internet:1"]}"#, "not valid as a test destination"),
            (r#"{"src": "tag:web", "deny": ["autogroup:self:1"]}"#, "not valid as a test destination"),
            (r#"{"src": "tag:web", "deny": ["db:*"], "proto": "icmp"}"#, "test protocol must be"),
        ] {
            let found = failures(test);
            assert!(found.len() == 1 && found[0].contains(why), "{test}: {found:?}");
        }
    }
}
