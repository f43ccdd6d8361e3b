//! Expectations of worlds with control: what nodes came to, and what the policy let through.

use core::time::Duration;

use mesh_core::{node::BackendState, time::Instant};

use crate::host::{HostId, NodeEvent, state_name};

use super::expect::{Hold, Verdict, View};

/// Messages sent this short a time before the end may be on their way.
const IN_FLIGHT: Duration = Duration::from_secs(2);

/// What a policy says of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// They are let through.
    Allowed,
    /// They are not.
    Denied,
}

impl Ruling {
    /// The name in scenarios and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
        }
    }
}

/// Whether nodes came to a state.
pub(super) fn came_to(
    view: &View<'_>,
    node: Option<HostId>,
    is: BackendState,
    (after, within): (Instant, Option<Duration>),
    hold: Hold,
    count: Option<u64>,
) -> Verdict {
    let until = within.map_or(view.end, |within| after + within);
    if until > view.end {
        return Verdict::NotEvaluated("the run ended first".to_owned());
    }
    let all = (0..view.surroundings.len() as u32).map(HostId);
    let nodes: Vec<_> = all.filter(|host| node.is_none_or(|node| node == *host)).collect();
    let came = |host: &HostId| {
        let times = times_in(view.events, *host, is, view.end);
        let (from, to) = *times.iter().find(|(from, to)| *from <= until && *to > after)?;
        (hold == Hold::Once || to == Instant::FAR_FUTURE).then_some(from.max(after))
    };
    let did = nodes.iter().filter(|host| came(host).is_some()).count() as u64;
    let wanted = count.unwrap_or(nodes.len() as u64);
    if did == wanted {
        return Verdict::Held;
    }
    let what = state_name(is);
    match nodes.iter().find(|host| came(host).is_none()) {
        Some(host) if did < wanted => {
            let was = last_before(view.events, *host, until).map_or("off", state_name);
            Verdict::failed_by(until, format!("{did} of {wanted} nodes were {what}; host {} was {was}", host.0))
        }
        _ => Verdict::failed_by(until, format!("{did} nodes were {what}, expected {wanted}")),
    }
}

/// Whether a policy was kept to by questions asked from `from` on. An answer to what was let through is no question.
pub(super) fn ruled(
    view: &View<'_>,
    pair: (HostId, HostId),
    is: Ruling,
    from: Instant,
    until: Option<Instant>,
) -> Verdict {
    let until = until.unwrap_or(view.end - IN_FLIGHT);
    let flows = view.flows.iter().filter(|flow| (flow.from, flow.to) == pair);
    let messages = flows.flat_map(|flow| flow.samples.iter().map(|sample| (sample.sent, sample.delivered)));
    let sent: Vec<_> = messages.filter(|(sent, _)| (from..until).contains(sent)).collect();
    if sent.is_empty() {
        return Verdict::NotEvaluated("no message was sent".to_owned());
    }
    let came = sent.iter().filter(|(_, delivered)| *delivered != Instant::FAR_FUTURE).min_by_key(|sent| sent.1);
    match (is, came) {
        (Ruling::Allowed, Some(_)) | (Ruling::Denied, None) => Verdict::Held,
        (Ruling::Allowed, None) => Verdict::failed(format!("none of {} came out of the tunnel", sent.len())),
        (Ruling::Denied, Some((sent, at))) => {
            Verdict::failed_by(*at, format!("a message that was sent at {sent} was delivered at {at}"))
        }
    }
}

/// When a node was in a state: from, and to; the last may have no end.
fn times_in(
    events: &[(Instant, HostId, NodeEvent)],
    host: HostId,
    is: BackendState,
    end: Instant,
) -> Vec<(Instant, Instant)> {
    let mut times: Vec<(Instant, Instant)> = Vec::new();
    for (at, _, event) in events.iter().filter(|(at, of, _)| *of == host && *at <= end) {
        let state = match event {
            NodeEvent::State(state) => Some(*state),
            NodeEvent::Stopped => None,
            _ => continue,
        };
        if let Some((_, to)) = times.last_mut().filter(|(_, to)| *to == Instant::FAR_FUTURE) {
            *to = *at;
        }
        if state == Some(is) {
            times.push((*at, Instant::FAR_FUTURE));
        }
    }
    times
}

fn last_before(events: &[(Instant, HostId, NodeEvent)], host: HostId, until: Instant) -> Option<BackendState> {
    let mut last = None;
    for (_, _, event) in events.iter().filter(|(at, of, _)| *of == host && *at <= until) {
        match event {
            NodeEvent::State(state) => last = Some(*state),
            NodeEvent::Stopped => last = None,
            _ => {}
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_lasts_until_the_next_or_the_end_of_the_node() {
        let secs = Instant::from_secs;
        let (a, b) = (HostId(0), HostId(1));
        let events = [
            (secs(1), a, NodeEvent::State(BackendState::Running)),
            (secs(2), b, NodeEvent::State(BackendState::NeedsLogin)),
            (secs(3), a, NodeEvent::Stopped),
            (secs(4), a, NodeEvent::State(BackendState::Running)),
        ];
        let times = times_in(&events, a, BackendState::Running, secs(9));
        assert_eq!(times, [(secs(1), secs(3)), (secs(4), Instant::FAR_FUTURE)]);
        assert_eq!(last_before(&events, a, secs(3)), None);
        assert_eq!(last_before(&events, b, secs(3)), Some(BackendState::NeedsLogin));
    }
}
