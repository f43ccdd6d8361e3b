//! The programs that are compared, and how each is started.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use benches::{
    keys::KeyPair,
    lab::{self, Node, Process},
};

/// Name of the tunnel's device at both ends.
pub(crate) const DEVICE: &str = "wg0";
/// MTU of the tunnel in bytes, for every driver.
const MTU: u32 = 1420;
const PORT: u16 = 51820;
const PATIENCE: Duration = Duration::from_secs(10);

/// Versions that `--install` builds.
const BORINGTUN: &str = "0.7.1";
const GOTATUN: &str = "0.10.2";
/// Pseudo-version of the published Go module; Debian's package is four years older and not the opponent.
const WIREGUARD_GO: &str = "golang.zx2c4.com/wireguard@latest";

/// A user-space WireGuard.
#[derive(Clone, Debug)]
pub(crate) struct Driver {
    pub(crate) name: &'static str,
    pub(crate) program: PathBuf,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Our agent, configured by a file.
    Mesh,
    /// Anything that makes a device and is configured by `wg` through its socket.
    Uapi(&'static [&'static str]),
}

/// One end of the tunnel.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) node: Node,
    pub(crate) keys: KeyPair,
    pub(crate) underlay: &'static str,
    pub(crate) overlay: &'static str,
}

impl Driver {
    /// All drivers; ours is first and what the others are compared with.
    pub(crate) fn all() -> Result<Vec<Self>> {
        let peers = peers()?;
        let driver = |name, program: PathBuf, kind| Self { name, program, kind };
        Ok(vec![
            driver("mesh", own("meshd")?, Kind::Mesh),
            driver("wireguard-go", peers.join("wireguard"), Kind::Uapi(&["-f", DEVICE])),
            driver(
                "boringtun-cli",
                peers.join("boringtun-cli"),
                Kind::Uapi(&["-f", "--disable-drop-privileges", DEVICE]),
            ),
            driver("gotatun-cli", peers.join("gotatun"), Kind::Uapi(&["-f", "--disable-drop-privileges", DEVICE])),
        ])
    }

    pub(crate) fn is_present(&self) -> bool {
        self.program.is_file()
    }

    /// Starts the driver at one end, configured and with its device up.
    pub(crate) fn start(&self, end: &End, peer: &End) -> Result<Process> {
        match self.kind {
            Kind::Mesh => self.start_mesh(end, peer),
            Kind::Uapi(arguments) => self.start_uapi(arguments, end, peer),
        }
    }

    fn start_mesh(&self, end: &End, peer: &End) -> Result<Process> {
        let file = end.node.path("static.conf");
        fs::write(
            &file,
            format!(
                "[Interface]\nPrivateKey = {}\nAddress = {}/24\nListenPort = {PORT}\nMTU = {MTU}\n\n{}",
                end.keys.private,
                end.overlay,
                peer_section(peer)
            ),
        )?;
        let (program, file) = (text(&self.program)?, text(&file)?);
        let socket = text(&end.node.path("meshd.sock"))?;
        let process = end.node.spawn(&[&program, "--static", &file, "--tun", DEVICE, "--socket", &socket])?;
        process.wait_for("ready", PATIENCE)?;
        Ok(process)
    }

    fn start_uapi(&self, arguments: &[&str], end: &End, peer: &End) -> Result<Process> {
        let program = text(&self.program)?;
        let mut line = vec![program.as_str()];
        line.extend(arguments);
        // /run is the namespace's own, so both ends may use one name.
        end.node.run(&["mkdir", "-p", "/var/run/wireguard"])?;
        let process = end.node.spawn(&line)?;
        let file = end.node.path("wg.conf");
        let interface = format!("[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n\n", end.keys.private);
        fs::write(&file, interface + &peer_section(peer))?;
        let file = text(&file)?;
        lab::until(self.name, PATIENCE, || {
            let configured = end.node.try_run(&["wg", "setconf", DEVICE, &file])?;
            Ok(configured.status.success().then_some(()))
        })
        .with_context(|| process.output())?;
        end.node.run(&["ip", "addr", "add", &format!("{}/24", end.overlay), "dev", DEVICE])?;
        end.node.run(&["ip", "link", "set", DEVICE, "mtu", &MTU.to_string(), "up"])?;
        Ok(process)
    }
}

/// Builds the other programs into `target/peers`.
pub(crate) fn install() -> Result<()> {
    let root = peers()?.parent().map(Path::to_path_buf).context("the folder for peers has a parent")?;
    for (name, version) in [("boringtun-cli", BORINGTUN), ("gotatun-cli", GOTATUN)] {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(["install", "--quiet", "--locked", name, "--version", version, "--root"]).arg(&root);
        ensure!(command.status().context("cannot start cargo")?.success(), "{name} could not be built");
    }
    let mut command = Command::new("go");
    command.args(["install", WIREGUARD_GO]).env("GOBIN", root.join("bin"));
    ensure!(command.status().context("cannot start go")?.success(), "wireguard-go could not be built");
    Ok(())
}

fn peer_section(peer: &End) -> String {
    format!(
        "[Peer]\nPublicKey = {}\nAllowedIPs = {}/32\nEndpoint = {}:{PORT}\n",
        peer.keys.public, peer.overlay, peer.underlay
    )
}

/// Where `--install` puts programs.
fn peers() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(2).context("this program is not in a target folder")?;
    Ok(target.join("peers/bin"))
}

fn own(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(path.is_file(), "no {}; run: cargo build --release -p agent", path.display());
    Ok(path)
}

fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", path.display()))
}
