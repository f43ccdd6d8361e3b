//! Two of what there may be one of: programs with one state or one port, and one node's state on two machines.

use std::{fs, time::Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    faults::{refused, shown},
    homes::Nat,
    joined::{Agent, Joined, PATIENCE, note},
    lab::{built, text, until},
};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("faults: a second program with the state or the ports of a first is refused, and the first goes on", second),
    ("faults: a state directory that was copied to a second machine is noticed by both and by control", copied),
];

fn second() -> Result<()> {
    let joined = Joined::up(&[Nat::Easy, Nat::Hard])?;
    let [alice, bob] = joined.agents.as_slice() else { unreachable!() };
    let address = bob.address()?;
    alice.reach(&address)?;
    let mut pings = alice.node.spawn(&["ping", "-n", "-i", "0.05", "-c", "60", &address])?;

    let (meshd, state, other) = (built("meshd")?, &alice.state, alice.node.path("other"));
    let (socket, free) = (&alice.socket, alice.node.path("other.sock"));
    let flags = ["--tun", "mesh9", "--port", "0"];
    for (state, socket, flags, sentence) in [
        (state, &free, &flags[..], "another meshd uses"),
        (&other, socket, &flags[..], "another meshd listens on"),
        (&other, &free, &flags[..2], "UDP port 41641 is in use by another program"),
        (&other, &free, &flags[2..], "an interface named mesh0 exists already"),
    ] {
        let line = ["timeout", "20", shown(&meshd)?, "--state-dir", shown(state)?, "--socket", shown(socket)?];
        let output = alice.node.try_run(&[&line[..], flags].concat())?;
        refused(&output, 1, &[sentence]).with_context(|| sentence.to_owned())?;
        ensure!(socket == &alice.socket || !socket.exists(), "a socket is left");
    }

    let control = &joined.control;
    let (program, map) = (built("mesh-control")?, control.node.path("derp-map.json"));
    let (other, free) = (control.node.path("other"), control.node.path("other.sock"));
    let listen = control.url().replace("http://", "");
    for (state, socket, listen, sentence) in [
        (&control.state, &free, "127.0.0.1:0", "another mesh-control uses"),
        (&other, &control.socket, "127.0.0.1:0", "another mesh-control listens on"),
        (&other, &free, listen.as_str(), "in use"),
    ] {
        let line = ["timeout", "20", shown(&program)?, "serve", "--server-url", "http://c:1", "--relay", "none"];
        let flags = ["--derp-map", shown(&map)?, "--state-dir", shown(state)?, "--socket", shown(socket)?];
        let output = control.node.try_run(&[&line[..], &flags, &["--listen", listen]].concat())?;
        refused(&output, 1, &[sentence]).with_context(|| sentence.to_owned())?;
    }

    let relay = &joined.homes.relay;
    let (program, other) = (built("mesh-relay")?, relay.node.path("other"));
    for (listen, stun) in [("[::]:443", "[::]:0"), ("0.0.0.0:443", "0.0.0.0:0"), ("[::]:0", "[::]:3478")] {
        let line = ["timeout", "20", shown(&program)?, "serve", "--host", "203.0.113.10", "--open", "--listen", listen];
        let output =
            relay.node.try_run(&[&line[..], &["--stun-listen", stun, "--state-dir", shown(&other)?]].concat())?;
        refused(&output, 1, &["in use"]).with_context(|| format!("{listen} {stun}"))?;
    }

    pings.wait(PATIENCE)?;
    let output = pings.output();
    ensure!(output.contains(" 0% packet loss"), "a first one was disturbed: {output}");
    ensure!(alice.status()?["Self"]["Online"] == true);
    control.run(&["users", "create", "later"]).map(drop)
}

fn copied() -> Result<()> {
    let mut joined = Joined::new(&[Nat::Easy, Nat::Easy, Nat::Easy])?;
    joined.control.set_policy(super::joined::ALLOW)?;
    let key = joined.control.key(&["--reusable"])?;
    for agent in &joined.agents[..2] {
        agent.up(&joined.control, &key)?;
    }
    let (own, address) = (joined.agents[0].address()?, joined.agents[1].address()?);
    joined.agents[0].reach(&address)?;
    joined.agents[0].wait_for_kept_map()?;
    // Carol's machine gets what alice's has.
    joined.agents[2].kill();
    fs::copy(joined.agents[0].state.join("state.json"), joined.agents[2].state.join("state.json"))?;
    joined.agents[2].start()?;
    let began = Instant::now();
    let [alice, _, copy] = joined.agents.as_slice() else { unreachable!() };
    let is_told = |agent: &Agent| -> Result<bool> {
        let status = agent.status()?;
        Ok([&status["Health"], &status["ControlProblem"]]
            .iter()
            .any(|said| said.to_string().contains("another machine")))
    };
    for agent in [alice, copy] {
        until("it is told", PATIENCE, || Ok(is_told(agent)?.then_some(())))
            .with_context(|| format!("{}: {}", agent.node.name(), agent.log()))?;
        note(format_args!("{} was told after {:?}", agent.node.name(), began.elapsed()));
    }
    ensure!(joined.control.output().contains("two machines use the keys of a node"), "{}", joined.control.output());
    let said = text(&alice.try_mesh(&["status"])?);
    ensure!(said.contains("another machine"), "{said}");

    // No war: one of them is served, and stays so.
    let told = || joined.control.output().matches("two machines use the keys of a node").count();
    ensure!(told() == 1, "{}", joined.control.output());
    until("one of them is served", PATIENCE, || Ok((served(alice)? != served(copy)?).then_some(())))?;
    let first = served(alice)?;
    for _ in 0..5 {
        ensure!(served(alice)? == first && served(copy)? != first, "they end each other's streams");
        alice.echo(&address)?;
        copy.echo(&address)?;
    }
    ensure!(told() == 1, "{}", joined.control.output());

    // One goes: the other is well again, and is reached.
    let status: Value = copy.status()?;
    ensure!(status["TailscaleIPs"][0] == own.as_str(), "{status}");
    joined.agents[2].kill();
    let alice = &joined.agents[0];
    until("it is well", PATIENCE, || Ok((!is_told(alice)?).then_some(())))?;
    alice.wait_for_control()?;
    joined.agents[1].reach(&own)?;
    note(format_args!("well again after {:?}", began.elapsed()));
    Ok(())
}

/// Whether control streams its map to it.
fn served(agent: &Agent) -> Result<bool> {
    Ok(agent.status()?["Self"]["Online"] == true)
}
