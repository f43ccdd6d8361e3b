//! The list of relays: our agents over the stock relay, stock programs at ours, stock clients over ours at headscale,
//! and the server as the README has it for phones and laptops.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

use super::{
    super::{
        Test, agents,
        homes::{Homes, Nat, RELAY, Way, overlay},
        joined::{PATIENCE, certificate, on_segment},
        lab::{Node, Process, built, text, until},
    },
    stock_list::{DERPER, DERPPROBE, Found, List, STUNC, set_udp, trust},
    stock_list_nodes::{Client, Kind, Pings, unix_now},
    stock_list_servers::{Key, Server},
};

/// Those that want the stock relay.
pub(crate) const OVER_DERPER: &[Test] = &[
    ("stock_list_of_ours_over_a_derper_that_is_pinned", || over_derper("derper-pinned", true)),
    ("stock_list_of_ours_over_a_derper_that_is_trusted", || over_derper("derper-trusted", false)),
];

/// Those that want the stock prober and the stock client for STUN.
pub(crate) const PROBES: &[Test] = &[("stock_list_of_probes_of_our_relay", probes)];

/// Those that want the stock client and headscale.
pub(crate) const STOCK_ON_HEADSCALE: &[Test] = &[("stock_list_of_stock_over_our_relay_on_headscale", on_headscale)];

/// Those that want the stock client.
pub(crate) const BY_README: &[Test] = &[("stock_list_of_the_server_with_a_relay_inside", by_readme)];

/// Two agents with map files, and the stock relay between them.
fn over_derper(name: &str, pinned: bool) -> Result<()> {
    let mut list = List::new(name)?;
    let mut homes = Homes::new(&[Nat::Easy, Nat::Easy])?;
    homes.relay.kill();
    let mut derper = Derper::new(&homes)?;
    if !pinned {
        homes.members.iter().try_for_each(|member| trust(&member.node, &derper.chain))?;
    }
    homes.prepare()?;
    derper.write_maps(&homes, pinned)?;
    homes.start_agents()?;

    list.item("first pings over the relay, then directly", || {
        let began = Instant::now();
        let first = until("a pong", PATIENCE, || homes.member(0).ping(1))?;
        wait_for_direct(&homes)?;
        Ok(Found::since(began, format!("first {first:?}, then direct 203.0.113.34")))
    });
    list.item("echo through the tunnel", || Ok(Found::new(homes.member(0).reach(1, PATIENCE)?, "alice to bob")));
    list.item("netcheck by its STUN", || {
        let began = Instant::now();
        let report: Value = serde_json::from_str(&homes.member(0).mesh(&["netcheck", "--format", "json"])?)?;
        ensure!(report["UDP"] == true && report["PreferredDERP"] == 900, "{report}");
        Ok(Found::since(began, format!("UDP, {}, relay 900", report["GlobalV4"])))
    });
    list.item("UDP blocked: everything over the relay", || {
        let pings = Pings::start(&homes.member(0).node, &overlay(1))?;
        set_udp(&homes, false)?;
        let took = pings.first_after(unix_now())?;
        until("over the relay", PATIENCE, || Ok((homes.member(0).way(1)? == Way::Relay).then_some(())))?;
        let rate = agents::transfer(&homes.member(0).node, &homes.member(1).node, &overlay(1), 1, false)?;
        Ok(Found::new(took, format!("under traffic, until the next answer; TCP {rate:.0} Mbit/s")))
    });
    list.item("home by latency over TLS, without UDP", || {
        let began = Instant::now();
        let report: Value = serde_json::from_str(&homes.member(1).mesh(&["netcheck", "--format", "json"])?)?;
        ensure!(report["UDP"] == false && report["PreferredDERP"] == 900, "{report}");
        Ok(Found::since(began, "UDP: false, relay 900"))
    });
    list.item("relay killed and back", || {
        let pings = Pings::start(&homes.member(0).node, &overlay(1))?;
        derper.process = None;
        pings.last_after(unix_now())?;
        let began = unix_now();
        derper.start()?;
        Ok(Found::new(pings.first_after(began)?, "from its start to the first answer"))
    });
    list.item("UDP open again: directly", || {
        set_udp(&homes, true)?;
        let began = Instant::now();
        wait_for_direct(&homes)?;
        Ok(Found::since(began, "direct 203.0.113.34"))
    });
    if pinned {
        list.item("another certificate under the same name is refused", || {
            derper.process = None;
            derper.forget()?;
            derper.start()?;
            let began = Instant::now();
            let said = until("alice says so", PATIENCE, || {
                let said = homes.member(0).mesh(&["status"])?;
                let line = said.lines().find(|line| line.contains("certificate"));
                Ok(line.map(|line| line.trim_start_matches(['#', ' ', '-']).to_owned()))
            })?;
            Ok(Found::since(began, said))
        });
    }
    drop((derper, homes));
    list.end()
}

fn wait_for_direct(homes: &Homes) -> Result<()> {
    until("directly", PATIENCE, || {
        homes.member(0).ping(1)?;
        Ok(matches!(homes.member(0).way(1)?, Way::Direct(there) if there.starts_with("203.0.113.34:")).then_some(()))
    })
}

/// A stock relay where ours was.
struct Derper {
    process: Option<Process>,
    node: Node,
    directory: PathBuf,
    chain: PathBuf,
}

impl Derper {
    fn new(homes: &Homes) -> Result<Self> {
        let node = homes.relay.node.clone();
        let directory = node.path("certificates");
        let mut derper = Self { process: None, chain: directory.join("relay.lab.crt"), directory, node };
        derper.forget()?;
        derper.start()?;
        Ok(derper)
    }

    /// A new certificate, and a new key.
    fn forget(&self) -> Result<()> {
        fs::create_dir_all(&self.directory)?;
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(["relay.lab".to_owned()])?.self_signed(&key)?;
        fs::write(&self.chain, certificate.pem())?;
        fs::write(self.directory.join("relay.lab.key"), key.serialize_pem())?;
        Ok(())
    }

    fn start(&mut self) -> Result<()> {
        let (program, directory) = (DERPER.path()?, self.directory.display().to_string());
        let config = self.directory.join("derper.key").display().to_string();
        let line = [&program, "-a", ":443", "-http-port", "-1", "-certmode", "manual", "-certdir", &directory];
        let process = self.node.spawn(&[&line[..], &["-hostname", "relay.lab", "-stun", "-c", &config]].concat())?;
        let url = format!("https://{RELAY}/derp/probe");
        until("derper answers", PATIENCE, || {
            let words = ["curl", "-sSk", "--fail", "-o", "/dev/null", "--connect-to", "relay.lab:443:127.0.0.1:443"];
            let url = url.replace(RELAY, "relay.lab");
            Ok(self.node.try_run(&[&words[..], &[&url]].concat())?.status.success().then_some(()))
        })
        .with_context(|| process.output())?;
        self.process = Some(process);
        Ok(())
    }

    /// Writes the agents' maps, in which they know each other and this relay.
    fn write_maps(&self, homes: &Homes, pinned: bool) -> Result<()> {
        let mut relay = json!({"Name": "900a", "RegionID": 900, "HostName": "relay.lab", "IPv4": RELAY});
        if pinned {
            relay["CertName"] = json!(format!("sha256-raw:{}", self.fingerprint()?));
        }
        let region = json!({"RegionID": 900, "RegionCode": "stock", "RegionName": "stock", "Nodes": [relay]});
        let all = json!([{"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": 0, "Last": 65535}}]}]);
        for (own, other) in [(0, 1), (1, 0)] {
            let map = json!({"Node": homes.member(own).describe()?, "Peers": [homes.member(other).describe()?],
                "DERPMap": {"Regions": {"900": region}}, "Domain": "lab", "PacketFilters": {"base": all}});
            homes.member(own).write_map(&map)?;
        }
        Ok(())
    }

    /// SHA-256 of the certificate, in hex.
    fn fingerprint(&self) -> Result<String> {
        let chain = self.chain.display().to_string();
        let said = self.node.run(&["openssl", "x509", "-in", &chain, "-noout", "-fingerprint", "-sha256"])?;
        let (_, hex) = said.trim().split_once('=').context("no fingerprint")?;
        Ok(hex.replace(':', "").to_lowercase())
    }
}

/// Stock programs that judge relays, at ours.
fn probes() -> Result<()> {
    let mut list = List::new("probes")?;
    let mut homes = Homes::new(&[Nat::Easy])?;
    homes.relay.kill();
    // By a name: derpprobe finds fault with any relay whose host is an address, for TLS has no name of it.
    let (relay, program) = (homes.relay.node.clone(), built("mesh-relay")?.display().to_string());
    let state = relay.path("named").display().to_string();
    let words = ["--host", "relay.lab", "--open", "--state-dir", &state];
    let more = ["--listen", "[::]:443", "--stun-listen", "[::]:3478"];
    let served = relay.spawn(&[&[program.as_str(), "serve"], &words[..], &more[..]].concat())?;
    served.wait_for("ready", PATIENCE)?;
    let mut region: Value = serde_json::from_str(&relay.run(&[&[program.as_str(), "derp-map"], &words[..]].concat())?)?;
    region["Nodes"][0]["IPv4"] = json!(RELAY);
    region["Nodes"][0]["IPv6"] = json!("2001:db8:ff::2");
    // There both families reach the relay.
    let node = homes.segment.clone();
    let file = node.path("derp-map.json");
    fs::write(&file, json!({"Regions": {"900": region}}).to_string())?;
    node.run(&["sh", "-c", &format!("echo {RELAY} relay.lab >> /etc/hosts")])?;
    trust(&node, &relay.path("named").join("relay.crt"))?;
    for attempt in ["by its map", "again, straight after"] {
        list.item(&format!("derpprobe, {attempt}"), || {
            let (program, url) = (DERPPROBE.path()?, format!("file://{}", file.display()));
            let began = Instant::now();
            let output = node.try_run(&[&program, "-once", "-spread=false", "-derp-map", &url])?;
            let (took, said) = (began.elapsed(), text(&output));
            ensure!(output.status.success() && !said.contains("bad: "), "{}: {said}", output.status);
            let good: Vec<_> = said.lines().filter_map(|line| line.split("good: ").nth(1)).collect();
            ensure!(good.len() >= 5, "{said}");
            Ok(Found::new(took, good.join("; ")))
        });
    }
    list.item("stunc", || {
        let (program, node, began) = (STUNC.path()?, &homes.member(0).node, Instant::now());
        let output = node.try_run(&[&program, RELAY])?;
        ensure!(output.status.success() && text(&output).contains("203.0.113.18:"), "{output:?}");
        Ok(Found::since(began, text(&output)))
    });
    drop((served, homes));
    list.end()
}

/// Two stock clients on headscale whose relay is ours, one of them without UDP.
fn on_headscale() -> Result<()> {
    let mut list = List::new("headscale-stock")?;
    let mut homes = Homes::new(&[Nat::Easy, Nat::Easy])?;
    let server = Server::headscale(&mut homes)?;
    server.open_to(&mut homes)?;
    let key = server.key(Key { reusable: true, ..Key::default() })?;
    let clients: Vec<_> =
        homes.members.iter().map(|member| Client::new(&member.node, Kind::Stock)).collect::<Result<_>>()?;
    let [alice, bob] = clients.as_slice() else { unreachable!() };
    list.item("up with a key", || {
        let first = alice.up(server.url(), &["--auth-key", &key])?;
        let second = bob.up(server.url(), &["--auth-key", &key])?;
        Ok(Found::new(first.max(second), format!("alice {first:.2?}, bob {second:.2?}")))
    });
    list.item("first answer", || Ok(Found::new(alice.reach(&bob.address("-4")?)?, "alice to bob")));
    stock_pair(&mut list, alice, bob, &mut homes, "DERP(mesh)");
    drop((clients, server, homes));
    list.end()
}

/// What two stock clients must have of our relay, whoever tells them of it.
fn stock_pair(list: &mut List, alice: &Client, bob: &Client, homes: &mut Homes, relay: &str) {
    list.item("netcheck finds it by STUN", || {
        let began = Instant::now();
        let report: Value = serde_json::from_str(&alice.run(&["netcheck", "--format", "json"])?)?;
        ensure!(report["UDP"] == true && report["PreferredDERP"].as_u64().is_some_and(|id| id > 0), "{report}");
        Ok(Found::since(began, format!("UDP, {}, relay {}", report["GlobalV4"], report["PreferredDERP"])))
    });
    list.item("directly", || {
        let began = Instant::now();
        let answers = alice.ping_until(&bob.address("-4")?, "203.0.113.34:")?;
        Ok(Found::since(began, answers.join(", ")))
    });
    list.item("UDP blocked: ping and TCP over the relay", || {
        set_udp(homes, false)?;
        let (began, address) = (Instant::now(), bob.address("-4")?);
        let answers = alice.ping_until(&address, relay)?;
        alice.reach(&address)?;
        let took = began.elapsed();
        let rate = agents::transfer(&alice.node, &bob.node, &address, 1, false)?;
        Ok(Found::new(took, format!("{}; TCP {rate:.0} Mbit/s", answers.join(", "))))
    });
    list.item("netcheck without UDP", || {
        let began = Instant::now();
        let report: Value = serde_json::from_str(&bob.run(&["netcheck", "--format", "json"])?)?;
        ensure!(report["UDP"] == false && report["PreferredDERP"].as_u64().is_some_and(|id| id > 0), "{report}");
        Ok(Found::since(began, format!("UDP: false, relay {}", report["PreferredDERP"])))
    });
    if homes.relay.process.is_some() {
        list.item("relay killed and back", || {
            let address = bob.address("-4")?;
            let pings = Pings::start(&alice.node, &address)?;
            let began = unix_now();
            homes.relay.kill();
            pings.last_after(began)?;
            let began = unix_now();
            homes.relay.start()?;
            Ok(Found::new(pings.first_after(began)?, "from its start to the first answer"))
        });
    }
    list.item("UDP open again: directly", || {
        set_udp(homes, true)?;
        let began = Instant::now();
        let answers = alice.ping_until(&bob.address("-4")?, "203.0.113.34:")?;
        Ok(Found::since(began, answers.join(", ")))
    });
}

/// The server of the README for phones and laptops: https, with the relay inside on a port of its own.
fn by_readme() -> Result<()> {
    let mut list = List::new("readme")?;
    let mut homes = Homes::new(&[Nat::Easy, Nat::Easy])?;
    homes.relay.kill();
    let (node, address) = on_segment(&mut homes, 0)?;
    let (chain, key) = certificate(&node, &homes, &address)?;
    homes.members.iter().try_for_each(|member| trust(&member.node, &chain))?;
    let served = serve(&node, &chain, &key)?;
    let control = |words: &[&str]| -> Result<String> {
        let program = built("mesh-control")?.display().to_string();
        node.run(&[&[program.as_str()], words].concat())
    };
    let auth_key = control(&["keys", "create", "--user", "me", "--create-user", "--reusable"])?;
    let url = "https://control.lab";
    let clients: Vec<_> =
        homes.members.iter().map(|member| Client::new(&member.node, Kind::Stock)).collect::<Result<_>>()?;
    let [alice, bob] = clients.as_slice() else { unreachable!() };
    list.item("up with a key", || {
        let first = alice.up(url, &["--auth-key", auth_key.trim()])?;
        let second = bob.up(url, &["--auth-key", auth_key.trim()])?;
        Ok(Found::new(first.max(second), format!("alice {first:.2?}, bob {second:.2?}")))
    });
    list.item("first answer", || Ok(Found::new(alice.reach(&bob.address("-4")?)?, "alice to bob")));
    list.item("the relay is on 8443", || {
        let began = Instant::now();
        let map = alice.run(&["debug", "derp-map"])?;
        let map: Value = serde_json::from_str(&map)?;
        let regions = map["Regions"].as_object().context("no regions")?;
        let relay = regions.values().next().map(|region| region["Nodes"][0].clone()).unwrap_or_default();
        ensure!(relay["DERPPort"] == 8443 && relay["HostName"] == "control.lab", "{map}");
        Ok(Found::since(began, relay.to_string()))
    });
    stock_pair(&mut list, alice, bob, &mut homes, "DERP(");
    list.item("interactive sign-in by the page", || {
        bob.run(&["logout"])?;
        bob.wait_for_state("NeedsLogin")?;
        let (mut up, code) = bob.begin_sign_in(url)?;
        let began = Instant::now();
        control(&["nodes", "register", &code, "--user", "me"])?;
        ensure!(up.wait(PATIENCE)?.success(), "{}", up.output());
        let took = began.elapsed();
        alice.reach(&bob.address("-4")?)?;
        Ok(Found::new(took, "from `register` until `up` ended"))
    });
    drop((clients, served, homes));
    list.end()
}

fn serve(node: &Node, chain: &Path, key: &Path) -> Result<Process> {
    let program = built("mesh-control")?.display().to_string();
    let (chain, key, state) = (chain.display().to_string(), key.display().to_string(), node.path("state"));
    let state = state.display().to_string();
    let line = [&program, "serve", "--server-url", "https://control.lab", "--tls-cert", &chain, "--tls-key", &key];
    let more = ["--derp-listen", "0.0.0.0:8443", "--first-policy", "own", "--state-dir", &state];
    let process = node.spawn(&[&line[..], &more].concat())?;
    process.wait_for("ready", Duration::from_secs(60))?;
    Ok(process)
}
