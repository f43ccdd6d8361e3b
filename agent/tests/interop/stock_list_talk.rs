//! Items of a pair: what two nodes that are up have of each other, and what becomes of it when relay, control or a node
//! is away.

use std::{fs, time::Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    super::{
        agents,
        joined::{ALLOW, DENY, PATIENCE},
        lab::{text, until},
    },
    stock_list::{Found, set_udp},
    stock_list_nodes::{Kind, Pings, unix_now},
    stock_list_pair::Pair,
};

pub(crate) fn up_with_a_key(pair: &mut Pair) -> Result<Found> {
    let url = pair.server.url();
    let first = pair.alice.up(url, &["--auth-key", &pair.key])?;
    let second = pair.bob.up(url, &["--auth-key", &pair.key])?;
    let addresses = [pair.alice.address("-4")?, pair.bob.address("-4")?];
    Ok(Found::new(first.max(second), format!("alice {first:.2?}, bob {second:.2?}: {}", addresses.join(" and "))))
}

pub(crate) fn first_answer(pair: &mut Pair) -> Result<Found> {
    let address = pair.bob.address("-4")?;
    let known = pair.alice.peer(&address)?.unwrap_or_default()["Relay"].clone();
    let took = pair.alice.reach(&address)?;
    Ok(Found::new(took, format!("alice to {address}, whose relay she had as {known} when she began")))
}

pub(crate) fn ping_until_direct(pair: &mut Pair) -> Result<Found> {
    let (began, mut evidence) = (Instant::now(), Vec::new());
    for (from, to) in pair.both() {
        let answers = from.ping_until(&to.address("-4")?, "203.0.113.")?;
        evidence.push(format!("{}: {}", from.name(), answers.join(", ")));
    }
    Ok(Found::since(began, evidence.join("; ")))
}

pub(crate) fn relay_only(pair: &mut Pair) -> Result<Found> {
    let address = pair.ready()?;
    set_udp(&pair.homes, false)?;
    let blocked = pair.alice.ping_until(&address, "DERP(mesh)").and_then(|answers| {
        pair.alice.reach(&address)?;
        Ok(answers)
    });
    set_udp(&pair.homes, true)?;
    let (began, blocked) = (Instant::now(), blocked?);
    let answers = pair.alice.ping_until(&address, "203.0.113.34:")?;
    Ok(Found::since(began, format!("blocked: {}; open: {}", blocked.join(", "), answers.join(", "))))
}

pub(crate) fn inner_ping(pair: &mut Pair, kind: &str) -> Result<Found> {
    pair.ready()?;
    let (began, mut evidence) = (Instant::now(), Vec::new());
    for (from, to) in pair.both() {
        let said = from.run(&["ping", kind, "-c", "1", &to.address("-4")?])?;
        ensure!(said.starts_with(&format!("pong from {} (100.", to.name())), "{said}");
        evidence.push(said);
    }
    Ok(Found::since(began, evidence.join("; ")))
}

pub(crate) fn over_ipv6(pair: &mut Pair) -> Result<Found> {
    pair.ready()?;
    let began = Instant::now();
    let addresses = [pair.bob.address("-6")?, pair.alice.address("-6")?];
    pair.alice.reach(&addresses[0])?;
    pair.bob.reach(&addresses[1])?;
    Ok(Found::since(began, addresses.join(" and ")))
}

pub(crate) fn tcp(pair: &mut Pair) -> Result<Found> {
    let address = pair.ready()?;
    let began = Instant::now();
    let there = agents::transfer(&pair.alice.node, &pair.bob.node, &address, 1, false)?;
    let back = agents::transfer(&pair.alice.node, &pair.bob.node, &address, 1, true)?;
    ensure!(there > 0.0 && back > 0.0);
    Ok(Found::since(began, format!("{there:.0} Mbit/s there, {back:.0} back")))
}

pub(crate) fn status(pair: &mut Pair) -> Result<Found> {
    pair.ready()?;
    let (began, mut evidence) = (Instant::now(), Vec::new());
    for (from, to) in pair.both() {
        let address = to.address("-4")?;
        let is_good = |peer: Option<&Value>| {
            peer.is_some_and(|peer| {
                peer["Online"] == true
                    && peer["OS"] == "linux"
                    && peer["Relay"] == "mesh"
                    && peer["CurAddr"].as_str().is_some_and(|way| way.starts_with("203.0.113."))
            })
        };
        from.ping_until(&address, "203.0.113.")?;
        from.wait_for_peer(&address, is_good)?;
        let status = from.status()?;
        let own = &status["Self"];
        ensure!(own["OS"] == "linux" && own["Online"] == true && own["Relay"] == "mesh", "{own}");
        ensure!(status["MagicDNSSuffix"] == "lab.internal" && status["BackendState"] == "Running", "{status}");
        let text = from.run(&["status"])?;
        let line = text.lines().find(|line| line.contains(&address)).with_context(|| text.clone())?;
        ensure!(line.contains("active; direct 203.0.113."), "{text}");
        evidence.push(line.to_owned());
    }
    Ok(Found::since(began, evidence.join("; ")))
}

pub(crate) fn whois(pair: &mut Pair) -> Result<Found> {
    pair.ready()?;
    let (began, mut evidence) = (Instant::now(), Vec::new());
    for (from, to) in pair.both() {
        let who: Value = serde_json::from_str(&from.run(&["whois", "--json", &to.address("-4")?])?)?;
        let name = json!(format!("{}.lab.internal.", to.name()));
        ensure!(who["Node"]["Name"] == name, "{who}");
        let login = who["UserProfile"]["LoginName"].as_str().unwrap_or_default();
        ensure!(login.trim_end_matches('@') == "lab", "{who}");
        evidence.push(format!("{}: {name} of {login}", from.name()));
    }
    Ok(Found::since(began, evidence.join("; ")))
}

pub(crate) fn netcheck(pair: &mut Pair) -> Result<Found> {
    let (began, mut evidence) = (Instant::now(), Vec::new());
    for (client, _) in pair.both() {
        let report: Value = serde_json::from_str(&client.run(&["netcheck", "--format", "json"])?)?;
        ensure!(report["UDP"] == true && report["PreferredDERP"] == 900, "{report}");
        let address = report["GlobalV4"].as_str().unwrap_or_default();
        ensure!(address.starts_with("203.0.113."), "{report}");
        let latency = report["RegionLatency"]["900"].as_f64().unwrap_or_default() / 1e6;
        evidence.push(format!("{}: UDP, {address}, relay 900 in {latency:.1} ms", client.name()));
    }
    Ok(Found::since(began, evidence.join("; ")))
}

pub(crate) fn listed(pair: &mut Pair) -> Result<Found> {
    let (began, mut evidence) = (Instant::now(), Vec::new());
    for (client, _) in pair.both() {
        let address = client.address("-4")?;
        pair.server.wait_for_online(&address)?;
        let node = pair.server.listed(&address)?.context("not listed")?;
        ensure!(node.name == client.name(), "{node:?}");
        evidence.push(format!("{} {address} online", node.name));
    }
    Ok(Found::since(began, evidence.join("; ")))
}

pub(crate) fn magic_dns(pair: &mut Pair) -> Result<Found> {
    pair.ready()?;
    let (began, v4, v6) = (Instant::now(), pair.bob.address("-4")?, pair.bob.address("-6")?);
    // headscale does not have stock clients serve AAAA for peers; our server does.
    let v6 = if pair.server.own().is_ok() { v6.as_str() } else { "(no answers found)" };
    for (name, kind, wanted) in [
        ("bob.lab.internal", "A", v4.as_str()),
        ("bob.lab.internal", "AAAA", v6),
        ("nobody.lab.internal", "A", "RCodeNameError"),
    ] {
        let said = pair.alice.run(&["dns", "query", name, kind])?;
        ensure!(said.contains(wanted), "{name} {kind}: {said}");
    }
    Ok(Found::since(began, format!("A {v4}, AAAA {v6}, nobody: RCodeNameError")))
}

pub(crate) fn getent(pair: &mut Pair) -> Result<Found> {
    pair.ready()?;
    let (began, address) = (Instant::now(), pair.bob.address("-4")?);
    for name in ["bob", "bob.lab.internal"] {
        let said = pair.alice.node.run(&["getent", "ahosts", name])?;
        let has_v6 = said.contains(&pair.bob.address("-6")?);
        ensure!(said.contains(&address) && has_v6 == pair.server.own().is_ok(), "{said}");
    }
    let none = pair.alice.node.try_run(&["getent", "hosts", "nobody.lab.internal"])?;
    ensure!(none.status.code() == Some(2), "{none:?}");
    let said = pair.alice.node.run(&["getent", "ahosts", "bob"])?;
    Ok(Found::since(began, said.replace('\n', ", ")))
}

pub(crate) fn deny(pair: &mut Pair) -> Result<Found> {
    let address = pair.ready()?;
    let pings = Pings::start(&pair.alice.node, &address)?;
    let began = unix_now();
    pair.server.set_policy(DENY)?;
    let took = pings.last_after(began)?;
    let peer = pair.alice.wait_for_peer(&address, |peer| peer.is_none())?;
    for _ in 0..3 {
        ensure!(!pair.alice.echo(&address)?, "an answer through a policy that denies: {peer}");
    }
    Ok(Found::new(took, "from `policy set` to the last answer; bob is not in alice's status any more"))
}

pub(crate) fn explain(pair: &mut Pair) -> Result<Found> {
    let (began, control) = (Instant::now(), pair.server.own()?);
    control.set_policy(DENY)?;
    let refused = control.try_run(&["policy", "explain", "alice", "bob:22"])?;
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    control.set_policy(ALLOW)?;
    let allowed = control.run(&["policy", "explain", "alice", "bob:22"])?;
    ensure!(allowed.starts_with("allowed by acls entry 1 (line 1"), "{allowed}");
    control.set_policy(DENY)?;
    Ok(Found::since(began, format!("{} / {allowed}", text(&refused))))
}

pub(crate) fn allow(pair: &mut Pair) -> Result<Found> {
    let address = pair.bob.address("-4")?;
    let mut took = Vec::new();
    for _ in 0..3 {
        // Begun while it is allowed, so that the way is known; then denied, then allowed.
        pair.server.set_policy(ALLOW)?;
        pair.alice.reach(&address)?;
        let pings = Pings::start(&pair.alice.node, &address)?;
        let began = unix_now();
        pair.server.set_policy(DENY)?;
        pings.last_after(began)?;
        let began = unix_now();
        pair.server.set_policy(ALLOW)?;
        took.push(pings.first_after(began)?);
    }
    pair.bob.reach(&pair.alice.address("-4")?)?;
    let each = took.iter().map(|took| format!("{took:.2?}")).collect::<Vec<_>>().join(", ");
    took.sort();
    Ok(Found::new(took[1], format!("from `policy set` to the first answer, three times: {each}")))
}

pub(crate) fn bad_policy(pair: &mut Pair) -> Result<Found> {
    let address = pair.ready()?;
    let (began, control) = (Instant::now(), pair.server.own()?);
    let before = control.run(&["policy", "get"])?;
    let path = control.node.path("bad.hujson");
    fs::write(&path, r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*"]}]}"#)?;
    let output = control.try_run(&["policy", "set", &path.display().to_string()])?;
    let said = text(&output);
    ensure!(output.status.code() == Some(1) && said.starts_with("line 1, column "), "{output:?}");
    ensure!(control.run(&["policy", "get"])? == before && pair.alice.echo(&address)?, "something changed");
    Ok(Found::since(began, said))
}

pub(crate) fn relay_restarts(pair: &mut Pair) -> Result<Found> {
    let address = pair.ready()?;
    set_udp(&pair.homes, false)?;
    let outcome = pair.alice.ping_until(&address, "DERP(mesh)").and_then(|_| {
        let pings = Pings::start(&pair.alice.node, &address)?;
        let began = unix_now();
        pair.homes.relay.kill();
        pings.last_after(began)?;
        let began = unix_now();
        pair.homes.relay.start()?;
        pings.first_after(began)
    });
    set_udp(&pair.homes, true)?;
    let took = outcome?;
    pair.alice.ping_until(&address, "203.0.113.34:")?;
    Ok(Found::new(took, "with UDP blocked: from its start to the first answer"))
}

pub(crate) fn control_dies(pair: &mut Pair) -> Result<Found> {
    let address = pair.ready()?;
    pair.alice.ping_until(&address, "203.0.113.34:")?;
    let began = Instant::now();
    pair.server.kill();
    let said = pair.alice.node.run(&["ping", "-n", "-q", "-i", "0.05", "-c", "200", &address])?;
    ensure!(said.contains(" 0% packet loss"), "{said}");
    Ok(Found::since(began, said.lines().find(|line| line.contains("packet loss")).unwrap_or_default()))
}

pub(crate) fn control_returns(pair: &mut Pair) -> Result<Found> {
    let addresses = [pair.alice.address("-4")?, pair.bob.address("-4")?];
    let began = Instant::now();
    pair.server.start()?;
    for address in &addresses {
        pair.server.wait_for_online(address)?;
    }
    let took = began.elapsed();
    let pings = Pings::start(&pair.alice.node, &addresses[1])?;
    let now = unix_now();
    pair.server.set_policy(DENY)?;
    let denied = pings.last_after(now)?;
    pair.server.set_policy(ALLOW)?;
    pair.alice.reach(&addresses[1])?;
    Ok(Found::new(took, format!("both online; a policy that denies obeyed {denied:.2?} after it was set")))
}

pub(crate) fn reboot(pair: &mut Pair) -> Result<Found> {
    let address = pair.ready()?;
    pair.bob.kill();
    let began = Instant::now();
    pair.bob.start()?;
    pair.alice.reach(&address)?;
    Ok(Found::since(began, "from bob's start to alice's first answer"))
}

pub(crate) fn reboot_alone(pair: &mut Pair) -> Result<Found> {
    let address = pair.ready()?;
    pair.bob.wait_for_kept_map()?;
    pair.server.kill();
    pair.bob.kill();
    let began = Instant::now();
    let alone = pair.bob.start().and_then(|()| match pair.bob.kind {
        // It is up and talks.
        Kind::Ours => {
            pair.alice.reach(&address)?;
            let took = began.elapsed();
            pair.bob.reach(&pair.alice.address("-4")?)?;
            Ok((took, "alice's first answer, control away".to_owned()))
        }
        // It waits for control, and says so.
        Kind::Stock => {
            let said = until("it says that control is away", PATIENCE, || {
                let output = pair.bob.try_run(&["status"])?;
                Ok(Some(text(&output)).filter(|said| said.contains("connection refused")))
            })?;
            ensure!(!pair.alice.echo(&address)?, "stock answers without control?");
            Ok((began.elapsed(), format!("stock waits: {}", said.rsplit("# ").next().unwrap_or_default())))
        }
    });
    let back = Instant::now();
    pair.server.start()?;
    let (took, alone) = alone?;
    pair.alice.reach(&address)?;
    pair.server.wait_for_online(&address)?;
    let online = back.elapsed();
    match pair.bob.kind {
        Kind::Ours => Ok(Found::new(took, format!("{alone}; online {online:.2?} after control is back"))),
        Kind::Stock => Ok(Found::new(online, format!("from control's start until it is online; {alone}"))),
    }
}
