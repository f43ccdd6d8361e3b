//! A hash map that cannot be iterated, so that its order can never leak into behaviour.

#![expect(clippy::disallowed_types, reason = "the one place that wraps a hash map; nothing iterates it")]
#![expect(deprecated, reason = "SipHasher with explicit keys is the only stable keyed hasher in std")]

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, Hash, SipHasher},
};

use crate::rng::Rng;

/// A map for pure lookup: get, insert, remove, and nothing that shows an order.
///
/// Hashes with SipHash under keys from the machine's [`Rng`], so that chosen keys cannot collide at will.
pub struct Lookup<K, V> {
    map: HashMap<K, V, Keys>,
}

impl<K: Hash + Eq, V> Lookup<K, V> {
    /// An empty map, keyed from `rng`.
    #[must_use]
    pub fn new(rng: &mut Rng) -> Self {
        Self { map: HashMap::with_hasher(Keys::new(rng)) }
    }

    /// The value at `key`.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.map.get(key)
    }

    /// The value at `key`, to be changed.
    #[must_use]
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.map.get_mut(key)
    }

    /// Whether there is a value at `key`.
    #[must_use]
    pub fn contains(&self, key: &K) -> bool {
        self.map.contains_key(key)
    }

    /// Puts `value` at `key` and returns what was there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.map.insert(key, value)
    }

    /// Takes the value at `key` out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.map.remove(key)
    }

    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there are no values.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

impl<K, V> fmt::Debug for Lookup<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lookup({} entries)", self.map.len())
    }
}

/// A keyed hash: whoever does not know the keys cannot choose values that collide, nor find the hash of one.
#[derive(Clone, Copy)]
pub struct Keys(u64, u64);

impl Keys {
    /// Keys from `rng`.
    #[must_use]
    pub fn new(rng: &mut Rng) -> Self {
        Self(rng.u64(), rng.u64())
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys([private])")
    }
}

impl BuildHasher for Keys {
    type Hasher = SipHasher;

    fn build_hasher(&self) -> SipHasher {
        SipHasher::new_with_keys(self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Seed;

    #[test]
    fn holds_what_was_put_in() {
        let mut map = Lookup::new(&mut Seed::from_number(0).stream("lookup", 0));
        assert_eq!(map.insert("a", 1), None);
        assert_eq!(map.insert("a", 2), Some(1));
        assert_eq!(map.get(&"a"), Some(&2));
        assert_eq!(map.remove(&"a"), Some(2));
        assert!(map.is_empty());
    }
}
