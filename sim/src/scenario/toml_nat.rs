//! NATs and firewalls in scenario files: a profile, or a profile and what differs from it.

use core::ops::Range;

use ::toml::de::DeValue;

use crate::net::{
    firewall::{self, FirewallParams},
    nat::{
        Alloc, Assignment, Collision, EarlyInbound, Filter, FilterScope, FullPolicy, Hairpin, Mapping, NatParams,
        Pairing, Pool, PortBlock, PortRange, Refresh, Ttl,
    },
    nat_presets,
};

use super::{
    ScenarioError,
    read::{Reader, Value, nearest},
    toml::DURATION,
    value,
};

type Result<T> = core::result::Result<T, ScenarioError>;

/// The parameters of a NAT. `profile` is not one of them.
const KEYS: [&str; 25] = [
    "mapping",
    "filter",
    "filter_scope",
    "alloc",
    "port_range",
    "collision",
    "reuse_newest",
    "pool",
    "port_block",
    "per_host_limit",
    "table_max",
    "full_policy",
    "timeout_unreplied",
    "timeout_replied",
    "timeout_stream",
    "stream_after",
    "refresh_out",
    "refresh_in",
    "filter_refresh_in",
    "expiry_keeps_port",
    "early_inbound",
    "hairpin",
    "ttl_decrement",
    "timeout_tcp",
    "profile",
];

/// Parameters of a NAT that the format has and this build has not, for want of packets that they are about.
const NOT_BUILT: [&str; 6] = ["icmp", "fragments", "df_too_big", "dscp_ecn", "tcp", "portmap"];

/// The NATs that `nat` of a net names, from the hosts outwards: one, or two of one name.
pub(super) fn nats<'t>(reader: &Reader<'_, 't>, value: &Value<'t>) -> Result<Vec<NatParams>> {
    if let Some(series) = value.get_ref().as_str().and_then(NatParams::series) {
        return Ok(series.to_vec());
    }
    if let Some(name) = value.get_ref().as_str() {
        return Ok(vec![profile(reader, value.span(), name)?]);
    }
    let table = nat_reader(reader, value, &KEYS)?;
    let base = profile(reader, table.require("profile")?.span(), table.require_text("profile")?)?;
    Ok(vec![overridden(&table, base)?])
}

/// What a NAT that is `base` becomes when an event sets what `value` says.
pub(super) fn changed<'t>(reader: &Reader<'_, 't>, value: &Value<'t>, base: NatParams) -> Result<NatParams> {
    let table = nat_reader(reader, value, &KEYS[..KEYS.len() - 1])?;
    let params = overridden(&table, base)?;
    if let (Some(pool), true) = (table.get("pool"), params.pool.addresses != base.pool.addresses) {
        return Err(reader.source.error(pool.span(), "a running NAT keeps the number of its addresses"));
    }
    Ok(params)
}

/// The firewall that `key` names.
pub(super) fn firewall(reader: &Reader<'_, '_>, key: &str) -> Result<Option<FirewallParams>> {
    let (Some(value), Some(name)) = (reader.get(key), reader.text(key)?) else { return Ok(None) };
    if let Some(params) = FirewallParams::preset(name) {
        return Ok(Some(params));
    }
    if let Some((_, needs)) = firewall::NOT_BUILT.iter().find(|(other, _)| *other == name) {
        let message = format!("the firewall `{name}` is not built yet: it is about {needs}");
        return Err(reader.source.error(value.span(), message));
    }
    let names: Vec<_> = FirewallParams::presets().collect();
    let mut error = reader.source.error(value.span(), format!("no firewall is called `{name}`"));
    error.hint = Some(nearest(name, &names));
    Err(error)
}

fn profile(reader: &Reader<'_, '_>, span: Range<usize>, name: &str) -> Result<NatParams> {
    if let Some(params) = NatParams::preset(name) {
        return Ok(params);
    }
    let is_known = nat_presets::NOT_BUILT.contains(&name) || name == nat_presets::PHONE_HOTSPOT;
    if name == nat_presets::PHONE_HOTSPOT {
        let message = format!("`{name}` is two NATs; write two nets, one `behind` the other, to change either");
        return Err(reader.source.error(span, message));
    }
    let message = if is_known {
        format!("this simulator has no NAT profile `{name}` yet")
    } else {
        format!("no NAT profile is called `{name}`")
    };
    let mut error = reader.source.error(span, message);
    let names: Vec<_> = NatParams::presets().chain([nat_presets::PHONE_HOTSPOT]).collect();
    error.hint = Some(if is_known { format!("there are: {}", names.join(", ")) } else { nearest(name, &names) });
    Err(error)
}

fn nat_reader<'r, 't>(reader: &Reader<'_, 't>, value: &'r Value<'t>, keys: &[&str]) -> Result<Reader<'r, 't>> {
    if let DeValue::Table(entries) = value.get_ref() {
        let not_built = entries.keys().filter(|key| NOT_BUILT.contains(&key.get_ref().as_ref()));
        if let Some(key) = not_built.min_by_key(|key| key.span().start) {
            let message = format!("`{}` of a NAT is not built yet: nothing that it is about is sent", key.get_ref());
            return Err(reader.source.error(key.span(), message));
        }
    }
    Reader::of_value(reader.source, value, "a NAT", keys)
}

fn overridden(table: &Reader<'_, '_>, base: NatParams) -> Result<NatParams> {
    let mut params = base;
    let mappings = [
        ("eim", Mapping::EndpointIndependent),
        ("adm", Mapping::AddressDependent),
        ("apdm", Mapping::AddressAndPortDependent),
    ];
    choose(table, "mapping", &mappings, &mut params.mapping)?;
    let filters = [
        ("eif", Filter::EndpointIndependent),
        ("adf", Filter::AddressDependent),
        ("apdf", Filter::AddressAndPortDependent),
    ];
    choose(table, "filter", &filters, &mut params.filter)?;
    let scopes = [("per-mapping", FilterScope::Mapping), ("per-internal-endpoint", FilterScope::InternalEndpoint)];
    choose(table, "filter_scope", &scopes, &mut params.filter_scope)?;
    alloc(table, &mut params.alloc)?;
    let range = "\"linux\" or a range of ports as \"1024-65535\"";
    params.port_range = table.parsed("port_range", port_range, range)?.unwrap_or(params.port_range);
    let collisions = [
        ("remap-flow", Collision::RemapFlow),
        ("remap-endpoint", Collision::RemapEndpoint),
        ("overload", Collision::Overload),
        ("drop", Collision::Drop),
    ];
    choose(table, "collision", &collisions, &mut params.collision)?;
    flag(table, "reuse_newest", &mut params.reuse_newest)?;
    if let Some(value) = table.get("pool") {
        params.pool = pool(table, value, params.pool)?;
    }
    if let Some(value) = table.get("port_block") {
        params.port_block = Some(port_block(table, value)?);
    }
    let limit = table.integer("per_host_limit", 1..1 << 24)?;
    params.per_host_limit = limit.map(|limit| limit as usize).or(params.per_host_limit);
    if let Some(sessions) = table.integer("table_max", 1..1 << 24)? {
        params.table_max = sessions as usize;
    }
    let policies = [
        ("drop-new", FullPolicy::DropNew),
        ("evict-lru", FullPolicy::EvictLru),
        ("evict-unreplied", FullPolicy::EvictUnreplied),
        ("evict-random", FullPolicy::EvictRandom),
    ];
    choose(table, "full_policy", &policies, &mut params.full_policy)?;
    for (key, field) in [
        ("timeout_unreplied", &mut params.timeout_unreplied),
        ("timeout_replied", &mut params.timeout_replied),
        ("timeout_stream", &mut params.timeout_stream),
        ("stream_after", &mut params.stream_after),
        ("timeout_tcp", &mut params.timeout_tcp),
    ] {
        *field = table.parsed(key, value::duration, DURATION)?.unwrap_or(*field);
    }
    for (key, field) in [
        ("refresh_out", &mut params.refresh_out),
        ("refresh_in", &mut params.refresh_in),
        ("filter_refresh_in", &mut params.filter_refresh_in),
    ] {
        let mut refreshes = *field == Refresh::Yes;
        flag(table, key, &mut refreshes)?;
        *field = if refreshes { Refresh::Yes } else { Refresh::No };
    }
    flag(table, "expiry_keeps_port", &mut params.expiry_keeps_port)?;
    let early =
        [("ignore", EarlyInbound::Ignore), ("clash", EarlyInbound::Clash), ("answer-icmp", EarlyInbound::AnswerIcmp)];
    choose(table, "early_inbound", &early, &mut params.early_inbound)?;
    let hairpins =
        [("off", Hairpin::Off), ("internal-src", Hairpin::InternalSource), ("external-src", Hairpin::ExternalSource)];
    choose(table, "hairpin", &hairpins, &mut params.hairpin)?;
    let mut decrements = params.ttl == Ttl::Decrement;
    flag(table, "ttl_decrement", &mut decrements)?;
    params.ttl = if decrements { Ttl::Decrement } else { Ttl::Keep };
    fits(table, &params)?;
    Ok(params)
}

fn alloc(table: &Reader<'_, '_>, field: &mut Alloc) -> Result<()> {
    let kinds = [
        ("preserve", Alloc::Preserve),
        ("preserve-or-random", Alloc::PreserveOrRandom),
        ("sequential", Alloc::Sequential { delta: 1, jitter: 0 }),
        ("random", Alloc::Random),
        ("contiguous-block", Alloc::ContiguousBlock),
        ("parity", Alloc::Parity),
    ];
    let Some(value) = table.get("alloc") else { return Ok(()) };
    if !matches!(value.get_ref(), DeValue::Table(_)) {
        return choose(table, "alloc", &kinds, field);
    }
    let table = Reader::of_value(table.source, value, "an allocation", &["kind", "delta", "jitter"])?;
    table.require("kind")?;
    choose(&table, "kind", &kinds, field)?;
    let steps = [table.integer("delta", 1..1024)?, table.integer("jitter", 0..1024)?];
    if let Alloc::Sequential { delta, jitter } = field {
        *delta = steps[0].map_or(*delta, |step| step as u16);
        *jitter = steps[1].map_or(*jitter, |step| step as u16);
    } else if steps != [None, None] {
        return Err(table.error("only `sequential` has a `delta` and a `jitter`"));
    }
    Ok(())
}

fn pool<'t>(table: &Reader<'_, 't>, value: &Value<'t>, base: Pool) -> Result<Pool> {
    let table = Reader::of_value(table.source, value, "a pool", &["addresses", "pairing"])?;
    let mut pool = base;
    if let Some(addresses) = table.integer("addresses", 1..257)? {
        pool.addresses = addresses as u16;
    }
    let pairings = [("paired", Pairing::Paired), ("arbitrary", Pairing::Arbitrary)];
    choose(&table, "pairing", &pairings, &mut pool.pairing)?;
    Ok(pool)
}

fn port_block<'t>(table: &Reader<'_, 't>, value: &Value<'t>) -> Result<PortBlock> {
    let table = Reader::of_value(table.source, value, "a block of ports", &["size", "max_blocks", "assignment"])?;
    table.require("size")?;
    let size = table.integer("size", 1..32_769)?.unwrap_or(1) as u16;
    let max_blocks = table.integer("max_blocks", 1..1025)?.unwrap_or(1) as u16;
    let mut assignment = Assignment::Dynamic;
    let assignments = [("static", Assignment::Static), ("dynamic", Assignment::Dynamic)];
    choose(&table, "assignment", &assignments, &mut assignment)?;
    Ok(PortBlock { size, max_blocks, assignment })
}

/// Blocks that the range does not hold are no blocks.
fn fits(table: &Reader<'_, '_>, params: &NatParams) -> Result<()> {
    let value = table.get("port_block").or_else(|| table.get("port_range"));
    let (Some(value), Some(block)) = (value, params.port_block) else { return Ok(()) };
    let ports = match params.port_range {
        PortRange::LinuxClasses => 64_512,
        PortRange::Within(low, high) => u32::from(high - low) + 1,
    };
    if u32::from(block.size) * u32::from(block.max_blocks) > ports {
        return Err(table.source.error(value.span(), format!("one host's blocks are more than the {ports} ports")));
    }
    Ok(())
}

fn port_range(text: &str) -> Option<PortRange> {
    if text == "linux" {
        return Some(PortRange::LinuxClasses);
    }
    let (low, high) = text.split_once('-')?;
    let (low, high) = (low.parse::<u16>().ok()?, high.parse::<u16>().ok()?);
    (0 < low && low <= high).then_some(PortRange::Within(low, high))
}

fn choose<T: Copy>(table: &Reader<'_, '_>, key: &str, choices: &[(&str, T)], field: &mut T) -> Result<()> {
    *field = table.choice(key, choices)?.unwrap_or(*field);
    Ok(())
}

fn flag(table: &Reader<'_, '_>, key: &str, field: &mut bool) -> Result<()> {
    if table.get(key).is_some() {
        *field = table.bool(key)?;
    }
    Ok(())
}
