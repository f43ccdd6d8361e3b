//! The `[[expect]]` tables of scenario files.

use core::{ops::Range, time::Duration};

use ::toml::de::DeValue;
use mesh_core::time::Instant;

use crate::{
    check::{CheckId, Expectation, Held, Hold, PathIs, Technique},
    host::{NodeEvent, Over},
    kernel::dice::Probability,
    net::PacketKind,
};

use super::{
    CONTROL, ExpectSpec, ScenarioError,
    read::{Reader, Value, nearest},
    toml::{DURATION, File, SHARE},
    value,
};

/// Expectations that the format has and this build has not.
const NOT_BUILT: &[&str] = &["goodput", "probe_delay", "converged", "resource", "dns", "trace", "matrix"];

/// The expectations of this build with their keys.
const EXPECTATIONS: &[(&str, &[&str])] = &[
    ("delivered", &["from", "to", "after", "within", "never", "via"]),
    ("path", &["between", "is", "at", "after", "within", "always", "technique"]),
    ("outage", &["from", "to", "max", "outside"]),
    ("rtt", &["from", "to", "after", "p50", "p99", "max"]),
    ("loss", &["from", "to", "after", "max", "min"]),
    ("packets", &["kind", "of", "min", "max"]),
    ("event", &["node", "is", "peer", "after", "within", "min", "max", "never"]),
    ("state", &["node", "is", "after", "within", "always", "count"]),
    ("acl", &["from", "to", "is", "after", "within", "until"]),
    ("invariants", &["all"]),
];

/// Keys that every expectation has.
const COMMON: [&str; 2] = ["that", "min_rate"];

type Result<T> = core::result::Result<T, ScenarioError>;

impl<'t> File<'t> {
    pub(super) fn expect(&mut self, table: &Value<'t>) -> Result<()> {
        let source = self.source;
        let DeValue::Table(entries) = table.get_ref() else {
            return Err(source.error(table.span(), "an expectation is a table"));
        };
        let Some(that) = entries.get("that") else {
            let mut error = source.error(table.span(), "an expectation needs the key `that`");
            error.hint = entries.keys().next().map(|key| nearest(key.get_ref(), &["that"]));
            return Err(error);
        };
        let kind = that.get_ref().as_str().unwrap_or_default();
        if NOT_BUILT.contains(&kind) {
            return Err(source.error(that.span(), format!("expectations of `{kind}` are not built yet")));
        }
        let Some((_, keys)) = EXPECTATIONS.iter().find(|(name, _)| *name == kind) else {
            let names: Vec<_> = EXPECTATIONS.iter().map(|(name, _)| *name).collect();
            let mut error = source.error(that.span(), format!("nothing is known about `that = \"{kind}\"`"));
            error.hint = Some(nearest(kind, &names));
            return Err(error);
        };
        let keys: Vec<_> = keys.iter().chain(&COMMON).copied().collect();
        let reader = Reader::of_value(source, table, "this expectation", &keys)?;
        let expectation = match kind {
            "delivered" => self.delivered(&reader)?,
            "path" => self.path(&reader)?,
            "outage" => self.outage(&reader)?,
            "rtt" => self.rtt(&reader)?,
            "loss" => self.loss(&reader)?,
            "packets" => self.packets(&reader)?,
            "event" => self.node_event(&reader)?,
            "state" => self.state_expected(&reader)?,
            "acl" => self.acl_expected(&reader)?,
            _ => invariants(&reader)?,
        };
        let min_rate = reader.number("min_rate", value::share, SHARE)?.unwrap_or(Probability::ONE);
        self.scenario.expects.push(ExpectSpec { line: Some(reader.line()), expectation, min_rate });
        Ok(())
    }

    fn delivered(&self, reader: &Reader<'_, '_>) -> Result<Expectation> {
        let via = reader.choice("via", &[("direct", Over::Udp), ("relay", Over::Relay)])?;
        if let (Some(Over::Relay), Some(value), true) = (via, reader.get("via"), self.scenario.relays.is_empty()) {
            return Err(reader.source.error(value.span(), "there is no relay"));
        }
        let (from, to) = self.pair(reader, "from", "to")?;
        let held = if reader.bool("never")? { Held::Never } else { Held::Once };
        let within = duration(reader, "within")?;
        Ok(Expectation::Delivered { from, to, after: after(reader)?, within, held, via })
    }

    fn path(&self, reader: &Reader<'_, '_>) -> Result<Expectation> {
        let nodes = reader.texts("between")?;
        let [(first_at, first), (second_at, second)] = nodes.as_slice() else {
            return Err(reader.error("`between` names two nodes"));
        };
        let first = self.node_called(reader, first_at.clone(), first)?;
        let second = self.node_called(reader, second_at.clone(), second)?;
        if first == second {
            return Err(reader.source.error(second_at.clone(), "`between` names two nodes, not one twice"));
        }
        reader.require("is")?;
        let is =
            reader.choice("is", &[("direct", PathIs::Direct), ("relay", PathIs::Relay), ("none", PathIs::None)])?;
        let timed = ["at", "after", "always"].iter().find_map(|key| reader.get(key));
        if let (Some(value), true) = (timed, self.scenario.relays.is_empty()) {
            return Err(reader
                .source
                .error(value.span(), "nodes say which way they speak in worlds with relays alone"));
        }
        if is == Some(PathIs::Relay) && self.scenario.relays.is_empty() {
            return Err(reader.error("there is no relay"));
        }
        let technique = reader
            .texts("technique")?
            .into_iter()
            .map(|(span, name)| technique(reader, span, name))
            .collect::<Result<_>>()?;
        let at = reader.parsed("at", value::instant, DURATION)?;
        if at.is_some() && (reader.get("after").is_some() || reader.get("within").is_some()) {
            return Err(reader.error("`at` is an instant; `after` and `within` are a time"));
        }
        let within = if at.is_some() { Some(Duration::ZERO) } else { duration(reader, "within")? };
        Ok(Expectation::Path {
            between: [first, second],
            is: is.unwrap_or(PathIs::Direct),
            after: at.map_or_else(|| after(reader), Ok)?,
            within,
            hold: if reader.bool("always")? { Hold::Always } else { Hold::Once },
            technique,
        })
    }

    fn outage(&self, reader: &Reader<'_, '_>) -> Result<Expectation> {
        let (from, to) = self.pair(reader, "from", "to")?;
        reader.require("max")?;
        let max = duration(reader, "max")?.unwrap_or_default();
        let outside = reader
            .texts("outside")?
            .into_iter()
            .map(|(span, text)| {
                value::window(text).ok_or_else(|| reader.source.error(span, "a window is \"180s..275s\""))
            })
            .collect::<Result<_>>()?;
        Ok(Expectation::Outage { from, to, max, outside })
    }

    fn rtt(&self, reader: &Reader<'_, '_>) -> Result<Expectation> {
        let (from, to) = self.pair(reader, "from", "to")?;
        let (p50, p99, max) = (duration(reader, "p50")?, duration(reader, "p99")?, duration(reader, "max")?);
        if p50.is_none() && p99.is_none() && max.is_none() {
            return Err(reader.error("an expectation of `rtt` needs `p50`, `p99` or `max`"));
        }
        Ok(Expectation::Rtt { from, to, after: after(reader)?, p50, p99, max })
    }

    fn loss(&self, reader: &Reader<'_, '_>) -> Result<Expectation> {
        let (from, to) = self.pair(reader, "from", "to")?;
        let max = reader.number("max", value::share, SHARE)?;
        let min = reader.number("min", value::share, SHARE)?;
        if max.is_none() && min.is_none() {
            return Err(reader.error("an expectation of `loss` needs `max` or `min`"));
        }
        Ok(Expectation::Loss { from, to, after: after(reader)?, max, min })
    }

    fn packets(&self, reader: &Reader<'_, '_>) -> Result<Expectation> {
        reader.require("kind")?;
        let kinds = [PacketKind::WireguardHandshake, PacketKind::WireguardData, PacketKind::Disco, PacketKind::Stun]
            .map(|kind| (kind.name(), kind));
        let kind = reader.choice("kind", &kinds)?.unwrap_or(PacketKind::WireguardData);
        let of = reader.get("of").map(|_| self.node_named(reader, "of")).transpose()?;
        let (min, max) = (count(reader, "min")?, count(reader, "max")?);
        if min.is_none() && max.is_none() {
            return Err(reader.error("an expectation of `packets` needs `min` or `max`"));
        }
        Ok(Expectation::Packets { kind, of, min, max })
    }

    fn node_event(&self, reader: &Reader<'_, '_>) -> Result<Expectation> {
        reader.require("is")?;
        let names: Vec<_> = NodeEvent::NAMES.iter().map(|name| (*name, *name)).collect();
        let is = reader.choice("is", &names)?.unwrap_or_default();
        let node = match reader.text("node")? {
            Some(CONTROL) if self.scenario.control.is_some() => Some(self.scenario.control_host()),
            Some(_) => Some(self.node_named(reader, "node")?),
            None => None,
        };
        let peer = reader.get("peer").map(|_| self.node_named(reader, "peer")).transpose()?;
        let max = if reader.bool("never")? { Some(0) } else { count(reader, "max")? };
        let min = count(reader, "min")?.unwrap_or(u64::from(max != Some(0)));
        let within = duration(reader, "within")?;
        Ok(Expectation::Event { node, is, peer, after: after(reader)?, within, min, max })
    }
}

fn invariants(reader: &Reader<'_, '_>) -> Result<Expectation> {
    let mut all = Vec::new();
    for (span, pattern) in reader.texts("all")? {
        let ids = CheckId::matching(pattern);
        if ids.is_empty() {
            let names: Vec<_> = CheckId::ALL.iter().map(|id| id.name()).collect();
            let mut error = reader.source.error(span, format!("no invariant is called `{pattern}`"));
            error.hint = Some(format!("there are: {}", names.join(", ")));
            return Err(error);
        }
        all.extend(ids);
    }
    if all.is_empty() {
        return Err(reader.error("`all` lists at least one invariant"));
    }
    Ok(Expectation::Invariants { all })
}

pub(super) fn after(reader: &Reader<'_, '_>) -> Result<Instant> {
    Ok(reader.parsed("after", value::instant, DURATION)?.unwrap_or(Instant::ZERO))
}

pub(super) fn duration(reader: &Reader<'_, '_>, key: &str) -> Result<Option<Duration>> {
    reader.parsed(key, value::duration, DURATION)
}

fn count(reader: &Reader<'_, '_>, key: &str) -> Result<Option<u64>> {
    reader.integer(key, 0..1 << 53)
}

fn technique(reader: &Reader<'_, '_>, span: Range<usize>, name: &str) -> Result<Technique> {
    Technique::ALL.into_iter().find(|technique| technique.name() == name).ok_or_else(|| {
        let mut error = reader.source.error(span, format!("no technique `{name}` is built yet"));
        let names: Vec<_> = Technique::ALL.iter().map(|technique| technique.name()).collect();
        error.hint = Some(format!("there are: {}", names.join(", ")));
        error
    })
}
