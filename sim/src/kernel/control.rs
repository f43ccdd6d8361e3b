//! What nodes hold of control's knowledge: L1 in worlds with a control server.

use core::time::Duration;

use mesh_core::{
    control::{NetMap, types::PeerNode},
    node::BackendState,
    time::Instant,
};

use crate::{
    check::CheckId,
    host::{Host, HostId},
};

use super::Simulation;

/// How old what is newest must be for everybody to hold it at the end.
const SETTLED: Duration = Duration::from_secs(2);
/// How long control must have been there for everybody to have found it: nodes wait up to a minute between tries.
const FOUND: Duration = Duration::from_secs(90);

/// Since when nothing has changed.
#[derive(Debug, Default)]
pub(super) struct ControlWatch {
    changes: u64,
    changed_at: Instant,
    serving_since: Option<Instant>,
}

impl Simulation<'_> {
    /// A host was called: control may have changed.
    pub(super) fn note_control(&mut self, id: HostId) {
        let Some(control) = self.hosts[id.index()].control() else { return };
        let changes = control.coordinator().map_or(0, |coordinator| coordinator.counters().changes_total);
        let watch = &mut self.control;
        if core::mem::replace(&mut watch.changes, changes) != changes {
            watch.changed_at = self.now;
        }
        watch.serving_since = control.is_serving().then(|| watch.serving_since.unwrap_or(self.now));
    }

    /// L1: the map of every node that runs is what control would tell it now, as the first map of a new stream.
    pub(super) fn check_control(&mut self) {
        let Some(serving_since) = self.control.serving_since else { return };
        let was_there = serving_since == Instant::ZERO || self.now >= serving_since + FOUND;
        if !was_there || self.now < self.control.changed_at + SETTLED {
            return;
        }
        let effects = &mut self.effects;
        let (nodes, rest) = self.hosts.split_at_mut(self.scenario.nodes.len());
        let Some(control) = rest.iter_mut().find_map(Host::control_mut) else { return };
        for host in nodes.iter().filter_map(Host::node) {
            let is_reachable = host.is_awake() && host.net().is_some_and(|net| self.network.is_connected(net));
            let Some(node) = host.running().filter(|_| is_reachable) else { continue };
            let key = host.public();
            let row = control.rows().nodes.values().find(|row| row.key == key).map(|row| row.id);
            let wrong = match (row, host.state()) {
                (Some(id), BackendState::Running) => {
                    difference(node.netmap(), control.map_of(id, &mut effects.interner))
                }
                (None, BackendState::Running) => Some("runs, and control does not know it".to_owned()),
                _ => continue,
            };
            let text = wrong.map(|what| format!("host {} {what}", host.id().0));
            self.tally.note(CheckId::L1, self.now, text);
        }
    }
}

/// What a node holds that is other than it would be told.
fn difference(held: &NetMap, told: Option<NetMap>) -> Option<String> {
    let Some(told) = told else { return Some("runs, and control has no map for it".to_owned()) };
    if let Some(id) = told.peers().keys().find(|id| held.peer(**id).is_none()) {
        return Some(format!("does not know node {id}"));
    }
    if let Some(id) = held.peers().keys().find(|id| told.peer(**id).is_none()) {
        return Some(format!("still knows node {id}"));
    }
    let other = told.peers().iter().find(|(id, peer)| held.peer(**id).is_none_or(|held| !is_same(held, peer)));
    if let Some((id, peer)) = other {
        return Some(format!("holds {:?} of node {id}, which is {peer:?}", held.peer(*id)));
    }
    if held.self_node() != told.self_node() {
        return Some(format!("holds {:?} of itself, which is {:?}", held.self_node(), told.self_node()));
    }
    if held.filters() != told.filters() {
        return Some(format!("holds the filters {:?}, which are {:?}", held.filters(), told.filters()));
    }
    (held.derp_map() != told.derp_map()).then(|| "holds other relays".to_owned())
}

/// Whether two say the same of a peer, but for what nobody is told of: when it was last seen, and which port its NAT
/// shows for an address that was known before.
fn is_same(held: &PeerNode, told: &PeerNode) -> bool {
    let hosts = |peer: &PeerNode| {
        let mut hosts: Vec<_> = peer.endpoints.iter().map(|endpoint| endpoint.ip()).collect();
        hosts.sort_unstable();
        hosts.dedup();
        hosts
    };
    let rest = |peer: &PeerNode| PeerNode { endpoints: Vec::new(), last_seen: None, ..peer.clone() };
    hosts(told).iter().all(|host| hosts(held).contains(host)) && rest(held) == rest(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_is_told_of_does_not_count() {
        let peer = |endpoints: &[&str]| PeerNode {
            endpoints: endpoints.iter().map(|endpoint| endpoint.parse().unwrap()).collect(),
            ..PeerNode::default()
        };
        let held = peer(&["192.0.2.1:5", "10.0.0.1:1"]);
        assert!(is_same(&held, &peer(&["192.0.2.1:9", "10.0.0.1:1"])));
        assert!(is_same(&held, &peer(&["10.0.0.1:1"])));
        assert!(!is_same(&held, &peer(&["192.0.2.2:5"])));
        assert!(!is_same(&held, &PeerNode { home_derp: 2, ..held.clone() }));
        assert!(!is_same(&held, &PeerNode { online: Some(false), ..held.clone() }));
    }

    #[test]
    fn a_map_without_a_peer_or_with_one_too_many_is_another() {
        let map = |peers: &str| {
            let key = |digit: &str| format!("nodekey:{}", digit.repeat(64));
            let peers = peers.replace("KEY", &key("2"));
            let text = format!(r#"{{"Node":{{"ID":1,"Key":"{}"}},"Peers":[{peers}]}}"#, key("1"));
            let mut map = NetMap::new();
            let now = mesh_core::time::WallTime::from_unix_secs(1_800_000_000);
            map.apply(mesh_core::control::netmap::decode(text.as_bytes(), None).unwrap(), now).unwrap();
            map
        };
        let (none, one) = (|| map(""), || map(r#"{"ID":2,"Key":"KEY"}"#));
        assert_eq!(difference(&one(), Some(one())), None);
        assert_eq!(difference(&none(), Some(one())).as_deref(), Some("does not know node 2"));
        assert_eq!(difference(&one(), Some(none())).as_deref(), Some("still knows node 2"));
        assert!(difference(&one(), None).is_some());
        let renamed = map(r#"{"ID":2,"Key":"KEY","Name":"other."}"#);
        assert!(difference(&one(), Some(renamed)).is_some_and(|what| what.contains("other.")));
    }
}
