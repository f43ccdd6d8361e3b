//! The control server of scenario files: `[control]`, `[[user]]`, `[[key]]`, and what happens to it.

use core::time::Duration;

use control::coordinator::Command;
use mesh_core::node::BackendState;

use crate::{
    check::{Expectation, Hold, Ruling},
    host::{ControlChange, HostId, KeySetup, NodeOrder, Preparation, STATES, state_name},
    net::{Ipv6, NetId, NetSetup},
};

use super::{
    CONTROL, ControlSpec, Fault, NetSpec, ScenarioError,
    read::{Reader, Value},
    toml::{DURATION, File, found, policy, positive},
    toml_event::length,
    toml_expect::{after, duration},
    value,
};

type Result<T> = core::result::Result<T, ScenarioError>;

/// How long a disk takes unless the scenario says otherwise.
const COMMIT: Duration = Duration::from_millis(2);
/// Steps of the server that a crash may wait for at most, unless the scenario says otherwise.
const CRASH_WITHIN: u64 = 20;

impl<'t> File<'t> {
    /// `[control]`. Nets, nodes and relays are read.
    pub(super) fn control(&mut self, value: &Value<'t>) -> Result<()> {
        let reader =
            Reader::of_value(self.source, value, "control", &["net", "region", "policy", "policy_file", "commit"])?;
        if self.scenario.relays.is_empty() {
            return Err(reader.error("control tells nodes of relays; write at least one `[[relay]]`"));
        }
        if !self.scenario.peers.is_empty() {
            return Err(reader.error("where there is control nodes hear of each other from it; leave out `[[peer]]`"));
        }
        let policy = self.policy(&reader, "policy", "policy_file")?;
        let net = match reader.get("net") {
            Some(_) => self.net_named(&reader, "net")?,
            None => {
                let setup = NetSetup { ipv6: Ipv6::Open, region: self.region(&reader)?, ..NetSetup::PUBLIC };
                self.scenario.nets.push(NetSpec { name: CONTROL.to_owned(), setup });
                NetId(self.scenario.nets.len() as u32 - 1)
            }
        };
        let commit = reader.parsed("commit", value::duration, DURATION)?.unwrap_or(COMMIT);
        let (users, keys) = self.owners();
        self.scenario.control = Some(ControlSpec { net, commit, preparation: Preparation { users, keys, policy } });
        Ok(())
    }

    /// A policy, written here or in a file.
    fn policy(&self, reader: &Reader<'_, 't>, here: &str, file: &str) -> Result<Option<String>> {
        match (reader.text(here)?, reader.text(file)?) {
            (Some(_), Some(_)) => Err(reader.error(format!("write `{here}` or `{file}`, not both"))),
            (Some(text), None) => policy(reader, here, text).map(Some),
            (None, Some(name)) => {
                let span = reader.require(file)?.span();
                let text = (self.file)(name).map(|text| policy(reader, file, &text)).transpose()?;
                text.map(Some).ok_or_else(|| reader.source.error(span, format!("the file `{name}` cannot be read")))
            }
            (None, None) => Ok(None),
        }
    }

    /// `[[key]]`.
    pub(super) fn auth_key(&mut self, table: &Value<'t>) -> Result<()> {
        let known = ["name", "user", "reusable", "ephemeral", "tags", "expiry"];
        let reader = Reader::of_value(self.source, table, "an auth key", &known)?;
        let name = reader.require_text("name")?.to_owned();
        self.unused(&reader, &name, self.keys.iter().map(|key| key.name.as_str()))?;
        self.keys.push(KeySetup {
            name,
            user: reader.require_text("user")?.to_owned(),
            reusable: reader.bool("reusable")?,
            ephemeral: reader.bool("ephemeral")?,
            tags: tags(&reader)?,
            expiry: reader.parsed("expiry", positive, DURATION)?,
        });
        Ok(())
    }

    /// Who there is, and with which keys they join: a node without one is given a reusable key of its user and its tags.
    fn owners(&mut self) -> (Vec<String>, Vec<KeySetup>) {
        let mut keys = self.keys.clone();
        for node in &mut self.scenario.nodes {
            if node.key.is_none() {
                let name =
                    core::iter::once(&node.user).chain(&node.tags).map(String::as_str).collect::<Vec<_>>().join(" ");
                if !keys.iter().any(|key| key.name == name) {
                    let (name, user, tags) = (name.clone(), node.user.clone(), node.tags.clone());
                    keys.push(KeySetup { name, user, reusable: true, ephemeral: false, tags, expiry: None });
                }
                node.key = Some(name);
            } else if let Some(key) = keys.iter().find(|key| Some(&key.name) == node.key.as_ref()) {
                node.user.clone_from(&key.user);
                node.tags.clone_from(&key.tags);
            }
        }
        let mut users: Vec<String> = Vec::new();
        for user in self.scenario.nodes.iter().map(|node| &node.user).chain(keys.iter().map(|key| &key.user)) {
            if !users.contains(user) {
                users.push(user.clone());
            }
        }
        (users, keys)
    }

    /// The name of an auth key that there is.
    pub(super) fn key_named(&self, reader: &Reader<'_, '_>) -> Result<Option<String>> {
        let Some(name) = reader.text("key")? else { return Ok(None) };
        let names: Vec<_> = self.keys.iter().map(|key| key.name.as_str()).collect();
        found(reader, reader.require("key")?.span(), "auth key", name, &names)?;
        Ok(Some(name.to_owned()))
    }

    /// What happens to control.
    pub(super) fn control_event(&self, reader: &Reader<'_, '_>) -> Result<Vec<(Duration, Fault)>> {
        self.require_control(reader)?;
        reader.require("state")?;
        let length = reader.parsed("for", positive, DURATION)?;
        if reader.text("state")? == Some("flap") {
            return flaps(reader);
        }
        let within = reader.integer("within", 1..1_000_000)?.unwrap_or(CRASH_WITHIN);
        let crash = ControlChange::Crash { within, off: length.unwrap_or_default() };
        let states = [
            ("killed", ControlChange::Kill),
            ("started", ControlChange::Start),
            ("crash", crash),
            ("frozen", ControlChange::Freeze),
            ("thawed", ControlChange::Thaw),
            ("black-hole", ControlChange::BlackHole),
            ("answers", ControlChange::Answer),
            ("reset", ControlChange::Reset),
        ];
        let choices: Vec<_> =
            states.iter().map(|(name, change)| (*name, change)).chain([("flap", &states[0].1)]).collect();
        let change = reader.choice("state", &choices)?.cloned().unwrap_or(ControlChange::Reset);
        let has_length = matches!(
            change,
            ControlChange::Kill | ControlChange::Crash { .. } | ControlChange::Freeze | ControlChange::BlackHole
        );
        if length.is_some() && !has_length {
            return Err(reader.error("only `killed`, `crash`, `frozen` and `black-hole` have a `for`"));
        }
        if reader.get("within").is_some() && !matches!(change, ControlChange::Crash { .. }) {
            return Err(reader.error("only `crash` is `within` so many steps"));
        }
        let length = length.filter(|_| !matches!(change, ControlChange::Crash { .. }));
        Ok(vec![(Duration::ZERO, Fault::Control { change, length })])
    }

    /// Another policy.
    pub(super) fn policy_event(&self, reader: &Reader<'_, 't>) -> Result<Fault> {
        match self.policy(reader, "text", "file")? {
            Some(text) => Ok(Fault::Admin(Box::new(Command::SetPolicy { text }))),
            None => Err(reader.error("a policy has `text` or `file`")),
        }
    }

    /// What an operator does.
    pub(super) fn admin_event(&self, reader: &Reader<'_, '_>) -> Result<Fault> {
        self.require_control(reader)?;
        reader.require("command")?;
        let commands = ["expire-node", "delete-node", "rename-node", "expire-key"].map(|name| (name, name));
        let what = reader.choice("command", &commands)?.unwrap_or_default();
        let command = if what == "expire-key" {
            reader.require("key")?;
            Command::ExpireKey { id: self.key_named(reader)?.unwrap_or_default() }
        } else {
            let number = self.node_named(reader, "node")?;
            let node = self.scenario.nodes[number.index()].name.clone();
            match what {
                "expire-node" => Command::ExpireNode { node },
                "delete-node" => Command::DeleteNode { node },
                _ => Command::RenameNode { node, name: reader.require_text("to")?.to_owned() },
            }
        };
        Ok(Fault::Admin(Box::new(command)))
    }

    /// What somebody tells a node.
    pub(super) fn order_event(&self, reader: &Reader<'_, '_>, what: &str) -> Result<Fault> {
        self.require_control(reader)?;
        let order = match what {
            "up" => NodeOrder::Up { auth_key: self.key_named(reader)?, force: reader.bool("force")? },
            "down" => NodeOrder::Down,
            _ => NodeOrder::Logout,
        };
        Ok(Fault::Order { node: self.node_named(reader, "node")?, order })
    }

    /// What nodes do.
    pub(super) fn state_expected(&self, reader: &Reader<'_, '_>) -> Result<Expectation> {
        self.require_control(reader)?;
        reader.require("is")?;
        let states = STATES.map(|state| (state_name(state), state));
        Ok(Expectation::State {
            node: reader.get("node").map(|_| self.node_named(reader, "node")).transpose()?,
            is: reader.choice("is", &states)?.unwrap_or(BackendState::Running),
            after: after(reader)?,
            within: duration(reader, "within")?,
            hold: if reader.bool("always")? { Hold::Always } else { Hold::Once },
            count: reader.integer("count", 0..1 << 20)?,
        })
    }

    /// What the policy says of two nodes.
    pub(super) fn acl_expected(&self, reader: &Reader<'_, '_>) -> Result<Expectation> {
        let (from, to): (HostId, HostId) = self.pair(reader, "from", "to")?;
        for key in ["is", "within"] {
            reader.require(key)?;
        }
        let rulings = [("allowed", Ruling::Allowed), ("denied", Ruling::Denied)];
        Ok(Expectation::Acl {
            from,
            to,
            is: reader.choice("is", &rulings)?.unwrap_or(Ruling::Denied),
            after: after(reader)?,
            within: duration(reader, "within")?.unwrap_or_default(),
            until: reader.parsed("until", value::instant, DURATION)?,
        })
    }

    fn require_control(&self, reader: &Reader<'_, '_>) -> Result<()> {
        if self.scenario.control.is_none() {
            return Err(reader.error("there is no `[control]`"));
        }
        Ok(())
    }
}

/// Tags of a node or a key.
pub(super) fn tags(reader: &Reader<'_, '_>) -> Result<Vec<String>> {
    let tags = reader.texts("tags")?.into_iter();
    tags.map(|(span, tag)| match tag.starts_with("tag:") {
        true => Ok(tag.to_owned()),
        false => Err(reader.source.error(span, "a tag begins with `tag:`")),
    })
    .collect()
}

/// A server that goes away and comes back again and again.
fn flaps(reader: &Reader<'_, '_>) -> Result<Vec<(Duration, Fault)>> {
    for key in ["down", "up", "for"] {
        reader.require(key)?;
    }
    let (down, up, length) = (length(reader, "down")?, length(reader, "up")?, length(reader, "for")?);
    if down.is_zero() || up.is_zero() {
        return Err(reader.error("a server that flaps is away for some time, and there for some time"));
    }
    let mut faults = Vec::new();
    let mut later = Duration::ZERO;
    while later < length {
        faults.push((later, Fault::Control { change: ControlChange::Kill, length: Some(down) }));
        later += down + up;
    }
    Ok(faults)
}
