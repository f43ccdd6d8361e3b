//! Routes in the table of the mesh.

use std::{collections::BTreeSet, io};

use mesh_core::ip::prefix::Prefix;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
};

use super::{
    HostError, is_family_missing,
    netlink::{IfPresent, Netlink},
};

/// The table of stock clients. Below 256 so that old tools can name it.
pub(super) const TABLE: u8 = 52;

/// Makes `wanted` the routes of the table that lead to the device.
pub(super) fn apply(netlink: &mut Netlink, index: u32, wanted: &[Prefix]) -> Result<(), HostError> {
    let wanted: BTreeSet<_> = wanted.iter().copied().collect();
    let present = list(netlink).map_err(HostError::new("list the routes of table 52"))?;
    let ours: BTreeSet<_> = present.iter().filter(|route| route.device == Some(index)).map(|r| r.prefix).collect();
    for route in present.iter().filter(|route| route.device == Some(index) && !wanted.contains(&route.prefix)) {
        let what = format!("remove the route {} from table 52", route.prefix);
        delete(netlink, route).map_err(HostError::new(what))?;
    }
    for prefix in wanted.difference(&ours) {
        let what = format!("add the route {prefix} to table 52");
        let message = message(*prefix, Some(index), RouteType::Unicast);
        netlink.add(RouteNetlinkMessage::NewRoute(message), IfPresent::Replace).map_err(HostError::new(what))?;
    }
    Ok(())
}

/// Takes away routes of the table that lead to no device. Those to a device are of a living program: routes go with
/// their device.
pub(super) fn remove_stale(netlink: &mut Netlink) -> Result<(), HostError> {
    let present = list(netlink).map_err(HostError::new("list the routes of table 52"))?;
    for route in present.iter().filter(|route| route.device.is_none()) {
        let what = format!("remove the stale route {} from table 52", route.prefix);
        delete(netlink, route).map_err(HostError::new(what))?;
    }
    Ok(())
}

/// Whether another device than ours has routes in the table.
pub(super) fn is_used_by_others(netlink: &mut Netlink, index: u32) -> io::Result<bool> {
    Ok(list(netlink)?.iter().any(|route| route.device.is_some_and(|device| device != index)))
}

struct Route {
    prefix: Prefix,
    /// `None` for unreachable, throw and their like.
    device: Option<u32>,
    message: RouteMessage,
}

fn list(netlink: &mut Netlink) -> io::Result<Vec<Route>> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        request.header.table = TABLE;
        let answers = match netlink.dump(RouteNetlinkMessage::GetRoute(request)) {
            Ok(answers) => answers,
            Err(error) if is_family_missing(&error) => continue,
            Err(error) => return Err(error),
        };
        routes.extend(answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(message) => route(message),
            _ => None,
        }));
    }
    Ok(routes)
}

fn route(message: RouteMessage) -> Option<Route> {
    // Kernels before 4.20 send all tables whatever is asked for.
    if message.header.table != TABLE {
        return None;
    }
    let mut device = None;
    let mut destination = match message.header.address_family {
        AddressFamily::Inet => core::net::IpAddr::from([0; 4]),
        _ => core::net::IpAddr::from([0; 16]),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => destination = (*v4).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => destination = (*v6).into(),
            RouteAttribute::Oif(index) => device = Some(*index),
            _ => {}
        }
    }
    // The kernel hangs unreachable and throw routes of IPv6 on the loopback device.
    if message.header.kind != RouteType::Unicast {
        device = None;
    }
    let prefix = Prefix::new(destination, message.header.destination_prefix_length)?;
    Some(Route { prefix, device, message })
}

fn delete(netlink: &mut Netlink, route: &Route) -> io::Result<()> {
    let message = message(route.prefix, route.device, route.message.header.kind);
    match netlink.act(RouteNetlinkMessage::DelRoute(message)) {
        // Gone in the meantime: as wanted.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENODEV)) => Ok(()),
        result => result,
    }
}

fn message(prefix: Prefix, device: Option<u32>, kind: RouteType) -> RouteMessage {
    let is_v4 = prefix.address().is_ipv4();
    let mut message = RouteMessage::default();
    message.header.address_family = if is_v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.destination_prefix_length = prefix.length();
    message.header.table = TABLE;
    message.header.protocol = if device.is_some() { RouteProtocol::Static } else { RouteProtocol::Unspec };
    message.header.scope = match (is_v4, device) {
        (true, Some(_)) => RouteScope::Link,
        (true, None) => RouteScope::NoWhere,
        (false, _) => RouteScope::Universe,
    };
    message.header.kind = kind;
    if prefix.length() > 0 {
        message.attributes.push(RouteAttribute::Destination(prefix.address().into()));
    }
    if let Some(device) = device {
        message.attributes.push(RouteAttribute::Oif(device));
    }
    message
}
