//! The relays that are compared, as running programs.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};
use benches::lab;

/// Clock ticks a second in /proc (USER_HZ, 100 on every Linux).
const TICKS: f64 = 100.0;

/// A relay that can be started.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    program: PathBuf,
    is_ours: bool,
}

/// All that can be started here; ours first.
pub(crate) fn kinds() -> Result<Vec<Kind>> {
    let ours = lab::built("mesh-relay").context("cargo build --release -p relay builds it")?;
    let published = lab::peers::program()?;
    Ok(vec![
        Kind { name: "mesh-relay", program: ours, is_ours: true },
        Kind { name: "derpserver", program: published, is_ours: false },
    ])
}

/// A running relay; it ends when this is dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    state: PathBuf,
}

impl Server {
    /// Starts one with a certificate of its own, on a port that is free.
    pub(crate) fn start(kind: &Kind) -> Result<Self> {
        let state = std::env::temp_dir().join(format!("mesh-bench-relay-{}", std::process::id()));
        let mut command = Command::new(&kind.program);
        if kind.is_ours {
            command.args(["serve", "--open", "--host", "127.0.0.1", "--listen", "127.0.0.1:0"]);
            command.args(["--stun-listen", "127.0.0.1:0", "--log", "error", "--state-dir"]).arg(&state);
        } else {
            command.arg("derpserver");
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
        let address = if kind.is_ours {
            line.split_whitespace().find_map(|word| word.strip_prefix("derp=")).map(str::to_owned)
        } else {
            let ready: serde_json::Value = serde_json::from_str(&line)?;
            ready["derp"].as_str().map(str::to_owned)
        };
        let address = address.with_context(|| format!("no address in {line:?}"))?.parse()?;
        Ok(Self { child, address, state })
    }

    /// CPU seconds that it has used.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<_> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok());
        Ok((ticks(11).context("user time")? + ticks(12).context("system time")?) / TICKS)
    }

    /// Memory that it holds.
    pub(crate) fn resident_kib(&self) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim_end_matches("kB").trim().parse()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It is gone in any case.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.state);
    }
}
