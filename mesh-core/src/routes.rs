//! Longest-prefix match from overlay address to a value, changed by structural sharing.
//!
//! Two binary tries with compressed paths, one per family. Nodes are shared by `Arc`: a change copies the
//! nodes from the root to the place of the change, about log2(n) of them, and shares the rest with the
//! table before it. So a table of ten thousand peers is not rebuilt because one of them changed.

use std::{net::IpAddr, sync::Arc};

use crate::ip::prefix::Prefix;

/// Overlay prefix → value. Cloning is cheap; clones share their nodes.
#[derive(Debug)]
pub struct RouteTable<V> {
    v4: Link<V>,
    v6: Link<V>,
}

type Link<V> = Option<Arc<TrieNode<V>>>;

/// A prefix of at most 128 bits, left-aligned, and what lies below it.
#[derive(Debug)]
struct TrieNode<V> {
    bits: u128,
    length: u8,
    value: Option<V>,
    children: [Link<V>; 2],
}

impl<V: Clone> RouteTable<V> {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self { v4: None, v6: None }
    }

    /// The value of the longest prefix that holds `address`.
    #[inline]
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Option<&V> {
        let (root, bits) = match address {
            IpAddr::V4(v4) => (&self.v4, u128::from(v4.to_bits()) << 96),
            IpAddr::V6(v6) => (&self.v6, v6.to_bits()),
        };
        let mut best = None;
        let mut next = root.as_ref();
        while let Some(node) = next {
            if (node.bits ^ bits) & mask(node.length) != 0 {
                break;
            }
            best = node.value.as_ref().or(best);
            next = if node.length == 128 { None } else { node.children[bit(bits, node.length)].as_ref() };
        }
        best
    }

    /// The value at exactly `prefix`.
    #[must_use]
    pub fn get(&self, prefix: Prefix) -> Option<&V> {
        let (root, bits, length) = self.root(prefix);
        let mut next = root.as_ref();
        while let Some(node) = next {
            if node.length > length || (node.bits ^ bits) & mask(node.length) != 0 {
                return None;
            }
            if node.length == length {
                return node.value.as_ref();
            }
            next = node.children[bit(bits, node.length)].as_ref();
        }
        None
    }

    /// Puts `value` at `prefix`, replacing what was there.
    pub fn insert(&mut self, prefix: Prefix, value: V) {
        let (root, bits, length) = self.root(prefix);
        let root_after = Some(insert(root.as_ref(), bits, length, value));
        *self.root_mut(prefix) = root_after;
    }

    /// Takes the value at exactly `prefix` out; nothing happens when there is none.
    pub fn remove(&mut self, prefix: Prefix) {
        if self.get(prefix).is_none() {
            return;
        }
        let (root, bits, length) = self.root(prefix);
        let root_after = root.as_ref().and_then(|root| remove(root, bits, length));
        *self.root_mut(prefix) = root_after;
    }

    fn root(&self, prefix: Prefix) -> (&Link<V>, u128, u8) {
        match prefix.address() {
            IpAddr::V4(v4) => (&self.v4, u128::from(v4.to_bits()) << 96, prefix.length()),
            IpAddr::V6(v6) => (&self.v6, v6.to_bits(), prefix.length()),
        }
    }

    fn root_mut(&mut self, prefix: Prefix) -> &mut Link<V> {
        if prefix.address().is_ipv4() { &mut self.v4 } else { &mut self.v6 }
    }
}

impl<V: Clone> Default for RouteTable<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V> Clone for RouteTable<V> {
    fn clone(&self) -> Self {
        Self { v4: self.v4.clone(), v6: self.v6.clone() }
    }
}

fn insert<V: Clone>(node: Option<&Arc<TrieNode<V>>>, bits: u128, length: u8, value: V) -> Arc<TrieNode<V>> {
    let Some(node) = node else {
        return Arc::new(TrieNode { bits, length, value: Some(value), children: [None, None] });
    };
    let common = ((node.bits ^ bits).leading_zeros() as u8).min(node.length).min(length);

    if common == node.length && common == length {
        return Arc::new(TrieNode { bits, length, value: Some(value), children: node.children.clone() });
    }
    if common == node.length {
        let side = bit(bits, node.length);
        let mut children = node.children.clone();
        children[side] = Some(insert(children[side].as_ref(), bits, length, value));
        return Arc::new(TrieNode { bits: node.bits, length: node.length, value: node.value.clone(), children });
    }
    // The two part ways before the node's end: a new node where they do, with the old one below it.
    let mut children = [None, None];
    children[bit(node.bits, common)] = Some(Arc::clone(node));
    let value = if common == length {
        Some(value)
    } else {
        children[bit(bits, common)] = Some(insert(None, bits, length, value));
        None
    };
    Arc::new(TrieNode { bits: bits & mask(common), length: common, value, children })
}

/// Removes a prefix that is there; nodes left without a purpose go with it.
fn remove<V: Clone>(node: &Arc<TrieNode<V>>, bits: u128, length: u8) -> Link<V> {
    let mut children = node.children.clone();
    let mut value = node.value.clone();
    if node.length == length {
        value = None;
    } else {
        let side = bit(bits, node.length);
        children[side] = children[side].as_ref().and_then(|child| remove(child, bits, length));
    }
    match (&value, &mut children) {
        (None, [None, None]) => None,
        (None, [Some(_), None]) => children[0].take(),
        (None, [None, Some(_)]) => children[1].take(),
        _ => Some(Arc::new(TrieNode { bits: node.bits, length: node.length, value, children })),
    }
}

/// The bit at `position` from the left, below 128.
#[inline]
fn bit(bits: u128, position: u8) -> usize {
    (bits >> (127 - position)) as usize & 1
}

#[inline]
fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_longest_prefix_wins() {
        let mut table = RouteTable::new();
        for (value, prefix) in ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32"].into_iter().enumerate() {
            table.insert(prefix.parse().unwrap(), value);
        }
        for (address, value) in [("1.1.1.1", 0), ("10.9.9.9", 1), ("10.1.9.9", 2), ("10.1.2.3", 3)] {
            assert_eq!(table.lookup(address.parse().unwrap()), Some(&value));
        }
        assert_eq!(table.lookup("::1".parse().unwrap()), None);
    }

    #[test]
    fn a_clone_keeps_what_the_original_loses() {
        let prefix = "fd7a::/64".parse().unwrap();
        let mut table = RouteTable::new();
        table.insert(prefix, ());
        let clone = table.clone();
        table.remove(prefix);
        assert!(table.lookup("fd7a::1".parse().unwrap()).is_none());
        assert!(clone.lookup("fd7a::1".parse().unwrap()).is_some());
    }

    proptest! {
        #[test]
        fn agrees_with_a_scan(steps in prop::collection::vec((any::<bool>(), prefix(), any::<u16>()), 1..60),
                              probes in prop::collection::vec(address(), 1..60)) {
            let mut table = RouteTable::new();
            let mut model = BTreeMap::new();
            for (add, prefix, value) in steps {
                if add {
                    table.insert(prefix, value);
                    model.insert(prefix, value);
                } else {
                    table.remove(prefix);
                    model.remove(&prefix);
                }
            }
            for (prefix, value) in &model {
                prop_assert_eq!(table.get(*prefix), Some(value));
            }
            for address in probes {
                let expected = model.iter().filter(|(p, _)| p.contains(address)).max_by_key(|(p, _)| p.length());
                prop_assert_eq!(table.lookup(address), expected.map(|(_, value)| value));
            }
        }
    }

    /// Addresses with few distinct bits, so that prefixes nest and collide.
    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0u32..16, 0u32..4).prop_map(|(high, low)| IpAddr::from((high << 28 | low).to_be_bytes())),
            (0u128..16, 0u128..4).prop_map(|(high, low)| IpAddr::from((high << 124 | low).to_be_bytes())),
        ]
    }

    fn prefix() -> impl Strategy<Value = Prefix> {
        let length = prop_oneof![0u8..6, 28u8..=32, 126u8..=128];
        (address(), length).prop_map(|(address, length)| {
            let longest = Prefix::host(address).length();
            Prefix::new(address, length.min(longest)).unwrap()
        })
    }
}
