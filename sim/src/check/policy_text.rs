//! What a policy's text allows, worked out slowly: every rule is looked at for every question.
//!
//! This is a second reading of the language, for [`PolicyCheck`](super::PolicyCheck) to hold the server's to. The two
//! share the parser of HuJSON and nothing else. It knows `acls` and the network part of `grants`, with all sources and
//! destinations but roles, `ipset:` and `svc:`. What it does not know it refuses: nobody could trust its judgement then.

use core::net::IpAddr;

use control::policy::hujson;
use mesh_core::ip::prefix::Prefix;
use serde_json::{Map, Value};

/// A node, as policies name it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Its overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// Whose it is; not looked at when there are tags.
    pub user: String,
    /// Its tags, `tag:` included.
    pub tags: Vec<String>,
    /// Subnets that it routes, as approved.
    pub subnets: Vec<Prefix>,
}

/// A question to a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Who asks.
    pub source: IpAddr,
    /// Of whom.
    pub destination: IpAddr,
    /// For what.
    pub wants: Wants,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// A port of a protocol.
    Port(u8, u16),
    /// A protocol without ports.
    Protocol(u8),
    /// To ping it: allowed where anything is.
    Echo,
}

/// A policy's text, taken apart.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyText {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq)]
struct Rule {
    sources: Vec<Selector>,
    destinations: Vec<Selector>,
    ports: Vec<(u16, u16)>,
    /// `None`: TCP, UDP and ICMP.
    protocol: Option<u8>,
}

#[derive(Clone, Debug, PartialEq)]
enum Selector {
    All,
    AnySource,
    Internet,
    Own,
    Addresses(Prefix),
    User(String),
    UsersOf(String),
    Tag(String),
    Member,
    Tagged,
}

impl PolicyText {
    /// Takes a text apart.
    ///
    /// # Errors
    /// What in it is wrong or not understood here.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parsed = hujson::parse(text).map_err(|problem| problem.to_string())?;
        let document = parsed.map(|value| value.value.to_json()).ok_or("the policy is empty")?;
        let document = document.as_object().ok_or("the policy is no object")?;
        let (groups, hosts) = (section(document, "groups")?, section(document, "hosts")?);
        let names = Names { groups, hosts };
        let (acls, grants) = (field(document, "acls"), field(document, "grants"));
        if acls.is_none() && grants.is_none() {
            let (sources, destinations) = (vec![Selector::All], vec![Selector::All]);
            return Ok(Self {
                rules: vec![Rule { sources, destinations, ports: vec![(0, u16::MAX)], protocol: None }],
            });
        }
        let mut rules = Vec::new();
        for grant in entries(grants, "grants")? {
            names.add_grant(grant, &mut rules)?;
        }
        for acl in entries(acls, "acls")? {
            names.add_acl(acl, &mut rules)?;
        }
        Ok(Self { rules })
    }

    /// Whether the policy allows it, with these nodes.
    #[must_use]
    pub fn allows(&self, question: &Question, members: &[Member]) -> bool {
        self.rules.iter().any(|rule| rule.allows(question, members))
    }
}

impl Rule {
    fn allows(&self, question: &Question, members: &[Member]) -> bool {
        let names_protocol = |number| match self.protocol {
            None => matches!(number, 1 | 6 | 17 | 58),
            Some(named) => named == number,
        };
        let is_wanted = match question.wants {
            Wants::Echo => true,
            Wants::Port(protocol, port) => {
                names_protocol(protocol) && self.ports.iter().any(|(first, last)| (*first..=*last).contains(&port))
            }
            Wants::Protocol(protocol) => names_protocol(protocol) && self.ports.contains(&(0, u16::MAX)),
        };
        let (source, destination) = (question.source, question.destination);
        let reaches = |selector: &Selector| match selector {
            Selector::All => true,
            Selector::Own => match (holder(source, members), holder(destination, members)) {
                (Some(from), Some(to)) => from.tags.is_empty() && to.tags.is_empty() && from.user == to.user,
                (None, _) | (_, None) => false,
            },
            Selector::Internet => is_public(destination),
            other => other.names(destination, members),
        };
        is_wanted
            && self.sources.iter().any(|selector| selector.names(source, members))
            && self.destinations.iter().any(reaches)
    }
}

impl Selector {
    /// Whether it names an address as a source. Those that are no sources name none.
    fn names(&self, address: IpAddr, members: &[Member]) -> bool {
        let holder = holder(address, members);
        let untagged = holder.filter(|holder| holder.tags.is_empty());
        match self {
            Self::All => {
                let is_subnet = |member: &Member| member.subnets.iter().any(|subnet| subnet.contains(address));
                is_of_tailnet(address) || members.iter().any(is_subnet)
            }
            Self::AnySource => true,
            Self::Addresses(prefix) => prefix.contains(address),
            Self::User(user) => untagged.is_some_and(|holder| full_name(&holder.user) == *user),
            Self::UsersOf(domain) => {
                untagged.is_some_and(|holder| holder.user.rsplit_once('@').is_some_and(|(_, of)| of == domain))
            }
            Self::Tag(tag) => holder.is_some_and(|holder| holder.tags.contains(tag)),
            Self::Member => untagged.is_some(),
            Self::Tagged => holder.is_some_and(|holder| !holder.tags.is_empty()),
            Self::Internet | Self::Own => false,
        }
    }
}

fn holder(address: IpAddr, members: &[Member]) -> Option<&Member> {
    members.iter().find(|member| member.addresses.contains(&address))
}

/// A name without a domain is written with an `@` at its end.
fn full_name(user: &str) -> String {
    if user.contains('@') { user.to_owned() } else { format!("{user}@") }
}

/// `*` as a source: the tailnet's ranges, less what ChromeOS keeps for itself.
fn is_of_tailnet(address: IpAddr) -> bool {
    is_in(&["100.64.0.0/10", "fd7a:115c:a1e0::/48"], address) && !is_in(&["100.115.92.0/23"], address)
}

/// `autogroup:internet`.
fn is_public(address: IpAddr) -> bool {
    const PRIVATE: [&str; 5] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16"];
    if address.is_ipv4() { !is_in(&PRIVATE, address) } else { is_in(&["2000::/3"], address) }
}

fn is_in(prefixes: &[&str], address: IpAddr) -> bool {
    prefixes.iter().any(|prefix| prefix.parse::<Prefix>().is_ok_and(|prefix| prefix.contains(address)))
}

/// What names stand for.
struct Names {
    groups: Map<String, Value>,
    hosts: Map<String, Value>,
}

impl Names {
    /// An entry of `acls`: selectors with ports, and one protocol.
    fn add_acl(&self, acl: &Map<String, Value>, rules: &mut Vec<Rule>) -> Result<(), String> {
        check_fields(acl, &["action", "src", "users", "dst", "ports", "proto"])?;
        let sources = self.selectors(field(acl, "src").or(field(acl, "users")))?;
        let protocol = field(acl, "proto").map(text).transpose()?.map(protocol).transpose()?;
        for to in texts(field(acl, "dst").or(field(acl, "ports")))? {
            let (selector, ports) = to.trim().rsplit_once(':').ok_or_else(|| format!("{to:?} has no ports"))?;
            let selector = selector.replace(['[', ']'], "");
            let (destinations, ports) = (self.selector(&selector)?, port_ranges(ports)?);
            rules.push(Rule { sources: sources.clone(), destinations, ports, protocol });
        }
        Ok(())
    }

    /// An entry of `grants`: selectors without ports; protocols with ports stand apart.
    fn add_grant(&self, grant: &Map<String, Value>, rules: &mut Vec<Rule>) -> Result<(), String> {
        check_fields(grant, &["src", "dst", "ip", "app"])?;
        let (sources, destinations) = (self.selectors(field(grant, "src"))?, self.selectors(field(grant, "dst"))?);
        for entry in field(grant, "ip").map_or(Ok(Vec::new()), |ip| texts(Some(ip)))? {
            let (named, ports) = match entry.split_once(':') {
                Some((name, ports)) => (Some(protocol(name)?), ports),
                None => (None, entry),
            };
            let (sources, destinations) = (sources.clone(), destinations.clone());
            rules.push(Rule { sources, destinations, ports: port_ranges(ports)?, protocol: named });
        }
        Ok(())
    }

    fn selectors(&self, list: Option<&Value>) -> Result<Vec<Selector>, String> {
        let lists: Result<Vec<_>, _> = texts(list)?.into_iter().map(|text| self.selector(text)).collect();
        Ok(lists?.concat())
    }

    /// What a text names; a group is all its users.
    fn selector(&self, written: &str) -> Result<Vec<Selector>, String> {
        let written = written.trim();
        if let Ok(prefix) = written.parse() {
            return Ok(vec![Selector::Addresses(prefix)]);
        }
        if written.starts_with("group:") {
            let users = self.groups.get(written).ok_or_else(|| format!("{written} is not defined"))?;
            return self.selectors(Some(users));
        }
        Ok(vec![match written {
            "*" => Selector::All,
            "autogroup:danger-all" => Selector::AnySource,
            "autogroup:internet" => Selector::Internet,
            "autogroup:self" => Selector::Own,
            "autogroup:member" | "autogroup:members" => Selector::Member,
            "autogroup:tagged" => Selector::Tagged,
            tag if tag.starts_with("tag:") => Selector::Tag(tag.to_owned()),
            users if users.starts_with("user:*@") => Selector::UsersOf(users["user:*@".len()..].to_owned()),
            user if user.contains('@') => Selector::User(user.to_owned()),
            host => match self.hosts.get(host).map(text) {
                Some(address) => {
                    Selector::Addresses(address?.parse().map_err(|_| format!("the host {host} has no address"))?)
                }
                None => return Err(format!("{host:?} is not understood")),
            },
        }])
    }
}

/// Names of sections and fields do not care for case.
fn field<'v>(object: &'v Map<String, Value>, name: &str) -> Option<&'v Value> {
    object.iter().find(|(key, value)| key.eq_ignore_ascii_case(name) && !value.is_null()).map(|(_, value)| value)
}

fn section(document: &Map<String, Value>, name: &str) -> Result<Map<String, Value>, String> {
    match field(document, name) {
        None => Ok(Map::new()),
        Some(value) => value.as_object().cloned().ok_or_else(|| format!("{name} is no object")),
    }
}

fn check_fields(object: &Map<String, Value>, known: &[&str]) -> Result<(), String> {
    match object.keys().find(|key| !known.iter().any(|name| key.eq_ignore_ascii_case(name))) {
        Some(key) => Err(format!("{key:?} of a rule is not understood")),
        None => Ok(()),
    }
}

fn entries<'v>(list: Option<&'v Value>, name: &str) -> Result<Vec<&'v Map<String, Value>>, String> {
    let Some(list) = list else { return Ok(Vec::new()) };
    let list = list.as_array().ok_or_else(|| format!("{name} is no list"))?;
    list.iter().map(|entry| entry.as_object().ok_or_else(|| format!("an entry of {name} is no object"))).collect()
}

fn text(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| format!("{value} is no text"))
}

fn texts(list: Option<&Value>) -> Result<Vec<&str>, String> {
    let list = list.and_then(Value::as_array).ok_or("a list of texts is missing")?;
    list.iter().map(text).collect()
}

/// `*`, `80`, `80-90` and lists of these.
fn port_ranges(written: &str) -> Result<Vec<(u16, u16)>, String> {
    let range = |range: &str| {
        let number = |text: &str| text.trim().parse().map_err(|_| format!("{text:?} is no port"));
        match (range, range.split_once('-')) {
            ("*", _) => Ok((0, u16::MAX)),
            (_, Some((first, last))) => Ok((number(first)?, number(last)?)),
            (port, None) => Ok((number(port)?, number(port)?)),
        }
    };
    written.split(',').map(|text| range(text.trim())).collect()
}

fn protocol(written: &str) -> Result<u8, String> {
    const NAMES: [(&str, u8); 14] = [
        ("icmp", 1),
        ("igmp", 2),
        ("ipv4", 4),
        ("ip-in-ip", 4),
        ("tcp", 6),
        ("egp", 8),
        ("igp", 9),
        ("udp", 17),
        ("gre", 47),
        ("esp", 50),
        ("ah", 51),
        ("ipv6-icmp", 58),
        ("sctp", 132),
        ("fc", 133),
    ];
    let named = NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(written)).map(|(_, number)| *number);
    named.or(written.parse().ok()).ok_or_else(|| format!("{written:?} is no protocol"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members() -> Vec<Member> {
        let member = |number: u8, user: &str, tags: &[&str]| Member {
            addresses: vec![[100, 64, 0, number].into(), format!("fd7a:115c:a1e0::{number}").parse().unwrap()],
            user: user.to_owned(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            subnets: if number == 4 { vec!["10.9.0.0/16".parse().unwrap()] } else { vec![] },
        };
        vec![member(1, "ann@x.org", &[]), member(2, "ann@x.org", &[]), member(3, "bob", &[]), member(4, "", &["tag:s"])]
    }

    /// Which of the four reach port 22 of which, by TCP.
    fn who(policy: &str) -> Vec<(u8, u8)> {
        let policy = PolicyText::parse(policy).unwrap();
        let address = |number: u8| IpAddr::from([100, 64, 0, number]);
        let allowed = |from, to| {
            let question = Question { source: address(from), destination: address(to), wants: Wants::Port(6, 22) };
            from != to && policy.allows(&question, &members())
        };
        (1..5).flat_map(|from| (1..5).map(move |to| (from, to))).filter(|(from, to)| allowed(*from, *to)).collect()
    }

    fn acl(source: &str, destination: &str) -> Vec<(u8, u8)> {
        who(&format!(
            r#"{{"groups": {{"group:g": ["bob@", "nobody@"]}}, "hosts": {{"box": "100.64.0.3"}},
                "acls": [{{"action": "accept", "src": ["{source}"], "dst": ["{destination}"]}}]}}"#
        ))
    }

    #[test]
    fn selectors_name_whom_they_should() {
        let to = |from: u8| [1, 2, 3, 4].into_iter().filter(|to| *to != from).map(|to| (from, to)).collect::<Vec<_>>();
        assert_eq!(acl("ann@x.org", "*:*"), [to(1), to(2)].concat());
        assert_eq!(acl("bob@", "*:22"), to(3));
        assert_eq!(acl("group:g", "*:20-22"), to(3));
        assert_eq!(acl("user:*@x.org", "*:1,22"), [to(1), to(2)].concat());
        assert_eq!(acl("tag:s", "*:*"), to(4));
        assert_eq!(acl("autogroup:tagged", "*:*"), to(4));
        assert_eq!(acl("autogroup:member", "tag:s:*"), [(1, 4), (2, 4), (3, 4)]);
        assert_eq!(acl("*", "autogroup:self:*"), [(1, 2), (2, 1)]);
        assert_eq!(acl("*", "box:*"), [(1, 3), (2, 3), (4, 3)]);
        assert_eq!(acl("100.64.0.0/30", "100.64.0.4/32:*"), [(1, 4), (2, 4), (3, 4)]);
        assert_eq!(acl("*", "*:23"), []);
        assert_eq!(acl("*", "autogroup:internet:*"), []);
    }

    #[test]
    fn no_rules_and_no_section_of_rules_are_two_things() {
        assert_eq!(who("{}").len(), 12);
        assert_eq!(who(r#"{"acls": []}"#), []);
        assert_eq!(who(r#"{"grants": [], /* HuJSON */ }"#), []);
        assert_eq!(who(r#"{"grants": [{"src": ["bob@"], "dst": ["tag:s"], "ip": ["tcp:22", "udp:*"]}]}"#), [(3, 4)]);
    }

    #[test]
    fn protocols_and_sources_beyond_nodes() {
        let policy = PolicyText::parse(
            r#"{"acls": [{"action": "accept", "src": ["*"], "proto": "47", "dst": ["100.64.0.1:*"]},
                         {"action": "accept", "src": ["autogroup:danger-all"], "dst": ["[fd7a:115c:a1e0::1]:7"]}]}"#,
        );
        let policy = policy.unwrap();
        let ask = |source: &str, destination: &str, wants| {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            policy.allows(&Question { source, destination, wants }, &members())
        };
        assert!(ask("100.64.0.2", "100.64.0.1", Wants::Protocol(47)) && ask("10.9.1.1", "100.64.0.1", Wants::Echo));
        assert!(!ask("100.64.0.2", "100.64.0.1", Wants::Port(6, 80)) && !ask("10.8.1.1", "100.64.0.1", Wants::Echo));
        assert!(!ask("100.115.92.1", "100.64.0.1", Wants::Echo), "kept by ChromeOS");
        assert!(ask("2001:db8::1", "fd7a:115c:a1e0::1", Wants::Port(17, 7)));
        assert!(!ask("2001:db8::1", "fd7a:115c:a1e0::1", Wants::Port(17, 8)));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for rule in [
            r#""src": ["autogroup:owner"], "dst": ["*:*"]"#,
            r#""src": ["nowhere"], "dst": ["*:*"]"#,
            r#""src": ["*"], "dst": ["*"]"#,
            r#""src": ["*"], "dst": ["*:*"], "srcPosture": ["posture:x"]"#,
            r#""src": ["*"], "dst": ["*:*"], "proto": "quic""#,
            r#""src": "*", "dst": ["*:*"]"#,
        ] {
            PolicyText::parse(&format!(r#"{{"acls": [{{"action": "accept", {rule}}}]}}"#)).unwrap_err();
        }
        for text in ["", "[]", "{", r#"{"acls": {}}"#] {
            PolicyText::parse(text).unwrap_err();
        }
    }
}
