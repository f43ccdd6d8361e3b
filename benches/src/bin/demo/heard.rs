//! What agents say of themselves: moments in their logs, and addresses from which follows how a path came about.

use core::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::netns::{homes::Way, joined::Agent};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A time of day, to the microsecond, on the clock that all programs of a host share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment(Duration);

impl Moment {
    /// From a line that begins with `2026-01-31T23:59:59.999999Z`.
    fn of(line: &str) -> Option<Self> {
        let (_, time) = line.split_once('T')?;
        let (time, _) = time.split_once('Z')?;
        let mut parts = time.splitn(3, ':');
        let whole: [u64; 2] = [parts.next()?.parse().ok()?, parts.next()?.parse().ok()?];
        let seconds: f64 = parts.next()?.parse().ok()?;
        Some(Self(Duration::from_secs(whole[0] * 3600 + whole[1] * 60) + Duration::try_from_secs_f64(seconds).ok()?))
    }

    /// Milliseconds from `earlier` to this, which are less than half a day; negative when `earlier` is later.
    pub(crate) fn millis_since(self, earlier: Self) -> f64 {
        let ahead = Duration::from_nanos(((self.0 + DAY - earlier.0).as_nanos() % DAY.as_nanos()) as u64);
        if ahead < DAY / 2 { ahead.as_secs_f64() * 1e3 } else { (DAY - ahead).as_secs_f64() * -1e3 }
    }

    /// The later of two.
    pub(crate) fn later(self, other: Self) -> Self {
        if self.millis_since(other) < 0.0 { other } else { self }
    }
}

/// When the relay took the agent in, if it did, by the agent's log.
pub(crate) fn relay_link(log: &str) -> Option<Moment> {
    log.lines().find(|line| line.contains("relay took us in")).and_then(Moment::of)
}

/// When the agent first sent directly and nothing over the relay, and where to.
pub(crate) fn direct(log: &str) -> Option<(Moment, SocketAddr)> {
    let changes = log.lines().filter(|line| line.contains("peer is answered at another address"));
    changes.filter_map(|line| Some((Moment::of(line)?, line.rsplit_once("path=")?.1.trim().parse().ok()?))).next()
}

/// Where an agent is, as it sees itself and as its peer finds it.
#[derive(Clone, Debug)]
pub(crate) struct Whereabouts {
    /// Addresses of its own interfaces, with its port.
    pub(crate) own: Vec<SocketAddr>,
    /// Where a STUN server sees it.
    pub(crate) seen: Option<SocketAddr>,
    /// Where its peer sends to.
    pub(crate) reached: SocketAddr,
}

impl Whereabouts {
    /// Asks an agent and its peer; `None` when the peer does not send directly.
    pub(crate) fn ask(agent: &Agent, peer: &Agent) -> Result<Option<Self>> {
        let known = peer.peer(agent.node.name())?.context("an agent does not know the other")?;
        let Way::Direct(reached) = Way::of_peer(&known) else { return Ok(None) };
        let own: Value = serde_json::from_str(&agent.mesh(&["debug", "self", "--json"])?)?;
        let report: Value = serde_json::from_str(&agent.mesh(&["netcheck", "--format", "json"])?)?;
        let seen = report["GlobalV4"].as_str().map(str::parse).transpose()?;
        let own = own["Endpoints"].as_array().context("an agent shows no endpoints")?;
        let own = own.iter().filter_map(Value::as_str).map(str::parse).collect::<Result<Vec<SocketAddr>, _>>()?;
        let own = own.into_iter().filter(|address| Some(*address) != seen).collect();
        Ok(Some(Self { own, seen, reached: reached.parse()? }))
    }

    /// There is nothing between it and the world.
    fn is_public(&self) -> bool {
        self.own.is_empty() && self.seen.is_some()
    }
}

/// What made the direct path possible, in the words of `mesh-sim`.
pub(crate) fn technique(ends: &[Whereabouts; 2]) -> &'static str {
    let [a, b] = ends;
    let any = |holds: fn(&Whereabouts) -> bool| ends.iter().any(holds);
    if any(|end| end.reached.is_ipv6()) {
        "ipv6"
    } else if any(|end| end.is_public() || end.own.contains(&end.reached)) {
        "ordinary"
    } else if any(|end| end.seen != Some(end.reached)) {
        "reflexive"
    } else if a.reached.ip() == b.reached.ip() {
        "hairpin"
    } else {
        "punch"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_compared_across_midnight() {
        let moment = |text: &str| Moment::of(text).unwrap();
        let (early, late) = (moment("2026-01-31T23:59:59.999000Z a"), moment("2026-02-01T00:00:00.001500Z  b"));
        assert!((late.millis_since(early) - 2.5).abs() < 1e-6);
        assert!((early.millis_since(late) + 2.5).abs() < 1e-6);
        assert_eq!((early.later(late), late.later(early)), (late, late));
        assert_eq!(Moment::of("ready tun=mesh0"), None);
    }

    #[test]
    fn logs_show_the_first_whole_step() {
        let log = "ready tun=mesh0\n\
            2026-11-22T09:33:24.113666Z DEBUG transports::derp::link: relay took us in region=900\n\
            2026-11-22T09:33:24.200000Z DEBUG mesh_agent::daemon::driver: peer is answered at another address peer=[a] path=DERP(900)\n\
            2026-11-22T09:33:24.210000Z DEBUG mesh_agent::daemon::driver: peer is answered at another address peer=[a] path=203.0.113.34:41641 and DERP(900)\n\
            2026-11-22T09:33:24.246107Z DEBUG mesh_agent::daemon::driver: peer is answered at another address peer=[a] path=203.0.113.34:41641\n";
        let (at, address) = direct(log).unwrap();
        assert_eq!(address, "203.0.113.34:41641".parse().unwrap());
        assert!((at.millis_since(relay_link(log).unwrap()) - 132.441).abs() < 1e-6);
        assert_eq!(direct("nothing"), None);
    }

    #[test]
    fn a_technique_follows_from_where_the_ends_are_and_are_reached() {
        let end = |own: &[&str], seen: &str, reached: &str| Whereabouts {
            own: own.iter().map(|text| text.parse().unwrap()).collect(),
            seen: Some(seen.parse().unwrap()),
            reached: reached.parse().unwrap(),
        };
        let easy = |number: u8| {
            let seen = format!("203.0.113.{number}:41641");
            end(&["192.168.1.2:41641"], &seen, &seen)
        };
        let hard = end(&["192.168.2.2:41641"], "203.0.113.3:1000", "203.0.113.3:2000");
        let public = end(&[], "203.0.113.4:41641", "203.0.113.4:41641");
        let neighbour = end(&["192.168.1.3:41641"], "203.0.113.1:1024", "192.168.1.3:41641");
        let v6 = end(&["192.168.1.2:41641"], "203.0.113.1:41641", "[2001:db8::1]:41641");
        for (ends, expected) in [
            ([easy(1), easy(2)], "punch"),
            ([easy(1), easy(1)], "hairpin"),
            ([easy(1), hard.clone()], "reflexive"),
            ([public, hard], "ordinary"),
            ([neighbour.clone(), neighbour], "ordinary"),
            ([v6.clone(), v6], "ipv6"),
        ] {
            assert_eq!(technique(&ends), expected, "{ends:?}");
        }
    }
}
