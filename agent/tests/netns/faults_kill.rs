//! Programs that are killed without a word, one after the other, under traffic, and started again.
//!
//! What is told to have happened has happened: users that `mesh-control users create` has named are there after the next
//! start, nodes keep their keys and addresses. `MESH_FAULT_SECONDS` says for how long, `MESH_FAULT_SEED` in which order.

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use mesh_core::rng::{Rng, Seed};
use serde_json::Value;

use super::{
    faults::{shown, traces},
    homes::{Homes, Nat},
    joined::{ALLOW, Agent, Control, Joined, PATIENCE, note},
    lab::{built, until},
};
use crate::Test;

pub(crate) const TESTS: &[Test] =
    &[("faults: agents, relay and control are killed under traffic, which goes on, and nothing is lost", kill_9)];

/// How long, where nobody says.
const SECONDS: u64 = 20;

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Alice,
    Bob,
    Relay,
    Control,
}

impl Victim {
    const ALL: [Self; 4] = [Self::Alice, Self::Bob, Self::Relay, Self::Control];

    /// All, in some order.
    fn shuffled(rng: &mut Rng) -> [Self; 4] {
        let mut order = Self::ALL;
        for last in (1..order.len()).rev() {
            order.swap(last, rng.below(last as u64 + 1) as usize);
        }
        order
    }
}

fn number(name: &str, usual: u64) -> Result<u64> {
    env::var(name).map_or(Ok(usual), |text| text.parse().with_context(|| format!("{name}={text}")))
}

fn kill_9() -> Result<()> {
    let length = Duration::from_secs(number("MESH_FAULT_SECONDS", SECONDS)?);
    let seed = number("MESH_FAULT_SEED", 1)?;
    note(format_args!("kill -9 for {length:?}, seed {seed}"));
    // Traffic to bob goes over the relay, that to carol directly.
    let mut homes = Homes::new(&[Nat::Easy, Nat::Hard, Nat::Easy])?;
    let mut control = Control::place(&mut homes, 0)?;
    let hosts: Vec<_> = homes.members.iter().map(|member| member.node.clone()).chain([control.node.clone()]).collect();
    let before = hosts.iter().map(traces).collect::<Result<Vec<_>>>()?;
    control.begin()?;
    control.set_policy(ALLOW)?;
    let key = control.key(&["--reusable"])?;
    let mut agents = Vec::new();
    for member in &homes.members {
        let agent = Agent::new(&member.node, &control)?;
        agent.up(&control, &key)?;
        agents.push(agent);
    }
    let mut joined = Joined { homes, agents, control };
    let identities = joined.agents.iter().map(identity).collect::<Result<Vec<_>>>()?;
    for [_, address] in &identities[1..] {
        joined.agents[0].reach(address)?;
    }
    let acknowledged = rounds(&mut joined, &identities, length, &mut Seed::from_number(seed).stream("kill", 0))?;
    note(format_args!("{} users were acknowledged, and all are there", acknowledged.len()));

    for agent in &mut joined.agents {
        let mut process = agent.process.take().context("no agent")?;
        process.signal("TERM")?;
        let status = process.wait(PATIENCE)?;
        ensure!(status.success() && !agent.socket.exists(), "{status}: {}", process.output());
    }
    let mut process = joined.control.process.take().context("no control")?;
    process.signal("TERM")?;
    let status = process.wait(PATIENCE)?;
    ensure!(status.success() && !joined.control.socket.exists(), "{status}: {}", process.output());
    for (host, before) in hosts.iter().zip(before) {
        let after = traces(host)?;
        ensure!(after == before, "{} is not as before: {before}\nbut {after}", host.name());
    }
    Ok(())
}

/// A node's key and its address.
fn identity(agent: &Agent) -> Result<[String; 2]> {
    let status = agent.status()?;
    let of = |value: &Value| value.as_str().map(str::to_owned).context("no identity");
    Ok([of(&status["Self"]["PublicKey"])?, of(&status["TailscaleIPs"][0])?])
}

/// Kills and starts again until it is time to end; returns the users that were acknowledged.
fn rounds(joined: &mut Joined, identities: &[[String; 2]], length: Duration, rng: &mut Rng) -> Result<Vec<String>> {
    let began = Instant::now();
    let mut acknowledged = Vec::new();
    let mut slowest = [Duration::ZERO; 4];
    let mut kills = 0_u32;
    while began.elapsed() < length {
        for victim in Victim::shuffled(rng) {
            let pings = joined.agents[0].node.spawn(&["ping", "-n", "-i", "0.05", &identities[1][1]])?;
            let stop = Arc::new(AtomicBool::new(false));
            let operator = operate(&joined.control, kills, Arc::clone(&stop))?;
            // At any point of what is under way.
            thread::sleep(Duration::from_millis(50 + rng.below(250)));
            let killed = Instant::now();
            kill(joined, victim);
            if victim != Victim::Control {
                stop.store(true, Relaxed);
            }
            thread::sleep(Duration::from_millis(rng.below(500)));
            let away = killed.elapsed();
            start(joined, victim)?;
            for (from, to) in [(0, 1), (0, 2), (1, 0)] {
                reach(&joined.agents[from], &identities[to][1]).with_context(|| format!("{victim:?} was killed"))?;
            }
            let took = killed.elapsed();
            stop.store(true, Relaxed);
            acknowledged.extend(operator.join().map_err(|_| anyhow::anyhow!("the operator panicked"))??);
            for agent in &joined.agents {
                agent.wait_for_control().with_context(|| format!("after {victim:?} was killed"))?;
            }
            let known = killed.elapsed();
            check(joined, identities, &acknowledged)?;
            drop(pings);
            kills += 1;
            note(format_args!(
                "{:>5.1} s: {victim:?} killed, started again after {:.2} s: traffic after {:.2} s, all online after {:.2} s",
                began.elapsed().as_secs_f64(),
                away.as_secs_f64(),
                took.as_secs_f64(),
                known.as_secs_f64()
            ));
            let worst = &mut slowest[Victim::ALL.iter().position(|other| *other == victim).unwrap_or_default()];
            *worst = took.saturating_sub(away).max(*worst);
        }
    }
    note(format_args!("{kills} kills; slowest recovery after the start, {:?}: {slowest:?}", Victim::ALL));
    Ok(acknowledged)
}

/// Until the first answer. One that is lost is not waited for, so that little is added to what is measured.
fn reach(agent: &Agent, address: &str) -> Result<()> {
    let once = || agent.node.try_run(&["ping", "-n", "-c", "1", "-W", "0.1", address]);
    let what = format!("{} reaches {address}", agent.node.name());
    until(&what, PATIENCE, || Ok(once()?.status.success().then_some(()))).with_context(|| agent.log())
}

fn kill(joined: &mut Joined, victim: Victim) {
    match victim {
        Victim::Alice => joined.agents[0].kill(),
        Victim::Bob => joined.agents[1].kill(),
        Victim::Relay => joined.homes.relay.kill(),
        Victim::Control => joined.control.kill(),
    }
}

fn start(joined: &mut Joined, victim: Victim) -> Result<()> {
    match victim {
        Victim::Alice => joined.agents[0].start(),
        Victim::Bob => joined.agents[1].start(),
        Victim::Relay => joined.homes.relay.start(),
        Victim::Control => joined.control.start(),
    }
}

/// Makes one user after the other until it is told to stop, or gets no answer; returns those that were acknowledged.
fn operate(control: &Control, round: u32, stop: Arc<AtomicBool>) -> Result<thread::JoinHandle<Result<Vec<String>>>> {
    let (node, program, socket) = (control.node.clone(), built("mesh-control")?, control.socket.clone());
    Ok(thread::spawn(move || {
        let mut acknowledged = Vec::new();
        for user in 0.. {
            let name = format!("r{round}u{user}");
            let line = [shown(&program)?, "--socket", shown(&socket)?, "users", "create", &name];
            if stop.load(Relaxed) || !node.try_run(&line)?.status.success() {
                break;
            }
            acknowledged.push(name);
        }
        Ok(acknowledged)
    }))
}

/// All that was acknowledged is there, and everybody is who they were.
fn check(joined: &Joined, identities: &[[String; 2]], acknowledged: &[String]) -> Result<()> {
    for (agent, identity) in joined.agents.iter().zip(identities) {
        ensure!(self::identity(agent)? == *identity, "{} is another", agent.node.name());
    }
    let users: Value = serde_json::from_str(&joined.control.run(&["--json", "users", "list"])?)?;
    let users: Vec<_> = users.as_array().into_iter().flatten().filter_map(|user| user["loginName"].as_str()).collect();
    for name in acknowledged {
        ensure!(users.contains(&name.as_str()), "{name} was acknowledged and is lost");
    }
    let nodes: Value = serde_json::from_str(&joined.control.run(&["--json", "nodes", "list"])?)?;
    ensure!(nodes.as_array().is_some_and(|nodes| nodes.len() == identities.len()), "{nodes}");
    Ok(())
}
