//! Our agent against programs of others.
//!
//! Needs root, and wireguard-go, Go, or stock programs that variables name (`stock_list.rs`); a test whose needs are not
//! met is reported as ignored, with the reason in its line.

#[path = "netns/agents.rs"]
mod agents;
#[path = "netns/homes.rs"]
mod homes;
#[path = "netns/joined.rs"]
mod joined;
#[path = "netns/lab.rs"]
mod lab;

mod interop {
    pub(crate) mod stock_control;
    pub(crate) mod stock_list;
    pub(crate) mod stock_list_nodes;
    pub(crate) mod stock_list_pair;
    pub(crate) mod stock_list_relays;
    pub(crate) mod stock_list_servers;
    pub(crate) mod stock_list_sign_in;
    pub(crate) mod stock_list_talk;
    pub(crate) mod stock_relay;
    pub(crate) mod wireguard_go;
}

use std::process::ExitCode;

use interop::{
    stock_control,
    stock_list::{self, DERPER, DERPPROBE, HEADSCALE, STUNC, TAILSCALE, TAILSCALED},
    stock_list_pair, stock_list_relays, stock_relay, wireguard_go,
};
use libtest_mimic::{Arguments, Failed, Trial};

/// A test: its name as a sentence, and what it does.
type Test = (&'static str, fn() -> anyhow::Result<()>);

fn main() -> ExitCode {
    let wireguard_go_missing = lab::missing().or_else(|| {
        let programs = ["wireguard-go", "wg", "iperf3"];
        let missing = programs.into_iter().find(|program| lab::find(program).is_none());
        missing.map(|program| format!("needs the program {program}"))
    });
    let groups = [
        (wireguard_go::TESTS, wireguard_go_missing),
        (stock_relay::TESTS, lab::missing().or_else(lab::peers::missing)),
        (stock_control::TESTS, lab::missing().or_else(lab::peers::missing)),
        (stock_list_pair::ON_OURS, stock_list::missing(&[TAILSCALED, TAILSCALE])),
        (stock_list_pair::ON_HEADSCALE, stock_list::missing(&[TAILSCALED, TAILSCALE, HEADSCALE])),
        (stock_list_relays::STOCK_ON_HEADSCALE, stock_list::missing(&[TAILSCALED, TAILSCALE, HEADSCALE])),
        (stock_list_relays::BY_README, stock_list::missing(&[TAILSCALED, TAILSCALE])),
        (stock_list_relays::OVER_DERPER, stock_list::missing(&[DERPER])),
        (stock_list_relays::PROBES, stock_list::missing(&[DERPPROBE, STUNC])),
    ];
    let trials = groups.iter().flat_map(|(tests, missing)| {
        tests.iter().map(move |&(name, test): &Test| {
            let trial = Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:#}"))));
            match missing {
                Some(reason) => trial.with_kind(reason.clone()).with_ignored_flag(true),
                None => trial,
            }
        })
    });
    let mut arguments = Arguments::from_args();
    // One test lasts over two minutes, almost all of it waiting; the others fit beside it.
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    arguments.test_threads.get_or_insert(threads + 1);
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
