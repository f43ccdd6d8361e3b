//! The same worlds in the simulator: the scenarios that have the names of the agent's tests, each twice, to show that a
//! seed repeats. As on the kernel, time runs from the moment that the relay has taken in both nodes.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use mesh_core::time;
use sim::{
    RunReport, Scenario, Simulation, Verdict,
    check::Technique,
    host::{HostId, NodeEvent, Over},
    scenario,
};

use crate::{
    Story, is_stopped,
    worlds::{Figures, World},
};

const SEED: u64 = 1;

pub(crate) fn tell(story: &Story) -> Result<Vec<Figures>> {
    story.say("simulator", "the same worlds, with 14 ms and 0.5 % loss on every link, and real cryptography; seed 1");
    let began = Instant::now();
    let (mut all, mut events, mut simulated) = (Vec::new(), 0, 0);
    for world in World::ALL {
        let scenario = scenario::parse(text(world)).with_context(|| format!("scenario {}", world.name()))?;
        let (report, figures) = run(&scenario, world)?;
        let (again, _) = run(&scenario, world)?;
        ensure!(report.digest == again.digest, "two runs of one seed differ in {}", world.name());
        story.say(world.name(), &format!("every expectation held; digest {:032x}, twice", report.digest));
        events += report.events + again.events;
        simulated += report.simulated.as_nanos() + again.simulated.as_nanos();
        all.push(figures);
    }
    let took = began.elapsed().as_secs_f64();
    story.say("simulator", &format!("{events} events, {} simulated seconds in {took:.1} s", simulated / 1_000_000_000));
    Ok(all)
}

const fn text(world: World) -> &'static str {
    match world {
        World::EasyEasy => include_str!("../../../../sim/scenarios/easy-easy.toml"),
        World::EasyHard => include_str!("../../../../sim/scenarios/easy-hard.toml"),
        World::UdpBlocked => include_str!("../../../../sim/scenarios/udp-blocked.toml"),
    }
}

fn run(scenario: &Scenario, world: World) -> Result<(RunReport, Figures)> {
    if is_stopped() {
        bail!("interrupted; everything is taken down");
    }
    let mut simulation = Simulation::new(scenario, SEED);
    let ended = simulation.run();
    let report = RunReport::new(scenario, &simulation, &ended);
    ensure!(report.verdict == Verdict::Pass, "{} in the simulator: {}", world.name(), report.failed.join("; "));

    let pair = report.pairs.first().context("no two nodes speak")?;
    let index = |name: &str| scenario.nodes.iter().position(|node| node.name == name).context("no such node");
    let ends = [HostId(index(&pair.a)? as u32), HostId(index(&pair.b)? as u32)];
    let [Some(a), Some(b)] = ends.map(|end| relay_link(simulation.node_events(), end)) else {
        bail!("in {} the relay did not take in both", world.name());
    };
    let linked = a.max(b);
    let flow = simulation.flows().iter().find(|flow| [flow.from, flow.to] == ends).context("nobody pings")?;
    let first = flow.samples.iter().min_by_key(|sample| sample.answered);
    let first = first.filter(|sample| sample.answered != time::Instant::FAR_FUTURE);
    let first = first.context("no ping was answered")?;
    let figures = Figures {
        world,
        first_ping_via: if first.over.contains(&Over::Relay) { "relay" } else { "direct" },
        first_ping_ms: millis(first.sent.max(linked), first.answered),
        direct_ms: pair.direct.map(|direct| millis(linked, direct)),
        technique: pair.technique.map(Technique::name),
        path: pair.path.name(),
        tcp_mbit: None,
    };
    Ok((report, figures))
}

/// When a relay first took a node in.
fn relay_link(events: &[(time::Instant, HostId, NodeEvent)], node: HostId) -> Option<time::Instant> {
    let is_link = |event: &NodeEvent| matches!(event, NodeEvent::RelayConnected { .. });
    events.iter().find(|(_, host, event)| *host == node && is_link(event)).map(|(at, ..)| *at)
}

fn millis(from: time::Instant, to: time::Instant) -> f64 {
    to.since(from).as_secs_f64() * 1e3
}
