//! Our agent in network namespaces: against ours, through routers, under bad input, to its end.
//!
//! Needs root, and for one test a C compiler; a test whose needs are not met is reported as ignored, with the reason in
//! its line.

mod netns {
    pub(crate) mod agents;
    pub(crate) mod control;
    pub(crate) mod faults;
    pub(crate) mod faults_files;
    pub(crate) mod faults_full;
    pub(crate) mod faults_host;
    pub(crate) mod faults_kill;
    pub(crate) mod faults_twice;
    pub(crate) mod flood;
    pub(crate) mod homes;
    pub(crate) mod hostile;
    pub(crate) mod joined;
    pub(crate) mod lab;
    pub(crate) mod life;
    pub(crate) mod links;
    pub(crate) mod measured;
    pub(crate) mod paths;
    pub(crate) mod refusals;
    pub(crate) mod scale;
    pub(crate) mod strangers;
    pub(crate) mod traffic;
}

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use netns::{
    control, faults_files, faults_full, faults_host, faults_kill, faults_twice, flood, hostile, lab, life, links,
    paths, refusals, scale, strangers, traffic,
};

/// A test: its name as a sentence, and what it does.
type Test = (&'static str, fn() -> anyhow::Result<()>);

fn main() -> ExitCode {
    // This program starts itself again inside a namespace to play strangers.
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, rest @ ..] = arguments.as_slice()
        && word == strangers::WORD
    {
        return strangers::main(rest);
    }
    let tests = [
        control::TESTS,
        traffic::TESTS,
        paths::TESTS,
        life::TESTS,
        refusals::TESTS,
        flood::TESTS,
        faults_files::TESTS,
        faults_full::TESTS,
        faults_host::TESTS,
        faults_kill::TESTS,
        faults_twice::TESTS,
        hostile::TESTS,
        links::TESTS,
        scale::TESTS,
    ]
    .concat();
    let missing = lab::missing();
    let compiler_missing = || lab::find("cc").is_none().then(|| "needs the program cc".to_owned());
    let groups = [(faults_host::WITH_CC, missing.clone().or_else(compiler_missing)), (&*tests, missing)];
    let trials = groups.into_iter().flat_map(|(tests, missing)| {
        tests.iter().map(move |&(name, test): &Test| {
            let trial = Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:#}"))));
            match &missing {
                Some(reason) => trial.with_kind(reason.clone()).with_ignored_flag(true),
                None => trial,
            }
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}
