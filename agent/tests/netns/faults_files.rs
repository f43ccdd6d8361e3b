//! Files of the state that are damaged: the program refuses to start, and says which file and what to do. It never
//! begins anew by itself.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    faults::{shown, start_refused},
    joined::PATIENCE,
    lab::{Lab, Node, built},
};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("faults: a damaged state of an agent is refused, named and set aside", agent),
    ("faults: a damaged database or key of control is refused and named", control),
    ("faults: a damaged key or certificate of a relay is refused and named", relay),
];

/// What can happen to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    Half,
    Empty,
    /// A high bit: the byte is no ASCII any more.
    HighBit,
    /// A low bit: most likely a letter or a number like others.
    LowBit,
    Noise,
    OtherJson,
    Directory,
}

use Damage::{Directory, Empty, Half, HighBit, LowBit, Noise, OtherJson};

/// Puts a file with this damage in the place of a good one.
fn damage(path: &Path, good: &[u8], damage: Damage) -> Result<()> {
    let mut bytes = good.to_vec();
    let middle = bytes.len() / 2;
    match damage {
        Half => bytes.truncate(middle),
        Empty => bytes.clear(),
        HighBit => bytes[middle] ^= 0x80,
        LowBit => bytes[middle] ^= 1,
        Noise => bytes.iter_mut().enumerate().for_each(|(index, byte)| *byte = (index * 151 % 251) as u8),
        OtherJson => bytes = b"{\"Version\":99,\"a\":[]}".to_vec(),
        Directory => return Ok(fs::create_dir(path)?),
    }
    Ok(fs::write(path, bytes)?)
}

/// Whatever it is.
fn remove(path: &Path) -> Result<()> {
    if path.is_dir() { Ok(fs::remove_dir_all(path)?) } else { Ok(fs::remove_file(path)?) }
}

/// Starts a program until it is ready and ends it, so that its state is there.
fn run_once(node: &Node, line: &[&str]) -> Result<()> {
    let mut process = node.spawn(line)?;
    process.wait_for("ready", PATIENCE)?;
    process.signal("TERM")?;
    let status = process.wait(PATIENCE)?;
    ensure!(status.success(), "{status}: {}", process.output());
    Ok(())
}

fn agent() -> Result<()> {
    let mut lab = Lab::new()?;
    let node = lab.node("a")?;
    let (program, state, socket) = (built("meshd")?, node.path("state"), node.path("meshd.sock"));
    let line = [shown(&program)?, "--state-dir", shown(&state)?, "--socket", shown(&socket)?, "--log", "error"];
    run_once(&node, &line)?;
    let file = state.join("state.json");
    let good = fs::read(&file)?;
    for kind in [Half, Empty, HighBit, LowBit, Noise, OtherJson] {
        damage(&file, &good, kind)?;
        let kept = format!("{}.bad-", shown(&file)?);
        let sentences = ["state.json is not usable", &kept, "the next start makes a new identity"];
        start_refused(&node, &line, 1, &sentences).with_context(|| format!("{kind:?}"))?;
        ensure!(!file.exists(), "{kind:?}: it is still there");
        let found = fs::read_dir(&state)?
            .filter_map(Result::ok)
            .find(|entry| entry.file_name().to_string_lossy().starts_with("state.json.bad-"));
        let found = found.with_context(|| format!("{kind:?}: nothing is kept"))?;
        fs::remove_file(found.path())?;
    }
    damage(&file, &good, Directory)?;
    start_refused(&node, &line, 1, &[shown(&file)?, "Is a directory", "move that directory away"])?;
    remove(&file)?;
    // What was kept can be put back.
    fs::write(&file, &good)?;
    run_once(&node, &line)?;
    ensure!(fs::read(&file)? == good, "the state is another");
    Ok(())
}

fn control() -> Result<()> {
    let mut lab = Lab::new()?;
    let node = lab.node("c")?;
    let (program, state, socket) = (built("mesh-control")?, node.path("state"), node.path("c.sock"));
    let map = node.path("derp-map.json");
    let relay = json!({"Name": "1a", "RegionID": 1, "HostName": "r", "IPv4": "127.0.0.1"});
    fs::write(&map, json!({"Regions": {"1": {"RegionID": 1, "RegionCode": "r", "Nodes": [relay]}}}).to_string())?;
    let line = [shown(&program)?, "serve", "--server-url", "http://127.0.0.1:1", "--relay", "none", "--derp-map"];
    let flags = [shown(&map)?, "--listen", "127.0.0.1:0", "--socket", shown(&socket)?, "--state-dir", shown(&state)?];
    let line = [&line[..], &flags, &["--log", "error"]].concat();
    run_once(&node, &line)?;

    let file = state.join("control.db");
    let good = fs::read(&file)?;
    let advice = ["control.db", "from a backup", "starts with an empty network"];
    for kind in [Half, Empty, Noise, OtherJson, Directory] {
        remove(&file)?;
        damage(&file, &good, kind)?;
        start_refused(&node, &line, 2, &advice).with_context(|| format!("{kind:?}"))?;
        ensure!(file.exists(), "{kind:?}: it was taken away");
    }
    // Bits in the header and in the first page of each table's tree.
    for place in [0, 21, 100, 4096, 3 * 4096, 5 * 4096] {
        remove(&file)?;
        let mut bytes = good.clone();
        bytes[place] ^= 0x40;
        fs::write(&file, bytes)?;
        start_refused(&node, &line, 2, &advice).with_context(|| format!("byte {place}"))?;
    }
    remove(&file)?;
    fs::write(&file, &good)?;

    let file = state.join("noise.key");
    let good = fs::read(&file)?;
    for kind in [Half, Empty, HighBit, Noise, OtherJson, Directory] {
        remove(&file)?;
        damage(&file, &good, kind)?;
        start_refused(&node, &line, 2, &["noise.key", "restore"]).with_context(|| format!("{kind:?}"))?;
    }
    remove(&file)?;
    fs::write(&file, &good)?;
    run_once(&node, &line)
}

fn relay() -> Result<()> {
    let mut lab = Lab::new()?;
    let node = lab.node("r")?;
    let (program, state) = (built("mesh-relay")?, node.path("state"));
    let line = [shown(&program)?, "serve", "--host", "127.0.0.1", "--open", "--listen", "127.0.0.1:0"];
    let line = [&line[..], &["--stun-listen", "127.0.0.1:0", "--state-dir", shown(&state)?, "--log", "error"]].concat();
    run_once(&node, &line)?;
    for name in ["relay.key", "relay.crt", "relay.pem"] {
        let file = state.join(name);
        let good = fs::read(&file)?;
        for kind in [Half, Empty, HighBit, Noise, OtherJson, Directory] {
            remove(&file)?;
            damage(&file, &good, kind)?;
            start_refused(&node, &line, 2, &[name, "restore"]).with_context(|| format!("{name}: {kind:?}"))?;
        }
        remove(&file)?;
        fs::write(&file, &good)?;
    }
    run_once(&node, &line)
}
