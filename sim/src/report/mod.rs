//! What is told of a run, in forms for people and for programs.

pub mod json;
pub mod junit;
pub mod terminal;

use std::collections::BTreeMap;

use mesh_core::time::Instant;

use crate::{
    check::{self, CheckId, PathIs, Technique, View, technique::Surroundings, ways::Doubt},
    host::{HostId, NodeEvent},
    kernel::{Ended, Simulation},
    net::{DropCause, PacketKind},
    scenario::Scenario,
};

/// Events that explain a failure.
const LAST_EVENTS: usize = 20;

/// How a run or a scenario went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// All came true.
    Pass,
    /// An expectation or an invariant did not hold.
    Fail,
    /// The simulator failed, or the run did not end.
    Error,
}

/// What is told of a run of one seed.
#[derive(Clone, Debug)]
pub struct RunReport {
    /// The seed.
    pub seed: u64,
    /// One number for all that happened.
    pub digest: u128,
    /// The digest after every 4096 events.
    pub checkpoints: Vec<u128>,
    /// How it went. An expectation that need not hold in every seed does not count here.
    pub verdict: Verdict,
    /// The first invariant that did not hold.
    pub violated: Option<CheckId>,
    /// What did not hold, in words; first the invariants.
    pub failed: Vec<String>,
    /// Of every expectation, in order: why it did not come true.
    pub complaints: Vec<Option<String>>,
    /// Of every two nodes with traffic between them.
    pub pairs: Vec<PairReport>,
    /// Datagrams that hosts sent, by themselves or over relays, by kind, without those of no known kind.
    pub packets: BTreeMap<&'static str, u64>,
    /// Packets that ended, by reason; of the network and of the nodes.
    pub drops: BTreeMap<&'static str, u64>,
    /// How often each invariant was looked at, without those that had nothing to look at.
    pub invariants: Vec<(CheckId, u64)>,
    /// Events of the scenario that were carried out.
    pub faults: u64,
    /// Events taken from the agenda.
    pub events: u64,
    /// How long the run was, in simulated time.
    pub simulated: Instant,
    /// Whom what did not hold is about; empty is everybody.
    pub about: Vec<HostId>,
    /// When the first of it was clear.
    pub failed_at: Option<Instant>,
    /// The last events before that.
    pub last: Vec<String>,
}

/// What is told of two nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairReport {
    /// Who asks.
    pub a: String,
    /// Who answers.
    pub b: String,
    /// How they spoke.
    pub path: PathIs,
    /// What made it possible, when they did.
    pub technique: Option<Technique>,
    /// When the first message was delivered, either way.
    pub first_delivery: Option<Instant>,
    /// When both had been taken in by a relay.
    pub relay_up: Option<Instant>,
    /// When both sent directly; without relays, when messages had been delivered both ways.
    pub direct: Option<Instant>,
}

impl RunReport {
    /// The report of a simulation that has ended.
    #[must_use]
    pub fn new(scenario: &Scenario, simulation: &Simulation<'_>, ended: &Ended) -> Self {
        let surroundings: Vec<_> = scenario
            .nodes
            .iter()
            .enumerate()
            .map(|(index, spec)| {
                let node = simulation.hosts()[index].node();
                let (net, addresses) = (node.and_then(|node| node.net()), node.map(|node| node.addresses()));
                Surroundings::new(simulation.network(), net.unwrap_or(spec.net), addresses.unwrap_or_default())
            })
            .collect();
        let view = View {
            end: simulation.now(),
            flows: simulation.flows(),
            tally: simulation.tally(),
            packets: simulation.packets(),
            events: simulation.node_events(),
            surroundings: &surroundings,
            has_relays: !scenario.relays.is_empty(),
        };
        let mut failed = Vec::new();
        let mut about: Vec<HostId> = Vec::new();
        match ended {
            Ended::InTime | Ended::Panicked => {}
            Ended::Fault(message) => failed.push(format!("the simulator failed: {message}")),
            Ended::TooManyEvents => failed.push("there was no end to the events".to_owned()),
        }
        if let Some(violation) = simulation.tally().violation() {
            let (id, at, message) = (violation.id.name(), violation.at, &violation.message);
            let more = simulation.tally().violations() - 1;
            let more = if more > 0 { format!(", and {more} more") } else { String::new() };
            failed.push(format!("invariant {id} at {at}: {message}{more}"));
        }
        // What was expected of a whole run is not judged by a part of one.
        let verdicts: Vec<_> = match ended {
            Ended::InTime => scenario.expects.iter().map(|spec| check::evaluate(&spec.expectation, &view)).collect(),
            Ended::Panicked | Ended::Fault(_) | Ended::TooManyEvents => {
                vec![check::Verdict::Held; scenario.expects.len()]
            }
        };
        let complaints: Vec<_> = verdicts.iter().map(check::Verdict::complaint).collect();
        let mut failed_at = simulation.tally().violation().map(|violation| violation.at);
        for ((spec, verdict), complaint) in scenario.expects.iter().zip(&verdicts).zip(&complaints) {
            let Some(complaint) = complaint.as_ref().filter(|_| spec.is_for_every_seed()) else { continue };
            if failed_at.is_none() {
                failed_at = Some(verdict.failed_at().unwrap_or(simulation.now()));
                about = spec.expectation.hosts();
            }
            let line = spec.line.map_or(String::new(), |line| format!("line {line}: "));
            failed.push(format!("{line}{}: {complaint}", spec.expectation.text(simulation.names())));
        }
        let verdict = match ended {
            Ended::Fault(_) | Ended::TooManyEvents => Verdict::Error,
            Ended::InTime | Ended::Panicked if failed.is_empty() => Verdict::Pass,
            Ended::InTime | Ended::Panicked => Verdict::Fail,
        };
        let last = if failed.is_empty() { Vec::new() } else { last_events(simulation, &about) };
        Self {
            seed: simulation.seed(),
            digest: simulation.trace().digest(),
            checkpoints: simulation.trace().checkpoints().to_vec(),
            verdict,
            violated: simulation.tally().violation().map(|violation| violation.id),
            failed,
            complaints,
            pairs: pairs(scenario, simulation, &view),
            packets: packets(simulation),
            drops: drops(simulation),
            invariants: invariants(simulation),
            faults: simulation.faults(),
            events: simulation.handled(),
            simulated: simulation.now(),
            about,
            failed_at,
            last,
        }
    }
}

/// The last events of a simulation that concern `about`.
pub(crate) fn last_events(simulation: &Simulation<'_>, about: &[HostId]) -> Vec<String> {
    let records = simulation.trace().last(LAST_EVENTS, about);
    records.iter().map(|record| record.line(simulation.names())).collect()
}

fn pairs(scenario: &Scenario, simulation: &Simulation<'_>, view: &View<'_>) -> Vec<PairReport> {
    let mut between: Vec<[HostId; 2]> = Vec::new();
    for traffic in &scenario.traffic {
        let pair = [traffic.from, traffic.to];
        if !between.contains(&pair) && !between.contains(&[traffic.to, traffic.from]) {
            between.push(pair);
        }
    }
    let name = |host: HostId| scenario.nodes[host.index()].name.clone();
    let report = |[a, b]: [HostId; 2]| {
        let first = |from, to| check::first_delivery(simulation.flows(), (from, to), Instant::ZERO, None);
        let (there, back) = (first(a, b), first(b, a));
        let (path, direct) = if scenario.relays.is_empty() {
            let path = if there.or(back).is_some() { PathIs::Direct } else { PathIs::None };
            (path, there.zip(back).map(|(there, back)| there.max(back)))
        } else {
            let strictly = check::ways::ways(simulation.node_events(), [a, b], Doubt::Counts);
            let ways = check::ways::ways(simulation.node_events(), [a, b], Doubt::Ignored);
            let end = simulation.now();
            let direct = check::ways::first_in(&strictly, PathIs::Direct, Instant::ZERO, end);
            (check::ways::way_at(&ways, end), direct)
        };
        PairReport {
            a: name(a),
            b: name(b),
            path,
            technique: (path == PathIs::Direct).then(|| view.technique([a, b])),
            first_delivery: mesh_core::time::earliest(there, back),
            relay_up: relay_up(simulation, a).zip(relay_up(simulation, b)).map(|(one, other)| one.max(other)),
            direct,
        }
    };
    between.into_iter().map(report).collect()
}

fn relay_up(simulation: &Simulation<'_>, host: HostId) -> Option<Instant> {
    let is_up = |event: &NodeEvent| matches!(event, NodeEvent::RelayConnected { .. });
    simulation.node_events().iter().find(|(_, of, event)| *of == host && is_up(event)).map(|(at, ..)| *at)
}

fn packets(simulation: &Simulation<'_>) -> BTreeMap<&'static str, u64> {
    let total = |kind: PacketKind| simulation.packets().iter().map(|counts| counts[kind as usize]).sum();
    let kinds = [PacketKind::WireguardHandshake, PacketKind::WireguardData, PacketKind::Disco, PacketKind::Stun];
    let datagrams = kinds.map(|kind| (kind.name(), total(kind)));
    let others = [("derp_frames", simulation.derp_frames()), ("control_messages", simulation.control_messages())];
    datagrams.into_iter().chain(others).collect()
}

fn invariants(simulation: &Simulation<'_>) -> Vec<(CheckId, u64)> {
    let checked = CheckId::ALL.iter().map(|id| (*id, simulation.tally().checked(*id)));
    checked.filter(|(_, checked)| *checked > 0).collect()
}

fn drops(simulation: &Simulation<'_>) -> BTreeMap<&'static str, u64> {
    let network = simulation.network().counts().dropped.iter().map(|(cause, count)| (DropCause::name(cause), count));
    let nodes = simulation.refused();
    let nodes = nodes.iter().map(|(reason, count)| (reason.name(), count));
    network.chain(nodes).filter(|(_, count)| *count > 0).collect()
}

/// How all runs of a scenario went together: the worst of them, and what was expected of a share of them.
#[must_use]
pub fn summary(scenario: &Scenario, runs: &[RunReport]) -> (Verdict, Vec<String>) {
    let worst = runs.iter().map(|run| run.verdict).max().unwrap_or(Verdict::Error);
    let names = scenario.names();
    let mut failed = Vec::new();
    for (index, spec) in scenario.expects.iter().enumerate().filter(|(_, spec)| !spec.is_for_every_seed()) {
        let held = runs.iter().filter(|run| run.complaints[index].is_none()).count();
        if !spec.min_rate.reached_by(held as u64, runs.len() as u64) {
            let line = spec.line.map_or(String::new(), |line| format!("line {line}: "));
            let text = spec.expectation.text(&names);
            failed.push(format!("{line}{text}: held in {held} of {} seeds, {} is expected", runs.len(), spec.min_rate));
        }
    }
    (if failed.is_empty() { worst } else { worst.max(Verdict::Fail) }, failed)
}
