//! Builds the Go program beside this file, which embeds the published module of the stock client and server.
//!
//! Self-contained: the standard library and `anyhow`, nothing of the workspace, so that others can use this file by
//! path. The first build takes a minute or two and wants the Go module proxy; after that Go's caches answer in a second.

#![allow(dead_code, unreachable_pub, reason = "not every user of this file needs all of it")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// Why the program cannot be built here, or `None`.
#[must_use]
pub fn missing() -> Option<String> {
    go().is_none().then(|| "no go".to_owned())
}

/// The program, built if it is not up to date: `peers client`, `peers derpserver`, `peers netcheck`.
///
/// # Errors
/// When there is no Go, or when it cannot build; says what Go said.
pub fn program() -> Result<PathBuf> {
    let go = go().context("no go")?;
    let directory = target()?.join("peers");
    fs::create_dir_all(&directory)?;
    // Test programs run side by side: one of them builds, the others wait.
    let lock = fs::File::create(directory.join("lock"))?;
    lock.lock()?;
    let built = directory.join("peers");
    let output = Command::new(go)
        .args(["build", "-p=2", "-trimpath", "-buildvcs=false", "-o"])
        .arg(&built)
        .arg(".")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/tests/peers"))
        .output()?;
    ensure!(output.status.success(), "go build: {}", String::from_utf8_lossy(&output.stderr));
    Ok(built)
}

/// On the search path, or where Go's own archive goes.
fn go() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = [PathBuf::from("/usr/local/go/bin")];
    env::split_paths(&path).chain(usual).map(|directory| directory.join("go")).find(|path| path.is_file())
}

/// Cargo's directory of the program that runs.
fn target() -> Result<PathBuf> {
    let own = env::current_exe()?;
    let profile = own.ancestors().find(|path| ["debug", "release", "dist"].iter().any(|name| path.ends_with(name)));
    let target = profile.and_then(Path::parent).context("this program is not below debug, release or dist")?;
    Ok(target.to_owned())
}
