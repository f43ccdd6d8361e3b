//! What happens to others when a node or a user changes.
//!
//! Who sees whom is looked at for the node itself, and for the routers whose subnets hold its addresses: they are
//! judged by the nodes behind them. Everybody else's filter changes only by the sources that it lists.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_core::{
    control::types::{NodeId, UserId},
    ip::prefix::Prefix,
};

use super::{
    plan::{SelectorId, SourceId},
    rulebook::{Placed, Rulebook},
    selector::Selector,
    tailnet::{Node, User},
};

/// What a change of one node, user or policy did to others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// For each node whose rights changed, the nodes that it now sees, and that see it.
    pub appeared: BTreeMap<NodeId, BTreeSet<NodeId>>,
    /// For each node whose rights changed, the nodes that it no longer sees, and that no longer see it.
    pub vanished: BTreeMap<NodeId, BTreeSet<NodeId>>,
    /// Nodes whose packet filter may be another; those whose filter is another are all here.
    pub filters: BTreeSet<NodeId>,
    /// Nodes that may be shown other routes of peers that they saw before and see now ([`Rulebook::shown`]).
    pub routes: BTreeSet<NodeId>,
}

/// Nodes whom another policy concerns. What they are told is worked out when it is sent, from both rulebooks: all pairs
/// that a policy changes may be too many to write down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Affected {
    /// Nodes that see other peers.
    pub peers: BTreeSet<NodeId>,
    /// Nodes whose packet filter is another.
    pub filters: BTreeSet<NodeId>,
    /// Nodes that are shown other routes of peers that they saw before and see now.
    pub routes: BTreeSet<NodeId>,
}

impl Rulebook {
    /// Whom it concerns that this rulebook takes the place of an earlier one; both know the same nodes.
    #[must_use]
    pub fn affected_since(&self, earlier: &Self) -> Affected {
        let mut affected = Affected::default();
        let routers: BTreeSet<_> = self.routers.values().chain(self.exits.values()).flatten().copied().collect();
        // Nodes of one class before and of one class now see the same, but for themselves and their user's.
        let mut same_peers = BTreeMap::new();
        for (id, placed) in self.nodes.iter() {
            let (id, before) = (*id, earlier.nodes.get(id).map(|placed| placed.class));
            let goes_by_owner = [self, earlier].iter().any(|book| !book.plan.own.is_empty());
            let same = if goes_by_owner && placed.node.owner().is_some() {
                self.peers(id) == earlier.peers(id)
            } else {
                let both = (before, placed.class);
                *same_peers.entry(both).or_insert_with(|| self.with_peers(id) == earlier.with_peers(id))
            };
            if !same {
                affected.peers.insert(id);
            }
            let rules =
                |book: &Self| book.filter(id).into_iter().map(|rule| (rule.sources, rule.gives)).collect::<Vec<_>>();
            if rules(self) != rules(earlier) {
                affected.filters.insert(id);
            }
            let both_see = |router: &NodeId| self.sees(id, *router) && earlier.sees(id, *router);
            let mut seen = routers.iter().filter(|router| both_see(router));
            if seen.any(|router| self.shown(id, *router) != earlier.shown(id, *router)) {
                affected.routes.insert(id);
            }
        }
        affected
    }

    /// A node's peers and itself, so that all of its class have the same.
    fn with_peers(&self, id: NodeId) -> BTreeSet<NodeId> {
        let mut nodes = self.peers(id);
        nodes.insert(id);
        nodes
    }

    /// A node joined, or is another than it was.
    pub fn set_node(&mut self, node: Node) -> Change {
        if self.node(node.id) == Some(&node) {
            return Change::default();
        }
        self.change(node.id, Some(node))
    }

    /// A node left.
    pub fn remove_node(&mut self, id: NodeId) -> Change {
        if self.nodes.contains_key(&id) { self.change(id, None) } else { Change::default() }
    }

    /// A user is there, or is another than they were: their nodes are judged anew.
    pub fn set_user(&mut self, user: User) -> Change {
        let id = user.id;
        if self.users.get(&id) == Some(&user) {
            return Change::default();
        }
        Arc::make_mut(&mut self.users).insert(id, user);
        let mut change = Change::default();
        for node in self.owned.get(&id).cloned().unwrap_or_default() {
            let same = self.node(node).cloned();
            change.merge(self.change(node, same));
        }
        change
    }

    fn change(&mut self, id: NodeId, node: Option<Node>) -> Change {
        let old = self.nodes.get(&id).cloned();
        let mut around = self.routers_around(old.as_ref().map(|placed| &placed.node));
        around.extend(self.routers_around(node.as_ref()));
        around.insert(id);
        let before: BTreeMap<_, _> = around.iter().map(|id| (*id, self.peers(*id))).collect();
        let classes: Vec<_> = around.iter().map(|id| self.nodes.get(id).map(|placed| placed.class)).collect();
        let routes = changed_routes(old.as_ref().map(|placed| &placed.node), node.as_ref());

        let mut change = Change { routes: self.viewers_of_routers(&routes), ..Change::default() };
        let named_by = node.as_ref().map(|node| self.named_by(node)).unwrap_or_default();
        let selectors = changed_selectors(old.as_deref(), node.as_ref(), &named_by);
        let overlaps = self.overlapping_routes(&selectors);
        let touched = self.touched_sources(old.as_deref(), node.as_ref(), &selectors);
        if let Some(old) = &old {
            let owner = old.node.owner();
            self.leave(id);
            self.note_filters(&mut change, owner, &touched);
        }
        let owner = node.as_ref().and_then(Node::owner);
        if let Some(node) = node {
            self.enter(node, named_by);
        }
        for router in &around {
            self.place(*router);
        }
        self.note_filters(&mut change, owner, &touched);
        change.filters.extend(around.iter().copied().filter(|id| self.nodes.contains_key(id)));
        if !self.nodes.contains_key(&id) {
            change.filters.remove(&id);
        }
        change.routes.extend(self.viewers_of_routers(&routes));
        for (selector, _) in &overlaps ^ &self.overlapping_routes(&selectors) {
            change.routes.extend(self.nodes_by(selector));
        }
        for (id, class) in around.iter().zip(classes) {
            if self.nodes.get(id).map(|placed| placed.class) != class {
                change.routes.insert(*id);
            }
        }
        change.routes.retain(|id| self.nodes.contains_key(id));
        for (id, before) in before {
            let after = self.peers(id);
            let appeared: BTreeSet<_> = after.difference(&before).copied().collect();
            let vanished: BTreeSet<_> = before.difference(&after).copied().collect();
            if !appeared.is_empty() {
                change.appeared.insert(id, appeared);
            }
            if !vanished.is_empty() {
                change.vanished.insert(id, vanished);
            }
        }
        change
    }

    /// The filters that list sources that changed.
    fn note_filters(&self, change: &mut Change, owner: Option<UserId>, touched: &BTreeSet<SourceId>) {
        for source in touched {
            change.filters.extend(self.nodes_from(*source));
        }
        if !self.plan.own.is_empty()
            && let Some(nodes) = owner.and_then(|owner| self.owned.get(&owner))
        {
            change.filters.extend(nodes);
        }
    }

    /// The nodes that a list of sources may reach.
    fn nodes_from(&self, source: SourceId) -> BTreeSet<NodeId> {
        let classes = self.plan.sources[source].steps.iter().flat_map(|step| self.step_classes[*step].iter());
        classes.flat_map(|class| &self.classes[class].nodes).copied().collect()
    }

    /// Which selectors have addresses in which routes that somebody serves.
    fn overlapping_routes(&self, selectors: &BTreeSet<SelectorId>) -> BTreeSet<(SelectorId, Prefix)> {
        let routes: BTreeSet<_> = self.routers.keys().chain(self.exits.keys()).copied().collect();
        let pairs = selectors.iter().flat_map(|selector| routes.iter().map(|route| (*selector, *route)));
        pairs.filter(|(selector, route)| self.named[*selector].overlaps(*route)).collect()
    }

    /// The nodes whose way to a route, or the way of a route to which, may go by a selector.
    fn nodes_by(&self, selector: SelectorId) -> BTreeSet<NodeId> {
        let mut nodes = BTreeSet::new();
        for source in &self.plan.as_source[selector] {
            nodes.extend(self.nodes_from(*source));
        }
        for step in self.plan.steps.iter().filter(|step| step.dst.contains(&selector)) {
            let classes = self.source_classes[step.sources].iter();
            nodes.extend(classes.flat_map(|class| &self.classes[class].nodes));
        }
        nodes
    }

    /// Lists of sources whose texts are others when a node changes from `old` to `new`; they are forgotten.
    fn touched_sources(
        &mut self,
        old: Option<&Placed>,
        new: Option<&Node>,
        selectors: &BTreeSet<SelectorId>,
    ) -> BTreeSet<SourceId> {
        let mut touched: BTreeSet<_> =
            selectors.iter().flat_map(|selector| &self.plan.as_source[*selector]).copied().collect();
        let same_subnets = match (old, new) {
            (Some(old), Some(new)) => old.node.subnets == new.subnets,
            (Some(Placed { node, .. }), None) | (None, Some(node)) => node.subnets.is_empty(),
            (None, None) => true,
        };
        if !same_subnets && let Some(all) = self.plan.index.fixed.get(&Selector::All) {
            touched.extend(&self.plan.as_source[*all]);
        }
        for source in &touched {
            self.source_sets[*source] = Arc::default();
        }
        touched
    }

    /// Other nodes one of whose subnets holds an address of the node.
    fn routers_around(&self, node: Option<&Node>) -> BTreeSet<NodeId> {
        let mut around = BTreeSet::new();
        let addresses = node.into_iter().flat_map(|node| &node.addresses);
        for address in addresses.filter(|_| !self.routers.is_empty()) {
            for length in 0..=Prefix::host(*address).length() {
                let prefix = Prefix::new(*address, length);
                around.extend(prefix.and_then(|prefix| self.routers.get(&prefix)).into_iter().flatten());
            }
        }
        around
    }
}

impl Change {
    /// Adds what another change did. Pairs that came and went again are in both lists.
    fn merge(&mut self, other: Self) {
        for (mine, others) in [(&mut self.appeared, other.appeared), (&mut self.vanished, other.vanished)] {
            for (id, nodes) in others {
                mine.entry(id).or_default().extend(nodes);
            }
        }
        self.filters.extend(other.filters);
        self.routes.extend(other.routes);
    }
}

/// The selectors that name other addresses when a node changes, `named_by` these once it is `new`.
fn changed_selectors(
    old: Option<&Placed>,
    new: Option<&Node>,
    named_by: &BTreeSet<SelectorId>,
) -> BTreeSet<SelectorId> {
    let Some(old) = old else { return named_by.clone() };
    let same = new.is_some_and(|new| new.addresses == old.node.addresses);
    if same { &old.named_by ^ named_by } else { &old.named_by | named_by }
}

/// The routes whose routers are others, or in another order, when a node changes. Tags count: a rule may steer by them.
fn changed_routes(old: Option<&Node>, new: Option<&Node>) -> BTreeSet<Prefix> {
    let routes = |node: Option<&Node>| {
        node.map(|node| node.subnets.union(&node.exit_routes).copied().collect::<BTreeSet<_>>()).unwrap_or_default()
    };
    let rank = |node: Option<&Node>| node.map(|node| (node.created, node.tags.clone()));
    let (before, after) = (routes(old), routes(new));
    if rank(old) == rank(new) { &before ^ &after } else { &before | &after }
}
