//! What [`Netcheck`](super::Netcheck) has to say, what it is answered with, and what it counts.

use core::{net::SocketAddr, time::Duration};
use std::sync::Arc;

use crate::{
    derp::{DerpNode, RegionId},
    stun::Mapping,
};

use super::report::{Family, Report};

/// When a fetch that has not ended is given up, and a run at the latest ends. Stock nodes: 5 s.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// What is to be done, or told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a STUN request from the socket that carries data: the NAT's mapping must be that of the data.
    Probe {
        /// Where.
        to: SocketAddr,
        /// The request.
        payload: Vec<u8>,
    },
    /// Ask DNS for both families, and answer with [`handle_resolved`](super::Netcheck::handle_resolved).
    Resolve {
        /// The name, as in the relay map.
        host: String,
    },
    /// Connect to the relay as a relay client would, with its certificate checked, ask `GET /derp/latency-check`, and
    /// answer with [`handle_fetched`](super::Netcheck::handle_fetched), within
    /// [`FETCH_TIMEOUT`](super::FETCH_TIMEOUT) at the latest.
    Fetch {
        /// To be said in the answer.
        id: FetchId,
        /// Which region is measured.
        region: RegionId,
        /// Which of its relays.
        node: DerpNode,
    },
    /// Peers may reach us there, and what is known of the NAT: for `Endpoints::handle_stun`.
    Observed {
        /// `None` when only the mapping is news.
        address: Option<SocketAddr>,
        /// As known so far in this run.
        mapping: Mapping,
    },
    /// From now on this is our home region. Early: said with the first answer when there is no home yet.
    Home(RegionId),
    /// A report is complete.
    Report(Arc<Report>),
}

/// Names a fetch until its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FetchId(pub u64);

/// A relay answered over TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// From the request's last byte to the answer's first; connection and handshake do not count.
    pub round_trip: Duration,
    /// Over which family.
    pub family: Family,
}

/// A relay did not answer over TLS: no connection, a certificate that is not its own, a status above 299.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the relay did not answer over TLS")]
pub struct FetchFailed;

/// A name has no addresses, or nobody could say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name could not be resolved")]
pub struct ResolveFailed;

/// What has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetcheckStats {
    /// Full reports begun.
    pub full_reports: u64,
    /// Incremental reports begun.
    pub incremental_reports: u64,
    /// Light refreshes begun.
    pub refreshes: u64,
    /// Of all these, given up because map or network changed.
    pub aborted: u64,
    /// Requests sent.
    pub probes: u64,
    /// Requests not sent: [`NETCHECK_PROBES`](crate::limits::NETCHECK_PROBES).
    pub probes_over_budget: u64,
    /// Requests that the operating system refused.
    pub probes_refused: u64,
    /// Answers that told something.
    pub answers: u64,
    /// Answers to no request, to one answered already, or to one given up.
    pub answers_unasked: u64,
    /// Answers from elsewhere than the request went to.
    pub answers_from_elsewhere: u64,
    /// Answers with an address that cannot be ours.
    pub answers_unusable: u64,
    /// Datagrams that are no answer.
    pub answers_unreadable: u64,
    /// Names asked for.
    pub resolves: u64,
    /// Of these, without an address.
    pub resolves_failed: u64,
    /// Answers for names that were not asked for.
    pub resolves_unasked: u64,
    /// Relays asked over TLS.
    pub fetches: u64,
    /// Of these, without an answer.
    pub fetches_failed: u64,
    /// Answers to no fetch under way.
    pub fetches_unasked: u64,
    /// Regions of maps that were left out: null, without a number of a region, empty, or too many.
    pub regions_refused: u64,
    /// Relays of maps that were left out: nowhere, of another region, or too many.
    pub nodes_refused: u64,
}
