//! What control is told of this node, and when it is told anew.

use core::{net::SocketAddr, time::Duration};
use std::collections::BTreeMap;

use crate::{
    control::types::{Hostinfo, MapRequest, NetInfo},
    key::{DiscoPublic, NodePublic},
    time::Instant,
};

use super::super::CAPABILITY_VERSION;

/// Between two updates when there are many; a burst of [`BURST`] goes at once. A join has three or four: the node, its
/// home, its addresses as they become known.
const SPACING: Duration = Duration::from_secs(2);
const BURST: u32 = 8;

/// What control is told of this node.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Facts {
    pub(super) disco_key: DiscoPublic,
    /// Without `NetInfo`.
    pub(super) hostinfo: Hostinfo,
    /// `None` until something was measured: what control knows from before counts so long.
    pub(super) net_info: Option<NetInfo>,
    /// Where peers may reach us, with control's number for why.
    pub(super) endpoints: BTreeMap<SocketAddr, i64>,
}

impl Facts {
    /// Whether control, which was told `told`, should know. Latencies alone are no reason.
    pub(super) fn is_news_after(&self, told: &Self) -> bool {
        let without_latencies = |info: &Option<NetInfo>| {
            info.as_ref().map(|info| NetInfo { derp_latency: BTreeMap::new(), ..info.clone() })
        };
        (&self.disco_key, &self.hostinfo, &self.endpoints) != (&told.disco_key, &told.hostinfo, &told.endpoints)
            || without_latencies(&self.net_info) != without_latencies(&told.net_info)
    }

    /// What registrations and map requests say of the host.
    pub(super) fn hostinfo(&self) -> Box<Hostinfo> {
        Box::new(Hostinfo { net_info: self.net_info.clone(), ..self.hostinfo.clone() })
    }

    /// A request that carries everything. What kind it is, is up to the caller.
    pub(super) fn request(&self, node_key: NodePublic) -> MapRequest {
        MapRequest {
            version: CAPABILITY_VERSION.into(),
            node_key,
            disco_key: Some(self.disco_key),
            hostinfo: Some(self.hostinfo()),
            endpoints: self.endpoints.keys().copied().collect(),
            endpoint_types: self.endpoints.values().copied().collect(),
            ..MapRequest::default()
        }
    }
}

/// Spaces updates: a burst at once, then a steady pace. (The generic cell rate algorithm.)
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// When the next update would be due if all came at the steady pace.
    next: Instant,
}

impl Pace {
    /// When the next update may go.
    pub(super) fn earliest(&self) -> Instant {
        self.next - SPACING * (BURST - 1)
    }

    /// One goes.
    pub(super) fn note(&mut self, now: Instant) {
        self.next = self.next.max(now) + SPACING;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            disco_key: DiscoPublic::from_bytes([1; 32]),
            hostinfo: Hostinfo::default(),
            net_info: None,
            endpoints: BTreeMap::new(),
        }
    }

    #[test]
    fn latencies_alone_are_no_news() {
        let info = |home, latency| NetInfo {
            preferred_derp: home,
            derp_latency: BTreeMap::from([("1-v4".to_owned(), latency)]),
            ..NetInfo::default()
        };
        let told = Facts { net_info: Some(info(1, 0.01)), ..facts() };
        assert!(!Facts { net_info: Some(info(1, 0.02)), ..facts() }.is_news_after(&told));
        assert!(Facts { net_info: Some(info(2, 0.01)), ..facts() }.is_news_after(&told));
        assert!(told.is_news_after(&facts()));
    }

    #[test]
    fn a_burst_goes_at_once_and_then_one_every_two_seconds() {
        let mut pace = Pace::default();
        let now = Instant::from_secs(1_000);
        for _ in 0..BURST {
            assert!(pace.earliest() <= now);
            pace.note(now);
        }
        assert_eq!(pace.earliest(), now + SPACING);
        pace.note(now + SPACING);
        assert_eq!(pace.earliest(), now + SPACING * 2);
    }
}
