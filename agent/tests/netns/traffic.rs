//! Packets between two agents.

use anyhow::{Result, ensure};

use super::{
    agents::{A, Agent, B, StaticFile, reach, reach_all, transfer, two_files, two_hosts},
    lab::{Keys, Lab},
};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("two_agents_reach_each_other_both_ways", two_agents_reach_each_other_both_ways),
    (
        "an_agent_behind_a_masquerading_router_is_answered_there",
        an_agent_behind_a_masquerading_router_is_answered_there,
    ),
    ("an_ipv6_underlay_carries_both_overlay_families", an_ipv6_underlay_carries_both_overlay_families),
    ("a_default_route_goes_through_the_tunnel_and_the_tunnel_does_not", a_default_route_goes_through_the_tunnel),
    ("an_agent_that_moves_is_answered_at_its_new_address", an_agent_that_moves_is_answered_at_its_new_address),
    ("a_path_smaller_than_the_tunnel_gets_fragments", a_path_smaller_than_the_tunnel_gets_fragments),
    ("tcp_flows_both_ways_for_ten_seconds", tcp_flows_both_ways_for_ten_seconds),
    ("tcp_survives_one_percent_of_random_drops", tcp_survives_one_percent_of_random_drops),
];

fn two_agents_reach_each_other_both_ways() -> Result<()> {
    let (_lab, a, b) = two_hosts()?;
    let (file_a, file_b) = two_files("192.0.2.2:51820", &[])?;
    let (agent_a, agent_b) = (Agent::start(&a, &file_a)?, Agent::start(&b, &file_b)?);
    for (from, to) in [(&a, B), (&b, A)] {
        for address in to {
            reach_all(from, address, 20)?;
        }
    }
    for (agent, other) in [(&agent_a, "192.0.2.2:51820"), (&agent_b, "192.0.2.1:51820")] {
        let peer = agent.only_peer()?;
        ensure!(peer["LastHandshake"].is_string() && peer["Online"] == true && peer["Active"] == true, "{peer}");
        ensure!(peer["CurAddr"] == other, "{peer}");
        ensure!(peer["RxBytes"].as_u64() > Some(1000) && peer["TxBytes"].as_u64() > Some(1000), "{peer}");
    }
    let pong = agent_a.mesh(&["ping", "-c", "1", B[0]])?;
    ensure!(pong.starts_with("pong from [") && pong.contains("(10.7.0.2) via 192.0.2.2:51820 in "), "{pong}");
    let key = agent_a.only_peer()?["PublicKey"].as_str().unwrap_or_default().to_owned();
    agent_a.mesh(&["ping", "-c", "1", &key])?;
    agent_b.mesh(&["ping", "-c", "1", A[1]])?;
    ensure!(agent_a.mesh(&["ip", "-4"])?.trim() == A[0]);
    ensure!(agent_a.mesh(&["ip", "-6", B[0]])?.trim() == B[1]);
    let text = agent_a.mesh(&["status"])?;
    ensure!(text.contains("active; direct 192.0.2.2:51820, tx "), "{text}");
    ensure!(agent_a.mesh(&["debug", "paths", B[0]])?.contains("\"CurAddr\": \"192.0.2.2:51820\""));
    ensure!(agent_a.metric("mesh_tun_read_packets_total")? >= 40);
    Ok(())
}

fn an_agent_behind_a_masquerading_router_is_answered_there() -> Result<()> {
    let mut lab = Lab::new()?;
    let (a, router, b) = (lab.node("a")?, lab.node("router")?, lab.node("b")?);
    lab.cable((&a, "eth0", &["192.168.1.2/24"]), (&router, "lan", &["192.168.1.1/24"]))?;
    lab.cable((&router, "wan", &["192.0.2.1/24"]), (&b, "eth0", &["192.0.2.2/24"]))?;
    a.route("default via 192.168.1.1")?;
    router.masquerade("wan")?;
    let (file_a, file_b) = two_files("192.0.2.2:51820", &["PersistentKeepalive = 5"])?;
    let (_agent_a, agent_b) = (Agent::start(&a, &file_a)?, Agent::start(&b, &file_b)?);
    // The keepalive alone tells b where a is.
    reach_all(&b, A[0], 20)?;
    reach_all(&a, B[1], 20)?;
    let peer = agent_b.only_peer()?;
    ensure!(peer["CurAddr"].as_str().is_some_and(|address| address.starts_with("192.0.2.1:")), "{peer}");
    Ok(())
}

fn an_ipv6_underlay_carries_both_overlay_families() -> Result<()> {
    let (_lab, a, b) = two_hosts()?;
    let (file_a, file_b) = two_files("[2001:db8::2]:51820", &[])?;
    let (agent_a, _agent_b) = (Agent::start(&a, &file_a)?, Agent::start(&b, &file_b)?);
    for address in B {
        reach_all(&a, address, 20)?;
    }
    ensure!(agent_a.only_peer()?["CurAddr"] == "[2001:db8::2]:51820");
    ensure!(transfer(&a, &b, B[1], 2, false)? > 0.0);
    Ok(())
}

fn a_default_route_goes_through_the_tunnel() -> Result<()> {
    let mut lab = Lab::new()?;
    let (a, b, far) = (lab.node("a")?, lab.node("b")?, lab.node("far")?);
    lab.cable((&a, "eth0", &["192.0.2.1/24"]), (&b, "eth0", &["192.0.2.2/24"]))?;
    lab.cable((&b, "eth1", &["198.51.100.1/24"]), (&far, "eth0", &["198.51.100.2/24"]))?;
    far.route("default via 198.51.100.1")?;
    b.masquerade("eth1")?;
    let (keys_a, keys_b) = (Keys::new()?, Keys::new()?);
    let file_a = StaticFile::new(&keys_a, &["Address = 10.7.0.1/32"])
        .peer(&keys_b, &["AllowedIPs = 0.0.0.0/0", "Endpoint = 192.0.2.2:51820"]);
    let file_b = StaticFile::new(&keys_b, &["Address = 10.7.0.2/32", "ListenPort = 51820"])
        .peer(&keys_a, &["AllowedIPs = 10.7.0.1/32"]);
    let (agent_a, _agent_b) = (Agent::start(&a, &file_a)?, Agent::start(&b, &file_b)?);
    reach_all(&a, "198.51.100.2", 20)?;
    let route = a.run(&["ip", "route", "get", "198.51.100.2"])?;
    ensure!(route.contains("dev mesh0") && route.contains("table 52"), "{route}");
    let own = a.run(&["ip", "route", "get", "192.0.2.2", "mark", "0x80000"])?;
    ensure!(own.contains("dev eth0"), "{own}");
    agent_a.stop()?;
    ensure!(a.run(&["ip", "route", "show", "table", "all"])?.lines().all(|line| !line.contains("table 52")));
    Ok(())
}

fn an_agent_that_moves_is_answered_at_its_new_address() -> Result<()> {
    let (_lab, a, b) = two_hosts()?;
    let (file_a, file_b) = two_files("192.0.2.2:51820", &[])?;
    let (_agent_a, agent_b) = (Agent::start(&a, &file_a)?, Agent::start(&b, &file_b)?);
    reach(&a, B[0])?;
    ensure!(agent_b.only_peer()?["CurAddr"] == "192.0.2.1:51820");
    // In this order: with the first address the kernel takes all others of its network away.
    a.run(&["ip", "addr", "del", "192.0.2.1/24", "dev", "eth0"])?;
    a.run(&["ip", "addr", "add", "192.0.2.7/24", "dev", "eth0"])?;
    reach(&a, B[0])?;
    reach_all(&b, A[0], 5)?;
    ensure!(agent_b.only_peer()?["CurAddr"] == "192.0.2.7:51820", "{}", agent_b.only_peer()?);
    Ok(())
}

fn a_path_smaller_than_the_tunnel_gets_fragments() -> Result<()> {
    let (_lab, a, b) = two_hosts()?;
    for node in [&a, &b] {
        node.run(&["ip", "link", "set", "eth0", "mtu", "1300"])?;
    }
    let (file_a, file_b) = two_files("192.0.2.2:51820", &[])?;
    let (agent_a, _agent_b) = (Agent::start(&a, &file_a)?, Agent::start(&b, &file_b)?);
    reach(&a, B[0])?;
    a.run(&["ping", "-n", "-q", "-c", "3", "-i", "0.1", "-W", "2", "-M", "do", "-s", "1392", B[0]])?;
    ensure!(transfer(&a, &b, B[0], 2, false)? > 0.0);
    // A train of segments that do not fit is refused by the kernel once, and the path remembered.
    ensure!(agent_a.metric("mesh_udp_fallbacks_total")? == 1);
    Ok(())
}

fn tcp_flows_both_ways_for_ten_seconds() -> Result<()> {
    let (_lab, a, b) = two_hosts()?;
    let (file_a, file_b) = two_files("192.0.2.2:51820", &[])?;
    let (agent_a, agent_b) = (Agent::start(&a, &file_a)?, Agent::start(&b, &file_b)?);
    reach(&a, B[0])?;
    for reverse in [false, true] {
        ensure!(transfer(&a, &b, B[0], 10, reverse)? > 0.0);
    }
    for agent in [&agent_a, &agent_b] {
        for reason in ["forged", "replayed", "unknown_session", "source_not_allowed"] {
            let name = format!("mesh_dropped_packets_total{{reason=\"{reason}\"}}");
            ensure!(agent.metric(&name)? == 0, "{name} {}", agent.metric(&name)?);
        }
        // Trains are what makes it fast.
        ensure!(agent.metric("mesh_udp_sends_total")? < agent.metric("mesh_udp_datagrams_total")?);
    }
    Ok(())
}

fn tcp_survives_one_percent_of_random_drops() -> Result<()> {
    let (_lab, a, b) = two_hosts()?;
    let (file_a, file_b) = two_files("192.0.2.2:51820", &[])?;
    let (_agent_a, agent_b) = (Agent::start(&a, &file_a)?, Agent::start(&b, &file_b)?);
    reach(&a, B[0])?;
    let rules = "table inet loss {\nchain in {\ntype filter hook input priority 0\n\
                 udp dport 51820 numgen random mod 100 < 1 counter drop\n}\n}\n";
    a.nft(rules)?;
    b.nft(rules)?;
    for reverse in [false, true] {
        ensure!(transfer(&a, &b, B[0], 4, reverse)? > 0.0);
    }
    let counted = b.run(&["nft", "list", "table", "inet", "loss"])?;
    ensure!(!counted.contains("packets 0 "), "nothing was dropped: {counted}");
    reach(&b, A[0])?;
    ensure!(agent_b.only_peer()?["Online"] == true);
    Ok(())
}
