//! Hosts that misbehave: calendars that are set while programs run, and memory that ends.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::{
    faults::shown,
    homes::{Homes, Nat},
    joined::{ALLOW, Agent, Control, PATIENCE, note},
    lab::{built, until},
};
use crate::Test;

/// Those that need a C compiler.
pub(crate) const WITH_CC: &[Test] =
    &[("faults: calendars that are set by an hour, both ways, end no traffic and no sign-in", calendars)];

pub(crate) const TESTS: &[Test] = &[
    ("faults: programs work with the address space that they are said to need", memory),
    ("faults: programs that get too little memory end with a word about it", no_memory),
];

/// Seconds of an hour.
const HOUR: i64 = 3_600;

/// A library that adds to the calendar the seconds that stand in a file, and leaves all other clocks as they are.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <fcntl.h>
#include <unistd.h>
#include <sys/mman.h>
#include <time.h>
static volatile int64_t *shift;
static int (*next)(clockid_t, struct timespec *);
__attribute__((constructor)) static void begin(void) {
    next = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    const char *path = getenv("FAULTS_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *page = mmap(0, sizeof *shift, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (page != MAP_FAILED) shift = page;
}
int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = next(clock, time);
    if (result == 0 && shift && clock == CLOCK_REALTIME) time->tv_sec += *shift;
    return result;
}
"#;

/// A calendar of one host.
struct Calendar(PathBuf);

impl Calendar {
    /// Programs that are started with these words follow it.
    fn new(directory: &Path, name: &str) -> Result<(Self, Vec<String>)> {
        let (source, library) = (directory.join("clock.c"), directory.join("clock.so"));
        if !library.exists() {
            fs::write(&source, SHIM)?;
            let arguments = ["-shared", "-fPIC", "-O1", "-o", shown(&library)?, shown(&source)?, "-ldl"];
            let status = Command::new("cc").args(arguments).status().context("cc")?;
            ensure!(status.success(), "cc: {status}");
        }
        let calendar = Self(directory.join(name));
        fs::write(&calendar.0, 0_i64.to_ne_bytes())?;
        let words = ["env".to_owned(), format!("LD_PRELOAD={}", shown(&library)?)];
        let file = format!("FAULTS_CLOCK={}", shown(&calendar.0)?);
        Ok((calendar, words.into_iter().chain([file]).collect()))
    }

    fn set(&self, seconds: i64) -> Result<()> {
        use std::os::unix::fs::FileExt;
        Ok(fs::OpenOptions::new().write(true).open(&self.0)?.write_all_at(&seconds.to_ne_bytes(), 0)?)
    }
}

fn calendars() -> Result<()> {
    let mut homes = Homes::new(&[Nat::Easy, Nat::Easy, Nat::Easy])?;
    let directory = homes.lab.directory().to_owned();
    let (server, words) = Calendar::new(&directory, "control-clock")?;
    let mut control = Control::place(&mut homes, 0)?;
    control.prefix = words;
    control.begin()?;
    control.set_policy(ALLOW)?;
    let key = control.key(&["--reusable", "--expiry", "12h"])?;
    let (host, words) = Calendar::new(&directory, "alice-clock")?;
    let mut alice = Agent::new(&homes.members[0].node, &control)?;
    alice.kill();
    alice.prefix = words;
    alice.start()?;
    let mut bob = Agent::new(&homes.members[1].node, &control)?;
    for agent in [&alice, &bob] {
        agent.up(&control, &key)?;
    }
    let (own, address) = (alice.address()?, bob.address()?);
    alice.reach(&address)?;
    for (calendar, name) in [(&host, "alice"), (&server, "control")] {
        for hours in [1, 0, -1, 0] {
            let seen = alice.output().matches("ClockStepped").count();
            calendar.set(hours * HOUR)?;
            alice.reach(&address).with_context(|| format!("{name} by {hours} h"))?;
            if name == "alice" {
                until("the step is seen", PATIENCE, || {
                    Ok((alice.output().matches("ClockStepped").count() > seen).then_some(()))
                })?;
            }
            // A handshake of each side: its time stamp must be newer than those before.
            bob.kill();
            bob.start()?;
            let took = [bob.reach(&own)?, alice.reach(&address)?];
            for agent in [&alice, &bob] {
                agent.wait_for_state("Running")?;
                agent.wait_for_control()?;
                ensure!(agent.peers()?.iter().all(|peer| peer["Expired"] != true), "{}", agent.status()?);
            }
            note(format_args!("{name} set by {hours} h: bob started again, first answers after {took:?}"));
        }
    }
    // An hour back, and the one whose calendar is wrong is started again: peers know later time stamps of it.
    host.set(-HOUR)?;
    alice.kill();
    alice.start()?;
    let took = [alice.reach(&address)?, bob.reach(&own)?];
    note(format_args!("alice an hour back and started again: first answers after {took:?}"));
    // Who joins now is let in, and control starts with an hour less.
    server.set(-HOUR)?;
    control.kill();
    control.start()?;
    let carol = Agent::new(&homes.members[2].node, &control)?;
    carol.up(&control, &key)?;
    carol.reach(&own)?;
    for agent in [&alice, &bob, &carol] {
        agent.wait_for_control()?;
    }
    Ok(())
}

/// Address space in MiB that programs are said to need with a few nodes, threads and their stacks included.
const AGENT_MIB: u64 = 192;
const CONTROL_MIB: u64 = 384;
const RELAY_MIB: u64 = 256;

fn limit(mib: u64) -> Vec<String> {
    vec!["prlimit".to_owned(), format!("--as={}", mib << 20), "--core=0".to_owned(), "--".to_owned()]
}

fn memory() -> Result<()> {
    let mut homes = Homes::new(&[Nat::Easy, Nat::Hard])?;
    homes.relay.kill();
    homes.relay.prefix = limit(RELAY_MIB);
    homes.relay.start()?;
    let mut control = Control::place(&mut homes, 0)?;
    control.prefix = limit(CONTROL_MIB);
    control.begin()?;
    control.set_policy(ALLOW)?;
    let key = control.key(&["--reusable"])?;
    let mut agents = Vec::new();
    for member in &homes.members {
        let mut agent = Agent::new(&member.node, &control)?;
        agent.kill();
        agent.prefix = limit(AGENT_MIB);
        agent.start()?;
        agent.up(&control, &key)?;
        agents.push(agent);
    }
    let address = agents[1].address()?;
    agents[0].reach(&address)?;
    agents[0].node.run(&["ping", "-n", "-q", "-f", "-c", "500", "-w", "60", "-s", "1200", &address])?;
    let relay = homes.relay.process.as_ref().context("no relay")?.id();
    let server = control.process.as_ref().context("no control")?.id();
    let agent = agents[0].process.as_ref().context("no agent")?.id();
    for (name, id, most) in [("agent", agent, AGENT_MIB), ("control", server, CONTROL_MIB), ("relay", relay, RELAY_MIB)]
    {
        let status = fs::read_to_string(format!("/proc/{id}/status"))?;
        let kib = |field: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
            Ok(line.trim().trim_end_matches(" kB").parse()?)
        };
        let (size, resident) = (kib("VmPeak:")?, kib("VmRSS:")?);
        note(format_args!(
            "{name}: {} MiB of {most} MiB address space at most, {} MiB resident",
            size >> 10,
            resident >> 10
        ));
    }
    Ok(())
}

/// Address space in MiB that is not enough for anything.
const TOO_LITTLE_MIB: u64 = 16;

fn no_memory() -> Result<()> {
    let homes = Homes::new(&[Nat::Easy])?;
    let node = &homes.members[0].node;
    let (state, socket) = (node.path("state"), node.path("meshd.sock"));
    for mib in [TOO_LITTLE_MIB, 17, 18, 20, 22] {
        let words = limit(mib);
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let program = built("meshd")?;
        let line = [shown(&program)?, "--state-dir", shown(&state)?, "--socket", shown(&socket)?];
        let mut process = node.spawn(&[&words[..], &line].concat())?;
        let Err(_) = process.wait_for("ready", PATIENCE) else {
            ensure!(mib > TOO_LITTLE_MIB, "it runs with {mib} MiB");
            // It may be enough for a node that does nothing.
            continue;
        };
        let status = process.wait(PATIENCE)?;
        let said = process.output();
        ensure!(!status.success() && !said.trim().is_empty(), "{mib} MiB: {status} without a word");
        note(format_args!("meshd with {mib} MiB of address space: {status}: {}", said.trim()));
        ensure!(!node.run(&["ls", "/sys/class/net"])?.contains("mesh0"), "{mib} MiB: a device is left");
    }
    Ok(())
}
