//! `mesh-sim swarm` and `mesh-sim shrink`: generated worlds one after the other until one fails, and failing worlds made
//! smaller.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program's output")]

use std::{
    io::{self, IsTerminal as _},
    panic,
    time::{Duration, Instant},
};

use sim::{
    RunReport, Scenario, Verdict,
    report::{json, terminal},
    scenario::write,
    swarm::{self, EVENTS_MAX, Failure, Totals},
};

use super::{Failure as Refusal, say, say_json};

/// Seeds unless others are asked for.
const SEEDS: (u64, u64) = (0, 100);

#[derive(clap::Args)]
pub(super) struct Swarm {
    /// Which seeds, A included and B not; 0..100, or as many as there is time for with --minutes.
    #[arg(long, value_name = "A..B", value_parser = parse_range)]
    seeds: Option<(u64, u64)>,
    /// Begin no world after so many minutes.
    #[arg(long, value_name = "N")]
    minutes: Option<u64>,
    /// Print one JSON object, as the last line.
    #[arg(long)]
    pub(super) json: bool,
    /// Go on after the first failure, and make nothing smaller.
    #[arg(long)]
    keep_going: bool,
    /// Run so many worlds at most to make a failing one smaller.
    #[arg(long, value_name = "N", default_value_t = 600)]
    shrink_runs: u32,
}

#[derive(clap::Args)]
pub(super) struct Shrink {
    /// A scenario that fails.
    pub(super) file: String,
    /// With which seed; the scenario's first unless given.
    #[arg(long)]
    seed: Option<u64>,
    /// Run so many worlds at most.
    #[arg(long, value_name = "N", default_value_t = 600)]
    runs: u32,
    /// Print errors as JSON as well.
    #[arg(long)]
    pub(super) json: bool,
}

/// Half-open, without the bound that lists of seeds have.
fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let wrong = || "seeds are a range A..B with A below B".to_owned();
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let range = (from.trim().parse().map_err(|_| wrong())?, to.trim().parse().map_err(|_| wrong())?);
    if range.0 < range.1 { Ok(range) } else { Err(wrong()) }
}

pub(super) fn run(options: &Swarm) -> Result<u8, Refusal> {
    let began = Instant::now();
    let limit = options.minutes.map(|minutes| Duration::from_secs(minutes * 60));
    let (from, to) = options.seeds.unwrap_or((SEEDS.0, if limit.is_some() { u64::MAX } else { SEEDS.1 }));
    let progress = io::stderr().is_terminal();
    // A world that panics says so in its report; of a thousand that are tried to make it smaller nobody wants to hear.
    panic::set_hook(Box::new(|_| {}));
    let mut totals = Totals::default();
    let mut found = None;
    let mut seed = from;
    while seed < to && limit.is_none_or(|limit| began.elapsed() < limit) {
        if progress {
            eprint!("\rseed {seed}, {} worlds, {} failed\x1b[K", totals.worlds, totals.violations);
        }
        let world = swarm::of_seed(seed);
        let run = sim::run_within(&world, seed, EVENTS_MAX);
        totals.add(&world, &run);
        seed += 1;
        if let Some(failure) = Failure::of(&world, &run) {
            if progress {
                eprint!("\r\x1b[K");
            }
            if options.keep_going {
                eprintln!("seed {}: {}: {}", run.seed, failure.name(), run.failed.join("; "));
                found.get_or_insert((run.seed, String::new()));
                continue;
            }
            found = Some((run.seed, tell(&world, &run, &failure, options.shrink_runs)));
            break;
        }
    }
    if progress {
        eprint!("\r\x1b[K");
    }
    let seeds = (from, seed.max(from));
    if options.json {
        let failure = found.as_ref().map(|(seed, text)| (*seed, replay(*seed), text.as_str()));
        say_json(json::swarm(seeds, &totals, failure))?;
    } else {
        say(terminal::swarm(seeds, &totals).trim_end());
    }
    Ok(u8::from(found.is_some()))
}

/// Says what is wrong with a world, and makes it smaller: the text of a scenario file.
fn tell(world: &Scenario, run: &RunReport, failure: &Failure, runs_max: u32) -> String {
    eprint!("{}", terminal::failure(world, run, None));
    eprintln!("  repeat it: {}", replay(run.seed));
    let bytes = swarm::bytes::of_seed(run.seed);
    let shrunk = swarm::shrink(&bytes, run.seed, swarm::by_the_text, failure, runs_max, |world| fails(world, run.seed));
    let text = file(&shrunk, failure, run.seed, &format!("swarm, seed {}", run.seed));
    eprint!("{text}");
    text
}

fn file(shrunk: &swarm::Shrunk, failure: &Failure, seed: u64, whence: &str) -> String {
    let world = &shrunk.scenario;
    eprintln!(
        "  smaller after {} runs: {} nodes, {} nets, {} events, {} of traffic",
        shrunk.runs,
        world.nodes.len(),
        world.nets.len(),
        world.events.len(),
        world.traffic.len()
    );
    let run = sim::run_within(world, seed, EVENTS_MAX);
    let head = run.failed.iter().map(|line| format!("# {line}\n")).collect::<String>();
    let text = write(world).unwrap_or_else(|what| format!("# cannot be written: it has {what}\n"));
    format!("# Found by {whence}: {}.\n{head}{text}", failure.name())
}

fn fails(world: &Scenario, seed: u64) -> Option<Failure> {
    Failure::of(world, &sim::run_within(world, seed, EVENTS_MAX))
}

fn replay(seed: u64) -> String {
    format!("mesh-sim replay --swarm {seed}")
}

pub(super) fn shrink(options: &Shrink, scenario: &Scenario) -> Result<u8, Refusal> {
    panic::set_hook(Box::new(|_| {}));
    let Some(seed) = options.seed.or(scenario.seeds.first().copied()) else { return Ok(0) };
    let mut scenario = Scenario { seeds: vec![seed], ..scenario.clone() };
    // Of what is left nothing is in the line that it was in.
    scenario.expects.iter_mut().for_each(|spec| spec.line = None);
    let run = sim::run_within(&scenario, seed, EVENTS_MAX);
    let Some(failure) = Failure::of(&scenario, &run).filter(|_| run.verdict != Verdict::Pass) else {
        return Err(Refusal {
            exit: 2,
            code: "passes",
            message: format!("{} passes with seed {seed}: there is nothing to make smaller", options.file),
            hint: Some("give a seed with which it fails".to_owned()),
        });
    };
    let shrunk = swarm::shrink_scenario(&scenario, &failure, options.runs, |world| fails(world, seed));
    say(file(&shrunk, &failure, seed, &format!("{} with seed {seed}", scenario.name)).trim_end());
    Ok(1)
}
