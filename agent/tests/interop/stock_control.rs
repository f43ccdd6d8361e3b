//! The published engine, `tsnet`, with our coordination server and our relay, behind kernel NATs.

use std::{
    cell::Cell,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    super::{
        Test,
        homes::{Homes, Member, Nat},
        lab::{peers, until},
    },
    control::{ALLOW, Control, DENY, URL},
};

pub(crate) const TESTS: &[Test] = &[
    ("stock_nodes_join_our_control_and_go_direct", stock_nodes_join_and_go_direct),
    ("stock_nodes_follow_our_policy", stock_nodes_follow_our_policy),
    ("stock_nodes_outlive_our_control", stock_nodes_outlive_our_control),
    ("stock_nodes_see_a_logout", stock_nodes_see_a_logout),
];

/// Far beyond what any of it takes; no test measures time against it.
const LONG: Duration = Duration::from_secs(30);

fn stock_nodes_join_and_go_direct() -> Result<()> {
    let net = Net::start(&[Nat::Easy, Nat::Easy])?;
    let (alice, bob) = (&net.stock[0], &net.stock[1]);
    let (here, there) = (alice.address()?, bob.address()?);

    let first = until("a pong", LONG, || Ok(alice.ping(&there, "disco").ok()))?;
    ensure!(first["DERPRegionID"] == 900 || first["Endpoint"] != "", "{first}");
    let direct = || -> Result<bool> {
        let pong = alice.ping(&there, "disco").unwrap_or_default();
        Ok(pong["Endpoint"].as_str().is_some_and(|endpoint| endpoint.starts_with("203.0.113.34:")))
    };
    until("direct", LONG, || Ok(direct()?.then_some(())))?;
    for kind in ["TSMP", "ICMP"] {
        let pong = alice.ping(&there, kind)?;
        ensure!(pong["LatencySeconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{kind}: {pong}");
    }

    for (from, to, address) in [(alice, bob, &there), (bob, alice, &here)] {
        to.order(json!({"do": "listen", "address": ":7"}))?;
        from.dial(&format!("{address}:7"), 1_000_000)?;
    }
    alice.dial("bob:7", 4)?;
    let who = alice.order(json!({"do": "whois", "address": format!("{there}:0")}))?;
    ensure!(who["Node"]["Name"] == "bob.mesh.internal." && who["UserProfile"]["LoginName"] == "lab", "{who}");
    let lookup = |name: &str| alice.order(json!({"do": "lookup", "name": name, "type": "A"}));
    ensure!(lookup("bob.mesh.internal.")? == json!({"code": "RCodeSuccess", "addresses": [there]}));
    ensure!(lookup("nobody.mesh.internal.")?["code"] == "RCodeNameError");

    let status = alice.status()?;
    let peer = status["Peer"].as_object().and_then(|peers| peers.values().next()).context("no peer")?;
    ensure!(peer["DNSName"] == "bob.mesh.internal." && peer["Online"] == true, "{peer}");
    ensure!(status["Self"]["Relay"] == "mesh" && status["MagicDNSSuffix"] == "mesh.internal", "{status}");
    Ok(())
}

fn stock_nodes_follow_our_policy() -> Result<()> {
    let net = Net::start(&[Nat::Easy, Nat::Easy])?;
    let (alice, bob) = (&net.stock[0], &net.stock[1]);
    bob.order(json!({"do": "listen", "address": ":7"}))?;
    let address = format!("{}:7", bob.address()?);
    until("allowed", LONG, || Ok(alice.dial(&address, 4).ok()))?;
    net.control.set_policy(DENY)?;
    until("denied", LONG, || Ok(alice.dial(&address, 4).err()))?;
    until("not even visible", LONG, || {
        Ok(alice.status()?["Peer"].as_object().is_none_or(serde_json::Map::is_empty).then_some(()))
    })?;
    net.control.set_policy(ALLOW)?;
    until("allowed again", LONG, || Ok(alice.dial(&address, 4).ok()))
}

fn stock_nodes_outlive_our_control() -> Result<()> {
    let mut net = Net::start(&[Nat::Easy, Nat::Easy])?;
    net.stock[1].order(json!({"do": "listen", "address": ":7"}))?;
    let address = format!("{}:7", net.stock[1].address()?);
    until("reached", LONG, || Ok(net.stock[0].dial(&address, 4).ok()))?;
    net.control.kill();
    net.stock[0].dial(&address, 4).context("control is away")?;
    net.control.start()?;
    net.stock[0].dial(&address, 4).context("control is back")?;
    // It hears of changes again, on a stream of its own making.
    net.control.set_policy(DENY)?;
    until("denied", LONG * 2, || Ok(net.stock[0].dial(&address, 4).err()))?;
    net.control.set_policy(ALLOW)?;
    until("allowed again", LONG, || Ok(net.stock[0].dial(&address, 4).ok()))
}

fn stock_nodes_see_a_logout() -> Result<()> {
    let net = Net::start(&[Nat::Easy, Nat::Hard])?;
    let (alice, bob) = (&net.stock[0], &net.stock[1]);
    let online = || -> Result<bool> {
        let status = alice.status()?;
        Ok(status["Peer"].as_object().is_some_and(|peers| peers.values().any(|peer| peer["Online"] == true)))
    };
    until("bob is there", LONG, || Ok(online()?.then_some(())))?;
    bob.order(json!({"do": "logout"}))?;
    until("bob has gone", LONG, || Ok((!online()?).then_some(())))
}

/// Homes with a stock node each, which have joined.
struct Net {
    stock: Vec<Stock>,
    control: Control,
    /// Ends last.
    _homes: Homes,
}

impl Net {
    fn start(nats: &[Nat]) -> Result<Self> {
        let mut homes = Homes::new(nats)?;
        let control = Control::new(&mut homes)?;
        let key = control.key(&["--reusable"])?;
        let stock = homes.members.iter().map(|member| Stock::start(member, &control, &["-key", &key]));
        let stock = stock.collect::<Result<Vec<_>>>()?;
        for node in &stock {
            node.order(json!({"do": "up"}))?;
        }
        Ok(Self { stock, control, _homes: homes })
    }
}

/// A running node of the published engine.
struct Stock {
    child: Child,
    stdin: ChildStdin,
    answers: Receiver<Value>,
    orders: Cell<u64>,
}

impl Stock {
    /// Starts one on the host of a member, under its name.
    fn start(member: &Member, control: &Control, words: &[&str]) -> Result<Self> {
        let node = &member.node;
        let (program, certificate) = (peers::program()?.display().to_string(), control.certificate());
        let trust = format!("SSL_CERT_FILE={}", certificate.display());
        let state = node.path("stock").display().to_string();
        let line = ["env", &trust, &program, "node", "-control", URL, "-hostname", node.name(), "-state-dir", &state];
        let mut command = node.command(&[&line[..], words].concat());
        let log = std::fs::File::create(node.path("stock.log"))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn()?;
        let (sender, answers) = channel();
        let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // Whoever asked may have seen enough.
                let _ = serde_json::from_str(&line).map(|event| sender.send(event));
            }
        });
        let stdin = child.stdin.take().context("no input")?;
        Ok(Self { child, stdin, answers, orders: Cell::new(0) })
    }

    /// Has it do something, and waits until it has.
    fn order(&self, mut order: Value) -> Result<Value> {
        let id = self.orders.get() + 1;
        self.orders.set(id);
        order["id"] = json!(id);
        writeln!(&self.stdin, "{order}")?;
        let deadline = Instant::now() + LONG * 2;
        loop {
            match self.answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(mut answer) if answer["id"] == id => {
                    ensure!(answer["event"] == "done", "{order}: {}", answer["error"]);
                    return Ok(answer["result"].take());
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => bail!("{order}: no answer"),
                Err(RecvTimeoutError::Disconnected) => bail!("{order}: it has ended"),
            }
        }
    }

    fn status(&self) -> Result<Value> {
        self.order(json!({"do": "status"}))
    }

    /// Its IPv4 address of the tailnet.
    fn address(&self) -> Result<String> {
        let status = self.status()?;
        let address = status["TailscaleIPs"][0].as_str().with_context(|| format!("no address: {status}"))?;
        Ok(address.to_owned())
    }

    fn ping(&self, peer: &str, kind: &str) -> Result<Value> {
        let pong = self.order(json!({"do": "ping", "peer": peer, "kind": kind, "seconds": 3}))?;
        ensure!(pong["Err"] == "", "{pong}");
        Ok(pong)
    }

    /// Sends so many bytes over TCP and has them back.
    fn dial(&self, address: &str, bytes: usize) -> Result<()> {
        self.order(json!({"do": "dial", "address": address, "bytes": bytes, "seconds": 3})).map(drop)
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
