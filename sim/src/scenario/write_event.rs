//! Events and expectations written.

use control::coordinator::Command;

use crate::{
    check::{Expectation, Held, Hold, Ruling},
    host::{ControlChange, HostId, Manner, NodeOrder, Over, RelayChange, state_name},
    kernel::dice::Probability,
    net::{Direction, Family, Renumber},
};

use super::{
    CONTROL, EventSpec, ExpectSpec, Fault, LinkChange, LinkPart,
    write::{Result, Writer, duration, instant, quoted, set, share, since_start, table},
    write_net,
};

/// An `[[event]]`.
pub(super) fn event(file: &Writer<'_>, event: &EventSpec, out: &mut String) -> Result<()> {
    table(out, "[[event]]");
    set(out, "at", &instant(event.at));
    match &event.fault {
        Fault::Link { net, part, change } => {
            set(out, "do", "\"link\"");
            set(out, "link", &file.net(*net));
            match part {
                LinkPart::Whole => {}
                LinkPart::Direction(Direction::Out) => set(out, "direction", "\"out\""),
                LinkPart::Direction(Direction::Back) => set(out, "direction", "\"back\""),
                LinkPart::Family(Family::V4) => set(out, "family", "\"ipv4\""),
                LinkPart::Family(Family::V6) => set(out, "family", "\"ipv6\""),
            }
            match change {
                LinkChange::Set(params) => set(out, "set", &write_net::link(params)?),
                LinkChange::Up => set(out, "state", "\"up\""),
                LinkChange::Down(length) => {
                    set(out, "state", "\"down\"");
                    lasting(out, *length);
                }
            }
        }
        Fault::Restart { node, off } => {
            of_node(file, "restart", *node, out);
            set(out, "for", &duration(*off));
        }
        Fault::Reboot { net, renumber, down } => {
            set(out, "do", "\"reboot\"");
            set(out, "nat", &file.net(*net));
            if *renumber == Renumber::New {
                set(out, "new_address", "true");
            }
            set(out, "for", &duration(*down));
        }
        Fault::Nat { net, params } => {
            let base = file.scenario.nets.get(net.index()).and_then(|net| net.setup.nat);
            set(out, "do", "\"nat\"");
            set(out, "nat", &file.net(*net));
            set(out, "set", &write_net::nat_change(params, &base.ok_or("a changed NAT of a net without one")?)?);
        }
        Fault::Firewall { net, params } => {
            set(out, "do", "\"firewall\"");
            set(out, "net", &file.net(*net));
            set(out, "set", &quoted(params.map_or("none", |params| params.profile)));
        }
        Fault::Move { node, to, gap } => {
            of_node(file, "move", *node, out);
            set(out, "to", &file.net(*to));
            set(out, "gap", &duration(*gap));
        }
        Fault::Suspend { node, length } => {
            of_node(file, "suspend", *node, out);
            set(out, "for", &duration(*length));
        }
        Fault::Relay { relay, change, length } => {
            set(out, "do", "\"relay\"");
            let name = file.scenario.host_names().nth(relay.index()).unwrap_or_default();
            set(out, "relay", &quoted(name));
            relay_change(change, out);
            lasting(out, *length);
        }
        Fault::Resolver(manner) => {
            set(out, "do", "\"resolver\"");
            let state = match manner {
                Manner::Answer => "\"answers\"",
                Manner::Fail => "\"fails\"",
                Manner::Deny => "\"denies\"",
                Manner::Silent => "\"silent\"",
            };
            set(out, "state", state);
        }
        Fault::Control { change, length } => {
            set(out, "do", "\"control\"");
            control_change(change, out);
            lasting(out, *length);
        }
        Fault::Admin(command) => admin(command, out)?,
        Fault::Order { node, order } => match order {
            NodeOrder::Down => of_node(file, "down", *node, out),
            NodeOrder::Logout => of_node(file, "logout", *node, out),
            NodeOrder::Up { auth_key, force } => {
                of_node(file, "up", *node, out);
                if let Some(key) = auth_key {
                    set(out, "key", &quoted(key));
                }
                if *force {
                    set(out, "force", "true");
                }
            }
        },
        Fault::Policy { text } => policy(text, out),
        Fault::Replay { at } => {
            set(out, "do", "\"replay\"");
            let key = if at.index() < file.scenario.nodes.len() { "node" } else { "relay" };
            set(out, key, &quoted(file.scenario.host_names().nth(at.index()).unwrap_or_default()));
        }
    }
    Ok(())
}

fn of_node(file: &Writer<'_>, what: &str, node: HostId, out: &mut String) {
    set(out, "do", &quoted(what));
    set(out, "node", &file.node(node));
}

fn lasting(out: &mut String, length: Option<core::time::Duration>) {
    if let Some(length) = length {
        set(out, "for", &duration(length));
    }
}

fn policy(text: &str, out: &mut String) {
    set(out, "do", "\"policy\"");
    set(out, "text", &quoted(text));
}

fn relay_change(change: &RelayChange, out: &mut String) {
    let state = match change {
        RelayChange::Kill => "\"killed\"",
        RelayChange::Start => "\"started\"",
        RelayChange::BlackHole => "\"black-hole\"",
        RelayChange::Answer => "\"answers\"",
        RelayChange::Reset => "\"reset\"",
        RelayChange::Drain { .. } => "\"draining\"",
    };
    set(out, "state", state);
    if let RelayChange::Drain { reconnect_in, try_for } = change {
        set(out, "reconnect_in", &duration(*reconnect_in));
        set(out, "try_for", &duration(*try_for));
    }
}

fn control_change(change: &ControlChange, out: &mut String) {
    let state = match change {
        ControlChange::Kill => "\"killed\"",
        ControlChange::Start => "\"started\"",
        ControlChange::Crash { .. } => "\"crash\"",
        ControlChange::Freeze => "\"frozen\"",
        ControlChange::Thaw => "\"thawed\"",
        ControlChange::BlackHole => "\"black-hole\"",
        ControlChange::Answer => "\"answers\"",
        ControlChange::Reset => "\"reset\"",
    };
    set(out, "state", state);
    if let ControlChange::Crash { within, off } = change {
        set(out, "within", &within.to_string());
        if !off.is_zero() {
            set(out, "for", &duration(*off));
        }
    }
}

fn admin(command: &Command, out: &mut String) -> Result<()> {
    let mut about = |what: &str, key: &str, name: &str| {
        set(out, "do", "\"admin\"");
        set(out, "command", &quoted(what));
        set(out, key, &quoted(name));
    };
    match command {
        Command::SetPolicy { text } => policy(text, out),
        Command::ExpireNode { node } => about("expire-node", "node", node),
        Command::DeleteNode { node } => about("delete-node", "node", node),
        Command::ExpireKey { id } => about("expire-key", "key", id),
        Command::RenameNode { node, name } => {
            about("rename-node", "node", node);
            set(out, "to", &quoted(name));
        }
        other => return Err(format!("the command {other:?}")),
    }
    Ok(())
}

/// An `[[expect]]`.
pub(super) fn expect(file: &Writer<'_>, spec: &ExpectSpec, out: &mut String) -> Result<()> {
    table(out, "[[expect]]");
    set(out, "that", &quoted(spec.expectation.kind()));
    if spec.min_rate != Probability::ONE {
        set(out, "min_rate", &share(spec.min_rate));
    }
    let time = |out: &mut String, key: &str, time: &Option<core::time::Duration>| {
        if let Some(time) = time {
            set(out, key, &duration(*time));
        }
    };
    let number = |out: &mut String, key: &str, number: &Option<u64>| {
        if let Some(number) = number {
            set(out, key, &number.to_string());
        }
    };
    let pair = |out: &mut String, from: &HostId, to: &HostId| {
        set(out, "from", &file.node(*from));
        set(out, "to", &file.node(*to));
    };
    match &spec.expectation {
        Expectation::Delivered { from, to, after, within, held, via } => {
            pair(out, from, to);
            since_start(out, "after", *after);
            time(out, "within", within);
            if *held == Held::Never {
                set(out, "never", "true");
            }
            match via {
                None => {}
                Some(Over::Udp) => set(out, "via", "\"direct\""),
                Some(Over::Relay) => set(out, "via", "\"relay\""),
            }
        }
        Expectation::Path { between: [a, b], is, after, within, hold, technique } => {
            set(out, "between", &format!("[{}, {}]", file.node(*a), file.node(*b)));
            set(out, "is", &quoted(is.name()));
            since_start(out, "after", *after);
            time(out, "within", within);
            always(out, *hold);
            if !technique.is_empty() {
                let names: Vec<_> = technique.iter().map(|technique| quoted(technique.name())).collect();
                set(out, "technique", &format!("[{}]", names.join(", ")));
            }
        }
        Expectation::Outage { from, to, max, outside } => {
            pair(out, from, to);
            set(out, "max", &duration(*max));
            if !outside.is_empty() {
                let bare = |at| instant(at).trim_matches('"').to_owned();
                let windows = outside.iter().map(|(from, to)| format!("\"{}..{}\"", bare(*from), bare(*to)));
                set(out, "outside", &format!("[{}]", windows.collect::<Vec<_>>().join(", ")));
            }
        }
        Expectation::Rtt { from, to, after, p50, p99, max } => {
            pair(out, from, to);
            since_start(out, "after", *after);
            for (key, limit) in [("p50", p50), ("p99", p99), ("max", max)] {
                time(out, key, limit);
            }
        }
        Expectation::Loss { from, to, after, max, min } => {
            pair(out, from, to);
            since_start(out, "after", *after);
            for (key, limit) in [("max", max), ("min", min)] {
                if let Some(limit) = limit {
                    set(out, key, &share(*limit));
                }
            }
        }
        Expectation::Packets { kind, of, min, max } => {
            set(out, "kind", &quoted(kind.name()));
            if let Some(of) = of {
                set(out, "of", &file.node(*of));
            }
            number(out, "min", min);
            number(out, "max", max);
        }
        Expectation::Event { node, is, peer, after, within, min, max } => {
            if let Some(node) = node {
                let is_control = file.scenario.control.is_some() && *node == file.scenario.control_host();
                set(out, "node", &if is_control { quoted(CONTROL) } else { file.node(*node) });
            }
            set(out, "is", &quoted(is));
            if let Some(peer) = peer {
                set(out, "peer", &file.node(*peer));
            }
            since_start(out, "after", *after);
            time(out, "within", within);
            set(out, "min", &min.to_string());
            number(out, "max", max);
        }
        Expectation::State { node, is, after, within, hold, count } => {
            if let Some(node) = node {
                set(out, "node", &file.node(*node));
            }
            set(out, "is", &quoted(state_name(*is)));
            since_start(out, "after", *after);
            time(out, "within", within);
            always(out, *hold);
            number(out, "count", count);
        }
        Expectation::Acl { from, to, is, after, within, until } => {
            pair(out, from, to);
            let ruling = match is {
                Ruling::Allowed => "\"allowed\"",
                Ruling::Denied => "\"denied\"",
            };
            set(out, "is", ruling);
            since_start(out, "after", *after);
            set(out, "within", &duration(*within));
            if let Some(until) = until {
                set(out, "until", &instant(*until));
            }
        }
        Expectation::Invariants { all } => {
            let names: Vec<_> = all.iter().map(|id| quoted(id.name())).collect();
            set(out, "all", &format!("[{}]", names.join(", ")));
        }
    }
    Ok(())
}

fn always(out: &mut String, hold: Hold) {
    if hold == Hold::Always {
        set(out, "always", "true");
    }
}
