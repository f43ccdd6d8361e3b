//! The list of what programs that nobody here wrote must find at home with us, item by item.
//!
//! A list is a lab and the items that are tried in it, one after the other; each prints a line, `PASS` or `FAIL`, with
//! the time that the thing itself took and what shows it. All items are tried, whatever came before; the test fails at
//! the end, with the names of those that did. The lists of a pair (`stock_list_pair.rs`) are the same items for every
//! pair: alice watches, bob is the one who joins, signs out, expires, reboots. Those of relays are in
//! `stock_list_relays.rs`.
//!
//! The programs are named by variables; a test that wants one which is not named is ignored, and says which. All of it,
//! with the lists one after the other so that the times mean something:
//!
//! ```sh
//! cargo build -p control -p relay && MESH_INTEROP_TAILSCALED=… MESH_INTEROP_TAILSCALE=… MESH_INTEROP_HEADSCALE=… \
//!     MESH_INTEROP_DERPER=… MESH_INTEROP_DERPPROBE=… MESH_INTEROP_STUNC=… \
//!     cargo test -p agent --test interop -- stock_list --test-threads 1
//! ```
//!
//! The labs are namespaces with a private `/etc` each: stock clients write names into it. The last item of every list
//! compares the host with what it was before.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::super::{
    homes::Homes,
    joined::note,
    lab::{self, Node},
};

/// A program of others, by the variable that names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Program(&'static str);

/// The stock daemon.
pub(crate) const TAILSCALED: Program = Program("MESH_INTEROP_TAILSCALED");
/// Its command line.
pub(crate) const TAILSCALE: Program = Program("MESH_INTEROP_TAILSCALE");
/// The other free control server.
pub(crate) const HEADSCALE: Program = Program("MESH_INTEROP_HEADSCALE");
/// The stock relay.
pub(crate) const DERPER: Program = Program("MESH_INTEROP_DERPER");
/// The stock prober of relays.
pub(crate) const DERPPROBE: Program = Program("MESH_INTEROP_DERPPROBE");
/// The stock client for STUN alone.
pub(crate) const STUNC: Program = Program("MESH_INTEROP_STUNC");

impl Program {
    /// Where it is.
    pub(crate) fn path(self) -> Result<String> {
        let path = env::var_os(self.0).map(PathBuf::from).with_context(|| format!("{} is not set", self.0))?;
        let path = fs::canonicalize(&path).with_context(|| format!("{}={}", self.0, path.display()))?;
        Ok(path.to_str().context("a path that is not text")?.to_owned())
    }
}

/// Why a list that wants these programs cannot be tried, or `None`.
pub(crate) fn missing(programs: &[Program]) -> Option<String> {
    let unnamed = programs.iter().find(|program| env::var_os(program.0).is_none_or(|path| path.is_empty()));
    unnamed.map(|program| format!("needs {}", program.0)).or_else(lab::missing).or_else(|| {
        let tools = ["curl", "iperf3", "conntrack"].into_iter().find(|tool| lab::find(tool).is_none());
        tools.map(|tool| format!("needs the program {tool}"))
    })
}

/// What an item came to: how long the thing took that it is about, and what shows that it happened.
pub(crate) struct Found {
    took: Duration,
    evidence: String,
}

impl Found {
    pub(crate) fn new(took: Duration, evidence: impl Into<String>) -> Self {
        Self { took, evidence: evidence.into() }
    }

    /// Nothing but that it is so.
    pub(crate) fn since(began: Instant, evidence: impl Into<String>) -> Self {
        Self::new(began.elapsed(), evidence)
    }
}

/// The items of one lab so far.
pub(crate) struct List {
    name: String,
    host: Host,
    tried: u32,
    failed: Vec<String>,
}

impl List {
    pub(crate) fn new(name: impl Into<String>) -> Result<Self> {
        // The name of the test stands in the line already.
        note("");
        Ok(Self { name: name.into(), host: Host::now()?, tried: 0, failed: Vec::new() })
    }

    /// Tries an item, and tells what came of it.
    pub(crate) fn item(&mut self, what: &str, item: impl FnOnce() -> Result<Found>) {
        self.tried += 1;
        let began = Instant::now();
        match item() {
            Ok(Found { took, evidence }) => {
                note(format_args!("PASS {}: {what} {:.2}s {}", self.name, took.as_secs_f64(), one_line(&evidence)));
            }
            Err(error) => {
                let (took, said) = (began.elapsed().as_secs_f64(), format!("{error:#}"));
                note(format_args!("FAIL {}: {what} {took:.2}s {}", self.name, one_line(&said)));
                self.failed.push(what.to_owned());
            }
        }
    }

    /// The last item, once the lab is gone; then the verdict.
    pub(crate) fn end(mut self) -> Result<()> {
        let before = self.host.clone();
        self.item("the host is as it was", || {
            let (began, now) = (Instant::now(), Host::now()?);
            ensure!(now == before, "before: {before:?} now: {now:?}");
            Ok(Found::since(began, "resolv.conf, hosts, rules and addresses are the same"))
        });
        let Self { name, tried, failed, .. } = self;
        ensure!(failed.is_empty(), "{name}: {} of {tried} items failed: {}", failed.len(), failed.join("; "));
        note(format_args!("{name}: {tried} items, none failed"));
        Ok(())
    }
}

/// What a program in a lab could have changed outside.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Host {
    files: Vec<Option<Vec<u8>>>,
    rules: Vec<Vec<u8>>,
}

impl Host {
    fn now() -> Result<Self> {
        let files = ["/etc/resolv.conf", "/etc/hosts"].map(|file| fs::read(file).ok()).to_vec();
        let asked = [["rule", "show"], ["-6", "rule"], ["route", "show"], ["-br", "address"]];
        let rules = asked.map(|words| Ok(Command::new("ip").args(words).output()?.stdout));
        Ok(Self { files, rules: rules.into_iter().collect::<Result<_>>()? })
    }
}

/// Text on one line, for a table.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Lets UDP of bob's home out, or nothing but TCP. What the router knows of flows stays.
pub(crate) fn set_udp(homes: &Homes, is_open: bool) -> Result<()> {
    let rule = if is_open { "" } else { "add rule inet guard forward meta l4proto udp drop" };
    homes.routers[1].nft(&format!("flush chain inet guard forward\n{rule}\n"))
}

/// Has a host of the lab trust a certificate: its store is in its private `/etc`.
pub(crate) fn trust(node: &Node, certificate: &Path) -> Result<()> {
    let line = format!("mkdir -p /etc/ssl/certs; cat {} >> /etc/ssl/certs/ca-certificates.crt", certificate.display());
    node.run(&["sh", "-c", &line]).map(drop)
}
