//! Links and routers that are worse than they should be, under agents that have joined.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{
    agents::{answers_all, transfer},
    homes::Nat,
    joined::{Joined, Log},
    measured::{Pings, long_or},
};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("links: one that comes and goes every two seconds", flapping),
    ("links: an MTU of 1280 all the way", small),
    ("links: a router that drops what is large and says nothing", black_hole),
    ("links: a router that has room for sixteen connections", few_connections),
];

/// The cable is pulled and put back; what is said meanwhile is lost, and the rest arrives.
fn flapping() -> Result<()> {
    let joined = Joined::up_that_logs(Log::Usual, &[Nat::Easy, Nat::Easy])?;
    let [alice, bob] = joined.agents.as_slice() else { unreachable!() };
    let address = bob.address()?;
    alice.reach(&address)?;
    let seconds = long_or(60, 8);
    let pings = Pings::start(&alice.node, &address, seconds)?;
    let began = Instant::now();
    for turn in 1..=seconds {
        let state = if turn % 2 == 1 { "down" } else { "up" };
        joined.homes.routers[0].run(&["ip", "link", "set", "lan0", state])?;
        if state == "up" {
            joined.homes.routers[0].run(&["ip", "route", "replace", "192.168.1.2/32", "dev", "lan0"])?;
        }
        // The beat of the link, and nothing that is waited for.
        thread::sleep(Duration::from_secs(turn).saturating_sub(began.elapsed()));
    }
    pings.end()?;
    alice.reach(&address)?;
    bob.reach(&alice.address()?)?;
    alice.wait_for_control()?;
    let lines = alice.output().lines().count();
    ensure!(lines < 100 + 4 * seconds as usize, "{lines} lines: {}", alice.output());
    Ok(())
}

fn small() -> Result<()> {
    let joined = Joined::up_that_logs(Log::Usual, &[Nat::Easy, Nat::Easy])?;
    for (router, member) in joined.homes.routers.iter().zip(&joined.homes.members) {
        router.run(&["ip", "link", "set", "wan", "mtu", "1280"])?;
        router.run(&["ip", "link", "set", &format!("lan{}", member.place), "mtu", "1280"])?;
        member.node.run(&["ip", "link", "set", "eth0", "mtu", "1280"])?;
    }
    carries(&joined)
}

/// Nothing larger than 1,300 bytes passes alice's router in either direction, and nobody is told. What is smaller passes;
/// full packets do not, for the tunnel's MTU is fixed, until the router lets them.
fn black_hole() -> Result<()> {
    let joined = Joined::up_that_logs(Log::Usual, &[Nat::Easy, Nat::Easy])?;
    joined.homes.routers[0].nft(
        "table inet hole {\nchain forward {\ntype filter hook forward priority -5\nmeta length > 1300 counter drop\n}\n}\n",
    )?;
    let [alice, bob] = joined.agents.as_slice() else { unreachable!() };
    let address = bob.address()?;
    alice.reach(&address)?;
    answers_all(&alice.node, &address, 5, 1_152)?;
    let full = ["ping", "-n", "-q", "-c", "3", "-W", "1", "-s", "1252", &address];
    ensure!(!alice.node.try_run(&full)?.status.success(), "a full packet passes");
    let hole = joined.homes.routers[0].run(&["nft", "list", "table", "inet", "hole"])?;
    ensure!(hole.contains("counter packets ") && !hole.contains("counter packets 0 "), "nothing was dropped: {hole}");
    joined.homes.routers[0].run(&["nft", "delete", "table", "inet", "hole"])?;
    carries(&joined)
}

/// Pings pass, empty ones and those that fill the tunnel, and transfers both ways.
fn carries(joined: &Joined) -> Result<()> {
    let [alice, bob] = joined.agents.as_slice() else { unreachable!() };
    let address = bob.address()?;
    alice.reach(&address)?;
    for bytes in [0, 1_152, 1_252] {
        answers_all(&alice.node, &address, 5, bytes)?;
    }
    for reverse in [false, true] {
        let mbit = transfer(&alice.node, &bob.node, &address, long_or(10, 2), reverse)?;
        super::joined::note(format_args!("{mbit:.0} Mbit/s, reverse: {reverse}"));
        ensure!(mbit > 0.0);
    }
    alice.reach(&address).map(drop)
}

/// What the router knows of beyond sixteen flows, it drops.
fn few_connections() -> Result<()> {
    let joined = Joined::new(&[Nat::Easy, Nat::Easy])?;
    joined.homes.routers[0].nft(
        "table inet few {\nchain forward {\ntype filter hook forward priority -5\n\
         ct state new ct count over 16 counter drop\n}\n}\n",
    )?;
    joined.control.set_policy(super::joined::ALLOW)?;
    let key = joined.control.key(&["--reusable"])?;
    for agent in &joined.agents {
        agent.up(&joined.control, &key)?;
    }
    carries(&joined)?;
    let flows = joined.homes.routers[0].run(&["conntrack", "-L"])?;
    super::joined::note(format_args!("{} flows at the router", flows.lines().count()));
    Ok(())
}
