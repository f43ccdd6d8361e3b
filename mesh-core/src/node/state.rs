//! What a node wants to be, what it is, and what it keeps for its next run.
//!
//! [`Prefs`] are the user's wishes. [`BackendState`] is what came of them. [`SavedState`] is what must survive: it is
//! handed in at the start, and said anew ([`Output::Save`](super::Output::Save)) whenever it is another.

use core::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    control::{ControlUrl, Registration, types::MapResponse},
    ip::prefix::Prefix,
    key::{MachinePrivate, NodePrivate},
    rng::Rng,
};

/// What the user wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Prefs {
    /// The control server; `None` until one was named.
    #[serde(rename = "ControlURL")]
    pub control_url: Option<ControlUrl>,
    /// Whether to be connected.
    pub want_running: bool,
    /// The name to go by; empty is the host's own.
    pub hostname: String,
    /// Whether to use subnet routes of peers.
    #[serde(rename = "RouteAll")]
    pub accept_routes: bool,
    /// Networks behind this node that peers may reach over it, once control approves.
    pub advertise_routes: Vec<Prefix>,
    /// Tags to ask for.
    pub advertise_tags: Vec<String>,
    /// Ask to be forgotten soon after the node is gone.
    pub ephemeral: bool,
}

/// What a node is doing. Names are those of stock nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendState {
    /// There is no control server: peers come from a file or from the simulator.
    #[default]
    NoState,
    /// Somebody has to sign in, or a key has to be given.
    NeedsLogin,
    /// Signed in; an administrator has to admit the machine.
    NeedsMachineAuth,
    /// Not wanted to run.
    Stopped,
    /// Wanted to run: there is no map yet.
    Starting,
    /// There is a map, and packets flow.
    Running,
}

impl fmt::Display for BackendState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoState => "NoState",
            Self::NeedsLogin => "NeedsLogin",
            Self::NeedsMachineAuth => "NeedsMachineAuth",
            Self::Stopped => "Stopped",
            Self::Starting => "Starting",
            Self::Running => "Running",
        })
    }
}

/// What survives a restart. Holds secrets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SavedState {
    /// Who the host is to control servers.
    #[serde(with = "machine_key")]
    pub machine_key: MachinePrivate,
    /// Who the node is to its peers.
    #[serde(with = "node_key")]
    pub node_key: NodePrivate,
    /// A key that is being registered in the place of `node_key`: control may know it already.
    #[serde(default, with = "next_node_key", skip_serializing_if = "Option::is_none")]
    pub next_node_key: Option<NodePrivate>,
    /// What the user wants.
    #[serde(default)]
    pub prefs: Prefs,
    /// With whom `node_key` is registered.
    #[serde(default)]
    pub registration: Option<Registration>,
    /// The last network map, as the first message of a stream.
    #[serde(default)]
    pub map: Option<Arc<MapResponse>>,
}

impl SavedState {
    /// The state of a node that has never run.
    #[must_use]
    pub fn new(rng: &mut Rng) -> Self {
        Self {
            machine_key: MachinePrivate::generate(rng),
            node_key: NodePrivate::generate(rng),
            next_node_key: None,
            prefs: Prefs::default(),
            registration: None,
            map: None,
        }
    }
}

macro_rules! secret_text {
    ($module:ident, $key:ty) => {
        mod $module {
            use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

            use crate::key::*;

            pub(super) fn serialize<S: Serializer>(key: &$key, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&key.to_secret_text())
            }

            pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<$key, D::Error> {
                <$key>::from_secret_text(&String::deserialize(deserializer)?).map_err(D::Error::custom)
            }
        }
    };
}

secret_text!(machine_key, MachinePrivate);
secret_text!(node_key, NodePrivate);

/// A key that there may not be.
mod next_node_key {
    use serde::{Deserializer, Serializer};

    use super::node_key;
    use crate::key::NodePrivate;

    pub(super) fn serialize<S: Serializer>(key: &Option<NodePrivate>, serializer: S) -> Result<S::Ok, S::Error> {
        match key {
            Some(key) => node_key::serialize(key, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NodePrivate>, D::Error> {
        node_key::deserialize(deserializer).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::types::{Login, User},
        rng::Seed,
    };

    #[test]
    fn what_is_saved_comes_back() {
        let mut state = SavedState::new(&mut Seed::from_number(1).stream("test", 0));
        state.prefs.control_url = "https://control.example.com".parse().ok();
        state.prefs.advertise_routes = vec!["10.0.0.0/8".parse().unwrap()];
        state.registration = Some(Registration {
            server: "https://control.example.com".parse().unwrap(),
            server_key: state.machine_key.public(),
            user: User::default(),
            login: Login { login_name: "alice@example.com".to_owned(), ..Login::default() },
        });
        state.map = Some(Arc::new(MapResponse { domain: "example.com".to_owned(), ..MapResponse::default() }));
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<SavedState>(&text).unwrap(), state);
    }

    #[test]
    fn what_an_older_run_did_not_know_of_has_its_default() {
        let state = SavedState::new(&mut Seed::from_number(1).stream("test", 0));
        let (machine, node) = (state.machine_key.to_secret_text(), state.node_key.to_secret_text());
        let text = format!(r#"{{"MachineKey":"{machine}","NodeKey":"{node}"}}"#);
        assert_eq!(serde_json::from_str::<SavedState>(&text).unwrap(), state);
    }

    #[test]
    fn a_saved_state_does_not_print_its_secrets() {
        let state = SavedState::new(&mut Seed::from_number(1).stream("test", 0));
        let text = format!("{state:?}");
        assert!(!text.contains(&state.node_key.to_secret_text()["privkey:".len()..]), "{text}");
    }
}
