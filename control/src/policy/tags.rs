//! Who may give a node a tag.

use std::collections::BTreeSet;

use mesh_core::control::types::UserId;

use super::{
    rulebook::Rulebook,
    selector::{Role, Selector},
};

/// Who gives a node a tag.
#[derive(Clone, Copy, Debug)]
pub enum Assigner<'a> {
    /// A user.
    User(UserId),
    /// Something that has tags itself, such as a tagged node.
    Tags(&'a BTreeSet<String>),
}

impl Rulebook {
    /// Whether the policy lets someone give a node a tag: owners, admins and network admins every tag that is declared,
    /// others those that they own. Who has a tag may give the tags that it owns, and those that these own.
    #[must_use]
    pub fn may_assign(&self, who: Assigner<'_>, tag: &str) -> bool {
        let owners = &self.policy.tag_owners;
        let user = match who {
            Assigner::User(id) => self.user(id),
            Assigner::Tags(_) => None,
        };
        let is_admin = |role: Role| matches!(role, Role::Owner | Role::Admin | Role::NetworkAdmin);
        if user.is_some_and(|user| is_admin(user.role)) {
            return owners.contains_key(tag);
        }
        // Tags own tags, in a circle perhaps.
        let (mut seen, mut open) = (BTreeSet::new(), vec![tag]);
        while let Some(tag) = open.pop() {
            if !seen.insert(tag) {
                continue;
            }
            for owner in owners.get(tag).into_iter().flatten() {
                match (owner, who) {
                    (Selector::Tag(owner), Assigner::Tags(tags)) if tags.contains(owner) => return true,
                    (Selector::Tag(owner), _) => open.push(owner),
                    (owner, Assigner::User(_)) if user.is_some_and(|user| self.is_user_named(owner, user)) => {
                        return true;
                    }
                    _ => {}
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::{super::support, *};

    #[test]
    fn tags_are_given_by_admins_and_by_those_who_own_them() {
        let text = r#"{"groups": {"group:ops": ["bob@example.com"]}, "tagOwners": {"tag:a": ["group:ops"],
            "tag:b": ["tag:a"], "tag:c": ["tag:b", "tag:c"], "tag:d": [], "tag:e": ["autogroup:auditor"]}}"#;
        let rulebook = support::rulebook(text, &[]);
        let may = |user, tag| rulebook.may_assign(Assigner::User(UserId(user)), tag);
        // Alice owns the tailnet, bob is in the group, carol is an auditor.
        assert!(may(1, "tag:a") && may(1, "tag:d") && !may(1, "tag:undeclared"));
        assert!(may(2, "tag:a") && may(2, "tag:c") && !may(2, "tag:d") && !may(2, "tag:e"));
        assert!(may(3, "tag:e") && !may(3, "tag:a") && !may(9, "tag:a"));
        let tags: BTreeSet<_> = ["tag:a".to_owned()].into();
        let may = |tag| rulebook.may_assign(Assigner::Tags(&tags), tag);
        assert!(may("tag:b") && may("tag:c") && !may("tag:a") && !may("tag:e"));
    }
}
