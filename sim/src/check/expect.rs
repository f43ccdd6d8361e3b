//! What a scenario expects, and whether it came true.
//!
//! An expectation is evaluated when the run is over, from what was recorded. One that had nothing to look at has
//! not held: [`Verdict::NotEvaluated`] fails like [`Verdict::Failed`], and says which of the two it was.

use core::time::Duration;

use mesh_core::{node::BackendState, time::Instant};

use crate::{
    host::{HostId, NodeEvent, Over, state_name},
    kernel::{dice::Probability, trace::Names},
    net::PacketKind,
};

use super::{
    CheckId, Flows, Tally,
    states::{self, Ruling},
    technique::{Surroundings, Technique, technique},
    ways::{Doubt, addresses, first_in, first_not, way_at, ways},
};

/// Messages sent this short a time before the end are not counted as lost: they may be on their way.
const IN_FLIGHT: Duration = Duration::from_secs(2);

/// Something that is expected.
#[derive(Clone, Debug)]
pub enum Expectation {
    /// A message sent at or after `after` comes out of the tunnel at or before `after + within`; without `within`,
    /// some time; never, when `held` says so.
    Delivered {
        /// By whom sent.
        from: HostId,
        /// At whom.
        to: HostId,
        /// From when on.
        after: Instant,
        /// How soon.
        within: Option<Duration>,
        /// Whether it is expected to happen.
        held: Held,
        /// How the message came; any way when `None`.
        via: Option<Over>,
    },
    /// Two nodes come to speak this way at or before `after + within`; without `within`, some time.
    Path {
        /// Which two.
        between: [HostId; 2],
        /// How.
        is: PathIs,
        /// From when on it is looked at.
        after: Instant,
        /// How soon.
        within: Option<Duration>,
        /// For how long.
        hold: Hold,
        /// By which technique; any when empty.
        technique: Vec<Technique>,
    },
    /// The longest time without a delivery.
    Outage {
        /// By whom sent.
        from: HostId,
        /// At whom.
        to: HostId,
        /// At most.
        max: Duration,
        /// Times that do not count.
        outside: Vec<(Instant, Instant)>,
    },
    /// From question to answer.
    Rtt {
        /// By whom asked.
        from: HostId,
        /// By whom answered.
        to: HostId,
        /// Of questions from then on.
        after: Instant,
        /// Half of the answers are at least this fast.
        p50: Option<Duration>,
        /// 99 of 100 are.
        p99: Option<Duration>,
        /// All are.
        max: Option<Duration>,
    },
    /// The share of messages that did not come out of the tunnel.
    Loss {
        /// By whom sent.
        from: HostId,
        /// At whom.
        to: HostId,
        /// Of messages from then on.
        after: Instant,
        /// At most.
        max: Option<Probability>,
        /// At least: a scenario that means to lose packets shows that it does.
        min: Option<Probability>,
    },
    /// How many datagrams of a kind are sent.
    Packets {
        /// Which kind.
        kind: PacketKind,
        /// By whom; all when `None`.
        of: Option<HostId>,
        /// At least.
        min: Option<u64>,
        /// At most.
        max: Option<u64>,
    },
    /// How often a node says something.
    Event {
        /// Which node; any when `None`.
        node: Option<HostId>,
        /// What: one of [`NodeEvent::NAMES`].
        is: &'static str,
        /// About which peer; any when `None`.
        peer: Option<HostId>,
        /// From when on.
        after: Instant,
        /// How soon.
        within: Option<Duration>,
        /// At least.
        min: u64,
        /// At most.
        max: Option<u64>,
    },
    /// Nodes come to this state at or before `after + within`; without `within`, some time.
    State {
        /// Which node; each when `None`.
        node: Option<HostId>,
        /// Which state.
        is: BackendState,
        /// From when on it is looked at.
        after: Instant,
        /// How soon.
        within: Option<Duration>,
        /// For how long.
        hold: Hold,
        /// How many nodes do, exactly; all that are looked at when `None`.
        count: Option<u64>,
    },
    /// From `after + within` on the policy lets messages through, or none.
    Acl {
        /// By whom sent.
        from: HostId,
        /// At whom.
        to: HostId,
        /// Which.
        is: Ruling,
        /// When the policy became so.
        after: Instant,
        /// How long that may take.
        within: Duration,
        /// Messages sent from then on do not count.
        until: Option<Instant>,
    },
    /// These invariants were looked at, and held.
    Invariants {
        /// Which.
        all: Vec<CheckId>,
    },
}

/// Whether something is expected to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// It is.
    Once,
    /// It is expected not to.
    Never,
}

/// For how long something is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// At one instant at least.
    Once,
    /// From then to the end.
    Always,
}

/// How two nodes speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathIs {
    /// From one to the other over UDP.
    Direct,
    /// Over a relay, one way at least.
    Relay,
    /// Not at all.
    None,
}

impl PathIs {
    /// The name in scenarios and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::None => "none",
        }
    }
}

/// Whether an expectation came true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It did.
    Held,
    /// It did not, and what happened instead.
    Failed {
        /// When that was clear; `None` is the end.
        at: Option<Instant>,
        /// What happened instead.
        why: String,
    },
    /// There was nothing to look at, and what was missing.
    NotEvaluated(String),
}

impl Verdict {
    /// Why it did not come true; `None` when it did.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        match self {
            Self::Held => None,
            Self::Failed { why, .. } => Some(why.clone()),
            Self::NotEvaluated(why) => Some(format!("never evaluated: {why}")),
        }
    }

    /// When it was clear that it did not come true, if before the end.
    #[must_use]
    pub fn failed_at(&self) -> Option<Instant> {
        match self {
            Self::Failed { at, .. } => *at,
            Self::Held | Self::NotEvaluated(_) => None,
        }
    }

    pub(super) fn failed(why: impl Into<String>) -> Self {
        Self::Failed { at: None, why: why.into() }
    }

    pub(super) fn failed_by(at: Instant, why: impl Into<String>) -> Self {
        Self::Failed { at: Some(at), why: why.into() }
    }
}

/// What is known when a run is over.
pub(crate) struct View<'r> {
    pub(crate) end: Instant,
    pub(crate) flows: &'r Flows,
    pub(crate) tally: &'r Tally,
    /// By host, by kind.
    pub(crate) packets: &'r [[u64; PacketKind::ALL.len()]],
    pub(crate) events: &'r [(Instant, HostId, NodeEvent)],
    /// What is between each node and the core, by number.
    pub(crate) surroundings: &'r [Surroundings],
    /// Whether there are relays: then nodes say which way they speak.
    pub(crate) has_relays: bool,
}

impl View<'_> {
    /// What made a direct path between two hosts possible.
    pub(crate) fn technique(&self, between: [HostId; 2]) -> Technique {
        let ends = between.map(|host| &self.surroundings[host.index()]);
        technique(ends, addresses(self.events, between))
    }
}

impl Expectation {
    /// The name of the kind in scenarios.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Delivered { .. } => "delivered",
            Self::Path { .. } => "path",
            Self::Outage { .. } => "outage",
            Self::Rtt { .. } => "rtt",
            Self::Loss { .. } => "loss",
            Self::Packets { .. } => "packets",
            Self::Event { .. } => "event",
            Self::State { .. } => "state",
            Self::Acl { .. } => "acl",
            Self::Invariants { .. } => "invariants",
        }
    }

    /// Whom it is about; empty is everybody.
    #[must_use]
    pub fn hosts(&self) -> Vec<HostId> {
        match self {
            Self::Delivered { from, to, .. }
            | Self::Outage { from, to, .. }
            | Self::Rtt { from, to, .. }
            | Self::Loss { from, to, .. }
            | Self::Acl { from, to, .. } => vec![*from, *to],
            Self::State { node, .. } => node.iter().copied().collect(),
            Self::Path { between, .. } => between.to_vec(),
            Self::Packets { of, .. } => of.iter().copied().collect(),
            Self::Event { node, peer, .. } => node.iter().chain(peer).copied().collect(),
            Self::Invariants { .. } => Vec::new(),
        }
    }

    /// A few words.
    #[must_use]
    pub fn text(&self, names: &Names) -> String {
        let hosts: Vec<_> =
            self.hosts().iter().map(|host| names.hosts.get(host.index()).map_or("?", String::as_str)).collect();
        match self {
            Self::Delivered { held: Held::Never, .. } => format!("delivered {} never", hosts.join(" to ")),
            Self::Delivered { .. } | Self::Outage { .. } | Self::Rtt { .. } | Self::Loss { .. } => {
                format!("{} {}", self.kind(), hosts.join(" to "))
            }
            Self::State { is, .. } => format!("state {} {}", state_name(*is), hosts.join("")),
            Self::Acl { is, .. } => format!("acl {} {}", hosts.join(" to "), is.name()),
            Self::Path { is, .. } => format!("path {} {}", hosts.join(" and "), is.name()),
            Self::Packets { kind, .. } => format!("packets {} {}", kind.name(), hosts.join("")),
            Self::Event { is, .. } => format!("event {is} {}", hosts.join(" about ")),
            Self::Invariants { all } => {
                format!("invariants {}", all.iter().map(|id| id.name()).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// Whether an expectation came true.
pub(crate) fn evaluate(expectation: &Expectation, view: &View<'_>) -> Verdict {
    match expectation {
        Expectation::Delivered { from, to, after, within, held, via } => {
            delivered(view, (*from, *to), (*after, *within), *held, *via)
        }
        Expectation::Path { between, is, after, within, hold, technique } if view.has_relays => {
            let held = selected(view, *between, *is, (*after, *within), *hold);
            if held == Verdict::Held { used(view, *between, technique) } else { held }
        }
        Expectation::Path { between, is, within, technique, .. } => path(view, *between, *is, *within, technique),
        Expectation::Outage { from, to, max, outside } => outage(view, (*from, *to), *max, outside),
        Expectation::Rtt { from, to, after, p50, p99, max } => {
            rtt(view, (*from, *to), *after, [(50, *p50), (99, *p99), (100, *max)])
        }
        Expectation::Loss { from, to, after, max, min } => loss(view, (*from, *to), *after, *max, *min),
        Expectation::Packets { kind, of, min, max } => {
            let counts = view.packets.iter().enumerate();
            let of_host = |index: usize| of.is_none_or(|host| host.index() == index);
            let count: u64 = counts.filter(|(index, _)| of_host(*index)).map(|(_, c)| c[*kind as usize]).sum();
            let wrong = min.is_some_and(|min| count < min) || max.is_some_and(|max| count > max);
            verdict(!wrong, || format!("{count} were sent, {}", bounds(*min, *max)))
        }
        Expectation::Event { node, is, peer, after, within, min, max } => {
            let until = within.map_or(Instant::FAR_FUTURE, |within| *after + within);
            let count = view
                .events
                .iter()
                .filter(|(at, host, event)| {
                    (*after..=until).contains(at)
                        && event.name() == *is
                        && node.is_none_or(|node| node == *host)
                        && (peer.is_none() || event.peer() == *peer)
                })
                .count() as u64;
            let wrong = count < *min || max.is_some_and(|max| count > max);
            if wrong && count < *min && within.is_some() && until > view.end {
                return Verdict::NotEvaluated("the run ended first".to_owned());
            }
            verdict(!wrong, || format!("it happened {count} times, {}", bounds(Some(*min), *max)))
        }
        Expectation::State { node, is, after, within, hold, count } => {
            states::came_to(view, *node, *is, (*after, *within), *hold, *count)
        }
        Expectation::Acl { from, to, is, after, within, until } => {
            states::ruled(view, (*from, *to), *is, *after + *within, *until)
        }
        Expectation::Invariants { all } => invariants(view, all),
    }
}

/// When a message was first delivered that was sent at or after `after`.
pub(crate) fn first_delivery(
    flows: &Flows,
    pair: (HostId, HostId),
    after: Instant,
    via: Option<Over>,
) -> Option<Instant> {
    flows.deliveries(pair.0, pair.1, via).filter(|(sent, _)| *sent >= after).map(|(_, delivered)| delivered).min()
}

fn delivered(
    view: &View<'_>,
    pair: (HostId, HostId),
    (after, within): (Instant, Option<Duration>),
    held: Held,
    via: Option<Over>,
) -> Verdict {
    if !view.flows.between(pair.0, pair.1).iter().any(|(sent, _)| *sent >= after) {
        return Verdict::NotEvaluated("no message was sent".to_owned());
    }
    let until = within.map(|within| after + within);
    let first = first_delivery(view.flows, pair, after, via);
    let in_time = first.filter(|at| until.is_none_or(|until| *at <= until));
    match (held, in_time, first) {
        (Held::Once, Some(_), _) | (Held::Never, None, _) => Verdict::Held,
        (Held::Never, Some(at), _) => Verdict::failed_by(at, format!("a message was delivered at {at}")),
        (Held::Once, None, Some(at)) => {
            let late = millis(at.since(until.unwrap_or(at)));
            Verdict::failed_by(at, format!("the first was delivered at {at}, {late} late"))
        }
        (Held::Once, None, None) if until.is_some_and(|until| until > view.end) => {
            Verdict::NotEvaluated("the run ended first".to_owned())
        }
        (Held::Once, None, None) => Verdict::Failed { at: until, why: "none was delivered".to_owned() },
    }
}

/// What two nodes said of the way that they speak.
fn selected(
    view: &View<'_>,
    between: [HostId; 2],
    is: PathIs,
    (after, within): (Instant, Option<Duration>),
    hold: Hold,
) -> Verdict {
    let until = within.map_or(view.end, |within| after + within);
    if until > view.end {
        return Verdict::NotEvaluated("the run ended first".to_owned());
    }
    let strictly = ways(view.events, between, Doubt::Counts);
    let Some(since) = first_in(&strictly, is, after, until) else {
        return Verdict::failed_by(until, format!("it is {}", way_at(&strictly, until).name()));
    };
    // A path in doubt still carries; one that is given up does not.
    let ways = if is == PathIs::Direct { ways(view.events, between, Doubt::Ignored) } else { strictly };
    match (hold, first_not(&ways, is, since, view.end)) {
        (Hold::Once, _) | (Hold::Always, None) => Verdict::Held,
        (Hold::Always, Some(at)) => Verdict::failed_by(at, format!("it is {} from {at} on", way_at(&ways, at).name())),
    }
}

fn used(view: &View<'_>, between: [HostId; 2], wanted: &[Technique]) -> Verdict {
    let used = view.technique(between);
    verdict(wanted.is_empty() || wanted.contains(&used), || format!("by {}", used.name()))
}

fn path(view: &View<'_>, between: [HostId; 2], is: PathIs, within: Option<Duration>, wanted: &[Technique]) -> Verdict {
    let [a, b] = between;
    let firsts = [(a, b), (b, a)].map(|pair| first_delivery(view.flows, pair, Instant::ZERO, None));
    if [(a, b), (b, a)].iter().all(|(from, to)| view.flows.between(*from, *to).is_empty()) {
        return Verdict::NotEvaluated("no message was sent, so no path was needed".to_owned());
    }
    match (is, firsts) {
        (PathIs::None, [None, None]) => Verdict::Held,
        (PathIs::None, _) => Verdict::failed("they speak directly".to_owned()),
        (PathIs::Direct, [Some(there), Some(back)]) => {
            let at = there.max(back);
            if within.is_some_and(|within| at > Instant::ZERO + within) {
                return Verdict::failed_by(at, format!("it is direct since {at}"));
            }
            used(view, between, wanted)
        }
        (PathIs::Relay, _) => Verdict::NotEvaluated("there is no relay".to_owned()),
        (PathIs::Direct, _) => Verdict::failed("nothing was delivered both ways".to_owned()),
    }
}

fn outage(view: &View<'_>, pair: (HostId, HostId), max: Duration, outside: &[(Instant, Instant)]) -> Verdict {
    let messages = view.flows.between(pair.0, pair.1);
    let (Some((first, _)), Some((last, _))) = (messages.first(), messages.last()) else {
        return Verdict::NotEvaluated("no message was sent".to_owned());
    };
    let mut deliveries: Vec<_> =
        messages.iter().map(|(_, delivered)| *delivered).filter(|at| *at != Instant::FAR_FUTURE).collect();
    deliveries.sort_unstable();
    // What is on its way at the end is no outage.
    let end = (*last).min(view.end - IN_FLIGHT);
    let edges: Vec<_> = core::iter::once(*first).chain(deliveries).chain([end]).collect();
    let longest = edges.windows(2).flat_map(|pair| remaining((pair[0], pair[1]), outside)).max_by_key(|gap| gap.0);
    match longest {
        None => Verdict::NotEvaluated("no time is left outside".to_owned()),
        Some((length, _)) if length <= max => Verdict::Held,
        Some((length, from)) => {
            Verdict::failed_by(from + length, format!("nothing was delivered for {} from {from} on", millis(length)))
        }
    }
}

/// The pieces of a gap that lie outside all windows, as (length, start).
fn remaining(gap: (Instant, Instant), windows: &[(Instant, Instant)]) -> Vec<(Duration, Instant)> {
    let mut pieces = vec![gap];
    for (from, to) in windows {
        pieces = pieces
            .into_iter()
            .flat_map(|(start, end)| [(start, end.min(*from)), (start.max(*to), end)])
            .filter(|(start, end)| start < end)
            .collect();
    }
    pieces.into_iter().map(|(start, end)| (end.since(start), start)).collect()
}

fn rtt(view: &View<'_>, pair: (HostId, HostId), after: Instant, limits: [(usize, Option<Duration>); 3]) -> Verdict {
    let mut times: Vec<_> = view
        .flows
        .iter()
        .filter(|flow| (flow.from, flow.to) == pair)
        .flat_map(|flow| &flow.samples)
        .filter(|sample| sample.sent >= after && sample.answered != Instant::FAR_FUTURE)
        .map(|sample| sample.answered.since(sample.sent))
        .collect();
    times.sort_unstable();
    if times.is_empty() {
        return Verdict::NotEvaluated("no question was answered".to_owned());
    }
    for (percent, limit) in limits {
        // The smallest time that at least this share does not exceed.
        let rank = (times.len() * percent).div_ceil(100).max(1);
        let time = times[rank - 1];
        if limit.is_some_and(|limit| time > limit) {
            return Verdict::failed(format!("{percent} % took up to {}", millis(time)));
        }
    }
    Verdict::Held
}

fn loss(
    view: &View<'_>,
    pair: (HostId, HostId),
    after: Instant,
    max: Option<Probability>,
    min: Option<Probability>,
) -> Verdict {
    let until = view.end - IN_FLIGHT;
    let messages = view.flows.between(pair.0, pair.1);
    let counted: Vec<_> = messages.iter().filter(|(sent, _)| (after..=until).contains(sent)).collect();
    let lost = counted.iter().filter(|(_, delivered)| *delivered == Instant::FAR_FUTURE).count() as u64;
    let total = counted.len() as u64;
    if total == 0 {
        return Verdict::NotEvaluated("no message was sent".to_owned());
    }
    let wrong = max.is_some_and(|max| !max.allows(lost, total)) || min.is_some_and(|min| !min.reached_by(lost, total));
    verdict(!wrong, || format!("{lost} of {total} were lost"))
}

fn invariants(view: &View<'_>, all: &[CheckId]) -> Verdict {
    if let Some(violation) = view.tally.violation().filter(|violation| all.contains(&violation.id)) {
        let text = format!("{} at {}: {}", violation.id.name(), violation.at, violation.message);
        return Verdict::failed_by(violation.at, text);
    }
    match all.iter().find(|id| view.tally.checked(**id) == 0) {
        Some(id) => Verdict::NotEvaluated(format!("{} had nothing to look at", id.name())),
        None => Verdict::Held,
    }
}

fn verdict(held: bool, complaint: impl FnOnce() -> String) -> Verdict {
    if held { Verdict::Held } else { Verdict::failed(complaint()) }
}

fn bounds(min: Option<u64>, max: Option<u64>) -> String {
    match (min, max) {
        (Some(min), Some(max)) => format!("expected {min} to {max}"),
        (Some(min), None) => format!("expected {min} or more"),
        (None, Some(max)) => format!("expected {max} or less"),
        (None, None) => "expected any number".to_owned(),
    }
}

fn millis(duration: Duration) -> String {
    format!("{}.{:03} ms", duration.as_millis(), duration.as_micros() % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cut_gaps() {
        let secs = Instant::from_secs;
        let pieces = remaining((secs(0), secs(10)), &[(secs(2), secs(3)), (secs(9), secs(20))]);
        let lengths: Vec<_> = pieces.iter().map(|(length, start)| (length.as_secs(), *start)).collect();
        assert_eq!(lengths, [(2, secs(0)), (6, secs(3))]);
        assert!(remaining((secs(2), secs(4)), &[(secs(0), secs(9))]).is_empty());
    }
}
