//! Build script of every program: hands the commit it is built from to `--version`.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "this is how a build script speaks")]

use std::process::Command;

fn main() {
    // Changes with every commit, unlike HEAD itself; elsewhere than `.git` in a linked work tree.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=MESH_VERSION={} ({commit})", std::env::var("CARGO_PKG_VERSION").unwrap_or_default());
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
