//! The lab of the agent's own tests.

pub(crate) use benches::lab;

#[path = "../../agent/tests/netns/agents.rs"]
mod agents;
#[path = "../../agent/tests/netns/homes.rs"]
pub(crate) mod homes;
#[path = "../../agent/tests/netns/joined.rs"]
pub(crate) mod joined;
