//! `mesh-sim`: runs scenarios.
//!
//! Exit status: 0 all passed, 1 an expectation or invariant did not hold, 2 a bad scenario or command line,
//! 3 two processes disagree, 4 the simulator failed or a run did not end.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program's output")]

use std::{
    fs,
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use sim::{
    RunReport, Scenario, Simulation, Verdict,
    kernel::{
        EVENTS_MAX,
        trace::{Names, Record},
    },
    report::{self, json, junit, terminal},
    scenario,
};

#[path = "sim/swarm.rs"]
mod swarm;

/// Runs whole overlay networks in virtual time.
#[derive(Parser)]
#[command(name = "mesh-sim", version = env!("MESH_VERSION"), subcommand_required = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run scenarios and say which passed.
    Run(Run),
    /// Run one seed and print what happens, one event a line, and the digest at the end.
    Replay(Replay),
    /// Print a completion script.
    Completion {
        /// For which shell.
        shell: Shell,
    },
    /// Run generated worlds until one fails, and make that one smaller.
    Swarm(swarm::Swarm),
    /// Make a failing scenario smaller.
    Shrink(swarm::Shrink),
    /// Run every pair of NAT profiles (not built yet).
    Matrix(NotBuilt),
    /// Show a part of a run (not built yet).
    Show(NotBuilt),
    /// Compare two runs (not built yet).
    Diff(NotBuilt),
    /// Print a scenario in its canonical form (not built yet).
    Fmt(NotBuilt),
}

#[derive(clap::Args)]
struct Run {
    /// Scenario files.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<String>,
    /// Seeds instead of the scenario's own: a half-open range A..B, or numbers separated by commas.
    #[arg(long, value_name = "A..B", value_parser = scenario::parse_seeds)]
    seeds: Option<SeedList>,
    /// Print one JSON object a file.
    #[arg(long)]
    json: bool,
    /// Write JUnit XML.
    #[arg(long, value_name = "F")]
    junit: Option<String>,
    /// Run everything in a second process too and compare digests.
    #[arg(long)]
    check_determinism: bool,
    /// Give up a run after so many events.
    #[arg(long, value_name = "N", default_value_t = EVENTS_MAX)]
    max_events: u64,
}

/// Named, so that clap takes it for one value.
type SeedList = Vec<u64>;

#[derive(clap::Args)]
struct Replay {
    /// A scenario file.
    #[arg(required_unless_present = "swarm", conflicts_with = "swarm")]
    file: Option<String>,
    /// Which seed.
    #[arg(long, required_unless_present = "swarm")]
    seed: Option<u64>,
    /// The generated world of this seed.
    #[arg(long, value_name = "SEED", conflicts_with = "seed")]
    swarm: Option<u64>,
    /// Print errors as JSON as well.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct NotBuilt {
    /// Anything.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _rest: Vec<String>,
}

/// Why the program ends before its time.
struct Failure {
    exit: u8,
    code: &'static str,
    message: String,
    hint: Option<String>,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let (json, result) = match cli.verb {
        Verb::Run(run) => (run.json, run_files(&run)),
        Verb::Replay(replay) => (replay.json, replay_seed(&replay)),
        Verb::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "mesh-sim", &mut io::stdout());
            (false, Ok(0))
        }
        Verb::Swarm(options) => (options.json, swarm::run(&options)),
        Verb::Shrink(options) => {
            (options.json, read(&options.file).and_then(|scenario| swarm::shrink(&options, &scenario)))
        }
        Verb::Matrix(rest) => (rest.wants_json(), Err(rest.failure("matrix"))),
        Verb::Show(rest) => (rest.wants_json(), Err(rest.failure("show"))),
        Verb::Diff(rest) => (rest.wants_json(), Err(rest.failure("diff"))),
        Verb::Fmt(rest) => (rest.wants_json(), Err(rest.failure("fmt"))),
    };
    match result {
        Ok(exit) => ExitCode::from(exit),
        Err(failure) => failure.tell(json),
    }
}

impl NotBuilt {
    fn wants_json(&self) -> bool {
        self._rest.iter().any(|argument| argument == "--json")
    }

    fn failure(&self, verb: &str) -> Failure {
        Failure {
            exit: 2,
            code: "not_built",
            message: format!("`mesh-sim {verb}` is not built yet"),
            hint: Some("there are `run`, `replay`, `swarm` and `shrink`".to_owned()),
        }
    }
}

impl Failure {
    fn tell(self, json: bool) -> ExitCode {
        match &self.hint {
            Some(hint) => eprintln!("mesh-sim: {}; {hint}", self.message),
            None => eprintln!("mesh-sim: {}", self.message),
        }
        if json && let Ok(line) = json::error(self.code, &self.message, self.hint.as_deref()) {
            say(&line);
        }
        ExitCode::from(self.exit)
    }
}

fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    // The first paragraph says what is wrong; the rest is help.
    let text = error.to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
    let failure = Failure {
        exit: 2,
        code: "usage",
        message: paragraph.split_whitespace().collect::<Vec<_>>().join(" "),
        hint: Some("see `mesh-sim --help`".to_owned()),
    };
    failure.tell(std::env::args().any(|argument| argument == "--json"))
}

/// Runs all files and returns the highest exit status.
fn run_files(options: &Run) -> Result<u8, Failure> {
    // All files are read before the first is run: a mistake in the last one should not cost the time of the others.
    let scenarios = options.files.iter().map(|file| Ok((file.clone(), read(file)?))).collect::<Result<Vec<_>, _>>()?;
    let mut exit = 0;
    let mut results = Vec::new();
    for (file, scenario) in scenarios {
        let runs = run_scenario(&scenario, options);
        let (verdict, failed) = report::summary(&scenario, &runs);
        exit = exit.max(match verdict {
            Verdict::Pass => 0,
            Verdict::Fail => 1,
            Verdict::Error => 4,
        });
        tell_results(&file, &scenario, verdict, &runs, &failed, options)?;
        if options.check_determinism {
            exit = exit.max(compare_with_second_process(&file, &runs, options)?);
        }
        results.push((file, scenario, runs));
    }
    if let Some(file) = &options.junit {
        fs::write(file, junit::document(&results)).map_err(|error| unusable(file, "written", &error))?;
    }
    Ok(exit)
}

fn run_scenario(scenario: &Scenario, options: &Run) -> Vec<RunReport> {
    let seeds = options.seeds.as_ref().unwrap_or(&scenario.seeds);
    let progress = io::stderr().is_terminal();
    let mut runs = Vec::new();
    for (done, seed) in seeds.iter().enumerate() {
        if progress {
            eprint!("\r{} {done}/{}\x1b[K", scenario.name, seeds.len());
        }
        runs.push(sim::run_within(scenario, *seed, options.max_events));
    }
    if progress {
        eprint!("\r\x1b[K");
    }
    runs
}

fn tell_results(
    file: &str,
    scenario: &Scenario,
    verdict: Verdict,
    runs: &[RunReport],
    failed: &[String],
    options: &Run,
) -> Result<(), Failure> {
    if options.json {
        say_json(json::line(scenario, runs, failed))?;
    } else {
        say(&terminal::line(scenario, verdict, runs));
    }
    for line in failed {
        eprintln!("{}: {line}", scenario.name);
    }
    // The first failing seed in full; the others would say much the same.
    let mut wrong = runs.iter().filter(|run| run.verdict != Verdict::Pass);
    if let Some(run) = wrong.next() {
        eprint!("{}", terminal::failure(scenario, run, Some(file)));
        let others: Vec<_> = wrong.map(|run| run.seed.to_string()).collect();
        if !others.is_empty() {
            eprintln!("  it failed with {} more seeds: {}", others.len(), others.join(","));
        }
    }
    Ok(())
}

/// Runs the same seeds in another process, with another address space layout, and compares digests.
fn compare_with_second_process(file: &str, runs: &[RunReport], options: &Run) -> Result<u8, Failure> {
    let fail = |message: String| Failure { exit: 4, code: "second_process", message, hint: None };
    let program = std::env::current_exe().map_err(|error| fail(format!("this program is not found: {error}")))?;
    let seeds: Vec<_> = runs.iter().map(|run| run.seed.to_string()).collect();
    let output = Command::new(program)
        .args(["run", file, "--json", "--seeds", &seeds.join(","), "--max-events", &options.max_events.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(|error| fail(format!("a second process cannot be started: {error}")))?;
    let value: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| fail(format!("the second process printed no result: {error}")))?;
    let digests = value["runs"].as_array().map_or(&[][..], Vec::as_slice);
    let mut exit = 0;
    for (index, run) in runs.iter().enumerate() {
        let other = digests.get(index).and_then(|run| run["digest"].as_str()).unwrap_or("no digest");
        let own = format!("{:032x}", run.digest);
        if other != own {
            eprintln!("mesh-sim: {file} with seed {} is not deterministic: {own} here, {other} there", run.seed);
            exit = 3;
        }
    }
    Ok(exit)
}

fn replay_seed(options: &Replay) -> Result<u8, Failure> {
    let (scenario, seed) = match (options.swarm, &options.file, options.seed) {
        (None, Some(file), Some(seed)) => (read(file)?, seed),
        (swarm, ..) => {
            let seed = swarm.unwrap_or_default();
            (sim::swarm::of_seed(seed), seed)
        }
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let report = {
        let observer = Box::new(|record: &Record, names: &Names| {
            // A closed pipe ends the printing, not the run: the exit status still counts.
            let _ = writeln!(out, "{}", record.line(names));
        });
        let mut simulation = Simulation::new(&scenario, seed).observed(observer);
        let ended = simulation.run();
        RunReport::new(&scenario, &simulation, &ended)
    };
    let _ = writeln!(out, "digest {:032x}", report.digest);
    let _ = out.flush();
    if report.verdict != Verdict::Pass {
        eprint!("{}", terminal::failure(&scenario, &report, options.file.as_deref()));
    }
    Ok(match report.verdict {
        Verdict::Pass => 0,
        Verdict::Fail => 1,
        Verdict::Error => 4,
    })
}

fn read(file: &str) -> Result<Scenario, Failure> {
    let text = fs::read_to_string(file).map_err(|error| unusable(file, "read", &error))?;
    let beside = |name: &str| fs::read_to_string(Path::new(file).with_file_name(name)).ok();
    scenario::parse_with(&text, |name| std::env::var(name).ok(), beside).map_err(|error| Failure {
        exit: 2,
        code: "bad_scenario",
        message: format!("{file}:{}:{}: {}", error.line, error.column, error.message),
        hint: error.hint,
    })
}

fn unusable(file: &str, what: &str, error: &io::Error) -> Failure {
    Failure { exit: 2, code: "file", message: format!("{file} cannot be {what}: {error}"), hint: None }
}

/// A line on stdout; a reader who went away is no error.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

fn say_json(line: Result<String, serde_json::Error>) -> Result<(), Failure> {
    let line = line.map_err(|error| Failure {
        exit: 4,
        code: "internal",
        message: format!("the result cannot be written as JSON: {error}"),
        hint: None,
    })?;
    say(&line);
    Ok(())
}
