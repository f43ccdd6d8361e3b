//! The NAT model and Linux answer the same probes alike.
//!
//! Random programs (send outwards, send inwards, wait, forget everything) run through the model and through nftables
//! in network namespaces, and every observation is compared: who received it, and from which port. Ports that were
//! not kept are random on both sides; they are named in order of appearance, and must be the same or others
//! together. The kernel's timers are shortened; packets are sent in bursts that keep away from every deadline.
//!
//! Needs root, `nft` and `conntrack`; without them every test is reported as ignored, with the reason in its line.
//! `cargo test -p sim --test nat_vs_linux -- --programs 1000` runs more than the usual hundred.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests too")]

#[path = "../../agent/tests/netns/lab.rs"]
mod lab;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    process::{Child, ChildStdin, ExitCode, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant as Clock},
};

use anyhow::{Context, Result, bail, ensure};
use lab::{Lab, Node};
use libtest_mimic::{Arguments, Failed, Trial};
use mesh_core::{
    rng::{Rng, Seed},
    time::Instant,
};
use sim::net::nat::{Alloc, Nat, NatParams, Translated};

/// The word that makes this program a player inside a namespace.
const WORD: &str = "play-sockets";
/// Programs over all profiles, unless told otherwise.
const PROGRAMS: u64 = 100;
/// Labs of one profile side by side.
const LABS: u64 = 5;
/// From burst to burst. No multiple of it is within half a second of a timer.
const BURST_EVERY: Duration = Duration::from_millis(1_400);
/// A burst that takes longer may have met a deadline.
const BURST_MAX: Duration = Duration::from_millis(450);
const UNREPLIED: Duration = Duration::from_secs(2);
const STREAM: Duration = Duration::from_secs(5);
/// How long is waited for what should come, and for what should not.
const COMES: Duration = Duration::from_millis(400);
const COMES_NOT: Duration = Duration::from_millis(12);

const WAN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const HOSTS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 168, 1, 11), Ipv4Addr::new(192, 168, 1, 12)];
const PORTS: [u16; 2] = [40_000, 700];
const REMOTES: [SocketAddrV4; 3] = [
    SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 9), 3478),
    SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 9), 9),
    SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 10), 3478),
];

/// A profile of the model and the rules that make Linux one.
struct Profile {
    params: NatParams,
    masquerade: &'static str,
    input: &'static str,
    programs: Programs,
}

/// What programs of a profile do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Programs {
    /// Everything.
    All,
    /// Hosts have ports of their own, and nothing expires: rules that keep a map of their own beside the sessions know
    /// a port's last host alone, and for as long as they like.
    WithoutCollisionsAndWaits,
}

/// A map from ports to hosts that lets everybody in.
const FULL_CONE: &str = "update @fc { udp sport timeout 300s : ip saddr . udp sport }; oifname \"wan\" masquerade";

const DROP: &str = "iifname \"wan\" ct state established,related accept; iifname \"wan\" drop;";
const REJECT: &str = "iifname \"wan\" ct state established,related accept; iifname \"wan\" reject;";

const PROFILES: [Profile; 5] = [
    Profile { params: NatParams::LINUX_FILTERED, masquerade: "masquerade", input: DROP, programs: Programs::All },
    Profile { params: NatParams::LINUX_REJECT, masquerade: "masquerade", input: REJECT, programs: Programs::All },
    Profile { params: NatParams::LINUX_OPEN, masquerade: "masquerade", input: "", programs: Programs::All },
    Profile { params: NatParams::LINUX_RANDOM, masquerade: "masquerade random", input: DROP, programs: Programs::All },
    Profile {
        params: NatParams::LINUX_FULLCONE,
        masquerade: FULL_CONE,
        input: DROP,
        programs: Programs::WithoutCollisionsAndWaits,
    },
];

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|word| word == WORD) {
        return play(&arguments[2..]).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let mut programs = PROGRAMS;
    if let Some(at) = arguments.iter().position(|argument| argument == "--programs") {
        programs = arguments.get(at + 1).and_then(|number| number.parse().ok()).unwrap_or(PROGRAMS);
        arguments.drain(at..(at + 2).min(arguments.len()));
    }
    let missing = lab::missing().or_else(|| {
        let has_conntrack = lab::find("conntrack").is_some();
        (!has_conntrack).then(|| "needs the program conntrack".to_owned())
    });
    let each = programs.div_ceil(PROFILES.len() as u64);
    let trials = PROFILES.into_iter().map(|profile| {
        let name = format!("{each}_programs_see_{}_as_linux_does_it", profile.params.profile.replace('-', "_"));
        let trial = Trial::test(name, move || compare(&profile, each).map_err(|e| Failed::from(format!("{e:#}"))));
        match &missing {
            Some(reason) => trial.with_kind(reason.clone()).with_ignored_flag(true),
            None => trial,
        }
    });
    let mut arguments = Arguments::from_iter(arguments);
    // They wait most of the time.
    arguments.test_threads.get_or_insert(PROFILES.len());
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// Runs programs `0..programs` of a profile, dealt out to some labs.
fn compare(profile: &Profile, programs: u64) -> Result<()> {
    thread::scope(|scope| {
        let labs: Vec<_> = (0..LABS.min(programs))
            .map(|first| {
                scope.spawn(move || -> Result<u64> {
                    let mut place = Place::new(profile)?;
                    let mut observed = 0;
                    for number in (first..programs).step_by(LABS as usize) {
                        observed += place.run(number).with_context(|| format!("program {number}"))?;
                    }
                    Ok(observed)
                })
            })
            .collect();
        let mut observed = 0;
        for lab in labs {
            observed += lab.join().map_err(|_| anyhow::anyhow!("a lab panicked"))??;
        }
        // A lab in which nothing arrives would agree with a model that lets nothing pass.
        ensure!(observed > 2 * programs, "only {observed} packets arrived in {programs} programs");
        Ok(())
    })
}

/// One thing that a program does.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A host sends to a remote.
    Out { from: SocketAddrV4, remote: usize },
    /// A host sends to the router's own outer address.
    Hairpin { from: SocketAddrV4, port: u16 },
    /// A remote sends to where it, or another, saw a host last; or to the host's own port.
    In { remote: usize, host: SocketAddrV4 },
    /// The next burst.
    Wait,
    /// The router forgets everything.
    Flush,
}

fn program(number: u64, programs: Programs) -> Vec<Step> {
    let mut rng = Seed::from_number(number).stream("program", 0);
    let mut steps = Vec::new();
    if programs == Programs::WithoutCollisionsAndWaits {
        while steps.len() < 12 {
            let own_port = |host: SocketAddrV4| (*host.ip() == HOSTS[0]) == (host.port() == PORTS[0]);
            match step(&mut rng) {
                Step::Wait | Step::Flush => {}
                Step::Out { from: host, .. } | Step::In { host, .. } | Step::Hairpin { from: host, .. }
                    if !own_port(host) => {}
                step => steps.push(step),
            }
        }
        return steps;
    }
    for burst in 0..2 + rng.below(3) {
        if burst > 0 {
            steps.push(Step::Wait);
        }
        for _ in 0..3 + rng.below(5) {
            steps.push(step(&mut rng));
        }
    }
    steps
}

fn step(rng: &mut Rng) -> Step {
    let host = HOSTS[rng.below(2) as usize];
    let port = PORTS[usize::from(rng.below(4) == 0)];
    let remote = rng.below(REMOTES.len() as u64) as usize;
    let from = SocketAddrV4::new(host, port);
    match rng.below(20) {
        0..11 => Step::Out { from, remote },
        11..18 => Step::In { remote, host: from },
        18 => Step::Hairpin { from, port },
        _ => Step::Flush,
    }
}

/// A router between a network of hosts and one of remotes.
struct Place {
    params: NatParams,
    programs: Programs,
    router: Node,
    inside: Player,
    outside: Player,
    _lab: Lab,
}

impl Place {
    fn new(profile: &Profile) -> Result<Self> {
        let mut lab = Lab::new()?;
        let (inside, router, outside) = (lab.node("inside")?, lab.node("router")?, lab.node("outside")?);
        let hosts = HOSTS.map(|host| format!("{host}/24"));
        let remotes = [REMOTES[0], REMOTES[2]].map(|remote| format!("{}/24", remote.ip()));
        lab.cable((&inside, "lan", &hosts.each_ref().map(String::as_str)), (&router, "lan", &["192.168.1.1/24"]))?;
        lab.cable(
            (&router, "wan", &[&format!("{WAN}/24")]),
            (&outside, "wan", &remotes.each_ref().map(String::as_str)),
        )?;
        inside.route("default via 192.168.1.1")?;
        router.forward()?;
        let Profile { masquerade, input, programs, .. } = *profile;
        router.nft(&format!(
            "table ip t {{\n\
             map fc {{ type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; }}\n\
             chain post {{ type nat hook postrouting priority 100; oifname \"wan\" {masquerade}; }}\n\
             chain pre {{ type nat hook prerouting priority -100; iifname \"wan\" dnat ip to udp dport map @fc; }}\n\
             chain input {{ type filter hook input priority 0; {input} }}\n\
             chain forw {{ type filter hook forward priority 0; iifname \"wan\" ct status dnat accept; {DROP} }}\n}}\n"
        ))?;
        let timers = format!(
            "cd /proc/sys/net/netfilter; echo {} > nf_conntrack_udp_timeout; echo {} > nf_conntrack_udp_timeout_stream",
            UNREPLIED.as_secs(),
            STREAM.as_secs()
        );
        router.run(&["sh", "-c", &timers])?;
        let params = NatParams {
            timeout_unreplied: UNREPLIED,
            timeout_replied: UNREPLIED,
            timeout_stream: STREAM,
            ..profile.params
        };
        let sockets: Vec<_> = HOSTS.iter().flat_map(|host| PORTS.map(|port| SocketAddrV4::new(*host, port))).collect();
        let players = (Player::new(&inside, &sockets)?, Player::new(&outside, &REMOTES)?);
        let mut place = Self { params, programs, router, inside: players.0, outside: players.1, _lab: lab };
        place.warm()?;
        Ok(place)
    }

    /// Lets the neighbours find each other: what waits for that is late.
    fn warm(&mut self) -> Result<()> {
        for host in HOSTS {
            for remote in REMOTES {
                self.inside.send(SocketAddrV4::new(host, PORTS[0]), remote, "warm")?;
                self.outside.received(Duration::from_secs(3))?.context("the lab does not forward")?;
            }
        }
        Ok(())
    }

    /// Runs a program; again when a burst took too long. Returns how many packets arrived.
    fn run(&mut self, number: u64) -> Result<u64> {
        for attempt in 0..4 {
            let seed = Seed::from_number(number).stream("nat", attempt);
            let run = Run {
                model: Nat::new(self.params, &[WAN], seed),
                ports: BTreeMap::new(),
                seen: BTreeMap::new(),
                arrived: 0,
                log: Vec::new(),
            };
            if let Some(arrived) = run.run(self, &program(number, self.programs))? {
                return Ok(arrived);
            }
        }
        bail!("the machine is too busy: four times a burst took longer than {BURST_MAX:?}");
    }
}

/// A program under way.
struct Run {
    model: Nat,
    /// The kernel's port for each of the model's.
    ports: BTreeMap<u16, u16>,
    /// Under which ports of the model and of the kernel a host was seen last.
    seen: BTreeMap<SocketAddrV4, (u16, u16)>,
    arrived: u64,
    log: Vec<String>,
}

impl Run {
    /// `None` when a burst took too long to mean anything.
    fn run(mut self, place: &mut Place, steps: &[Step]) -> Result<Option<u64>> {
        place.router.run(&["nft", "flush", "map", "ip", "t", "fc"])?;
        place.router.run(&["conntrack", "-F"])?;
        place.inside.forget();
        place.outside.forget();
        let start = Clock::now();
        let mut burst = start;
        for step in steps {
            let now = Instant::ZERO + start.elapsed();
            match step {
                Step::Wait => {
                    if burst.elapsed() > BURST_MAX {
                        return Ok(None);
                    }
                    burst += BURST_EVERY;
                    thread::sleep(burst.saturating_duration_since(Clock::now()).saturating_sub(COMES_NOT));
                    // The kernel keeps what has expired until somebody looks.
                    place.router.run(&["conntrack", "-L"])?;
                    thread::sleep(burst.saturating_duration_since(Clock::now()));
                }
                Step::Flush => {
                    place.router.run(&["conntrack", "-F"])?;
                    self.model.reboot(&[WAN]);
                    self.log.push("flush".to_owned());
                }
                Step::Out { from, remote } => self.out(place, *from, REMOTES[*remote], now)?,
                Step::Hairpin { from, port } => self.out(place, *from, SocketAddrV4::new(WAN, *port), now)?,
                Step::In { remote, host } => self.back(place, REMOTES[*remote], *host, now)?,
            }
        }
        if burst.elapsed() > BURST_MAX {
            return Ok(None);
        }
        for player in [&place.inside, &place.outside] {
            let late = player.received(COMES_NOT)?;
            ensure!(late.is_none(), "{late:?} arrived and should not\n{}", self.log.join("\n"));
        }
        Ok(Some(self.arrived))
    }

    fn out(&mut self, place: &mut Place, from: SocketAddrV4, to: SocketAddrV4, now: Instant) -> Result<()> {
        let expected = match self.model.handle_outbound(from, to, &mut 64, now) {
            Translated::To(mapped) => Some(mapped),
            _ => None,
        };
        place.inside.send(from, to, "out")?;
        let seen = place.outside.received(if expected.is_some() { COMES } else { COMES_NOT })?;
        self.log.push(format!("{now:?} {from} to {to}: model {expected:?}, linux {seen:?}"));
        let log = || self.log.join("\n");
        match (expected, seen) {
            (None, None) => return Ok(()),
            (Some(expected), Some(seen)) => {
                ensure!(seen.at == to && *seen.from.ip() == WAN, "another place\n{}", log());
                let (model, linux) = (expected.port(), seen.from.port());
                // A random one of some hundred ports is easily one that was there before, and says nothing.
                let says_nothing = self.model.params().alloc == Alloc::Random && from.port() < 1024;
                if says_nothing {
                    self.seen.insert(from, (model, linux));
                    self.arrived += 1;
                    return Ok(());
                }
                ensure!((model == from.port()) == (linux == from.port()), "kept by one alone\n{}", log());
                let known = *self.ports.entry(model).or_insert(linux);
                ensure!(known == linux, "another port than before\n{}", log());
                let names = self.ports.values().filter(|port| **port == linux).count();
                ensure!(names == 1, "one port where the model has two\n{}", log());
                self.seen.insert(from, (model, linux));
                self.arrived += 1;
            }
            (Some(_), None) | (None, Some(_)) => bail!("arrived for one alone\n{}", log()),
        }
        Ok(())
    }

    fn back(&mut self, place: &mut Place, from: SocketAddrV4, host: SocketAddrV4, now: Instant) -> Result<()> {
        let (model, linux) = self.seen.get(&host).copied().unwrap_or((host.port(), host.port()));
        let expected = match self.model.handle_inbound(from, SocketAddrV4::new(WAN, model), &mut 64, now) {
            Translated::To(host) => Some(host),
            _ => None,
        };
        place.outside.send(from, SocketAddrV4::new(WAN, linux), "in")?;
        let seen = place.inside.received(if expected.is_some() { COMES } else { COMES_NOT })?;
        self.log.push(format!("{now:?} {from} to :{model} or :{linux}: model {expected:?}, linux {seen:?}"));
        let (at, source) = (seen.as_ref().map(|seen| seen.at), seen.as_ref().map(|seen| seen.from));
        ensure!(at == expected && source.is_none_or(|source| source == from), "inwards\n{}", self.log.join("\n"));
        self.arrived += u64::from(at.is_some());
        Ok(())
    }
}

/// Something arrived.
#[derive(Debug)]
struct Seen {
    at: SocketAddrV4,
    from: SocketAddrV4,
}

/// Sockets inside a namespace: this program, started there.
struct Player {
    child: Child,
    commands: ChildStdin,
    seen: Receiver<Seen>,
    sent: Receiver<()>,
}

impl Player {
    fn new(node: &Node, sockets: &[SocketAddrV4]) -> Result<Self> {
        let own = std::env::current_exe()?.display().to_string();
        let sockets: Vec<_> = sockets.iter().map(ToString::to_string).collect();
        let mut line = vec![own.as_str(), WORD];
        line.extend(sockets.iter().map(String::as_str));
        let mut child = node.command(&line).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let commands = child.stdin.take().context("a pipe")?;
        let mut lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        ensure!(lines.next().transpose()?.as_deref() == Some("ready"), "the player did not start");
        let (sender, seen) = channel();
        let (done, sent) = channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if line == "sent" {
                    let _ = done.send(());
                    continue;
                }
                let words: Vec<_> = line.split(' ').collect();
                let [at, from] = words.as_slice() else { continue };
                let (Ok(at), Ok(from)) = (at.parse(), from.parse()) else { continue };
                if sender.send(Seen { at, from }).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, commands, seen, sent })
    }

    fn send(&mut self, from: SocketAddrV4, to: SocketAddrV4, text: &str) -> Result<()> {
        writeln!(self.commands, "{from} {to} {text}")?;
        // Between namespaces a packet is where it goes when the call returns.
        self.sent.recv_timeout(Duration::from_secs(2)).context("the player does not send")
    }

    fn received(&self, within: Duration) -> Result<Option<Seen>> {
        Ok(self.seen.recv_timeout(within).ok())
    }

    fn forget(&self) {
        while self.seen.try_recv().is_ok() {}
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Opens sockets, sends what its input says, and tells what arrives.
fn play(addresses: &[String]) -> Result<()> {
    let mut sockets = BTreeMap::new();
    for address in addresses {
        let address: SocketAddrV4 = address.parse()?;
        let socket = UdpSocket::bind(address)?;
        let ears = socket.try_clone()?;
        thread::spawn(move || {
            let mut buffer = [0; 64];
            loop {
                // An error is what ICMP said to an earlier packet.
                if let Ok((_, SocketAddr::V4(from))) = ears.recv_from(&mut buffer) {
                    println!("{address} {from}");
                }
            }
        });
        sockets.insert(address, socket);
    }
    println!("ready");
    for line in std::io::stdin().lines() {
        let line = line?;
        let words: Vec<_> = line.split(' ').collect();
        let [from, to, text] = words.as_slice() else { bail!("not a command: {line}") };
        let from: SocketAddrV4 = from.parse()?;
        let socket = sockets.get(&from).context("no such socket")?;
        // What ICMP said to an earlier packet is told once, instead of sending.
        if socket.send_to(text.as_bytes(), to).is_err() {
            socket.send_to(text.as_bytes(), to)?;
        }
        println!("sent");
    }
    Ok(())
}
