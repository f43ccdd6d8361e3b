//! Homes behind routers, a relay on the segment between them, and agents that know each other only by key.
//!
//! ```text
//! alice 192.168.1.2 ── router 203.0.113.1 ─┐
//!                                          ├── segment ── relay 203.0.113.10
//! bob   192.168.2.2 ── router 203.0.113.2 ─┘
//! ```
//!
//! The segment is a host that forwards; 203.0.113.0/24 is cut into cables, each router has its own. Whoever forwards
//! IPv6 has a link-local address on each cable: neighbours are asked for from there.

#![allow(dead_code, unreachable_pub, reason = "shared by several suites, none of which needs all of it")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    agents::mesh,
    lab::{Lab, Node, Process, built, text, until},
};

/// How a home's router treats what passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nat {
    /// Plain masquerade: the same port for all destinations, filtered by address and port.
    Easy,
    /// A random port for each destination.
    Hard,
    /// The same port for all destinations, and whoever sends there gets in.
    Cone,
    /// Plain masquerade, and nothing but TCP gets out.
    UdpBlocked,
}

/// The relay's address.
pub const RELAY: &str = "203.0.113.10";

/// The overlay's addresses of the members, by their place.
pub fn overlay(place: usize) -> String {
    format!("100.64.0.{}", place + 1)
}

/// Everything in the lab.
pub struct Homes {
    pub lab: Lab,
    pub segment: Node,
    pub relay: RelayProgram,
    pub members: Vec<Member>,
    pub routers: Vec<Node>,
}

/// A running mesh-relay.
pub struct RelayProgram {
    pub node: Node,
    pub process: Option<Process>,
    state: PathBuf,
    /// What ours is started with: words before the program's name.
    pub prefix: Vec<String>,
    /// The published server in place of ours.
    stock: Option<PathBuf>,
    /// Whom it asks who may connect; anybody may where it asks nobody.
    verify_url: Option<String>,
}

/// A host with an agent.
pub struct Member {
    pub node: Node,
    pub process: Option<Process>,
    pub place: usize,
    map: PathBuf,
    socket: PathBuf,
    state: PathBuf,
}

impl Homes {
    /// A relay, and one home for each of `nats`.
    pub fn new(nats: &[Nat]) -> Result<Self> {
        Self::with_relay(nats, None)
    }

    /// The same with the published server as relay: `stock` is the program that embeds it.
    pub fn with_stock_relay(nats: &[Nat], stock: PathBuf) -> Result<Self> {
        Self::with_relay(nats, Some(stock))
    }

    fn with_relay(nats: &[Nat], stock: Option<PathBuf>) -> Result<Self> {
        let mut lab = Lab::new()?;
        let segment = lab.node("segment")?;
        segment.forward()?;
        let relay = lab.node("relay")?;
        lab.cable(
            (&segment, "relay", &["203.0.113.9/30", "2001:db8:ff::1/64", "fe80::1/64"]),
            (&relay, "eth0", &["203.0.113.10/30", "2001:db8:ff::2/64"]),
        )?;
        relay.route("default via 203.0.113.9")?;
        relay.route("::/0 via 2001:db8:ff::1")?;
        let relay = RelayProgram {
            state: relay.path("state"),
            node: relay,
            process: None,
            prefix: Vec::new(),
            stock,
            verify_url: None,
        };
        let mut homes = Self { lab, segment, relay, members: Vec::new(), routers: Vec::new() };
        for nat in nats {
            let router = homes.router(*nat)?;
            homes.host(&router)?;
        }
        homes.relay.start()?;
        Ok(homes)
    }

    /// One more router; its home is empty.
    pub fn router(&mut self, nat: Nat) -> Result<Node> {
        let number = self.routers.len() + 1;
        let router = self.lab.node(&format!("router{number}"))?;
        let port = format!("home{number}");
        let (ours, theirs) = (format!("203.0.113.{}/30", 16 * number + 1), format!("203.0.113.{}/30", 16 * number + 2));
        let (ours6, theirs6) = (format!("2001:db8:{number}::1/64"), format!("2001:db8:{number}::2/64"));
        self.lab.cable(
            (&self.segment, &port, &[&ours, &ours6, "fe80::1/64"]),
            (&router, "wan", &[&theirs, &theirs6, "fe80::2/64"]),
        )?;
        router.route(&format!("default via 203.0.113.{}", 16 * number + 1))?;
        router.forward()?;
        router.nft(&rules(nat))?;
        self.routers.push(router.clone());
        Ok(router)
    }

    /// Has the router of a home, by its place, treat packets otherwise from now on; what it knew of flows is forgotten.
    pub fn set_nat(&self, home: usize, nat: Nat) -> Result<()> {
        let router = &self.routers[home];
        router.nft(&format!("delete table ip nat\ndelete table inet guard\n{}", rules(nat)))?;
        router.run(&["conntrack", "-F"]).map(drop)
    }

    /// One more host in the home of `router`.
    pub fn host(&mut self, router: &Node) -> Result<usize> {
        let place = self.members.len();
        let name = ["alice", "bob", "carol"][place];
        let node = self.lab.node(name)?;
        let home = self.routers.iter().position(|known| known.name() == router.name()).context("no such router")? + 1;
        let port = format!("lan{place}");
        let (net, host) = (format!("192.168.{home}"), place + 2);
        // Each host has a cable of its own to the router, which stands for a switch: proxy ARP joins them.
        let (ours, theirs) = (format!("{net}.{}/32", 100 + place), format!("{net}.{host}/24"));
        self.lab.cable((router, &port, &[&ours]), (&node, "eth0", &[&theirs]))?;
        router.run(&["ip", "route", "add", &format!("{net}.{host}/32"), "dev", &port])?;
        router.run(&["sh", "-c", &format!("echo 1 > /proc/sys/net/ipv4/conf/{port}/proxy_arp")])?;
        node.run(&[
            "ip",
            "route",
            "add",
            "default",
            "via",
            &format!("{net}.{}", 100 + place),
            "dev",
            "eth0",
            "onlink",
        ])?;
        let (map, socket, state) = (node.path("map.json"), node.path("meshd.sock"), node.path("state"));
        self.members.push(Member { node, process: None, place, map, socket, state });
        Ok(place)
    }

    /// Has every agent make its keys, and starts all with maps in which they know each other.
    pub fn start(&mut self) -> Result<()> {
        self.prepare()?;
        (0..self.members.len()).try_for_each(|place| self.write_map(place))?;
        self.start_agents()
    }

    /// Starts all agents at once, with the maps that are in place.
    pub fn start_agents(&mut self) -> Result<()> {
        self.members.iter_mut().try_for_each(Member::launch)?;
        self.members.iter().try_for_each(Member::wait_until_ready)
    }

    /// Has every agent make its keys.
    pub fn prepare(&mut self) -> Result<()> {
        for member in &mut self.members {
            member.start()?;
            member.stop()?;
        }
        Ok(())
    }

    /// Writes the map of one, in which all others are as they describe themselves now.
    pub fn write_map(&self, place: usize) -> Result<()> {
        let own = self.members[place].describe()?;
        let others = self.members.iter().filter(|member| member.place != place);
        let peers = others.map(Member::describe).collect::<Result<Vec<_>>>()?;
        let map = json!({"Node": own, "Peers": peers, "DERPMap": self.relay.derp_map()?,
            "Domain": "lab", "PacketFilters": {"base": [{"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": 0, "Last": 65535}}]}]}});
        self.members[place].write_map(&map)
    }

    /// Alice, bob, and so on.
    pub fn member(&self, place: usize) -> &Member {
        &self.members[place]
    }
}

impl RelayProgram {
    /// Starts the relay, and waits until it accepts.
    pub fn start(&mut self) -> Result<()> {
        if let Some(stock) = &self.stock {
            let (derp, stun) = (format!("{RELAY}:443"), format!("{RELAY}:3478"));
            let line = [text_of(stock)?, "derpserver", "--host", RELAY, "--listen", &derp, "--stun-listen", &stun];
            let process = self.node.spawn(&line)?;
            process.wait_for("{", Duration::from_secs(10))?;
            self.process = Some(process);
            return Ok(());
        }
        let (program, state) = (built("mesh-relay")?, text_of(&self.state)?.to_owned());
        let line = [text_of(&program)?, "serve", "--host", RELAY, "--state-dir", &state];
        let more = ["--listen", "[::]:443", "--stun-listen", "[::]:3478"];
        let admission = self.verify_url.as_deref().map(|url| ["--verify-url", url]);
        let admission = admission.as_ref().map_or(&["--open"][..], <[&str; 2]>::as_slice);
        let prefix: Vec<_> = self.prefix.iter().map(String::as_str).collect();
        let process = self.node.spawn(&[&prefix[..], &line, &more, admission].concat())?;
        process.wait_for("ready", Duration::from_secs(10))?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again; from then on it asks there who may connect.
    pub fn ask(&mut self, verify_url: String) -> Result<()> {
        self.kill();
        self.verify_url = Some(verify_url);
        self.start()
    }

    /// Throws its keys and its certificate away; it must not run.
    pub fn forget(&self) -> Result<()> {
        Ok(fs::remove_dir_all(&self.state)?)
    }

    /// The DERP map with this one region, by the program's own word.
    pub fn derp_map(&self) -> Result<Value> {
        if let (Some(_), Some(process)) = (&self.stock, &self.process) {
            let line = process.wait_for("{", Duration::from_secs(1))?;
            let said: Value = serde_json::from_str(&line)?;
            let region = if said["region"].is_object() { said["region"].clone() } else { said };
            return Ok(json!({"Regions": {"900": region}}));
        }
        let (program, state) = (built("mesh-relay")?, text_of(&self.state)?.to_owned());
        let line = [text_of(&program)?, "derp-map", "--host", RELAY, "--open", "--state-dir", &state];
        let mut region: Value = serde_json::from_str(&self.node.run(&line)?)?;
        region["Nodes"][0]["IPv6"] = json!("2001:db8:ff::2");
        Ok(json!({"Regions": {"900": region}}))
    }
}

impl Member {
    /// Starts the agent, and waits until it is ready.
    pub fn start(&mut self) -> Result<()> {
        self.launch()?;
        self.wait_until_ready()
    }

    /// Starts the agent.
    pub fn launch(&mut self) -> Result<()> {
        let program = built("meshd")?;
        let line = [text_of(&program)?, "--map", text_of(&self.map)?, "--socket", text_of(&self.socket)?];
        let more = ["--state-dir", text_of(&self.state)?, "--log", "debug,mesh_core=trace"];
        self.process = Some(self.node.spawn(&[&line[..], &more[..]].concat())?);
        Ok(())
    }

    fn wait_until_ready(&self) -> Result<()> {
        let process = self.process.as_ref().context("no agent")?;
        process.wait_for("ready", Duration::from_secs(10)).map(drop)
    }

    /// What the agent has logged since its start.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::output).unwrap_or_default()
    }

    /// Ends the agent, and waits for a clean end. Keeps what it says of itself.
    pub fn stop(&mut self) -> Result<()> {
        let own = self.mesh(&["debug", "self", "--json"])?;
        fs::write(self.node.path("self.json"), own)?;
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.signal("TERM")?;
        let status = process.wait(Duration::from_secs(2))?;
        ensure!(status.success(), "meshd ended with {status}: {}", process.output());
        Ok(())
    }

    /// As control would describe it to others.
    pub fn describe(&self) -> Result<Value> {
        let own = match &self.process {
            Some(_) => self.mesh(&["debug", "self", "--json"])?,
            None => fs::read_to_string(self.node.path("self.json"))?,
        };
        let mut own: Value = serde_json::from_str(&own)?;
        let address = format!("{}/32", overlay(self.place));
        own["ID"] = json!(self.place + 1);
        own["Name"] = json!(format!("{}.lab.", self.node.name()));
        own["Addresses"] = json!([address]);
        own["AllowedIPs"] = json!([address]);
        if own["HomeDERP"].is_null() || own["HomeDERP"] == 0 {
            own["HomeDERP"] = json!(900);
        }
        Ok(own)
    }

    /// Puts a map in place, as a careful program does.
    pub fn write_map(&self, map: &Value) -> Result<()> {
        let fresh = self.map.with_extension("new");
        fs::write(&fresh, serde_json::to_string_pretty(map)?)?;
        fs::rename(fresh, &self.map)?;
        Ok(())
    }

    /// Runs `mesh`, which must succeed; returns what it wrote.
    pub fn mesh(&self, words: &[&str]) -> Result<String> {
        let output = mesh(&self.node, &self.socket, words)?;
        ensure!(output.status.success(), "{}: mesh {words:?}: {}", self.node.name(), text(&output));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The socket of its agent.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What `mesh status` says of the member at `place`.
    pub fn peer(&self, place: usize) -> Result<Value> {
        let status: Value = serde_json::from_str(&self.mesh(&["status", "--json"])?)?;
        let peers = status["Peer"].as_object().context("no Peer")?;
        let address = overlay(place);
        let found = peers.values().find(|peer| peer["TailscaleIPs"][0] == address.as_str());
        found.cloned().with_context(|| format!("{} does not know {address}", self.node.name()))
    }

    /// Waits until the relay has taken it in.
    pub fn wait_for_relay(&self, timeout: Duration) -> Result<()> {
        until("connected to the relay", timeout, || {
            let text = self.mesh(&["debug", "metrics"])?;
            Ok(text.lines().any(|line| line == "mesh_relay_connected{region=\"900\"} 1").then_some(()))
        })
    }

    /// One disco ping; which way the pong came and its milliseconds.
    pub fn ping(&self, place: usize) -> Result<Option<(Way, f64)>> {
        let words = ["--json", "ping", "-c", "1", "--until-direct=false", "--timeout", "2s", &overlay(place)];
        Way::of_pong(&mesh(&self.node, &self.socket, &words)?)
    }

    /// How its packets for the member at `place` go now.
    pub fn way(&self, place: usize) -> Result<Way> {
        Ok(Way::of_peer(&self.peer(place)?))
    }

    /// ICMP through the tunnel until the first answer; how long that took.
    pub fn reach(&self, place: usize, timeout: Duration) -> Result<Duration> {
        let (began, address) = (Instant::now(), overlay(place));
        until(&format!("{} reaches {address}", self.node.name()), timeout, || {
            let once = self.node.try_run(&["ping", "-n", "-c", "1", "-W", "1", &address])?;
            Ok(once.status.success().then_some(()))
        })?;
        Ok(began.elapsed())
    }
}

/// A way that packets go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Over the relay.
    Relay,
    /// Directly, there.
    Direct(String),
}

impl Way {
    /// How the first pong came that `mesh --json ping` tells of, and its milliseconds.
    pub fn of_pong(output: &Output) -> Result<Option<(Self, f64)>> {
        let text = String::from_utf8_lossy(&output.stdout);
        let Some(line) = text.lines().next().filter(|_| output.status.success()) else { return Ok(None) };
        let pong: Value = serde_json::from_str(line)?;
        let millis = pong["LatencySeconds"].as_f64().context("no latency")? * 1e3;
        let way = match pong["Endpoint"].as_str() {
            Some(endpoint) => Self::Direct(endpoint.to_owned()),
            None => Self::Relay,
        };
        Ok(Some((way, millis)))
    }

    /// How packets go to a peer of `mesh --json status`.
    pub fn of_peer(peer: &Value) -> Self {
        match peer["CurAddr"].as_str() {
            Some(address) if !address.is_empty() => Self::Direct(address.to_owned()),
            _ => Self::Relay,
        }
    }
}

/// The router's rules.
fn rules(nat: Nat) -> String {
    let source = match nat {
        Nat::Easy | Nat::UdpBlocked | Nat::Cone => "masquerade",
        Nat::Hard => "masquerade fully-random",
    };
    let forward = match nat {
        Nat::UdpBlocked => "meta l4proto udp drop",
        Nat::Easy | Nat::Hard | Nat::Cone => "accept",
    };
    // What nobody inside asked for goes to the host behind it: with one host, an endpoint-independent filter.
    let inbound = match nat {
        Nat::Cone => "iifname \"wan\" udp dport 41641 dnat ip to 192.168.1.2:41641",
        Nat::Easy | Nat::Hard | Nat::UdpBlocked => "accept",
    };
    format!(
        "table ip nat {{\nchain pre {{\ntype nat hook prerouting priority dstnat\n{inbound}\n}}\n\
         chain post {{\ntype nat hook postrouting priority srcnat\noifname \"wan\" {source}\n}}\n}}\n\
         table inet guard {{\n\
         chain input {{\ntype filter hook input priority filter\niifname \"wan\" meta l4proto {{ tcp, udp }} ct state new drop\n}}\n\
         chain forward {{\ntype filter hook forward priority filter\n{forward}\n}}\n}}\n"
    )
}

fn text_of(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not text")
}
