//! The packet filter: which packets of peers come in.
//!
//! The coordination server says by rules who may open what; whoever receives applies them, to packets that were
//! decrypted and whose source address was found to be the sender's. Rules only ever allow: without one, nothing is
//! opened. What goes out is not judged by rules; it opens the way for its replies.
//!
//! | packet | comes in when |
//! |---|---|
//! | for an address that is not ours, multicast, link-local | never |
//! | TCP that opens (SYN without ACK) | a rule allows the port |
//! | any other TCP | always: without a connection the host answers it with a reset |
//! | UDP, SCTP | it is a reply to what we sent ([`FlowTable`]), or a rule allows the port |
//! | ICMP echo reply, ICMP error | always |
//! | other ICMP | any rule allows the address |
//! | TSMP | always |
//! | a later fragment | always: without the first it is nothing |
//! | any other protocol | a rule that names it allows all ports |
//! | headers that hide what it is ([`HeadersError`]) | never |
//!
//! Stock nodes do the same. We differ where they are known to be wrong or leave gaps: ICMP parameter problem is an error
//! (they compare with another number), IPv6 extension headers are walked, and fragments too must be for our addresses.
//!
//! A [`Filter`] never changes; a new one takes its place. Flows are kept beside the peers and outlive it.

mod flow;
mod headers;
mod matcher;
mod rule;

#[cfg(test)]
mod tests;

use core::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::{
    ip::set::{IpSet, Span},
    time::Instant,
};

pub use flow::{ANSWERED_FOR, ASSOCIATED_FOR, FlowCounts, FlowPool, FlowTable, UNANSWERED_FOR};
pub use headers::{Content, Headers, HeadersError, IcmpKind, Ports};
pub use rule::{Destination, Protocols, Rule, RuleName};

use flow::Flow;
use matcher::{Ask, Matcher, What};

/// Where clouds tell their machines about themselves: the one link-local address that is not refused. Stock nodes too.
const CLOUD_METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Why a packet comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// TCP that opens nothing.
    Established,
    /// UDP or SCTP that replies to what we sent.
    Reply,
    /// An ICMP echo reply or error.
    IcmpAnswer,
    /// One of Tailscale's small messages.
    Tsmp,
    /// A later fragment.
    LaterFragment,
    /// A rule allows it.
    Rule,
}

/// Why a packet does not come in, or does not go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its headers do not say what it is.
    #[error("{0}")]
    Headers(#[from] HeadersError),
    /// For a multicast address.
    #[error("for a multicast address")]
    Multicast,
    /// For a link-local address.
    #[error("for a link-local address")]
    LinkLocal,
    /// For an address that is neither ours nor routed to us.
    #[error("for an address that is neither ours nor routed to us")]
    NotLocal,
    /// No rule allows it.
    #[error("no rule allows it")]
    Denied,
}

/// What would become of a packet, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Explanation {
    /// It comes in without a rule.
    Passes(Pass),
    /// It comes in; this rule is the first that allows it.
    Allowed(RuleName),
    /// It does not come in.
    Refused(Refusal),
}

/// The rules of a node and the addresses that they protect. Read by any thread.
#[derive(Debug)]
pub struct Filter {
    rules: Vec<Rule>,
    matcher: Matcher,
    left_out: usize,
    local: IpSet,
    pool: Arc<FlowPool>,
}

impl Filter {
    /// A filter for a node with the addresses `local`. `pool` is the same for all filters of a node.
    #[must_use]
    pub fn new(rules: Vec<Rule>, local: IpSet, pool: Arc<FlowPool>) -> Self {
        let (matcher, left_out) = Matcher::compile(&rules);
        Self { rules, matcher, left_out, local, pool }
    }

    /// Whether a packet of a peer comes in. `flows` are that peer's.
    ///
    /// # Errors
    /// When it does not.
    #[inline]
    pub fn admit(&self, headers: &Headers, flows: &FlowTable, now: Instant) -> Result<Pass, Refusal> {
        let pass = self.judge(headers, |flow| flows.note_received(flow, &self.pool, now))?;
        if let (Pass::Rule, Content::Datagram(ports)) = (pass, headers.content) {
            flows.note_admitted(&Flow::inbound(headers, ports), &self.pool, now);
        }
        Ok(pass)
    }

    /// Notes a packet for a peer, so that its replies come in. `flows` are that peer's.
    ///
    /// # Errors
    /// When the packet is not to leave.
    #[inline]
    pub fn release(&self, headers: &Headers, flows: &FlowTable, now: Instant) -> Result<(), Refusal> {
        check_destination(headers.destination)?;
        if let Content::Datagram(ports) = headers.content {
            flows.note_sent(&Flow::outbound(headers, ports), &self.pool, now);
        }
        Ok(())
    }

    /// What would become of a packet of a peer, and why. Looks at every rule.
    #[must_use]
    pub fn explain(&self, headers: &Headers, flows: &FlowTable, now: Instant) -> Explanation {
        match self.judge(headers, |flow| flows.is_open(flow, &self.pool, now)) {
            Err(refusal) => Explanation::Refused(refusal),
            Ok(Pass::Rule) => {
                let rule = self.rules.iter().find(|rule| ask_of(headers).is_some_and(|ask| rule.allows(&ask)));
                match rule {
                    Some(rule) => Explanation::Allowed(rule.name.clone()),
                    None => Explanation::Passes(Pass::Rule),
                }
            }
            Ok(pass) => Explanation::Passes(pass),
        }
    }

    /// The rules, in order.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The addresses that packets may be for.
    #[must_use]
    pub fn local(&self) -> &IpSet {
        &self.local
    }

    /// How many services (destinations with ports and protocols) were left out at
    /// [`FILTER_CELLS`](crate::limits::FILTER_CELLS).
    #[must_use]
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    #[inline]
    fn judge(&self, headers: &Headers, is_reply: impl FnOnce(&Flow) -> bool) -> Result<Pass, Refusal> {
        check_destination(headers.destination)?;
        if !self.local.covers(Span::from(headers.destination)) {
            return Err(Refusal::NotLocal);
        }
        match headers.content {
            Content::Tcp { opens: false, .. } => return Ok(Pass::Established),
            Content::Datagram(ports) if is_reply(&Flow::inbound(headers, ports)) => return Ok(Pass::Reply),
            Content::Icmp(IcmpKind::EchoReply | IcmpKind::Error) => return Ok(Pass::IcmpAnswer),
            Content::Tsmp => return Ok(Pass::Tsmp),
            Content::LaterFragment => return Ok(Pass::LaterFragment),
            Content::Tcp { opens: true, .. }
            | Content::Datagram(_)
            | Content::Icmp(IcmpKind::Other)
            | Content::Other => {}
        }
        match ask_of(headers) {
            Some(ask) if self.matcher.allows(&ask) => Ok(Pass::Rule),
            Some(_) | None => Err(Refusal::Denied),
        }
    }
}

/// What a packet needs a rule for; `None` when it needs none.
#[inline]
fn ask_of(headers: &Headers) -> Option<Ask> {
    let protocol = headers.protocol;
    let what = match headers.content {
        Content::Tcp { ports, opens: true } | Content::Datagram(ports) => {
            What::Port { protocol, port: ports.destination }
        }
        Content::Icmp(IcmpKind::Other) => What::Address,
        Content::Other => What::Protocol(protocol),
        Content::Tcp { opens: false, .. }
        | Content::Icmp(IcmpKind::EchoReply | IcmpKind::Error)
        | Content::Tsmp
        | Content::LaterFragment => return None,
    };
    Some(Ask { source: headers.source, destination: headers.destination, what })
}

/// Whether packets for an address are carried at all.
#[inline]
fn check_destination(destination: IpAddr) -> Result<(), Refusal> {
    let is_link_local = match destination {
        IpAddr::V4(v4) => v4.is_link_local() && v4 != CLOUD_METADATA,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if destination.is_multicast() {
        Err(Refusal::Multicast)
    } else if is_link_local {
        Err(Refusal::LinkLocal)
    } else {
        Ok(())
    }
}
