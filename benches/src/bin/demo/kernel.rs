//! The story with real TUN devices, sockets and a kernel NAT: two homes and a router in network namespaces.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use benches::{
    keys::KeyPair,
    lab,
    lab::{Lab, Node, Process},
};
use serde_json::{Map, Value};

use crate::{Story, is_stopped, traffic};

const DEVICE: &str = "mesh0";
const ALICE: &str = "10.77.0.1";
const BOB: &str = "10.77.0.2";
/// Bob's home and the router's WAN, before and after the reboot.
const BOB_UNDERLAY: &str = "203.0.113.2";
const WAN_BEFORE: &str = "203.0.113.1";
const WAN_AFTER: &str = "203.0.113.9";
/// Longest wait for anything in the story.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long the router is down.
const DOWN: Duration = Duration::from_secs(3);

/// Why this half cannot be told here, if it cannot.
pub(crate) fn why_not() -> Option<String> {
    lab::missing()
}

/// Tells it. Whatever happens, the lab and everything in it is gone when this returns.
pub(crate) fn tell(story: &Story, programs: &Path, seconds: u64, results: &mut Map<String, Value>) -> Result<()> {
    let mut lab = Lab::new()?;
    let world = World::build(&mut lab, programs)?;
    story.say("kernel", "alice's home 192.168.1.0/24 — router with nftables masquerade — bob's home 203.0.113.0/24");

    let started = Instant::now();
    let bob = world.start_agent(&world.bob, BOB, &world.bob_keys, &world.alice_keys, ALICE, None)?;
    let endpoint = Some(format!("{BOB_UNDERLAY}:41641"));
    let alice = world.start_agent(&world.alice, ALICE, &world.alice_keys, &world.bob_keys, BOB, endpoint)?;
    story.say("agents", &format!("both ready, {:.0} ms after their start", started.elapsed().as_secs_f64() * 1e3));

    let first = world.ping(&world.alice)?;
    story.say("alice", &format!("{} (handshake included)", first.line));
    results.insert("first_ping_ms".into(), first.milliseconds.into());
    let second = world.ping(&world.alice)?;
    story.say("alice", &second.line);
    let back = world.ping(&world.bob)?;
    story.say("bob", &format!("{}: alice's router, not alice", back.line));
    ensure!(back.line.contains(WAN_BEFORE), "bob does not see alice behind the router's address");

    let mbit = world.transfer(seconds)?;
    story.say("alice", &format!("{seconds} s of TCP to bob through both agents: {mbit:.0} Mbit/s"));
    results.insert("tcp_mbit".into(), mbit.into());

    let recovery = world.reboot(story)?;
    results.insert("recovery_ms".into(), recovery.into());
    let moved = world.ping(&world.bob)?;
    story.say("bob", &moved.line);
    ensure!(moved.line.contains(WAN_AFTER), "bob does not answer alice at the router's new address");

    for (name, mut agent) in [("alice", alice), ("bob", bob)] {
        let asked = Instant::now();
        agent.signal("TERM")?;
        let status = agent.wait(PATIENCE)?;
        ensure!(status.success(), "{name}'s agent ended with {status}: {}", agent.output());
        story.say(name, &format!("agent ended {:.0} ms after SIGTERM", asked.elapsed().as_secs_f64() * 1e3));
    }
    Ok(())
}

struct World<'p> {
    alice: Node,
    bob: Node,
    router: Node,
    alice_keys: KeyPair,
    bob_keys: KeyPair,
    programs: &'p Path,
    demo: String,
}

/// An answer to `mesh ping`, in words and as a figure.
struct Pong {
    line: String,
    milliseconds: f64,
}

impl<'p> World<'p> {
    fn build(lab: &mut Lab, programs: &'p Path) -> Result<Self> {
        let (alice, router, bob) = (lab.node("alice")?, lab.node("router")?, lab.node("bob")?);
        lab.cable((&alice, "eth0", &["192.168.1.2/24"]), (&router, "lan", &["192.168.1.1/24"]))?;
        let wan = format!("{WAN_BEFORE}/24");
        lab.cable((&bob, "eth0", &[&format!("{BOB_UNDERLAY}/24")]), (&router, "wan", &[&wan]))?;
        alice.route("default via 192.168.1.1")?;
        router.masquerade("wan")?;
        let demo = std::env::current_exe()?.to_str().context("the demo's path is not UTF-8")?.to_owned();
        let (alice_keys, bob_keys) = (KeyPair::generate()?, KeyPair::generate()?);
        Ok(Self { alice, bob, router, alice_keys, bob_keys, programs, demo })
    }

    fn start_agent(
        &self,
        node: &Node,
        address: &str,
        own: &KeyPair,
        peer: &KeyPair,
        peer_address: &str,
        endpoint: Option<String>,
    ) -> Result<Process> {
        let endpoint = endpoint.map_or(String::new(), |endpoint| format!("Endpoint = {endpoint}\n"));
        let text = format!(
            "[Interface]\nPrivateKey = {}\nAddress = {address}/24\nListenPort = 41641\n\n\
             [Peer]\nPublicKey = {}\nAllowedIPs = {peer_address}/32\n{endpoint}",
            own.private, peer.public
        );
        let file = node.path("static.conf");
        fs::write(&file, text)?;
        let program = self.programs.join("meshd");
        let (file, program) = (file.display().to_string(), program.display().to_string());
        let socket = node.path("meshd.sock").display().to_string();
        let agent = node.spawn(&[&program, "--static", &file, "--tun", DEVICE, "--socket", &socket])?;
        agent.wait_for("ready", PATIENCE)?;
        Ok(agent)
    }

    /// One `mesh ping` to the other end, repeated until it is answered.
    fn ping(&self, from: &Node) -> Result<Pong> {
        let target = if from.name() == "alice" { BOB } else { ALICE };
        let program = self.programs.join("mesh").display().to_string();
        let socket = from.path("meshd.sock").display().to_string();
        lab::until("a ping was not answered", PATIENCE, || {
            stop_here()?;
            let output = from.try_run(&[&program, "--socket", &socket, "--json", "ping", "-c", "1", target])?;
            if !output.status.success() {
                return Ok(None);
            }
            let pong: Value = serde_json::from_slice(&output.stdout).context("mesh ping answered no JSON")?;
            let seconds = pong["LatencySeconds"].as_f64().context("no time in the answer to a ping")?;
            let via = pong["Endpoint"].as_str().context("no path in the answer to a ping")?;
            let milliseconds = seconds * 1e3;
            Ok(Some(Pong { line: format!("pong from {target} via {via} in {milliseconds:.2} ms"), milliseconds }))
        })
    }

    fn transfer(&self, seconds: u64) -> Result<f64> {
        let listen = format!("{BOB}:5001");
        let sink = self.bob.spawn(&[&self.demo, "sink", &listen])?;
        sink.wait_for("listening", PATIENCE)?;
        let source = self.alice.spawn(&[&self.demo, "source", &listen, &seconds.to_string()])?;
        let patience = PATIENCE + Duration::from_secs(seconds);
        lab::until("the transfer did not end", patience, || {
            stop_here()?;
            Ok(source.output().lines().find_map(|line| line.parse().ok()))
        })
    }

    /// The router loses power for three seconds, and comes back with another WAN address and an empty table. Returns
    /// the milliseconds from the moment its links are up to the first answer that alice gets.
    fn reboot(&self, story: &Story) -> Result<f64> {
        let listen = format!("{BOB}:5002");
        let echo = self.bob.spawn(&[&self.demo, "echo", &listen])?;
        echo.wait_for("listening", PATIENCE)?;
        let probe = self.alice.spawn(&[&self.demo, "probe", &listen])?;
        lab::until("no probe was answered", PATIENCE, || {
            stop_here()?;
            Ok(answers(&probe).last().copied())
        })?;

        for link in ["wan", "lan"] {
            self.router.run(&["ip", "link", "set", link, "down"])?;
        }
        let down_at = traffic::monotonic_nanos();
        story.say("router", "links down, table forgotten");
        self.router.run(&["nft", "flush", "ruleset"])?;
        self.router.run(&["conntrack", "--flush"])?;
        self.router.run(&["ip", "addr", "flush", "dev", "wan"])?;
        self.router.run(&["ip", "addr", "add", &format!("{WAN_AFTER}/24"), "dev", "wan"])?;
        lab::until("the router was down", DOWN + PATIENCE, || {
            stop_here()?;
            Ok((traffic::monotonic_nanos() - down_at >= DOWN.as_nanos() as u64).then_some(()))
        })?;
        self.router.masquerade("wan")?;
        for link in ["lan", "wan"] {
            self.router.run(&["ip", "link", "set", link, "up"])?;
        }
        let up_at = traffic::monotonic_nanos();
        story.say("router", &format!("links up with another WAN address, {WAN_AFTER}"));

        let first = lab::until("nothing came back after the reboot", PATIENCE, || {
            stop_here()?;
            Ok(answers(&probe).into_iter().find(|(_, sent)| *sent > down_at))
        })?;
        // An answer may come between the command and the look at the clock.
        let milliseconds = first.0.saturating_sub(up_at) as f64 / 1e6;
        story.say("alice", &format!("first answer {milliseconds:.1} ms after the links were up"));
        Ok(milliseconds)
    }
}

/// When each answer arrived and when its probe was sent, in nanoseconds.
fn answers(probe: &Process) -> Vec<(u64, u64)> {
    let pair = |line: &str| {
        let (arrived, sent) = line.split_once(' ')?;
        Some((arrived.parse().ok()?, sent.parse().ok()?))
    };
    // The last line may be half written.
    let output = probe.output();
    let whole = output.rfind('\n').map_or("", |end| &output[..end]);
    whole.lines().filter_map(pair).collect()
}

fn stop_here() -> Result<()> {
    if is_stopped() {
        bail!("interrupted; everything is taken down");
    }
    Ok(())
}
