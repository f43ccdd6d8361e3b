//! Disks that are full, and disks that cannot be written: what is asked for is refused in words, what was said to be
//! done stays, questions are answered, traffic goes on, and with room everything goes on by itself.

use anyhow::{Context, Result, ensure};

use super::{
    faults::{fill, make_room, refused, set_writable, shown, small_disk, start_refused},
    homes::{Homes, Nat},
    joined::{ALLOW, Agent, Control, PATIENCE},
    lab::{built, text, until},
};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    (
        "faults: control refuses changes on a full disk, answers questions, and goes on by itself with room",
        control_full,
    ),
    ("faults: an agent on a full disk says what it cannot keep, and keeps it when there is room", agent_full),
    ("faults: state that cannot be written is told at the start, and while running", read_only),
];

fn control_full() -> Result<()> {
    let mut homes = Homes::new(&[Nat::Easy, Nat::Easy])?;
    let mut control = Control::place(&mut homes, 0)?;
    let (disk, host) = (control.state.clone(), control.node.clone());
    small_disk(&host, &disk)?;
    control.begin()?;
    control.set_policy(ALLOW)?;
    let key = control.key(&["--reusable"])?;
    let alice = Agent::new(&homes.members[0].node, &control)?;
    alice.up(&control, &key)?;
    // More than the disk holds, were each change to stay in the log.
    for user in 0..60 {
        control.run(&["users", "create", &format!("before{user}")])?;
    }
    // With an empty log there is no room in it either.
    let mut process = control.process.take().context("no control")?;
    process.signal("TERM")?;
    ensure!(process.wait(PATIENCE)?.success(), "{}", process.output());
    control.start()?;
    alice.wait_for_control()?;

    fill(&host, &disk)?;
    // There may be some room left in files that are there.
    let failed = (0..).find_map(|user| match control.try_run(&["users", "create", &format!("full{user}")]) {
        Ok(output) if output.status.success() => None,
        other => Some((user, other)),
    });
    let Some((stored, Ok(output))) = failed else { anyhow::bail!("no answer") };
    refused(&output, 1, &["the change is not stored yet", "full", "make room where the server's state directory is"])?;
    let output = control.try_run(&["users", "create", "never"])?;
    refused(&output, 1, &["nothing is changed, for changes cannot be stored", "make room"])?;
    // Questions are answered, and who is there stays.
    ensure!(control.run(&["users", "list"])?.contains("before59"));
    ensure!(control.run(&["nodes", "list"])?.contains("alice") && control.run(&["policy", "get"])?.contains("accept"));
    ensure!(alice.status()?["BackendState"] == "Running");
    let bob = Agent::new(&homes.members[1].node, &control)?;
    let words = ["up", "--login-server", &control.url(), "--auth-key", &key, "--hostname", "bob", "--timeout", "3s"];
    let output = bob.try_mesh(&words)?;
    ensure!(!output.status.success(), "{output:?}");
    ensure!(text(&output).contains("cannot store changes at present"), "{output:?}");

    make_room(&host, &disk)?;
    // Nobody asks for it: what was decided is stored, and bob gets in.
    bob.wait_for_state("Running")?;
    control.run(&["users", "create", "after"])?;
    alice.reach(&bob.address()?)?;
    control.kill();
    control.start()?;
    let users = control.run(&["users", "list"])?;
    let all = (0..60).map(|user| format!("before{user}")).chain((0..=stored).map(|user| format!("full{user}")));
    for user in all.chain(["after".to_owned()]) {
        ensure!(users.contains(&user), "{user} is lost: {users}");
    }
    ensure!(!users.contains("never"), "{users}");

    // One that is started on a full disk says so, whether it is new or not.
    let mut process = control.process.take().context("no control")?;
    process.signal("TERM")?;
    ensure!(process.wait(PATIENCE)?.success(), "{}", process.output());
    fill(&host, &disk)?;
    let (program, map) = (built("mesh-control")?, host.path("derp-map.json"));
    for state in [disk.clone(), disk.join("new")] {
        let line = [shown(&program)?, "serve", "--server-url", "http://c:1", "--relay", "none", "--derp-map"];
        let flags = [shown(&map)?, "--listen", "127.0.0.1:0", "--socket", "/run/c.sock", "--state-dir", shown(&state)?];
        start_refused(&host, &[&line[..], &flags].concat(), 2, &[shown(&state)?, "make room"])?;
    }
    make_room(&host, &disk)?;
    control.start()?;
    ensure!(control.run(&["users", "list"])?.contains("after"), "it is lost");
    Ok(())
}

fn agent_full() -> Result<()> {
    let mut homes = Homes::new(&[Nat::Easy, Nat::Easy])?;
    let control = Control::new(&mut homes, 0)?;
    control.set_policy(ALLOW)?;
    let key = control.key(&["--reusable"])?;
    let host = homes.members[0].node.clone();
    let disk = host.path("joined");
    small_disk(&host, &disk)?;
    let mut alice = Agent::new(&host, &control)?;
    let bob = Agent::new(&homes.members[1].node, &control)?;
    for agent in [&alice, &bob] {
        agent.up(&control, &key)?;
    }
    let (own, address) = (alice.status()?["Self"]["PublicKey"].clone(), bob.address()?);
    alice.reach(&address)?;
    alice.wait_for_kept_map()?;

    fill(&host, &disk)?;
    let output = alice.try_mesh(&["set", "--hostname", "renamed"])?;
    refused(
        &output,
        1,
        &["a start before that undoes it", "state.json", "No space left on device", "make room there"],
    )?;
    let health = alice.status()?["Health"].to_string();
    ensure!(health.contains("what changes is lost at the next start"), "{health}");
    alice.reach(&address)?;
    // A host that boots with a full disk is reached.
    alice.kill();
    alice.start()?;
    alice.reach(&address)?;
    ensure!(alice.status()?["Self"]["PublicKey"] == own, "another node");
    let output = alice.try_mesh(&["set", "--hostname", "renamed"])?;
    ensure!(output.status.code() == Some(1), "{output:?}");

    make_room(&host, &disk)?;
    until("it is kept", PATIENCE, || {
        Ok(host.run(&["cat", shown(&disk.join("state.json"))?])?.contains("\"renamed\"").then_some(()))
    })?;
    until("it is well", PATIENCE, || Ok((alice.status()?["Health"] == serde_json::json!([])).then_some(())))?;
    alice.kill();
    alice.start()?;
    alice.reach(&address)?;
    ensure!(alice.status()?["Self"]["PublicKey"] == own, "another node");
    until("the name is known", PATIENCE, || {
        Ok((alice.status()?["Self"]["DNSName"] == "renamed.lab.internal.").then_some(()))
    })
}

fn read_only() -> Result<()> {
    let mut homes = Homes::new(&[Nat::Easy])?;
    let mut control = Control::place(&mut homes, 0)?;
    let (disk, server) = (control.state.clone(), control.node.clone());
    small_disk(&server, &disk)?;
    control.begin()?;
    control.set_policy(ALLOW)?;
    let key = control.key(&[])?;
    let host = homes.members[0].node.clone();
    let state = host.path("joined");
    small_disk(&host, &state)?;
    let mut alice = Agent::new(&host, &control)?;
    alice.up(&control, &key)?;
    let own = alice.status()?["Self"]["PublicKey"].clone();

    // While they run. What is open for writing keeps a disk from it, so the database is closed first.
    set_writable(&host, &state, false)?;
    let output = alice.try_mesh(&["set", "--hostname", "renamed"])?;
    refused(&output, 1, &["a start before that undoes it", "state.json", "Read-only file system", "make it writable"])?;
    let mut process = alice.process.take().context("no agent")?;
    process.signal("TERM")?;
    ensure!(process.wait(PATIENCE)?.success(), "{}", process.output());
    control.kill();
    set_writable(&server, &disk, false)?;

    // And when they start.
    let (meshd, program, relay) = (built("meshd")?, built("mesh-control")?, built("mesh-relay")?);
    let line = [shown(&meshd)?, "--state-dir", shown(&state)?, "--socket", shown(&alice.socket)?];
    start_refused(&host, &line, 1, &[shown(&state)?, "Read-only file system", "make it writable"])?;
    let map = server.path("derp-map.json");
    let line = [shown(&program)?, "serve", "--server-url", "http://c:1", "--relay", "none", "--derp-map", shown(&map)?];
    let flags = ["--listen", "127.0.0.1:0", "--socket", "/run/c.sock", "--state-dir"];
    let line = [&line[..], &flags, &[shown(&disk)?]].concat();
    start_refused(&server, &line, 2, &[shown(&disk.join("control.db"))?, "Read-only file system", "make it"])?;
    let empty = disk.join("relay");
    let line = [shown(&relay)?, "serve", "--host", "r", "--open", "--listen", "127.0.0.1:0", "--state-dir"];
    let line = [&line[..], &[shown(&empty)?]].concat();
    start_refused(&server, &line, 2, &[shown(&empty)?, "Read-only file system", "can be written with --state-dir"])?;

    set_writable(&host, &state, true)?;
    set_writable(&server, &disk, true)?;
    control.start()?;
    alice.start()?;
    alice.wait_for_control()?;
    ensure!(alice.status()?["Self"]["PublicKey"] == own, "another node");
    Ok(())
}
