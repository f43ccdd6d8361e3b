//! Homes whose agents join a control server, which stands on the segment beside the relay.
//!
//! The relay is a program of its own, so that a restart of control is only that.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    agents,
    homes::{Homes, Nat},
    lab::{Node, Process, built, text, until},
};

/// How long is waited for what has to happen: never how fast it is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Everybody may do everything.
pub(crate) const ALLOW: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;

/// Nobody here may do anything.
pub(crate) const DENY: &str =
    r#"{"acls": [{"action": "accept", "src": ["100.64.99.98"], "dst": ["100.64.99.99:22"]}]}"#;

/// Says how long something took: for people, who see it with `--nocapture`. Nothing hangs on it.
#[expect(clippy::print_stdout, reason = "figures of a test")]
pub(crate) fn note(line: impl core::fmt::Display) {
    println!("{line}");
}

/// Homes with agents, a relay, and control servers.
pub(crate) struct Joined {
    pub(crate) homes: Homes,
    pub(crate) agents: Vec<Agent>,
    pub(crate) control: Control,
}

/// A control server on a host of its own.
pub(crate) struct Control {
    pub(crate) node: Node,
    process: Option<Process>,
    address: String,
    state: PathBuf,
    socket: PathBuf,
    derp_map: PathBuf,
}

/// An agent that joins.
pub(crate) struct Agent {
    pub(crate) node: Node,
    pub(crate) process: Option<Process>,
    socket: PathBuf,
    state: PathBuf,
}

impl Joined {
    /// A control server, and a home for each of `nats` with an agent that runs and has not joined.
    pub(crate) fn new(nats: &[Nat]) -> Result<Self> {
        let mut homes = Homes::new(nats)?;
        let control = Control::new(&mut homes, 0)?;
        let mut agents = Vec::new();
        for member in &homes.members {
            let (socket, state) = (member.node.path("meshd.sock"), member.node.path("joined"));
            let mut agent = Agent { node: member.node.clone(), process: None, socket, state };
            agent.start()?;
            agents.push(agent);
        }
        Ok(Self { homes, agents, control })
    }

    /// The same, joined, with a policy that allows everything.
    pub(crate) fn up(nats: &[Nat]) -> Result<Self> {
        let joined = Self::new(nats)?;
        joined.control.set_policy(ALLOW)?;
        let key = joined.control.key(&["--reusable"])?;
        for agent in &joined.agents {
            agent.up(&joined.control, &key)?;
        }
        for agent in &joined.agents {
            let others = joined.agents.len() - 1;
            until("all peers are known", PATIENCE, || Ok((agent.peers()?.len() == others).then_some(())))?;
        }
        Ok(joined)
    }
}

impl Control {
    /// A server that runs, with a user, on a cable of its own to the segment; `number` is 0 or 1.
    pub(crate) fn new(homes: &mut Homes, number: u8) -> Result<Self> {
        let node = homes.lab.node(&format!("control{number}"))?;
        let (ours, address) = (format!("203.0.113.{}", 241 + 4 * number), format!("203.0.113.{}", 242 + 4 * number));
        let device = format!("control{number}");
        homes
            .lab
            .cable((&homes.segment, &device, &[&format!("{ours}/30")]), (&node, "eth0", &[&format!("{address}/30")]))?;
        node.route(&format!("default via {ours}"))?;
        let (state, socket, derp_map) = (node.path("state"), node.path("control.sock"), node.path("derp-map.json"));
        fs::write(&derp_map, serde_json::to_string_pretty(&homes.relay.derp_map()?)?)?;
        let mut control = Self { node, process: None, address, state, socket, derp_map };
        control.start()?;
        control.run(&["users", "create", "lab"])?;
        Ok(control)
    }

    /// What agents are told.
    pub(crate) fn url(&self) -> String {
        format!("http://{}:8080", self.address)
    }

    pub(crate) fn start(&mut self) -> Result<()> {
        let (program, url, listen) = (built("mesh-control")?, self.url(), format!("{}:8080", self.address));
        let path = |path: &PathBuf| path.to_str().map(ToOwned::to_owned).context("a path that is not text");
        let (program, state, socket, map) =
            (path(&program)?, path(&self.state)?, path(&self.socket)?, path(&self.derp_map)?);
        let line = [&program, "serve", "--server-url", &url, "--listen", &listen, "--relay", "none"];
        let more = ["--derp-map", &map, "--state-dir", &state, "--socket", &socket, "--base-domain", "lab.internal"];
        let process = self.node.spawn(&[&line[..], &more, &["--log", "debug"]].concat())?;
        process.wait_for("ready", PATIENCE)?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Runs a command of the operator.
    pub(crate) fn run(&self, words: &[&str]) -> Result<String> {
        let (program, socket) =
            (built("mesh-control")?, self.socket.to_str().context("a path that is not text")?.to_owned());
        let program = program.to_str().context("a path that is not text")?;
        self.node.run(&[&[program, "--socket", &socket], words].concat())
    }

    /// A key to join with.
    pub(crate) fn key(&self, flags: &[&str]) -> Result<String> {
        Ok(self.run(&[&["keys", "create", "--user", "lab"], flags].concat())?.trim().to_owned())
    }

    pub(crate) fn set_policy(&self, policy: &str) -> Result<()> {
        let path = self.node.path("policy.hujson");
        fs::write(&path, policy)?;
        self.run(&["policy", "set", path.to_str().context("a path that is not text")?]).map(drop)
    }
}

impl Agent {
    /// Starts the daemon and waits until it is ready.
    pub(crate) fn start(&mut self) -> Result<()> {
        let path = |path: &PathBuf| path.to_str().map(ToOwned::to_owned).context("a path that is not text");
        let (program, socket, state) = (path(&built("meshd")?)?, path(&self.socket)?, path(&self.state)?);
        let line = [&program, "--socket", &socket, "--state-dir", &state, "--log", "debug,mesh_core=trace"];
        let process = self.node.spawn(&line)?;
        process.wait_for("ready", PATIENCE)?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills the daemon without a word.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// The end of what it has logged.
    fn log(&self) -> String {
        let all = self.process.as_ref().map(Process::output).unwrap_or_default();
        let lines: Vec<_> = all.lines().filter(|line| !line.contains(" TRACE ")).collect();
        lines.get(lines.len().saturating_sub(30)..).unwrap_or_default().join("\n")
    }

    /// Waits until what it needs to start alone is on disk.
    pub(crate) fn wait_for_kept_map(&self) -> Result<()> {
        until("the map is kept", PATIENCE, || {
            let kept: Value = serde_json::from_str(&fs::read_to_string(self.state.join("state.json"))?)?;
            let others = kept["Map"]["Peers"].as_array();
            Ok(others.is_some_and(|peers| !peers.is_empty()).then_some(()))
        })
    }

    /// Joins; returns how long `mesh up` took.
    pub(crate) fn up(&self, control: &Control, key: &str) -> Result<Duration> {
        let began = Instant::now();
        let (url, name) = (control.url(), self.node.name().to_owned());
        let words = ["up", "--login-server", &url, "--auth-key", key, "--hostname", &name, "--timeout", "60s"];
        self.mesh(&words).with_context(|| self.log())?;
        Ok(began.elapsed())
    }

    /// Runs `mesh`, which must succeed; returns what it wrote.
    pub(crate) fn mesh(&self, words: &[&str]) -> Result<String> {
        let output = self.try_mesh(words)?;
        ensure!(output.status.success(), "{}: mesh {words:?}: {}", self.node.name(), text(&output));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub(crate) fn try_mesh(&self, words: &[&str]) -> Result<std::process::Output> {
        agents::mesh(&self.node, &self.socket, words)
    }

    pub(crate) fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.mesh(&["status", "--json"])?)?)
    }

    /// The peers, as the status has them.
    pub(crate) fn peers(&self) -> Result<Vec<Value>> {
        let status = self.status()?;
        Ok(status["Peer"].as_object().map(|peers| peers.values().cloned().collect()).unwrap_or_default())
    }

    /// The peer of this name.
    pub(crate) fn peer(&self, name: &str) -> Result<Option<Value>> {
        let dns = format!("{name}.lab.internal.");
        Ok(self.peers()?.into_iter().find(|peer| peer["DNSName"] == json!(dns)))
    }

    /// Its own overlay address.
    pub(crate) fn address(&self) -> Result<String> {
        Ok(self.mesh(&["ip", "-4"])?.trim().to_owned())
    }

    /// One ICMP echo to an overlay address; whether it was answered.
    pub(crate) fn echo(&self, address: &str) -> Result<bool> {
        Ok(self.node.try_run(&["ping", "-n", "-c", "1", "-W", "1", address])?.status.success())
    }

    /// ICMP until the first answer; how long that took.
    pub(crate) fn reach(&self, address: &str) -> Result<Duration> {
        let began = Instant::now();
        let what = format!("{} reaches {address}", self.node.name());
        until(&what, PATIENCE, || Ok(self.echo(address)?.then_some(()))).with_context(|| self.log())?;
        Ok(began.elapsed())
    }

    /// Waits until its status has `state`.
    pub(crate) fn wait_for_state(&self, state: &str) -> Result<Value> {
        until(&format!("{} is {state}", self.node.name()), PATIENCE, || {
            let status = self.status()?;
            Ok((status["BackendState"] == state).then_some(status))
        })
    }

    /// Waits until control streams its map.
    pub(crate) fn wait_for_control(&self) -> Result<()> {
        until(&format!("{} hears of control", self.node.name()), PATIENCE, || {
            Ok((self.status()?["Self"]["Online"] == true).then_some(()))
        })
    }
}
