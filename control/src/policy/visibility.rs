//! Who sees whom.
//!
//! Two nodes see each other when the filter of one admits the other, whichever it is: seeing goes both ways where
//! traffic may go one. A router is admitted also where a subnet of its is a source.

use std::collections::BTreeSet;

use mesh_core::control::types::NodeId;

use super::rulebook::{Class, ClassId, Rulebook};

impl Rulebook {
    /// The nodes that a node sees, and that see it.
    #[must_use]
    pub fn peers(&self, id: NodeId) -> BTreeSet<NodeId> {
        let Some(placed) = self.nodes.get(&id) else { return BTreeSet::new() };
        let Some(class) = self.classes.get(&placed.class) else { return BTreeSet::new() };
        let mut peers: BTreeSet<NodeId> =
            self.classes_seen_by(class).iter().flat_map(|class| &self.classes[class].nodes).copied().collect();
        if let Some(owner) = placed.node.owner()
            && self.has_own(class)
        {
            peers.extend(self.owned.get(&owner).into_iter().flatten());
        }
        peers.remove(&id);
        peers
    }

    /// Whether two nodes see each other.
    #[must_use]
    pub fn sees(&self, a: NodeId, b: NodeId) -> bool {
        let (Some(left), Some(right)) = (self.nodes.get(&a), self.nodes.get(&b)) else { return false };
        let (Some(left_class), Some(right_class)) = (self.classes.get(&left.class), self.classes.get(&right.class))
        else {
            return false;
        };
        let owner = left.node.owner();
        let same_user = owner.is_some() && owner == right.node.owner();
        a != b
            && (self.admits_class(left_class, right_class)
                || self.admits_class(right_class, left_class)
                || (same_user && self.has_own(left_class)))
    }

    fn classes_seen_by(&self, class: &Class) -> BTreeSet<ClassId> {
        let (sources, steps) = &class.signature;
        let mut seen = BTreeSet::new();
        for step in steps {
            seen.extend(self.source_classes(self.plan.steps[*step].sources));
        }
        for source in sources {
            for step in &self.plan.sources[*source].steps {
                seen.extend(self.step_classes(*step));
            }
        }
        seen
    }

    /// Whether the filters of one class's nodes admit another's.
    fn admits_class(&self, to: &Class, from: &Class) -> bool {
        to.signature.1.iter().any(|step| from.signature.0.binary_search(&self.plan.steps[*step].sources).is_ok())
    }

    /// Whether the nodes of a class reach their own user's other nodes.
    pub(super) fn has_own(&self, class: &Class) -> bool {
        self.plan.own.iter().any(|step| class.signature.0.binary_search(&self.plan.steps[*step].own_sources).is_ok())
    }
}
