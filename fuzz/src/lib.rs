//! Fuzz targets: each is a plain function over bytes that panics when something is wrong.
//!
//! Two kinds. *Parsers*: what parses is printed and parsed again, and must be the same. *Scripts*: the bytes are a list
//! of steps for a machine or a data structure, which is compared with a simple model or checked for its promises.
//!
//! Every target has a row in [`TARGETS`], a wrapper for libFuzzer in `fuzz_targets/`, and a corpus in `corpus/`, which
//! `tests/replay.rs` feeds to it on the stable toolchain. With a nightly toolchain, to look for more:
//!
//! ```text
//! cd fuzz && ./run.sh tunnel_pair 120
//! ```

pub mod config;
pub mod control;
pub mod ip;
pub mod key;
pub mod netcheck;
pub mod policy;
pub mod relay;
pub mod script;
pub mod wireguard;

#[path = "../../mesh-core/tests/support/mod.rs"]
mod support;

/// A target's name, and the function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("derp_frames", relay::frames),
    ("icmp_echo", ip::echo),
    ("ip_packet", ip::packet),
    ("key_text", key::text),
    ("map_frames", control::map_frames),
    ("map_response", control::map_response),
    ("netcheck", netcheck::script),
    ("policy", policy::policy),
    ("noise_records", control::noise_records),
    ("prefix_text", ip::prefix),
    ("relay_clients", relay::clients),
    ("replay_window", wireguard::replay_window),
    ("routes", ip::routes),
    ("scenario", config::scenario),
    ("static_file", config::static_file),
    ("stun", netcheck::stun),
    ("tunnel_pair", wireguard::tunnel_pair),
    ("wireguard_inbound", wireguard::inbound),
    ("wireguard_messages", wireguard::messages),
];
