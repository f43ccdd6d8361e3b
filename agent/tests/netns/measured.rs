//! What is looked at while something bad goes on: a program's memory and its log, and a ping through the tunnel.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{
    joined::note,
    lab::{Node, Process},
};

/// Lines that a program may write because of strangers, whatever they do and however long: two refusals are told of
/// at each doubling, and a few things happen anyway.
pub(crate) const LINES: usize = 40;

/// Whether the long versions were asked for.
pub(crate) fn is_long() -> bool {
    std::env::var_os("MESH_FLOODS_LONG").is_some()
}

/// What is asked for: `short` in every run of the checks, `long` by hand.
pub(crate) fn long_or<T>(long: T, short: T) -> T {
    if is_long() { long } else { short }
}

/// Looks at a program from now on.
pub(crate) struct Watch<'p> {
    what: &'static str,
    process: &'p Process,
    before: u64,
    lines: usize,
}

impl<'p> Watch<'p> {
    pub(crate) fn start(what: &'static str, process: &'p Process) -> Result<Self> {
        // The peak is that of what comes.
        fs::write(format!("/proc/{}/clear_refs", process.id()), "5")?;
        let lines = process.output().lines().count();
        Ok(Self { what, process, before: memory(process, "VmRSS")?, lines })
    }

    /// Says what was seen, and holds it against what the program may take more than before, in MiB.
    pub(crate) fn end(&self, most: u64) -> Result<()> {
        let (peak, after) = (memory(self.process, "VmHWM")?, memory(self.process, "VmRSS")?);
        let output = self.process.output();
        let lines = output.lines().count() - self.lines;
        note(format_args!(
            "{}: RSS before {:.1}, peak {:.1}, after {:.1} MiB; {lines} lines of log",
            self.what,
            mib(self.before),
            mib(peak),
            mib(after)
        ));
        ensure!(peak - self.before.min(peak) < most << 10, "{}: {} KiB became {peak}", self.what, self.before);
        ensure!(lines <= LINES, "{}: {lines} lines of log: {output}", self.what);
        Ok(())
    }
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// A line of the kernel's account of a program, in KiB.
fn memory(process: &Process, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.with_context(|| format!("no {field}"))?.trim().trim_end_matches(" kB");
    Ok(kib.parse()?)
}

/// An honest node's pings through the tunnel, twenty a second.
pub(crate) struct Pings(Process);

impl Pings {
    pub(crate) fn start(node: &Node, address: &str, seconds: u64) -> Result<Self> {
        let deadline = seconds.to_string();
        Ok(Self(node.spawn(&["ping", "-n", "-q", "-i", "0.05", "-w", &deadline, address])?))
    }

    /// Says how they were answered; some must have been.
    pub(crate) fn end(mut self) -> Result<()> {
        // It fails when nothing was answered.
        let _ = self.0.wait(Duration::from_secs(120))?;
        let output = self.0.output();
        let line = |start: &str| output.lines().find(|line| line.contains(start)).unwrap_or("").to_owned();
        note(format_args!("ping: {}; {}", line("packets transmitted"), line("rtt ")));
        ensure!(!output.contains(" 0 received") && output.contains("rtt "), "nobody was served: {output}");
        Ok(())
    }
}
