//! Which routes a node is shown, which router serves each of them, and which routes are approved without asking.
//!
//! Of the routers of one subnet one is primary: the oldest, unless [`Rulebook::set_primary`] chose another because that
//! one is away. Exit routes have no primary. A rule with `via` steers its sources to routers with certain tags: those
//! are shown the route from such a router, and not from another.

use std::{collections::BTreeSet, sync::Arc};

use mesh_core::{control::types::NodeId, ip::prefix::Prefix};

use super::{
    check::Approvers,
    ipset::Span,
    plan::{SelectorId, Step},
    rulebook::{Class, Rulebook},
    selector::Selector,
    tailnet::Node,
};

impl Rulebook {
    /// The primary router of a subnet; `None` when nobody serves it.
    #[must_use]
    pub fn primary(&self, subnet: Prefix) -> Option<NodeId> {
        let routers = self.routers.get(&subnet)?;
        let chosen = self.chosen.get(&subnet).copied().filter(|chosen| routers.contains(chosen));
        chosen.or_else(|| self.oldest(routers.iter().copied()))
    }

    /// Chooses the primary router of a subnet, for as long as it serves it. Gives the nodes that may be shown other
    /// routes than before.
    pub fn set_primary(&mut self, subnet: Prefix, router: NodeId) -> BTreeSet<NodeId> {
        Arc::make_mut(&mut self.chosen).insert(subnet, router);
        self.viewers_of_routers(&[subnet].into())
    }

    /// The nodes that see a router of one of these routes, and the routers.
    pub(super) fn viewers_of_routers(&self, routes: &BTreeSet<Prefix>) -> BTreeSet<NodeId> {
        let serves = |id: &NodeId| self.node(*id).is_some_and(|node| !node.exit_routes.is_disjoint(routes));
        let exits = routes.iter().any(|route| route.length() == 0);
        let exits = self.nodes.keys().filter(|id| exits && serves(id)).copied();
        let routers = routes.iter().filter_map(|route| self.routers.get(route)).flatten().copied();
        let mut viewers = BTreeSet::new();
        for router in routers.chain(exits) {
            viewers.insert(router);
            viewers.extend(self.peers(router));
        }
        viewers
    }

    /// The nodes that serve a subnet.
    #[must_use]
    pub fn routers(&self, subnet: Prefix) -> BTreeSet<NodeId> {
        self.routers.get(&subnet).cloned().unwrap_or_default()
    }

    fn oldest(&self, nodes: impl Iterator<Item = NodeId>) -> Option<NodeId> {
        nodes.min_by_key(|id| (self.node(*id).map(|node| node.created), *id))
    }

    /// The routes that lead to a peer for a viewer, beside the peer's own addresses; none when they do not see each
    /// other. For that viewer the peer is the primary router of all of them that are no default route.
    #[must_use]
    pub fn shown(&self, viewer: NodeId, peer: NodeId) -> BTreeSet<Prefix> {
        let (Some(placed), Some(peer)) = (self.nodes.get(&viewer), self.node(peer)) else { return BTreeSet::new() };
        let Some(class) = self.classes.get(&placed.class) else { return BTreeSet::new() };
        let mut routes: BTreeSet<_> = peer.subnets.union(&peer.exit_routes).copied().collect();
        if !routes.is_empty() && !self.sees(viewer, peer.id) {
            routes.clear();
        }
        routes.retain(|route| self.is_shown(&placed.node, class, peer, *route));
        routes
    }

    fn is_shown(&self, viewer: &Node, class: &Class, peer: &Node, route: Prefix) -> bool {
        let is_exit_route = route.length() == 0;
        let is_primary = self.primary(route) == Some(peer.id);
        if is_primary && viewer.subnets.contains(&route) {
            return true;
        }
        let mut steered = self.steps_from(class).filter(|step| !step.via.is_empty() && self.reaches(step, route));
        let Some(first) = steered.next() else {
            return (is_exit_route || is_primary) && self.has_access(viewer, class, route);
        };
        if self.may_reach(class, route) {
            return is_exit_route || is_primary;
        }
        core::iter::once(first).chain(steered).any(|step| self.chosen_by(step, route) == Some(peer.id))
    }

    /// The steps that a class's nodes are sources of.
    fn steps_from<'a>(&'a self, class: &'a Class) -> impl Iterator<Item = &'a Step> {
        let sources = class.signature.0.iter();
        sources.flat_map(|source| &self.plan.sources[*source].steps).map(|step| &self.plan.steps[*step])
    }

    fn reaches(&self, step: &Step, route: Prefix) -> bool {
        step.dst.iter().any(|dst| self.is_route_to(route, *dst))
    }

    /// Whether a route leads to some of what a selector names.
    fn is_route_to(&self, route: Prefix, selector: SelectorId) -> bool {
        match &self.plan.selectors[selector] {
            Selector::All => true,
            Selector::Internet => self.internet().overlaps(route),
            Selector::Address(prefix) => Span::from(*prefix).overlaps(&Span::from(route)),
            _ => self.named(selector).overlaps(route),
        }
    }

    /// Whether a rule without `via` lets a class's nodes reach some of a route.
    fn may_reach(&self, class: &Class, route: Prefix) -> bool {
        self.steps_from(class).any(|step| step.via.is_empty() && self.reaches(step, route))
    }

    /// Whether a viewer may reach some of a route, or some of it may reach the viewer.
    fn has_access(&self, viewer: &Node, class: &Class, route: Prefix) -> bool {
        let is_source = |step: &Step| self.is_from(step.sources, route);
        let to_internet = |step: &Step| {
            let all = |dst: &SelectorId| matches!(self.plan.selectors[*dst], Selector::All | Selector::Internet);
            step.via.is_empty() && step.dst.iter().any(all)
        };
        self.may_reach(class, route)
            || class.signature.1.iter().map(|step| &self.plan.steps[*step]).any(is_source)
            || (viewer.is_exit() && self.plan.steps.iter().any(|step| to_internet(step) && is_source(step)))
    }

    /// The router that a step with `via` steers to: the oldest with one of the tags.
    fn chosen_by(&self, step: &Step, route: Prefix) -> Option<NodeId> {
        let serves = |node: &&Node| node.subnets.contains(&route) || node.exit_routes.contains(&route);
        let tagged = self.nodes.values().filter(|placed| step.via.iter().any(|tag| placed.named_by.contains(tag)));
        self.oldest(tagged.map(|placed| &placed.node).filter(serves).map(|node| node.id))
    }

    /// Which of the routes that a node advertises are approved without asking. A default route is by `exitNode` alone,
    /// a subnet by every prefix around it.
    #[must_use]
    pub fn approved_by_policy(&self, node: &Node, advertised: &[Prefix]) -> Vec<Prefix> {
        let Approvers { routes, exit_node } = self.policy.approvers();
        let is_one = |who: &[Selector]| who.iter().any(|selector| self.is_named(selector, node));
        let approved = advertised.iter().copied().filter(|route| {
            if route.length() == 0 {
                return is_one(exit_node);
            }
            let span = Span::from(*route);
            routes.iter().any(|(prefix, who)| Span::from(*prefix).covers(&span) && is_one(who))
        });
        approved.collect()
    }
}
