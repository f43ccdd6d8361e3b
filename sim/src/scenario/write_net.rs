//! Links and NATs written: a preset, and what differs from it.

use crate::net::{
    link::{LinkParams, Loss},
    nat::{
        Alloc, Assignment, Collision, EarlyInbound, Filter, FilterScope, FullPolicy, Hairpin, Mapping, NatParams,
        Pairing, PortRange, Refresh, Ttl,
    },
};

use super::write::{Result, duration, quoted, share};

/// A link: the preset that is nearest, and what differs from it.
pub(super) fn link(params: &LinkParams) -> Result<String> {
    let presets = LinkParams::presets().filter_map(|name| Some((name, LinkParams::preset(name)?)));
    let written = presets.filter_map(|(name, preset)| Some((name, link_keys(params, &preset)?)));
    match written.min_by_key(|(_, keys)| keys.len()) {
        None => Err("a link whose delay is a range of its own".to_owned()),
        Some((name, keys)) if keys.is_empty() => Ok(quoted(name)),
        Some((name, mut keys)) => {
            keys.insert(0, format!("preset = {}", quoted(name)));
            Ok(inline(&keys))
        }
    }
}

/// What turns `base` into a link; `None` when a file cannot say it.
fn link_keys(params: &LinkParams, base: &LinkParams) -> Option<Vec<String>> {
    let mut keys = Vec::new();
    if params.delay != base.delay {
        let (from, to) = params.delay;
        keys.push((from == to).then(|| format!("delay = {}", duration(from)))?);
    }
    if params.jitter != base.jitter {
        keys.push(format!("jitter = {}", duration(params.jitter)));
    }
    if params.loss != base.loss {
        keys.push(match params.loss {
            Loss::Bernoulli(mean) => format!("loss = {}", share(mean)),
            Loss::Bursts { mean, burst } => {
                format!("loss = {{ model = \"gilbert-elliott\", mean = {}, burst = {burst} }}", share(mean))
            }
        });
    }
    for (key, own, usual) in [
        ("reorder", params.reorder, base.reorder),
        ("duplicate", params.duplicate, base.duplicate),
        ("corrupt", params.corrupt, base.corrupt),
    ] {
        if own != usual {
            keys.push(format!("{key} = {}", share(own)));
        }
    }
    if params.rate != base.rate {
        keys.push(format!("rate = \"{}bit\"", params.rate?));
    }
    if params.queue_bytes != base.queue_bytes {
        keys.push(format!("queue = {}", params.queue_bytes));
    }
    if params.mtu_bytes != base.mtu_bytes {
        keys.push(format!("mtu = {}", params.mtu_bytes));
    }
    Some(keys)
}

/// A NAT: its profile, and what differs from it.
pub(super) fn nat(params: &NatParams) -> Result<String> {
    let base = NatParams::preset(params.profile).ok_or_else(|| format!("the NAT profile {:?}", params.profile))?;
    let mut keys = nat_keys(params, &base)?;
    if keys.is_empty() {
        return Ok(quoted(params.profile));
    }
    keys.insert(0, format!("profile = {}", quoted(params.profile)));
    Ok(inline(&keys))
}

/// What turns the NAT `base` into another.
pub(super) fn nat_change(params: &NatParams, base: &NatParams) -> Result<String> {
    Ok(inline(&nat_keys(params, base)?))
}

fn nat_keys(params: &NatParams, base: &NatParams) -> Result<Vec<String>> {
    let mut keys = Vec::new();
    let mut word = |key: &str, own: &'static str, usual: &'static str| {
        if own != usual {
            keys.push(format!("{key} = \"{own}\""));
        }
    };
    word("mapping", mapping(params.mapping), mapping(base.mapping));
    word("filter", filter(params.filter), filter(base.filter));
    word("filter_scope", scope(params.filter_scope), scope(base.filter_scope));
    word("collision", collision(params.collision), collision(base.collision));
    word("full_policy", full(params.full_policy), full(base.full_policy));
    word("early_inbound", early(params.early_inbound), early(base.early_inbound));
    word("hairpin", hairpin(params.hairpin), hairpin(base.hairpin));
    for (key, own, usual) in [
        ("reuse_newest", params.reuse_newest, base.reuse_newest),
        ("refresh_out", params.refresh_out == Refresh::Yes, base.refresh_out == Refresh::Yes),
        ("refresh_in", params.refresh_in == Refresh::Yes, base.refresh_in == Refresh::Yes),
        ("filter_refresh_in", params.filter_refresh_in == Refresh::Yes, base.filter_refresh_in == Refresh::Yes),
        ("expiry_keeps_port", params.expiry_keeps_port, base.expiry_keeps_port),
        ("ttl_decrement", params.ttl == Ttl::Decrement, base.ttl == Ttl::Decrement),
    ] {
        if own != usual {
            keys.push(format!("{key} = {own}"));
        }
    }
    for (key, own, usual) in [
        ("timeout_unreplied", params.timeout_unreplied, base.timeout_unreplied),
        ("timeout_replied", params.timeout_replied, base.timeout_replied),
        ("timeout_stream", params.timeout_stream, base.timeout_stream),
        ("stream_after", params.stream_after, base.stream_after),
        ("timeout_tcp", params.timeout_tcp, base.timeout_tcp),
    ] {
        if own != usual {
            keys.push(format!("{key} = {}", duration(own)));
        }
    }
    if params.alloc != base.alloc {
        keys.push(format!("alloc = {}", alloc(params.alloc)));
    }
    if params.port_range != base.port_range {
        keys.push(match params.port_range {
            PortRange::LinuxClasses => "port_range = \"linux\"".to_owned(),
            PortRange::Within(low, high) => format!("port_range = \"{low}-{high}\""),
        });
    }
    if params.pool != base.pool {
        let pairing = if params.pool.pairing == Pairing::Paired { "paired" } else { "arbitrary" };
        keys.push(format!("pool = {{ addresses = {}, pairing = \"{pairing}\" }}", params.pool.addresses));
    }
    if params.port_block != base.port_block {
        let block = params.port_block.ok_or("a NAT without the blocks of ports that its profile has")?;
        let assignment = if block.assignment == Assignment::Static { "static" } else { "dynamic" };
        let (size, blocks) = (block.size, block.max_blocks);
        keys.push(format!("port_block = {{ size = {size}, max_blocks = {blocks}, assignment = \"{assignment}\" }}"));
    }
    if params.per_host_limit != base.per_host_limit {
        let limit = params.per_host_limit.ok_or("a NAT without the limit that its profile has")?;
        keys.push(format!("per_host_limit = {limit}"));
    }
    if params.table_max != base.table_max {
        keys.push(format!("table_max = {}", params.table_max));
    }
    Ok(keys)
}

fn inline(keys: &[String]) -> String {
    if keys.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", keys.join(", ")) }
}

fn mapping(mapping: Mapping) -> &'static str {
    match mapping {
        Mapping::EndpointIndependent => "eim",
        Mapping::AddressDependent => "adm",
        Mapping::AddressAndPortDependent => "apdm",
    }
}

fn filter(filter: Filter) -> &'static str {
    match filter {
        Filter::EndpointIndependent => "eif",
        Filter::AddressDependent => "adf",
        Filter::AddressAndPortDependent => "apdf",
    }
}

fn scope(scope: FilterScope) -> &'static str {
    match scope {
        FilterScope::Mapping => "per-mapping",
        FilterScope::InternalEndpoint => "per-internal-endpoint",
    }
}

fn alloc(alloc: Alloc) -> String {
    let word = match alloc {
        Alloc::Preserve => "preserve",
        Alloc::PreserveOrRandom => "preserve-or-random",
        Alloc::Sequential { delta, jitter } => {
            return format!("{{ kind = \"sequential\", delta = {delta}, jitter = {jitter} }}");
        }
        Alloc::Random => "random",
        Alloc::ContiguousBlock => "contiguous-block",
        Alloc::Parity => "parity",
    };
    quoted(word)
}

fn collision(collision: Collision) -> &'static str {
    match collision {
        Collision::RemapFlow => "remap-flow",
        Collision::RemapEndpoint => "remap-endpoint",
        Collision::Overload => "overload",
        Collision::Drop => "drop",
    }
}

fn full(policy: FullPolicy) -> &'static str {
    match policy {
        FullPolicy::DropNew => "drop-new",
        FullPolicy::EvictLru => "evict-lru",
        FullPolicy::EvictUnreplied => "evict-unreplied",
        FullPolicy::EvictRandom => "evict-random",
    }
}

fn early(early: EarlyInbound) -> &'static str {
    match early {
        EarlyInbound::Ignore => "ignore",
        EarlyInbound::Clash => "clash",
        EarlyInbound::AnswerIcmp => "answer-icmp",
    }
}

fn hairpin(hairpin: Hairpin) -> &'static str {
    match hairpin {
        Hairpin::Off => "off",
        Hairpin::InternalSource => "internal-src",
        Hairpin::ExternalSource => "external-src",
    }
}
