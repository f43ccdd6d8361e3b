//! Build script of every program: hands version and commit to `--version`. `MESH_COMMIT` names the commit where there is
//! no repository, as in a package's build.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "this is how a build script speaks")]

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=MESH_COMMIT");
    // Changes with every commit, unlike HEAD itself; elsewhere than `.git` in a linked work tree.
    if let Some(log) = git(&["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
    let commit = std::env::var("MESH_COMMIT").ok().or_else(|| git(&["rev-parse", "--short=12", "HEAD"]));
    let commit = commit.unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=MESH_VERSION={} ({commit})", std::env::var("CARGO_PKG_VERSION").unwrap_or_default());
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}
