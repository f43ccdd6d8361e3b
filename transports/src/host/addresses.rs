//! Addresses on the TUN device.

use core::net::IpAddr;
use std::{collections::BTreeSet, io};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
};

use super::{
    HostError,
    netlink::{IfPresent, Netlink},
};

/// Makes `wanted` the addresses of the device. Link-local ones are the kernel's own and stay.
pub(super) fn apply(netlink: &mut Netlink, index: u32, wanted: &[(IpAddr, u8)]) -> Result<(), HostError> {
    let wanted: BTreeSet<_> = wanted.iter().copied().collect();
    let present = list(netlink, index).map_err(HostError::new("list the addresses of the TUN device"))?;
    for (address, length) in present.difference(&wanted) {
        let what = format!("remove the address {address}/{length} from the TUN device");
        netlink
            .act(RouteNetlinkMessage::DelAddress(message(index, *address, *length)))
            .map_err(HostError::new(what))?;
    }
    for (address, length) in wanted.difference(&present) {
        let mut message = message(index, *address, *length);
        // Nobody else can have the address, and it is to be usable at once.
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        let switched_off = if address.is_ipv6() { " (is IPv6 switched off on this host?)" } else { "" };
        let what = format!("give the address {address}/{length} to the TUN device{switched_off}");
        netlink.add(RouteNetlinkMessage::NewAddress(message), IfPresent::Replace).map_err(HostError::new(what))?;
    }
    Ok(())
}

fn list(netlink: &mut Netlink, index: u32) -> io::Result<BTreeSet<(IpAddr, u8)>> {
    let mut addresses = BTreeSet::new();
    for answer in netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
        let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
        if message.header.index != index {
            continue;
        }
        let is_local = |attribute: &AddressAttribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        };
        let is_address = |attribute: &AddressAttribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        };
        let attributes = &message.attributes;
        let address = attributes.iter().find_map(is_local).or_else(|| attributes.iter().find_map(is_address));
        if let Some(address) = address
            && !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
        {
            addresses.insert((address, message.header.prefix_len));
        }
    }
    Ok(addresses)
}

fn message(index: u32, address: IpAddr, length: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = length;
    message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    message
}
