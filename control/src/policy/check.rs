//! From what is written to what is meant: names are looked up, and rules that contradict the language are refused.
//!
//! Both kinds of rule become one: an entry of `acls` is a list of grants, one for each destination, with ports. The texts
//! of refusals are those of the stock service, in the order in which it finds them: groups, tags, hosts, then rules.

use std::collections::BTreeMap;

use mesh_core::{control::types::PortRange, ip::prefix::Prefix};

use super::{
    document::{Acl, Document, Grant, Text, Unbuilt},
    ports::{Protocol, check_ports, parse_entry, parse_ports},
    problem::{Gathered, Located, Position, Problems},
    selector::{Form, Selector, cut},
};

const OWN_SOURCES: &str = "autogroup:self can only be used with users, groups, or supported autogroups";

/// Capabilities of the `tailscale.com` domain that a policy may grant.
const GRANTABLE: &[&str] = &[
    "tailscale.com/cap/drive",
    "tailscale.com/cap/golink",
    "tailscale.com/cap/kubernetes",
    "tailscale.com/cap/relay",
    "tailscale.com/cap/secrets",
    "tailscale.com/cap/tailsql",
    "tailscale.com/cap/tsidp",
    "tailscale.com/cap/webui",
];

/// Which entry of the text a rule comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The section.
    pub section: Section,
    /// Which entry of it, from 0.
    pub index: usize,
    /// Where the entry begins.
    pub at: Position,
}

/// The sections that rules come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// `grants`.
    Grants,
    /// `acls`.
    Acls,
    /// None: a document without either section allows everything.
    Absent,
}

impl Section {
    /// Its name in the text.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Grants => "grants",
            Self::Acls => "acls",
            Self::Absent => "(no rules)",
        }
    }
}

/// A selector, as written and as meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// Where it stands.
    pub at: Position,
    /// As written, without ports.
    pub text: String,
    /// As meant.
    pub selector: Selector,
}

/// A rule: who may reach whom how, and what they may do there.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Where it comes from.
    pub origin: Origin,
    /// Who.
    pub src: Vec<Term>,
    /// Whom.
    pub dst: Vec<Term>,
    /// By which protocols and ports.
    pub ip: Vec<(Protocol, PortRange)>,
    /// With which capabilities.
    pub app: BTreeMap<String, Vec<serde_json::Value>>,
    /// Through nodes with one of these tags alone; empty is no restriction.
    pub via: Vec<String>,
}

/// Who gets which routes approved without asking.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Approvers {
    /// Subnets inside these prefixes.
    pub routes: Vec<(Prefix, Vec<Selector>)>,
    /// Exit routes.
    pub exit_node: Vec<Selector>,
}

/// A policy's meaning.
#[derive(Clone, Debug, Default)]
pub(super) struct Checked {
    pub rules: Vec<Rule>,
    pub groups: BTreeMap<String, Vec<String>>,
    pub hosts: BTreeMap<String, Prefix>,
    pub approvers: Approvers,
    pub tag_owners: BTreeMap<String, Vec<Selector>>,
    pub unbuilt: Vec<Unbuilt>,
}

/// Looks names up and judges rules.
///
/// # Errors
/// All that is wrong.
pub(super) fn check(document: &Document) -> Result<Checked, Problems> {
    let mut checker = Checker { document, hosts: BTreeMap::new(), problems: Gathered::default(), unbuilt: Vec::new() };
    checker.check_groups();
    checker.check_hosts();
    let tag_owners = checker.tag_owners();
    let approvers = checker.approvers();
    let mut rules = Vec::new();
    for (index, grant) in document.grants.iter().flatten().enumerate() {
        rules.extend(checker.grant(grant, Origin { section: Section::Grants, index, at: grant.at }));
    }
    for (index, acl) in document.acls.iter().flatten().enumerate() {
        checker.acl(acl, Origin { section: Section::Acls, index, at: acl.at }, &mut rules);
    }
    if document.acls.is_none() && document.grants.is_none() {
        rules.push(everything());
    }
    let Checker { hosts, problems, unbuilt, .. } = checker;
    let names = |names: &Located<Vec<Text>>| names.value.iter().map(|text| text.value.clone()).collect();
    let groups = document.groups.iter().map(|(name, users)| (name.clone(), names(users))).collect();
    problems.or(Checked { rules, groups, hosts, approvers, tag_owners, unbuilt })
}

/// What a document without rules means.
fn everything() -> Rule {
    let all = || vec![Term { at: Position::START, text: "*".into(), selector: Selector::All }];
    Rule {
        origin: Origin { section: Section::Absent, index: 0, at: Position::START },
        src: all(),
        dst: all(),
        ip: vec![(Protocol(None), PortRange::ALL)],
        app: BTreeMap::new(),
        via: Vec::new(),
    }
}

struct Checker<'a> {
    document: &'a Document,
    hosts: BTreeMap<String, Prefix>,
    problems: Gathered,
    unbuilt: Vec<Unbuilt>,
}

impl Checker<'_> {
    /// Names descending, so that of two groups in a circle the same one is named as the stock service does.
    fn check_groups(&mut self) {
        for (name, members) in self.document.groups.iter().rev() {
            if name.strip_prefix("group:").is_none_or(str::is_empty) {
                self.problems.say(members.at, format!("groups[{name:?}]: group names must start with \"group:\""));
            }
            for member in &members.value {
                let text = &member.value;
                let why = match Form::of(text) {
                    Form::Ready(Selector::User(_) | Selector::UsersOf(_)) => continue,
                    Form::Ready(Selector::Group(_)) => "group members cannot be recursive",
                    _ => "username must contain @",
                };
                self.problems.say(member.at, format!("groups[{name:?}]: {text:?}: {why}"));
            }
        }
    }

    fn check_hosts(&mut self) {
        for (name, value) in &self.document.hosts {
            if name.is_empty() || name.contains(['@', ':', '/']) {
                self.problems.say(value.at, format!("hosts[{name:?}]: host names cannot contain '@', ':' or '/'"));
            }
            match value.value.parse() {
                Ok(prefix) => {
                    self.hosts.insert(name.clone(), prefix);
                }
                Err(_) => {
                    let message = format!("hosts[{name:?}]: hostname contains invalid IP address: {:?}", value.value);
                    self.problems.say(value.at, message);
                }
            }
        }
    }

    fn tag_owners(&mut self) -> BTreeMap<String, Vec<Selector>> {
        let mut all = BTreeMap::new();
        for (name, owners) in &self.document.tag_owners {
            let Some(rest) = name.strip_prefix("tag:") else {
                self.problems.say(owners.at, format!("tagOwners[{name:?}]: tag names must start with \"tag:\""));
                continue;
            };
            if !rest.starts_with(|letter: char| letter.is_ascii_alphabetic()) {
                let message = format!("tagOwners[{name:?}]: tag names must start with a letter, after 'tag:'");
                self.problems.say(owners.at, message);
            } else if !rest.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '-') {
                let message = format!("tagOwners[{name:?}]: tag names can only contain letters, digits and '-'");
                self.problems.say(owners.at, message);
            }
            let selectors = owners.value.iter().filter_map(|owner| self.holder(owner)).collect();
            all.insert(name.clone(), selectors);
        }
        all
    }

    fn approvers(&mut self) -> Approvers {
        let mut approvers = Approvers::default();
        for (prefix, who) in &self.document.auto_approvers.routes {
            let who = who.iter().filter_map(|text| self.holder(text)).collect();
            match prefix.value.trim().parse() {
                Ok(prefix) => approvers.routes.push((prefix, who)),
                Err(why) => self.problems.say(prefix.at, format!("autoApprovers[{:?}]: {why}", prefix.value)),
            }
        }
        let exit_node = self.document.auto_approvers.exit_node.iter();
        approvers.exit_node = exit_node.filter_map(|text| self.holder(text)).collect();
        approvers
    }

    /// One who may own a tag or get routes approved.
    fn holder(&mut self, text: &Text) -> Option<Selector> {
        let selector = self.selector(text, &text.value)?;
        match &selector {
            Selector::User(_)
            | Selector::UsersOf(_)
            | Selector::Group(_)
            | Selector::Tag(_)
            | Selector::Member
            | Selector::Role(_) => self.known(text, &selector, "").then_some(selector),
            _ => {
                self.problems.say(text.at, format!("invalid owner {:?}", text.value));
                None
            }
        }
    }

    /// What a text names, hosts looked up. `None` when that is nothing, which is noted.
    fn selector(&mut self, at: &Text, text: &str) -> Option<Selector> {
        let why = match Form::of(text) {
            Form::Ready(selector) => return Some(selector),
            Form::Host(name) => match self.hosts.get(&name) {
                Some(prefix) => return Some(Selector::Address(*prefix)),
                None => format!("host not defined in policy: {name:?}"),
            },
            Form::Unbuilt => {
                self.unbuilt.push(Unbuilt { at: at.at, name: text.to_owned() });
                return None;
            }
            Form::UnknownAutogroup => format!("unknown autogroup: {text:?}"),
            Form::None => format!("invalid address or name: {text:?}"),
        };
        self.problems.say(at.at, why);
        None
    }

    /// Whether tags and groups are declared; it is noted when not. Groups of a directory (`group:g@domain`) need not be.
    fn known(&mut self, at: &Text, selector: &Selector, before: &str) -> bool {
        match selector {
            Selector::Tag(tag) if !self.document.tag_owners.contains_key(tag) => {
                self.problems.say(at.at, format!("{before}tag not found: {tag:?}"));
                false
            }
            Selector::Group(group) if !group.contains('@') && !self.document.groups.contains_key(group) => {
                self.problems.say(at.at, format!("{before}group not defined in policy: {group:?}"));
                false
            }
            _ => true,
        }
    }

    fn sources(&mut self, texts: &[Text]) -> Vec<Term> {
        let mut terms = Vec::new();
        for text in texts {
            let Some(selector) = self.selector(text, &text.value) else { continue };
            match selector {
                Selector::Own => {
                    self.problems.say(text.at, "\"autogroup:self\" not valid on the src side of a rule");
                }
                Selector::Internet => {
                    self.problems.say(text.at, "autogroup:internet can only be used in ACL destinations");
                }
                selector if self.known(text, &selector, "src=") => {
                    terms.push(Term { at: text.at, text: text.value.clone(), selector });
                }
                _ => {}
            }
        }
        terms
    }

    /// `before` is put in front of what is wrong with the reference.
    fn destination(&mut self, at: &Text, text: String, before: &str) -> Option<Term> {
        let selector = self.selector(at, &text)?;
        if selector == Selector::AnySource {
            self.problems.say(at.at, "cannot use autogroup:danger-all as a dst");
            return None;
        }
        self.known(at, &selector, before).then_some(Term { at: at.at, text, selector })
    }

    /// `autogroup:self` goes with sources that are users; an ACL may have `*` too.
    fn check_own(&mut self, rule: &Rule, all_is_allowed: bool) {
        let Some(own) = rule.dst.iter().find(|term| term.selector == Selector::Own) else { return };
        let fits = |term: &Term| match term.selector {
            Selector::User(_) | Selector::UsersOf(_) | Selector::Group(_) | Selector::Member | Selector::Role(_) => {
                true
            }
            Selector::All => all_is_allowed,
            _ => false,
        };
        if !rule.src.iter().all(fits) {
            self.problems.say(own.at, OWN_SOURCES);
        }
    }

    fn acl(&mut self, acl: &Acl, origin: Origin, rules: &mut Vec<Rule>) {
        if acl.action.value != "accept" {
            self.problems.say(acl.action.at, format!("action={:?} is not supported", acl.action.value));
        }
        let protocol = Protocol::parse(&acl.proto.value).unwrap_or_else(|why| {
            self.problems.say(acl.proto.at, why);
            Protocol::default()
        });
        let src = self.sources(&acl.src);
        let mut own = Vec::new();
        let mut others = Vec::new();
        for text in &acl.dst {
            let Some((term, ports)) = self.target(text, protocol) else { continue };
            let ip = ports.into_iter().map(|range| (protocol, range)).collect();
            let is_own = term.selector == Selector::Own;
            let rule = Rule { origin, src: src.clone(), dst: vec![term], ip, app: BTreeMap::new(), via: Vec::new() };
            self.check_own(&rule, true);
            if is_own { own.push(rule) } else { others.push(rule) }
        }
        // A posture that is not looked at would let in too many.
        if !acl.has_posture {
            rules.extend(order_own(own, others, acl));
        }
    }

    fn target(&mut self, text: &Text, protocol: Protocol) -> Option<(Term, Vec<PortRange>)> {
        let parsed = cut(&text.value).map_err(str::to_owned).and_then(|(selector, ports)| {
            let ranges = parse_ports(ports)?;
            check_ports(protocol, ports, &ranges)?;
            Ok((selector, ranges))
        });
        match parsed {
            Ok((selector, ranges)) => {
                let before = format!("dst={selector:?}: ");
                Some((self.destination(text, selector, &before)?, ranges))
            }
            Err(why) => {
                self.problems.say(text.at, format!("dst={:?}: {why}", text.value));
                None
            }
        }
    }

    fn grant(&mut self, grant: &Grant, origin: Origin) -> Option<Rule> {
        if grant.ip.is_empty() && grant.app.is_empty() {
            self.problems.say(grant.at, "ip and app can not both be empty");
        }
        let mut ip = Vec::new();
        for text in &grant.ip {
            match parse_entry(&text.value) {
                Ok((protocol, ranges)) => ip.extend(ranges.into_iter().map(|range| (protocol, range))),
                Err(why) => self.problems.say(text.at, why),
            }
        }
        for (name, _) in &grant.app {
            self.check_capability(name);
        }
        let src = self.sources(&grant.src);
        let mut dst = Vec::new();
        for text in &grant.dst {
            if matches!(text.value.as_str(), "0.0.0.0/0" | "::/0") {
                let hint = "to allow all IP addresses, use \"*\" or \"autogroup:internet\"";
                self.problems.say(text.at, format!("dst {:?}: {hint}", text.value));
                continue;
            }
            let Some(term) = self.destination(text, text.value.clone(), "") else { continue };
            if term.selector == Selector::Internet && !grant.app.is_empty() {
                self.problems.say(text.at, "cannot use app grants with autogroup:internet");
            }
            dst.push(term);
        }
        let via = grant.via.iter().filter_map(|text| self.via(text)).collect();
        let app = grant.app.iter().map(|(name, values)| (name.value.clone(), values.clone())).collect();
        let rule = Rule { origin, src, dst, ip, app, via };
        self.check_own(&rule, false);
        (!grant.has_posture).then_some(rule)
    }

    fn via(&mut self, text: &Text) -> Option<String> {
        if !text.value.starts_with("tag:") {
            self.problems.say(text.at, "via can only be a tag");
            return None;
        }
        if !self.document.tag_owners.contains_key(&text.value) {
            self.problems.say(text.at, format!("tag {:?} not found", text.value));
            return None;
        }
        Some(text.value.clone())
    }

    fn check_capability(&mut self, name: &Text) {
        let parts = name.value.split_once('/');
        let has_form = parts.is_some_and(|(domain, path)| {
            !domain.is_empty() && !domain.contains(':') && !path.is_empty() && !path.starts_with('/')
        });
        if !has_form {
            self.problems.say(name.at, "capability name must have the form {domain}/{path}");
        } else if name.value.starts_with("tailscale.com/") && !GRANTABLE.contains(&name.value.as_str()) {
            self.problems.say(name.at, "capability name must not be in the tailscale.com domain");
        }
    }
}

/// Own nodes come after the other destinations, as long as one of all is not an autogroup.
fn order_own(own: Vec<Rule>, others: Vec<Rule>, acl: &Acl) -> Vec<Rule> {
    let is_autogroup = |text: &Text| text.value.starts_with("autogroup:");
    let mut rules = others;
    rules.extend(own);
    if acl.dst.iter().all(is_autogroup) {
        rules.sort_by_key(|rule| rule.dst.first().map(|term| term.at));
    }
    rules
}

#[cfg(test)]
mod tests;
