//! Mutation tests: which mistakes would the tests notice?
//!
//! `sim/mutants.toml` lists mistakes, each a piece of source and what stands for it. All of them are built into one copy
//! of the workspace under `target/mutants`, each behind a switch (*mutant schemata*), so that the tests are compiled once
//! and run once for every mistake with the environment saying which one is made. What noticed it is told by class:
//!
//! - *unit*: the tests of the crate that the mistake is in, without its models;
//! - *model*: its tests that compare a machine with a model, drive it at random, or against another implementation;
//! - *simulator*: scenarios and generated worlds.
//!
//! A class ends at its first test that fails. Results are kept line by line, so a run that was cut off goes on where it
//! was, and a mistake whose text has changed is looked at again.
//!
//! ```text
//! cargo run -p sim --example mutants -- build    # copy, change and compile; again after a change of the sources
//! cargo run -p sim --example mutants -- run      # the first time also without any mistake, which must pass
//! cargo run -p sim --example mutants -- table    # writes sim/mutants.md
//! ```

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program's output")]

mod apply;
mod results;
mod suites;

use std::{
    collections::{BTreeSet, VecDeque},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, Subcommand};

use apply::{List, Mutant};
use results::{Line, Results};
use suites::{Class, Found, Suites};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Say whether every text of the list is found, and nothing else.
    Check,
    /// Copy the sources, apply the list, compile the tests.
    Build,
    /// Run the tests that have no result yet, for each mistake.
    Run {
        /// Only these, and again.
        names: Vec<String>,
        /// Only those that nothing has noticed yet.
        #[arg(long)]
        survivors: bool,
        /// Only these classes.
        #[arg(long, value_enum, value_delimiter = ',', default_value = "unit,model,simulator")]
        classes: Vec<Class>,
        /// How many runs at a time.
        #[arg(long, default_value_t = 2)]
        jobs: usize,
    },
    /// Write sim/mutants.md.
    Table,
}

fn main() -> ExitCode {
    match run(&Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mutants: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: &Verb) -> Result<()> {
    let list = List::read(&root().join("sim/mutants.toml"))?;
    match verb {
        Verb::Check => {
            let changed = apply::changed_files(&list, root())?;
            println!("{} mistakes in {} files", list.mutants.len(), changed.len());
            Ok(())
        }
        Verb::Build => {
            apply::write_tree(&list, root(), &work().join("tree"))?;
            suites::build(&work())
        }
        Verb::Run { names, survivors, classes, jobs } => {
            let mut results = Results::open(&work().join("results.json"))?;
            let waiting = waiting(&list, &results, names, *survivors, classes)?;
            let suites = Suites::read(&work(), &list.simulator)?;
            try_without(&suites, &mut results, &waiting)?;
            try_all(&suites, results, waiting, *jobs)
        }
        Verb::Table => {
            let results = Results::open(&work().join("results.json"))?;
            let table = results::table(&list, &results)?;
            std::fs::write(root().join("sim/mutants.md"), table).context("sim/mutants.md")
        }
    }
}

/// A mistake by its number, and what is to be run.
type Waiting<'l> = (u32, &'l Mutant, Class);

fn waiting<'l>(
    list: &'l List,
    results: &Results,
    names: &[String],
    survivors: bool,
    classes: &[Class],
) -> Result<VecDeque<Waiting<'l>>> {
    for name in names {
        ensure!(list.mutants.iter().any(|mutant| mutant.name == *name), "no mistake is called {name:?}");
    }
    let mut waiting = VecDeque::new();
    for class in classes {
        for (number, mutant) in (1..).zip(&list.mutants) {
            let is_wanted = if names.is_empty() {
                results.of(mutant, *class).is_none() && !(survivors && results.is_caught(mutant))
            } else {
                names.contains(&mutant.name)
            };
            if is_wanted {
                waiting.push_back((number, mutant, *class));
            }
        }
    }
    Ok(waiting)
}

/// Without any mistake all tests pass, or else they say nothing.
fn try_without(suites: &Suites<'_>, results: &mut Results, waiting: &VecDeque<Waiting<'_>>) -> Result<()> {
    let wanted: BTreeSet<_> = waiting.iter().map(|(_, mutant, class)| (class.tested(mutant), *class)).collect();
    for (krate, class) in wanted {
        if results.control(krate, class).is_none() {
            let (found, seconds) = suites.run(class, krate, 0, None)?;
            println!("without any mistake: {krate}, {} ({seconds:.0} s) {}", class.name(), found.text());
            ensure!(matches!(found, Found::Passed), "the tests fail without any mistake");
            results.add(Line::of_control(krate, class, found, seconds))?;
        }
    }
    Ok(())
}

fn try_all(suites: &Suites<'_>, results: Results, waiting: VecDeque<Waiting<'_>>, jobs: usize) -> Result<()> {
    println!("{} runs", waiting.len());
    let (waiting, results) = (Mutex::new(waiting), Mutex::new(results));
    let work = || -> Result<()> {
        loop {
            let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some((number, mutant, class)) = next else { return Ok(()) };
            let krate = class.tested(mutant);
            let usual = results.lock().unwrap_or_else(PoisonError::into_inner).control(krate, class);
            let (found, seconds) = suites.run(class, krate, number, usual)?;
            println!("{}, {} ({seconds:.0} s) {}", mutant.name, class.name(), found.text());
            let line = Line::of(mutant, class, found, seconds);
            results.lock().unwrap_or_else(PoisonError::into_inner).add(line)?;
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| bail!("a worker panicked")))
    })
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn work() -> PathBuf {
    root().join("target/mutants")
}
