//! [`LinkMonitor`]: what the underlay looks like, and when that changes.
//!
//! The kernel says that links, addresses or default routes changed; what they are now is then asked for whole, so
//! nothing depends on the order or the completeness of what it says. Changes come in bursts (an interface goes with its
//! addresses and routes), so the question is asked a moment after the first of them. What looks the same afterwards is
//! no change.
//!
//! Counted are interfaces that are up and have a carrier, other than our own TUN. Routes count when datagrams with our
//! mark can take them: those of the tables `main` and `default`.

use core::{net::IpAddr, time::Duration};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use mesh_core::node::LinkState;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{LinkFlags, LinkMessage},
    route::{RouteAttribute, RouteMessage, RouteType},
};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use tokio::{
    io::Interest,
    time::{Instant, sleep_until},
};
use tracing::debug;

use super::{HostError, is_family_missing, netlink::Netlink};
use crate::watched::{Watched, watch};

/// From the first word of a change to the question what it is.
const SETTLE: Duration = Duration::from_millis(50);
/// When to ask again after the kernel gave no answer.
const RETRY: Duration = Duration::from_secs(1);

/// Tables that datagrams with our mark are routed by: `main` and `default`.
const TABLES: [u32; 2] = [254, 253];

/// What to hear of: links, and addresses and routes of both families.
const GROUPS: [u32; 5] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
];

/// Watches the underlay.
#[derive(Debug)]
pub struct LinkMonitor {
    netlink: Netlink,
    words: Watched<Socket>,
    own: Option<u32>,
    state: LinkState,
    /// When to ask what changed.
    ask_at: Option<Instant>,
}

impl LinkMonitor {
    /// Watches everything but the interface with the number `own`, which is our TUN. Needs a tokio runtime with I/O and
    /// time.
    ///
    /// # Errors
    /// When the host has no netlink.
    pub fn new(own: Option<u32>) -> Result<Self, HostError> {
        // First to listen, then to ask: nothing is missed in between.
        let words = listen().map_err(HostError::new("listen for changes of the network"))?;
        let mut netlink = Netlink::open().map_err(HostError::new("open a netlink socket"))?;
        let state = read(&mut netlink, own)?;
        Ok(Self { netlink, words, own, state, ask_at: None })
    }

    /// What the underlay looked like when it was last asked for.
    #[must_use]
    pub fn state(&self) -> &LinkState {
        &self.state
    }

    /// Waits until the underlay looks different, and says how. May be dropped and called again without missing anything.
    ///
    /// # Errors
    /// When the kernel does not answer. The next call asks again a second later.
    pub async fn changed(&mut self) -> Result<LinkState, HostError> {
        loop {
            let Self { words, ask_at, .. } = self;
            let Some(at) = *ask_at else {
                if heard(words).await.map_err(HostError::new("listen for changes of the network"))? {
                    *ask_at = Some(Instant::now() + SETTLE);
                }
                continue;
            };
            sleep_until(at).await;
            self.ask_at = Some(Instant::now() + RETRY);
            // What was said until now is part of what is asked for.
            while is_relevant(&self.words.get_ref().0).is_ok() {}
            let state = read(&mut self.netlink, self.own)?;
            self.ask_at = None;
            if state != self.state {
                debug!(?state, "underlay changed");
                self.state.clone_from(&state);
                return Ok(state);
            }
        }
    }
}

fn listen() -> io::Result<Watched<Socket>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.set_non_blocking(true)?;
    for group in GROUPS {
        socket.add_membership(group)?;
    }
    watch(socket, Interest::READABLE)
}

/// Waits for words of the kernel; whether they matter.
async fn heard(words: &Watched<Socket>) -> io::Result<bool> {
    let mut matters = false;
    loop {
        let mut ready = words.readable().await?;
        match ready.try_io(|socket| is_relevant(&socket.get_ref().0)) {
            Ok(relevant) => {
                matters |= relevant?;
                if matters {
                    return Ok(true);
                }
            }
            Err(_would_block) => {}
        }
    }
}

/// Takes one message; whether it speaks of what we look at. Hosts may have very many routes that come and go, of which
/// only default routes matter.
fn is_relevant(socket: &Socket) -> io::Result<bool> {
    let bytes = match socket.recv_from_full() {
        Ok((bytes, _)) => bytes,
        // More was said than fitted.
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(true),
        Err(error) => return Err(error),
    };
    // One change a message; whatever cannot be read is looked into.
    Ok(match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).map(|message| message.payload) {
        Ok(NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
        )) => route.header.destination_prefix_length == 0,
        Ok(_) | Err(_) => true,
    })
}

/// Asks what the underlay looks like.
fn read(netlink: &mut Netlink, own: Option<u32>) -> Result<LinkState, HostError> {
    let links = up(netlink, own).map_err(HostError::new("list the network interfaces"))?;
    let addresses = addresses(netlink, &links).map_err(HostError::new("list the host's addresses"))?;
    let mut has_default = |family| {
        let found = has_default(netlink, family, &links);
        found.map_err(HostError::new("list the host's routes"))
    };
    Ok(LinkState {
        addresses: addresses.into_iter().collect(),
        has_default_v4: has_default(AddressFamily::Inet)?,
        has_default_v6: has_default(AddressFamily::Inet6)?,
    })
}

/// The numbers of interfaces that carry packets, ours left out.
fn up(netlink: &mut Netlink, own: Option<u32>) -> io::Result<BTreeSet<u32>> {
    let answers = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let links = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link.header),
        _ => None,
    });
    let is_up = |flags: LinkFlags| flags.contains(LinkFlags::Up | LinkFlags::Running);
    Ok(links.filter(|link| is_up(link.flags) && Some(link.index) != own).map(|link| link.index).collect())
}

/// Addresses that can be used now. Not the link-local ones of IPv6, which mean nothing without an interface.
fn addresses(netlink: &mut Netlink, links: &BTreeSet<u32>) -> io::Result<BTreeSet<IpAddr>> {
    let mut addresses = BTreeSet::new();
    for answer in netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
        let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
        if !links.contains(&message.header.index) {
            continue;
        }
        let (mut local, mut address) = (None, None);
        let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(own) => local = Some(*own),
                AddressAttribute::Address(own) => address = Some(*own),
                AddressAttribute::Flags(all) => flags = *all,
                _ => {}
            }
        }
        // Not known yet to be ours alone, or known not to be.
        let is_open = flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic);
        let is_usable = !is_open && !flags.contains(AddressFlags::Dadfailed);
        // On a point-to-point interface the other one is the far end's.
        let found = local.or(address).filter(|_| is_usable);
        addresses.extend(found.filter(|ip| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())));
    }
    Ok(addresses)
}

/// Whether a default route of the family leads somewhere. The best one decides: when it is unreachable, so is
/// everything.
fn has_default(netlink: &mut Netlink, family: AddressFamily, links: &BTreeSet<u32>) -> io::Result<bool> {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    let answers = match netlink.dump(RouteNetlinkMessage::GetRoute(request)) {
        Ok(answers) => answers,
        Err(error) if is_family_missing(&error) => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut best = BTreeMap::new();
    for answer in answers {
        let RouteNetlinkMessage::NewRoute(route) = answer else { continue };
        if route.header.destination_prefix_length != 0 || route.header.address_family != family {
            continue;
        }
        let (mut table, mut metric, mut leads) = (u32::from(route.header.table), 0, false);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Table(number) => table = *number,
                RouteAttribute::Priority(number) => metric = *number,
                RouteAttribute::Oif(index) => leads |= links.contains(index),
                RouteAttribute::MultiPath(hops) => leads |= hops.iter().any(|hop| links.contains(&hop.interface_index)),
                _ => {}
            }
        }
        if !TABLES.contains(&table) {
            continue;
        }
        match route.header.kind {
            RouteType::Unicast if leads => drop(best.entry(metric).or_insert(true)),
            // The way there is down: the next one is taken.
            RouteType::Unicast => {}
            _ => drop(best.entry(metric).or_insert(false)),
        }
    }
    Ok(best.into_values().next().unwrap_or(false))
}
