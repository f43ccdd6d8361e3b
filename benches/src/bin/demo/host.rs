//! What the demo must leave as it found it.

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    fs,
    hash::{Hash, Hasher},
    path::Path,
    process::Command,
};

/// A picture of everything on the host that networking programs tend to change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Snapshot(BTreeMap<String, u64>);

impl Snapshot {
    /// Takes the picture.
    pub(crate) fn take() -> Self {
        let mut parts = BTreeMap::new();
        files(Path::new("/etc"), &mut parts);
        for arguments in [
            "ip -d link show",
            "ip address show",
            "ip -4 route show table all",
            "ip -6 route show table all",
            "ip -4 rule show",
            "ip -6 rule show",
            "ip netns list",
            "nft list ruleset",
        ] {
            parts.insert(arguments.to_owned(), hash(&without_lifetimes(&run(arguments))));
        }
        for sysctl in
            ["ipv4/ip_forward", "ipv4/conf/all/src_valid_mark", "ipv4/conf/all/rp_filter", "ipv6/conf/all/forwarding"]
        {
            parts.insert(format!("sysctl {sysctl}"), hash(&fs::read(format!("/proc/sys/net/{sysctl}")).ok()));
        }
        Self(parts)
    }

    /// What is different in `after`.
    pub(crate) fn differences(&self, after: &Self) -> Vec<String> {
        let names = self.0.keys().chain(after.0.keys());
        let mut changed: Vec<_> = names.filter(|name| self.0.get(*name) != after.0.get(*name)).cloned().collect();
        changed.sort();
        changed.dedup();
        changed
    }
}

fn files(folder: &Path, parts: &mut BTreeMap<String, u64>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&path, parts),
            Ok(kind) if kind.is_symlink() => {
                parts.insert(path.display().to_string(), hash(&fs::read_link(&path).ok()));
            }
            Ok(_) | Err(_) => {
                parts.insert(path.display().to_string(), hash(&fs::read(&path).ok()));
            }
        }
    }
}

fn run(arguments: &str) -> String {
    let mut words = arguments.split(' ');
    let program = words.next().unwrap_or_default();
    match Command::new(program).args(words).output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => error.to_string(),
    }
}

/// Times to live and counters change by themselves.
fn without_lifetimes(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.contains("valid_lft"));
    let words = lines.map(|line| line.split(" expires ").next().unwrap_or_default());
    words.collect::<Vec<_>>().join("\n")
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
