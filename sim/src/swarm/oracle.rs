//! Who may speak with whom in the end: the second reading of the policy's text, asked of the generated members.

use core::net::{IpAddr, Ipv4Addr};

use crate::{
    check::{Member, PolicyText, Question, Wants},
    host::HostId,
    scenario::{NodeSpec, TrafficKind},
};

/// Says whether a policy's text lets one node reach another in this way.
pub type Oracle = fn(&str, &[NodeSpec], (HostId, HostId), TrafficKind) -> bool;

/// The port that requests are sent to, and the number of UDP.
const REQUEST: Wants = Wants::Port(17, crate::host::message::SERVER_PORT);

/// What the text says. One that is not understood allows nothing; the reader of scenarios refuses it.
#[must_use]
pub fn by_the_text(text: &str, nodes: &[NodeSpec], (from, to): (HostId, HostId), kind: TrafficKind) -> bool {
    let Ok(policy) = PolicyText::parse(text) else { return false };
    let members: Vec<_> = nodes.iter().zip(0..).map(|(node, number)| member(node, number)).collect();
    let question = Question {
        source: address(from.0),
        destination: address(to.0),
        wants: match kind {
            TrafficKind::Ping => Wants::Echo,
            TrafficKind::Request => REQUEST,
        },
    };
    policy.allows(&question, &members)
}

/// Generated policies name no addresses, so any will do.
fn address(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(Ipv4Addr::new(100, 64, 0, 1).to_bits() + number).into()
}

fn member(node: &NodeSpec, number: u32) -> Member {
    Member { addresses: vec![address(number)], user: node.user.clone(), tags: node.tags.clone(), subnets: Vec::new() }
}
