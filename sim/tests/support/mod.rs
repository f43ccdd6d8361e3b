//! Starting the built program.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]
#![allow(dead_code, reason = "each test program uses a part")]

use std::{fs, path::Path, process::Command};

/// How a program ended.
pub(crate) struct Output {
    /// Exit status.
    pub(crate) exit: i32,
    /// What it printed.
    pub(crate) stdout: String,
    /// What it complained about.
    pub(crate) stderr: String,
}

/// Runs `mesh-sim` with arguments.
pub(crate) fn mesh_sim(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_mesh-sim")).args(arguments).output().unwrap();
    Output {
        exit: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs a scenario and reads what `--json` prints.
pub(crate) fn run_json(file: &str, seeds: &str) -> serde_json::Value {
    let output = mesh_sim(&["run", file, "--seeds", seeds, "--json"]);
    assert_eq!(output.exit, 0, "{}", output.stderr);
    serde_json::from_str(&output.stdout).unwrap()
}

/// All scenario files of the crate, in order.
pub(crate) fn scenario_files() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().to_str().unwrap().to_owned())
        .filter(|file| file.ends_with(".toml"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

/// The text of the scenario called `name`.
pub(crate) fn scenario_text(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("scenarios/{name}.toml"))).unwrap()
}
