//! A lab of network namespaces for tests and demonstrations.
//!
//! A [`Node`] is a host of its own: a network namespace and a mount namespace with private copies of `/etc` and
//! `/run`, held by one sleeping process. Nothing has a name outside, nothing of the host is changed, and everything
//! goes with the holders: when the [`Lab`] is dropped, when a test panics, and also when the program is killed, for
//! every process started here dies with the thread that started it.
//!
//! Needs root and the programs `ip`, `nsenter`, `unshare`, `setpriv`, `mount`, and `nft`, `ethtool`, `wg` where those
//! are asked for. Self-contained: the standard library and `anyhow`, nothing of the workspace, so that others can use
//! this file by path.

#![allow(dead_code, unreachable_pub, reason = "not every user of this file needs all of it")]

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// Stock clients and a stock server.
#[path = "../peers/peers.rs"]
pub mod peers;

/// How long a command may take that is expected to end.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(90);

/// How often conditions are looked at.
const POLL: Duration = Duration::from_millis(20);

/// Why no lab can be built here, or `None`.
#[must_use]
pub fn missing() -> Option<String> {
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if !is_root {
        return Some("needs root".to_owned());
    }
    if !Path::new("/dev/net/tun").exists() {
        return Some("needs /dev/net/tun".to_owned());
    }
    let programs = ["ip", "nsenter", "unshare", "setpriv", "nft", "ping"];
    programs.into_iter().find(|program| find(program).is_none()).map(|program| format!("needs the program {program}"))
}

/// A program of this workspace, built beside the program that runs.
///
/// # Errors
/// When it was not built; says what to run.
pub fn built(name: &str) -> Result<PathBuf> {
    let own = env::current_exe()?;
    let directories = own.ancestors().skip(1).take(2);
    let found = directories.map(|directory| directory.join(name)).find(|path| path.is_file());
    found.with_context(|| {
        format!("the program {name} is not built; run: cargo build -p agent (with --release if this is)")
    })
}

/// A program on the search path, which services do not always have all of.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    env::split_paths(&path).chain(usual).map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// Calls `probe` until it returns something.
///
/// # Errors
/// When it does not within `timeout`; names `what`.
pub fn until<T>(what: &str, timeout: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        ensure!(start.elapsed() < timeout, "{what}: not within {timeout:?}");
        thread::sleep(POLL);
    }
}

/// Some hosts and the cables between them. Dropping it ends every process in it.
#[derive(Debug)]
pub struct Lab {
    directory: PathBuf,
    nodes: Vec<Node>,
    holders: Vec<Process>,
    cables: u32,
}

/// A host. Clones are the same host.
#[derive(Clone, Debug)]
pub struct Node {
    name: String,
    holder: u32,
    directory: PathBuf,
}

impl Lab {
    /// An empty lab with a directory of its own below the system's temporary one.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new() -> Result<Self> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let directory = env::temp_dir().join(format!("mesh-lab-{}-{number}", std::process::id()));
        fs::create_dir_all(&directory)?;
        // Programs under test may run as another user.
        fs::set_permissions(&directory, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
        Ok(Self { directory, nodes: Vec::new(), holders: Vec::new(), cables: 0 })
    }

    /// Where files of this lab are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A new host with a loopback device and nothing else.
    ///
    /// # Errors
    /// When namespaces cannot be made.
    pub fn node(&mut self, name: &str) -> Result<Node> {
        // The copy of /etc is writable, and what is written there is gone with the namespace.
        const HOLD: &str = "set -e; mount --make-rprivate /; mount -t tmpfs tmpfs /run; mkdir /run/lab-etc; \
             cp -a /etc/. /run/lab-etc/; mount --bind /run/lab-etc /etc; mount -t sysfs sysfs /sys 2>/dev/null || true; \
             ip link set lo up; echo ready; exec sleep 86400";
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--net", "--mount", "sh", "-c", HOLD]);
        let holder = Process::start(command, &self.directory, &format!("{name}-holder"))?;
        holder.wait_for("ready", Duration::from_secs(10))?;
        let node = Node { name: name.to_owned(), holder: holder.id(), directory: self.directory.clone() };
        self.holders.push(holder);
        self.nodes.push(node.clone());
        Ok(node)
    }

    /// A cable between two hosts, with an interface at each end that is up and has the given addresses.
    ///
    /// # Errors
    /// When a name is taken at its end, or an address is none.
    pub fn cable(&mut self, a: (&Node, &str, &[&str]), b: (&Node, &str, &[&str])) -> Result<()> {
        self.cables += 1;
        let (end_a, end_b) = (a.0.holder.to_string(), b.0.holder.to_string());
        let arguments = ["link", "add", a.1, "netns", &end_a, "type", "veth", "peer", "name", b.1, "netns", &end_b];
        checked(Command::new("ip").args(arguments))?;
        for (node, device, addresses) in [a, b] {
            // Link-local addresses come a second later, when nobody expects another change.
            node.run(&["ip", "link", "set", device, "addrgenmode", "none"])?;
            for address in addresses {
                let mut add = vec!["ip", "addr", "add", address, "dev", device];
                if address.contains(':') {
                    add.push("nodad");
                }
                node.run(&add)?;
            }
            node.run(&["ip", "link", "set", device, "up"])?;
            if find("ethtool").is_some() {
                // As on real network cards; veth has it off by default.
                node.run(&["ethtool", "-K", device, "gro", "on"])?;
            }
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.holders.clear();
        if env::var_os("MESH_LAB_KEEP").is_some() {
            return;
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Node {
    /// The name it was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path in the lab's directory with this host's name in front.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{}-{name}", self.name))
    }

    /// A command that runs in this host. It replaces itself until it is `line`, so its process id is that of the
    /// program.
    #[must_use]
    pub fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        let target = self.holder.to_string();
        command.args(["--pdeathsig", "KILL", "nsenter", "--target", &target, "--net", "--mount", "--"]).args(line);
        command
    }

    /// Runs a command to its end, whatever that is.
    ///
    /// # Errors
    /// When it cannot be started, or does not end in a minute and a half.
    pub fn try_run(&self, line: &[&str]) -> Result<Output> {
        self.run_with_input(line, "")
    }

    /// Runs a command with something on its standard input.
    ///
    /// # Errors
    /// When it cannot be started, or does not end in a minute and a half.
    pub fn run_with_input(&self, line: &[&str], input: &str) -> Result<Output> {
        let mut command = self.command(line);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {line:?}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read has closed it.
            let _ = stdin.write_all(input.as_bytes());
        }
        let id = child.id();
        let (sender, receiver) = std::sync::mpsc::channel();
        let waiter = thread::spawn(move || sender.send(child.wait_with_output()));
        let output = receiver.recv_timeout(COMMAND_TIMEOUT);
        if output.is_err() {
            signal(id, "KILL")?;
        }
        let _ = waiter.join();
        let output = output.with_context(|| format!("{}: {line:?} did not end", self.name))?;
        Ok(output?)
    }

    /// Runs a command that must succeed; returns what it wrote.
    ///
    /// # Errors
    /// When it fails; shows what it said.
    pub fn run(&self, line: &[&str]) -> Result<String> {
        let output = self.try_run(line)?;
        if !output.status.success() {
            bail!("{}: {line:?} ended with {}: {}", self.name, output.status, text(&output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts a program that goes on. Its output is in files, see [`Process`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, line: &[&str]) -> Result<Process> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let program = Path::new(line.first().context("no program")?).file_name().unwrap_or_default();
        let name = format!("{}-{}-{number}", self.name, program.to_string_lossy());
        Process::start(self.command(line), &self.directory, &name)
    }

    /// Adds a route, in the words of `ip route add`.
    ///
    /// # Errors
    /// When the words are wrong.
    pub fn route(&self, words: &str) -> Result<()> {
        let family = if words.contains(':') { "-6" } else { "-4" };
        let mut line = vec!["ip", family, "route", "add"];
        line.extend(words.split_whitespace());
        self.run(&line).map(drop)
    }

    /// Forwards packets between its interfaces.
    ///
    /// # Errors
    /// When the host does not let it.
    pub fn forward(&self) -> Result<()> {
        let all = "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding";
        self.run(&["sh", "-c", all]).map(drop)
    }

    /// Loads rules in the language of `nft`.
    ///
    /// # Errors
    /// When they are wrong.
    pub fn nft(&self, rules: &str) -> Result<()> {
        let output = self.run_with_input(&["nft", "-f", "-"], rules)?;
        ensure!(output.status.success(), "{}: nft: {}", self.name, text(&output));
        Ok(())
    }

    /// Forwards, and hides what leaves by `device` behind that device's address.
    ///
    /// # Errors
    /// When the host does not let it.
    pub fn masquerade(&self, device: &str) -> Result<()> {
        self.forward()?;
        self.nft(&format!(
            "table ip nat {{\nchain post {{\ntype nat hook postrouting priority srcnat\noifname \"{device}\" masquerade\n}}\n}}\n"
        ))
    }
}

/// A program that goes on. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    fn start(mut command: Command, directory: &Path, name: &str) -> Result<Self> {
        let (stdout, stderr) = (directory.join(format!("{name}.out")), directory.join(format!("{name}.err")));
        command.stdin(Stdio::null()).stdout(fs::File::create(&stdout)?).stderr(fs::File::create(&stderr)?);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { child, stdout, stderr })
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote so far, both streams.
    #[must_use]
    pub fn output(&self) -> String {
        let read = |path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        read(&self.stdout) + &read(&self.stderr)
    }

    /// Waits until it has written a line that begins with `start`.
    ///
    /// # Errors
    /// When it ends before, or takes too long; shows what it wrote.
    pub fn wait_for(&self, start: &str, timeout: Duration) -> Result<String> {
        let deadline = Instant::now() + timeout;
        loop {
            let output = self.output();
            if let Some(line) = output.lines().find(|line| line.starts_with(start)) {
                return Ok(line.to_owned());
            }
            let is_gone = fs::read_to_string(format!("/proc/{}/stat", self.id()))
                .map_or(true, |stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')));
            ensure!(!is_gone, "ended before it wrote {start:?}: {output}");
            ensure!(Instant::now() < deadline, "did not write {start:?} within {timeout:?}: {output}");
            thread::sleep(POLL);
        }
    }

    /// Sends a signal, by name without SIG.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, name: &str) -> Result<()> {
        signal(self.id(), name)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not come in time; shows what it wrote.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "did not end within {timeout:?}: {}", self.output());
            thread::sleep(POLL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A WireGuard key pair, both as base64.
#[derive(Clone, Debug)]
pub struct Keys {
    /// A secret, but only of this lab.
    pub private: String,
    /// What others know.
    pub public: String,
}

impl Keys {
    /// A fresh pair, made by `wg`.
    ///
    /// # Errors
    /// When there is no `wg`.
    pub fn new() -> Result<Self> {
        let private = checked(Command::new("wg").arg("genkey"))?.trim().to_owned();
        let mut child = Command::new("wg").arg("pubkey").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        child.stdin.take().context("no standard input")?.write_all(private.as_bytes())?;
        let public = String::from_utf8(child.wait_with_output()?.stdout)?.trim().to_owned();
        Ok(Self { private, public })
    }
}

/// What a command wrote, for messages.
#[must_use]
pub fn text(output: &Output) -> String {
    let both = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned());
    both.join(" ").trim().to_owned()
}

fn signal(id: u32, name: &str) -> Result<()> {
    checked(Command::new("kill").args(["-s", name, &id.to_string()])).map(drop)
}

fn checked(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(output.status.success(), "{command:?} ended with {}: {}", output.status, text(&output));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
