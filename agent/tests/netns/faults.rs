//! What tests of faults share: how a host looks, damage to files, disks that are full.

use std::{fs, path::Path, process::Output};

use anyhow::{Context, Result, ensure};

use super::lab::{Node, text};

/// What programs could leave behind on a host: devices, rules, routes, nft's tables, sockets, who resolves names.
pub(crate) fn traces(node: &Node) -> Result<String> {
    let mut traces = String::new();
    for line in [
        ["ls", "/sys/class/net"].as_slice(),
        &["ip", "-4", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
        &["ip", "-4", "rule"],
        &["ip", "-6", "rule"],
        &["nft", "list", "ruleset"],
        &["cat", "/etc/resolv.conf", "/etc/hosts"],
        // Local addresses of sockets that listen, and of datagrams.
        &["sh", "-c", "cat /proc/net/udp /proc/net/udp6 /proc/net/raw /proc/net/raw6 | awk '{print $2}'"],
        &["sh", "-c", "cat /proc/net/tcp /proc/net/tcp6 | awk '$4 == \"0A\" {print $2}'"],
    ] {
        traces += &node.run(line)?;
    }
    Ok(traces)
}

/// A path as text.
pub(crate) fn shown(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not text")
}

/// A disk of one mebibyte at `path`, which nobody outside the host sees.
pub(crate) fn small_disk(node: &Node, path: &Path) -> Result<()> {
    fs::create_dir_all(path)?;
    node.run(&["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", shown(path)?]).map(drop)
}

/// Fills a disk to its last byte.
pub(crate) fn fill(node: &Node, path: &Path) -> Result<()> {
    let filler = path.join("filler");
    let output = node.try_run(&["dd", "if=/dev/zero", &format!("of={}", shown(&filler)?), "bs=4096"])?;
    ensure!(!output.status.success() && text(&output).contains("No space left"), "{output:?}");
    Ok(())
}

/// Makes room again.
pub(crate) fn make_room(node: &Node, path: &Path) -> Result<()> {
    node.run(&["rm", shown(&path.join("filler"))?]).map(drop)
}

/// Lets nobody write below `path` any more, or again.
pub(crate) fn set_writable(node: &Node, path: &Path, is_writable: bool) -> Result<()> {
    let mode = if is_writable { "remount,rw" } else { "remount,ro" };
    node.run(&["mount", "-o", mode, shown(path)?]).map(drop)
}

/// Runs a program that must refuse to start.
pub(crate) fn start_refused(node: &Node, line: &[&str], code: i32, sentences: &[&str]) -> Result<()> {
    let output = node.try_run(&[&["timeout", "20"], line].concat())?;
    ensure!(!text(&output).contains("panicked"), "{}", text(&output));
    refused(&output, code, sentences)
}

/// A refusal: this exit code, and a last line with all of these in it.
pub(crate) fn refused(output: &Output, code: i32, sentences: &[&str]) -> Result<()> {
    let said = text(output);
    ensure!(output.status.code() == Some(code), "{}, not {code}: {said}", output.status);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let last = stderr.lines().last().unwrap_or_default();
    for sentence in sentences {
        ensure!(last.contains(sentence), "no {sentence:?} in {said}");
    }
    Ok(())
}
