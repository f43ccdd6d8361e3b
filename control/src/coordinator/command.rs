//! What those who run the server may ask of it, and the answers.

use core::{net::IpAddr, time::Duration};
use std::{collections::BTreeSet, sync::Arc};

use mesh_core::{
    ip::prefix::Prefix,
    key::{MachinePublic, NodePublic},
    time::WallTime,
};
use serde::{Deserialize, Serialize};

use crate::{
    policy::problem::Position,
    store::{KeyRow, NodeRow, UserRow},
};

/// What somebody wants. `node` is a node's name, full name, stable id, number or overlay address; `user` is a login, a
/// stable id or a number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Command {
    /// Make a user. The first one owns the tailnet.
    CreateUser {
        /// The name they sign in with.
        login: String,
    },
    /// All users.
    ListUsers,
    /// One user.
    ShowUser {
        /// Whom.
        user: String,
    },
    /// Delete a user who has no nodes; their auth keys go with them.
    DeleteUser {
        /// Whom.
        user: String,
    },
    /// Make an auth key.
    CreateKey {
        /// Whose nodes it makes.
        user: String,
        /// It is good for more than one node.
        reusable: bool,
        /// Its nodes are ephemeral.
        ephemeral: bool,
        /// Its nodes are these tags' and not the user's.
        tags: BTreeSet<String>,
        /// How long it is good; `None`: as long as can be ([`crate::limits::KEY_LIFE`]).
        expiry: Option<Duration>,
    },
    /// All auth keys that are not forgotten yet.
    ListKeys,
    /// Take an auth key back. Its nodes stay.
    ExpireKey {
        /// Its id.
        id: String,
    },
    /// All nodes.
    ListNodes,
    /// One node.
    ShowNode {
        /// Which.
        node: String,
    },
    /// A node that waits for somebody to sign in.
    ShowSignIn {
        /// What stands at the end of its sign-in URL.
        code: String,
    },
    /// Let a node in that waits for somebody to sign in.
    RegisterNode {
        /// What stands at the end of its sign-in URL.
        code: String,
        /// Whose it is to be.
        user: String,
    },
    /// A node has to sign in again.
    ExpireNode {
        /// Which.
        node: String,
    },
    /// Forget a node.
    DeleteNode {
        /// Which.
        node: String,
    },
    /// Give a node these tags in place of its user or its tags.
    TagNode {
        /// Which.
        node: String,
        /// At least one.
        tags: BTreeSet<String>,
    },
    /// Name a node; it does not follow its host's name any more.
    RenameNode {
        /// Which.
        node: String,
        /// How; empty: after its host again.
        name: String,
    },
    /// Let a node serve these routes and no others.
    ApproveRoutes {
        /// Which.
        node: String,
        /// Routes; a default route of one family stands for both.
        routes: BTreeSet<Prefix>,
    },
    /// The policy as it was written.
    GetPolicy,
    /// Put a policy in force.
    SetPolicy {
        /// HuJSON.
        text: String,
    },
    /// Judge a policy as [`Self::SetPolicy`] would, and change nothing.
    CheckPolicy {
        /// HuJSON.
        text: String,
    },
    /// What a policy would change, at most [`crate::limits::DIFFERENCE_PAIRS`] pairs of nodes.
    DiffPolicy {
        /// HuJSON.
        text: String,
    },
    /// Which rule lets a packet through, or why none does.
    Explain {
        /// A node, or an address.
        src: String,
        /// A node, or an address.
        dst: String,
        /// To which port.
        port: u16,
        /// Protocol number; TCP is 6.
        protocol: u8,
    },
    /// Whether a relay is to serve a node.
    Verify {
        /// Its key.
        node: NodePublic,
    },
}

impl Command {
    /// Whether something may be another afterwards.
    #[must_use]
    pub const fn is_change(&self) -> bool {
        match self {
            Self::CreateUser { .. }
            | Self::DeleteUser { .. }
            | Self::CreateKey { .. }
            | Self::ExpireKey { .. }
            | Self::RegisterNode { .. }
            | Self::ExpireNode { .. }
            | Self::DeleteNode { .. }
            | Self::TagNode { .. }
            | Self::RenameNode { .. }
            | Self::ApproveRoutes { .. }
            | Self::SetPolicy { .. } => true,
            Self::ListUsers
            | Self::ShowUser { .. }
            | Self::ListKeys
            | Self::ListNodes
            | Self::ShowNode { .. }
            | Self::ShowSignIn { .. }
            | Self::GetPolicy
            | Self::CheckPolicy { .. }
            | Self::DiffPolicy { .. }
            | Self::Explain { .. }
            | Self::Verify { .. } => false,
        }
    }
}

/// What a command comes to.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// Users, by number.
    Users(Vec<UserRow>),
    /// Auth keys, by age.
    Keys(Vec<KeyView>),
    /// Nodes, by number, and whether there is a policy: where there is none, nothing is allowed.
    Nodes {
        /// The nodes.
        nodes: Vec<NodeView>,
        /// Whether a policy is stored.
        has_policy: bool,
    },
    /// The user as it is now; at a deletion, as it was.
    User(UserRow),
    /// The node as it is now; at a deletion, as it was.
    Node(Box<NodeView>),
    /// A node that waits.
    SignIn(SignInView),
    /// The auth key as it is now.
    Key(KeyView),
    /// A new auth key and its text, which nobody is told again.
    NewKey {
        /// The key.
        key: KeyView,
        /// `tskey-auth-<id>-<secret>`.
        text: Secret,
    },
    /// The policy's text; `None` when none is stored.
    Policy(Option<String>),
    /// The policy is good, or in force.
    PolicyGood,
    /// What would change, in lines.
    Difference {
        /// A line for each rule that is new or gone, and for each pair of nodes.
        lines: Vec<String>,
        /// There are more pairs.
        more: bool,
    },
    /// The answer about a packet.
    Explained {
        /// Whether it is let through.
        allowed: bool,
        /// Why.
        text: String,
    },
    /// The answer to a relay.
    Verdict(bool),
}

/// A text that is shown once and never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl core::fmt::Debug for Secret {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Secret([private])")
    }
}

/// An auth key as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyView {
    /// The row.
    pub key: KeyRow,
    /// The login of its user.
    pub login: String,
    /// Nothing can be done with it any more: it is spent, expired or taken back.
    pub invalid: bool,
}

/// A node that waits for somebody to sign in, as it describes itself: all but the key is hearsay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignInView {
    /// The installation that asks.
    pub machine: MachinePublic,
    /// What its host is called.
    pub hostname: String,
    /// Its system.
    pub os: String,
    /// The tags that it asks for.
    pub tags: Vec<String>,
}

/// A node as it is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeView {
    /// The row.
    pub node: Arc<NodeRow>,
    /// Its full name, without a trailing dot.
    pub full_name: String,
    /// The login of its user, or the one that stands for tagged nodes.
    pub login: String,
    /// Its overlay addresses.
    pub addresses: [IpAddr; 2],
    /// Whether it is connected.
    pub online: bool,
    /// Whether its key has expired.
    pub expired: bool,
    /// When it was last connected: now, when it is.
    pub last_seen: Option<WallTime>,
    /// Where peers may reach it.
    pub endpoints: Vec<core::net::SocketAddr>,
    /// Routes that it offers.
    pub advertised_routes: Vec<Prefix>,
    /// Routes that it offers and may serve.
    pub enabled_routes: Vec<Prefix>,
    /// Subnets that it is the primary router of.
    pub primary_routes: Vec<Prefix>,
}

/// Why a command is not carried out. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// There is no such thing.
    #[error("there is no {what} {name:?}: {hint}")]
    NotFound {
        /// `node`, `user`, `auth key` or `sign-in code`.
        what: &'static str,
        /// As it was asked for.
        name: String,
        /// Where to look.
        hint: &'static str,
    },
    /// Several things fit.
    #[error("{name:?} may be {}: say which by its id", candidates.join(", "))]
    Ambiguous {
        /// As it was asked for.
        name: String,
        /// Names and ids of those that fit.
        candidates: Vec<String>,
    },
    /// It makes no sense, or is not allowed as things are.
    #[error("{0}")]
    Refused(String),
    /// Wrong in the policy's text. `policy set` and its like say each problem in a line of its own, the first place first.
    #[error("{}", lines(.0))]
    Policy(Vec<(Position, String)>),
    /// Something is full.
    #[error("{0}")]
    TooMany(String),
}

fn lines(problems: &[(Position, String)]) -> String {
    problems.iter().map(|(at, message)| format!("{at}: {message}")).collect::<Vec<_>>().join("\n")
}

impl AdminError {
    /// A word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::Ambiguous { .. } => "ambiguous",
            Self::Refused(_) => "refused",
            Self::Policy(_) => "bad_policy",
            Self::TooMany(_) => "too_many",
        }
    }
}
