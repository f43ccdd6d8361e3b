//! Parts of a scenario left out, and what refers to them with them.

use control::coordinator::Command;

use crate::{
    check::Expectation,
    host::{HostId, Manner, NodeOrder},
    net::NetId,
    scenario::{EventSpec, Fault, LinkChange, LinkPart, Scenario},
};

use super::chaos::policy_of;

/// Events `begin..end` left out.
pub(super) fn without_events(world: &Scenario, begin: usize, end: usize) -> Option<Scenario> {
    let mut out = world.clone();
    out.events.drain(begin..end);
    // The policy at the end stays what it was, from the beginning if there is no event left that sets it.
    let last = last_policy(world).map(str::to_owned);
    if !out.events.iter().any(|event| policy_of(&event.fault).is_some()) {
        match &mut out.control {
            Some(control) => control.preparation.policy = last,
            None => out.policy = last,
        }
    }
    Some(out)
}

/// Traffic `begin..end` left out.
pub(super) fn without_traffic(world: &Scenario, begin: usize, end: usize) -> Option<Scenario> {
    let mut out = world.clone();
    out.traffic.drain(begin..end);
    Some(out)
}

/// Nodes `begin..end` left out, and what is about them.
pub(super) fn without_nodes(world: &Scenario, begin: usize, end: usize) -> Option<Scenario> {
    let gone = begin as u32..end as u32;
    if world.nodes.len() < gone.len() + 2 {
        return None;
    }
    let kept = |host: HostId| match host.0 {
        number if number < gone.start => Some(host),
        number if number < gone.end => None,
        number => Some(HostId(number - (gone.end - gone.start))),
    };
    let mut out = world.clone();
    let names: Vec<_> = out.nodes.drain(begin..end).map(|node| node.name).collect();
    out.peers.retain_mut(|peer| replace_all([&mut peer.of, &mut peer.is], kept));
    out.traffic.retain_mut(|traffic| replace_all([&mut traffic.from, &mut traffic.to], kept));
    out.events.retain_mut(|event| match &mut event.fault {
        Fault::Restart { node, .. }
        | Fault::Move { node, .. }
        | Fault::Suspend { node, .. }
        | Fault::Order { node, .. }
        | Fault::Replay { at: node }
        | Fault::Relay { relay: node, .. } => replace_all([node], kept),
        Fault::Admin(command) => node_of(command).is_none_or(|node| !names.iter().any(|name| name == node)),
        Fault::Link { .. }
        | Fault::Reboot { .. }
        | Fault::Nat { .. }
        | Fault::Firewall { .. }
        | Fault::Resolver(_)
        | Fault::Control { .. }
        | Fault::Policy { .. } => true,
    });
    out.expects.retain_mut(|spec| match &mut spec.expectation {
        Expectation::Delivered { from, to, .. }
        | Expectation::Outage { from, to, .. }
        | Expectation::Rtt { from, to, .. }
        | Expectation::Loss { from, to, .. }
        | Expectation::Acl { from, to, .. } => replace_all([from, to], kept),
        Expectation::Path { between: [a, b], .. } => replace_all([a, b], kept),
        Expectation::Packets { of: node, .. } | Expectation::State { node, .. } => {
            node.as_mut().is_none_or(|node| replace_all([node], kept))
        }
        Expectation::Event { node, peer, .. } => node.iter_mut().chain(peer).all(|node| replace_all([node], kept)),
        Expectation::Invariants { .. } => true,
    });
    (!out.expects.is_empty()).then_some(out)
}

/// Relays `begin..end` left out; one stays.
pub(super) fn without_relays(world: &Scenario, begin: usize, end: usize) -> Option<Scenario> {
    if world.relays.len() <= end - begin {
        return None;
    }
    let (first, last) = (world.relay_host(begin).0, world.relay_host(end).0);
    let mut out = world.clone();
    out.relays.drain(begin..end);
    out.events.retain_mut(|event| match &mut event.fault {
        Fault::Relay { relay, .. } | Fault::Replay { at: relay } if (first..last).contains(&relay.0) => false,
        Fault::Relay { relay, .. } | Fault::Replay { at: relay } if relay.0 >= last => {
            relay.0 -= last - first;
            true
        }
        _ => true,
    });
    Some(out)
}

/// Nets `begin..end` left out; `None` when somebody is in one of them or behind it.
pub(super) fn without_nets(world: &Scenario, begin: usize, end: usize) -> Option<Scenario> {
    let gone = begin as u32..end as u32;
    let kept = |net: &mut NetId| match net.0 {
        number if number < gone.start => true,
        number if number < gone.end => false,
        number => {
            *net = NetId(number - (gone.end - gone.start));
            true
        }
    };
    let mut out = world.clone();
    out.nets.drain(begin..end);
    let nodes = out.nodes.iter_mut().map(|node| &mut node.net);
    let relays = out.relays.iter_mut().map(|relay| &mut relay.net);
    let others = out.resolver.iter_mut().map(|resolver| &mut resolver.net);
    let others = others.chain(out.control.iter_mut().map(|control| &mut control.net));
    let behind = out.nets.iter_mut().filter_map(|net| net.setup.behind.as_mut());
    if !nodes.chain(relays).chain(others).chain(behind).all(kept) {
        return None;
    }
    out.events.retain_mut(|event| match &mut event.fault {
        Fault::Link { net, .. } | Fault::Reboot { net, .. } | Fault::Nat { net, .. } | Fault::Firewall { net, .. } => {
            kept(net)
        }
        Fault::Move { to, .. } => kept(to),
        Fault::Restart { .. }
        | Fault::Suspend { .. }
        | Fault::Relay { .. }
        | Fault::Resolver(_)
        | Fault::Control { .. }
        | Fault::Admin(_)
        | Fault::Order { .. }
        | Fault::Replay { .. }
        | Fault::Policy { .. } => true,
    });
    Some(out)
}

/// The DNS server left out: relays are told by address.
pub(super) fn without_resolver(world: &Scenario) -> Option<Scenario> {
    let mut out = world.clone();
    out.resolver = None;
    out.events.retain(|event| !matches!(event.fault, Fault::Resolver(_)));
    Some(out)
}

/// Auth keys and users that no node has left out.
pub(super) fn without_unused_keys(world: &mut Scenario) {
    let Some(control) = &mut world.control else { return };
    let nodes = &world.nodes;
    control.preparation.keys.retain(|key| nodes.iter().any(|node| node.key.as_ref() == Some(&key.name)));
    control.preparation.users.retain(|user| nodes.iter().any(|node| node.user == *user));
}

/// Whether a candidate asks no more of a world than the one that it was made from: the policy at the end is the same, and
/// everything that does not end by itself is undone if it was.
pub(super) fn is_fair(world: &Scenario, candidate: &Scenario) -> bool {
    last_policy(world) == last_policy(candidate) && (!is_undone(world) || is_undone(candidate))
}

/// Whether everything that does not end by itself is undone later.
fn is_undone(world: &Scenario) -> bool {
    let undoes = |one: &EventSpec, other: &EventSpec| {
        other.at >= one.at && target(world, &other.fault) == target(world, &one.fault) && !lasts(world, &other.fault)
    };
    let lasting = world.events.iter().filter(|event| lasts(world, &event.fault));
    let mut lasting = lasting.map(|event| world.events.iter().any(|other| undoes(event, other)));
    lasting.all(|is_undone| is_undone)
}

/// What an event is about, if it does not end by itself or ends one that does not.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    Link(NetId),
    Nat(NetId),
    Firewall(NetId),
    Resolver,
    Node(HostId),
    Nothing,
}

fn target(world: &Scenario, fault: &Fault) -> Target {
    match fault {
        Fault::Link { net, change: LinkChange::Set(_), .. } => Target::Link(*net),
        Fault::Nat { net, .. } => Target::Nat(*net),
        Fault::Firewall { net, .. } => Target::Firewall(*net),
        Fault::Resolver(_) => Target::Resolver,
        Fault::Order { node, .. } | Fault::Restart { node, .. } => Target::Node(*node),
        Fault::Admin(command) => {
            let named = |name: &String| world.nodes.iter().zip(0..).find(|(node, _)| node.name == **name);
            node_of(command).and_then(named).map_or(Target::Nothing, |(_, number)| Target::Node(HostId(number)))
        }
        _ => Target::Nothing,
    }
}

/// Whether an event leaves a world otherwise than it was made, for good.
fn lasts(world: &Scenario, fault: &Fault) -> bool {
    let setup = |net: &NetId| &world.nets[net.index()].setup;
    match fault {
        Fault::Link { net, part, change: LinkChange::Set(link) } => {
            *part != LinkPart::Whole || **link != setup(net).link
        }
        Fault::Link { change: LinkChange::Down(length), .. } => length.is_none(),
        Fault::Nat { net, params } => setup(net).nat.is_none_or(|nat| nat != **params),
        Fault::Firewall { net, params } => setup(net).firewall != *params,
        Fault::Resolver(manner) => *manner != Manner::Answer,
        // A node that had not joined yet has forgotten its auth key.
        Fault::Restart { .. } => world.control.is_some(),
        Fault::Order { order, .. } => !matches!(order, NodeOrder::Up { .. }),
        Fault::Admin(command) => matches!(**command, Command::ExpireNode { .. } | Command::DeleteNode { .. }),
        _ => false,
    }
}

/// The policy that is in force at the end.
fn last_policy(world: &Scenario) -> Option<&str> {
    let set = world.events.iter().rev().find_map(|event| policy_of(&event.fault));
    let first = world.control.as_ref().map_or(world.policy.as_deref(), |control| control.preparation.policy.as_deref());
    set.or(first)
}

/// The node that an operator's command is about.
fn node_of(command: &Command) -> Option<&String> {
    match command {
        Command::ExpireNode { node } | Command::DeleteNode { node } | Command::RenameNode { node, .. } => Some(node),
        _ => None,
    }
}

/// Puts what `kept` says in place of each; `false` when one of them is gone.
fn replace_all<const N: usize>(hosts: [&mut HostId; N], kept: impl Fn(HostId) -> Option<HostId>) -> bool {
    hosts.into_iter().all(|host| kept(*host).map(|new| *host = new).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::of_seed;

    #[test]
    fn a_fault_that_is_undone_no_more_is_not_fair() {
        let is_silent = |event: &EventSpec| matches!(event.fault, Fault::Resolver(manner) if manner != Manner::Answer);
        let world = (0..500).map(of_seed).find(|world| world.events.iter().any(is_silent)).unwrap();
        let answers = world.events.iter().rposition(|event| matches!(event.fault, Fault::Resolver(Manner::Answer)));
        let answers = answers.unwrap();
        let without = without_events(&world, answers, answers + 1).unwrap();
        assert!(is_fair(&world, &world) && !is_fair(&world, &without));
        assert!(is_fair(&world, &without_events(&world, 0, world.events.len()).unwrap()));
    }

    #[test]
    fn the_last_policy_stays_when_the_event_that_set_it_is_left_out() {
        let sets = |world: &Scenario| world.events.iter().any(|event| policy_of(&event.fault).is_some());
        let world = (0..500).map(of_seed).find(sets).unwrap();
        let without = without_events(&world, 0, world.events.len()).unwrap();
        assert!(without.events.is_empty());
        assert_eq!(last_policy(&without), last_policy(&world));
    }

    #[test]
    fn who_comes_after_a_node_that_is_left_out_is_still_meant() {
        let world = (0..100).map(of_seed).find(|world| world.nodes.len() > 3 && !world.relays.is_empty()).unwrap();
        let without = without_nodes(&world, 0, 1).unwrap();
        let names = |world: &Scenario| world.host_names().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(names(&without), names(&world)[1..]);
        let pairs = |world: &Scenario| {
            let name = |host: HostId| world.nodes[host.index()].name.clone();
            world.traffic.iter().map(|traffic| (name(traffic.from), name(traffic.to))).collect::<Vec<_>>()
        };
        let (before, after) = (pairs(&world), pairs(&without));
        assert!(after.iter().all(|pair| before.contains(pair) && pair.0 != world.nodes[0].name));
    }
}
