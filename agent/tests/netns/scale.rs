//! Many agents on one control server: whole programs, each in a namespace of its own.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::{
    joined::{ALLOW, Agent, DENY, Joined, Log, PATIENCE, note},
    lab::{Node, until},
    measured::{Watch, long_or},
    strangers,
};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[("scale: many agents on one control server see each other and talk", many)];

fn many() -> Result<()> {
    let count: usize = long_or(200, 12);
    let mut joined = Joined::up_that_logs(Log::Usual, &[])?;
    let nodes: Vec<Node> =
        (0..count).map(|number| strangers::host(&mut joined.homes, number)).collect::<Result<_>>()?;
    let watch = Watch::start("control", joined.control.process.as_ref().context("no control")?)?;
    let began = Instant::now();
    let key = joined.control.key(&["--reusable"])?;
    let mut agents = Vec::new();
    for node in &nodes {
        let agent = Agent::new(node, &joined.control)?;
        agent.up(&joined.control, &key)?;
        agents.push(agent);
    }
    let joined_after = began.elapsed();
    all_know_all(&agents, count)?;
    note(format_args!(
        "{count} agents: joined one by one in {joined_after:?}, all knew all after {:?}",
        began.elapsed()
    ));

    // A ring: each talks to the next.
    let began = Instant::now();
    let addresses = agents.iter().map(Agent::address).collect::<Result<Vec<_>>>()?;
    for (agent, address) in agents.iter().zip(addresses.iter().cycle().skip(1)) {
        agent.reach(address)?;
    }
    note(format_args!("a ring of pings: {:?}", began.elapsed()));
    let status = agents[0].mesh(&["status"])?;
    ensure!(status.lines().count() > count - 1, "{status}");

    // A change for everybody, and back.
    for (policy, wanted) in [(DENY, 0), (ALLOW, count - 1)] {
        joined.control.set_policy(policy)?;
        for agent in &agents {
            until("the policy is known", PATIENCE, || Ok((agent.peers()?.len() == wanted).then_some(())))?;
        }
    }
    // A line for each that joined.
    watch.end_with(1_024, count)?;
    // All come back at once.
    joined.control.kill();
    joined.control.start()?;
    for agent in &agents {
        agent.wait_for_control()?;
    }
    all_know_all(&agents, count)?;
    agents[0].reach(&addresses[count - 1]).map(drop)
}

fn all_know_all(agents: &[Agent], count: usize) -> Result<()> {
    for agent in agents {
        until("all know all", PATIENCE, || Ok((agent.peers()?.len() == count - 1).then_some(())))?;
    }
    Ok(())
}
