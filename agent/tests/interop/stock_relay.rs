//! Agents of ours with the published relay server in place of our relay.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::super::{
    Test,
    homes::{Homes, Nat, Way},
    lab::{peers, until},
};

pub(crate) const TESTS: &[Test] = &[
    ("agents_meet_over_a_stock_relay_and_go_direct", agents_meet_over_a_stock_relay_and_go_direct),
    ("agents_stay_on_a_stock_relay", agents_stay_on_a_stock_relay),
    ("agents_come_back_to_a_stock_relay", agents_come_back_to_a_stock_relay),
];

const LONG: Duration = Duration::from_secs(20);

fn agents_meet_over_a_stock_relay_and_go_direct() -> Result<()> {
    let homes = started(&[Nat::Easy, Nat::Easy])?;
    let first = until("a pong", LONG, || homes.member(0).ping(1))?;
    ensure!(first.0 == Way::Relay, "{first:?}");
    homes.member(0).reach(1, LONG)?;
    let direct = Way::Direct("203.0.113.34:41641".to_owned());
    until("direct", LONG, || Ok((homes.member(0).way(1)? == direct).then_some(())))?;
    let report: serde_json::Value = serde_json::from_str(&homes.member(0).mesh(&["netcheck", "--format", "json"])?)?;
    ensure!(report["UDP"] == true && report["PreferredDERP"] == 900, "its STUN answers us: {report}");
    Ok(())
}

fn agents_stay_on_a_stock_relay() -> Result<()> {
    let homes = started(&[Nat::Hard, Nat::UdpBlocked])?;
    homes.member(0).reach(1, LONG)?;
    homes.member(1).reach(0, LONG)?;
    ensure!(homes.member(0).way(1)? == Way::Relay && homes.member(1).way(0)? == Way::Relay);
    let report: serde_json::Value = serde_json::from_str(&homes.member(1).mesh(&["netcheck", "--format", "json"])?)?;
    ensure!(report["UDP"] == false && report["PreferredDERP"] == 900, "its latency check answers us: {report}");
    Ok(())
}

fn agents_come_back_to_a_stock_relay() -> Result<()> {
    let mut homes = started(&[Nat::Hard, Nat::Hard])?;
    homes.member(0).reach(1, LONG)?;
    homes.relay.kill();
    until("nothing gets through", LONG, || Ok(homes.member(0).ping(1)?.is_none().then_some(())))?;
    // With another certificate, which the maps have to say.
    homes.relay.start()?;
    for place in 0..2 {
        homes.write_map(place)?;
    }
    homes.member(0).reach(1, LONG)?;
    homes.member(1).reach(0, LONG)?;
    Ok(())
}

fn started(nats: &[Nat]) -> Result<Homes> {
    let mut homes = Homes::with_stock_relay(nats, peers::program()?)?;
    homes.start()?;
    homes.members.iter().try_for_each(|member| member.wait_for_relay(LONG))?;
    Ok(homes)
}
