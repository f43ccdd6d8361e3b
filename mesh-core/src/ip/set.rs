//! Sets of addresses: sorted spans that neither overlap nor touch.
//!
//! Devices get their addresses one after the other, so a set of many devices mostly is a few spans.

use core::{fmt, net::IpAddr, str::FromStr};

use super::prefix::Prefix;

/// Addresses from one to another of the same family, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    first: IpAddr,
    last: IpAddr,
}

impl Span {
    /// From `first` to `last`; `None` when they are of two families or in the wrong order.
    #[must_use]
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(Self { first, last })
    }

    /// The lowest address.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The highest address.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// Whether `other` lies wholly inside.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.first.is_ipv4() == other.first.is_ipv4() && self.first <= other.first && other.last <= self.last
    }

    /// Whether they have an address in common.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.first.is_ipv4() == other.first.is_ipv4() && self.first <= other.last && other.first <= self.last
    }

    /// The prefix with exactly these addresses, when there is one.
    #[must_use]
    pub fn prefix(&self) -> Option<Prefix> {
        let size = bits(self.last) ^ bits(self.first);
        let host_bits = (128 - size.leading_zeros()) as u8;
        let width = if self.first.is_ipv4() { 32 } else { 128 };
        let prefix = Prefix::new(self.first, width - host_bits)?;
        (Self::from(prefix) == *self).then_some(prefix)
    }
}

impl From<IpAddr> for Span {
    fn from(address: IpAddr) -> Self {
        Self { first: address, last: address }
    }
}

impl From<Prefix> for Span {
    fn from(prefix: Prefix) -> Self {
        let first = prefix.address();
        let width = if first.is_ipv4() { 32 } else { 128 };
        let hosts = u128::MAX.checked_shr(128 - (width - u32::from(prefix.length()))).unwrap_or(0);
        Self { first, last: address(bits(first) | hosts, first.is_ipv4()) }
    }
}

/// An address, a prefix, or `first-last`, whichever is shortest.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix() {
            _ if self.first == self.last => self.first.fmt(f),
            Some(prefix) => prefix.fmt(f),
            None => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// Why a text is no span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an address, a prefix or first-last")]
pub struct ParseSpanError;

/// Takes what it prints.
impl FromStr for Span {
    type Err = ParseSpanError;

    fn from_str(text: &str) -> Result<Self, ParseSpanError> {
        let parse = |text: &str| text.parse().map_err(|_| ParseSpanError);
        match text.split_once('-') {
            Some((first, last)) => Self::new(parse(first)?, parse(last)?).ok_or(ParseSpanError),
            None => text.parse::<Prefix>().map(Self::from).map_err(|_| ParseSpanError),
        }
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn address(bits: u128, is_ipv4: bool) -> IpAddr {
    if is_ipv4 { IpAddr::V4((bits as u32).into()) } else { IpAddr::V6(bits.into()) }
}

/// The next address; `None` after the last of its family.
fn after(of: IpAddr) -> Option<IpAddr> {
    let max = if of.is_ipv4() { u32::MAX.into() } else { u128::MAX };
    (bits(of) < max).then(|| address(bits(of) + 1, of.is_ipv4()))
}

/// The address before; `None` before the first of its family.
fn before(of: IpAddr) -> Option<IpAddr> {
    bits(of).checked_sub(1).map(|bits| address(bits, of.is_ipv4()))
}

/// A set of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpSet {
    spans: Vec<Span>,
}

impl IpSet {
    /// Puts addresses in.
    pub fn insert(&mut self, span: impl Into<Span>) {
        let mut span = span.into();
        // Those that overlap or touch: from the first that does not end before, to the first that begins after.
        let touches = |other: &Span| {
            other.overlaps(&span) || after(other.last) == Some(span.first) || after(span.last) == Some(other.first)
        };
        let from = self.spans.partition_point(|other| other.last < span.first && !touches(other));
        let until = from + self.spans[from..].iter().take_while(|other| touches(other)).count();
        if let (Some(low), Some(high)) = (self.spans[from..until].first(), self.spans[from..until].last()) {
            span = Span { first: span.first.min(low.first), last: span.last.max(high.last) };
        }
        self.spans.splice(from..until, [span]);
    }

    /// Takes addresses out.
    pub fn remove(&mut self, span: impl Into<Span>) {
        let span = span.into();
        let from = self.spans.partition_point(|other| other.last < span.first);
        let until = from + self.spans[from..].iter().take_while(|other| other.overlaps(&span)).count();
        let mut left = Vec::with_capacity(2);
        for other in &self.spans[from..until] {
            left.extend(before(span.first).and_then(|last| Span::new(other.first, last)));
            left.extend(after(span.last).and_then(|first| Span::new(first, other.last)));
        }
        self.spans.splice(from..until, left);
    }

    /// Puts in all of another set.
    pub fn extend(&mut self, other: &Self) {
        if self.spans.is_empty() {
            self.spans.clone_from(&other.spans);
        } else {
            for span in &other.spans {
                self.insert(*span);
            }
        }
    }

    /// Whether all of a span is in.
    #[must_use]
    pub fn covers(&self, span: impl Into<Span>) -> bool {
        let span = span.into();
        let at = self.spans.partition_point(|ours| ours.last < span.first);
        self.spans.get(at).is_some_and(|ours| ours.covers(&span))
    }

    /// Whether some of a span is in.
    #[must_use]
    pub fn overlaps(&self, span: impl Into<Span>) -> bool {
        let span = span.into();
        let at = self.spans.partition_point(|ours| ours.last < span.first);
        self.spans.get(at).is_some_and(|ours| ours.overlaps(&span))
    }

    /// Whether nothing is in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// What is in, IPv4 first, in order.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }
}

impl<T: Into<Span>> FromIterator<T> for IpSet {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut set = Self::default();
        for item in items {
            set.insert(item);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::rng::Seed;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn spans_print_as_shortly_as_they_can() {
        let span = |a: &str, b: &str| {
            let span = Span::new(a.parse().unwrap(), b.parse().unwrap()).unwrap();
            assert_eq!(span.to_string().parse(), Ok(span));
            span.to_string()
        };
        assert_eq!(span("10.0.0.1", "10.0.0.1"), "10.0.0.1");
        assert_eq!(span("10.0.0.0", "10.255.255.255"), "10.0.0.0/8");
        assert_eq!(span("0.0.0.0", "255.255.255.255"), "0.0.0.0/0");
        assert_eq!(span("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), "::/0");
        assert_eq!(span("10.0.0.1", "10.0.0.2"), "10.0.0.1-10.0.0.2");
        assert_eq!(span("fd00::", "fd00::1"), "fd00::/127");
        assert_eq!(Span::new("10.0.0.2".parse().unwrap(), "10.0.0.1".parse().unwrap()), None);
    }

    #[test]
    fn the_ends_of_a_family_do_not_touch_the_other() {
        let mut set: IpSet = [prefix("0.0.0.0/0")].into_iter().collect();
        set.insert(prefix("::/0"));
        assert_eq!(set.spans().len(), 2);
        set.remove(prefix("0.0.0.0/1"));
        set.remove(prefix("ffff::/16"));
        let text: Vec<_> = set.spans().iter().map(ToString::to_string).collect();
        assert_eq!(text, ["128.0.0.0/1", "::-fffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]);
    }

    #[test]
    fn a_set_is_what_a_set_of_single_addresses_is() {
        for seed in 0..200 {
            let mut rng = Seed::from_number(seed).stream("ipset", 0);
            let mut set = IpSet::default();
            let mut model = BTreeSet::new();
            for _ in 0..40 {
                let first = rng.below(60) as u32;
                let last = first + rng.below(6) as u32;
                let span = Span::new(IpAddr::V4(first.into()), IpAddr::V4(last.into())).unwrap();
                if rng.below(3) > 0 {
                    set.insert(span);
                    model.extend(first..=last);
                } else {
                    set.remove(span);
                    model.retain(|address| !(first..=last).contains(address));
                }
                let within = |span: &Span| (first..=last).all(|a| span.covers(&IpAddr::V4(a.into()).into()));
                assert_eq!(set.covers(span), set.spans().iter().any(within));
                assert_eq!(set.overlaps(span), (first..=last).any(|address| model.contains(&address)));
            }
            for address in 0..70 {
                assert_eq!(set.covers(IpAddr::V4(address.into())), model.contains(&address), "{seed} {address}");
            }
            assert!(set.spans().windows(2).all(|pair| after(pair[0].last) < Some(pair[1].first)));
        }
    }
}
