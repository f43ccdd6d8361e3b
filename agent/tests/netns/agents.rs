//! Agents in a lab: their files, their start, their answers.

#![allow(dead_code, unreachable_pub, reason = "shared by two suites, neither of which needs all of it")]

use std::{fmt::Write as _, fs, path::PathBuf, process::Output, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::lab::{Keys, Lab, Node, Process, built, text, until};

/// A static file in the making.
#[derive(Clone, Debug)]
pub struct StaticFile(String);

impl StaticFile {
    /// `[Interface]` with further lines.
    pub fn new(keys: &Keys, lines: &[&str]) -> Self {
        let mut text = format!("[Interface]\nPrivateKey = {}\n", keys.private);
        for line in lines {
            let _ = writeln!(text, "{line}");
        }
        Self(text)
    }

    /// One more `[Peer]`.
    pub fn peer(mut self, keys: &Keys, lines: &[&str]) -> Self {
        let _ = writeln!(self.0, "[Peer]\nPublicKey = {}", keys.public);
        for line in lines {
            let _ = writeln!(self.0, "{line}");
        }
        self
    }

    /// The text, less the lines that `wg setconf` does not know.
    pub fn for_wg(&self) -> String {
        let known = |line: &&str| !line.starts_with("Address") && !line.starts_with("MTU");
        self.0.lines().filter(known).map(|line| format!("{line}\n")).collect()
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }
}

/// A running meshd.
#[derive(Debug)]
pub struct Agent {
    pub node: Node,
    pub process: Process,
    pub file: PathBuf,
    pub socket: PathBuf,
}

impl Agent {
    /// Starts meshd and waits until it is ready.
    pub fn start(node: &Node, file: &StaticFile) -> Result<Self> {
        let agent = Self::launch(node, file, &[])?;
        agent.process.wait_for("ready", Duration::from_secs(10))?;
        Ok(agent)
    }

    /// Starts meshd.
    pub fn launch(node: &Node, file: &StaticFile, flags: &[&str]) -> Result<Self> {
        let path = node.path("static.conf");
        fs::write(&path, file.text())?;
        let socket = node.path("meshd.sock");
        let program = built("meshd")?;
        let mut line = vec![text_of(&program)?, "--static", text_of(&path)?, "--socket", text_of(&socket)?];
        line.extend(flags);
        Ok(Self { node: node.clone(), process: node.spawn(&line)?, file: path, socket })
    }

    /// Runs `mesh` against this agent, whatever comes of it.
    pub fn try_mesh(&self, words: &[&str]) -> Result<Output> {
        mesh(&self.node, &self.socket, words)
    }

    /// Runs `mesh`, which must succeed; returns what it wrote.
    pub fn mesh(&self, words: &[&str]) -> Result<String> {
        let output = self.try_mesh(words)?;
        ensure!(output.status.success(), "mesh {words:?}: {}: {}", output.status, text(&output));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `mesh status --json`.
    pub fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.mesh(&["status", "--json"])?)?)
    }

    /// The only peer of `mesh status --json`.
    pub fn only_peer(&self) -> Result<Value> {
        let status = self.status()?;
        let peers = status["Peer"].as_object().context("no Peer")?;
        ensure!(peers.len() == 1, "{} peers", peers.len());
        peers.values().next().cloned().context("no peer")
    }

    /// A counter of `mesh debug metrics`.
    pub fn metric(&self, name: &str) -> Result<u64> {
        let metrics = self.mesh(&["debug", "metrics"])?;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("no metric {name}"))?.parse()?)
    }

    /// Ends it and waits for a clean end.
    pub fn stop(mut self) -> Result<()> {
        self.process.signal("TERM")?;
        let status = self.process.wait(Duration::from_secs(2))?;
        ensure!(status.success(), "meshd ended with {status}: {}", self.process.output());
        Ok(())
    }
}

/// Runs `mesh` in a host.
pub fn mesh(node: &Node, socket: &std::path::Path, words: &[&str]) -> Result<Output> {
    let program = built("mesh")?;
    let mut line = vec![text_of(&program)?, "--socket", text_of(socket)?];
    line.extend(words);
    node.try_run(&line)
}

/// Pings until the first answer, within ten seconds.
pub fn reach(node: &Node, address: &str) -> Result<()> {
    let once = || Ok(node.try_run(&["ping", "-n", "-c", "1", "-W", "1", address])?.status.success().then_some(()));
    until(&format!("{} reaches {address}", node.name()), Duration::from_secs(10), once)
}

/// Pings until the first answer, and then `count` times; every one must be answered.
pub fn reach_all(node: &Node, address: &str, count: u32) -> Result<()> {
    reach(node, address)?;
    answers_all(node, address, count, 56)
}

/// Pings of so many bytes, one after the other; every one must be answered, however late. One program each: `ping -c`
/// is content with a single answer, and with a deadline it replaces what was lost.
pub fn answers_all(node: &Node, address: &str, count: u32, bytes: u32) -> Result<()> {
    let bytes = bytes.to_string();
    (0..count).try_for_each(|_| node.run(&["ping", "-n", "-q", "-c", "1", "-W", "10", "-s", &bytes, address]).map(drop))
}

/// Two hosts on one cable: 192.0.2.1 and 192.0.2.2, 2001:db8::1 and 2001:db8::2.
pub fn two_hosts() -> Result<(Lab, Node, Node)> {
    let mut lab = Lab::new()?;
    let (a, b) = (lab.node("a")?, lab.node("b")?);
    lab.cable((&a, "eth0", &["192.0.2.1/24", "2001:db8::1/64"]), (&b, "eth0", &["192.0.2.2/24", "2001:db8::2/64"]))?;
    Ok((lab, a, b))
}

/// The addresses that tests give to two ends of a tunnel.
pub const A: [&str; 2] = ["10.7.0.1", "fd77::1"];
/// The other end.
pub const B: [&str; 2] = ["10.7.0.2", "fd77::2"];

/// Files for two ends; `a` knows where `b` is at `endpoint`, `b` learns where `a` is.
pub fn two_files(endpoint: &str, more: &[&str]) -> Result<(StaticFile, StaticFile)> {
    let (a, b) = (Keys::new()?, Keys::new()?);
    let address = |[v4, v6]: [&str; 2]| format!("Address = {v4}/32, {v6}/128");
    let allowed = |[v4, v6]: [&str; 2]| format!("AllowedIPs = {v4}/32, {v6}/128");
    let endpoint = format!("Endpoint = {endpoint}");
    let (allowed_a, allowed_b) = (allowed(A), allowed(B));
    let mut lines = vec![allowed_b.as_str(), &endpoint];
    lines.extend(more);
    let file_a = StaticFile::new(&a, &[&address(A), "ListenPort = 51820"]).peer(&b, &lines);
    let file_b = StaticFile::new(&b, &[&address(B), "ListenPort = 51820"]).peer(&a, &[&allowed_a]);
    Ok((file_a, file_b))
}

/// A TCP transfer for `seconds` from `client` to the address of `server`, or back with `reverse`; returns Mbit/s at
/// the receiver.
pub fn transfer(client: &Node, server: &Node, address: &str, seconds: u32, reverse: bool) -> Result<f64> {
    let iperf = server.spawn(&["iperf3", "--server", "--one-off", "--forceflush"])?;
    iperf.wait_for("Server listening", Duration::from_secs(10))?;
    let time = seconds.to_string();
    let mut line = vec!["iperf3", "--json", "--client", address, "--time", &time, "--connect-timeout", "5000"];
    if reverse {
        line.push("--reverse");
    }
    let result: Value = serde_json::from_str(&client.run(&line)?)?;
    let bits = result["end"]["sum_received"]["bits_per_second"].as_f64().context("no sum")?;
    Ok(bits / 1e6)
}

fn text_of(path: &std::path::Path) -> Result<&str> {
    path.to_str().context("a path that is not text")
}
