//! The repository keeps the shape that its architecture says: sizes of files, layers of modules, the list of shell
//! files, equal lints, and nothing left unfinished.
//!
//! Everything is read from the sources as text, so this knows no more than a careful reader: `use crate::` edges and
//! `crate::` paths count, macros do not.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Past this a file is listed here by name, with what keeps it together; [`HARD_LINES`] is the end.
const SOFT_LINES: usize = 600;
const HARD_LINES: usize = 800;
/// Files between the two.
const LONG_FILES: &[(&str, &str)] = &[
    ("mesh-core/src/path/peer_paths.rs", "one state machine"),
    ("mesh-core/tests/node_control.rs", "one story after another"),
    ("control/tests/pitfalls/registration.rs", "one pitfall after another"),
    ("sim/src/host/control/link.rs", "one connection from its greeting to its end"),
    ("mesh-core/tests/boringtun.rs", "one lab and many short tests against one other implementation"),
];

/// Rooms of `mesh-core`, top down. A room may use rooms of the rows below its own, itself, and what [`NEIGHBOURS`] adds.
const LAYERS: &[&[&str]] = &[
    &["node"],
    &["dataplane", "control", "netcheck", "endpoints"],
    &["wireguard", "filter"],
    &["path", "routes"],
    &["disco", "stun", "derp"],
    &["key"],
    &["ip", "crypto"],
    &["machine", "lookup"],
    &["time", "rng", "published", "limits", "invariant", "printable"],
];

/// Uses inside a row, or upwards, that are meant: from, to, why.
///
/// Beside the picture in the architecture, the rows above say what is: `key` stands above `crypto` (a public key is
/// computed), `wireguard` above `path` (a cookie is for a source address), `lookup` above `rng` (its hash is keyed) and
/// `machine` above `time` (a deadline is an instant).
const NEIGHBOURS: &[(&str, &str, &str)] = &[];

/// Files of the deterministic crates that may touch the operating system. Each opens with [`SHELL_ATTRIBUTE`].
const SHELL_FILES: &[&str] = &[
    "control/src/serve/cli.rs",
    "control/src/serve/config.rs",
    "control/src/serve/daemon.rs",
    "control/src/serve/desk.rs",
    "control/src/serve/identity.rs",
    "control/src/serve/listen.rs",
    "control/src/serve/machine_api.rs",
    "control/src/serve/map_stream.rs",
    "control/src/serve/metrics.rs",
    "control/src/serve/mod.rs",
    "control/src/serve/objects.rs",
    "control/src/serve/pages.rs",
    "control/src/serve/pass.rs",
    "control/src/serve/relays.rs",
    "control/src/serve/render_pool.rs",
    "control/src/serve/simulated.rs",
    "control/src/serve/socket.rs",
    "control/src/serve/sql.rs",
    "control/src/serve/websocket.rs",
    "control/tests/hostile.rs",
    "control/tests/policy_vectors.rs",
    "control/tests/program.rs",
    "control/tests/serve.rs",
    "control/tests/shells.rs",
    "control/tests/support/program.rs",
    "control/tests/upgrade.rs",
    "mesh-core/tests/captured.rs",
    "mesh-core/tests/tidy.rs",
    "relay/src/serve/config.rs",
    "relay/src/serve/embedded.rs",
    "relay/src/serve/identity.rs",
    "relay/src/serve/link.rs",
    "relay/src/serve/listen.rs",
    "relay/src/serve/mod.rs",
    "relay/src/serve/stream.rs",
    "relay/src/serve/verify.rs",
    "relay/tests/hostile.rs",
    "relay/tests/links.rs",
    "relay/tests/program.rs",
    "relay/tests/shells.rs",
    "relay/tests/stock.rs",
    "relay/tests/support/program.rs",
    "sim/src/bin/sim.rs",
    "sim/src/bin/sim/swarm.rs",
    "sim/tests/determinism.rs",
    "sim/tests/errors.rs",
    "sim/tests/join.rs",
    "sim/tests/nat_vs_linux.rs",
    "sim/tests/paths.rs",
    "sim/tests/policy.rs",
    "sim/tests/scenarios.rs",
    "sim/tests/swarm.rs",
    "sim/tests/support/mod.rs",
];
const SHELL_ATTRIBUTE: &str = "#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = \"shell\")]";

/// Crates whose clippy.toml bans clocks, sockets and hash maps.
const DETERMINISTIC: &[&str] = &["mesh-core", "control", "relay", "sim"];

/// The top level of the repository: what must be there, and what may.
const TOP_LEVEL: &[&str] = &[
    ".cargo",
    ".ci",
    ".github",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "agent",
    "benches",
    "clippy.toml",
    "control",
    "deny.toml",
    "fuzz",
    "mesh-core",
    "relay",
    "rustfmt.toml",
    "sim",
    "transports",
];
const TOP_LEVEL_OPTIONAL: &[&str] = &["CONTRIBUTING.md", "SECURITY.md"];
/// Not part of the repository: version control, and what builds leave.
const TOP_LEVEL_IGNORED: &[&str] = &[".git", "target"];

#[test]
fn files_have_a_readable_length() {
    let mut complaints = Vec::new();
    let mut long = BTreeSet::new();
    for file in sources() {
        let lines = read(&file).lines().count();
        if lines > HARD_LINES {
            complaints.push(format!("{} has {lines} lines, more than {HARD_LINES}", file.display()));
        } else if lines > SOFT_LINES {
            long.insert(file.to_string_lossy().into_owned());
        }
    }
    let listed: BTreeSet<_> = LONG_FILES.iter().map(|(file, _)| (*file).to_owned()).collect();
    complaints.extend(long.difference(&listed).map(|file| format!("{file} is past {SOFT_LINES} lines and not listed")));
    complaints.extend(listed.difference(&long).map(|file| format!("{file} is listed as long and is not")));
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn rooms_use_only_the_rooms_below_them() {
    let row = |room: &str| LAYERS.iter().position(|row| row.contains(&room));
    let (mut edges, mut rooms) = (BTreeMap::new(), BTreeSet::new());
    for file in sources().into_iter().filter(|file| file.starts_with("mesh-core/src")) {
        let mut parts = file.components().skip(2).map(|part| part.as_os_str().to_string_lossy().into_owned());
        let room = parts.next().map(|name| name.trim_end_matches(".rs").to_owned()).expect("a file has a name");
        if room == "lib" {
            continue;
        }
        rooms.insert(room.clone());
        for used in crate_uses(&read(&file)) {
            edges.entry((room.clone(), used)).or_insert(file.clone());
        }
    }
    assert!(edges.len() > 20, "the edges are found: {edges:?}");
    let listed: BTreeSet<_> = LAYERS.concat().into_iter().map(str::to_owned).collect();
    assert_eq!(listed, rooms, "LAYERS lists the rooms that there are");

    let mut used_exceptions = BTreeSet::new();
    let mut complaints = Vec::new();
    for ((from, to), file) in &edges {
        let (Some(above), Some(below)) = (row(from), row(to)) else {
            complaints.push(format!("{}: `crate::{to}` is no room", file.display()));
            continue;
        };
        if above < below || from == to {
            continue;
        }
        if NEIGHBOURS.iter().any(|(f, t, _)| f == from && t == to) {
            used_exceptions.insert((from.as_str(), to.as_str()));
        } else {
            complaints.push(format!("{}: {from} may not use {to}", file.display()));
        }
    }
    for (from, to, _) in NEIGHBOURS {
        if !used_exceptions.contains(&(*from, *to)) {
            complaints.push(format!("{from} no longer uses {to}: take it off NEIGHBOURS"));
        }
    }
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn the_shell_files_are_those_that_are_listed() {
    let found: BTreeSet<_> = sources()
        .into_iter()
        .filter(|file| DETERMINISTIC.iter().any(|name| file.starts_with(name)))
        .filter(|file| read(file).lines().any(|line| line == SHELL_ATTRIBUTE))
        .map(|file| file.to_string_lossy().into_owned())
        .collect();
    let listed: BTreeSet<_> = SHELL_FILES.iter().map(|file| (*file).to_owned()).collect();
    assert_eq!(found, listed);
}

/// Nothing but a shell file may lift the bans, whatever the attribute looks like. `lookup.rs` wraps the one hash map.
#[test]
fn nobody_else_lifts_the_bans() {
    let lifts = |text: &str| text.contains("clippy::disallowed_types") || text.contains("clippy::disallowed_methods");
    let found: Vec<_> = sources()
        .into_iter()
        .filter(|file| DETERMINISTIC.iter().any(|name| file.starts_with(name)))
        .map(|file| file.to_string_lossy().into_owned())
        .filter(|file| !SHELL_FILES.contains(&file.as_str()) && lifts(&read(Path::new(file))))
        .collect();
    assert_eq!(found, ["mesh-core/src/lookup.rs"]);
}

#[test]
fn the_deterministic_crates_have_equal_lints() {
    let first = read(Path::new("mesh-core/clippy.toml"));
    assert!(first.contains("std::time::Instant::now"));
    for name in DETERMINISTIC {
        assert_eq!(read(&Path::new(name).join("clippy.toml")), first, "{name}/clippy.toml");
    }
}

#[test]
fn nothing_is_left_unfinished() {
    // Put together here, so that this file does not name them.
    let words = ["TO".to_owned() + "DO", "FIX".to_owned() + "ME", "X".repeat(3), "HA".to_owned() + "CK"];
    let macros = ["to".to_owned() + "do!", "unimple".to_owned() + "mented!"];
    let mut complaints = Vec::new();
    for file in sources() {
        for (number, line) in read(&file).lines().enumerate() {
            let has_word = words.iter().any(|word| line.split(|c: char| !c.is_alphanumeric()).any(|w| w == word));
            if has_word || macros.iter().any(|name| line.contains(name)) {
                complaints.push(format!("{}:{}: {}", file.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn the_top_level_holds_what_it_should() {
    let found: BTreeSet<_> = fs::read_dir(root())
        .expect("the repository can be read")
        .map(|entry| entry.expect("and its entries").file_name().to_string_lossy().into_owned())
        .filter(|name| !TOP_LEVEL_IGNORED.contains(&name.as_str()))
        .collect();
    let missing: Vec<_> = TOP_LEVEL.iter().filter(|name| !found.contains(**name)).collect();
    let known = |name: &String| TOP_LEVEL.contains(&name.as_str()) || TOP_LEVEL_OPTIONAL.contains(&name.as_str());
    let unexpected: Vec<_> = found.iter().filter(|name| !known(name)).collect();
    assert!(missing.is_empty() && unexpected.is_empty(), "missing {missing:?}, unexpected {unexpected:?}");
}

#[test]
fn every_dependency_has_a_sentence_why_it_is_there() {
    let manifest = read(&root().join("Cargo.toml"));
    let table = manifest.split("[workspace.dependencies]").nth(1).and_then(|rest| rest.split("\n[").next()).unwrap();
    let others = table.lines().filter(|line| !line.starts_with('#') && !line.contains("path = "));
    let names: Vec<_> = others.filter_map(|line| line.split_once(" = ")).map(|(name, _)| name).collect();
    let security = read(&root().join("SECURITY.md"));
    let said = security.split("\n## Dependencies").nth(1).unwrap();
    let unsaid: Vec<_> = names.iter().filter(|name| !said.contains(&format!("`{name}`"))).collect();
    assert!(names.len() > 40 && unsaid.is_empty(), "SECURITY.md says of none of these why it is there: {unsaid:?}");
}

#[test]
fn uses_are_found_in_all_their_forms() {
    let text = "
        use crate::time::Instant;
        use crate::{
            crypto::{aead::{AeadKey, TAG}, hash},
            limits,
            key::NodePublic, // not: rng
        };
        let x = crate::rng::Seed::default();
        crate::never!(true, \"\");
        /// See [`crate::node`].
    ";
    let found: Vec<_> = crate_uses(text).into_iter().collect();
    assert_eq!(found, ["crypto", "key", "limits", "rng", "time"]);
}

/// The rooms that follow `crate::`, alone or in braces; comments do not count, nor do macros.
fn crate_uses(text: &str) -> BTreeSet<String> {
    let code: String =
        text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let mut rooms = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut item = String::new();
            for letter in group.chars() {
                match letter {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        rooms.insert(first_name(&core::mem::take(&mut item)));
                    }
                    _ if depth == 0 => item.push(letter),
                    _ => {}
                }
            }
            rooms.insert(first_name(&item));
        } else if !rest[first_name(rest).len()..].starts_with('!') {
            rooms.insert(first_name(rest));
        }
    }
    rooms.remove("");
    rooms
}

fn first_name(text: &str) -> String {
    text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// All Rust sources of the workspace, relative to its root, sorted.
fn sources() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> =
        TOP_LEVEL.iter().map(PathBuf::from).filter(|path| root().join(path).is_dir()).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).expect("a folder of the repository can be read") {
            let entry = entry.expect("and its entries");
            let path = folder.join(entry.file_name());
            if entry.file_type().expect("and their types").is_dir() {
                if entry.file_name() != "target" {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    assert!(files.len() > 50, "the sources are found");
    files
}

fn read(file: &Path) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
