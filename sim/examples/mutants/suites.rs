//! Compiling the tests, and running a class of them until one fails.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::apply::{Mutant, SWITCH, Worlds};

/// Integration tests that compare a machine with a model or with another implementation, or drive it at random.
const MODELS: &[&str] = &[
    "boringtun",
    "conformance",
    "filter_oracle",
    "netmap_model",
    "paths_model",
    "tunnel_model",
    "coordinator_model",
    "policy_model",
    "machine",
    "promises",
];
/// Models that take long go last: most mistakes end before them.
const SLOW: &[&str] = &["conformance", "tunnel_model", "coordinator_model", "policy_model"];
/// Random cases of a property, where it does not say itself how many it wants. A quarter of what it has in CI.
const CASES: &str = "64";
/// Tests of a library with this in their names are models, too.
const MODEL_TESTS: &str = "model";
/// Of the repository itself, or of what the switches change: each costs a look at the environment.
const LEFT_OUT: &[&str] = &["tidy", "no_alloc"];

/// A hang is waited for this long, and as many times what the class usually takes.
const PATIENCE: (Duration, u32) = (Duration::from_secs(120), 10);

/// Which tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
pub(crate) enum Class {
    /// Tests of the crate, without its models.
    Unit,
    /// Its models.
    Model,
    /// Scenarios and generated worlds.
    Simulator,
}

impl Class {
    pub(crate) const ALL: [Self; 3] = [Self::Unit, Self::Model, Self::Simulator];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Model => "model",
            Self::Simulator => "simulator",
        }
    }

    /// The crate whose tests are to notice a mistake.
    pub(crate) fn tested(self, mutant: &Mutant) -> &str {
        match self {
            Self::Unit | Self::Model => mutant.krate(),
            Self::Simulator => "sim",
        }
    }
}

/// What a class of tests made of a mistake.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Found {
    /// Nothing.
    Passed,
    /// This failed.
    Caught(String),
    /// This did not end.
    Hung(String),
}

impl Found {
    /// Whether it was noticed.
    pub(crate) const fn is_caught(&self) -> bool {
        !matches!(self, Self::Passed)
    }

    /// As the table has it.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Passed => String::new(),
            Self::Caught(test) => test.clone(),
            Self::Hung(test) => format!("{test} (does not end)"),
        }
    }
}

/// A compiled test, as `build` notes it.
#[derive(Debug, Serialize, Deserialize)]
struct Binary {
    krate: String,
    name: String,
    is_lib: bool,
    path: PathBuf,
}

/// All that can be run.
pub(crate) struct Suites<'w> {
    tree: PathBuf,
    binaries: Vec<Binary>,
    simulator: PathBuf,
    worlds: &'w Worlds,
}

/// Compiles the tests of the copy, and notes where they are.
pub(crate) fn build(work: &Path) -> Result<()> {
    let mut found = Vec::new();
    // Without the programs around the machines, which need sockets and hours.
    let crates: [&[&str]; 2] = [
        &["test", "--no-run", "--no-default-features", "-p", "mesh-core", "-p", "relay", "-p", "control"],
        &["build", "-p", "sim"],
    ];
    for arguments in crates {
        let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(arguments)
            .args(["--message-format", "json-render-diagnostics"])
            .current_dir(work.join("tree"))
            .env("CARGO_TARGET_DIR", work.join("build"))
            .stderr(Stdio::inherit())
            .output()
            .context("cargo")?;
        ensure!(output.status.success(), "the copy with all mistakes does not compile");
        for line in String::from_utf8(output.stdout)?.lines() {
            found.extend(binary(&serde_json::from_str(line)?));
        }
        fs::write(work.join("binaries.json"), serde_json::to_string_pretty(&found)?).context("binaries.json")?;
    }
    Ok(())
}

fn binary(message: &Value) -> Option<Binary> {
    let path = PathBuf::from(message["executable"].as_str()?);
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?;
    Some(Binary {
        krate: folder.file_name()?.to_str()?.to_owned(),
        name: message["target"]["name"].as_str()?.to_owned(),
        is_lib: message["target"]["kind"][0].as_str()? == "lib",
        path,
    })
}

impl<'w> Suites<'w> {
    pub(crate) fn read(work: &Path, worlds: &'w Worlds) -> Result<Self> {
        let text = fs::read_to_string(work.join("binaries.json")).context("nothing is built: `mutants build` first")?;
        let binaries: Vec<Binary> = serde_json::from_str(&text)?;
        Ok(Self { tree: work.join("tree"), simulator: work.join("build/debug/mesh-sim"), binaries, worlds })
    }

    /// Runs a class with a mistake until a test fails. `krate` is the one that is tested, `usual` how many seconds the class
    /// takes. Returns how many it took, too.
    pub(crate) fn run(&self, class: Class, krate: &str, mutant: u32, usual: Option<f64>) -> Result<(Found, f64)> {
        let began = Instant::now();
        let usual = usual.map_or(Duration::from_secs(3600), Duration::from_secs_f64);
        let until = began + PATIENCE.0 + usual * PATIENCE.1;
        for (name, mut command) in self.commands(class, krate) {
            command.env(SWITCH, mutant.to_string());
            match run(&mut command, until).with_context(|| name.clone())? {
                Ended::Well => {}
                Ended::Badly(test) => {
                    let test = test.map_or_else(|| name.clone(), |test| format!("{name}: {test}"));
                    return Ok((Found::Caught(test), began.elapsed().as_secs_f64()));
                }
                Ended::Late => return Ok((Found::Hung(name), began.elapsed().as_secs_f64())),
            }
        }
        Ok((Found::Passed, began.elapsed().as_secs_f64()))
    }

    fn commands(&self, class: Class, krate: &str) -> Vec<(String, Command)> {
        if class == Class::Simulator {
            return self.worlds();
        }
        let of_crate = |binary: &&Binary| binary.krate == krate;
        let mut commands = Vec::new();
        for binary in self.binaries.iter().filter(of_crate).filter(|binary| !LEFT_OUT.contains(&&*binary.name)) {
            let is_model = MODELS.contains(&&*binary.name);
            if !binary.is_lib && is_model != (class == Class::Model) {
                continue;
            }
            let mut command = Command::new(&binary.path);
            command.arg("--test-threads=1").current_dir(self.tree.join(&binary.krate));
            // The same cases for every mistake, and none that another one left behind.
            command.env("PROPTEST_RNG_SEED", "1").env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true");
            command.env("PROPTEST_MAX_SHRINK_ITERS", "0").env("PROPTEST_CASES", CASES);
            match (binary.is_lib, class) {
                (true, Class::Model) => drop(command.arg(MODEL_TESTS)),
                (true, _) => drop(command.args(["--skip", MODEL_TESTS])),
                (false, _) => {}
            }
            let name = if binary.is_lib { binary.krate.clone() } else { format!("{}/{}", binary.krate, binary.name) };
            commands.push((name, command));
        }
        // Libraries are small and many mistakes end there.
        commands.sort_by_key(|(name, _)| (name.contains('/'), SLOW.iter().any(|slow| name.ends_with(slow))));
        commands
    }

    fn worlds(&self) -> Vec<(String, Command)> {
        let scenarios = self.worlds.scenarios.iter().map(|name| {
            let mut command = Command::new(&self.simulator);
            command.args(["run", "--seeds", &self.worlds.seeds, &format!("sim/scenarios/{name}.toml")]);
            command.current_dir(&self.tree);
            (name.clone(), command)
        });
        let mut swarm = Command::new(&self.simulator);
        swarm.args(["swarm", "--seeds", &self.worlds.swarm, "--shrink-runs", "0"]).current_dir(&self.tree);
        scenarios.chain([(format!("swarm {}", self.worlds.swarm), swarm)]).collect()
    }
}

enum Ended {
    Well,
    /// With the name of the test that failed, where there are names.
    Badly(Option<String>),
    Late,
}

/// Runs a program until it ends, one of its tests has failed, or it is late.
fn run(command: &mut Command, until: Instant) -> Result<Ended> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let (tell, told) = mpsc::channel();
    if let Some(output) = child.stdout.take() {
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let Some(test) = line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... FAILED")) else {
                    continue;
                };
                let _ = tell.send(test.to_owned());
            }
        });
    }
    // The sender goes when the output ends.
    let first = told.recv_timeout(until.saturating_duration_since(Instant::now()));
    Ok(match first {
        Ok(test) => {
            end(&mut child);
            Ended::Badly(Some(test))
        }
        Err(mpsc::RecvTimeoutError::Disconnected) if child.wait()?.success() => Ended::Well,
        Err(mpsc::RecvTimeoutError::Disconnected) => Ended::Badly(None),
        Err(mpsc::RecvTimeoutError::Timeout) => {
            end(&mut child);
            Ended::Late
        }
    })
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}
