//! What the policy needs to know of users and nodes.

use core::net::IpAddr;
use std::collections::BTreeSet;

use mesh_core::{
    control::types::{NodeId, UserId},
    ip::prefix::Prefix,
    time::WallTime,
};

pub use super::selector::Role;

/// A user of the tailnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Which.
    pub id: UserId,
    /// The name they sign in with; a policy names one without a domain as `name@`.
    pub login: String,
    /// Their e-mail address, where it is not the login; it names them too.
    pub email: Option<String>,
    /// Their role.
    pub role: Role,
}

impl User {
    /// The texts of a policy that name them; `*@domain` for everyone of their domain.
    pub(super) fn names(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for name in core::iter::once(&self.login).chain(&self.email) {
            match name.split_once('@') {
                Some((_, domain)) => names.extend([name.clone(), format!("*@{domain}")]),
                None => names.extend([format!("{name}@")]),
            }
        }
        names
    }
}

/// A node of the tailnet. It is its tags' when it has some, else its user's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Which.
    pub id: NodeId,
    /// Whose; not looked at when there are tags.
    pub user: Option<UserId>,
    /// Its tags, `tag:` included.
    pub tags: BTreeSet<String>,
    /// Its overlay addresses. No other node has them.
    pub addresses: Vec<IpAddr>,
    /// Subnets that it advertises and that are approved.
    pub subnets: BTreeSet<Prefix>,
    /// Default routes that it advertises and that are approved; one is enough to make it an exit node.
    pub exit_routes: BTreeSet<Prefix>,
    /// Since when it is there. Of several routers of one subnet the oldest is its primary.
    pub created: WallTime,
}

impl Node {
    /// Sets the routes: those advertised that are approved.
    pub fn set_routes(&mut self, advertised: &[Prefix], approved: &[Prefix]) {
        let served = advertised.iter().filter(|route| approved.contains(route)).copied();
        (self.exit_routes, self.subnets) = served.partition(|route| route.length() == 0);
    }

    /// Whether it belongs to its user: it has no tags.
    #[must_use]
    pub fn is_untagged(&self) -> bool {
        self.tags.is_empty()
    }

    /// Whether traffic to the internet may leave through it.
    #[must_use]
    pub fn is_exit(&self) -> bool {
        !self.exit_routes.is_empty()
    }

    /// The user whose node it is: `None` for a tagged one.
    pub(super) fn owner(&self) -> Option<UserId> {
        self.user.filter(|_| self.is_untagged())
    }
}
