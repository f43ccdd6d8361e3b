//! A running mesh-control with an empty database.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, ensure};
use benches::lab;
use serde_json::{Value, json};

/// Counters by name.
pub(crate) type Counters = BTreeMap<String, u64>;

/// It ends when this is dropped.
pub(crate) struct Server {
    child: Child,
    program: PathBuf,
    metrics: SocketAddr,
    pub(crate) state: PathBuf,
    pub(crate) url: String,
}

impl Server {
    /// Starts one with a policy and a user.
    pub(crate) fn start(policy: &Value) -> Result<Self> {
        static SERVERS: AtomicU32 = AtomicU32::new(0);
        let number = SERVERS.fetch_add(1, Ordering::Relaxed);
        let program = lab::built("mesh-control").context("cargo build --release -p control builds it")?;
        let state = std::env::temp_dir().join(format!("mesh-bench-control-{}-{number}", std::process::id()));
        fs::create_dir_all(&state)?;
        // Nobody connects to it: the fleet speaks to control alone.
        let relays = json!({"Regions": {"900": {"RegionID": 900, "RegionCode": "mesh", "RegionName": "mesh",
            "Nodes": [{"Name": "900a", "RegionID": 900, "HostName": "relay.invalid"}]}}});
        let (map, rules) = (state.join("derp-map.json"), state.join("policy.json"));
        fs::write(&map, relays.to_string())?;
        fs::write(&rules, policy.to_string())?;
        let (listen, metrics) = (free_address()?, free_address()?);
        let url = format!("http://{listen}");
        let mut command = Command::new(&program);
        command.args(["serve", "--server-url", &url, "--listen", &listen.to_string(), "--relay", "none"]);
        command.args(["--metrics-listen", &metrics.to_string(), "--log", "error"]);
        command.arg("--derp-map").arg(&map).arg("--state-dir").arg(&state).arg("--socket").arg(state.join("socket"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        let mut line = String::new();
        let ready = BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line);
        let server = Self { child, program, metrics, state, url };
        ensure!(ready? > 0 && line.starts_with("ready"), "mesh-control did not start");
        server.run(&["users", "create", "fleet"])?;
        server.run(&["policy", "set", rules.to_str().context("path")?])?;
        Ok(server)
    }

    /// A reusable key.
    pub(crate) fn key(&self, more: &[&str]) -> Result<String> {
        let line = [&["keys", "create", "--user", "fleet", "--reusable"], more].concat();
        Ok(self.run(&line)?.trim().to_owned())
    }

    /// Its counters.
    pub(crate) fn counters(&self) -> Result<Counters> {
        let mut stream = TcpStream::connect(self.metrics)?;
        write!(stream, "GET /metrics HTTP/1.0\r\nHost: {}\r\n\r\n", self.metrics)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let counter = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            let name = name.strip_prefix("mesh_control_").unwrap_or(name);
            Some((name.to_owned(), value.parse().ok()?))
        };
        Ok(text.lines().filter_map(counter).collect())
    }

    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// What it holds in memory.
    pub(crate) fn resident_kib(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim_end_matches("kB").trim().parse()?)
    }

    /// What it has used of CPU, to a tick of 10 ms.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process()))?;
        // Behind the name, which may contain anything.
        let (_, rest) = stat.rsplit_once(')').context("no name")?;
        let ticks = rest.split_whitespace().skip(11).take(2).map(str::parse::<u32>);
        Ok(f64::from(ticks.sum::<Result<u32, _>>()?) / 100.0)
    }

    fn run(&self, line: &[&str]) -> Result<String> {
        let Output { status, stdout, stderr } =
            Command::new(&self.program).arg("--socket").arg(self.state.join("socket")).args(line).output()?;
        ensure!(status.success(), "mesh-control {}: {}", line.join(" "), String::from_utf8_lossy(&stderr));
        Ok(String::from_utf8(stdout)?)
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

/// An address that nobody listens on just now.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}
