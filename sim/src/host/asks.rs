//! What a node asks around besides its data: names, and how long relays take to answer over a stream.

use core::{net::SocketAddr, time::Duration};
use std::collections::{BTreeMap, VecDeque};

use mesh_core::{
    derp::DerpNode,
    machine::Deadline,
    netcheck::{FETCH_TIMEOUT, Family, FetchFailed, FetchId, Fetched, ResolveFailed},
    node::{FetchRequest, Input},
    time::Instant,
};

use super::{
    http::{self, Head, Read, Request},
    links::Net,
    names::Lookup,
    stack::{StackOutput, StreamId},
};

/// For one address of a relay to answer.
const DIAL: Duration = Duration::from_secs(2);

/// What a node asks around.
#[derive(Debug, Default)]
pub struct Asks {
    fetches: BTreeMap<FetchId, Fetch>,
    names: Vec<(String, Lookup)>,
    answers: VecDeque<Input>,
}

#[derive(Debug)]
struct Fetch {
    host: String,
    addresses: VecDeque<SocketAddr>,
    state: State,
    /// When it is given up.
    until: Instant,
}

#[derive(Debug)]
enum State {
    New,
    Resolving { lookup: Lookup, port: u16 },
    Dialling { stream: StreamId, family: Family, until: Instant },
    Asked { stream: StreamId, family: Family, at: Instant, head: Head },
}

impl Asks {
    /// Nothing is asked.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks over a stream; answered by [`Input::Fetched`].
    pub fn fetch(&mut self, id: FetchId, request: FetchRequest, host: &mut Net<'_>, now: Instant) {
        let FetchRequest::LatencyCheck { node } = request;
        let DerpNode { host_name, .. } = &node;
        let mut fetch = Fetch {
            host: host_name.clone(),
            addresses: VecDeque::new(),
            state: State::New,
            until: now + FETCH_TIMEOUT,
        };
        if let Some(port) = node.derp_port() {
            fetch.addresses = host.addresses_of(&node, port);
            if fetch.addresses.is_empty()
                && let Some(lookup) = host.look_up(&node, now)
            {
                fetch.state = State::Resolving { lookup, port };
            }
        }
        let is_waiting = matches!(fetch.state, State::Resolving { .. });
        self.fetches.insert(id, fetch);
        if !is_waiting {
            self.dial(id, host, now);
        }
    }

    /// Asks for a name; answered by [`Input::Resolved`].
    pub fn resolve(&mut self, name: String, host: &mut Net<'_>, now: Instant) {
        match host.names.ask(&name, now) {
            Some(lookup) => self.names.push((name, lookup)),
            None => self.answers.push_back(Input::Resolved { host: name, result: Err(ResolveFailed) }),
        }
    }

    /// Something happened to a stream. Nothing happens when it is none of ours.
    pub fn handle_stack(&mut self, output: &StackOutput, host: &mut Net<'_>, now: Instant) {
        let of = match output {
            StackOutput::Connected(stream)
            | StackOutput::Received { stream, .. }
            | StackOutput::Ended { stream, .. } => *stream,
            StackOutput::Writable(_) | StackOutput::Send { .. } | StackOutput::Accepted { .. } => return,
        };
        let Some((id, fetch)) = self.fetches.iter_mut().find(|(_, fetch)| fetch.state.stream() == Some(of)) else {
            return;
        };
        let id = *id;
        match (output, &mut fetch.state) {
            (StackOutput::Connected(stream), State::Dialling { family, .. }) => {
                // A fresh stream has room for a request.
                host.stack.write(*stream, &Request::LatencyCheck.emit(&fetch.host), now);
                fetch.state = State::Asked { stream: *stream, family: *family, at: now, head: Head::default() };
            }
            (StackOutput::Received { bytes, stream }, State::Asked { family, at, head, .. }) => {
                let result = match head.read(bytes) {
                    Read::Part => return,
                    Read::Whole(head, _) if http::is_good(&head) => {
                        Ok(Fetched { round_trip: now.since(*at), family: *family })
                    }
                    Read::Whole(..) | Read::Nonsense => Err(FetchFailed),
                };
                host.stack.close(*stream, now);
                self.finish(id, result);
            }
            (StackOutput::Ended { .. }, _) => self.dial(id, host, now),
            _ => {}
        }
    }

    /// A name was looked up, or that failed.
    pub fn handle_names(&mut self, host: &mut Net<'_>, now: Instant) {
        self.names.retain(|(name, lookup)| match host.names.answer(*lookup) {
            None => true,
            Some(addresses) => {
                let result = if addresses.is_empty() { Err(ResolveFailed) } else { Ok(addresses) };
                self.answers.push_back(Input::Resolved { host: name.clone(), result });
                false
            }
        });
        let mut found = Vec::new();
        for (id, fetch) in &mut self.fetches {
            let State::Resolving { lookup, port } = fetch.state else { continue };
            if let Some(addresses) = host.names.answer(lookup) {
                fetch.addresses = host.usable(addresses, port);
                found.push(*id);
            }
        }
        for id in found {
            self.dial(id, host, now);
        }
    }

    /// Lets due timers act.
    pub fn handle_timeout(&mut self, host: &mut Net<'_>, now: Instant) {
        for id in self.fetches.keys().copied().collect::<Vec<_>>() {
            let Some(fetch) = self.fetches.get(&id) else { continue };
            let is_over = fetch.until <= now;
            let is_silent = matches!(fetch.state, State::Dialling { until, .. } if until <= now);
            if let (true, Some(stream)) = (is_over || is_silent, fetch.state.stream()) {
                host.stack.close(stream, now);
            }
            if is_over {
                self.finish(id, Err(FetchFailed));
            } else if is_silent {
                self.dial(id, host, now);
            }
        }
    }

    /// When [`Self::handle_timeout`] is wanted next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let of = |fetch: &Fetch| match fetch.state {
            State::Dialling { until, .. } => until.min(fetch.until),
            State::New | State::Resolving { .. } | State::Asked { .. } => fetch.until,
        };
        self.fetches.values().map(of).min().map(|at| Deadline::new(at, "fetch"))
    }

    /// Whether there is nothing to do, now or later.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.fetches.is_empty() && self.names.is_empty() && self.answers.is_empty()
    }

    /// The next answer for the node.
    pub fn poll_answer(&mut self) -> Option<Input> {
        self.answers.pop_front()
    }

    /// Tries the next address.
    fn dial(&mut self, id: FetchId, host: &mut Net<'_>, now: Instant) {
        let Some(fetch) = self.fetches.get_mut(&id) else { return };
        while let Some(address) = fetch.addresses.pop_front() {
            // The host may have lost its address of this family since.
            let Some(own) = host.source(address.ip()) else { continue };
            let stream = host.stack.connect(own, address, now);
            let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
            fetch.state = State::Dialling { stream, family, until: now + DIAL };
            return;
        }
        self.finish(id, Err(FetchFailed));
    }

    fn finish(&mut self, id: FetchId, result: Result<Fetched, FetchFailed>) {
        if self.fetches.remove(&id).is_some() {
            self.answers.push_back(Input::Fetched(id, result));
        }
    }
}

impl State {
    fn stream(&self) -> Option<StreamId> {
        match self {
            Self::New | Self::Resolving { .. } => None,
            Self::Dialling { stream, .. } | Self::Asked { stream, .. } => Some(*stream),
        }
    }
}
