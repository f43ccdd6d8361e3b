//! What the server knows: the rows that survive a restart, the state that is made of them, the log of what changed, and
//! immutable views of it all.
//!
//! The coordinator changes state and says in [`Mutation`]s what has to be kept. A mutation puts or deletes one row of one
//! table; it is not an event to be replayed. Whoever stores them applies a list wholly or not at all, and in order;
//! [`Rows`] is what comes back at the next start. What is true of the moment only (endpoints, who is connected) is in no
//! row.

pub mod log;
pub mod node;
pub mod rows;
pub mod snapshot;
pub mod state;

use std::collections::BTreeMap;

use mesh_core::control::types::{NodeId, UserId};
use serde::{Deserialize, Serialize};

pub use rows::{AuditRow, KeyRow, NodeRow, PolicyRow, Principal, UserRow, role_name};
pub use state::State;

/// A change of one row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Mutation {
    /// A user is there, or is other than before; the row's key is [`UserRow::id`].
    PutUser(UserRow),
    /// A user is no more.
    DeleteUser(UserId),
    /// A node is there, or is other than before; the row's key is [`NodeRow::id`].
    PutNode(Box<NodeRow>),
    /// A node is no more.
    DeleteNode(NodeId),
    /// An auth key is there, or is other than before; the row's key is [`KeyRow::id`].
    PutKey(KeyRow),
    /// An auth key is no more.
    DeleteKey(String),
    /// The policy; there is one row.
    PutPolicy(PolicyRow),
    /// The number that the next row of a table gets. Numbers are never used again, so this outlives the rows.
    PutNext(Sequence, i64),
    /// A line to be added to the record of who changed what.
    Audit(AuditRow),
}

/// Tables whose rows are numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sequence {
    /// Users.
    Users,
    /// Nodes.
    Nodes,
}

impl Sequence {
    /// Its name in a table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Users => "users",
            Self::Nodes => "nodes",
        }
    }
}

/// All rows. A store reads them at a start ([`Self::audit`] may be left empty then); the simulator keeps its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// Users.
    pub users: BTreeMap<UserId, UserRow>,
    /// Nodes.
    pub nodes: BTreeMap<NodeId, NodeRow>,
    /// Auth keys, by id.
    pub keys: BTreeMap<String, KeyRow>,
    /// The policy; `None`: nothing is allowed.
    pub policy: Option<PolicyRow>,
    /// The next numbers; 1 where there is none.
    pub next: BTreeMap<Sequence, i64>,
    /// Who changed what, oldest first.
    pub audit: Vec<AuditRow>,
}

impl Rows {
    /// Carries out a mutation.
    pub fn apply(&mut self, mutation: Mutation) {
        match mutation {
            Mutation::PutUser(row) => drop(self.users.insert(row.id, row)),
            Mutation::DeleteUser(id) => drop(self.users.remove(&id)),
            Mutation::PutNode(row) => drop(self.nodes.insert(row.id, *row)),
            Mutation::DeleteNode(id) => drop(self.nodes.remove(&id)),
            Mutation::PutKey(row) => drop(self.keys.insert(row.id.clone(), row)),
            Mutation::DeleteKey(id) => drop(self.keys.remove(&id)),
            Mutation::PutPolicy(row) => self.policy = Some(row),
            Mutation::PutNext(sequence, next) => drop(self.next.insert(sequence, next)),
            Mutation::Audit(row) => self.audit.push(row),
        }
    }
}
