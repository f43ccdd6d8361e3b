//! The `[[event]]` tables of scenario files.

use core::time::Duration;

use mesh_core::time::Instant;

use crate::{
    host::{HostId, Manner, RelayChange},
    net::{Direction, Family, NetId, Renumber, nat::NatParams},
};

use super::{
    EventSpec, Fault, LinkChange, LinkPart, ScenarioError,
    read::{Reader, Value},
    toml::{DURATION, File, found, link, policy, positive},
    toml_nat, value,
};

type Result<T> = core::result::Result<T, ScenarioError>;

/// Events that the format has and this build has not.
const NOT_BUILT: &[&str] = &["login"];

/// The events of this build with their keys.
const EVENTS: &[(&str, &[&str])] = &[
    ("link", &["link", "set", "state", "for", "direction", "family", "down", "up"]),
    ("restart", &["node", "for"]),
    ("reboot", &["nat", "new_address", "for"]),
    ("nat", &["nat", "set"]),
    ("firewall", &["net", "set"]),
    ("move", &["node", "to", "gap"]),
    ("suspend", &["node", "for"]),
    ("relay", &["relay", "state", "for", "reconnect_in", "try_for"]),
    ("resolver", &["state"]),
    ("control", &["state", "for", "within", "down", "up"]),
    ("replay", &["node", "relay"]),
    ("policy", &["text", "file"]),
    ("admin", &["command", "node", "key", "to"]),
    ("up", &["node", "key", "force"]),
    ("down", &["node"]),
    ("logout", &["node"]),
];

impl<'t> File<'t> {
    pub(super) fn event(&mut self, table: &Value<'t>) -> Result<()> {
        let all: Vec<_> = EVENTS.iter().flat_map(|(_, keys)| *keys).copied().chain(["at", "do"]).collect();
        let reader = Reader::of_value(self.source, table, "an event", &all)?;
        let what = reader.require_text("do")?;
        if NOT_BUILT.contains(&what) {
            return Err(reader.error(format!("events that `{what}` are not built yet")));
        }
        let choices: Vec<_> = EVENTS.iter().map(|(name, keys)| (*name, *keys)).collect();
        let own = reader.choice("do", &choices)?.unwrap_or_default();
        reader.require("at")?;
        let at = reader.parsed("at", value::instant, DURATION)?.unwrap_or(Instant::ZERO);
        let keys: Vec<_> = own.iter().copied().chain(["at", "do"]).collect();
        let reader = Reader::of_value(self.source, table, "this event", &keys)?;
        if at > Instant::ZERO + self.scenario.duration {
            return Err(reader.error("the event is later than the end of the scenario"));
        }
        let fault = match what {
            "link" | "control" => {
                let faults = if what == "link" { self.link_event(&reader)? } else { self.control_event(&reader)? };
                self.scenario
                    .events
                    .extend(faults.into_iter().map(|(later, fault)| EventSpec { at: at + later, fault }));
                return Ok(());
            }
            "admin" => self.admin_event(&reader)?,
            "up" | "down" | "logout" => self.order_event(&reader, what)?,
            "restart" => Fault::Restart { node: self.node_named(&reader, "node")?, off: length(&reader, "for")? },
            "nat" => {
                let (net, params) = self.nat_of(&reader)?;
                let changed = toml_nat::changed(&reader, reader.require("set")?, params)?;
                Fault::Nat { net, params: Box::new(changed) }
            }
            "firewall" => {
                let net = self.net_named(&reader, "net")?;
                let is_none = reader.require_text("set")? == "none";
                let params = if is_none { None } else { toml_nat::firewall(&reader, "set")? };
                Fault::Firewall { net, params }
            }
            "move" => Fault::Move {
                node: self.node_named(&reader, "node")?,
                to: self.net_named(&reader, "to")?,
                gap: length(&reader, "gap")?,
            },
            "suspend" => {
                reader.require("for")?;
                let length = reader.parsed("for", positive, DURATION)?.unwrap_or_default();
                Fault::Suspend { node: self.node_named(&reader, "node")?, length }
            }
            "relay" => self.relay_event(&reader)?,
            "replay" if reader.get("relay").is_some() => Fault::Replay { at: self.relay_named(&reader)? },
            "replay" => Fault::Replay { at: self.node_named(&reader, "node")? },
            "resolver" => {
                let manners = [
                    ("answers", Manner::Answer),
                    ("fails", Manner::Fail),
                    ("denies", Manner::Deny),
                    ("silent", Manner::Silent),
                ];
                reader.require("state")?;
                Fault::Resolver(reader.choice("state", &manners)?.unwrap_or(Manner::Answer))
            }
            "policy" if self.scenario.control.is_some() => self.policy_event(&reader)?,
            "policy" => {
                if self.scenario.policy.is_none() {
                    return Err(reader.error("only a scenario with a `policy` can have another"));
                }
                Fault::Policy { text: policy(&reader, "text", reader.require_text("text")?)? }
            }
            _ => {
                let (net, _) = self.nat_of(&reader)?;
                let renumber = if reader.bool("new_address")? { Renumber::New } else { Renumber::Keep };
                Fault::Reboot { net, renumber, down: length(&reader, "for")? }
            }
        };
        self.scenario.events.push(EventSpec { at, fault });
        Ok(())
    }

    /// What an event of a link does, and how long after the event: flapping is many events.
    fn link_event(&self, reader: &Reader<'_, 't>) -> Result<Vec<(Duration, Fault)>> {
        let net = self.net_named(reader, "link")?;
        let down_for = reader.parsed("for", positive, DURATION)?;
        let direction = reader.choice("direction", &[("out", Direction::Out), ("back", Direction::Back)])?;
        let family = reader.choice("family", &[("ipv4", Family::V4), ("ipv6", Family::V6)])?;
        let part = match (direction, family) {
            (None, None) => LinkPart::Whole,
            (Some(direction), None) => LinkPart::Direction(direction),
            (None, Some(family)) => LinkPart::Family(family),
            (Some(_), Some(_)) => return Err(reader.error("an event of a link has a `direction` or a `family`")),
        };
        let set = reader.get("set");
        if set.is_some() && family.is_some() {
            return Err(reader.error("a `family` is up or down; what is `set` is of all families"));
        }
        let state = reader.text("state")?;
        reader.choice("state", &[("down", ()), ("up", ()), ("flap", ())])?;
        let change = match (set, state) {
            (Some(value), None) => {
                LinkChange::Set(Box::new(link(reader, value, self.scenario.nets[net.index()].setup.link)?))
            }
            (None, Some("down")) => LinkChange::Down(down_for),
            (None, Some("up")) => LinkChange::Up,
            (None, Some(_)) => return flaps(reader, net, part),
            (Some(_), Some(_)) | (None, None) => {
                return Err(reader.error("an event of a link has either `set` or `state = \"down\"` or \"up\""));
            }
        };
        if down_for.is_some() && !matches!(change, LinkChange::Down(_)) {
            return Err(reader.error("only `state = \"down\"` has a `for`"));
        }
        Ok(vec![(Duration::ZERO, Fault::Link { net, part, change })])
    }

    fn relay_event(&self, reader: &Reader<'_, '_>) -> Result<Fault> {
        let relay = self.relay_named(reader)?;
        reader.require("state")?;
        let drain =
            RelayChange::Drain { reconnect_in: length(reader, "reconnect_in")?, try_for: length(reader, "try_for")? };
        let states = [
            ("killed", RelayChange::Kill),
            ("started", RelayChange::Start),
            ("black-hole", RelayChange::BlackHole),
            ("answers", RelayChange::Answer),
            ("reset", RelayChange::Reset),
            ("draining", drain),
        ];
        let change = reader.choice("state", &states)?.unwrap_or(RelayChange::Reset);
        let length = reader.parsed("for", positive, DURATION)?;
        if length.is_some() && !matches!(change, RelayChange::Kill | RelayChange::BlackHole) {
            return Err(reader.error("only `killed` and `black-hole` have a `for`"));
        }
        Ok(Fault::Relay { relay, change, length })
    }

    fn relay_named(&self, reader: &Reader<'_, '_>) -> Result<HostId> {
        let name = reader.require_text("relay")?;
        let names: Vec<_> = self.scenario.relays.iter().map(|relay| relay.name.as_str()).collect();
        let index = found(reader, reader.require("relay")?.span(), "relay", name, &names)?;
        Ok(self.scenario.relay_host(index as usize))
    }

    /// The net whose NAT an event is about, and what that NAT is.
    fn nat_of(&self, reader: &Reader<'_, '_>) -> Result<(NetId, NatParams)> {
        let net = self.net_named(reader, "nat")?;
        let nat = self.scenario.nets[net.index()].setup.nat;
        match nat {
            Some(params) => Ok((net, params)),
            None => Err(reader.source.error(reader.require("nat")?.span(), "this net has no NAT")),
        }
    }
}

/// A link that goes down and comes up again and again.
fn flaps(reader: &Reader<'_, '_>, net: NetId, part: LinkPart) -> Result<Vec<(Duration, Fault)>> {
    for key in ["down", "up", "for"] {
        reader.require(key)?;
    }
    let time = |key| reader.parsed(key, positive, DURATION);
    let (Some(down), Some(up), Some(length)) = (time("down")?, time("up")?, time("for")?) else {
        return Err(reader.error("a link that flaps has `down`, `up` and `for`"));
    };
    let mut faults = Vec::new();
    let mut later = Duration::ZERO;
    while later < length {
        faults.push((later, Fault::Link { net, part, change: LinkChange::Down(Some(down)) }));
        later += down + up;
    }
    Ok(faults)
}

pub(super) fn length(reader: &Reader<'_, '_>, key: &str) -> Result<Duration> {
    Ok(reader.parsed(key, value::duration, DURATION)?.unwrap_or_default())
}
