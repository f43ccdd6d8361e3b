//! The door: how many connections there may be at once, and how many of them from one source.
//!
//! A connection costs little once its client has proved a key and was let in, and nobody can have many of those without
//! many admitted keys. Before that it costs a TLS handshake and a few curve operations, and anybody can ask for one. So
//! what is not greeted yet is counted apart, with narrower bounds. At each bound the newcomer is turned away, counted.
//!
//! A source is an IPv4 address or an IPv6 network of 64 bits, which is what one customer has.

use core::{
    fmt,
    net::{IpAddr, SocketAddr},
};
use std::{collections::BTreeMap, sync::Arc};

use mesh_core::ip::source;

use crate::{hub::Hub, limits, stats::CloseReason};

/// Who is in, and who stands in the door.
#[derive(Debug, Default)]
pub struct Gate {
    all: Count,
    sources: BTreeMap<IpAddr, Count>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    connections: usize,
    /// Of them, those that have not proved a key yet.
    ungreeted: usize,
}

impl Gate {
    /// Takes a connection in, unless there are too many.
    ///
    /// # Errors
    /// Which bound it met.
    pub fn enter(&mut self, from: IpAddr) -> Result<(), CloseReason> {
        let source = source(from);
        let known = self.sources.get(&source).copied().unwrap_or_default();
        if self.all.connections >= limits::CONNECTIONS {
            return Err(CloseReason::Full);
        }
        if known.connections >= limits::CONNECTIONS_OF_SOURCE || known.ungreeted >= limits::UNGREETED_OF_SOURCE {
            return Err(CloseReason::SourceFull);
        }
        if self.all.ungreeted >= limits::UNGREETED {
            return Err(CloseReason::Crowded);
        }
        for count in [&mut self.all, self.sources.entry(source).or_default()] {
            count.connections += 1;
            count.ungreeted += 1;
        }
        Ok(())
    }

    /// A connection of this source proved its key and was let in.
    pub fn note_greeted(&mut self, from: IpAddr) {
        self.all.ungreeted = self.all.ungreeted.saturating_sub(1);
        if let Some(count) = self.sources.get_mut(&source(from)) {
            count.ungreeted = count.ungreeted.saturating_sub(1);
        }
    }

    /// A connection of this source ended.
    pub fn leave(&mut self, from: IpAddr, greeted: bool) {
        if !greeted {
            self.note_greeted(from);
        }
        self.all.connections = self.all.connections.saturating_sub(1);
        let source = source(from);
        if let Some(count) = self.sources.get_mut(&source) {
            count.connections = count.connections.saturating_sub(1);
            if count.connections == 0 {
                self.sources.remove(&source);
            }
        }
    }

    /// Connections, and those of them that are not greeted.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.all.connections, self.all.ungreeted)
    }
}

/// A connection's place; it is free again when this is dropped.
pub struct Pass {
    hub: Arc<Hub>,
    from: SocketAddr,
    greeted: bool,
}

impl Pass {
    /// A place for a connection that was just accepted.
    ///
    /// # Errors
    /// Which bound it met, counted.
    pub fn new(hub: Arc<Hub>, from: SocketAddr) -> Result<Self, CloseReason> {
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let entered = hub.gate().enter(from.ip());
        match entered {
            Ok(()) => Ok(Self { hub, from, greeted: false }),
            Err(reason) => {
                hub.stats.note_close(reason);
                Err(reason)
            }
        }
    }

    /// The relay that it is a place at.
    #[must_use]
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Where the connection comes from; an IPv4 address is one, whatever socket took it.
    #[must_use]
    pub fn from(&self) -> SocketAddr {
        self.from
    }

    /// The client proved its key and was let in.
    pub fn note_greeted(&mut self) {
        if !core::mem::replace(&mut self.greeted, true) {
            self.hub.gate().note_greeted(self.from.ip());
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.hub.gate().leave(self.from.ip(), self.greeted);
    }
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pass({}, greeted: {})", self.from, self.greeted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_takes_no_more_than_its_share_of_the_door() {
        let mut gate = Gate::default();
        for _ in 0..limits::UNGREETED_OF_SOURCE {
            assert_eq!(gate.enter(address(1)), Ok(()));
        }
        assert_eq!(gate.enter(address(1)), Err(CloseReason::SourceFull));
        assert_eq!(gate.enter(address(2)), Ok(()));
        gate.note_greeted(address(1));
        assert_eq!(gate.enter(address(1)), Ok(()));
    }

    #[test]
    fn many_sources_fill_the_door_and_those_inside_stay() {
        let mut gate = Gate::default();
        for number in 0..limits::UNGREETED as u32 {
            assert_eq!(gate.enter(address(number)), Ok(()));
        }
        assert_eq!(gate.enter(address(u32::MAX)), Err(CloseReason::Crowded));
        gate.leave(address(5), false);
        assert_eq!(gate.enter(address(u32::MAX)), Ok(()));
    }

    #[test]
    fn the_greeted_are_bounded_by_source_and_in_all() {
        let mut gate = Gate::default();
        let mut enter = |number: u32| {
            let entered = gate.enter(address(number));
            gate.note_greeted(address(number));
            entered
        };
        for _ in 0..limits::CONNECTIONS_OF_SOURCE {
            assert_eq!(enter(1), Ok(()));
        }
        assert_eq!(enter(1), Err(CloseReason::SourceFull));
        for number in 0..(limits::CONNECTIONS - limits::CONNECTIONS_OF_SOURCE) as u32 {
            assert_eq!(enter(10 + number), Ok(()));
        }
        assert_eq!(enter(5), Err(CloseReason::Full));
    }

    #[test]
    fn what_left_is_forgotten() {
        let mut gate = Gate::default();
        for greeted in [false, true] {
            assert_eq!(gate.enter(address(1)), Ok(()));
            if greeted {
                gate.note_greeted(address(1));
            }
            gate.leave(address(1), greeted);
        }
        assert_eq!(gate.counts(), (0, 0));
        assert!(gate.sources.is_empty());
    }

    #[test]
    fn a_source_is_an_address_or_a_network_of_a_customer() {
        let check = |a: &str, b: &str| source(a.parse().unwrap()) == source(b.parse().unwrap());
        assert!(check("2001:db8::1", "2001:db8::ffff:1"));
        assert!(!check("2001:db8::1", "2001:db8:0:1::1"));
        assert!(check("::ffff:192.0.2.1", "192.0.2.1"));
        assert!(!check("192.0.2.1", "192.0.2.2"));
    }

    fn address(number: u32) -> IpAddr {
        core::net::Ipv4Addr::from_bits(number).into()
    }
}
