//! What netcheck finds means for the rest of the node: our addresses go to the endpoints, the home to the relays.

use std::net::{IpAddr, SocketAddr};

use crate::{
    limits,
    netcheck::{FetchFailed, FetchId, Fetched, Kind, Netcheck, Output as NetcheckOutput, ResolveFailed},
    path::PathAddr,
    time::Instant,
};

use super::{CommandError, CommandId, Event, FetchRequest, Node, Output, Reply, Transmit};

impl Node {
    /// Runs `act` on netcheck, and hears what it has to say.
    pub(super) fn with_netcheck(&mut self, now: Instant, act: impl FnOnce(&mut Netcheck)) {
        act(&mut self.netcheck);
        self.drain_netcheck(now);
    }

    /// Somebody wants to know what the network is like.
    pub(super) fn start_report(&mut self, id: CommandId, now: Instant) {
        if self.reports_wanted.len() >= limits::REPORTS_WANTED {
            self.outbox.push_back(Output::Reply(id, Err(CommandError::TooManyReports)));
            return;
        }
        self.reports_wanted.push(id);
        self.with_netcheck(now, |netcheck| netcheck.start(Kind::Full, now));
    }

    pub(super) fn handle_stun(&mut self, source: SocketAddr, datagram: &[u8], now: Instant) {
        self.with_netcheck(now, |netcheck| netcheck.handle_stun(source, datagram, now));
    }

    pub(super) fn handle_fetched(&mut self, id: FetchId, result: Result<Fetched, FetchFailed>, now: Instant) {
        self.with_netcheck(now, |netcheck| netcheck.handle_fetched(id, result, now));
    }

    pub(super) fn handle_resolved(&mut self, host: &str, result: Result<Vec<IpAddr>, ResolveFailed>, now: Instant) {
        let result = result.as_deref().map_err(|failed| *failed);
        self.with_netcheck(now, |netcheck| netcheck.handle_resolved(host, result, now));
    }

    pub(super) fn drain_netcheck(&mut self, now: Instant) {
        while let Some(output) = self.netcheck.poll_output() {
            match output {
                NetcheckOutput::Probe { to, payload } => {
                    self.outbox.push_back(Output::Transmit(Transmit { to: PathAddr::Udp(to), ttl: None, payload }));
                }
                NetcheckOutput::Resolve { host } => self.outbox.push_back(Output::Resolve { host }),
                NetcheckOutput::Fetch { id, node, .. } => {
                    self.outbox.push_back(Output::Fetch(id, FetchRequest::LatencyCheck { node }));
                }
                NetcheckOutput::Observed { address, mapping } => {
                    self.endpoints.handle_stun(address.as_slice(), mapping, now);
                    self.drain_endpoints(now);
                }
                NetcheckOutput::Home(region) => {
                    self.relays.set_home(Some(region), now);
                    self.drain_relays();
                    self.outbox.push_back(Output::Event(Event::HomeChanged(region)));
                    self.tell_network(None, Some(region), now);
                }
                NetcheckOutput::Report(report) => {
                    let home = self.relays.home();
                    self.tell_network(Some(&report.net_info(home)), home, now);
                    for id in self.reports_wanted.drain(..) {
                        self.outbox.push_back(Output::Reply(id, Ok(Reply::Report(report.clone()))));
                    }
                }
            }
        }
    }
}
