//! Many nodes in one program, which speaks to control alone.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use benches::lab;
use serde_json::Value;

use crate::server::Server;

/// A running fleet; it ends when this is dropped.
pub(crate) struct Fleet {
    child: Child,
    words: ChildStdin,
    events: BufReader<ChildStdout>,
    keys: PathBuf,
}

impl Fleet {
    /// Starts it; the nodes take the keys in turn. In the end each sees `peers` others, or all.
    pub(crate) fn start(
        server: &Server,
        keys: &[String],
        nodes: u32,
        at_once: u32,
        peers: Option<u32>,
    ) -> Result<Self> {
        let file = server.state.join("fleet-keys");
        fs::write(&file, keys.join("\n"))?;
        let mut command = Command::new(lab::peers::program()?);
        command.args(["fleet", "--control", &server.url, "--patience", "10m"]).arg("--keys").arg(&file);
        command.args(["--nodes", &nodes.to_string(), "--at-once", &at_once.to_string()]);
        command.args(["--pid", &server.process().to_string()]);
        if let Some(peers) = peers {
            command.args(["--peers", &peers.to_string()]);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let words = child.stdin.take().context("its input")?;
        let events = BufReader::new(child.stdout.take().context("its output")?);
        Ok(Self { child, words, events, keys: file })
    }

    /// The next event, which has this name.
    pub(crate) fn event(&mut self, name: &str) -> Result<Value> {
        let mut line = String::new();
        ensure!(self.events.read_line(&mut line)? > 0, "the fleet ended before it said {name}");
        let event: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        if event["event"] != name {
            bail!("the fleet was to say {name}, and said {event}");
        }
        Ok(event)
    }

    /// Has something happen.
    pub(crate) fn ask(&mut self, word: &str) -> Result<Value> {
        writeln!(self.words, "{word}")?;
        self.event(if word == "reopen" { "reopened" } else { word })
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // It is gone in any case.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.keys);
    }
}
