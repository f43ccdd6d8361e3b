//! A policy applied to the users and nodes of a tailnet, and kept right as they change.
//!
//! Nodes that are sources of the same lists and destinations of the same steps share a *class*. A list of sources and a
//! step each know their classes, and a class its nodes: who sees whom follows from these without a table of pairs.
//! What goes by owner (`autogroup:self`) is no part of a class: it would make one for every user.
//!
//! A change of a node evaluates the selectors that name it, which indexes find, and those of routers whose subnets hold
//! its addresses. A copy shares everything that did not change since, so a snapshot is cheap, and so is a policy: all of
//! it is behind [`Arc`].

use core::net::IpAddr;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
};

use mesh_core::{
    control::types::{NodeId, UserId},
    ip::prefix::Prefix,
    never,
};

use super::{
    Policy,
    ipset::{IpSet, Span},
    plan::{self, Gives, Plan, SelectorId, SourceId, StepId},
    selector::Selector,
    tailnet::{Node, User},
};

pub(super) type ClassId = u64;

/// What a node is to the rules: the lists it is a source of, and the steps it is a destination of.
type Signature = (Vec<SourceId>, Vec<StepId>);

/// How much work was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// How often a selector was found to name a node.
    pub selector_evaluations: u64,
}

/// A node, and what followed from it.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub node: Node,
    /// Selectors that name it by what it is, not by its addresses.
    pub named_by: BTreeSet<SelectorId>,
    pub class: ClassId,
}

#[derive(Clone, Debug)]
pub(super) struct Class {
    pub signature: Signature,
    pub nodes: BTreeSet<NodeId>,
}

/// The addresses of a list of sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceSet {
    /// All of them.
    pub addresses: IpSet,
    /// As a filter rule lists them, in the order of their bytes.
    pub texts: Arc<[String]>,
    /// Whether it stands for every address there is.
    pub is_any: bool,
}

/// A policy applied to a tailnet.
#[derive(Clone, Debug)]
pub struct Rulebook {
    pub(super) policy: Arc<Policy>,
    pub(super) plan: Arc<Plan>,
    pub(super) users: Arc<BTreeMap<UserId, User>>,
    pub(super) nodes: Arc<BTreeMap<NodeId, Arc<Placed>>>,
    pub(super) holders: Arc<BTreeMap<IpAddr, NodeId>>,
    /// Nodes that route a subnet.
    pub(super) routers: Arc<BTreeMap<Prefix, BTreeSet<NodeId>>>,
    /// Nodes that offer a default route.
    pub(super) exits: Arc<BTreeMap<Prefix, BTreeSet<NodeId>>>,
    /// Primary routers that were chosen.
    pub(super) chosen: Arc<BTreeMap<Prefix, NodeId>>,
    /// Untagged nodes by user.
    pub(super) owned: Arc<BTreeMap<UserId, BTreeSet<NodeId>>>,
    /// For each selector, the addresses of the nodes that it names by what they are.
    pub(super) named: Vec<Arc<IpSet>>,
    /// For each list of sources, its addresses, worked out when first asked for.
    pub(super) source_sets: Vec<Arc<OnceLock<SourceSet>>>,
    pub(super) classes: Arc<BTreeMap<ClassId, Arc<Class>>>,
    by_signature: Arc<BTreeMap<Signature, ClassId>>,
    next_class: ClassId,
    pub(super) source_classes: Vec<Arc<BTreeSet<ClassId>>>,
    pub(super) step_classes: Vec<Arc<BTreeSet<ClassId>>>,
    internet: Arc<IpSet>,
    tailnet: Arc<IpSet>,
    counters: Counters,
}

impl Rulebook {
    /// Applies a policy to users and nodes.
    #[must_use]
    pub fn new(
        policy: Arc<Policy>,
        users: impl IntoIterator<Item = User>,
        nodes: impl IntoIterator<Item = Node>,
    ) -> Self {
        let plan = Plan::new(&policy);
        let mut rulebook = Self {
            policy,
            users: Arc::new(users.into_iter().map(|user| (user.id, user)).collect()),
            nodes: Arc::default(),
            holders: Arc::default(),
            routers: Arc::default(),
            exits: Arc::default(),
            chosen: Arc::default(),
            owned: Arc::default(),
            named: vec![Arc::default(); plan.selectors.len()],
            // Each its own cell, not one shared by all.
            source_sets: plan.sources.iter().map(|_| Arc::default()).collect(),
            classes: Arc::default(),
            by_signature: Arc::default(),
            next_class: 0,
            source_classes: vec![Arc::default(); plan.sources.len()],
            step_classes: vec![Arc::default(); plan.steps.len()],
            internet: Arc::new(plan::internet()),
            tailnet: Arc::new(plan::tailnet()),
            counters: Counters::default(),
            plan: Arc::new(plan),
        };
        // Enter all before any is placed: a router's class follows from the nodes behind its subnets.
        let nodes: Vec<_> = nodes.into_iter().collect();
        let ids: Vec<_> = nodes.iter().map(|node| node.id).collect();
        for node in nodes {
            let named_by = rulebook.named_by(&node);
            rulebook.enter(node, named_by);
        }
        for id in ids {
            rulebook.place(id);
        }
        rulebook
    }

    /// The policy.
    #[must_use]
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// A node as it was told.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id).map(|placed| &placed.node)
    }

    /// All nodes, in order.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().map(|placed| &placed.node)
    }

    /// A user as told.
    #[must_use]
    pub fn user(&self, id: UserId) -> Option<&User> {
        self.users.get(&id)
    }

    /// How much work was done since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How many classes of nodes there are.
    #[must_use]
    pub fn class_count(&self) -> usize {
        self.classes.len()
    }

    /// Whether a list of sources has an address in a route. Asks the selectors, so that no list is made for it.
    pub(super) fn is_from(&self, source: SourceId, route: Prefix) -> bool {
        self.plan.sources[source].selectors.iter().any(|id| match &self.plan.selectors[*id] {
            Selector::AnySource => true,
            Selector::Address(prefix) => Span::from(*prefix).overlaps(&Span::from(route)),
            Selector::All => {
                let span = Span::from(route);
                self.tailnet.overlaps(span) || self.routers.keys().any(|subnet| Span::from(*subnet).overlaps(&span))
            }
            _ => self.named[*id].overlaps(route),
        })
    }

    /// Writes a node down, unplaced.
    pub(super) fn enter(&mut self, mut node: Node, named_by: BTreeSet<SelectorId>) {
        let id = node.id;
        node.addresses.retain(|address| {
            let other = self.holders.get(address).is_some_and(|holder| *holder != id);
            !never!(other, "two nodes never have one address")
        });
        for address in &node.addresses {
            Arc::make_mut(&mut self.holders).insert(*address, id);
            for selector in &named_by {
                Arc::make_mut(&mut self.named[*selector]).insert(*address);
            }
        }
        for subnet in &node.subnets {
            Arc::make_mut(&mut self.routers).entry(*subnet).or_default().insert(id);
        }
        for route in &node.exit_routes {
            Arc::make_mut(&mut self.exits).entry(*route).or_default().insert(id);
        }
        if let Some(user) = node.owner() {
            Arc::make_mut(&mut self.owned).entry(user).or_default().insert(id);
        }
        let placed = Placed { node, named_by, class: ClassId::MAX };
        Arc::make_mut(&mut self.nodes).insert(id, Arc::new(placed));
    }

    /// Strikes a node out.
    pub(super) fn leave(&mut self, id: NodeId) {
        let Some(placed) = Arc::make_mut(&mut self.nodes).remove(&id) else { return };
        self.leave_class(id, placed.class);
        let node = &placed.node;
        for address in &node.addresses {
            Arc::make_mut(&mut self.holders).remove(address);
            for selector in &placed.named_by {
                Arc::make_mut(&mut self.named[*selector]).remove(*address);
            }
        }
        for subnet in &node.subnets {
            remove_from(Arc::make_mut(&mut self.routers), subnet, id);
        }
        for route in &node.exit_routes {
            remove_from(Arc::make_mut(&mut self.exits), route, id);
        }
        if let Some(user) = node.owner() {
            remove_from(Arc::make_mut(&mut self.owned), &user, id);
        }
    }

    /// Puts a node into the class that is its own now.
    pub(super) fn place(&mut self, id: NodeId) {
        let Some(placed) = self.nodes.get(&id).cloned() else { return };
        let signature = self.signature(&placed);
        if self.classes.get(&placed.class).is_some_and(|class| class.signature == signature) {
            return;
        }
        self.leave_class(id, placed.class);
        let class = match self.by_signature.get(&signature) {
            Some(class) => *class,
            None => self.open_class(signature),
        };
        if let Some(class) = Arc::make_mut(&mut self.classes).get_mut(&class) {
            Arc::make_mut(class).nodes.insert(id);
        }
        if let Some(placed) = Arc::make_mut(&mut self.nodes).get_mut(&id) {
            Arc::make_mut(placed).class = class;
        }
    }

    fn open_class(&mut self, signature: Signature) -> ClassId {
        let id = self.next_class;
        self.next_class += 1;
        for source in &signature.0 {
            Arc::make_mut(&mut self.source_classes[*source]).insert(id);
        }
        for step in &signature.1 {
            Arc::make_mut(&mut self.step_classes[*step]).insert(id);
        }
        Arc::make_mut(&mut self.by_signature).insert(signature.clone(), id);
        Arc::make_mut(&mut self.classes).insert(id, Arc::new(Class { signature, nodes: BTreeSet::new() }));
        id
    }

    /// A class that is left by its last node is closed.
    fn leave_class(&mut self, node: NodeId, id: ClassId) {
        let classes = Arc::make_mut(&mut self.classes);
        let Some(class) = classes.get_mut(&id) else { return };
        Arc::make_mut(class).nodes.remove(&node);
        if !class.nodes.is_empty() {
            return;
        }
        let Some(class) = classes.remove(&id) else { return };
        for source in &class.signature.0 {
            Arc::make_mut(&mut self.source_classes[*source]).remove(&id);
        }
        for step in &class.signature.1 {
            Arc::make_mut(&mut self.step_classes[*step]).remove(&id);
        }
        Arc::make_mut(&mut self.by_signature).remove(&class.signature);
    }

    /// Selectors that name a node by what it is.
    pub(super) fn named_by(&self, node: &Node) -> BTreeSet<SelectorId> {
        let index = &self.plan.index;
        let fixed = |selector: Selector| index.fixed.get(&selector).copied();
        let mut found: BTreeSet<_> = node.tags.iter().filter_map(|tag| fixed(Selector::Tag(tag.clone()))).collect();
        if !node.is_untagged() {
            found.extend(fixed(Selector::Tagged));
        } else if let Some(user) = node.owner().and_then(|user| self.users.get(&user)) {
            found.extend(fixed(Selector::Member));
            for name in user.names() {
                found.extend(index.logins.get(&name).into_iter().flatten());
            }
            let roles = index.roles.iter().filter(|(role, _)| user.role.includes(*role));
            found.extend(roles.map(|(_, id)| *id));
        }
        found
    }

    fn signature(&mut self, placed: &Placed) -> Signature {
        let node = &placed.node;
        // By what it is, by its addresses and subnets, and by the nodes that its subnets hold.
        let mut both = placed.named_by.clone();
        let prefixes = node.addresses.iter().copied().map(Prefix::host).chain(node.subnets.iter().copied());
        for prefix in prefixes.clone() {
            both.extend(self.plan.index.prefixes_at(prefix));
        }
        for other in self.covered(node) {
            both.extend(&self.nodes[&other].named_by);
        }
        let fixed = |selector: Selector| self.plan.index.fixed.get(&selector).copied();
        let mut sources = both.clone();
        let is_inside = node.addresses.iter().any(|address| self.tailnet.covers(*address));
        sources.extend(fixed(Selector::All).filter(|_| is_inside || !node.subnets.is_empty()));
        sources.extend(fixed(Selector::AnySource));
        let mut destinations = both;
        destinations.extend(fixed(Selector::All));
        let is_public = prefixes.into_iter().any(|prefix| self.internet.overlaps(prefix));
        destinations.extend(fixed(Selector::Internet).filter(|_| is_public));
        // What an exit node gets for being one: packets to public addresses, no capabilities.
        let mut beyond = BTreeSet::new();
        if node.is_exit() {
            beyond.extend(fixed(Selector::Internet));
            let public = self.plan.index.prefixes.iter().filter(|(prefix, _)| self.internet.covers(**prefix));
            beyond.extend(public.map(|(_, id)| *id));
        }
        let evaluated: BTreeSet<_> = sources.iter().chain(&destinations).chain(&beyond).collect();
        self.counters.selector_evaluations += evaluated.len() as u64;

        let plan = &self.plan;
        let in_sources: BTreeSet<_> = sources.iter().flat_map(|id| &plan.as_source[*id]).copied().collect();
        let mut steps: BTreeSet<_> = destinations.iter().flat_map(|id| &plan.as_destination[*id]).copied().collect();
        let packets = |step: &&StepId| matches!(plan.steps[**step].gives, Gives::Packets(_));
        steps.extend(beyond.iter().flat_map(|id| &plan.as_destination[*id]).filter(packets));
        let through = placed.named_by.iter().flat_map(|id| &plan.as_via[*id]).copied();
        steps.extend(through.filter(|step| plan.steps[*step].dst.iter().any(|dst| self.routes_to(node, *dst))));
        (in_sources.into_iter().collect(), steps.into_iter().collect())
    }

    /// Whether a router serves some of what a selector names: a subnet that overlaps it, or the internet.
    pub(super) fn routes_to(&self, node: &Node, selector: SelectorId) -> bool {
        match &self.plan.selectors[selector] {
            Selector::Address(prefix) => {
                node.subnets.iter().any(|subnet| Span::from(*subnet).overlaps(&Span::from(*prefix)))
            }
            Selector::Internet => node.is_exit() || node.subnets.iter().any(|subnet| self.internet.overlaps(*subnet)),
            Selector::All => node.is_exit() || !node.subnets.is_empty(),
            _ => node.subnets.iter().any(|subnet| self.named[selector].overlaps(*subnet)),
        }
    }

    /// Other nodes whose addresses lie in a node's subnets.
    pub(super) fn covered(&self, node: &Node) -> BTreeSet<NodeId> {
        let mut covered = BTreeSet::new();
        for subnet in &node.subnets {
            let span = Span::from(*subnet);
            covered.extend(self.holders.range(span.first()..=span.last()).map(|(_, id)| *id));
        }
        covered.remove(&node.id);
        covered
    }

    /// The addresses of the nodes that a selector names by what they are.
    pub(super) fn named(&self, selector: SelectorId) -> &IpSet {
        &self.named[selector]
    }

    pub(super) fn internet(&self) -> &IpSet {
        &self.internet
    }

    /// The classes whose nodes are in a list of sources.
    pub(super) fn source_classes(&self, source: SourceId) -> &BTreeSet<ClassId> {
        &self.source_classes[source]
    }

    /// The classes whose nodes are destinations of a step.
    pub(super) fn step_classes(&self, step: StepId) -> &BTreeSet<ClassId> {
        &self.step_classes[step]
    }

    /// The addresses of a list of sources.
    pub(super) fn source_set(&self, source: SourceId) -> &SourceSet {
        self.source_sets[source].get_or_init(|| {
            let sources = &self.plan.sources[source];
            if sources.is_any {
                return SourceSet { addresses: IpSet::default(), texts: ["*".to_owned()].into(), is_any: true };
            }
            let mut addresses = IpSet::default();
            let mut texts = BTreeSet::new();
            for selector in &sources.selectors {
                let set = match &self.plan.selectors[*selector] {
                    Selector::Address(prefix) => [*prefix].into_iter().collect(),
                    Selector::All => {
                        texts.extend(self.routers.keys().map(|subnet| Span::from(*subnet).to_string()));
                        addresses.extend(&self.routers.keys().copied().collect());
                        IpSet::clone(&self.tailnet)
                    }
                    _ => IpSet::clone(&self.named[*selector]),
                };
                // Beside `*` every source is listed for itself.
                if sources.has_all {
                    texts.extend(set.spans().iter().map(ToString::to_string));
                }
                addresses.extend(&set);
            }
            if !sources.has_all {
                texts.extend(addresses.spans().iter().map(ToString::to_string));
            }
            SourceSet { addresses, texts: texts.into_iter().collect(), is_any: false }
        })
    }
}

fn remove_from<K: Ord>(map: &mut BTreeMap<K, BTreeSet<NodeId>>, key: &K, id: NodeId) {
    if let Some(set) = map.get_mut(key) {
        set.remove(&id);
        if set.is_empty() {
            map.remove(key);
        }
    }
}
