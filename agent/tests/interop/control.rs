//! A coordination server on the segment between the homes: whoever joins it learns of the others from it.
//!
//! It is at 203.0.113.6, is called control.lab, and has a certificate that nobody trusts who is not told to: programs
//! find it in the file that `SSL_CERT_FILE` names. Stock clients ask on port 80 first, then on 443; both are served.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

use super::super::{
    homes::Homes,
    lab::{Node, Process, built, text},
};

/// How its clients name it.
pub(crate) const URL: &str = "https://control.lab";
const ADDRESS: &str = "203.0.113.6";

/// Everybody reaches everybody.
pub(crate) const ALLOW: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;
/// Nobody reaches anybody.
pub(crate) const DENY: &str = r#"{"acls": []}"#;

/// A running mesh-control.
pub(crate) struct Control {
    pub(crate) node: Node,
    pub(crate) process: Option<Process>,
    directory: PathBuf,
}

impl Control {
    /// Starts one beside the homes and tells every host its address. It has a user `lab`, and the policy [`ALLOW`].
    pub(crate) fn new(homes: &mut Homes) -> Result<Self> {
        let node = homes.lab.node("control")?;
        homes
            .lab
            .cable((&homes.segment, "control", &["203.0.113.5/30"]), (&node, "eth0", &[&format!("{ADDRESS}/30")]))?;
        node.route("default via 203.0.113.5")?;
        let directory = node.path("control");
        fs::create_dir_all(&directory)?;
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(["control.lab".to_owned()])?.self_signed(&key)?;
        fs::write(directory.join("tls.crt"), certificate.pem())?;
        fs::write(directory.join("tls.key"), key.serialize_pem())?;
        fs::write(directory.join("derp-map.json"), homes.relay.derp_map()?.to_string())?;
        let hosts = homes.members.iter().map(|member| &member.node).chain([&homes.relay.node, &node]);
        for host in hosts {
            host.run(&["sh", "-c", &format!("echo {ADDRESS} control.lab >> /etc/hosts")])?;
        }
        let mut control = Self { node, process: None, directory };
        control.start()?;
        control.run(&["users", "create", "lab"])?;
        control.set_policy(ALLOW)?;
        Ok(control)
    }

    /// Starts it, and waits until it accepts.
    pub(crate) fn start(&mut self) -> Result<()> {
        let program = built("mesh-control")?;
        let file = |name: &str| self.directory.join(name).display().to_string();
        let (state, certificate, key, map, socket) =
            (file("state"), file("tls.crt"), file("tls.key"), file("derp-map.json"), file("socket"));
        let line = [path(&program)?, "serve", "--server-url", URL, "--relay", "none", "--state-dir", &state];
        let more = ["--tls-cert", &certificate, "--tls-key", &key, "--derp-map", &map, "--socket", &socket];
        let process = self.node.spawn(&[&line[..], &more[..], &["--log", "debug"]].concat())?;
        process.wait_for("ready", Duration::from_secs(10))?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills it without a word.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// The certificate, for `SSL_CERT_FILE`.
    #[must_use]
    pub(crate) fn certificate(&self) -> PathBuf {
        self.directory.join("tls.crt")
    }

    /// Runs a command of mesh-control, which must succeed; returns what it wrote.
    pub(crate) fn run(&self, words: &[&str]) -> Result<String> {
        self.run_with(words, "")
    }

    /// The same, with something to read.
    pub(crate) fn run_with(&self, words: &[&str], input: &str) -> Result<String> {
        let (program, socket) = (built("mesh-control")?, self.directory.join("socket"));
        let line = [&[path(&program)?, "--socket", path(&socket)?], words].concat();
        let output = self.node.run_with_input(&line, input)?;
        ensure!(output.status.success(), "mesh-control {words:?}: {}", text(&output));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A new key of the user `lab`, with further words about it.
    pub(crate) fn key(&self, words: &[&str]) -> Result<String> {
        let line = [&["keys", "create", "--user", "lab"], words].concat();
        Ok(self.run(&line)?.trim().to_owned())
    }

    /// Replaces the policy.
    pub(crate) fn set_policy(&self, policy: &str) -> Result<()> {
        self.run_with(&["policy", "set", "-"], policy).map(drop)
    }

    /// The device of that name, as it is in lists; `None` when there is none.
    pub(crate) fn device(&self, hostname: &str) -> Result<Option<Value>> {
        let text = self.run(&["--json", "nodes", "list"])?;
        let list: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
        let found = list.as_array().into_iter().flatten().find(|device| device["hostname"] == json!(hostname));
        Ok(found.cloned())
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not text")
}
