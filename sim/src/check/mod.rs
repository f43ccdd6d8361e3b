//! What is checked: invariants, always; expectations, at the end.
//!
//! Invariants hold in every world; their ids are those of the invariants' table (S2 …). Each counts how often it
//! was looked at: a check that never had anything to look at has not passed.
//!
//! What is not looked at, because the house does not have it: routes through other nodes (S8 knows one tunnel and no router
//! inside it), probing for ports and many sockets (of N7's budget only datagrams are spent), port mappings, and a search
//! for the MTU of a path. So N8 holds full packets to links that carry them; where a link is too narrow for them and wide
//! enough for probes, a direct way is a hole for them. N9 is about links that what is sent does not fill: how much that
//! is, is for those who send it. S9 and L4 count entries, not bytes; how many bytes an entry has is bounded where it is
//! made. A direct way is taken even where a relay would be faster, so N5 compares each with its own kind.

pub(crate) mod best;
mod expect;
mod forged;
mod gone;
pub(crate) mod harm;
pub(crate) mod network;
mod paths;
mod payload;
mod policy;
mod policy_text;
mod quiet;
mod recovery;
pub(crate) mod sizes;
mod states;
pub(crate) mod technique;
mod traffic;
pub(crate) mod ways;
mod wire;

use mesh_core::time::Instant;

pub use expect::{Expectation, Held, Hold, PathIs, Verdict};
pub use paths::PathCheck;
pub use policy::{PolicyCheck, Propagation, Standing};
pub use policy_text::{Member, PolicyText, Question, Wants};
pub use states::Ruling;
pub use technique::Technique;
pub use traffic::{Flow, Flows, Sample};
pub use wire::WireCheck;

pub(crate) use best::Best;
pub(crate) use expect::{View, evaluate, first_delivery};
pub(crate) use forged::ForgedCheck;
pub(crate) use gone::GoneCheck;
pub(crate) use quiet::QuietCheck;
pub(crate) use recovery::Change;

macro_rules! check_ids {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Names an invariant.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum CheckId {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl CheckId {
            /// All invariants, in order.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name in scenarios and reports.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

check_ids! {
    /// In a world with a policy: what comes out of a tunnel is allowed by its text.
    S1 = "S1",
    /// No plaintext and no inner packet on any link.
    S2 = "S2",
    /// The inner source address belongs to the host that sealed the packet.
    S3 = "S3",
    /// An inner packet is delivered at most once.
    S4 = "S4",
    /// No key and counter, and no ephemeral key, is used twice, also after a restart.
    S5 = "S5",
    /// In a world with network maps: no data is sent to an address that did not answer a ping.
    S6 = "S6",
    /// In a world with control: who was removed or has expired gets nothing more.
    S7 = "S7",
    /// Nothing of the underlay is sent to an overlay address, and inner packets pass no router.
    S8 = "S8",
    /// What a node holds is within its bounds.
    S9 = "S9",
    /// In a world with forged datagrams: nobody is made to send a victim more than came in its name.
    S10 = "S10",
    /// A drained machine wants to be woken later than now, or not at all.
    S11 = "S11",
    /// No panic.
    S12 = "S12",
    /// In a world with relays: what is sent is not lost for more than 3 s at a time.
    N1 = "N1",
    /// In a world with relays: the way between two nodes changes twice a minute at most while nothing happens.
    N2 = "N2",
    /// In a world with network maps: a host that only relays serve probes no more than stock nodes do.
    N3 = "N3",
    /// Where there is a way at all, payload takes it.
    N4 = "N4",
    /// In a world with relays: the way that two nodes settle on takes little longer than the best that there is.
    N5 = "N5",
    /// In a world with relays: after a single change two nodes speak again within its budget.
    N6 = "N6",
    /// Looking for ways costs a bounded number of probes, and no router's table.
    N7 = "N7",
    /// Where there is a way at all, full packets of 1280 bytes take it.
    N8 = "N8",
    /// Probes do not wait long behind what is sent on a link that this does not fill.
    N9 = "N9",
    /// In a world with network maps: every node holds the newest at the end.
    L1 = "L1",
    /// In a world with relays: those who send are heard at the end, both ways.
    L2 = "L2",
    /// In a world that ends in silence: nodes that have nothing to say fall silent.
    L3 = "L3",
    /// In a world that ends in silence: nodes hold no more than idle ones do.
    L4 = "L4",
    /// In a world with control: what control says that it did is stored.
    Stored = "stored",
    /// Every datagram is delivered, dropped for a cause, or on its way.
    Conservation = "conservation",
    /// A NAT never maps two live sessions to one reply tuple and never delivers to a host that is not inside.
    Nat = "nat",
}

impl CheckId {
    /// The invariants that `pattern` names: one, or a class as `N*`; `S*` and `*` are those that every
    /// world has something for, `N*` and `L*` those of every world with relays.
    /// The others are looked at too, where there is something to look at.
    #[must_use]
    pub fn matching(pattern: &str) -> Vec<Self> {
        let is_anywhere = |id: Self| match id {
            Self::S1 | Self::S6 | Self::S7 | Self::S10 | Self::Stored => false,
            _ => !id.name().starts_with(['N', 'L']),
        };
        let matches = |id: &&Self| match pattern.strip_suffix('*') {
            Some("") => is_anywhere(**id),
            Some("N") => matches!(id, Self::N1 | Self::N2 | Self::N3),
            Some(prefix @ "S") => id.name().starts_with(prefix) && is_anywhere(**id),
            Some("L") => matches!(id, Self::L1 | Self::L2),
            Some(prefix) => id.name().starts_with(prefix),
            None => id.name() == pattern,
        };
        Self::ALL.iter().filter(matches).copied().collect()
    }
}

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub id: CheckId,
    /// When.
    pub at: Instant,
    /// What was seen.
    pub message: String,
}

/// How often each invariant was looked at, and the first time that one did not hold.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    checked: [u64; CheckId::ALL.len()],
    violation: Option<Violation>,
    violations: u64,
}

impl Tally {
    /// An invariant was looked at and held.
    #[inline]
    pub fn note_held(&mut self, id: CheckId) {
        self.checked[id as usize] += 1;
    }

    /// An invariant was looked at; `violation` says what was wrong.
    #[inline]
    pub fn note(&mut self, id: CheckId, at: Instant, violation: Option<String>) {
        self.checked[id as usize] += 1;
        if let Some(message) = violation {
            self.violations += 1;
            self.violation.get_or_insert(Violation { id, at, message });
        }
    }

    /// How often an invariant was looked at.
    #[must_use]
    pub fn checked(&self, id: CheckId) -> u64 {
        self.checked[id as usize]
    }

    /// The first that did not hold.
    #[must_use]
    pub fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    /// How often one did not hold.
    #[must_use]
    pub fn violations(&self) -> u64 {
        self.violations
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_name_classes() {
        assert_eq!(CheckId::matching("S2"), [CheckId::S2]);
        assert_eq!(CheckId::matching("S*").len(), 8);
        assert_eq!(CheckId::matching("*").len(), CheckId::ALL.len() - 18);
        assert_eq!(CheckId::matching("N*"), [CheckId::N1, CheckId::N2, CheckId::N3]);
        assert_eq!(CheckId::matching("L*"), [CheckId::L1, CheckId::L2]);
        assert!(CheckId::matching("X*").is_empty());
    }

    #[test]
    fn the_first_violation_is_kept() {
        let mut tally = Tally::default();
        tally.note(CheckId::S2, Instant::ZERO, None);
        tally.note(CheckId::S4, Instant::from_secs(1), Some("twice".to_owned()));
        tally.note(CheckId::S5, Instant::from_secs(2), Some("again".to_owned()));
        assert_eq!(tally.violation().map(|violation| violation.id), Some(CheckId::S4));
        assert_eq!((tally.violations(), tally.checked(CheckId::S2), tally.checked(CheckId::S3)), (2, 1, 0));
    }
}
