//! The list of mistakes, and the copy of the sources that has them all.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use xxhash_rust::xxh3::xxh3_64;

/// The environment says here which mistake is made; 0 is none.
pub(crate) const SWITCH: &str = "MESH_MUTANT";

/// `sim/mutants.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct List {
    pub(crate) simulator: Worlds,
    #[serde(rename = "mutant")]
    pub(crate) mutants: Vec<Mutant>,
}

/// What the simulator runs.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Worlds {
    pub(crate) scenarios: Vec<String>,
    /// Of each scenario.
    pub(crate) seeds: String,
    /// Generated worlds.
    pub(crate) swarm: String,
}

/// One mistake.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mutant {
    pub(crate) name: String,
    pub(crate) file: String,
    pub(crate) kind: String,
    within: Option<String>,
    text: String,
    expression: Option<String>,
    statements: Option<String>,
    pub(crate) equivalent: Option<String>,
}

impl List {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let list: Self = toml::from_str(&text).with_context(|| path.display().to_string())?;
        let names: BTreeSet<_> = list.mutants.iter().map(|mutant| &mutant.name).collect();
        ensure!(names.len() == list.mutants.len(), "two mistakes have one name");
        Ok(list)
    }
}

impl Mutant {
    /// The crate that it is in.
    pub(crate) fn krate(&self) -> &str {
        self.file.split('/').next().unwrap_or_default()
    }

    /// Changes with what the mistake does.
    pub(crate) fn fingerprint(&self) -> u64 {
        let parts = [Some(&self.file), self.within.as_ref(), Some(&self.text), self.expression.as_ref()];
        let all: Vec<_> = parts.into_iter().chain([self.statements.as_ref()]).flatten().map(String::as_str).collect();
        // JSON of the results has no larger numbers.
        xxh3_64(all.join("\0").as_bytes()) >> 12
    }

    /// Where in the file's text the mistake is.
    fn place(&self, source: &str) -> Result<Range<usize>> {
        let within = match &self.within {
            None => 0..source.len(),
            Some(within) => once(source, within).with_context(|| format!("{}: `within`", self.name))?,
        };
        let part = source.get(within.clone()).unwrap_or_default();
        let inner = once(part, &self.text).with_context(|| format!("{}: `text`", self.name))?;
        Ok(within.start + inner.start..within.start + inner.end)
    }

    /// The text with the mistake behind its switch.
    fn switched(&self, number: usize) -> Result<String> {
        let switch = match self.krate() {
            "mesh-core" => "crate::mutant",
            _ => "mesh_core::mutant",
        };
        match (&self.expression, &self.statements) {
            (Some(wrong), None) => Ok(format!("(if {switch}({number}) {{ {wrong} }} else {{ {} }})", self.text)),
            (None, Some(wrong)) => Ok(format!("if {switch}({number}) {{ {wrong} }} else {{ {} }}", self.text)),
            _ => bail!("{}: either `expression` or `statements`", self.name),
        }
    }
}

fn once(source: &str, text: &str) -> Result<Range<usize>> {
    let found: Vec<_> = source.match_indices(text).map(|(at, _)| at).collect();
    match found[..] {
        [at] => Ok(at..at + text.len()),
        _ => bail!("found {} times, not once: {text:?}", found.len()),
    }
}

/// The files that the list changes, with all of its mistakes in them.
pub(crate) fn changed_files(list: &List, root: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut places: BTreeMap<&str, Vec<(Range<usize>, String)>> = BTreeMap::new();
    for (number, mutant) in (1..).zip(&list.mutants) {
        let source = fs::read_to_string(root.join(&mutant.file)).with_context(|| mutant.file.clone())?;
        let place = mutant.place(&source).with_context(|| mutant.file.clone())?;
        places.entry(&mutant.file).or_default().push((place, mutant.switched(number)?));
    }
    let mut changed = BTreeMap::new();
    for (file, mut places) in places {
        let mut source = fs::read_to_string(root.join(file))?;
        places.sort_by_key(|(place, _)| place.start);
        let overlap = places.windows(2).any(|pair| matches!(pair, [(a, _), (b, _)] if a.end > b.start));
        ensure!(!overlap, "{file}: two mistakes at one place");
        for (place, switched) in places.into_iter().rev() {
            source.replace_range(place, &switched);
        }
        changed.insert(PathBuf::from(file), source);
    }
    let lib = PathBuf::from("mesh-core/src/lib.rs");
    let text = fs::read_to_string(root.join(&lib))?;
    changed.insert(lib, format!("{text}{}", switch()));
    Ok(changed)
}

fn switch() -> String {
    format!(
        "
/// Whether this mistake is made.
#[must_use]
pub fn mutant(number: u32) -> bool {{
    static MADE: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    let made = || std::env::var({SWITCH:?}).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    *MADE.get_or_init(made) == number
}}
"
    )
}

/// Makes `tree` a copy of the sources with all mistakes in it. Files that are right stay untouched, so that only what
/// changed is compiled again.
pub(crate) fn write_tree(list: &List, root: &Path, tree: &Path) -> Result<()> {
    let mut changed = changed_files(list, root)?;
    let mut wanted = BTreeSet::new();
    for file in listed(root)? {
        let bytes = match changed.remove(&file) {
            Some(text) => text.into_bytes(),
            None => fs::read(root.join(&file)).with_context(|| file.display().to_string())?,
        };
        let copy = tree.join(&file);
        if fs::read(&copy).ok().as_ref() != Some(&bytes) {
            fs::create_dir_all(copy.parent().context("a file is in a folder")?)?;
            fs::write(&copy, bytes)?;
        }
        wanted.insert(copy);
    }
    remove_others(tree, &wanted)
}

/// What belongs to the repository.
fn listed(root: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .current_dir(root)
        .output()
        .context("git")?;
    ensure!(output.status.success(), "git ls-files failed");
    let names = String::from_utf8(output.stdout)?;
    let files = names.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from);
    Ok(files.filter(|file| root.join(file).is_file()).collect())
}

fn remove_others(folder: &Path, wanted: &BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(&path, wanted)?;
        } else if !wanted.contains(&path) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}
