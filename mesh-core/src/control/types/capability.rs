//! Capabilities: what a node may do or is told to do, by name.
//!
//! Names are opaque and compared byte for byte. Presence alone mostly is the signal; a few carry values.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// Capabilities and the values that some carry. A value list of null is an empty one.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct CapMap(pub BTreeMap<String, Vec<Value>>);

impl CapMap {
    /// Whether a capability is there.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The values of a capability; empty when it has none or is not there.
    #[must_use]
    pub fn values(&self, name: &str) -> &[Value] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de> Deserialize<'de> for CapMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = BTreeMap::<String, Option<Vec<Value>>>::deserialize(deserializer)?;
        Ok(Self(map.into_iter().map(|(name, values)| (name, values.unwrap_or_default())).collect()))
    }
}
