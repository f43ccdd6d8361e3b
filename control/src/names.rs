//! Names of nodes: DNS labels made of what hosts call themselves, each of one node.
//!
//! A name that is taken gets a number: `web`, `web-1`, `web-2`.

use std::collections::BTreeMap;

use mesh_core::control::types::NodeId;

/// The longest label of DNS (RFC 1035 §2.3.4).
pub const LABEL: usize = 63;
/// The longest base domain: 253 letters of a full name less a label and its dot.
pub const BASE_DOMAIN: usize = 253 - LABEL - 1;
/// What is made of a host's name leaves room for a number.
const STEM: usize = LABEL - "-65536".len();
/// What nodes are called whose host has no usable name.
const NAMELESS: &str = "node";
/// What routers in homes add to the names of hosts.
const SUFFIXES: [&str; 4] = [".local", ".localdomain", ".lan", ".home"];

/// Which node has which name.
#[derive(Debug, Default)]
pub struct Names {
    taken: BTreeMap<String, NodeId>,
    /// Where to go on looking, for names that many ask for.
    next: BTreeMap<String, u32>,
}

impl Names {
    /// Gives a node a name.
    pub fn take(&mut self, name: String, node: NodeId) {
        self.taken.insert(name, node);
    }

    /// A name is free again.
    pub fn free(&mut self, name: &str) {
        self.taken.remove(name);
    }

    /// Who has a name.
    #[must_use]
    pub fn holder(&self, name: &str) -> Option<NodeId> {
        self.taken.get(name).copied()
    }

    /// A name for a node like `stem`, which is a label: that one if it may have it, or else with a number. `current` is what it is
    /// called now: that stays when it differs from `stem` in the number only.
    #[must_use]
    pub fn like(&mut self, stem: &str, node: NodeId, current: Option<&str>) -> String {
        let is_free =
            |taken: &BTreeMap<String, NodeId>, name: &str| taken.get(name).is_none_or(|holder| *holder == node);
        if let Some(current) = current.filter(|current| is_numbered(current, stem))
            && is_free(&self.taken, current)
        {
            return current.to_owned();
        }
        if is_free(&self.taken, stem) {
            return stem.to_owned();
        }
        if self.next.len() > self.taken.len() {
            self.next.clear();
        }
        let number = self.next.entry(stem.to_owned()).or_insert(1);
        loop {
            let name = format!("{stem}-{number}");
            if is_free(&self.taken, &name) {
                return name;
            }
            *number = number.wrapping_add(1);
        }
    }
}

/// Whether a name is a stem, or a stem with a number.
fn is_numbered(name: &str, stem: &str) -> bool {
    let Some(rest) = name.strip_prefix(stem) else { return false };
    rest.is_empty() || rest.strip_prefix('-').is_some_and(|number| number.parse::<u32>().is_ok())
}

/// A label made of what a host calls itself. It is no number: nodes are called by theirs, too.
#[must_use]
pub fn label(hostname: &str) -> String {
    let lower = hostname.trim().trim_end_matches('.').to_ascii_lowercase();
    let stem = SUFFIXES.iter().find_map(|suffix| lower.strip_suffix(suffix)).unwrap_or(&lower);
    let mut label = String::new();
    for letter in stem.chars() {
        if letter.is_ascii_alphanumeric() {
            label.push(letter);
        } else if letter != '\'' && !label.is_empty() && !label.ends_with('-') {
            label.push('-');
        }
        if label.len() == STEM {
            break;
        }
    }
    let label = label.trim_matches('-');
    if label.is_empty() {
        NAMELESS.to_owned()
    } else if is_number(label) {
        format!("{NAMELESS}-{label}").chars().take(STEM).collect()
    } else {
        label.to_owned()
    }
}

/// Whether a name would be taken for the number of a node.
#[must_use]
pub fn is_number(name: &str) -> bool {
    name.bytes().all(|letter| letter.is_ascii_digit())
}

/// Whether a text is a label as it stands.
#[must_use]
pub fn is_label(text: &str) -> bool {
    let is_letter = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
    (1..=LABEL).contains(&text.len()) && text.chars().all(is_letter) && !text.starts_with('-') && !text.ends_with('-')
}

/// Whether a text is a domain that names of nodes can be in.
#[must_use]
pub fn is_base_domain(text: &str) -> bool {
    (1..=BASE_DOMAIN).contains(&text.len()) && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_any_name_get_a_label() {
        for (hostname, expected) in [
            ("web", "web"),
            ("Alice's MacBook Pro.local", "alices-macbook-pro"),
            ("db.example.net", "db-example-net"),
            ("--", "node"),
            ("", "node"),
            ("名前", "node"),
            ("a\0b\u{202e}c..", "a-b-c"),
            ("ubuntu.", "ubuntu"),
            ("<script>", "script"),
            ("12.lan", "node-12"),
            ("1-2", "1-2"),
        ] {
            assert_eq!(label(hostname), expected, "{hostname:?}");
            assert!(is_label(&label(hostname)));
        }
        for letter in ["x", "1"] {
            let long = label(&letter.repeat(300));
            assert!(is_label(&long) && is_label(&format!("{long}-65535")));
        }
        assert!(is_label(&label(&format!("{}-tail", "y".repeat(STEM - 1)))));
    }

    #[test]
    fn a_name_that_is_taken_gets_a_number_and_keeps_it() {
        let mut names = Names::default();
        let take = |names: &mut Names, id| {
            let name = names.like("web", NodeId(id), None);
            names.take(name.clone(), NodeId(id));
            name
        };
        let taken: Vec<_> = (1..=3).map(|id| take(&mut names, id)).collect();
        assert_eq!(taken, ["web", "web-1", "web-2"]);
        names.free("web");
        // The others keep theirs; a new one gets the one that is free.
        assert_eq!(names.like("web", NodeId(2), Some("web-1")), "web-1");
        assert_eq!(names.like("web", NodeId(4), None), "web");
        assert_eq!(names.like("db", NodeId(2), Some("web-1")), "db");
        assert_eq!(names.like("web", NodeId(5), Some("webby")), "web");
    }

    #[test]
    fn domains_are_judged() {
        assert!(is_base_domain("mesh.internal") && is_base_domain("a"));
        for wrong in ["", ".", "Mesh", "a..b", "a.", "-a.b", &"a".repeat(64), &vec!["abc"; 60].join(".")] {
            assert!(!is_base_domain(wrong), "{wrong:?}");
        }
    }
}
