//! What is known of each mistake, and the table of it.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::{
    apply::{List, Mutant},
    suites::{Class, Found},
};

/// What a class of tests made of one mistake, or of none.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    name: String,
    class: Class,
    fingerprint: u64,
    found: Found,
    seconds: f64,
}

impl Line {
    pub(crate) fn of(mutant: &Mutant, class: Class, found: Found, seconds: f64) -> Self {
        Self { name: mutant.name.clone(), class, fingerprint: mutant.fingerprint(), found, seconds }
    }

    /// Without any mistake.
    pub(crate) fn of_control(krate: &str, class: Class, found: Found, seconds: f64) -> Self {
        Self { name: krate.to_owned(), class, fingerprint: 0, found, seconds }
    }
}

/// All results, the newest of each mistake and class.
#[derive(Debug)]
pub(crate) struct Results {
    path: PathBuf,
    lines: BTreeMap<(String, Class), Line>,
}

impl Results {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let text = if path.exists() { fs::read_to_string(path)? } else { String::new() };
        let lines = text.lines().map(serde_json::from_str::<Line>).collect::<Result<Vec<_>, _>>();
        let lines = lines.with_context(|| path.display().to_string())?;
        let lines = lines.into_iter().map(|line| ((line.name.clone(), line.class), line)).collect();
        Ok(Self { path: path.to_owned(), lines })
    }

    pub(crate) fn add(&mut self, line: Line) -> Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        writeln!(file, "{}", serde_json::to_string(&line)?)?;
        self.lines.insert((line.name.clone(), line.class), line);
        Ok(())
    }

    /// How many seconds a class takes without any mistake.
    pub(crate) fn control(&self, krate: &str, class: Class) -> Option<f64> {
        self.lines.get(&(krate.to_owned(), class)).map(|line| line.seconds)
    }

    /// What a class found. Not what it found before the mistake was another.
    pub(crate) fn of(&self, mutant: &Mutant, class: Class) -> Option<&Found> {
        let line = self.lines.get(&(mutant.name.clone(), class))?;
        (line.fingerprint == mutant.fingerprint()).then_some(&line.found)
    }

    /// Whether a class noticed it.
    pub(crate) fn is_caught(&self, mutant: &Mutant) -> bool {
        Class::ALL.iter().filter_map(|class| self.of(mutant, *class)).any(Found::is_caught)
    }
}

/// `sim/mutants.md`.
pub(crate) fn table(list: &List, results: &Results) -> Result<String> {
    let (mut rows, mut survivors) = (String::new(), String::new());
    let (mut caught, mut left_out) = ([0; 4], 0);
    for mutant in &list.mutants {
        let mut row = format!("| {} | {} | {} |", mutant.name, mutant.file, mutant.kind);
        for class in Class::ALL {
            let Some(found) = results.of(mutant, class) else {
                left_out += 1;
                row.push_str(" ? |");
                continue;
            };
            caught[class as usize] += u32::from(found.is_caught());
            write!(row, " {} |", found.text())?;
        }
        writeln!(rows, "{row}")?;
        let is_caught = results.is_caught(mutant);
        caught[3] += u32::from(is_caught);
        match &mutant.equivalent {
            Some(_) if is_caught => bail!("{} is said to be equivalent and is caught", mutant.name),
            Some(why) => writeln!(survivors, "- `{}`: {why}", mutant.name)?,
            None if is_caught => {}
            None => writeln!(survivors, "- `{}`: **nothing notices it**", mutant.name)?,
        }
    }
    let [unit, model, simulator, any] = caught;
    let total = list.mutants.len();
    let fields = 3 * total;
    let percent = 100 * any as usize / total.max(1);
    if survivors.is_empty() {
        survivors = "None.\n".to_owned();
    }
    Ok(format!(
        "# Mutants

Mistakes made on purpose, one at a time, and which tests notice: `sim/mutants.toml` lists them,
`sim/examples/mutants/main.rs` says how they are made and how to run this again (on demand; it is not part of CI). An
empty field: all tests of the class passed; a question mark: they were not run yet. *unit* and *model* are tests of the
crate that the mistake is in.

**{any} of {total} are caught ({percent} %)**: {unit} by unit tests, {model} by models, {simulator} by the simulator. {left_out}
of {fields} fields are open.

## Survivors

{survivors}
## All

| mistake | file | kind | unit | model | simulator |
|---|---|---|---|---|---|
{rows}"
    ))
}
