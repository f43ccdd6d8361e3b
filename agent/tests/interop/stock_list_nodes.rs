//! A node of the list: a stock client or our agent, which are spoken to in the same words.

use std::{
    path::PathBuf,
    process::Output,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::{
    super::{
        joined::{PATIENCE, wait_for_kept_map},
        lab::{Node, Process, built, text, until},
    },
    stock_list::{TAILSCALE, TAILSCALED},
};

/// Whose program it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `tailscaled` and `tailscale`.
    Stock,
    /// `meshd` and `mesh`.
    Ours,
}

/// A daemon on a host of the lab, and its command line.
pub(crate) struct Client {
    pub(crate) node: Node,
    pub(crate) kind: Kind,
    process: Option<Process>,
    socket: PathBuf,
    state: PathBuf,
}

impl Client {
    /// One that runs and has not joined.
    pub(crate) fn new(node: &Node, kind: Kind) -> Result<Self> {
        let (socket, state) = (node.path("client.sock"), node.path("client"));
        let mut client = Self { node: node.clone(), kind, process: None, socket, state };
        client.start()?;
        Ok(client)
    }

    pub(crate) fn name(&self) -> &str {
        self.node.name()
    }

    /// Starts the daemon and waits until it can be spoken to.
    pub(crate) fn start(&mut self) -> Result<()> {
        let (socket, state) = (self.socket.display().to_string(), self.state.display().to_string());
        let process = match self.kind {
            Kind::Stock => {
                let program = TAILSCALED.path()?;
                let line = ["env", "TS_NO_LOGS_NO_SUPPORT=true", &program, "--tun", "tailscale0", "--port", "41641"];
                self.node.spawn(&[&line[..], &["--socket", &socket, "--statedir", &state]].concat())?
            }
            Kind::Ours => {
                let program = built("meshd")?.display().to_string();
                self.node.spawn(&[&program, "--socket", &socket, "--state-dir", &state, "--log", "debug"])?
            }
        };
        self.process = Some(process);
        let answers = || Ok(self.try_run(&["status", "--json"])?.status.success().then_some(()));
        until(&format!("{} can be spoken to", self.name()), PATIENCE, answers)
    }

    /// Kills the daemon without a word.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    fn line<'a>(&'a self, program: &'a str, words: &[&'a str]) -> Result<Vec<&'a str>> {
        let socket = self.socket.to_str().context("a path that is not text")?;
        Ok([&[program, "--socket", socket], words].concat())
    }

    fn program(&self) -> Result<String> {
        match self.kind {
            Kind::Stock => TAILSCALE.path(),
            Kind::Ours => Ok(built("mesh")?.display().to_string()),
        }
    }

    /// Runs its command line to the end.
    pub(crate) fn try_run(&self, words: &[&str]) -> Result<Output> {
        self.node.try_run(&self.line(&self.program()?, words)?)
    }

    /// Runs its command line, which must succeed.
    pub(crate) fn run(&self, words: &[&str]) -> Result<String> {
        let output = self.try_run(words)?;
        ensure!(output.status.success(), "{}: {words:?}: {}: {}", self.name(), output.status, text(&output));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts its command line.
    pub(crate) fn spawn(&self, words: &[&str]) -> Result<Process> {
        self.node.spawn(&self.line(&self.program()?, words)?)
    }

    /// The words of `up` at this server.
    pub(crate) fn up_words<'a>(&'a self, url: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let words = ["up", "--login-server", url, "--hostname", self.name(), "--reset", "--timeout", "60s"];
        [&words, more].concat()
    }

    /// `up`, whatever comes of it, and how long it took. The list does in a minute what others do in a year, and a
    /// server may say that it is too much at once: then again.
    pub(crate) fn try_up(&self, url: &str, more: &[&str]) -> Result<(Duration, Output)> {
        until(&format!("{} may register", self.name()), PATIENCE, || {
            let began = Instant::now();
            let output = self.try_run(&self.up_words(url, more))?;
            Ok((!is_too_often(&text(&output))).then_some((began.elapsed(), output)))
        })
    }

    /// `up`, which must succeed; returns how long it took.
    pub(crate) fn up(&self, url: &str, more: &[&str]) -> Result<Duration> {
        let (took, output) = self.try_up(url, more)?;
        ensure!(output.status.success(), "{}: up {more:?}: {}: {}", self.name(), output.status, text(&output));
        Ok(took)
    }

    /// `up` without a key: waits for the page that it names, visits it there, and returns the code on it beside what
    /// waits for it.
    pub(crate) fn begin_sign_in(&self, url: &str) -> Result<(Process, String)> {
        let mut up = self.spawn(&self.up_words(url, &[]))?;
        let start = format!("{url}/register/");
        let page = until("the page", PATIENCE, || {
            // It may begin with what the one before was refused for.
            let output = up.output();
            if is_too_often(&output) || output.contains("backend error") {
                up = self.spawn(&self.up_words(url, &[]))?;
            }
            Ok(up.output().split_whitespace().find(|word| word.starts_with(&start)).map(ToOwned::to_owned))
        });
        let page = page.with_context(|| up.output())?;
        let shown = self.node.run(&["curl", "-sS", "--fail", "--max-time", "20", &page])?;
        let code = page.rsplit('/').next().context("no code")?.to_owned();
        ensure!(shown.contains(&code), "{shown}");
        Ok((up, code))
    }

    pub(crate) fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.run(&["status", "--json"])?)?)
    }

    /// What `BackendState` of its status is.
    pub(crate) fn state(&self) -> Result<String> {
        Ok(self.status()?["BackendState"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits for a `BackendState`; returns how long that took.
    pub(crate) fn wait_for_state(&self, state: &str) -> Result<Duration> {
        let began = Instant::now();
        let what = format!("{} is {state}", self.name());
        until(&what, PATIENCE, || Ok((self.state()? == state).then_some(())))?;
        Ok(began.elapsed())
    }

    /// Its own address of this family in the overlay.
    pub(crate) fn address(&self, family: &str) -> Result<String> {
        Ok(self.run(&["ip", family])?.trim().to_owned())
    }

    /// The peer with this overlay address, as its status has it.
    pub(crate) fn peer(&self, address: &str) -> Result<Option<Value>> {
        let status = self.status()?;
        let mut peers = status["Peer"].as_object().into_iter().flat_map(Map::values);
        let is_meant = |peer: &&Value| {
            let addresses = peer["TailscaleIPs"].as_array();
            addresses.is_some_and(|addresses| addresses.contains(&json!(address)))
        };
        Ok(peers.find(is_meant).cloned())
    }

    /// Waits until a peer is as wanted; returns it.
    pub(crate) fn wait_for_peer(&self, address: &str, wanted: impl Fn(Option<&Value>) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        let found = until(&format!("{} sees {address} otherwise", self.name()), PATIENCE, || {
            let peer = self.peer(address)?;
            last = peer.clone().unwrap_or_default();
            Ok(wanted(peer.as_ref()).then(|| peer.unwrap_or_default()))
        });
        found.with_context(|| last.to_string())
    }

    /// One ICMP echo to an overlay address; whether it was answered soon.
    pub(crate) fn echo(&self, address: &str) -> Result<bool> {
        Ok(self.node.try_run(&["ping", "-n", "-c", "1", "-W", "0.3", address])?.status.success())
    }

    /// ICMP until the first answer; how long that took.
    pub(crate) fn reach(&self, address: &str) -> Result<Duration> {
        let began = Instant::now();
        until(&format!("{} reaches {address}", self.name()), PATIENCE, || Ok(self.echo(address)?.then_some(())))
            .with_context(|| one_line_of(&self.try_run(&["status"])))?;
        Ok(began.elapsed())
    }

    /// Its own pings until one is answered from an endpoint that begins so; the answers on the way.
    pub(crate) fn ping_until(&self, address: &str, via: &str) -> Result<Vec<String>> {
        let mut answers = Vec::new();
        let what = format!("{}: a pong of {address} via {via}", self.name());
        let found = until(&what, PATIENCE, || {
            let output = self.try_run(&["ping", "-c", "1", "--until-direct=false", "--timeout", "2s", address])?;
            let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            let way = said.split(" via ").nth(1).and_then(|rest| rest.split(" in ").next()).map(ToOwned::to_owned);
            answers.push(way.unwrap_or(said));
            Ok(answers.last().is_some_and(|way| way.starts_with(via)).then_some(()))
        });
        found.with_context(|| answers.join(", "))?;
        Ok(answers)
    }

    /// Waits until the map is in the state file; stock clients have none.
    pub(crate) fn wait_for_kept_map(&self) -> Result<()> {
        if self.kind == Kind::Stock {
            return Ok(());
        }
        wait_for_kept_map(&self.node, &self.state)
    }
}

/// Whether a server says that the node comes too often.
fn is_too_often(said: &str) -> bool {
    said.contains("rate limited") || said.contains("too often")
}

/// Whether a peer that was there has signed out, by its entry in a status.
pub(crate) fn is_gone(peer: Option<&Value>) -> bool {
    peer.is_none_or(|peer| peer["Online"] == false || peer["Expired"] == true)
}

/// What a command wrote, for messages.
fn one_line_of(output: &Result<Output>) -> String {
    output.as_ref().map(text).unwrap_or_default()
}

/// ICMP echoes one after the other, with the time of each answer.
pub(crate) struct Pings(Process);

impl Pings {
    /// Begins, and waits for some answers.
    pub(crate) fn start(from: &Node, address: &str) -> Result<Self> {
        let pings = Self(from.spawn(&["ping", "-D", "-n", "-i", "0.02", address])?);
        until("answers", PATIENCE, || Ok((pings.answers().len() > 5).then_some(())))?;
        Ok(pings)
    }

    /// When they came, in seconds of Unix time.
    pub(crate) fn answers(&self) -> Vec<f64> {
        let output = self.0.output();
        let answers = output.lines().filter(|line| line.contains(" bytes from "));
        answers.filter_map(|line| line.strip_prefix('[')?.split(']').next()?.parse().ok()).collect()
    }

    /// Waits until none came for half a second; how long after `began` the last one did.
    pub(crate) fn last_after(&self, began: f64) -> Result<Duration> {
        until("no answers any more", PATIENCE, || {
            let last = self.answers().last().copied().unwrap_or_default();
            Ok((unix_now() - last.max(began) > 0.5).then(|| Duration::from_secs_f64((last - began).max(0.0))))
        })
    }

    /// Waits for one after `began`; how long after.
    pub(crate) fn first_after(&self, began: f64) -> Result<Duration> {
        until("answers again", PATIENCE, || {
            let first = self.answers().into_iter().find(|answer| *answer > began);
            Ok(first.map(|first| Duration::from_secs_f64(first - began)))
        })
    }
}

/// Now, as `ping -D` has it.
pub(crate) fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
