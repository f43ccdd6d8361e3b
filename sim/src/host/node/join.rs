//! The control side of a host that runs a node: what it joins with, what it keeps, what it is told to do.

use core::net::IpAddr;
use std::{collections::BTreeMap, sync::Arc};

use mesh_core::{
    control::{ControlRequest, ControlUrl, types::Hostinfo},
    machine::Machine as _,
    node::{AuthKey, BackendState, Command, CommandId, ControlConfig, HostConfig, Input, Prefs, SavedState, Up},
    time::Instant,
};

use super::{
    super::{Effects, NodeEvent, links::Net},
    NodeHost, Running,
};

/// Names the maps that the world hands out.
pub(super) const MAP: CommandId = CommandId(0);
/// Names what the world tells a node to do.
const ORDER: CommandId = CommandId(1);

/// What a node joins with.
#[derive(Clone, Debug)]
pub struct JoinSetup {
    /// Its name, as its host says it.
    pub name: String,
    /// Where control is.
    pub url: ControlUrl,
    /// The auth key that it is given at its first start, by its name.
    pub auth_key: Option<String>,
    /// The texts of all auth keys, by name.
    pub auth_keys: Arc<BTreeMap<String, String>>,
}

/// What somebody tells a node to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeOrder {
    /// Be connected, with this auth key if that is needed.
    Up {
        /// The key's name.
        auth_key: Option<String>,
        /// Sign in even where that is not needed.
        force: bool,
    },
    /// Be disconnected.
    Down,
    /// Sign out.
    Logout,
}

impl NodeHost {
    /// What the node starts with, and whether it starts for the first time.
    pub(super) fn control_config(&mut self) -> (Option<ControlConfig>, bool) {
        let Some(join) = &self.setup.join else { return (None, false) };
        let is_first = self.saved.is_none();
        let saved = self.saved.get_or_insert_with(|| {
            let mut saved = SavedState::new(&mut self.setup.seed.stream("state", 0));
            saved.node_key = self.setup.key.clone();
            saved
        });
        let hostinfo = Hostinfo { hostname: join.name.clone(), ..Hostinfo::default() };
        (Some(ControlConfig { saved: saved.clone(), hostinfo }), is_first)
    }

    /// The node runs for the first time: it is told whom to join.
    pub(super) fn join(&mut self, now: Instant) {
        let auth_key = self.setup.join.as_ref().and_then(|join| join.auth_key.clone());
        self.give_order(&NodeOrder::Up { auth_key, force: false }, now);
    }

    /// Somebody tells the node what to do. Nothing happens while it does not run.
    pub fn handle_order(&mut self, order: &NodeOrder, world: Instant, effects: &mut Effects) {
        let now = self.clock.at(world);
        self.give_order(order, now);
        self.settle(now, effects);
    }

    fn give_order(&mut self, order: &NodeOrder, now: Instant) {
        let (Some(running), Some(join)) = (&mut self.running, &self.setup.join) else { return };
        let command = match order {
            NodeOrder::Up { auth_key, force } => {
                let prefs = Prefs { control_url: Some(join.url.clone()), want_running: true, ..Prefs::default() };
                let auth_key = auth_key.as_ref().and_then(|name| join.auth_keys.get(name)).cloned().map(AuthKey);
                Command::Up(Box::new(Up { prefs, auth_key, force_reauth: *force }))
            }
            NodeOrder::Down => Command::Down,
            NodeOrder::Logout => Command::Logout,
        };
        running.node.handle_input(Input::Command(ORDER, command), now);
    }

    pub(super) fn ask_control(&mut self, request: ControlRequest, now: Instant) {
        let Some(running) = &mut self.running else { return };
        let Running { stack, names, control, .. } = running;
        control.handle_request(request, &mut Net { addresses: &self.addresses, stack, names }, now);
    }

    /// The TUN has other addresses.
    pub(super) fn configure(&mut self, config: &HostConfig, effects: &mut Effects) {
        // Without control the addresses are there from the start.
        if self.setup.join.is_none() {
            return;
        }
        self.overlay = config.addresses.iter().find_map(|(address, _)| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        });
        effects.overlay = self.overlay.or(effects.overlay);
    }

    /// What the node has come to.
    pub(super) fn note_state(&mut self, state: BackendState, effects: &mut Effects) {
        if core::mem::replace(&mut self.state, state) != state {
            effects.events.push(NodeEvent::State(state));
        }
    }
}
