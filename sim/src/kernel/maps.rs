//! Who tells nodes of each other, in worlds without a coordination server: a source of network maps.
//!
//! It knows of every node its keys and its overlay address from the beginning, and what the node last told: its home,
//! and its addresses unless the scenario's maps are static. A node that starts is handed what is known. What a node has
//! to tell reaches the source after [`REPORT`]; the others are handed the newest map some time later, each after a time
//! of its own. Neither happens while the node is off, asleep or cut off: it is made up for afterwards.

use core::{net::SocketAddr, time::Duration};
use std::sync::Arc;

use mesh_core::{
    control::types::{MapResponse, NodeId, PeerNode},
    derp::{DerpMap, RegionId},
    ip::prefix::Prefix,
    rng::Rng,
    time::Instant,
};

use crate::{
    check::CheckId,
    host::{Host, HostId, NodeHost},
    scenario::{Maps, Scenario},
};

use super::{Event, Simulation, agenda::Class, dice::Dice, policy::Rules, trace::What};

/// From a change at a node until the source knows it.
const REPORT: Duration = Duration::from_millis(25);
/// From then until another node is handed it: so long, and up to [`SPREAD`] more.
const HAND_OUT: Duration = Duration::from_millis(25);
const SPREAD: Duration = Duration::from_millis(20);
/// From try to try while a node cannot be told or cannot tell.
const AGAIN: Duration = Duration::from_millis(500);
/// How old what is newest must be for everybody to hold it at the end.
const SETTLED: Duration = Duration::from_secs(2);

/// What maps are about.
#[derive(Debug)]
pub(super) struct MapSource {
    derp_map: DerpMap,
    known: Vec<Known>,
    tells_endpoints: bool,
    pub(super) rules: Rules,
    version: u64,
    changed_at: Instant,
    rng: Rng,
}

#[derive(Debug)]
struct Known {
    node: Arc<PeerNode>,
    /// What the node would tell now.
    endpoints: Vec<SocketAddr>,
    home: Option<RegionId>,
    is_reporting: bool,
    /// The newest map that it was handed.
    holds: u64,
    is_awaiting: bool,
}

impl MapSource {
    /// The source of a scenario's maps; `None` when nodes know each other from the beginning, or are not to.
    pub(super) fn new(scenario: &Scenario, hosts: &[Host], dice: &Dice) -> Option<Self> {
        let tells_endpoints = match scenario.maps {
            Maps::Live => true,
            Maps::Static => false,
            Maps::None => return None,
        };
        if scenario.relays.is_empty() || !scenario.peers.is_empty() || scenario.control.is_some() {
            return None;
        }
        let nodes: Vec<_> = hosts.iter().filter_map(Host::node).collect();
        Some(Self {
            derp_map: nodes.first()?.derp_map().clone(),
            known: nodes.iter().map(|node| Known::new(node)).collect(),
            tells_endpoints,
            rules: Rules::new(scenario, hosts),
            version: 1,
            changed_at: Instant::ZERO,
            rng: dice.stream("maps", 0),
        })
    }

    fn map_for(&self, host: HostId) -> MapResponse {
        let (own, others): (Vec<_>, Vec<_>) =
            self.known.iter().enumerate().partition(|(index, _)| *index == host.index());
        MapResponse {
            node: own.first().map(|(_, known)| Arc::clone(&known.node)),
            peers: others.into_iter().map(|(_, known)| Arc::clone(&known.node)).collect(),
            derp_map: Some(self.derp_map.clone()),
            packet_filters: Some([("base".to_owned(), Some(self.rules.of(host)))].into()),
            ..MapResponse::default()
        }
    }
}

impl Known {
    fn new(node: &NodeHost) -> Self {
        let prefixes: Vec<_> = node.overlay().map(|address| Prefix::host(address.into())).into_iter().collect();
        let number = i64::from(node.id().0) + 1;
        let node = PeerNode {
            id: NodeId(number),
            stable_id: format!("n{number}"),
            name: format!("node{number}.simulated."),
            key: node.public(),
            disco_key: Some(node.disco_key().public()),
            addresses: prefixes.clone(),
            allowed_ips: Some(prefixes),
            ..PeerNode::default()
        };
        Self {
            node: Arc::new(node),
            endpoints: Vec::new(),
            home: None,
            is_reporting: false,
            holds: 0,
            is_awaiting: false,
        }
    }
}

impl Simulation<'_> {
    /// A host was called: its node may have something to tell.
    pub(super) fn note_told(&mut self, id: HostId) {
        let Some(maps) = &mut self.maps else { return };
        let Some(known) = maps.known.get_mut(id.index()) else { return };
        let Some(node) = self.hosts[id.index()].node().and_then(NodeHost::running) else { return };
        if known.home == node.home() && known.endpoints == node.own_endpoints() {
            return;
        }
        known.home = node.home();
        known.endpoints = node.own_endpoints().to_vec();
        if !core::mem::replace(&mut known.is_reporting, true) {
            self.agenda.insert(self.now + REPORT, Class::Fault, Event::Report { host: id });
        }
    }

    /// The source hears what a node has to tell.
    pub(super) fn report(&mut self, id: HostId) {
        if !self.can_reach_maps(id) {
            self.agenda.insert(self.now + AGAIN, Class::Fault, Event::Report { host: id });
            return;
        }
        let status = self.hosts[id.index()].node().and_then(|node| node.status(self.now));
        let (Some(maps), Some(status)) = (&mut self.maps, status) else { return };
        let tells_endpoints = maps.tells_endpoints;
        let known = &mut maps.known[id.index()];
        known.is_reporting = false;
        let mut node = status.self_node();
        if !tells_endpoints {
            node.endpoints.clear();
        }
        if *known.node == node {
            return;
        }
        known.node = Arc::new(node);
        self.spread_maps(Some(id));
    }

    /// There is something new: everybody is handed it, but for whom it came from.
    pub(super) fn spread_maps(&mut self, except: Option<HostId>) {
        let Some(maps) = &mut self.maps else { return };
        maps.version += 1;
        maps.changed_at = self.now;
        for (index, known) in maps.known.iter_mut().enumerate() {
            let host = HostId(index as u32);
            if except != Some(host) && !core::mem::replace(&mut known.is_awaiting, true) {
                let at = self.now + HAND_OUT + maps.rng.duration_below(SPREAD);
                self.agenda.insert(at, Class::Fault, Event::HandOut { host });
            }
        }
    }

    /// A node is handed the newest map.
    pub(super) fn hand_out(&mut self, id: HostId) {
        if !self.can_reach_maps(id) {
            self.agenda.insert(self.now + AGAIN, Class::Fault, Event::HandOut { host: id });
            return;
        }
        if let Some(maps) = &mut self.maps {
            maps.known[id.index()].is_awaiting = false;
        }
        self.hand_map(id);
    }

    /// Hands a node the newest map, whatever it holds.
    pub(super) fn hand_map(&mut self, id: HostId) {
        let Some(maps) = &mut self.maps else { return };
        let Some(known) = maps.known.get_mut(id.index()) else { return };
        known.holds = maps.version;
        let (version, map) = (maps.version, maps.map_for(id));
        self.record(Some(id), What::Mapped { version }, 0);
        if let Some(check) = &mut self.policy {
            check.note_handed(id, self.now);
        }
        self.call(id, |host, now, effects| {
            if let Host::Node(node) = host {
                node.handle_map(map, now, effects);
            }
        });
    }

    /// L1: every node that runs knows of every other what is newest.
    pub(super) fn check_maps(&mut self) {
        let Some(maps) = &self.maps else { return };
        if self.now < maps.changed_at + SETTLED {
            return;
        }
        for host in 0..maps.known.len() {
            let id = HostId(host as u32);
            if !self.can_reach_maps(id) {
                continue;
            }
            let Some(node) = self.hosts[host].node().and_then(NodeHost::running) else { continue };
            let others = maps.known.iter().enumerate().filter(|(index, _)| *index != host);
            let old = others
                .map(|(_, known)| &known.node)
                .find(|newest| node.netmap().peer_by_key(&newest.key).is_none_or(|held| held != *newest));
            let text = old.map(|newest| format!("host {host} does not know the newest of node {}", newest.id));
            self.tally.note(CheckId::L1, self.now, text);
        }
    }

    /// Whether a node runs and can reach the core.
    fn can_reach_maps(&self, id: HostId) -> bool {
        let Some(node) = self.hosts[id.index()].node().filter(|node| node.is_awake()) else { return false };
        node.net().is_some_and(|net| self.network.is_connected(net))
    }
}
