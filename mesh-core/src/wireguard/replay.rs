//! The sliding window that tells a counter seen before from a new one (RFC 6479).

/// Words of the bitmap. One word is always partly outside the window.
const WORDS: u64 = 128;
const WORD_BITS: u64 = 64;

/// How far behind the highest counter a packet may arrive: 8,128, as in wireguard-go.
pub const WINDOW_PACKETS: u64 = (WORDS - 1) * WORD_BITS;

/// Which of the newest counters have been seen.
#[derive(Debug)]
pub struct ReplayWindow {
    /// One more than the highest counter seen.
    next: u64,
    bitmap: [u64; WORDS as usize],
}

impl ReplayWindow {
    /// A window that has seen nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { next: 0, bitmap: [0; WORDS as usize] }
    }

    /// Whether `counter` is new; notes it when it is. To be asked only about authenticated packets.
    ///
    /// # Panics
    /// Never for counters below [`REJECT_AFTER_MESSAGES`](super::timers::REJECT_AFTER_MESSAGES), which the caller checks.
    #[must_use]
    pub fn admit(&mut self, counter: u64) -> bool {
        if counter >= self.next {
            self.advance(counter);
            self.next = counter + 1;
        } else if self.next - counter > WINDOW_PACKETS {
            return false;
        }
        let word = &mut self.bitmap[(counter / WORD_BITS % WORDS) as usize];
        let bit = 1 << (counter % WORD_BITS);
        let seen = *word & bit != 0;
        *word |= bit;
        !seen
    }

    /// Clears the words between the highest counter so far and `counter`.
    fn advance(&mut self, counter: u64) {
        // The word of the highest counter so far is in use already, unless nothing was seen yet.
        let first = self.next.div_ceil(WORD_BITS);
        let last = counter / WORD_BITS;
        let words = (last + 1).saturating_sub(first).min(WORDS);
        for word in (last + 1 - words)..=last {
            if words > 0 {
                self.bitmap[(word % WORDS) as usize] = 0;
            }
        }
    }
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_usable_window_is_8128() {
        let mut window = ReplayWindow::new();
        assert!(window.admit(WINDOW_PACKETS));
        assert!(window.admit(1));
        assert!(!window.admit(1));
        assert!(!window.admit(0));
        assert!(window.admit(WINDOW_PACKETS - 1));
    }

    #[test]
    fn a_jump_forgets_everything_behind_it() {
        let mut window = ReplayWindow::new();
        assert!((0..1000).all(|counter| window.admit(counter)));
        assert!(window.admit(u64::MAX - 10_000));
        assert!(!window.admit(999));
        assert!(window.admit(u64::MAX - 10_001));
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(counters in prop::collection::vec(prop_oneof![0u64..300, 8000u64..8400, 16_000u64..17_000], 1..400)) {
            let mut window = ReplayWindow::new();
            let mut seen = BTreeSet::new();
            for counter in counters {
                let next = seen.last().map_or(0, |highest| highest + 1).max(counter + 1);
                let inside = next - counter <= WINDOW_PACKETS;
                prop_assert_eq!(window.admit(counter), inside && !seen.contains(&counter));
                if inside {
                    seen.insert(counter);
                }
            }
        }
    }
}
