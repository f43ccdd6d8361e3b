//! Reaching a control server: by address or by name, one address after the other.

use core::{net::SocketAddr, time::Duration};
use std::collections::VecDeque;

use mesh_core::{
    control::{ControlUrl, Scheme},
    time::Instant,
};

use super::super::{links::Net, names::Lookup, stack::StreamId};

/// For one address to answer.
const TRY: Duration = Duration::from_secs(3);

/// For all of it, until the server has said something. The daemon has the same.
pub(super) const DIAL: Duration = Duration::from_secs(10);

/// A stream that is being made.
#[derive(Debug)]
pub(super) struct Dial {
    port: u16,
    addresses: VecDeque<SocketAddr>,
    state: State,
    until: Instant,
}

#[derive(Debug)]
enum State {
    Resolving(Lookup),
    Trying { stream: StreamId, until: Instant },
}

impl Dial {
    /// Begins. `None` when there is no address to try.
    pub(super) fn start(url: &ControlUrl, host: &mut Net<'_>, now: Instant) -> Option<Self> {
        let port = url.port().unwrap_or(match url.scheme() {
            Scheme::Http => 80,
            Scheme::Https => 443,
        });
        let until = now + DIAL;
        if let Ok(address) = url.host().parse() {
            let mut addresses = host.usable(vec![address], port);
            let state = next(&mut addresses, host, now)?;
            return Some(Self { port, addresses, state, until });
        }
        let state = State::Resolving(host.names.ask(url.host(), now)?);
        Some(Self { port, addresses: VecDeque::new(), state, until })
    }

    /// The stream that is tried now.
    pub(super) fn stream(&self) -> Option<StreamId> {
        match self.state {
            State::Resolving(_) => None,
            State::Trying { stream, .. } => Some(stream),
        }
    }

    /// When all of it is given up.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// The stream that was tried ended. `false` when there is nothing left to try.
    pub(super) fn handle_end(&mut self, host: &mut Net<'_>, now: Instant) -> bool {
        match next(&mut self.addresses, host, now) {
            Some(state) => {
                self.state = state;
                true
            }
            None => false,
        }
    }

    /// A name may have been looked up. `false` when there is nothing to try.
    pub(super) fn handle_names(&mut self, host: &mut Net<'_>, now: Instant) -> bool {
        let State::Resolving(lookup) = self.state else { return true };
        let Some(addresses) = host.names.answer(lookup) else { return true };
        self.addresses = host.usable(addresses, self.port);
        self.handle_end(host, now)
    }

    /// Lets due timers act. `false` when there is nothing left to try.
    pub(super) fn handle_timeout(&mut self, host: &mut Net<'_>, now: Instant) -> bool {
        if self.until <= now {
            self.close(host, now);
            return false;
        }
        match self.state {
            State::Trying { stream, until } if until <= now => {
                host.stack.close(stream, now);
                self.handle_end(host, now)
            }
            State::Trying { .. } | State::Resolving(_) => true,
        }
    }

    /// When [`Self::handle_timeout`] is wanted next.
    pub(super) fn poll_timeout(&self) -> Instant {
        match self.state {
            State::Trying { until, .. } => until.min(self.until),
            State::Resolving(_) => self.until,
        }
    }

    /// Gives it up.
    pub(super) fn close(&self, host: &mut Net<'_>, now: Instant) {
        if let Some(stream) = self.stream() {
            host.stack.close(stream, now);
        }
    }
}

fn next(addresses: &mut VecDeque<SocketAddr>, host: &mut Net<'_>, now: Instant) -> Option<State> {
    loop {
        let address = addresses.pop_front()?;
        // The host may have lost its address of this family since.
        let Some(own) = host.source(address.ip()) else { continue };
        return Some(State::Trying { stream: host.stack.connect(own, address, now), until: now + TRY });
    }
}
