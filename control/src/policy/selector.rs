//! Selectors: texts that name users, nodes or addresses.
//!
//! What a text is goes by its form alone, in a fixed order: an address or prefix, `*`, `user:*@domain`, a prefix that
//! ends in a colon, anything with an `@` is a user, anything else a name from `hosts`.

use core::net::IpAddr;

use mesh_core::ip::prefix::Prefix;

/// Roles a member can have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// None in particular.
    #[default]
    Member,
    /// Owner of the tailnet; an admin too.
    Owner,
    /// Admin.
    Admin,
    /// IT admin.
    ItAdmin,
    /// Network admin.
    NetworkAdmin,
    /// Billing admin.
    BillingAdmin,
    /// Auditor.
    Auditor,
}

impl Role {
    /// Whether one who has this role counts as having `other`.
    #[must_use]
    pub fn includes(self, other: Self) -> bool {
        self == other || (self == Self::Owner && other == Self::Admin)
    }
}

/// What a selector names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Selector {
    /// `*`. As a source: every address of the tailnet and every subnet that is routed. As a destination: everything.
    All,
    /// `autogroup:danger-all`: every source, of the tailnet or not.
    AnySource,
    /// `autogroup:internet`: public addresses behind an exit node.
    Internet,
    /// `autogroup:self`: for each node, the untagged nodes of its own user.
    Own,
    /// An address, a prefix, or a name from `hosts`.
    Address(Prefix),
    /// The untagged nodes of a user.
    User(String),
    /// The untagged nodes of all users of a domain.
    UsersOf(String),
    /// The untagged nodes of a group's users, by the group's whole name.
    Group(String),
    /// The nodes with a tag, by the tag's whole name.
    Tag(String),
    /// All untagged nodes.
    Member,
    /// All tagged nodes.
    Tagged,
    /// The untagged nodes of users with a role.
    Role(Role),
}

/// What a text looks like, before names are looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Ready(Selector),
    Host(String),
    /// A form of the language that is not built.
    Unbuilt,
    UnknownAutogroup,
    /// None of the forms.
    None,
}

const AUTOGROUP: &str = "autogroup:";

impl Form {
    pub(super) fn of(text: &str) -> Self {
        if let Ok(prefix) = text.parse() {
            return Self::Ready(Selector::Address(prefix));
        }
        if text == "*" {
            return Self::Ready(Selector::All);
        }
        if let Some(domain) = text.strip_prefix("user:*@") {
            return Self::Ready(Selector::UsersOf(domain.to_owned()));
        }
        if text.starts_with("group:") {
            return Self::Ready(Selector::Group(text.to_owned()));
        }
        if text.starts_with("tag:") {
            return Self::Ready(Selector::Tag(text.to_owned()));
        }
        if let Some(name) = text.strip_prefix(AUTOGROUP) {
            return autogroup(name);
        }
        if text.starts_with("ipset:") || text.starts_with("svc:") {
            return Self::Unbuilt;
        }
        if text.contains('@') {
            return Self::Ready(Selector::User(text.to_owned()));
        }
        if text.is_empty() || text.contains([':', '/']) {
            return Self::None;
        }
        Self::Host(text.to_owned())
    }
}

fn autogroup(name: &str) -> Form {
    Form::Ready(match name {
        "member" | "members" => Selector::Member,
        "tagged" => Selector::Tagged,
        "self" => Selector::Own,
        "internet" => Selector::Internet,
        "danger-all" => Selector::AnySource,
        "owner" => Selector::Role(Role::Owner),
        "admin" => Selector::Role(Role::Admin),
        "it-admin" => Selector::Role(Role::ItAdmin),
        "network-admin" => Selector::Role(Role::NetworkAdmin),
        "billing-admin" => Selector::Role(Role::BillingAdmin),
        "auditor" => Selector::Role(Role::Auditor),
        "shared" => return Form::Unbuilt,
        _ => return Form::UnknownAutogroup,
    })
}

/// Cuts a destination into its selector and its ports, at the last colon. Brackets around an IPv6 address go away.
///
/// # Errors
/// Why it cannot be cut.
pub(super) fn cut(text: &str) -> Result<(String, &str), &'static str> {
    let (selector, ports) = text.rsplit_once(':').ok_or("hostport must contain a colon")?;
    if selector.is_empty() || ports.is_empty() {
        return Err("input cannot start/end with a colon character");
    }
    let Some(inner) = selector.strip_prefix('[') else {
        return Ok((selector.to_owned(), ports));
    };
    let (address, length) = inner.split_once(']').ok_or("square brackets are only valid around IPv6 addresses")?;
    if !matches!(address.parse(), Ok(IpAddr::V6(_))) || !(length.is_empty() || length.starts_with('/')) {
        return Err("square brackets are only valid around IPv6 addresses");
    }
    Ok((format!("{address}{length}"), ports))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_says_what_a_text_names() {
        let prefix = |text: &str| Form::Ready(Selector::Address(text.parse().unwrap()));
        for (text, form) in [
            ("10.0.0.1", prefix("10.0.0.1/32")),
            ("10.1.2.3/8", prefix("10.0.0.0/8")),
            ("fd7a::1", prefix("fd7a::1/128")),
            ("*", Form::Ready(Selector::All)),
            ("a@b", Form::Ready(Selector::User("a@b".into()))),
            ("user:*@b.c", Form::Ready(Selector::UsersOf("b.c".into()))),
            ("group:g@b", Form::Ready(Selector::Group("group:g@b".into()))),
            ("tag:t", Form::Ready(Selector::Tag("tag:t".into()))),
            ("autogroup:members", Form::Ready(Selector::Member)),
            ("autogroup:bogus", Form::UnknownAutogroup),
            ("autogroup:shared", Form::Unbuilt),
            ("svc:web", Form::Unbuilt),
            ("web", Form::Host("web".into())),
            ("10.0.0.0/33", Form::None),
            ("a:b", Form::None),
            ("", Form::None),
        ] {
            assert_eq!(Form::of(text), form, "{text}");
        }
    }

    #[test]
    fn destinations_are_cut_at_the_last_colon() {
        for (text, selector, ports) in [
            ("tag:server:22", "tag:server", "22"),
            ("fd7a::1:22", "fd7a::1", "22"),
            ("[fd7a::1]:22", "fd7a::1", "22"),
            ("[fd7a::]/64:*", "fd7a::/64", "*"),
            ("*:*", "*", "*"),
        ] {
            assert_eq!(cut(text), Ok((selector.to_owned(), ports)), "{text}");
        }
        for text in ["web", ":22", "web:", "[10.0.0.1]:22", "[web]:22", "[fd7a::1:22", "[fd7a::1]x:22"] {
            assert!(cut(text).is_err(), "{text}");
        }
    }
}
