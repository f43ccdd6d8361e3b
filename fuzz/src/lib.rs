//! Fuzz targets: each is a plain function over bytes that panics when something is wrong.
//!
//! Two kinds. *Parsers*: what parses is printed and parsed again, and must be the same. *Scripts*: the bytes are a list
//! of steps for a machine or a data structure, which is compared with a simple model or checked for its promises.
//!
//! Every target has a row in [`TARGETS`] and a corpus in `corpus/`, which `tests/replay.rs` feeds to it on the stable
//! toolchain. With a nightly toolchain, to look for more:
//!
//! ```text
//! cd fuzz && ./run.sh tunnel_pair 120
//! ```

pub mod config;
pub mod control;
pub mod coordinator;
pub mod derp;
pub mod disco;
pub mod ip;
pub mod key;
pub mod netcheck;
pub mod node;
pub mod paths;
pub mod policy;
pub mod relay;
pub mod script;
pub mod session;
pub mod text;
pub mod wireguard;

#[path = "../../mesh-core/tests/support/mod.rs"]
mod support;

#[path = "../../control/tests/support/mod.rs"]
mod server;

/// A target's name, and the function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("c2n", text::c2n),
    ("command_line", text::command_line),
    ("control_session", session::control_session),
    ("control_url", text::control_url),
    ("coordinator", coordinator::coordinator),
    ("derp_client", derp::client),
    ("derp_frames", relay::frames),
    ("derp_map", node::derp_map),
    ("disco", disco::messages),
    ("dns", text::dns),
    ("host_names", text::host_names),
    ("icmp_echo", ip::echo),
    ("ip_packet", ip::packet),
    ("key_text", key::text),
    ("map_frames", control::map_frames),
    ("map_response", control::map_response),
    ("netcheck", netcheck::script),
    ("node_requests", coordinator::node_requests),
    ("noise_records", control::noise_records),
    ("peer_paths", paths::peer_paths),
    ("policy", policy::policy),
    ("prefix_text", ip::prefix),
    ("relay_clients", relay::clients),
    ("relay_links", derp::links),
    ("relay_strangers", relay::strangers),
    ("replay_window", wireguard::replay_window),
    ("routes", ip::routes),
    ("saved_state", node::saved_state),
    ("scenario", config::scenario),
    ("static_file", config::static_file),
    ("stun", netcheck::stun),
    ("tsmp", disco::tsmp),
    ("tunnel_pair", wireguard::tunnel_pair),
    ("wireguard_inbound", wireguard::inbound),
    ("wireguard_messages", wireguard::messages),
];

/// What the name of a target in the environment stands for: one program is libFuzzer's for all of them.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn target_of_environment() -> fn(&[u8]) {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let target = TARGETS.iter().find(|(target, _)| *target == name);
    target.unwrap_or_else(|| panic!("FUZZ_TARGET={name} is no target")).1
}
