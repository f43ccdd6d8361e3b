//! The policy: who may reach whom, as a text says it, and what follows from it for every node.
//!
//! A [`Policy`] is a text understood: HuJSON ([`hujson`]) taken apart ([`document`]) and looked up ([`check`]). It
//! knows no nodes. A [`Rulebook`] is a policy applied to the users and nodes of a tailnet: it follows their changes and
//! says which packet filter each node gets, which peers it sees and which routes it is shown. Work per change is what
//! changed: a node that joins is matched with the selectors that name it, found by index, and not with the others.
//!
//! Rules only ever allow. Where no policy is stored nothing is allowed ([`Policy::none`]); a document without rules
//! allows everything, as the stock service has it.

pub mod change;
pub mod check;
pub mod compile;
pub mod difference;
pub mod document;
pub mod explain;
pub mod hujson;
pub mod limits;
pub mod own_tests;
mod plan;
pub mod ports;
pub mod problem;
pub mod routes;
pub mod rulebook;
pub mod selector;
mod tags;
pub mod tailnet;
mod visibility;

#[cfg(test)]
mod support;

use std::collections::BTreeMap;

use mesh_core::ip::prefix::Prefix;

pub use change::{Affected, Change};
pub use check::{Approvers, Origin, Rule, Section};
pub use document::{Test, Unbuilt};
pub use mesh_core::ip::set as ipset;
pub use problem::{Position, Problem, Problems};
pub use rulebook::{Counters, Rulebook};
pub use tags::Assigner;
pub use tailnet::{Node, Role, User};

use check::Checked;
use document::Document;
use selector::Selector;

/// A text understood.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    rules: Vec<Rule>,
    groups: BTreeMap<String, Vec<String>>,
    hosts: BTreeMap<String, Prefix>,
    approvers: Approvers,
    tag_owners: BTreeMap<String, Vec<Selector>>,
    tests: Vec<Test>,
    unbuilt: Vec<Unbuilt>,
}

impl Policy {
    /// What holds where no policy is stored: nothing is allowed.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Understands a text.
    ///
    /// # Errors
    /// All that is wrong with it, each with line and column.
    pub fn parse(text: &str) -> Result<Self, Problems> {
        let document = Document::parse(text)?;
        let Checked { rules, groups, hosts, approvers, tag_owners, unbuilt } = check::check(&document)?;
        let mut unbuilt: Vec<_> = document.unbuilt.into_iter().chain(unbuilt).collect();
        unbuilt.sort();
        unbuilt.dedup();
        Ok(Self { rules, groups, hosts, approvers, tag_owners, tests: document.tests, unbuilt })
    }

    /// The rules: those of `grants`, then those of `acls`, each in the order written; an entry of `acls` is a rule for
    /// each of its destinations.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// What of it this build does not have, in the order written. Whoever stores a policy refuses it when this is not
    /// empty. A policy that is applied all the same allows too little and not too much.
    #[must_use]
    pub fn unbuilt(&self) -> &[Unbuilt] {
        &self.unbuilt
    }

    /// Its own tests.
    #[must_use]
    pub fn tests(&self) -> &[Test] {
        &self.tests
    }

    /// Who gets routes approved without asking.
    #[must_use]
    pub fn approvers(&self) -> &Approvers {
        &self.approvers
    }
}
