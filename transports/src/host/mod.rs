//! Makes the host look as a [`HostConfig`] says: the device's MTU, addresses, routes, and the rules that lead to them.
//!
//! Everything is stated as it should be and compared with what is, so applying twice is applying once, and what a
//! killed process left is repaired by the next start. The layout is that of stock clients: routes live in table 52,
//! and policy rules look there for everything but the node's own datagrams, which carry a mark. So a default route
//! through the tunnel does not swallow the tunnel itself.
//!
//! The device and the routes to it go with the process, whatever ends it. Rules do not: [`HostLink::remove`] takes
//! them back, unless another program still has routes in the table.

mod addresses;
mod monitor;
mod netlink;
mod routes;
mod rules;

use std::io;

use mesh_core::node::HostConfig;
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags, LinkMessage},
};
use tracing::debug;

use netlink::Netlink;

pub use monitor::LinkMonitor;

/// Why the host cannot look as wanted.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}")]
pub struct HostError {
    /// What was tried.
    pub what: String,
    /// Why it failed.
    pub source: io::Error,
}

impl HostError {
    fn new(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self { what, source }
    }
}

/// Configures one TUN device and what leads to it.
#[derive(Debug)]
pub struct HostLink {
    netlink: Netlink,
    index: u32,
}

impl HostLink {
    /// For the device with the number `index`.
    ///
    /// # Errors
    /// When the host has no netlink.
    pub fn new(index: u32) -> Result<Self, HostError> {
        let netlink = Netlink::open().map_err(HostError::new("open a netlink socket"))?;
        Ok(Self { netlink, index })
    }

    /// Takes away what earlier processes left: routes in table 52 that lead to no device, and rules that are there
    /// more than once. While another program has routes to a device of its own in the table, nothing there counts as
    /// left. Call once, before the first [`Self::apply`].
    ///
    /// # Errors
    /// When the process may not.
    pub fn repair(&mut self) -> Result<(), HostError> {
        let used = routes::is_used_by_others(&mut self.netlink, self.index);
        if used.map_err(HostError::new("list the routes of table 52"))? {
            return Ok(());
        }
        routes::remove_stale(&mut self.netlink)?;
        rules::remove(&mut self.netlink)
    }

    /// Makes the host look as `config` says.
    ///
    /// # Errors
    /// When the kernel refuses something; what came before it stays.
    pub fn apply(&mut self, config: &HostConfig) -> Result<(), HostError> {
        self.set_link(config.mtu_bytes)?;
        addresses::apply(&mut self.netlink, self.index, &config.addresses)?;
        routes::apply(&mut self.netlink, self.index, &config.routes)?;
        rules::add(&mut self.netlink)?;
        debug!(addresses = config.addresses.len(), routes = config.routes.len(), "host configured");
        Ok(())
    }

    /// Takes routes and rules back. The device goes when its descriptor is closed.
    ///
    /// # Errors
    /// When the kernel refuses. Everything else was tried nevertheless.
    pub fn remove(&mut self) -> Result<(), HostError> {
        let removed = routes::apply(&mut self.netlink, self.index, &[]);
        let used = routes::is_used_by_others(&mut self.netlink, self.index);
        let rules = match used {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => rules::remove(&mut self.netlink),
        };
        removed.and(rules)
    }

    fn set_link(&mut self, mtu_bytes: usize) -> Result<(), HostError> {
        let mut link = LinkMessage::default();
        link.header.index = self.index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        let mtu = u32::try_from(mtu_bytes).unwrap_or(u32::MAX);
        link.attributes.push(LinkAttribute::Mtu(mtu));
        let what = format!("set the TUN device up with an MTU of {mtu} bytes");
        self.netlink.act(RouteNetlinkMessage::SetLink(link)).map_err(HostError::new(what))
    }
}

/// Whether the kernel says that a whole family is missing or switched off.
fn is_family_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT))
}
