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
        let mut viewers = BTreeSet::new();
        for router in routes.iter().flat_map(|route| self.servers(*route)) {
            viewers.insert(router);
            viewers.extend(self.peers(router));
        }
        viewers
    }

    /// The nodes that serve a subnet, or that offer a default route.
    pub fn servers(&self, route: Prefix) -> impl Iterator<Item = NodeId> + '_ {
        let servers = if route.length() == 0 { &self.exits } else { &self.routers };
        servers.get(&route).into_iter().flatten().copied()
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
        let is_tagged = |id: &NodeId| {
            let named_by = self.nodes.get(id).map(|placed| &placed.named_by);
            named_by.is_some_and(|named_by| step.via.iter().any(|tag| named_by.contains(tag)))
        };
        self.oldest(self.servers(route).filter(is_tagged))
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

#[cfg(test)]
mod tests {
    use super::{super::support, *};

    const TAGS: &str = r#""tagOwners": {"tag:r": [], "tag:s": [], "tag:exit": []}"#;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn shown(rulebook: &Rulebook, viewer: i64, peer: i64) -> Vec<String> {
        rulebook.shown(NodeId(viewer), NodeId(peer)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_oldest_router_is_primary_until_another_is_chosen() {
        let text = format!("{{{TAGS}, \"grants\": [{{\"src\": [\"*\"], \"dst\": [\"*\"], \"ip\": [\"*\"]}}]}}");
        let nodes = ["1 alice", "2 tag:r 10.1.0.0/16", "3 tag:r 10.1.0.0/16 10.2.0.0/16", "4 tag:exit 0.0.0.0/0 ::/0"];
        let mut rulebook = support::rulebook(&text, &nodes);
        let subnet = prefix("10.1.0.0/16");
        assert_eq!(rulebook.primary(subnet), Some(NodeId(2)));
        assert_eq!(
            (shown(&rulebook, 1, 2), shown(&rulebook, 1, 3)),
            (vec!["10.1.0.0/16".into()], vec!["10.2.0.0/16".into()])
        );
        assert_eq!(shown(&rulebook, 1, 4), ["0.0.0.0/0", "::/0"]);
        // A router in waiting is shown the route of the primary one.
        assert_eq!(shown(&rulebook, 3, 2), ["10.1.0.0/16"]);

        let told = rulebook.set_primary(subnet, NodeId(3));
        assert_eq!(told, [1, 2, 3, 4].map(NodeId).into());
        assert_eq!((rulebook.primary(subnet), shown(&rulebook, 1, 2)), (Some(NodeId(3)), vec![]));
        // One that no longer serves it is primary no more.
        rulebook.remove_node(NodeId(3));
        assert_eq!(rulebook.primary(subnet), Some(NodeId(2)));
        assert_eq!(rulebook.primary(prefix("10.2.0.0/16")), None);
    }

    #[test]
    fn via_steers_its_sources_to_routers_with_a_tag() {
        let text = format!(
            r#"{{{TAGS}, "grants": [
            {{"src": ["*"], "dst": ["tag:r", "tag:s"], "ip": ["*"]}},
            {{"src": ["alice@example.com"], "dst": ["10.0.0.0/8"], "ip": ["*"], "via": ["tag:s"]}},
            {{"src": ["bob@example.com"], "dst": ["10.0.0.0/8"], "ip": ["*"]}}]}}"#
        );
        let rulebook =
            support::rulebook(&text, &["1 alice", "2 bob", "3 tag:r 10.1.0.0/16", "4 tag:s 10.1.0.0/16", "5 carol"]);
        assert_eq!((shown(&rulebook, 1, 3), shown(&rulebook, 1, 4)), (vec![], vec!["10.1.0.0/16".into()]));
        assert_eq!((shown(&rulebook, 2, 3), shown(&rulebook, 2, 4)), (vec!["10.1.0.0/16".into()], vec![]));
        assert_eq!((shown(&rulebook, 5, 3), shown(&rulebook, 5, 4)), (vec![], vec![]));
    }

    #[test]
    fn routes_are_approved_by_prefix_and_holder() {
        let text = format!(
            r#"{{{TAGS}, "autoApprovers": {{"exitNode": ["tag:exit"],
            "routes": {{"0.0.0.0/0": ["tag:r"], "10.0.0.0/8": ["alice@example.com"]}}}}}}"#
        );
        let rulebook = support::rulebook(&text, &["1 alice", "2 tag:r", "3 tag:exit"]);
        let advertised = ["10.1.0.0/16", "192.168.0.0/24", "0.0.0.0/0", "::/0", "fd00::/64"].map(prefix);
        let approved = |id| {
            let node = rulebook.node(NodeId(id)).unwrap();
            rulebook.approved_by_policy(node, &advertised).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(approved(1), ["10.1.0.0/16"]);
        assert_eq!(approved(2), ["10.1.0.0/16", "192.168.0.0/24"]);
        assert_eq!(approved(3), ["0.0.0.0/0", "::/0"]);
    }
}
