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
/// How long a name that could not be resolved is not asked for again: long enough for one question in a run, short enough for
/// another in the next. A report that leaves a region out may find a home that is far.
const FAILED: Duration = Duration::from_secs(2);
/// A question without an answer for so long was lost.
const LOST: Duration = Duration::from_secs(10);

/// What was asked and answered. Holds names of the relay map only, which bounds it.
#[derive(Debug, Default)]
pub(super) struct Names {
    names: BTreeMap<String, Name>,
    /// Families that the host has.
    families: Vec<Family>,
}

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

/// What an answer of DNS comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nobody had asked.
    Unasked,
    /// It has no address of a family that the host has.
    Nothing,
    Known,
}

impl Names {
    /// Looks a name up, and says whether DNS is to be asked.
    pub(super) fn lookup(&mut self, host: &str, family: Family, port: u16, now: Instant) -> (Lookup, bool) {
        let is_new = !self.names.contains_key(host);
        let name = self.names.entry(host.to_owned()).or_insert(Name { v4: None, v6: None, state: State::Asked(now) });
        let is_known = name.is_known(&self.families);
        let is_due = match name.state {
            State::Asked(at) => is_new || now.since(at) >= LOST,
            State::Answered(at) => now.since(at) >= if is_known { FRESH } else { FAILED },
            State::Failed(at) => now.since(at) >= FAILED,
        };
        if is_due {
            name.state = State::Asked(now);
        }
        let lookup = match (name.of(family), name.state) {
            (Some(address), _) => Lookup::At(SocketAddr::new(address, port)),
            (None, State::Asked(_)) if !is_known => Lookup::Pending,
            (None, _) => Lookup::Nowhere,
        };
        (lookup, is_due)
    }

    /// Takes in the first address of each family, or that there is none.
    pub(super) fn answer(&mut self, host: &str, addresses: &[IpAddr], now: Instant) -> Answer {
        let Some(name) = self.names.get_mut(host).filter(|name| matches!(name.state, State::Asked(_))) else {
            return Answer::Unasked;
        };
        let first = |family| {
            let usable = addresses.iter().map(IpAddr::to_canonical).filter(|address| is_host(*address));
            usable.into_iter().find(|address| Family::of(*address) == family)
        };
        let answered = Name { v4: first(Family::V4), v6: first(Family::V6), state: State::Answered(now) };
        if answered.is_known(&self.families) {
            *name = answered;
            Answer::Known
        } else {
            // The half that the host could use may have got lost.
            *name = Name { v4: answered.v4.or(name.v4), v6: answered.v6.or(name.v6), state: State::Failed(now) };
            Answer::Nothing
        }
    }

    /// Replaces the families that the host has.
    pub(super) fn set_families(&mut self, families: &[Family]) {
        self.families = families.to_vec();
    }

    /// Whether an address of it is known, of a family that the host has.
    pub(super) fn knows(&self, host: &str) -> bool {
        self.names.get(host).is_some_and(|name| name.is_known(&self.families))
    }

    /// Forgets names that are not in the map any more.
    pub(super) fn retain(&mut self, servers: &Servers) {
        let names: std::collections::BTreeSet<_> = servers.names().collect();
        self.names.retain(|name, _| names.contains(name.as_str()));
    }

    /// Forgets all: another network has other answers.
    pub(super) fn clear(&mut self) {
        self.names.clear();
    }
}

impl Name {
    const fn of(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    fn is_known(&self, families: &[Family]) -> bool {
        families.iter().any(|family| self.of(*family).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_asked_for_once_and_again_when_old() {
        let mut names = names(&Family::BOTH);
        let v4 = |names: &mut Names, secs| names.lookup("a", Family::V4, 5, Instant::from_secs(secs));
        assert_eq!(v4(&mut names, 1), (Lookup::Pending, true));
        assert_eq!(v4(&mut names, 2), (Lookup::Pending, false));
        assert_eq!(v4(&mut names, 11), (Lookup::Pending, true));
        let addresses =
            ["::ffff:0.0.0.0", "224.0.0.1", "::ffff:192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        assert_eq!(names.answer("a", &addresses, Instant::from_secs(12)), Answer::Known);
        assert_eq!(names.answer("a", &addresses, Instant::from_secs(12)), Answer::Unasked);
        assert_eq!(names.answer("b", &addresses, Instant::from_secs(12)), Answer::Unasked);
        let known = Lookup::At("192.0.2.1:5".parse().unwrap());
        assert_eq!(v4(&mut names, 13), (known, false));
        assert_eq!(names.lookup("a", Family::V6, 5, Instant::from_secs(13)), (Lookup::Nowhere, false));
        assert_eq!(v4(&mut names, 312), (known, true));
        assert_eq!(names.answer("a", &[], Instant::from_secs(313)), Answer::Nothing);
        assert_eq!(v4(&mut names, 314), (known, false));
        assert_eq!(v4(&mut names, 315), (known, true));
    }

    #[test]
    fn a_name_that_failed_rests_and_all_are_forgotten_with_the_map() {
        let mut names = names(&Family::BOTH);
        let v4 = |names: &mut Names, secs| names.lookup("a", Family::V4, 5, Instant::from_secs(secs));
        assert_eq!(v4(&mut names, 1), (Lookup::Pending, true));
        names.answer("a", &[], Instant::from_secs(1));
        assert_eq!(v4(&mut names, 2), (Lookup::Nowhere, false));
        assert_eq!(v4(&mut names, 3), (Lookup::Pending, true));
        names.retain(&Servers::default());
        assert!(names.names.is_empty());
    }

    #[test]
    fn an_address_of_a_family_that_the_host_lacks_is_kept_for_when_it_has_it() {
        let mut names = names(&[Family::V4]);
        let look_up = |names: &mut Names, family, secs| names.lookup("a", family, 5, Instant::from_secs(secs));
        assert_eq!(look_up(&mut names, Family::V4, 1), (Lookup::Pending, true));
        let addresses = ["2001:db8::1".parse().unwrap()];
        assert_eq!(names.answer("a", &addresses, Instant::from_secs(1)), Answer::Nothing);
        assert!(!names.knows("a"));
        assert_eq!(look_up(&mut names, Family::V4, 3), (Lookup::Pending, true));
        let address = "192.0.2.1".parse().unwrap();
        assert_eq!(names.answer("a", &[address], Instant::from_secs(3)), Answer::Known);
        assert_eq!(look_up(&mut names, Family::V6, 4), (Lookup::Nowhere, false));
        names.set_families(&[Family::V6]);
        assert!(!names.knows("a"));
        assert_eq!(look_up(&mut names, Family::V6, 5), (Lookup::Pending, true));
        assert_eq!(names.answer("a", &[addresses[0], address], Instant::from_secs(5)), Answer::Known);
        names.set_families(&Family::BOTH);
        assert_eq!(look_up(&mut names, Family::V4, 6), (Lookup::At("192.0.2.1:5".parse().unwrap()), false));
    }

    fn names(families: &[Family]) -> Names {
        let mut names = Names::default();
        names.set_families(families);
        names
    }
}
