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
        Host, HostId,
        message::{Message, Role as Way},
    },
    scenario::Scenario,
};

use super::Simulation;

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
    let text = scenario.policy.as_ref()?;
    Some(PolicyCheck::new(read(text), members(scenario, hosts), Propagation::Told))
}

fn members(scenario: &Scenario, hosts: &[Host]) -> Vec<Member> {
    let nodes = hosts.iter().filter_map(Host::node);
    let member = |(spec, node): (&crate::scenario::NodeSpec, &crate::host::NodeHost)| Member {
        addresses: vec![IpAddr::V4(node.overlay())],
        user: spec.user.clone(),
        tags: spec.tags.clone(),
        subnets: Vec::new(),
    };
    scenario.nodes.iter().zip(nodes).map(member).collect()
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
