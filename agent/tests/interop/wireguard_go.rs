//! wireguard-go as the distribution has it, on the other end of the cable.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    agents::{A, Agent, B, StaticFile, reach, reach_all, transfer, two_files, two_hosts},
    lab::{Keys, Node, Process, until},
};

pub(crate) const TESTS: &[Test] = &[
    // First, because it takes longest.
    ("both_ends_renew_their_sessions_after_two_minutes", both_ends_renew_their_sessions_after_two_minutes),
    ("we_call_wireguard_go", we_call_wireguard_go),
    ("wireguard_go_calls_us", wireguard_go_calls_us),
    ("a_preshared_key_is_used_by_both", a_preshared_key_is_used_by_both),
    ("wireguard_go_moves_and_is_answered_where_it_is", wireguard_go_moves_and_is_answered_where_it_is),
    ("both_keep_a_silent_tunnel_alive", both_keep_a_silent_tunnel_alive),
    ("tcp_flows_both_ways_for_ten_seconds", tcp_flows_both_ways_for_ten_seconds),
    ("tcp_survives_one_percent_of_random_drops", tcp_survives_one_percent_of_random_drops),
];

/// A running wireguard-go with its device `wg0`.
struct WireguardGo {
    node: Node,
    process: Process,
}

impl WireguardGo {
    /// Starts it with a file of ours and the addresses in it.
    fn start(node: &Node, file: &StaticFile, addresses: [&str; 2], peer: [&str; 2]) -> Result<Self> {
        node.run(&["mkdir", "-p", "/run/wireguard"])?;
        let process = node.spawn(&["wireguard-go", "--foreground", "wg0"])?;
        let is_there = || Ok(node.try_run(&["wg", "show", "wg0"])?.status.success().then_some(()));
        until("wireguard-go starts", Duration::from_secs(10), is_there)?;
        let go = Self { node: node.clone(), process };
        let output = go.node.run_with_input(&["wg", "setconf", "wg0", "/dev/stdin"], &file.for_wg())?;
        ensure!(output.status.success(), "wg setconf: {output:?}");
        for address in addresses {
            node.run(&["ip", "addr", "add", address, "dev", "wg0"])?;
        }
        node.run(&["ip", "link", "set", "wg0", "mtu", "1420", "up"])?;
        for address in peer {
            node.run(&["ip", "route", "add", address, "dev", "wg0"])?;
        }
        Ok(go)
    }

    /// A number that `wg show` says about the only peer: field `index` after the key.
    fn number(&self, what: &str, index: usize) -> Result<u64> {
        let text = self.node.run(&["wg", "show", "wg0", what])?;
        let field = text.split_whitespace().nth(index + 1).with_context(|| format!("{what}: {text}"))?;
        Ok(field.parse()?)
    }

    fn received_bytes(&self) -> Result<u64> {
        self.number("transfer", 0)
    }

    fn last_handshake(&self) -> Result<u64> {
        self.number("latest-handshakes", 0)
    }
}

/// Ours at 192.0.2.1 with the addresses A, theirs at 192.0.2.2 with B; ours knows where theirs is.
fn pair(more: &[&str]) -> Result<(crate::lab::Lab, Agent, WireguardGo)> {
    let (lab, a, b) = two_hosts()?;
    let (file_a, file_b) = two_files("192.0.2.2:51820", more)?;
    let theirs = WireguardGo::start(&b, &file_b, B, A)?;
    let ours = Agent::start(&a, &file_a)?;
    Ok((lab, ours, theirs))
}

/// The same with the roles exchanged: theirs at 192.0.2.1 knows where ours is.
fn pair_called(more: &[&str]) -> Result<(crate::lab::Lab, Agent, WireguardGo)> {
    let (lab, a, b) = two_hosts()?;
    let (file_a, file_b) = two_files("192.0.2.2:51820", more)?;
    let ours = Agent::start(&b, &file_b)?;
    let theirs = WireguardGo::start(&a, &file_a, A, B)?;
    Ok((lab, ours, theirs))
}

fn we_call_wireguard_go() -> Result<()> {
    let (_lab, ours, theirs) = pair(&[])?;
    for address in B {
        reach_all(&ours.node, address, 50)?;
    }
    reach_all(&theirs.node, A[0], 50)?;
    let pong = ours.mesh(&["ping", "-c", "1", B[1]])?;
    ensure!(pong.contains("via 192.0.2.2:51820"), "{pong}");
    ensure!(theirs.last_handshake()? > 0);
    Ok(())
}

fn wireguard_go_calls_us() -> Result<()> {
    let (_lab, ours, theirs) = pair_called(&[])?;
    for address in B {
        reach_all(&theirs.node, address, 50)?;
    }
    reach_all(&ours.node, A[1], 50)?;
    ensure!(ours.only_peer()?["CurAddr"] == "192.0.2.1:51820");
    Ok(())
}

fn a_preshared_key_is_used_by_both() -> Result<()> {
    let (_lab, a, b) = two_hosts()?;
    let (keys_a, keys_b, secret) = (Keys::new()?, Keys::new()?, Keys::new()?);
    let line = format!("PresharedKey = {}", secret.private);
    let file_a = StaticFile::new(&keys_a, &["Address = 10.7.0.1/32", "ListenPort = 51820"])
        .peer(&keys_b, &["AllowedIPs = 10.7.0.2/32", "Endpoint = 192.0.2.2:51820", &line]);
    let with = StaticFile::new(&keys_b, &["ListenPort = 51820"]).peer(&keys_a, &["AllowedIPs = 10.7.0.1/32", &line]);
    let without = StaticFile::new(&keys_b, &["ListenPort = 51820"]).peer(&keys_a, &["AllowedIPs = 10.7.0.1/32"]);
    let ours = Agent::start(&a, &file_a)?;
    let theirs = WireguardGo::start(&b, &without, B, A)?;
    ensure!(reach(&a, B[0]).is_err(), "reached without the preshared key");
    let output = b.run_with_input(&["wg", "setconf", "wg0", "/dev/stdin"], with.text())?;
    ensure!(output.status.success(), "{output:?}");
    reach_all(&a, B[0], 20)?;
    drop((ours, theirs));
    Ok(())
}

fn wireguard_go_moves_and_is_answered_where_it_is() -> Result<()> {
    let (_lab, ours, theirs) = pair(&[])?;
    reach(&ours.node, B[0])?;
    // In this order: with the first address the kernel takes all others of its network away.
    theirs.node.run(&["ip", "addr", "del", "192.0.2.2/24", "dev", "eth0"])?;
    theirs.node.run(&["ip", "addr", "add", "192.0.2.9/24", "dev", "eth0"])?;
    // It clings to the address it sent from before, which is gone, until it binds anew; so its port changes as well.
    theirs.node.run(&["wg", "set", "wg0", "listen-port", "51999"])?;
    // It speaks first from its new address; from then on it is answered there.
    reach(&theirs.node, A[0])?;
    reach_all(&ours.node, B[0], 20)?;
    let peer = ours.only_peer()?;
    ensure!(peer["CurAddr"] == "192.0.2.9:51999", "{peer}");
    Ok(())
}

fn both_keep_a_silent_tunnel_alive() -> Result<()> {
    let (_lab, ours, theirs) = pair(&["PersistentKeepalive = 1"])?;
    // Nothing was sent through it: the keepalive alone calls.
    until("a handshake", Duration::from_secs(10), || Ok((theirs.last_handshake()? > 0).then_some(())))?;
    let before = theirs.received_bytes()?;
    until("keepalives of ours", Duration::from_secs(10), || {
        Ok((theirs.received_bytes()? >= before + 64).then_some(()))
    })?;

    let (_lab, ours_called, _theirs) = pair_called(&["PersistentKeepalive = 1"])?;
    let received = || anyhow::Ok(ours_called.only_peer()?["RxBytes"].as_u64().unwrap_or(0));
    until("a handshake", Duration::from_secs(10), || Ok((received()? > 0).then_some(())))?;
    let before = received()?;
    until("keepalives of theirs", Duration::from_secs(10), || Ok((received()? >= before + 64).then_some(())))?;
    ensure!(ours.only_peer()?["Online"] == true);
    Ok(())
}

fn both_ends_renew_their_sessions_after_two_minutes() -> Result<()> {
    // Whoever opened a session renews it: in the first tunnel that is us, in the second it is them.
    let (_lab, called_by_us, theirs) = pair(&[])?;
    let (_lab_2, ours, calling_us) = pair_called(&[])?;
    reach(&called_by_us.node, B[0])?;
    reach(&calling_us.node, B[0])?;
    let handshakes = || -> Result<[u64; 2]> { Ok([theirs.last_handshake()?, calling_us.last_handshake()?]) };
    let own = |agent: &Agent| -> Result<String> { Ok(agent.only_peer()?["LastHandshake"].to_string()) };
    let (first, first_own) = (handshakes()?, [own(&called_by_us)?, own(&ours)?]);
    let start = Instant::now();
    let pings = ["-n", "-q", "-c", "650", "-i", "0.2", "-W", "5"];
    let lines = [&called_by_us.node, &calling_us.node].map(|node| {
        let mut line = vec!["ping"];
        line.extend(pings);
        line.push(B[0]);
        node.spawn(&line)
    });
    for ping in lines {
        let mut ping = ping?;
        let status = ping.wait(Duration::from_secs(150))?;
        ensure!(status.success() && ping.output().contains(" 0% packet loss"), "{}", ping.output());
    }
    ensure!(start.elapsed() >= Duration::from_secs(129));
    for (before, after) in first.iter().zip(handshakes()?) {
        let between = after.saturating_sub(*before);
        ensure!((115..=130).contains(&between), "renewed after {between} s");
    }
    for (before, agent) in first_own.iter().zip([&called_by_us, &ours]) {
        ensure!(*before != own(agent)?, "we did not notice the new session");
    }
    Ok(())
}

fn tcp_flows_both_ways_for_ten_seconds() -> Result<()> {
    let (_lab, ours, theirs) = pair(&[])?;
    reach(&ours.node, B[0])?;
    for reverse in [false, true] {
        ensure!(transfer(&ours.node, &theirs.node, B[0], 10, reverse)? > 0.0);
    }
    Ok(())
}

fn tcp_survives_one_percent_of_random_drops() -> Result<()> {
    let (_lab, ours, theirs) = pair(&[])?;
    reach(&ours.node, B[0])?;
    let rules = "table inet loss {\nchain in {\ntype filter hook input priority 0\n\
                 udp dport 51820 numgen random mod 100 < 1 counter drop\n}\n}\n";
    for node in [&ours.node, &theirs.node] {
        node.nft(rules)?;
    }
    for reverse in [false, true] {
        ensure!(transfer(&ours.node, &theirs.node, B[0], 4, reverse)? > 0.0);
    }
    // The tunnel itself took no harm.
    thread::sleep(Duration::from_millis(200));
    reach(&ours.node, B[0])?;
    reach(&theirs.node, A[0])?;
    ensure!(theirs.process.output().lines().count() < 1000);
    Ok(())
}
