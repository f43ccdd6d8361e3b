//! A scenario's policy: the server's half makes rules of it for the network maps, and [`PolicyCheck`] reads the text
//! for itself. The two meet only in what comes out of tunnels.
//!
//! Every node sees every other, whatever the policy says: what is denied is denied by the packet filter and by nothing
//! before it.

use core::net::IpAddr;
use std::{collections::BTreeSet, sync::Arc};

use control::policy::{Node, Policy, Role, Rulebook, User};
use mesh_core::{
    control::types::{FilterRule, NodeId, UserId},
    time::WallTime,
};

use crate::{
    check::{Member, PolicyCheck, PolicyText, Propagation, Standing},
    host::{
        Host, HostId, NodeHost,
        message::{Message, Role as Way},
    },
    scenario::{NodeSpec, Scenario},
};

use super::Simulation;

/// What a control server without a policy allows.
const NOTHING: &str = r#"{"acls": []}"#;

/// What nodes are told to let in.
#[derive(Debug)]
pub(super) enum Rules {
    /// Everything, from everybody.
    Everything,
    /// What a policy says.
    Policy(Box<Rulebook>),
}

impl Rules {
    /// The rules of a scenario from its beginning.
    pub(super) fn new(scenario: &Scenario, hosts: &[Host]) -> Self {
        let Some(text) = &scenario.policy else { return Self::Everything };
        let names: BTreeSet<_> = scenario.nodes.iter().map(|node| node.user.as_str()).collect();
        let user_id = |name: &str| UserId(names.iter().take_while(|other| **other < name).count() as i64 + 1);
        let users = names.iter().map(|name| User {
            id: user_id(name),
            login: (*name).to_owned(),
            email: None,
            role: Role::Member,
        });
        let nodes = scenario.nodes.iter().zip(members(scenario, hosts)).zip(1..).map(|((spec, member), number)| Node {
            id: NodeId(number),
            user: Some(user_id(&spec.user)),
            tags: spec.tags.iter().cloned().collect(),
            addresses: member.addresses,
            subnets: BTreeSet::new(),
            exit_routes: BTreeSet::new(),
            created: WallTime::from_unix_secs(number as u64),
        });
        Self::Policy(Box::new(Rulebook::new(Arc::new(parse(text)), users, nodes)))
    }

    /// The policy is another.
    fn set_policy(&mut self, text: &str) {
        if let Self::Policy(rulebook) = self {
            let users: Vec<_> = rulebook.nodes().filter_map(|node| rulebook.user(node.user?)).cloned().collect();
            let nodes: Vec<_> = rulebook.nodes().cloned().collect();
            **rulebook = Rulebook::new(Arc::new(parse(text)), users, nodes);
        }
    }

    /// The rules of a node.
    pub(super) fn of(&self, host: HostId) -> Vec<FilterRule> {
        match self {
            Self::Everything => vec![FilterRule::allow_all()],
            Self::Policy(rulebook) => {
                rulebook.packet_filters(NodeId(i64::from(host.0) + 1)).into_values().flatten().collect()
            }
        }
    }
}

/// What holds the nodes to the policy's text, where there is one.
pub(super) fn check(scenario: &Scenario, hosts: &[Host]) -> Option<PolicyCheck> {
    let (text, propagation) = match (&scenario.control, &scenario.policy) {
        (Some(control), _) => (control.preparation.policy.as_deref().unwrap_or(NOTHING), Propagation::ToldAtLatest),
        (None, policy) => (policy.as_deref()?, Propagation::Told),
    };
    Some(PolicyCheck::new(read(text), members(scenario, hosts), propagation))
}

fn members(scenario: &Scenario, hosts: &[Host]) -> Vec<Member> {
    scenario.nodes.iter().zip(hosts.iter().filter_map(Host::node)).map(member).collect()
}

fn member((spec, node): (&NodeSpec, &NodeHost)) -> Member {
    Member {
        addresses: node.overlay().map(IpAddr::V4).into_iter().collect(),
        user: spec.user.clone(),
        tags: spec.tags.clone(),
        subnets: Vec::new(),
    }
}

/// Files are refused when their policies are not understood; only a world written in Rust can have another.
fn parse(text: &str) -> Policy {
    Policy::parse(text).unwrap_or_else(|problems| panic!("the policy of the scenario: {problems}"))
}

fn read(text: &str) -> PolicyText {
    PolicyText::parse(text).unwrap_or_else(|problem| panic!("the policy of the scenario: {problem}"))
}

impl Simulation<'_> {
    /// There is another policy: everybody is handed new rules, as soon as they can be reached.
    pub(super) fn set_policy(&mut self, text: &str) {
        let now = self.now;
        if let Some(check) = &mut self.policy {
            check.set_policy(read(text), now);
        }
        if let Some(maps) = &mut self.maps {
            maps.rules.set_policy(text);
            self.spread_maps(None);
        }
    }

    /// Control is told another policy.
    pub(super) fn note_policy(&mut self, text: &str) {
        if let Some(check) = &mut self.policy {
            check.set_policy(read(text), self.now);
        }
    }

    /// Control gave a node an address.
    pub(super) fn note_address(&mut self, id: HostId) {
        let spec = self.scenario.nodes.get(id.index());
        let node = self.hosts[id.index()].node();
        if let (Some(check), Some(spec), Some(node)) = (&mut self.policy, spec, node) {
            check.set_member(id, member((spec, node)));
        }
    }

    /// A node was told something by control: it may have rules by the newest policy now.
    pub(super) fn note_rules(&mut self, id: HostId) {
        let Some(check) = self.policy.as_mut().filter(|check| check.is_behind(id)) else { return };
        let (nodes, rest) = self.hosts.split_at_mut(self.scenario.nodes.len());
        let node = nodes.get(id.index()).and_then(Host::node).and_then(|host| Some((host.public(), host.running()?)));
        let control = rest.iter_mut().find_map(Host::control_mut);
        if let (Some((key, node)), Some(control)) = (node, control)
            && let Some(row) = control.rows().nodes.values().find(|row| row.key == key).map(|row| row.id)
            && let Some(told) = control.map_of(row, &mut self.effects.interner)
            && control.has_policy(check.newest())
            && told.filters() == node.netmap().filters()
        {
            check.note_handed(id, self.now);
        }
    }

    /// S1 looks at a packet that a host was handed.
    pub(super) fn check_policy(&mut self, id: HostId, packet: &[u8], message: Option<&Message>) {
        let Some(check) = &self.policy else { return };
        let answers = message.is_some_and(|message| {
            message.role == Way::Answer && self.flows.was_asked(message.flow, message.sequence, id)
        });
        let standing = if answers { Standing::Reply } else { Standing::Unasked };
        check.handle_delivered(id, packet, standing, self.now, &mut self.tally);
    }
}
