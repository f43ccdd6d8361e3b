//! The program as tests start it.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]
#![allow(dead_code, reason = "not every user of this file needs all of it")]

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

pub(crate) fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mesh-relay")).args(arguments).output().expect("the program starts")
}

/// A relay that runs until it is dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) derp: SocketAddr,
    pub(crate) stun: SocketAddr,
}

impl Running {
    pub(crate) fn start(name: &str, flags: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mesh-relay"))
            .args(["serve", "--host", "127.0.0.1", "--listen", "127.0.0.1:0", "--stun-listen", "127.0.0.1:0"])
            .arg("--state-dir")
            .arg(state_dir(name))
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("the relay does its part"))
            .read_line(&mut line)
            .expect("the relay does its part");
        let address = |name: &str| {
            let word = line.split_whitespace().find_map(|word| word.strip_prefix(name));
            word.unwrap_or_else(|| panic!("no {name} in {line:?}")).parse().expect("the relay does its part")
        };
        Self { derp: address("derp="), stun: address("stun="), child }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An empty state directory of this test run alone.
pub(crate) fn state_dir(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("relay-{name}"));
    let _ = std::fs::remove_dir_all(&path);
    path
}
