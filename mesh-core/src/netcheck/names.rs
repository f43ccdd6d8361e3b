//! Addresses of servers' names. An old answer is used while a new one is asked for, and when none comes: a relay map lives
//! longer than DNS is well.

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use std::collections::BTreeMap;

use crate::time::Instant;

use super::{
    report::Family,
    servers::{Servers, is_host},
};

/// How long an answer is not asked for again.
const FRESH: Duration = Duration::from_secs(300);
/// How long a name that could not be resolved is not asked for again: within a run, and not until the next. A report in which
/// a region is left out because DNS was silent before it began may find a home that is far.
const FAILED: Duration = Duration::from_secs(2);
/// A question without an answer for so long was lost.
const LOST: Duration = Duration::from_secs(10);

/// What was asked and answered. Holds names of the relay map only, which bounds it.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<String, Name>);

#[derive(Debug)]
struct Name {
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Asked(Instant),
    Answered(Instant),
    Failed(Instant),
}

/// What is known about a name in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    At(SocketAddr),
    /// Not answered yet.
    Pending,
    Nowhere,
}

impl Names {
    /// Looks a name up, and says whether DNS is to be asked.
    pub(super) fn lookup(&mut self, host: &str, family: Family, port: u16, now: Instant) -> (Lookup, bool) {
        let is_new = !self.0.contains_key(host);
        let name = self.0.entry(host.to_owned()).or_insert(Name { v4: None, v6: None, state: State::Asked(now) });
        let is_due = match name.state {
            State::Asked(at) => is_new || now.since(at) >= LOST,
            State::Answered(at) => now.since(at) >= FRESH,
            State::Failed(at) => now.since(at) >= FAILED,
        };
        if is_due {
            name.state = State::Asked(now);
        }
        let known = match family {
            Family::V4 => name.v4,
            Family::V6 => name.v6,
        };
        let has_none = name.v4.is_none() && name.v6.is_none();
        let lookup = match (known, name.state) {
            (Some(address), _) => Lookup::At(SocketAddr::new(address, port)),
            (None, State::Asked(_)) if has_none => Lookup::Pending,
            (None, _) => Lookup::Nowhere,
        };
        (lookup, is_due)
    }

    /// Takes in the first address of each family that the host has, or that there is none. Says whether the name was asked for.
    pub(super) fn answer(&mut self, host: &str, addresses: &[IpAddr], families: &[Family], now: Instant) -> bool {
        let Some(name) = self.0.get_mut(host).filter(|name| matches!(name.state, State::Asked(_))) else {
            return false;
        };
        let first = |family| {
            let usable = addresses.iter().map(IpAddr::to_canonical).filter(|address| is_host(*address));
            usable.into_iter().find(|address| Family::of(*address) == family && families.contains(&family))
        };
        let (v4, v6) = (first(Family::V4), first(Family::V6));
        if v4.is_none() && v6.is_none() {
            name.state = State::Failed(now);
        } else {
            *name = Name { v4, v6, state: State::Answered(now) };
        }
        true
    }

    /// Whether an address of it is known.
    pub(super) fn knows(&self, host: &str) -> bool {
        self.0.get(host).is_some_and(|name| name.v4.is_some() || name.v6.is_some())
    }

    /// Forgets names that are not in the map any more.
    pub(super) fn retain(&mut self, servers: &Servers) {
        let names: std::collections::BTreeSet<_> = servers.names().collect();
        self.0.retain(|name, _| names.contains(name.as_str()));
    }

    /// Everything is to be asked for again: the host has other families.
    pub(super) fn expire(&mut self) {
        for name in self.0.values_mut() {
            name.state = State::Failed(Instant::ZERO);
        }
    }

    /// Forgets all: another network has other answers.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_asked_for_once_and_again_when_old() {
        let mut names = Names::default();
        let v4 = |names: &mut Names, secs| names.lookup("a", Family::V4, 5, Instant::from_secs(secs));
        assert_eq!(v4(&mut names, 1), (Lookup::Pending, true));
        assert_eq!(v4(&mut names, 2), (Lookup::Pending, false));
        assert_eq!(v4(&mut names, 11), (Lookup::Pending, true));
        let addresses =
            ["::ffff:0.0.0.0", "224.0.0.1", "::ffff:192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        assert!(names.answer("a", &addresses, &Family::BOTH, Instant::from_secs(12)));
        assert!(!names.answer("a", &addresses, &Family::BOTH, Instant::from_secs(12)));
        assert!(!names.answer("b", &addresses, &Family::BOTH, Instant::from_secs(12)));
        let known = Lookup::At("192.0.2.1:5".parse().unwrap());
        assert_eq!(v4(&mut names, 13), (known, false));
        assert_eq!(names.lookup("a", Family::V6, 5, Instant::from_secs(13)), (Lookup::Nowhere, false));
        assert_eq!(v4(&mut names, 312), (known, true));
        assert!(names.answer("a", &[], &Family::BOTH, Instant::from_secs(313)));
        assert_eq!(v4(&mut names, 314), (known, false));
        assert_eq!(v4(&mut names, 315), (known, true));
    }

    #[test]
    fn an_address_of_a_family_that_the_host_lacks_is_none() {
        let mut names = Names::default();
        let v4 = |names: &mut Names, secs| names.lookup("a", Family::V4, 5, Instant::from_secs(secs));
        assert_eq!(v4(&mut names, 1), (Lookup::Pending, true));
        let addresses = ["2001:db8::1".parse().unwrap()];
        assert!(names.answer("a", &addresses, &[Family::V4], Instant::from_secs(1)));
        assert!(!names.knows("a"));
        assert_eq!(v4(&mut names, 3), (Lookup::Pending, true));
        assert!(names.answer("a", &addresses, &Family::BOTH, Instant::from_secs(3)));
        assert!(names.knows("a"));
        assert_eq!(v4(&mut names, 100), (Lookup::Nowhere, false));
        names.expire();
        assert!(names.lookup("a", Family::V6, 5, Instant::from_secs(100)).1);
        assert!(names.knows("a"), "what is known is used until there is an answer");
    }

    #[test]
    fn a_name_that_failed_rests_and_all_are_forgotten_with_the_map() {
        let mut names = Names::default();
        let v4 = |names: &mut Names, secs| names.lookup("a", Family::V4, 5, Instant::from_secs(secs));
        assert_eq!(v4(&mut names, 1), (Lookup::Pending, true));
        names.answer("a", &[], &Family::BOTH, Instant::from_secs(1));
        assert_eq!(v4(&mut names, 2), (Lookup::Nowhere, false));
        assert_eq!(v4(&mut names, 3), (Lookup::Pending, true));
        names.retain(&Servers::default());
        assert!(names.0.is_empty());
    }
}
