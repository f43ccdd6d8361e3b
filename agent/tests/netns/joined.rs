//! Homes whose agents join a control server, which stands on the segment beside the relay.
//!
//! The relay is a program of its own, so that a restart of control is only that.

#![allow(dead_code, reason = "shared by two suites, neither of which needs all of it")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rcgen::{CertificateParams, KeyPair};
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

/// What the programs log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Log {
    /// Everything that helps to find out why a test fails.
    #[default]
    All,
    /// What they log when nobody says anything about it.
    Usual,
}

impl Log {
    fn flags(self, all: &'static str) -> Vec<&'static str> {
        match self {
            Self::All => vec!["--log", all],
            Self::Usual => Vec::new(),
        }
    }
}

/// A control server on a host of its own.
pub(crate) struct Control {
    pub(crate) node: Node,
    pub(crate) process: Option<Process>,
    pub(crate) address: String,
    log: Log,
    pub(crate) state: PathBuf,
    pub(crate) socket: PathBuf,
    derp_map: PathBuf,
    /// What it is started with: words before the program's name.
    pub(crate) prefix: Vec<String>,
    /// Chain and key, when it is reached over https.
    certificate: Option<(PathBuf, PathBuf)>,
}

/// An agent that joins.
pub(crate) struct Agent {
    pub(crate) node: Node,
    pub(crate) process: Option<Process>,
    pub(crate) socket: PathBuf,
    pub(crate) state: PathBuf,
    /// What it is started with: words before the program's name.
    pub(crate) prefix: Vec<String>,
    /// Whom it trusts beside the host's roots.
    trust: Option<PathBuf>,
    log: Log,
}

impl Joined {
    /// A control server, and a home for each of `nats` with an agent that runs and has not joined.
    pub(crate) fn new(nats: &[Nat]) -> Result<Self> {
        Self::that_logs(Log::All, nats)
    }

    fn that_logs(log: Log, nats: &[Nat]) -> Result<Self> {
        let mut homes = Homes::new(nats)?;
        let mut control = Control::place(&mut homes, 0)?;
        control.log = log;
        control.begin()?;
        let mut agents = Vec::new();
        for member in &homes.members {
            agents.push(Agent::new(&member.node, &control)?);
        }
        Ok(Self { homes, agents, control })
    }

    /// The same, joined, with a policy that allows everything.
    pub(crate) fn up(nats: &[Nat]) -> Result<Self> {
        Self::up_that_logs(Log::All, nats)
    }

    /// The same, with what the programs log.
    pub(crate) fn up_that_logs(log: Log, nats: &[Nat]) -> Result<Self> {
        let joined = Self::that_logs(log, nats)?;
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

/// A host for a control server on a cable of its own to the segment, and its address; `number` is 0 or 1.
pub(crate) fn on_segment(homes: &mut Homes, number: u8) -> Result<(Node, String)> {
    let node = homes.lab.node(&format!("control{number}"))?;
    let (ours, address) = (format!("203.0.113.{}", 241 + 4 * number), format!("203.0.113.{}", 242 + 4 * number));
    let device = format!("control{number}");
    homes
        .lab
        .cable((&homes.segment, &device, &[&format!("{ours}/30")]), (&node, "eth0", &[&format!("{address}/30")]))?;
    node.route(&format!("default via {ours}"))?;
    Ok((node, address))
}

/// A certificate for control.lab that nobody trusts who is not told to, chain and key, for the server on `node`; every
/// member knows the name.
pub(crate) fn certificate(node: &Node, homes: &Homes, address: &str) -> Result<(PathBuf, PathBuf)> {
    let (chain, file) = (node.path("tls.crt"), node.path("tls.key"));
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(["control.lab".to_owned()])?.self_signed(&key)?;
    fs::write(&chain, certificate.pem())?;
    fs::write(&file, key.serialize_pem())?;
    let line = format!("echo {address} control.lab >> /etc/hosts");
    homes.members.iter().try_for_each(|member| member.node.run(&["sh", "-c", &line]).map(drop))?;
    Ok((chain, file))
}

/// Waits until the map is in an agent's state directory, with peers.
pub(crate) fn wait_for_kept_map(node: &Node, state: &Path) -> Result<()> {
    let file = state.join("state.json");
    until("the map is kept", PATIENCE, || {
        // Its disk may be seen from its host alone.
        let text = node.run(&["cat", file.to_str().context("a path that is not text")?])?;
        let kept: Value = serde_json::from_str(&text)?;
        Ok(kept["Map"]["Peers"].as_array().is_some_and(|peers| !peers.is_empty()).then_some(()))
    })
}

impl Control {
    /// A server that runs, with a user, on a cable of its own to the segment; `number` is 0 or 1.
    pub(crate) fn new(homes: &mut Homes, number: u8) -> Result<Self> {
        let mut control = Self::place(homes, number)?;
        control.begin()?;
        Ok(control)
    }

    /// The same over https, as control.lab, with a certificate that nobody trusts who is not told to. Port 80 is served
    /// as well: there stock clients ask first.
    pub(crate) fn with_certificate(homes: &mut Homes) -> Result<Self> {
        let mut control = Self::place(homes, 0)?;
        let certificate = certificate(&control.node, homes, &control.address)?;
        control.certificate = Some(certificate);
        control.begin()?;
        Ok(control)
    }

    /// One that does not run yet.
    pub(crate) fn place(homes: &mut Homes, number: u8) -> Result<Self> {
        let (node, address) = on_segment(homes, number)?;
        let (state, socket, derp_map) = (node.path("state"), node.path("control.sock"), node.path("derp-map.json"));
        fs::write(&derp_map, serde_json::to_string_pretty(&homes.relay.derp_map()?)?)?;
        Ok(Self {
            node,
            process: None,
            address,
            log: Log::All,
            state,
            socket,
            derp_map,
            prefix: Vec::new(),
            certificate: None,
        })
    }

    /// Starts it, and makes its first user.
    pub(crate) fn begin(&mut self) -> Result<()> {
        self.start()?;
        self.run(&["users", "create", "lab"]).map(drop)
    }

    /// The certificate, for `SSL_CERT_FILE`.
    pub(crate) fn certificate(&self) -> Option<&PathBuf> {
        self.certificate.as_ref().map(|(chain, _)| chain)
    }

    /// What agents are told.
    pub(crate) fn url(&self) -> String {
        match &self.certificate {
            Some(_) => "https://control.lab".to_owned(),
            None => format!("http://{}:8080", self.address),
        }
    }

    pub(crate) fn start(&mut self) -> Result<()> {
        let (program, url, listen) = (built("mesh-control")?, self.url(), format!("{}:8080", self.address));
        let path = |path: &PathBuf| path.to_str().map(ToOwned::to_owned).context("a path that is not text");
        let (program, state, socket, map) =
            (path(&program)?, path(&self.state)?, path(&self.socket)?, path(&self.derp_map)?);
        let mut line: Vec<String> = [&program, "serve", "--server-url", &url, "--relay", "none", "--derp-map", &map]
            .iter()
            .chain(&["--state-dir", &state, "--socket", &socket, "--base-domain", "lab.internal"])
            .chain(&self.log.flags("debug"))
            .map(ToString::to_string)
            .collect();
        match &self.certificate {
            Some((chain, key)) => {
                line.extend(["--tls-cert".to_owned(), path(chain)?, "--tls-key".to_owned(), path(key)?]);
            }
            None => line.extend(["--listen".to_owned(), listen]),
        }
        let line: Vec<_> = self.prefix.iter().chain(&line).map(String::as_str).collect();
        let process = self.node.spawn(&line)?;
        process.wait_for("ready", PATIENCE)?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Runs a command of the operator, which must succeed.
    pub(crate) fn run(&self, words: &[&str]) -> Result<String> {
        let output = self.try_run(words)?;
        ensure!(output.status.success(), "mesh-control {words:?}: {}: {}", output.status, text(&output));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a command of the operator, whatever comes of it.
    pub(crate) fn try_run(&self, words: &[&str]) -> Result<Output> {
        let (program, socket) =
            (built("mesh-control")?, self.socket.to_str().context("a path that is not text")?.to_owned());
        let program = program.to_str().context("a path that is not text")?;
        self.node.try_run(&[&[program, "--socket", &socket], words].concat())
    }

    /// What it has logged since its start.
    pub(crate) fn output(&self) -> String {
        self.process.as_ref().map(Process::output).unwrap_or_default()
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
    /// One that runs and has not joined. It trusts the server's certificate.
    pub(crate) fn new(node: &Node, control: &Control) -> Result<Self> {
        let (socket, state) = (node.path("meshd.sock"), node.path("joined"));
        let trust = control.certificate().cloned();
        let prefix = Vec::new();
        let mut agent = Self { node: node.clone(), process: None, socket, state, prefix, trust, log: control.log };
        agent.start()?;
        Ok(agent)
    }

    /// Starts the daemon and waits until it is ready.
    pub(crate) fn start(&mut self) -> Result<()> {
        let path = |path: &PathBuf| path.to_str().map(ToOwned::to_owned).context("a path that is not text");
        let (program, socket, state) = (path(&built("meshd")?)?, path(&self.socket)?, path(&self.state)?);
        let flags = self.log.flags("debug,mesh_core=trace");
        let line = ["--socket", &socket, "--state-dir", &state];
        let line = [&[&*program][..], &line, &flags].concat();
        let trust = self.trust.as_ref().map(|file| format!("SSL_CERT_FILE={}", file.display()));
        let trust = trust.as_ref().map(|trust| ["env", trust]);
        let prefix: Vec<_> = self.prefix.iter().map(String::as_str).collect();
        let line = [&prefix, trust.as_ref().map(<[&str; 2]>::as_slice).unwrap_or_default(), &line].concat();
        let process = self.node.spawn(&line)?;
        process.wait_for("ready", PATIENCE)?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills the daemon without a word.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// What it has logged.
    pub(crate) fn output(&self) -> String {
        self.process.as_ref().map(Process::output).unwrap_or_default()
    }

    /// The end of what it has logged.
    pub(crate) fn log(&self) -> String {
        let all = self.output();
        let lines: Vec<_> = all.lines().filter(|line| !line.contains(" TRACE ")).collect();
        lines.get(lines.len().saturating_sub(30)..).unwrap_or_default().join("\n")
    }

    /// Waits until what it needs to start alone is on disk.
    pub(crate) fn wait_for_kept_map(&self) -> Result<()> {
        wait_for_kept_map(&self.node, &self.state)
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

    pub(crate) fn try_mesh(&self, words: &[&str]) -> Result<Output> {
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
