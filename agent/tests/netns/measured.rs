//! What is looked at while something bad goes on: a program's memory and its log, and a ping through the tunnel.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    joined::note,
    lab::{Node, Process},
};

/// Lines that a program may write because of strangers, whatever they do: two refusals are told of at each doubling, and a
/// few things happen anyway.
const LINES: usize = 40;

/// And in each second.
const LINES_A_SECOND: usize = 2;

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
    since: Instant,
    cpu: u64,
    before: u64,
    lines: usize,
}

impl<'p> Watch<'p> {
    pub(crate) fn start(what: &'static str, process: &'p Process) -> Result<Self> {
        // The peak is that of what comes.
        fs::write(format!("/proc/{}/clear_refs", process.id()), "5")?;
        let lines = process.output().lines().count();
        Ok(Self { what, process, since: Instant::now(), cpu: cpu(process)?, before: memory(process, "VmRSS")?, lines })
    }

    /// Says what was seen, and holds it against what the program may take more than before, in MiB.
    pub(crate) fn end(&self, most: u64) -> Result<()> {
        self.end_with(most, 0)
    }

    /// The same where so many lines are about honest nodes.
    pub(crate) fn end_with(&self, most: u64, honest: usize) -> Result<()> {
        let (peak, after) = (memory(self.process, "VmHWM")?, memory(self.process, "VmRSS")?);
        let output = self.process.output();
        let lines = output.lines().count() - self.lines;
        note(format_args!(
            "{}: RSS before {:.1}, peak {:.1}, after {:.1} MiB; {lines} lines of log; {:.1} s of CPU",
            self.what,
            mib(self.before),
            mib(peak),
            mib(after),
            (cpu(self.process)? - self.cpu) as f64 / 100.0
        ));
        ensure!(peak - self.before.min(peak) < most << 10, "{}: {} KiB became {peak}", self.what, self.before);
        let most = honest + LINES + LINES_A_SECOND * self.since.elapsed().as_secs() as usize;
        ensure!(lines <= most, "{}: {lines} lines of log: {output}", self.what);
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

/// The processor's time that a program took, in the kernel's ticks of ten milliseconds.
fn cpu(process: &Process) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.id()))?;
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = fields.get(11..13).context("no times")?;
    ticks.iter().map(|ticks| Ok(ticks.parse::<u64>()?)).sum()
}

/// An honest node's pings through the tunnel, twenty a second.
pub(crate) struct Pings(Process);

impl Pings {
    pub(crate) fn start(node: &Node, address: &str, seconds: u64) -> Result<Self> {
        let deadline = seconds.to_string();
        Ok(Self(node.spawn(&["ping", "-n", "-i", "0.05", "-w", &deadline, address])?))
    }

    /// Says how they were answered; some must have been. Returns how many were, and how many were not that were
    /// sent before one that was: what is under way at the end is not lost.
    pub(crate) fn end(mut self) -> Result<(usize, usize)> {
        // It fails when nothing was answered.
        let _ = self.0.wait(Duration::from_secs(120))?;
        let output = self.0.output();
        let answers = output.lines().filter(|line| line.contains(" bytes from "));
        let numbers = answers.filter_map(|line| line.split_once("icmp_seq=")?.1.split(' ').next()?.parse().ok());
        let answered: BTreeSet<usize> = numbers.collect();
        let last = answered.last().with_context(|| format!("nobody was served: {output}"))?;
        let lost = last - answered.len();
        let times = output.lines().find(|line| line.starts_with("rtt ")).unwrap_or_default();
        note(format_args!("ping: {lost} of {last} lost; {times}"));
        Ok((answered.len(), lost))
    }
}
