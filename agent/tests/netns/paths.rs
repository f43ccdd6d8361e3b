//! Agents that know each other only by key: over the relay first, then directly where the routers let them.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    agents::transfer,
    homes::{Homes, Nat, Way, overlay},
    lab::until,
};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("easy_easy_goes_direct", easy_easy_goes_direct),
    ("easy_hard_stays_on_the_relay", easy_hard_stays_on_the_relay),
    ("hard_hard_stays_on_the_relay", hard_hard_stays_on_the_relay),
    ("cone_hard_goes_direct", cone_hard_goes_direct),
    ("udp_blocked_goes_over_tcp", udp_blocked_goes_over_tcp),
    ("relay_restarted_is_used_again", relay_restarted_is_used_again),
    ("relay_black_holed_under_traffic_is_left", relay_black_holed_under_traffic_is_left),
    ("roaming_under_a_transfer", roaming_under_a_transfer),
    ("router_reboot_with_a_new_address", router_reboot_with_a_new_address),
    ("ipv6_direct_while_ipv4_is_blocked", ipv6_direct_while_ipv4_is_blocked),
    ("two_agents_behind_one_nat", two_agents_behind_one_nat),
    ("another_certificate_under_the_same_name_is_refused", another_certificate_is_refused),
];

/// Far beyond what any of it takes; no test measures time against it.
const LONG: Duration = Duration::from_secs(20);

fn easy_easy_goes_direct() -> Result<()> {
    let homes = started(&[Nat::Easy, Nat::Easy])?;
    let (alice, bob) = (homes.member(0), homes.member(1));
    let (way, _) = first_ping(&homes)?;
    ensure!(way == Way::Relay, "the first pong came {way:?}");
    direct(&homes, 0, 1, "203.0.113.34:41641")?;
    direct(&homes, 1, 0, "203.0.113.18:41641")?;
    alice.reach(1, LONG)?;
    let text = alice.mesh(&["ping", "-c", "3", "bob"])?;
    ensure!(text.contains("pong from bob (100.64.0.2) via 203.0.113.34:41641 in "), "{text}");
    let text = alice.mesh(&["debug", "paths", "bob"])?;
    ensure!(text.contains("\"Verdict\": \"in use\"") && text.contains("never answered a ping"), "{text}");
    let text = bob.mesh(&["status"])?;
    ensure!(text.contains("alice") && text.contains("direct 203.0.113.18:41641"), "{text}");
    let report: serde_json::Value = serde_json::from_str(&alice.mesh(&["netcheck", "--format", "json"])?)?;
    ensure!(report["UDP"] == true && report["PreferredDERP"] == 900, "{report}");
    ensure!(report["GlobalV4"] == "203.0.113.18:41641" && report["RegionLatency"]["900"].is_u64(), "{report}");
    Ok(())
}

fn easy_hard_stays_on_the_relay() -> Result<()> {
    stays_on_the_relay(&[Nat::Easy, Nat::Hard])
}

fn hard_hard_stays_on_the_relay() -> Result<()> {
    stays_on_the_relay(&[Nat::Hard, Nat::Hard])
}

fn cone_hard_goes_direct() -> Result<()> {
    let homes = started(&[Nat::Cone, Nat::Hard])?;
    homes.member(0).reach(1, LONG)?;
    // Where the hard side comes from is not known beforehand.
    for (from, to) in [(0, 1), (1, 0)] {
        until("direct", LONG, || Ok(matches!(homes.member(from).way(to)?, Way::Direct(_)).then_some(())))?;
    }
    Ok(())
}

fn udp_blocked_goes_over_tcp() -> Result<()> {
    let homes = started(&[Nat::UdpBlocked, Nat::Easy])?;
    homes.member(0).reach(1, LONG)?;
    homes.member(1).reach(0, LONG)?;
    ensure!(homes.member(0).way(1)? == Way::Relay && homes.member(1).way(0)? == Way::Relay);
    let report: serde_json::Value = serde_json::from_str(&homes.member(0).mesh(&["netcheck", "--format", "json"])?)?;
    ensure!(report["UDP"] == false && report["PreferredDERP"] == 900, "a home without UDP: {report}");
    let mbit = transfer(&homes.member(0).node, &homes.member(1).node, &overlay(1), 2, false)?;
    ensure!(mbit > 1.0, "{mbit} Mbit/s over the relay");
    Ok(())
}

fn relay_restarted_is_used_again() -> Result<()> {
    let mut homes = started(&[Nat::Hard, Nat::Hard])?;
    homes.member(0).reach(1, LONG)?;
    homes.relay.kill();
    until("nothing gets through", LONG, || Ok(homes.member(0).ping(1)?.is_none().then_some(())))?;
    homes.relay.start()?;
    homes.member(0).reach(1, LONG)?;
    homes.member(1).reach(0, LONG)?;
    Ok(())
}

/// Nothing resets the connections: only pings show that the relay is gone. Both ends are connected to it anew once it
/// answers again.
fn relay_black_holed_under_traffic_is_left() -> Result<()> {
    let homes = started(&[Nat::Hard, Nat::Hard])?;
    let (alice, bob) = (homes.member(0), homes.member(1));
    alice.reach(1, LONG)?;
    homes.segment.nft(BLACK_HOLE)?;
    let failed = || -> Result<bool> {
        let _lost = alice.ping(1)?;
        let status = alice.mesh(&["status", "--json"])?;
        Ok(status.contains("relay mesh: "))
    };
    until("the connection is given up", LONG, || Ok(failed()?.then_some(())))?;
    homes.segment.run(&["nft", "delete", "table", "inet", "hole"])?;
    alice.reach(1, LONG)?;
    bob.reach(0, LONG)?;
    Ok(())
}

const BLACK_HOLE: &str = "table inet hole {\nchain forward {\n\
     type filter hook forward priority -5\nip daddr 203.0.113.10 drop\nip saddr 203.0.113.10 drop\n}\n}\n";

fn roaming_under_a_transfer() -> Result<()> {
    let mut homes = Homes::new(&[Nat::Easy, Nat::Easy])?;
    let cafe = homes.router(Nat::Easy)?;
    // A second way out of alice's host, unused as yet.
    let alice = homes.member(0).node.clone();
    homes.lab.cable((&cafe, "lan", &["192.168.9.1/24"]), (&alice, "eth1", &["192.168.9.2/24"]))?;
    alice.run(&["ip", "link", "set", "eth1", "down"])?;
    homes.start()?;
    settle(&homes)?;
    homes.member(0).reach(1, LONG)?;
    direct(&homes, 1, 0, "203.0.113.18:41641")?;

    let bob = homes.member(1).node.clone();
    let moving = thread::spawn({
        let alice = alice.clone();
        move || -> Result<()> {
            thread::sleep(Duration::from_secs(1));
            alice.run(&["ip", "link", "set", "eth0", "down"])?;
            alice.run(&["ip", "link", "set", "eth1", "up"])?;
            alice.route("default via 192.168.9.1")
        }
    });
    let mbit = transfer(&alice, &bob, &overlay(1), 5, false)?;
    moving.join().ok().context("the move panicked")??;
    ensure!(mbit > 1.0, "{mbit} Mbit/s");
    direct(&homes, 1, 0, "203.0.113.50:41641")
}

fn router_reboot_with_a_new_address() -> Result<()> {
    let homes = started(&[Nat::Easy, Nat::Easy])?;
    homes.member(0).reach(1, LONG)?;
    direct(&homes, 1, 0, "203.0.113.18:41641")?;
    let (segment, router) = (&homes.segment, &homes.routers[0]);
    for (node, words) in [
        (router, "addr del 203.0.113.18/30 dev wan"),
        (segment, "addr del 203.0.113.17/30 dev home1"),
        (segment, "addr add 203.0.113.21/30 dev home1"),
        (router, "addr add 203.0.113.22/30 dev wan"),
        (router, "route add default via 203.0.113.21"),
    ] {
        let mut line = vec!["ip"];
        line.extend(words.split(' '));
        node.run(&line)?;
    }
    router.run(&["conntrack", "-F"])?;
    homes.member(0).reach(1, LONG)?;
    homes.member(1).reach(0, LONG)?;
    direct(&homes, 1, 0, "203.0.113.22:41641")
}

fn ipv6_direct_while_ipv4_is_blocked() -> Result<()> {
    let mut homes = Homes::new(&[Nat::Hard, Nat::Hard])?;
    for place in 0..2 {
        let (lan, inside) = (format!("lan{place}"), format!("2001:db8:a{place}::2"));
        let (router, host) = (&homes.routers[place], &homes.member(place).node);
        router.run(&["ip", "addr", "add", &format!("2001:db8:a{place}::1/64"), "dev", &lan, "nodad"])?;
        router.run(&["ip", "addr", "add", "fe80::1/64", "dev", &lan, "nodad"])?;
        router.route(&format!("::/0 via 2001:db8:{}::1", place + 1))?;
        host.run(&["ip", "addr", "add", &format!("{inside}/64"), "dev", "eth0", "nodad"])?;
        host.route(&format!("::/0 via 2001:db8:a{place}::1"))?;
        homes.segment.route(&format!("2001:db8:a{place}::/64 via 2001:db8:{}::2", place + 1))?;
        // As routers do: what is asked for from inside is answered.
        router.nft(
            "table ip6 guard6 {\nchain forward {\ntype filter hook forward priority filter\n\
             iifname \"wan\" meta l4proto { tcp, udp } ct state new drop\n}\n}\n",
        )?;
        router.nft("table ip blocked {\nchain forward {\ntype filter hook forward priority filter\nmeta l4proto udp drop\n}\n}\n")?;
    }
    homes.start()?;
    settle(&homes)?;
    homes.member(0).reach(1, LONG)?;
    direct(&homes, 0, 1, "[2001:db8:a1::2]:41641")?;
    direct(&homes, 1, 0, "[2001:db8:a0::2]:41641")
}

fn two_agents_behind_one_nat() -> Result<()> {
    let mut homes = Homes::new(&[Nat::Easy])?;
    let router = homes.routers[0].clone();
    homes.host(&router)?;
    homes.start()?;
    settle(&homes)?;
    homes.member(0).reach(1, LONG)?;
    direct(&homes, 0, 1, "192.168.1.3:41641")?;
    direct(&homes, 1, 0, "192.168.1.2:41641")
}

fn another_certificate_is_refused() -> Result<()> {
    let mut homes = started(&[Nat::Hard, Nat::Hard])?;
    homes.member(0).reach(1, LONG)?;
    homes.relay.kill();
    homes.relay.forget()?;
    homes.relay.start()?;
    let refused = || -> Result<bool> {
        let status = homes.member(0).mesh(&["status", "--json"])?;
        Ok(status.contains("relay mesh: ") && status.contains("does not match"))
    };
    until("the certificate is refused and that is said", LONG, || Ok(refused()?.then_some(())))?;
    let text = homes.member(0).mesh(&["status"])?;
    ensure!(text.contains("does not match"), "{text}");
    ensure!(homes.member(0).ping(1)?.is_none(), "nothing goes over a relay that is not the one of the map");
    Ok(())
}

fn stays_on_the_relay(nats: &[Nat]) -> Result<()> {
    let homes = started(nats)?;
    homes.member(0).reach(1, LONG)?;
    homes.member(1).reach(0, LONG)?;
    // Long enough for several rounds of pings.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(6) {
        for (from, to) in [(0, 1), (1, 0)] {
            let way = homes.member(from).ping(to)?.context("no pong")?.0;
            ensure!(way == Way::Relay, "{way:?}");
        }
        // A peer answers a good thirty pings a second.
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Agents that run, have their maps, and are connected to the relay.
fn started(nats: &[Nat]) -> Result<Homes> {
    let mut homes = Homes::new(nats)?;
    homes.start()?;
    settle(&homes)?;
    Ok(homes)
}

fn settle(homes: &Homes) -> Result<()> {
    homes.members.iter().try_for_each(|member| member.wait_for_relay(LONG))
}

fn first_ping(homes: &Homes) -> Result<(Way, f64)> {
    until("a pong", LONG, || homes.member(0).ping(1))
}

/// Waits until one sends directly to the other, at that address.
fn direct(homes: &Homes, from: usize, to: usize, address: &str) -> Result<()> {
    let wanted = Way::Direct(address.to_owned());
    let mut last = None;
    until(&format!("{from} to {to} direct at {address}"), LONG, || {
        let _kept_in_use = homes.member(from).ping(to)?;
        let way = homes.member(from).way(to)?;
        let is_there = way == wanted;
        last = Some(way);
        Ok(is_there.then_some(()))
    })
    .with_context(|| {
        format!(
            "last seen: {last:?}; {}",
            homes.member(from).mesh(&["debug", "paths", &overlay(to)]).unwrap_or_default()
        )
    })
}
