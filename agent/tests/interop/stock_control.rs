//! The published engine, `tsnet`, with our coordination server, our relay and our agent, behind kernel NATs.

use std::{
    cell::Cell,
    fs,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::super::{
    Test,
    homes::{Homes, Nat},
    joined::{ALLOW, Agent, Control, DENY, PATIENCE},
    lab::{Node, peers, until},
};

pub(crate) const TESTS: &[Test] = &[
    ("stock_nodes_join_our_control_and_go_direct", stock_nodes_join_and_go_direct),
    ("stock_nodes_follow_our_policy", stock_nodes_follow_our_policy),
    ("stock_nodes_outlive_a_restart_of_our_control", stock_nodes_outlive_a_restart),
    ("stock_nodes_see_a_logout", stock_nodes_see_a_logout),
    ("a_stock_node_and_our_agent_go_direct", a_stock_node_and_our_agent_go_direct),
    ("a_stock_node_and_our_agent_follow_our_policy", a_stock_node_and_our_agent_follow_our_policy),
    ("a_stock_node_and_our_agent_see_each_other_go", a_stock_node_and_our_agent_see_each_other_go),
];

fn stock_nodes_join_and_go_direct() -> Result<()> {
    let net = Net::of_stock(&[Nat::Easy, Nat::Easy])?;
    let [alice, bob] = net.stock.as_slice() else { bail!("two") };
    let (here, there) = (alice.address()?, bob.address()?);

    let first = until("a pong", PATIENCE, || Ok(alice.ping(&there, "disco").ok()))?;
    ensure!(first["DERPRegionID"] == 900 && first["DERPRegionCode"] == "mesh", "not over the relay: {first}");
    alice.wait_for_direct(&there, "203.0.113.34:")?;
    bob.wait_for_direct(&here, "203.0.113.18:")?;
    for kind in ["TSMP", "ICMP"] {
        alice.ping(&there, kind)?;
    }

    for (from, to, address) in [(alice, bob, &there), (bob, alice, &here)] {
        to.order(json!({"do": "listen", "address": ":7"}))?;
        from.dial(&format!("{address}:7"), 1_000_000)?;
    }
    alice.dial("bob:7", 4)?;
    let who = alice.order(json!({"do": "whois", "address": format!("{there}:0")}))?;
    ensure!(who["Node"]["Name"] == "bob.lab.internal." && who["UserProfile"]["LoginName"] == "lab", "{who}");
    ensure!(alice.lookup("bob.lab.internal.", "A")? == json!({"code": "RCodeSuccess", "addresses": [there]}));
    let v6 = alice.lookup("bob.lab.internal.", "AAAA")?;
    ensure!(v6["addresses"][0].as_str().is_some_and(|address| address.starts_with("fd7a:115c:a1e0:")), "{v6}");
    ensure!(alice.lookup("nobody.lab.internal.", "A")?["code"] == "RCodeNameError");

    let status = alice.status()?;
    let peer = alice.peer("bob")?.with_context(|| format!("no bob in {status}"))?;
    ensure!(peer["Online"] == true && peer["OS"] == "linux", "{peer}");
    ensure!(status["Self"]["Relay"] == "mesh" && status["MagicDNSSuffix"] == "lab.internal", "{status}");
    Ok(())
}

fn stock_nodes_follow_our_policy() -> Result<()> {
    let net = Net::of_stock(&[Nat::Easy, Nat::Easy])?;
    let [alice, bob] = net.stock.as_slice() else { bail!("two") };
    bob.order(json!({"do": "listen", "address": ":7"}))?;
    let address = format!("{}:7", bob.address()?);
    alice.reach(&address)?;
    net.control.set_policy(DENY)?;
    alice.lose(&address)?;
    until("not even visible", PATIENCE, || Ok(alice.peer("bob")?.is_none().then_some(())))?;
    net.control.set_policy(ALLOW)?;
    alice.reach(&address)
}

fn stock_nodes_outlive_a_restart() -> Result<()> {
    let mut net = Net::of_stock(&[Nat::Easy, Nat::Easy])?;
    net.stock[1].order(json!({"do": "listen", "address": ":7"}))?;
    let address = format!("{}:7", net.stock[1].address()?);
    net.stock[0].reach(&address)?;
    net.control.kill();
    net.stock[0].dial(&address, 4).context("control is away")?;
    net.control.start()?;
    net.stock[0].dial(&address, 4).context("control is back")?;
    // They hear of changes again, on connections made anew.
    net.control.set_policy(DENY)?;
    net.stock[0].lose(&address)?;
    net.control.set_policy(ALLOW)?;
    net.stock[0].reach(&address)
}

fn stock_nodes_see_a_logout() -> Result<()> {
    let net = Net::of_stock(&[Nat::Easy, Nat::Hard])?;
    let [alice, bob] = net.stock.as_slice() else { bail!("two") };
    until("bob is there", PATIENCE, || Ok(alice.peer("bob")?.filter(|bob| bob["Online"] == true)))?;
    bob.order(json!({"do": "logout"}))?;
    until("bob has gone", PATIENCE, || Ok(is_gone(alice.peer("bob")?.as_ref()).then_some(())))?;
    // And again, with another key.
    bob.order(json!({"do": "login", "key": net.control.key(&[])?}))?;
    until("bob is there again", PATIENCE, || Ok(alice.peer("bob")?.filter(|bob| bob["Online"] == true))).map(drop)
}

fn a_stock_node_and_our_agent_go_direct() -> Result<()> {
    let net = Net::of_both()?;
    let (ours, stock) = (&net.ours[0], &net.stock[0]);
    let (here, there) = (ours.address()?, stock.address()?);

    let first = until("a pong", PATIENCE, || Ok(stock.ping(&here, "disco").ok()))?;
    ensure!(first["NodeName"] == "alice", "{first}");
    stock.wait_for_direct(&here, "203.0.113.18:41641")?;
    let said = ours.mesh(&["ping", "-c", "60", "bob"])?;
    ensure!(said.lines().last().is_some_and(|line| line.contains(" via 203.0.113.34:")), "{said}");
    for kind in ["TSMP", "ICMP"] {
        stock.ping(&here, kind)?;
    }
    for kind in ["--tsmp", "--icmp"] {
        let said = ours.mesh(&["ping", kind, "-c", "1", "bob"])?;
        ensure!(said.starts_with(&format!("pong from bob ({there}")), "{said}");
    }

    let program = peers::program()?.display().to_string();
    stock.order(json!({"do": "listen", "address": ":7"}))?;
    ours.node.run(&[&program, "dial", "-address", &format!("{there}:7"), "-bytes", "1000000"])?;
    let echo = ours.node.spawn(&[&program, "echo", "-listen", ":7"])?;
    echo.wait_for("{", PATIENCE)?;
    stock.dial(&format!("{here}:7"), 1_000_000)?;
    stock.dial("alice:7", 4)?;

    let who = stock.order(json!({"do": "whois", "address": format!("{here}:0")}))?;
    ensure!(who["Node"]["Name"] == "alice.lab.internal." && who["UserProfile"]["LoginName"] == "lab", "{who}");
    let who: Value = serde_json::from_str(&ours.mesh(&["whois", "--json", &there])?)?;
    ensure!(who["Node"]["Name"] == "bob.lab.internal." && who["UserProfile"]["LoginName"] == "lab", "{who}");
    ensure!(stock.lookup("alice.lab.internal.", "A")?["addresses"] == json!([here]));
    let peer = stock.peer("alice")?.context("no alice")?;
    ensure!(peer["Online"] == true && peer["OS"] == "linux", "{peer}");
    Ok(())
}

fn a_stock_node_and_our_agent_follow_our_policy() -> Result<()> {
    let mut net = Net::of_both()?;
    let (here, there) = (net.ours[0].address()?, net.stock[0].address()?);
    let program = peers::program()?.display().to_string();
    let echo = net.ours[0].node.spawn(&[&program, "echo", "-listen", ":7"])?;
    echo.wait_for("{", PATIENCE)?;
    let address = format!("{here}:7");
    net.stock[0].reach(&address)?;
    net.ours[0].reach(&there)?;
    for _ in 0..2 {
        net.control.set_policy(DENY)?;
        net.stock[0].lose(&address)?;
        until("nothing from ours to stock", PATIENCE, || Ok((!net.ours[0].echo(&there)?).then_some(())))?;
        net.control.set_policy(ALLOW)?;
        net.stock[0].reach(&address)?;
        net.ours[0].reach(&there)?;
        // The second time over connections to a server that has begun anew.
        net.control.kill();
        net.stock[0].dial(&address, 4).context("control is away")?;
        ensure!(net.ours[0].echo(&there)?, "control is away");
        net.control.start()?;
    }
    Ok(())
}

fn a_stock_node_and_our_agent_see_each_other_go() -> Result<()> {
    let net = Net::of_both()?;
    let (ours, stock) = (&net.ours[0], &net.stock[0]);
    ours.reach(&stock.address()?)?;
    stock.order(json!({"do": "logout"}))?;
    until("the stock node has gone", PATIENCE, || Ok(is_gone(ours.peer("bob")?.as_ref()).then_some(())))?;
    stock.order(json!({"do": "login", "key": net.control.key(&[])?}))?;
    until("it is there again", PATIENCE, || Ok(ours.peer("bob")?.filter(|bob| bob["Online"] == true)))?;
    ours.reach(&stock.address()?)?;
    ours.mesh(&["logout"])?;
    until("ours has gone", PATIENCE, || Ok(is_gone(stock.peer("alice")?.as_ref()).then_some(())))?;
    ours.up(&net.control, &net.control.key(&[])?)?;
    ours.reach(&stock.address()?).map(drop)
}

/// Whether a peer that was there has signed out, by its entry in a status.
fn is_gone(peer: Option<&Value>) -> bool {
    peer.is_none_or(|peer| peer["Online"] == false || peer["Expired"] == true)
}

/// Homes with a node each, which have joined.
struct Net {
    ours: Vec<Agent>,
    stock: Vec<Stock>,
    control: Control,
    /// Ends last.
    _homes: Homes,
}

impl Net {
    /// Stock nodes alone: alice, bob.
    fn of_stock(nats: &[Nat]) -> Result<Self> {
        Self::start(nats, 0)
    }

    /// Alice is ours, bob is a stock node.
    fn of_both() -> Result<Self> {
        Self::start(&[Nat::Easy, Nat::Easy], 1)
    }

    fn start(nats: &[Nat], of_ours: usize) -> Result<Self> {
        let mut homes = Homes::new(nats)?;
        let control = Control::with_certificate(&mut homes)?;
        control.set_policy(ALLOW)?;
        let key = control.key(&["--reusable"])?;
        let (first, rest) = homes.members.split_at(of_ours);
        let ours = first.iter().map(|member| Agent::new(&member.node, &control)).collect::<Result<Vec<_>>>()?;
        let stock = rest.iter().map(|member| Stock::start(&member.node, &control, &key)).collect::<Result<Vec<_>>>()?;
        for agent in &ours {
            agent.up(&control, &key)?;
        }
        for node in &stock {
            node.order(json!({"do": "up"}))?;
        }
        Ok(Self { ours, stock, control, _homes: homes })
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
    /// Starts one on a host, under its name; it joins by itself.
    fn start(node: &Node, control: &Control, key: &str) -> Result<Self> {
        let program = peers::program()?.display().to_string();
        let trust = format!("SSL_CERT_FILE={}", control.certificate().context("no https")?.display());
        let (url, state) = (control.url(), node.path("stock").display().to_string());
        let line = ["env", &trust, &program, "node", "-control", &url, "-hostname", node.name(), "-key", key];
        let mut command = node.command(&[&line[..], &["-state-dir", &state]].concat());
        let log = fs::File::create(node.path("stock.log"))?;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let (sender, answers) = channel();
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
        let deadline = Instant::now() + PATIENCE;
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

    /// The peer of this name, as its status has it.
    fn peer(&self, name: &str) -> Result<Option<Value>> {
        let (status, dns) = (self.status()?, json!(format!("{name}.lab.internal.")));
        let mut peers = status["Peer"].as_object().into_iter().flat_map(Map::values);
        Ok(peers.find(|peer| peer["DNSName"] == dns).cloned())
    }

    /// Its IPv4 address of the tailnet.
    fn address(&self) -> Result<String> {
        let status = self.status()?;
        let address = status["TailscaleIPs"][0].as_str().with_context(|| format!("no address: {status}"))?;
        Ok(address.to_owned())
    }

    fn ping(&self, peer: &str, kind: &str) -> Result<Value> {
        let pong = self.order(json!({"do": "ping", "peer": peer, "kind": kind, "seconds": 3}))?;
        ensure!(pong["Err"] == "" && pong["LatencySeconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{pong}");
        Ok(pong)
    }

    /// Pings until a pong comes directly, from an address that begins so.
    fn wait_for_direct(&self, peer: &str, from: &str) -> Result<()> {
        until(&format!("{peer} directly at {from}"), PATIENCE, || {
            let pong = self.ping(peer, "disco").unwrap_or_default();
            Ok(pong["Endpoint"].as_str().is_some_and(|endpoint| endpoint.starts_with(from)).then_some(()))
        })
    }

    fn lookup(&self, name: &str, kind: &str) -> Result<Value> {
        self.order(json!({"do": "lookup", "name": name, "type": kind}))
    }

    /// Sends so many bytes over TCP and has them back.
    fn dial(&self, address: &str, bytes: usize) -> Result<()> {
        self.order(json!({"do": "dial", "address": address, "bytes": bytes, "seconds": 3})).map(drop)
    }

    /// Dials until it works.
    fn reach(&self, address: &str) -> Result<()> {
        until(&format!("TCP to {address}"), PATIENCE, || Ok(self.dial(address, 4).ok()))
    }

    /// Dials until it does not work any more.
    fn lose(&self, address: &str) -> Result<()> {
        until(&format!("no TCP to {address}"), PATIENCE, || Ok(self.dial(address, 4).err().map(drop)))
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
