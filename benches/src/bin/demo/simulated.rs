//! The same story in the simulator: the scenario in which two nodes join a control server, twice, to show that a seed
//! repeats. As on the kernel, time runs from the moment that the relay has taken in both nodes.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use mesh_core::time;
use sim::{
    RunReport, Scenario, Simulation, Verdict,
    check::Technique,
    host::{HostId, NodeEvent, Over},
    scenario,
};

use crate::{Story, figures::Figures, is_stopped};

const SEED: u64 = 1;
const SCENARIO: &str = include_str!("../../../../sim/scenarios/control-easy-easy.toml");

pub(crate) fn tell(story: &Story) -> Result<Figures> {
    story.say("simulator", "the same, with 14 ms and 0.5 % loss on every link, and real cryptography; seed 1");
    let began = Instant::now();
    let scenario = scenario::parse(SCENARIO).context("the scenario")?;
    let (report, figures) = run(&scenario)?;
    let (again, _) = run(&scenario)?;
    ensure!(report.digest == again.digest, "two runs of one seed differ");
    story.say("simulator", &format!("every expectation held; digest {:032x}, twice", report.digest));
    let (events, took) = (report.events + again.events, began.elapsed().as_secs_f64());
    let simulated = (report.simulated.as_nanos() + again.simulated.as_nanos()) / 1_000_000_000;
    story.say("simulator", &format!("{events} events, {simulated} simulated seconds in {took:.1} s"));
    Ok(figures)
}

fn run(scenario: &Scenario) -> Result<(RunReport, Figures)> {
    if is_stopped() {
        bail!("interrupted; everything is taken down");
    }
    let mut simulation = Simulation::new(scenario, SEED);
    let ended = simulation.run();
    let report = RunReport::new(scenario, &simulation, &ended);
    ensure!(report.verdict == Verdict::Pass, "in the simulator: {}", report.failed.join("; "));

    let pair = report.pairs.first().context("no two nodes speak")?;
    let index = |name: &str| scenario.nodes.iter().position(|node| node.name == name).context("no such node");
    let ends = [HostId(index(&pair.a)? as u32), HostId(index(&pair.b)? as u32)];
    let [Some(a), Some(b)] = ends.map(|end| relay_link(simulation.node_events(), end)) else {
        bail!("the relay did not take in both");
    };
    let linked = a.max(b);
    let flow = simulation.flows().iter().find(|flow| [flow.from, flow.to] == ends).context("nobody pings")?;
    let first = flow.samples.iter().min_by_key(|sample| sample.answered);
    let first = first.filter(|sample| sample.answered != time::Instant::FAR_FUTURE);
    let first = first.context("no ping was answered")?;
    let figures = Figures {
        // The scenario expects of all that they run.
        joined: scenario.nodes.len(),
        first_ping_via: if first.over.contains(&Over::Relay) { "relay" } else { "direct" },
        first_ping_ms: millis(first.sent.max(linked), first.answered),
        direct_ms: pair.direct.map(|direct| millis(linked, direct)),
        technique: pair.technique.map(Technique::name),
        ..Figures::default()
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
