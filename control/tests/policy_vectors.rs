//! Policies and what the stock service made of them, read from where they are kept and never copied into the project.
//!
//! The folder is that of `MESH_CONFORMANCE_DIR`, else `../shared/conformance` beside the workspace; the vectors are in
//! its `policy`, one folder for each family. Without it the tests report themselves ignored, with the reason in their
//! line. Every file of a family is run. There is no list of expected failures; families that are not begun are named.
//!
//! Three kinds of capture are set aside by what they are, and the files counted: views of nodes that were never captured;
//! files whose maps show routes that they say are not approved; and files whose addresses were made short after the
//! capture, but not those in the policy.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]
#![allow(clippy::print_stdout, reason = "the counts are what it is run for")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex},
};

use control::policy::{
    Approvers, Node, Policy, Role, Rulebook, User,
    check::Term,
    ipset::{IpSet, Span},
    selector::Selector,
};
use libtest_mimic::{Arguments, Failed, Trial};
use mesh_core::{
    control::types::{FilterRule, NodeId, PeerNode, UserId},
    ip::prefix::Prefix,
};
use serde::Deserialize;
use serde_json::Value;

/// Families that are run.
const BEGUN: &[&str] = &["acl_results", "grant_results", "issue_3212", "policytest_results", "routes_results"];

/// What came of all files.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    files: usize,
    failed: usize,
    not_begun: usize,
}

fn main() -> ExitCode {
    let folder = folder();
    let counts = Arc::new(Mutex::new(Counts::default()));
    let Ok(entries) = fs::read_dir(&folder) else {
        let name = format!("policy_vectors (none in {}; set MESH_CONFORMANCE_DIR)", folder.display());
        let trial = Trial::test(name, || Err("there is nothing to read".into())).with_ignored_flag(true);
        return libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code();
    };
    let families: BTreeSet<_> = entries.map(|entry| entry.expect("the folder can be read").path()).collect();
    let trials = families.into_iter().filter(|family| family.is_dir()).filter_map(|family| {
        let name = family.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let files = json_files(&family);
        if !BEGUN.contains(&name.as_str()) {
            counts.lock().expect("no test panicked").not_begun += files.len();
            println!("{name}: {} files, not begun", files.len());
            return None;
        }
        let counts = counts.clone();
        Some(Trial::test(name.clone(), move || family_passes(&name, &files, &counts)))
    });
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials.collect());
    let counts = *counts.lock().expect("no test panicked");
    println!("policy vectors: {} files, {} failed, {} not begun", counts.files, counts.failed, counts.not_begun);
    conclusion.exit_code()
}

fn folder() -> PathBuf {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/conformance");
    std::env::var_os("MESH_CONFORMANCE_DIR").map_or_else(|| beside.into(), PathBuf::from).join("policy")
}

fn json_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder can be read");
    let paths: BTreeSet<_> = entries.map(|entry| entry.expect("the folder can be read").path()).collect();
    paths.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect()
}

fn family_passes(name: &str, files: &[PathBuf], counts: &Mutex<Counts>) -> Result<(), Failed> {
    let mut failures = Vec::new();
    let (mut views, mut aside) = (0, 0);
    for file in files {
        let text = fs::read_to_string(file)?;
        let vector: Vector = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))?;
        match vector.check() {
            Ok(Outcome::Views(number)) => views += number,
            Ok(Outcome::Refused) => {}
            Ok(Outcome::Contradictory) => aside += 1,
            Err(why) => {
                failures.push(format!("{}: {why}", file.file_stem().unwrap_or_default().to_string_lossy()));
            }
        }
    }
    let failed = failures.len();
    println!(
        "{name}: {} files, {failed} failed, {aside} of them set aside because they contradict themselves; \
         {views} views of nodes compared",
        files.len()
    );
    let mut counts = counts.lock().map_err(|_| "another test panicked")?;
    counts.files += files.len();
    counts.failed += failed;
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n").into()) }
}

enum Outcome {
    /// So many nodes got what they should.
    Views(usize),
    /// The policy was refused, as it should be.
    Refused,
    /// The file contradicts itself.
    Contradictory,
}

#[derive(Deserialize)]
struct Vector {
    category: String,
    input: Input,
    topology: Topology,
    #[serde(default)]
    captures: BTreeMap<String, Capture>,
}

#[derive(Deserialize)]
struct Input {
    full_policy: Value,
    api_response_code: u16,
    #[serde(default)]
    api_response_body: Value,
}

#[derive(Deserialize)]
struct Topology {
    users: Vec<TopologyUser>,
    nodes: BTreeMap<String, TopologyNode>,
}

#[derive(Deserialize)]
struct TopologyUser {
    id: i64,
    name: String,
    email: String,
}

#[derive(Deserialize)]
struct TopologyNode {
    #[serde(default)]
    tags: BTreeSet<String>,
    user: Option<String>,
    ipv4: IpAddr,
    ipv6: IpAddr,
    routable_ips: Option<Vec<Prefix>>,
    approved_routes: Option<Vec<Prefix>>,
}

#[derive(Deserialize)]
struct Capture {
    packet_filter_rules: Option<Vec<FilterRule>>,
    netmap: Option<CapturedMap>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CapturedMap {
    self_node: Named,
    peers: Option<Vec<Named>>,
}

/// A node of a captured map, by the name that the service gave it.
#[derive(Deserialize)]
struct Named {
    #[serde(rename = "ComputedName")]
    name: String,
    #[serde(flatten)]
    node: PeerNode,
}

impl Vector {
    fn check(&self) -> Result<Outcome, String> {
        let text = match &self.input.full_policy {
            Value::String(text) => text.clone(),
            policy => policy.to_string(),
        };
        let parsed = Policy::parse(&text);
        if self.input.api_response_code != 200 {
            return self.check_refused(parsed.map_err(|problems| problems.to_string()));
        }
        let policy = parsed.map_err(|problems| format!("refused: {problems}"))?;
        if let Some(unbuilt) = policy.unbuilt().first() {
            return Err(format!("{}: {} is not built", unbuilt.at, unbuilt.name));
        }
        let rulebook = self.rulebook(policy);
        if self.category != "acl" {
            self.check_approvals(&rulebook)?;
        }
        let failures = rulebook.run_tests();
        if !failures.is_empty() {
            return Err(format!("its tests failed: {failures:?}"));
        }
        let mut views = 0;
        let mut wrong = Vec::new();
        for (name, capture) in &self.captures {
            let Some(map) = &capture.netmap else { continue };
            views += 1;
            wrong.extend(self.check_view(&rulebook, name, capture, map).err());
        }
        if wrong.is_empty() {
            Ok(Outcome::Views(views))
        } else if self.contradicts_itself(rulebook.policy()) {
            Ok(Outcome::Contradictory)
        } else {
            Err(wrong.join("\n  "))
        }
    }

    /// The policy was refused by the service: it must be here, with the same words.
    fn check_refused(&self, parsed: Result<Policy, String>) -> Result<Outcome, String> {
        let expected = self.input.api_response_body["message"].as_str().ok_or("no message")?;
        let found = match parsed {
            Err(problems) => problems,
            Ok(policy) => {
                let failures = self.rulebook(policy).run_tests();
                if failures.is_empty() {
                    return Err(format!("accepted; expected {expected:?}"));
                }
                failures.to_string()
            }
        };
        if found.contains(expected) { Ok(Outcome::Refused) } else { Err(format!("{found:?}; expected {expected:?}")) }
    }

    fn rulebook(&self, policy: Policy) -> Rulebook {
        // The first user owns the tailnet, the others are admins.
        let users = self.topology.users.iter().enumerate().map(|(number, user)| User {
            id: UserId(user.id),
            login: user.email.clone(),
            email: None,
            role: if number == 0 { Role::Owner } else { Role::Admin },
        });
        let nodes = self.topology.nodes.iter().enumerate().map(|(number, (name, node))| {
            let user = node.user.as_ref().and_then(|name| self.topology.users.iter().find(|user| user.name == *name));
            let mut made = Node {
                id: NodeId(number as i64 + 1),
                user: user.map(|user| UserId(user.id)),
                tags: node.tags.clone(),
                addresses: vec![node.ipv4, node.ipv6],
                subnets: BTreeSet::new(),
                exit_routes: BTreeSet::new(),
                created: self.created(name),
            };
            made.set_routes(
                node.routable_ips.as_deref().unwrap_or(&[]),
                node.approved_routes.as_deref().unwrap_or(&[]),
            );
            made
        });
        Rulebook::new(Arc::new(policy), users, nodes)
    }

    /// What the policy approves by itself is approved. In the family `acl` nodes kept what policies before had approved.
    fn check_approvals(&self, rulebook: &Rulebook) -> Result<(), String> {
        if rulebook.policy().approvers() == &Approvers::default() {
            return Ok(());
        }
        for (node, (name, said)) in rulebook.nodes().zip(&self.topology.nodes) {
            let found = rulebook.approved_by_policy(node, said.routable_ips.as_deref().unwrap_or(&[]));
            let found: BTreeSet<_> = found.into_iter().collect();
            let expected: BTreeSet<_> = said.approved_routes.iter().flatten().copied().collect();
            if found != expected {
                return Err(format!("approved for {name}: {found:?}, expected {expected:?}"));
            }
        }
        Ok(())
    }

    fn maps(&self) -> impl Iterator<Item = &CapturedMap> {
        self.captures.values().filter_map(|capture| capture.netmap.as_ref())
    }

    fn created(&self, name: &str) -> mesh_core::time::WallTime {
        let mut all = self.maps().flat_map(|map| map.peers.iter().flatten().chain([&map.self_node]));
        all.find(|named| named.name == name).and_then(|named| named.node.created).unwrap_or_default()
    }

    fn name(&self, id: NodeId) -> &str {
        self.topology.nodes.keys().nth(id.0 as usize - 1).map_or("", String::as_str)
    }

    fn check_view(&self, rulebook: &Rulebook, name: &str, capture: &Capture, map: &CapturedMap) -> Result<(), String> {
        let number = self.topology.nodes.keys().position(|other| other == name).ok_or("an unknown node")?;
        let id = NodeId(number as i64 + 1);
        let as_sets = self.is_renumbered();
        let found: Vec<_> =
            rulebook.filter(id).iter().map(|rule| Comparable::new(FilterRule::from(rule), as_sets)).collect();
        let rules = capture.packet_filter_rules.clone().unwrap_or_default();
        let expected: Vec<_> = rules.into_iter().map(|rule| Comparable::new(rule, as_sets)).collect();
        if found != expected {
            return Err(format!("filter of {name}:\n    {found:?}\n    expected\n    {expected:?}"));
        }
        let found: BTreeSet<_> = rulebook.peers(id).into_iter().map(|id| self.name(id).to_owned()).collect();
        let expected: BTreeSet<_> = map.peers.iter().flatten().map(|peer| peer.name.clone()).collect();
        if found != expected {
            return Err(format!("peers of {name}: {found:?}, expected {expected:?}"));
        }
        for peer in map.peers.iter().flatten() {
            let number = self.topology.nodes.keys().position(|other| *other == peer.name).ok_or("an unknown peer")?;
            let shown = rulebook.shown(id, NodeId(number as i64 + 1));
            let addresses: BTreeSet<_> = peer.node.addresses.iter().copied().collect();
            let expected: BTreeSet<_> = peer.node.allowed_ips().iter().copied().collect();
            let expected: BTreeSet<_> = expected.difference(&addresses).copied().collect();
            if shown != expected {
                return Err(format!("routes of {} for {name}: {shown:?}, expected {expected:?}", peer.name));
            }
            let subnets: BTreeSet<_> = shown.into_iter().filter(|route| route.length() > 0).collect();
            let expected: BTreeSet<_> = peer.node.primary_routes.iter().copied().collect();
            if subnets != expected {
                return Err(format!("primary routes of {} for {name}: {subnets:?}, expected {expected:?}", peer.name));
            }
        }
        Ok(())
    }

    /// Whether addresses were made short after the capture, which puts some beside each other that were not.
    fn is_renumbered(&self) -> bool {
        let short: Prefix = "100.64.0.0/24".parse().expect("a prefix");
        self.topology.nodes.values().all(|node| short.contains(node.ipv4))
    }

    /// Whether the maps show routes of a node that are said not to be approved, or the policy names an address of the
    /// tailnet, which was not made short with the others.
    fn contradicts_itself(&self, policy: &Policy) -> bool {
        let stale = self.maps().flat_map(|map| map.peers.iter().flatten().chain([&map.self_node])).any(|named| {
            let approved = self.topology.nodes.get(&named.name).and_then(|node| node.approved_routes.as_ref());
            let is_approved = |route: &Prefix| approved.is_some_and(|approved| approved.contains(route));
            named.node.allowed_ips().iter().any(|route| !named.node.addresses.contains(route) && !is_approved(route))
        });
        let terms = || policy.rules().iter().flat_map(|rule| rule.src.iter().chain(&rule.dst));
        let tailnet: [Prefix; 2] = ["100.64.0.0/10", "fd7a:115c:a1e0::/48"].map(|text| text.parse().expect("a prefix"));
        let is_device = |term: &Term| match term.selector {
            Selector::Address(prefix) => {
                prefix.is_host() && tailnet.iter().any(|range| range.contains(prefix.address()))
            }
            _ => false,
        };
        stale || (self.is_renumbered() && terms().any(is_device))
    }
}

/// A rule without what does not matter: the order of sources and of destinations.
#[derive(Clone, Debug, PartialEq)]
struct Comparable {
    sources: Sources,
    dst_ports: Vec<(String, u16, u16)>,
    ip_proto: Vec<i64>,
    cap_grant: Vec<(Vec<Prefix>, Value)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Sources {
    Texts(Vec<String>),
    Set(IpSet),
}

impl Comparable {
    fn new(rule: FilterRule, as_sets: bool) -> Self {
        let mut texts = rule.src_ips;
        texts.sort();
        let spans: Result<IpSet, _> = texts.iter().map(|text| text.parse::<Span>()).collect();
        let sources = match spans {
            Ok(set) if as_sets => Sources::Set(set),
            _ => Sources::Texts(texts),
        };
        let mut dst_ports: Vec<_> =
            rule.dst_ports.into_iter().map(|to| (to.ip, to.ports.first, to.ports.last)).collect();
        dst_ports.sort();
        let grants = rule.cap_grant.into_iter().map(|mut grant| {
            grant.dsts.sort();
            (grant.dsts, serde_json::to_value(&grant.cap_map).expect("capabilities are JSON"))
        });
        Self { sources, dst_ports, ip_proto: rule.ip_proto, cap_grant: grants.collect() }
    }
}
