//! Scenario files. Every mistake is told with its line and column, and with the key or name that was probably
//! meant; what the format has and this build has not is told as just that.

use core::time::Duration;

use ::toml::de::{DeTable, DeValue};
use control::policy::Policy;
use mesh_core::time::Instant;

use crate::{
    check::PolicyText,
    host::{
        HostId, KeySetup,
        message::{MAX_BYTES, MIN_BYTES},
    },
    net::{
        NetId, NetSetup,
        link::{LinkParams, Loss},
    },
};

use super::{
    DEFAULT_PORT, Endpoint, Maps, NetSpec, NodeSpec, PeerSpec, Scenario, ScenarioError, TrafficKind, TrafficSpec,
    default_user,
    read::{Reader, Source, Value, nearest},
    toml_control, toml_nat, toml_world, value,
};

pub(super) const DURATION: &str = "a duration as \"250ms\", \"1.5s\" or \"10m\"";
pub(super) const SHARE: &str = "a share from 0 to 1";

/// Nodes of one table at most.
const NODES_MAX: u64 = 100_001;

/// Keys at the top that the format has and this build has not.
const NOT_BUILT: &[(&str, &str)] = &[("matrix", "the matrix"), ("generate", "generated worlds"), ("phases", "phases")];

/// Reads a scenario file.
///
/// # Errors
/// The first mistake, with its place.
pub fn parse(text: &str) -> Result<Scenario, ScenarioError> {
    parse_with(text, |_| None, |_| None)
}

/// The same for a file whose `seeds` may be `env:NAME`, which `variable` is asked for, and that may name other files,
/// which `file` is asked for.
///
/// # Errors
/// The first mistake, with its place.
pub fn parse_with(
    text: &str,
    variable: impl Fn(&str) -> Option<String>,
    file: impl Fn(&str) -> Option<String>,
) -> Result<Scenario, ScenarioError> {
    let source = Source(text);
    let table = DeTable::parse(text).map_err(|error| {
        source.error(error.span().unwrap_or(0..0), format!("not TOML: {}", error.message().replace('\n', ", ")))
    })?;
    for (key, what) in NOT_BUILT {
        if let Some((key, _)) = table.get_ref().iter().find(|(name, _)| name.get_ref() == key) {
            return Err(source.error(key.span(), format!("{what} are not built yet")));
        }
    }
    let keys = [
        "schema", "name", "seeds", "duration", "maps", "policy", "region", "relay", "resolver", "control", "key",
        "net", "node", "peer", "traffic", "event", "expect",
    ];
    let top = Reader::new(source, table.get_ref(), 0..0, "a scenario", &keys)?;
    if top.require("schema")?.get_ref().as_integer().is_none_or(|number| number.as_str() != "1") {
        return Err(source.error(top.require("schema")?.span(), "this simulator reads `schema = 1`"));
    }
    let (scenario, regions, keys) = Default::default();
    let mut file = File { source, scenario, regions, keys, file: &file };
    file.scenario.name = top.require_text("name")?.to_owned();
    file.scenario.seeds = seeds(&top, variable)?;
    top.require("duration")?;
    file.scenario.duration = top.parsed("duration", value::duration, DURATION)?.unwrap_or_default();
    file.scenario.maps = top.choice("maps", &[("live", Maps::Live), ("static", Maps::Static)])?.unwrap_or_default();
    file.scenario.policy = top.text("policy")?.map(|text| policy(&top, "policy", text)).transpose()?;
    if let Some(regions) = top.get("region") {
        file.regions(regions)?;
    }
    for table in top.tables("key")? {
        file.auth_key(table)?;
    }
    for table in top.tables("net")? {
        file.net(table)?;
    }
    for table in top.tables("node")? {
        file.node(table)?;
    }
    for table in top.tables("relay")? {
        file.relay(table)?;
    }
    if let Some(resolver) = top.get("resolver") {
        file.resolver(resolver)?;
    }
    for table in top.tables("peer")? {
        file.peer(table)?;
    }
    if let Some(control) = top.get("control") {
        file.control(control)?;
    }
    if let Some(policy) = top.get("policy").filter(|_| file.scenario.policy_is_unused()) {
        return Err(source.error(
            policy.span(),
            "a policy counts in a world with relays, maps and no `[[peer]]` alone; `[control]` has its own",
        ));
    }
    for table in top.tables("traffic")? {
        file.traffic(table)?;
    }
    for table in top.tables("event")? {
        file.event(table)?;
    }
    for table in top.tables("expect")? {
        file.expect(table)?;
    }
    if file.scenario.expects.is_empty() {
        let mut error = source.error(0..0, "the scenario expects nothing, so it cannot fail");
        error.hint = Some("write at least one `[[expect]]`".to_owned());
        return Err(error);
    }
    Ok(file.scenario)
}

/// A file that is being read.
pub(super) struct File<'t> {
    pub(super) source: Source<'t>,
    pub(super) scenario: Scenario,
    /// Names of regions; the first has number 1.
    pub(super) regions: Vec<String>,
    /// Auth keys.
    pub(super) keys: Vec<KeySetup>,
    /// The text of another file.
    pub(super) file: &'t dyn Fn(&str) -> Option<String>,
}

impl<'t> File<'t> {
    fn net(&mut self, table: &Value<'t>) -> Result<(), ScenarioError> {
        let reader = Reader::of_value(
            self.source,
            table,
            "a net",
            &["name", "nat", "firewall", "behind", "link", "ipv6", "region"],
        )?;
        let name = reader.require_text("name")?.to_owned();
        self.unused(&reader, &name, self.scenario.nets.iter().map(|net| net.name.as_str()))?;
        let link = match reader.get("link") {
            Some(value) => link(&reader, value, LinkParams::LAN)?,
            None => LinkParams::LAN,
        };
        let mut behind = reader.get("behind").map(|_| self.net_named(&reader, "behind")).transpose()?;
        let firewall = toml_nat::firewall(&reader, "firewall")?;
        let (ipv6, region) = (toml_world::ipv6(&reader)?, self.region(&reader)?);
        let nats = reader.get("nat").map(|value| toml_nat::nats(&reader, value)).transpose()?.unwrap_or_default();
        if let (Some(value), true) = (reader.get("behind"), nats.is_empty()) {
            return Err(reader.source.error(value.span(), "a net behind another needs a NAT"));
        }
        // Of two in series the outer one is a net of its own, right at the inner one's access link.
        for outer in nats.iter().skip(1).rev() {
            let setup = NetSetup { link: LinkParams::PERFECT, nat: Some(*outer), behind, region, ..NetSetup::PUBLIC };
            behind = Some(NetId(self.scenario.nets.len() as u32));
            self.scenario.nets.push(NetSpec { name: format!("{name}/{}", outer.profile), setup });
        }
        let setup = NetSetup { link, nat: nats.first().copied(), firewall, behind, ipv6, region };
        self.scenario.nets.push(NetSpec { name, setup });
        Ok(())
    }

    fn node(&mut self, table: &Value<'t>) -> Result<(), ScenarioError> {
        let keys = ["name", "net", "port", "user", "tags", "count", "start", "key"];
        let reader = Reader::of_value(self.source, table, "a node", &keys)?;
        let stem = reader.require_text("name")?;
        let net = self.net_named(&reader, "net")?;
        let port = reader.integer("port", 1..65_536)?.map_or(DEFAULT_PORT, |port| port as u16);
        let start = reader.parsed("start", value::instant, DURATION)?.unwrap_or(Instant::ZERO);
        let key = self.key_named(&reader)?;
        let count = reader.integer("count", 1..NODES_MAX)?;
        for number in 1..=count.unwrap_or(1) {
            let name = if count.is_some() { format!("{stem}-{number}") } else { stem.to_owned() };
            self.unused(&reader, &name, self.scenario.nodes.iter().map(|node| node.name.as_str()))?;
            let user = reader.text("user")?.map_or_else(|| default_user(&name), str::to_owned);
            let (tags, key) = (toml_control::tags(&reader)?, key.clone());
            self.scenario.nodes.push(NodeSpec { name, net, port, user, tags, start, key });
        }
        Ok(())
    }

    fn peer(&mut self, table: &Value<'t>) -> Result<(), ScenarioError> {
        let keys = ["of", "is", "endpoint", "keepalive"];
        let reader = Reader::of_value(self.source, table, "a peer", &keys)?;
        let (of, is) = self.pair(&reader, "of", "is")?;
        if self.scenario.peers.iter().any(|peer| (peer.of, peer.is) == (of, is)) {
            return Err(reader.error("this peer is listed twice"));
        }
        let endpoint = if reader.bool("endpoint")? { Endpoint::Told } else { Endpoint::Unknown };
        let keepalive = reader.parsed("keepalive", positive, DURATION)?;
        self.scenario.peers.push(PeerSpec { of, is, endpoint, keepalive });
        Ok(())
    }

    fn traffic(&mut self, table: &Value<'t>) -> Result<(), ScenarioError> {
        let keys = ["kind", "from", "to", "every", "start", "stop", "size", "answer"];
        let reader = Reader::of_value(self.source, table, "traffic", &keys)?;
        if reader.text("kind")? == Some("bulk") {
            return Err(reader.error("traffic of kind `bulk` is not built yet; there are `ping` and `request`"));
        }
        reader.require("kind")?;
        let kinds = [("ping", TrafficKind::Ping), ("request", TrafficKind::Request)];
        let kind = reader.choice("kind", &kinds)?.unwrap_or(TrafficKind::Ping);
        let (from, to) = self.pair(&reader, "from", "to")?;
        reader.require("every")?;
        let every = reader.parsed("every", positive, DURATION)?.unwrap_or(Duration::MAX);
        let start = reader.parsed("start", value::instant, DURATION)?.unwrap_or(Instant::ZERO);
        let stop = reader.parsed("stop", value::instant, DURATION)?;
        let sizes = MIN_BYTES as u64..MAX_BYTES as u64 + 1;
        let bytes = reader.integer("size", sizes.clone())?.map_or(56, |size| size as usize);
        let answer = reader.integer("answer", sizes)?.map(|size| size as usize);
        if let (TrafficKind::Ping, Some(value)) = (kind, reader.get("answer")) {
            return Err(reader.source.error(value.span(), "the answer to a ping is as long as the ping"));
        }
        let answer_bytes = answer.unwrap_or(bytes);
        self.scenario.traffic.push(TrafficSpec { kind, from, to, every, start, stop, bytes, answer_bytes });
        Ok(())
    }

    pub(super) fn pair(&self, reader: &Reader<'_, '_>, a: &str, b: &str) -> Result<(HostId, HostId), ScenarioError> {
        let pair = (self.node_named(reader, a)?, self.node_named(reader, b)?);
        if pair.0 == pair.1 {
            return Err(reader.source.error(reader.require(b)?.span(), format!("`{a}` and `{b}` are one node")));
        }
        Ok(pair)
    }

    pub(super) fn node_named(&self, reader: &Reader<'_, '_>, key: &str) -> Result<HostId, ScenarioError> {
        let name = reader.require_text(key)?;
        self.node_called(reader, reader.require(key)?.span(), name)
    }

    pub(super) fn node_called(
        &self,
        reader: &Reader<'_, '_>,
        span: core::ops::Range<usize>,
        name: &str,
    ) -> Result<HostId, ScenarioError> {
        let names: Vec<_> = self.scenario.nodes.iter().map(|node| node.name.as_str()).collect();
        let index = found(reader, span, "node", name, &names)?;
        Ok(HostId(index))
    }

    pub(super) fn net_named(&self, reader: &Reader<'_, '_>, key: &str) -> Result<NetId, ScenarioError> {
        let name = reader.require_text(key)?;
        let names: Vec<_> = self.scenario.nets.iter().map(|net| net.name.as_str()).collect();
        Ok(NetId(found(reader, reader.require(key)?.span(), "net", name, &names)?))
    }

    pub(super) fn unused<'n>(
        &self,
        reader: &Reader<'_, '_>,
        name: &str,
        mut others: impl Iterator<Item = &'n str>,
    ) -> Result<(), ScenarioError> {
        if others.any(|other| other == name) {
            return Err(reader.source.error(reader.require("name")?.span(), format!("`{name}` exists already")));
        }
        Ok(())
    }
}

fn seeds(top: &Reader<'_, '_>, variable: impl Fn(&str) -> Option<String>) -> Result<Vec<u64>, ScenarioError> {
    let value = top.require("seeds")?;
    let wrong = |message: String| top.source.error(value.span(), message);
    match value.get_ref() {
        DeValue::String(text) => match text.strip_prefix("env:") {
            None => value::parse_seeds(text).map_err(wrong),
            Some(name) => {
                let text = variable(name).ok_or_else(|| wrong(format!("the variable `{name}` is not set")))?;
                value::parse_seeds(&text).map_err(|message| wrong(format!("in the variable `{name}`: {message}")))
            }
        },
        DeValue::Array(items) if !items.is_empty() => items
            .iter()
            .map(|item| {
                let number = item.get_ref().as_integer().and_then(|number| number.as_str().parse().ok());
                number.ok_or_else(|| top.source.error(item.span(), "a seed is a whole number"))
            })
            .collect(),
        _ => Err(wrong("`seeds` is a range as \"0..200\" or a list of numbers".to_owned())),
    }
}

/// The text of a policy that both the server's half and the checks understand.
pub(super) fn policy(reader: &Reader<'_, '_>, key: &str, text: &str) -> Result<String, ScenarioError> {
    let span = reader.require(key)?.span();
    let wrong = |message: String| reader.source.error(span.clone(), format!("the policy: {message}"));
    let policy = Policy::parse(text).map_err(|problems| wrong(problems.to_string().replace('\n', "; ")))?;
    if let Some(unbuilt) = policy.unbuilt().first() {
        return Err(wrong(format!("{} is not built", unbuilt.name)));
    }
    PolicyText::parse(text).map_err(wrong)?;
    Ok(text.to_owned())
}

pub(super) fn link<'t>(
    reader: &Reader<'_, 't>,
    value: &Value<'t>,
    base: LinkParams,
) -> Result<LinkParams, ScenarioError> {
    let preset = |span, name: &str| {
        let names: Vec<_> = LinkParams::presets().collect();
        LinkParams::preset(name.strip_suffix("@1").unwrap_or(name)).ok_or_else(|| {
            let mut error = reader.source.error(span, format!("no link is called `{name}`"));
            error.hint = Some(nearest(name, &names));
            error
        })
    };
    if let Some(name) = value.get_ref().as_str() {
        return preset(value.span(), name);
    }
    let keys = ["preset", "delay", "jitter", "loss", "reorder", "duplicate", "corrupt", "rate", "queue", "mtu"];
    let table = Reader::of_value(reader.source, value, "a link", &keys)?;
    let mut params = match table.text("preset")? {
        Some(name) => preset(table.require("preset")?.span(), name)?,
        None => base,
    };
    if let Some(delay) = table.parsed("delay", value::duration, DURATION)? {
        params.delay = (delay, delay);
    }
    if let Some(jitter) = table.parsed("jitter", value::duration, DURATION)? {
        params.jitter = jitter;
    }
    if let Some(value) = table.get("loss") {
        params.loss = loss(&table, value)?;
    }
    params.reorder = table.number("reorder", value::share, SHARE)?.unwrap_or(params.reorder);
    params.duplicate = table.number("duplicate", value::share, SHARE)?.unwrap_or(params.duplicate);
    params.corrupt = table.number("corrupt", value::share, SHARE)?.unwrap_or(params.corrupt);
    if let Some(rate) = table.parsed("rate", value::rate, "a rate as \"20Mbit\" or \"256kbit\"")? {
        params.rate = Some(rate);
    }
    if let Some(bytes) = table.number("queue", value::bytes, "a size as 200000 or \"200kB\"")? {
        params.queue_bytes = bytes;
    }
    if let Some(bytes) = table.integer("mtu", 576..65_536)? {
        params.mtu_bytes = bytes as usize;
    }
    Ok(params)
}

fn loss<'t>(reader: &Reader<'_, 't>, value: &Value<'t>) -> Result<Loss, ScenarioError> {
    if !matches!(value.get_ref(), DeValue::Table(_)) {
        return Ok(Loss::Bernoulli(reader.number("loss", value::share, SHARE)?.unwrap_or_default()));
    }
    let table = Reader::of_value(reader.source, value, "loss", &["model", "mean", "burst"])?;
    table.require("model")?;
    table.choice("model", &[("gilbert-elliott", ())])?;
    table.require("mean")?;
    table.require("burst")?;
    let mean = table.number("mean", value::share, SHARE)?.unwrap_or_default();
    let burst = table.integer("burst", 1..100_000)?.map_or(1, |burst| burst as u32);
    Ok(Loss::Bursts { mean, burst })
}

pub(super) fn found(
    reader: &Reader<'_, '_>,
    span: core::ops::Range<usize>,
    what: &str,
    name: &str,
    names: &[&str],
) -> Result<u32, ScenarioError> {
    let index = names.iter().position(|other| *other == name);
    index.map(|index| index as u32).ok_or_else(|| {
        let mut error = reader.source.error(span, format!("no {what} is called `{name}`"));
        error.hint = (!names.is_empty()).then(|| nearest(name, names));
        error
    })
}

pub(super) fn positive(text: &str) -> Option<Duration> {
    value::duration(text).filter(|duration| !duration.is_zero())
}
